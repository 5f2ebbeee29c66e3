//! How far an engine that computes in f32 may be from the float64 result of a node's inputs.
//!
//! For each operator [`evaluate`] gives the float64 results of an interpretation and a bound for each element. Inputs
//! may have errors of their own: then the bound holds for any inputs within them, and so the bounds of a group of nodes,
//! whose inner values no engine shows, come from those of its nodes, one after the other.
//!
//! u is the unit roundoff of f32, 2^-24, gamma_n = n u / (1 - n u); e stands for errors of the inputs, y for the result.
//! In every sum and product |x| stands for |x| + e where inputs have errors.
//!
//! ```text
//! exact                        0, or what the inputs' errors make of the same function
//! Add Sub Mul                  u |y|; one rounding (Higham, section 2.2)
//! Div                          3 u |y|; the reciprocal may be rounded first
//! Reciprocal Sqrt              4 u |y|; for approximations with a step of Newton's method
//! Exp Log Erf Pow              2^-17 |y|, as Activation::error_f32; of Pow 4 u |b ln a| |y| more, since
//!                              e^(b ln a) rounds its exponent
//! Gelu Sigmoid Tanh            Activation::error_of_any_backend
//! LeakyRelu                    u |y| below 0, else 0
//! HardSigmoid HardSwish        3 roundings of what is clipped, 2 of the product
//! MatMul, Conv, Gemm           gamma_(k + 5) |A||B|; gamma_(k + 6) with Conv's bias; of Gemm up to gamma_(k + 7) of
//!                              |alpha| |A||B| + |beta C|; 4 of the roundings for constants that are scaled before
//!                              (section 3.5 there)
//! ReduceSum; -Mean, pools      gamma_(n + 4) of the sum of |x|; gamma_(n + 5) of their mean
//! ReduceL2                     the square root of a sum with gamma_(n + 1), and gamma_5 |y|
//! Softmax, Attention           a running analysis of the interpreter's formula: scores as products; e^x as Exp;
//!                              sums, quotients and the product with V as above
//! Layer-, RMSNormalization     normalization
//! BatchNormalization           8 u |scale| (|x| + |mean|) / sqrt(variance + epsilon) + 2 u |bias|: it may have become
//!                              a factor and a term
//! QuantizeLinear               0, or the steps to what the quotient becomes within 2 u |x / scale| of itself
//! DequantizeLinear             3 u |scale| (|x| + |zero point|): the zero point may be taken off after the scaling
//! ```
//!
//! The analysis is Higham's running one (*Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3), with
//! bounds of sums that hold in any order (section 4.2).
//!
//! Each operation may flush what is below the smallest normal f32 to 0, which counts once more. A result of f16 or bf16
//! is rounded once more, and flushed below its own smallest normal number. Where numbers on the way may overflow f32,
//! the bound is infinite. Values of f64 may have been rounded to f32.

mod elementwise;
mod lanes;
mod running;

use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::description::NodeInfo;
use crate::graph::interpret::{Data, Values, broadcast, compute, range, scale_index};
use crate::graph::operator::Operator;
use crate::graph::shape::{Shape, TensorType};
use crate::verify::accuracy::magnitude;
use elementwise::Number;
use running::Running;

/// The unit roundoff of f32.
pub(crate) const U: f64 = f32::EPSILON as f64 / 2.0;
/// The smallest normal number of f32.
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// The largest number of f32.
const LARGEST: f64 = f32::MAX as f64;
/// The relative error of functions: what [`crate::Activation::error_f32`] promises of the crate's vector functions.
const FUNCTION: f64 = 1.0 / (1 << 17) as f64;
/// Roundings of a sum or product that its terms and its order do not explain: of constants that were scaled before
/// the run, of the mean's divisor.
const MORE: usize = 4;

const WHAT: &str = "error bounds of a graph";

/// A value in float64, and how far from it an engine's may lie.
#[derive(Debug, Clone)]
pub(crate) struct Estimate {
    pub values: Values<f64>,
    /// For each element; none where all are 0. Of booleans 1 where it may be the other one, of integers the largest
    /// difference.
    pub errors: Vec<f64>,
    /// For each element the size that its parts may have on the way, where it is larger than its own: a product of
    /// integers may be taken before their zero points. None where there are no such parts.
    sizes: Vec<f64>,
}

