//! What the micro-kernels must give: the same sums in the same order, in plain loops.
//!
//! Whoever runs them says how the level multiplies and adds (`multiply_add`, of a, b and c in `a * b + c`),
//! so results are held to exact bits at any level. Operands have exactly as many values as a product needs: Miri sees any step beyond them.

use std::iter::repeat_n;
use std::ops::Range;

use rnncore::gemm::kernel::{Begin, Joint, MAX_VECTORS, Product, Rows, Term, max_rows, multiply};
use rnncore::gemm::pack::{Panels, columns_per_panel};
use rnncore::gemm::row::{GateProduct, RowProduct, add_row, multiply_row};
use rnncore::parallel::{Team, Watch};
use rnncore::simd::{Element, Simd, Vector};

/// `count` numbers between -1 and 1, none of them special.
pub fn numbers<E: Element>(count: usize, seed: usize) -> Vec<E> {
    let number = |k: usize| E::from_f64(((k * 7 + seed * 31) as f64 * 0.37 + 1.0).sin());
    (0..count).map(number).collect()
}

/// The index of step k of a walk of n: a negative stride begins at the far end.
fn index(stride: isize, n: usize, k: usize) -> usize {
    let steps = if stride < 0 { n - 1 - k } else { k };
    stride.unsigned_abs() * steps
}

// ---- Register tiles ------------------------------------------------------------------------------

/// As [`Begin`]; the values are among the operands.
#[derive(Clone, Copy, Debug)]
pub enum From {
    Zero,
    Sums,
    /// Rows so far apart.
    Rows(usize),
}

/// As [`Joint`]; the values are among the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    Add,
    Shift,
    Chain,
}

/// As [`Term`], without values.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    pub join: Join,
    pub depth: usize,
    pub row_stride: usize,
    pub depth_stride: isize,
    pub panel_stride: isize,
}

/// As [`Product`], without values.
#[derive(Clone, Debug)]
pub struct Tile {
    pub rows: usize,
    pub vectors: usize,
    pub begin: From,
    pub terms: Vec<Walk>,
    pub sums_stride: usize,
}

/// The values of a term.
#[derive(Clone, Debug)]
pub struct TermValues<E> {
    pub a: Vec<E>,
    pub panel: Vec<E>,
    pub enters: Vec<E>,
}

/// The values of a tile.
#[derive(Clone, Debug)]
pub struct Operands<E> {
    pub begin: Vec<E>,
    pub terms: Vec<TermValues<E>>,
    pub sums: Vec<E>,
}

impl Tile {
    fn shifts(&self) -> usize {
        let shifts = |walk: &&Walk| walk.join == Join::Shift;
        self.terms.iter().filter(shifts).count()
    }

    /// Exactly as many values as the product needs, on vectors of so many lanes.
    pub fn operands<E: Element>(&self, lanes: usize) -> Operands<E> {
        let (width, last) = (self.vectors * lanes, self.rows - 1);
        let begin = match self.begin {
            From::Rows(stride) => last * stride + width,
            _ => 0,
        };
        let term = |(seed, walk): (usize, &Walk)| {
            let far = |stride: isize| stride.unsigned_abs() * walk.depth.saturating_sub(1);
            // What is not walked need not be there.
            let walked = |len: usize| if walk.depth > 0 { len } else { 0 };
            let enters = if walk.join == Join::Shift { lanes } else { 0 };
            TermValues {
                a: numbers(
                    walked(far(walk.depth_stride) + last * walk.row_stride + 1),
                    10 + seed,
                ),
                panel: numbers(walked(far(walk.panel_stride) + width), 20 + seed),
                enters: numbers(enters, 30 + seed),
            }
        };
        Operands {
            begin: numbers(begin, 1),
            terms: self.terms.iter().enumerate().map(term).collect(),
            sums: numbers(last * self.sums_stride + width + self.shifts() * lanes, 2),
        }
    }

