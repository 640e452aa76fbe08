//! Cuts what a run writes to into the rows of each share.
//!
//! Shares come in the order of their rows and are handed out one by one: each takes the rows before its
//! end that nobody took. What is not there (c of most cells, a tape nobody wants) is cut into nothing.

use crate::gemm::view::{Field, Layout};
use crate::layer::backward::{BackwardFields, GradientFields};
use crate::layer::direction::Direction;
use crate::layer::direction::backward::ChunkGradients;
use crate::layer::forward::{ForwardFields, StateFields, StepFields};
use crate::layer::stack::StateGradients;
use crate::layer::tape::{Checkpoints, DirectionState, StepTape};
use crate::memory::Buffer;
use crate::simd::Element;

/// What can be cut into columns: the units of one worker, and those of the others.
pub trait Columns: Sized {
    /// The columns before `at`, and those from it on, which count their own from 0.
    fn split_columns(self, at: usize) -> (Self, Self);
}

impl<E: Element> Columns for Field<'_, E> {
    fn split_columns(self, at: usize) -> (Self, Self) {
        Field::split_columns(self, at)
    }
}

impl<T: Columns> Columns for Option<T> {
    fn split_columns(self, at: usize) -> (Self, Self) {
        self.map(|whole| whole.split_columns(at)).unzip()
    }
}

/// Every member of a struct of fields.
macro_rules! columns {
    ($fields:ident: $($member:ident)*) => {
        impl<E: Element> Columns for $fields<'_, E> {
            fn split_columns(self, at: usize) -> (Self, Self) {
                $(let $member = self.$member.split_columns(at);)*
                ($fields { $($member: $member.0),* }, $fields { $($member: $member.1),* })
            }
        }
    };
}

columns!(StateFields: h c);
columns!(StepFields: h_before c_before slots);
columns!(ForwardFields: state y tape checkpoints);
columns!(GradientFields: pre operand reset_operand h c);
columns!(BackwardFields: state output gradients);

/// Cuts one field, if there is one.
pub struct Cutter<'a, E> {
    rest: Option<Field<'a, E>>,
}

impl<'a, E: Element> Cutter<'a, E> {
    /// Of `field`.
    pub fn new(field: Option<Field<'a, E>>) -> Self {
        Self { rest: field }
    }

    /// Of all `values`, if they are `wanted`.
    pub fn over(wanted: bool, values: &'a mut [E], layout: Layout<'a>) -> Self {
        Self::new(wanted.then(|| Field::new(values, layout)))
    }

    /// The rows before `end` that were not taken yet.
    pub fn take(&mut self, end: usize) -> Option<Field<'a, E>> {
        let (taken, rest) = self.rest.take()?.split_rows(end);
        self.rest = Some(rest);
        Some(taken)
    }

    /// [`Self::take`] from a field that is always there.
    fn take_some(&mut self, end: usize) -> Field<'a, E> {
        self.take(end).expect("this field is always there")
    }
}

/// Cuts a state or its gradient.
pub struct StateCutter<'a, E> {
    h: Cutter<'a, E>,
    c: Cutter<'a, E>,
}

impl<'a, E: Element> StateCutter<'a, E> {
    /// Of `state`, [B, H] each.
    pub fn new(direction: &Direction<'a, E>, state: &'a mut DirectionState<E>) -> Self {
        Self::of(direction, state, direction.state_layout())
    }

    /// Of the states before all segments.
    pub fn over(direction: &Direction<'a, E>, checkpoints: &'a mut Checkpoints<E>) -> Self {
        let layout = Layout {
            schedule: &checkpoints.segments,
            ..direction.state_layout()
        };
        Self::of(direction, &mut checkpoints.states, layout)
    }

    fn of(
        direction: &Direction<'a, E>,
        state: &'a mut DirectionState<E>,
        layout: Layout<'a>,
    ) -> Self {
        let has_cell = direction.spec.has_cell;
        Self {
            h: Cutter::over(true, &mut state.h, layout),
            c: Cutter::over(has_cell, &mut state.c, layout),
        }
    }

    /// The rows before `end` that were not taken yet.
    pub fn take(&mut self, end: usize) -> StateFields<'a, E> {
        StateFields {
            h: self.h.take_some(end),
            c: self.c.take(end),
        }
    }
}

/// Cuts the tape of some steps.
pub struct TapeCutter<'a, E> {
    h_before: Cutter<'a, E>,
    c_before: Cutter<'a, E>,
    slots: Cutter<'a, E>,
}

impl<'a, E: Element> TapeCutter<'a, E> {
    /// Of `tape`, which begins at `first_step`.
    pub fn new(direction: &Direction<'a, E>, first_step: usize, tape: &'a mut StepTape<E>) -> Self {
        let spec = direction.spec;
        let layout = |slots| direction.layout(first_step, slots);
        Self {
            h_before: Cutter::over(true, &mut tape.h_before, layout(1)),
            c_before: Cutter::over(spec.has_cell, &mut tape.c_before, layout(1)),
            slots: Cutter::over(spec.saved > 0, &mut tape.slots, layout(spec.saved)),
        }
    }

    /// The rows before `end` that were not taken yet.
    pub fn take(&mut self, end: usize) -> StepFields<'a, E> {
        StepFields {
            h_before: self.h_before.take_some(end),
            c_before: self.c_before.take(end),
            slots: self.slots.take(end),
        }
    }
}

/// Cuts what the recursion leaves of a chunk, and the gradients of the states.
pub struct GradientCutter<'a, E> {
    pre: Cutter<'a, E>,
    operand: Cutter<'a, E>,
    reset_operand: Cutter<'a, E>,
    h: Cutter<'a, E>,
    c: Cutter<'a, E>,
}

impl<'a, E: Element> GradientCutter<'a, E> {
    /// Of `chunk`, which begins at `first_step`, and of `shown`.
    pub fn new(
        direction: &Direction<'a, E>,
        first_step: usize,
        chunk: &'a mut ChunkGradients<E>,
        shown: Option<&'a mut StateGradients<E>>,
    ) -> Self {
        let (spec, masked) = (direction.spec, direction.mask.is_some());
        let layout = |slots| direction.layout(first_step, slots);
        let (h, c) = match shown {
            None => (None, None),
            Some(StateGradients { h, c }) => (Some(h), c.as_mut()),
        };
        let shown = |values: Option<&'a mut Buffer<E>>| {
            Cutter::new(values.map(|values| Field::new(values, direction.layout(0, 1))))
        };
        Self {
            pre: Cutter::over(true, &mut chunk.pre, layout(spec.slots)),
            operand: Cutter::over(masked, &mut chunk.operand, layout(1)),
            reset_operand: Cutter::over(
                spec.has_reset_stage(),
                &mut chunk.reset_operand,
                layout(1),
            ),
            h: shown(h),
            c: shown(c),
        }
    }

    /// The rows before `end` that were not taken yet.
    pub fn take(&mut self, end: usize) -> GradientFields<'a, E> {
        GradientFields {
            pre: self.pre.take_some(end),
            operand: self.operand.take(end),
            reset_operand: self.reset_operand.take(end),
            h: self.h.take(end),
            c: self.c.take(end),
        }
    }
}
