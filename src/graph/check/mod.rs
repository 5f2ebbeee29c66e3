//! Whether what an engine computed of a graph is right: node by node ([`check_nodes`]), as a whole
//! ([`check_whole`]), and a part of it ([`check_steps`], [`check_outputs`]).

mod nodes;
mod sampled;
mod undetermined;
mod whole;

pub(crate) use nodes::check_nodes;
pub use nodes::{NodesReport, WrongNode};
pub(crate) use sampled::{Wrong, check_outputs, check_same, check_steps, flops_of_outputs};
pub(crate) use whole::check_whole;
pub use whole::{OutputReport, WholeReport};

const WHAT: &str = "values of a graph";