    /// By the kernel.
    pub fn multiply<E: Element, S: Simd<E>>(&self, s: S, operands: &mut Operands<E>) {
        let Operands { begin, terms, sums } = operands;
        let terms: Vec<_> = self
            .terms
            .iter()
            .zip(terms)
            .map(|(w, v)| w.term(v))
            .collect();
        let product = Product {
            rows: self.rows,
            vectors: self.vectors,
            begin: match self.begin {
                From::Zero => Begin::Zero,
                From::Sums => Begin::Sums,
                From::Rows(stride) => Begin::Rows(begin, stride),
            },
            terms: &terms,
            sums,
            sums_stride: self.sums_stride,
        };
        multiply(s, product);
    }

    /// By hand: what `sums` holds then.
    pub fn expected<E: Element>(
        &self,
        lanes: usize,
        operands: &Operands<E>,
        multiply_add: impl Fn(E, E, E) -> E,
    ) -> Vec<E> {
        let mut sums = operands.sums.clone();
        let width = self.vectors * lanes;
        for r in 0..self.rows {
            let to = &mut sums[r * self.sums_stride..][..width + self.shifts() * lanes];
            let mut sum = match self.begin {
                From::Zero => vec![E::ZERO; width],
                From::Sums => to[..width].to_vec(),
                From::Rows(stride) => operands.begin[r * stride..][..width].to_vec(),
            };
            let (mut at, mut chains) = (0, vec![]);
            for (walk, values) in self.terms.iter().zip(&operands.terms) {
                match walk.join {
                    Join::Add => {}
                    Join::Shift => {
                        to[at..at + lanes].copy_from_slice(&sum[..lanes]);
                        sum.drain(..lanes);
                        sum.extend_from_slice(&values.enters);
                        at += lanes;
                    }
                    Join::Chain => chains.push(std::mem::replace(&mut sum, vec![E::ZERO; width])),
                }
                for k in 0..walk.depth {
                    let a = values.a[r * walk.row_stride + index(walk.depth_stride, walk.depth, k)];
                    let row = &values.panel[index(walk.panel_stride, walk.depth, k)..][..width];
                    for (sum, &weight) in sum.iter_mut().zip(row) {
                        *sum = multiply_add(a, weight, *sum);
                    }
                }
            }
            chains.push(sum);
            for (column, to) in to[at..at + width].iter_mut().enumerate() {
                let chain = chains.iter().map(|chain| chain[column]);
                *to = chain.reduce(|sum, chain| sum + chain).expect("a chain");
            }
        }
        sums
    }
}

impl Walk {
    fn term<'a, E: Element>(&self, values: &'a TermValues<E>) -> Term<'a, E> {
        Term {
            joint: match self.join {
                Join::Add => Joint::Add,
                Join::Shift => Joint::Shift(&values.enters),
                Join::Chain => Joint::Chain,
            },
            depth: self.depth,
            a: Rows {
                values: &values.a,
                row_stride: self.row_stride,
                depth_stride: self.depth_stride,
            },
            panel: &values.panel,
            panel_stride: self.panel_stride,
            // Whatever is asked for, sums do not change.
            ahead: &values.panel[..values.panel.len() * (self.depth % 3) / 2],
        }
    }
}

/// The product loop takes four k at a time, and asks for what lies ahead every eight.
const DEPTHS: [usize; 6] = [0, 1, 3, 5, 13, 29];

/// How many [`strides`] there are.
const WAYS: usize = 7;

/// Walks over the left operand (from a row to the next, from k to k + 1) and the panel: row by row, by
/// columns, backwards, with gaps, on the spot.
fn strides(way: usize, depth: usize, rows: usize, width: usize) -> (usize, isize, isize) {
    let (by_row, panel) = (rows as isize, width as isize);
    [
        (depth, 1, panel),
        (depth + 1, 1, panel),
        (1, by_row, panel),
        (1, -by_row, -panel),
        (1, -(by_row + 2), -(panel + 3)),
        (1, 1, panel + 3),
        (1, 0, -1),
    ][way % WAYS]
}

