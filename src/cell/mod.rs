//! The cells: what happens in one unit at one step, as equations on registers.
//!
//! A cell is a pair of functions. `forward` takes the pre-activations of one vector of units and the
//! state before the step, and gives the state after it and what backward needs; `backward` stands
//! directly below and walks the same lines in reverse. A cell knows no matrix product, no thread and no
//! instruction set: the driver multiplies, hands over registers, and stores what comes back.
//!
//! The numbers of a unit stand in *slots*, the same ones before the cell (pre-activations), after it
//! (what is saved) and on the way back (gradients of the pre-activations). `W x` adds to the first
//! [`Cell::INPUT`] slots, `U h'` to the slots [`Cell::RECURRENT`], so each product writes neighbours:
//!
//! | cell | slots | `W x` | `U h'` | `U (r*h')` |
//! |---|---|---|---|---|
//! | vanilla | a | a | a | |
//! | LSTM | i f g o | i f g o | i f g o | |
//! | GRU, reset after | n r z nh | n r z | r z nh | |
//! | GRU, reset before | n r z | n r z | r z | n |
//! | MGU, reset after | n f nh | n f | f nh | |
//! | MGU, reset before | n f | n f | f | n |
//!
//! A GRU with its reset after the product keeps `U_n h' + b_hn` (nh) apart from `W_n x + b_in` (n) until
//! r is known. With its reset before the product a step has two stages: all units' gates first, then the
//! product with `r*h'`; [`Cell::reset`] and [`Cell::reset_backward`] stand between them.

mod gru;
mod lstm;
mod mgu;
mod rnn;

use std::ops::Range;

pub use gru::{GruAfter, GruBefore};
pub use lstm::Lstm;
pub use mgu::{MguAfter, MguBefore};
pub use rnn::Rnn;

use crate::simd::{Broadcast, Element};

/// The most slots a cell has.
pub const MAX_SLOTS: usize = 4;

/// One vector per slot; a cell with fewer slots leaves the last ones alone.
pub type Slots<V> = [V; MAX_SLOTS];

/// The state of a vector of units; cells without a cell state `c` leave it alone.
#[derive(Clone, Copy)]
pub struct State<V> {
    /// The hidden state.
    pub h: V,
    /// The cell state of an LSTM.
    pub c: V,
}

/// What a step leaves: the slots for backward, and the new state.
pub struct Forward<V> {
    /// What backward reads.
    pub saved: Slots<V>,
    /// The state after the step.
    pub state: State<V>,
}

/// What backward reads of one step.
pub struct Saved<V> {
    /// As [`Forward::saved`].
    pub slots: Slots<V>,
    /// The state before the step.
    pub before: State<V>,
    /// h after the step; only where [`Cell::READS_OUTPUT`].
    pub output: V,
}

/// What a step passes back.
pub struct Backward<V> {
    /// The gradient of each slot's pre-activation.
    pub pre: Slots<V>,
    /// The gradient of the state before the step, without what comes back through U.
    pub before: State<V>,
    /// The whole gradient of c after the step.
    pub cell: V,
}

/// One recurrent cell; see the module.
pub trait Cell: Copy + Send + Sync + 'static {
    /// How many slots.
    const SLOTS: usize;
    /// How many slots, from the first, `W x` adds to.
    const INPUT: usize;
    /// The slots that `U h'` adds to.
    const RECURRENT: Range<usize>;
    /// The slots that `U (r*h')` adds to, in a second stage; empty for most.
    const CANDIDATE: Range<usize> = 0..0;
    /// How many slots backward reads.
    const SAVED: usize = Self::SLOTS;
    /// Whether there is a cell state c.
    const HAS_CELL: bool = false;
    /// Whether backward reads h after the step.
    const READS_OUTPUT: bool = false;
    /// The names of the gates, in PyTorch's order of the weights' row blocks, and the slot of each.
    const GATES: &'static [(&'static str, usize)];

    /// The row block of `weight_ih` and `weight_hh` that feeds a slot.
    fn gate(slot: usize) -> usize;

    /// One step.
    fn forward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        pre: Slots<S::V>,
        before: State<S::V>,
    ) -> Forward<S::V>;

    /// One step back: `after` is the gradient of the state after the step.
    fn backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        saved: Saved<S::V>,
        after: State<S::V>,
    ) -> Backward<S::V>;

    /// Between the stages: the slots with their gates activated, and r*h', the operand of the second
    /// product; `operand` is h' as the first product saw it (dropout included).
    fn reset<E: Element, S: Broadcast<E>>(
        self,
        _s: S,
        pre: Slots<S::V>,
        operand: S::V,
    ) -> (Slots<S::V>, S::V) {
        (pre, operand)
    }

    /// r*h' again, from what was saved.
    fn reset_operand<E: Element, S: Broadcast<E>>(
        self,
        _s: S,
        _saved: Slots<S::V>,
        operand: S::V,
    ) -> S::V {
        operand
    }

    /// Back between the stages: takes the gradient `product` of r*h', completes the gates' slots of
    /// `pre`, and gives the gradient of the operand.
    fn reset_backward<E: Element, S: Broadcast<E>>(
        self,
        _s: S,
        pre: Slots<S::V>,
        _saved: Slots<S::V>,
        _operand: S::V,
        product: S::V,
    ) -> (Slots<S::V>, S::V) {
        (pre, product)
    }
}

