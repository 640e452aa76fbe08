//! Sizes, and where the rows of a ragged batch lie.
//!
//! One alphabet: T steps, B rows of the batch, I input features, H hidden units, G gates, D directions,
//! L layers, M features of a merged output, N = sum of the lengths (packed rows).

use std::ops::Range;

use crate::error::{Error, Result, shape_text};
use crate::memory::{copied, filled, product, reserved};

/// Which rows a batch has at which step, and where they lie when it is packed.
///
/// Rows are ordered by length, longest first, so that the rows active at a step are always the first
/// ones: for the forward direction rows only leave, for the reverse direction (steps taken from the
/// end) rows only enter. A packed sequence holds, step after step, the active rows and nothing else:
/// N rows in all, `offsets[t] + r` for row `r` of step `t`. A batch without lengths is packed as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Schedule {
    /// `[B]` the caller's row that stands at each place.
    order: Vec<usize>,
    /// [steps + 1] the first packed row of each step, then N.
    offsets: Vec<usize>,
    /// T as the caller gave it; `offsets` ends at the longest row.
    time: usize,
    ragged: bool,
}

impl Schedule {
    /// Every row has all `time` steps.
    pub fn dense(time: usize, batch: usize) -> Result<Self> {
        product(&[time, batch], "x (T * B)")?;
        let mut order = reserved(batch, "the row order")?;
        order.extend(0..batch);
        let steps = if batch == 0 { 0 } else { time };
        let mut offsets = reserved(steps + 1, "the step offsets")?;
        offsets.extend((0..=steps).map(|t| t * batch));
        Ok(Self {
            order,
            offsets,
            time,
            ragged: false,
        })
    }

    /// Row `b` has `lengths[b]` steps, each in `0..=time`.
    pub fn ragged(time: usize, batch: usize, lengths: &[i64]) -> Result<Self> {
        if lengths.len() != batch {
            let expected = format!("(B,) = ({batch},)");
            return Err(Error::shape(
                "lengths",
                expected,
                shape_text(&[lengths.len()]),
            ));
        }
        for (row, &length) in lengths.iter().enumerate() {
            if length < 0 || length as u64 > time as u64 {
                let expected = format!("values between 0 and T = {time}");
                return Err(Error::value(
                    "lengths",
                    expected,
                    format!("{length} at row {row}"),
                ));
            }
        }
        product(&[time, batch], "x (T * B)")?;
        let mut order = reserved(batch, "the row order")?;
        order.extend(0..batch);
        // Unstable, because a stable sort allocates: the row itself keeps equal lengths in order.
        order.sort_unstable_by_key(|&row| (std::cmp::Reverse(lengths[row]), row));
        let steps = order.first().map_or(0, |&row| lengths[row] as usize);
        let mut offsets = filled(steps + 1, 0, "the step offsets")?;
        let mut active = batch;
        for t in 0..steps {
            while lengths[order[active - 1]] as usize <= t {
                active -= 1;
            }
            offsets[t + 1] = offsets[t] + active;
        }
        let ragged = lengths.iter().any(|&length| length as usize != time);
        if !ragged {
            // Nothing is short: keep the caller's order, so that packed and plain layout coincide.
            return Self::dense(time, batch);
        }
        Ok(Self {
            order,
            offsets,
            time,
            ragged,
        })
    }

