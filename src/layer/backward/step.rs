//! The walk of a share back through its steps, and the products of each step.

use std::ops::Range;

use super::BackwardShare;
use super::results::{CellsBack, PRE, Results};
use crate::cell::{Cell, MAX_SLOTS};
use crate::error::Result;
use crate::gemm::kernel::{Begin, Joint, Product, Rows, Term, multiply};
use crate::gemm::pack::{Panels, Turns, following, groups};
use crate::gemm::relay::RelayEnd;
use crate::gemm::row::{GateProduct, multiply_row};
use crate::layer::config::with_cell;
use crate::layer::weights::BackwardWeights;
use crate::parallel::Meter;
use crate::simd::{Element, Kernel, Simd};

/// Gates of a panel that are multiplied in one go should stay in L2 while rows pass over them.
const PANEL_BYTES: usize = 256 << 10;

impl<E: Element> Kernel<E> for &mut BackwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        with_cell!(self.cell, cell => s.enter(Walk { cell, share: self }))
    }
}

/// A share on its way back, with the cell as a type.
struct Walk<'w, 'a, E, C> {
    cell: C,
    share: &'w mut BackwardShare<'a, E>,
}

impl<E: Element, C: Cell> Kernel<E> for Walk<'_, '_, E, C> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        let Self { cell, share } = self;
        let (schedule, own) = (share.schedule, share.rows.clone());
        let mut step = Step {
            cell,
            weights: share.weights,
            units: share.units.clone(),
            sums: &mut share.space.sums,
            turns: &mut share.space.turns,
            results: Results::new::<C>(
                schedule,
                &own,
                &share.units,
                &mut share.fields,
                (share.tape, share.dy),
                (share.mask, share.hidden),
            ),
            relay: &mut share.relay,
            meter: &share.meter,
        };
        let (begin, count, reverse) = (share.steps.start, share.steps.len(), share.reverse);
        for k in 0..count {
            let t = if reverse {
                begin + k
            } else {
                begin + count - 1 - k
            };
            let rows = schedule.active(t).min(own.end).saturating_sub(own.start);
            if rows > 0 {
                step.results.strips.seek(t, rows);
                step.run(s)?;
            }
        }
        Ok(())
    }
}

/// Everything that the steps of a share read and write.
struct Step<'s, 'r, E, C> {
    cell: C,
    weights: &'s BackwardWeights<E>,
    units: Range<usize>,
    sums: &'s mut [E],
    turns: &'s mut Turns,
    results: Results<'s, E>,
    relay: &'s mut Option<RelayEnd<'r, E>>,
    meter: &'s Meter<'s>,
}

impl<E: Element, C: Cell> Step<'_, '_, E, C> {
    /// The mirror of a forward step.
    #[inline(always)]
    fn run<S: Simd<E>>(&mut self, s: S) -> Result<()> {
        self.turns.turn(self.weights.recurrent.are_far());
        self.cells(s);
        self.turn()?;
        if !C::CANDIDATE.is_empty() {
            self.stage(s, C::CANDIDATE)?;
            self.turn()?;
        }
        self.stage(s, C::RECURRENT)
    }

    /// dpre is complete once every worker of these rows has been here.
    #[inline(always)]
    fn turn(&mut self) -> Result<()> {
        match self.relay {
            Some(relay) => relay.turn(),
            None => Ok(()),
        }
    }

    /// [`Cell::backward`] for every unit of every row.
    #[inline(always)]
    fn cells<S: Simd<E>>(&mut self, s: S) {
        let rows = self.results.strips.rows();
        let next = self.relay.as_mut().map(|relay| relay.sides(rows).1);
        let (cell, results) = (self.cell, &mut self.results);
        s.enter(CellsBack {
            cell,
            results,
            next,
        });
    }

    /// Back through the recurrent product of `slots`, for this worker's units.
    #[inline(always)]
    fn stage<S: Simd<E>>(&mut self, s: S, slots: Range<usize>) -> Result<()> {
        let rows = self.results.strips.rows();
        let work = slots.len() * self.results.hidden;
        let panels = if slots == C::CANDIDATE {
            self.weights
                .candidate
                .as_ref()
                .expect("weights of a second stage")
        } else {
            &self.weights.recurrent
        };
        let per_panel = panels.row_len(0);
        assert!(self.units.start.is_multiple_of(per_panel));
        let range = self.units.start / per_panel..self.units.end.div_ceil(per_panel);
        if rows == 1 && S::FOR_SPEED {
            self.row(s, (panels, range), slots);
            return self.meter.spend(work * self.units.len());
        }
        let descending = self.turns.descending(s);
        for panel in groups(range.clone(), 1, descending).flatten() {
            let next = following(panel, &range, descending);
            self.panel(s, (panels, panel, next), slots.clone());
            self.meter.spend(rows * work * panels.row_len(panel))?;
        }
        Ok(())
    }

