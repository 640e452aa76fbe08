//! The same rows and units as `forward/`, back over the same steps: its loops in reverse.
//!
//! ```text
//! 1. for t in steps                       last step first: each needs dL/dh of the one after
//!      for row                            h, c, saved = cell(sums, h', c')
//!        dh += dy_t;  dpre, dh, dc = cell backward(saved, dh, dc)
//! 2.   for panel in panels                sums += U (m*h')
//! 3.     sums = dpre U of all rows        one chain of sums per gate, then the gates in order
//!        dh += m * sums
//! ```
//!
//! `dh` and `dc` hold each row's gradient of the state *between* steps. They begin with the gradient of
//! the final state, which a row that is shorter simply keeps until its own last step; and a row whose
//! first step is done keeps the gradient of its initial state. So no step needs to know who comes or goes.
//!
//! What has no recursion (dW, dU, db, dx) is left to `products.rs`, which reads the dpre of a chunk.
//!
//! One chain per gate, because a single row would otherwise have too few independent sums; for every
//! number of rows, because the bits must not depend on it.
//!
//! | file | what it holds |
//! |---|---|
//! | `step.rs` | the walk back through the steps, and the products of each |
//! | `results.rs` | the cell's equations in reverse, and every place where their results go |

mod results;
mod step;

use std::ops::Range;

use crate::error::Result;
use crate::gemm::pack::Turns;
use crate::gemm::relay::RelayEnd;
use crate::gemm::view::{Field, Table};
use crate::layer::config::CellKind;
use crate::layer::forward::StateFields;
use crate::layer::weights::{BackwardWeights, Lanes};
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::Element;

/// What forward left of each step; the mirror of `StepFields`.
#[derive(Clone, Copy)]
pub struct StepTables<'a, E> {
    /// [N, H]
    pub h_before: Table<'a, E>,
    /// [N, H]
    pub c_before: Option<Table<'a, E>>,
    /// [N, slots, H]
    pub slots: Option<Table<'a, E>>,
}

impl<E: Element> StepTables<'_, E> {
    /// The same, columns counted from `unit`.
    pub fn beginning_at(self, unit: usize) -> Self {
        Self {
            h_before: self.h_before.from_column(unit),
            c_before: self.c_before.map(|c| c.from_column(unit)),
            slots: self.slots.map(|slots| slots.from_column(unit)),
        }
    }
}

/// What backward leaves of each step, for the products and for the curious.
pub struct GradientFields<'a, E> {
    /// [chunk, slots, H] gradients of the pre-activations.
    pub pre: Field<'a, E>,
    /// [chunk, H] m*h', when there is a mask.
    pub operand: Option<Field<'a, E>>,
    /// [chunk, H] r*m*h', of a cell with its reset before the product.
    pub reset_operand: Option<Field<'a, E>>,
    /// [N, H] the whole dL/dh_t.
    pub h: Option<Field<'a, E>>,
    /// [N, H] the whole dL/dc_t.
    pub c: Option<Field<'a, E>>,
}

/// Where the results of a share go: its own rows and units of every table.
pub struct BackwardFields<'a, E> {
    /// [B, H] the gradient of the state: after the last of the steps, then before the first.
    pub state: StateFields<'a, E>,
    /// [B, H] h after the step at hand, for a cell whose backward reads it.
    pub output: Option<Field<'a, E>>,
    /// Of every step.
    pub gradients: GradientFields<'a, E>,
}

/// One worker's rows and units, back over a range of steps.
pub struct BackwardShare<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// The parameters.
    pub weights: &'a BackwardWeights<E>,
    /// H.
    pub hidden: usize,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// The steps to go back over.
    pub steps: Range<usize>,
    /// Forward went against time, so this goes with it.
    pub reverse: bool,
    /// This worker's rows.
    pub rows: Range<usize>,
    /// This worker's units; they begin at a panel.
    pub units: Range<usize>,
    /// What forward left, from this worker's first unit on.
    pub tape: StepTables<'a, E>,
    /// [N, H] the gradient of y, from this worker's first unit on.
    pub dy: Option<Table<'a, E>>,
    /// [B, H] what multiplied h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// Where the results go.
    pub fields: BackwardFields<'a, E>,
    /// [rows, slots, H] dpre of a step, where several workers share its units.
    pub relay: Option<RelayEnd<'a, E>>,
    /// Memory for this worker.
    pub space: &'a mut BackwardSpace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}

/// The memory that one worker needs besides its results.
pub struct BackwardSpace<E> {
    /// [rows, panel width] dpre U, summed over the gates so far; `[H]` of one row.
    sums: Buffer<E>,
    /// Which way the step at hand takes panels.
    turns: Turns,
}

impl<E: Element> BackwardSpace<E> {
    /// For `rows` rows of `hidden` units.
    pub fn new(lanes: Lanes, rows: usize, hidden: usize) -> Result<Self> {
        let what = "the workspace of a backward pass";
        let panel = product(&[rows, lanes.column_vectors(), lanes.lanes], what)?;
        let row = hidden.next_multiple_of(lanes.lanes);
        Ok(Self {
            sums: Buffer::stale(panel.max(row), what)?,
            turns: Turns::default(),
        })
    }
}
