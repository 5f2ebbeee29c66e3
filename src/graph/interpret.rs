//! A graph computed as it is given, one operator after the other, in f64 or f32: what engines are compared with.
//!
//! Nothing here is shared with an engine, and clarity goes before speed. [`Operator::infer`] has checked types and
//! dimensions before an operator is computed.

mod operators;
mod real;
#[cfg(test)]
mod tests;
mod values;

use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::array::Array;
use crate::graph::description::{Graph, NodeInfo, Source};
#[cfg(doc)]
use crate::graph::operator::Operator;
pub(crate) use operators::{broadcast, scale_index};
pub(crate) use real::Real;
pub(crate) use values::{Data, Values, range};

impl Graph {
    /// The outputs in f64: what they are but for the errors of that type.
    ///
    /// Inputs and constants are widened, which is exact, and no floating-point value is rounded to its own type:
    /// outputs of floating-point types are arrays of f64. Integers and booleans have their own types; where a
    /// comparison, a cast to integers or a quantisation makes them of values close to a threshold, an engine's may
    /// differ. It is written for clarity, and slow.
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::{Array, GraphBuilder};
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[3])?;
    /// let y = g.softmax(x, -1)?;
    /// let graph = g.finish(&[("y", y)])?;
    /// let outputs = graph.interpret_f64(&[&Array::new(&[3], vec![0f32, 0.0, 1e4])?])?;
    /// assert_eq!(outputs[0].data::<f64>(), Some(&[0.0, 0.0, 1.0][..]));
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// Where ONNX leaves a result open: integers wrap on overflow; casts of floating-point numbers to integers
    /// saturate, and give 0 for NaN; padding adds nothing to a convolution, whatever the weight.
    ///
    /// # Errors
    /// [`Error::Graph`] for another number of inputs, an input of another type or other dimensions, an index of a
    /// [`Gather`](crate::graph::Operator::Gather) that is out of range, an integer division by 0, and outputs of
    /// 4-bit integers; [`Error::OutOfMemory`].
    pub fn interpret_f64(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        self.outputs_of(&interpret::<f64>(self, inputs)?, |element| match element {
            element if element.is_float() => ElementType::F64,
            element => element,
        })
    }

    /// The outputs in plain f32: each operation rounds once, sums are in order, and each value is rounded to its own
    /// type when it is stored. Its distance from [`Graph::interpret_f64`] says how well the graph can be computed.
    ///
    /// Outputs have their own types; values of f64 have the precision of f32.
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::{Array, GraphBuilder};
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[1])?;
    /// let sum = g.add_scalar(x, 1.0)?;
    /// let y = g.add_scalar(sum, -1.0)?;
    /// let graph = g.finish(&[("y", y)])?;
    /// let x = Array::new(&[1], vec![1e-9f32])?;
    /// assert_eq!(graph.interpret_f32(&[&x])?[0].data::<f32>(), Some(&[0.0][..]));
    /// assert!(graph.interpret_f64(&[&x])?[0].data::<f64>().is_some_and(|y| (y[0] - 1e-9).abs() < 1e-15));
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Graph::interpret_f64`]; [`Error::Graph`] for values of f16 and bf16 without the feature `half`.
    pub fn interpret_f32(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        self.outputs_of(&interpret::<f32>(self, inputs)?, |element| element)
    }

    /// The outputs in f64, rounded to their own types.
    pub(crate) fn interpret_rounded(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        self.outputs_of(&interpret::<f64>(self, inputs)?, |element| element)
    }

    /// Whether a run has an array of the right type for each input.
    pub(crate) fn check_inputs(&self, inputs: &[&Array]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let names: Vec<_> = self.inputs().map(|(name, _)| name).collect();
            return Err(Error::graph(format!(
                "expected {} inputs ({}), got {}",
                names.len(),
                names.join(", "),
                inputs.len()
            )));
        }
        for (array, (name, tensor_type)) in inputs.iter().zip(self.inputs()) {
            if array.tensor_type() != tensor_type {
                let got = array.tensor_type();
                return Err(Error::graph(format!("input `{name}`: expected {tensor_type}, got {got}")));
            }
        }
        Ok(())
    }

    fn outputs_of<R: Real>(
        &self,
        values: &[Values<R>],
        as_element: impl Fn(ElementType) -> ElementType,
    ) -> Result<Vec<Array>> {
        let array = |(_, index): &(String, usize)| {
            let value = &values[*index];
            value.to_array(as_element(value.tensor_type.element))
        };
        self.outputs.iter().map(array).collect()
    }
}

/// All values of a run, in the order of the graph's.
pub(crate) fn interpret<R: Real>(graph: &Graph, inputs: &[&Array]) -> Result<Vec<Values<R>>> {
    graph.check_inputs(inputs)?;
    let mut values: Vec<Option<Values<R>>> = alloc::with_capacity(graph.values.len(), "values of a graph")?;
    for value in &graph.values {
        values.push(match &value.source {
            Source::Input | Source::Node => None,
            Source::Absent => {
                Some(Values { tensor_type: value.tensor_type, data: Data::empty(value.tensor_type.element) })
            }
            Source::Constant(array) => Some(Values::of_array(array)?),
            Source::Weights(weights) => Some(Values::of_weights(weights, value.tensor_type)?),
        });
    }
    for (array, index) in inputs.iter().zip(&graph.inputs) {
        values[*index] = Some(Values::of_array(array)?);
    }
    for node in &graph.nodes {
        let inputs: Vec<_> =
            node.inputs.iter().map(|input| input.and_then(|index| values[index].as_ref())).collect();
        let outputs = compute(node, &inputs)?;
        for (output, index) in outputs.into_iter().zip(&node.outputs) {
            values[*index] = Some(output);
        }
    }
    let missing = || Error::graph("a value that nothing computes".into());
    values.into_iter().map(|value| value.ok_or_else(missing)).collect()
}

/// The results of a node for any inputs that its operator takes; `None` for one that is left out.
pub(crate) fn compute<R: Real>(node: &NodeInfo, inputs: &[Option<&Values<R>>]) -> Result<Vec<Values<R>>> {
    operators::evaluate(&node.operator, inputs).map_err(|error| match error {
        Error::Graph { problem, .. } => {
            Error::Graph { node: node.name.clone(), problem: format!("{}: {problem}", node.operator.name()) }
        }
        other => other,
    })
}
