//! What becomes of each group of nodes.

use crate::alloc;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::plan::Plan;
use crate::backend::cpu::rows::UnaryFunction;
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::description::activation::Activation;
use crate::description::element::ElementType::F32;
use crate::description::matmul::MatMul;
use crate::error::{Error, Result};
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::shape::Shape;
use crate::graph::{Operator, TensorType};
use crate::operands::weights::Weights;

use super::attention::AttentionStep;
use super::elementwise;
use super::groups::{Group, activation_of, is_one_matrix, quantized_weights};
use super::movement::Slice;
use super::product::Product;
use super::reduce;
use super::step::{Kind, Step};

/// Whether a node gives the elements of its input, packed as they are.
pub(crate) fn is_alias(graph: &Graph, node: &NodeInfo) -> bool {
    match &node.operator {
        Operator::Identity
        | Operator::Reshape { .. }
        | Operator::Flatten { .. }
        | Operator::Squeeze { .. }
        | Operator::Unsqueeze { .. } => true,
        Operator::Min | Operator::Max => node.inputs.len() == 1,
        Operator::Expand { .. } => {
            let of = |value: usize| graph.values[value].tensor_type.shape.count();
            node.inputs[0].is_some_and(|x| of(x) == of(node.outputs[0]))
        }
        Operator::Cast { to } => node.inputs[0].is_some_and(|x| graph.values[x].tensor_type.element == *to),
        _ => false,
    }
}

/// What a node needs that the engine does not have.
type Answer<T> = std::result::Result<T, Refusal>;

fn refuse<T>(reason: RefusalReason, message: impl Into<String>) -> Answer<T> {
    Err(Refusal::new(reason, message))
}

/// Whether the engine has a step for a node; the refusal, where it has not.
pub(crate) fn check(graph: &Graph, node: &NodeInfo) -> Answer<()> {
    if is_alias(graph, node) {
        return Ok(());
    }
    let mut results = node.outputs.iter().map(|value| graph.values[*value].tensor_type.element);
    if let Some(element) = results.find(|element| element.bits() < 8) {
        let message = format!("the CPU has steps for elements of a byte or more, not for {element}");
        return refuse(RefusalReason::ElementType, message);
    }
    match &node.operator {
        Operator::DequantizeLinear { .. } if quantized_weights(graph, node).is_some() => Ok(()),
        Operator::MatMul | Operator::Gemm { .. } => Shapes::of(graph, node).map(drop),
        Operator::Attention(_) => only_f32(graph, node),
        _ => kind_of(graph, node).map(drop),
    }
}

fn only_f32(graph: &Graph, node: &NodeInfo) -> Answer<()> {
    match node.inputs[0].map(|value| graph.values[value].tensor_type.element) {
        Some(element) if element != F32 => refuse(
            RefusalReason::ElementType,
            format!("the CPU has it for f32, not for {element}: cast to f32 and back"),
        ),
        _ => Ok(()),
    }
}

