//! What each operator computes.

use std::cmp::Ordering;

use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::infer::{AttentionSizes, WindowAxis};
use crate::graph::interpret::real::Real;
use crate::graph::interpret::values::{Data, Values, collected, filled, mapped, range, try_collected};
use crate::graph::operator::{Attention, Operator, PoolKernel, Reduce, Window};
use crate::graph::shape::{self, MAX_RANK, Shape, TensorType};

/// An index of each axis, 0 for those that there are not.
type Index = [usize; MAX_RANK];

struct Inputs<'a, R>(&'a [Option<&'a Values<R>>]);

impl<'a, R: Real> Inputs<'a, R> {
    fn optional(&self, index: usize) -> Option<&'a Values<R>> {
        self.0.get(index).copied().flatten()
    }

    fn get(&self, index: usize) -> Result<&'a Values<R>> {
        self.optional(index).ok_or_else(|| Error::graph(format!("input {index} is missing")))
    }

    fn floats(&self, index: usize) -> Result<&'a [R]> {
        self.get(index)?.data.floats()
    }

    fn all(&self) -> Result<Vec<&'a Values<R>>> {
        (0..self.0.len()).map(|index| self.get(index)).collect()
    }
}

/// The results of an operator. Errors lack the node's name.
pub(super) fn evaluate<R: Real>(
    operator: &Operator,
    inputs: &[Option<&Values<R>>],
) -> Result<Vec<Values<R>>> {
    let types: Vec<_> = inputs.iter().map(|input| input.map(|input| input.tensor_type)).collect();
    let results = operator.infer(&types).map_err(Error::graph)?;
    let inputs = Inputs(inputs);
    if let Operator::Split { axis, .. } = operator {
        return split(inputs.get(0)?, *axis, &results);
    }
    let one = |result: &TensorType| {
        // What is empty may have other dimensions that nobody could count through.
        let is_empty = result.shape.count() == 0 && !matches!(operator, Operator::Gather { .. });
        let data =
            if is_empty { Data::empty(result.element) } else { result_of(operator, &inputs, *result)? };
        Ok(Values { tensor_type: *result, data: data.stored(result.element)? })
    };
    results.iter().map(one).collect()
}

