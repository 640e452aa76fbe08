//! Adam's step over one array, and the sum of its squares.
//!
//! Both keep the interpreter: they take a fraction of a millisecond, and a layer that another thread
//! calls meanwhile must not find its parameters lent out.

use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::config::level;
use super::guard;
use super::stack::{Number, borrow, not_plain, plain, slice};
use crate::error::{Error, shape_text};
use crate::optimizer::{self, Adam, Arrays};

/// Make one step of Adam: change parameters, mean and variance in place.
///
/// The four arrays are float32 or float64, of one shape and dtype, C-contiguous and aligned. `betas`,
/// `eps` and the rest are the settings; `step` counts from 1. Returns whether it was done: nothing
/// changes where one of the arrays is read by a call in another thread, read-only, or overlaps another.
#[pyfunction]
#[pyo3(signature = (w, g, mean, variance, *, lr, betas, eps, weight_decay, l1, decoupled, step))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn adam(
    w: &Bound<'_, PyAny>,
    g: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    variance: &Bound<'_, PyAny>,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    l1: f64,
    decoupled: bool,
    step: f64,
) -> PyResult<bool> {
    let adam = Adam {
        lr,
        betas,
        eps,
        weight_decay,
        l1,
        decoupled,
        step,
    };
    if w.cast::<PyArrayDyn<f64>>().is_ok() {
        update::<f64>(adam, w, g, mean, variance)
    } else {
        update::<f32>(adam, w, g, mean, variance)
    }
}

/// The sum of squares, in float64, of an array of float32 or float64, C-contiguous and aligned.
#[pyfunction]
pub(crate) fn sum_of_squares(array: &Bound<'_, PyAny>) -> PyResult<f64> {
    if array.cast::<PyArrayDyn<f64>>().is_ok() {
        squares::<f64>(array)
    } else {
        squares::<f32>(array)
    }
}

fn squares<E: Number>(array: &Bound<'_, PyAny>) -> PyResult<f64> {
    let borrowed = borrow::<E>("array", array)?;
    let values = slice("array", &borrowed)?;
    guard(|| Ok(optimizer::sum_of_squares(level(), values)))
}

fn update<E: Number>(
    adam: Adam,
    w: &Bound<'_, PyAny>,
    g: &Bound<'_, PyAny>,
    mean: &Bound<'_, PyAny>,
    variance: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let (w, g) = (plain::<E>("w", w)?, plain::<E>("g", g)?);
    let (mean, variance) = (plain::<E>("mean", mean)?, plain::<E>("variance", variance)?);
    for (name, array) in [("g", g), ("mean", mean), ("variance", variance)] {
        if array.shape() != w.shape() {
            let (expected, got) = (shape_text(w.shape()), shape_text(array.shape()));
            return Err(Error::shape(name, expected, got).into());
        }
    }
    if overlap([w, g, mean, variance]) {
        return Ok(false);
    }
    let written = [w, mean, variance].map(|array| array.try_readwrite());
    let ([Ok(mut w), Ok(mut mean), Ok(mut variance)], Ok(g)) = (written, g.try_readonly()) else {
        return Ok(false);
    };
    let arrays = Arrays {
        w: slice_mut("w", &mut w)?,
        g: slice("g", &g)?,
        mean: slice_mut("mean", &mut mean)?,
        variance: slice_mut("variance", &mut variance)?,
    };
    guard(|| {
        adam.update(level(), arrays);
        Ok(true)
    })
}

/// Whether two of some plain arrays of one shape have memory in common. Borrowing does not tell: views
/// of one buffer that NumPy did not allocate may have different bases.
fn overlap<E: Element>(arrays: [&Bound<'_, PyArrayDyn<E>>; 4]) -> bool {
    let bytes = arrays[0].len() * size_of::<E>();
    let mut begins = arrays.map(|array| array.data() as usize);
    begins.sort_unstable();
    bytes > 0 && begins.windows(2).any(|pair| pair[1] - pair[0] < bytes)
}

/// The values of an array that is borrowed for writing.
fn slice_mut<'a, E: Element>(
    name: &str,
    array: &'a mut PyReadwriteArrayDyn<'_, E>,
) -> PyResult<&'a mut [E]> {
    array.as_slice_mut().map_err(|_| not_plain(name))
}
