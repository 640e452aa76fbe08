//! `Stack` and `Tape`: layers without their parameters, which stay NumPy arrays.

use std::fmt::Display;

use numpy::{
    Element as NumpyElement, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::arrays::{array, small_array};
use super::frozen::{AnyStreams, Frozen};
use super::{config, detach};
use crate::cell::Update;
use crate::error::{Error, Result, shape_text};
use crate::layer::{
    self, BackwardOptions, CellKind, Config, Execution, ForwardOptions, Input, Masks, Merge,
    Storage,
};
use crate::memory;
use crate::parallel::Watch;
use crate::simd::{Element, Level};

/// An element of both worlds.
pub(crate) trait Number: Element + NumpyElement {
    /// The tape, if it holds these elements.
    fn tape_of(tape: &AnyTape) -> Option<&layer::Tape<Self>>;
    /// The tape, to be kept by Python.
    fn any_tape(tape: layer::Tape<Self>) -> AnyTape;
}

/// A tape of either element.
pub(crate) enum AnyTape {
    F32(layer::Tape<f32>),
    F64(layer::Tape<f64>),
}

impl Number for f32 {
    fn tape_of(tape: &AnyTape) -> Option<&layer::Tape<Self>> {
        if let AnyTape::F32(tape) = tape {
            Some(tape)
        } else {
            None
        }
    }

    fn any_tape(tape: layer::Tape<Self>) -> AnyTape {
        AnyTape::F32(tape)
    }
}

impl Number for f64 {
    fn tape_of(tape: &AnyTape) -> Option<&layer::Tape<Self>> {
        if let AnyTape::F64(tape) = tape {
            Some(tape)
        } else {
            None
        }
    }

    fn any_tape(tape: layer::Tape<Self>) -> AnyTape {
        AnyTape::F64(tape)
    }
}

/// Layers x directions of one cell, and the type of their elements.
#[pyclass(frozen, module = "rnncore._core")]
pub(crate) struct Stack {
    stack: layer::Stack,
    double: bool,
}

/// What `forward` keeps for `backward`.
#[pyclass(frozen, module = "rnncore._core")]
pub(crate) struct Tape(AnyTape);

#[pymethods]
impl Tape {
    /// Bytes held, the copy of x included.
    #[getter]
    fn nbytes(&self) -> usize {
        match &self.0 {
            AnyTape::F32(tape) => tape.nbytes(),
            AnyTape::F64(tape) => tape.nbytes(),
        }
    }
}

type StateGrads<'py> = Option<Vec<Bound<'py, PyTuple>>>;
type BackwardResult<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyTuple>,
    Vec<Bound<'py, PyAny>>,
    StateGrads<'py>,
);

