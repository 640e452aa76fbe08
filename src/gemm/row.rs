//! Products of a single row, which has too few independent sums in one panel to keep the multiply-add
//! units busy: it takes several at once.
//!
//! Forward these are panels of other units, and [`add_row`] leaves the sums in the registers of whoever
//! asks: at one row a trip through memory would be felt. Backward they are the gates, each with a chain
//! of its own, [`multiply_row`]; the matrix is read as the caller has it, because its rows stand in the
//! right order and packing it would cost as much as a step.

#![allow(unsafe_code)]

use std::ops::Range;

use crate::gemm::kernel::{MAX_VECTORS, UNROLLED};
use crate::gemm::pack::Panels;
use crate::simd::{Element, Kernel, Lanewise, Simd, Vector};

/// A matrix larger than this is read from front to back, for the prefetcher's sake, with its sums in
/// L1; a smaller one a few columns at a time, with its sums in registers.
const STREAM_BYTES: usize = 150 << 10;
/// Rows of a streamed matrix that are taken at once: the sums go to L1 and back once for so many.
const BURST: usize = 8;

/// One row, several products at once.
///
/// Forward, the q are panels of other units (the row is the same: `a_stride` 0); backward they are the
/// gates.
#[derive(Clone, Copy)]
pub struct RowProduct<'a, E> {
    /// How many k.
    pub depth: usize,
    /// The row's values; those of q begin at `q * a_stride`.
    pub a: &'a [E],
    /// From the row of q to that of q + 1.
    pub a_stride: usize,
    /// [Q, depth, panel_stride], one q after the other `panels_stride` apart.
    pub panels: &'a [E],
    /// From a panel row to the next.
    pub panel_stride: usize,
    /// From the panel of q to that of q + 1.
    pub panels_stride: usize,
}

/// `sums[q][p] += sum over k of a[q][k] * panels[q][k][p - first]` for p in `vectors`, whose first
/// stands first in a panel row.
///
/// # Panics
/// When an index would leave its slice.
#[inline(always)]
pub fn add_row<E: Element, S: Simd<E>, const Q: usize>(
    s: S,
    sums: &mut [[S::V; MAX_VECTORS]; Q],
    vectors: Range<usize>,
    product: RowProduct<'_, E>,
) {
    let RowProduct {
        depth,
        a,
        a_stride,
        panels,
        panel_stride,
        panels_stride,
    } = product;
    assert!(vectors.end <= MAX_VECTORS);
    if depth == 0 {
        return;
    }
    let beyond = |stride: usize, len: usize| (Q - 1).saturating_mul(stride).saturating_add(len);
    let row = (depth - 1).saturating_mul(panel_stride);
    let panel = row.saturating_add(vectors.len() * S::LANES);
    assert!(beyond(a_stride, depth) <= a.len());
    assert!(beyond(panels_stride, panel) <= panels.len());
    // SAFETY: the last k of the last q was just held against both slices.
    *sums = unsafe {
        let (left, right) = (a.as_ptr(), panels.as_ptr());
        sum_row(
            s,
            *sums,
            vectors,
            depth,
            (left, a_stride),
            (right, panel_stride, panels_stride),
        )
    };
}

/// `sums[q][p] += sum over k of a[k] * panel[k][p - first]` for Q packed panels from `panel` on, and p in
/// `vectors`, which are all that a panel row has.
///
/// # Panics
/// When there are no such panels, or `a` is shorter than they are deep.
#[inline(always)]
pub fn add_panels<E: Element, S: Simd<E>, const Q: usize>(
    s: S,
    sums: &mut [[S::V; MAX_VECTORS]; Q],
    vectors: Range<usize>,
    a: &[E],
    (panels, panel): (&Panels<E>, usize),
) {
    assert!(vectors.end <= MAX_VECTORS && a.len() >= panels.depth());
    let width = vectors.len() * S::LANES;
    let first = panels.group(panel, Q, width);
    // SAFETY: `group` is where Q panels begin one after the other, each of as many rows of `width` values,
    // or of pairs, as `a` was just found to have values at least, or pairs.
    *sums = unsafe {
        let steps = (first, width, panels.panel_len());
        if panels.is_short() {
            sum_row_of_pairs(s, *sums, vectors, panels.depth(), a.as_ptr(), steps)
        } else {
            sum_row(s, *sums, vectors, panels.depth(), (a.as_ptr(), 0), steps)
        }
    };
}

