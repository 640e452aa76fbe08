//! How fast the parts are, and the whole: the processor's peak, register tiles, products of weights that come from
//! afar, activations, the cells' equations, layers, streaming steps.
//!
//! ```text
//! cargo bench --bench kernels                    everything
//! cargo bench --bench kernels -- 'tile/avx2'     by name
//! cargo bench --bench kernels -- --quick         in a minute or two
//! ```
//!
//! Every answer is proved before it is timed. Products and layers count floating-point operations (a
//! multiply-add is two), so a rate in Gelem/s is GFLOP/s; activations count values, cells units. One
//! thread, float32. `RNNCORE_TEST_LEVELS` chooses the levels, as for the tests.

#[path = "../tests/support/levels.rs"]
mod levels;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/support/naive.rs"]
mod naive;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/support/problem.rs"]
mod problem;

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use levels::levels;
use problem::{Arrays, Case, Setup, assert_close, compute, slices, tolerance};
use rnncore::cell::{
    Cell, Forward, GruAfter, GruBefore, Lstm, MAX_SLOTS, MguAfter, MguBefore, Rnn, Saved, State,
    Update,
};
use rnncore::gemm::kernel::{Begin, Joint, MAX_VECTORS, Product, Rows, Term, max_rows, multiply};
use rnncore::gemm::pack::{Panels, columns_per_panel};
use rnncore::gemm::row::{GateProduct, RowProduct, add_row, multiply_row};
use rnncore::layer::{BackwardOptions, CellKind, ForwardOptions, Frozen, Stack, Storage, Tape};
use rnncore::math::{sigmoid, tanh};
use rnncore::parallel::{Team, Watch};
use rnncore::peak::multiply_adds;
use rnncore::simd::{Element, Kernel, Level, Simd, Vector};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    peak(&mut criterion);
    tiles(&mut criterion);
    far_panels(&mut criterion);
    row_kernels(&mut criterion);
    activations(&mut criterion);
    cells(&mut criterion);
    layers(&mut criterion);
    steps(&mut criterion);
    criterion.final_summary();
}

/// Lanes and registers of a level.
struct Ask;

impl Kernel<f32> for Ask {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd<f32>>(self, _s: S) -> (usize, usize) {
        (S::LANES, S::REGISTERS)
    }
}

/// Numbers between -1 and 1, none of them special.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|k| (k as f32 * 0.7).sin()).collect()
}

fn assert_near(got: &[f32], expected: &[f64], tolerance: f64, context: &str) {
    assert_eq!(got.len(), expected.len(), "{context}");
    let scale = expected
        .iter()
        .fold(1f64, |most, value| most.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        let distance = (f64::from(*got) - expected).abs();
        assert!(
            distance <= tolerance * scale,
            "{got} instead of {expected}: {context}"
        );
    }
}

// ---- The peak ------------------------------------------------------------------------------------

/// Rounds of multiply-adds in a timed call.
const ROUNDS: usize = 100_000;

/// What the rates of products are held against.
fn peak(criterion: &mut Criterion) {
    let group = &mut criterion.benchmark_group("peak");
    let watch = Watch::unattended();
    for level in levels() {
        let run = || multiply_adds::<f32>(level, ROUNDS, 1, &watch).expect("nobody stops it");
        group.throughput(Throughput::Elements(2 * run()));
        group.bench_function(level.name(), |bencher| bencher.iter(run));
    }
}

// ---- Products ------------------------------------------------------------------------------------

/// k of a product: a panel of four vectors of 16 stays in L1.
const DEPTH: usize = 128;
/// Products in a timed call, so that entering the level does not count.
const CALLS: usize = 64;

/// `sums` [rows, columns] = a [rows, depth] times a packed panel [depth, columns], while tiles ask for what is `ahead`.
#[inline(always)]
fn multiply_panel<S: Simd<f32>>(
    s: S,
    depth: usize,
    a: &[f32],
    (panel, ahead): (&[f32], &[f32]),
    sums: &mut [f32],
) {
    let width = panel.len() / depth;
    let term = Term {
        joint: Joint::Add,
        depth,
        a: Rows {
            values: a,
            row_stride: depth,
            depth_stride: 1,
        },
        panel,
        panel_stride: width as isize,
        ahead,
    };
    let product = Product {
        rows: a.len() / depth,
        vectors: width / S::LANES,
        begin: Begin::Zero,
        terms: &[term],
        sums,
        sums_stride: width,
    };
    multiply(s, product);
}