#[pymethods]
impl Stack {
    #[new]
    #[pyo3(signature = (cell, input_size, hidden_size, num_layers, bidirectional, merge, bias, dropout,
        recurrent_dropout, dtype, *, nonlinearity = "tanh", reset_after = true, update_gate = "keep"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        cell: &str,
        input_size: usize,
        hidden_size: usize,
        num_layers: usize,
        bidirectional: bool,
        merge: &str,
        bias: bool,
        dropout: f64,
        recurrent_dropout: f64,
        dtype: &str,
        nonlinearity: &str,
        reset_after: bool,
        update_gate: &str,
    ) -> PyResult<Self> {
        let update = choice(
            "update_gate",
            update_gate,
            &[("keep", Update::Keep), ("write", Update::Write)],
        )?;
        let relu = choice(
            "nonlinearity",
            nonlinearity,
            &[("tanh", false), ("relu", true)],
        )?;
        let cell = choice(
            "cell",
            cell,
            &[
                ("rnn", CellKind::Rnn { relu }),
                ("lstm", CellKind::Lstm),
                (
                    "gru",
                    CellKind::Gru {
                        reset_after,
                        update,
                    },
                ),
                (
                    "mgu",
                    CellKind::Mgu {
                        reset_after,
                        update,
                    },
                ),
            ],
        )?;
        let merges = [
            ("concat", Merge::Concat),
            ("sum", Merge::Sum),
            ("mean", Merge::Mean),
            ("mul", Merge::Mul),
        ];
        let config = Config {
            cell,
            input: input_size,
            hidden: hidden_size,
            layers: num_layers,
            bidirectional,
            merge: choice("merge", merge, &merges)?,
            bias,
            dropout,
            recurrent_dropout,
        };
        let double = choice("dtype", dtype, &[("float32", false), ("float64", true)])?;
        Ok(Self {
            stack: layer::Stack::new(config)?,
            double,
        })
    }

    /// (y, state, tape or None).
    #[allow(clippy::too_many_arguments)]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        x: &Bound<'py, PyAny>,
        state: Option<Vec<Bound<'py, PyAny>>>,
        lengths: Option<&Bound<'py, PyAny>>,
        batch_first: bool,
        training: bool,
        masks: Option<(u64, u64)>,
        checkpoint: Option<usize>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>, Option<Tape>)> {
        let masks = masks.map(|(seed, call)| Masks { seed, call });
        let options = ForwardOptions {
            training,
            masks,
            checkpoint,
        };
        if self.double {
            self.forward_as::<f64>(py, params, x, state, lengths, batch_first, options)
        } else {
            self.forward_as::<f32>(py, params, x, state, lengths, batch_first, options)
        }
    }

    /// (dx, dstate, gradients of the parameters, gradients of the states or None). The tape is only read.
    fn backward<'py>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        tape: &Tape,
        dy: Option<&Bound<'py, PyAny>>,
        dstate: Option<Vec<Option<Bound<'py, PyAny>>>>,
        state_grads: bool,
    ) -> PyResult<BackwardResult<'py>> {
        let options = BackwardOptions { state_grads };
        if self.double {
            self.backward_as::<f64>(py, params, tape, dy, dstate, options)
        } else {
            self.backward_as::<f32>(py, params, tape, dy, dstate, options)
        }
    }

    /// Every gate's activations, by layer and direction, by gate.
    fn gates<'py>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        tape: &Tape,
    ) -> PyResult<Bound<'py, PyDict>> {
        if self.double {
            self.gates_as::<f64>(py, params, tape)
        } else {
            self.gates_as::<f32>(py, params, tape)
        }
    }

    /// A packed snapshot of the weights, with a state of its own.
    fn freeze(
        &self,
        py: Python<'_>,
        params: &Bound<'_, PyList>,
        batch_size: usize,
        batch_first: bool,
        weights: Option<&str>,
    ) -> PyResult<Frozen> {
        let storage = match weights {
            None => Storage::Own,
            Some("bfloat16") => Storage::Bfloat16,
            Some(other) => {
                let got = format!("{other:?}");
                return Err(Error::value("weights", "None or \"bfloat16\"", got).into());
            }
        };
        let streams = if self.double {
            AnyStreams::F64(self.freeze_as(py, params, batch_size, storage)?)
        } else {
            AnyStreams::F32(self.freeze_as(py, params, batch_size, storage)?)
        };
        Ok(Frozen::new(streams, batch_first))
    }
}

