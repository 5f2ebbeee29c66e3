//! Graphs built by hand.

use std::collections::HashSet;
use std::sync::Arc;

use crate::alloc;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::error::{Error, Result};
use crate::graph::array::{Array, ArrayElement};
use crate::graph::description::{Graph, GraphId, NodeInfo, Source, ValueInfo};
use crate::graph::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use crate::graph::shape::{Shape, TensorType};
use crate::operands::int4::{self, Int4View};
use crate::operands::weights::Weights;

/// A value of a graph that is being built: a handle that knows its type and its dimensions.
///
/// [`GraphBuilder`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value {
    builder: GraphId,
    index: usize,
    tensor_type: TensorType,
}

impl Value {
    /// The type of the elements, and the dimensions.
    #[must_use]
    pub const fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// The dimensions.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.tensor_type.shape
    }

    /// The type of the elements.
    #[must_use]
    pub const fn element(&self) -> ElementType {
        self.tensor_type.element
    }
}

/// Builds a [`Graph`]: a method for each operator, which returns its result.
///
/// What does not fit is an error of the method that adds it, with the node's name and the shapes.
///
/// ```
/// use ane_matmul::graph::GraphBuilder;
/// use ane_matmul::{ElementType, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(384, 1536, 0.02, 1)?);
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[32, 128, 384])?;
/// let w = g.weights("up", &weights)?;
/// let h = g.named("up.product").matmul(x, w)?;
/// let y = g.gelu(h)?;
/// assert_eq!(y.shape().dims(), [32, 128, 1536]);
/// let error = g.named("again").matmul(y, w).unwrap_err();
/// assert!(error.to_string().contains("node `again`: MatMul: [32, 128, 1536] and [384, 1536] do not fit"));
/// let graph = g.finish(&[("y", y)])?;
/// assert_eq!(graph.nodes().len(), 2);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct GraphBuilder {
    id: GraphId,
    values: Vec<ValueInfo>,
    nodes: Vec<NodeInfo>,
    inputs: Vec<usize>,
    names: HashSet<String>,
    next_name: Option<String>,
}

impl Default for GraphBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl GraphBuilder {
    /// A graph without values.
    #[must_use]
    pub fn new() -> Self {
        Self {
            id: GraphId::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            names: HashSet::new(),
            next_name: None,
        }
    }

    /// Names the node that is added next; one without a name is called by its operator and a number.
    pub fn named(&mut self, name: impl Into<String>) -> &mut Self {
        self.next_name = Some(name.into());
        self
    }

    /// A value that comes with each run.
    ///
    /// # Errors
    /// [`Error::Graph`] for a name that is taken, 4-bit elements, and as [`Shape::new`].
    pub fn input(&mut self, name: impl Into<String>, element: ElementType, dims: &[usize]) -> Result<Value> {
        let name = self.free_name(name.into())?;
        if element.bits() < 8 {
            return Err(Error::graph(format!("input `{name}`: elements of {element} are weights")));
        }
        let shape = Shape::of(dims).map_err(|problem| Error::graph(format!("input `{name}`: {problem}")))?;
        let value = self.value(name, TensorType::new(element, shape), Source::Input);
        self.inputs.push(value.index);
        Ok(value)
    }

    /// A constant.
    ///
    /// # Errors
    /// [`Error::Graph`] for a name that is taken.
    pub fn constant(&mut self, name: impl Into<String>, array: Array) -> Result<Value> {
        let name = self.free_name(name.into())?;
        Ok(self.constant_named(name, array))
    }

    /// A constant of one element, without dimensions.
    ///
    /// Its name is made up.
    pub fn scalar<T: ArrayElement>(&mut self, element: T) -> Value {
        let name = self.made_up("constant");
        self.constant_named(name, Array::scalar(element))
    }

    fn constant_named(&mut self, name: String, array: Array) -> Value {
        self.value(name, array.tensor_type(), Source::Constant(Arc::new(array)))
    }

