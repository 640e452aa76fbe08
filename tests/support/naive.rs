//! The layers once more, in the plainest way: one row of the batch after the other, one number after
//! the other, all in float64. No vectors, no packing, no schedule of ragged rows, no code of the crate
//! but the words that describe a layer. What the crate computes is held against this.
//!
//! A row goes forward through every layer and direction and leaves its steps; then it goes back over
//! them (backpropagation through time, Werbos 1990). Gradients of the parameters are sums over rows.

use rnncore::cell::Update;
use rnncore::layer::{CellKind, Config, Masks, Merge};

/// One call: everything that goes in. Arrays are time-major.
pub struct Problem {
    /// What the layers are.
    pub config: Config,
    /// T.
    pub time: usize,
    /// B.
    pub batch: usize,
    /// (B,), or every row has T steps.
    pub lengths: Option<Vec<i64>>,
    /// In PyTorch's order.
    pub params: Vec<Vec<f64>>,
    /// (T, B, I)
    pub x: Vec<f64>,
    /// h, and c of an LSTM: (L*D, B, H) each; zeros without.
    pub state: Option<Vec<Vec<f64>>>,
    /// Dropout, if it acts.
    pub masks: Option<Masks>,
    /// (T, B, M)
    pub dy: Option<Vec<f64>>,
    /// As `state`; zeros where there is none.
    pub dstate: Vec<Option<Vec<f64>>>,
}

/// Everything that comes out, by name.
pub struct Answer {
    /// y, the state, and every gradient.
    pub arrays: Vec<(String, Vec<f64>)>,
    /// The smallest magnitude of a pre-activation of relu: nearer to its kink than rounding errors are
    /// large, a gradient has no one value.
    pub margin: f64,
}

/// The gates that a cell shows, in the order of its row blocks.
pub fn gate_names(cell: CellKind) -> &'static [&'static str] {
    match cell {
        CellKind::Rnn { .. } => &["h"],
        CellKind::Lstm => &["i", "f", "g", "o"],
        CellKind::Gru { .. } => &["r", "z", "n"],
        CellKind::Mgu { .. } => &["f", "n"],
    }
}

// ---- Numbers -------------------------------------------------------------------------------------

fn sigmoid(a: f64) -> f64 {
    1.0 / (1.0 + (-a).exp())
}

/// By unit: `f(j)` for every j.
fn units(count: usize, f: impl FnMut(usize) -> f64) -> Vec<f64> {
    (0..count).map(f).collect()
}

fn add_to(sums: &mut [f64], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
    z ^ (z >> 31)
}

/// What dropout multiplies a value by: 0, or 1 / (1 - p). `place` is kind, layer, direction, t, row,
/// feature.
fn mask(masks: Option<Masks>, p: f64, place: [u64; 6]) -> f64 {
    let Some(masks) = masks else { return 1.0 };
    let [kind, layer, direction, t, row, feature] = place;
    let mut bits = masks.seed;
    for value in [kind, masks.call, layer, direction, t, row, feature] {
        let step = value.wrapping_add(1).wrapping_mul(0x9E3779B97F4A7C15);
        bits = mix(bits.wrapping_add(step));
    }
    let fraction = (bits >> 11) as f64 * 2f64.powi(-53);
    if fraction >= p { 1.0 / (1.0 - p) } else { 0.0 }
}

// ---- One direction's parameters ------------------------------------------------------------------

/// W (G*H, I), U (G*H, H) and both biases (G*H,), or their gradients.
#[derive(Clone)]
struct Parameters {
    hidden: usize,
    inputs: usize,
    w: Vec<f64>,
    u: Vec<f64>,
    b_ih: Vec<f64>,
    b_hh: Vec<f64>,
}

impl Parameters {
    /// Direction `index` of a problem; biases are 0 where there are none.
    fn of(problem: &Problem, layer: usize, index: usize) -> Self {
        let config = &problem.config;
        let count = if config.bias { 4 } else { 2 };
        let own = &problem.params[index * count..(index + 1) * count];
        let rows = gate_names(config.cell).len() * config.hidden;
        let bias = |k: usize| own.get(k).cloned().unwrap_or(vec![0.0; rows]);
        let inputs = if layer == 0 {
            config.input
        } else {
            width(config)
        };
        Self {
            hidden: config.hidden,
            inputs,
            w: own[0].clone(),
            u: own[1].clone(),
            b_ih: bias(2),
            b_hh: bias(3),
        }
    }

