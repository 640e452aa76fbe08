//! What a layer is.

use crate::cell::{Spec, Update};
use crate::error::{Error, Result};
use crate::memory::product;

/// The recurrent cell and its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// Vanilla; tanh, or relu.
    Rnn {
        /// relu instead of tanh.
        relu: bool,
    },
    /// LSTM with forget gate.
    Lstm,
    /// GRU.
    Gru {
        /// The reset gate acts after the recurrent product.
        reset_after: bool,
        /// What the update gate does.
        update: Update,
    },
    /// Minimal gated unit.
    Mgu {
        /// The gate acts as a reset after the recurrent product.
        reset_after: bool,
        /// What the gate does as an update gate.
        update: Update,
    },
}

/// Evaluates an expression with the cell as a value of its own type.
macro_rules! with_cell {
    ($kind:expr, $cell:ident => $body:expr) => {{
        use $crate::cell::{GruAfter, GruBefore, Lstm, MguAfter, MguBefore, Rnn};
        use $crate::layer::CellKind;
        match $kind {
            CellKind::Rnn { relu } => {
                let $cell = Rnn { relu };
                $body
            }
            CellKind::Lstm => {
                let $cell = Lstm;
                $body
            }
            CellKind::Gru {
                reset_after: true,
                update,
            } => {
                let $cell = GruAfter { update };
                $body
            }
            CellKind::Gru {
                reset_after: false,
                update,
            } => {
                let $cell = GruBefore { update };
                $body
            }
            CellKind::Mgu {
                reset_after: true,
                update,
            } => {
                let $cell = MguAfter { update };
                $body
            }
            CellKind::Mgu {
                reset_after: false,
                update,
            } => {
                let $cell = MguBefore { update };
                $body
            }
        }
    }};
}
pub(crate) use with_cell;

impl CellKind {
    /// What drivers must know of the cell.
    pub fn spec(self) -> Spec {
        with_cell!(self, cell => Spec::of(cell))
    }

    /// G: row blocks of the weights.
    pub fn gates(self) -> usize {
        self.spec().gates.len()
    }

    /// Whether the state has a second member, c.
    pub fn has_cell_state(self) -> bool {
        self.spec().has_cell
    }

    /// Members of the state: h, and c if there is one.
    pub fn state_members(self) -> usize {
        1 + usize::from(self.has_cell_state())
    }
}

/// How two directions become one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Side by side: M = 2H.
    Concat,
    /// Added.
    Sum,
    /// Averaged.
    Mean,
    /// Multiplied.
    Mul,
}

/// Everything about a layer but its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The cell.
    pub cell: CellKind,
    /// I.
    pub input: usize,
    /// H.
    pub hidden: usize,
    /// L.
    pub layers: usize,
    /// D = 2 instead of 1.
    pub bidirectional: bool,
    /// How directions combine.
    pub merge: Merge,
    /// Whether there are biases.
    pub bias: bool,
    /// The probability to drop a value between layers.
    pub dropout: f64,
    /// The probability to drop a unit of h' inside the recurrent product.
    pub recurrent_dropout: f64,
}

impl Config {
    /// The config, if sizes and probabilities make sense.
    ///
    /// # Errors
    /// A zero size, a probability outside [0, 1), dropout without a layer to drop between, or weights
    /// that do not fit the address space.
    pub fn checked(self) -> Result<Self> {
        for (name, size) in [
            ("input_size", self.input),
            ("hidden_size", self.hidden),
            ("num_layers", self.layers),
        ] {
            if size == 0 {
                return Err(Error::value(name, "at least 1", size));
            }
        }
        for (name, p) in [
            ("dropout", self.dropout),
            ("recurrent_dropout", self.recurrent_dropout),
        ] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::value(name, "a probability in [0, 1)", p));
            }
        }
        if self.dropout > 0.0 && self.layers == 1 {
            return Err(Error::value(
                "dropout",
                "0 for a single layer (it acts between layers)",
                self.dropout,
            ));
        }
        for layer in 0..self.layers.min(2) {
            let width = self.input_of(layer).max(self.hidden);
            product(
                &[self.cell.gates(), self.hidden, width, 8],
                "the weights (G * H * max(I, H))",
            )?;
        }
        Ok(self)
    }

    /// D.
    pub fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    /// M, the features of y.
    pub fn output(&self) -> usize {
        match self.merge {
            Merge::Concat => self.directions().saturating_mul(self.hidden),
            _ => self.hidden,
        }
    }

    /// The features that layer `layer` reads.
    pub fn input_of(&self, layer: usize) -> usize {
        if layer == 0 {
            self.input
        } else {
            self.output()
        }
    }

    /// Arrays of parameters in one direction of a layer.
    pub fn params_per_direction(&self) -> usize {
        if self.bias { 4 } else { 2 }
    }

    /// The name of layer and direction in keys: `l0`, `l0_reverse`, ...
    pub fn direction_name(&self, layer: usize, direction: usize) -> String {
        format!("l{layer}{}", if direction == 1 { "_reverse" } else { "" })
    }

    /// How many parameters.
    pub fn param_count(&self) -> usize {
        self.layers * self.directions() * self.params_per_direction()
    }

    /// Rows and columns of the parameter at `index` in PyTorch's order; a bias has one column.
    pub fn param_shape(&self, index: usize) -> (usize, usize) {
        let own = self.params_per_direction();
        let columns = match index % own {
            0 => self.input_of(index / (own * self.directions())),
            1 => self.hidden,
            _ => 1,
        };
        (self.cell.gates() * self.hidden, columns)
    }

    /// Name and shape of every parameter, in PyTorch's order.
    pub fn params(&self) -> Vec<(String, Vec<usize>)> {
        let (rows, hidden) = (self.cell.gates() * self.hidden, self.hidden);
        let mut params = Vec::new();
        for layer in 0..self.layers {
            for direction in 0..self.directions() {
                let suffix = self.direction_name(layer, direction);
                params.push((
                    format!("weight_ih_{suffix}"),
                    vec![rows, self.input_of(layer)],
                ));
                params.push((format!("weight_hh_{suffix}"), vec![rows, hidden]));
                if self.bias {
                    params.push((format!("bias_ih_{suffix}"), vec![rows]));
                    params.push((format!("bias_hh_{suffix}"), vec![rows]));
                }
            }
        }
        params
    }
}
