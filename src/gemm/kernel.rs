//! The micro-kernel: rows times a panel, in small products whose sums live in registers.
//!
//! ```text
//! for tile in tiles(rows)                R rows at a time
//!   for term in terms                    W x, then U h'; or the gates of dpre U
//!     for k in 0..depth                  never split over threads: one order of summation
//!       for p in 0..P                    vectors of the panel row: units and gates side by side
//!         for r in 0..R                  rows of the tile
//!           sum[r][p] += a[r][k] * panel[k][p]
//! ```
//!
//! Saving and reloading a sum is exact, so a product may be cut anywhere along k (blocks that fit a
//! cache; first `W x`, later `U h'`) and give the same bits; and a row's sums never depend on which rows
//! share its tile, so the batch may be cut anywhere too.
//!
//! Which loop is inside decides the registers: with P >= R the R broadcasts are loaded first and the
//! panel is streamed, one vector at a time, through R multiply-adds (R*P + R + 1 registers); with
//! P < R the other way round (R*P + P + 1). That is what [`max_rows`] counts.
//!
//! A single row has too few sums for that: see [`crate::gemm::row`].

#![allow(unsafe_code)]

use std::hint::black_box;
use std::ops::Range;

use crate::simd::{Element, Kernel, LINE, Lanewise, Simd, Vector};

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
        (false, 3) => 4,
        (false, _) => 3,
    }
}

/// The left operand: element (r, k) is `values[r * row_stride + k * depth_stride]`. One of the strides is 1:
/// that of k, beside a packed panel, or that of rows.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    /// The values, from the first row's first.
    pub values: &'a [E],
    /// From a row to the next.
    pub row_stride: usize,
    /// From k to k + 1.
    pub depth_stride: isize,
}

/// Where the sums of a tile begin.
#[derive(Clone, Copy)]
pub enum Begin<'a, E> {
    /// At zero.
    Zero,
    /// At what `sums` holds.
    Sums,
    /// At these rows of P * LANES values, so far apart; 0 when every row begins alike, at a bias.
    Rows(&'a [E], usize),
}

/// How a term follows the one before it.
#[derive(Clone, Copy)]
pub enum Joint<'a, E> {
    /// It adds to the same sums.
    Add,
    /// The first vector of every row is complete and leaves for `sums`; the others move up, and one
    /// that begins at these LANES values follows them. What a GRU needs between `W x` and `U h'`; not
    /// after a chain.
    Shift(&'a [E]),
    /// A chain of sums of its own begins, from zero; the chains are added in order.
    Chain,
}

/// One of the products that a tile adds up.
#[derive(Clone, Copy)]
pub struct Term<'a, E> {
    /// How it follows the one before.
    pub joint: Joint<'a, E>,
    /// How many k.
    pub depth: usize,
    /// [rows, depth]
    pub a: Rows<'a, E>,
    /// [depth, P * LANES], rows `panel_stride` apart. Walked backwards (negative stride) it begins at
    /// its last row.
    pub panel: &'a [E],
    /// From a panel row to the next; P * LANES when packed.
    pub panel_stride: isize,
    /// Values of a far cache that will be read next, nothing otherwise: each tall tile that reads a packed panel
    /// asks for its part along the way, or for as much of it as half of the panel.
    pub ahead: &'a [E],
}

impl<E> Term<'_, E> {
    /// Whether k lie side by side and panel rows, of `width` values, too.
    #[inline(always)]
    fn is_packed(&self, width: usize) -> bool {
        self.a.depth_stride == 1 && self.panel_stride == width as isize
    }
}

/// `sums[r][p] = begin + sum over terms and k of a[r][k] * panel[k][p]`.
pub struct Product<'a, E> {
    /// At least 1; tiles have [`max_rows`] at most.
    pub rows: usize,
    /// P, at most [`MAX_VECTORS`].
    pub vectors: usize,
    /// Where the sums begin.
    pub begin: Begin<'a, E>,
    /// In this order.
    pub terms: &'a [Term<'a, E>],
    /// [rows, P * LANES], and another LANES for every shift; rows `sums_stride` apart.
    pub sums: &'a mut [E],
    /// From a row of sums to the next.
    pub sums_stride: usize,
}

