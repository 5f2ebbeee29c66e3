//! The outputs of an engine against those of the float64 interpretation, by the errors of plain f32.

use super::WHAT;
use super::undetermined::{Marked, dependents};
use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::accuracy::U;
use crate::graph::array::Array;
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::interpret::{Data, Real, Values, broadcast, interpret, scale_index};
use crate::graph::operator::Operator;

/// An engine may be off by so many times the error of plain f32,
const TIMES_PLAIN: f64 = 4.0;
/// and by this part of the largest number.
const PART_OF_LARGEST: f64 = 8.0 * U;

/// An output of a graph. [`WholeReport`] has an example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// The largest error of the backend; infinite where NaN, an infinity, an integer or a boolean is wrong.
    pub error: f64,
    /// The element that has it.
    pub element: usize,
    /// The float64 result of that element; of a boolean 0 or 1.
    pub expected: f64,
    /// The backend's.
    pub got: f64,
    /// The largest error of plain f32.
    pub plain_error: f64,
    /// The largest error that the backend may have.
    pub limit: f64,
    /// The elements that count for nothing, since they depend on one that is close to a threshold.
    pub undetermined: usize,
    /// All its elements.
    pub elements: usize,
}

impl OutputReport {
    /// Whether the error is within the limit.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.error <= self.limit
    }
}

/// What [`CompiledGraph::check_whole`](crate::graph::CompiledGraph::check_whole) found.
///
/// ```
/// use ane_matmul::graph::{Array, GraphBuilder};
/// use ane_matmul::{BackendId, ElementType};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[2, 3])?;
/// let y = g.softmax(x, -1)?;
/// let compiled = g.finish(&[("y", y)])?.compile(&BackendId::CPU)?;
/// let report = compiled.check_whole(&[&Array::new(&[2, 3], vec![0.5f32; 6])?])?;
/// println!("off by {} of at most {}", report.outputs[0].error, report.outputs[0].limit);
/// assert!(report.is_right());
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WholeReport {
    /// Those of the graph, in its order.
    pub outputs: Vec<OutputReport>,
}

impl WholeReport {
    /// Whether all outputs are right, and too few of their elements undetermined to hide anything: at most 1 in 100.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.is_decided() && self.outputs.iter().all(OutputReport::is_right)
    }

    /// Whether at most 1 element in 100 is undetermined.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        let sum = |of: fn(&OutputReport) -> usize| self.outputs.iter().map(of).sum::<usize>();
        sum(|output| output.undetermined) * 100 <= sum(|output| output.elements)
    }
}

/// Compares all outputs of an engine with those of the float64 interpretation.
///
/// In the largest norm of each output, the engine's error is at most 4 times that of the plain f32 interpretation, which
/// rounds stored values as the engine does, and 8 u of the largest number: errors in other places and of other signs,
/// since the engine sums in another order and has other functions.
///
/// An element of an output is undetermined where it depends on a comparison, a cast to integers or booleans, or a
/// quantisation of a number that lies as close to the threshold as the same 4 times and 8 u of all of that number's
/// value allow; also where plain f32 overflows and float64 does not.
///
/// # Errors
/// As [`Graph::interpret_f32`]; [`Error::Graph`] for another number of outputs or another type of one.
pub(crate) fn check_whole(graph: &Graph, inputs: &[&Array], outputs: &[&Array]) -> Result<WholeReport> {
    let fits = outputs.len() == graph.outputs.len()
        && outputs.iter().zip(graph.outputs()).all(|(got, (_, wanted))| got.tensor_type() == wanted);
    if !fits {
        return Err(Error::graph("the engine's outputs are not those of the graph".into()));
    }
    let (wide, plain) = (interpret::<f64>(graph, inputs)?, interpret::<f32>(graph, inputs)?);
    let mut state = State { wide, plain, marks: Vec::new(), limits: Vec::new() };
    state.marks.resize_with(graph.values.len(), Vec::new);
    state.limits.resize(graph.values.len(), Some(0.0));
    for (index, value) in graph.values.iter().enumerate() {
        let is_rounded = value.tensor_type.element == ElementType::F64;
        if !matches!(value.source, Source::Node) && is_rounded {
            state.limits[index] = None;
        }
    }
    for node in &graph.nodes {
        state.advance(node)?;
    }
    let report = |(got, (name, index)): (&&Array, &(String, usize))| state.compare(name, *index, got);
    Ok(WholeReport { outputs: outputs.iter().zip(&graph.outputs).map(report).collect::<Result<_>>()? })
}

