//! The micro-kernel: a small product whose sums live in registers.
//!
//! ```text
//! for k in 0..depth                      never split over threads: one order of summation
//!     for p in 0..P                      vectors of the panel row: units and gates side by side
//!         for r in 0..R                  rows of the tile
//!             sum[r][p] += a[r][k] * panel[k][p]
//! ```
//!
//! Sums begin from memory and return to it. Saving and reloading a sum is exact, so a product may be
//! cut anywhere along k (blocks that fit a cache; first `W x`, later `U h'`) and give the same bits; and
//! a row's sums never depend on which rows share its tile, so the batch may be cut anywhere too.
//!
//! Which loop is inside decides the registers: with P >= R the R broadcasts are loaded first and the
//! panel is streamed, one vector at a time, through R multiply-adds (R*P + R + 1 registers); with
//! P < R the other way round (R*P + P + 1). That is what [`max_rows`] counts.

#![allow(unsafe_code)]

use crate::simd::{Element, Kernel, Simd, Vector};

/// The most vectors a panel row may have.
pub const MAX_VECTORS: usize = 4;

/// The most rows of a tile.
pub const MAX_ROWS: usize = 12;

/// How many rows a tile of `vectors` columns may have on a machine with so many vector registers.
pub const fn max_rows(registers: usize, vectors: usize) -> usize {
    match (registers >= 32, vectors) {
        (true, 1 | 2) => 12,
        (true, 3) => 8,
        (true, _) => 6,
        (false, 1) => 8,
        (false, 2) => 6,
        (false, _) => 3,
    }
}

/// How many panels a single row takes at once, so that there are enough independent sums to hide the
/// latency of a multiply-add (8 to 12).
pub const fn panels_at_once(vectors: usize) -> usize {
    match vectors {
        4 => 2,
        3 => 3,
        _ => 4,
    }
}

/// The left operand: element (r, k) is `values[r * row_stride + k * depth_stride]`.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    /// The values, from the first row's first.
    pub values: &'a [E],
    /// From a row to the next.
    pub row_stride: usize,
    /// From k to k + 1.
    pub depth_stride: isize,
}

/// `sums[r][p] += sum over k of a[r][k] * panel[k][p]`.
pub struct Product<'a, E> {
    /// R, at most [`max_rows`].
    pub rows: usize,
    /// P, at most [`MAX_VECTORS`].
    pub vectors: usize,
    /// How many k.
    pub depth: usize,
    /// [R, depth]
    pub a: Rows<'a, E>,
    /// [depth, P * LANES], rows `panel_stride` apart.
    pub panel: &'a [E],
    /// From a panel row to the next; P * LANES when packed.
    pub panel_stride: isize,
    /// [R, P * LANES], rows `sums_stride` apart.
    pub sums: &'a mut [E],
    /// From a row of sums to the next.
    pub sums_stride: usize,
    /// Begin from zero and overwrite, instead of adding to what is there.
    pub fresh: bool,
}

impl<E: Element> Product<'_, E> {
    /// Holds every index that the kernel will form against its slice. A slice walked backwards
    /// (negative stride) begins at its last element. Sums saturate: no stride wraps around to an index
    /// that is there.
    fn check<S: Simd<E>>(&self) {
        let (p, n) = (self.vectors.saturating_mul(S::LANES), self.depth);
        assert!(self.rows >= 1 && self.vectors >= 1);
        let last = self.rows - 1;
        assert!(last.saturating_mul(self.sums_stride).saturating_add(p) <= self.sums.len());
        if n > 0 {
            let row = last.saturating_mul(self.a.row_stride);
            assert!(reach(self.a.depth_stride, n).saturating_add(row) < self.a.values.len());
            assert!(reach(self.panel_stride, n).saturating_add(p) <= self.panel.len());
        }
    }
}

/// How far `n` steps of `stride` go from the first.
#[inline(always)]
fn reach(stride: isize, n: usize) -> usize {
    stride.unsigned_abs().saturating_mul(n - 1)
}

/// The product of one register tile.
///
/// # Panics
/// When an index would leave its slice, or the tile has more rows than registers.
#[inline(always)]
pub fn multiply<E: Element, S: Simd<E>>(s: S, product: Product<'_, E>) {
    product.check::<S>();
    macro_rules! tiles {
        ($($p:literal: $($r:literal)*;)*) => {
            match (product.vectors, product.rows) {
                $($(($p, $r) if const { $r <= max_rows(S::REGISTERS, $p) } => {
                    if const { $r <= max_rows(S::REGISTERS, $p) } {
                        s.enter(Tile::<E, $r, $p>(product));
                    }
                })*)*
                (vectors, rows) => panic!("no register tile of {rows} rows x {vectors} vectors"),
            }
        };
    }
    tiles! {
        1: 1 2 3 4 5 6 7 8 9 10 11 12;
        2: 1 2 3 4 5 6 7 8 9 10 11 12;
        3: 1 2 3 4 5 6 7 8;
        4: 1 2 3 4 5 6;
    }
}

struct Tile<'a, E, const R: usize, const P: usize>(Product<'a, E>);

