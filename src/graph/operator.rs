//! What a node computes.

use std::fmt;

use crate::description::element::ElementType;

/// What a node computes, with its attributes: ONNX's operator of the same name, as opset 23 defines it.
///
/// Where ONNX takes an attribute of the result's shape as an input (the shape of `Reshape`, the axes of
/// `ReduceMean`), it is an attribute here, since shapes are fixed. Axes count from the end where they are negative.
///
/// ```
/// use ane_matmul::ElementType;
/// use ane_matmul::graph::{GraphBuilder, Operator};
///
/// let mut g = GraphBuilder::new();
/// let x = g.input("x", ElementType::F32, &[2, 6])?;
/// let parts = g.node(Operator::Split { axis: 1, lengths: vec![4, 2] }, &[Some(x)])?;
/// assert_eq!(parts[1].shape().dims(), [2, 2]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Operator {
    /// |x|.
    Abs,
    /// -x.
    Neg,
    /// 1 / x.
    Reciprocal,
    /// The square root; NaN below 0.
    Sqrt,
    /// e^x.
    Exp,
    /// The natural logarithm.
    Log,
    /// The error function.
    Erf,
    /// max(x, 0).
    Relu,
    /// x, or `alpha` x below 0.
    LeakyRelu {
        /// The slope below 0; ONNX's default is 0.01.
        alpha: f32,
    },
    /// x / 2 (1 + erf(x / sqrt 2)), or its approximation by tanh.
    Gelu {
        /// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
        tanh: bool,
    },
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// max(0, min(1, `alpha` x + `beta`)).
    HardSigmoid {
        /// ONNX's default is 0.2.
        alpha: f32,
        /// ONNX's default is 0.5.
        beta: f32,
    },
    /// x max(0, min(1, x / 6 + 0.5)).
    HardSwish,
    /// The hyperbolic tangent.
    Tanh,
    /// min(max, max(min, x)), of x and optionally the scalars min and max.
    Clip,
    /// Not x, of booleans.
    Not,
    /// x.
    Identity,
    /// x in another type: to an integer the fraction is cut off, to a boolean it is x != 0.
    Cast {
        /// The type of the result.
        to: ElementType,
    },
    /// a + b; two inputs are broadcast to each other, here and below.
    Add,
    /// a - b.
    Sub,
    /// a b.
    Mul,
    /// a / b; of integers towards 0.
    Div,
    /// a^b, in the type of a.
    Pow,
    /// The smallest of one or more inputs; NaN where one is NaN.
    Min,
    /// The largest of one or more inputs; NaN where one is NaN.
    Max,
    /// a = b, as a boolean.
    Equal,
    /// a > b, as a boolean.
    Greater,
    /// a >= b, as a boolean.
    GreaterOrEqual,
    /// a < b, as a boolean.
    Less,
    /// a <= b, as a boolean.
    LessOrEqual,
    /// a and b, of booleans.
    And,
    /// a or b, of booleans.
    Or,
    /// x where the condition, the first input, is true, else y.
    Where,
    /// The product of matrices: the last two dimensions are theirs, those before are broadcast. An operand of one
    /// dimension is a row on the left and a column on the right, and the result lacks that dimension.
    MatMul,
    /// `alpha` op(A) op(B) + `beta` C, of two matrices and optionally a C that is broadcast.
    Gemm {
        /// The factor of the product; ONNX's default is 1.
        alpha: f32,
        /// The factor of C; ONNX's default is 1.
        beta: f32,
        /// Whether A is transposed.
        transpose_a: bool,
        /// Whether B is transposed.
        transpose_b: bool,
    },
    /// Correlation of X (batch, channels, spatial dimensions) with W (outputs, channels / groups, kernel), and
    /// optionally a bias for each output.
    Conv(Window, Groups),
    /// scale (x - mean) / sqrt(variance + `epsilon`) + bias, of x, scale, bias, mean and variance; the last four have
    /// an element for each channel.
    BatchNormalization {
        /// ONNX's default is 1e-5.
        epsilon: f32,
    },
    /// scale (x - mean) / sqrt(variance + `epsilon`) + bias, mean and variance over the dimensions from `axis` on; of
    /// x, scale and optionally the bias, which are broadcast.
    LayerNormalization {
        /// The first axis that is normalised; ONNX's default is -1.
        axis: i64,
        /// ONNX's default is 1e-5.
        epsilon: f32,
    },
    /// scale x / sqrt(mean of x^2 + `epsilon`), the mean over the dimensions from `axis` on; of x and scale.
    RmsNormalization {
        /// The first axis that is normalised; ONNX's default is -1.
        axis: i64,
        /// ONNX's default is 1e-5.
        epsilon: f32,
    },
    /// e^x over its sum along `axis`.
    Softmax {
        /// ONNX's default is -1.
        axis: i64,
    },
    /// For each head softmax(scale Q K' + mask) V, of Q, K, V and optionally a mask. All are (batch, heads, sequence,
    /// head size), or (batch, sequence, heads * head size) where the numbers of heads are given. Each head of K and V
    /// serves equally many heads of Q, one after the other. The mask is broadcast to (batch, heads, queries, keys): it
    /// is added, or, of booleans, true where a key is seen.
    Attention(Attention),
    /// round(x / scale) + zero point, ties to even, saturated; of x, scale and optionally the zero point.
    QuantizeLinear {
        /// Along which scales differ, where they have dimensions; ONNX's default is 1.
        axis: i64,
        /// How many elements along `axis` have a scale in common, where scales have x's rank; else 0.
        block_size: usize,
        /// The type of the result, that of the zero point where there is one.
        output: ElementType,
    },
    /// (x - zero point) scale; of x, scale and optionally the zero point.
    DequantizeLinear {
        /// Along which scales differ, where they have dimensions; ONNX's default is 1.
        axis: i64,
        /// How many elements along `axis` have a scale in common, where scales have x's rank; else 0.
        block_size: usize,
        /// The type of the result; ONNX's default is that of the scale.
        output: ElementType,
    },
    /// The same elements in another shape.
    Reshape {
        /// The dimensions; one may be -1, for what remains. A 0 is a dimension of 0, as with ONNX's `allowzero`.
        shape: Vec<i64>,
    },
    /// The same elements in two dimensions: those before `axis`, and the rest.
    Flatten {
        /// From 0 to the rank, or negative; ONNX's default is 1.
        axis: i64,
    },
    /// Without dimensions of 1.
    Squeeze {
        /// Those that go; `None` for all of 1.
        axes: Option<Vec<i64>>,
    },
    /// With further dimensions of 1.
    Unsqueeze {
        /// Where they are in the result.
        axes: Vec<i64>,
    },
    /// Broadcast to `shape`, and `shape` to the input.
    Expand {
        /// The dimensions.
        shape: Vec<usize>,
    },
    /// With dimensions in another order.
    Transpose {
        /// Dimension i of the result is dimension `perm[i]` of the input.
        perm: Vec<usize>,
    },
    /// One or more inputs behind one another along `axis`.
    Concat {
        /// The axis.
        axis: i64,
    },
    /// In parts along `axis`: an output for each.
    Split {
        /// ONNX's default is 0.
        axis: i64,
        /// The length of each part.
        lengths: Vec<usize>,
    },
    /// As Python's slices.
    Slice {
        /// The first index of each axis; negative ones count from the end.
        starts: Vec<i64>,
        /// The index after the last one, in the direction of the step; what is out of range is cut.
        ends: Vec<i64>,
        /// The axes.
        axes: Vec<i64>,
        /// From index to index; not 0.
        steps: Vec<i64>,
    },
    /// With a margin around the elements; of x and optionally the scalar that fills it (0).
    Pad {
        /// Before each axis, then after each; negative ones cut.
        pads: Vec<i64>,
    },
    /// Each matrix with what lies outside one of its triangles set to 0.
    Trilu {
        /// Whether the upper triangle stays, else the lower one.
        upper: bool,
        /// The diagonal up to which it stays: 0 for the main one, positive above.
        k: i64,
    },
    /// Slices of the data, the first input, at the indices, the second: their dimensions stand in place of `axis`.
    Gather {
        /// ONNX's default is 0.
        axis: i64,
    },
    /// The sum over axes.
    ReduceSum(Reduce),
    /// The mean over axes.
    ReduceMean(Reduce),
    /// The maximum over axes.
    ReduceMax(Reduce),
    /// The square root of the sum of squares over axes.
    ReduceL2(Reduce),
    /// The maximum of each window; padding is never the largest.
    MaxPool(Window, PoolKernel),
    /// The mean of each window.
    AveragePool {
        /// Where the windows are.
        window: Window,
        /// How large they are.
        kernel: PoolKernel,
        /// Whether padding counts in the divisor.
        count_include_pad: bool,
    },
    /// The mean over the spatial dimensions, which become 1.
    GlobalAveragePool,
}

