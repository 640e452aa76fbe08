//! Recurrent networks for NumPy users: vanilla, LSTM, GRU and MGU, forward and backward through
//! time.

pub mod cell;
pub mod error;
pub mod gemm;
pub mod layer;
pub mod math;
pub mod memory;
pub mod parallel;
pub mod shape;
pub mod simd;

#[cfg(feature = "python")]
mod python;
