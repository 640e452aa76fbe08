//! A run forward: the rows of one direction in shares, segment after segment.
//!
//! A segment's shares are handed out rather than run, so that a layer's two directions can run at once.

use std::ops::Range;

use crate::error::Result;
use crate::gemm::view::Field;
use crate::layer::direction::cutter::{Cutter, StateCutter, TapeCutter};
use crate::layer::direction::{Direction, Means};
use crate::layer::forward::{ForwardShare, Workspace};
use crate::layer::plan;
use crate::layer::tape::{DirectionState, StepTape};
use crate::layer::weights::{ForwardWeights, Lanes};
use crate::parallel::Team;
use crate::simd::Element;

/// One direction on its way forward.
pub struct ForwardRun<'a, E> {
    /// What runs.
    pub direction: Direction<'a, E>,
    /// Its packed parameters.
    pub weights: &'a ForwardWeights<E>,
    /// [B, H] after the steps taken so far.
    pub state: DirectionState<E>,
    /// Its memory.
    pub buffers: ForwardBuffers<E>,
}

/// Everything that a run forward needs besides its results.
pub struct ForwardBuffers<E> {
    /// The rows of each share.
    cuts: Vec<Range<usize>>,
    /// One for each of `cuts`.
    spaces: Vec<Workspace<E>>,
}

impl<E: Element> ForwardBuffers<E> {
    /// For shares of the rows `cuts`.
    pub fn new(
        direction: &Direction<'_, E>,
        lanes: Lanes,
        cuts: Vec<Range<usize>>,
    ) -> Result<Self> {
        let Direction { spec, schedule, .. } = direction;
        let spaces = cuts
            .iter()
            .map(|rows| {
                Workspace::new(spec, lanes, rows.len(), schedule.steps(), direction.sizes())
            })
            .collect::<Result<_>>()?;
        Ok(Self { cuts, spaces })
    }
}

impl<'a, E: Element> ForwardRun<'a, E> {
    /// The shares of the next `steps`. They write `y` [N, H] and the `tape` of these steps, and move the
    /// state on.
    pub fn shares<'b>(
        &'b mut self,
        team: &'b Team<'_>,
        steps: Range<usize>,
        y: Option<Field<'b, E>>,
        tape: Option<&'b mut StepTape<E>>,
    ) -> Vec<ForwardShare<'b, E>>
    where
        'a: 'b,
    {
        let (direction, weights) = (self.direction, self.weights);
        let ForwardBuffers { cuts, spaces } = &mut self.buffers;
        let mut state = StateCutter::new(&direction, &mut self.state);
        let mut y = Cutter::new(y);
        let mut tape = tape.map(|tape| TapeCutter::new(&direction, steps.start, tape));
        let shares = cuts.iter().zip(spaces).map(|(rows, space)| ForwardShare {
            cell: direction.cell,
            spec: direction.spec,
            weights,
            hidden: direction.hidden,
            features: direction.features,
            schedule: direction.schedule,
            steps: steps.clone(),
            reverse: direction.reverse,
            rows: rows.clone(),
            input: direction.input,
            mask: direction.mask,
            state: state.take(rows.end),
            y: y.take(rows.end),
            tape: tape.as_mut().map(|tape| tape.take(rows.end)),
            space,
            meter: team.watch().meter(),
        });
        shares.collect()
    }
}

impl<E: Element> Direction<'_, E> {
    /// Makes the tape of `steps` again, from the state with which they began: the tape, and the state
    /// after them.
    pub fn recompute(
        &self,
        means: Means<'_>,
        weights: &ForwardWeights<E>,
        steps: &Range<usize>,
        start: &DirectionState<E>,
    ) -> Result<(StepTape<E>, DirectionState<E>)> {
        let mut tape = StepTape::new(&self.spec, self.rows_of(steps).len(), self.hidden)?;
        let cuts = plan::row_ranges(self.schedule, means.team.size(), 1);
        let mut run = ForwardRun {
            direction: *self,
            weights,
            state: start.copied()?,
            buffers: ForwardBuffers::new(self, means.lanes, cuts)?,
        };
        let shares = run.shares(means.team, steps.clone(), None, Some(&mut tape));
        means.run(shares)?;
        Ok((tape, run.state))
    }
}