#[allow(clippy::too_many_lines, reason = "a table of operators")]
fn result_of<R: Real>(operator: &Operator, inputs: &Inputs<'_, R>, result: TensorType) -> Result<Data<R>> {
    let real = |x: f32| R::from_f64(x.into());
    let float = |function: &dyn Fn(R) -> R| Ok(Data::Floats(mapped(inputs.floats(0)?, function)?));
    let number = |float: &dyn Fn(R) -> R, integer: fn(i64) -> i64| match &inputs.get(0)?.data {
        Data::Integers(x) => Ok(Data::Integers(mapped(x, integer)?)),
        other => Ok(Data::Floats(mapped(other.floats()?, float)?)),
    };
    let shape = &result.shape;
    match operator {
        Operator::Abs => number(&R::abs, i64::wrapping_abs),
        Operator::Neg => number(&|x| -x, i64::wrapping_neg),
        Operator::Relu => number(&relu, |x| x.max(0)),
        Operator::Reciprocal => float(&|x| R::ONE / x),
        Operator::Sqrt => float(&R::sqrt),
        Operator::Exp => float(&R::exp),
        Operator::Log => float(&R::ln),
        Operator::Erf => float(&R::erf),
        Operator::Tanh => float(&R::tanh),
        Operator::Sigmoid => float(&sigmoid),
        Operator::LeakyRelu { alpha } => float(&|x| if x < R::ZERO { real(*alpha) * x } else { x }),
        Operator::Gelu { tanh } => float(if *tanh { &gelu_tanh } else { &gelu }),
        Operator::HardSigmoid { alpha, beta } => float(&|x| unit_interval(real(*alpha) * x + real(*beta))),
        Operator::HardSwish => float(&|x| x * unit_interval(x / R::from_f64(6.0) + R::from_f64(0.5))),
        Operator::Softmax { axis } => {
            softmax_along(inputs.floats(0)?, shape, axis_of(shape, *axis)?).map(Data::Floats)
        }
        Operator::Not => Ok(Data::Booleans(mapped(inputs.get(0)?.data.booleans()?, |x| !x)?)),
        Operator::Cast { to } => inputs.get(0)?.data.cast(*to),
        Operator::Clip => clip(inputs, shape),
        Operator::Add => elementwise(inputs, shape, |a, b| a + b, |a, b| Some(a.wrapping_add(b))),
        Operator::Sub => elementwise(inputs, shape, |a, b| a - b, |a, b| Some(a.wrapping_sub(b))),
        Operator::Mul => elementwise(inputs, shape, |a, b| a * b, |a, b| Some(a.wrapping_mul(b))),
        Operator::Div => {
            let quotient = |a: i64, b: i64| (b != 0).then(|| a.wrapping_div(b));
            elementwise(inputs, shape, |a, b| a / b, quotient)
        }
        Operator::Min => elementwise(inputs, shape, R::smaller, |a, b| Some(a.min(b))),
        Operator::Max => elementwise(inputs, shape, R::larger, |a, b| Some(a.max(b))),
        Operator::Pow => pow(inputs, result),
        Operator::Equal => compare(inputs, shape, |order| order == Some(Ordering::Equal)),
        Operator::Greater => compare(inputs, shape, |order| order == Some(Ordering::Greater)),
        Operator::GreaterOrEqual => compare(inputs, shape, |order| order.is_some_and(Ordering::is_ge)),
        Operator::Less => compare(inputs, shape, |order| order == Some(Ordering::Less)),
        Operator::LessOrEqual => compare(inputs, shape, |order| order.is_some_and(Ordering::is_le)),
        Operator::And => logical(inputs, shape, |a, b| a && b),
        Operator::Or => logical(inputs, shape, |a, b| a || b),
        Operator::Where => {
            let (condition, x, y) = (inputs.get(0)?, inputs.get(1)?, inputs.get(2)?);
            let chosen = condition.data.booleans()?;
            let of_x = broadcast(&x.tensor_type.shape, shape);
            let of_y = broadcast(&y.tensor_type.shape, shape);
            let picks = broadcast(&condition.tensor_type.shape, shape).zip(of_x.zip(of_y));
            let picks = picks.map(|(condition, (x, y))| if chosen[condition] { (0, x) } else { (1, y) });
            select(&[&x.data, &y.data], shape.count(), picks)
        }
        Operator::MatMul => matmul(inputs.get(0)?, inputs.get(1)?, shape),
        Operator::Gemm { alpha, beta, transpose_a, transpose_b } => {
            gemm(inputs, shape, (real(*alpha), real(*beta)), (*transpose_a, *transpose_b))
        }
        Operator::Conv(window, groups) => conv(inputs, shape, window, groups.0).map(Data::Floats),
        Operator::BatchNormalization { epsilon } => {
            let (scale, bias) = (inputs.floats(1)?, inputs.floats(2)?);
            let (mean, variance) = (inputs.floats(3)?, inputs.floats(4)?);
            let size: usize = shape.dims()[2..].iter().product();
            let normalized = inputs.floats(0)?.iter().enumerate().map(|(index, x)| {
                let channel = index / size % scale.len();
                let deviation = (variance[channel] + real(*epsilon)).sqrt();
                scale[channel] * ((*x - mean[channel]) / deviation) + bias[channel]
            });
            Ok(Data::Floats(collected(shape.count(), normalized)?))
        }
        Operator::LayerNormalization { axis, epsilon } => {
            normalize(inputs, shape, axis_of(shape, *axis)?, |x| {
                let mean = mean(x.iter().copied());
                for x in x.iter_mut() {
                    *x = *x - mean;
                }
                mean_square(x) + real(*epsilon)
            })
        }
        Operator::RmsNormalization { axis, epsilon } => {
            normalize(inputs, shape, axis_of(shape, *axis)?, |x| mean_square(x) + real(*epsilon))
        }
        Operator::Attention(attributes) => attention(inputs, attributes, shape).map(Data::Floats),
        Operator::QuantizeLinear { axis, block_size, output } => {
            let scale_of = scale_index(shape, &inputs.get(1)?.tensor_type.shape, *axis, *block_size)?;
            let (scale, (least, most)) = (inputs.floats(1)?, range(*output));
            let zero_point = zero_point(inputs)?;
            let quantized = inputs.floats(0)?.iter().enumerate().map(|(index, x)| {
                let of = scale_of(index);
                let rounded = (*x / scale[of]).round_ties_even();
                (rounded + R::from_i64(zero_point.map_or(0, |all| all[of]))).to_i64().clamp(least, most)
            });
            Ok(Data::Integers(collected(shape.count(), quantized)?))
        }
        Operator::DequantizeLinear { axis, block_size, .. } => {
            let scale_of = scale_index(shape, &inputs.get(1)?.tensor_type.shape, *axis, *block_size)?;
            let (scale, zero_point) = (inputs.floats(1)?, zero_point(inputs)?);
            let numbers = inputs.get(0)?.data.integers()?.iter().enumerate().map(|(index, x)| {
                let of = scale_of(index);
                R::from_i64(x - zero_point.map_or(0, |all| all[of])) * scale[of]
            });
            Ok(Data::Floats(collected(shape.count(), numbers)?))
        }
        Operator::Identity
        | Operator::Reshape { .. }
        | Operator::Flatten { .. }
        | Operator::Squeeze { .. }
        | Operator::Unsqueeze { .. } => inputs.get(0)?.data.cast(result.element),
        Operator::Expand { .. } => broadcasted(inputs.get(0)?, shape),
        Operator::Transpose { perm } => {
            let x = inputs.get(0)?;
            let strides = x.tensor_type.shape.strides();
            let mut permuted = [0; MAX_RANK];
            for (stride, axis) in permuted.iter_mut().zip(perm) {
                *stride = strides[*axis];
            }
            pick(x, shape.count(), indices(shape.dims()).map(|index| offset(&index, &permuted)))
        }
        Operator::Concat { axis } => concat(inputs, shape, axis_of(shape, *axis)?),
        Operator::Split { .. } => Err(Error::graph("it has several results".into())),
        Operator::Slice { .. } => {
            let x = inputs.get(0)?;
            let strides = x.tensor_type.shape.strides();
            let slices = operator.slices(&x.tensor_type.shape).map_err(Error::graph)?;
            let picks = indices(shape.dims()).map(|mut index| {
                for (axis, first, _, step) in &slices {
                    index[*axis] = stepped(*first, index[*axis], *step);
                }
                offset(&index, &strides)
            });
            pick(x, shape.count(), picks)
        }
        Operator::Pad { pads } => pad(inputs, shape, pads),
        Operator::Trilu { upper, k } => {
            let x = inputs.get(0)?;
            let [.., rows, cols] = *shape.dims() else {
                return Err(Error::graph("it takes matrices".into()));
            };
            let signed = |index: usize| i64::try_from(index).unwrap_or(i64::MAX);
            let picks = (0..shape.count()).map(|index| {
                let diagonal = signed(index % cols) - signed(index / cols % rows);
                let stays = if *upper { diagonal >= *k } else { diagonal <= *k };
                if stays { (0, index) } else { (1, 0) }
            });
            select(&[&x.data, &Data::zero(result.element)], shape.count(), picks)
        }
        Operator::Gather { axis } => gather(inputs.get(0)?, inputs.get(1)?, shape, *axis),
        Operator::ReduceSum(reduce) => {
            reduction(inputs, reduce, &|x| x.fold(R::ZERO, |sum, x| sum + x), &|x| {
                x.fold(0, i64::wrapping_add)
            })
        }
        Operator::ReduceMean(reduce) => reduction(inputs, reduce, &|x| mean(x), &|_| 0),
        Operator::ReduceMax(reduce) => {
            reduction(inputs, reduce, &|x| x.fold(R::MINUS_INFINITY, R::larger), &|x| {
                x.fold(range(result.element).0, i64::max)
            })
        }
        Operator::ReduceL2(reduce) => {
            reduction(inputs, reduce, &|x| x.fold(R::ZERO, |sum, x| sum + x * x).sqrt(), &|_| 0)
        }
        Operator::MaxPool(window, kernel) => {
            pool(inputs, shape, window, kernel, |elements, _| elements.fold(R::MINUS_INFINITY, R::larger))
        }
        Operator::AveragePool { window, kernel, count_include_pad } => {
            pool(inputs, shape, window, kernel, |elements, with_padding| {
                let (count, sum) = elements.fold((0, R::ZERO), |(count, sum), x| (count + 1, sum + x));
                sum / R::from_count(if *count_include_pad { with_padding } else { count })
            })
        }
        Operator::GlobalAveragePool => {
            let spatial = (2..shape.rank()).filter_map(|axis| i64::try_from(axis).ok()).collect();
            let reduce = Reduce { axes: Some(spatial), keepdims: true };
            reduction(inputs, &reduce, &|x| mean(x), &|_| 0)
        }
    }
}

