//! The types and dimensions that an operator's results have.

use crate::description::element::ElementType::{self, Bool, I8, I32, I64, U8};
use crate::graph::operator::{Attention, Operator, PoolKernel, Reduce, Window};
use crate::graph::shape::{Shape, TensorType, axis_of};

/// What is wrong, in words that follow the node's name.
type Infer<T> = Result<T, String>;

/// The inputs of a node, some of which may be left out.
struct Inputs<'a>(&'a [Option<TensorType>]);

impl Inputs<'_> {
    fn check_count(&self, least: usize, most: usize) -> Infer<()> {
        let got = self.0.len();
        if (least..=most).contains(&got) && self.0[..least].iter().all(Option::is_some) {
            return Ok(());
        }
        let given = self.0.iter().flatten().count();
        let wanted = match (least, most) {
            (least, most) if least == most => format!("{least}"),
            (least, usize::MAX) => format!("{least} or more"),
            (least, most) => format!("{least} to {most}"),
        };
        Err(format!("it takes {wanted} inputs, got {given}"))
    }

    fn get(&self, index: usize) -> Infer<TensorType> {
        self.optional(index).ok_or_else(|| format!("input {index} is missing"))
    }

    fn optional(&self, index: usize) -> Option<TensorType> {
        self.0.get(index).copied().flatten()
    }

    /// The type that all of these have.
    fn same_type(&self, indices: impl IntoIterator<Item = usize>) -> Infer<ElementType> {
        let mut seen: Option<ElementType> = None;
        for index in indices {
            let Some(input) = self.optional(index) else { continue };
            match seen {
                Some(element) if element != input.element => {
                    return Err(format!("input {index} is of {}, others of {element}", input.element));
                }
                _ => seen = Some(input.element),
            }
        }
        seen.ok_or_else(|| "it takes an input".to_owned())
    }
}

fn is_number(element: ElementType) -> bool {
    element != Bool && element.bits() >= 8
}

fn require(fits: bool, input: TensorType, what: &str) -> Infer<()> {
    if fits { Ok(()) } else { Err(format!("it takes {what}, got {input}")) }
}

fn floats(input: TensorType) -> Infer<()> {
    require(input.element.is_float(), input, "floating-point numbers")
}

fn numbers(input: TensorType) -> Infer<()> {
    require(is_number(input.element), input, "numbers")
}

fn booleans(input: TensorType) -> Infer<()> {
    require(input.element == Bool, input, "booleans")
}

fn shape(dims: &[usize]) -> Infer<Shape> {
    Shape::of(dims)
}

