//! The GRU (Cho et al. 2014): `r, z = sigmoid(.)`, a candidate n, and z between n and the old state.
//!
//! The reset gate acts after the recurrent product (`n = tanh(W x + b_in + r*(U h' + b_hn))`, as in
//! cuDNN and PyTorch) or before it (`n = tanh(W x + b_in + U (r*h') + b_hn)`, as in the paper).

use std::ops::Range;

use super::{Backward, Cell, Forward, Saved, Slots, State, Update};
use crate::math::{d_sigmoid, d_tanh, flush, sigmoid, tanh};
use crate::simd::{Broadcast, Element, Lanewise};

/// Names and slots, in the order of the weights' row blocks.
const GATES: &[(&str, usize)] = &[("r", 1), ("z", 2), ("n", 0)];

/// The row block of a slot: n is the last block and the first slot, and nh shares n's weights.
const fn gate(slot: usize) -> usize {
    [2, 0, 1, 2][slot]
}

/// Reset after the product. Slots: n r z nh.
#[derive(Clone, Copy, Debug)]
pub struct GruAfter {
    /// What z does.
    pub update: Update,
}

impl Cell for GruAfter {
    const SLOTS: usize = 4;
    const INPUT: usize = 3;
    const RECURRENT: Range<usize> = 1..4;
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
        let r = sigmoid(s, pre[1]);
        let z = sigmoid(s, pre[2]);
        let nh = pre[3];
        let n = tanh(s, r.mul_add(nh, pre[0]));
        let h = flush(s, self.update.mix(s, z, before.h, n));
        Forward {
            saved: [n, r, z, nh],
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
        let [n, r, z, nh] = saved.slots;
        // h = mix(z, h', n)
        let (dz, before, dn) = self.update.mix_backward(s, z, saved.before.h, n, after.h);
        // n = tanh(a_n + r*nh)
        let da = dn * d_tanh(s, n);
        let (dr, dnh) = (da * nh, da * r);
        // z, r = sigmoid(.)
        let pre = [da, dr * d_sigmoid(s, r), dz * d_sigmoid(s, z), dnh];
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

/// Reset before the product: two stages. Slots: n r z.
#[derive(Clone, Copy, Debug)]
pub struct GruBefore {
    /// What z does.
    pub update: Update,
}

impl Cell for GruBefore {
    const SLOTS: usize = 3;
    const INPUT: usize = 3;
    const RECURRENT: Range<usize> = 1..3;
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
        let r = sigmoid(s, pre[1]);
        let z = sigmoid(s, pre[2]);
        ([pre[0], r, z, pre[3]], r * operand)
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
        let [a, r, z, _] = pre;
        let n = tanh(s, a);
        let h = flush(s, self.update.mix(s, z, before.h, n));
        Forward {
            saved: [n, r, z, z],
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
        let [n, _, z, _] = saved.slots;
        // h = mix(z, h', n)
        let (dz, before, dn) = self.update.mix_backward(s, z, saved.before.h, n, after.h);
        // n = tanh(a)
        let da = dn * d_tanh(s, n);
        // z = sigmoid(.); r's slot waits for what comes back through U
        let zero = s.splat(E::ZERO);
        let pre = [da, zero, dz * d_sigmoid(s, z), zero];
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
        let r = saved[1];
        // product = r*h'
        let dr = product * operand;
        // r = sigmoid(.)
        ([pre[0], dr * d_sigmoid(s, r), pre[2], pre[3]], product * r)
    }
}