/// One tile, over and over.
struct Tiles<'a> {
    a: &'a [f32],
    panel: &'a [f32],
    sums: &'a mut [f32],
    calls: usize,
}

impl Kernel<f32> for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        for _ in 0..self.calls {
            multiply_panel(s, DEPTH, self.a, (self.panel, &[]), self.sums);
        }
    }
}

/// a [rows, depth] times a panel [depth, columns].
fn expected_product(a: &[f32], panel: &[f32], depth: usize) -> Vec<f64> {
    let (rows, width) = (a.len() / depth, panel.len() / depth);
    let mut sums = vec![0.0; rows * width];
    for (k, sum) in sums.iter_mut().enumerate() {
        let (row, column) = (k / width, k % width);
        *sum = (0..depth)
            .map(|k| f64::from(a[row * depth + k]) * f64::from(panel[k * width + column]))
            .sum();
    }
    sums
}

fn tiles(criterion: &mut Criterion) {
    for level in levels() {
        let (lanes, registers) = f32::dispatch(level, Ask);
        let mut group = criterion.benchmark_group(format!("tile/{}", level.name()));
        for vectors in 1..=4 {
            let (rows, width) = (max_rows(registers, vectors), vectors * lanes);
            let (a, panel, mut sums) = (
                numbers(rows * DEPTH),
                numbers(DEPTH * width),
                vec![0.0; rows * width],
            );
            let run = |sums: &mut [f32], calls| {
                f32::dispatch(
                    level,
                    Tiles {
                        a: &a,
                        panel: &panel,
                        sums,
                        calls,
                    },
                );
            };
            run(&mut sums, 1);
            assert_near(
                &sums,
                &expected_product(&a, &panel, DEPTH),
                1e-5,
                level.name(),
            );
            group.throughput(Throughput::Elements(
                (2 * CALLS * rows * DEPTH * width) as u64,
            ));
            group.bench_function(
                BenchmarkId::from_parameter(format!("{rows}x{vectors}")),
                |bencher| {
                    bencher.iter(|| run(black_box(&mut sums), CALLS));
                },
            );
        }
    }
}

/// k of a panel that comes from afar.
const FAR_DEPTH: usize = 512;
/// Bytes of all such panels: more than a second-level cache holds, and less than most third-level ones.
const FAR: usize = 8 << 20;

/// Some rows through far panels of four vectors, always from the first to the last.
struct FarPanels<'a> {
    a: &'a [f32],
    panels: &'a [f32],
    sums: &'a mut [f32],
    /// Whether tiles ask for the next panel.
    asking: bool,
}

impl Kernel<f32> for FarPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        let width = MAX_VECTORS * S::LANES;
        let mut panels = self.panels.chunks_exact(FAR_DEPTH * width).peekable();
        while let Some(panel) = panels.next() {
            let ahead = if self.asking { panels.peek() } else { None };
            let ahead = ahead.copied().unwrap_or_default();
            multiply_panel(s, FAR_DEPTH, self.a, (panel, ahead), self.sums);
        }
    }
}

fn far_panels(criterion: &mut Criterion) {
    let panels = numbers(FAR / size_of::<f32>());
    for level in levels() {
        let width = MAX_VECTORS * f32::dispatch(level, Ask).0;
        let mut group = criterion.benchmark_group(format!("far/{}", level.name()));
        for rows in [16, 48, 128] {
            let (a, mut sums) = (numbers(rows * FAR_DEPTH), vec![0.0; rows * width]);
            let last = &panels[panels.len() - FAR_DEPTH * width..];
            let expected = expected_product(&a, last, FAR_DEPTH);
            group.throughput(Throughput::Elements((2 * rows * panels.len()) as u64));
            for (name, asking) in [("asking", true), ("silent", false)] {
                let run = |sums: &mut [f32]| {
                    let (a, panels) = (&a, &panels);
                    f32::dispatch(
                        level,
                        FarPanels {
                            a,
                            panels,
                            sums,
                            asking,
                        },
                    );
                };
                run(&mut sums);
                // Each panel overwrites the sums: those of the last one are left.
                assert_near(&sums, &expected, 1e-5, level.name());
                group.bench_function(format!("{rows} rows/{name}"), |bencher| {
                    bencher.iter(|| run(black_box(&mut sums)));
                });
            }
        }
    }
}