impl Operator {
    /// What a node of this operator gives for inputs of these types; `None` for one that is left out.
    #[allow(clippy::too_many_lines, reason = "a table of operators")]
    pub(crate) fn infer(&self, inputs: &[Option<TensorType>]) -> Infer<Vec<TensorType>> {
        let inputs = Inputs(inputs);
        let unary = |check: fn(TensorType) -> Infer<()>| {
            inputs.check_count(1, 1)?;
            let x = inputs.get(0)?;
            check(x).map(|()| x)
        };
        let one = match self {
            Self::Abs | Self::Neg => unary(numbers)?,
            Self::Reciprocal
            | Self::Sqrt
            | Self::Exp
            | Self::Log
            | Self::Erf
            | Self::LeakyRelu { .. }
            | Self::Gelu { .. }
            | Self::Sigmoid
            | Self::HardSigmoid { .. }
            | Self::HardSwish
            | Self::Tanh
            | Self::Softmax { .. } => {
                let x = unary(floats)?;
                if let Self::Softmax { axis } = self {
                    x.shape.axis(*axis)?;
                }
                x
            }
            Self::Relu => unary(numbers)?,
            Self::Not => unary(booleans)?,
            Self::Identity => unary(|_| Ok(()))?,
            Self::Cast { to } => {
                let x = unary(|x| require(x.element.bits() >= 8, x, "elements of a byte or more"))?;
                require(to.bits() >= 8, TensorType::new(*to, x.shape), "a type of a byte or more")?;
                TensorType::new(*to, x.shape)
            }
            Self::Clip => {
                inputs.check_count(1, 3)?;
                let x = inputs.get(0)?;
                numbers(x)?;
                inputs.same_type(0..3)?;
                for bound in [1, 2].into_iter().filter_map(|index| inputs.optional(index)) {
                    require(bound.shape.rank() == 0, bound, "bounds without dimensions")?;
                }
                x
            }
            Self::Add | Self::Sub | Self::Mul | Self::Div => elementwise(&inputs, 2, 2, numbers)?,
            Self::Min | Self::Max => elementwise(&inputs, 1, usize::MAX, numbers)?,
            Self::And | Self::Or => elementwise(&inputs, 2, 2, booleans)?,
            Self::Pow => {
                inputs.check_count(2, 2)?;
                let (x, y) = (inputs.get(0)?, inputs.get(1)?);
                numbers(x)?;
                numbers(y)?;
                TensorType::new(x.element, x.shape.broadcast(&y.shape)?)
            }
            Self::Equal => TensorType::new(Bool, elementwise(&inputs, 2, 2, |_| Ok(()))?.shape),
            Self::Greater | Self::GreaterOrEqual | Self::Less | Self::LessOrEqual => {
                TensorType::new(Bool, elementwise(&inputs, 2, 2, numbers)?.shape)
            }
            Self::Where => {
                inputs.check_count(3, 3)?;
                let condition = inputs.get(0)?;
                booleans(condition)?;
                let element = inputs.same_type(1..3)?;
                let values = inputs.get(1)?.shape.broadcast(&inputs.get(2)?.shape)?;
                TensorType::new(element, condition.shape.broadcast(&values)?)
            }
            Self::MatMul => {
                inputs.check_count(2, 2)?;
                let element = inputs.same_type(0..2)?;
                let (a, b) = (inputs.get(0)?, inputs.get(1)?);
                numbers(a)?;
                TensorType::new(element, matmul(&a.shape, &b.shape)?)
            }
            Self::Gemm { transpose_a, transpose_b, .. } => {
                inputs.check_count(2, 3)?;
                let element = inputs.same_type(0..3)?;
                let (a, b) = (inputs.get(0)?, inputs.get(1)?);
                floats(a)?;
                let matrix = |input: TensorType, transpose: bool| match *input.shape.dims() {
                    [rows, cols] if transpose => Ok((cols, rows)),
                    [rows, cols] => Ok((rows, cols)),
                    _ => Err(format!("it takes matrices, got {input}")),
                };
                let ((m, k), (k_of_b, n)) = (matrix(a, *transpose_a)?, matrix(b, *transpose_b)?);
                if k != k_of_b {
                    return Err(format!("{a} and {b} do not fit: k is {k} and {k_of_b}"));
                }
                let product = shape(&[m, n])?;
                if let Some(c) = inputs.optional(2) {
                    let sum = product.broadcast(&c.shape)?;
                    require(sum == product, c, &format!("a C that is broadcast to {product}"))?;
                }
                TensorType::new(element, product)
            }
            Self::Conv(window, groups) => conv(&inputs, window, groups.0)?,
            Self::BatchNormalization { .. } => {
                inputs.check_count(5, 5)?;
                let (x, element) = (inputs.get(0)?, inputs.same_type(0..5)?);
                floats(x)?;
                let channels = *x.shape.dims().get(1).ok_or_else(|| format!("{x} has no channels"))?;
                for index in 1..5 {
                    let of_channels = inputs.get(index)?;
                    require(
                        of_channels.shape.dims() == [channels],
                        of_channels,
                        &format!("{element}[{channels}]"),
                    )?;
                }
                x
            }
            Self::LayerNormalization { axis, .. } => {
                inputs.check_count(2, 3)?;
                normalization(&inputs, *axis)?
            }
            Self::RmsNormalization { axis, .. } => {
                inputs.check_count(2, 2)?;
                normalization(&inputs, *axis)?
            }
            Self::Attention(attributes) => attention(&inputs, attributes)?,
            Self::QuantizeLinear { axis, block_size, output } => {
                inputs.check_count(2, 3)?;
                let (x, scale) = (inputs.get(0)?, inputs.get(1)?);
                require(
                    matches!(output, I8 | U8),
                    TensorType::new(*output, x.shape),
                    "a result of i8 or u8",
                )?;
                floats(x)?;
                inputs.same_type(0..2)?;
                scales(x, scale, inputs.optional(2), *output, (*axis, *block_size))?;
                TensorType::new(*output, x.shape)
            }
            Self::DequantizeLinear { axis, block_size, output } => {
                inputs.check_count(2, 3)?;
                let (x, scale) = (inputs.get(0)?, inputs.get(1)?);
                require(
                    !x.element.is_float() && !matches!(x.element, Bool | I64),
                    x,
                    "integers of up to 32 bits",
                )?;
                floats(scale)?;
                scales(x, scale, inputs.optional(2), x.element, (*axis, *block_size))?;
                let result = TensorType::new(*output, x.shape);
                require(output.is_float(), result, "a floating-point result")?;
                result
            }
            Self::Reshape { shape: dims } => {
                let x = unary(|_| Ok(()))?;
                TensorType::new(x.element, reshape(&x.shape, dims)?)
            }
            Self::Flatten { axis } => {
                let x = unary(|_| Ok(()))?;
                let rank = x.shape.rank();
                let axis = usize::try_from(*axis).ok().filter(|axis| *axis <= rank).or(axis_of(*axis, rank));
                let axis = axis.ok_or_else(|| format!("there is no such axis in {}", x.shape))?;
                let (before, rest) = x.shape.dims().split_at(axis);
                TensorType::new(x.element, shape(&[before.iter().product(), rest.iter().product()])?)
            }
            Self::Squeeze { axes } => {
                let x = unary(|_| Ok(()))?;
                let dropped = match axes {
                    Some(axes) => axes_of(axes, &x.shape)?,
                    None => (0..x.shape.rank()).filter(|axis| x.shape.dims()[*axis] == 1).collect(),
                };
                if let Some(axis) = dropped.iter().find(|axis| x.shape.dims()[**axis] != 1) {
                    return Err(format!("axis {axis} of {} is not 1", x.shape));
                }
                let kept = (0..x.shape.rank()).filter(|axis| !dropped.contains(axis));
                TensorType::new(x.element, shape(&kept.map(|axis| x.shape.dims()[axis]).collect::<Vec<_>>())?)
            }
            Self::Unsqueeze { axes } => {
                let x = unary(|_| Ok(()))?;
                // The result may have too many.
                let result = shape(&vec![1; x.shape.rank().saturating_add(axes.len())])?;
                let added = axes_of(axes, &result)?;
                let mut dims = x.shape.dims().iter().copied();
                let all = (0..result.rank())
                    .map(|axis| if added.contains(&axis) { 1 } else { dims.next().unwrap_or(1) });
                TensorType::new(x.element, shape(&all.collect::<Vec<_>>())?)
            }
            Self::Expand { shape: dims } => {
                let x = unary(|_| Ok(()))?;
                TensorType::new(x.element, x.shape.broadcast(&shape(dims)?)?)
            }
            Self::Transpose { perm } => {
                let x = unary(|_| Ok(()))?;
                let mut seen = vec![false; x.shape.rank()];
                let is_permutation = perm.len() == seen.len()
                    && perm
                        .iter()
                        .all(|axis| seen.get_mut(*axis).is_some_and(|seen| !std::mem::replace(seen, true)));
                if !is_permutation {
                    return Err(format!("{perm:?} is no permutation of the axes of {}", x.shape));
                }
                let dims: Vec<_> = perm.iter().map(|axis| x.shape.dims()[*axis]).collect();
                TensorType::new(x.element, shape(&dims)?)
            }
            Self::Concat { axis } => concat(&inputs, *axis)?,
            Self::Split { axis, lengths } => {
                let x = unary(|_| Ok(()))?;
                let axis = x.shape.axis(*axis)?;
                let sum = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
                if sum != Some(x.shape.dims()[axis]) || lengths.is_empty() {
                    return Err(format!("parts of {lengths:?} do not add up to axis {axis} of {}", x.shape));
                }
                let part =
                    |length: &usize| Ok(TensorType::new(x.element, with_dim(&x.shape, axis, *length)?));
                return lengths.iter().map(part).collect();
            }
            Self::Slice { .. } => {
                let x = unary(|_| Ok(()))?;
                let mut dims = x.shape.dims().to_vec();
                for (axis, _, count, _) in self.slices(&x.shape)? {
                    dims[axis] = count;
                }
                TensorType::new(x.element, shape(&dims)?)
            }
            Self::Pad { pads } => {
                inputs.check_count(1, 2)?;
                let x = inputs.get(0)?;
                inputs.same_type(0..2)?;
                if let Some(fill) = inputs.optional(1) {
                    require(fill.shape.rank() == 0, fill, "a filling without dimensions")?;
                }
                let rank = x.shape.rank();
                if pads.len() != 2 * rank {
                    return Err(format!("{} pads for {}: two for each axis", pads.len(), x.shape));
                }
                let dims = (0..rank).map(|axis| {
                    let dim = i64::try_from(x.shape.dims()[axis]).ok();
                    dim.and_then(|dim| dim.checked_add(pads[axis])?.checked_add(pads[axis + rank]))
                        .and_then(|dim| usize::try_from(dim).ok())
                        .ok_or_else(|| format!("pads {pads:?} leave nothing of axis {axis} of {}", x.shape))
                });
                TensorType::new(x.element, shape(&dims.collect::<Infer<Vec<_>>>()?)?)
            }
            Self::Trilu { .. } => unary(|x| require(x.shape.rank() >= 2, x, "matrices"))?,
            Self::Gather { axis } => {
                inputs.check_count(2, 2)?;
                let (data, indices) = (inputs.get(0)?, inputs.get(1)?);
                require(matches!(indices.element, I64 | I32), indices, "indices of i64 or i32")?;
                let axis = data.shape.axis(*axis)?;
                let mut dims = data.shape.dims()[..axis].to_vec();
                dims.extend_from_slice(indices.shape.dims());
                dims.extend_from_slice(&data.shape.dims()[axis + 1..]);
                TensorType::new(data.element, shape(&dims)?)
            }
            Self::ReduceSum(reduce) | Self::ReduceMax(reduce) => {
                let x = unary(numbers)?;
                TensorType::new(x.element, reduced(&x.shape, reduce)?)
            }
            Self::ReduceMean(reduce) | Self::ReduceL2(reduce) => {
                let x = unary(floats)?;
                TensorType::new(x.element, reduced(&x.shape, reduce)?)
            }
            Self::MaxPool(window, kernel) | Self::AveragePool { window, kernel, .. } => {
                let x = unary(floats)?;
                pool(x, window, kernel)?
            }
            Self::GlobalAveragePool => {
                let x = unary(floats)?;
                let dims = x.shape.dims();
                require(dims.len() >= 3, x, "a batch of channels with spatial dimensions")?;
                let spatial = dims.iter().enumerate().map(|(axis, dim)| if axis < 2 { *dim } else { 1 });
                TensorType::new(x.element, shape(&spatial.collect::<Vec<_>>())?)
            }
        };
        Ok(vec![one])
    }

