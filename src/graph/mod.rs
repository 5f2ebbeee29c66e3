//! Whole graphs of operators: described, checked, and computed in float64.
//!
//! [`GraphBuilder`] has a method for each [`Operator`], which checks types and shapes and returns a [`Value`]. What it
//! makes, a [`Graph`], is plain data.
//!
//! Backends do not compile graphs yet.

mod array;
mod builder;
mod description;
mod infer;
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
