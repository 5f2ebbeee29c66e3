//! Whether what an engine computed of a graph is right: node by node ([`check_nodes`]), and as a whole
//! ([`check_whole`]).

mod nodes;
mod undetermined;
mod whole;

#[cfg(test)]
pub(crate) use nodes::NodesReport;
#[cfg_attr(not(test), allow(unused_imports, reason = "engines of graphs are held to it"))]
pub(crate) use nodes::check_nodes;
#[cfg_attr(not(test), allow(unused_imports, reason = "engines of graphs are held to it"))]
pub(crate) use whole::check_whole;

const WHAT: &str = "values of a graph";