impl Estimate {
    /// What an engine has exactly; numbers that only f64 has are rounded to f32.
    pub(crate) fn known(values: Values<f64>) -> Result<Self> {
        let errors = match &values.data {
            Data::Floats(x) if values.tensor_type.element == ElementType::F64 => mapped(x, rounding_to_f32)?,
            _ => Vec::new(),
        };
        Ok(Self { values, errors: compact(errors), sizes: Vec::new() })
    }

    pub(crate) fn error(&self, index: usize) -> f64 {
        self.errors.get(index).copied().unwrap_or(0.0)
    }

    /// The element as a number: true is 1.
    pub(crate) fn number(&self, index: usize) -> f64 {
        self.values.number(index)
    }

    fn at(&self, index: usize) -> Number {
        (self.number(index), self.error(index))
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.values.tensor_type.shape
    }

    fn is_exact(&self) -> bool {
        self.errors.is_empty()
    }

    /// Of a value that stays in a group: what may be beyond its type's range on the way is not known at all.
    pub(crate) fn hidden(mut self) -> Result<Self> {
        let element = self.values.tensor_type.element;
        let (least, most) = range(element);
        let count = self.shape().count();
        let mut errors = alloc::with_capacity(count, WHAT)?;
        for index in 0..count {
            let (x, error) = self.at(index);
            #[allow(clippy::cast_precision_loss, reason = "an engine is as good on either side")]
            let inside = match &self.values.data {
                Data::Floats(_) => {
                    !elementwise::may_overflow(x, error)
                        && (!x.is_finite() || x.abs() + error < largest(element))
                }
                Data::Integers(_) => error == 0.0 || x - error >= least as f64 && x + error <= most as f64,
                Data::Booleans(_) => true,
            };
            errors.push(if inside { error } else { f64::INFINITY });
        }
        self.errors = compact(errors);
        Ok(self)
    }

    /// For arithmetic that keeps errors.
    fn running(&self) -> Result<Values<Running>> {
        let data = match &self.values.data {
            Data::Floats(x) => {
                let number = |(index, x): (usize, &f64)| {
                    let size = self.sizes.get(index).copied().unwrap_or(0.0).max(magnitude(*x));
                    Running::with_error(*x, size, self.error(index))
                };
                let mut all = alloc::with_capacity(x.len(), WHAT)?;
                all.extend(x.iter().enumerate().map(number));
                Data::Floats(all)
            }
            Data::Integers(x) => Data::Integers(alloc::copied(x, WHAT)?),
            Data::Booleans(x) => Data::Booleans(alloc::copied(x, WHAT)?),
        };
        Ok(Values { tensor_type: self.values.tensor_type, data })
    }
}

/// The largest finite number of a value of this type: those of f64 may have been rounded to f32.
pub(crate) fn largest(element: ElementType) -> f64 {
    element.max_finite().min(LARGEST)
}

/// An error times a number, 0 where there is none, whatever the number.
fn part(x: f64, error: f64) -> f64 {
    if error == 0.0 { 0.0 } else { x.abs() * error }
}

/// What a number may lose when it is stored, that is off by `error` already.
fn storage(element: ElementType, x: f64, error: f64) -> f64 {
    match element {
        ElementType::F16 | ElementType::Bf16 => {
            element.unit_roundoff() * (magnitude(x) + error) + element.min_positive()
        }
        _ => 0.0,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "it is asked whether it rounds")]
fn rounding_to_f32(x: f64) -> f64 {
    if x.is_finite() && f64::from(x as f32) != x { U * x.abs() + TINY } else { 0.0 }
}

fn mapped(elements: &[f64], function: impl Fn(f64) -> f64) -> Result<Vec<f64>> {
    let mut all = alloc::with_capacity(elements.len(), WHAT)?;
    all.extend(elements.iter().map(|x| function(*x)));
    Ok(all)
}