/// What a driver must know of a cell, as a value: one driver serves every cell.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// As [`Cell::SLOTS`].
    pub slots: usize,
    /// As [`Cell::INPUT`].
    pub input: usize,
    /// As [`Cell::RECURRENT`]: first, and one past the last.
    pub recurrent: (usize, usize),
    /// As [`Cell::CANDIDATE`].
    pub candidate: (usize, usize),
    /// As [`Cell::SAVED`].
    pub saved: usize,
    /// As [`Cell::HAS_CELL`].
    pub has_cell: bool,
    /// As [`Cell::READS_OUTPUT`].
    pub reads_output: bool,
    /// As [`Cell::GATES`].
    pub gates: &'static [(&'static str, usize)],
    /// As [`Cell::gate`], of each slot.
    pub gate: [usize; MAX_SLOTS],
}

impl Spec {
    /// Of a cell.
    pub fn of<C: Cell>(_cell: C) -> Self {
        let mut gate = [0; MAX_SLOTS];
        for (slot, gate) in gate.iter_mut().enumerate().take(C::SLOTS) {
            *gate = C::gate(slot);
        }
        Self {
            slots: C::SLOTS,
            input: C::INPUT,
            recurrent: (C::RECURRENT.start, C::RECURRENT.end),
            candidate: (C::CANDIDATE.start, C::CANDIDATE.end),
            saved: C::SAVED,
            has_cell: C::HAS_CELL,
            reads_output: C::READS_OUTPUT,
            gates: C::GATES,
            gate,
        }
    }

    /// The slots that `U h'` adds to.
    pub fn recurrent(&self) -> Range<usize> {
        self.recurrent.0..self.recurrent.1
    }

    /// The slots that `U (r*h')` adds to.
    pub fn candidate(&self) -> Range<usize> {
        self.candidate.0..self.candidate.1
    }

    /// Whether the cell has the second stage.
    pub fn has_reset_stage(&self) -> bool {
        !self.candidate().is_empty()
    }

    /// Whether `U` feeds a slot, in either stage.
    pub fn is_recurrent(&self, slot: usize) -> bool {
        self.recurrent().contains(&slot) || self.candidate().contains(&slot)
    }
}

/// How the update gate of a GRU or MGU mixes the old state and the candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// `h = z*h' + (1-z)*n` (PyTorch, Keras, ONNX).
    Keep,
    /// `h = (1-z)*h' + z*n` (Chung et al. 2014; Zhou et al. 2016).
    Write,
}

impl Update {
    /// The state after the step.
    #[inline(always)]
    fn mix<E: Element, S: Broadcast<E>>(self, _s: S, z: S::V, before: S::V, n: S::V) -> S::V {
        use crate::simd::Lanewise;
        let (from, to) = match self {
            Self::Keep => (n, before),
            Self::Write => (before, n),
        };
        z.mul_add(to - from, from)
    }

    /// From dh: the gradients of z, of h' and of n.
    #[inline(always)]
    fn mix_backward<E: Element, S: Broadcast<E>>(
        self,
        s: S,
        z: S::V,
        before: S::V,
        n: S::V,
        dh: S::V,
    ) -> (S::V, S::V, S::V) {
        // h = from + z*(to - from)
        let (kept, passed) = (dh * z, dh * (s.splat(E::ONE) - z));
        match self {
            Self::Keep => (dh * (before - n), kept, passed),
            Self::Write => (dh * (n - before), passed, kept),
        }
    }
}
