//! Random problems, what the crate makes of them, and what counts as agreement.

use rnncore::error::Result;
use rnncore::layer::{
    BackwardOptions, CellKind, Config, Execution, ForwardOptions, Gradients, Input, Masks, Merge,
    Output, Stack, StateGradients,
};
use rnncore::memory::Buffer;
use rnncore::parallel::Watch;
use rnncore::simd::{Element, Level};

use crate::naive::{Problem, gate_names};

/// A stream of numbers (splitmix64): the same for the same seed, everywhere.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// `count` numbers of type E between -scale and scale, as float64.
    fn values<E: Element>(&mut self, count: usize, scale: f64) -> Vec<f64> {
        let mut one = || (self.next() >> 11) as f64 * 2f64.powi(-52) - 1.0;
        (0..count)
            .map(|_| E::from_f64(scale * one()).to_f64())
            .collect()
    }
}

/// Sizes and options of a problem; its numbers follow from the seed.
#[derive(Clone, Debug)]
pub struct Case {
    pub cell: CellKind,
    pub time: usize,
    pub batch: usize,
    pub input: usize,
    pub hidden: usize,
    pub layers: usize,
    /// None: one direction.
    pub merge: Option<Merge>,
    pub bias: bool,
    /// Dropout between layers (if there are two) and inside the recurrence.
    pub dropout: bool,
    /// Rows of different lengths, 0 among them, and NaN beyond.
    pub ragged: bool,
    /// Whether there is an initial state, a gradient of y, and of the final state.
    pub given: [bool; 3],
    pub seed: u64,
}

impl Case {
    pub fn config(&self) -> Config {
        Config {
            cell: self.cell,
            input: self.input,
            hidden: self.hidden,
            layers: self.layers,
            bidirectional: self.merge.is_some(),
            merge: self.merge.unwrap_or(Merge::Concat),
            bias: self.bias,
            dropout: if self.dropout && self.layers > 1 {
                0.25
            } else {
                0.0
            },
            recurrent_dropout: if self.dropout { 0.125 } else { 0.0 },
        }
    }

    /// The problem, its numbers exact in E.
    pub fn problem<E: Element>(&self) -> Problem {
        let config = self.config();
        let random = &mut Random(self.seed);
        let [state, dy, dstate] = self.given;
        let members = if self.cell == CellKind::Lstm { 2 } else { 1 };
        let state_len = self.layers * config.directions() * self.batch * self.hidden;
        let lengths = self.ragged.then(|| lengths(random, self.time, self.batch));
        let weights = 1.0 / (self.hidden.max(self.input) as f64).sqrt();
        let mut problem = Problem {
            params: config
                .params()
                .iter()
                .map(|(_, shape)| random.values::<E>(shape.iter().product(), weights.max(0.2)))
                .collect(),
            x: random.values::<E>(self.time * self.batch * self.input, 1.0),
            state: state.then(|| {
                (0..members)
                    .map(|_| random.values::<E>(state_len, 0.9))
                    .collect()
            }),
            masks: self.dropout.then(|| Masks {
                seed: random.next(),
                call: random.next() % 5,
            }),
            dy: dy.then(|| random.values::<E>(self.time * self.batch * config.output(), 1.0)),
            dstate: if dstate {
                Self::dstate::<E>(random, members, state_len)
            } else {
                Vec::new()
            },
            time: self.time,
            batch: self.batch,
            lengths,
            config,
        };
        problem.spoil_padding();
        problem
    }

    /// Of an LSTM's two gradients one may be missing.
    fn dstate<E: Element>(
        random: &mut Random,
        members: usize,
        len: usize,
    ) -> Vec<Option<Vec<f64>>> {
        let missing = if members == 1 {
            None
        } else {
            random.pick(&[None, Some(0), Some(1)])
        };
        (0..members)
            .map(|member| (missing != Some(member)).then(|| random.values::<E>(len, 1.0)))
            .collect()
    }
}

/// Lengths from 0 to T, unsorted, the longest not always T.
fn lengths(random: &mut Random, time: usize, batch: usize) -> Vec<i64> {
    (0..batch).map(|_| random.below(time + 1) as i64).collect()
}

impl Problem {
    /// NaN wherever there is no step.
    pub fn spoil_padding(&mut self) {
        let Some(lengths) = &self.lengths else { return };
        let widths = [self.config.input, self.config.output()];
        for (values, width) in [Some(&mut self.x), self.dy.as_mut()]
            .into_iter()
            .zip(widths)
        {
            let Some(values) = values else { continue };
            for (place, row) in values.chunks_exact_mut(width).enumerate() {
                if (place / self.batch) as i64 >= lengths[place % self.batch] {
                    row.fill(f64::NAN);
                }
            }
        }
    }
}