/// Nothing where all are 0. What is no number is not bounded.
fn compact(mut errors: Vec<f64>) -> Vec<f64> {
    for error in &mut errors {
        if error.is_nan() {
            *error = f64::INFINITY;
        }
    }
    if errors.iter().all(|error| *error == 0.0) { Vec::new() } else { errors }
}

struct Inputs<'a>(&'a [Option<&'a Estimate>]);

impl<'a> Inputs<'a> {
    fn optional(&self, index: usize) -> Option<&'a Estimate> {
        self.0.get(index).copied().flatten()
    }

    fn get(&self, index: usize) -> Result<&'a Estimate> {
        self.optional(index).ok_or_else(|| Error::graph(format!("input {index} is missing")))
    }

    fn given(&self) -> impl Iterator<Item = &'a Estimate> {
        self.0.iter().copied().flatten()
    }

    fn are_exact(&self) -> bool {
        self.given().all(Estimate::is_exact)
    }
}

/// The float64 results of a node, and how far from them an engine's may lie that has inputs within their errors.
///
/// # Errors
/// As [`compute`]; [`Error::Graph`] with the node's name where inputs have errors and there is no rule for what they
/// make of its result: of indices, of booleans that hide scores, of integers that are divided or multiplied as
/// matrices.
pub(crate) fn evaluate(node: &NodeInfo, inputs: &[Option<&Estimate>]) -> Result<Vec<Estimate>> {
    use Operator as Op;
    let inputs = Inputs(inputs);
    let values: Vec<_> = inputs.0.iter().map(|input| input.map(|input| &input.values)).collect();
    let is_arithmetic_of_floats = matches!(
        node.operator,
        Op::MatMul
            | Op::Gemm { .. }
            | Op::Conv(..)
            | Op::Softmax { .. }
            | Op::Attention(_)
            | Op::ReduceSum(_)
            | Op::ReduceMean(_)
            | Op::ReduceL2(_)
            | Op::ReduceMax(_)
            | Op::MaxPool(..)
            | Op::AveragePool { .. }
            | Op::GlobalAveragePool
    ) && matches!(inputs.get(0)?.values.data, Data::Floats(_));
    if is_arithmetic_of_floats {
        return run(node, &inputs);
    }
    let results = compute(node, &values)?;
    let moved = match node.operator {
        Op::Identity
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
        | Op::Trilu { .. } => inputs.0.len(),
        Op::Gather { .. } => 1,
        _ => 0,
    };
    if moved > 0 {
        if inputs.given().skip(moved).any(|index| !index.is_exact()) {
            return Err(no_rule(node, "indices"));
        }
        return move_along(node, &inputs, moved, results);
    }
    let mut all = Vec::new();
    for values in results {
        let errors = errors_of(node, &inputs, &values)?;
        let mut sizes = Vec::new();
        if let Op::DequantizeLinear { axis, block_size, .. } = node.operator
            && inputs.optional(2).is_some()
        {
            sizes = dequantized_sizes(&inputs, (axis, block_size), values.tensor_type)?;
        }
        all.push(Estimate { values, errors: compact(errors), sizes });
    }
    Ok(all)
}

fn no_rule(node: &NodeInfo, of: &str) -> Error {
    Error::Graph {
        node: node.name.clone(),
        problem: format!("{}: there is no rule for what errors of {of} make of the result", node.operator),
    }
}

/// The interpreter's own formula, in arithmetic that keeps errors.
fn run(node: &NodeInfo, inputs: &Inputs<'_>) -> Result<Vec<Estimate>> {
    if inputs.given().any(|input| !input.is_exact() && !input.values.tensor_type.element.is_float()) {
        return Err(no_rule(node, "booleans"));
    }
    let running: Vec<_> =
        inputs.0.iter().map(|input| input.map(Estimate::running).transpose()).collect::<Result<_>>()?;
    let running: Vec<_> = running.iter().map(Option::as_ref).collect();
    // What is chosen is as exact as it was.
    let more = if matches!(node.operator, Operator::ReduceMax(_) | Operator::MaxPool(..)) { 0 } else { MORE };
    let mut all = Vec::new();
    for result in compute(node, &running)? {
        let numbers = result.data.floats()?;
        let (mut data, mut errors) =
            (alloc::with_capacity(numbers.len(), WHAT)?, alloc::with_capacity(numbers.len(), WHAT)?);
        for number in numbers {
            data.push(number.x);
            let error = number.bound(more);
            errors.push(if number.x.is_finite() { error } else { part(1.0, number.error) });
        }
        if more == 0 && inputs.are_exact() {
            errors.clear();
        }
        let values = Values { tensor_type: result.tensor_type, data: Data::Floats(data) };
        all.push(Estimate { values, errors: compact(errors), sizes: Vec::new() });
    }
    Ok(all)
}