struct State {
    wide: Vec<Values<f64>>,
    plain: Vec<Values<f32>>,
    /// For each value the undetermined elements, or none.
    marks: Vec<Vec<bool>>,
    /// For each value the largest error that an engine may have, 0 where it is exact; `None` until it is asked for.
    limits: Vec<Option<f64>>,
}

impl State {
    fn advance(&mut self, node: &NodeInfo) -> Result<()> {
        let inputs: Vec<_> = node
            .inputs
            .iter()
            .map(|input| input.map(|index| Marked { values: &self.wide[index], marks: &self.marks[index] }))
            .collect();
        let results: Vec<_> = node.outputs.iter().map(|index| self.wide[*index].tensor_type).collect();
        let mut marks = dependents(node, &inputs, &results)?;
        if let [marks] = marks.as_mut_slice() {
            self.add_thresholds(node, marks)?;
        }
        let exact = self.is_exact(node);
        for (mut marks, index) in marks.into_iter().zip(&node.outputs) {
            // What overflows in f32 alone.
            if let (Data::Floats(wide), Data::Floats(plain)) =
                (&self.wide[*index].data, &self.plain[*index].data)
            {
                for (element, (wide, plain)) in wide.iter().zip(plain).enumerate() {
                    if wide.is_finite() && !plain.is_finite() {
                        mark(&mut marks, element, wide_count(&self.wide[*index]))?;
                    }
                }
            }
            self.marks[*index] = marks;
            self.limits[*index] = if exact { Some(0.0) } else { None };
        }
        Ok(())
    }