    fn zeros_like(&self) -> Self {
        let zeros = |values: &Vec<f64>| vec![0.0; values.len()];
        Self {
            w: zeros(&self.w),
            u: zeros(&self.u),
            b_ih: zeros(&self.b_ih),
            b_hh: zeros(&self.b_hh),
            ..*self
        }
    }

    /// W x + b_ih of row block `gate`.
    fn input_side(&self, gate: usize, x: &[f64]) -> Vec<f64> {
        affine(&self.w, &self.b_ih, (gate, self.hidden, self.inputs), x)
    }

    /// U v + b_hh of row block `gate`.
    fn recurrent_side(&self, gate: usize, v: &[f64]) -> Vec<f64> {
        affine(&self.u, &self.b_hh, (gate, self.hidden, self.hidden), v)
    }
}

fn affine(
    matrix: &[f64],
    bias: &[f64],
    (gate, rows, columns): (usize, usize, usize),
    x: &[f64],
) -> Vec<f64> {
    units(rows, |j| {
        let row = gate * rows + j;
        let mut sum = bias[row];
        for k in 0..columns {
            sum += matrix[row * columns + k] * x[k];
        }
        sum
    })
}

/// From a = M x + b: dM += da x^T, db += da, and dx = M^T da is returned.
fn affine_backward(
    matrix: &[f64],
    (d_matrix, d_bias): (&mut [f64], &mut [f64]),
    (gate, rows, columns): (usize, usize, usize),
    x: &[f64],
    da: &[f64],
) -> Vec<f64> {
    let mut dx = vec![0.0; columns];
    for j in 0..rows {
        let row = gate * rows + j;
        d_bias[row] += da[j];
        for k in 0..columns {
            d_matrix[row * columns + k] += da[j] * x[k];
            dx[k] += matrix[row * columns + k] * da[j];
        }
    }
    dx
}

/// Collects what a step gives back.
struct Back<'a> {
    weights: &'a Parameters,
    gradients: &'a mut Parameters,
    /// The gradient of x_t.
    dx: Vec<f64>,
}

impl Back<'_> {
    /// a = W x + b_ih
    fn input_side(&mut self, gate: usize, x: &[f64], da: &[f64]) {
        let Self {
            weights,
            gradients,
            dx,
        } = self;
        let sizes = (gate, weights.hidden, weights.inputs);
        let targets = (&mut gradients.w[..], &mut gradients.b_ih[..]);
        add_to(dx, &affine_backward(&weights.w, targets, sizes, x, da));
    }

    /// a = U v + b_hh: the gradient of v.
    fn recurrent_side(&mut self, gate: usize, v: &[f64], da: &[f64]) -> Vec<f64> {
        let Self {
            weights, gradients, ..
        } = self;
        let sizes = (gate, weights.hidden, weights.hidden);
        let targets = (&mut gradients.u[..], &mut gradients.b_hh[..]);
        affine_backward(&weights.u, targets, sizes, v, da)
    }
}

// ---- One step of one row -------------------------------------------------------------------------

#[derive(Clone)]
struct State {
    h: Vec<f64>,
    /// Zeros for a cell without.
    c: Vec<f64>,
}

/// What went in, what lies between, what came out.
struct Step {
    x: Vec<f64>,
    before: State,
    /// m*h', what U multiplies.
    operand: Vec<f64>,
    /// Every gate after its activation.
    gates: Vec<Vec<f64>>,
    /// U_n h' + b_hn where the reset comes after the product, r*m*h' where it comes before.
    inner: Vec<f64>,
    after: State,
    /// The smallest magnitude that went into relu.
    margin: f64,
}