/// What a node other than a product becomes.
fn kind_of(graph: &Graph, node: &NodeInfo) -> Answer<Kind> {
    let type_of = |index: usize| -> Option<TensorType> {
        node.inputs.get(index).copied().flatten().map(|value| graph.values[value].tensor_type)
    };
    let x = type_of(0).unwrap_or(TensorType::new(F32, Shape::SCALAR));
    let axis_of =
        |axis: i64| x.shape.axis(axis).map_err(|problem| Refusal::new(RefusalReason::Other, problem));
    let only_f32 = || only_f32(graph, node);
    let kernel = |operator: &Operator, element| {
        elementwise::kernel_of(operator, element).ok_or_else(|| {
            Refusal::new(RefusalReason::ElementType, format!("the CPU does not have it for {element}"))
        })
    };
    Ok(match &node.operator {
        Operator::Gelu { .. } | Operator::Sigmoid | Operator::Tanh => {
            only_f32()?;
            let activation = activation_of(&node.operator).unwrap_or(Activation::None);
            Kind::Unary(UnaryFunction::Activation(activation))
        }
        Operator::Exp => {
            only_f32()?;
            Kind::Unary(UnaryFunction::Exp)
        }
        Operator::Where => Kind::Elementwise {
            kernel: elementwise::select_of(type_of(1).map_or(0, |x| x.element.bits() / 8))
                .ok_or_else(|| Refusal::new(RefusalReason::ElementType, "no such elements"))?,
            constants: [0.0; 2],
        },
        Operator::Pow if type_of(1).is_some_and(|exponent| exponent.element != x.element) => {
            return refuse(RefusalReason::ElementType, "the CPU has it for two of f32: cast the exponent");
        }
        Operator::Min | Operator::Max => Kind::Fold(kernel(&node.operator, x.element)?),
        Operator::Clip => Kind::Clip(kernel(&node.operator, x.element)?),
        Operator::LayerNormalization { axis, epsilon } | Operator::RmsNormalization { axis, epsilon } => {
            only_f32()?;
            let subtract_mean = matches!(node.operator, Operator::LayerNormalization { .. });
            normalize(x, &type_of, axis_of(*axis)?, (*epsilon, subtract_mean))?
        }
        Operator::Softmax { axis } => {
            only_f32()?;
            Kind::Softmax { axis: axis_of(*axis)? }
        }
        Operator::Transpose { .. }
        | Operator::Concat { .. }
        | Operator::Split { .. }
        | Operator::Expand { .. } => Kind::Move(node.operator.clone()),
        Operator::Slice { .. } => Kind::Slice(
            Slice::of(&node.operator, &x.shape)
                .map_err(|problem| Refusal::new(RefusalReason::Other, problem))?,
        ),
        Operator::Pad { .. } => Kind::Pad(node.operator.clone()),
        Operator::Trilu { upper, k } => Kind::Trilu { upper: *upper, k: *k },
        Operator::Gather { axis } => Kind::Gather { axis: axis_of(*axis)? },
        Operator::ReduceSum(reduce)
        | Operator::ReduceMean(reduce)
        | Operator::ReduceMax(reduce)
        | Operator::ReduceL2(reduce) => {
            let kernel = reduce::kernel_of(&node.operator, x.element).ok_or_else(|| {
                Refusal::new(
                    RefusalReason::ElementType,
                    format!("the CPU does not have it for {}", x.element),
                )
            })?;
            let axes = reduce.axes_of(&x.shape);
            Kind::Reduce {
                kernel,
                axes: axes.map_err(|problem| Refusal::new(RefusalReason::Other, problem))?,
            }
        }
        Operator::Conv(..)
        | Operator::BatchNormalization { .. }
        | Operator::MaxPool(..)
        | Operator::AveragePool { .. }
        | Operator::GlobalAveragePool
        | Operator::QuantizeLinear { .. }
        | Operator::DequantizeLinear { .. } => {
            return refuse(RefusalReason::Other, "the CPU does not have this operator yet");
        }
        operator => Kind::Elementwise {
            kernel: kernel(operator, x.element)?,
            constants: elementwise::constants_of(operator),
        },
    })
}

fn normalize(
    x: TensorType,
    type_of: &dyn Fn(usize) -> Option<TensorType>,
    axis: usize,
    (epsilon, subtract_mean): (f32, bool),
) -> Answer<Kind> {
    let normalized = &x.shape.dims()[axis..];
    let count: usize = normalized.iter().product();
    for (index, name) in [(1, "scale"), (2, "bias")] {
        let Some(given) = type_of(index) else { continue };
        // Dimensions before these are 1: scale and bias are broadcast to x.
        if !given.shape.dims().ends_with(normalized) || given.shape.count() != count {
            return refuse(
                RefusalReason::Layout,
                format!("the {name} is {}; the CPU wants an element for each of {normalized:?}", given.shape),
            );
        }
    }
    Ok(Kind::Normalize { axis, epsilon, subtract_mean })
}

/// A product's dimensions and operands.
struct Shapes {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    alpha: f32,
    /// Of an item, where there are several.
    matrix_axes: Option<usize>,
    /// Whether a run may have fewer rows.
    variable_m: bool,
    /// A C of Gemm that is a bias, or a residual.
    bias: Option<usize>,
    residual: Option<usize>,
}

