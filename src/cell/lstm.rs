//! The LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000):
//! `i, f, o = sigmoid(.)`, `g = tanh(.)`, `c = f*c' + i*g`, `h = o*tanh(c)`.

use std::ops::Range;

use super::{Backward, Cell, Forward, Saved, Slots, State};
use crate::math::{d_sigmoid, d_tanh, flush, sigmoid, tanh};
use crate::simd::{Broadcast, Element, Lanewise};

/// Slots: i f g o. c is not saved: backward has c' and the gates, and c is one multiply-add away.
#[derive(Clone, Copy, Debug)]
pub struct Lstm;

impl Lstm {
    #[inline(always)]
    fn cell<E: Element, S: Broadcast<E>>(
        s: S,
        [i, f, g, _]: Slots<S::V>,
        before: State<S::V>,
    ) -> S::V {
        flush(s, f.mul_add(before.c, i * g))
    }
}

impl Cell for Lstm {
    const SLOTS: usize = 4;
    const INPUT: usize = 4;
    const RECURRENT: Range<usize> = 0..4;
    const HAS_CELL: bool = true;
    const GATES: &'static [(&'static str, usize)] = &[("i", 0), ("f", 1), ("g", 2), ("o", 3)];

    fn gate(slot: usize) -> usize {
        slot
    }

    #[inline(always)]
    fn forward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        before: State<S::V>,
    ) -> Forward<S::V> {
        let i = sigmoid(s, pre[0]);
        let f = sigmoid(s, pre[1]);
        let g = tanh(s, pre[2]);
        let o = sigmoid(s, pre[3]);
        let saved = [i, f, g, o];
        let c = Self::cell(s, saved, before);
        let h = flush(s, o * tanh(s, c));
        Forward {
            saved,
            state: State { h, c },
        }
    }

    #[inline(always)]
    fn backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        saved: Saved<S::V>,
        after: State<S::V>,
    ) -> Backward<S::V> {
        let [i, f, g, o] = saved.slots;
        let tanh_c = tanh(s, Self::cell(s, saved.slots, saved.before));
        let dh = after.h;
        // h = o*tanh(c)
        let d_o = dh * tanh_c;
        let dc = (dh * o).mul_add(d_tanh(s, tanh_c), after.c);
        // c = f*c' + i*g
        let df = dc * saved.before.c;
        let (di, dg) = (dc * g, dc * i);
        let before = State {
            h: s.splat(E::ZERO),
            c: flush(s, dc * f),
        };
        // o, g, f, i = act(.)
        let pre = [
            di * d_sigmoid(s, i),
            df * d_sigmoid(s, f),
            dg * d_tanh(s, g),
            d_o * d_sigmoid(s, o),
        ];
        Backward {
            pre,
            before,
            cell: dc,
        }
    }
}
