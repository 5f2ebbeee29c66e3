//! Whether what an engine computed of a graph is right: node by node ([`check_nodes`]), and as a whole
//! ([`check_whole`]).

mod nodes;
mod undetermined;
mod whole;

pub(crate) use nodes::check_nodes;
pub use nodes::{NodesReport, WrongNode};
pub(crate) use whole::check_whole;
pub use whole::{OutputReport, WholeReport};

const WHAT: &str = "values of a graph";