fn forward(cell: CellKind, weights: &Parameters, m: &[f64], x: &[f64], before: &State) -> Step {
    let hidden = weights.hidden;
    let operand = units(hidden, |j| m[j] * before.h[j]);
    let pre = |gate: usize| {
        let (wx, uh) = (
            weights.input_side(gate, x),
            weights.recurrent_side(gate, &operand),
        );
        units(hidden, |j| wx[j] + uh[j])
    };
    let gate =
        |index: usize, act: fn(f64) -> f64| pre(index).into_iter().map(act).collect::<Vec<_>>();
    let mut after = before.clone();
    let (mut inner, mut margin) = (Vec::new(), f64::INFINITY);
    let gates = match cell {
        CellKind::Rnn { relu } => {
            let a = pre(0);
            after.h = units(hidden, |j| if relu { a[j].max(0.0) } else { a[j].tanh() });
            if relu {
                margin = a.iter().fold(margin, |least, a| least.min(a.abs()));
            }
            vec![after.h.clone()]
        }
        CellKind::Lstm => {
            let (i, f, g, o) = (
                gate(0, sigmoid),
                gate(1, sigmoid),
                gate(2, f64::tanh),
                gate(3, sigmoid),
            );
            after.c = units(hidden, |j| f[j] * before.c[j] + i[j] * g[j]);
            after.h = units(hidden, |j| o[j] * after.c[j].tanh());
            vec![i, f, g, o]
        }
        CellKind::Gru {
            reset_after,
            update,
        } => {
            let (r, z) = (gate(0, sigmoid), gate(1, sigmoid));
            let (n, between) = candidate(weights, (2, reset_after), x, &operand, &r);
            after.h = interpolate(update, &z, &before.h, &n);
            inner = between;
            vec![r, z, n]
        }
        CellKind::Mgu {
            reset_after,
            update,
        } => {
            let f = gate(0, sigmoid);
            let (n, between) = candidate(weights, (1, reset_after), x, &operand, &f);
            after.h = interpolate(update, &f, &before.h, &n);
            inner = between;
            vec![f, n]
        }
    };
    Step {
        x: x.to_vec(),
        before: before.clone(),
        operand,
        gates,
        inner,
        after,
        margin,
    }
}

/// From the gradients of h and c after the step: those before it.
fn backward(
    cell: CellKind,
    back: &mut Back<'_>,
    m: &[f64],
    step: &Step,
    dh: &[f64],
    dc: &[f64],
) -> State {
    let hidden = m.len();
    let Step {
        x,
        before,
        operand,
        gates,
        after,
        ..
    } = step;
    let mut d_before = State {
        h: vec![0.0; hidden],
        c: vec![0.0; hidden],
    };
    let mut d_operand = vec![0.0; hidden];
    let pre = |back: &mut Back<'_>, d_operand: &mut [f64], gate: usize, da: &[f64]| {
        back.input_side(gate, x, da);
        add_to(d_operand, &back.recurrent_side(gate, operand, da));
    };
    match cell {
        CellKind::Rnn { relu } => {
            // h = act(a)
            let slope = |h: f64| {
                if relu {
                    f64::from(u8::from(h > 0.0))
                } else {
                    1.0 - h * h
                }
            };
            let da = units(hidden, |j| dh[j] * slope(after.h[j]));
            pre(back, &mut d_operand, 0, &da);
        }
        CellKind::Lstm => {
            let [i, f, g, o] = &gates[..] else {
                unreachable!("an LSTM has four gates")
            };
            // h = o*tanh(c)
            let d_o = units(hidden, |j| dh[j] * after.c[j].tanh());
            let dc = units(hidden, |j| {
                dc[j] + dh[j] * o[j] * (1.0 - after.c[j].tanh().powi(2))
            });
            // c = f*c' + i*g
            let (di, dg) = (
                units(hidden, |j| dc[j] * g[j]),
                units(hidden, |j| dc[j] * i[j]),
            );
            let df = units(hidden, |j| dc[j] * before.c[j]);
            d_before.c = units(hidden, |j| dc[j] * f[j]);
            // i, f, o = sigmoid(.), g = tanh(.)
            for (gate, y, dy) in [(0, i, di), (1, f, df), (3, o, d_o)] {
                pre(back, &mut d_operand, gate, &d_sigmoid(y, &dy));
            }
            pre(back, &mut d_operand, 2, &d_tanh(g, &dg));
        }
        CellKind::Gru {
            reset_after,
            update,
        } => {
            let [r, z, n] = &gates[..] else {
                unreachable!("a GRU has three gates")
            };
            let (dz, d_mixed, dn) = interpolate_backward(update, z, &before.h, n, dh);
            d_before.h = d_mixed;
            let (dr, d_inner) =
                candidate_backward(back, (2, reset_after), step, r, &d_tanh(n, &dn));
            add_to(&mut d_operand, &d_inner);
            pre(back, &mut d_operand, 0, &d_sigmoid(r, &dr));
            pre(back, &mut d_operand, 1, &d_sigmoid(z, &dz));
        }
        CellKind::Mgu {
            reset_after,
            update,
        } => {
            let [f, n] = &gates[..] else {
                unreachable!("an MGU has two gates")
            };
            let (mut df, d_mixed, dn) = interpolate_backward(update, f, &before.h, n, dh);
            d_before.h = d_mixed;
            let (dr, d_inner) =
                candidate_backward(back, (1, reset_after), step, f, &d_tanh(n, &dn));
            add_to(&mut d_operand, &d_inner);
            // f stands in two places
            add_to(&mut df, &dr);
            pre(back, &mut d_operand, 0, &d_sigmoid(f, &df));
        }
    }
    // operand = m*h'
    add_to(&mut d_before.h, &units(hidden, |j| m[j] * d_operand[j]));
    d_before
}