impl<E: Element> Product<'_, E> {
    /// Holds every index that the kernel will form against its slice. Sums saturate: no stride wraps
    /// around to an index that is there.
    fn check<S: Simd<E>>(&self) {
        assert!(self.rows >= 1 && self.vectors >= 1);
        let (p, last) = (self.vectors.saturating_mul(S::LANES), self.rows - 1);
        let holds = |stride: usize, len: usize| last.saturating_mul(stride).saturating_add(len);
        let (mut width, mut chained) = (p, false);
        for term in self.terms {
            chained |= matches!(term.joint, Joint::Chain);
            if let Joint::Shift(enters) = term.joint {
                assert!(enters.len() >= S::LANES && self.vectors < MAX_VECTORS && !chained);
                width += S::LANES;
            }
            if term.depth > 0 {
                let row = last.saturating_mul(term.a.row_stride);
                let (a, panel) = (term.a, term.panel);
                assert!(term.is_packed(p) || a.row_stride == 1);
                assert!(reach(a.depth_stride, term.depth).saturating_add(row) < a.values.len());
                assert!(reach(term.panel_stride, term.depth).saturating_add(p) <= panel.len());
            }
        }
        assert!(holds(self.sums_stride, width) <= self.sums.len());
        if let Begin::Rows(values, stride) = self.begin {
            assert!(holds(stride, p) <= values.len());
        }
    }
}

/// How far `n` steps of `stride` go from the first.
#[inline(always)]
fn reach(stride: isize, n: usize) -> usize {
    stride.unsigned_abs().saturating_mul(n - 1)
}

/// Cuts `rows` into tiles of at most `most` rows, as even as can be.
#[inline(always)]
pub fn tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    // A single tile, the usual one where rows are few, should not wait for divisions.
    let (count, each, longer) = if rows <= most {
        (usize::from(rows > 0), rows, 0)
    } else {
        let count = rows.div_ceil(most);
        (count, rows / count, rows % count)
    };
    // The longer ones first.
    (0..count).map(move |k| {
        let first = k * each + k.min(longer);
        first..first + each + usize::from(k < longer)
    })
}

/// The product, register tile after register tile.
///
/// # Panics
/// When an index would leave its slice; when there is no row, or no such number of vectors; when a shift has
/// no room or follows a chain; when neither k nor rows lie side by side, or k do beside a panel that is not
/// packed.
#[inline(always)]
pub fn multiply<E: Element, S: Simd<E>>(s: S, product: Product<'_, E>) {
    s.enter(product);
}

/// A function of its own: it knows every tile, and callers are many.
impl<E: Element> Kernel<E> for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        self.check::<S>();
        let mut checked = Checked {
            first: 0,
            rows: self.rows,
            begin: self.begin,
            terms: self.terms,
            sums: self.sums.as_mut_ptr(),
            sums_stride: self.sums_stride,
        };
        for rows in tiles(self.rows, max_rows(S::REGISTERS, self.vectors)) {
            checked.first = rows.start;
            macro_rules! multiply {
                ($($p:literal: $($r:literal)*;)*) => {
                    match (self.vectors, rows.len()) {
                        $($(($p, $r) if const { $r <= max_rows(S::REGISTERS, $p) } => {
                            if const { $r <= max_rows(S::REGISTERS, $p) } {
                                black_box(enter_tile::<E, S, $r, $p> as fn(S, &Checked<'_, E>))(s, &checked);
                            }
                        })*)*
                        (vectors, rows) => panic!("no register tile of {rows} rows x {vectors} vectors"),
                    }
                };
            }
            multiply! {
                1: 1 2 3 4 5 6 7 8 9 10 11 12;
                2: 1 2 3 4 5 6 7 8 9 10 11 12;
                3: 1 2 3 4 5 6 7 8;
                4: 1 2 3 4 5 6;
            }
        }
    }
}

