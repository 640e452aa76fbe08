//! Packed weights: panels that the micro-kernel reads from front to back.
//!
//! Forward, a panel holds all gates of a few blocks of LANES units, `[k][block][gate][lane]`: one pass
//! over it gives every pre-activation that a vector of units needs, side by side in registers. Backward
//! (and for dx) a panel holds a few vectors of columns of the matrix as it is, `[k][vector][lane]`.
//! Columns beyond the matrix are zero. Packed once per call, once per life for a frozen layer.
//!
//! Panels that live long may be stored as bfloat16, in half the memory, for steps that wait for their
//! weights: `[k / 2][vector][lane]`, each value the pair of k and k + 1 ([`Element::pair`]). A vector of
//! pairs is a vector of k and one of k + 1 after a shift and a mask; two bfloat16 side by side would have
//! to be spread out first, which takes as long as the multiply-add. Only products of single rows read
//! such panels.

use std::ops::Range;

use crate::error::Result;
use crate::gemm::kernel::MAX_VECTORS;
use crate::memory::{Buffer, product};
use crate::parallel::Team;
use crate::simd::{Element, Kernel, Level, Simd, Vector};

/// Bytes of packed weights that a second-level cache may not keep from one step to the next, beside all else.
/// Measured for [asking ahead](crate::gemm::kernel::Term::ahead) on an Intel with 2 MB of it, where that gained 6 %
/// at 1 MB of W and of U and nothing at 768 KB, and on a Zen 3 with 512 KB of it and a faster third level, where
/// up to 1 MB it neither gained nor lost.
const FAR: usize = 3 << 18;

/// Vectors of columns in a panel of a plain product: tiles of 6 x 4 or 6 x 2.
pub const fn columns_per_panel(registers: usize) -> usize {
    if registers >= 32 { MAX_VECTORS } else { 2 }
}

/// How packed weights lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Storage {
    /// As they are.
    Own,
    /// Weights of float32, rounded to bfloat16.
    Bfloat16,
}

/// A weight matrix, packed.
pub struct Panels<E> {
    values: Buffer<E>,
    storage: Storage,
    depth: usize,
    lanes: usize,
    /// Vectors of a full panel.
    per_panel: usize,
    /// Vectors of all panels; the last panel may have fewer.
    total: usize,
    /// Values in a full panel.
    panel_len: usize,
    /// How many panels are full.
    whole: usize,
}

impl<E: Element> Panels<E> {
    fn new(
        (depth, storage): (usize, Storage),
        lanes: usize,
        per_panel: usize,
        total: usize,
    ) -> Result<Self> {
        debug_assert!(per_panel <= MAX_VECTORS && total > 0);
        let rows = match storage {
            Storage::Own => depth,
            Storage::Bfloat16 => {
                assert!(Self::MAY_BE_SHORT, "bfloat16 is the half of a float32");
                depth.div_ceil(2)
            }
        };
        let len = product(&[rows, total, lanes], "packed weights (G * H * K)")?;
        Ok(Self {
            values: Buffer::stale(len, "packed weights")?,
            storage,
            depth,
            lanes,
            per_panel,
            total,
            panel_len: rows * per_panel * lanes,
            whole: total / per_panel,
        })
    }

    /// Packs for forward: `weights` is [gates of the cell * hidden, depth], `gates` are the row blocks
    /// that belong together, `blocks_per_panel` how many blocks of `lanes` units a panel holds; the level
    /// is the one whose vectors have so many lanes.
    ///
    /// # Panics
    /// When the storage is none of elements E.
    pub fn by_unit(
        team: &Team<'_>,
        weights: &[E],
        gates: &[usize],
        (hidden, depth): (usize, usize),
        (level, lanes): (Level, usize),
        (blocks_per_panel, storage): (usize, Storage),
    ) -> Result<Self> {
        let blocks = hidden.div_ceil(lanes);
        let mut panels = Self::new(
            (depth, storage),
            lanes,
            blocks_per_panel * gates.len(),
            blocks * gates.len(),
        )?;
        panels.fill(team, |panel, vectors, values| {
            for vector in 0..vectors {
                let block = panel * blocks_per_panel + vector / gates.len();
                let first = gates[vector % gates.len()] * hidden + block * lanes;
                let rows = lanes.min(hidden - block * lanes);
                let from = &weights[first * depth..(first + rows) * depth];
                let to = &mut values[vector * lanes..];
                E::dispatch(
                    level,
                    Transpose {
                        from,
                        depth,
                        to,
                        stride: vectors * lanes,
                    },
                );
            }
        })?;
        Ok(panels)
    }

