//! How a call's work is shared over threads: decided here, and nowhere else.
//!
//! **How many.** A thread is worth waking for [`WORTH_A_THREAD`] multiply-adds, so a call takes as many
//! threads as its work contains that often: N rows times what a row costs in the widest layer,
//! `G * H * (I + H)`, and twice that on the way back, for the gradients of the parameters and of x. More
//! threads than shares would idle. Checkpoints change nothing: they are kept along the way forward, and on
//! the way back steps are computed again many at a time.
//!
//! **Which shares.** First choice is a range of rows of one direction, for all steps: no worker waits for
//! another within them. Workers share the units of all rows instead, and meet at every step, where rows
//! serve them badly and a step is long beside the meeting, [`MEETING`]: where there are fewer rows than
//! threads; where half of them or more would have one row, which reads all of U for itself; and where each
//! would have few, [`ENOUGH_ROWS`], and all of U is too much for a cache, [`WORTH_UNITS`]. Those who meet
//! wait by spinning, so they are never more than the cores.
//!
//! | pass | at once | shares |
//! |---|---|---|
//! | forward | both directions of a layer | directions x (row ranges, or unit ranges) |
//! | backward | one direction: both add to one dx | row ranges, or unit ranges |
//!
//! What is cut differently, because it has no recursion, is cut beside its loops but for the same team:
//! the gradients of the parameters by output (`products.rs`), packing by panel (`gemm/pack.rs`).
//!
//! None of this is seen in a result: rows do not mix, and no sum is cut.

use std::ops::Range;

use crate::layer::config::Config;
use crate::shape::Schedule;

/// Multiply-adds that are worth a thread: about 50 us. A guess from the cost of waking one.
const WORTH_A_THREAD: usize = 2_500_000;

/// What meeting after a step costs for each worker that comes, in multiply-adds of a single row: about
/// 0.1 us. Measured on a 2-core Zen 4, where one row gained from 16,384 multiply-adds a step on: a vanilla
/// layer of 128 units 1.3 to 1.5, an LSTM 1.7. That it grows with the number of workers is a guess.
const MEETING: usize = 3_000;

/// Rows of a thread that fill its register tiles well enough to read the weights of all units for them.
const ENOUGH_ROWS: usize = 20;

/// Bytes of U that are worth halving for the second-level cache, where a thread has fewer rows than that:
/// with two threads of an Intel and 2 to 32 rows, sharing units instead of rows took 4 to 40 % off the time
/// of 384 to 1024 units. At 128 and 160 units it added 20 %, and at 256 and 320 it was a draw.
const WORTH_UNITS: usize = 7 << 18;

/// Which way a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From x to y.
    Forward,
    /// From dy to dx.
    Backward,
}

/// How many threads a pass is worth, at least 1 and `most` at most.
pub fn threads(config: &Config, schedule: &Schedule, pass: Pass, most: usize) -> usize {
    let (directions, times) = match pass {
        Pass::Forward => (config.directions(), 1),
        Pass::Backward => (1, 2),
    };
    // All layers but the first are alike.
    let width = (0..config.layers.min(2))
        .map(|layer| config.input_of(layer).saturating_add(config.hidden))
        .fold(0, usize::max);
    let row = width.saturating_mul(config.cell.gates() * config.hidden * times);
    let work = schedule.packed_rows().saturating_mul(row);
    let shares = schedule.batch().max(unit_parts(
        config.cell.gates(),
        config.hidden,
        schedule.batch(),
    ));
    // On the way back the products are shared by output, whatever the recursion does.
    let shares = match pass {
        Pass::Forward => shares.saturating_mul(directions),
        Pass::Backward => usize::MAX,
    };
    most.min(work / WORTH_A_THREAD).min(shares).max(1)
}

/// How many workers a step of all rows is worth, if they share its units: as many as make it shortest,
/// where W multiply-adds take W / n and meeting takes n times [`MEETING`].
fn unit_parts(gates: usize, hidden: usize, batch: usize) -> usize {
    let work = (gates * hidden)
        .saturating_mul(hidden)
        .saturating_mul(batch);
    (work / MEETING).isqrt()
}

/// How a direction is cut into shares: every range of rows times every range of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// Ranges of rows; each goes through all of time alone.
    pub rows: Vec<Range<usize>>,
    /// Ranges of units; those of the same rows meet at every step.
    pub units: Vec<Range<usize>>,
}

