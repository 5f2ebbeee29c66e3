//! Checks that a program can afford now and then: a few steps of a run, or its outputs, at one index of the leading
//! dimension.

use std::collections::{BTreeMap, BTreeSet};

use super::{WHAT, check_nodes, check_whole};
use crate::alloc;
use crate::error::{Error, Result};
use crate::graph::array::Array;
use crate::graph::description::{Graph, GraphId, NodeInfo, Source, ValueInfo};
use crate::graph::interpret::{Data, Values};
use crate::graph::report;
use crate::graph::shape::TensorType;
use crate::random::Random;
use crate::verify::self_check::WrongElement;

/// How many times the error of [`OutputReport::limit`](super::OutputReport) outputs may have: at one leading index plain
/// f32 may be right by chance.
const SLACK: f64 = 16.0;

/// What of a graph is wrong, in words, and the element.
pub(crate) type Wrong = (String, WrongElement);

/// An array of a run, by the value that it is.
type Known<'a> = (usize, &'a Array);

/// A graph at one index of a leading dimension that its nodes are proved independent along; where there is none, all of
/// it.
struct Slice {
    graph: Graph,
    inputs: Vec<Array>,
    /// For each value of the graph whether it is cut.
    is_cut: Vec<bool>,
    index: usize,
}

impl Slice {
    /// `inputs` are those of the graph.
    fn draw(graph: &Graph, inputs: &[&Array], random: &mut Random) -> Result<Self> {
        let Some(variable) = separable(graph) else {
            let mut copies = alloc::with_capacity(inputs.len(), WHAT)?;
            for input in inputs {
                copies.push(input.part(0, *input.shape())?);
            }
            let is_cut = alloc::filled(graph.values.len(), false, WHAT)?;
            return Ok(Self { graph: graph.clone(), inputs: copies, is_cut, index: 0 });
        };
        let varying = variable.leading.iter().flat_map(|leading| &leading.values);
        let is_cut: Vec<_> = varying.map(Option::is_some).collect();
        let most = variable.leading.as_ref().map_or(1, |leading| leading.most);
        let mut slice =
            Self { graph: variable.with_leading(1)?, inputs: Vec::new(), is_cut, index: random.below(most) };
        for (input, value) in inputs.iter().zip(&graph.inputs) {
            slice.inputs.push(slice.cut(input, *value)?);
        }
        Ok(slice)
    }

    /// What an array of the whole graph is in the slice: of a value that varies along its first axis, or not at all.
    fn cut(&self, array: &Array, value: usize) -> Result<Array> {
        if !self.is_cut[value] {
            return array.part(0, *array.shape());
        }
        let shape = array.shape().with_dim(0, 1);
        array.part(self.index * shape.count(), shape)
    }

    fn inputs(&self) -> Vec<&Array> {
        self.inputs.iter().collect()
    }

    /// An element of a value of the slice as one of the whole value, of this type.
    fn element(&self, of: TensorType, value: usize, element: usize) -> Place {
        let own = self.graph.values[value].tensor_type.shape.count();
        let element = if self.is_cut[value] { self.index * own + element } else { element };
        Place::of(of, element)
    }
}

/// An element of a matrix, or of a batch of them.
struct Place {
    item: usize,
    row: usize,
    col: usize,
}

impl Place {
    fn of(of: TensorType, element: usize) -> Self {
        let dims = of.shape.dims();
        let from_end = |axis: usize| dims.len().checked_sub(axis).map_or(1, |axis| dims[axis].max(1));
        let (cols, rows) = (from_end(1), from_end(2));
        Self { item: element / cols / rows, row: element / cols % rows, col: element % cols }
    }

    fn wrong(self, expected: f64, got: f64, bound: f64) -> WrongElement {
        let Self { item, row, col } = self;
        WrongElement { item, row, col, expected, got, bound }
    }
}

/// The graph with the leading dimension of its first output variable, where that can be proved.
fn separable(graph: &Graph) -> Option<Graph> {
    let first = |value: usize| graph.values[value].tensor_type.shape.dims().first().copied();
    let most = first(graph.outputs.first()?.1).filter(|most| *most > 1)?;
    let of_inputs = graph.inputs.iter().filter(|value| first(**value) == Some(most));
    let names: Vec<_> = of_inputs.map(|value| graph.values[*value].name.as_str()).collect();
    // A square second operand has the same number of rows by chance.
    [names.as_slice(), names.get(..1)?]
        .into_iter()
        .find_map(|names| graph.clone().variable_leading(names).ok())
}