    /// Of a slice: each axis with its first index, how many there are, and the step.
    pub(crate) fn slices(&self, x: &Shape) -> Infer<Vec<(usize, usize, usize, i64)>> {
        let Self::Slice { starts, ends, axes, steps } = self else { return Ok(Vec::new()) };
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("starts, ends, axes and steps differ in number".into());
        }
        let axes = axes_of(axes, x)?;
        let one = |(index, axis): (usize, &usize)| {
            let (start, end, step) = (starts[index], ends[index], steps[index]);
            let dim =
                i64::try_from(x.dims()[*axis]).map_err(|_| format!("axis {axis} of {x} is too long"))?;
            let from_end = |index: i64| if index < 0 { index.saturating_add(dim) } else { index };
            // As Python has it: the indices that a step backwards reaches are -1 (before all) to dim - 1.
            let (first, last) = match step {
                1.. => (from_end(start).clamp(0, dim), from_end(end).clamp(0, dim)),
                0 => return Err(format!("a step of 0 along axis {axis}")),
                _ => (from_end(start).clamp(-1, dim - 1), from_end(end).clamp(-1, dim - 1)),
            };
            let distance = if step > 0 { last - first } else { first - last };
            let count = u64::try_from(distance).unwrap_or(0).div_ceil(step.unsigned_abs());
            let first = usize::try_from(first).unwrap_or(0);
            Ok((*axis, first, usize::try_from(count).unwrap_or(usize::MAX), step))
        };
        axes.iter().enumerate().map(one).collect()
    }
}