/// One row with Q panels of P vectors at once, whose sums are in registers.
struct PanelRow<'a, const Q: usize, const P: usize> {
    a: &'a [f32],
    panels: &'a [f32],
    sums: &'a mut [f32],
    calls: usize,
}

impl<const Q: usize, const P: usize> Kernel<f32> for PanelRow<'_, Q, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        let width = P * S::LANES;
        for _ in 0..self.calls {
            let mut sums = [[s.splat(0.0); MAX_VECTORS]; Q];
            let product = RowProduct {
                depth: DEPTH,
                // Or all calls would be one: they are inlined here.
                a: black_box(self.a),
                a_stride: 0,
                panels: self.panels,
                panel_stride: width,
                panels_stride: DEPTH * width,
            };
            add_row(s, &mut sums, 0..P, product);
            for q in 0..Q {
                for p in 0..P {
                    sums[q][p].store(&mut self.sums[q * width + p * S::LANES..]);
                }
            }
        }
    }
}

/// Forward: panels of several units.
fn panel_row<const Q: usize, const P: usize>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    level: Level,
) {
    let width = P * f32::dispatch(level, Ask).0;
    let (a, panels, mut sums) = (
        numbers(DEPTH),
        numbers(Q * DEPTH * width),
        vec![0.0; Q * width],
    );
    let run = |sums: &mut [f32], calls| {
        let (a, panels) = (&a, &panels);
        f32::dispatch(
            level,
            PanelRow::<Q, P> {
                a,
                panels,
                sums,
                calls,
            },
        );
    };
    run(&mut sums, 1);
    let one = |panel| expected_product(&a, panel, DEPTH);
    let expected: Vec<f64> = panels.chunks(DEPTH * width).flat_map(one).collect();
    assert_near(&sums, &expected, 1e-5, level.name());
    group.throughput(Throughput::Elements((2 * CALLS * Q * DEPTH * width) as u64));
    group.bench_function(BenchmarkId::from_parameter(format!("{Q}x{P}")), |bencher| {
        bencher.iter(|| run(black_box(&mut sums), CALLS));
    });
}

/// One row with a matrix of gates.
struct GateRow<'a> {
    gates: usize,
    a: &'a [f32],
    panels: &'a Panels<f32>,
    sums: &'a mut [f32],
}

impl Kernel<f32> for GateRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        let product = GateProduct {
            gates: self.gates,
            a: self.a,
            panels: self.panels,
            range: 0..self.panels.count(),
            descending: false,
            sums: self.sums,
        };
        multiply_row(s, product);
    }
}

/// Backward: the gates of `hidden` units, as many k as columns.
fn gate_row(group: &mut BenchmarkGroup<'_, WallTime>, level: Level, gates: usize, hidden: usize) {
    let rows = gates * hidden;
    let (a, matrix) = (numbers(rows), numbers(rows * hidden));
    let watch = Watch::unattended();
    let (team, (lanes, registers)) = (Team::assemble(1, &watch), f32::dispatch(level, Ask));
    let blocks: Vec<usize> = (0..gates).collect();
    let panels = Panels::by_column(
        &team,
        &matrix,
        &blocks,
        (hidden, hidden),
        lanes,
        columns_per_panel(registers),
    )
    .expect("memory");
    // Whole vectors: all of them divide `hidden`.
    let mut sums = vec![0.0; hidden];
    let run = |sums: &mut [f32]| {
        let (a, panels) = (&a, &panels);
        f32::dispatch(
            level,
            GateRow {
                gates,
                a,
                panels,
                sums,
            },
        );
    };
    run(&mut sums);
    let sum = |column: usize| {
        let term = |row: usize| f64::from(a[row]) * f64::from(matrix[row * hidden + column]);
        (0..rows).map(term).sum()
    };
    let expected: Vec<f64> = (0..hidden).map(sum).collect();
    assert_near(&sums, &expected, 1e-5, level.name());
    group.throughput(Throughput::Elements((2 * rows * hidden) as u64));
    let name = format!("{gates} gates/{hidden}");
    group.bench_function(name, |bencher| bencher.iter(|| run(black_box(&mut sums))));
}

