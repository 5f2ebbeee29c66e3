//! Whole graphs of operators: described, checked, and computed in float64.
//!
//! [`GraphBuilder`] has a method for each [`Operator`], which checks types and shapes and returns a [`Value`]. What it
//! makes, a [`Graph`], is plain data.
//!
//! [`Graph::interpret_f64`] computes it as it is given, one operator after the other, in float64: what a faster
//! computation is compared with. [`Graph::interpret_f32`] does the same in plain float32.
//!
//! [`Graph::compile`] makes a [`CompiledGraph`] for a backend, and [`CompiledGraph::executor`] what runs it.

mod accuracy;
mod array;
mod builder;
pub(crate) mod bytes;
pub(crate) mod check;
mod checked;
pub(crate) mod compiled;
pub(crate) mod description;
pub(crate) mod infer;
mod interpret;
pub(crate) mod leading;
pub(crate) mod operator;
pub(crate) mod passes;
pub(crate) mod report;
pub(crate) mod shape;
#[cfg(test)]
pub(crate) mod tests;

pub use array::{Array, ArrayElement};
pub use builder::{GraphBuilder, Value};
pub use check::{NodesReport, OutputReport, WholeReport, WrongNode};
pub use compiled::{CompiledGraph, GraphExecutor};
pub use description::Graph;
pub use operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
pub use passes::PassReport;
pub use report::{GraphReport, NodeReport};
pub use shape::{MAX_RANK, Shape, TensorType};