    /// A constant matrix, or a batch of them, that products share: k x n, whichever way it is stored. Quantised
    /// weights are constants of integers and scales, and a [`Operator::DequantizeLinear`] to f32, whose result is
    /// returned.
    ///
    /// # Errors
    /// [`Error::Graph`] for a name that is taken, and as [`Shape::new`].
    pub fn weights(&mut self, name: impl Into<String>, weights: &Weights) -> Result<Value> {
        let name = self.free_name(name.into())?;
        let batch = weights.layout().batch();
        let matrix = [batch, weights.k(), weights.n()];
        let leading = usize::from(batch == 1);
        let problem = |problem: String| Error::graph(format!("weights `{name}`: {problem}"));
        let tensor_type =
            TensorType::new(weights.element_type(), Shape::of(&matrix[leading..]).map_err(problem)?);
        let elements = Source::Weights(weights.for_product());
        let Some(scales) = weights.scale_weights() else {
            return Ok(self.value(name, tensor_type, elements));
        };
        if batch > 1 {
            return Err(problem("quantised weights of a batch; add each matrix by itself".into()));
        }
        if weights.k() == 0 {
            return Err(problem("quantised weights without rows".into()));
        }
        // Of columns and groups: blocks along k.
        let (groups, block_size) = match weights.scheme() {
            QuantB::PerColumn { .. } => (1, weights.k()),
            QuantB::PerGroup { group_size, .. } => (scales.layout().rows(), group_size as usize),
            _ => (0, 0),
        };
        let shape = if block_size == 0 {
            Shape::SCALAR
        } else {
            Shape::of(&[groups, weights.n()]).map_err(problem)?
        };
        let zero_point = zero_points(tensor_type.element, shape, weights.scheme().zero_point())?;
        let integers = self.value(format!("{name}.integers"), tensor_type, elements);
        let scale_type = TensorType::new(scales.element_type(), shape);
        let scale = self.value(format!("{name}.scale"), scale_type, Source::Weights(scales.clone()));
        let zero_point = zero_point.map(|source| {
            self.value(format!("{name}.zero_point"), TensorType::new(tensor_type.element, shape), source)
        });
        let operator = Operator::DequantizeLinear { axis: 0, block_size, output: ElementType::F32 };
        only(self.node_named(name, operator, &[Some(integers), Some(scale), zero_point])?)
    }

    /// A node of any operator; `None` for an input that is left out. The results, in the operator's order.
    ///
    /// # Errors
    /// [`Error::Graph`] where the operator does not take these inputs, for values of another builder, and for a name
    /// that is taken.
    pub fn node(&mut self, operator: Operator, inputs: &[Option<Value>]) -> Result<Vec<Value>> {
        let name = match self.next_name.take() {
            Some(name) => self.free_name(name)?,
            None => self.made_up(&operator.name().to_lowercase()),
        };
        self.node_named(name, operator, inputs)
    }

    /// A node of a name that is taken for it.
    fn node_named(
        &mut self,
        name: String,
        operator: Operator,
        inputs: &[Option<Value>],
    ) -> Result<Vec<Value>> {
        let problem = |problem: String| Error::Graph {
            node: name.clone(),
            problem: format!("{}: {problem}", operator.name()),
        };
        if inputs.iter().flatten().any(|value| value.builder != self.id) {
            return Err(problem("an input is a value of another builder".into()));
        }
        let types: Vec<_> = inputs.iter().map(|value| value.map(|value| value.tensor_type)).collect();
        let results = operator.infer(&types).map_err(problem)?;
        let mut outputs = Vec::with_capacity(results.len());
        for (index, tensor_type) in results.iter().enumerate() {
            let value_name = if results.len() == 1 { name.clone() } else { format!("{name}.{index}") };
            outputs.push(self.value(value_name, *tensor_type, Source::Node));
        }
        self.nodes.push(NodeInfo {
            name,
            operator,
            inputs: inputs.iter().map(|value| value.map(|value| value.index)).collect(),
            outputs: outputs.iter().map(|value| value.index).collect(),
        });
        Ok(outputs)
    }