    /// Packs for backward: `weights` is [gates of the cell * hidden, columns]; the packed depth runs over
    /// the row blocks `gates`, in that order, and their `hidden` rows.
    pub fn by_column(
        team: &Team<'_>,
        weights: &[E],
        gates: &[usize],
        (hidden, columns): (usize, usize),
        lanes: usize,
        per_panel: usize,
    ) -> Result<Self> {
        let mut panels = Self::new(
            (gates.len() * hidden, Storage::Own),
            lanes,
            per_panel,
            columns.div_ceil(lanes),
        )?;
        panels.fill(team, |panel, vectors, values| {
            let first = panel * per_panel * lanes;
            let width = (vectors * lanes).min(columns - first);
            let mut rows = values.chunks_exact_mut(vectors * lanes);
            for &gate in gates {
                for (k, row) in (0..hidden).zip(&mut rows) {
                    let from = (gate * hidden + k) * columns + first;
                    row[..width].copy_from_slice(&weights[from..from + width]);
                }
            }
        })?;
        Ok(panels)
    }

    /// Fills every panel: `fill(panel, vectors, values)`; what it leaves alone in the last is zero.
    fn fill(
        &mut self,
        team: &Team<'_>,
        fill: impl Fn(usize, usize, &mut [E]) + Sync,
    ) -> Result<()> {
        if self.depth == 0 {
            return Ok(());
        }
        let last = (self.count() - 1) * self.panel_len();
        self.values[last..].fill(E::ZERO);
        let (panel_len, total, per_panel) = (self.panel_len(), self.total, self.per_panel);
        let (depth, lanes, short) = (self.depth, self.lanes, self.is_short());
        let count = self.count();
        // Packing costs about what a step does: share it as long as shares are worth a dispatch.
        let shares = team
            .size()
            .min(self.values.len() / (1 << 16))
            .clamp(1, count);
        let per_share = count.div_ceil(shares);
        let work = self
            .values
            .chunks_mut(per_share * panel_len)
            .enumerate()
            .collect();
        team.run(work, |(share, panels): (usize, &mut [E])| {
            let meter = team.watch().meter();
            let room = if short { depth * per_panel * lanes } else { 0 };
            let mut whole = Buffer::stale(room, "a panel of weights")?;
            for (k, values) in panels.chunks_mut(panel_len).enumerate() {
                let panel = share * per_share + k;
                let vectors = per_panel.min(total - panel * per_panel);
                if short {
                    let width = vectors * lanes;
                    let whole = &mut whole[..depth * width];
                    whole.fill(E::ZERO);
                    fill(panel, vectors, whole);
                    pair_rows(whole, values, width);
                } else {
                    fill(panel, vectors, values);
                }
                meter.spend(8 * values.len())?;
            }
            Ok(())
        })
    }

    /// Whether elements E have a bfloat16 form: what reads it is compiled for them alone.
    const MAY_BE_SHORT: bool = size_of::<E>() == size_of::<f32>();

    /// Whether a panel row holds pairs of bfloat16, those of two k.
    #[inline(always)]
    pub fn is_short(&self) -> bool {
        Self::MAY_BE_SHORT && self.storage == Storage::Bfloat16
    }

    /// How many panels.
    pub fn count(&self) -> usize {
        self.total.div_ceil(self.per_panel)
    }

    /// Values in a full panel; a pair counts as one.
    #[inline(always)]
    pub fn panel_len(&self) -> usize {
        self.panel_len
    }