/// How the crate shall compute it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub level: Level,
    pub threads: usize,
    pub checkpoint: Option<usize>,
    pub batch_first: bool,
}

impl Setup {
    pub fn plain(level: Level) -> Self {
        Self {
            level,
            threads: 1,
            checkpoint: None,
            batch_first: false,
        }
    }

    pub fn execution<'a>(&self, watch: Watch<'a>) -> Execution<'a> {
        Execution {
            level: self.level,
            threads: self.threads,
            // What is tried with several threads shall be.
            makes_way: false,
            watch,
        }
    }
}

/// A problem's arrays in the crate's type and the setup's layout.
pub struct Arrays<E> {
    pub params: Vec<Vec<E>>,
    pub x: Vec<E>,
    pub state: Option<Vec<Vec<E>>>,
    pub dy: Option<Vec<E>>,
    pub dstate: Vec<Option<Vec<E>>>,
}

/// One view of each.
pub fn slices<E>(arrays: &[Vec<E>]) -> Vec<&[E]> {
    arrays.iter().map(Vec::as_slice).collect()
}

impl<E: Element> Arrays<E> {
    pub fn of(problem: &Problem, batch_first: bool) -> Self {
        let cast = |values: &Vec<f64>| {
            values
                .iter()
                .map(|&value| E::from_f64(value))
                .collect::<Vec<E>>()
        };
        let arrange = |values: &Vec<f64>| match batch_first {
            true => swap_axes(&cast(values), problem.time, problem.batch),
            false => cast(values),
        };
        Self {
            params: problem.params.iter().map(cast).collect(),
            x: arrange(&problem.x),
            state: problem
                .state
                .as_ref()
                .map(|state| state.iter().map(cast).collect()),
            dy: problem.dy.as_ref().map(arrange),
            dstate: problem
                .dstate
                .iter()
                .map(|part| part.as_ref().map(cast))
                .collect(),
        }
    }

    pub fn input<'a>(&'a self, problem: &'a Problem, batch_first: bool) -> Input<'a, E> {
        let (t, b, i) = (problem.time, problem.batch, problem.config.input);
        let shape = if batch_first { [b, t, i] } else { [t, b, i] };
        Input {
            values: &self.x,
            shape,
            batch_first,
            lengths: problem.lengths.as_deref(),
        }
    }
}

/// (outer, inner, width) to (inner, outer, width); the width follows from the length.
fn swap_axes<E: Copy>(values: &[E], outer: usize, inner: usize) -> Vec<E> {
    let width = values.len() / (outer * inner).max(1);
    let mut swapped = Vec::with_capacity(values.len());
    for b in 0..inner {
        for t in 0..outer {
            let first = (t * inner + b) * width;
            swapped.extend_from_slice(&values[first..first + width]);
        }
    }
    swapped
}

/// Forward alone, in float type E.
pub fn forward<E: Element>(
    problem: &Problem,
    setup: Setup,
    watch: Watch<'_>,
    training: bool,
) -> Result<Output<E>> {
    let stack = Stack::new(problem.config.clone())?;
    let arrays = Arrays::<E>::of(problem, setup.batch_first);
    let state = arrays.state.as_deref().map(slices);
    let options = ForwardOptions {
        training,
        masks: problem.masks,
        checkpoint: setup.checkpoint,
    };
    let input = arrays.input(problem, setup.batch_first);
    stack.forward(
        &setup.execution(watch),
        &slices(&arrays.params),
        input,
        state.as_deref(),
        options,
    )
}

/// Backward of a forward's tape.
pub fn backward<E: Element>(
    problem: &Problem,
    setup: Setup,
    watch: Watch<'_>,
    output: &Output<E>,
) -> Result<Gradients<E>> {
    let stack = Stack::new(problem.config.clone())?;
    let arrays = Arrays::<E>::of(problem, setup.batch_first);
    let dstate: Vec<Option<&[E]>> = arrays.dstate.iter().map(Option::as_deref).collect();
    let tape = output
        .tape
        .as_ref()
        .expect("a training forward leaves a tape");
    let options = BackwardOptions { state_grads: true };
    stack.backward(
        &setup.execution(watch),
        &slices(&arrays.params),
        tape,
        arrays.dy.as_deref(),
        &dstate,
        options,
    )
}

