//! The one error type: what a caller did wrong, or what the machine could not give.
//!
//! Every message names the argument, what was expected (a shape in letters and numbers) and what
//! came. `src/python/mod.rs` maps each variant to its Python exception, in one place.

use std::fmt;

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call could not be carried out.
///
/// ```
/// use rnncore::error::Error;
///
/// let error = Error::shape("x", "(T, B, 16)", "(5, 3, 8)");
/// assert_eq!(error.to_string(), "x: expected shape (T, B, 16), got (5, 3, 8)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An array has the wrong rank or size.
    Shape {
        /// The name of the argument, as the caller knows it.
        argument: String,
        /// The expected shape in letters and numbers, e.g. `(T, B, 16)`.
        expected: String,
        /// The shape that came, e.g. `(5, 3, 8)`.
        got: String,
    },
    /// An argument of the right form has a value outside its range.
    Value {
        /// The name of the argument, as the caller knows it.
        argument: String,
        /// The values that are allowed, e.g. `a probability in [0, 1)`.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// A size computed from the arguments does not fit the address space.
    Overflow {
        /// What was to be sized, e.g. `the tape (T * B * G * H)`.
        what: String,
    },
    /// The allocator refused.
    Memory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: usize,
    },
    /// The tape was used up by an earlier backward pass, or belongs to another layer.
    Tape {
        /// What is wrong with it and what to do instead.
        reason: String,
    },
    /// The caller asked to stop (Ctrl-C); the call ended early and its results are void.
    Interrupted,
}

impl Error {
    /// An array of the wrong rank or size.
    pub fn shape(
        argument: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Shape {
            argument: argument.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// A value outside its range; `got` is shown as it prints.
    pub fn value(
        argument: impl Into<String>,
        expected: impl Into<String>,
        got: impl fmt::Display,
    ) -> Self {
        Self::Value {
            argument: argument.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    /// A size that does not fit the address space.
    pub fn overflow(what: impl Into<String>) -> Self {
        Self::Overflow { what: what.into() }
    }

    /// Memory that could not be had.
    pub fn memory(what: impl Into<String>, bytes: usize) -> Self {
        Self::Memory {
            what: what.into(),
            bytes,
        }
    }

    /// A tape that cannot be used.
    pub fn tape(reason: impl Into<String>) -> Self {
        Self::Tape {
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape {
                argument,
                expected,
                got,
            } => {
                write!(f, "{argument}: expected shape {expected}, got {got}")
            }
            Self::Value {
                argument,
                expected,
                got,
            } => {
                write!(f, "{argument}: expected {expected}, got {got}")
            }
            Self::Overflow { what } => write!(f, "{what}: the size does not fit the address space"),
            Self::Memory { what, bytes } => write!(f, "{what}: could not allocate {bytes} bytes"),
            Self::Tape { reason } => write!(f, "tape: {reason}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// A shape as Python writes it: `()`, `(3,)`, `(2, 3)`.
///
/// ```
/// assert_eq!(rnncore::error::shape_text(&[3]), "(3,)");
/// ```
#[must_use]
pub fn shape_text(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    match sizes.as_slice() {
        [one] => format!("({one},)"),
        _ => format!("({})", sizes.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_names_argument_expected_and_got() {
        let cases = [
            (
                Error::shape("x", "(T, B, 16)", "(5, 3, 8)"),
                "x: expected shape (T, B, 16), got (5, 3, 8)",
            ),
            (
                Error::value("dropout", "a probability in [0, 1)", 1.5),
                "dropout: expected a probability in [0, 1), got 1.5",
            ),
            (
                Error::overflow("the tape (T * B * G * H)"),
                "the tape (T * B * G * H): the size does not fit the address space",
            ),
            (
                Error::memory("the tape", 4096),
                "the tape: could not allocate 4096 bytes",
            ),
            (Error::tape("already used"), "tape: already used"),
            (Error::Interrupted, "interrupted"),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn shapes_read_as_python_writes_them() {
        assert_eq!(shape_text(&[]), "()");
        assert_eq!(shape_text(&[7]), "(7,)");
        assert_eq!(shape_text(&[2, 0, 3]), "(2, 0, 3)");
    }
}
