//! One direction of one layer, over all of its steps.
//!
//! | file | what it holds |
//! |---|---|
//! | `forward.rs` | a run forward: shares of rows for the team |
//! | `backward.rs` | the run back, mirroring it: shares of rows and of products, chunk after chunk |
//! | `cutter.rs` | what a run writes to, cut into the rows of each share |
//!
//! A run holds everything that its steps share; what is there for some steps only comes as an argument. Its
//! memory is had before its first step.

mod backward;
mod cutter;
mod forward;

use std::ops::Range;

pub use backward::{BackwardBuffers, BackwardRun, BackwardTargets, OutputGradient};
pub use forward::{ForwardBuffers, ForwardRun};

use crate::cell::Spec;
use crate::error::Result;
use crate::gemm::view::Layout;
use crate::layer::config::CellKind;
use crate::layer::plan::Cuts;
use crate::layer::weights::Lanes;
use crate::parallel::Team;
use crate::shape::Schedule;
use crate::simd::{Element, Kernel, Level};

/// What one direction of one layer is.
#[derive(Clone, Copy)]
pub struct Direction<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// What drivers know of it.
    pub spec: Spec,
    /// H.
    pub hidden: usize,
    /// I of this layer.
    pub features: usize,
    /// Against time.
    pub reverse: bool,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// One step of B rows: where states lie.
    pub still: &'a Schedule,
    /// [B, H] recurrent dropout.
    pub mask: Option<&'a [E]>,
    /// [N, I]
    pub input: &'a [E],
}

impl<'a, E: Element> Direction<'a, E> {
    /// Of a table of packed rows, `slots` times H, that begins at `first_step`.
    fn layout(&self, first_step: usize, slots: usize) -> Layout<'a> {
        Layout {
            schedule: self.schedule,
            first_step,
            slots,
            width: self.hidden,
        }
    }

    /// Of a [B, H] state.
    fn state_layout(&self) -> Layout<'a> {
        Layout {
            schedule: self.still,
            ..self.layout(0, 1)
        }
    }

    /// The packed rows of some steps.
    fn rows_of(&self, steps: &Range<usize>) -> Range<usize> {
        let offsets = self.schedule.offsets();
        offsets[steps.start]..offsets[steps.end]
    }
}

/// By what means a call computes.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Who computes.
    pub team: &'a Team<'a>,
    /// With which instructions.
    pub level: Level,
    /// What these look like.
    pub lanes: Lanes,
}

impl<'a> Means<'a> {
    /// `team` with `level`, for elements E.
    pub fn of<E: Element>(team: &'a Team<'a>, level: Level) -> Self {
        Self {
            team,
            level,
            lanes: Lanes::of::<E>(level),
        }
    }

    /// The shares of a direction, where `directions` are computed at once.
    pub fn cuts<E>(&self, direction: &Direction<'_, E>, directions: usize) -> Cuts {
        Cuts::new(
            direction.schedule,
            (direction.spec.gates.len(), direction.hidden, size_of::<E>()),
            (
                self.team.size().div_ceil(directions),
                self.team.cores().min(self.team.size()) / directions,
            ),
            self.lanes.lanes * self.lanes.column_vectors(),
        )
    }

    /// Has the team compute all `shares`.
    pub fn run<E, K>(&self, shares: Vec<K>) -> Result<()>
    where
        E: Element,
        K: Send,
        for<'k> &'k mut K: Kernel<E, Output = Result<()>>,
    {
        self.team
            .run(shares, |mut share| E::dispatch(self.level, &mut share))
    }
}