    /// The graph that gives these outputs, by name.
    ///
    /// # Errors
    /// [`Error::Graph`] without outputs, for inputs that no node reads (all are named), an output that no node
    /// computes, names that come twice, and values of another builder.
    pub fn finish(self, outputs: &[(&str, Value)]) -> Result<Graph> {
        let mut names = HashSet::new();
        for (name, value) in outputs {
            let problem = if value.builder != self.id {
                "it is a value of another builder"
            } else if !matches!(self.values[value.index].source, Source::Node) {
                "no node computes it: add an Identity"
            } else if !names.insert(*name) {
                "there is another of this name"
            } else {
                continue;
            };
            return Err(Error::graph(format!("output `{name}`: {problem}")));
        }
        if outputs.is_empty() {
            return Err(Error::graph("it has no outputs".into()));
        }
        let read: HashSet<usize> =
            self.nodes.iter().flat_map(|node| node.inputs.iter().flatten().copied()).collect();
        let unused = self.inputs.iter().filter(|index| !read.contains(index));
        let unused: Vec<_> = unused.map(|index| format!("`{}`", self.values[*index].name)).collect();
        if !unused.is_empty() {
            return Err(Error::graph(format!("no node reads the inputs {}", unused.join(", "))));
        }
        Ok(Graph {
            id: self.id,
            named: Some(Arc::new(())),
            values: self.values,
            nodes: self.nodes,
            inputs: self.inputs,
            outputs: outputs.iter().map(|(name, value)| ((*name).to_owned(), value.index)).collect(),
            leading: None,
        })
    }

    /// A value of any kind.
    pub(super) fn value(&mut self, name: String, tensor_type: TensorType, source: Source) -> Value {
        let index = self.values.len();
        self.values.push(ValueInfo { name, tensor_type, source });
        Value { builder: self.id, index, tensor_type }
    }

    fn free_name(&mut self, name: String) -> Result<String> {
        if self.names.insert(name.clone()) {
            return Ok(name);
        }
        Err(Error::graph(format!("there are two values or nodes of the name `{name}`")))
    }