fn row_kernels(criterion: &mut Criterion) {
    for level in levels() {
        let group = &mut criterion.benchmark_group(format!("row/{}", level.name()));
        // As many panels as the drivers take.
        panel_row::<1, 4>(group, level);
        panel_row::<2, 3>(group, level);
        panel_row::<4, 1>(group, level);
        panel_row::<4, 2>(group, level);
        panel_row::<4, 3>(group, level);
        panel_row::<2, 4>(group, level);
        for gates in 1..=4 {
            gate_row(group, level, gates, 128);
            gate_row(group, level, gates, 512);
        }
    }
}

// ---- Activations ---------------------------------------------------------------------------------

#[derive(Clone, Copy)]
enum Activation {
    Sigmoid,
    Tanh,
}

impl Activation {
    fn exact(self, x: f64) -> f64 {
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
        }
    }
}

struct Activate<'a> {
    which: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel<f32> for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        for (x, y) in self
            .x
            .chunks_exact(S::LANES)
            .zip(self.y.chunks_exact_mut(S::LANES))
        {
            let x = s.load(x);
            let result = match self.which {
                Activation::Sigmoid => sigmoid(s, x),
                Activation::Tanh => tanh(s, x),
            };
            result.store(y);
        }
    }
}

fn activations(criterion: &mut Criterion) {
    let x: Vec<f32> = numbers(4096).iter().map(|x| 6.0 * x).collect();
    let mut y = vec![0.0; x.len()];
    let both = [("sigmoid", Activation::Sigmoid), ("tanh", Activation::Tanh)];
    for level in levels() {
        let mut group = criterion.benchmark_group(format!("activation/{}", level.name()));
        for (name, which) in both {
            let run = |y: &mut [f32]| f32::dispatch(level, Activate { which, x: &x, y });
            run(&mut y);
            let expected: Vec<f64> = x.iter().map(|&x| which.exact(f64::from(x))).collect();
            assert_near(&y, &expected, 2e-7, name);
            group.throughput(Throughput::Elements(x.len() as u64));
            group.bench_function(name, |bencher| bencher.iter(|| run(black_box(&mut y))));
        }
    }
}

// ---- Cells ---------------------------------------------------------------------------------------

/// Units of a cell whose equations are timed. At 1024 the twelve arrays would lie 4 KB apart, all of a unit in one set
/// of a first-level cache, which often has eight ways.
const UNITS: usize = 1008;

/// [MAX_SLOTS, UNITS] slots, and [UNITS] h and c.
struct Values<E> {
    slots: Vec<E>,
    h: Vec<E>,
    c: Vec<E>,
}

impl<E: Element> Values<E> {
    fn new() -> Self {
        let cast = |values: Vec<f32>| {
            values
                .iter()
                .map(|&value| E::from_f64(f64::from(value)))
                .collect()
        };
        Self {
            slots: cast(numbers(MAX_SLOTS * UNITS)),
            h: cast(numbers(UNITS)),
            c: cast(numbers(UNITS)),
        }
    }
}

/// The equations of one step, forward and, with what that saved, back.
struct Equations<'a, E, C> {
    cell: C,
    from: &'a Values<E>,
    to: &'a mut Values<E>,
    backward: bool,
}