/// The operations of the graph at the one leading index that a sample of [`check_outputs`] computes.
pub(crate) fn flops_of_outputs(graph: &Graph) -> Result<u64> {
    let graph = match separable(graph) {
        Some(variable) => &variable.with_leading(1)?,
        None => graph,
    };
    Ok(graph.nodes.iter().map(|node| report::flops(graph, node)).fold(0, u64::saturating_add))
}

/// Compares the outputs of a run with the graph in float64, at some leading indices, or as a whole where its nodes are
/// not known to be independent along them. The graph has no variable leading dimension.
pub(crate) fn check_outputs(
    graph: &Graph,
    inputs: &[&Array],
    outputs: &[&Array],
    samples: usize,
    random: &mut Random,
) -> Result<Option<Wrong>> {
    for _ in 0..samples {
        let slice = Slice::draw(graph, inputs, random)?;
        let mut cut = alloc::with_capacity(outputs.len(), WHAT)?;
        for (output, (_, value)) in outputs.iter().zip(&graph.outputs) {
            cut.push(slice.cut(output, *value)?);
        }
        let report = check_whole(&slice.graph, &slice.inputs(), &cut.iter().collect::<Vec<_>>())?;
        for (output, (name, value)) in report.outputs.iter().zip(&graph.outputs) {
            let is_right = output.error <= SLACK * output.limit;
            if !is_right {
                let of = graph.values[*value].tensor_type;
                let place = slice.element(of, *value, output.element);
                let wrong = place.wrong(output.expected, output.got, SLACK * output.limit);
                return Ok(Some((format!("output `{name}` ({of}) of a graph"), wrong)));
            }
        }
        if !slice.is_cut.contains(&true) {
            break;
        }
    }
    Ok(None)
}

/// Compares two arrays of a type that must be the same bits.
pub(crate) fn check_same(name: &str, got: &Array, expected: &Array) -> Result<Option<Wrong>> {
    let (got, expected) = (Values::<f64>::of_array(got)?, Values::<f64>::of_array(expected)?);
    let differs = |index: &usize| match (&got.data, &expected.data) {
        (Data::Integers(got), Data::Integers(expected)) => got[*index] != expected[*index],
        // NaN is not itself, but its bits are.
        _ => got.number(*index).to_bits() != expected.number(*index).to_bits(),
    };
    let Some(element) = (0..got.tensor_type.shape.count()).find(differs) else { return Ok(None) };
    let of = got.tensor_type;
    let wrong = Place::of(of, element).wrong(expected.number(element), got.number(element), 0.0);
    Ok(Some((format!("output `{name}` ({of}) of a graph otherwise in a second run"), wrong)))
}

/// Computes a few steps of a run in float64 from what the engine has of their inputs, each at one leading index where its
/// nodes are independent along it: what is wrong; and how many steps were checked, which are fewer where there are not
/// as many, or no bound is known of them.
///
/// `shown` has a value of the run, if the engine shows it. The graph has no variable leading dimension.
pub(crate) fn check_steps(
    graph: &Graph,
    inputs: &[&Array],
    outputs: &[&Array],
    step_of: &[Option<usize>],
    shown: impl Fn(usize) -> Result<Option<Array>>,
    samples: usize,
    random: &mut Random,
) -> Result<(Option<Wrong>, usize)> {
    let mut run = Run::new(graph, inputs, outputs, shown)?;
    // The last node of each step.
    let last: BTreeMap<usize, usize> =
        step_of.iter().enumerate().filter_map(|(node, step)| Some(((*step)?, node))).collect();
    let mut left: Vec<usize> = last.into_values().collect();
    let mut checked = 0;
    while checked < samples && !left.is_empty() {
        let node = left.swap_remove(random.below(left.len()));
        let Some((part, own)) = run.part(node)? else { continue };
        let known = |index: usize| run.known(own[index]);
        let inputs: Vec<_> = part.inputs.iter().filter_map(|index| known(*index)).collect();
        let slice = Slice::draw(&part, &inputs, random)?;
        let mut values: Vec<Option<Array>> = alloc::with_capacity(part.values.len(), WHAT)?;
        values.resize_with(part.values.len(), || None);
        for (_, index) in &part.outputs {
            values[*index] = known(*index).map(|array| slice.cut(array, *index)).transpose()?;
        }
        let report = match check_nodes(&slice.graph, &slice.inputs(), &values, |_| true) {
            Ok(report) => report,
            // There is no rule for what it makes of an error of its inner values.
            Err(Error::Graph { .. }) => continue,
            Err(error) => return Err(error),
        };
        checked += 1;
        let Some(wrong) = report.wrong else { continue };
        let of_name = |node: &&NodeInfo| node.name == wrong.node;
        let Some(value) = part.nodes.iter().find(of_name).map(|node| node.outputs[wrong.output]) else {
            continue;
        };
        let of = part.values[value].tensor_type;
        let element = slice.element(of, value, wrong.element).wrong(wrong.expected, wrong.got, wrong.bound);
        return Ok((
            Some((format!("node `{}` ({}, {of}) of a graph", wrong.node, wrong.operator), element)),
            checked,
        ));
    }
    Ok((None, checked))
}