/// Errors and sizes go where their elements go.
fn move_along(
    node: &NodeInfo,
    inputs: &Inputs<'_>,
    moved: usize,
    results: Vec<Values<f64>>,
) -> Result<Vec<Estimate>> {
    let along = |of: &dyn Fn(&Estimate, usize) -> f64| -> Result<Vec<Vec<f64>>> {
        let mut numbers = Vec::new();
        for input in inputs.0.iter().take(moved).copied() {
            let Some(input) = input else {
                numbers.push(None);
                continue;
            };
            let count = input.shape().count();
            let mut data = alloc::with_capacity(count, WHAT)?;
            data.extend((0..count).map(|index| of(input, index)));
            let tensor_type = TensorType::new(ElementType::F64, *input.shape());
            numbers.push(Some(Values { tensor_type, data: Data::Floats(data) }));
        }
        let rest = inputs.0.iter().skip(moved).map(|input| input.map(|input| &input.values));
        let operands: Vec<_> = numbers.iter().map(Option::as_ref).chain(rest).collect();
        let results = compute(node, &operands)?;
        results.into_iter().map(|result| alloc::copied(result.data.floats()?, WHAT)).collect()
    };
    let of_inputs = || inputs.given().take(moved);
    let nothing = || results.iter().map(|_| Vec::new()).collect();
    let errors = if of_inputs().all(Estimate::is_exact) { nothing() } else { along(&Estimate::error)? };
    let sizes = if of_inputs().all(|input| input.sizes.is_empty()) {
        nothing()
    } else {
        along(&|input, index| {
            input.sizes.get(index).copied().unwrap_or_else(|| magnitude(input.number(index)))
        })?
    };
    let all = results.into_iter().zip(errors.into_iter().zip(sizes));
    let estimate = |(values, (errors, sizes))| Estimate { values, errors: compact(errors), sizes };
    Ok(all.map(estimate).collect())
}

/// The errors of elements that each depend on one element of each input.
fn elementwise(
    inputs: &Inputs<'_>,
    values: &Values<f64>,
    function: impl Fn(&[Number], f64) -> f64,
) -> Result<Vec<f64>> {
    let shape = values.tensor_type.shape;
    let mut offsets: Vec<_> = inputs.given().map(|input| (input, broadcast(input.shape(), &shape))).collect();
    let mut operands = Vec::new();
    let mut errors = alloc::with_capacity(shape.count(), WHAT)?;
    let result = Estimate { values: values.clone(), errors: Vec::new(), sizes: Vec::new() };
    for index in 0..shape.count() {
        operands.clear();
        for (input, offsets) in &mut offsets {
            operands.push(offsets.next().map_or((f64::NAN, 0.0), |offset| input.at(offset)));
        }
        let y = result.number(index);
        errors.push(function(&operands, y));
    }
    Ok(errors)
}

fn most(operands: &[Number]) -> f64 {
    operands.iter().fold(0.0, |most, (_, error)| if *error <= most { most } else { *error })
}

