//! Recurrent networks for NumPy users: vanilla, LSTM, GRU and MGU, forward and backward through
//! time.
//!
//! How data flows. A caller's arrays come in through [`layer::Stack`], which holds what a network is
//! but none of its numbers. [`shape::Schedule`] turns a ragged batch into a *packed* sequence: step
//! after step, the rows that are there, longest first. A layer packs its weights ([`gemm::pack`]) and
//! cuts the rows into shares, one a thread ([`parallel`]); a share goes through all of time alone. A
//! step multiplies in registers ([`gemm::kernel`]) and hands the sums of all gates of a few units to
//! the equations of its [`cell`], which are written once over the vectors of [`simd`] and the
//! functions of [`math`]. What backward will need goes to the tape, which backward reads and never
//! writes: it walks the same shares in reverse, chunk by chunk, and turns each chunk into gradients of
//! weights and inputs by plain products.
//!
//! Modules import downwards only: `error` and `simd` know nobody; then `memory`, `math`, `shape` and
//! `parallel`; then `gemm` and `cell`, which do not know each other; then `layer`; then the Python
//! seam, which computes nothing. Two stand beside them: [`optimizer`], whose passes over all parameters would
//! otherwise cost a good part of a training step, and [`peak`], which measures the ceiling that all of
//! it is held against.

pub mod cell;
pub mod error;
pub mod gemm;
pub mod layer;
pub mod math;
pub mod memory;
pub mod optimizer;
pub mod parallel;
pub mod peak;
pub mod shape;
pub mod simd;

#[cfg(feature = "python")]
mod python;
