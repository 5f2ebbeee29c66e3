//! Operators and their attributes as `include/ane_graph.h` has them.

use super::arrays::{Arrays, integers};
use crate::backend::shim::convert::element_type;
use crate::backend::shim::sys;
use crate::description::element::ElementType;
use crate::error::Result;
use crate::graph::description::{Graph, NodeInfo};
use crate::graph::operator::{Attention, Operator, Reduce, Window};

impl Arrays<'_> {
    /// Adds a node's attributes and inputs; its operator's number. What has a value crosses, also where it is ONNX's
    /// default, but for those whose default is nothing at all.
    #[allow(clippy::too_many_lines, reason = "a table of operators")]
    pub(super) fn operator(&mut self, graph: &Graph, node: &NodeInfo) -> Result<sys::ANEOperator> {
        let given = |index: usize| node.inputs.get(index).copied().flatten();
        let input_type = |index: usize| given(index).map(|value| graph.values[value].tensor_type.element);
        let (first, rest) = node.inputs.split_at(node.inputs.len().min(1));
        // Inputs of ONNX's that are attributes of the crate's: all come after the first.
        let mut lists: Vec<(&str, Vec<i64>)> = Vec::new();
        let mut diagonal = None;
        let op = match &node.operator {
            Operator::Abs => sys::ANE_OP_ABS,
            Operator::Neg => sys::ANE_OP_NEG,
            Operator::Reciprocal => sys::ANE_OP_RECIPROCAL,
            Operator::Sqrt => sys::ANE_OP_SQRT,
            Operator::Exp => sys::ANE_OP_EXP,
            Operator::Log => sys::ANE_OP_LOG,
            Operator::Erf => sys::ANE_OP_ERF,
            Operator::Relu => sys::ANE_OP_RELU,
            Operator::LeakyRelu { alpha } => {
                self.float(sys::ANE_ATTR_ALPHA, *alpha);
                sys::ANE_OP_LEAKY_RELU
            }
            Operator::Gelu { tanh } => {
                let approximate = if *tanh { sys::ANE_APPROXIMATE_TANH } else { sys::ANE_APPROXIMATE_NONE };
                self.int(sys::ANE_ATTR_APPROXIMATE, approximate.into());
                sys::ANE_OP_GELU
            }
            Operator::Sigmoid => sys::ANE_OP_SIGMOID,
            Operator::HardSigmoid { alpha, beta } => {
                self.float(sys::ANE_ATTR_ALPHA, *alpha);
                self.float(sys::ANE_ATTR_BETA, *beta);
                sys::ANE_OP_HARD_SIGMOID
            }
            Operator::HardSwish => sys::ANE_OP_HARD_SWISH,
            Operator::Tanh => sys::ANE_OP_TANH,
            Operator::Clip => sys::ANE_OP_CLIP,
            Operator::Not => sys::ANE_OP_NOT,
            Operator::Identity => sys::ANE_OP_IDENTITY,
            Operator::Cast { to } => {
                self.int(sys::ANE_ATTR_TO, element_type(*to).into());
                sys::ANE_OP_CAST
            }
            Operator::Add => sys::ANE_OP_ADD,
            Operator::Sub => sys::ANE_OP_SUB,
            Operator::Mul => sys::ANE_OP_MUL,
            Operator::Div => sys::ANE_OP_DIV,
            Operator::Pow => sys::ANE_OP_POW,
            Operator::Min => sys::ANE_OP_MIN,
            Operator::Max => sys::ANE_OP_MAX,
            Operator::Equal => sys::ANE_OP_EQUAL,
            Operator::Greater => sys::ANE_OP_GREATER,
            Operator::GreaterOrEqual => sys::ANE_OP_GREATER_OR_EQUAL,
            Operator::Less => sys::ANE_OP_LESS,
            Operator::LessOrEqual => sys::ANE_OP_LESS_OR_EQUAL,
            Operator::And => sys::ANE_OP_AND,
            Operator::Or => sys::ANE_OP_OR,
            Operator::Where => sys::ANE_OP_WHERE,
            Operator::MatMul => sys::ANE_OP_MATMUL,
            Operator::Gemm { alpha, beta, transpose_a, transpose_b } => {
                self.float(sys::ANE_ATTR_ALPHA, *alpha);
                self.float(sys::ANE_ATTR_BETA, *beta);
                self.flag(sys::ANE_ATTR_TRANS_A, *transpose_a);
                self.flag(sys::ANE_ATTR_TRANS_B, *transpose_b);
                sys::ANE_OP_GEMM
            }
            Operator::Conv(window, groups) => {
                self.window(window)?;
                self.int(sys::ANE_ATTR_GROUP, integers(&[groups.0])?[0]);
                sys::ANE_OP_CONV
            }
            Operator::BatchNormalization { epsilon } => {
                self.float(sys::ANE_ATTR_EPSILON, *epsilon);
                sys::ANE_OP_BATCH_NORMALIZATION
            }
            Operator::LayerNormalization { axis, epsilon } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                self.float(sys::ANE_ATTR_EPSILON, *epsilon);
                sys::ANE_OP_LAYER_NORMALIZATION
            }
            Operator::RmsNormalization { axis, epsilon } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                self.float(sys::ANE_ATTR_EPSILON, *epsilon);
                sys::ANE_OP_RMS_NORMALIZATION
            }
            Operator::Softmax { axis } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                sys::ANE_OP_SOFTMAX
            }
            Operator::Attention(attention) => {
                self.attention(attention)?;
                sys::ANE_OP_ATTENTION
            }
            Operator::QuantizeLinear { axis, block_size, output } => {
                self.quantization(*axis, *block_size)?;
                if input_type(2).unwrap_or(ElementType::U8) != *output {
                    self.int(sys::ANE_ATTR_OUTPUT_DTYPE, element_type(*output).into());
                }
                sys::ANE_OP_QUANTIZE_LINEAR
            }
            Operator::DequantizeLinear { axis, block_size, output } => {
                self.quantization(*axis, *block_size)?;
                if input_type(1) != Some(*output) {
                    self.int(sys::ANE_ATTR_OUTPUT_DTYPE, element_type(*output).into());
                }
                sys::ANE_OP_DEQUANTIZE_LINEAR
            }
            Operator::Reshape { .. } => {
                // The result's own: a 0 is one, and there is no -1.
                let dims = graph.values[node.outputs[0]].tensor_type.shape;
                if dims.dims().contains(&0) {
                    self.flag(sys::ANE_ATTR_ALLOWZERO, true);
                }
                lists.push(("shape", integers(dims.dims())?));
                sys::ANE_OP_RESHAPE
            }
            Operator::Flatten { axis } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                sys::ANE_OP_FLATTEN
            }
            Operator::Squeeze { axes } => {
                lists.extend(axes.clone().map(|axes| ("axes", axes)));
                sys::ANE_OP_SQUEEZE
            }
            Operator::Unsqueeze { axes } => {
                lists.push(("axes", axes.clone()));
                sys::ANE_OP_UNSQUEEZE
            }
            Operator::Expand { shape } => {
                lists.push(("shape", integers(shape)?));
                sys::ANE_OP_EXPAND
            }
            Operator::Transpose { perm } => {
                self.ints(sys::ANE_ATTR_PERM, perm)?;
                sys::ANE_OP_TRANSPOSE
            }
            Operator::Concat { axis } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                sys::ANE_OP_CONCAT
            }
            Operator::Split { axis, lengths } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                lists.push(("split", integers(lengths)?));
                sys::ANE_OP_SPLIT
            }
            Operator::Slice { starts, ends, axes, steps } => {
                for (name, list) in [("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps)] {
                    lists.push((name, list.clone()));
                }
                sys::ANE_OP_SLICE
            }
            Operator::Pad { pads } => {
                lists.push(("pads", pads.clone()));
                sys::ANE_OP_PAD
            }
            Operator::Trilu { upper, k } => {
                self.flag(sys::ANE_ATTR_UPPER, *upper);
                diagonal = Some(*k);
                sys::ANE_OP_TRILU
            }
            Operator::Gather { axis } => {
                self.int(sys::ANE_ATTR_AXIS, *axis);
                sys::ANE_OP_GATHER
            }
            Operator::ReduceSum(reduce) => {
                lists.extend(self.reduce(reduce));
                sys::ANE_OP_REDUCE_SUM
            }
            Operator::ReduceMean(reduce) => {
                lists.extend(self.reduce(reduce));
                sys::ANE_OP_REDUCE_MEAN
            }
            Operator::ReduceMax(reduce) => {
                lists.extend(self.reduce(reduce));
                sys::ANE_OP_REDUCE_MAX
            }
            Operator::ReduceL2(reduce) => {
                lists.extend(self.reduce(reduce));
                sys::ANE_OP_REDUCE_L2
            }
            Operator::MaxPool(window, kernel) => {
                self.window(window)?;
                self.flag(sys::ANE_ATTR_CEIL_MODE, kernel.ceil_mode);
                self.ints(sys::ANE_ATTR_KERNEL_SHAPE, &kernel.shape)?;
                sys::ANE_OP_MAX_POOL
            }
            Operator::AveragePool { window, kernel, count_include_pad } => {
                self.window(window)?;
                self.flag(sys::ANE_ATTR_CEIL_MODE, kernel.ceil_mode);
                self.ints(sys::ANE_ATTR_KERNEL_SHAPE, &kernel.shape)?;
                self.flag(sys::ANE_ATTR_COUNT_INCLUDE_PAD, *count_include_pad);
                sys::ANE_OP_AVERAGE_POOL
            }
            Operator::GlobalAveragePool => sys::ANE_OP_GLOBAL_AVERAGE_POOL,
        };
        self.values(first)?;
        for (name, list) in lists {
            self.initializer(&format!("{}.{name}", node.name), list, true)?;
        }
        if let Some(k) = diagonal {
            self.initializer(&format!("{}.k", node.name), vec![k], false)?;
        }
        self.values(rest)?;
        Ok(op)
    }

    fn window(&mut self, window: &Window) -> Result<()> {
        self.ints(sys::ANE_ATTR_DILATIONS, &window.dilations)?;
        self.ints(sys::ANE_ATTR_PADS, &window.pads)?;
        self.ints(sys::ANE_ATTR_STRIDES, &window.strides)
    }

    fn attention(&mut self, attention: &Attention) -> Result<()> {
        self.flag(sys::ANE_ATTR_IS_CAUSAL, attention.is_causal);
        if let Some((q, kv)) = attention.heads {
            let heads = integers(&[q, kv])?;
            self.int(sys::ANE_ATTR_Q_NUM_HEADS, heads[0]);
            self.int(sys::ANE_ATTR_KV_NUM_HEADS, heads[1]);
        }
        if let Some(scale) = attention.scale {
            self.float(sys::ANE_ATTR_SCALE, scale);
        }
        Ok(())
    }

    fn quantization(&mut self, axis: i64, block_size: usize) -> Result<()> {
        self.int(sys::ANE_ATTR_AXIS, axis);
        if block_size > 0 {
            self.int(sys::ANE_ATTR_BLOCK_SIZE, integers(&[block_size])?[0]);
        }
        Ok(())
    }

    /// Axes are left out for all of them, and for none, which a flag says.
    fn reduce(&mut self, reduce: &Reduce) -> Option<(&'static str, Vec<i64>)> {
        self.flag(sys::ANE_ATTR_KEEPDIMS, reduce.keepdims);
        match &reduce.axes {
            Some(axes) if axes.is_empty() => {
                self.flag(sys::ANE_ATTR_NOOP_WITH_EMPTY_AXES, true);
                None
            }
            axes => axes.clone().map(|axes| ("axes", axes)),
        }
    }
}
