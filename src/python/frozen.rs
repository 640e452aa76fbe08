//! `Frozen`: packed weights and a state, one step at a time.

#![allow(unsafe_code)]

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::arrays::{array, small_array};
use super::stack::{Number, Settings, borrow, is_plain, not_plain, slice};
use super::{detach, guard};
use crate::error::{Error, shape_text};
use crate::layer::{self, Input};
use crate::memory;
use crate::parallel::Watch;

/// Streams of either element.
pub(crate) enum AnyStreams {
    F32(layer::Frozen<f32>),
    F64(layer::Frozen<f64>),
}

/// A packed snapshot of a layer's weights, with a state of its own.
///
/// For one thread at a time: a second one inside raises RuntimeError.
#[pyclass(module = "rnncore._core")]
pub(crate) struct Frozen {
    streams: AnyStreams,
    batch_first: bool,
}

impl Frozen {
    pub(crate) fn new(streams: AnyStreams, batch_first: bool) -> Self {
        Self {
            streams,
            batch_first,
        }
    }
}

/// Evaluates an expression with the streams of whichever element.
macro_rules! with_streams {
    ($self:expr, $streams:ident => $body:expr) => {
        match &mut $self.streams {
            AnyStreams::F32($streams) => $body,
            AnyStreams::F64($streams) => $body,
        }
    };
}

#[pymethods]
impl Frozen {
    /// Advance every stream by one step.
    ///
    /// `x_t` is (B, I), or (I,) for one stream; the result (B, H) or (H,) is a fresh array, or `out`,
    /// which must be a writeable C-contiguous array of the layer's dtype.
    #[pyo3(signature = (x_t, *, out = None))]
    fn step<'py>(
        &mut self,
        x_t: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        with_streams!(self, streams => step(streams, x_t, out, 1))
    }

    /// Run over a whole sequence in the layer's layout, from the state at hand; return y alone.
    fn run<'py>(&mut self, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let batch_first = self.batch_first;
        with_streams!(self, streams => run(streams, x, batch_first))
    }

    /// Advance by that many steps of the same `x_t` and return the last result.
    ///
    /// Benchmarks time it: divided by `times` it is what `step` takes without the way in and out.
    fn _repeat_step<'py>(
        &mut self,
        x_t: &Bound<'py, PyAny>,
        times: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        with_streams!(self, streams => step(streams, x_t, None, times))
    }

    /// The state: h (L, B, H), for an LSTM the pair (h, c); setting it copies.
    #[getter]
    fn state<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        with_streams!(self, streams => state(py, streams))
    }

    #[setter]
    fn set_state(&mut self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        with_streams!(self, streams => set_state(streams, state))
    }

    /// Set the state back to zero: of every stream, or of the given rows.
    #[pyo3(signature = (rows = None))]
    fn reset(&mut self, rows: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let batch = with_streams!(self, streams => streams.batch());
        let rows = rows.map(|rows| rows_of(rows, batch)).transpose()?;
        Ok(with_streams!(self, streams => streams.reset(rows.as_deref()))?)
    }

    fn __repr__(&mut self) -> String {
        with_streams!(self, streams => {
            let config = streams.config();
            let (input, hidden, layers) = (config.input, config.hidden, config.layers);
            let (batch, weights) = (streams.batch(), streams.weights());
            format!("<Frozen: {input} -> {hidden}, {layers} layers, batch_size={batch}, weights={weights}>")
        })
    }
}

/// `x` as an array of E: as it is, or by way of the package's own conversion and its errors.
fn converted<'py, E: Number>(
    name: &str,
    x: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArrayDyn<E>>> {
    if let Ok(typed) = x.cast::<PyArrayDyn<E>>()
        && is_plain(typed)
    {
        return Ok(typed.clone());
    }
    let convert = x
        .py()
        .import("rnncore.parameters")?
        .getattr("as_real_array")?;
    let array = convert.call1((name, x, E::get_dtype(x.py())))?;
    Ok(array.cast_into::<PyArrayDyn<E>>()?)
}

