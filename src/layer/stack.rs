//! Layers x directions: the entry points of the library.

use std::borrow::Cow;
use std::ops::Range;

use crate::cell::Spec;
use crate::error::{Error, Result, shape_text};
use crate::gemm::view::{Field, Layout};
use crate::layer::config::{Config, Merge};
use crate::layer::direction::{BackwardTargets, Direction, ForwardTargets, Means, OutputGradient};
use crate::layer::dropout::Masks;
use crate::layer::forward::Workspace;
use crate::layer::merge::{
    merge, merge_backward, pack, pack_state, unpack, unpack_columns, unpack_state,
};
use crate::layer::products::ParamGradients;
use crate::layer::tape::{
    DirectionState, DirectionTape, Kept, Segment, StepTape, Tape, outputs, segments,
};
use crate::layer::weights::{BackwardWeights, ForwardWeights, Lanes, Params};
use crate::memory::{copied, filled, product};
use crate::parallel::{Team, Watch};
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// Multiply-adds that are worth a thread: about 50 us. A guess from the cost of waking one.
const WORTH_A_THREAD: usize = 2_500_000;

/// How a call computes.
pub struct Execution<'a> {
    /// The instruction set.
    pub level: Level,
    /// Threads at most.
    pub threads: usize,
    /// What may stop the call.
    pub watch: Watch<'a>,
}

impl Execution<'_> {
    /// How many threads `work` multiply-adds on `rows` rows are worth.
    pub(crate) fn threads_for(&self, work: usize, rows: usize) -> usize {
        self.threads.min(work / WORTH_A_THREAD).min(rows).max(1)
    }
}

/// The caller's x.
#[derive(Clone, Copy)]
pub struct Input<'a, E> {
    /// (T, B, I), or (B, T, I) when `batch_first`.
    pub values: &'a [E],
    /// Its shape, as it came.
    pub shape: [usize; 3],
    /// Batch before time.
    pub batch_first: bool,
    /// (B,)
    pub lengths: Option<&'a [i64]>,
}

/// What `forward` shall do besides computing y.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// Keep a tape.
    pub training: bool,
    /// Drop out, by these masks.
    pub masks: Option<Masks>,
    /// Keep every so many steps' state and recompute the rest in backward.
    pub checkpoint: Option<usize>,
}

/// What `forward` gives.
#[derive(Debug)]
pub struct Output<E> {
    /// (T, B, M), or (B, T, M).
    pub y: Vec<E>,
    /// h, and c of an LSTM: (L*D, B, H) each.
    pub state: Vec<Vec<E>>,
    /// For `backward`, when training.
    pub tape: Option<Tape<E>>,
}

/// What `backward` shall do besides the gradients.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackwardOptions {
    /// Give the gradient of every state too.
    pub state_grads: bool,
}

/// What `backward` gives.
#[derive(Debug)]
pub struct Gradients<E> {
    /// As x.
    pub x: Vec<E>,
    /// As the state.
    pub state: Vec<Vec<E>>,
    /// As the parameters, in their order.
    pub params: Vec<Vec<E>>,
    /// dL/dh_t and dL/dc_t, (T, B, H) or (B, T, H), direction by direction.
    pub state_grads: Vec<(Vec<E>, Option<Vec<E>>)>,
}

/// Recurrent layers on top of each other.
#[derive(Clone, Debug)]
pub struct Stack {
    config: Config,
}