    fn made_up(&mut self, kind: &str) -> String {
        let mut number = self.values.len();
        loop {
            let name = format!("{kind}_{number}");
            if self.names.insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }

    fn one(&mut self, operator: Operator, inputs: &[Option<Value>]) -> Result<Value> {
        only(self.node(operator, inputs)?)
    }
}

/// The result of an operator that has one.
fn only(results: Vec<Value>) -> Result<Value> {
    results.into_iter().next().ok_or_else(|| Error::graph("a node without a result".into()))
}

macro_rules! operators {
    ($($(#[$doc:meta])* $method:ident($($input:ident),* $(; $($attribute:ident: $type:ty),*)?) => $operator:expr;)*) => {
        impl GraphBuilder {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// As [`GraphBuilder::node`].
            pub fn $method(&mut self, $($input: Value,)* $($($attribute: $type,)*)?) -> Result<Value> {
                self.one($operator, &[$(Some($input)),*])
            }
        )*}
    };
}

operators! {
    /// [`Operator::Abs`].
    abs(x) => Operator::Abs;
    /// [`Operator::Neg`].
    neg(x) => Operator::Neg;
    /// [`Operator::Reciprocal`].
    reciprocal(x) => Operator::Reciprocal;
    /// [`Operator::Sqrt`].
    sqrt(x) => Operator::Sqrt;
    /// [`Operator::Exp`].
    exp(x) => Operator::Exp;
    /// [`Operator::Log`].
    log(x) => Operator::Log;
    /// [`Operator::Erf`].
    erf(x) => Operator::Erf;
    /// [`Operator::Relu`].
    relu(x) => Operator::Relu;
    /// [`Operator::LeakyRelu`].
    leaky_relu(x; alpha: f32) => Operator::LeakyRelu { alpha };
    /// [`Operator::Gelu`], by erf.
    gelu(x) => Operator::Gelu { tanh: false };
    /// [`Operator::Gelu`], approximated by tanh.
    gelu_tanh(x) => Operator::Gelu { tanh: true };
    /// [`Operator::Sigmoid`].
    sigmoid(x) => Operator::Sigmoid;
    /// [`Operator::HardSigmoid`].
    hard_sigmoid(x; alpha: f32, beta: f32) => Operator::HardSigmoid { alpha, beta };
    /// [`Operator::HardSwish`].
    hard_swish(x) => Operator::HardSwish;
    /// [`Operator::Tanh`].
    tanh(x) => Operator::Tanh;
    /// [`Operator::Not`].
    not(x) => Operator::Not;
    /// [`Operator::Identity`].
    identity(x) => Operator::Identity;
    /// [`Operator::Cast`].
    cast(x; to: ElementType) => Operator::Cast { to };
    /// [`Operator::Add`].
    add(a, b) => Operator::Add;
    /// [`Operator::Sub`].
    sub(a, b) => Operator::Sub;
    /// [`Operator::Mul`].
    mul(a, b) => Operator::Mul;
    /// [`Operator::Div`].
    div(a, b) => Operator::Div;
    /// [`Operator::Pow`].
    pow(a, b) => Operator::Pow;
    /// [`Operator::Min`] of two.
    min(a, b) => Operator::Min;
    /// [`Operator::Max`] of two.
    max(a, b) => Operator::Max;
    /// [`Operator::Equal`].
    equal(a, b) => Operator::Equal;
    /// [`Operator::Greater`].
    greater(a, b) => Operator::Greater;
    /// [`Operator::GreaterOrEqual`].
    greater_or_equal(a, b) => Operator::GreaterOrEqual;
    /// [`Operator::Less`].
    less(a, b) => Operator::Less;
    /// [`Operator::LessOrEqual`].
    less_or_equal(a, b) => Operator::LessOrEqual;
    /// [`Operator::And`].
    and(a, b) => Operator::And;
    /// [`Operator::Or`].
    or(a, b) => Operator::Or;
    /// [`Operator::Where`].
    select(condition, x, y) => Operator::Where;
    /// [`Operator::MatMul`].
    matmul(a, b) => Operator::MatMul;
    /// [`Operator::BatchNormalization`].
    batch_normalization(x, scale, bias, mean, variance; epsilon: f32) => Operator::BatchNormalization { epsilon };
    /// [`Operator::LayerNormalization`] with a bias, over the last axis.
    layer_normalization(x, scale, bias; epsilon: f32) => Operator::LayerNormalization { axis: -1, epsilon };
    /// [`Operator::RmsNormalization`] over the last axis.
    rms_normalization(x, scale; epsilon: f32) => Operator::RmsNormalization { axis: -1, epsilon };
    /// [`Operator::Softmax`].
    softmax(x; axis: i64) => Operator::Softmax { axis };
    /// [`Operator::Reshape`].
    reshape(x; shape: &[i64]) => Operator::Reshape { shape: shape.to_vec() };
    /// [`Operator::Flatten`].
    flatten(x; axis: i64) => Operator::Flatten { axis };
    /// [`Operator::Squeeze`] of some axes.
    squeeze(x; axes: &[i64]) => Operator::Squeeze { axes: Some(axes.to_vec()) };
    /// [`Operator::Unsqueeze`].
    unsqueeze(x; axes: &[i64]) => Operator::Unsqueeze { axes: axes.to_vec() };
    /// [`Operator::Expand`].
    expand(x; shape: &[usize]) => Operator::Expand { shape: shape.to_vec() };
    /// [`Operator::Transpose`].
    transpose(x; perm: &[usize]) => Operator::Transpose { perm: perm.to_vec() };
    /// [`Operator::Trilu`].
    trilu(x; upper: bool, k: i64) => Operator::Trilu { upper, k };
    /// [`Operator::Gather`].
    gather(data, indices; axis: i64) => Operator::Gather { axis };
    /// [`Operator::GlobalAveragePool`].
    global_average_pool(x) => Operator::GlobalAveragePool;
}

impl GraphBuilder {
    /// [`Operator::Mul`] by a number that is rounded to the type of x.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`]; [`Error::Graph`] where x is not of floating-point numbers.
    pub fn mul_scalar(&mut self, x: Value, factor: f64) -> Result<Value> {
        let factor = self.scalar_like(x, factor)?;
        self.mul(x, factor)
    }

    /// [`Operator::Add`] of a number that is rounded to the type of x.
    ///
    /// # Errors
    /// As [`GraphBuilder::mul_scalar`].
    pub fn add_scalar(&mut self, x: Value, term: f64) -> Result<Value> {
        let term = self.scalar_like(x, term)?;
        self.add(x, term)
    }

    /// A constant of one element, of the type of x.
    fn scalar_like(&mut self, x: Value, number: f64) -> Result<Value> {
        let array = match x.element() {
            ElementType::F64 => Array::scalar(number),
            #[allow(clippy::cast_possible_truncation, reason = "it is to be rounded")]
            ElementType::F32 => Array::scalar(number as f32),
            #[cfg(feature = "half")]
            ElementType::F16 => Array::scalar(crate::operands::float16::from_f64(number)),
            #[cfg(feature = "half")]
            ElementType::Bf16 => Array::scalar(half::bf16::from_f64(number)),
            element => {
                return Err(Error::graph(format!(
                    "{number} is for floating-point numbers, not for {element}: GraphBuilder::scalar has any type"
                )));
            }
        };
        let name = self.made_up("constant");
        Ok(self.constant_named(name, array))
    }

    /// x times known weights, plus the bias: [`Operator::MatMul`] and [`Operator::Add`].
    ///
    /// # Errors
    /// As [`GraphBuilder::weights`] and [`GraphBuilder::node`].
    pub fn linear(&mut self, name: &str, x: Value, weights: &Weights, bias: Option<Value>) -> Result<Value> {
        let w = self.weights(format!("{name}.weight"), weights)?;
        let product_name = if bias.is_some() { format!("{name}.product") } else { name.to_owned() };
        let product = self.named(product_name).matmul(x, w)?;
        match bias {
            Some(bias) => self.named(name).add(product, bias),
            None => Ok(product),
        }
    }

    /// [`Operator::Gemm`], of A and B and optionally C.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn gemm(
        &mut self,
        a: Value,
        b: Value,
        c: Option<Value>,
        transpose_a: bool,
        transpose_b: bool,
    ) -> Result<Value> {
        let operator = Operator::Gemm { alpha: 1.0, beta: 1.0, transpose_a, transpose_b };
        self.one(operator, &[Some(a), Some(b), c])
    }

    /// [`Operator::Clip`], between bounds that may be left out.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn clip(&mut self, x: Value, min: Option<Value>, max: Option<Value>) -> Result<Value> {
        self.one(Operator::Clip, &[Some(x), min, max])
    }