fn axis_of(shape: &Shape, axis: i64) -> Result<usize> {
    shape.axis(axis).map_err(Error::graph)
}

/// The indices of an array of these dimensions, in the order of its elements.
fn indices(dims: &[usize]) -> impl Iterator<Item = Index> {
    let mut next = (!dims.contains(&0)).then_some([0; MAX_RANK]);
    std::iter::from_fn(move || {
        let current = next?;
        let mut index = current;
        let advanced = (0..dims.len()).rev().any(|axis| {
            index[axis] = (index[axis] + 1) % dims[axis];
            index[axis] > 0
        });
        next = advanced.then_some(index);
        Some(current)
    })
}

fn offset(index: &Index, strides: &Index) -> usize {
    index.iter().zip(strides).map(|(index, stride)| index * stride).sum()
}

/// Strides by which an array is read as if it had the dimensions that it is broadcast to.
fn broadcast_strides(from: &Shape, to: &Shape) -> Index {
    let (strides, mut broadcast) = (from.strides(), [0; MAX_RANK]);
    let added = to.rank().saturating_sub(from.rank());
    for (axis, _) in from.dims().iter().enumerate().filter(|(_, dim)| **dim != 1) {
        broadcast[added + axis] = strides[axis];
    }
    broadcast
}

/// For each element of the dimensions that an array is broadcast to, the offset of its own element.
pub(crate) fn broadcast(from: &Shape, to: &Shape) -> impl Iterator<Item = usize> {
    let strides = broadcast_strides(from, to);
    indices(to.dims()).map(move |index| offset(&index, &strides))
}

fn broadcasted<R: Real>(x: &Values<R>, to: &Shape) -> Result<Data<R>> {
    pick(x, to.count(), broadcast(&x.tensor_type.shape, to))
}

/// The elements at some offsets.
fn pick<R: Real>(x: &Values<R>, count: usize, offsets: impl Iterator<Item = usize>) -> Result<Data<R>> {
    select(&[&x.data], count, offsets.map(|offset| (0, offset)))
}