impl Stack {
    #[allow(clippy::too_many_arguments)]
    fn forward_as<'py, E: Number>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        x: &Bound<'py, PyAny>,
        state: Option<Vec<Bound<'py, PyAny>>>,
        lengths: Option<&Bound<'py, PyAny>>,
        batch_first: bool,
        options: ForwardOptions,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>, Option<Tape>)> {
        let (params, x) = (self.borrow_params::<E>(params)?, borrow::<E>("x", x)?);
        let &[first, second, features] = x.shape() else {
            return Err(PyValueError::new_err(format!(
                "x: expected 3 dimensions, got shape {}",
                shape_text(x.shape())
            )));
        };
        let (time, batch) = if batch_first {
            (second, first)
        } else {
            (first, second)
        };
        let state = match state {
            None => None,
            Some(parts) => {
                let named = parts
                    .iter()
                    .enumerate()
                    .map(|(k, part)| self.borrow_state("state", k, part, batch));
                Some(named.collect::<PyResult<Vec<_>>>()?)
            }
        };
        let lengths = lengths
            .map(|lengths| borrow::<i64>("lengths", lengths))
            .transpose()?;
        if let Some(lengths) = &lengths
            && lengths.shape().len() != 1
        {
            return Err(Error::shape(
                "lengths",
                format!("(B,) = ({batch},)"),
                shape_text(lengths.shape()),
            )
            .into());
        }
        let slices_of_params = slices(&params)?;
        let slices_of_state = state.as_deref().map(slices).transpose()?;
        let input = Input {
            values: slice("x", &x)?,
            shape: [first, second, features],
            batch_first,
            lengths: lengths
                .as_ref()
                .map(|lengths| slice("lengths", lengths))
                .transpose()?,
        };
        let settings = Settings::now();
        let output = detach(py, |interrupt| {
            let poll = || interrupt.requested();
            self.stack.forward(
                &settings.execution(&poll),
                &slices_of_params,
                input,
                slices_of_state.as_deref(),
                options,
            )
        })?;
        let width = self.stack.config().output();
        let shape = if batch_first {
            [batch, time, width]
        } else {
            [time, batch, width]
        };
        let tape = output.tape.map(|tape| Tape(E::any_tape(tape)));
        Ok((
            array(py, output.y, &shape)?,
            self.state_tuple(py, output.state, batch)?,
            tape,
        ))
    }

    fn backward_as<'py, E: Number>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        tape: &Tape,
        dy: Option<&Bound<'py, PyAny>>,
        dstate: Option<Vec<Option<Bound<'py, PyAny>>>>,
        options: BackwardOptions,
    ) -> PyResult<BackwardResult<'py>> {
        let params = self.borrow_params::<E>(params)?;
        let kept = tape_of::<E>(tape)?;
        let ((time, batch), batch_first) = (kept.sizes(), kept.is_batch_first());
        let config = self.stack.config();
        let laid_out = |width: usize| {
            if batch_first {
                [batch, time, width]
            } else {
                [time, batch, width]
            }
        };
        let dy = dy
            .map(|dy| borrow_shaped::<E>("dy", dy, &laid_out(config.output()), "T, B, M"))
            .transpose()?;
        let dstate: Vec<Option<PyReadonlyArrayDyn<'_, E>>> = dstate
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(k, part)| {
                part.as_ref()
                    .map(|part| self.borrow_state("dstate", k, part, batch))
                    .transpose()
            })
            .collect::<PyResult<_>>()?;
        let slices_of_params = slices(&params)?;
        let dy = dy.as_ref().map(|dy| slice("dy", dy)).transpose()?;
        let dstate: Vec<Option<&[E]>> = dstate
            .iter()
            .map(|part| part.as_ref().map(|part| slice("dstate", part)).transpose())
            .collect::<PyResult<_>>()?;
        let settings = Settings::now();
        let gradients = detach(py, |interrupt| {
            let poll = || interrupt.requested();
            self.stack.backward(
                &settings.execution(&poll),
                &slices_of_params,
                kept,
                dy,
                &dstate,
                options,
            )
        })?;
        let dparams: Vec<_> = gradients
            .params
            .into_iter()
            .zip(&params)
            .map(|(gradient, param)| array(py, gradient, param.shape()))
            .collect::<PyResult<_>>()?;
        let shape = laid_out(config.hidden);
        let shown: Vec<_> = gradients
            .state_grads
            .into_iter()
            .map(|layer::StateGradients { h, c }| {
                let members: Vec<_> = std::iter::once(h)
                    .chain(c)
                    .map(|part| array(py, part, &shape))
                    .collect::<PyResult<_>>()?;
                PyTuple::new(py, members)
            })
            .collect::<PyResult<_>>()?;
        Ok((
            array(py, gradients.x, &laid_out(config.input))?,
            self.state_tuple(py, gradients.state, batch)?,
            dparams,
            options.state_grads.then_some(shown),
        ))
    }

    fn gates_as<'py, E: Number>(
        &self,
        py: Python<'py>,
        params: &Bound<'py, PyList>,
        tape: &Tape,
    ) -> PyResult<Bound<'py, PyDict>> {
        let params = self.borrow_params::<E>(params)?;
        let kept = tape_of::<E>(tape)?;
        let slices_of_params = slices(&params)?;
        let settings = Settings::now();
        let gates = detach(py, |interrupt| {
            let poll = || interrupt.requested();
            self.stack
                .gates(&settings.execution(&poll), &slices_of_params, kept)
        })?;
        let (config, (time, batch)) = (self.stack.config(), kept.sizes());
        let shape = if kept.is_batch_first() {
            [batch, time, config.hidden]
        } else {
            [time, batch, config.hidden]
        };
        let all = PyDict::new(py);
        for (index, direction) in gates.into_iter().enumerate() {
            let named = PyDict::new(py);
            for (name, values) in direction {
                named.set_item(name, array(py, values, &shape)?)?;
            }
            let (layer, direction) = (index / config.directions(), index % config.directions());
            all.set_item(config.direction_name(layer, direction), named)?;
        }
        Ok(all)
    }

    fn freeze_as<E: Number>(
        &self,
        py: Python<'_>,
        params: &Bound<'_, PyList>,
        batch: usize,
        storage: Storage,
    ) -> PyResult<layer::Frozen<E>> {
        let params = self.borrow_params::<E>(params)?;
        let (slices, settings) = (slices(&params)?, Settings::now());
        detach(py, |interrupt| {
            let poll = || interrupt.requested();
            layer::Frozen::new(
                &self.stack,
                &settings.execution(&poll),
                &slices,
                batch,
                storage,
            )
        })
    }

    fn borrow_params<'py, E: Number>(
        &self,
        params: &Bound<'py, PyList>,
    ) -> PyResult<Vec<PyReadonlyArrayDyn<'py, E>>> {
        // The table of borrowed arrays grows by small pieces.
        memory::probe(params.len(), 512, "params")?;
        let mut borrowed = memory::reserved(params.len(), "params")?;
        for (k, param) in params.iter().enumerate().take(params.len()) {
            borrowed.push(borrow(format_args!("params[{k}]"), &param)?);
        }
        Ok(borrowed)
    }

    /// One member of a state, (L*D, B, H).
    fn borrow_state<'py, E: Number>(
        &self,
        name: &str,
        member: usize,
        part: &Bound<'py, PyAny>,
        batch: usize,
    ) -> PyResult<PyReadonlyArrayDyn<'py, E>> {
        let config = self.stack.config();
        let shape = [config.layers * config.directions(), batch, config.hidden];
        borrow_shaped(&format!("{name}[{member}]"), part, &shape, "L*D, B, H")
    }

    fn state_tuple<'py, E: Number>(
        &self,
        py: Python<'py>,
        state: Vec<Vec<E>>,
        batch: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let config = self.stack.config();
        let shape = [config.layers * config.directions(), batch, config.hidden];
        let members: Vec<_> = state
            .into_iter()
            .map(|part| small_array(py, part, &shape))
            .collect::<PyResult<_>>()?;
        PyTuple::new(py, members)
    }
}

