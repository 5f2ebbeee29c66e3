//! Elements that an engine may rightly have otherwise: those beyond a threshold that they lie close to, and all that
//! depend on them.

use super::WHAT;
use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::description::NodeInfo;
use crate::graph::interpret::{Data, Values, broadcast, compute};
use crate::graph::operator::{Operator, Reduce};
use crate::graph::shape::{Shape, TensorType};

/// A value, and which of its elements are undetermined: none where there are no marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marked<'a> {
    pub values: &'a Values<f64>,
    pub marks: &'a [bool],
}

impl Marked<'_> {
    fn shape(&self) -> &Shape {
        &self.values.tensor_type.shape
    }

    fn is_marked(&self, index: usize) -> bool {
        self.marks.get(index).copied().unwrap_or(false)
    }

    fn any(&self) -> bool {
        self.marks.contains(&true)
    }

    /// 1 for each element that is undetermined.
    fn as_numbers(&self) -> Result<Values<f64>> {
        numbers(self.shape(), |index| f64::from(u8::from(self.is_marked(index))))
    }
}

fn numbers(shape: &Shape, of: impl Fn(usize) -> f64) -> Result<Values<f64>> {
    let mut data = alloc::with_capacity(shape.count(), WHAT)?;
    data.extend((0..shape.count()).map(of));
    Ok(Values { tensor_type: TensorType::new(ElementType::F64, *shape), data: Data::Floats(data) })
}

