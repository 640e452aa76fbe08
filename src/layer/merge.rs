//! Between the caller's arrays and packed sequences, and between two directions and one sequence.

use crate::error::Result;
use crate::layer::config::Merge;
use crate::memory::{Buffer, product, reserved, zeros};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::Element;

/// Moving a value costs about as much as so many multiply-adds.
const COPY: usize = 8;

/// Values that are moved between two looks at the watch.
const PIECE: usize = 1 << 18;

/// Copies what is as long.
pub fn copy<E: Element>(from: &[E], to: &mut [E], meter: &Meter<'_>) -> Result<()> {
    for (from, to) in from.chunks(PIECE).zip(to.chunks_mut(PIECE)) {
        to.copy_from_slice(from);
        meter.spend(COPY * from.len())?;
    }
    Ok(())
}

/// The caller's row of each packed row: where row (t, place) stands in (T, B, ..) or (B, T, ..).
fn caller_rows(schedule: &Schedule, batch_first: bool) -> impl Iterator<Item = usize> + '_ {
    let (time, batch) = (schedule.time(), schedule.batch());
    (0..schedule.steps()).flat_map(move |t| {
        schedule.order()[..schedule.active(t)]
            .iter()
            .map(move |&row| {
                if batch_first {
                    row * time + t
                } else {
                    t * batch + row
                }
            })
    })
}

/// [N, width] from the caller's (T, B, width) or (B, T, width); padding is not read.
pub fn pack<E: Element>(
    values: &[E],
    schedule: &Schedule,
    batch_first: bool,
    width: usize,
    what: &str,
    meter: &Meter<'_>,
) -> Result<Buffer<E>> {
    let mut packed = Buffer::stale(product(&[schedule.packed_rows(), width], what)?, what)?;
    if schedule.is_plain(batch_first) {
        for (to, from) in packed.chunks_mut(PIECE).zip(values.chunks(PIECE)) {
            to.copy_from_slice(&from[..to.len()]);
            meter.spend(COPY * to.len())?;
        }
        return Ok(packed);
    }
    let rows = packed.chunks_exact_mut(width);
    for (to, row) in rows.zip(caller_rows(schedule, batch_first)) {
        to.copy_from_slice(&values[row * width..(row + 1) * width]);
        meter.spend(COPY * width)?;
    }
    Ok(packed)
}

/// The caller's (T, B, width) or (B, T, width) from [N, width]; exactly 0 beyond each row's length. A
/// plain sequence is handed on as it is.
pub fn unpack<E: Element>(
    packed: Buffer<E>,
    schedule: &Schedule,
    batch_first: bool,
    width: usize,
    what: &str,
    meter: &Meter<'_>,
) -> Result<Buffer<E>> {
    if schedule.is_plain(batch_first) {
        return Ok(packed);
    }
    let columns = Columns {
        packed: &packed,
        row_len: width,
        first: 0,
        width,
    };
    unpack_columns(columns, schedule, batch_first, what, meter)
}

/// Neighbouring columns of packed rows.
#[derive(Clone, Copy)]
pub struct Columns<'a, E> {
    /// [N, row_len]
    pub packed: &'a [E],
    /// Values of a packed row.
    pub row_len: usize,
    /// The first column.
    pub first: usize,
    /// How many columns.
    pub width: usize,
}

/// As [`unpack`], from some columns of wider packed rows.
pub fn unpack_columns<E: Element>(
    columns: Columns<'_, E>,
    schedule: &Schedule,
    batch_first: bool,
    what: &str,
    meter: &Meter<'_>,
) -> Result<Buffer<E>> {
    let Columns {
        packed,
        row_len,
        first,
        width,
    } = columns;
    let len = product(&[schedule.time(), schedule.batch(), width], what)?;
    let mut values = Buffer::zeroed(len, what)?;
    let rows = packed.chunks_exact(row_len);
    for (from, row) in rows.zip(caller_rows(schedule, batch_first)) {
        values[row * width..(row + 1) * width].copy_from_slice(&from[first..first + width]);
        meter.spend(COPY * width)?;
    }
    Ok(values)
}

