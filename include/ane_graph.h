/*
 * ane_graph.h - the C ABI of ane_matmul.h for whole graphs of operators.
 *
 * A graph crosses as flat arrays: tensors, nodes, attributes. It is compiled once for fixed shapes and
 * run many times. A shim that has graphs points ANEShim.graphs at an ANEGraphTable; the rules of
 * ane_matmul.h hold here too, those of executors for graph executors and of products for graphs.
 * docs/ABI.md has an example. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * WHAT A CALLER GUARANTEES
 *  - A graph is validated: indices lie within their arrays, nodes stand in an order in which every
 *    tensor is an input, an initializer or written by an earlier node, each is written once, and types
 *    and shapes are those that the operators give. Outputs are written by nodes, each once.
 *  - An operator means what ONNX's operator of that name means in opset 23; readers have upgraded
 *    earlier ones. Attributes that have a default may be left out.
 *  - Initializers that shape the result (marked ! below) and those of a single element have plain memory
 *    (ANETensor.data), also on devices that take constants.
 *  - Operators that fold into constants when shapes are fixed (Constant, ConstantOfShape, Range, Shape,
 *    Size) do not cross, nor does control flow.
 *  - Quantisation is visible: quantised initializers, QuantizeLinear and DequantizeLinear. A shim may
 *    compute with the integers where that gives the same numbers within the rounding of QuantizeLinear; it
 *    never quantises on its own.
 */
#ifndef ANE_GRAPH_H
#define ANE_GRAPH_H

#include "ane_matmul.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ANE_GRAPH_MAX_RANK 8
#define ANE_GRAPH_NONE 0xffffffffu /* in ANEGraphDesc.operands: an optional input or output that is left out */

/* Of tensors in graphs only, beside those of ANEType. */
#define ANE_TYPE_I64 10
#define ANE_TYPE_BOOL 11 /* a byte each, 0 or 1 */

/* ---- operators ----------------------------------------------------------------------------- */

/*
 * Written Name(inputs) -> outputs {attributes}, with ONNX's names, in ONNX's order. What is in brackets may be
 * left out: ANE_GRAPH_NONE stands in its place, or the list ends before it. An attribute with a value after it may
 * be left out too: it has that value then. `...` stands for any further ones.
 *  - An input with a ! is an initializer with plain memory: of type I64, or I32 where ONNX has it, if nothing
 *    else is said.
 *  - Types are those that ONNX allows and that have a number here. What an output's tensor says (its type and dims)
 *    is worked out already: a shim may go by it alone, instead of by shape!, to or keepdims, say.
 *  - Negative axes count from the end, and so do negative indices. An index out of range never leads outside a
 *    tensor's memory: the run fails, or, where a device cannot tell, gives NaN in its place (0 in integers).
 *  - Does not cross: auto_pad, and output_shape of ConvTranspose (pads stand for them); kernel_shape of Conv and
 *    ConvTranspose (it is that of W); num_outputs of Split (it is the number of outputs); saturate (of float 8);
 *    training_mode, momentum, running_mean and running_var of BatchNormalization (of training).
 *  - Each group has numbers left for more. A shim refuses a node whose operator, attribute or value it does not
 *    know (ANE_REFUSAL_OTHER).
 */
typedef int32_t ANEOperator;