/// What a call computes with: read while the interpreter is held, as a fork of the process may not find
/// the lock of the level taken.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    level: Level,
    threads: usize,
}

impl Settings {
    /// As they are set now.
    pub(crate) fn now() -> Self {
        Self {
            level: config::level(),
            threads: config::threads(),
        }
    }

    /// A call that asks `poll` whether to stop.
    pub(crate) fn execution(self, poll: &dyn Fn() -> bool) -> Execution<'_> {
        Execution {
            level: self.level,
            threads: self.threads,
            makes_way: true,
            watch: Watch::new(poll),
        }
    }
}

/// One of some words.
fn choice<T: Copy>(argument: &str, word: &str, choices: &[(&str, T)]) -> Result<T> {
    choices
        .iter()
        .find(|(name, _)| *name == word)
        .map(|&(_, value)| value)
        .ok_or_else(|| {
            let names: Vec<String> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            Error::value(
                argument,
                format!("one of {}", names.join(", ")),
                format!("{word:?}"),
            )
        })
}

fn tape_of<E: Number>(tape: &Tape) -> PyResult<&layer::Tape<E>> {
    E::tape_of(&tape.0).ok_or_else(|| Error::tape("it was made by a layer of another dtype").into())
}

/// A C-contiguous array of the right elements, borrowed for reading.
pub(crate) fn borrow<'py, E: NumpyElement>(
    name: impl Display,
    array: &Bound<'py, PyAny>,
) -> PyResult<PyReadonlyArrayDyn<'py, E>> {
    plain::<E>(&name, array)?.try_readonly().map_err(|_| {
        PyValueError::new_err(format!(
            "{name}: expected an array that nobody writes to, got one in use"
        ))
    })
}