/// Elements of several sources of one type, each by the source's index and its offset there.
fn select<R: Real>(
    sources: &[&Data<R>],
    count: usize,
    picks: impl Iterator<Item = (usize, usize)>,
) -> Result<Data<R>> {
    fn of<'a, R, T: Copy + 'a>(
        sources: &[&'a Data<R>],
        elements: impl Fn(&'a Data<R>) -> Result<&'a [T]>,
        count: usize,
        picks: impl Iterator<Item = (usize, usize)>,
    ) -> Result<Vec<T>> {
        let sources: Vec<&[T]> = sources.iter().map(|source| elements(source)).collect::<Result<_>>()?;
        collected(count, picks.map(|(source, offset)| sources[source][offset]))
    }
    Ok(match sources.first() {
        Some(Data::Booleans(_)) => Data::Booleans(of(sources, Data::booleans, count, picks)?),
        Some(Data::Integers(_)) => Data::Integers(of(sources, Data::integers, count, picks)?),
        _ => Data::Floats(of(sources, Data::floats, count, picks)?),
    })
}

/// All inputs, broadcast, from the first to the last; `None` is for a division of integers by 0.
fn elementwise<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    float: impl Fn(R, R) -> R,
    integer: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Data<R>> {
    let all = inputs.all()?;
    let Some((first, others)) = all.split_first() else {
        return Err(Error::graph("it takes an input".into()));
    };
    let mut result = broadcasted(first, shape)?;
    for other in others {
        let offsets = broadcast(&other.tensor_type.shape, shape);
        match &mut result {
            Data::Integers(result) => {
                let other = other.data.integers()?;
                for (a, offset) in result.iter_mut().zip(offsets) {
                    *a = integer(*a, other[offset]).ok_or_else(division_by_zero)?;
                }
            }
            Data::Floats(result) => {
                let other = other.data.floats()?;
                for (a, offset) in result.iter_mut().zip(offsets) {
                    *a = float(*a, other[offset]);
                }
            }
            Data::Booleans(_) => return Err(Error::graph("it takes numbers".into())),
        }
    }
    Ok(result)
}

fn division_by_zero() -> Error {
    Error::graph("a division of integers by 0".into())
}

/// A function of the elements of two arrays, broadcast to each other.
fn paired<T: Copy, U>(
    (a, b): (&[T], &[T]),
    inputs: (&Shape, &Shape),
    shape: &Shape,
    function: impl Fn(T, T) -> Result<U>,
) -> Result<Vec<U>> {
    let offsets = broadcast(inputs.0, shape).zip(broadcast(inputs.1, shape));
    try_collected(shape.count(), offsets.map(|(of_a, of_b)| function(a[of_a], b[of_b])))
}

fn compare<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    holds: impl Fn(Option<Ordering>) -> bool,
) -> Result<Data<R>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    let shapes = (&a.tensor_type.shape, &b.tensor_type.shape);
    Ok(Data::Booleans(match &a.data {
        Data::Floats(x) => paired((x, b.data.floats()?), shapes, shape, |a, b| Ok(holds(a.partial_cmp(&b))))?,
        Data::Integers(x) => {
            paired((x, b.data.integers()?), shapes, shape, |a, b| Ok(holds(Some(a.cmp(&b)))))?
        }
        Data::Booleans(x) => {
            paired((x, b.data.booleans()?), shapes, shape, |a, b| Ok(holds(Some(a.cmp(&b)))))?
        }
    }))
}

fn logical<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    function: impl Fn(bool, bool) -> bool,
) -> Result<Data<R>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    let shapes = (&a.tensor_type.shape, &b.tensor_type.shape);
    let operands = (a.data.booleans()?, b.data.booleans()?);
    Ok(Data::Booleans(paired(operands, shapes, shape, |a, b| Ok(function(a, b)))?))
}

/// Of two integers in integers, else in floating-point numbers.
fn pow<R: Real>(inputs: &Inputs<'_, R>, result: TensorType) -> Result<Data<R>> {
    let (a, b) = (inputs.get(0)?, inputs.get(1)?);
    let shapes = (&a.tensor_type.shape, &b.tensor_type.shape);
    if let (Data::Integers(a), Data::Integers(b)) = (&a.data, &b.data) {
        let power = |a, b| integer_pow(a, b).ok_or_else(division_by_zero);
        return Ok(Data::Integers(paired((a, b), shapes, &result.shape, power)?));
    }
    let (a, b) = (a.data.cast(ElementType::F64)?, b.data.cast(ElementType::F64)?);
    let powers = paired((a.floats()?, b.floats()?), shapes, &result.shape, |a, b| Ok(a.pow(b)))?;
    Data::Floats(powers).cast(result.element)
}