/* Elementwise, of x alone; the result has its type and dims if nothing else is said. */
#define ANE_OP_ABS 1           /* Abs(X) -> Y: |x| */
#define ANE_OP_NEG 2           /* Neg(X) -> Y: -x */
#define ANE_OP_SIGN 3          /* Sign(input) -> output: -1, 0 or 1 */
#define ANE_OP_RECIPROCAL 4    /* Reciprocal(X) -> Y: 1 / x */
#define ANE_OP_SQRT 5          /* Sqrt(X) -> Y: NaN below 0 */
#define ANE_OP_EXP 6           /* Exp(input) -> output: e^x */
#define ANE_OP_LOG 7           /* Log(input) -> output: to the base e */
#define ANE_OP_SIN 8           /* Sin(input) -> output: x in radians */
#define ANE_OP_COS 9           /* Cos(input) -> output: likewise */
#define ANE_OP_ERF 10          /* Erf(input) -> output: the error function */
#define ANE_OP_FLOOR 11        /* Floor(X) -> Y: the largest integer that is not above x */
#define ANE_OP_CEIL 12         /* Ceil(X) -> Y: the smallest integer that is not below x */
#define ANE_OP_ROUND 13        /* Round(X) -> Y: to the nearest integer, ties to even */
#define ANE_OP_RELU 14         /* Relu(X) -> Y: max(x, 0) */
#define ANE_OP_LEAKY_RELU 15   /* LeakyRelu(X) -> Y {alpha = 0.01}: x < 0 ? alpha x : x */
#define ANE_OP_ELU 16          /* Elu(X) -> Y {alpha = 1}: x < 0 ? alpha (e^x - 1) : x */
#define ANE_OP_SELU 17         /* Selu(X) -> Y {alpha = 1.67326319, gamma = 1.05070102}: gamma times Elu's */
#define ANE_OP_GELU 18         /* Gelu(X) -> Y {approximate = NONE}: ANE_ACTIVATION_GELU_ERF; with TANH GELU_TANH */
#define ANE_OP_SIGMOID 19      /* Sigmoid(X) -> Y: 1 / (1 + e^-x) */
#define ANE_OP_HARD_SIGMOID 20 /* HardSigmoid(X) -> Y {alpha = 0.2, beta = 0.5}: max(0, min(1, alpha x + beta)) */
#define ANE_OP_HARD_SWISH 21   /* HardSwish(X) -> Y: x max(0, min(1, x / 6 + 0.5)) */
#define ANE_OP_TANH 22         /* Tanh(input) -> output: the hyperbolic tangent */
#define ANE_OP_SOFTPLUS 23     /* Softplus(X) -> Y: ln(1 + e^x) */
#define ANE_OP_MISH 24         /* Mish(X) -> Y: x tanh(ln(1 + e^x)) */
#define ANE_OP_CLIP 25         /* Clip(input, [min], [max]) -> output: min(max, max(min, x)); bounds are scalars */
#define ANE_OP_NOT 26          /* Not(X) -> Y: of BOOL */
#define ANE_OP_IS_NAN 27       /* IsNaN(X) -> Y: BOOL */
#define ANE_OP_IS_INF 28       /* IsInf(X) -> Y {detect_negative = 1, detect_positive = 1}: BOOL */
#define ANE_OP_IDENTITY 30     /* Identity(input) -> output: where an output would be no node's */
/* Cast(input) -> output {to}: to integers cuts the fraction off, and what is out of range is not specified; from
 * integers to narrower ones keeps the low bits; to BOOL is x != 0. */
#define ANE_OP_CAST 29

/* Elementwise, of several: they are broadcast to each other as NumPy does. */
#define ANE_OP_ADD 100              /* Add(A, B) -> C: a + b */
#define ANE_OP_SUB 101              /* Sub(A, B) -> C: a - b */
#define ANE_OP_MUL 102              /* Mul(A, B) -> C: a b */
#define ANE_OP_DIV 103              /* Div(A, B) -> C: a / b; of integers towards 0 */
#define ANE_OP_MOD 104              /* Mod(A, B) -> C {fmod = 0}: of integers, with b's sign; fmod = 1: as C's fmod */
#define ANE_OP_POW 105              /* Pow(X, Y) -> Z: x^y, in the type of X; Y may have another */
#define ANE_OP_MIN 106              /* Min(data_0...) -> min: NaN where one is NaN */
#define ANE_OP_MAX 107              /* Max(data_0...) -> max: likewise */
#define ANE_OP_PRELU 108            /* PRelu(X, slope) -> Y: x < 0 ? slope x : x; slope is broadcast to X */
#define ANE_OP_EQUAL 109            /* Equal(A, B) -> C: BOOL, as in all comparisons; one with NaN is false */
#define ANE_OP_GREATER 110          /* Greater(A, B) -> C: a > b */
#define ANE_OP_GREATER_OR_EQUAL 111 /* GreaterOrEqual(A, B) -> C: a >= b */
#define ANE_OP_LESS 112             /* Less(A, B) -> C: a < b */
#define ANE_OP_LESS_OR_EQUAL 113    /* LessOrEqual(A, B) -> C: a <= b */
#define ANE_OP_AND 114              /* And(A, B) -> C: of BOOL */
#define ANE_OP_OR 115               /* Or(A, B) -> C: of BOOL */
#define ANE_OP_XOR 116              /* Xor(A, B) -> C: of BOOL */
#define ANE_OP_WHERE 117            /* Where(condition, X, Y) -> output: condition (BOOL) ? x : y */

/* Products and convolutions. */
/* MatMul(A, B) -> Y: as NumPy's matmul: the last two dims are matrices, those before are broadcast; an operand with
 * one dim is a row on the left, a column on the right, and the result lacks that dim. */
#define ANE_OP_MATMUL 200
/* Gemm(A, B, [C]) -> Y {alpha = 1, beta = 1, transA = 0, transB = 0}: alpha op(A) op(B) + beta C, C broadcast. */
#define ANE_OP_GEMM 201
/* Conv(X, W, [B]) -> Y {dilations = 1..., group = 1, pads = 0..., strides = 1...}: correlation. X is batch x channels
 * x spatial dims; W is outputs x channels/group x kernel; B has an element for each output channel. */
#define ANE_OP_CONV 202
/* ConvTranspose(X, W, [B]) -> Y {dilations = 1..., group = 1, output_padding = 0..., pads = 0..., strides = 1...}:
 * W is channels x outputs/group x kernel. pads are cut off the result, output_padding lengthens its ends. */