/// A C-contiguous array of the right elements.
pub(crate) fn plain<'a, 'py, E: NumpyElement>(
    name: impl Display,
    array: &'a Bound<'py, PyAny>,
) -> PyResult<&'a Bound<'py, PyArrayDyn<E>>> {
    let typed = array.cast::<PyArrayDyn<E>>().map_err(|_| {
        let got = array
            .getattr("dtype")
            .map_or_else(|_| array.get_type().to_string(), |dtype| dtype.to_string());
        PyTypeError::new_err(format!(
            "{name}: expected an array of {}, got {got}",
            E::get_dtype(array.py())
        ))
    })?;
    if !is_plain(typed) {
        return Err(not_plain(name));
    }
    Ok(typed)
}

/// Whether the values lie one after the other, each where its type wants it.
pub(crate) fn is_plain<E: NumpyElement>(array: &Bound<'_, PyArrayDyn<E>>) -> bool {
    array.is_c_contiguous() && array.data().is_aligned()
}

/// The error for an array that is not.
pub(crate) fn not_plain(name: impl Display) -> PyErr {
    PyValueError::new_err(format!(
        "{name}: expected a C-contiguous aligned array, got another layout"
    ))
}

/// [`borrow`], of a given shape.
fn borrow_shaped<'py, E: NumpyElement>(
    name: &str,
    array: &Bound<'py, PyAny>,
    shape: &[usize],
    letters: &str,
) -> PyResult<PyReadonlyArrayDyn<'py, E>> {
    let borrowed = borrow::<E>(name, array)?;
    if borrowed.shape() != shape {
        let expected = format!("({letters}) = {}", shape_text(shape));
        return Err(Error::shape(name, expected, shape_text(borrowed.shape())).into());
    }
    Ok(borrowed)
}

/// The values of a borrowed array; C order was checked when it was borrowed.
pub(crate) fn slice<'a, E: NumpyElement>(
    name: &str,
    array: &'a PyReadonlyArrayDyn<'_, E>,
) -> PyResult<&'a [E]> {
    array.as_slice().map_err(|_| not_plain(name))
}

fn slices<'a, E: NumpyElement>(arrays: &'a [PyReadonlyArrayDyn<'_, E>]) -> PyResult<Vec<&'a [E]>> {
    let mut slices = memory::reserved(arrays.len(), "arrays")?;
    for array in arrays {
        slices.push(slice("array", array)?);
    }
    Ok(slices)
}