impl Stack {
    /// Layers as `config` says.
    ///
    /// # Errors
    /// As [`Config::checked`].
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self {
            config: config.checked()?,
        })
    }

    /// What the layers are.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Forward through all layers.
    ///
    /// # Errors
    /// Arrays of a wrong size, memory that cannot be had, or a watch that stopped the call.
    pub fn forward<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        input: Input<'_, E>,
        state: Option<&[&[E]]>,
        options: ForwardOptions,
    ) -> Result<Output<E>> {
        self.check_params(params)?;
        let schedule = self.schedule_of(&input)?;
        if let Some(state) = state {
            self.check_state(
                "state",
                state.iter().map(|part| Some(part.len())),
                schedule.batch(),
            )?;
        }
        if options.checkpoint == Some(0) {
            return Err(Error::value("checkpoint", "at least 1", 0));
        }
        let call = Call::new(
            &self.config,
            execution,
            &schedule,
            options.masks,
            Flow::Forward,
        )?;
        call.forward(params, input, state, options)
    }

    /// Back through all layers. The tape is only read.
    ///
    /// # Errors
    /// As [`Self::forward`], and a tape of another layer.
    pub fn backward<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        tape: &Tape<E>,
        dy: Option<&[E]>,
        dstate: &[Option<&[E]>],
        options: BackwardOptions,
    ) -> Result<Gradients<E>> {
        self.check_tape(params, tape)?;
        let schedule = &tape.schedule;
        if let Some(dy) = dy
            && dy.len()
                != product(
                    &[schedule.time(), schedule.batch(), self.config.output()],
                    "dy (T * B * M)",
                )?
        {
            let expected = format!(
                "(T, B, M) = ({}, {}, {})",
                schedule.time(),
                schedule.batch(),
                self.config.output()
            );
            return Err(Error::shape("dy", expected, shape_text(&[dy.len()])));
        }
        if !dstate.is_empty() {
            self.check_state(
                "dstate",
                dstate.iter().map(|part| part.map(<[E]>::len)),
                schedule.batch(),
            )?;
        }
        let call = Call::new(
            &self.config,
            execution,
            schedule,
            tape.masks,
            Flow::Backward,
        )?;
        call.backward(params, tape, dy, dstate, options)
    }

    /// Every gate's activation: direction by direction, gate by gate, (T, B, H) or (B, T, H), 0 beyond
    /// the lengths. With checkpoints they are computed again from `params`.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn gates<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        tape: &Tape<E>,
    ) -> Result<Vec<Vec<(&'static str, Vec<E>)>>> {
        self.check_tape(params, tape)?;
        let call = Call::new(
            &self.config,
            execution,
            &tape.schedule,
            tape.masks,
            Flow::Forward,
        )?;
        call.gates(params, tape)
    }

    pub(crate) fn check_params<E>(&self, params: &[&[E]]) -> Result<()> {
        let expected = self.config.params();
        if params.len() != expected.len() {
            return Err(Error::value(
                "params",
                format!("{} arrays", expected.len()),
                params.len(),
            ));
        }
        for (param, (name, shape)) in params.iter().zip(expected) {
            if param.len() != shape.iter().product::<usize>() {
                return Err(Error::shape(
                    name,
                    shape_text(&shape),
                    shape_text(&[param.len()]),
                ));
            }
        }
        Ok(())
    }

    fn check_tape<E>(&self, params: &[&[E]], tape: &Tape<E>) -> Result<()> {
        self.check_params(params)?;
        if tape.config != self.config {
            return Err(Error::tape("it was made by another layer"));
        }
        Ok(())
    }

    /// The schedule of the caller's x, held against the layer's sizes.
    fn schedule_of<E: Element>(&self, input: &Input<'_, E>) -> Result<Schedule> {
        let [first, second, features] = input.shape;
        let (time, batch) = if input.batch_first {
            (second, first)
        } else {
            (first, second)
        };
        if features != self.config.input
            || input.values.len() != product(&input.shape, "x (T * B * I)")?
        {
            let order = if input.batch_first { "B, T" } else { "T, B" };
            let expected = format!("({order}, I = {})", self.config.input);
            return Err(Error::shape("x", expected, shape_text(&input.shape)));
        }
        match input.lengths {
            Some(lengths) => Schedule::ragged(time, batch, lengths),
            None => Schedule::dense(time, batch),
        }
    }

    /// Holds (L*D, B, H) arrays against the layer's sizes, by their lengths.
    fn check_state(
        &self,
        name: &str,
        parts: impl ExactSizeIterator<Item = Option<usize>>,
        batch: usize,
    ) -> Result<()> {
        let members = if self.config.cell.has_cell_state() {
            2
        } else {
            1
        };
        if parts.len() != members {
            return Err(Error::value(name, format!("{members} arrays"), parts.len()));
        }
        let rows = self.config.layers * self.config.directions();
        let len = product(
            &[rows, batch, self.config.hidden],
            "the state (L * D * B * H)",
        )?;
        for part in parts.flatten() {
            if part != len {
                let expected = format!("(L*D, B, H) = ({rows}, {batch}, {})", self.config.hidden);
                return Err(Error::shape(name, expected, shape_text(&[part])));
            }
        }
        Ok(())
    }
}

/// Which way a call goes: backward does twice the work.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Forward,
    Backward,
}