#define ANE_OP_CONV_TRANSPOSE 203

/* Normalisation and softmax. stash_type: x is normalised in that type, and rounded to its own before it is scaled. */
/* BatchNormalization(X, scale, B, input_mean, input_var) -> Y {epsilon = 1e-5}:
 * scale (x - mean) / sqrt(var + epsilon) + B, each with an element for each index of axis 1. */
#define ANE_OP_BATCH_NORMALIZATION 300
/* InstanceNormalization(input, scale, B) -> output {epsilon = 1e-5}: likewise, with the mean and variance over
 * the spatial dims, for each index of axes 0 and 1. */
#define ANE_OP_INSTANCE_NORMALIZATION 301
/* GroupNormalization(X, scale, bias) -> Y {epsilon = 1e-5, num_groups, stash_type = F32}: likewise, with the mean
 * and variance of each of num_groups equal parts of axis 1. scale and bias have one element for each index of it. */
#define ANE_OP_GROUP_NORMALIZATION 302
/* LayerNormalization(X, Scale, [B]) -> Y, [Mean], [InvStdDev] {axis = -1, epsilon = 1e-5, stash_type = F32}: mean and
 * variance are of all dims from axis on; Scale and B are broadcast. InvStdDev is 1 / sqrt(var + epsilon). */
#define ANE_OP_LAYER_NORMALIZATION 303
/* RMSNormalization(X, scale) -> Y {axis = -1, epsilon = 1e-5, stash_type = F32}: scale x / sqrt(mean(x^2) + epsilon),
 * the mean over all dims from axis on. */
#define ANE_OP_RMS_NORMALIZATION 304
/* Softmax(input) -> output {axis = -1}: e^x / sum(e^x) along axis. */
#define ANE_OP_SOFTMAX 305
/* LogSoftmax(input) -> output {axis = -1}: its logarithm. */
#define ANE_OP_LOG_SOFTMAX 306

/* Attention. */
/*
 * Attention(Q, K, V, [attn_mask], [past_key], [past_value]) -> Y, [present_key], [present_value], [qk_matmul_output]
 * {is_causal = 0, [kv_num_heads], [q_num_heads], qk_matmul_output_mode = 0, [scale], softcap = 0,
 * [softmax_precision]}: for each head softmax(cap(scale Q K') + mask) V.
 *  - Q, K, V and Y are batch x heads x sequence x head size; or batch x sequence x (heads * head size), with
 *    q_num_heads and kv_num_heads. Past and present have four dims. Each head of K and V serves as many heads of Q as
 *    q_num_heads / kv_num_heads, one after the other.
 *  - present_key is past_key, then K, along the sequence; it is what Q meets. V likewise.
 *  - scale is 1 / sqrt(head size) if left out. cap(x) is softcap tanh(x / softcap); with a softcap of 0 it is x.
 *  - attn_mask is broadcast: BOOL (true: seen), or added. With is_causal query i sees no key beyond i + the length of
 *    the past; with both it sees what both let it see.
 *  - qk_matmul_output is scale Q K' (mode 0), with cap (1), with cap and mask (2), or the softmax (3).
 */
#define ANE_OP_ATTENTION 400
/*
 * RotaryEmbedding(X, cos_cache, sin_cache, [position_ids]) -> Y {interleaved = 0, [num_heads],
 * rotary_embedding_dim = 0}: pairs (a, b) of each head become (a cos - b sin, a sin + b cos). X is laid out as Q of
 * Attention. The pairs are those of the first rotary_embedding_dim elements (0: of all): neighbours with
 * interleaved = 1, else one of each half. position_ids (I64) are rows of the caches; without them the caches are
 * batch x sequence x pairs.
 */
#define ANE_OP_ROTARY_EMBEDDING 401

/* Quantisation. One scale for all, for each index of axis, or for each block_size of them; zero points likewise. */
/* QuantizeLinear(x, y_scale, [y_zero_point]) -> y {axis = 1, block_size = 0, output_dtype = NONE, precision = NONE}:
 * round(x / y_scale) + y_zero_point, ties to even, saturated. y has the type of y_zero_point, or output_dtype, or U8.
 * precision is the type of the division; NONE: that of y_scale. */
#define ANE_OP_QUANTIZE_LINEAR 500
/* DequantizeLinear(x, x_scale, [x_zero_point]) -> y {axis = 1, block_size = 0, output_dtype = NONE}:
 * (x - x_zero_point) x_scale, in output_dtype; NONE: in the type of x_scale. */
#define ANE_OP_DEQUANTIZE_LINEAR 501