fn d_sigmoid(y: &[f64], dy: &[f64]) -> Vec<f64> {
    units(y.len(), |j| dy[j] * y[j] * (1.0 - y[j]))
}

fn d_tanh(y: &[f64], dy: &[f64]) -> Vec<f64> {
    units(y.len(), |j| dy[j] * (1.0 - y[j] * y[j]))
}

/// n, and what lies between it and the reset.
fn candidate(
    weights: &Parameters,
    (gate, reset_after): (usize, bool),
    x: &[f64],
    operand: &[f64],
    r: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let wx = weights.input_side(gate, x);
    if reset_after {
        let inner = weights.recurrent_side(gate, operand);
        (units(r.len(), |j| (wx[j] + r[j] * inner[j]).tanh()), inner)
    } else {
        let inner = units(r.len(), |j| r[j] * operand[j]);
        let uh = weights.recurrent_side(gate, &inner);
        (units(r.len(), |j| (wx[j] + uh[j]).tanh()), inner)
    }
}

/// From the gradient of what n's tanh took: those of r and of m*h'.
fn candidate_backward(
    back: &mut Back<'_>,
    (gate, reset_after): (usize, bool),
    step: &Step,
    r: &[f64],
    da: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let Step {
        x, operand, inner, ..
    } = step;
    back.input_side(gate, x, da);
    if reset_after {
        // a = W x + b_in + r*(U (m*h') + b_hn)
        let d_inner = units(r.len(), |j| da[j] * r[j]);
        let dr = units(r.len(), |j| da[j] * inner[j]);
        (dr, back.recurrent_side(gate, operand, &d_inner))
    } else {
        // a = W x + b_in + U (r*m*h') + b_hn
        let d_inner = back.recurrent_side(gate, inner, da);
        let dr = units(r.len(), |j| d_inner[j] * operand[j]);
        (dr, units(r.len(), |j| d_inner[j] * r[j]))
    }
}

fn interpolate(update: Update, z: &[f64], before: &[f64], n: &[f64]) -> Vec<f64> {
    units(z.len(), |j| match update {
        Update::Keep => z[j] * before[j] + (1.0 - z[j]) * n[j],
        Update::Write => (1.0 - z[j]) * before[j] + z[j] * n[j],
    })
}

/// The gradients of z, h' and n.
fn interpolate_backward(
    update: Update,
    z: &[f64],
    before: &[f64],
    n: &[f64],
    dh: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let by_z = units(z.len(), |j| dh[j] * z[j]);
    let by_rest = units(z.len(), |j| dh[j] * (1.0 - z[j]));
    match update {
        Update::Keep => (
            units(z.len(), |j| dh[j] * (before[j] - n[j])),
            by_z,
            by_rest,
        ),
        Update::Write => (
            units(z.len(), |j| dh[j] * (n[j] - before[j])),
            by_rest,
            by_z,
        ),
    }
}

// ---- One row through all layers ------------------------------------------------------------------

/// M.
fn width(config: &Config) -> usize {
    if config.bidirectional && config.merge == Merge::Concat {
        2 * config.hidden
    } else {
        config.hidden
    }
}