fn errors_of(node: &NodeInfo, inputs: &Inputs<'_>, values: &Values<f64>) -> Result<Vec<f64>> {
    use Operator as Op;
    let operator = &node.operator;
    let is_float = values.tensor_type.element.is_float();
    let first = inputs.get(0)?.values.tensor_type.element;
    let stored = |y: f64, error: f64| error + storage(values.tensor_type.element, y, error);
    match operator {
        // Exact where their inputs are.
        Op::Abs
        | Op::Neg
        | Op::Relu
        | Op::Clip
        | Op::Not
        | Op::Min
        | Op::Max
        | Op::Where
        | Op::And
        | Op::Or
        | Op::Equal
        | Op::Greater
        | Op::GreaterOrEqual
        | Op::Less
        | Op::LessOrEqual
            if inputs.are_exact() =>
        {
            Ok(Vec::new())
        }
        // No errors grow in any of these.
        Op::Abs | Op::Neg | Op::Relu | Op::Clip | Op::Not | Op::Min | Op::Max => {
            elementwise(inputs, values, |operands, _| most(operands))
        }
        Op::And | Op::Or => {
            // What makes the result certain by itself.
            let certain = if matches!(operator, Op::And) { (0.0, 0.0) } else { (1.0, 0.0) };
            elementwise(
                inputs,
                values,
                |operands, _| {
                    if operands.contains(&certain) { 0.0 } else { most(operands) }
                },
            )
        }
        Op::Equal | Op::Greater | Op::GreaterOrEqual | Op::Less | Op::LessOrEqual => {
            elementwise(inputs, values, |operands, _| match operands {
                [a, b] if elementwise::is_open(*a, *b) => 1.0,
                _ => 0.0,
            })
        }
        Op::Where => elementwise(inputs, values, |operands, _| match operands {
            [(_, open), x, y] if *open > 0.0 => {
                let apart = if x.0 == y.0 { 0.0 } else { (x.0 - y.0).abs() };
                apart + x.1.max(y.1)
            }
            [(chosen, _), x, y] => {
                if *chosen == 0.0 {
                    y.1
                } else {
                    x.1
                }
            }
            _ => f64::INFINITY,
        }),
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Pow if is_float => {
            elementwise(inputs, values, |operands, y| match operands {
                [a, b] => elementwise::arithmetic(operator, *a, *b, y)
                    .map_or(f64::INFINITY, |error| stored(y, error)),
                _ => f64::INFINITY,
            })
        }
        Op::Cast { to } => elementwise(inputs, values, |operands, y| match operands {
            [x] => cast_error(first, *to, *x, y),
            _ => f64::INFINITY,
        }),
        Op::LayerNormalization { axis, epsilon } => lanes::normalized(inputs, values, *axis, *epsilon, true),
        Op::RmsNormalization { axis, epsilon } => lanes::normalized(inputs, values, *axis, *epsilon, false),
        Op::BatchNormalization { epsilon } => lanes::batch_normalized(inputs, values, *epsilon),
        Op::QuantizeLinear { axis, block_size, output } => {
            quantized(inputs, (*axis, *block_size), *output, values.tensor_type)
        }
        Op::DequantizeLinear { axis, block_size, .. } => {
            dequantized(inputs, (*axis, *block_size), values.tensor_type)
        }
        // Integers, which are exact, or without a rule.
        _ if !is_float && inputs.are_exact() => Ok(Vec::new()),
        Op::Add | Op::Sub if !is_float => {
            elementwise(inputs, values, |operands, _| operands.iter().map(|(_, error)| error).sum())
        }
        Op::Mul if !is_float => elementwise(inputs, values, |operands, _| match operands {
            [a, b] => part(a.0, b.1) + part(b.0, a.1) + part(a.1, b.1),
            _ => f64::INFINITY,
        }),
        _ if is_float && elementwise::function(operator, (1.0, 0.0), 1.0).is_some() => {
            elementwise(inputs, values, |operands, y| match operands {
                [x] => elementwise::function(operator, *x, y).map_or(f64::INFINITY, |error| stored(y, error)),
                _ => f64::INFINITY,
            })
        }
        _ => Err(no_rule(node, "integers")),
    }
}

fn cast_error(from: ElementType, to: ElementType, (x, error): Number, y: f64) -> f64 {
    let from_float = from.is_float();
    if to.is_float() {
        let rounding = match from {
            _ if !from_float => elementwise::integer_rounding(x.abs() + error),
            ElementType::F64 if to != from => U * (magnitude(x) + error) + TINY,
            _ => 0.0,
        };
        // f64 may be f32 in an engine, and then a cast to it rounds nothing.
        let of_type = if from == to { 0.0 } else { storage(to, x, error + rounding) };
        return error + rounding + of_type;
    }
    if to == ElementType::Bool {
        return f64::from(u8::from(elementwise::is_open((x, error), (0.0, 0.0))));
    }
    if !from_float || error == 0.0 {
        return error;
    }
    steps(x, error, to, y, f64::trunc)
}