/* Shape and place of elements. */
/* Reshape(data, shape!) -> reshaped {allowzero = 0}: one dim may be -1: what remains; 0: as data's. */
#define ANE_OP_RESHAPE 600
/* Flatten(input) -> output {axis = 1}: to two dims: those before axis, and the rest. */
#define ANE_OP_FLATTEN 601
/* Squeeze(data, [axes!]) -> squeezed: drops dims of 1: those of axes, or all. */
#define ANE_OP_SQUEEZE 602
/* Unsqueeze(data, axes!) -> expanded: adds dims of 1, where axes says in the result. */
#define ANE_OP_UNSQUEEZE 603
/* Expand(input, shape!) -> output: input's dims and shape, each broadcast to the other. */
#define ANE_OP_EXPAND 604
/* Tile(input, repeats!) -> output: copies side by side, so many along each axis. */
#define ANE_OP_TILE 605
/* Transpose(data) -> transposed {[perm]}: dim i is data's dim perm[i]; without perm they are reversed. */
#define ANE_OP_TRANSPOSE 606
/* Concat(inputs...) -> concat_result {axis}. */
#define ANE_OP_CONCAT 607
/* Split(input, [split!]) -> outputs... {axis = 0}: in lengths of split; without, of the dim over the number of
 * outputs, rounded up, and the last takes what is left. */
#define ANE_OP_SPLIT 608
/* Slice(data, starts!, ends!, [axes!], [steps!]) -> output: as Python's slices. If left out, axes are
 * all of them, steps 1. */
#define ANE_OP_SLICE 609
/* Pad(data, pads!, [constant_value], [axes!]) -> output {mode = CONSTANT}: pads as in Conv, for each of axes (all);
 * below 0 they cut. constant_value is a scalar, 0 if left out. */
#define ANE_OP_PAD 610
/* Trilu(input, [k!]) -> output {upper = 1}: keeps diagonal k (0) of each matrix and what is above it, or below it. */
#define ANE_OP_TRILU 611
/* DepthToSpace(input) -> output {blocksize, mode = DCR}: channels of N x C x H x W to squares of blocksize^2. */
#define ANE_OP_DEPTH_TO_SPACE 612
/* SpaceToDepth(input) -> output {blocksize}: the inverse of DCR. */
#define ANE_OP_SPACE_TO_DEPTH 613

/* Indexing. Indices are I64, or I32 where ONNX has it, and may change from run to run. */
/* Gather(data, indices) -> output {axis = 0}: whole slices of data; the dims of indices stand in place of axis. */
#define ANE_OP_GATHER 700
/* GatherElements(data, indices) -> output {axis = 0}: an element for each index, at its own place but in axis. */
#define ANE_OP_GATHER_ELEMENTS 701
/* GatherND(data, indices) -> output {batch_dims = 0}: the last dim of indices is a tuple of indices, of the axes of
 * data after batch_dims. */
#define ANE_OP_GATHER_ND 702
/* ScatterElements(data, indices, updates) -> output {axis = 0, reduction = NONE}: data, in which updates stand
 * where GatherElements would read. With NONE no place comes twice. */
#define ANE_OP_SCATTER_ELEMENTS 703
/* ScatterND(data, indices, updates) -> output {reduction = NONE}: likewise, where GatherND would read. */
#define ANE_OP_SCATTER_ND 704
/* OneHot(indices, depth!, values) -> output {axis = -1}: a new axis of length depth, with values[1] at the index and
 * values[0] elsewhere; an index out of range is nowhere. depth is one number of any type. */
#define ANE_OP_ONE_HOT 705

/*
 * Reductions over axes, and what goes along one axis. If axes are left out or empty, all are reduced; none with
 * noop_with_empty_axes = 1, which leaves what is done to single elements (|x|, x^2). keepdims = 1 leaves dims of 1.
 */
/* ReduceSum(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: of nothing 0. */
#define ANE_OP_REDUCE_SUM 800
/* ReduceMean(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}. */
#define ANE_OP_REDUCE_MEAN 801
/* ReduceMax(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: of nothing -infinity or the least. */
#define ANE_OP_REDUCE_MAX 802
/* ReduceMin(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: of nothing infinity or the most. */
#define ANE_OP_REDUCE_MIN 803
/* ReduceProd(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: of nothing 1. */
#define ANE_OP_REDUCE_PROD 804
/* ReduceL1(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: sum of |x|. */
#define ANE_OP_REDUCE_L1 805
/* ReduceL2(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: sqrt of the sum of x^2. */
#define ANE_OP_REDUCE_L2 806
/* ReduceSumSquare(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: sum of x^2. */
#define ANE_OP_REDUCE_SUM_SQUARE 807
/* ReduceLogSumExp(data, [axes!]) -> reduced {keepdims = 1, noop_with_empty_axes = 0}: ln of the sum of e^x. */
#define ANE_OP_REDUCE_LOG_SUM_EXP 808
/* ArgMax(data) -> reduced {axis = 0, keepdims = 1, select_last_index = 0}: I64; the first of equals, or the last. */
#define ANE_OP_ARG_MAX 809
/* ArgMin(data) -> reduced {axis = 0, keepdims = 1, select_last_index = 0}: likewise. */
#define ANE_OP_ARG_MIN 810
/* TopK(X, K!) -> Values, Indices {axis = -1, largest = 1, sorted = 1}: the K largest, or the smallest. Of equals the
 * lower index comes first. Indices are I64. */