/// Wrapping; of a negative exponent cut off, and `None` for 0.
fn integer_pow(base: i64, exponent: i64) -> Option<i64> {
    if exponent < 0 {
        return match base {
            0 => None,
            1 => Some(1),
            -1 => Some(if exponent % 2 == 0 { 1 } else { -1 }),
            _ => Some(0),
        };
    }
    let (mut power, mut square, mut rest) = (1i64, base, exponent);
    while rest > 0 {
        if rest % 2 == 1 {
            power = power.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        rest /= 2;
    }
    Some(power)
}

fn clip<R: Real>(inputs: &Inputs<'_, R>, shape: &Shape) -> Result<Data<R>> {
    let mut result =
        Values { tensor_type: inputs.get(0)?.tensor_type, data: broadcasted(inputs.get(0)?, shape)? };
    if let Some(min) = inputs.optional(1) {
        let pair = [Some(&result), Some(min)];
        result.data = elementwise(&Inputs(&pair), shape, R::larger, |a, b| Some(a.max(b)))?;
    }
    if let Some(max) = inputs.optional(2) {
        let pair = [Some(&result), Some(max)];
        result.data = elementwise(&Inputs(&pair), shape, R::smaller, |a, b| Some(a.min(b)))?;
    }
    Ok(result.data)
}

fn relu<R: Real>(x: R) -> R {
    if x < R::ZERO { R::ZERO } else { x }
}

fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// By erfc, since 1 + erf cancels below 0; 0 is the limit below.
fn gelu<R: Real>(x: R) -> R {
    if x == R::MINUS_INFINITY {
        return R::ZERO;
    }
    let half = R::from_f64(0.5);
    half * x * (-x * R::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erfc()
}

/// By the logistic function, which is (1 + tanh(t)) / 2 of 2 t, since the sum cancels below 0; 0 is the limit below.
fn gelu_tanh<R: Real>(x: R) -> R {
    if x == R::MINUS_INFINITY {
        return R::ZERO;
    }
    let factor = R::from_f64((8.0 / std::f64::consts::PI).sqrt());
    x * sigmoid(factor * (x + R::from_f64(0.044_715) * x * x * x))
}

fn unit_interval<R: Real>(x: R) -> R {
    x.smaller(R::ONE).larger(R::ZERO)
}

/// NaN for none.
fn mean<R: Real>(elements: impl Iterator<Item = R>) -> R {
    let (count, sum) = elements.fold((0, R::ZERO), |(count, sum), x| (count + 1, sum + x));
    sum / R::from_count(count)
}

fn mean_square<R: Real>(elements: &[R]) -> R {
    mean(elements.iter().map(|x| *x * *x))
}

/// The lanes along some axes: the offset of each one's first element, and from there those of its elements.
fn lanes(shape: &Shape, axes: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
    let strides = shape.strides();
    let offsets = |is_in: &dyn Fn(usize) -> bool| {
        let dims = shape.dims().iter().enumerate().map(|(axis, dim)| if is_in(axis) { *dim } else { 1 });
        let dims: Vec<_> = dims.collect();
        collected(dims.iter().product(), indices(&dims).map(|index| offset(&index, &strides)))
    };
    Ok((offsets(&|axis| !axes.contains(&axis))?, offsets(&|axis| axes.contains(&axis))?))
}

/// A function of each lane along the axes that go.
fn reduction<R: Real>(
    inputs: &Inputs<'_, R>,
    reduce: &Reduce,
    float: &dyn Fn(&mut dyn Iterator<Item = R>) -> R,
    integer: &dyn Fn(&mut dyn Iterator<Item = i64>) -> i64,
) -> Result<Data<R>> {
    fn of<T: Copy>(
        x: &[T],
        (firsts, lane): &(Vec<usize>, Vec<usize>),
        function: &dyn Fn(&mut dyn Iterator<Item = T>) -> T,
    ) -> Result<Vec<T>> {
        mapped(firsts, |first| function(&mut lane.iter().map(|along| x[first + along])))
    }
    let x = inputs.get(0)?;
    let shape = &x.tensor_type.shape;
    let lanes = lanes(shape, &reduce.axes_of(shape).map_err(Error::graph)?)?;
    Ok(match &x.data {
        Data::Integers(x) => Data::Integers(of(x, &lanes, integer)?),
        other => Data::Floats(of(other.floats()?, &lanes, float)?),
    })
}

/// NaN where all are minus infinity.
fn softmax<R: Real>(lane: &mut [R]) {
    let largest = lane.iter().copied().fold(R::MINUS_INFINITY, R::larger);
    for x in lane.iter_mut() {
        *x = (*x - largest).exp();
    }
    let sum = lane.iter().fold(R::ZERO, |sum, x| sum + *x);
    for x in lane.iter_mut() {
        *x = *x / sum;
    }
}

fn softmax_along<R: Real>(x: &[R], shape: &Shape, axis: usize) -> Result<Vec<R>> {
    let (firsts, offsets) = lanes(shape, &[axis])?;
    let mut result = mapped(x, |x| x)?;
    let mut lane = filled(offsets.len(), R::ZERO)?;
    for first in firsts {
        for (x, along) in lane.iter_mut().zip(&offsets) {
            *x = result[first + along];
        }
        softmax(&mut lane);
        for (x, along) in lane.iter().zip(&offsets) {
            result[first + along] = *x;
        }
    }
    Ok(result)
}

/// Scale x / sqrt(the moment of x) + bias over the dimensions from an axis on. The moment may shift x.
fn normalize<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    axis: usize,
    moment: impl Fn(&mut [R]) -> R,
) -> Result<Data<R>> {
    let mut result = mapped(inputs.floats(0)?, |x| x)?;
    let size: usize = shape.dims()[axis..].iter().product();
    for x in result.chunks_mut(size.max(1)) {
        let deviation = moment(x).sqrt();
        for x in x.iter_mut() {
            *x = *x / deviation;
        }
    }
    let scale = inputs.floats(1)?;
    for (x, of) in result.iter_mut().zip(broadcast(&inputs.get(1)?.tensor_type.shape, shape)) {
        *x = *x * scale[of];
    }
    if let Some(bias) = inputs.optional(2) {
        let bias_of = broadcast(&bias.tensor_type.shape, shape);
        let bias = bias.data.floats()?;
        for (x, of) in result.iter_mut().zip(bias_of) {
            *x = *x + bias[of];
        }
    }
    Ok(Data::Floats(result))
}

/// Adds the product of m x k and k x n to m x n. Each sum is in the order of k.
fn add_product<T: Copy>(
    c: &mut [T],
    a: &[T],
    b: &[T],
    [m, n, k]: [usize; 3],
    add_product_of: impl Fn(T, T, T) -> T,
) {
    for row in 0..m {
        let c = &mut c[row * n..(row + 1) * n];
        for along in 0..k {
            let x = a[row * k + along];
            for (c, y) in c.iter_mut().zip(&b[along * n..(along + 1) * n]) {
                *c = add_product_of(*c, x, *y);
            }
        }
    }
}

fn add_real_product<R: Real>(sum: R, a: R, b: R) -> R {
    sum + a * b
}

/// The products of a batch: each item's number in the result, in a and in b.
fn products<T: Copy>(
    mut c: Vec<T>,
    (a, b): (&[T], &[T]),
    [m, n, k]: [usize; 3],
    items: impl Iterator<Item = (usize, (usize, usize))>,
    add_product_of: impl Fn(T, T, T) -> T + Copy,
) -> Vec<T> {
    for (item, (of_a, of_b)) in items {
        let c = &mut c[item * m * n..(item + 1) * m * n];
        let (a, b) = (&a[of_a * m * k..], &b[of_b * k * n..]);
        add_product(c, a, b, [m, n, k], add_product_of);
    }
    c
}

fn matmul<R: Real>(a: &Values<R>, b: &Values<R>, shape: &Shape) -> Result<Data<R>> {
    let (a_dims, b_dims) = (a.tensor_type.shape.dims(), b.tensor_type.shape.dims());
    // A row on the left, a column on the right.
    let (m, k, n) = match (a_dims, b_dims) {
        ([k], [_]) => (1, *k, 1),
        ([k], [.., n]) => (1, *k, *n),
        ([.., m, k], [_]) => (*m, *k, 1),
        ([.., m, k], [.., n]) => (*m, *k, *n),
        _ => return Err(Error::graph("an operand has no dimensions".into())),
    };
    let batch = |dims: &[usize]| Shape::of(&dims[..dims.len().saturating_sub(2)]).map_err(Error::graph);
    let (a_batch, b_batch) = (batch(a_dims)?, batch(b_dims)?);
    let items = a_batch.broadcast(&b_batch).map_err(Error::graph)?;
    let items = broadcast(&a_batch, &items).zip(broadcast(&b_batch, &items)).enumerate();
    let (count, sizes) = (shape.count(), [m, n, k]);
    Ok(match (&a.data, &b.data) {
        (Data::Integers(a), Data::Integers(b)) => {
            let add_product_of = |sum: i64, a: i64, b: i64| sum.wrapping_add(a.wrapping_mul(b));
            Data::Integers(products(filled(count, 0)?, (a, b), sizes, items, add_product_of))
        }
        (a, b) => {
            let operands = (a.floats()?, b.floats()?);
            Data::Floats(products(filled(count, R::ZERO)?, operands, sizes, items, add_real_product))
        }
    })
}

/// A C with a factor of 0 is not read, as by ONNX's reference.
fn gemm<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    (alpha, beta): (R, R),
    (transpose_a, transpose_b): (bool, bool),
) -> Result<Data<R>> {
    let as_stored = |x: &Values<R>, transpose: bool| -> Result<Vec<R>> {
        let elements = x.data.floats()?;
        match *x.tensor_type.shape.dims() {
            [rows, cols] if transpose => {
                let order = (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col));
                collected(elements.len(), order.map(|offset| elements[offset]))
            }
            _ => mapped(elements, |x| x),
        }
    };
    let (a, b) = (as_stored(inputs.get(0)?, transpose_a)?, as_stored(inputs.get(1)?, transpose_b)?);
    let [m, n] = *shape.dims() else { return Err(Error::graph("it takes matrices".into())) };
    let mut result = filled(shape.count(), R::ZERO)?;
    add_product(&mut result, &a, &b, [m, n, a.len() / m], add_real_product);
    for x in &mut result {
        *x = alpha * *x;
    }
    if let Some(c) = inputs.optional(2).filter(|_| beta != R::ZERO) {
        let c_of = broadcast(&c.tensor_type.shape, shape);
        let c = c.data.floats()?;
        for (x, of) in result.iter_mut().zip(c_of) {
            *x = *x + beta * c[of];
        }
    }
    Ok(Data::Floats(result))
}

