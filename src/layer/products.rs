//! What has no recursion: the gradients of the parameters and of x, as products over a chunk of steps.
//!
//! ```text
//! dW += dpre' x        dU += dpre' (m*h')        db += column sums of dpre        dx = dpre W
//! ```
//!
//! They are shared over threads by output (gate rows of dW and dU, rows of dx), never along the sum, so
//! the bits do not depend on the number of threads. Sums over rows run in the order in which backward
//! meets the rows, last step first, so they do not depend on how steps are cut into chunks either.

use std::ops::Range;

use crate::cell::Spec;
use crate::error::Result;
use crate::gemm::kernel::{
    Begin, Joint, MAX_ROWS, MAX_VECTORS, Product, Rows, Term, max_rows, multiply, tiles,
};
use crate::gemm::pack::{Panels, columns_per_panel};
use crate::layer::weights::Lanes;
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::simd::{Element, Kernel, Simd, Vector};

/// A chunk whose dpre is smaller than this is read where it lies; a larger one is packed first, because
/// rows far apart waste the TLB. Between the 160 KB (AVX2) and 256 KB (AVX-512) measured best.
const DIRECT_BYTES: usize = 200 << 10;
/// Rows of the right operand so far apart are packed too.
const FAR_APART: usize = 2 << 10;
/// Part of a panel that should stay in L2 while rows pass over it.
const PANEL_BYTES: usize = 256 << 10;

/// Gradients of one direction's parameters, as PyTorch lays them out.
pub struct ParamGradients<'a, E> {
    /// [G*H, I]
    pub weight_ih: &'a mut [E],
    /// [G*H, H]
    pub weight_hh: &'a mut [E],
}

/// A chunk of steps: what backward left, and what forward had read.
#[derive(Clone, Copy)]
pub struct Chunk<'a, E> {
    /// [rows, slots, H]
    pub pre: &'a [E],
    /// [rows, I]
    pub input: &'a [E],
    /// [rows, H] m*h'
    pub operand: &'a [E],
    /// [rows, H] r*m*h', where there is a second stage
    pub reset_operand: &'a [E],
    /// Packed rows of the chunk.
    pub rows: usize,
    /// Whether backward met the rows from the first to the last.
    pub ascending: bool,
}

impl<E> Chunk<'_, E> {
    /// The k-th row that backward met.
    fn met(&self, k: usize) -> usize {
        if self.ascending { k } else { self.rows - 1 - k }
    }
}

/// Sizes that every product of a direction shares.
#[derive(Clone, Copy)]
pub struct Extent {
    /// H.
    pub hidden: usize,
    /// I of this layer.
    pub features: usize,
    /// Slots of the cell.
    pub slots: usize,
}

impl Extent {
    /// Columns of dpre that are packed side by side: whole vectors, and whole tiles of every usual height; or
    /// those of a single tile, which then come to the nearest cache from front to back, where there are enough
    /// panels of the right operand to pay for the packing. (From I + H = 512 on training was 0 to 3 % faster on a
    /// Zen 4 with AVX2, in float64 0 to 5 on a Zen 3, these products 8 to 13 % on an Intel with AVX-512; at 192
    /// neither. An operand of one vector then has lower tiles than it could have; beside H of 500 it is little.)
    #[inline(always)]
    fn block_columns<E: Element, S: Simd<E>>(self) -> usize {
        const ENOUGH: usize = 512;
        /// Bytes of the shortest vectors that this was measured with.
        const WIDE: usize = 32;
        let alone = size_of::<S::V>() >= WIDE && self.features + self.hidden >= ENOUGH;
        if alone {
            max_rows(S::REGISTERS, columns_per_panel(S::REGISTERS))
        } else {
            48
        }
    }
}

/// One thing to compute.
enum Work<'a, E> {
    /// out [m, n] += columns `pre` of dpre, transposed, times `right` [rows, n].
    Weights {
        pre: Range<usize>,
        right: &'a [E],
        n: usize,
        out: &'a mut [E],
    },
    /// out `[m]` += sums of the columns `pre` of dpre.
    Bias { pre: Range<usize>, out: &'a mut [E] },
    /// out [rows, I] = dpre W, or += when `add`.
    Input {
        rows: Range<usize>,
        panels: &'a Panels<E>,
        add: bool,
        out: &'a mut [E],
    },
}