#define ANE_OP_TOP_K 811
/* CumSum(x, axis!) -> y {exclusive = 0, reverse = 0}: running sums; exclusive leaves out the element itself. */
#define ANE_OP_CUM_SUM 812

/* Pooling and resizing, over the spatial dims: those after axis 1. */
/*
 * MaxPool(X) -> Y, [Indices] {ceil_mode = 0, dilations = 1..., kernel_shape, pads = 0..., storage_order = 0,
 * strides = 1...}: padding is never the largest. Indices (I64) count in all of X; in column-major order with
 * storage_order = 1.
 */
#define ANE_OP_MAX_POOL 900
/* AveragePool(X) -> Y {ceil_mode = 0, count_include_pad = 0, dilations = 1..., kernel_shape, pads = 0...,
 * strides = 1...}: padding counts in the divisor with count_include_pad = 1, what ceil_mode adds beyond it never. */
#define ANE_OP_AVERAGE_POOL 901
/* GlobalMaxPool(X) -> Y: spatial dims of 1. */
#define ANE_OP_GLOBAL_MAX_POOL 902
/* GlobalAveragePool(X) -> Y: likewise. */
#define ANE_OP_GLOBAL_AVERAGE_POOL 903
/*
 * Resize(X, [roi!], [scales!], [sizes!]) -> Y {antialias = 0, [axes], coordinate_transformation_mode = HALF_PIXEL,
 * cubic_coeff_a = -0.75, exclude_outside = 0, extrapolation_value = 0, keep_aspect_ratio_policy = STRETCH,
 * mode = NEAREST, nearest_mode = ROUND_PREFER_FLOOR}: one of scales (F32) and sizes is there, for each of axes (all).
 * roi (floats), starts and then ends, is read with TF_CROP_AND_RESIZE alone.
 */
#define ANE_OP_RESIZE 904

/* ---- attributes ---------------------------------------------------------------------------- */