impl<E: Element, C: Cell> Kernel<E> for Equations<'_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let (Values { slots, h, c }, to) = (self.from, self.to);
        for unit in (0..UNITS).step_by(S::LANES) {
            let mut pre = [s.splat(E::ZERO); MAX_SLOTS];
            for slot in 0..MAX_SLOTS {
                pre[slot] = s.load(&slots[slot * UNITS + unit..]);
            }
            let before = State {
                h: s.load(&h[unit..]),
                c: s.load(&c[unit..]),
            };
            let (pre, _) = self.cell.reset(s, pre, before.h);
            let Forward {
                mut saved,
                mut state,
            } = self.cell.forward(s, pre, before);
            if self.backward {
                let output = state.h;
                let back = self.cell.backward(
                    s,
                    Saved {
                        slots: saved,
                        before,
                        output,
                    },
                    state,
                );
                (saved, state) = (back.pre, back.before);
            }
            for slot in 0..C::SLOTS {
                saved[slot].store(&mut to.slots[slot * UNITS + unit..]);
            }
            state.h.store(&mut to.h[unit..]);
            state.c.store(&mut to.c[unit..]);
        }
    }
}

/// One step of one cell. Its answer is that of the same equations in float64; the equations themselves
/// are held against the reference by the layers below.
fn one_cell<C: Cell>(group: &mut BenchmarkGroup<'_, WallTime>, level: Level, name: &str, cell: C) {
    let portable = Level::named("portable").expect("portable is everywhere");
    let (from, mut to) = (Values::<f32>::new(), Values::<f32>::new());
    let (exact_from, mut exact) = (Values::<f64>::new(), Values::<f64>::new());
    for (what, backward) in [("forward", false), ("forward and backward", true)] {
        f64::dispatch(
            portable,
            Equations {
                cell,
                from: &exact_from,
                to: &mut exact,
                backward,
            },
        );
        let run = |to: &mut Values<f32>| {
            f32::dispatch(
                level,
                Equations {
                    cell,
                    from: &from,
                    to,
                    backward,
                },
            )
        };
        run(&mut to);
        for (got, exact) in [
            (&to.slots, &exact.slots),
            (&to.h, &exact.h),
            (&to.c, &exact.c),
        ] {
            assert_near(got, exact, 1e-6, name);
        }
        group.throughput(Throughput::Elements(UNITS as u64));
        group.bench_function(format!("{name}/{what}"), |bencher| {
            bencher.iter(|| run(black_box(&mut to)))
        });
    }
}

fn cells(criterion: &mut Criterion) {
    let update = Update::Keep;
    for level in levels() {
        let group = &mut criterion.benchmark_group(format!("cell/{}", level.name()));
        one_cell(group, level, "rnn", Rnn { relu: false });
        one_cell(group, level, "lstm", Lstm);
        one_cell(group, level, "gru-after", GruAfter { update });
        one_cell(group, level, "gru-before", GruBefore { update });
        one_cell(group, level, "mgu-after", MguAfter { update });
        one_cell(group, level, "mgu-before", MguBefore { update });
    }
}

// ---- Layers --------------------------------------------------------------------------------------

/// T, B, I, H: a small stream, a usual layer, a large one.
const SIZES: [[usize; 4]; 3] = [[100, 1, 16, 32], [100, 32, 64, 128], [50, 64, 512, 512]];

fn case(cell: CellKind, [time, batch, input, hidden]: [usize; 4]) -> Case {
    Case {
        cell,
        time,
        batch,
        input,
        hidden,
        layers: 1,
        merge: None,
        bias: true,
        dropout: false,
        ragged: false,
        given: [true; 3],
        seed: 7,
    }
}