/// One worker's part of the products of a chunk.
pub struct ProductShare<'a, E> {
    chunk: Chunk<'a, E>,
    extent: Extent,
    work: Vec<Work<'a, E>>,
    space: &'a mut ProductSpace<E>,
    /// The columns of dpre that `space.left` holds.
    packed_left: Range<usize>,
    meter: Meter<'a>,
}

/// The memory that one worker needs besides its results.
pub struct ProductSpace<E> {
    /// [m, rows] dpre, block by block.
    left: Buffer<E>,
    /// [panels at once, rows, panel width] the right operand.
    right: Buffer<E>,
    /// [tile rows, panel width] sums of a panel that is wider than what is left.
    sums: Buffer<E>,
}

impl<E: Element> ProductSpace<E> {
    /// Values of a panel that a first-level cache holds. A guess: on the Intel that panels at once were measured
    /// on it is 48 KB, and panels were 64.
    const IN_L1: usize = (32 << 10) / size_of::<E>();
    /// Values of several panels that should stay in L2.
    const IN_L2: usize = PANEL_BYTES / size_of::<E>();
    /// Values of dpre that L2 may keep from one panel to the next. Measured on a Zen 3, whose L2 has these 512 KB; for
    /// larger ones a guess.
    const LEFT_IN_L2: usize = (512 << 10) / size_of::<E>();

    /// Whether a block of dpre meets several panels before the next block does, where so many values of dpre are
    /// packed, and so many are a panel. A panel that L1 holds meets all blocks while it is there, which is best as
    /// long as L2 keeps the blocks until the next panel. Otherwise dpre should not come from afar for each panel; one
    /// that L1 does not hold comes from L2 for every tile in any case.
    fn meets_several(packed: usize, panel: usize) -> bool {
        panel > Self::IN_L1 || packed > Self::LEFT_IN_L2
    }

    /// How many panels, of so many values each, a block of dpre meets before the next block does, where so many
    /// values of dpre are packed.
    fn panels_a_block(&self, packed: usize, panel: usize) -> usize {
        if Self::meets_several(packed, panel) {
            (self.right.len() / panel).max(1)
        } else {
            1
        }
    }

    /// For chunks of at most `rows` rows, shared by `parts` workers.
    pub fn new(lanes: Lanes, rows: usize, extent: Extent, parts: usize) -> Result<Self> {
        let what = "the workspace of the weight gradients";
        let width = lanes.column_vectors() * lanes.lanes;
        // Shares are cut evenly, rounded up.
        let m = (extent.slots * extent.hidden).div_ceil(parts) + 1;
        let packed = if is_direct::<E>(rows, extent) {
            0
        } else {
            product(&[rows, m], what)?
        };
        let mut right = product(&[rows, width], what)?;
        if Self::meets_several(packed, right) {
            let panels = extent.features.max(extent.hidden).div_ceil(width);
            right = right.max(Self::IN_L2.min(right.saturating_mul(panels)));
        }
        Ok(Self {
            left: Buffer::stale(packed, what)?,
            right: Buffer::stale(right, what)?,
            sums: Buffer::stale(MAX_ROWS * MAX_VECTORS * lanes.lanes, what)?,
        })
    }
}

fn is_direct<E>(rows: usize, extent: Extent) -> bool {
    rows * extent.slots * extent.hidden * size_of::<E>() <= DIRECT_BYTES
}

/// Neighbouring slots whose rows of the weights are neighbours too, and that are all or none of them on
/// the input side: (slots, first gate).
fn runs(spec: &Spec, slots: Range<usize>) -> Vec<(Range<usize>, usize)> {
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some((run, gate)) if slot != spec.input && spec.gate[slot] == *gate + run.len() => {
                run.end = slot + 1;
            }
            _ => runs.push((slot..slot + 1, spec.gate[slot])),
        }
    }
    runs
}

