//! Products of a single row, which may have too few independent sums in one panel to keep the multiply-add
//! units busy: then it takes several at once. Enough are four to eight chains, the latency of a multiply-add
//! times how many begin in a cycle, wherever weights come from near; from afar fewer do.
//!
//! Forward these are panels of other units, and [`add_row`] leaves the sums in the registers of whoever
//! asks: at one row a trip through memory would be felt. Backward they are the gates, each with a chain
//! of its own, [`multiply_row`].

#![allow(unsafe_code)]

use std::ops::Range;

use crate::gemm::kernel::{MAX_VECTORS, UNROLLED};
use crate::gemm::pack::{Panels, columns_per_panel, groups};
use crate::simd::{Element, Kernel, Lanewise, Simd, Vector};

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
/// `vectors`, which are all that a panel row has. SHORT says whether it has pairs of bfloat16.
///
/// # Panics
/// When there are no such panels, or `a` is shorter than they are deep.
#[inline(always)]
pub fn add_panels<E: Element, S: Simd<E>, const Q: usize, const SHORT: bool>(
    s: S,
    sums: &mut [[S::V; MAX_VECTORS]; Q],
    vectors: Range<usize>,
    a: &[E],
    (panels, panel): (&Panels<E>, usize),
) {
    assert!(vectors.end <= MAX_VECTORS && a.len() >= panels.depth());
    assert!(panels.is_short() == SHORT);
    let width = vectors.len() * S::LANES;
    let first = panels.group(panel, Q, width);
    // SAFETY: `group` is where Q panels begin one after the other, each of as many rows of `width` values,
    // or of pairs, as `a` was just found to have values at least, or pairs.
    *sums = unsafe {
        let steps = (first, width, panels.panel_len());
        if SHORT {
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

/// `sums[n] = sum over g of (sum over k of a[g][k] * panels[g][k][n])`: a chain of sums per gate, then
/// the gates in order.
pub struct GateProduct<'a, E> {
    /// G, 1 to 4.
    pub gates: usize,
    /// [G, depth of the panels / G]
    pub a: &'a [E],
    /// Columns of a matrix [G, depth, columns].
    pub panels: &'a Panels<E>,
    /// Which of the panels.
    pub range: Range<usize>,
    /// Whether they are taken from the last to the first.
    pub descending: bool,
    /// The columns of these panels, one panel after the other; beyond the matrix zeros.
    pub sums: &'a mut [E],
}

/// The product of one row with a matrix of gates.
///
/// # Panics
/// When there are no such panels, an index would leave its slice, the gates are none or more than four, or
/// the panels' depth is no multiple of them.
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
    fn run<S: Simd<E>>(self, s: S) {
        let GateProduct {
            a,
            panels,
            range,
            descending,
            sums,
            ..
        } = self.0;
        assert!(panels.depth().is_multiple_of(G) && range.end <= panels.count());
        let (begin, per_panel) = (range.start, panels.row_len(0));
        // One gate alone has one chain a vector: several panels at once have more.
        let at_once = if G == 1 { TOGETHER } else { 1 };
        for group in groups(range, at_once, descending) {
            let mut panel = group.start;
            while panel < group.end {
                let vectors = panels.vectors(panel);
                let full = G == 1
                    && group.end - panel >= TOGETHER
                    && panels.vectors(panel + TOGETHER - 1) == vectors;
                let to = &mut sums[(panel - begin) * per_panel..];
                macro_rules! widths {
                    ($($p:literal)*) => {
                        match vectors {
                            $($p if const { $p <= columns_per_panel(S::REGISTERS) } => {
                                if const { $p <= columns_per_panel(S::REGISTERS) } {
                                    if full {
                                        panels_of_a_gate::<E, S, $p>(s, a, (panels, panel), to);
                                    } else {
                                        gates_of_a_panel::<E, S, G, $p>(s, a, (panels, panel), to);
                                    }
                                }
                            })*
                            _ => panic!("no row kernel of {vectors} vectors"),
                        }
                    };
                }
                widths!(1 2 3 4);
                panel += if full { TOGETHER } else { 1 };
            }
        }
    }
}

/// Panels of a single gate that are taken at once.
const TOGETHER: usize = 2;

/// One panel of G gates: a chain for each vector of each gate.
#[inline(always)]
fn gates_of_a_panel<E: Element, S: Simd<E>, const G: usize, const P: usize>(
    s: S,
    a: &[E],
    (panels, panel): (&Panels<E>, usize),
    sums: &mut [E],
) {
    let (depth, width) = (panels.depth() / G, P * S::LANES);
    let mut chains = [[s.splat(E::ZERO); MAX_VECTORS]; G];
    let product = RowProduct {
        depth,
        a,
        a_stride: depth,
        panels: panels.from_panel(panel),
        panel_stride: width,
        panels_stride: depth * width,
    };
    add_row(s, &mut chains, 0..P, product);
    for p in 0..P {
        let mut sum = chains[0][p];
        for g in 1..G {
            sum = sum + chains[g][p];
        }
        sum.store(&mut sums[p * S::LANES..]);
    }
}

/// [`TOGETHER`] panels of one gate.
#[inline(always)]
fn panels_of_a_gate<E: Element, S: Simd<E>, const P: usize>(
    s: S,
    a: &[E],
    (panels, panel): (&Panels<E>, usize),
    sums: &mut [E],
) {
    let width = P * S::LANES;
    let mut chains = [[s.splat(E::ZERO); MAX_VECTORS]; TOGETHER];
    let product = RowProduct {
        depth: panels.depth(),
        a,
        a_stride: 0,
        panels: panels.from_panel(panel),
        panel_stride: width,
        panels_stride: panels.panel_len(),
    };
    add_row(s, &mut chains, 0..P, product);
    for q in 0..TOGETHER {
        for p in 0..P {
            chains[q][p].store(&mut sums[q * width + p * S::LANES..]);
        }
    }
}