/// Inputs of one type, broadcast to each other.
fn elementwise(
    inputs: &Inputs<'_>,
    least: usize,
    most: usize,
    check: fn(TensorType) -> Infer<()>,
) -> Infer<TensorType> {
    inputs.check_count(least, most)?;
    let element = inputs.same_type(0..inputs.0.len())?;
    let mut shape = Shape::SCALAR;
    for index in 0..inputs.0.len() {
        let input = inputs.get(index)?;
        check(input)?;
        shape = shape.broadcast(&input.shape)?;
    }
    Ok(TensorType::new(element, shape))
}

fn matmul(a: &Shape, b: &Shape) -> Infer<Shape> {
    let (k_of_a, k_of_b) = match (a.dims(), b.dims()) {
        ([.., k], [other]) => (k, other),
        ([.., k], [.., other, _]) => (k, other),
        _ => return Err(format!("{a} and {b}: an operand has no dimensions")),
    };
    if k_of_a != k_of_b {
        let is_turned = b.rank() > 1 && b.dims().last() == Some(k_of_a);
        let hint = if is_turned { "; transpose the second" } else { "" };
        return Err(format!("{a} and {b} do not fit: k is {k_of_a} and {k_of_b}{hint}"));
    }
    let batch = |shape: &Shape| Shape::of(&shape.dims()[..shape.rank().saturating_sub(2)]);
    let mut dims = batch(a)?.broadcast(&batch(b)?)?.dims().to_vec();
    if a.rank() > 1 {
        dims.push(a.dims()[a.rank() - 2]);
    }
    if b.rank() > 1 {
        dims.push(b.dims()[b.rank() - 1]);
    }
    shape(&dims)
}