/// What of a window lies on the image: for each element its offset in the kernel and in the image.
fn window_elements(axes: &[WindowAxis], output: &Index) -> Result<Vec<(usize, usize)>> {
    let dims = |of: fn(&WindowAxis) -> usize| Shape::of(&axes.iter().map(of).collect::<Vec<_>>());
    let kernel_strides = dims(|axis| axis.kernel).map_err(Error::graph)?.strides();
    let image_strides = dims(|axis| axis.input).map_err(Error::graph)?.strides();
    let (mut firsts, mut counts) = ([0; MAX_RANK], vec![0; axes.len()]);
    for (index, axis) in axes.iter().enumerate() {
        let start = output[index] * axis.stride;
        let first = axis.pad_before.saturating_sub(start).div_ceil(axis.dilation);
        let end = elements_before(axis, start, axis.pad_before + axis.input);
        (firsts[index], counts[index]) = (first, end.saturating_sub(first));
    }
    let elements = indices(&counts).map(|index| {
        let (mut of_kernel, mut of_image) = (0, 0);
        for (number, axis) in axes.iter().enumerate() {
            let along = firsts[number] + index[number];
            let position = output[number] * axis.stride + along * axis.dilation - axis.pad_before;
            of_kernel += along * kernel_strides[number];
            of_image += position * image_strides[number];
        }
        (of_kernel, of_image)
    });
    collected(counts.iter().product(), elements)
}

/// How many elements of a window that starts at `start` lie before `end`, both counted from where padding begins.
fn elements_before(axis: &WindowAxis, start: usize, end: usize) -> usize {
    end.saturating_sub(start).div_ceil(axis.dilation).min(axis.kernel)
}

