//! A snapshot of a layer's weights, packed once, with a state of its own: for streams.

use crate::error::{Error, Result, shape_text};
use crate::gemm::pack::Storage;
use crate::gemm::relay::Relay;
use crate::gemm::view::{Field, Layout};
use crate::layer::config::Config;
use crate::layer::direction::{Direction, ForwardBuffers, ForwardRun, Means};
use crate::layer::forward::{ForwardFields, ForwardShare, StateFields, Workspace};
use crate::layer::merge::{pack, unpack};
use crate::layer::plan::{self, Pass};
use crate::layer::stack::{Execution, Input, Stack};
use crate::layer::tape::DirectionState;
use crate::layer::weights::{ForwardWeights, Params};
use crate::memory::{Buffer, Values, copied, product, zeros};
use crate::parallel::{Meter, Team, Watch};
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// One layer of a [`Frozen`].
struct FrozenLayer<E> {
    weights: ForwardWeights<E>,
    state: DirectionState<E>,
    /// For one step of all rows.
    space: Workspace<E>,
    /// [B, H] h' of a step.
    operand: Relay<E>,
    /// [B, H] r*h' of a step, of a cell with its reset before the product.
    reset_operand: Option<Relay<E>>,
    /// [B, H] this layer's output, the next one's input.
    y: Vec<E>,
}

/// Packed weights of a stack with one direction, and the state of B independent streams.
pub struct Frozen<E> {
    config: Config,
    storage: Storage,
    level: Level,
    /// One step of B rows.
    still: Schedule,
    layers: Vec<FrozenLayer<E>>,
}