/// Every array that the crate gives, time-major, in the order and by the names of `naive::Answer`.
pub fn compute<E: Element>(problem: &Problem, setup: Setup) -> Vec<(String, Vec<E>)> {
    let output = forward::<E>(problem, setup, Watch::unattended(), true).expect("forward");
    let gradients = backward(problem, setup, Watch::unattended(), &output).expect("backward");
    let stack = Stack::new(problem.config.clone()).expect("a good config");
    let arrays = Arrays::<E>::of(problem, setup.batch_first);
    let tape = output.tape.as_ref().expect("a tape");
    let gates = stack
        .gates(
            &setup.execution(Watch::unattended()),
            &slices(&arrays.params),
            tape,
        )
        .expect("gates");

    let arrange = |values: Buffer<E>| match setup.batch_first {
        true => swap_axes(&values, problem.batch, problem.time),
        false => values.to_vec(),
    };
    let mut all = vec![
        ("y".to_owned(), arrange(output.y)),
        ("dx".to_owned(), arrange(gradients.x)),
    ];
    for (name, values) in ["h", "c"].iter().zip(output.state) {
        all.push((format!("state {name}"), values));
    }
    for (name, values) in ["h", "c"].iter().zip(gradients.state) {
        all.push((format!("dstate {name}"), values));
    }
    let count = problem.config.params_per_direction();
    for (k, values) in gradients.params.into_iter().enumerate() {
        let name = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][k % count];
        all.push((
            format!("gradient of {name} of direction {}", k / count),
            values.to_vec(),
        ));
    }
    for (index, gates) in gates.into_iter().enumerate() {
        let names: Vec<_> = gates.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, gate_names(problem.config.cell));
        for (name, values) in gates {
            all.push((format!("gate {name} of direction {index}"), arrange(values)));
        }
    }
    for (index, StateGradients { h, c }) in gradients.state_grads.into_iter().enumerate() {
        all.push((format!("dL/dh of direction {index}"), arrange(h)));
        all.extend(c.map(|c| (format!("dL/dc of direction {index}"), arrange(c))));
    }
    all
}

/// `max|a - b| <= tolerance * max(1, max|b|)`, array by array, `b` being what is expected.
pub fn assert_close<E: Element>(
    got: &[(String, Vec<E>)],
    expected: &[(String, Vec<f64>)],
    tolerance: f64,
    context: &str,
) {
    assert_eq!(got.len(), expected.len(), "{context}");
    for ((name, a), (expected_name, b)) in got.iter().zip(expected) {
        assert_eq!(name, expected_name, "{context}");
        assert_eq!(a.len(), b.len(), "{name}: {context}");
        let scale = b.iter().fold(1f64, |most, value| most.max(value.abs()));
        for (k, (&a, &b)) in a.iter().zip(b).enumerate() {
            let distance = (a.to_f64() - b).abs();
            // Written so that a NaN fails.
            assert!(
                distance <= tolerance * scale,
                "{name}[{k}] is {a:?}, expected {b}, scale {scale}: {context}"
            );
        }
    }
}

/// The same arrays, bit for bit.
pub fn assert_same<E: Element>(
    got: &[(String, Vec<E>)],
    expected: &[(String, Vec<E>)],
    context: &str,
) {
    assert_eq!(got.len(), expected.len(), "{context}");
    for ((name, a), (expected_name, b)) in got.iter().zip(expected) {
        assert_eq!(name, expected_name, "{context}");
        assert_same_bits(a, b, &format!("{name}: {context}"));
    }
}

/// The same values, bit for bit.
pub fn assert_same_bits<E: Element>(a: &[E], b: &[E], context: &str) {
    assert_eq!(a.len(), b.len(), "{context}");
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(
            a.to_f64().to_bits(),
            b.to_f64().to_bits(),
            "[{k}] {a:?} against {b:?}: {context}"
        );
    }
}

/// All forms of all cells.
pub const CELLS: [CellKind; 11] = {
    use rnncore::cell::Update::{Keep, Write};
    [
        CellKind::Rnn { relu: false },
        CellKind::Rnn { relu: true },
        CellKind::Lstm,
        CellKind::Gru {
            reset_after: true,
            update: Keep,
        },
        CellKind::Gru {
            reset_after: true,
            update: Write,
        },
        CellKind::Gru {
            reset_after: false,
            update: Keep,
        },
        CellKind::Gru {
            reset_after: false,
            update: Write,
        },
        CellKind::Mgu {
            reset_after: true,
            update: Keep,
        },
        CellKind::Mgu {
            reset_after: true,
            update: Write,
        },
        CellKind::Mgu {
            reset_after: false,
            update: Keep,
        },
        CellKind::Mgu {
            reset_after: false,
            update: Write,
        },
    ]
};

/// The share of the largest value that rounding may cost.
pub fn tolerance<E: Element>() -> f64 {
    if E::MANTISSA_BITS == 23 { 2e-5 } else { 1e-12 }
}