fn step<'py, E: Number>(
    streams: &mut layer::Frozen<E>,
    x_t: &Bound<'py, PyAny>,
    out: Option<Bound<'py, PyAny>>,
    times: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let py = x_t.py();
    let x = converted::<E>("x_t", x_t)?;
    let (batch, inputs, hidden) = (
        streams.batch(),
        streams.config().input,
        streams.config().hidden,
    );
    let shape: &[usize] = match *x.shape() {
        [i] if batch == 1 && i == inputs => &[hidden],
        [b, i] if b == batch && i == inputs => &[batch, hidden],
        _ => {
            let one = if batch == 1 {
                format!(" or (I,) = ({inputs},)")
            } else {
                String::new()
            };
            let expected = format!("(B, I) = ({batch}, {inputs}){one}");
            return Err(Error::shape("x_t", expected, shape_text(x.shape())).into());
        }
    };
    let Some(out) = out else {
        let mut y = memory::zeros(batch * hidden, "y_t")?;
        for turn in 1..=times {
            // SAFETY: `x` is plain (`converted`), and nothing of it outlives this call. It is held, so
            // NumPy resizes it only for who switches that check off, and has to answer for it.
            advance(py, streams, unsafe { values(&x) }, &mut y)?;
            if turn % CALLS_A_SIGNAL == 0 {
                py.check_signals()?;
            }
        }
        return small_array(py, y, shape);
    };
    let target = writeable::<E>(&out, shape, &x)?;
    // SAFETY: both are plain, `target` may be written to and shares no memory with `x`
    // (`writeable`), and neither slice outlives this call. Another thread that writes to them
    // meanwhile gives undefined numbers, no more. The borrow table of the binding, which would see
    // such a thread, allocates: a step must not.
    unsafe {
        let y = std::slice::from_raw_parts_mut(target.data(), target.len());
        advance(py, streams, values(&x), y)?;
    }
    Ok(out)
}

/// The values of an array.
///
/// # Safety
/// * The array is plain (C-contiguous and aligned).
/// * Nobody resizes or frees it while the slice lives.
unsafe fn values<'a, E: Number>(array: &'a Bound<'_, PyArrayDyn<E>>) -> &'a [E] {
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(array.data(), array.len()) }
}

/// `out` as an array of E that may be written to: of that shape, plain, and apart from `x`.
fn writeable<'a, 'py, E: Number>(
    out: &'a Bound<'py, PyAny>,
    shape: &[usize],
    x: &Bound<'py, PyArrayDyn<E>>,
) -> PyResult<&'a Bound<'py, PyArrayDyn<E>>> {
    let target = out.cast::<PyArrayDyn<E>>().map_err(|_| {
        let got = out
            .getattr("dtype")
            .map_or_else(|_| out.get_type().to_string(), |dtype| dtype.to_string());
        PyTypeError::new_err(format!("out: expected an array of {}, got {got}", E::NAME))
    })?;
    if target.shape() != shape {
        let letters = if shape.len() == 1 { "(H,)" } else { "(B, H)" };
        let expected = format!("{letters} = {}", shape_text(shape));
        return Err(Error::shape("out", expected, shape_text(target.shape())).into());
    }
    if !is_plain(target) {
        return Err(not_plain("out"));
    }
    // SAFETY: a live array object.
    let flags = unsafe { (*target.as_array_ptr()).flags };
    let (from, to) = (x.data().addr(), target.data().addr());
    let apart = from + x.len() * size_of::<E>() <= to || to + target.len() * size_of::<E>() <= from;
    if flags & NPY_ARRAY_WRITEABLE == 0 || !apart {
        let expected = "out: expected a writeable array that shares no memory with x_t";
        let got = if apart {
            "a read-only one"
        } else {
            "an overlapping one"
        };
        return Err(PyValueError::new_err(format!("{expected}, got {got}")));
    }
    Ok(target)
}

/// Steps between two looks for signals, where one call makes many.
const CALLS_A_SIGNAL: usize = 1024;

/// Multiply-adds from which a step releases the interpreter: half a millisecond, where a fifth of a
/// microsecond more does not count.
const WORTH_DETACHING: usize = 20_000_000;

fn advance<E: Number>(
    py: Python<'_>,
    streams: &mut layer::Frozen<E>,
    x: &[E],
    y: &mut [E],
) -> PyResult<()> {
    if streams.work() < WORTH_DETACHING {
        return guard(|| streams.step(x, y, &Watch::unattended()));
    }
    detach(py, |interrupt| {
        let poll = || interrupt.requested();
        streams.step(x, y, &Watch::new(&poll))
    })
}

