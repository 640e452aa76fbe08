//! The minimal gated unit (Zhou et al. 2016): a GRU whose one gate f is both reset and update.

use std::ops::Range;

use super::{Backward, Cell, Forward, Saved, Slots, State, Update};
use crate::math::{d_sigmoid, d_tanh, flush, sigmoid, tanh};
use crate::simd::{Broadcast, Element, Lanewise};

/// Names and slots, in the order of the weights' row blocks.
const GATES: &[(&str, usize)] = &[("f", 1), ("n", 0)];

/// The row block of a slot: n is the last block and the first slot, and nh shares n's weights.
const fn gate(slot: usize) -> usize {
    [1, 0, 1][slot]
}

/// Reset after the product. Slots: n f nh.
#[derive(Clone, Copy, Debug)]
pub struct MguAfter {
    /// What f does as an update gate.
    pub update: Update,
}

impl Cell for MguAfter {
    const SLOTS: usize = 3;
    const INPUT: usize = 2;
    const RECURRENT: Range<usize> = 1..3;
    const GATES: &'static [(&'static str, usize)] = GATES;

    fn gate(slot: usize) -> usize {
        gate(slot)
    }

    #[inline(always)]
    fn forward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        before: State<S::V>,
    ) -> Forward<S::V> {
        let f = sigmoid(s, pre[1]);
        let nh = pre[2];
        let n = tanh(s, f.mul_add(nh, pre[0]));
        let h = flush(s, self.update.mix(s, f, before.h, n));
        Forward {
            saved: [n, f, nh, nh],
            state: State { h, ..before },
        }
    }

    #[inline(always)]
    fn backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        saved: Saved<S::V>,
        after: State<S::V>,
    ) -> Backward<S::V> {
        let [n, f, nh, _] = saved.slots;
        // h = mix(f, h', n)
        let (df_update, before, dn) = self.update.mix_backward(s, f, saved.before.h, n, after.h);
        // n = tanh(a_n + f*nh)
        let da = dn * d_tanh(s, n);
        let (df_reset, dnh) = (da * nh, da * f);
        // f = sigmoid(.), used twice
        let pre = [da, (df_update + df_reset) * d_sigmoid(s, f), dnh, dnh];
        Backward {
            pre,
            before: State {
                h: before,
                c: after.c,
            },
            cell: after.c,
        }
    }
}

/// Reset before the product: two stages. Slots: n f.
#[derive(Clone, Copy, Debug)]
pub struct MguBefore {
    /// What f does as an update gate.
    pub update: Update,
}

impl Cell for MguBefore {
    const SLOTS: usize = 2;
    const INPUT: usize = 2;
    const RECURRENT: Range<usize> = 1..2;
    const CANDIDATE: Range<usize> = 0..1;
    const GATES: &'static [(&'static str, usize)] = GATES;

    fn gate(slot: usize) -> usize {
        gate(slot)
    }

    #[inline(always)]
    fn reset<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        operand: S::V,
    ) -> (Slots<S::V>, S::V) {
        let f = sigmoid(s, pre[1]);
        ([pre[0], f, pre[2], pre[3]], f * operand)
    }

    #[inline(always)]
    fn reset_operand<E: Element, S: Broadcast<E>>(
        self,
        _s: S,
        saved: Slots<S::V>,
        operand: S::V,
    ) -> S::V {
        saved[1] * operand
    }

    #[inline(always)]
    fn forward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        before: State<S::V>,
    ) -> Forward<S::V> {
        let [a, f, _, _] = pre;
        let n = tanh(s, a);
        let h = flush(s, self.update.mix(s, f, before.h, n));
        Forward {
            saved: [n, f, f, f],
            state: State { h, ..before },
        }
    }

    #[inline(always)]
    fn backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        saved: Saved<S::V>,
        after: State<S::V>,
    ) -> Backward<S::V> {
        let [n, f, _, _] = saved.slots;
        // h = mix(f, h', n)
        let (df_update, before, dn) = self.update.mix_backward(s, f, saved.before.h, n, after.h);
        // n = tanh(a)
        let da = dn * d_tanh(s, n);
        // f = sigmoid(.): the part as an update gate; the part as a reset gate waits for the product
        let pre = [da, df_update * d_sigmoid(s, f), da, da];
        Backward {
            pre,
            before: State {
                h: before,
                c: after.c,
            },
            cell: after.c,
        }
    }

    #[inline(always)]
    fn reset_backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        saved: Slots<S::V>,
        operand: S::V,
        product: S::V,
    ) -> (Slots<S::V>, S::V) {
        let f = saved[1];
        // product = f*h'
        let df_reset = product * operand;
        // f = sigmoid(.)
        (
            [
                pre[0],
                df_reset.mul_add(d_sigmoid(s, f), pre[1]),
                pre[2],
                pre[3],
            ],
            product * f,
        )
    }
}
