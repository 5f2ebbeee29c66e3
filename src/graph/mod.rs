//! Whole graphs of operators: described, checked, and computed in float64.
//!
//! [`GraphBuilder`] has a method for each [`Operator`], which checks types and shapes and returns a [`Value`]. What it
//! makes, a [`Graph`], is plain data.
//!
//! [`Graph::interpret_f64`] computes it as it is given, one operator after the other, in float64: what a faster
//! computation is compared with. [`Graph::interpret_f32`] does the same in plain float32.
//!
//! Backends do not compile graphs yet.

mod array;
mod builder;
mod description;
mod infer;
mod interpret;
mod leading;
mod operator;
mod shape;
#[cfg(test)]
pub(crate) mod tests;

pub use array::{Array, ArrayElement};
pub use builder::{GraphBuilder, Value};
pub use description::Graph;
pub use operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
pub use shape::{MAX_RANK, Shape, TensorType};