/// Where the windows of convolutions and pools lie, for each spatial axis. An empty list stands for its default.
///
/// [`Operator::Conv`] has it; [`crate::graph::GraphBuilder::conv`] has an example.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// From window to window; 1.
    pub strides: Vec<usize>,
    /// The elements of padding before each axis, then after each; 0.
    pub pads: Vec<usize>,
    /// From element to element of a window; 1.
    pub dilations: Vec<usize>,
}

/// The number of parts of the channels that a convolution does not mix; as many as channels for a depthwise one.
///
/// [`crate::graph::GraphBuilder::conv`] has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups(pub usize);

impl Default for Groups {
    fn default() -> Self {
        Self(1)
    }
}

/// The size of a pool's windows.
///
/// [`crate::graph::GraphBuilder::max_pool`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKernel {
    /// For each spatial axis.
    pub shape: Vec<usize>,
    /// Whether a last window may reach beyond the padding at the end.
    pub ceil_mode: bool,
}

/// The axes of a reduction.
///
/// [`crate::graph::GraphBuilder::reduce_mean`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    /// `None` for all; an empty list for none.
    pub axes: Option<Vec<i64>>,
    /// Whether they stay as dimensions of 1.
    pub keepdims: bool,
}

/// The attributes of [`Operator::Attention`].
///
/// [`crate::graph::GraphBuilder::attention`] has an example.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Attention {
    /// The heads of Q and of K and V, where these have three dimensions.
    pub heads: Option<(usize, usize)>,
    /// The factor of Q K'; `None` for 1 / sqrt(head size).
    pub scale: Option<f32>,
    /// Whether query i sees no key beyond i.
    pub is_causal: bool,
}