    /// A copy.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self {
            order: copied(&self.order, "the row order")?,
            offsets: copied(&self.offsets, "the step offsets")?,
            ..*self
        })
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.order.len()
    }

    /// T of the caller's arrays.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Steps in which any row is active: the longest length.
    pub fn steps(&self) -> usize {
        self.offsets.len() - 1
    }

    /// N, the rows of a packed sequence.
    pub fn packed_rows(&self) -> usize {
        self.offsets[self.steps()]
    }

    /// The first packed row of each step, and N.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// How many rows are active at step `t`.
    pub fn active(&self, t: usize) -> usize {
        self.offsets[t + 1] - self.offsets[t]
    }

    /// The packed rows of step `t`.
    pub fn rows(&self, t: usize) -> Range<usize> {
        self.offsets[t]..self.offsets[t + 1]
    }

    /// The caller's row at each place.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Whether packed rows lie as those of a time-major array.
    pub fn is_plain(&self, batch_first: bool) -> bool {
        !self.ragged && (!batch_first || self.batch() <= 1 || self.time <= 1)
    }

    /// Steps of the row at `place`.
    pub fn length(&self, place: usize) -> usize {
        // Active rows never grow with t: the length is the number of steps with more than `place`.
        let (mut low, mut high) = (0, self.steps());
        while low < high {
            let middle = (low + high) / 2;
            if self.active(middle) > place {
                low = middle + 1
            } else {
                high = middle
            }
        }
        low
    }

    /// Cuts the places `0..B` into at most `parts` ranges of about equal work, none of them empty.
    pub fn split_rows(&self, parts: usize) -> Vec<Range<usize>> {
        let batch = self.batch();
        let parts = parts.clamp(1, batch.max(1));
        let total = self.packed_rows() + batch;
        let mut cuts = Vec::with_capacity(parts);
        let (mut begin, mut done) = (0, 0);
        for part in 1..=parts {
            let mut end = begin;
            while end < batch - (parts - part)
                && (part == parts || end == begin || done * parts < total * part)
            {
                done += if self.ragged {
                    self.length(end) + 1
                } else {
                    self.steps() + 1
                };
                end += 1;
            }
            cuts.push(begin..end);
            begin = end;
        }
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_rows_lie_one_after_the_other() {
        let schedule = Schedule::dense(3, 4).unwrap();
        assert_eq!(schedule.offsets(), [0, 4, 8, 12]);
        assert_eq!(
            (schedule.steps(), schedule.packed_rows(), schedule.active(2)),
            (3, 12, 4)
        );
        assert!(schedule.is_plain(false) && !schedule.is_plain(true));
    }

    #[test]
    fn ragged_rows_are_sorted_and_packed() {
        let schedule = Schedule::ragged(5, 4, &[2, 0, 4, 2]).unwrap();
        assert_eq!(schedule.order(), [2, 0, 3, 1]);
        assert_eq!(schedule.offsets(), [0, 3, 6, 7, 8]);
        let lengths: Vec<usize> = (0..4).map(|place| schedule.length(place)).collect();
        assert_eq!(lengths, [4, 2, 2, 0]);
        assert_eq!(schedule.time(), 5);
    }

    #[test]
    fn full_lengths_are_a_dense_batch() {
        assert_eq!(
            Schedule::ragged(3, 2, &[3, 3]).unwrap(),
            Schedule::dense(3, 2).unwrap()
        );
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        for lengths in [[-1, 0], [0, 4], [i64::MIN, i64::MAX]] {
            let error = Schedule::ragged(3, 2, &lengths).unwrap_err().to_string();
            assert!(
                error.starts_with("lengths: expected values between 0 and T = 3"),
                "{error}"
            );
        }
        let error = Schedule::ragged(3, 2, &[1]).unwrap_err().to_string();
        assert_eq!(error, "lengths: expected shape (B,) = (2,), got (1,)");
    }

    #[test]
    fn splits_cover_every_row_once_and_share_the_work() {
        for (batch, parts) in [(1, 1), (1, 3), (5, 2), (7, 3), (8, 8), (3, 8)] {
            let cuts = Schedule::dense(4, batch).unwrap().split_rows(parts);
            assert_eq!(cuts.len(), parts.min(batch));
            assert!(cuts.iter().all(|cut| !cut.is_empty()));
            assert_eq!(
                cuts.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                (0..batch).collect::<Vec<_>>()
            );
        }
        let cuts = Schedule::ragged(100, 4, &[100, 30, 30, 30])
            .unwrap()
            .split_rows(2);
        assert_eq!(cuts, [0..1, 1..4]);
    }
}