/// The values of a run, as far as they were asked for.
struct Run<'a, F> {
    graph: &'a Graph,
    given: Vec<Known<'a>>,
    shown: F,
    /// Of values that are not given: what the engine shows.
    asked: BTreeMap<usize, Option<Array>>,
    /// For each value the node that computes it.
    node_of: Vec<usize>,
}

impl<'a, F: Fn(usize) -> Result<Option<Array>>> Run<'a, F> {
    fn new(graph: &'a Graph, inputs: &[&'a Array], outputs: &[&'a Array], shown: F) -> Result<Self> {
        let outputs = graph.outputs.iter().map(|(_, value)| *value).zip(outputs.iter().copied());
        let given = graph.inputs.iter().copied().zip(inputs.iter().copied()).chain(outputs).collect();
        let mut node_of = alloc::filled(graph.values.len(), 0, WHAT)?;
        for (number, node) in graph.nodes.iter().enumerate() {
            for output in &node.outputs {
                node_of[*output] = number;
            }
        }
        Ok(Self { graph, given, shown, asked: BTreeMap::new(), node_of })
    }

    fn known(&self, value: usize) -> Option<&Array> {
        let given = self.given.iter().find(|(given, _)| *given == value).map(|(_, array)| *array);
        given.or_else(|| self.asked.get(&value)?.as_ref())
    }

    fn is_shown(&mut self, value: usize) -> Result<bool> {
        if self.known(value).is_none() && !self.asked.contains_key(&value) {
            self.asked.insert(value, (self.shown)(value)?);
        }
        Ok(self.known(value).is_some())
    }

    /// The graph that computes what the engine shows of a node's results from the nearest values that it shows, and for
    /// each value of it the one of the whole graph. `None` where it shows none of the results.
    fn part(&mut self, node: usize) -> Result<Option<(Graph, Vec<usize>)>> {
        let graph = self.graph;
        let mut nodes = BTreeSet::from([node]);
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            for value in graph.nodes[node].inputs.iter().flatten() {
                let is_result = matches!(graph.values[*value].source, Source::Node);
                if is_result && !self.is_shown(*value)? && nodes.insert(self.node_of[*value]) {
                    open.push(self.node_of[*value]);
                }
            }
        }
        let mut outputs = Vec::new();
        for value in &graph.nodes[node].outputs {
            if self.is_shown(*value)? {
                outputs.push(*value);
            }
        }
        if outputs.is_empty() {
            return Ok(None);
        }
        let computed: BTreeSet<_> =
            nodes.iter().flat_map(|node| &graph.nodes[*node].outputs).copied().collect();
        let read = nodes.iter().flat_map(|node| graph.nodes[*node].inputs.iter().flatten()).copied();
        let own: Vec<usize> =
            read.chain(computed.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
        let place: BTreeMap<usize, usize> =
            own.iter().enumerate().map(|(index, value)| (*value, index)).collect();
        let mut part = Graph {
            id: GraphId::new(),
            named: None,
            values: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: outputs.iter().map(|value| (graph.values[*value].name.clone(), place[value])).collect(),
            leading: None,
        };
        for (index, value) in own.iter().enumerate() {
            let ValueInfo { name, tensor_type, source } = graph.values[*value].clone();
            let source = match source {
                Source::Node if !computed.contains(value) => Source::Input,
                source => source,
            };
            if matches!(source, Source::Input) {
                part.inputs.push(index);
            }
            part.values.push(ValueInfo { name, tensor_type, source });
        }
        for node in nodes {
            let NodeInfo { name, operator, inputs, outputs } = graph.nodes[node].clone();
            let inputs = inputs.iter().map(|value| value.map(|value| place[&value])).collect();
            let outputs = outputs.iter().map(|value| place[value]).collect();
            part.nodes.push(NodeInfo { name, operator, inputs, outputs });
        }
        Ok(Some((part, own)))
    }
}