/// Which elements of each result depend on undetermined ones: of an elementwise operator those of the same place, of
/// sums and products those whose sums they are in, of a softmax or a norm their lane, of attention all queries of the
/// item whose keys or values they are. Empty where none do.
pub(super) fn dependents(
    node: &NodeInfo,
    inputs: &[Option<Marked<'_>>],
    results: &[TensorType],
) -> Result<Vec<Vec<bool>>> {
    use Operator as Op;
    if !inputs.iter().flatten().any(Marked::any) {
        return Ok(results.iter().map(|_| Vec::new()).collect());
    }
    match &node.operator {
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
        | Op::Trilu { .. }
        | Op::GlobalAveragePool
        | Op::AveragePool { .. }
        | Op::MaxPool(..) => along(&node.operator, node, inputs),
        Op::ReduceSum(reduce) | Op::ReduceMean(reduce) | Op::ReduceMax(reduce) | Op::ReduceL2(reduce) => {
            along(&Op::ReduceMax(reduce.clone()), node, inputs)
        }
        _ => {
            let Some(result) = results.first() else { return Ok(Vec::new()) };
            Ok(vec![of_one(node, inputs, &result.shape)?])
        }
    }
}

/// Marks as numbers through an operator that adds them up or passes them on.
fn along(operator: &Operator, node: &NodeInfo, inputs: &[Option<Marked<'_>>]) -> Result<Vec<Vec<bool>>> {
    let numbers: Vec<_> = inputs
        .iter()
        .map(|input| input.map(|input| input.as_numbers()).transpose())
        .collect::<Result<_>>()?;
    let operands: Vec<_> = numbers.iter().map(Option::as_ref).collect();
    through(operator, node, &operands)
}

fn through(
    operator: &Operator,
    node: &NodeInfo,
    operands: &[Option<&Values<f64>>],
) -> Result<Vec<Vec<bool>>> {
    let node = NodeInfo { operator: operator.clone(), ..node.clone() };
    let marks = |result: Values<f64>| -> Result<Vec<bool>> {
        let numbers = result.data.floats()?;
        let mut marks = alloc::with_capacity(numbers.len(), WHAT)?;
        marks.extend(numbers.iter().map(|x| *x > 0.0));
        Ok(marks)
    };
    compute(&node, operands)?.into_iter().map(marks).collect()
}

/// Adds the marks of an input that is broadcast.
fn add_broadcast(marks: &mut [bool], input: &Marked<'_>, shape: &Shape) {
    if input.any() {
        for (mark, offset) in marks.iter_mut().zip(broadcast(input.shape(), shape)) {
            *mark |= input.is_marked(offset);
        }
    }
}

fn of_one(node: &NodeInfo, inputs: &[Option<Marked<'_>>], shape: &Shape) -> Result<Vec<bool>> {
    use Operator as Op;
    let mut marks = alloc::filled(shape.count(), false, WHAT)?;
    let get = |index: usize| {
        let input = inputs.get(index).copied().flatten();
        input.ok_or_else(|| Error::graph(format!("input {index} is missing")))
    };
    match &node.operator {
        Op::MatMul | Op::Gemm { .. } | Op::Conv(..) => {
            let operator = match node.operator {
                Op::Gemm { transpose_a, transpose_b, .. } => {
                    Op::Gemm { alpha: 1.0, beta: 1.0, transpose_a, transpose_b }
                }
                ref other => other.clone(),
            };
            for (marked, _) in inputs.iter().enumerate().filter(|(_, input)| input.is_some_and(|of| of.any()))
            {
                // Each element of one factor meets the marked ones of the other; addends stand by themselves.
                let operand = |(index, input): (usize, &Option<Marked<'_>>)| match input {
                    Some(input) if index == marked => input.as_numbers().map(Some),
                    Some(input) => {
                        let meets = if index < 2 && marked < 2 { 1.0 } else { 0.0 };
                        numbers(input.shape(), |_| meets).map(Some)
                    }
                    None => Ok(None),
                };
                let operands: Vec<_> = inputs.iter().enumerate().map(operand).collect::<Result<_>>()?;
                let operands: Vec<_> = operands.iter().map(Option::as_ref).collect();
                for (mark, other) in
                    marks.iter_mut().zip(through(&operator, node, &operands)?.into_iter().flatten())
                {
                    *mark |= other;
                }
            }
        }
        Op::Softmax { axis } => add_lanes(&mut marks, node, &get(0)?, shape, vec![*axis])?,
        Op::LayerNormalization { axis, .. } | Op::RmsNormalization { axis, .. } => {
            let axis = shape.axis(*axis).map_err(Error::graph)?;
            let axes = (axis..shape.rank()).filter_map(|axis| i64::try_from(axis).ok()).collect();
            add_lanes(&mut marks, node, &get(0)?, shape, axes)?;
            for input in inputs.iter().skip(1).flatten() {
                add_broadcast(&mut marks, input, shape);
            }
        }
        Op::BatchNormalization { .. } | Op::QuantizeLinear { .. } | Op::DequantizeLinear { .. } => {
            add_broadcast(&mut marks, &get(0)?, shape);
            if inputs.iter().skip(1).flatten().any(Marked::any) {
                marks.fill(true);
            }
        }
        Op::Attention(_) => {
            let items = shape.dims().first().copied().unwrap_or(1).max(1);
            let (of_item, width) = (marks.len() / items, shape.dims().last().copied().unwrap_or(1).max(1));
            let q = get(0)?;
            let q_width = q.shape().dims().last().copied().unwrap_or(1);
            for (row, marks) in marks.chunks_mut(width).enumerate() {
                if (row * q_width..(row + 1) * q_width).any(|index| q.is_marked(index)) {
                    marks.fill(true);
                }
            }
            for input in [get(1)?, get(2)?] {
                let in_item = input.shape().count() / items;
                for (item, marks) in marks.chunks_mut(of_item.max(1)).enumerate() {
                    if (item * in_item..(item + 1) * in_item).any(|index| input.is_marked(index)) {
                        marks.fill(true);
                    }
                }
            }
            if inputs.get(3).copied().flatten().is_some_and(|mask| mask.any()) {
                marks.fill(true);
            }
        }
        Op::Gather { axis } => {
            let (data, at) = (get(0)?, get(1)?);
            let moved = [Some(data.as_numbers()?), None];
            let moved = [moved[0].as_ref(), Some(at.values)];
            marks = through(&node.operator, node, &moved)?.into_iter().flatten().collect();
            let axis = data.shape().axis(*axis).map_err(Error::graph)?;
            let inner: usize = data.shape().dims()[axis + 1..].iter().product();
            let count = at.shape().count().max(1);
            for (index, mark) in marks.iter_mut().enumerate() {
                *mark |= at.is_marked(index / inner.max(1) % count);
            }
        }
        Op::Where => {
            let (condition, x, y) = (get(0)?, get(1)?, get(2)?);
            let chosen = condition.values.data.booleans()?;
            let of_values = broadcast(x.shape(), shape).zip(broadcast(y.shape(), shape));
            let offsets = broadcast(condition.shape(), shape).zip(of_values);
            for (mark, (of_condition, (of_x, of_y))) in marks.iter_mut().zip(offsets) {
                let of_value = if chosen[of_condition] { x.is_marked(of_x) } else { y.is_marked(of_y) };
                *mark = condition.is_marked(of_condition) || of_value;
            }
        }
        // All others are elementwise.
        _ => {
            for input in inputs.iter().flatten() {
                add_broadcast(&mut marks, input, shape);
            }
        }
    }
    Ok(marks)
}

fn add_lanes(
    marks: &mut [bool],
    node: &NodeInfo,
    x: &Marked<'_>,
    shape: &Shape,
    axes: Vec<i64>,
) -> Result<()> {
    let reduce = Operator::ReduceMax(Reduce { axes: Some(axes), keepdims: true });
    let lanes = along(&reduce, node, &[Some(*x)])?.into_iter().flatten().collect::<Vec<_>>();
    let Operator::ReduceMax(reduce) = &reduce else { return Ok(()) };
    let gone = reduce.axes_of(shape).map_err(Error::graph)?;
    let dims: Vec<_> = shape
        .dims()
        .iter()
        .enumerate()
        .map(|(axis, dim)| if gone.contains(&axis) { 1 } else { *dim })
        .collect();
    let of_lane = Shape::new(&dims)?;
    for (mark, offset) in marks.iter_mut().zip(broadcast(&of_lane, shape)) {
        *mark |= lanes[offset];
    }
    Ok(())
}