/// A tile, to be called through a pointer that the compiler cannot look through: copied into the function of
/// all tiles, the one of 12 x 2 with AVX-512 was compiled to load ahead, and spilled.
fn enter_tile<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    checked: &Checked<'_, E>,
) {
    s.enter(Tile::<'_, '_, E, R, P>(checked));
}

/// Some rows of a product that [`Product::check`] let pass.
struct Checked<'a, E> {
    /// The first of the rows.
    first: usize,
    /// All that the product has.
    rows: usize,
    begin: Begin<'a, E>,
    terms: &'a [Term<'a, E>],
    /// The first row of all.
    sums: *mut E,
    sums_stride: usize,
}

/// A tile of R rows and P vectors.
struct Tile<'t, 'a, E, const R: usize, const P: usize>(&'t Checked<'a, E>);

impl<E: Element, const R: usize, const P: usize> Kernel<E> for Tile<'_, '_, E, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let &Checked {
            first,
            rows,
            begin,
            terms,
            sums,
            sums_stride,
        } = self.0;
        let zero = [[s.splat(E::ZERO); P]; R];
        // SAFETY: `Product::check` held the last row of `begin`, or of `sums`, against its length.
        let (mut to, mut sum) = unsafe {
            let to = sums.add(first * sums_stride);
            let sum = match begin {
                Begin::Zero => zero,
                Begin::Sums => load(s, to, sums_stride),
                Begin::Rows(values, stride) => load(s, values.as_ptr().add(first * stride), stride),
            };
            (to, sum)
        };
        let mut chained = false;
        for term in terms {
            // SAFETY: `Product::check` counted every shift into the width of `sums`, and held the
            // furthest k of both operands of every term against their slices.
            unsafe {
                match term.joint {
                    Joint::Add => {}
                    // A cell that shifts has three slots at most.
                    Joint::Shift(enters) if P < MAX_VECTORS => {
                        let enters = s.load_raw(enters.as_ptr());
                        for r in 0..R {
                            sum[r][0].store_raw(to.add(r * sums_stride));
                            for p in 1..P {
                                sum[r][p - 1] = sum[r][p];
                            }
                            sum[r][P - 1] = enters;
                        }
                        to = to.add(S::LANES);
                    }
                    Joint::Shift(_) => unreachable!("`Product::check` refused it"),
                    Joint::Chain => {
                        leave(s, sum, to, sums_stride, chained);
                        chained = true;
                        sum = zero;
                    }
                }
                sum = add_term(s, sum, (first, rows), term);
            }
        }
        // SAFETY: as for the loads.
        unsafe { leave(s, sum, to, sums_stride, chained) }
    }
}

/// Rows of sums, `stride` apart.
///
/// # Safety
/// * `from` is valid for reading P * LANES values in each of the R rows.
#[inline(always)]
unsafe fn load<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    from: *const E,
    stride: usize,
) -> [[S::V; P]; R] {
    let mut sum = [[s.splat(E::ZERO); P]; R];
    for r in 0..R {
        for p in 0..P {
            // SAFETY: the caller vouches for the row.
            sum[r][p] = unsafe { s.load_raw(from.add(r * stride + p * S::LANES)) };
        }
    }
    sum
}