impl<E: Element> Frozen<E> {
    /// Packs `params` for `batch` streams; the state begins at zero. Weights stored as bfloat16 are half
    /// as much to read in a step, and computed with as the float32 numbers that they are.
    ///
    /// # Errors
    /// A stack with two directions (the second would have to see the future), parameters of a wrong
    /// size, bfloat16 for elements other than float32, or memory that cannot be had.
    pub fn new(
        stack: &Stack,
        execution: &Execution<'_>,
        params: &[&[E]],
        batch: usize,
        storage: Storage,
    ) -> Result<Self> {
        stack.check_params(params)?;
        let config = stack.config().clone();
        if config.bidirectional {
            return Err(Error::value(
                "freeze",
                "a layer with one direction",
                "bidirectional=True",
            ));
        }
        if batch == 0 {
            return Err(Error::value("batch_size", "at least 1", batch));
        }
        if storage == Storage::Bfloat16 && E::NAME != "float32" {
            let expected = format!("None for a layer of {}", E::NAME);
            return Err(Error::value("weights", expected, "bfloat16"));
        }
        let team = Team::assemble(1, &execution.watch);
        let means = Means::of::<E>(&team, execution.level);
        let layers = (0..config.layers)
            .map(|layer| FrozenLayer::new(&config, means, params, layer, (batch, storage)))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            config,
            storage,
            level: execution.level,
            still: Schedule::dense(1, batch)?,
        })
    }

    /// Multiply-adds of a step.
    pub fn work(&self) -> usize {
        let values: usize = (0..self.config.layers)
            .map(|layer| self.config.input_of(layer) + self.config.hidden)
            .sum();
        let rows = self
            .batch()
            .saturating_mul(self.config.cell.gates() * self.config.hidden);
        rows.saturating_mul(values)
    }

    /// What was frozen.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The name of what the weights are stored as.
    pub fn weights(&self) -> &'static str {
        match self.storage {
            Storage::Own => E::NAME,
            Storage::Bfloat16 => "bfloat16",
        }
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.still.batch()
    }

    /// One step of every stream: `y` [B, H] from `x` [B, I]. Allocates nothing, takes no lock.
    ///
    /// # Errors
    /// Slices of a wrong size; or a watch that stopped the step, whose state is then neither the old
    /// one nor the new one: set or reset it.
    pub fn step(&mut self, x: &[E], y: &mut [E], watch: &Watch<'_>) -> Result<()> {
        self.check_row("x", "I", self.config.input, x.len())?;
        self.check_row("out", "H", self.config.hidden, y.len())?;
        let (config, still) = (&self.config, &self.still);
        let last = self.layers.len() - 1;
        for layer in 0..=last {
            let (below, at) = self.layers.split_at_mut(layer);
            let input = below.last().map_or(x, |below| &below.y);
            let out = (layer == last).then_some(&mut *y);
            let mut share = at[0].step(config, still, (layer, input), out, watch.meter());
            E::dispatch(self.level, &mut share)?;
        }
        Ok(())
    }

    fn check_row(&self, name: &str, letter: &str, width: usize, got: usize) -> Result<()> {
        if got != self.batch() * width {
            let expected = format!("(B, {letter}) = ({}, {width})", self.batch());
            return Err(Error::shape(name, expected, shape_text(&[got])));
        }
        Ok(())
    }

    /// Many steps: y as the layer would give it from the state at hand, which moves on. An error leaves
    /// the state as it was.
    ///
    /// # Errors
    /// x of a wrong shape or with lengths, memory that cannot be had, or a watch that stopped the call.
    pub fn run(&mut self, execution: &Execution<'_>, input: Input<'_, E>) -> Result<Buffer<E>> {
        let schedule = self.schedule_of(&input)?;
        let (config, batch_first) = (&self.config, input.batch_first);
        let mut sequence = if schedule.is_plain(batch_first) {
            Values::Borrowed(input.values)
        } else {
            let (values, what) = (input.values, "the copy of x (T * B * I)");
            let meter = execution.watch.meter();
            Values::Owned(pack(
                values,
                &schedule,
                batch_first,
                config.input,
                what,
                &meter,
            )?)
        };
        let threads = plan::threads(config, &schedule, Pass::Forward, execution.threads);
        let team = execution.team(threads);
        let means = Means::of::<E>(&team, self.level);
        let mut states = crate::memory::reserved(config.layers, "the states (L)")?;
        for layer in 0..config.layers {
            let (y, state) = self.run_layer(layer, means, &schedule, &sequence)?;
            sequence = Values::Owned(y);
            states.push(state);
        }
        let (what, meter) = ("y (T * B * H)", execution.watch.meter());
        let (packed, hidden) = (sequence.into_owned(what)?, config.hidden);
        let y = unpack(packed, &schedule, batch_first, hidden, what, &meter)?;
        for (frozen, state) in self.layers.iter_mut().zip(states) {
            frozen.state = state;
        }
        Ok(y)
    }

    fn schedule_of(&self, input: &Input<'_, E>) -> Result<Schedule> {
        let [_, _, features] = input.shape;
        let (time, batch) = input.sizes();
        if batch != self.batch() || features != self.config.input {
            let (b, i) = (self.batch(), self.config.input);
            let expected = if input.batch_first {
                format!("(B, T, I) = ({b}, T, {i})")
            } else {
                format!("(T, B, I) = (T, {b}, {i})")
            };
            return Err(Error::shape("x", expected, shape_text(&input.shape)));
        }
        let len = input.values.len();
        if len != product(&input.shape, "x (T * B * I)")? {
            return Err(Error::shape(
                "x",
                shape_text(&input.shape),
                shape_text(&[len]),
            ));
        }
        if input.lengths.is_some() {
            let expected = "none: every stream of a frozen layer takes every step";
            return Err(Error::value("lengths", expected, "an array"));
        }
        Schedule::dense(time, batch)
    }

    /// One layer over all steps: [N, H] from [N, I], and the state after them.
    fn run_layer(
        &self,
        layer: usize,
        means: Means<'_>,
        schedule: &Schedule,
        input: &[E],
    ) -> Result<(Buffer<E>, DirectionState<E>)> {
        let (config, frozen) = (&self.config, &self.layers[layer]);
        let what = "y (T * B * H)";
        let len = product(&[schedule.packed_rows(), config.hidden], what)?;
        // Every row of every step is written.
        let mut y = Buffer::stale(len, what)?;
        let direction = Direction {
            cell: config.cell,
            spec: config.cell.spec(),
            hidden: config.hidden,
            features: config.input_of(layer),
            reverse: false,
            schedule,
            still: &self.still,
            mask: None,
            input,
        };
        let cuts = means.cuts(&direction, 1);
        let mut run = ForwardRun {
            direction,
            weights: &frozen.weights,
            state: frozen.state.copied()?,
            buffers: ForwardBuffers::new(&direction, means.lanes, cuts)?,
        };
        if schedule.steps() > 0 {
            let out = Field::new(&mut y, rows_of(schedule, config.hidden));
            means.run(run.shares(means.team, 0..schedule.steps(), Some(out), None))?;
        }
        let state = run.state;
        Ok((y, state))
    }

    /// The state: h, and c of an LSTM, (L, B, H) each.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn state(&self) -> Result<Vec<Vec<E>>> {
        let what = "the state (L * B * H)";
        let mut state = Vec::new();
        for member in 0..self.config.cell.state_members() {
            let mut values = crate::memory::reserved(self.state_len(), what)?;
            for layer in &self.layers {
                values.extend_from_slice(if member == 0 {
                    &layer.state.h
                } else {
                    &layer.state.c
                });
            }
            state.push(values);
        }
        Ok(state)
    }

    /// L * B * H.
    pub fn state_len(&self) -> usize {
        self.config.layers * self.batch() * self.config.hidden
    }

    /// Sets the state.
    ///
    /// # Errors
    /// Slices of a wrong number or size; the state is then as it was.
    pub fn set_state(&mut self, state: &[&[E]]) -> Result<()> {
        let members = self.config.cell.state_members();
        if state.len() != members {
            let expected = format!("{members} arrays");
            return Err(Error::value("state", expected, state.len()));
        }
        let (l, b, h) = (self.config.layers, self.batch(), self.config.hidden);
        for part in state {
            if part.len() != self.state_len() {
                let expected = format!("(L, B, H) = ({l}, {b}, {h})");
                return Err(Error::shape("state", expected, shape_text(&[part.len()])));
            }
        }
        let len = self.batch() * self.config.hidden;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let range = index * len..(index + 1) * len;
            layer.state.h.copy_from_slice(&state[0][range.clone()]);
            if let Some(c) = state.get(1) {
                layer.state.c.copy_from_slice(&c[range]);
            }
        }
        Ok(())
    }

    /// Sets the state of some streams, or of all, back to zero.
    ///
    /// # Errors
    /// A row that does not exist; the state is then as it was.
    pub fn reset(&mut self, rows: Option<&[usize]>) -> Result<()> {
        let (batch, hidden) = (self.batch(), self.config.hidden);
        if let Some(&row) = rows.unwrap_or_default().iter().find(|&&row| row >= batch) {
            return Err(Error::value(
                "rows",
                format!("integers from 0 to B - 1 = {}", batch - 1),
                row,
            ));
        }
        for DirectionState { h, c } in self.layers.iter_mut().map(|layer| &mut layer.state) {
            for member in [h, c].into_iter().filter(|member| !member.is_empty()) {
                match rows {
                    None => member.fill(E::ZERO),
                    Some(rows) => rows
                        .iter()
                        .for_each(|row| member[row * hidden..(row + 1) * hidden].fill(E::ZERO)),
                }
            }
        }
        Ok(())
    }
}

