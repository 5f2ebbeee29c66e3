//! What was made of a graph, in words, as JSON and as a picture.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::backend::instant_start::InstantStart;
use crate::backend::{BackendId, GraphInfo};
use crate::graph::description::{Graph, NodeInfo};
use crate::graph::operator::{Attention, Operator};
use crate::graph::shape::Shape;

/// A node in a [`GraphReport`], which has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeReport {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub operator: &'static str,
    /// The type of its first result.
    pub result: String,
    /// The floating-point operations that its definition takes: two for each multiply-add of a product, one for each
    /// element of other results or, in reductions, of inputs; none where elements are only moved.
    pub flops: u64,
    /// The step that computes it, together with others of the same step; `None` where nothing needs to be done, such
    /// as for a `Reshape`.
    pub step: Option<String>,
    /// How long its step took in one run, at the node that the step is named after, where this was measured
    /// ([`crate::graph::GraphExecutor::profile`]).
    pub elapsed_ns: Option<u64>,
}

/// What a backend made of a graph.
///
/// ```
/// use ane_matmul::graph::{Array, GraphBuilder};
/// use ane_matmul::{BackendId, ElementType};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[2, 3])?;
/// let y = g.named("double").add(x, x)?;
/// let compiled = g.finish(&[("y", y)])?.compile(&BackendId::CPU)?;
/// let report = compiled.report();
/// assert_eq!((report.nodes[0].name.as_str(), report.nodes[0].flops), ("double", 6));
///
/// let (x, mut y) = (Array::new(&[2, 3], vec![1f32; 6])?, Array::new(&[2, 3], vec![0f32; 6])?);
/// let measured = compiled.executor()?.profile(&[&x], &mut [&mut y])?;
/// println!("{measured}");
/// let picture: String = measured.to_svg(); // to a file, for a browser
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GraphReport {
    /// The backend that compiled it.
    pub backend: BackendId,
    /// Its nodes, in order.
    pub nodes: Vec<NodeReport>,
    /// The sum of the nodes' [`NodeReport::flops`].
    pub flops: u64,
    /// The bytes of constants, each counted once, as the graph has them.
    pub constant_bytes: usize,
    /// The bytes that the compiled graph holds of them in forms of its own, such as packed weights, which graphs and
    /// products of the same weights share.
    pub weight_bytes: usize,
    /// The bytes that each executor has for the values between the nodes, which take each other's place.
    pub arena_bytes: usize,
    /// The bytes that these values would take next to each other.
    pub values_bytes: usize,
    /// The CPU threads of a run, where they are known.
    pub threads: Option<usize>,
    /// Where an instant start stands; `None` where none was asked for
    /// ([`crate::CompileOptions::instant_start`]) or the backend is the CPU's.
    pub instant_start: Option<InstantStart>,
    /// How long compiling took, as its caller saw it.
    pub compile_time: Duration,
}

/// The time of a step whose time the backend does not tell.
pub(crate) const NOT_MEASURED: u64 = u64::MAX;

