//! The vanilla cell (Elman 1990): `h = act(W x + b_ih + U h' + b_hh)`.

use std::ops::Range;

use super::{Backward, Cell, Forward, Saved, Slots, State};
use crate::math::{d_tanh, flush, relu, tanh};
use crate::simd::{Broadcast, Element, Lanewise};

/// Slot: a. Backward reads h, the output, alone.
#[derive(Clone, Copy, Debug)]
pub struct Rnn {
    /// relu instead of tanh.
    pub relu: bool,
}

impl Cell for Rnn {
    const SLOTS: usize = 1;
    const INPUT: usize = 1;
    const RECURRENT: Range<usize> = 0..1;
    const SAVED: usize = 0;
    const READS_OUTPUT: bool = true;
    const GATES: &'static [(&'static str, usize)] = &[("h", 0)];

    fn gate(_slot: usize) -> usize {
        0
    }

    #[inline(always)]
    fn forward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        before: State<S::V>,
    ) -> Forward<S::V> {
        let h = if self.relu {
            relu(s, pre[0])
        } else {
            tanh(s, pre[0])
        };
        Forward {
            saved: pre,
            state: State {
                h: flush(s, h),
                ..before
            },
        }
    }

    #[inline(always)]
    fn backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        saved: Saved<S::V>,
        after: State<S::V>,
    ) -> Backward<S::V> {
        let (h, dh, zero) = (saved.output, after.h, s.splat(E::ZERO));
        // h = act(a)
        let da = if self.relu {
            dh.select_positive(h)
        } else {
            dh * d_tanh(s, h)
        };
        Backward {
            pre: [da; 4],
            before: State { h: zero, c: zero },
            cell: zero,
        }
    }
}