/// The sums of [`add_row`]: left operand and its stride from q to q + 1; right operand, its stride from k
/// to k + 1 and from q to q + 1.
///
/// # Safety
/// * The left operand is valid for reading `depth` values for each q.
/// * The right one is valid for reading a vector for each of `vectors`, each k and each q.
#[inline(always)]
unsafe fn sum_row<E: Element, S: Simd<E>, const Q: usize>(
    s: S,
    sums: [[S::V; MAX_VECTORS]; Q],
    vectors: Range<usize>,
    depth: usize,
    (left, left_stride): (*const E, usize),
    (right, row_stride, stride): (*const E, usize, usize),
) -> [[S::V; MAX_VECTORS]; Q] {
    let mut sum = sums;
    let (mut left, mut right) = (left, right);
    macro_rules! one {
        () => {
            // SAFETY: the caller vouches for every k.
            unsafe {
                for q in 0..Q {
                    let row = s.splat(*left.add(q * left_stride));
                    for p in vectors.clone() {
                        let at = q * stride + (p - vectors.start) * S::LANES;
                        sum[q][p] = row.mul_add(s.load_raw(right.add(at)), sum[q][p]);
                    }
                }
                left = left.wrapping_add(1);
                right = right.wrapping_add(row_stride);
            }
        };
    }
    for _ in 0..depth / UNROLLED {
        for _ in 0..UNROLLED {
            one!();
        }
    }
    for _ in 0..depth % UNROLLED {
        one!();
    }
    sum
}

/// [`sum_row`] of one left operand for all q, where a row of the right one holds the pairs of two k, the
/// lower one first: the same sums in the same order as if they stood in two rows.
///
/// # Safety
/// * The left operand is valid for reading `depth` values.
/// * The right one is valid for reading a vector for each of `vectors`, each k of even number and each q.
#[inline(always)]
unsafe fn sum_row_of_pairs<E: Element, S: Simd<E>, const Q: usize>(
    s: S,
    sums: [[S::V; MAX_VECTORS]; Q],
    vectors: Range<usize>,
    depth: usize,
    left: *const E,
    (right, row_stride, stride): (*const E, usize, usize),
) -> [[S::V; MAX_VECTORS]; Q] {
    let mut sum = sums;
    let (mut left, mut right) = (left, right);
    macro_rules! one {
        ($both:literal) => {
            // SAFETY: the caller vouches for every k.
            unsafe {
                let low = s.splat(*left);
                let high = s.splat(if $both { *left.add(1) } else { E::ZERO });
                for q in 0..Q {
                    for p in vectors.clone() {
                        let at = q * stride + (p - vectors.start) * S::LANES;
                        let weights = s.load_raw(right.add(at)).unpair();
                        sum[q][p] = low.mul_add(weights.0, sum[q][p]);
                        if $both {
                            sum[q][p] = high.mul_add(weights.1, sum[q][p]);
                        }
                    }
                }
            }
        };
    }
    for _ in 0..depth / UNROLLED {
        for _ in 0..UNROLLED / 2 {
            one!(true);
            (left, right) = (left.wrapping_add(2), right.wrapping_add(row_stride));
        }
    }
    for _ in 0..depth % UNROLLED / 2 {
        one!(true);
        (left, right) = (left.wrapping_add(2), right.wrapping_add(row_stride));
    }
    if depth % 2 == 1 {
        one!(false);
    }
    sum
}

/// `sums[n] = sum over g of (sum over k of a[g][k] * matrix[g][k][n])`: a chain of sums per gate, then
/// the gates in order.
pub struct GateProduct<'a, E> {
    /// G, at most 4.
    pub gates: usize,
    /// How many k.
    pub depth: usize,
    /// [G, depth]
    pub a: &'a [E],
    /// [G, depth, stride], from the first column on.
    pub matrix: &'a [E],
    /// From a row of the matrix to the next.
    pub stride: usize,
    /// How many columns.
    pub columns: usize,
    /// `[columns]`, and room up to a whole vector; [G, that] when the matrix is streamed.
    pub sums: &'a mut [E],
}

/// The product of one row with a matrix of gates.
///
/// # Panics
/// When an index would leave its slice, or there are more than four gates.
#[inline(always)]
pub fn multiply_row<E: Element, S: Simd<E>>(s: S, product: GateProduct<'_, E>) {
    match product.gates {
        1 => s.enter(Gates::<E, 1>(product)),
        2 => s.enter(Gates::<E, 2>(product)),
        3 => s.enter(Gates::<E, 3>(product)),
        4 => s.enter(Gates::<E, 4>(product)),
        gates => panic!("no row kernel of {gates} gates"),
    }
}

struct Gates<'a, E, const G: usize>(GateProduct<'a, E>);

impl<E: Element, const G: usize> Kernel<E> for Gates<'_, E, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let product = &self.0;
        let (rows, columns) = (G.saturating_mul(product.depth), product.columns);
        assert!(columns <= product.stride && rows <= product.a.len());
        if rows == 0 || columns == 0 {
            self.0.sums[..columns].fill(E::ZERO);
            return;
        }
        let last = (rows - 1).saturating_mul(product.stride);
        assert!(last.saturating_add(columns) <= product.matrix.len());
        if rows * product.stride * size_of::<E>() > STREAM_BYTES {
            self.stream(s);
        } else {
            self.by_columns(s);
        }
    }
}