/* Which attribute of its operator; a name is ONNX's. */
typedef int32_t ANEAttributeName;
/* Defaults are with the operators. A flag is 0 or 1. Later names get the next numbers. */
#define ANE_ATTR_ALLOWZERO 1                       /* INT: flag: a 0 in shape is a dim of 0 */
#define ANE_ATTR_ALPHA 2                           /* FLOAT */
#define ANE_ATTR_ANTIALIAS 3                       /* INT: flag: the filter widens where the result is smaller */
#define ANE_ATTR_APPROXIMATE 4                     /* INT: ANE_APPROXIMATE_* */
#define ANE_ATTR_AXES 5                            /* INTS: of Resize; other operators have an input */
#define ANE_ATTR_AXIS 6                            /* INT */
#define ANE_ATTR_BATCH_DIMS 7                      /* INT: how many leading dims data and indices share */
#define ANE_ATTR_BETA 8                            /* FLOAT */
#define ANE_ATTR_BLOCK_SIZE 9                      /* INT: elements along axis to a scale; 0: no blocks */
#define ANE_ATTR_BLOCKSIZE 10                      /* INT: of DepthToSpace and SpaceToDepth: the side of a square */
#define ANE_ATTR_CEIL_MODE 11                      /* INT: flag: a last window may reach beyond the end padding */
#define ANE_ATTR_COORDINATE_TRANSFORMATION_MODE 12 /* INT: ANE_COORDINATE_* */
#define ANE_ATTR_COUNT_INCLUDE_PAD 13              /* INT: flag */
#define ANE_ATTR_CUBIC_COEFF_A 14                  /* FLOAT: a of the cubic kernel */
#define ANE_ATTR_DETECT_NEGATIVE 15                /* INT: flag: -infinity counts */
#define ANE_ATTR_DETECT_POSITIVE 16                /* INT: flag: +infinity counts */
#define ANE_ATTR_DILATIONS 17                      /* INTS: for each spatial axis */
#define ANE_ATTR_EPSILON 18                        /* FLOAT: added to a variance or a mean square */
#define ANE_ATTR_EXCLUDE_OUTSIDE 19                /* INT: flag: what lies outside has weight 0, the rest sums to 1 */
#define ANE_ATTR_EXCLUSIVE 20                      /* INT: flag */
#define ANE_ATTR_EXTRAPOLATION_VALUE 21            /* FLOAT: what is outside with TF_CROP_AND_RESIZE */
#define ANE_ATTR_FMOD 22                           /* INT: flag */
#define ANE_ATTR_GAMMA 23                          /* FLOAT */
#define ANE_ATTR_GROUP 24                          /* INT: parts of the channels that do not mix */
#define ANE_ATTR_INTERLEAVED 25                    /* INT: flag */
#define ANE_ATTR_IS_CAUSAL 26                      /* INT: flag */
#define ANE_ATTR_KEEP_ASPECT_RATIO_POLICY 27       /* INT: ANE_ASPECT_* */
#define ANE_ATTR_KEEPDIMS 28                       /* INT: flag */
#define ANE_ATTR_KERNEL_SHAPE 29                   /* INTS: for each spatial axis */
#define ANE_ATTR_KV_NUM_HEADS 30                   /* INT: with three dims alone */
#define ANE_ATTR_LARGEST 31                        /* INT: flag: 0 for the smallest */
#define ANE_ATTR_MODE 32                           /* INT: ANE_PAD_*, ANE_RESIZE_* or ANE_DEPTH_TO_SPACE_* */
#define ANE_ATTR_NEAREST_MODE 33                   /* INT: ANE_NEAREST_* */
#define ANE_ATTR_NOOP_WITH_EMPTY_AXES 34           /* INT: flag */
#define ANE_ATTR_NUM_GROUPS 35                     /* INT */
#define ANE_ATTR_NUM_HEADS 36                      /* INT: of RotaryEmbedding, with three dims alone */
#define ANE_ATTR_OUTPUT_DTYPE 37                   /* INT: an ANEType */
#define ANE_ATTR_OUTPUT_PADDING 38                 /* INTS: for each spatial axis */
#define ANE_ATTR_PADS 39                           /* INTS: before each spatial axis, then after each */
#define ANE_ATTR_PERM 40                           /* INTS: for each axis */
#define ANE_ATTR_PRECISION 41                      /* INT: an ANEType */
#define ANE_ATTR_Q_NUM_HEADS 42                    /* INT: with three dims alone */
#define ANE_ATTR_QK_MATMUL_OUTPUT_MODE 43          /* INT: 0 to 3 */
#define ANE_ATTR_REDUCTION 44                      /* INT: ANE_SCATTER_* */
#define ANE_ATTR_REVERSE 45                        /* INT: flag: from the end */
#define ANE_ATTR_ROTARY_EMBEDDING_DIM 46           /* INT */
#define ANE_ATTR_SCALE 47                          /* FLOAT */
#define ANE_ATTR_SELECT_LAST_INDEX 48              /* INT: flag */
#define ANE_ATTR_SOFTCAP 49                        /* FLOAT */
#define ANE_ATTR_SOFTMAX_PRECISION 50              /* INT: an ANEType: that of the softmax; of Q if left out */
#define ANE_ATTR_SORTED 51                         /* INT: flag: 0 for any order */
#define ANE_ATTR_STASH_TYPE 52                     /* INT: an ANEType */
#define ANE_ATTR_STORAGE_ORDER 53                  /* INT: 0 or 1 */
#define ANE_ATTR_STRIDES 54                        /* INTS: for each spatial axis */
#define ANE_ATTR_TO 55                             /* INT: an ANEType */
#define ANE_ATTR_TRANS_A 56                        /* INT: flag; transA */
#define ANE_ATTR_TRANS_B 57                        /* INT: flag; transB */
#define ANE_ATTR_UPPER 58                          /* INT: flag */

/* Values that are strings in ONNX. 0 is the default of each. */
#define ANE_APPROXIMATE_NONE 0
#define ANE_APPROXIMATE_TANH 1

#define ANE_PAD_CONSTANT 0
#define ANE_PAD_REFLECT 1 /* without the element at the edge */
#define ANE_PAD_EDGE 2
#define ANE_PAD_WRAP 3

#define ANE_RESIZE_NEAREST 0
#define ANE_RESIZE_LINEAR 1 /* along each axis */
#define ANE_RESIZE_CUBIC 2

#define ANE_DEPTH_TO_SPACE_DCR 0 /* channels are row in the square, column, depth */
#define ANE_DEPTH_TO_SPACE_CRD 1 /* depth, row, column */

/* Where index x of the result lies in the input. scale is what scales says; else the result's length over the
 * input's, or what ANE_ASPECT_* makes of it. */
#define ANE_COORDINATE_HALF_PIXEL 0           /* (x + 0.5) / scale - 0.5 */
#define ANE_COORDINATE_HALF_PIXEL_SYMMETRIC 1 /* likewise, and the middles meet where a length was rounded */
#define ANE_COORDINATE_PYTORCH_HALF_PIXEL 2   /* as HALF_PIXEL; 0 for a result of length 1 */
#define ANE_COORDINATE_ALIGN_CORNERS 3        /* x (input's length - 1) / (result's length - 1); 0 for length 1 */
#define ANE_COORDINATE_ASYMMETRIC 4           /* x / scale */
#define ANE_COORDINATE_TF_CROP_AND_RESIZE 5   /* as ALIGN_CORNERS, within roi; its middle for a result of length 1 */

