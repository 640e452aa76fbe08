//! The multiply-add peak, for benchmarks.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::config::{level, threads};
use super::detach;
use crate::parallel::Watch;
use crate::peak::multiply_adds;

/// Multiply and add in registers, at the level and on the threads in use; return how many
/// multiply-adds that were.
///
/// Benchmarks time it: nothing the processor does has more of them in a second. `dtype` is "float32"
/// or "float64"; each thread does the same number, which grows with `rounds`.
#[pyfunction]
pub(crate) fn multiply_add(py: Python<'_>, rounds: usize, dtype: &str) -> PyResult<u64> {
    let work = match dtype {
        "float32" => multiply_adds::<f32>,
        "float64" => multiply_adds::<f64>,
        _ => {
            let message = format!("dtype: expected \"float32\" or \"float64\", got {dtype:?}");
            return Err(PyValueError::new_err(message));
        }
    };
    let (level, threads) = (level(), threads());
    detach(py, |interrupt| {
        let poll = || interrupt.requested();
        work(level, rounds, threads, &Watch::new(&poll))
    })
}
