//! A snapshot of a layer's weights, packed once, with a state of its own: for streams.

use std::borrow::Cow;

use crate::cell::Spec;
use crate::error::{Error, Result, shape_text};
use crate::gemm::view::{Field, Layout};
use crate::layer::config::Config;
use crate::layer::direction::{Direction, ForwardTargets};
use crate::layer::forward::{ForwardShare, StateFields, Workspace};
use crate::layer::merge::{pack, unpack};
use crate::layer::stack::{Execution, Input, Stack};
use crate::layer::tape::DirectionState;
use crate::layer::weights::{ForwardWeights, Lanes, Params};
use crate::memory::{copied, filled, product};
use crate::parallel::{Team, Watch};
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// One layer of a [`Frozen`].
struct FrozenLayer<E> {
    weights: ForwardWeights<E>,
    state: DirectionState<E>,
    /// For one step of all rows.
    space: Workspace<E>,
    /// [B, H] this layer's output, the next one's input.
    y: Vec<E>,
}

/// Packed weights of a stack with one direction, and the state of B independent streams.
pub struct Frozen<E> {
    config: Config,
    level: Level,
    /// One step of B rows.
    still: Schedule,
    layers: Vec<FrozenLayer<E>>,
}

impl<E: Element> Frozen<E> {
    /// Packs `params` for `batch` streams; the state begins at zero.
    ///
    /// # Errors
    /// A stack with two directions (the second would have to see the future), parameters of a wrong
    /// size, or memory that cannot be had.
    pub fn new(
        stack: &Stack,
        execution: &Execution<'_>,
        params: &[&[E]],
        batch: usize,
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
        let lanes = Lanes::of::<E>(execution.level);
        let team = Team::assemble(1, &execution.watch);
        let count = config.params_per_direction();
        let layers = (0..config.layers).map(|layer| {
            let own = &params[layer * count..(layer + 1) * count];
            let params = Params {
                weight_ih: own[0],
                weight_hh: own[1],
                bias: config.bias.then(|| (own[2], own[3])),
            };
            FrozenLayer::new(
                &config.cell.spec(),
                &team,
                lanes,
                params,
                batch,
                (config.hidden, config.input_of(layer)),
            )
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            config,
            level: execution.level,
            still: Schedule::dense(1, batch)?,
        })
    }