/// What the products of a chunk write to.
pub struct Outputs<'a, E> {
    /// dW and dU.
    pub params: ParamGradients<'a, E>,
    /// [slots, H] sums of dpre, for the biases.
    pub bias: &'a mut [E],
    /// [rows, I] of the chunk.
    pub dx: &'a mut [E],
    /// Whether dx holds another direction's part already.
    pub add_dx: bool,
}

/// Cuts the products of a chunk into one share per space.
pub fn shares<'a, E: Element>(
    spec: &Spec,
    chunk: Chunk<'a, E>,
    extent: Extent,
    panels: &'a Panels<E>,
    outputs: Outputs<'a, E>,
    spaces: &'a mut [ProductSpace<E>],
    meter: impl Fn() -> Meter<'a>,
) -> Vec<ProductShare<'a, E>> {
    let (parts, hidden) = (spaces.len(), extent.hidden);
    let mut work: Vec<Vec<Work<'a, E>>> = (0..parts).map(|_| Vec::new()).collect();
    let Outputs {
        params,
        bias,
        dx,
        add_dx,
    } = outputs;

    let mut products = vec![];
    products.extend(
        runs(spec, 0..spec.input)
            .into_iter()
            .map(|run| (run, true, chunk.input)),
    );
    products.extend(
        runs(spec, spec.recurrent())
            .into_iter()
            .map(|run| (run, false, chunk.operand)),
    );
    products.extend(
        runs(spec, spec.candidate())
            .into_iter()
            .map(|run| (run, false, chunk.reset_operand)),
    );
    // By gate, so that each product takes the next rows of its weights; dW and dU of a gate one after
    // the other, because they often have the same dpre.
    products.sort_by_key(|((_, gate), is_input, _)| (*gate, !is_input));
    let (mut weight_ih, mut weight_hh) = (params.weight_ih, params.weight_hh);
    for ((slots, _), is_input, right) in products {
        let (rest, n) = if is_input {
            (&mut weight_ih, extent.features)
        } else {
            (&mut weight_hh, hidden)
        };
        let columns = slots.start * hidden..slots.end * hidden;
        for (part, pre) in cut(columns, parts) {
            let out = take(rest, pre.len() * n);
            work[part].push(Work::Weights { pre, right, n, out });
        }
    }
    let mut bias = bias;
    for (part, pre) in cut(0..extent.slots * hidden, parts) {
        let out = take(&mut bias, pre.len());
        work[part].push(Work::Bias { pre, out });
    }
    let mut dx = dx;
    for (part, rows) in cut(0..chunk.rows, parts) {
        let out = take(&mut dx, rows.len() * extent.features);
        work[part].push(Work::Input {
            rows,
            panels,
            add: add_dx,
            out,
        });
    }
    debug_assert!(spec.has_reset_stage() || chunk.reset_operand.is_empty());
    work.into_iter()
        .zip(spaces)
        .map(|(work, space)| ProductShare {
            chunk,
            extent,
            work,
            space,
            packed_left: 0..0,
            meter: meter(),
        })
        .collect()
}

/// Cuts a range into `parts` even pieces, in order.
fn cut(range: Range<usize>, parts: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let at = move |k: usize| range.start + range.len() * k / parts;
    (0..parts).map(move |part| (part, at(part)..at(part + 1)))
}

/// Takes the first `len` values off a slice.
fn take<'a, E>(rest: &mut &'a mut [E], len: usize) -> &'a mut [E] {
    let (taken, left) = std::mem::take(rest).split_at_mut(len);
    *rest = left;
    taken
}

impl<E: Element> Kernel<E> for &mut ProductShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        if self.chunk.rows == 0 {
            return Ok(());
        }
        for work in std::mem::take(&mut self.work) {
            match work {
                Work::Weights { pre, right, n, out } => self.weights(s, pre, right, n, out)?,
                Work::Bias { pre, out } => self.bias(s, pre, out)?,
                Work::Input {
                    rows,
                    panels,
                    add,
                    out,
                } => self.input(s, rows, panels, add, out)?,
            }
        }
        Ok(())
    }
}