fn conv<R: Real>(inputs: &Inputs<'_, R>, shape: &Shape, window: &Window, groups: usize) -> Result<Vec<R>> {
    let (x, w) = (inputs.floats(0)?, inputs.floats(1)?);
    let bias = inputs.optional(2).map(|bias| bias.data.floats()).transpose()?;
    let ([items, channels, spatial @ ..], [outputs, channels_of_group, kernel @ ..]) =
        (inputs.get(0)?.tensor_type.shape.dims(), inputs.get(1)?.tensor_type.shape.dims())
    else {
        return Err(Error::graph("it takes a batch of channels and a kernel".into()));
    };
    let axes = window.axes(spatial, kernel, false).map_err(Error::graph)?;
    let sizes = |dims: &[usize]| dims.iter().product::<usize>();
    let (image, kernel, positions) = (sizes(spatial), sizes(kernel), sizes(&shape.dims()[2..]));
    let mut result = filled(shape.count(), R::ZERO)?;
    for (position, index) in indices(&shape.dims()[2..]).enumerate() {
        let elements = window_elements(&axes, &index)?;
        for (item, output) in (0..*items).flat_map(|item| (0..*outputs).map(move |output| (item, output))) {
            let group = output / (outputs / groups);
            let mut sum = R::ZERO;
            for channel in 0..*channels_of_group {
                let x = &x[(item * channels + group * channels_of_group + channel) * image..];
                let w = &w[(output * channels_of_group + channel) * kernel..];
                for (of_kernel, of_image) in &elements {
                    sum = sum + x[*of_image] * w[*of_kernel];
                }
            }
            if let Some(bias) = bias {
                sum = sum + bias[output];
            }
            result[(item * outputs + output) * positions + position] = sum;
        }
    }
    Ok(result)
}

/// A function of what of each window lies on the image, and of the number of those that lie there or on padding.
fn pool<R: Real>(
    inputs: &Inputs<'_, R>,
    shape: &Shape,
    window: &Window,
    kernel: &PoolKernel,
    function: impl Fn(&mut dyn Iterator<Item = R>, usize) -> R,
) -> Result<Data<R>> {
    let x = inputs.floats(0)?;
    let [_, _, spatial @ ..] = inputs.get(0)?.tensor_type.shape.dims() else {
        return Err(Error::graph("it takes a batch of channels".into()));
    };
    let axes = window.axes(spatial, &kernel.shape, kernel.ceil_mode).map_err(Error::graph)?;
    let (images, spatial_result) = shape.dims().split_at(2);
    let image: usize = spatial.iter().product();
    let positions: usize = spatial_result.iter().product();
    let mut result = filled(shape.count(), R::ZERO)?;
    for (position, index) in indices(spatial_result).enumerate() {
        let elements = window_elements(&axes, &index)?;
        let with_padding = axes.iter().enumerate().map(|(number, axis)| {
            let padded = axis.pad_before + axis.input + axis.pad_after;
            elements_before(axis, index[number] * axis.stride, padded)
        });
        let with_padding = with_padding.product();
        for item in 0..images.iter().product() {
            let x = &x[item * image..];
            result[item * positions + position] =
                function(&mut elements.iter().map(|(_, of_image)| x[*of_image]), with_padding);
        }
    }
    Ok(Data::Floats(result))
}

fn attention<R: Real>(inputs: &Inputs<'_, R>, attributes: &Attention, shape: &Shape) -> Result<Vec<R>> {
    let (q, k, v) = (inputs.floats(0)?, inputs.floats(1)?, inputs.floats(2)?);
    let shape_of = |index| inputs.get(index).map(|input| &input.tensor_type.shape);
    let sizes = attributes.sizes(shape_of(0)?, shape_of(1)?, shape_of(2)?).map_err(Error::graph)?;
    let AttentionSizes { batch, q_heads, kv_heads, queries, keys, qk_size, v_size } = sizes;
    let scale = match attributes.scale {
        Some(scale) => R::from_f64(scale.into()),
        None => R::ONE / R::from_count(qk_size).sqrt(),
    };
    // Where the vector of a head and a place in a sequence starts.
    let start = |item: usize, (head, heads): (usize, usize), (place, places): (usize, usize), size: usize| {
        match attributes.heads {
            None => ((item * heads + head) * places + place) * size,
            Some(_) => ((item * places + place) * heads + head) * size,
        }
    };
    let scores_shape = Shape::of(&[batch, q_heads, queries, keys]).map_err(Error::graph)?;
    let mask = inputs.optional(3);
    let mask_strides =
        mask.map_or([0; MAX_RANK], |mask| broadcast_strides(&mask.tensor_type.shape, &scores_shape));
    let mask_at = |offset: usize| match mask.map(|mask| &mask.data) {
        Some(Data::Booleans(seen)) if seen[offset] => R::ZERO,
        Some(Data::Booleans(_)) => R::MINUS_INFINITY,
        Some(Data::Floats(mask)) => mask[offset],
        _ => R::ZERO,
    };
    let mut result = filled(shape.count(), R::ZERO)?;
    let mut scores = filled(keys, R::ZERO)?;
    for index in indices(&[batch, q_heads, queries]) {
        let [item, head, query, ..] = index;
        let kv_head = head / (q_heads / kv_heads);
        let q = &q[start(item, (head, q_heads), (query, queries), qk_size)..][..qk_size];
        for (key, score) in scores.iter_mut().enumerate() {
            let k = &k[start(item, (kv_head, kv_heads), (key, keys), qk_size)..][..qk_size];
            let product = q.iter().zip(k).fold(R::ZERO, |sum, (q, k)| sum + *q * *k);
            let mut of_mask = index;
            of_mask[3] = key;
            *score = product * scale + mask_at(offset(&of_mask, &mask_strides));
            if attributes.is_causal && key > query {
                *score = *score + R::MINUS_INFINITY;
            }
        }
        softmax(&mut scores);
        let result = &mut result[start(item, (head, q_heads), (query, queries), v_size)..][..v_size];
        for (key, weight) in scores.iter().enumerate() {
            let v = &v[start(item, (kv_head, kv_heads), (key, keys), v_size)..][..v_size];
            for (sum, v) in result.iter_mut().zip(v) {
                *sum = *sum + *weight * *v;
            }
        }
    }
    Ok(result)
}