    /// What was frozen.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.still.batch()
    }

    /// One step of every stream: `y` [B, H] from `x` [B, I]. Allocates nothing, takes no lock.
    ///
    /// # Errors
    /// Slices of a wrong size.
    pub fn step(&mut self, x: &[E], y: &mut [E]) -> Result<()> {
        for (name, letter, width, got) in [
            ("x", "I", self.config.input, x.len()),
            ("out", "H", self.config.hidden, y.len()),
        ] {
            if got != self.batch() * width {
                let expected = format!("(B, {letter}) = ({}, {width})", self.batch());
                return Err(Error::shape(name, expected, shape_text(&[got])));
            }
        }
        let Self {
            config,
            level,
            still,
            layers,
        } = self;
        let unattended = Watch::unattended();
        let layout = Layout {
            schedule: still,
            first_step: 0,
            slots: 1,
            width: config.hidden,
        };
        let (last, spec) = (layers.len() - 1, config.cell.spec());
        for layer in 0..=last {
            let (below, at) = layers.split_at_mut(layer);
            let FrozenLayer {
                weights,
                state,
                space,
                y: own,
            } = &mut at[0];
            let share = ForwardShare {
                cell: config.cell,
                spec,
                weights,
                hidden: config.hidden,
                features: config.input_of(layer),
                schedule: still,
                steps: 0..1,
                reverse: false,
                rows: 0..still.batch(),
                input: below.last().map_or(x, |below| &below.y),
                mask: None,
                state: StateFields {
                    h: Field::new(&mut state.h, layout),
                    c: spec.has_cell.then(|| Field::new(&mut state.c, layout)),
                },
                y: Some(Field::new(
                    if layer == last { &mut *y } else { own },
                    layout,
                )),
                tape: None,
                space,
                meter: unattended.meter(),
            };
            E::dispatch(*level, share)?;
        }
        Ok(())
    }

    /// Many steps: y as the layer would give it from the state at hand, which moves on. An error leaves
    /// the state as it was.
    ///
    /// # Errors
    /// x of a wrong shape, memory that cannot be had, or a watch that stopped the call.
    pub fn run(&mut self, execution: &Execution<'_>, input: Input<'_, E>) -> Result<Vec<E>> {
        let [first, second, features] = input.shape;
        let (time, batch) = if input.batch_first {
            (second, first)
        } else {
            (first, second)
        };
        if batch != self.batch() || features != self.config.input {
            let (b, i) = (self.batch(), self.config.input);
            let expected = if input.batch_first {
                format!("({b}, T, {i})")
            } else {
                format!("(T, {b}, {i})")
            };
            return Err(Error::shape("x", expected, shape_text(&input.shape)));
        }
        let schedule = Schedule::dense(time, batch)?;
        let schedule = &schedule;
        let (config, still) = (&self.config, &self.still);
        let lanes = Lanes::of::<E>(self.level);
        let mut states: Vec<_> = self
            .layers
            .iter()
            .map(|layer| layer.state.copied())
            .collect::<Result<_>>()?;
        let mut sequence = if schedule.is_plain(input.batch_first) {
            Cow::Borrowed(input.values)
        } else {
            Cow::Owned(pack(
                input.values,
                schedule,
                input.batch_first,
                config.input,
                "the copy of x",
            )?)
        };
        let work = schedule
            .packed_rows()
            .saturating_mul(config.cell.gates() * config.hidden * (config.input + config.hidden));
        let team = Team::assemble(
            execution.threads_for(work, schedule.batch()),
            &execution.watch,
        );
        for (layer, (frozen, state)) in self.layers.iter().zip(&mut states).enumerate() {
            let what = "y (T * B * H)";
            let mut y = filled(
                product(&[schedule.packed_rows(), config.hidden], what)?,
                E::ZERO,
                what,
            )?;
            let features = config.input_of(layer);
            let direction = Direction {
                cell: config.cell,
                spec: config.cell.spec(),
                hidden: config.hidden,
                features,
                reverse: false,
                schedule,
                still,
                mask: None,
                input: &sequence,
            };
            let cuts = schedule.split_rows(team.size());
            let mut spaces = direction.forward_spaces(lanes, &cuts)?;
            let layout = Layout {
                schedule,
                first_step: 0,
                slots: 1,
                width: config.hidden,
            };
            let targets = ForwardTargets {
                state,
                y: Some(Field::new(&mut y, layout)),
                tape: None,
            };
            if schedule.steps() > 0 {
                let shares = direction.forward_shares(
                    &team,
                    &frozen.weights,
                    0..schedule.steps(),
                    targets,
                    &cuts,
                    &mut spaces,
                );
                team.run(shares, |share| E::dispatch(self.level, share))?;
            }
            sequence = Cow::Owned(y);
        }
        let y = unpack(
            sequence.into_owned(),
            schedule,
            input.batch_first,
            config.hidden,
            "y (T * B * H)",
        )?;
        for (frozen, state) in self.layers.iter_mut().zip(states) {
            frozen.state = state;
        }
        Ok(y)
    }

    /// The state: h, and c of an LSTM, (L, B, H) each.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn state(&self) -> Result<Vec<Vec<E>>> {
        let members = if self.config.cell.has_cell_state() {
            2
        } else {
            1
        };
        let what = "the state (L * B * H)";
        let mut state = Vec::new();
        for member in 0..members {
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
        let members = if self.config.cell.has_cell_state() {
            2
        } else {
            1
        };
        if state.len() != members {
            return Err(Error::value(
                "state",
                format!("{members} arrays"),
                state.len(),
            ));
        }
        for part in state {
            if part.len() != self.state_len() {
                let expected = format!(
                    "(L, B, H) = ({}, {}, {})",
                    self.config.layers,
                    self.batch(),
                    self.config.hidden
                );
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
                format!("values between 0 and B - 1 = {}", batch - 1),
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
        spec: &Spec,
        team: &Team<'_>,
        lanes: Lanes,
        params: Params<'_, E>,
        batch: usize,
        (hidden, features): (usize, usize),
    ) -> Result<Self> {
        let len = product(&[batch, hidden], "the state (B * H)")?;
        let zeros = || filled(len, E::ZERO, "the state");
        let state = DirectionState {
            h: zeros()?,
            c: if spec.has_cell { zeros()? } else { Vec::new() },
        };
        Ok(Self {
            weights: ForwardWeights::pack(spec, team, lanes, params, (hidden, features))?,
            space: Workspace::new(spec, lanes, batch, 1, (hidden, features))?,
            y: copied(&state.h, "the outputs")?,
            state,
        })
    }
}
