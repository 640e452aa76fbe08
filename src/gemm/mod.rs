//! Small matrix products in registers, and the packed weights and tables they read and write.

pub mod kernel;
pub mod pack;
pub mod relay;
pub mod row;
pub mod strips;
pub mod view;
