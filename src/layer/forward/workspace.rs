//! The memory of one share, had before its first step.

use super::step::ROWS_AT_ONCE;
use crate::cell::{MAX_SLOTS, Spec};
use crate::error::Result;
use crate::gemm::pack::Turns;
use crate::layer::weights::{Lanes, blocks_per_panel};
use crate::memory::{Buffer, product};
use crate::simd::Element;

/// Fewer rows than this take `W x` for a chunk of steps at once. A guess between 1 row (where it wins
/// 20 %) and 16 (where it loses up to 20 %).
const MERGE_BELOW: usize = 8;
/// Values of `W x` held for a chunk: they should stay in L2.
const CHUNK_VALUES: usize = 1 << 16;
/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 128;

/// The memory that one worker needs besides its results.
pub struct Workspace<E> {
    /// [rows, panels, slots, lanes] the slots between the stages.
    pub(super) pending: Buffer<E>,
    /// [rows at once, slots, lanes] sums.
    pub(super) sums: Buffer<E>,
    /// [panels, chunk rows, slots of x, lanes] W x of a chunk of steps.
    pub(super) chunk: Buffer<E>,
    /// [chunk rows, I] x of a chunk of steps.
    pub(super) chunk_input: Buffer<E>,
    /// Which way the step at hand takes panels.
    pub(super) turns: Turns,
}

impl<E: Element> Workspace<E> {
    /// For `rows` rows and `units` units of a cell like `spec` with `features` inputs, over `steps` steps.
    pub fn new(
        spec: &Spec,
        lanes: Lanes,
        rows: usize,
        steps: usize,
        (units, features): (usize, usize),
    ) -> Result<Self> {
        let what = "the workspace of a forward pass";
        let units = units.next_multiple_of(lanes.lanes * blocks_per_panel(spec.slots));
        let slots = product(&[rows, units, MAX_SLOTS], what)?;
        let stages = usize::from(spec.has_reset_stage());
        let chunk = chunk_rows(spec, rows, steps, units);
        Ok(Self {
            pending: Buffer::stale(stages * slots, what)?,
            sums: Buffer::stale(rows.min(ROWS_AT_ONCE) * MAX_SLOTS * lanes.lanes, what)?,
            chunk: Buffer::stale(product(&[chunk, units, spec.input], what)?, what)?,
            chunk_input: Buffer::stale(product(&[chunk, features], what)?, what)?,
            turns: Turns::default(),
        })
    }
}

/// How many rows of `W x` to compute at once; 0 to compute it step by step.
pub(super) fn chunk_rows(spec: &Spec, rows: usize, steps: usize, units: usize) -> usize {
    if rows >= MERGE_BELOW || steps <= 1 {
        return 0;
    }
    let fitting = (CHUNK_VALUES / (units * spec.input)).clamp(2 * MERGE_BELOW, CHUNK_ROWS);
    fitting.min(rows * steps).next_multiple_of(rows)
}