    /// Whether a node's results are exact since all of its inputs are.
    fn is_exact(&self, node: &NodeInfo) -> bool {
        use Operator as Op;
        let mut inputs = node.inputs.iter().flatten();
        let results = || node.outputs.iter().map(|index| self.wide[*index].tensor_type.element);
        let keeps = match &node.operator {
            Op::Abs
            | Op::Neg
            | Op::Relu
            | Op::Clip
            | Op::Identity
            | Op::Min
            | Op::Max
            | Op::Where
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Expand { .. }
            | Op::Transpose { .. }
            | Op::Concat { .. }
            | Op::Split { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Trilu { .. }
            | Op::Gather { .. }
            | Op::ReduceMax(_)
            | Op::MaxPool(..) => true,
            // Small integers are numbers of every type.
            Op::Cast { .. } => node.outputs.iter().all(|index| self.is_same(*index)),
            _ => false,
        };
        keeps && inputs.all(|index| self.limits[*index] == Some(0.0)) || results().all(|of| !of.is_float())
    }

    fn is_same(&self, index: usize) -> bool {
        match (&self.wide[index].data, &self.plain[index].data) {
            (Data::Floats(wide), Data::Floats(plain)) => {
                wide.iter().zip(plain).all(|(wide, plain)| *wide == f64::from(*plain) || wide.is_nan())
            }
            _ => true,
        }
    }

    /// The largest error of plain f32, and the largest number, of the elements that are determined.
    fn plain_error(&self, index: usize) -> (f64, f64) {
        let (mut error, mut largest) = (0f64, 0f64);
        if let (Data::Floats(wide), Data::Floats(plain)) = (&self.wide[index].data, &self.plain[index].data) {
            for (element, (wide, plain)) in wide.iter().zip(plain).enumerate() {
                let is_open = self.marks[index].get(element).copied().unwrap_or(false);
                if !is_open && wide.is_finite() && plain.is_finite() {
                    error = error.max((wide - f64::from(*plain)).abs());
                    largest = largest.max(wide.abs());
                }
            }
        }
        (error, largest)
    }

    fn limit(&mut self, index: usize) -> f64 {
        if let Some(limit) = self.limits[index] {
            return limit;
        }
        let (error, largest) = self.plain_error(index);
        let limit = TIMES_PLAIN * error + PART_OF_LARGEST * largest;
        self.limits[index] = Some(limit);
        limit
    }

    /// Marks what the node makes of numbers that are close to a threshold.
    fn add_thresholds(&mut self, node: &NodeInfo, marks: &mut Vec<bool>) -> Result<()> {
        use Operator as Op;
        let (Some(Some(x)), Some(result)) = (node.inputs.first().copied(), node.outputs.first().copied())
        else {
            return Ok(());
        };
        if !matches!(self.wide[x].data, Data::Floats(_)) {
            return Ok(());
        }
        let of_x = self.limit(x);
        let count = wide_count(&self.wide[result]);
        let open: Vec<usize> = match &node.operator {
            Op::Equal | Op::Greater | Op::GreaterOrEqual | Op::Less | Op::LessOrEqual => {
                let Some(Some(y)) = node.inputs.get(1).copied() else { return Ok(()) };
                let limit = of_x + self.limit(y);
                let shape = self.wide[result].tensor_type.shape;
                let offsets = broadcast(&self.wide[x].tensor_type.shape, &shape)
                    .zip(broadcast(&self.wide[y].tensor_type.shape, &shape));
                let (a, b) = (self.wide[x].data.floats()?, self.wide[y].data.floats()?);
                let close = offsets.map(|(of_a, of_b)| limit > 0.0 && (a[of_a] - b[of_b]).abs() <= limit);
                indices_of(close)
            }
            Op::Cast { to } if *to == ElementType::Bool => {
                indices_of(self.wide[x].data.floats()?.iter().map(|x| of_x > 0.0 && x.abs() <= of_x))
            }
            Op::Cast { to } if !to.is_float() => {
                let steps = |x: &f64| of_x > 0.0 && (x + of_x).trunc() != (x - of_x).trunc();
                indices_of(self.wide[x].data.floats()?.iter().map(steps))
            }
            Op::QuantizeLinear { axis, block_size, .. } if count > 0 => {
                let Some(Some(scale)) = node.inputs.get(1).copied() else { return Ok(()) };
                let of_scale = self.limit(scale);
                let shapes = (&self.wide[x].tensor_type.shape, &self.wide[scale].tensor_type.shape);
                let scale_of = scale_index(shapes.0, shapes.1, *axis, *block_size)?;
                let scales = self.wide[scale].data.floats()?;
                let steps = |(index, x): (usize, &f64)| {
                    let scale = scales[scale_of(index)];
                    let quotient = x / scale;
                    let error = (of_x + quotient.abs() * of_scale) / scale.abs() + 2.0 * U * quotient.abs();
                    (quotient + error).round_ties_even() != (quotient - error).round_ties_even()
                };
                indices_of(self.wide[x].data.floats()?.iter().enumerate().map(steps))
            }
            _ => Vec::new(),
        };
        for element in open {
            mark(marks, element, count)?;
        }
        Ok(())
    }

    fn compare(&self, name: &str, index: usize, got: &Array) -> Result<OutputReport> {
        let got = Values::<f64>::of_array(got)?;
        let wide = &self.wide[index];
        let marks = &self.marks[index];
        let (plain_error, largest) = self.plain_error(index);
        let mut report = OutputReport {
            name: name.to_owned(),
            error: 0.0,
            element: 0,
            expected: 0.0,
            got: 0.0,
            plain_error,
            limit: TIMES_PLAIN * plain_error + PART_OF_LARGEST * largest,
            undetermined: marks.iter().filter(|mark| **mark).count(),
            elements: wide_count(&got),
        };
        let mut add = |element: usize, error: f64| {
            let is_open = marks.get(element).copied().unwrap_or(false);
            if !is_open && error > report.error {
                (report.error, report.element) = (error, element);
            }
        };
        match (&wide.data, &got.data) {
            (Data::Floats(wide), Data::Floats(got)) => {
                for (element, (wide, got)) in wide.iter().zip(got).enumerate() {
                    let is_same = wide == got || wide.is_nan() && Real::is_nan(*got);
                    let error = (wide - got).abs();
                    add(
                        element,
                        if is_same {
                            0.0
                        } else if error.is_nan() {
                            f64::INFINITY
                        } else {
                            error
                        },
                    );
                }
            }
            (Data::Integers(wide), Data::Integers(got)) => {
                for (element, (wide, got)) in wide.iter().zip(got).enumerate() {
                    add(element, if wide == got { 0.0 } else { f64::INFINITY });
                }
            }
            (Data::Booleans(wide), Data::Booleans(got)) => {
                for (element, (wide, got)) in wide.iter().zip(got).enumerate() {
                    add(element, if wide == got { 0.0 } else { f64::INFINITY });
                }
            }
            _ => return Err(Error::graph(format!("output `{name}`: it is of another kind"))),
        }
        if report.elements > 0 {
            (report.expected, report.got) = (wide.number(report.element), got.number(report.element));
        }
        Ok(report)
    }
}

fn indices_of(holds: impl Iterator<Item = bool>) -> Vec<usize> {
    holds.enumerate().filter_map(|(index, holds)| holds.then_some(index)).collect()
}

fn wide_count(values: &Values<f64>) -> usize {
    values.tensor_type.shape.count()
}

fn mark(marks: &mut Vec<bool>, element: usize, count: usize) -> Result<()> {
    if marks.is_empty() {
        *marks = alloc::filled(count, false, WHAT)?;
    }
    marks[element] = true;
    Ok(())
}