fn merged(config: &Config, directions: &[&[f64]]) -> Vec<f64> {
    let [a, b] = directions else {
        return directions[0].to_vec();
    };
    match config.merge {
        Merge::Concat => [*a, *b].concat(),
        Merge::Sum => units(a.len(), |j| a[j] + b[j]),
        Merge::Mean => units(a.len(), |j| (a[j] + b[j]) / 2.0),
        Merge::Mul => units(a.len(), |j| a[j] * b[j]),
    }
}

/// What of the gradient of the merged output reaches direction `d`.
fn merged_backward(config: &Config, directions: &[&[f64]], d: usize, dy: &[f64]) -> Vec<f64> {
    let [a, b] = directions else {
        return dy.to_vec();
    };
    let (hidden, other) = (a.len(), if d == 0 { b } else { a });
    match config.merge {
        Merge::Concat => dy[d * hidden..(d + 1) * hidden].to_vec(),
        Merge::Sum => dy.to_vec(),
        Merge::Mean => units(hidden, |j| dy[j] / 2.0),
        Merge::Mul => units(hidden, |j| dy[j] * other[j]),
    }
}

/// The time steps in the order in which a direction takes them.
fn walk(length: usize, direction: usize) -> Vec<usize> {
    let forwards = 0..length;
    if direction == 0 {
        forwards.collect()
    } else {
        forwards.rev().collect()
    }
}

/// Everything of a call that rows add to.
struct Solver<'a> {
    problem: &'a Problem,
    weights: Vec<Parameters>,
    gradients: Vec<Parameters>,
    y: Vec<f64>,
    dx: Vec<f64>,
    state: Vec<Vec<f64>>,
    dstate: Vec<Vec<f64>>,
    /// By direction and gate, (T, B, H).
    gates: Vec<Vec<Vec<f64>>>,
    /// By direction, dL/dh and dL/dc.
    state_grads: Vec<[Vec<f64>; 2]>,
    margin: f64,
}

/// Forward and backward of a problem.
pub fn solve(problem: &Problem) -> Answer {
    let mut solver = Solver::new(problem);
    for row in 0..problem.batch {
        let length = problem
            .lengths
            .as_ref()
            .map_or(problem.time, |lengths| lengths[row] as usize);
        let steps = solver.row_forward(row, length);
        solver.row_backward(row, length, &steps);
    }
    solver.answer()
}

impl<'a> Solver<'a> {
    fn new(problem: &'a Problem) -> Self {
        let config = &problem.config;
        let (hidden, cells) = (config.hidden, problem.time * problem.batch);
        let directions = if config.bidirectional { 2 } else { 1 };
        let count = config.layers * directions;
        let weights: Vec<_> = (0..count)
            .map(|index| Parameters::of(problem, index / directions, index))
            .collect();
        let members = if config.cell == CellKind::Lstm { 2 } else { 1 };
        let state = vec![vec![0.0; count * problem.batch * hidden]; members];
        let gates = gate_names(config.cell).len();
        Self {
            problem,
            gradients: weights.iter().map(Parameters::zeros_like).collect(),
            weights,
            y: vec![0.0; cells * width(config)],
            dx: vec![0.0; cells * config.input],
            dstate: state.clone(),
            state,
            gates: vec![vec![vec![0.0; cells * hidden]; gates]; count],
            state_grads: (0..count)
                .map(|_| [vec![0.0; cells * hidden], vec![0.0; cells * hidden]])
                .collect(),
            margin: f64::INFINITY,
        }
    }

    fn directions(&self) -> usize {
        if self.problem.config.bidirectional {
            2
        } else {
            1
        }
    }

    /// Where step t of a row begins in a (T, B, width) array.
    fn at(&self, t: usize, row: usize, width: usize) -> std::ops::Range<usize> {
        let first = (t * self.problem.batch + row) * width;
        first..first + width
    }

    /// Where a row's state begins in (L*D, B, H).
    fn at_state(&self, index: usize, row: usize) -> std::ops::Range<usize> {
        let (batch, hidden) = (self.problem.batch, self.problem.config.hidden);
        let first = (index * batch + row) * hidden;
        first..first + hidden
    }

    /// A row's part of some (L*D, B, H) arrays; zeros for those that are not there.
    fn state_of(&self, arrays: &[Option<&[f64]>], index: usize, row: usize) -> State {
        let part = |member: usize| match arrays.get(member).copied().flatten() {
            Some(values) => values[self.at_state(index, row)].to_vec(),
            None => vec![0.0; self.problem.config.hidden],
        };
        State {
            h: part(0),
            c: part(1),
        }
    }