impl<E: Element> ProductShare<'_, E> {
    /// From a row of dpre to the next.
    fn pre_stride(&self) -> usize {
        self.extent.slots * self.extent.hidden
    }

    /// dW or dU, or some rows of it:
    ///
    /// ```text
    /// for group of panels of `right`       one that stays in L1, or as many as stay in L2: see `meets_several`
    ///   for block of columns of dpre       rows of `out`
    ///     for panel in group
    ///       for tile in block
    ///         out[tile, panel] += sum over rows of the chunk, in the order met, of dpre * right
    /// ```
    #[inline(always)]
    fn weights<S: Simd<E>>(
        &mut self,
        s: S,
        pre: Range<usize>,
        right: &[E],
        n: usize,
        out: &mut [E],
    ) -> Result<()> {
        let (rows, m) = (self.chunk.rows, pre.len());
        if m == 0 {
            return Ok(());
        }
        let direct = is_direct::<E>(rows, self.extent);
        // A narrow operand has tall tiles. All panels are cut the same way, so the widest decides.
        let vectors = n.div_ceil(S::LANES).min(columns_per_panel(S::REGISTERS));
        let per_panel = vectors * S::LANES;
        let most = max_rows(S::REGISTERS, per_panel / S::LANES);
        if !direct {
            self.pack_left(s, &pre);
        }
        let sign = if self.chunk.ascending { 1 } else { -1 };
        let packed = if direct { 0 } else { rows * m };
        let at_once = self.space.panels_a_block(packed, rows * per_panel);
        for begin in (0..n).step_by(at_once * per_panel) {
            let group = begin..n.min(begin + at_once * per_panel);
            let panels = || group.clone().step_by(per_panel).enumerate();
            for (k, column) in panels() {
                let cut = Cut::of::<E, S>(n, per_panel, column);
                if cut.packed {
                    let from = (&right[column..], n);
                    let width = cut.vectors * S::LANES;
                    self.pack_right(s, from, (cut.columns, width), k * rows * per_panel);
                }
            }
            for block in blocks(m, self.extent.block_columns::<E, S>()) {
                // Directly read operands may run backwards; packed ones were packed that way.
                let (left, depth_stride) = if direct {
                    let stride = sign * self.pre_stride() as isize;
                    (&self.chunk.pre[pre.start + block.start..], stride)
                } else {
                    let block_len = block.len() as isize;
                    (&self.space.left[block.start * rows..], block_len)
                };
                for (k, column) in panels() {
                    let cut = Cut::of::<E, S>(n, per_panel, column);
                    let (panel, panel_stride): (&[E], isize) = if cut.packed {
                        let width = cut.vectors * S::LANES;
                        (&self.space.right[k * rows * per_panel..], width as isize)
                    } else {
                        (&right[column..], sign * n as isize)
                    };
                    for tile in tiles(block.len(), most) {
                        let a = Rows {
                            values: &left[tile.start..],
                            row_stride: 1,
                            depth_stride,
                        };
                        let (first, after) = (block.start + tile.start, block.start + tile.end);
                        // The sums of the next tile come from far away: ask for them now.
                        let (next, at) = if tile.end < block.len() {
                            (after, column)
                        } else if column + per_panel < group.end {
                            (block.start, column + per_panel)
                        } else {
                            (block.end, group.start)
                        };
                        for r in next..(next + tile.len()).min(m) {
                            s.prefetch(&out[r * n + at..][..per_panel.min(n - at)]);
                        }
                        multiply_into(
                            s,
                            (tile.len(), cut.vectors, cut.columns),
                            (rows, a),
                            (panel, panel_stride, &[]),
                            (&mut out[first * n + column..], n),
                            false,
                            &mut self.space.sums,
                        );
                    }
                }
                self.meter.spend(rows * block.len() * group.len())?;
            }
        }
        Ok(())
    }

    /// Blocks of dpre columns, row after row in the order met. Rows are taken a few at a time, so that
    /// reads stay on few pages and writes come in bursts.
    ///
    /// Tiles of one block share its lines, where blocks are wider than tiles.
    #[inline(always)]
    fn pack_left<S: Simd<E>>(&mut self, s: S, pre: &Range<usize>) {
        const BURST: usize = 16;
        if self.packed_left == *pre {
            return;
        }
        self.packed_left = pre.clone();
        let (chunk, stride) = (self.chunk, self.pre_stride());
        for first in (0..chunk.rows).step_by(BURST) {
            for block in blocks(pre.len(), self.extent.block_columns::<E, S>()) {
                let to = &mut self.space.left[block.start * chunk.rows..];
                // A whole vector where the block has room for it: what is too much the next rows overwrite.
                let whole = block.len() < S::LANES && block.start + S::LANES <= pre.len();
                for k in first..(first + BURST).min(chunk.rows) {
                    let from = &chunk.pre[chunk.met(k) * stride + pre.start + block.start..];
                    let to = &mut to[k * block.len()..];
                    if whole && k * block.len() + S::LANES <= chunk.rows * block.len() {
                        s.load(from).store(to);
                    } else {
                        copy(s, &from[..block.len()], to);
                    }
                }
            }
        }
    }

    /// Some columns of the right operand, row after row in the order met, zeros beyond; to `at` in `space.right`.
    #[inline(always)]
    fn pack_right<S: Simd<E>>(
        &mut self,
        s: S,
        (right, stride): (&[E], usize),
        (columns, width): (usize, usize),
        at: usize,
    ) {
        for k in 0..self.chunk.rows {
            let from = self.chunk.met(k) * stride;
            let to = &mut self.space.right[at + k * width..][..width];
            copy(s, &right[from..from + columns], to);
            to[columns..].fill(E::ZERO);
        }
    }

    #[inline(always)]
    fn bias<S: Simd<E>>(&mut self, s: S, pre: Range<usize>, out: &mut [E]) -> Result<()> {
        // A few columns at a time, so that their sums stay in registers.
        const VECTORS: usize = 4;
        let whole = out.len() / (VECTORS * S::LANES) * VECTORS * S::LANES;
        let stride = self.pre_stride();
        for column in (0..whole).step_by(VECTORS * S::LANES) {
            let mut sums = [s.splat(E::ZERO); VECTORS];
            for v in 0..VECTORS {
                sums[v] = s.load(&out[column + v * S::LANES..]);
            }
            for k in 0..self.chunk.rows {
                let from = self.chunk.met(k) * stride + pre.start + column;
                let row = &self.chunk.pre[from..from + VECTORS * S::LANES];
                for v in 0..VECTORS {
                    sums[v] = sums[v] + s.load(&row[v * S::LANES..]);
                }
            }
            for v in 0..VECTORS {
                sums[v].store(&mut out[column + v * S::LANES..]);
            }
        }
        for column in (whole..out.len()).step_by(S::LANES) {
            let end = out.len().min(column + S::LANES);
            let mut sum = s.load_partial(&out[column..end]);
            for k in 0..self.chunk.rows {
                let from = self.chunk.met(k) * stride + pre.start;
                sum = sum + s.load_partial(&self.chunk.pre[from + column..from + end]);
            }
            sum.store_partial(&mut out[column..end]);
        }
        self.meter.spend(self.chunk.rows * pre.len())
    }

    #[inline(always)]
    fn input<S: Simd<E>>(
        &mut self,
        s: S,
        rows: Range<usize>,
        panels: &Panels<E>,
        add: bool,
        out: &mut [E],
    ) -> Result<()> {
        let (stride, n) = (self.pre_stride(), self.extent.features);
        for panel in 0..panels.count() {
            let vectors = panels.vectors(panel);
            let width = vectors * S::LANES;
            let column = panel * panels.vectors(0) * S::LANES;
            let columns = width.min(n - column);
            let block = (PANEL_BYTES / (width * size_of::<E>())).clamp(1, panels.depth().max(1));
            for begin in (0..panels.depth()).step_by(block) {
                let depth = block.min(panels.depth() - begin);
                let weights = &panels.from_panel(panel)[begin * width..];
                // As much, a block further on.
                let next = (begin + block) * width..(begin + block + depth) * width;
                let next = if panels.are_far() {
                    panels.ahead(panel, next)
                } else {
                    &[]
                };
                let at = |row: usize| next.len() * row / rows.len();
                for tile in tiles(rows.len(), max_rows(S::REGISTERS, vectors)) {
                    let values = &self.chunk.pre[(rows.start + tile.start) * stride + begin..];
                    let a = Rows {
                        values,
                        row_stride: stride,
                        depth_stride: 1,
                    };
                    let to = &mut out[tile.start * n + column..];
                    let shape = (tile.len(), vectors, columns);
                    let fresh = begin == 0 && !add;
                    multiply_into(
                        s,
                        shape,
                        (depth, a),
                        (weights, width as isize, &next[at(tile.start)..at(tile.end)]),
                        (to, n),
                        fresh,
                        &mut self.space.sums,
                    );
                }
                self.meter.spend(rows.len() * depth * width)?;
            }
        }
        Ok(())
    }
}

