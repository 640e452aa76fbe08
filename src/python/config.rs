//! Process-wide settings: the instruction level and the number of threads.
//!
//! Both have a default from the environment, read once at import, and a setter. What they are set
//! to is passed down as a value; nothing below the seam reads it from here.

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use pyo3::exceptions::{
    PyImportError, PyOverflowError, PyRuntimeWarning, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::simd::Level;

/// More threads than any one machine has cores: a larger number is a mistake.
const MAX_THREADS: usize = 1024;

/// Where the number of threads comes from, first found first.
const THREAD_VARIABLES: [&str; 2] = ["RNNCORE_NUM_THREADS", "OMP_NUM_THREADS"];

/// Forces an instruction level.
const LEVEL_VARIABLE: &str = "RNNCORE_LEVEL";

/// `None` until the module is imported.
static LEVEL: RwLock<Option<Level>> = RwLock::new(None);

/// 0 until the module is imported.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The instruction level that calls use.
pub(crate) fn level() -> Level {
    // A poisoned lock still holds a whole value: a `Level` is written in one assignment.
    let level = *LEVEL
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    level.unwrap_or_else(Level::detect)
}

/// The number of threads that calls may use.
pub(crate) fn threads() -> usize {
    THREADS.load(Ordering::Relaxed).max(1)
}

/// Sets the defaults: called once, when the module is imported.
pub(crate) fn read_environment(py: Python<'_>) -> PyResult<()> {
    let level = match std::env::var(LEVEL_VARIABLE) {
        Ok(name) if !name.is_empty() => {
            named(LEVEL_VARIABLE, &name).map_err(PyImportError::new_err)?
        }
        _ => Level::detect(),
    };
    store_level(level);
    THREADS.store(default_threads(py)?, Ordering::Relaxed);
    Ok(())
}

/// The number of cores this process may use: its affinity and its control group's quota.
#[pyfunction]
pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Set how many threads a call may use.
///
/// Results have the same bits for every number.
#[pyfunction]
pub(crate) fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    let expected = format!("n: expected an integer from 1 to {MAX_THREADS}");
    if n.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{expected}, got bool")));
    }
    let number = n.extract::<i64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(n.py()) {
            PyValueError::new_err(format!("{expected}, got {n}"))
        } else {
            PyTypeError::new_err(format!("{expected}, got {}", n.get_type()))
        }
    })?;
    match usize::try_from(number) {
        Ok(threads @ 1..=MAX_THREADS) => {
            THREADS.store(threads, Ordering::Relaxed);
            Ok(())
        }
        _ => Err(PyValueError::new_err(format!("{expected}, got {number}"))),
    }
}

/// Get how many threads a call may use.
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    threads()
}

/// Set the instruction level that every later call uses, by one of the names in `levels()`.
#[pyfunction]
pub(crate) fn set_level(name: &str) -> PyResult<()> {
    store_level(named("name", name).map_err(PyValueError::new_err)?);
    Ok(())
}

/// Get the name of the instruction level in use.
#[pyfunction]
pub(crate) fn get_level() -> &'static str {
    level().name()
}

/// List the names of the instruction levels of this machine, the best last.
#[pyfunction]
pub(crate) fn levels() -> Vec<&'static str> {
    Level::available()
        .into_iter()
        .map(|level| level.name())
        .collect()
}

fn store_level(level: Level) {
    *LEVEL
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(level);
}

/// The level of that name, or what to say when this machine has none.
fn named(argument: &str, name: &str) -> Result<Level, String> {
    Level::named(name).map_err(|error| format!("{argument}: {error}"))
}

/// `RNNCORE_NUM_THREADS`, then `OMP_NUM_THREADS`, then the cores this process may use.
///
/// A variable that is no number of threads is passed over, with a warning: a program must not fail
/// because of an environment it does not control.
fn default_threads(py: Python<'_>) -> PyResult<usize> {
    for variable in THREAD_VARIABLES {
        let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let text = value.to_string_lossy();
        match parse_threads(&text) {
            Some(threads) => return Ok(threads),
            None => warn_ignored(py, variable, &text)?,
        }
    }
    Ok(cores().min(MAX_THREADS))
}

/// The first number of a comma-separated list (OpenMP's form: one number for each nesting level).
fn parse_threads(text: &str) -> Option<usize> {
    let first = text.split(',').next()?.trim();
    first
        .parse()
        .ok()
        .filter(|threads| (1..=MAX_THREADS).contains(threads))
}

fn warn_ignored(py: Python<'_>, variable: &str, text: &str) -> PyResult<()> {
    let message = std::ffi::CString::new(format!(
        "{variable}: expected a number of threads from 1 to {MAX_THREADS}, got {text:?}; ignored"
    ))?;
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &message, 1)
}
