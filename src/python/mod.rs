//! The seam: the module `rnncore._core`. It borrows, checks, detaches and wraps; it computes
//! nothing.
//!
//! Two things happen here and nowhere else: [`detach`] releases the interpreter, and the one
//! `From<Error> for PyErr` gives every error its Python exception.

mod arrays;
mod config;
mod frozen;
mod optimizer;
mod peak;
mod stack;
mod tensors;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::error::{Error, Result};

/// The compiled half of rnncore; import `rnncore` instead.
#[pymodule(gil_used = true)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::config::{cores, get_level, get_num_threads, levels, set_level, set_num_threads};
    #[pymodule_export]
    use super::frozen::Frozen;
    #[pymodule_export]
    use super::optimizer::{adam, sum_of_squares};
    #[pymodule_export]
    use super::peak::multiply_add;
    #[pymodule_export]
    use super::stack::{Stack, Tape};
    #[pymodule_export]
    use super::tensors::{load_tensors, save_tensors};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        super::config::read_environment(module.py())
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Shape { .. }
            | Error::Value { .. }
            | Error::Overflow { .. }
            | Error::Tape { .. } => PyValueError::new_err(text),
            Error::Memory { .. } => PyMemoryError::new_err(text),
            // Only where no signal handler said more: see `detach`.
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        }
    }
}

/// Runs `work` with the interpreter released: the one place that does.
///
/// `work` receives an [`Interrupt`] and passes `|| interrupt.requested()` down; when that says so
/// it returns [`Error::Interrupted`], and the caller gets what Python's own signal handler raised.
/// A panic becomes a `RuntimeError`, so that none reaches Python as a `BaseException`.
pub(crate) fn detach<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Interrupt) -> Result<T> + Send,
) -> PyResult<T> {
    let (outcome, raised) = py.detach(|| {
        let interrupt = Interrupt::new();
        let outcome = caught(|| work(&interrupt));
        (outcome, interrupt.raised.into_inner())
    });
    // A handler has run, and Python expects to see what it raised: at the very last poll even so.
    raised.map_or_else(|| attached(outcome), Err)
}

/// Runs `work` with the interpreter held, where releasing it would take longer than the work: a panic
/// becomes a `RuntimeError` here too.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T>) -> PyResult<T> {
    attached(caught(work))
}

/// What `work` returned, or what its panic said.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> std::result::Result<Result<T>, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(panic.as_ref()))
}

/// The outcome as Python gets it.
fn attached<T>(outcome: std::result::Result<Result<T>, String>) -> PyResult<T> {
    match outcome {
        Ok(result) => Ok(result?),
        Err(panic) => Err(PyRuntimeError::new_err(format!(
            "internal error, please report it: {panic}"
        ))),
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Asks Python now and then whether a signal wants the call to end.
///
/// It lives on the thread that made the call: Python runs signal handlers on its main thread alone.
pub(crate) struct Interrupt {
    next: Cell<Option<Instant>>,
    raised: RefCell<Option<PyErr>>,
}

impl Interrupt {
    /// Often enough for Ctrl-C to feel immediate, rare enough to cost nothing.
    const PERIOD: Duration = Duration::from_millis(20);

    fn new() -> Self {
        Self {
            next: Cell::new(Some(Instant::now() + Self::PERIOD)),
            raised: RefCell::new(None),
        }
    }

    /// Whether a signal handler raised; then the call must return [`Error::Interrupted`].
    ///
    /// Cheap enough for every time step: it reads a clock, and attaches to the interpreter at most
    /// once a period. Off the main thread it attaches once, to learn that it is, and never again,
    /// so that a thread which holds the interpreter for long does not hold this call up.
    pub(crate) fn requested(&self) -> bool {
        let Some(next) = self.next.get() else {
            return self.raised.borrow().is_some();
        };
        if Instant::now() < next {
            return false;
        }
        // None: the interpreter is going down, and nobody waits for an answer.
        match Python::try_attach(poll) {
            Some(Ok(true)) => self.next.set(Some(Instant::now() + Self::PERIOD)),
            Some(Ok(false)) | None => self.next.set(None),
            Some(Err(raised)) => {
                self.next.set(None);
                self.raised.replace(Some(raised));
            }
        }
        self.raised.borrow().is_some()
    }

    /// [`Self::requested`] as an error to return.
    fn check(&self) -> Result<()> {
        if self.requested() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }
}

/// Runs pending signal handlers; says whether this is the thread that they run on.
fn poll(py: Python<'_>) -> PyResult<bool> {
    py.check_signals()?;
    let threading = py.import("threading")?;
    let here = threading.call_method0("get_ident")?;
    threading
        .call_method0("main_thread")?
        .getattr("ident")?
        .eq(here)
}