    /// m of one row and direction.
    fn recurrent_mask(&self, index: usize, row: usize) -> Vec<f64> {
        let (config, count) = (&self.problem.config, self.directions());
        let place = [
            1,
            (index / count) as u64,
            (index % count) as u64,
            u64::MAX,
            row as u64,
        ];
        units(config.hidden, |j| {
            let [kind, layer, direction, t, row] = place;
            mask(
                self.problem.masks,
                config.recurrent_dropout,
                [kind, layer, direction, t, row, j as u64],
            )
        })
    }

    /// What dropout multiplies the output of `layer` at step t by; ones after the last layer.
    fn mask_between(&self, layer: usize, t: usize, row: usize) -> Vec<f64> {
        let config = &self.problem.config;
        units(width(config), |k| match layer + 1 < config.layers {
            true => mask(
                self.problem.masks,
                config.dropout,
                [0, layer as u64, 0, t as u64, row as u64, k as u64],
            ),
            false => 1.0,
        })
    }

    /// The steps of every direction, by t.
    fn row_forward(&mut self, row: usize, length: usize) -> Vec<Vec<Step>> {
        let (problem, config) = (self.problem, &self.problem.config);
        let count = self.directions();
        let mut sequence: Vec<Vec<f64>> = (0..length)
            .map(|t| problem.x[self.at(t, row, config.input)].to_vec())
            .collect();
        let mut all = Vec::new();
        for layer in 0..config.layers {
            for d in 0..count {
                all.push(self.direction_forward(layer * count + d, row, &sequence));
            }
            let own: &[Vec<Step>] = &all[layer * count..];
            sequence = (0..length)
                .map(|t| {
                    let outputs: Vec<&[f64]> =
                        own.iter().map(|steps| &steps[t].after.h[..]).collect();
                    let (y, m) = (merged(config, &outputs), self.mask_between(layer, t, row));
                    units(y.len(), |k| m[k] * y[k])
                })
                .collect();
        }
        for (t, y) in sequence.iter().enumerate() {
            let range = self.at(t, row, width(config));
            self.y[range].copy_from_slice(y);
        }
        all
    }

    fn direction_forward(&mut self, index: usize, row: usize, sequence: &[Vec<f64>]) -> Vec<Step> {
        let (problem, d) = (self.problem, index % self.directions());
        let given: Vec<Option<&[f64]>> = problem
            .state
            .iter()
            .flatten()
            .map(|values| Some(&values[..]))
            .collect();
        let (mut state, m) = (
            self.state_of(&given, index, row),
            self.recurrent_mask(index, row),
        );
        let mut steps: Vec<(usize, Step)> = Vec::new();
        for t in walk(sequence.len(), d) {
            let step = forward(
                problem.config.cell,
                &self.weights[index],
                &m,
                &sequence[t],
                &state,
            );
            state = step.after.clone();
            self.margin = self.margin.min(step.margin);
            for (gate, values) in step.gates.iter().enumerate() {
                let range = self.at(t, row, problem.config.hidden);
                self.gates[index][gate][range].copy_from_slice(values);
            }
            steps.push((t, step));
        }
        let range = self.at_state(index, row);
        for (member, values) in self.state.iter_mut().zip([&state.h, &state.c]) {
            member[range.clone()].copy_from_slice(values);
        }
        steps.sort_by_key(|(t, _)| *t);
        steps.into_iter().map(|(_, step)| step).collect()
    }