    /// The length of k.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Vectors of a panel row.
    #[inline(always)]
    pub fn vectors(&self, panel: usize) -> usize {
        self.per_panel.min(self.total - panel * self.per_panel)
    }

    /// Where `count` neighbouring panels with rows of `width` values begin. For so many panels, each
    /// [`Self::panel_len`] after the one before, every row may be read: as many as the depth, or half as
    /// many, rounded up, if they hold pairs.
    ///
    /// # Panics
    /// When there are no such panels.
    #[inline(always)]
    pub(super) fn group(&self, panel: usize, count: usize, width: usize) -> *const E {
        // Panels stand one after the other, and `new` made room for all vectors of every row.
        if panel < self.whole && count <= self.whole - panel {
            assert!(width == self.per_panel * self.lanes);
        } else {
            assert!(count == 1 && panel < self.count() && width == self.row_len(panel));
        }
        self.values[panel * self.panel_len..].as_ptr()
    }

    /// Values in a row of `panel`.
    #[inline(always)]
    pub fn row_len(&self, panel: usize) -> usize {
        self.vectors(panel) * self.lanes
    }

    /// Whether a second-level cache may not keep them from one step to the next. Tiles then
    /// [ask](crate::gemm::kernel::Term::ahead) for what they read next, and panels are walked back and forth.
    #[inline(always)]
    pub fn are_far(&self) -> bool {
        size_of_val(&self.values[..]) >= FAR
    }

    /// Those of `values`, counted from the front of `panel`, that there are.
    #[inline(always)]
    pub fn ahead(&self, panel: usize, values: Range<usize>) -> &[E] {
        let rest = &self.values[(panel * self.panel_len()).min(self.values.len())..];
        &rest[values.start.min(rest.len())..values.end.min(rest.len())]
    }

    /// The values from the front of `panel` to the end of the last panel, which must not be pairs.
    #[inline(always)]
    pub fn from_panel(&self, panel: usize) -> &[E] {
        debug_assert!(!self.is_short());
        &self.values[panel * self.panel_len()..]
    }
}

/// Which way a worker walks through panels: always upwards, or back and forth where they are far.
///
/// Walked back and forth, weights leave in every cache what is read first the next time; walked always the same
/// way, they leave nothing of use in a cache that does not hold them all.
#[derive(Default)]
pub struct Turns {
    descending: bool,
}

impl Turns {
    /// Another walk begins: the other way, if panels are far.
    #[inline(always)]
    pub fn turn(&mut self, far: bool) {
        self.descending = far && !self.descending;
    }

    /// Whether this walk goes from the last panel to the first. Known to the compiler where a level is not there
    /// for speed, which then has no such walk.
    #[inline(always)]
    pub fn descending<E: Element, S: Simd<E>>(&self, _s: S) -> bool {
        S::FOR_SPEED && self.descending
    }
}

/// Panels in an order to be walked in: all of them or, when `descending`, groups of `at_once` (a power of two)
/// from the last group to the first, each of which is walked upwards.
///
/// # Panics
/// When `at_once` is no power of two.
#[inline(always)]
pub fn groups(
    panels: Range<usize>,
    at_once: usize,
    descending: bool,
) -> impl Iterator<Item = Range<usize>> {
    // A step of a single row would notice a division.
    assert!(at_once.is_power_of_two());
    let first = panels.start;
    let behind = (panels.len().max(1) - 1) & !(at_once - 1);
    let begin = if descending { first + behind } else { first };
    let after = move |group: &Range<usize>| {
        (group.start > first).then(|| group.start - at_once..group.start)
    };
    std::iter::successors(Some(begin..panels.end), after)
}

/// The panel that follows in such an order of single ones. The next walk, the other way, begins with the last.
#[inline(always)]
pub fn following(panel: usize, panels: &Range<usize>, descending: bool) -> Option<usize> {
    let next = if descending {
        panel.wrapping_sub(1)
    } else {
        panel + 1
    };
    panels.contains(&next).then_some(next)
}

