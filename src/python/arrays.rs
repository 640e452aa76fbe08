//! NumPy arrays that take over the core's results without a copy.

#![allow(unsafe_code)]

use std::any::Any;

use numpy::PyArrayDyn;
use numpy::ndarray::{ArrayD, ArrayViewMutD, IxDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::stack::Number;
use crate::memory::{Buffer, product};

/// What an array stands on; nobody sees it but as the array's `base`. Once the array is gone, the memory
/// is kept for the next call.
#[pyclass(frozen, module = "rnncore._core")]
struct Memory {
    _values: Box<dyn Any + Send + Sync>,
}

/// A fresh array of all of `values`.
pub(crate) fn array<'py, E: Number>(
    py: Python<'py>,
    mut values: Buffer<E>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    assert_eq!(product(shape, "an array")?, values.len());
    let from = values.as_mut_ptr();
    let owner = Bound::new(
        py,
        Memory {
            _values: Box::new(values),
        },
    )?;
    // SAFETY: a buffer's values stay where they are when it moves; `owner` keeps them for as long as the
    // array lives and lets nobody else reach them; they are as many as the shape says.
    unsafe {
        let view = ArrayViewMutD::from_shape_ptr(IxDyn(shape), from);
        Ok(PyArrayDyn::borrow_from_array(&view, owner.into_any()).into_any())
    }
}

/// A fresh array of all of `values`, a state or a step: too little to be worth keeping.
pub(crate) fn small_array<'py, E: Number>(
    py: Python<'py>,
    values: Vec<E>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let shaped = ArrayD::from_shape_vec(shape, values).map_err(|error| {
        PyValueError::new_err(format!("internal error, please report it: {error}"))
    })?;
    Ok(PyArrayDyn::from_owned_array(py, shaped).into_any())
}