    /// [`Operator::Conv`].
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::{Array, GraphBuilder, Groups, Window};
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[1, 8, 32, 32])?;
    /// let w = g.constant("w", Array::new(&[8, 1, 3, 3], vec![0.1f32; 72])?)?;
    /// let window = Window { strides: vec![2, 2], pads: vec![1; 4], ..Window::default() };
    /// let y = g.conv(x, w, None, window, Groups(8))?; // depthwise
    /// assert_eq!(y.shape().dims(), [1, 8, 16, 16]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn conv(
        &mut self,
        x: Value,
        w: Value,
        bias: Option<Value>,
        window: Window,
        groups: Groups,
    ) -> Result<Value> {
        self.one(Operator::Conv(window, groups), &[Some(x), Some(w), bias])
    }

    /// [`Operator::MaxPool`].
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::{GraphBuilder, PoolKernel, Window};
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[1, 8, 32, 32])?;
    /// let window = Window { strides: vec![2, 2], ..Window::default() };
    /// let y = g.max_pool(x, window, PoolKernel { shape: vec![2, 2], ceil_mode: false })?;
    /// assert_eq!(y.shape().dims(), [1, 8, 16, 16]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn max_pool(&mut self, x: Value, window: Window, kernel: PoolKernel) -> Result<Value> {
        self.one(Operator::MaxPool(window, kernel), &[Some(x)])
    }

    /// [`Operator::AveragePool`] without padding in the divisor.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn average_pool(&mut self, x: Value, window: Window, kernel: PoolKernel) -> Result<Value> {
        self.one(Operator::AveragePool { window, kernel, count_include_pad: false }, &[Some(x)])
    }

    /// [`Operator::Attention`].
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::{Attention, GraphBuilder};
    ///
    /// let mut g = GraphBuilder::new();
    /// let [q, k, v] = ["q", "k", "v"].map(|name| g.input(name, ElementType::F32, &[2, 128, 384]));
    /// let mask = g.input("mask", ElementType::Bool, &[2, 1, 1, 128])?;
    /// let y = g.attention(q?, k?, v?, Some(mask), Attention::new().heads(12, 12))?;
    /// assert_eq!(y.shape().dims(), [2, 128, 384]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn attention(
        &mut self,
        q: Value,
        k: Value,
        v: Value,
        mask: Option<Value>,
        attributes: Attention,
    ) -> Result<Value> {
        self.one(Operator::Attention(attributes), &[Some(q), Some(k), Some(v), mask])
    }

    /// [`Operator::QuantizeLinear`] to the type of the zero point.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn quantize_linear(&mut self, x: Value, scale: Value, zero_point: Value, axis: i64) -> Result<Value> {
        let operator = Operator::QuantizeLinear { axis, block_size: 0, output: zero_point.element() };
        self.one(operator, &[Some(x), Some(scale), Some(zero_point)])
    }

    /// [`Operator::DequantizeLinear`].
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn dequantize_linear(
        &mut self,
        x: Value,
        scale: Value,
        zero_point: Option<Value>,
        axis: i64,
    ) -> Result<Value> {
        let operator = Operator::DequantizeLinear { axis, block_size: 0, output: scale.element() };
        self.one(operator, &[Some(x), Some(scale), zero_point])
    }

    /// [`Operator::Concat`].
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn concat(&mut self, values: &[Value], axis: i64) -> Result<Value> {
        let inputs: Vec<_> = values.iter().copied().map(Some).collect();
        self.one(Operator::Concat { axis }, &inputs)
    }

    /// [`Operator::Split`]: a value for each part.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn split(&mut self, x: Value, axis: i64, lengths: &[usize]) -> Result<Vec<Value>> {
        self.node(Operator::Split { axis, lengths: lengths.to_vec() }, &[Some(x)])
    }

    /// [`Operator::Slice`] of one axis, from `start` to before `end`.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn slice(&mut self, x: Value, axis: i64, start: i64, end: i64) -> Result<Value> {
        let operator =
            Operator::Slice { starts: vec![start], ends: vec![end], axes: vec![axis], steps: vec![1] };
        self.one(operator, &[Some(x)])
    }

    /// [`Operator::Pad`] with zeros.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn pad(&mut self, x: Value, pads: &[i64]) -> Result<Value> {
        self.one(Operator::Pad { pads: pads.to_vec() }, &[Some(x)])
    }

    /// [`Operator::ReduceSum`].
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn reduce_sum(&mut self, x: Value, axes: &[i64], keepdims: bool) -> Result<Value> {
        self.one(Operator::ReduceSum(Reduce { axes: Some(axes.to_vec()), keepdims }), &[Some(x)])
    }

    /// [`Operator::ReduceMean`].
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::GraphBuilder;
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[8, 128, 384])?;
    /// assert_eq!(g.reduce_mean(x, &[1], false)?.shape().dims(), [8, 384]);
    /// assert_eq!(g.reduce_mean(x, &[-1], true)?.shape().dims(), [8, 128, 1]);
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn reduce_mean(&mut self, x: Value, axes: &[i64], keepdims: bool) -> Result<Value> {
        self.one(Operator::ReduceMean(Reduce { axes: Some(axes.to_vec()), keepdims }), &[Some(x)])
    }

    /// [`Operator::ReduceMax`].
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn reduce_max(&mut self, x: Value, axes: &[i64], keepdims: bool) -> Result<Value> {
        self.one(Operator::ReduceMax(Reduce { axes: Some(axes.to_vec()), keepdims }), &[Some(x)])
    }

    /// [`Operator::ReduceL2`].
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn reduce_l2(&mut self, x: Value, axes: &[i64], keepdims: bool) -> Result<Value> {
        self.one(Operator::ReduceL2(Reduce { axes: Some(axes.to_vec()), keepdims }), &[Some(x)])
    }
}