/// A panel of the right operand.
struct Cut {
    /// Those that exist.
    columns: usize,
    vectors: usize,
    /// Whether it is packed before it is read.
    packed: bool,
}

impl Cut {
    /// The panel from `column` on, of `per_panel` columns of n at most.
    #[inline(always)]
    fn of<E: Element, S: Simd<E>>(n: usize, per_panel: usize, column: usize) -> Self {
        let columns = per_panel.min(n - column);
        let vectors = columns.div_ceil(S::LANES);
        let whole = columns == vectors * S::LANES;
        let packed = !whole || n * size_of::<E>() >= FAR_APART;
        Self {
            columns,
            vectors,
            packed,
        }
    }
}

/// Cuts columns of dpre into blocks.
#[inline(always)]
fn blocks(columns: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns)
        .step_by(block)
        .map(move |begin| begin..columns.min(begin + block))
}

/// A short copy. One of a length that the compiler does not know would be a call.
#[inline(always)]
fn copy<E: Element, S: Simd<E>>(s: S, from: &[E], to: &mut [E]) {
    let to = &mut to[..from.len()];
    let whole = from.len() / S::LANES * S::LANES;
    for k in (0..whole).step_by(S::LANES) {
        s.load(&from[k..]).store(&mut to[k..]);
    }
    if whole < from.len() {
        s.load_partial(&from[whole..])
            .store_partial(&mut to[whole..]);
    }
}