/// Which scale an element has: the only one, that of its index along an axis, or that of its block.
pub(crate) fn scale_index(
    x: &Shape,
    scale: &Shape,
    axis: i64,
    block_size: usize,
) -> Result<impl Fn(usize) -> usize + use<>> {
    let is_single = block_size == 0 && scale.count() == 1;
    let axis = if is_single { x.rank() } else { axis_of(x, axis)? };
    let dim = x.dims().get(axis).copied().unwrap_or(1);
    let inner: usize = x.dims().iter().skip(axis + 1).product();
    let blocks = if block_size > 0 { dim.div_ceil(block_size) } else { 0 };
    Ok(move |index: usize| {
        let along = index / inner % dim;
        match block_size {
            _ if is_single => 0,
            0 => along,
            _ => (index / (inner * dim) * blocks + along / block_size) * inner + index % inner,
        }
    })
}

fn zero_point<'a, R: Real>(inputs: &Inputs<'a, R>) -> Result<Option<&'a [i64]>> {
    inputs.optional(2).map(|zero_point| zero_point.data.integers()).transpose()
}

fn concat<R: Real>(inputs: &Inputs<'_, R>, shape: &Shape, axis: usize) -> Result<Data<R>> {
    let all = inputs.all()?;
    let sources: Vec<_> = all.iter().map(|input| &input.data).collect();
    // The elements of each input that lie behind one another.
    let runs: Vec<usize> =
        all.iter().map(|input| input.tensor_type.shape.dims()[axis..].iter().product()).collect();
    let outer: usize = shape.dims()[..axis].iter().product();
    let runs = &runs;
    let picks = (0..outer).flat_map(|outer| {
        runs.iter()
            .enumerate()
            .flat_map(move |(source, run)| (outer * run..(outer + 1) * run).map(move |at| (source, at)))
    });
    select(&sources, shape.count(), picks)
}

fn split<R: Real>(x: &Values<R>, axis: i64, results: &[TensorType]) -> Result<Vec<Values<R>>> {
    let axis = axis_of(&x.tensor_type.shape, axis)?;
    let strides = x.tensor_type.shape.strides();
    let mut first = 0;
    let part = |result: &TensorType| {
        let shape = &result.shape;
        let start = first * strides[axis];
        first += shape.dims()[axis];
        let picks = indices(shape.dims()).map(|index| start + offset(&index, &strides));
        Ok(Values { tensor_type: *result, data: pick(x, shape.count(), picks)? })
    };
    results.iter().map(part).collect()
}

/// The index so many steps from the first one. There are several only where they are in range.
fn stepped(first: usize, steps: usize, step: i64) -> usize {
    let distance = steps * usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    if step < 0 { first - distance } else { first + distance }
}

fn pad<R: Real>(inputs: &Inputs<'_, R>, shape: &Shape, pads: &[i64]) -> Result<Data<R>> {
    let x = inputs.get(0)?;
    let strides = x.tensor_type.shape.strides();
    let zero = Data::zero(x.tensor_type.element);
    let fill = inputs.optional(1).map_or(&zero, |fill| &fill.data);
    let picks = indices(shape.dims()).map(|mut index| {
        for (axis, dim) in x.tensor_type.shape.dims().iter().enumerate() {
            let inside = i64::try_from(index[axis]).ok().and_then(|index| index.checked_sub(pads[axis]));
            match inside.and_then(|inside| usize::try_from(inside).ok()).filter(|inside| inside < dim) {
                Some(inside) => index[axis] = inside,
                None => return (1, 0),
            }
        }
        (0, offset(&index, &strides))
    });
    select(&[&x.data, fill], shape.count(), picks)
}

fn gather<R: Real>(data: &Values<R>, at: &Values<R>, shape: &Shape, axis: i64) -> Result<Data<R>> {
    let of = &data.tensor_type.shape;
    let axis = axis_of(of, axis)?;
    let dim = of.dims()[axis];
    let rows = at.data.integers()?.iter().map(|index| {
        shape::axis_of(*index, dim)
            .ok_or_else(|| Error::graph(format!("index {index} is out of range: axis {axis} of {of}")))
    });
    let rows = try_collected(at.tensor_type.shape.count(), rows)?;
    let inner: usize = of.dims()[axis + 1..].iter().product();
    let outer: usize = of.dims()[..axis].iter().product();
    if shape.count() == 0 {
        return Ok(Data::empty(data.tensor_type.element));
    }
    let rows = &rows;
    let picks = (0..outer).flat_map(|outer| {
        rows.iter().flat_map(move |row| {
            let start = (outer * dim + row) * inner;
            start..start + inner
        })
    });
    pick(data, shape.count(), picks)
}