/// Every register tile, and more rows than one has, from every beginning, with the terms that the drivers join and some more; each
/// meets every depth and every way to walk.
pub fn every_tile<E: Element, S: Simd<E>>(s: S, multiply_add: impl Fn(E, E, E) -> E + Copy) {
    use Join::{Add, Chain, Shift};
    const JOINS: [&[Join]; 10] = [
        &[],
        &[Add],
        &[Add, Add],
        &[Chain],
        &[Add, Chain],
        &[Add, Chain, Chain, Add],
        &[Shift],
        &[Add, Shift],
        &[Shift, Shift],
        &[Shift, Chain],
    ];
    let mut turn = 0;
    for vectors in 1..=MAX_VECTORS {
        let width = vectors * S::LANES;
        let most = max_rows(S::REGISTERS, vectors);
        for rows in (1..=most).chain([most + 1, 2 * most + 1]) {
            let begins = [From::Zero, From::Sums, From::Rows(0), From::Rows(width + 1)];
            let cases = begins
                .into_iter()
                .flat_map(|begin| JOINS.map(|joins| (begin, joins)))
                .filter(|(_, joins)| vectors < MAX_VECTORS || !joins.contains(&Shift))
                .flat_map(|case| repeat_n(case, WAYS));
            // Miri is slow: it follows a few of the cases, other ones for each tile.
            let step = if cfg!(miri) { 61 } else { 1 };
            let first = (13 * rows + 29 * vectors) % step;
            for (begin, joins) in cases.skip(first).step_by(step) {
                let walk = |(term, &join): (usize, &Join)| {
                    let depth = DEPTHS[(turn / WAYS + 2 * term) % DEPTHS.len()];
                    let (row_stride, depth_stride, panel_stride) =
                        strides(turn + term, depth, rows, width);
                    Walk {
                        join,
                        depth,
                        row_stride,
                        depth_stride,
                        panel_stride,
                    }
                };
                let tile = Tile {
                    rows,
                    vectors,
                    begin,
                    terms: joins.iter().enumerate().map(walk).collect(),
                    sums_stride: width + joins.len() * S::LANES + turn % 3,
                };
                let mut operands = tile.operands::<E>(S::LANES);
                let expected = tile.expected(S::LANES, &operands, multiply_add);
                tile.multiply(s, &mut operands);
                assert_eq!(operands.sums, expected, "{tile:?}");
                turn += 1;
            }
        }
    }
}

// ---- One row -------------------------------------------------------------------------------------

/// Products of one row that add to sums in registers: one, two and four at once, to every range of
/// vectors; the other vectors stay.
pub fn every_row<E: Element, S: Simd<E>>(s: S, multiply_add: impl Fn(E, E, E) -> E + Copy) {
    rows_of::<1, _, _>(s, multiply_add);
    rows_of::<2, _, _>(s, multiply_add);
    rows_of::<4, _, _>(s, multiply_add);
}

fn rows_of<const Q: usize, E: Element, S: Simd<E>>(
    s: S,
    multiply_add: impl Fn(E, E, E) -> E + Copy,
) {
    for vectors in [0..1, 0..2, 0..3, 0..4, 1..2, 1..4, 2..3, 2..4, 3..4, 2..2] {
        // Miri is slow: it follows some of the depths, other ones for each range.
        let step = if cfg!(miri) { 3 } else { 1 };
        let first = vectors.len() % step;
        for (turn, depth) in DEPTHS.into_iter().enumerate().skip(first).step_by(step) {
            row_of::<Q, E, S>(s, vectors.clone(), (depth, turn % 3), multiply_add);
        }
    }
}

