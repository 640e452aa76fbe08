//! A run forward: the rows of one direction in shares.
//!
//! Shares are handed out rather than run, so that a layer's two directions can run at once.

use std::ops::Range;

use crate::error::Result;
use crate::gemm::relay::Relay;
use crate::gemm::view::Field;
use crate::layer::direction::cutter::{Columns, Cutter, StateCutter, TapeCutter};
use crate::layer::direction::{Direction, Means};
use crate::layer::forward::{ForwardFields, ForwardShare, Workspace};
use crate::layer::plan::Cuts;
use crate::layer::tape::{DirectionState, Kept, StepTape};
use crate::layer::weights::{ForwardWeights, Lanes};
use crate::parallel::Team;
use crate::simd::Element;

/// One direction on its way forward.
pub struct ForwardRun<'a, E> {
    /// What runs.
    pub direction: Direction<'a, E>,
    /// Its packed parameters.
    pub weights: &'a ForwardWeights<E>,
    /// [B, H] before the first step, then after the last.
    pub state: DirectionState<E>,
    /// Its memory.
    pub buffers: ForwardBuffers<E>,
}

/// Everything that a run forward needs besides its results.
pub struct ForwardBuffers<E> {
    cuts: Cuts,
    /// One for each range of rows.
    crews: Vec<Crew<E>>,
}

/// The workers of the same rows, and what they hand to one another.
struct Crew<E> {
    /// [rows, H] m*h'.
    operand: Relay<E>,
    /// [rows, H] r*m*h', of a cell with its reset before the product.
    reset_operand: Option<Relay<E>>,
    /// One for each range of units.
    spaces: Vec<Workspace<E>>,
}

impl<E: Element> ForwardBuffers<E> {
    /// For shares as cut.
    pub fn new(direction: &Direction<'_, E>, lanes: Lanes, cuts: Cuts) -> Result<Self> {
        let crews = cuts
            .rows
            .iter()
            .map(|rows| Crew::new(direction, lanes, rows.len(), &cuts.units))
            .collect::<Result<_>>()?;
        Ok(Self { cuts, crews })
    }
}

impl<E: Element> Crew<E> {
    fn new(
        direction: &Direction<'_, E>,
        lanes: Lanes,
        rows: usize,
        units: &[Range<usize>],
    ) -> Result<Self> {
        let Direction { spec, schedule, .. } = direction;
        let what = "the workspace of a forward pass";
        let relay = || Relay::new(rows, 1, direction.hidden, what);
        let space = |units: &Range<usize>| {
            let sizes = (units.len(), direction.features);
            Workspace::new(spec, lanes, rows, schedule.steps(), sizes)
        };
        Ok(Self {
            operand: relay()?,
            reset_operand: spec.has_reset_stage().then(relay).transpose()?,
            spaces: units.iter().map(space).collect::<Result<_>>()?,
        })
    }

    /// m*h' before the first step, of rows that enter later too: hence in both copies.
    fn load_operand(&mut self, h: &[E], mask: Option<&[E]>) {
        for copy in self.operand.copies() {
            match mask {
                None => copy.copy_from_slice(h),
                Some(mask) => {
                    for (value, (h, m)) in copy.iter_mut().zip(h.iter().zip(mask)) {
                        *value = *h * *m;
                    }
                }
            }
        }
    }
}

impl<'a, E: Element> ForwardRun<'a, E> {
    /// The shares of `steps`. They write `y` [N, H] and what is `kept` of these steps, and move the state on.
    pub fn shares<'b>(
        &'b mut self,
        team: &'b Team<'_>,
        steps: Range<usize>,
        y: Option<Field<'b, E>>,
        kept: Option<&'b mut Kept<E>>,
    ) -> Vec<ForwardShare<'b, E>>
    where
        'a: 'b,
    {
        let (direction, weights) = (self.direction, self.weights);
        let ForwardBuffers { cuts, crews } = &mut self.buffers;
        for (rows, crew) in cuts.rows.iter().zip(&mut *crews) {
            let own = rows.start * direction.hidden..rows.end * direction.hidden;
            let mask = direction.mask.map(|mask| &mask[own.clone()]);
            crew.load_operand(&self.state.h[own], mask);
        }
        let mut state = StateCutter::new(&direction, &mut self.state);
        let mut y = Cutter::new(y);
        let (mut tape, mut checkpoints, mut distance) = (None, None, usize::MAX);
        match kept {
            None => {}
            Some(Kept::Steps(kept)) => {
                tape = Some(TapeCutter::new(&direction, steps.start, kept));
            }
            Some(Kept::Checkpoints(kept)) => {
                // Segments count from the first step.
                assert_eq!(steps, 0..direction.schedule.steps());
                distance = kept.distance;
                checkpoints = Some(StateCutter::over(&direction, kept));
            }
        }
        let mut shares = Vec::with_capacity(cuts.rows.len() * cuts.units.len());
        for (rows, crew) in cuts.rows.iter().zip(crews) {
            let mut rest = ForwardFields {
                state: state.take(rows.end),
                y: y.take(rows.end),
                tape: tape.as_mut().map(|tape| tape.take(rows.end)),
                checkpoints: checkpoints.as_mut().map(|states| states.take(rows.end)),
            };
            let Crew {
                operand,
                reset_operand,
                spaces,
            } = crew;
            let operands = operand.ends(&cuts.units);
            let mut resets = reset_operand
                .as_mut()
                .map(|relay| relay.ends(&cuts.units).into_iter());
            for ((units, space), operand) in cuts.units.iter().zip(spaces).zip(operands) {
                let (fields, others) = rest.split_columns(units.len());
                rest = others;
                shares.push(ForwardShare {
                    cell: direction.cell,
                    spec: direction.spec,
                    weights,
                    hidden: direction.hidden,
                    features: direction.features,
                    schedule: direction.schedule,
                    steps: steps.clone(),
                    reverse: direction.reverse,
                    distance,
                    rows: rows.clone(),
                    units: units.clone(),
                    input: direction.input,
                    mask: direction.mask,
                    fields,
                    operand,
                    reset_operand: resets.as_mut().and_then(Iterator::next),
                    space,
                    meter: team.watch().meter(),
                });
            }
        }
        shares
    }
}

impl<E: Element> Direction<'_, E> {
    /// Makes the tape of `steps` again, from the `state` with which they began: the tape, and the state
    /// after them.
    pub fn recompute(
        &self,
        means: Means<'_>,
        weights: &ForwardWeights<E>,
        steps: &Range<usize>,
        state: DirectionState<E>,
    ) -> Result<(StepTape<E>, DirectionState<E>)> {
        let tape = StepTape::new(&self.spec, self.rows_of(steps).len(), self.hidden)?;
        let mut kept = Kept::Steps(tape);
        let cuts = means.cuts(self, 1);
        let mut run = ForwardRun {
            direction: *self,
            weights,
            state,
            buffers: ForwardBuffers::new(self, means.lanes, cuts)?,
        };
        means.run(run.shares(means.team, steps.clone(), None, Some(&mut kept)))?;
        match kept {
            Kept::Steps(tape) => Ok((tape, run.state)),
            Kept::Checkpoints(_) => unreachable!("steps were to be kept"),
        }
    }
}