/// How far the integers of the numbers within `error` of x lie from y, that of x itself.
fn steps(x: f64, error: f64, to: ElementType, y: f64, integer: impl Fn(f64) -> f64) -> f64 {
    if error == 0.0 || x.is_nan() {
        return 0.0;
    }
    let (least, most) = range(to);
    #[allow(clippy::cast_precision_loss, reason = "what saturates is far from a step")]
    let away = |x: f64| (integer(x).clamp(least as f64, most as f64) - y).abs();
    away(x + error).max(away(x - error))
}

/// Which scale and zero point an element has, with what their errors are.
fn scaled<'a>(
    inputs: &Inputs<'a>,
    shape: &Shape,
    (axis, block_size): (i64, usize),
) -> Result<impl Fn(usize) -> (Number, Number) + use<'a>> {
    let scale = inputs.get(1)?;
    let zero_point = inputs.optional(2);
    let scale_of = scale_index(shape, scale.shape(), axis, block_size)?;
    Ok(move |index| {
        let of = scale_of(index);
        (scale.at(of), zero_point.map_or((0.0, 0.0), |all| all.at(of)))
    })
}

fn quantized(
    inputs: &Inputs<'_>,
    along: (i64, usize),
    output: ElementType,
    of: TensorType,
) -> Result<Vec<f64>> {
    let x = inputs.get(0)?;
    let count = of.shape.count();
    let mut errors = alloc::with_capacity(count, WHAT)?;
    if count == 0 {
        return Ok(errors);
    }
    let scaled = scaled(inputs, &of.shape, along)?;
    let (least, most) = range(output);
    for index in 0..count {
        let (scale, zero_point) = scaled(index);
        let quotient = x.number(index) / scale.0;
        let error = elementwise::quotient_error(x.at(index), scale) + 2.0 * U * magnitude(quotient) + TINY;
        let integer = |x: f64| x.round_ties_even() + zero_point.0;
        #[allow(clippy::cast_precision_loss, reason = "of 8 bits")]
        let y = integer(quotient).clamp(least as f64, most as f64);
        errors.push(steps(quotient, error, output, y, integer) + zero_point.1);
    }
    Ok(errors)
}

/// |scale| (|x| + |zero point|) for each element: what a sum of scaled integers may consist of.
fn dequantized_sizes(inputs: &Inputs<'_>, along: (i64, usize), of: TensorType) -> Result<Vec<f64>> {
    let x = inputs.get(0)?;
    let count = of.shape.count();
    let mut sizes = alloc::with_capacity(count, WHAT)?;
    if count > 0 {
        let scaled = scaled(inputs, &of.shape, along)?;
        sizes.extend((0..count).map(|index| {
            let (scale, zero_point) = scaled(index);
            magnitude(scale.0) * (x.number(index).abs() + zero_point.0.abs())
        }));
    }
    Ok(sizes)
}

fn dequantized(inputs: &Inputs<'_>, along: (i64, usize), of: TensorType) -> Result<Vec<f64>> {
    let x = inputs.get(0)?;
    let sizes = dequantized_sizes(inputs, along, of)?;
    let mut errors = alloc::with_capacity(sizes.len(), WHAT)?;
    if sizes.is_empty() {
        return Ok(errors);
    }
    let scaled = scaled(inputs, &of.shape, along)?;
    for (index, size) in sizes.iter().enumerate() {
        let (scale, zero_point) = scaled(index);
        let (x, of_x) = x.at(index);
        let of_integer = of_x + zero_point.1;
        let of_inputs =
            part(scale.0, of_integer) + part(x - zero_point.0, scale.1) + part(scale.1, of_integer);
        let error = of_inputs + 3.0 * U * (size + of_inputs) + TINY;
        errors.push(error + storage(of.element, scale.0 * (x - zero_point.0), error));
    }
    Ok(errors)
}