/// The mirror of [`load`]; adds to what is there when the sums are a further chain.
///
/// # Safety
/// * `to` is valid for reading and writing P * LANES values in each of the R rows.
#[inline(always)]
unsafe fn leave<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    sum: [[S::V; P]; R],
    to: *mut E,
    stride: usize,
    chained: bool,
) {
    // SAFETY: the caller vouches for the rows.
    unsafe {
        let mut sum = sum;
        if chained {
            let before: [[S::V; P]; R] = load(s, to, stride);
            for r in 0..R {
                for p in 0..P {
                    sum[r][p] = before[r][p] + sum[r][p];
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                sum[r][p].store_raw(to.add(r * stride + p * S::LANES));
            }
        }
    }
}

/// `sum[r][p] + sum over k of a[first + r][k] * panel[k][p]`, of a product with so many `rows`.
///
/// # Safety
/// * `Product::check` held the furthest row and k of both operands against their slices.
#[inline(always)]
unsafe fn add_term<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    sum: [[S::V; P]; R],
    (first, rows): (usize, usize),
    term: &Term<'_, E>,
) -> [[S::V; P]; R] {
    let (a, depth) = (term.a, term.depth);
    if depth == 0 {
        // Nobody asked where such a term would lie.
        return sum;
    }
    // A stride may be negative: then the first element is the last of the slice.
    let left = start(a.values, a.depth_stride, depth).wrapping_add(first * a.row_stride);
    let right = start(term.panel, term.panel_stride, depth);
    let panel_stride = term.panel_stride;
    if const { !S::FOR_SPEED } {
        let strides = (a.depth_stride, panel_stride);
        // SAFETY: both pointers are at the first of `depth` k, and the others are so far apart.
        return unsafe {
            let ahead = Ahead::NOTHING;
            add_each(s, sum, (left, a.row_stride), right, strides, depth, ahead)
        };
    }
    // Strides that are always the same are constants: then several k need little or no arithmetic on
    // addresses.
    // SAFETY: both pointers are at the first of `depth` k, and the others are so far apart: `Product::check`
    // let a term pass that is not packed only if its rows lie side by side.
    unsafe {
        if term.is_packed(P * S::LANES) {
            let strides = (1, (P * S::LANES) as isize);
            let mut ahead = Ahead::NOTHING;
            if const { ASKS_AHEAD && is_tall::<R, P>(S::REGISTERS) } && !term.ahead.is_empty() {
                ahead = Ahead::of(term, first..first + R, rows, P * size_of::<S::V>());
            }
            add_each(s, sum, (left, a.row_stride), right, strides, depth, ahead)
        } else {
            let strides = (a.depth_stride, panel_stride);
            add_each(s, sum, (left, 1), right, strides, depth, Ahead::NOTHING)
        }
    }
}

/// The lines that a tile asks for.
struct Ahead<E> {
    next: *const E,
    end: *const E,
    /// Every [`ASKED_EVERY`] k. All at once they would keep busy what brings the panel from the second-level cache.
    lines: usize,
}

impl<E: Element> Ahead<E> {
    const NOTHING: Self = Self {
        next: std::ptr::null(),
        end: std::ptr::null(),
        lines: 0,
    };

    /// What some rows of a product ask for, of a term whose panel has rows of so many bytes. Not inlined, for the
    /// sake of the module's size: whoever comes here has a far panel to go through.
    #[inline(never)]
    fn of(term: &Term<'_, E>, some: Range<usize>, rows: usize, panel_row: usize) -> Self {
        let each = term.ahead.len() / rows;
        let part = &term.ahead[some.start * each..some.end * each];
        let all = size_of_val(part).div_ceil(LINE);
        let half = (ASKED_EVERY / 2 * panel_row).div_ceil(LINE);
        let Range { start, end } = part.as_ptr_range();
        Self {
            next: start,
            end,
            lines: all.div_ceil((term.depth / ASKED_EVERY).max(1)).min(half),
        }
    }
}

/// Whether tiles ask for what is read next, wherever there is an instruction for it.
const ASKS_AHEAD: bool = cfg!(target_arch = "x86_64");

/// Whether a tile is one of those that many rows are cut into: at least half as high as can be. The others need
/// not ask, for the sake of the module's size.
const fn is_tall<const R: usize, const P: usize>(registers: usize) -> bool {
    P > 1 && 2 * R >= max_rows(registers, P)
}

/// Whether a register is left beside sums and operands. Otherwise the sums must stay
/// [in order](Simd::in_order).
const fn has_room<const R: usize, const P: usize>(registers: usize) -> bool {
    let operands = if R < P { R } else { P };
    R * P + operands + 1 < registers
}