impl Cuts {
    /// For `hidden` units of `gates` gates, numbers of `bytes` each, where `threads` work on each
    /// direction, of which `cores` can run side by side. Units are cut at multiples of `grain`, so that no
    /// panel is cut.
    pub fn new(
        schedule: &Schedule,
        (gates, hidden, bytes): (usize, usize, usize),
        (threads, cores): (usize, usize),
        grain: usize,
    ) -> Self {
        let batch = schedule.batch();
        let worth = unit_parts(gates, hidden, batch);
        let parts = threads.min(cores).min(worth).min(hidden / grain);
        let weights = (gates * hidden).saturating_mul(hidden);
        let row_by_row = weights.saturating_mul(batch.div_ceil(threads));
        let unit_by_unit =
            (weights.saturating_mul(batch) / parts.max(1)).saturating_add(parts * MEETING);
        let more_than_rows = batch < threads && unit_by_unit < row_by_row;
        // Not below four times what is worth so many workers: a vanilla layer of 128 units lost 4 %.
        let lone_rows = 2 * batch <= 3 * threads && worth >= 2 * threads;
        let large = weights.saturating_mul(bytes) >= WORTH_UNITS;
        let few_rows = batch / threads < ENOUGH_ROWS && large;
        let better_than_rows = parts == threads && (lone_rows || few_rows);
        if parts <= 1 || !(more_than_rows || better_than_rows) {
            return Self {
                rows: schedule.split_rows(threads),
                units: std::iter::once(0..hidden).collect(),
            };
        }
        let grains = hidden.div_ceil(grain);
        let cut = |part: usize| (grains * part / parts * grain).min(hidden);
        Self {
            rows: std::iter::once(0..batch).collect(),
            units: (0..parts).map(|part| cut(part)..cut(part + 1)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::config::{CellKind, Merge};

    /// G*H*(I+H) = 4 * 100 * 125: a thread every 50 rows, or every 25 on the way back.
    fn config(bidirectional: bool) -> Config {
        Config {
            cell: CellKind::Lstm,
            input: 25,
            hidden: 100,
            layers: 1,
            bidirectional,
            merge: Merge::Sum,
            bias: true,
            dropout: 0.0,
            recurrent_dropout: 0.0,
        }
    }

    #[test]
    fn threads_follow_the_work_and_then_the_shares() {
        let threads = |time, batch, pass, most| {
            let schedule = Schedule::dense(time, batch).unwrap();
            threads(&config(false), &schedule, pass, most)
        };
        assert_eq!(threads(0, 100, Pass::Forward, 8), 1);
        assert_eq!(threads(1, 99, Pass::Forward, 8), 1);
        assert_eq!(threads(1, 100, Pass::Forward, 8), 2);
        assert_eq!(threads(1, 99, Pass::Backward, 8), 3);
        assert_eq!(threads(100, 100, Pass::Forward, 8), 8);
        // Units of 3 rows are worth 6 workers.
        assert_eq!(threads(100, 3, Pass::Forward, 8), 6);
    }

    #[test]
    fn forward_shares_both_directions_and_backward_one() {
        let schedule = Schedule::dense(1000, 3).unwrap();
        let threads = |pass| threads(&config(true), &schedule, pass, 16);
        assert_eq!((threads(Pass::Forward), threads(Pass::Backward)), (12, 16));
        let rows = |threads| Cuts::new(&schedule, (4, 100, 4), (threads, 8), 64).rows;
        assert_eq!(rows(3), [0..1, 1..2, 2..3]);
        assert_eq!(rows(2), [0..2, 2..3]);
    }

    #[test]
    fn few_rows_of_long_steps_share_units_at_whole_panels() {
        let cuts = |batch, hidden, threads, cores| {
            let schedule = Schedule::dense(10, batch).unwrap();
            let cuts = Cuts::new(&schedule, (4, hidden, 4), (threads, cores), 64);
            (cuts.rows.len(), cuts.units)
        };
        assert_eq!(cuts(1, 512, 2, 2), (1, vec![0..256, 256..512]));
        assert_eq!(cuts(1, 500, 3, 4), (1, vec![0..128, 128..320, 320..500]));
        // Never more than cores, than the work is worth, or than there are panels.
        assert_eq!(cuts(1, 512, 8, 2).1.len(), 2);
        assert_eq!(cuts(1, 192, 8, 8).1.len(), 3);
        assert_eq!(cuts(1, 256, 16, 16).1.len(), 4);
        assert_eq!(cuts(1, 63, 2, 2).1.len(), 1);
        // Not where meeting takes what a thread more gives.
        let four_rows = Schedule::dense(10, 4).unwrap();
        let narrow = Cuts::new(&four_rows, (4, 80, 4), (8, 8), 16);
        assert_eq!((narrow.rows.len(), narrow.units.len()), (4, 1));
        // Rows suffice, unless each is alone or U is large.
        let shape = |batch, hidden, threads, cores| {
            let (rows, units) = cuts(batch, hidden, threads, cores);
            (rows, units.len())
        };
        assert_eq!(shape(2, 128, 2, 2), (1, 2));
        assert_eq!(shape(3, 256, 2, 2), (1, 2));
        assert_eq!(shape(4, 256, 2, 2), (2, 1));
        assert_eq!(shape(4, 128, 4, 4), (4, 1));
        let two_rows = Schedule::dense(10, 2).unwrap();
        let vanilla = |hidden| Cuts::new(&two_rows, (1, hidden, 4), (2, 2), 64).units.len();
        assert_eq!([128, 256].map(vanilla), [1, 2]);
        assert_eq!(shape(2, 512, 2, 2), (1, 2));
        assert_eq!(shape(39, 512, 2, 2), (1, 2));
        assert_eq!(shape(40, 512, 2, 2), (2, 1));
        assert_eq!(shape(3, 512, 4, 4), (1, 4));
        assert_eq!(shape(30, 512, 8, 2), (8, 1));
    }

    #[test]
    fn the_widest_layer_decides() {
        let schedule = Schedule::dense(1, 100).unwrap();
        let deep = Config {
            layers: 3,
            ..config(false)
        };
        // I = H from the second layer on: 4 * 100 * 200 multiply-adds a row.
        assert_eq!(threads(&deep, &schedule, Pass::Forward, 8), 3);
        assert_eq!(threads(&deep, &schedule, Pass::Backward, 8), 6);
    }
}