impl<E: Element> FrozenLayer<E> {
    fn new(
        config: &Config,
        means: Means<'_>,
        params: &[&[E]],
        layer: usize,
        (batch, storage): (usize, Storage),
    ) -> Result<Self> {
        let (spec, sizes) = (config.cell.spec(), (config.hidden, config.input_of(layer)));
        let count = config.params_per_direction();
        let own = &params[layer * count..(layer + 1) * count];
        let params = Params {
            weight_ih: own[0],
            weight_hh: own[1],
            bias: config.bias.then(|| (own[2], own[3])),
        };
        let len = product(&[batch, config.hidden], "the state (B * H)")?;
        let zeros = || zeros(len, "the state");
        let relay = || Relay::new(batch, 1, config.hidden, "the workspace of a step");
        let state = DirectionState {
            h: zeros()?,
            c: if spec.has_cell { zeros()? } else { Vec::new() },
        };
        Ok(Self {
            weights: ForwardWeights::pack(&spec, means.team, means.lanes, params, sizes, storage)?,
            space: Workspace::new(&spec, means.lanes, batch, 1, sizes)?,
            operand: relay()?,
            reset_operand: spec.has_reset_stage().then(relay).transpose()?,
            y: copied(&state.h, "the outputs")?,
            state,
        })
    }

    /// One step of all rows, into `out` or else into this layer's `y`.
    fn step<'a>(
        &'a mut self,
        config: &Config,
        still: &'a Schedule,
        (layer, input): (usize, &'a [E]),
        out: Option<&'a mut [E]>,
        meter: Meter<'a>,
    ) -> ForwardShare<'a, E> {
        let (spec, layout) = (config.cell.spec(), rows_of(still, config.hidden));
        let Self {
            weights,
            state,
            space,
            operand,
            reset_operand,
            y,
        } = self;
        operand.copies()[0].copy_from_slice(&state.h);
        ForwardShare {
            cell: config.cell,
            spec,
            weights,
            hidden: config.hidden,
            features: config.input_of(layer),
            schedule: still,
            steps: 0..1,
            reverse: false,
            distance: usize::MAX,
            rows: 0..still.batch(),
            units: 0..config.hidden,
            input,
            mask: None,
            fields: ForwardFields {
                state: StateFields {
                    h: Field::new(&mut state.h, layout),
                    c: spec.has_cell.then(|| Field::new(&mut state.c, layout)),
                },
                y: Some(Field::new(out.unwrap_or(y), layout)),
                tape: None,
                checkpoints: None,
            },
            operand: operand.end(),
            reset_operand: reset_operand.as_mut().map(Relay::end),
            space,
            meter,
        }
    }
}

/// The layout of [N, H] packed rows, or of one step's [B, H].
fn rows_of(schedule: &Schedule, hidden: usize) -> Layout<'_> {
    Layout {
        schedule,
        first_step: 0,
        slots: 1,
        width: hidden,
    }
}
