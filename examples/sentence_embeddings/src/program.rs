//! What a graph becomes to be run.

use ane_matmul::CompileOptions;
use ane_matmul::graph::{Array, Graph};

/// A compiled graph.
#[derive(Debug)]
pub struct Program(Graph);

impl Program {
    /// Compiles a graph for the CPU.
    ///
    /// # Errors
    /// The library's.
    pub fn compile(graph: Graph, _options: &CompileOptions) -> Result<Self, ane_matmul::Error> {
        Ok(Self(graph))
    }

    /// The first output, for inputs whose leading dimension may be smaller than the graph's.
    ///
    /// # Errors
    /// The library's.
    pub fn run(&mut self, inputs: &[&Array]) -> Result<Array, ane_matmul::Error> {
        let rows = inputs.first().map_or(0, |input| input.shape().dims()[0]);
        let mut outputs = self.0.with_leading(rows)?.interpret_f32(inputs)?;
        Ok(outputs.swap_remove(0))
    }
}