impl<E: Element, const G: usize> Gates<'_, E, G> {
    /// A few columns at a time, sums in registers: 8 to 16 chains.
    #[inline(always)]
    fn by_columns<S: Simd<E>>(&mut self, s: S) {
        let whole = self.0.columns / S::LANES;
        let mut column = 0;
        macro_rules! columns {
            ($($p:literal)*) => {
                $(while $p * G <= S::REGISTERS / 4 * 3 && whole - column / S::LANES >= $p {
                    self.columns::<S, $p>(s, column);
                    column += $p * S::LANES;
                })*
            };
        }
        columns!(4 2 1);
        if column < self.0.columns {
            self.last_columns(s, column);
        }
    }

    #[inline(always)]
    fn columns<S: Simd<E>, const P: usize>(&mut self, s: S, column: usize) {
        let GateProduct {
            depth,
            a,
            matrix,
            stride,
            sums,
            ..
        } = &mut self.0;
        let mut chains = [[s.splat(E::ZERO); MAX_VECTORS]; G];
        let product = RowProduct {
            depth: *depth,
            a,
            a_stride: *depth,
            panels: &matrix[column..],
            panel_stride: *stride,
            panels_stride: *depth * *stride,
        };
        add_row(s, &mut chains, 0..P, product);
        for p in 0..P {
            let mut sum = chains[0][p];
            for g in 1..G {
                sum = sum + chains[g][p];
            }
            sum.store(&mut sums[column + p * S::LANES..]);
        }
    }

    /// The columns beyond the last whole vector.
    #[inline(always)]
    fn last_columns<S: Simd<E>>(&mut self, s: S, column: usize) {
        let GateProduct {
            depth,
            a,
            matrix,
            stride,
            columns,
            sums,
            ..
        } = &mut self.0;
        let mut chains = [s.splat(E::ZERO); G];
        for k in 0..*depth {
            for g in 0..G {
                let row = g * *depth + k;
                let from = &matrix[row * *stride..][column..*columns];
                chains[g] = s.splat(a[row]).mul_add(s.load_partial(from), chains[g]);
            }
        }
        let mut sum = chains[0];
        for g in 1..G {
            sum = sum + chains[g];
        }
        sum.store_partial(&mut sums[column..*columns]);
    }

    /// From front to back, the sums of each gate in memory.
    #[inline(always)]
    fn stream<S: Simd<E>>(&mut self, s: S) {
        let GateProduct {
            depth,
            a,
            matrix,
            stride,
            columns,
            sums,
            ..
        } = &mut self.0;
        let (depth, stride, columns) = (*depth, *stride, *columns);
        let room = columns.next_multiple_of(S::LANES);
        assert!(G * room <= sums.len());
        for g in 0..G {
            let sums = &mut sums[g * room..][..columns];
            sums.fill(E::ZERO);
            let rows = g * depth..(g + 1) * depth;
            let mut row = rows.start;
            while row + BURST <= rows.end {
                burst::<E, S, BURST>(s, &a[row..], &matrix[row * stride..], stride, sums);
                row += BURST;
            }
            while row < rows.end {
                burst::<E, S, 1>(s, &a[row..], &matrix[row * stride..], stride, sums);
                row += 1;
            }
        }
        for column in (0..columns).step_by(S::LANES) {
            let end = columns.min(column + S::LANES);
            let mut sum = s.load_partial(&sums[column..end]);
            for g in 1..G {
                sum = sum + s.load_partial(&sums[g * room..][column..end]);
            }
            sum.store_partial(&mut sums[column..end]);
        }
    }
}

/// `sums[n] += sum over k < K of a[k] * matrix[k][n]`.
#[inline(always)]
fn burst<E: Element, S: Simd<E>, const K: usize>(
    s: S,
    a: &[E],
    matrix: &[E],
    stride: usize,
    sums: &mut [E],
) {
    let last = (K - 1).saturating_mul(stride);
    assert!(last.saturating_add(sums.len()) <= matrix.len());
    let mut rows = [s.splat(E::ZERO); K];
    for k in 0..K {
        rows[k] = s.splat(a[k]);
    }
    let whole = sums.len() / S::LANES * S::LANES;
    for column in (0..whole).step_by(S::LANES) {
        // SAFETY: `column` and a whole vector from it on are within `sums`, and K rows of as many
        // columns within `matrix`, as was just held.
        unsafe {
            let to = sums.as_mut_ptr().add(column);
            let mut sum = s.load_raw(to);
            for k in 0..K {
                let from = matrix.as_ptr().add(k * stride + column);
                sum = rows[k].mul_add(s.load_raw(from), sum);
            }
            sum.store_raw(to);
        }
    }
    if whole < sums.len() {
        let mut sum = s.load_partial(&sums[whole..]);
        for k in 0..K {
            let from = &matrix[k * stride..][whole..sums.len()];
            sum = rows[k].mul_add(s.load_partial(from), sum);
        }
        sum.store_partial(&mut sums[whole..]);
    }
}