/// Two rows of `width` values after the other into one row of pairs; of an odd number the last row's
/// partner is zero.
fn pair_rows<E: Element>(from: &[E], to: &mut [E], width: usize) {
    for (two, pairs) in from.chunks(2 * width).zip(to.chunks_exact_mut(width)) {
        let (low, high) = two.split_at(width);
        for (n, pair) in pairs.iter_mut().enumerate() {
            *pair = E::pair(low[n], high.get(n).copied().unwrap_or(E::ZERO));
        }
    }
}

/// `to[k * stride + row] = from[row * depth + k]`, for as many rows as a vector has lanes at most.
struct Transpose<'a, E> {
    /// [rows, depth]
    from: &'a [E],
    depth: usize,
    /// [depth, LANES], rows `stride` apart; lanes beyond the rows are left alone.
    to: &'a mut [E],
    stride: usize,
}

/// The most lanes a vector has.
const MAX_LANES: usize = 16;

impl<E: Element> Kernel<E> for Transpose<'_, E> {
    type Output = ();

    /// Squares of LANES x LANES in registers. Interleaving the upper half of the rows with the lower
    /// one moves one bit of the row number into the lane number; after all bits the square is turned.
    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let rows = self.from.len() / self.depth;
        let squares = if rows == S::LANES {
            self.depth / S::LANES * S::LANES
        } else {
            0
        };
        for begin in (0..squares).step_by(S::LANES) {
            let mut square = [s.splat(E::ZERO); MAX_LANES];
            for row in 0..S::LANES {
                square[row] = s.load(&self.from[row * self.depth + begin..]);
            }
            for _ in 0..S::LANES.ilog2() {
                let mut turned = square;
                for row in 0..S::LANES / 2 {
                    (turned[2 * row], turned[2 * row + 1]) =
                        square[row].interleave(square[row + S::LANES / 2]);
                }
                square = turned;
            }
            for k in 0..S::LANES {
                square[k].store(&mut self.to[(begin + k) * self.stride..]);
            }
        }
        for (lane, row) in self.from.chunks_exact(self.depth).enumerate() {
            for k in squares..self.depth {
                self.to[k * self.stride + lane] = row[k];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Watch;

    /// [gates * hidden, columns], every value different.
    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|k| k as f32 + 1.0).collect()
    }

    #[test]
    fn units_of_all_gates_stand_side_by_side() {
        let watch = Watch::unattended();
        let team = Team::assemble(1, &watch);
        let level = Level::named("portable").unwrap();
        let (hidden, depth, lanes) = (6, 9, 4);
        let weights = matrix(2 * hidden, depth);
        for per_panel in [1, 2] {
            let panels = Panels::by_unit(
                &team,
                &weights,
                &[1, 0],
                (hidden, depth),
                (level, lanes),
                (per_panel, Storage::Own),
            )
            .unwrap();
            assert_eq!(panels.count(), 2usize.div_ceil(per_panel));
            for unit in 0..hidden.next_multiple_of(lanes) {
                for (g, gate) in [1, 0].into_iter().enumerate() {
                    for k in 0..depth {
                        let block = unit / lanes;
                        let panel = block / per_panel;
                        let vector = block % per_panel * 2 + g;
                        let at = (k * panels.vectors(panel) + vector) * lanes + unit % lanes;
                        let expected = if unit < hidden {
                            weights[(gate * hidden + unit) * depth + k]
                        } else {
                            0.0
                        };
                        assert_eq!(panels.from_panel(panel)[at], expected);
                    }
                }
            }
        }
    }

    #[test]
    fn groups_are_all_panels_once() {
        for (panels, at_once) in [
            (0..0, 1),
            (3..3, 4),
            (0..1, 4),
            (2..9, 1),
            (2..9, 4),
            (1..9, 2),
        ] {
            let ascending = groups(panels.clone(), at_once, false);
            assert!(ascending.eq(std::iter::once(panels.clone())));
            let mut descending: Vec<_> = groups(panels.clone(), at_once, true).collect();
            descending.reverse();
            let whole = descending.iter().filter(|group| group.len() == at_once);
            assert!(whole.count() + 1 >= descending.len());
            assert!(descending.iter().all(|group| group.len() <= at_once));
            assert!(descending.into_iter().flatten().eq(panels));
        }
        for descending in [false, true] {
            let order: Vec<_> = groups(2..9, 1, descending).flatten().collect();
            for (k, panel) in order.iter().enumerate() {
                let next = order.get(k + 1).copied();
                assert_eq!(following(*panel, &(2..9), descending), next);
            }
            assert_eq!(following(0, &(0..1), descending), None);
        }
    }

    #[test]
    fn values_ahead_are_those_of_far_panels() {
        const DEPTH: usize = 1 << 14;
        let watch = Watch::unattended();
        let team = Team::assemble(1, &watch);
        let matrix = |columns| {
            let values: Vec<f32> = (0..DEPTH * columns).map(|k| k as f32).collect();
            Panels::by_column(&team, &values, &[0], (DEPTH, columns), 4, 2).unwrap()
        };
        let (near, far) = (matrix(8), matrix(12));
        let len = 8 * DEPTH;
        assert_eq!((near.panel_len(), far.panel_len()), (len, len));
        assert!(!near.are_far() && far.are_far());
        // The third block of columns has a panel of its own, of which half is there.
        let second = far.from_panel(1);
        assert_eq!(far.ahead(1, 0..2), &second[..2]);
        assert_eq!(far.ahead(0, len + 1..len + 3), &second[1..3]);
        let last = second.len() - 1;
        assert_eq!(far.ahead(1, last..last + 9), &second[last..]);
        assert!(far.ahead(7, 0..9).is_empty());
    }

    #[test]
    fn panels_of_pairs_hold_two_rows_in_one() {
        let watch = Watch::unattended();
        let team = Team::assemble(1, &watch);
        let level = Level::named("portable").unwrap();
        let (hidden, lanes) = (6, 4);
        for depth in [1, 8, 9] {
            let weights = matrix(3 * hidden, depth);
            let pack = |storage| {
                let (sizes, level) = ((hidden, depth), (level, lanes));
                Panels::by_unit(&team, &weights, &[0, 2], sizes, level, (2, storage)).unwrap()
            };
            let (own, short) = (pack(Storage::Own), pack(Storage::Bfloat16));
            assert!(short.is_short() && !own.is_short());
            assert_eq!((short.depth(), short.count()), (depth, own.count()));
            let width = own.row_len(0);
            let rows: Vec<&[f32]> = own.values.chunks(width).collect();
            for (k, pairs) in short.values.chunks(width).enumerate() {
                for (n, pair) in pairs.iter().enumerate() {
                    let high = rows.get(2 * k + 1).map_or(0.0, |row| row[n]);
                    assert_eq!(pair.to_bits(), f32::pair(rows[2 * k][n], high).to_bits());
                }
            }
            assert_eq!(short.values.len(), depth.div_ceil(2) * width);
        }
    }

    #[test]
    fn columns_stand_in_panels_of_vectors() {
        let watch = Watch::unattended();
        let team = Team::assemble(2, &watch);
        let (hidden, columns, lanes) = (2, 10, 4);
        let weights = matrix(3 * hidden, columns);
        let panels =
            Panels::by_column(&team, &weights, &[2, 0], (hidden, columns), lanes, 2).unwrap();
        assert_eq!(
            (
                panels.count(),
                panels.vectors(0),
                panels.vectors(1),
                panels.depth()
            ),
            (2, 2, 1, 4)
        );
        for (k, row) in [4, 5, 0, 1].into_iter().enumerate() {
            for column in 0..12 {
                let panel = column / 8;
                let at = k * panels.vectors(panel) * lanes + column % 8;
                let expected = if column < columns {
                    weights[row * columns + column]
                } else {
                    0.0
                };
                assert_eq!(panels.from_panel(panel)[at], expected);
            }
        }
    }
}
