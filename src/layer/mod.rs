//! Layers: cells over time, in both directions, stacked. Everything here is safe code.
//!
//! | file | what it holds |
//! |---|---|
//! | `config.rs` | what a layer is: cell, sizes, options, the shapes of its parameters |
//! | `weights.rs` | one direction's parameters, packed for forward and for backward |
//! | `forward/` | one share of rows of one direction, forward over a range of steps |
//! | `backward/` | the same share, back over the same steps, directly mirroring it |
//! | `products.rs` | what has no recursion: dW, dU, db and dx of a chunk of steps |
//! | `dropout.rs` | the counter-based masks |
//! | `merge.rs` | two directions into one sequence, and back; between packed and the caller's layout |
//! | `tape.rs` | what forward leaves for backward |
//! | `plan.rs` | how a call's work is shared over threads |
//! | `direction/` | one direction of one layer: its shares, its chunks, its checkpoints |
//! | `call/` | layers x directions: one call forward, the same back |
//! | `stack.rs` | the library's entry points: checks, options, results |
//! | `frozen.rs` | packed weights with a state inside, for streams |

mod backward;
mod call;
mod config;
mod direction;
mod dropout;
mod forward;
mod frozen;
mod merge;
mod plan;
mod products;
mod stack;
mod tape;
mod weights;

pub use crate::gemm::pack::Storage;
pub use config::{CellKind, Config, Merge};
pub use dropout::Masks;
pub use frozen::Frozen;
pub use stack::{
    BackwardOptions, Execution, ForwardOptions, Gradients, Input, NamedGate, Output, Stack,
    StateGradients,
};
pub use tape::Tape;
