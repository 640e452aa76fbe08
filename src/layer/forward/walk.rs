//! A share on its way through the steps.

use std::ops::Range;

use super::ForwardShare;
use super::results::Results;
use super::step::{Input, Step, Tiling, rows_from, term};
use super::workspace::chunk_rows;
use crate::cell::Cell;
use crate::error::Result;
use crate::gemm::kernel::{Begin, Joint, Product, multiply};
use crate::layer::config::with_cell;
use crate::layer::weights::ForwardWeights;
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::{Element, Kernel, Simd};

impl<E: Element> Kernel<E> for &mut ForwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        with_cell!(self.cell, cell => s.enter(Walk { cell, share: self }))
    }
}

/// A share on its way through the steps, with the cell as a type.
struct Walk<'w, 'a, E, C> {
    cell: C,
    share: &'w mut ForwardShare<'a, E>,
}

impl<E: Element, C: Cell> Kernel<E> for Walk<'_, '_, E, C> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        let Self { cell, share } = self;
        let (schedule, own, features) = (share.schedule, share.rows.clone(), share.features);
        let tiling = Tiling::of::<C, S, E>(&share.units);
        let units = share.units.len().next_multiple_of(S::LANES * tiling.blocks);
        let capacity = if share.weights.is_short() {
            0
        } else {
            chunk_rows(&share.spec, own.len(), schedule.steps(), units)
        };
        let mut ahead = Ahead {
            weights: share.weights,
            tiling,
            schedule,
            own: own.clone(),
            features,
            input: share.input,
            chunk: &mut share.space.chunk,
            chunk_input: &mut share.space.chunk_input,
            meter: &share.meter,
        };
        let (operand, reset_operand) = (&mut share.operand, &mut share.reset_operand);
        let (begin, count, reverse) = (share.steps.start, share.steps.len(), share.reverse);
        let in_order = move |k: usize| {
            if reverse {
                begin + count - 1 - k
            } else {
                begin + k
            }
        };
        let mut done = 0;
        while done < count {
            let chunk = match capacity {
                0 => count - done,
                _ => (capacity / own.len()).min(count - done),
            };
            let end = done + chunk;
            let mut total = 0;
            if capacity > 0 {
                total = s.enter(FillChunk(&mut ahead, (done..end).map(in_order)))?;
            }
            let mut first = 0;
            while done < end {
                // As far as to the next checkpoint; one that is due here is kept.
                let passed = done % share.distance;
                let left = (end - done).min(share.distance - passed);
                if passed == 0
                    && let Some(kept) = &mut share.fields.checkpoints
                {
                    kept.keep(done / share.distance, &share.fields.state, &own);
                }
                // Made anew each time: it borrows the state, which is read above.
                let mut step = Step {
                    cell,
                    tiling,
                    weights: share.weights,
                    features,
                    hidden: share.hidden,
                    sums: &mut share.space.sums,
                    pending: &mut share.space.pending,
                    turns: &mut share.space.turns,
                    results: Results::new::<C>(
                        schedule,
                        &own,
                        &share.units,
                        &mut share.fields,
                        (share.mask, share.hidden),
                    ),
                    meter: &share.meter,
                };
                for t in (done..done + left).map(in_order) {
                    let rows = active(schedule, &own, t);
                    if rows > 0 {
                        let input = if capacity > 0 {
                            Input::Ahead(ahead.chunk, first, total)
                        } else {
                            let x = (schedule.rows(t).start + own.start) * features;
                            Input::Rows(&share.input[x..x + rows * features])
                        };
                        step.results.strips.seek(t, rows);
                        step.run(s, input, operand, reset_operand)?;
                    }
                    first += rows;
                }
                done += left;
            }
        }
        Ok(())
    }
}

/// How many of a share's rows are there at step `t`.
#[inline(always)]
fn active(schedule: &Schedule, own: &Range<usize>, t: usize) -> usize {
    schedule.active(t).min(own.end).saturating_sub(own.start)
}

/// What `W x` of a chunk of steps needs.
struct Ahead<'s, E> {
    weights: &'s ForwardWeights<E>,
    tiling: Tiling,
    schedule: &'s Schedule,
    /// The share's rows.
    own: Range<usize>,
    features: usize,
    /// [N, I]
    input: &'s [E],
    /// [panels, chunk rows, slots of x, lanes]
    chunk: &'s mut [E],
    /// [chunk rows, I]
    chunk_input: &'s mut [E],
    meter: &'s Meter<'s>,
}

/// W x + bias of all rows of some steps, in this order; gives how many rows they are.
struct FillChunk<'c, 's, E, T>(&'c mut Ahead<'s, E>, T);

impl<E: Element, T: Iterator<Item = usize>> Kernel<E> for FillChunk<'_, '_, E, T> {
    type Output = Result<usize>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<usize> {
        let Self(ahead, steps) = self;
        let features = ahead.features;
        let mut total = 0;
        for t in steps {
            let rows = active(ahead.schedule, &ahead.own, t);
            if rows == 0 {
                // All of this share's rows have ended, and lie beyond the step's.
                continue;
            }
            let first = (ahead.schedule.rows(t).start + ahead.own.start) * features;
            let to = &mut ahead.chunk_input[total * features..(total + rows) * features];
            to.copy_from_slice(&ahead.input[first..first + rows * features]);
            total += rows;
        }
        if total == 0 {
            return Ok(0);
        }
        let (weights, tiling) = (ahead.weights, ahead.tiling);
        let mut before = 0;
        for panel in tiling.first..tiling.end {
            let vectors = weights.input.vectors(panel);
            let width = vectors * S::LANES;
            let sums = &mut ahead.chunk[before..before + total * width];
            before += total * width;
            // The slots that x adds to come first, so the first `width` values are theirs.
            let bias = &weights.bias[panel * tiling.bias_len..];
            let a = rows_from(ahead.chunk_input, 0, features);
            let mut term = term(Joint::Add, &weights.input, panel, a, width);
            if weights.input.are_far() && panel + 1 < tiling.end {
                term.ahead = weights.input.ahead(panel + 1, 0..weights.input.panel_len());
            }
            multiply(
                s,
                Product {
                    rows: total,
                    vectors,
                    begin: Begin::Rows(bias, 0),
                    terms: &[term],
                    sums,
                    sums_stride: width,
                },
            );
            ahead.meter.spend(total * features * width)?;
        }
        Ok(total)
    }
}