/// What every layer of one call shares.
struct Call<'a> {
    config: &'a Config,
    spec: Spec,
    schedule: &'a Schedule,
    /// One step of B rows: where states lie.
    still: Schedule,
    masks: Option<Masks>,
    team: Team<'a>,
    level: Level,
}

impl<'a> Call<'a> {
    fn new(
        config: &'a Config,
        execution: &'a Execution<'_>,
        schedule: &'a Schedule,
        masks: Option<Masks>,
        flow: Flow,
    ) -> Result<Self> {
        let still = Schedule::dense(1, schedule.batch())?;
        let (hidden, directions) = (config.hidden, config.directions());
        let per_row: usize = (0..config.layers.min(2))
            .map(|layer| config.input_of(layer).saturating_add(hidden))
            .fold(0, usize::max)
            .saturating_mul(
                config.cell.gates() * hidden * if flow == Flow::Backward { 2 } else { 1 },
            );
        let work = schedule.packed_rows().saturating_mul(per_row);
        let shares = schedule.batch() * if flow == Flow::Forward { directions } else { 1 };
        let team = Team::assemble(execution.threads_for(work, shares), &execution.watch);
        Ok(Self {
            config,
            spec: config.cell.spec(),
            schedule,
            still,
            masks,
            team,
            level: execution.level,
        })
    }

    fn means<E: Element>(&self) -> Means<'_, 'a> {
        Means {
            team: &self.team,
            level: self.level,
            lanes: Lanes::of::<E>(self.level),
        }
    }