#define ANE_NEAREST_ROUND_PREFER_FLOOR 0 /* half down */
#define ANE_NEAREST_ROUND_PREFER_CEIL 1  /* half up */
#define ANE_NEAREST_FLOOR 2
#define ANE_NEAREST_CEIL 3

#define ANE_ASPECT_STRETCH 0
#define ANE_ASPECT_NOT_LARGER 1  /* the same scale for all of axes: the smallest */
#define ANE_ASPECT_NOT_SMALLER 2 /* the largest */

/* How an update joins what is there. */
#define ANE_SCATTER_NONE 0 /* in its place */
#define ANE_SCATTER_ADD 1
#define ANE_SCATTER_MUL 2
#define ANE_SCATTER_MAX 3
#define ANE_SCATTER_MIN 4

/* How an attribute's value is stored. Values that ONNX writes as strings have numbers of their own here. */
typedef int32_t ANEAttributeKind;
#define ANE_ATTRIBUTE_INT 1    /* `integer` */
#define ANE_ATTRIBUTE_FLOAT 2  /* `number` */
#define ANE_ATTRIBUTE_INTS 3   /* `count` values from ANEGraphDesc.integers[first] on */

typedef struct ANEAttribute {
    ANEAttributeName name;
    ANEAttributeKind kind;
    int64_t integer;
    float number;
    uint32_t first;
    uint32_t count;
    uint32_t reserved0;
} ANEAttribute;

/* ---- the graph ----------------------------------------------------------------------------- */

#define ANE_TENSOR_INITIALIZER 0x1u /* its contents are in data, which is not NULL then, or in constant: one of the two */

/* A value: packed, row-major. */
typedef struct ANETensor {
    const char *name; /* the user's, for messages; never NULL */
    ANEType type;
    uint32_t rank; /* 0 to ANE_GRAPH_MAX_RANK; 0 is a single element */
    uint64_t dims[ANE_GRAPH_MAX_RANK];
    const void *data; /* valid during the call only */
    uint64_t bytes;   /* of data or constant */
    ANEConstant *constant;
    uint32_t flags;       /* ANE_TENSOR_* */
    int32_t nibble_order; /* of 4-bit types */
    /* With ANE_GRAPH_VARIABLE_LEADING: along which axis its dims shrink with the leading dimension, or -1, and how many
     * elements of that axis each leading index takes. */
    int32_t variable_axis;
    uint32_t reserved0;
    uint64_t variable_count;
} ANETensor;

/* ANEGraphDesc.operands holds a node's inputs from first_operand on, then its outputs. */
typedef struct ANENode {
    const char *name; /* the user's, for messages; never NULL */
    ANEOperator op;
    uint32_t first_operand;
    uint32_t input_count;
    uint32_t output_count;
    uint32_t first_attribute;
    uint32_t attribute_count;
} ANENode;

/* A run may use fewer of the leading dimension. dims are then those of the most, and so is what shapes a result; the
 * caller has proved that what one leading index gives depends on no other. ANETensor says how tensors vary: inputs and
 * outputs along axis 0 by one element, or not at all. */
#define ANE_GRAPH_VARIABLE_LEADING 0x1u

typedef struct ANEGraphDesc {
    uint32_t struct_size;
    uint32_t flags; /* ANE_GRAPH_*; a shim refuses a flag that it does not know */
    /* sizeof of the elements, which have no struct_size: a reader steps by it, and later versions append members. */
    uint32_t tensor_size;
    uint32_t node_size;
    uint32_t attribute_size;
    uint32_t tensor_count;
    uint32_t node_count;
    uint32_t operand_count;
    uint32_t attribute_count;
    uint32_t integer_count;
    uint32_t input_count;
    uint32_t output_count;
    const ANETensor *tensors;
    const ANENode *nodes;
    const uint32_t *operands; /* indices of tensors, or ANE_GRAPH_NONE */
    const ANEAttribute *attributes;
    const int64_t *integers;
    const uint32_t *inputs;  /* indices of tensors, in the order of a run's operands */
    const uint32_t *outputs; /* likewise */
    uint8_t content_hash[32]; /* BLAKE3 over all of it with the initializers' contents; all zero: not computed */
} ANEGraphDesc;

/* A node that is refused, and why: one for each, not the first alone. */
typedef struct ANENodeRefusal {
    uint32_t struct_size;
    uint32_t node;
    ANERefusal reason;
    uint32_t reserved0;
    char message[240]; /* UTF-8, NUL-terminated */
} ANENodeRefusal;

/* ---- compiled graphs ----------------------------------------------------------------------- */

typedef struct ANEGraph ANEGraph;
typedef struct ANEGraphExecutor ANEGraphExecutor;