    /// One panel of units: dpre U of some gates at a time, so that their weights stay in L2, and the next ones
    /// are asked for; then its sums go where they belong.
    #[inline(always)]
    fn panel<S: Simd<E>>(
        &mut self,
        s: S,
        (panels, panel, next): (&Panels<E>, usize, Option<usize>),
        slots: Range<usize>,
    ) {
        let (hidden, rows) = (self.results.hidden, self.results.strips.rows());
        let width = panels.row_len(panel);
        let (vectors, gate_len) = (width / S::LANES, hidden * width);
        let first = panel * panels.row_len(0) - self.units.start;
        let weights = panels.from_panel(panel);
        let stride = C::SLOTS * hidden;
        let at_once = (PANEL_BYTES / (gate_len * size_of::<E>())).clamp(1, slots.len());
        let mut done = 0;
        while done < slots.len() {
            let gates = done..(done + at_once).min(slots.len());
            let pre = match self.relay {
                Some(relay) => relay.sides(rows).0,
                None => self.results.strips.whole_rows(PRE),
            };
            let pre = &pre[slots.start * hidden..];
            let mut terms = [Term {
                joint: Joint::Add,
                depth: hidden,
                a: Rows {
                    values: pre,
                    row_stride: stride,
                    depth_stride: 1,
                },
                panel: weights,
                panel_stride: width as isize,
                ahead: &[],
            }; MAX_SLOTS];
            for k in 0..gates.len() {
                let gate = gates.start + k;
                let term = &mut terms[k];
                term.a.values = &pre[gate * hidden..];
                term.panel = &weights[gate * gate_len..];
                if panels.are_far() {
                    let (panel, gate) = match gate + at_once {
                        gate if gate < slots.len() => (Some(panel), gate),
                        gate => (next, gate - slots.len()),
                    };
                    let ahead = gate * gate_len..(gate + 1) * gate_len;
                    term.ahead = panel.map_or(&[], |panel| panels.ahead(panel, ahead));
                }
                if gate > 0 {
                    term.joint = Joint::Chain;
                }
            }
            multiply(
                s,
                Product {
                    rows,
                    vectors,
                    begin: match gates.start {
                        0 => Begin::Zero,
                        _ => Begin::Sums,
                    },
                    terms: &terms[..gates.len()],
                    sums: self.sums,
                    sums_stride: width,
                },
            );
            done = gates.end;
        }
        self.arrive(s, slots == C::CANDIDATE, (first, width));
    }

    /// One row: all gates of a panel at once, or several panels of a single gate, each with a chain of sums.
    #[inline(always)]
    fn row<S: Simd<E>>(
        &mut self,
        s: S,
        (panels, range): (&Panels<E>, Range<usize>),
        slots: Range<usize>,
    ) {
        let pre = match self.relay {
            Some(relay) => relay.sides(1).0,
            None => self.results.strips.whole_rows(PRE),
        };
        multiply_row(
            s,
            GateProduct {
                gates: slots.len(),
                a: &pre[slots.start * self.results.hidden..],
                panels,
                range,
                descending: self.turns.descending(s),
                sums: self.sums,
            },
        );
        self.arrive(s, slots == C::CANDIDATE, (0, self.units.len()));
    }

    /// What `sums` holds of every row, `width` columns from unit `first` on, goes where it belongs: into
    /// the gradient of the state, or back through r*m*h'.
    #[inline(always)]
    fn arrive<S: Simd<E>>(&mut self, s: S, candidate: bool, (first, width): (usize, usize)) {
        let columns = width.min(self.units.len() - first);
        let rows = self.results.strips.rows();
        let mut next = match self.relay {
            Some(relay) if candidate => Some(relay.sides(rows).1),
            _ => None,
        };
        for r in 0..rows {
            let mut row = self.results.row(r);
            for column in (0..columns).step_by(S::LANES) {
                let sum = s.load(&self.sums[r * width + column..]);
                let unit = first + column;
                if candidate {
                    row.reset(s, self.cell, unit, sum, &mut next);
                } else {
                    row.add_to_state(s, unit, sum);
                }
            }
        }
    }
}