/// Forward as in inference, and forward and backward as in training.
fn one_layer(
    group: &mut BenchmarkGroup<'_, WallTime>,
    level: Level,
    name: &str,
    cell: CellKind,
    sizes: [usize; 4],
) {
    let [t, b, i, h] = sizes;
    // The reference takes its time: two steps of a few rows go through the same kernels.
    let small = case(cell, [2, b.min(13), i, h]).problem::<f32>();
    let setup = Setup::plain(level);
    let got = compute::<f32>(&small, setup);
    assert_close(&got, &naive::solve(&small).arrays, tolerance::<f32>(), name);

    let problem = case(cell, sizes).problem::<f32>();
    let (stack, arrays) = (
        Stack::new(problem.config.clone()).expect("a layer"),
        Arrays::<f32>::of(&problem, false),
    );
    let (params, execution) = (slices(&arrays.params), setup.execution(Watch::unattended()));
    let forward = |training| {
        let options = ForwardOptions {
            training,
            ..ForwardOptions::default()
        };
        stack
            .forward(
                &execution,
                &params,
                arrays.input(&problem, false),
                None,
                options,
            )
            .expect("forward")
    };
    let backward = |tape: &Tape<f32>| {
        let (dy, options) = (arrays.dy.as_deref(), BackwardOptions::default());
        stack
            .backward(&execution, &params, tape, dy, &[], options)
            .expect("backward")
    };
    let operations = 2 * t * b * naive::gate_names(cell).len() * h * (i + h);
    group.throughput(Throughput::Elements(operations as u64));
    let size = format!("{t},{b},{i},{h}");
    group.bench_function(format!("{name}/forward/{size}"), |bencher| {
        bencher.iter(|| forward(false))
    });
    group.throughput(Throughput::Elements(3 * operations as u64));
    group.bench_function(format!("{name}/training/{size}"), |bencher| {
        bencher.iter(|| backward(forward(true).tape.as_ref().expect("a tape")));
    });
}

fn layers(criterion: &mut Criterion) {
    let gru = CellKind::Gru {
        reset_after: true,
        update: Update::Keep,
    };
    let cells = [
        ("rnn", CellKind::Rnn { relu: false }),
        ("lstm", CellKind::Lstm),
        ("gru", gru),
    ];
    // Where there is anything better, nobody runs layers on the portable level.
    let chosen = levels();
    for level in chosen
        .iter()
        .filter(|level| chosen.len() == 1 || level.name() != "portable")
    {
        let group = &mut criterion.benchmark_group(format!("layer/{}", level.name()));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2));
        for (sizes, (name, cell)) in SIZES
            .iter()
            .flat_map(|sizes| cells.map(|cell| (sizes, cell)))
        {
            one_layer(group, *level, name, cell, *sizes);
        }
    }
}

// ---- Streaming steps -----------------------------------------------------------------------------

/// I and H of a stream.
const STREAMS: [[usize; 2]; 3] = [[16, 32], [64, 128], [256, 512]];
/// Steps that a stream is proved on.
const PROOF: usize = 5;

/// One step of one frozen stream. Its bits are those of the whole pass.
fn one_stream(
    group: &mut BenchmarkGroup<'_, WallTime>,
    level: Level,
    name: &str,
    cell: CellKind,
    [i, h]: [usize; 2],
) {
    let problem = case(cell, [PROOF, 1, i, h]).problem::<f32>();
    let (stack, arrays) = (
        Stack::new(problem.config.clone()).expect("a layer"),
        Arrays::<f32>::of(&problem, false),
    );
    let params = slices(&arrays.params);
    let execution = Setup::plain(level).execution(Watch::unattended());
    let input = || arrays.input(&problem, false);
    let whole = stack
        .forward(
            &execution,
            &params,
            input(),
            None,
            ForwardOptions::default(),
        )
        .expect("forward");
    let mut frozen = Frozen::new(&stack, &execution, &params, 1, Storage::Own).expect("freeze");
    let mut y = vec![0.0; h];
    for (x_t, expected) in input().values.chunks(i).zip(whole.y.chunks(h)) {
        frozen.step(x_t, &mut y, &execution.watch).expect("a step");
        assert_eq!(y, expected, "{name}");
    }
    let x_t = &input().values[..i];
    group.bench_function(format!("{name}/{i},{h}"), |bencher| {
        bencher.iter(|| frozen.step(black_box(x_t), &mut y, &execution.watch))
    });
}

fn steps(criterion: &mut Criterion) {
    let gru = CellKind::Gru {
        reset_after: true,
        update: Update::Keep,
    };
    for level in levels() {
        let group = &mut criterion.benchmark_group(format!("step/{}", level.name()));
        for sizes in STREAMS {
            one_stream(group, level, "lstm", CellKind::Lstm, sizes);
            one_stream(group, level, "gru", gru, sizes);
        }
    }
}