/// Axes, each once.
pub(crate) fn axes_of(axes: &[i64], shape: &Shape) -> Infer<Vec<usize>> {
    let mut of = Vec::new();
    for axis in axes {
        let axis = shape.axis(*axis)?;
        if of.contains(&axis) {
            return Err(format!("axis {axis} is named twice"));
        }
        of.push(axis);
    }
    Ok(of)
}

fn with_dim(of: &Shape, axis: usize, length: usize) -> Infer<Shape> {
    let mut dims = of.dims().to_vec();
    dims[axis] = length;
    shape(&dims)
}

impl Reduce {
    /// The axes that go.
    pub(crate) fn axes_of(&self, shape: &Shape) -> Infer<Vec<usize>> {
        match &self.axes {
            None => Ok((0..shape.rank()).collect()),
            Some(axes) => axes_of(axes, shape),
        }
    }
}

fn reduced(x: &Shape, reduce: &Reduce) -> Infer<Shape> {
    let axes = reduce.axes_of(x)?;
    let left = |axis: usize| match (axes.contains(&axis), reduce.keepdims) {
        (false, _) => Some(x.dims()[axis]),
        (true, true) => Some(1),
        (true, false) => None,
    };
    shape(&(0..x.rank()).filter_map(left).collect::<Vec<_>>())
}

fn reshape(x: &Shape, dims: &[i64]) -> Infer<Shape> {
    let wrong = || format!("{x} cannot be reshaped to {dims:?}");
    let known = dims.iter().filter(|dim| **dim != -1);
    let known: Vec<usize> =
        known.map(|dim| usize::try_from(*dim).map_err(|_| wrong())).collect::<Infer<_>>()?;
    let remaining = match (dims.len() - known.len(), shape(&known)?.count()) {
        (0, _) => 1,
        (1, 0) => return Err(wrong()),
        (1, count) => x.count() / count,
        _ => return Err(format!("{dims:?} has more than one -1")),
    };
    let all: Vec<_> = dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(remaining)).collect();
    let result = shape(&all)?;
    if result.count() == x.count() { Ok(result) } else { Err(wrong()) }
}

fn concat(inputs: &Inputs<'_>, axis: i64) -> Infer<TensorType> {
    inputs.check_count(1, usize::MAX)?;
    let element = inputs.same_type(0..inputs.0.len())?;
    let first = inputs.get(0)?.shape;
    let axis = first.axis(axis)?;
    let mut length = 0usize;
    for index in 0..inputs.0.len() {
        let input = inputs.get(index)?.shape;
        let along = *input.dims().get(axis).unwrap_or(&0);
        if input.rank() != first.rank() || with_dim(&input, axis, first.dims()[axis])? != first {
            return Err(format!("{first} and {input} differ beside axis {axis}"));
        }
        length = length.checked_add(along).ok_or("the result is too long")?;
    }
    Ok(TensorType::new(element, with_dim(&first, axis, length)?))
}

fn normalization(inputs: &Inputs<'_>, axis: i64) -> Infer<TensorType> {
    let (x, _) = (inputs.get(0)?, inputs.same_type(0..3)?);
    floats(x)?;
    x.shape.axis(axis)?;
    for scale in [1, 2].into_iter().filter_map(|index| inputs.optional(index)) {
        let fits = scale.shape.broadcast(&x.shape).is_ok_and(|shape| shape == x.shape);
        require(fits, scale, &format!("scale and bias that are broadcast to {x}"))?;
    }
    Ok(x)
}

