//! A graph: plain, validated data.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::graph::array::Array;
use crate::graph::leading::Leading;
use crate::graph::operator::Operator;
use crate::graph::shape::TensorType;
use crate::operands::weights::Weights;

/// What no other graph has: clones share it, and so do those that [`Graph::with_leading`] makes for the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GraphId {
    number: u64,
    pub leading: Option<usize>,
}

impl GraphId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), leading: None }
    }
}

/// What is known of a value's contents.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// It comes with each run.
    Input,
    /// A node computes it.
    Node,
    /// Nothing computes it any more: a pass made it superfluous.
    Absent,
    Constant(Arc<Array>),
    /// The logical k x n matrix, or the batch of them, whichever way it is stored; without its scales.
    Weights(Weights),
}

#[derive(Debug, Clone)]
pub(crate) struct ValueInfo {
    pub name: String,
    pub tensor_type: TensorType,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub(crate) struct NodeInfo {
    pub name: String,
    pub operator: Operator,
    /// Values, in the operator's order; `None` for one that is left out.
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<usize>,
}

/// Operators on values of fixed shapes, described and checked: what [`crate::graph::GraphBuilder`] makes.
///
/// Its text has a line for each input, constant, node and output.
///
/// ```
/// use ane_matmul::ElementType;
/// use ane_matmul::graph::GraphBuilder;
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[2, 3])?;
/// let y = g.named("half").mul_scalar(x, 0.5)?;
/// let graph = g.finish(&[("y", y)])?;
/// assert!(graph.to_string().contains("half: f32[2, 3] = Mul(x, 0.5)"));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Cloning shares the constants.
#[derive(Debug, Clone)]
pub struct Graph {
    pub(crate) id: GraphId,
    /// Counts the handles but those of compiled graphs.
    pub(crate) named: Option<Arc<()>>,
    pub(crate) values: Vec<ValueInfo>,
    /// In an order in which each comes after those whose results it reads.
    pub(crate) nodes: Vec<NodeInfo>,
    /// Values, in the order of a run's operands.
    pub(crate) inputs: Vec<usize>,
    /// A name and a value for each output.
    pub(crate) outputs: Vec<(String, usize)>,
    /// With a variable leading dimension.
    pub(crate) leading: Option<Leading>,
}

impl Graph {
    /// The name and type of each input, in the order of a run's operands.
    #[must_use]
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (&str, TensorType)> {
        self.inputs.iter().map(|index| {
            let value = &self.values[*index];
            (value.name.as_str(), value.tensor_type)
        })
    }

    /// The name and type of each output, in the order of a run's results.
    #[must_use]
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, TensorType)> {
        self.outputs.iter().map(|(name, index)| (name.as_str(), self.values[*index].tensor_type))
    }

    /// The name and operator of each node, in the order in which they are computed.
    #[must_use]
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (&str, &Operator)> {
        self.nodes.iter().map(|node| (node.name.as_str(), &node.operator))
    }

    /// Those of its constants that are weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Weights> {
        self.values.iter().filter_map(|value| match &value.source {
            Source::Weights(weights) => Some(weights),
            _ => None,
        })
    }

    /// The bytes of all constants, each counted once.
    #[must_use]
    pub fn constant_bytes(&self) -> usize {
        let constant = |value: &&ValueInfo| matches!(value.source, Source::Constant(_) | Source::Weights(_));
        self.values.iter().filter(constant).map(|value| value.tensor_type.bytes()).sum()
    }
}

/// A constant's contents, where they take no more room than its name.
fn short(array: &Array) -> Option<String> {
    if array.shape().rank() > 0 {
        return None;
    }
    macro_rules! first {
        ($($rust:ty)*) => {$(
            if let Some([element]) = array.data::<$rust>() {
                return Some(format!("{element:?}"));
            }
        )*};
    }
    first! { f32 f64 i64 i32 i8 u8 bool }
    None
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |index: usize| match &self.values[index] {
            ValueInfo { source: Source::Constant(array), name, .. } => {
                short(array).unwrap_or_else(|| name.clone())
            }
            value => value.name.clone(),
        };
        for (input, tensor_type) in self.inputs() {
            writeln!(f, "input {input}: {tensor_type}")?;
        }
        for value in &self.values {
            match &value.source {
                Source::Constant(array) if short(array).is_none() => {
                    writeln!(f, "constant {}: {}", value.name, value.tensor_type)?;
                }
                Source::Weights(_) => writeln!(f, "weights {}: {}", value.name, value.tensor_type)?,
                _ => {}
            }
        }
        for node in &self.nodes {
            let outputs: Vec<_> = node
                .outputs
                .iter()
                .map(|index| format!("{}: {}", self.values[*index].name, self.values[*index].tensor_type))
                .collect();
            let inputs: Vec<_> =
                node.inputs.iter().map(|input| input.map_or_else(|| "-".into(), name)).collect();
            let attributes = attributes(&node.operator);
            writeln!(f, "{} = {}({}){attributes}", outputs.join(", "), node.operator, inputs.join(", "))?;
        }
        for (output, index) in &self.outputs {
            writeln!(f, "output {output}: {}", self.values[*index].name)?;
        }
        Ok(())
    }
}

/// As Rust writes them, without the operator's name.
fn attributes(operator: &Operator) -> String {
    let text = format!("{operator:?}");
    match text.find([' ', '(']) {
        Some(start) => format!(" {}", text[start..].trim()),
        None => String::new(),
    }
}