impl GraphReport {
    pub(crate) fn new(graph: &Graph, backend: &BackendId, info: &GraphInfo, compile_time: Duration) -> Self {
        let nodes: Vec<_> = graph
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| NodeReport {
                name: node.name.clone(),
                operator: node.operator.name(),
                result: node
                    .outputs
                    .first()
                    .map_or_else(String::new, |value| graph.values[*value].tensor_type.to_string()),
                flops: flops(graph, node),
                step: info.step_of.get(index).copied().flatten().map(|step| info.steps[step].clone()),
                elapsed_ns: None,
            })
            .collect();
        Self {
            backend: backend.clone(),
            flops: nodes.iter().map(|node| node.flops).fold(0, u64::saturating_add),
            nodes,
            constant_bytes: graph.constant_bytes(),
            weight_bytes: info.weight_bytes,
            arena_bytes: info.arena_bytes,
            values_bytes: info.values_bytes,
            threads: info.threads,
            instant_start: info.instant_start.clone(),
            compile_time,
        }
    }

    pub(crate) fn add_times(&mut self, info: &GraphInfo, step_ns: &[u64]) {
        for node in &mut self.nodes {
            let own = |name: &String| *name == node.name;
            let time = info.steps.iter().position(own).and_then(|step| step_ns.get(step)).copied();
            node.elapsed_ns = time.filter(|time| *time != NOT_MEASURED);
        }
    }

    /// The sum of the measured times; `None` where none was measured.
    #[must_use]
    pub fn elapsed_ns(&self) -> Option<u64> {
        self.nodes.iter().filter_map(|node| node.elapsed_ns).reduce(u64::saturating_add)
    }

    /// As a JSON object, with the fields' names, but for [`GraphReport::compile_time`], which is `compile_ns`, and
    /// [`GraphReport::instant_start`], which is left out.
    #[must_use]
    pub fn to_json(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                format!(
                    "{{\"name\":{},\"operator\":{},\"result\":{},\"flops\":{},\"step\":{},\"elapsed_ns\":{}}}",
                    json(&node.name),
                    json(node.operator),
                    json(&node.result),
                    node.flops,
                    node.step.as_deref().map_or_else(|| "null".into(), json),
                    node.elapsed_ns.map_or_else(|| "null".into(), |time| time.to_string()),
                )
            })
            .collect();
        format!(
            "{{\"backend\":{},\"flops\":{},\"constant_bytes\":{},\"weight_bytes\":{},\"arena_bytes\":{},\
             \"values_bytes\":{},\"threads\":{},\"compile_ns\":{},\"nodes\":[{}]}}",
            json(self.backend.as_str()),
            self.flops,
            self.constant_bytes,
            self.weight_bytes,
            self.arena_bytes,
            self.values_bytes,
            self.threads.map_or_else(|| "null".into(), |threads| threads.to_string()),
            self.compile_time.as_nanos(),
            nodes.join(",")
        )
    }

    /// As a picture: a bar for each node, as long as its time, or without times as its operations.
    #[must_use]
    pub fn to_svg(&self) -> String {
        const ROW: usize = 18;
        const BARS: usize = 620;
        const WIDTH: usize = 1000;
        let measured = self.elapsed_ns().is_some();
        let of = |node: &NodeReport| if measured { node.elapsed_ns.unwrap_or(0) } else { node.flops };
        let most = self.nodes.iter().map(of).max().unwrap_or(0).max(1);
        let unit = if measured { "microseconds of one run" } else { "operations" };
        let height = ROW * (self.nodes.len() + 3);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"8\" y=\"20\" font-size=\"13\" fill=\"#222\">{} nodes on {}: {unit}</text>\n",
            self.nodes.len(),
            xml(self.backend.as_str()),
        );
        for (index, node) in self.nodes.iter().enumerate() {
            let y = ROW * (index + 2);
            let amount = of(node);
            let length = u128::from(amount) * 320 / u128::from(most);
            let label = match (&node.step, measured) {
                (None, _) => "nothing to do".to_owned(),
                (Some(step), _) if *step != node.name => format!("in {step}"),
                (Some(_), true) => format!("{}.{}", amount / 1000, amount % 1000 / 100),
                (Some(_), false) => amount.to_string(),
            };
            let _ = writeln!(
                svg,
                "<text x=\"8\" y=\"{}\" fill=\"#222\">{}</text>\
                 <text x=\"330\" y=\"{}\" fill=\"#555\">{}</text>\
                 <text x=\"455\" y=\"{}\" fill=\"#555\">{}</text>\
                 <rect x=\"{BARS}\" y=\"{}\" width=\"{length}\" height=\"12\" fill=\"#4a7db5\"/>\
                 <text x=\"{}\" y=\"{}\" fill=\"#222\">{}</text>",
                y + 12,
                xml(&node.name),
                y + 12,
                xml(node.operator),
                y + 12,
                xml(&node.result),
                y + 2,
                BARS as u128 + length + 4,
                y + 12,
                xml(&label),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl fmt::Display for GraphReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes on {}, {} operations, compiled in {:?}",
            self.nodes.len(),
            self.backend,
            self.flops,
            self.compile_time
        )?;
        writeln!(
            f,
            "constants {} bytes, packed {} bytes; values {} bytes in an executor ({} side by side)",
            self.constant_bytes, self.weight_bytes, self.arena_bytes, self.values_bytes
        )?;
        let name = self.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0).min(40);
        let result = self.nodes.iter().map(|node| node.result.len()).max().unwrap_or(0);
        for node in &self.nodes {
            write!(
                f,
                "{:name$}  {:18}  {:result$}  {:>14}",
                node.name, node.operator, node.result, node.flops
            )?;
            match (&node.step, node.elapsed_ns) {
                (None, _) => write!(f, "  nothing to do")?,
                (Some(step), _) if *step != node.name => write!(f, "  in {step}")?,
                (Some(_), Some(time)) => write!(f, "  {:>9}.{} us", time / 1000, time % 1000 / 100)?,
                (Some(_), None) => {}
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A JSON string.
fn json(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Text in XML; characters that it cannot have are left out.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// [`NodeReport::flops`].
pub(crate) fn flops(graph: &Graph, node: &NodeInfo) -> u64 {
    let shape = |index: usize| {
        let value = node.inputs.get(index).copied().flatten();
        value.map_or(Shape::SCALAR, |value| graph.values[value].tensor_type.shape)
    };
    let result = graph.values[node.outputs[0]].tensor_type.shape;
    let elements = |shape: &Shape| shape.count() as u64;
    let products = |sums: u64, of: usize| sums.saturating_mul(2 * of as u64);
    match &node.operator {
        Operator::MatMul => products(elements(&result), shape(0).dims().last().copied().unwrap_or(1)),
        Operator::Gemm { transpose_a, .. } => {
            products(elements(&result), shape(0).dims().get(usize::from(!transpose_a)).copied().unwrap_or(1))
        }
        Operator::Conv(..) => products(elements(&result), shape(1).dims().iter().skip(1).product()),
        Operator::Attention(attributes) => attention_flops(attributes, [shape(0), shape(1), shape(2)]),
        Operator::ReduceSum(_)
        | Operator::ReduceMean(_)
        | Operator::ReduceMax(_)
        | Operator::ReduceL2(_)
        | Operator::GlobalAveragePool => elements(&shape(0)),
        Operator::Reshape { .. }
        | Operator::Flatten { .. }
        | Operator::Squeeze { .. }
        | Operator::Unsqueeze { .. }
        | Operator::Identity
        | Operator::Expand { .. }
        | Operator::Transpose { .. }
        | Operator::Concat { .. }
        | Operator::Split { .. }
        | Operator::Slice { .. }
        | Operator::Pad { .. }
        | Operator::Trilu { .. }
        | Operator::Gather { .. }
        | Operator::Cast { .. } => 0,
        _ => elements(&result),
    }
}

/// The two products.
fn attention_flops(attributes: &Attention, [q, k, v]: [Shape; 3]) -> u64 {
    let Ok(sizes) = attributes.sizes(&q, &k, &v) else { return 0 };
    [sizes.batch, sizes.q_heads, sizes.queries, sizes.keys]
        .into_iter()
        .fold(2 * (sizes.qk_size + sizes.v_size) as u64, |product, size| product.saturating_mul(size as u64))
}