impl Attention {
    /// Of operands with four dimensions, without a mask of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of operands with three dimensions, with so many heads of Q, and of K and V.
    #[must_use]
    pub fn heads(mut self, q: usize, kv: usize) -> Self {
        self.heads = Some((q, kv));
        self
    }

    /// The factor of Q K'.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Whether query i sees no key beyond i.
    #[must_use]
    pub fn causal(mut self, is_causal: bool) -> Self {
        self.is_causal = is_causal;
        self
    }
}

impl Operator {
    /// ONNX's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Abs => "Abs",
            Self::Neg => "Neg",
            Self::Reciprocal => "Reciprocal",
            Self::Sqrt => "Sqrt",
            Self::Exp => "Exp",
            Self::Log => "Log",
            Self::Erf => "Erf",
            Self::Relu => "Relu",
            Self::LeakyRelu { .. } => "LeakyRelu",
            Self::Gelu { .. } => "Gelu",
            Self::Sigmoid => "Sigmoid",
            Self::HardSigmoid { .. } => "HardSigmoid",
            Self::HardSwish => "HardSwish",
            Self::Tanh => "Tanh",
            Self::Clip => "Clip",
            Self::Not => "Not",
            Self::Identity => "Identity",
            Self::Cast { .. } => "Cast",
            Self::Add => "Add",
            Self::Sub => "Sub",
            Self::Mul => "Mul",
            Self::Div => "Div",
            Self::Pow => "Pow",
            Self::Min => "Min",
            Self::Max => "Max",
            Self::Equal => "Equal",
            Self::Greater => "Greater",
            Self::GreaterOrEqual => "GreaterOrEqual",
            Self::Less => "Less",
            Self::LessOrEqual => "LessOrEqual",
            Self::And => "And",
            Self::Or => "Or",
            Self::Where => "Where",
            Self::MatMul => "MatMul",
            Self::Gemm { .. } => "Gemm",
            Self::Conv(..) => "Conv",
            Self::BatchNormalization { .. } => "BatchNormalization",
            Self::LayerNormalization { .. } => "LayerNormalization",
            Self::RmsNormalization { .. } => "RMSNormalization",
            Self::Softmax { .. } => "Softmax",
            Self::Attention(_) => "Attention",
            Self::QuantizeLinear { .. } => "QuantizeLinear",
            Self::DequantizeLinear { .. } => "DequantizeLinear",
            Self::Reshape { .. } => "Reshape",
            Self::Flatten { .. } => "Flatten",
            Self::Squeeze { .. } => "Squeeze",
            Self::Unsqueeze { .. } => "Unsqueeze",
            Self::Expand { .. } => "Expand",
            Self::Transpose { .. } => "Transpose",
            Self::Concat { .. } => "Concat",
            Self::Split { .. } => "Split",
            Self::Slice { .. } => "Slice",
            Self::Pad { .. } => "Pad",
            Self::Trilu { .. } => "Trilu",
            Self::Gather { .. } => "Gather",
            Self::ReduceSum(_) => "ReduceSum",
            Self::ReduceMean(_) => "ReduceMean",
            Self::ReduceMax(_) => "ReduceMax",
            Self::ReduceL2(_) => "ReduceL2",
            Self::MaxPool(..) => "MaxPool",
            Self::AveragePool { .. } => "AveragePool",
            Self::GlobalAveragePool => "GlobalAveragePool",
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