    fn params<'p, E>(&self, params: &[&'p [E]], index: usize) -> Params<'p, E> {
        let count = self.config.params_per_direction();
        let own = &params[index * count..(index + 1) * count];
        Params {
            weight_ih: own[0],
            weight_hh: own[1],
            bias: self.config.bias.then(|| (own[2], own[3])),
        }
    }

    /// The recurrent masks of a layer's directions.
    fn recurrent_masks<E: Element>(&self, layer: usize) -> Result<Vec<Option<Vec<E>>>> {
        let p = self.config.recurrent_dropout;
        let mask = |direction| match self.masks {
            Some(masks) if p > 0.0 => masks
                .recurrent((layer, direction), p, self.schedule, self.config.hidden)
                .map(Some),
            _ => Ok(None),
        };
        (0..self.config.directions()).map(mask).collect()
    }

    /// [N, width] leaves `layer`: features are dropped, or gradients of dropped features are.
    fn drop_between<E: Element>(&self, layer: usize, values: &mut [E]) {
        if let Some(masks) = self.masks
            && self.config.dropout > 0.0
        {
            masks.between_layers(
                layer,
                self.config.dropout,
                self.schedule,
                self.config.output(),
                values,
            );
        }
    }

    fn direction<'d, E: Element>(
        &'d self,
        layer: usize,
        direction: usize,
        mask: Option<&'d [E]>,
        input: &'d [E],
    ) -> Direction<'d, E> {
        Direction {
            cell: self.config.cell,
            spec: self.spec,
            hidden: self.config.hidden,
            features: self.config.input_of(layer),
            reverse: direction == 1,
            schedule: self.schedule,
            still: &self.still,
            mask,
            input,
        }
    }

    /// The state of one direction, from the caller's (L*D, B, H) arrays.
    fn state_of<E: Element>(
        &self,
        state: &[Option<&[E]>],
        index: usize,
    ) -> Result<DirectionState<E>> {
        let len = self.schedule.batch() * self.config.hidden;
        let part = |member: usize| {
            let values = state.get(member).copied().flatten();
            pack_state(
                values.map(|values| &values[index * len..(index + 1) * len]),
                self.schedule,
                self.config.hidden,
            )
        };
        Ok(DirectionState {
            h: part(0)?,
            c: if self.spec.has_cell {
                part(1)?
            } else {
                Vec::new()
            },
        })
    }

    /// (L*D, B, H) arrays for the state or its gradient.
    fn new_state<E: Element>(&self, what: &str) -> Result<Vec<Vec<E>>> {
        let config = self.config;
        let len = product(
            &[
                config.layers,
                config.directions(),
                self.schedule.batch(),
                config.hidden,
            ],
            what,
        )?;
        let members = if config.cell.has_cell_state() { 2 } else { 1 };
        (0..members).map(|_| filled(len, E::ZERO, what)).collect()
    }

    /// Writes one direction's state into the caller's arrays.
    fn put_state<E: Element>(&self, from: &DirectionState<E>, to: &mut [Vec<E>], index: usize) {
        let len = self.schedule.batch() * self.config.hidden;
        for (values, target) in [&from.h, &from.c].into_iter().zip(to) {
            unpack_state(
                values,
                self.schedule,
                self.config.hidden,
                &mut target[index * len..(index + 1) * len],
            );
        }
    }

    /// Whether two directions are written side by side, or there is only one.
    fn is_side_by_side(&self) -> bool {
        self.config.directions() == 1 || self.config.merge == Merge::Concat
    }

    fn forward<E: Element>(
        &self,
        params: &[&[E]],
        input: Input<'_, E>,
        state: Option<&[&[E]]>,
        options: ForwardOptions,
    ) -> Result<Output<E>> {
        let config = self.config;
        let before: Vec<Option<&[E]>> = state
            .unwrap_or_default()
            .iter()
            .map(|part| Some(*part))
            .collect();
        let mut state = self.new_state("the state (L * D * B * H)")?;
        let mut tape = options.training.then(|| Tape {
            config: config.clone(),
            schedule: self.schedule.clone(),
            batch_first: input.batch_first,
            masks: self.masks,
            inputs: Vec::new(),
            directions: Vec::new(),
        });
        let mut sequence = if !options.training && self.schedule.is_plain(input.batch_first) {
            Cow::Borrowed(&input.values[..self.schedule.packed_rows() * config.input])
        } else {
            Cow::Owned(pack(
                input.values,
                self.schedule,
                input.batch_first,
                config.input,
                "the copy of x (T * B * I)",
            )?)
        };
        for layer in 0..config.layers {
            let tapes = tape.as_mut().map(|tape| &mut tape.directions);
            let y = self.layer_forward(
                params,
                layer,
                &sequence,
                (&before, &mut state),
                options.checkpoint,
                tapes,
            )?;
            let input = std::mem::replace(&mut sequence, Cow::Owned(y));
            if let Some(tape) = &mut tape {
                tape.inputs.push(input.into_owned());
            }
            if layer + 1 < config.layers {
                self.drop_between(layer, sequence.to_mut());
            }
        }
        let y = unpack(
            sequence.into_owned(),
            self.schedule,
            input.batch_first,
            config.output(),
            "y (T * B * M)",
        )?;
        Ok(Output { y, state, tape })
    }

    /// One layer, both directions: [N, M] from [N, I].
    #[allow(clippy::too_many_arguments)]
    fn layer_forward<E: Element>(
        &self,
        params: &[&[E]],
        layer: usize,
        input: &[E],
        (before, after): (&[Option<&[E]>], &mut [Vec<E>]),
        checkpoint: Option<usize>,
        mut tapes: Option<&mut Vec<DirectionTape<E>>>,
    ) -> Result<Vec<E>> {
        let (config, schedule, means) = (self.config, self.schedule, self.means::<E>());
        let (hidden, count, steps) = (config.hidden, config.directions(), schedule.steps());
        let masks = self.recurrent_masks::<E>(layer)?;
        let mut runs = Vec::with_capacity(count);
        let cuts = schedule.split_rows(self.team.size().div_ceil(count));
        for d in 0..count {
            let index = layer * count + d;
            let direction = self.direction(layer, d, masks[d].as_deref(), input);
            let sizes = (hidden, direction.features);
            runs.push(DirectionRun {
                weights: ForwardWeights::pack(
                    &self.spec,
                    &self.team,
                    means.lanes,
                    self.params(params, index),
                    sizes,
                )?,
                spaces: if steps > 0 {
                    direction.forward_spaces(means.lanes, &cuts)?
                } else {
                    Vec::new()
                },
                state: self.state_of(before, index)?,
                tape: DirectionTape {
                    segments: Vec::new(),
                    last: Vec::new(),
                    outputs: Vec::new(),
                },
                direction,
            });
        }
        let buffers = if self.is_side_by_side() { 1 } else { 2 };
        let len = product(
            &[schedule.packed_rows(), config.output()],
            "the outputs (N * M)",
        )?;
        let mut ys: Vec<Vec<E>> = (0..buffers)
            .map(|_| filled(len, E::ZERO, "the outputs (N * M)"))
            .collect::<Result<_>>()?;
        let all_segments: Vec<Vec<_>> = (0..count)
            .map(|d| segments(steps, checkpoint, d == 1).collect())
            .collect();
        for k in 0..all_segments[0].len() {
            let mut fields = self.output_fields(&mut ys).into_iter();
            let mut shares = Vec::new();
            for (run, segments) in runs.iter_mut().zip(&all_segments) {
                let range = segments[k].clone();
                if tapes.is_some() {
                    run.keep(range.clone(), checkpoint)?;
                }
                let DirectionRun {
                    direction,
                    weights,
                    spaces,
                    state,
                    tape,
                } = run;
                let tape = match tape.segments.last_mut() {
                    Some(Segment {
                        kept: Kept::Steps(tape),
                        ..
                    }) => Some(tape),
                    _ => None,
                };
                let targets = ForwardTargets {
                    state,
                    y: fields.next(),
                    tape,
                };
                shares.extend(
                    direction.forward_shares(&self.team, weights, range, targets, &cuts, spaces),
                );
            }
            self.team
                .run(shares, |share| E::dispatch(self.level, share))?;
        }
        for (d, run) in runs.iter_mut().enumerate() {
            self.put_state(&run.state, after, layer * count + d);
            let multiplied = !self.is_side_by_side() && config.merge == Merge::Mul;
            if self.spec.reads_output || multiplied {
                run.tape.last = copied(&run.state.h, "the tape")?;
            }
            if multiplied && checkpoint.is_some() && tapes.is_some() {
                run.tape.outputs = copied(&ys[d], "the tape")?;
            }
        }
        if let Some(tapes) = &mut tapes {
            tapes.extend(runs.into_iter().map(|run| run.tape));
        }
        let mut ys = ys.into_iter();
        let mut y = ys.next().unwrap_or_default();
        if let Some(reverse) = ys.next() {
            merge(config.merge, &mut y, &reverse);
        }
        Ok(y)
    }

    /// Where each direction writes its part of a layer's output.
    fn output_fields<'y, E: Element>(&'y self, ys: &'y mut [Vec<E>]) -> Vec<Field<'y, E>> {
        let width = self.config.output();
        let layout = Layout {
            schedule: self.schedule,
            first_step: 0,
            slots: 1,
            width,
        };
        let fields = ys.iter_mut().map(|y| Field::new(y, layout));
        if self.config.directions() == 2 && self.is_side_by_side() {
            fields
                .flat_map(|field| <[_; 2]>::from(field.split_columns(self.config.hidden)))
                .collect()
        } else {
            fields.collect()
        }
    }

    fn backward<E: Element>(
        &self,
        params: &[&[E]],
        tape: &Tape<E>,
        dy: Option<&[E]>,
        dstate: &[Option<&[E]>],
        options: BackwardOptions,
    ) -> Result<Gradients<E>> {
        let (config, schedule) = (self.config, self.schedule);
        let mut gradients = Gradients {
            x: Vec::new(),
            state: self.new_state("the gradient of the state")?,
            params: params
                .iter()
                .map(|p| filled(p.len(), E::ZERO, "the gradients of the parameters"))
                .collect::<Result<_>>()?,
            state_grads: Vec::new(),
        };
        let mut dy = match dy {
            None => None,
            Some(dy) if schedule.is_plain(tape.batch_first) => Some(Cow::Borrowed(dy)),
            Some(dy) => Some(Cow::Owned(pack(
                dy,
                schedule,
                tape.batch_first,
                config.output(),
                "the copy of dy",
            )?)),
        };
        for layer in (0..config.layers).rev() {
            let mut dx = self.layer_backward(
                params,
                layer,
                tape,
                dy.as_deref(),
                dstate,
                options,
                &mut gradients,
            )?;
            if layer > 0 {
                self.drop_between(layer - 1, &mut dx);
            }
            dy = Some(Cow::Owned(dx));
        }
        let dx = dy.map(Cow::into_owned).unwrap_or_default();
        gradients.x = unpack(
            dx,
            schedule,
            tape.batch_first,
            config.input,
            "the gradient of x",
        )?;
        gradients.state_grads.reverse();
        Ok(gradients)
    }

    /// Back through one layer: [N, I] from [N, M].
    #[allow(clippy::too_many_arguments)]
    fn layer_backward<E: Element>(
        &self,
        params: &[&[E]],
        layer: usize,
        tape: &Tape<E>,
        dy: Option<&[E]>,
        dstate: &[Option<&[E]>],
        options: BackwardOptions,
        gradients: &mut Gradients<E>,
    ) -> Result<Vec<E>> {
        let (config, means, hidden) = (self.config, self.means::<E>(), self.config.hidden);
        let (count, features) = (config.directions(), config.input_of(layer));
        let masks = self.recurrent_masks::<E>(layer)?;
        let rows = self.schedule.packed_rows();
        let mut dx = filled(
            product(&[rows, features], "the gradient of x")?,
            E::ZERO,
            "the gradient of x",
        )?;
        // Layers come last first: so do directions, to be turned around together.
        let mut shown_layer = Vec::new();
        for (d, mask) in masks.iter().enumerate() {
            let index = layer * count + d;
            let own = &tape.directions[index];
            let direction = self.direction(layer, d, mask.as_deref(), &tape.inputs[layer]);
            let (sizes, own_params) = ((hidden, features), self.params(params, index));
            let weights =
                BackwardWeights::pack(&self.spec, &self.team, means.lanes, own_params, sizes)?;
            let recomputed = own
                .segments
                .iter()
                .any(|segment| matches!(segment.kept, Kept::Checkpoint(_)));
            let forward_weights = match recomputed {
                true => Some(ForwardWeights::pack(
                    &self.spec,
                    &self.team,
                    means.lanes,
                    own_params,
                    sizes,
                )?),
                false => None,
            };
            let own_dy = match dy {
                Some(dy) => Some(self.direction_gradient(dy, tape, layer, d)?),
                None => None,
            };
            let own_dy = own_dy
                .as_ref()
                .map(|(values, width, column)| OutputGradient {
                    values,
                    width: *width,
                    column: *column,
                });
            let mut state = self.state_of(dstate, index)?;
            let mut shown = self.shown(options)?;
            let arrays = config.params_per_direction();
            let [weight_ih, weight_hh, bias @ ..] =
                &mut gradients.params[index * arrays..(index + 1) * arrays]
            else {
                unreachable!("a direction has two weights at least")
            };
            let bias = match bias {
                [input_side, recurrent_side] => {
                    Some((&mut input_side[..], &mut recurrent_side[..]))
                }
                _ => None,
            };
            let targets = BackwardTargets {
                state: &mut state,
                params: ParamGradients {
                    weight_ih,
                    weight_hh,
                },
                bias,
                dx: &mut dx,
                add_dx: d > 0,
                shown: shown
                    .as_mut()
                    .map(|(h, c)| (&mut h[..], c.as_mut().map(|c| &mut c[..]))),
            };
            direction.backward(
                means,
                (forward_weights.as_ref(), &weights),
                own,
                own_dy,
                targets,
            )?;
            self.put_state(&state, &mut gradients.state, index);
            if let Some((h, c)) = shown {
                let unpack = |values| {
                    unpack(
                        values,
                        self.schedule,
                        tape.batch_first,
                        hidden,
                        "the gradients of the states",
                    )
                };
                shown_layer.push((unpack(h)?, c.map(unpack).transpose()?));
            }
        }
        gradients.state_grads.extend(shown_layer.into_iter().rev());
        Ok(dx)
    }

    /// Room for the gradients of the states, if they are wanted.
    fn shown<E: Element>(
        &self,
        options: BackwardOptions,
    ) -> Result<Option<(Vec<E>, Option<Vec<E>>)>> {
        if !options.state_grads {
            return Ok(None);
        }
        let what = "the gradients of the states (T * B * H)";
        let len = product(&[self.schedule.packed_rows(), self.config.hidden], what)?;
        let c = if self.spec.has_cell {
            Some(filled(len, E::ZERO, what)?)
        } else {
            None
        };
        Ok(Some((filled(len, E::ZERO, what)?, c)))
    }

    /// What of dy [N, M] reaches one direction: values, their width, the first column.
    fn direction_gradient<'g, E: Element>(
        &self,
        dy: &'g [E],
        tape: &Tape<E>,
        layer: usize,
        direction: usize,
    ) -> Result<(Cow<'g, [E]>, usize, usize)> {
        let hidden = self.config.hidden;
        if self.is_side_by_side() {
            return Ok((Cow::Borrowed(dy), self.config.output(), direction * hidden));
        }
        let values = match self.config.merge {
            Merge::Mean => Cow::Owned(merge_backward(dy, None)?),
            Merge::Mul => {
                let other = 1 - direction;
                let own = &tape.directions[layer * 2 + other];
                let outputs = match &own.segments[..] {
                    [
                        Segment {
                            kept: Kept::Steps(steps_tape),
                            steps,
                        },
                    ] => Cow::Owned(outputs(
                        steps_tape,
                        steps.clone(),
                        self.schedule,
                        other == 1,
                        &own.last,
                        hidden,
                    )?),
                    _ => Cow::Borrowed(&own.outputs[..]),
                };
                Cow::Owned(merge_backward(dy, Some(&outputs))?)
            }
            Merge::Sum | Merge::Concat => Cow::Borrowed(dy),
        };
        Ok((values, hidden, 0))
    }

    fn gates<E: Element>(
        &self,
        params: &[&[E]],
        tape: &Tape<E>,
    ) -> Result<Vec<Vec<(&'static str, Vec<E>)>>> {
        let mut all = Vec::new();
        for layer in 0..self.config.layers {
            let masks = self.recurrent_masks::<E>(layer)?;
            for (d, mask) in masks.iter().enumerate() {
                let direction = self.direction(layer, d, mask.as_deref(), &tape.inputs[layer]);
                let index = layer * self.config.directions() + d;
                all.push(self.direction_gates(
                    &direction,
                    self.params(params, index),
                    &tape.directions[index],
                    tape.batch_first,
                )?);
            }
        }
        Ok(all)
    }

    fn direction_gates<E: Element>(
        &self,
        direction: &Direction<'_, E>,
        params: Params<'_, E>,
        tape: &DirectionTape<E>,
        batch_first: bool,
    ) -> Result<Vec<(&'static str, Vec<E>)>> {
        let (hidden, schedule, means) = (self.config.hidden, self.schedule, self.means::<E>());
        let what = "the gates (T * B * H)";
        let slots = self.spec.saved.max(1);
        let row_len = slots * hidden;
        let mut packed = filled(
            product(&[schedule.packed_rows(), row_len], what)?,
            E::ZERO,
            what,
        )?;
        let mut weights = None;
        for segment in &tape.segments {
            let steps = &segment.steps;
            let rows = schedule.offsets()[steps.start]..schedule.offsets()[steps.end];
            let to = &mut packed[rows.start * row_len..rows.end * row_len];
            let (again, last);
            let (steps_tape, last): (&StepTape<E>, &[E]) = match &segment.kept {
                Kept::Steps(steps_tape) => (steps_tape, &tape.last),
                Kept::Checkpoint(start) => {
                    if weights.is_none() {
                        let sizes = (hidden, direction.features);
                        weights = Some(ForwardWeights::pack(
                            &self.spec,
                            &self.team,
                            means.lanes,
                            params,
                            sizes,
                        )?);
                    }
                    let weights = weights.as_ref().expect("just packed");
                    (again, last) = direction.recompute(means, weights, steps.clone(), start)?;
                    (&again, &last.h)
                }
            };
            if self.spec.saved > 0 {
                to.copy_from_slice(&steps_tape.slots);
            } else {
                to.copy_from_slice(&outputs(
                    steps_tape,
                    steps.clone(),
                    schedule,
                    direction.reverse,
                    last,
                    hidden,
                )?);
            }
        }
        self.spec
            .gates
            .iter()
            .map(|&(name, slot)| {
                Ok((
                    name,
                    unpack_columns(
                        &packed,
                        row_len,
                        slot * hidden,
                        schedule,
                        batch_first,
                        hidden,
                        what,
                    )?,
                ))
            })
            .collect()
    }
}

/// One direction while its layer runs forward.
struct DirectionRun<'a, E> {
    direction: Direction<'a, E>,
    weights: ForwardWeights<E>,
    spaces: Vec<Workspace<E>>,
    state: DirectionState<E>,
    tape: DirectionTape<E>,
}

impl<E: Element> DirectionRun<'_, E> {
    /// Adds to the tape what backward will want of the next steps.
    fn keep(&mut self, steps: Range<usize>, checkpoint: Option<usize>) -> Result<()> {
        let kept = if checkpoint.is_some() {
            Kept::Checkpoint(self.state.copied()?)
        } else {
            let offsets = self.direction.schedule.offsets();
            Kept::Steps(StepTape::zeroed(
                &self.direction.spec,
                offsets[steps.end] - offsets[steps.start],
                self.direction.hidden,
            )?)
        };
        self.tape.segments.push(Segment { steps, kept });
        Ok(())
    }
}
