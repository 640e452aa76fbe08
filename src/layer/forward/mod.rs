//! Some rows and units of one direction, forward over a range of steps.
//!
//! ```text
//! 1. for t in steps                       in order: each needs the last one's h
//! 2.   for panel in panels                units; any order
//! 3.     for some in rows                 24 or fewer; any order
//!          sums  = bias
//!          sums += W x_t                  or, with few rows, what was computed for many steps at once
//!          sums += U (m*h')
//!          h, c, saved = cell(sums, h', c')
//! ```
//!
//! Loop 2 is outside loop 3, so that a panel is read into the nearest cache once a step. A cell with its
//! reset before the product goes through 2 and 3 twice, all units' gates first.
//!
//! Several rows of a panel are one product, tile after tile, that leaves its sums in a scratch, where the
//! cell finds those of some 24 rows at once; a single row takes a panel or several at once and hands its
//! sums to the cell in registers. Both sum in the same order. Rows of weights that are stored as bfloat16 all
//! go this way: for each group of panels loop 3 takes one row after the other.
//!
//! With few rows `W x` is computed for a chunk of steps at once: a tile of many rows where a step has
//! few. The sums go to memory and back in between, which is exact, so the bits are the same.
//!
//! Where several workers share the units of the same rows, they meet after each step: see
//! [`crate::gemm::relay`].
//!
//! | file | what it holds |
//! |---|---|
//! | `walk.rs` | loop 1, and `W x` of many steps at once |
//! | `step.rs` | loops 2 and 3: products of several rows and of one |
//! | `results.rs` | the cell's equations, and every place where their results go |
//! | `workspace.rs` | the memory that a worker needs besides |

mod results;
mod step;
mod walk;
mod workspace;

use std::ops::Range;

pub(super) use results::{Mask, each};
pub use workspace::Workspace;

use crate::cell::Spec;
use crate::gemm::relay::RelayEnd;
use crate::gemm::view::Field;
use crate::layer::config::CellKind;
use crate::layer::weights::ForwardWeights;
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::Element;

/// h and c of the rows of a share, [B, H]: before the first step, then after the last.
pub struct StateFields<'a, E> {
    /// h.
    pub h: Field<'a, E>,
    /// c, for a cell that has one.
    pub c: Option<Field<'a, E>>,
}

impl<E: Element> StateFields<'_, E> {
    /// Keeps the rows `rows` of `state` as those of a segment, of which it holds one after the other.
    fn keep(&mut self, segment: usize, state: &Self, rows: &Range<usize>) {
        self.h.copy_rows(segment, rows.clone(), &state.h, 0);
        if let (Some(kept), Some(c)) = (&mut self.c, &state.c) {
            kept.copy_rows(segment, rows.clone(), c, 0);
        }
    }
}

/// What backward will read of each step.
pub struct StepFields<'a, E> {
    /// [N, H] h before the step.
    pub h_before: Field<'a, E>,
    /// [N, H] c before the step.
    pub c_before: Option<Field<'a, E>>,
    /// [N, slots, H] the cell's slots.
    pub slots: Option<Field<'a, E>>,
}

/// Where the results of a share go: its own rows and units of every table.
pub struct ForwardFields<'a, E> {
    /// [B, H]
    pub state: StateFields<'a, E>,
    /// [N, H] h after each step, for whoever reads it.
    pub y: Option<Field<'a, E>>,
    /// What backward will read.
    pub tape: Option<StepFields<'a, E>>,
    /// [segments, B, H] what backward will begin again from: the state before each segment.
    pub checkpoints: Option<StateFields<'a, E>>,
}

/// One worker's rows and units over a range of steps.
pub struct ForwardShare<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// What this driver knows of it.
    pub spec: Spec,
    /// The packed parameters.
    pub weights: &'a ForwardWeights<E>,
    /// H.
    pub hidden: usize,
    /// I of this layer.
    pub features: usize,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// The steps to take; from the last to the first when `reverse`.
    pub steps: Range<usize>,
    /// Against time.
    pub reverse: bool,
    /// Steps from a checkpoint to the next.
    pub distance: usize,
    /// This worker's rows.
    pub rows: Range<usize>,
    /// This worker's units; they begin at a panel.
    pub units: Range<usize>,
    /// [N, I] packed input.
    pub input: &'a [E],
    /// [B, H] what multiplies h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// Where the results go.
    pub fields: ForwardFields<'a, E>,
    /// [rows, H] m*h' of this step, and of the next.
    pub operand: RelayEnd<'a, E>,
    /// [rows, H] r*m*h' of this step, of a cell with its reset before the product.
    pub reset_operand: Option<RelayEnd<'a, E>>,
    /// Memory for this worker.
    pub space: &'a mut Workspace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}