/// `sum[r][p] + sum over k of a[r][k] * panel[k][p]`; what lies `ahead` is asked for evenly along the way, or as
/// much of it as half of the panel.
///
/// # Safety
/// * `left` and `right` are at the first of `depth` k, the others `strides` apart; at each they are valid
///   as [`add_one`] wants it.
#[inline(always)]
unsafe fn add_each<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    mut sum: [[S::V; P]; R],
    (mut left, row_stride): (*const E, usize),
    mut right: *const E,
    (depth_stride, panel_stride): (isize, isize),
    depth: usize,
    mut ahead: Ahead<E>,
) -> [[S::V; P]; R] {
    let mut left_over = depth / UNROLLED;
    while left_over > 0 {
        let mut at_once = left_over;
        if const { ASKS_AHEAD && is_tall::<R, P>(S::REGISTERS) } && ahead.lines > 0 {
            at_once = at_once.min(ASKED_EVERY / UNROLLED);
            for _ in 0..ahead.lines {
                s.prefetch_far(ahead.next);
                ahead.next = ahead.next.wrapping_add(LINE / size_of::<E>());
            }
            if ahead.next >= ahead.end {
                ahead.lines = 0;
            }
        }
        left_over -= at_once;
        // Several k at a time: what counts, moves pointers and forms addresses is then little beside the
        // multiply-adds.
        for _ in 0..at_once {
            for _ in 0..UNROLLED {
                // SAFETY: both pointers are at a k that is there.
                sum = unsafe { add_one(s, sum, (left, row_stride), right) };
                left = left.wrapping_offset(depth_stride);
                right = right.wrapping_offset(panel_stride);
            }
        }
    }
    for _ in 0..depth % UNROLLED {
        // SAFETY: both pointers are at a k that is there.
        sum = unsafe { add_one(s, sum, (left, row_stride), right) };
        left = left.wrapping_offset(depth_stride);
        right = right.wrapping_offset(panel_stride);
    }
    sum
}

/// How many k the product loop takes at a time.
pub(super) const UNROLLED: usize = 4;

/// How many k there are from one time that a tile asks for lines to the next. (On an Intel with AVX-512 16 were
/// up to a tenth slower where rows are few.)
const ASKED_EVERY: usize = 8;

/// `sum[r][p] + a[r] * panel[p]`.
///
/// # Safety
/// * `left` is valid for reading a value in each of the R rows, `row_stride` apart.
/// * `right` is valid for reading P * LANES values.
#[inline(always)]
unsafe fn add_one<E: Element, S: Simd<E>, const R: usize, const P: usize>(
    s: S,
    mut sum: [[S::V; P]; R],
    (left, row_stride): (*const E, usize),
    right: *const E,
) -> [[S::V; P]; R] {
    // SAFETY: the caller vouches for both.
    unsafe {
        if P >= R {
            let mut rows = [s.splat(E::ZERO); R];
            for r in 0..R {
                rows[r] = s.splat(*left.add(r * row_stride));
            }
            for p in 0..P {
                let weight = s.load_raw(right.add(p * S::LANES));
                for r in 0..R {
                    sum[r][p] = rows[r].mul_add(weight, sum[r][p]);
                    if const { !has_room::<R, P>(S::REGISTERS) } {
                        sum[r][p] = s.in_order(sum[r][p]);
                    }
                }
            }
        } else {
            let mut weights = [s.splat(E::ZERO); P];
            for p in 0..P {
                weights[p] = s.load_raw(right.add(p * S::LANES));
            }
            for r in 0..R {
                let row = s.splat(*left.add(r * row_stride));
                for p in 0..P {
                    sum[r][p] = row.mul_add(weights[p], sum[r][p]);
                    if const { !has_room::<R, P>(S::REGISTERS) } {
                        sum[r][p] = s.in_order(sum[r][p]);
                    }
                }
            }
        }
    }
    sum
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