impl Shapes {
    fn new(m: usize, n: usize, k: usize) -> Self {
        Self {
            m,
            n,
            k,
            transpose_a: false,
            transpose_b: false,
            alpha: 1.0,
            matrix_axes: None,
            variable_m: false,
            bias: None,
            residual: None,
        }
    }

    fn of(graph: &Graph, node: &NodeInfo) -> Answer<Self> {
        let (Some(Some(a)), Some(Some(b))) = (node.inputs.first(), node.inputs.get(1)) else {
            return refuse(RefusalReason::Other, "an operand is missing");
        };
        only_f32(graph, node)?;
        if let Operator::Gemm { .. } = &node.operator {
            return Self::of_gemm(graph, node, *a);
        }
        let varying = |value: usize| graph.leading.as_ref().and_then(|leading| leading.values[value]);
        let (a_type, b_type) = (graph.values[*a].tensor_type, graph.values[*b].tensor_type);
        let (a_dims, b_dims) = (a_type.shape.dims(), b_type.shape.dims());
        let (m, k) = match a_dims {
            [.., m, k] => (*m, *k),
            [k] => (1, *k),
            [] => (1, 1),
        };
        let n = if b_dims.len() < 2 { 1 } else { b_dims[b_dims.len() - 1] };
        if is_one_matrix(&b_type) && (a_dims.len() > 1 || b_dims.len() <= 2) {
            if varying(*b).is_some() {
                let message = "a leading dimension along B's columns: transpose the product";
                return refuse(RefusalReason::VariableM, message);
            }
            let rows = a_dims.iter().rev().skip(1).product();
            return Ok(Self { variable_m: varying(*a).is_some(), ..Self::new(rows, n, k) });
        }
        let matrix_axes = usize::from(a_dims.len() > 1) + usize::from(b_dims.len() > 1);
        let result = graph.values[node.outputs[0]].tensor_type.shape;
        if varying(node.outputs[0]).is_some_and(|own| own.axis + matrix_axes >= result.rank()) {
            let message = "a leading dimension within the matrices of a batch";
            return refuse(RefusalReason::VariableM, message);
        }
        Ok(Self { matrix_axes: Some(matrix_axes), ..Self::new(m, n, k) })
    }

    fn of_gemm(graph: &Graph, node: &NodeInfo, a: usize) -> Answer<Self> {
        let result = graph.values[node.outputs[0]].tensor_type.shape;
        let (Operator::Gemm { alpha, beta, transpose_a, transpose_b }, [rows, cols], [m, n]) =
            (&node.operator, graph.values[a].tensor_type.shape.dims(), result.dims())
        else {
            return refuse(RefusalReason::Other, "its operands are no matrices");
        };
        if !alpha.is_finite() {
            return refuse(RefusalReason::Epilogue, format!("an alpha of {alpha}: multiply the product"));
        }
        let varies = graph.leading.as_ref().is_some_and(|leading| leading.values[a].is_some());
        if *transpose_a && varies {
            let message = "a leading dimension along the rows of a transposed A: transpose it before";
            return refuse(RefusalReason::VariableM, message);
        }
        let mut shapes = Self {
            transpose_a: *transpose_a,
            transpose_b: *transpose_b,
            alpha: *alpha,
            variable_m: varies,
            ..Self::new(*m, *n, if *transpose_a { *rows } else { *cols })
        };
        let Some(c) = node.inputs.get(2).copied().flatten().filter(|_| *beta != 0.0) else {
            return Ok(shapes);
        };
        let c_shape = graph.values[c].tensor_type.shape;
        if *beta != 1.0 {
            return refuse(RefusalReason::Epilogue, "a beta other than 0 and 1: multiply C first");
        }
        if c_shape.count() == *n && c_shape.dims().last() == Some(n) {
            shapes.bias = Some(c);
        } else if c_shape == result {
            shapes.residual = Some(c);
        } else {
            let message = format!("a C of {c_shape}: give it {n} columns, or the result's dimensions");
            return refuse(RefusalReason::Epilogue, message);
        }
        Ok(shapes)
    }
}

