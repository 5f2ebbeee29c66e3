//! Runs with fewer of the leading dimension, where every node is proved independent along it.

use crate::error::{Error, Result};
use crate::graph::description::{Graph, GraphId, NodeInfo};
use crate::graph::infer::axes_of;
use crate::graph::operator::Operator;
use crate::graph::shape::{Shape, TensorType};

/// How a value shrinks with the leading dimension: along `axis`, of which each leading index has `count` elements. What
/// these hold depends on no other leading index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Varying {
    pub axis: usize,
    pub count: usize,
}

/// What a graph with a variable leading dimension knows besides.
#[derive(Debug, Clone)]
pub(crate) struct Leading {
    /// The leading dimension as described.
    pub most: usize,
    /// For each value; `None` for one that has nothing to do with it.
    pub values: Vec<Option<Varying>>,
}

type Proof = std::result::Result<Option<Varying>, String>;

impl Graph {
    /// Lets a run have fewer of the leading dimension of these inputs than described, which is the same for all of
    /// them.
    ///
    /// ```
    /// use ane_matmul::ElementType;
    /// use ane_matmul::graph::GraphBuilder;
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[32, 8])?;
    /// let y = g.softmax(x, -1)?;
    /// let graph = g.finish(&[("y", y)])?.variable_leading(&["x"])?; // up to 32 rows
    /// assert_eq!(graph.with_leading(3)?.outputs().next().expect("y").1.to_string(), "f32[3, 8]");
    ///
    /// let mut g = GraphBuilder::new();
    /// let x = g.input("x", ElementType::F32, &[32, 8])?;
    /// let y = g.named("mixes").softmax(x, 0)?;
    /// let error = g.finish(&[("y", y)])?.variable_leading(&["x"]).unwrap_err();
    /// assert!(error.to_string().contains("node `mixes`: Softmax: it mixes axis 0"));
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Graph`] with the node that mixes what belongs to different leading indices, or is not known not to; for
    /// a name that no input has, inputs without dimensions or with different leading ones, and an output along another
    /// axis than its first.
    pub fn variable_leading(mut self, inputs: &[&str]) -> Result<Self> {
        let mut most = None;
        let mut values = vec![None; self.values.len()];
        for name in inputs {
            let problem = |problem: String| Error::graph(format!("input `{name}`: {problem}"));
            let index = self.inputs.iter().copied().find(|index| self.values[*index].name == **name);
            let index = index.ok_or_else(|| problem("there is none of this name".into()))?;
            let shape = self.values[index].tensor_type.shape;
            let dim = *shape.dims().first().ok_or_else(|| problem("it has no dimensions".into()))?;
            let most = *most.get_or_insert(dim);
            if most != dim {
                return Err(problem(format!("its leading dimension is {dim}, that of another {most}")));
            }
            values[index] = Some(Varying { axis: 0, count: 1 });
        }
        let most = most.ok_or_else(|| Error::graph("no input has a variable leading dimension".into()))?;
        for node in &self.nodes {
            let proofs = self.prove(node, most, &values).map_err(|problem| Error::Graph {
                node: node.name.clone(),
                problem: format!("{}: {problem}", node.operator),
            })?;
            for output in &node.outputs {
                let dims = self.values[*output].tensor_type.shape;
                if let Some(Varying { axis, count }) = proofs
                    && dims.dims()[axis] != most * count
                {
                    let problem =
                        format!("{}: axis {axis} of {dims} does not vary as its inputs do", node.operator);
                    return Err(Error::Graph { node: node.name.clone(), problem });
                }
                values[*output] = proofs;
            }
        }
        for (name, index) in &self.outputs {
            if values[*index].is_some_and(|varying| varying != Varying { axis: 0, count: 1 }) {
                let problem = "the leading dimension is not its first: transpose or reshape it";
                return Err(Error::graph(format!("output `{name}`: {problem}")));
            }
        }
        self.leading = Some(Leading { most, values });
        self.id = GraphId::new();
        Ok(self)
    }

    /// Whether its nodes are proved to vary as it says of their results, after a pass has put others in their place.
    pub(crate) fn varies_as_it_says(&self) -> bool {
        self.leading.as_ref().is_none_or(|Leading { most, values }| {
            self.nodes.iter().all(|node| {
                self.prove(node, *most, values)
                    .is_ok_and(|proof| node.outputs.iter().all(|output| values[*output] == proof))
            })
        })
    }

    /// The type of a value in a run with `leading` of a variable leading dimension.
    pub(crate) fn type_for(&self, value: usize, leading: usize) -> TensorType {
        let described = self.values[value].tensor_type;
        match self.leading.as_ref().and_then(|leading| leading.values[value]) {
            None => described,
            Some(Varying { axis, count }) => {
                TensorType::new(described.element, described.shape.with_dim(axis, leading * count))
            }
        }
    }

    /// The same graph for exactly `leading` of a leading dimension that is variable.
    ///
    /// # Errors
    /// [`Error::Graph`] where it is not variable ([`Graph::variable_leading`]), and for more than described.
    pub fn with_leading(&self, leading: usize) -> Result<Self> {
        let Some(Leading { most, values }) = &self.leading else {
            return Err(Error::graph("its leading dimension is not variable".into()));
        };
        if leading > *most {
            return Err(Error::graph(format!(
                "a leading dimension of {leading}; it was described for {most}"
            )));
        }
        let mut graph = self.clone();
        graph.leading = None;
        graph.id.leading = Some(leading);
        for (value, varying) in graph.values.iter_mut().zip(values) {
            if let Some(Varying { axis, count }) = varying {
                let mut dims = value.tensor_type.shape.dims().to_vec();
                dims[*axis] = leading * count;
                value.tensor_type = TensorType::new(value.tensor_type.element, Shape::new(&dims)?);
            }
        }
        for node in &mut graph.nodes {
            let Some(varying) = values[node.outputs[0]] else { continue };
            let dims = graph.values[node.outputs[0]].tensor_type.shape;
            match &mut node.operator {
                // A dimension of 0 leaves a -1 open.
                Operator::Reshape { shape } => {
                    *shape = dims.dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect();
                }
                // At a leading dimension of 1 more dimensions would go.
                Operator::Squeeze { axes: axes @ None } => {
                    let described = node.inputs[0].map(|value| self.values[value].tensor_type.shape);
                    let dims = described.unwrap_or(Shape::SCALAR);
                    let ones = (0..).zip(dims.dims()).filter(|(_, dim)| **dim == 1);
                    *axes = Some(ones.map(|(axis, _)| axis).collect());
                }
                Operator::Expand { shape } => {
                    let from_end = dims.rank() - varying.axis;
                    if let Some(at) = shape.len().checked_sub(from_end).filter(|at| shape[*at] != 1) {
                        shape[at] = dims.dims()[varying.axis];
                    }
                }
                _ => {}
            }
        }
        Ok(graph)
    }

    /// How the results of a node vary.
    #[allow(clippy::too_many_lines, reason = "a table of operators")]
    fn prove(&self, node: &NodeInfo, most: usize, values: &[Option<Varying>]) -> Proof {
        let of = |index: usize| node.inputs.get(index).copied().flatten();
        let varying = |index: usize| of(index).and_then(|value| values[value]);
        let shape =
            |index: usize| of(index).map_or(Shape::SCALAR, |value| self.values[value].tensor_type.shape);
        let result = self.values[node.outputs[0]].tensor_type.shape;
        if (0..node.inputs.len()).all(|index| varying(index).is_none()) {
            return Ok(None);
        }
        let mixes = |axis: usize| Err(format!("it mixes axis {axis} of {}, which varies", shape(0)));
        // What is broadcast to `to`, whose axes may begin before those of the inputs.
        let broadcast = |to: Shape, indices: &mut dyn Iterator<Item = usize>| -> Proof {
            let mut all: Option<Varying> = None;
            let inputs: Vec<_> = indices.filter(|index| of(*index).is_some()).collect();
            for index in &inputs {
                let Some(Varying { axis, count }) = varying(*index) else { continue };
                let aligned = Varying { axis: axis + to.rank() - shape(*index).rank(), count };
                if *all.get_or_insert(aligned) != aligned {
                    return Err("its inputs vary along different axes".into());
                }
            }
            let Some(all) = all else { return Ok(None) };
            for index in inputs {
                let own = (all.axis + shape(index).rank()).checked_sub(to.rank());
                if varying(index).is_none() && own.is_some_and(|axis| shape(index).dims()[axis] != 1) {
                    return Err(format!("input {index} of {} does not vary with the others", shape(index)));
                }
            }
            Ok(Some(all))
        };
        let alone = |index: usize| match (0..node.inputs.len()).find(|i| *i != index && varying(*i).is_some())
        {
            Some(other) => Err(format!("input {other} varies")),
            None => Ok(varying(index)),
        };
        match &node.operator {
            Operator::Softmax { axis } => match alone(0)? {
                Some(Varying { axis: own, .. }) if shape(0).axis(*axis)? == own => mixes(own),
                varying => Ok(varying),
            },
            Operator::LayerNormalization { axis, .. } | Operator::RmsNormalization { axis, .. } => {
                match alone(0)? {
                    Some(Varying { axis: own, .. }) if shape(0).axis(*axis)? <= own => mixes(own),
                    _ => broadcast(result, &mut (0..node.inputs.len())),
                }
            }
            Operator::BatchNormalization { .. } => match alone(0)? {
                Some(Varying { axis: 1, .. }) => mixes(1),
                varying => Ok(varying),
            },
            Operator::MatMul => self.prove_matmul(node, values),
            Operator::Gemm { transpose_a, .. } => {
                let rows = usize::from(*transpose_a);
                let product = match (varying(0), varying(1)) {
                    (Some(Varying { axis, count }), None) if axis == rows => Some(Varying { axis: 0, count }),
                    (None, None) => None,
                    _ => return mixes(1 - rows),
                };
                match (product, varying(2)) {
                    (product, None)
                        if product.is_none() || shape(2).rank() < 2 || shape(2).dims()[0] == 1 =>
                    {
                        Ok(product)
                    }
                    (Some(product), Some(c)) if c == product && shape(2).rank() == 2 => Ok(Some(product)),
                    _ => Err("C does not vary with the product".into()),
                }
            }
            Operator::Conv(..) | Operator::MaxPool(..) | Operator::AveragePool { .. } => match alone(0)? {
                Some(Varying { axis, .. }) if axis != 0 => mixes(axis),
                varying => Ok(varying),
            },
            Operator::GlobalAveragePool => match alone(0)? {
                Some(Varying { axis: axis @ 2.., .. }) => mixes(axis),
                varying => Ok(varying),
            },
            Operator::Attention(_) => {
                let all = varying(0);
                if (1..3).any(|index| varying(index) != all) || all.is_none_or(|all| all.axis != 0) {
                    return Err("Q, K and V do not vary along the batch alone".into());
                }
                let rank = shape(3).rank();
                let mask_varies = varying(3).is_some_and(|mask| rank == 4 && Some(mask) == all);
                let mask_is_shared = varying(3).is_none() && (rank < 4 || shape(3).dims()[0] == 1);
                if mask_varies || mask_is_shared {
                    Ok(all)
                } else {
                    Err("the mask does not vary with the batch".into())
                }
            }
            Operator::QuantizeLinear { axis, .. } | Operator::DequantizeLinear { axis, .. } => {
                match alone(0)? {
                    Some(Varying { axis: own, .. })
                        if shape(1).rank() > 1 || (shape(1).rank() == 1 && shape(0).axis(*axis)? == own) =>
                    {
                        mixes(own)
                    }
                    varying => Ok(varying),
                }
            }
            Operator::Reshape { .. } | Operator::Flatten { .. } => {
                alone(0)?.map(|own| reshaped(&shape(0), own, &result, most)).transpose()
            }
            Operator::Squeeze { axes } => {
                let Some(own) = varying(0) else { return Ok(None) };
                let dropped = match axes {
                    Some(axes) => axes_of(axes, &shape(0))?,
                    None => (0..shape(0).rank()).filter(|axis| shape(0).dims()[*axis] == 1).collect(),
                };
                if dropped.contains(&own.axis) {
                    return mixes(own.axis);
                }
                Ok(Some(Varying {
                    axis: own.axis - dropped.iter().filter(|axis| **axis < own.axis).count(),
                    ..own
                }))
            }
            Operator::Unsqueeze { axes } => {
                let added = axes_of(axes, &result)?;
                let kept: Vec<_> = (0..result.rank()).filter(|axis| !added.contains(axis)).collect();
                Ok(varying(0).map(|own| Varying { axis: kept[own.axis], ..own }))
            }
            Operator::Transpose { perm } => Ok(varying(0).and_then(|own| {
                Some(Varying { axis: perm.iter().position(|axis| *axis == own.axis)?, ..own })
            })),
            Operator::Concat { axis } => {
                let all = varying(0);
                if (0..node.inputs.len()).any(|index| varying(index) != all) {
                    return Err("its inputs do not all vary along the same axis".into());
                }
                match all {
                    Some(own) if shape(0).axis(*axis)? == own.axis => mixes(own.axis),
                    all => Ok(all),
                }
            }
            Operator::Split { axis, .. } => match varying(0) {
                Some(own) if shape(0).axis(*axis)? == own.axis => mixes(own.axis),
                varying => Ok(varying),
            },
            Operator::Slice { axes, .. } => match varying(0) {
                Some(own) if axes_of(axes, &shape(0))?.contains(&own.axis) => mixes(own.axis),
                varying => Ok(varying),
            },
            Operator::Pad { pads } => match alone(0)? {
                Some(own) if pads[own.axis] != 0 || pads[own.axis + shape(0).rank()] != 0 => mixes(own.axis),
                varying => Ok(varying),
            },
            Operator::Trilu { .. } => match varying(0) {
                Some(own) if own.axis + 2 >= shape(0).rank() => mixes(own.axis),
                varying => Ok(varying),
            },
            Operator::Gather { axis } => {
                let axis = shape(0).axis(*axis)?;
                match (varying(0), varying(1)) {
                    (None, Some(own)) => Ok(Some(Varying { axis: axis + own.axis, ..own })),
                    (Some(own), None) if own.axis < axis => Ok(Some(own)),
                    (Some(own), None) if own.axis > axis => {
                        Ok(Some(Varying { axis: own.axis + shape(1).rank() - 1, ..own }))
                    }
                    (Some(_), Some(_)) => Err("data and indices both vary".into()),
                    _ => mixes(axis),
                }
            }
            Operator::ReduceSum(reduce)
            | Operator::ReduceMean(reduce)
            | Operator::ReduceMax(reduce)
            | Operator::ReduceL2(reduce) => {
                let Some(own) = varying(0) else { return Ok(None) };
                let axes = reduce.axes_of(&shape(0))?;
                if axes.contains(&own.axis) {
                    return mixes(own.axis);
                }
                let gone = axes.iter().filter(|axis| !reduce.keepdims && **axis < own.axis).count();
                Ok(Some(Varying { axis: own.axis - gone, ..own }))
            }
            // Elementwise.
            Operator::Abs
            | Operator::Neg
            | Operator::Reciprocal
            | Operator::Sqrt
            | Operator::Exp
            | Operator::Log
            | Operator::Erf
            | Operator::Relu
            | Operator::LeakyRelu { .. }
            | Operator::Gelu { .. }
            | Operator::Sigmoid
            | Operator::HardSigmoid { .. }
            | Operator::HardSwish
            | Operator::Tanh
            | Operator::Clip
            | Operator::Not
            | Operator::Identity
            | Operator::Cast { .. }
            | Operator::Add
            | Operator::Sub
            | Operator::Mul
            | Operator::Div
            | Operator::Pow
            | Operator::Min
            | Operator::Max
            | Operator::Equal
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::And
            | Operator::Or
            | Operator::Where
            | Operator::Expand { .. } => broadcast(result, &mut (0..node.inputs.len())),
        }
    }

    fn prove_matmul(&self, node: &NodeInfo, values: &[Option<Varying>]) -> Proof {
        let of = |index: usize| {
            let value = node.inputs[index].map(|value| (values[value], self.values[value].tensor_type.shape));
            value.unwrap_or((None, Shape::SCALAR))
        };
        let (a, b) = (of(0), of(1));
        let result = self.values[node.outputs[0]].tensor_type.shape;
        // As if operands of one dimension had two; the result's axes, in which rows and columns may be missing.
        let rank = a.1.rank().max(b.1.rank()).max(2);
        let aligned = |(varying, shape): (Option<Varying>, Shape), is_row: bool| {
            varying.map(|own| match shape.rank() {
                1 => Varying { axis: if is_row { rank - 1 } else { rank - 2 }, ..own },
                own_rank => Varying { axis: own.axis + rank - own_rank, ..own },
            })
        };
        let (a_varies, b_varies) = (aligned(a, true), aligned(b, false));
        let is_one = |shape: Shape, axis: usize| {
            (axis + shape.rank())
                .checked_sub(rank)
                .is_none_or(|axis| shape.rank() < 2 || shape.dims()[axis] == 1)
        };
        let axis = match (a_varies, b_varies) {
            (Some(own), Some(other)) if own == other && own.axis + 2 < rank => own,
            (Some(own), None) if own.axis + 2 == rank || (own.axis + 2 < rank && is_one(b.1, own.axis)) => {
                own
            }
            (None, Some(own)) if own.axis + 1 == rank || (own.axis + 2 < rank && is_one(a.1, own.axis)) => {
                own
            }
            _ => return Err("what varies is summed over, or its operands vary differently".into()),
        };
        // A row on the left has no rows in the result.
        let missing_rows = usize::from(a.1.rank() == 1 && axis.axis + 1 == rank);
        let of_result = Varying { axis: axis.axis - missing_rows, ..axis };
        debug_assert!(of_result.axis < result.rank());
        Ok(Some(of_result))
    }
}

/// The axis of the result that begins where the one that varies does, and has as much of each leading index.
fn reshaped(x: &Shape, own: Varying, result: &Shape, most: usize) -> std::result::Result<Varying, String> {
    let before = |shape: &Shape, axis: usize| shape.dims()[..axis].iter().product::<usize>();
    let outer = before(x, own.axis);
    let axis = (0..result.rank()).find(|axis| {
        let dim = result.dims()[*axis];
        before(result, *axis) == outer && dim > 0 && dim.is_multiple_of(most.max(1))
    });
    match axis {
        Some(axis) if most > 0 => Ok(Varying { axis, count: result.dims()[axis] / most }),
        _ => Err(format!("{x} to {result}: axis {}, which varies, is not kept apart", own.axis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::element::ElementType::{Bool, F32, I64};
    use crate::graph::tests::fixtures::{Encoder, cnn, quantized_linear};
    use crate::graph::{Attention, GraphBuilder, Value};

    /// A value of 4 x 6 of a batch, and what becomes of it: how that varies, or why not.
    fn varies(
        make: impl Fn(&mut GraphBuilder, Value) -> Result<Value>,
    ) -> std::result::Result<Varying, String> {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[4, 3, 6]).unwrap();
        let y = make(&mut g, x).unwrap();
        let shape = *y.shape();
        let mut graph = g.finish(&[("y", y)]).unwrap();
        let index = graph.outputs[0].1;
        // An output along another axis is refused: here any axis is asked for.
        graph.outputs.clear();
        let graph = graph.variable_leading(&["x"]).map_err(|error| error.to_string())?;
        let varying = graph.leading.as_ref().unwrap().values[index].expect("it depends on x");
        // What is described for fewer is what the operators make of fewer.
        for leading in [0, 1, 3] {
            let fewer = graph.with_leading(leading).unwrap();
            for node in &fewer.nodes {
                let types: Vec<_> = node
                    .inputs
                    .iter()
                    .map(|input| input.map(|value| fewer.values[value].tensor_type))
                    .collect();
                let results = node.operator.infer(&types).unwrap();
                for (output, result) in node.outputs.iter().zip(&results) {
                    assert_eq!(fewer.values[*output].tensor_type, *result, "{} of {leading}", node.name);
                }
            }
        }
        assert_eq!(shape.dims()[varying.axis], 4 * varying.count);
        Ok(varying)
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn what_a_node_does_to_the_leading_dimension_is_proved() {
        let at = |axis, count| Ok(Varying { axis, count });
        assert_eq!(varies(GraphBuilder::relu), at(0, 1));
        assert_eq!(varies(|g, x| g.transpose(x, &[1, 2, 0])), at(2, 1));
        assert_eq!(varies(|g, x| g.reshape(x, &[12, 6])), at(0, 3));
        assert_eq!(varies(|g, x| g.reshape(x, &[-1])), at(0, 18));
        assert_eq!(varies(|g, x| g.reshape(x, &[1, 4, -1])), at(1, 1));
        assert_eq!(
            varies(|g, x| {
                let x = g.transpose(x, &[1, 0, 2])?;
                g.reshape(x, &[3, 24])
            }),
            at(1, 6)
        );
        assert_eq!(varies(|g, x| g.flatten(x, 2)), at(0, 3));
        assert_eq!(varies(|g, x| g.unsqueeze(x, &[0, 2])), at(1, 1));
        assert_eq!(
            varies(|g, x| {
                let x = g.unsqueeze(x, &[0, 2])?;
                Ok(g.node(Operator::Squeeze { axes: None }, &[Some(x)])?[0])
            }),
            at(0, 1)
        );
        assert_eq!(varies(|g, x| g.reduce_sum(x, &[1], false)), at(0, 1));
        assert_eq!(
            varies(|g, x| {
                let x = g.transpose(x, &[1, 0, 2])?;
                g.reduce_mean(x, &[0], false)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let w = constant(g, &[6, 5]);
                g.matmul(x, w)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let w = constant(g, &[5, 3]);
                g.matmul(w, x)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let w = constant(g, &[3]);
                g.matmul(w, x)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let x = g.transpose(x, &[1, 2, 0])?;
                let w = constant(g, &[6]);
                g.matmul(w, x)
            }),
            at(1, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let t = g.transpose(x, &[0, 2, 1])?;
                g.matmul(x, t)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let scale = constant(g, &[6]);
                g.layer_normalization(x, scale, scale, 0.1)
            }),
            at(0, 1)
        );
        assert_eq!(varies(|g, x| g.expand(x, &[5, 4, 3, 6])), at(1, 1));
        assert_eq!(
            varies(|g, x| {
                let parts = g.split(x, 2, &[2, 4])?;
                g.concat(&[parts[1], parts[0]], -1)
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let mask = g.cast(x, Bool)?;
                let mask = g.slice(mask, 2, 0, 3)?;
                let mask = g.unsqueeze(mask, &[1])?;
                g.attention(x, x, x, Some(mask), Attention::new().heads(3, 3))
            }),
            at(0, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let ids = g.cast(x, I64)?;
                let table = constant(g, &[5, 9]);
                g.gather(table, ids, 1)
            }),
            at(1, 1)
        );
        assert_eq!(
            varies(|g, x| {
                let ids = g.constant("ids", crate::graph::Array::new(&[2, 2], vec![0i64; 4])?)?;
                let x = g.transpose(x, &[1, 2, 0])?;
                g.gather(x, ids, 0)
            }),
            at(3, 1)
        );
    }

    fn constant(g: &mut GraphBuilder, dims: &[usize]) -> Value {
        let array = crate::graph::Array::new(dims, vec![0f32; dims.iter().product()]).unwrap();
        g.constant("constant", array).unwrap()
    }

    #[test]
    fn what_mixes_is_refused_by_name() {
        let refused = |part: &str, make: &dyn Fn(&mut GraphBuilder, Value) -> Result<Value>| {
            let problem = varies(|g, x| {
                g.named("guilty");
                make(g, x)
            });
            let problem = problem.expect_err(part);
            assert!(problem.contains("node `guilty`") && problem.contains(part), "{problem}");
        };
        refused("it mixes axis 0", &|g, x| g.softmax(x, 0));
        refused("it mixes axis 0", &|g, x| g.reduce_sum(x, &[0, 1], true));
        refused("it mixes axis 0", &|g, x| g.slice(x, 0, 1, 3));
        refused("it mixes axis 0", &|g, x| g.pad(x, &[1, 0, 0, 0, 0, 0]));
        refused("it mixes axis 0", &|g, x| Ok(g.split(x, 0, &[2, 2])?[0]));
        refused("it mixes axis 0", &|g, x| g.concat(&[x, x], 0));
        refused("is not kept apart", &|g, x| g.reshape(x, &[3, 24]));
        refused("is not kept apart", &|g, x| g.reshape(x, &[2, 36]));
        refused("does not vary with the others", &|g, x| {
            let places = constant(g, &[4, 1, 1]);
            g.add(x, places)
        });
        refused("vary differently", &|g, x| {
            let w = constant(g, &[4, 6, 2]);
            g.matmul(x, w)
        });
    }

    #[test]
    fn the_fixtures_vary_along_their_batch() {
        let encoder = Encoder::SMALL;
        let small =
            encoder.bert().unwrap().variable_leading(&["ids", "mask"]).unwrap().with_leading(1).unwrap();
        let one = Encoder { batch: 1, ..encoder }.bert().unwrap();
        assert_eq!(small.to_string(), one.to_string());
        let lowered = encoder.lowered().unwrap().variable_leading(&["ids"]).unwrap();
        assert_eq!(lowered.with_leading(0).unwrap().outputs().next().unwrap().1.to_string(), "f32[0, 7, 12]");
        cnn(3).unwrap().variable_leading(&["image"]).unwrap();
        quantized_linear(3).unwrap().variable_leading(&["x"]).unwrap();
        let problem = encoder.bert().unwrap().variable_leading(&["ids"]).unwrap_err().to_string();
        assert!(problem.contains("the mask does not vary with the batch"), "{problem}");
        let text = |result: Result<Graph>| result.unwrap_err().to_string();
        assert!(text(cnn(2).unwrap().variable_leading(&["x"])).contains("input `x`: there is none"));
        assert!(text(cnn(2).unwrap().variable_leading(&[])).contains("no input has"));
        assert!(text(cnn(2).unwrap().with_leading(1)).contains("is not variable"));
        let mut g = GraphBuilder::new();
        let (x, y) = (g.input("x", F32, &[4, 3]).unwrap(), g.input("y", F32, &[3]).unwrap());
        let sum = g.add(x, y).unwrap();
        let problem = text(g.finish(&[("sum", sum)]).unwrap().variable_leading(&["x", "y"]));
        assert!(problem.contains("input `y`: its leading dimension is 3, that of another 4"), "{problem}");
        assert!(
            text(cnn(2).unwrap().variable_leading(&["image"]).unwrap().with_leading(3))
                .contains("described for 2")
        );
    }
}