impl<E: Element, const R: usize, const P: usize> Kernel<E> for Tile<'_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Product {
            depth,
            a,
            panel,
            panel_stride,
            sums,
            sums_stride,
            fresh,
            ..
        } = self.0;
        let mut sum = [[s.splat(E::ZERO); P]; R];
        // SAFETY: `Product::check` held the last row of `sums` against its length.
        unsafe {
            if !fresh {
                for r in 0..R {
                    for p in 0..P {
                        sum[r][p] = s.load_raw(sums.as_ptr().add(r * sums_stride + p * S::LANES));
                    }
                }
            }
        }
        // A stride may be negative: then the first element is the last of the slice.
        let mut left = start(a.values, a.depth_stride, depth);
        let mut right = start(panel, panel_stride, depth);
        for _ in 0..depth {
            // SAFETY: `Product::check` held the furthest k of both operands against their slices.
            unsafe {
                if P >= R {
                    let mut rows = [s.splat(E::ZERO); R];
                    for r in 0..R {
                        rows[r] = s.splat(*left.add(r * a.row_stride));
                    }
                    for p in 0..P {
                        let weight = s.load_raw(right.add(p * S::LANES));
                        for r in 0..R {
                            sum[r][p] = rows[r].mul_add(weight, sum[r][p]);
                        }
                    }
                } else {
                    let mut weights = [s.splat(E::ZERO); P];
                    for p in 0..P {
                        weights[p] = s.load_raw(right.add(p * S::LANES));
                    }
                    for r in 0..R {
                        let row = s.splat(*left.add(r * a.row_stride));
                        for p in 0..P {
                            sum[r][p] = row.mul_add(weights[p], sum[r][p]);
                        }
                    }
                }
            }
            left = left.wrapping_offset(a.depth_stride);
            right = right.wrapping_offset(panel_stride);
        }
        // SAFETY: as for the loads.
        unsafe {
            for r in 0..R {
                for p in 0..P {
                    sum[r][p].store_raw(sums.as_mut_ptr().add(r * sums_stride + p * S::LANES));
                }
            }
        }
    }
}

/// Where a walk of `n` steps begins: at the front, or far enough in to end there.
#[inline(always)]
fn start<E>(values: &[E], stride: isize, n: usize) -> *const E {
    let skip = if stride < 0 && n > 0 {
        reach(stride, n)
    } else {
        0
    };
    values.as_ptr().wrapping_add(skip)
}

/// One row, several products at once: `sums[q][p] += sum over k of a[q][k] * panels[q][k][p]`.
///
/// With one row a single panel has too few independent sums to fill the multiply-add units. Forward,
/// the q are panels of other units (the row is the same: `a_stride` 0); backward they are the gates.
pub struct RowProduct<'a, E> {
    /// Q.
    pub count: usize,
    /// P, at most [`MAX_VECTORS`].
    pub vectors: usize,
    /// How many k.
    pub depth: usize,
    /// The row's values; those of q begin at `q * a_stride`.
    pub a: &'a [E],
    /// From the row of q to that of q + 1.
    pub a_stride: usize,
    /// [Q, depth, P * LANES], one q after the other `panels_stride` apart.
    pub panels: &'a [E],
    /// From the panel of q to that of q + 1.
    pub panels_stride: usize,
    /// [Q, P * LANES], `sums_stride` apart.
    pub sums: &'a mut [E],
    /// From the sums of q to those of q + 1.
    pub sums_stride: usize,
    /// Begin from zero and overwrite, instead of adding to what is there.
    pub fresh: bool,
}

/// The products of one row.
///
/// # Panics
/// When an index would leave its slice, or there are more than four products.
#[inline(always)]
pub fn multiply_row<E: Element, S: Simd<E>>(s: S, product: RowProduct<'_, E>) {
    assert!(product.count >= 1);
    let (width, last) = (product.vectors.saturating_mul(S::LANES), product.count - 1);
    let panel = product.depth.saturating_mul(width);
    let beyond = |stride: usize, len: usize| last.saturating_mul(stride).saturating_add(len);
    assert!(beyond(product.sums_stride, width) <= product.sums.len());
    assert!(beyond(product.a_stride, product.depth) <= product.a.len());
    assert!(beyond(product.panels_stride, panel) <= product.panels.len());
    macro_rules! rows {
        ($($p:literal: $($q:literal)*;)*) => {
            match (product.vectors, product.count) {
                $($(($p, $q) => s.enter(RowTile::<E, $q, $p>(product)),)*)*
                (vectors, count) => panic!("no row kernel of {count} x {vectors} vectors"),
            }
        };
    }
    rows! {
        1: 1 2 3 4;
        2: 1 2 3 4;
        3: 1 2 3 4;
        4: 1 2 3 4;
    }
}

struct RowTile<'a, E, const Q: usize, const P: usize>(RowProduct<'a, E>);

impl<E: Element, const Q: usize, const P: usize> Kernel<E> for RowTile<'_, E, Q, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let RowProduct {
            depth,
            a,
            a_stride,
            panels,
            panels_stride,
            sums,
            sums_stride,
            fresh,
            ..
        } = self.0;
        let mut sum = [[s.splat(E::ZERO); P]; Q];
        // SAFETY: `multiply_row` held the last index of each of the three slices against its length.
        unsafe {
            if !fresh {
                for q in 0..Q {
                    for p in 0..P {
                        sum[q][p] = s.load_raw(sums.as_ptr().add(q * sums_stride + p * S::LANES));
                    }
                }
            }
            for k in 0..depth {
                for q in 0..Q {
                    let row = s.splat(*a.as_ptr().add(q * a_stride + k));
                    for p in 0..P {
                        let at = q * panels_stride + (k * P + p) * S::LANES;
                        sum[q][p] = row.mul_add(s.load_raw(panels.as_ptr().add(at)), sum[q][p]);
                    }
                }
            }
            for q in 0..Q {
                for p in 0..P {
                    sum[q][p].store_raw(sums.as_mut_ptr().add(q * sums_stride + p * S::LANES));
                }
            }
        }
    }
}