/// The weights of a constant B, where it is one matrix.
fn weights_of(graph: &Graph, value: usize) -> Result<Option<Weights>> {
    let constant = &graph.values[value];
    Ok(match &constant.source {
        Source::Weights(weights) => Some(weights.clone()),
        Source::Constant(array) => {
            let Some(data) = array.data::<f32>() else { return Ok(None) };
            let [.., k, n] = *array.shape().dims() else { return Ok(None) };
            let copied = crate::operands::tensor::Tensor::from_vec(alloc::copied(data, "weights")?, k, n)?;
            Some(Weights::from_tensor(copied))
        }
        Source::Input | Source::Node | Source::Absent => None,
    })
}

/// The threads of a graph's products, and where each is found.
pub(crate) struct Lowering<'a> {
    pub cpu: &'a Cpu,
    pub graph: &'a Graph,
    pub threads: usize,
    /// The products so far.
    pub products: usize,
}

impl Lowering<'_> {
    /// The step of a group of which no node is refused.
    pub(crate) fn step(&mut self, group: &Group) -> Result<Step> {
        let graph = self.graph;
        let (first, last) = (&graph.nodes[group.nodes[0]], &graph.nodes[group.last()]);
        let refused = |refusal: Refusal| Error::Graph {
            node: first.name.clone(),
            problem: format!("{}: {}", first.operator, refusal.message),
        };
        if let Operator::Attention(attributes) = &first.operator {
            let step = AttentionStep::new(self.cpu, graph, first, attributes)?;
            let (inputs, outputs) = (first.inputs.clone(), first.outputs.clone());
            return Ok(Step { node: group.last(), inputs, outputs, kind: Kind::Attention(Box::new(step)) });
        }
        if !matches!(first.operator, Operator::MatMul | Operator::Gemm { .. }) {
            let kind = kind_of(graph, first).map_err(refused)?;
            let (inputs, outputs) = (first.inputs.clone(), first.outputs.clone());
            return Ok(Step { node: group.last(), inputs, outputs, kind });
        }
        let shapes = Shapes::of(graph, first).map_err(refused)?;
        let (Some(Some(a)), Some(Some(b))) = (first.inputs.first(), first.inputs.get(1)) else {
            return Err(refused(Refusal::new(RefusalReason::Other, "an operand is missing")));
        };
        let (bias, residual) = (group.bias.or(shapes.bias), group.residual.or(shapes.residual));
        let builder = MatMul::builder(shapes.m, shapes.n, shapes.k)
            .transpose_a(shapes.transpose_a)
            .alpha(shapes.alpha)
            .variable_m(shapes.variable_m)
            .bias(bias.is_some())
            .residual(residual.is_some())
            .activation(group.activation);
        let weights = match group.dequantize.and_then(|node| quantized_weights(graph, &graph.nodes[node])) {
            Some(weights) => Some(weights.clone()),
            None if shapes.matrix_axes.is_none() => weights_of(graph, *b)?,
            None => None,
        };
        // Weights that are multiplied as they are, or as their transpose.
        let weights = match weights {
            Some(weights) if shapes.transpose_b => Some(weights.transposed()?),
            weights => weights,
        };
        let product = match &weights {
            Some(weights) => builder.with_weights(weights)?.product().clone(),
            None => builder.transpose_b(shapes.transpose_b).build()?,
        };
        let plan = Plan::new(
            self.cpu.algorithm(&product, weights.as_ref()),
            self.cpu.isa,
            self.cpu.blocking[0],
            (None, self.threads),
            &product,
            weights.as_ref(),
        )?;
        let number = self.products;
        self.products += 1;
        let c = last.outputs[0];
        let dynamic_b = weights.is_none().then_some(*b);
        let product =
            Product { plan, number, a: *a, b: dynamic_b, bias, residual, c, matrix_axes: shapes.matrix_axes };
        let inputs = vec![Some(*a), dynamic_b, bias, residual];
        Ok(Step { node: group.last(), inputs, outputs: vec![c], kind: Kind::Product(Box::new(product)) })
    }
}