    fn row_backward(&mut self, row: usize, length: usize, steps: &[Vec<Step>]) {
        let (problem, config) = (self.problem, &self.problem.config);
        let (count, outputs) = (self.directions(), width(config));
        let mut dy: Vec<Vec<f64>> = (0..length)
            .map(|t| match &problem.dy {
                Some(dy) => dy[self.at(t, row, outputs)].to_vec(),
                None => vec![0.0; outputs],
            })
            .collect();
        for layer in (0..config.layers).rev() {
            let own = &steps[layer * count..(layer + 1) * count];
            for (t, dy) in dy.iter_mut().enumerate() {
                let m = self.mask_between(layer, t, row);
                *dy = units(dy.len(), |k| m[k] * dy[k]);
            }
            let inputs = if layer == 0 { config.input } else { outputs };
            let mut dx = vec![vec![0.0; inputs]; length];
            for d in 0..count {
                let own_dy: Vec<Vec<f64>> = (0..length)
                    .map(|t| {
                        let outputs: Vec<&[f64]> =
                            own.iter().map(|steps| &steps[t].after.h[..]).collect();
                        merged_backward(config, &outputs, d, &dy[t])
                    })
                    .collect();
                let part = self.direction_backward(layer * count + d, row, &own[d], &own_dy);
                dx.iter_mut()
                    .zip(&part)
                    .for_each(|(sum, part)| add_to(sum, part));
            }
            dy = dx;
        }
        for (t, dx) in dy.iter().enumerate() {
            let range = self.at(t, row, config.input);
            self.dx[range].copy_from_slice(dx);
        }
    }

    /// Back over one direction's steps: the gradient of its input, by t.
    fn direction_backward(
        &mut self,
        index: usize,
        row: usize,
        steps: &[Step],
        dy: &[Vec<f64>],
    ) -> Vec<Vec<f64>> {
        let (problem, d) = (self.problem, index % self.directions());
        let given: Vec<Option<&[f64]>> = problem.dstate.iter().map(Option::as_deref).collect();
        let (mut after, m) = (
            self.state_of(&given, index, row),
            self.recurrent_mask(index, row),
        );
        let mut dx = vec![Vec::new(); steps.len()];
        for t in walk(steps.len(), d).into_iter().rev() {
            // dL/dh_t: what comes from later steps, and y's own
            add_to(&mut after.h, &dy[t]);
            let range = self.at(t, row, problem.config.hidden);
            self.state_grads[index][0][range.clone()].copy_from_slice(&after.h);
            self.state_grads[index][1][range].copy_from_slice(&whole_dc(
                problem.config.cell,
                &steps[t],
                &after,
            ));
            let weights = &self.weights[index];
            let mut back = Back {
                weights,
                gradients: &mut self.gradients[index],
                dx: vec![0.0; weights.inputs],
            };
            after = backward(
                problem.config.cell,
                &mut back,
                &m,
                &steps[t],
                &after.h,
                &after.c,
            );
            dx[t] = back.dx;
        }
        let range = self.at_state(index, row);
        for (member, values) in self.dstate.iter_mut().zip([&after.h, &after.c]) {
            member[range.clone()].copy_from_slice(values);
        }
        dx
    }

    fn answer(self) -> Answer {
        let config = &self.problem.config;
        let mut arrays = vec![("y".to_owned(), self.y), ("dx".to_owned(), self.dx)];
        for (name, values) in ["h", "c"].iter().zip(self.state) {
            arrays.push((format!("state {name}"), values));
        }
        for (name, values) in ["h", "c"].iter().zip(self.dstate) {
            arrays.push((format!("dstate {name}"), values));
        }
        for (index, gradients) in self.gradients.into_iter().enumerate() {
            let Parameters {
                w, u, b_ih, b_hh, ..
            } = gradients;
            let names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];
            let present = if config.bias { 4 } else { 2 };
            for (name, values) in names.iter().zip([w, u, b_ih, b_hh]).take(present) {
                arrays.push((format!("gradient of {name} of direction {index}"), values));
            }
        }
        for (index, gates) in self.gates.into_iter().enumerate() {
            for (name, values) in gate_names(config.cell).iter().zip(gates) {
                arrays.push((format!("gate {name} of direction {index}"), values));
            }
        }
        for (index, [h, c]) in self.state_grads.into_iter().enumerate() {
            arrays.push((format!("dL/dh of direction {index}"), h));
            if config.cell == CellKind::Lstm {
                arrays.push((format!("dL/dc of direction {index}"), c));
            }
        }
        Answer {
            arrays,
            margin: self.margin,
        }
    }
}

/// dL/dc_t with the part that goes through h_t = o*tanh(c).
fn whole_dc(cell: CellKind, step: &Step, after: &State) -> Vec<f64> {
    if cell != CellKind::Lstm {
        return after.c.clone();
    }
    let o = &step.gates[3];
    units(o.len(), |j| {
        after.c[j] + after.h[j] * o[j] * (1.0 - step.after.c[j].tanh().powi(2))
    })
}