/// A tile's product straight into a matrix, or by way of `space` where the panel is wider than what is
/// left of the matrix: (rows, vectors, columns of them that exist), (depth, left), (right, its stride, what
/// follows it), (to, stride).
#[inline(always)]
fn multiply_into<E: Element, S: Simd<E>>(
    s: S,
    (rows, vectors, columns): (usize, usize, usize),
    (depth, a): (usize, Rows<'_, E>),
    (panel, panel_stride, ahead): (&[E], isize, &[E]),
    (to, stride): (&mut [E], usize),
    fresh: bool,
    space: &mut [E],
) {
    let width = vectors * S::LANES;
    let whole = columns == width;
    if !whole && !fresh {
        for r in 0..rows {
            space[r * width..][..columns].copy_from_slice(&to[r * stride..][..columns]);
        }
    }
    let (sums, sums_stride) = if whole {
        (&mut *to, stride)
    } else {
        (&mut *space, width)
    };
    multiply(
        s,
        Product {
            rows,
            vectors,
            begin: if fresh { Begin::Zero } else { Begin::Sums },
            terms: &[Term {
                joint: Joint::Add,
                depth,
                a,
                panel,
                panel_stride,
                ahead,
            }],
            sums,
            sums_stride,
        },
    );
    if !whole {
        for r in 0..rows {
            to[r * stride..][..columns].copy_from_slice(&space[r * width..][..columns]);
        }
    }
}