fn run<'py, E: Number>(
    streams: &mut layer::Frozen<E>,
    x: &Bound<'py, PyAny>,
    batch_first: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = x.py();
    let converted = converted::<E>("x", x)?;
    let hidden = streams.config().hidden;
    // Unbatched: one stream, (T, I).
    let (input, output) = match *converted.shape() {
        [time, features] if streams.batch() == 1 => {
            let one = if batch_first {
                [1, time, features]
            } else {
                [time, 1, features]
            };
            (one, vec![time, hidden])
        }
        [a, b, features] => ([a, b, features], vec![a, b, hidden]),
        _ => {
            let layout = if batch_first { "B, T" } else { "T, B" };
            let expected = format!("({layout}, I = {})", streams.config().input);
            return Err(Error::shape("x", expected, shape_text(converted.shape())).into());
        }
    };
    let readable = borrow::<E>("x", converted.as_any())?;
    let input = Input {
        values: slice("x", &readable)?,
        shape: input,
        batch_first,
        lengths: None,
    };
    let settings = Settings::now();
    let y = detach(py, |interrupt| {
        let poll = || interrupt.requested();
        streams.run(&settings.execution(&poll), input)
    })?;
    array(py, y, &output)
}

fn state<'py, E: Number>(
    py: Python<'py>,
    streams: &layer::Frozen<E>,
) -> PyResult<Bound<'py, PyAny>> {
    let config = streams.config();
    let shape = [config.layers, streams.batch(), config.hidden];
    let mut members = streams
        .state()?
        .into_iter()
        .map(|part| small_array(py, part, &shape))
        .collect::<PyResult<Vec<_>>>()?;
    match members.len() {
        1 => Ok(members.remove(0)),
        _ => Ok(PyTuple::new(py, members)?.into_any()),
    }
}

fn set_state<E: Number>(streams: &mut layer::Frozen<E>, state: &Bound<'_, PyAny>) -> PyResult<()> {
    let config = streams.config();
    let shape = [config.layers, streams.batch(), config.hidden];
    let pair = state.is_instance_of::<PyTuple>() || state.is_instance_of::<PyList>();
    let parts: Vec<Bound<'_, PyAny>> = match (config.cell.has_cell_state(), pair) {
        (true, true) if state.len()? == 2 => vec![state.get_item(0)?, state.get_item(1)?],
        (true, _) => {
            let got = state.get_type();
            let message = format!("state: expected the pair (h, c), got {got}");
            return Err(PyTypeError::new_err(message));
        }
        (false, _) => vec![state.clone()],
    };
    let arrays: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(k, part)| {
            converted::<E>(
                &if parts.len() == 1 {
                    "state".to_owned()
                } else {
                    format!("state[{k}]")
                },
                part,
            )
        })
        .collect::<PyResult<_>>()?;
    let mut borrowed = Vec::new();
    for array in &arrays {
        if array.shape() != shape {
            let expected = format!("(L, B, H) = {}", shape_text(&shape));
            return Err(Error::shape("state", expected, shape_text(array.shape())).into());
        }
        borrowed.push(borrow::<E>("state", array.as_any())?);
    }
    let slices: Vec<&[E]> = borrowed
        .iter()
        .map(|part| slice("state", part))
        .collect::<PyResult<_>>()?;
    Ok(streams.set_state(&slices)?)
}

/// Row numbers: an integer or a sequence of them, by way of the package's own conversion.
fn rows_of(rows: &Bound<'_, PyAny>, batch: usize) -> PyResult<Vec<usize>> {
    let parameters = rows.py().import("rnncore.parameters")?;
    let numbers = parameters
        .getattr("as_integer_array")?
        .call1(("rows", rows))?;
    let borrowed = borrow::<i64>("rows", &numbers)?;
    let numbers = slice("rows", &borrowed)?;
    let mut rows = memory::reserved(numbers.len(), "rows")?;
    for &number in numbers {
        let row = usize::try_from(number).map_err(|_| {
            let expected = format!("integers from 0 to B - 1 = {}", batch - 1);
            Error::value("rows", expected, number)
        })?;
        rows.push(row);
    }
    Ok(rows)
}