typedef struct ANEGraphInfo {
    uint32_t struct_size;
    uint32_t flags; /* ANE_PRODUCT_FLAG_* */
    ANEDeviceKind requested;
    ANEDeviceKind observed;
    uint64_t compile_ns;
    uint64_t bytes_held;     /* executors and constants not counted */
    uint64_t executor_bytes; /* of an executor with a queue depth of 1, intermediate tensors included */
    uint32_t arithmetic;     /* ANE_ARITHMETIC_* */
    uint32_t reserved0;
} ANEGraphInfo;

/* Bits of ANENodeInfo.supported: 1 << ANE_DEVICE_*. */
typedef struct ANENodeInfo {
    uint32_t struct_size;
    uint32_t fused_into;   /* the node that it is computed with, or itself */
    ANEDeviceKind planned; /* where the engine means to run it; ANE_DEVICE_UNKNOWN where it does not say */
    uint32_t supported;    /* where the engine could */
    double cost;           /* its share of the whole, from 0 to 1; negative: not known */
} ANENodeInfo;

/* Operands are packed tensors, in the order of ANEGraphDesc.inputs and outputs. No output overlaps another operand. */
typedef struct ANEGraphRunArgs {
    uint32_t struct_size;
    uint32_t flags;   /* zero */
    uint64_t leading; /* with ANE_GRAPH_VARIABLE_LEADING the leading dimension of this run, else 0 */
    const ANEOperand *inputs;
    const ANEOperand *outputs;
    ANERunInfo *info; /* may be NULL; NULL in a submission */
} ANEGraphRunArgs;

typedef struct ANEGraphTable {
    uint32_t struct_size;
    uint32_t reserved0;
    /* What graph_load reads where graph_compile is NULL, "mlpackage" say: the caller writes it. Else NULL. */
    const char *package_format;

    /* ANE_STATUS_OK when the graph is expected to compile. ANE_STATUS_REFUSED otherwise: the first `capacity`
     * refused nodes are written to `refusals`, whose elements are refusals[0].struct_size apart, in the order of
     * nodes, and how many there are to *count. What is refused of the graph as a whole is in `err`, with a count of
     * 0. Cheap: compiles nothing. */
    ANEStatus (*graph_supports)(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                                ANENodeRefusal *refusals, uint32_t capacity, uint32_t *count, ANEError *err);
    /* NULL in a shim that wants a package; every other slot is filled. */
    ANEStatus (*graph_compile)(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                               ANEGraph **out, ANEError *err);
    /* As product_save and product_load. */
    ANEStatus (*graph_save)(ANEGraph *graph, const char *path, ANEError *err);
    ANEStatus (*graph_load)(ANEDevice *device, const ANEGraphDesc *desc, const ANECompileOptions *options,
                            const char *path, ANEGraph **out, ANEError *err);
    ANEStatus (*graph_info)(ANEGraph *graph, ANEGraphInfo *info, ANEError *err);
    ANEStatus (*graph_node_info)(ANEGraph *graph, uint32_t node, ANENodeInfo *info, ANEError *err);
    void (*graph_destroy)(ANEGraph *graph);

    /* As executor_create, executor_run, executor_submit, executor_wait and executor_destroy. */
    ANEStatus (*graph_executor_create)(ANEGraph *graph, const ANEExecutorOptions *options, ANEGraphExecutor **out,
                                       ANEError *err);
    ANEStatus (*graph_executor_run)(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANEError *err);
    ANEStatus (*graph_executor_submit)(ANEGraphExecutor *executor, const ANEGraphRunArgs *args, ANETicket *ticket,
                                       ANEError *err);
    ANEStatus (*graph_executor_wait)(ANEGraphExecutor *executor, ANETicket ticket, uint64_t timeout_ns,
                                     ANERunInfo *info, ANEError *err);
    void (*graph_executor_destroy)(ANEGraphExecutor *executor);
} ANEGraphTable;

/* ---- layout, on 64-bit targets ------------------------------------------------------------- */

#if UINTPTR_MAX == 0xffffffffffffffffu
ANE_STATIC_ASSERT(sizeof(ANEAttribute) == 32);
ANE_STATIC_ASSERT(sizeof(ANETensor) == 128);
ANE_STATIC_ASSERT(sizeof(ANENode) == 32);
ANE_STATIC_ASSERT(sizeof(ANEGraphDesc) == 136);
ANE_STATIC_ASSERT(sizeof(ANENodeRefusal) == 256);
ANE_STATIC_ASSERT(sizeof(ANEGraphInfo) == 48);
ANE_STATIC_ASSERT(sizeof(ANENodeInfo) == 24);
ANE_STATIC_ASSERT(sizeof(ANEGraphRunArgs) == 40);
ANE_STATIC_ASSERT(sizeof(ANEGraphTable) == 112);
#endif

#ifdef __cplusplus
}
#endif

#endif