/// The heads of Q and of K and V, the queries, the keys, and the head sizes of Q and V, after the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionSizes {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub qk_size: usize,
    pub v_size: usize,
}

impl Attention {
    pub(crate) fn sizes(&self, q: &Shape, k: &Shape, v: &Shape) -> Infer<AttentionSizes> {
        let wrong = || format!("Q {q}, K {k} and V {v} do not fit");
        // Batch, heads, sequence, head size.
        let of = |shape: &Shape, heads: usize| match (shape.dims(), self.heads) {
            (&[batch, heads, sequence, size], None) => Ok([batch, heads, sequence, size]),
            (&[batch, sequence, width], Some(_)) if heads > 0 && width % heads == 0 => {
                Ok([batch, heads, sequence, width / heads])
            }
            (&[_, _, width], Some(_)) => Err(format!("{heads} heads do not divide the {width} of {shape}")),
            (&[_, _, _], None) => {
                Err("three dimensions need the numbers of heads (Attention::heads)".to_owned())
            }
            _ => Err(wrong()),
        };
        let (q_heads, kv_heads) = self.heads.unwrap_or((0, 0));
        let (
            [batch, q_heads, queries, qk_size],
            [k_batch, kv_heads, keys, k_size],
            [v_batch, v_heads, v_keys, v_size],
        ) = (of(q, q_heads)?, of(k, kv_heads)?, of(v, kv_heads)?);
        let fits = [k_batch, v_batch] == [batch; 2]
            && (v_heads, v_keys, k_size) == (kv_heads, keys, qk_size)
            && kv_heads > 0
            && q_heads.is_multiple_of(kv_heads);
        if !fits {
            return Err(wrong());
        }
        Ok(AttentionSizes { batch, q_heads, kv_heads, queries, keys, qk_size, v_size })
    }
}

fn attention(inputs: &Inputs<'_>, attributes: &Attention) -> Infer<TensorType> {
    inputs.check_count(3, 4)?;
    let (q, k, v) = (inputs.get(0)?, inputs.get(1)?, inputs.get(2)?);
    let element = inputs.same_type(0..3)?;
    floats(q)?;
    let sizes = attributes.sizes(&q.shape, &k.shape, &v.shape)?;
    let AttentionSizes { batch, q_heads, queries, keys, v_size, .. } = sizes;
    if let Some(mask) = inputs.optional(3) {
        require(
            mask.element == Bool || mask.element == element,
            mask,
            &format!("a mask of bool or {element}"),
        )?;
        let scores = shape(&[batch, q_heads, queries, keys])?;
        let fits = mask.shape.broadcast(&scores).is_ok_and(|shape| shape == scores);
        require(fits, mask, &format!("a mask that is broadcast to {scores}"))?;
    }
    let result = if attributes.heads.is_none() {
        shape(&[batch, q_heads, queries, v_size])?
    } else {
        let width = q_heads.checked_mul(v_size).ok_or("the result is too wide")?;
        shape(&[batch, queries, width])?
    };
    Ok(TensorType::new(element, result))
}

/// One scale for all, one for each index of an axis, or one for each block along it; the zero point likewise.
fn scales(
    x: TensorType,
    scale: TensorType,
    zero_point: Option<TensorType>,
    element: ElementType,
    (axis, block_size): (i64, usize),
) -> Infer<()> {
    let fits = match *scale.shape.dims() {
        _ if block_size > 0 => {
            let axis = x.shape.axis(axis)?;
            with_dim(&x.shape, axis, x.shape.dims()[axis].div_ceil(block_size))? == scale.shape
        }
        [] => true,
        [1] if x.shape.rank() <= 1 => true,
        [count] => x.shape.dims()[x.shape.axis(axis)?] == count,
        _ => false,
    };
    require(fits, scale, &format!("one scale for {x}, or one for each index or block of axis {axis}"))?;
    if let Some(zero_point) = zero_point {
        let wanted = TensorType::new(element, scale.shape);
        require(zero_point == wanted, zero_point, &format!("a zero point of {wanted}"))?;
    }
    Ok(())
}