/// `gap` numbers between what would be next to each other; without a gap the row is the same for all.
fn row_of<const Q: usize, E: Element, S: Simd<E>>(
    s: S,
    vectors: Range<usize>,
    (depth, gap): (usize, usize),
    multiply_add: impl Fn(E, E, E) -> E + Copy,
) {
    let width = vectors.len() * S::LANES;
    let a_stride = if gap > 0 { depth + gap } else { 0 };
    let panel_stride = width + gap;
    let panels_stride = depth * panel_stride + gap;
    let walked = |stride: usize, len: usize| if depth > 0 { (Q - 1) * stride + len } else { 0 };
    let a = numbers::<E>(walked(a_stride, depth), 1);
    let rows = depth.saturating_sub(1) * panel_stride;
    let panels = numbers::<E>(walked(panels_stride, rows + width), 2);

    let before = numbers::<E>(Q * MAX_VECTORS * S::LANES, 3);
    let mut expected = before.clone();
    for (q, row) in expected.chunks_mut(MAX_VECTORS * S::LANES).enumerate() {
        let own = &mut row[vectors.start * S::LANES..vectors.end * S::LANES];
        for (column, sum) in own.iter_mut().enumerate() {
            for k in 0..depth {
                let weight = panels[q * panels_stride + k * panel_stride + column];
                *sum = multiply_add(a[q * a_stride + k], weight, *sum);
            }
        }
    }

    let mut sums = [[s.splat(E::ZERO); MAX_VECTORS]; Q];
    let places = || (0..Q).flat_map(|q| (0..MAX_VECTORS).map(move |p| (q, p)));
    for ((q, p), from) in places().zip(before.chunks(S::LANES)) {
        sums[q][p] = s.load(from);
    }
    let product = RowProduct {
        depth,
        a: &a,
        a_stride,
        panels: &panels,
        panel_stride,
        panels_stride,
    };
    add_row(s, &mut sums, vectors.clone(), product);
    let mut got = before;
    for ((q, p), to) in places().zip(got.chunks_mut(S::LANES)) {
        sums[q][p].store(to);
    }
    assert_eq!(
        got, expected,
        "{Q} at {vectors:?}, depth {depth}, gap {gap}"
    );
}

/// Products of one row with one to four gates, of all panels and of some.
pub fn every_gate_product<E: Element, S: Simd<E>>(
    s: S,
    multiply_add: impl Fn(E, E, E) -> E + Copy,
) {
    let l = S::LANES;
    for gates in 1..=4 {
        for (turn, columns) in [
            1,
            l - 1,
            l,
            l + 1,
            4 * l,
            5 * l,
            6 * l + 1,
            7 * l,
            10 * l - 1,
            24 * l,
        ]
        .into_iter()
        .enumerate()
        {
            let depth = DEPTHS[(turn + gates) % DEPTHS.len()];
            gate_products_of(s, [gates, depth, columns], multiply_add);
        }
        gate_products_of(s, [gates, 0, l + 1], multiply_add);
    }
}

fn gate_products_of<E: Element, S: Simd<E>>(
    s: S,
    [gates, depth, columns]: [usize; 3],
    multiply_add: impl Fn(E, E, E) -> E + Copy,
) {
    let (a, matrix) = (
        numbers::<E>(gates * depth, 1),
        numbers::<E>(gates * depth * columns, 2),
    );
    let chain = |gate: usize, column: usize| {
        (gate * depth..(gate + 1) * depth).fold(E::ZERO, |sum, row| {
            multiply_add(a[row], matrix[row * columns + column], sum)
        })
    };
    let expected = |column: usize| {
        if column >= columns {
            return E::ZERO;
        }
        let chains = (0..gates).map(|gate| chain(gate, column));
        chains.reduce(|sum, chain| sum + chain).expect("a gate")
    };

    let watch = Watch::unattended();
    let panels = Panels::by_column(
        &Team::assemble(1, &watch),
        &matrix,
        &(0..gates).collect::<Vec<_>>(),
        (depth, columns),
        S::LANES,
        columns_per_panel(S::REGISTERS),
    )
    .expect("memory");
    let count = panels.count();
    let ranges = [0..count, count / 2..count, 0..count / 2];
    for (range, descending) in ranges
        .into_iter()
        .flat_map(|range| [(range.clone(), false), (range, true)])
    {
        let first = range.start * panels.row_len(0);
        let width = range.clone().map(|panel| panels.row_len(panel)).sum();
        let mut sums = numbers::<E>(width, 3);
        let product = GateProduct {
            gates,
            a: &a,
            panels: &panels,
            range: range.clone(),
            descending,
            sums: &mut sums,
        };
        multiply_row(s, product);
        let expected: Vec<E> = (first..first + width).map(expected).collect();
        assert_eq!(
            sums, expected,
            "{gates} gates, [{depth}, {columns}], panels {range:?}, descending: {descending}"
        );
    }
}