/// [B, H] in the schedule's order from the caller's; zeros without.
pub fn pack_state<E: Element>(
    state: Option<&[E]>,
    schedule: &Schedule,
    hidden: usize,
) -> Result<Vec<E>> {
    let what = "the state (B * H)";
    let len = product(&[schedule.batch(), hidden], what)?;
    let Some(state) = state else {
        return zeros(len, what);
    };
    let mut packed = reserved(len, what)?;
    for &row in schedule.order() {
        packed.extend_from_slice(&state[row * hidden..(row + 1) * hidden]);
    }
    Ok(packed)
}

/// The caller's [B, H] from the schedule's order.
pub fn unpack_state<E: Element>(packed: &[E], schedule: &Schedule, hidden: usize, to: &mut [E]) {
    for (from, &row) in packed.chunks_exact(hidden).zip(schedule.order()) {
        to[row * hidden..(row + 1) * hidden].copy_from_slice(from);
    }
}

/// Two directions [N, H] into one sequence [N, H]; concatenation needs no work, they are written so.
pub fn merge<E: Element>(
    merge: Merge,
    forward: &mut [E],
    reverse: &[E],
    meter: &Meter<'_>,
) -> Result<()> {
    let half = E::from_f64(0.5);
    for (forward, reverse) in forward.chunks_mut(PIECE).zip(reverse.chunks(PIECE)) {
        for (a, &b) in forward.iter_mut().zip(reverse) {
            *a = match merge {
                Merge::Sum => *a + b,
                Merge::Mean => (*a + b) * half,
                Merge::Mul => *a * b,
                Merge::Concat => unreachable!("directions are concatenated where they are written"),
            };
        }
        meter.spend(COPY * reverse.len())?;
    }
    Ok(())
}

/// The gradient of each direction from that of the merged sequence, where it is not the same array:
/// half of it for the mean, times the other direction's output for the product.
pub fn merge_backward<E: Element>(
    dy: &[E],
    other: Option<&[E]>,
    meter: &Meter<'_>,
) -> Result<Buffer<E>> {
    let mut part = Buffer::copied(dy, "the gradient of a direction (N * H)")?;
    for (k, part) in part.chunks_mut(PIECE).enumerate() {
        match other {
            None => part.iter_mut().for_each(|d| *d = *d * E::from_f64(0.5)),
            Some(other) => {
                let factors = &other[k * PIECE..];
                part.iter_mut().zip(factors).for_each(|(d, &h)| *d = *d * h);
            }
        }
        meter.spend(COPY * part.len())?;
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Watch;

    #[test]
    fn packing_and_back_zeroes_the_padding() {
        let watch = Watch::unattended();
        let schedule = Schedule::ragged(3, 2, &[1, 3]).unwrap();
        for batch_first in [false, true] {
            let at = |t: usize, b: usize| if batch_first { b * 3 + t } else { t * 2 + b };
            let values: Vec<f32> = (0..12).map(|k| k as f32 + 1.0).collect();
            let packed = pack(&values, &schedule, batch_first, 2, "x", &watch.meter()).unwrap();
            let rows = [at(0, 1), at(0, 0), at(1, 1), at(2, 1)];
            let expected: Vec<f32> = rows
                .iter()
                .flat_map(|&r| values[2 * r..2 * r + 2].to_vec())
                .collect();
            assert_eq!(packed[..], expected);
            let back = unpack(packed, &schedule, batch_first, 2, "y", &watch.meter()).unwrap();
            for t in 0..3 {
                for b in 0..2 {
                    let row = at(t, b);
                    let there = b == 1 || t == 0;
                    let expected = if there {
                        &values[2 * row..2 * row + 2]
                    } else {
                        &[0.0, 0.0]
                    };
                    assert_eq!(&back[2 * row..2 * row + 2], expected);
                }
            }
        }
    }

    #[test]
    fn states_follow_the_order() {
        let schedule = Schedule::ragged(2, 3, &[0, 2, 1]).unwrap();
        let state = [0f64, 1.0, 2.0];
        let packed = pack_state(Some(&state), &schedule, 1).unwrap();
        assert_eq!(packed, [1.0, 2.0, 0.0]);
        let mut back = [9f64; 3];
        unpack_state(&packed, &schedule, 1, &mut back);
        assert_eq!(back, state);
    }
}