/// A window along one spatial axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowAxis {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub pad_before: usize,
    pub pad_after: usize,
    /// The elements of the input and of the result.
    pub input: usize,
    pub output: usize,
}

impl Window {
    /// The windows of a kernel over the spatial dimensions of an input.
    pub(crate) fn axes(
        &self,
        spatial: &[usize],
        kernel: &[usize],
        ceil_mode: bool,
    ) -> Infer<Vec<WindowAxis>> {
        let rank = spatial.len();
        let of = |list: &[usize], count: usize, what: &str| {
            if list.is_empty() || list.len() == count {
                return Ok(());
            }
            Err(format!("{} {what} for {rank} spatial dimensions", list.len()))
        };
        of(&self.strides, rank, "strides")?;
        of(&self.dilations, rank, "dilations")?;
        of(&self.pads, 2 * rank, "pads")?;
        if kernel.len() != rank {
            return Err(format!("a kernel of {kernel:?} for {rank} spatial dimensions"));
        }
        let get = |list: &[usize], index: usize, default: usize| list.get(index).copied().unwrap_or(default);
        let one = |axis: usize| {
            let (kernel, input) = (kernel[axis], spatial[axis]);
            let (stride, dilation) = (get(&self.strides, axis, 1), get(&self.dilations, axis, 1));
            let (pad_before, pad_after) = (get(&self.pads, axis, 0), get(&self.pads, axis + rank, 0));
            if kernel == 0 || stride == 0 || dilation == 0 {
                return Err("kernels, strides and dilations are at least 1".to_owned());
            }
            let padded = input.checked_add(pad_before).and_then(|sum| sum.checked_add(pad_after));
            let reach = (kernel - 1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
            let Some((padded, rest)) =
                padded.zip(reach).and_then(|(padded, reach)| Some((padded, padded.checked_sub(reach)?)))
            else {
                return Err(format!("a window of {kernel} is larger than axis {axis} with its padding"));
            };
            let mut output = rest / stride + 1;
            // A window that begins in the padding at the end is none.
            let begins_inside = output.checked_mul(stride).is_some_and(|start| start < padded - pad_after);
            if ceil_mode && !rest.is_multiple_of(stride) && begins_inside {
                output += 1;
            }
            Ok(WindowAxis { kernel, stride, dilation, pad_before, pad_after, input, output })
        };
        (0..rank).map(one).collect()
    }
}

fn conv(inputs: &Inputs<'_>, window: &Window, groups: usize) -> Infer<TensorType> {
    inputs.check_count(2, 3)?;
    let element = inputs.same_type(0..3)?;
    let (x, w) = (inputs.get(0)?, inputs.get(1)?);
    floats(x)?;
    let ([batch, channels, spatial @ ..], [outputs, channels_of_group, kernel @ ..]) =
        (x.shape.dims(), w.shape.dims())
    else {
        return Err(format!("it takes a batch of channels and a kernel, got {x} and {w}"));
    };
    let fits = groups > 0
        && !spatial.is_empty()
        && channels_of_group.checked_mul(groups) == Some(*channels)
        && outputs.is_multiple_of(groups);
    if !fits {
        return Err(format!("{x} and {w} do not fit in {groups} groups"));
    }
    if let Some(bias) = inputs.optional(2) {
        require(bias.shape.dims() == [*outputs], bias, &format!("a bias of {element}[{outputs}]"))?;
    }
    let mut dims = vec![*batch, *outputs];
    dims.extend(window.axes(spatial, kernel, false)?.iter().map(|axis| axis.output));
    Ok(TensorType::new(element, shape(&dims)?))
}

fn pool(x: TensorType, window: &Window, kernel: &PoolKernel) -> Infer<TensorType> {
    let [batch, channels, spatial @ ..] = x.shape.dims() else {
        return Err(format!("it takes a batch of channels, got {x}"));
    };
    require(!spatial.is_empty(), x, "spatial dimensions")?;
    let axes = window.axes(spatial, &kernel.shape, kernel.ceil_mode)?;
    // A window of padding alone has no largest element.
    if axes.iter().any(|axis| axis.pad_before.max(axis.pad_after) >= axis.kernel) {
        return Err("the padding is as wide as the kernel, so that a window may hold nothing else".into());
    }
    let mut dims = vec![*batch, *channels];
    dims.extend(axes.iter().map(|axis| axis.output));
    Ok(TensorType::new(x.element, shape(&dims)?))
}