/// As many zero points as scales; none where they are 0.
fn zero_points(element: ElementType, shape: Shape, zero_point: i32) -> Result<Option<Source>> {
    const WHAT: &str = "zero points";
    let count = shape.count();
    let wrong = |_| Error::graph(format!("a zero point of {zero_point} in {element}"));
    Ok(match element {
        _ if zero_point == 0 => None,
        ElementType::I8 => {
            let all = alloc::filled(count, i8::try_from(zero_point).map_err(wrong)?, WHAT)?;
            Some(Source::Constant(Arc::new(Array::new(shape.dims(), all)?)))
        }
        ElementType::U8 => {
            let all = alloc::filled(count, u8::try_from(zero_point).map_err(wrong)?, WHAT)?;
            Some(Source::Constant(Arc::new(Array::new(shape.dims(), all)?)))
        }
        _ => {
            let nibble = i8::try_from(zero_point).map_err(wrong)?;
            let mut bytes = alloc::with_capacity(count.div_ceil(2), WHAT)?;
            let order = NibbleOrder::default();
            int4::pack(std::iter::repeat_n(nibble, count), order, &mut bytes);
            let layout = Layout::row(count);
            let view = match element {
                ElementType::I4 => Int4View::signed(&bytes, layout, order)?,
                _ => Int4View::unsigned(&bytes, layout, order)?,
            };
            Some(Source::Weights(Weights::new(view)?))
        }
    })
}
