//! Random graphs, whose values stay bounded and whose divisors stay away from 0; and smaller ones that still fail.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]

use std::collections::HashMap;

use crate::description::element::ElementType::{self, Bool, F32, F64, I8, I32, I64, U8};
use crate::description::quantization::QuantB;
use crate::graph::description::{Graph, GraphId, NodeInfo, Source};
use crate::graph::interpret::{Data, Values, compute};
use crate::graph::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use crate::graph::{Array, GraphBuilder, Value};
use crate::operands::quantize::WeightScheme;
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;
use crate::random::Random;

use Operator as Op;

/// Values beyond this are scaled down.
const LARGE: f64 = 20.0;
/// The most elements of a value.
const MOST_ELEMENTS: usize = 2000;

/// A value with what it is for the inputs that were drawn.
#[derive(Debug, Clone)]
struct Item {
    value: Value,
    values: Values<f64>,
    is_read: bool,
}

impl Item {
    fn dims(&self) -> &[usize] {
        self.value.shape().dims()
    }

    fn count(&self) -> usize {
        self.value.shape().count()
    }

    fn numbers(&self) -> Vec<f64> {
        numbers(&self.values)
    }

    fn least(&self) -> f64 {
        self.numbers().into_iter().fold(f64::INFINITY, f64::min)
    }
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn numbers(values: &Values<f64>) -> Vec<f64> {
    match &values.data {
        Data::Floats(x) => x.clone(),
        Data::Integers(x) => x.iter().map(|x| *x as f64).collect(),
        Data::Booleans(x) => x.iter().map(|x| f64::from(u8::from(*x))).collect(),
    }
}

struct Generator<'a> {
    random: Random,
    g: GraphBuilder,
    /// Results of nodes and inputs; constants are made where they are needed.
    pool: Vec<Item>,
    inputs: Vec<Array>,
    nodes: usize,
    allowed: &'a dyn Fn(&Operator) -> bool,
}

/// A graph of about so many nodes, of the operators that are allowed, and inputs for it. The same seed gives the same
/// graph.
pub(crate) fn random_graph(
    seed: u64,
    nodes: usize,
    allowed: impl Fn(&Operator) -> bool,
) -> (Graph, Vec<Array>) {
    let g = GraphBuilder::new();
    let mut generator = Generator {
        random: Random::new(seed),
        g,
        pool: Vec::new(),
        inputs: Vec::new(),
        nodes: 0,
        allowed: &allowed,
    };
    let shapes = 2 + generator.random.below(3);
    for _ in 0..shapes {
        let dims = generator.dims();
        generator.input(&dims);
    }
    for _ in 0..60 * nodes {
        if generator.nodes >= nodes {
            break;
        }
        let _ = generator.step();
    }
    generator.finish()
}

impl Generator<'_> {
    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn one_of<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn uniform(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.random.uniform()
    }

    /// Of rank 2 to 4, now and then with a dimension of 1, seldom with one of 0.
    fn dims(&mut self) -> Vec<usize> {
        let rank = 2 + self.below(3);
        (0..rank)
            .map(|_| match self.below(40) {
                0 => 0,
                1..6 => 1,
                _ => 2 + self.below(6),
            })
            .collect()
    }

    #[allow(clippy::cast_possible_truncation)]
    fn normal(&mut self, dims: &[usize], sigma: f64) -> Array {
        let data = (0..dims.iter().product()).map(|_| (sigma * self.random.normal()) as f32).collect();
        Array::new(dims, data).unwrap()
    }

    fn input(&mut self, dims: &[usize]) {
        let array = self.normal(dims, 1.0);
        let value = self.g.input(format!("x{}", self.inputs.len()), F32, dims).unwrap();
        self.pool.push(Item { value, values: Values::of_array(&array).unwrap(), is_read: false });
        self.inputs.push(array);
    }

    fn constant(&mut self, array: Array) -> Item {
        let values = Values::of_array(&array).unwrap();
        let name = format!("constant.{}", self.random.bits());
        Item { value: self.g.constant(name, array).unwrap(), values, is_read: true }
    }

    fn floats(&mut self, dims: &[usize], sigma: f64) -> Item {
        let array = self.normal(dims, sigma);
        self.constant(array)
    }

    #[allow(clippy::cast_possible_truncation)]
    fn between(&mut self, dims: &[usize], least: f64, most: f64) -> Item {
        let data = (0..dims.iter().product()).map(|_| self.uniform(least, most) as f32).collect();
        self.constant(Array::new(dims, data).unwrap())
    }

    /// Adds a node whose results are neither infinite nor NaN; scales them where they are large. `None`, with nothing
    /// added, where it is not allowed or would not be so.
    fn add(&mut self, operator: Operator, operands: &[Option<&Item>]) -> Option<Vec<Item>> {
        let types: Vec<_> = operands.iter().map(|item| item.map(|item| item.value.tensor_type())).collect();
        let fits = operator.infer(&types).ok()?;
        if !(self.allowed)(&operator)
            || fits.iter().any(|of| of.shape.count() > MOST_ELEMENTS || of.shape.rank() > 5)
        {
            return None;
        }
        let node =
            NodeInfo { name: String::new(), operator: operator.clone(), inputs: vec![], outputs: vec![] };
        let known: Vec<_> = operands.iter().map(|item| item.map(|item| &item.values)).collect();
        let results = compute(&node, &known).ok()?;
        let most = results
            .iter()
            .flat_map(numbers)
            .fold(0f64, |most, x| if x.abs() <= most { most } else { x.abs() });
        let is_float = fits[0].element.is_float();
        if !most.is_finite() || results.iter().flat_map(numbers).any(f64::is_nan) || most > 1e6 {
            return None;
        }
        if is_float && most > LARGE && !((self.allowed)(&Op::Mul) && fits.len() == 1) {
            return None;
        }
        let given: Vec<_> = operands.iter().map(|item| item.map(|item| item.value)).collect();
        let added = self.g.node(operator, &given).unwrap();
        self.nodes += 1;
        for item in &mut self.pool {
            item.is_read |= given.contains(&Some(item.value));
        }
        let results = added.into_iter().zip(results);
        let mut items: Vec<_> =
            results.map(|(value, values)| Item { value, values, is_read: false }).collect();
        if is_float && most > LARGE {
            let factor = Array::scalar(1.0 / (most as f32));
            if items[0].value.element() == F32 {
                let factor = self.constant(factor);
                items = self.add(Op::Mul, &[Some(&items[0].clone()), Some(&factor)])?;
                return Some(items);
            }
        }
        self.pool.extend(items.iter().cloned());
        for item in &mut items {
            item.is_read = true;
        }
        Some(items)
    }

    fn one(&mut self, operator: Operator, operands: &[&Item]) -> Option<Item> {
        let operands: Vec<_> = operands.iter().map(|item| Some(*item)).collect();
        self.add(operator, &operands)?.pop()
    }

    fn any(&mut self, fits: impl Fn(&Item) -> bool) -> Option<Item> {
        let fitting: Vec<_> = (0..self.pool.len()).filter(|index| fits(&self.pool[*index])).collect();
        if fitting.is_empty() {
            return None;
        }
        // The newer ones oftener, for depth.
        let (a, b) = (self.below(fitting.len()), self.below(fitting.len()));
        Some(self.pool[fitting[a.max(b)]].clone())
    }

    fn float(&mut self) -> Option<Item> {
        self.any(|item| item.value.element() == F32)
    }

    fn of_rank(&mut self, least: usize) -> Option<Item> {
        self.any(|item| item.value.element() == F32 && item.dims().len() >= least)
    }

    /// At least 1/2.
    fn positive(&mut self, x: &Item) -> Option<Item> {
        if x.least() >= 0.25 {
            return Some(x.clone());
        }
        let size = self.one(Op::Abs, &[x])?;
        let half = self.constant(Array::scalar(0.5f32));
        self.one(Op::Add, &[&size, &half])
    }

    /// An operand that is broadcast with x: another value, or a constant.
    fn partner(&mut self, x: &Item) -> Item {
        let shape = *x.value.shape();
        let element = x.value.element();
        let fits = |item: &Item| {
            item.value.element() == element
                && item.value.shape().broadcast(&shape).is_ok_and(|of| of.count() <= MOST_ELEMENTS)
        };
        if self.below(3) > 0
            && let Some(item) = self.any(fits)
        {
            return item;
        }
        let first = self.below(shape.rank() + 1);
        let dims: Vec<_> = shape.dims()[first..]
            .iter()
            .map(|dim| if self.random.below(4) == 0 { 1 } else { *dim })
            .collect();
        self.floats(&dims, 1.0)
    }

    fn axis(&mut self, x: &Item) -> usize {
        self.below(x.dims().len().max(1))
    }

    #[allow(clippy::cast_possible_wrap)]
    fn signed_axis(&mut self, x: &Item) -> i64 {
        let axis = self.axis(x);
        if self.below(2) == 0 { axis as i64 } else { axis as i64 - x.dims().len() as i64 }
    }

    fn condition(&mut self, x: &Item) -> Option<Item> {
        let partner = self.partner(x);
        let compared = [Op::Greater, Op::GreaterOrEqual, Op::Less, Op::LessOrEqual, Op::Equal];
        let operator = self.one_of(&compared);
        self.one(operator, &[x, &partner])
    }

    #[allow(clippy::too_many_lines, clippy::cast_possible_wrap)]
    fn step(&mut self) -> Option<Item> {
        match self.below(36) {
            0..6 => self.function(),
            6..11 => {
                let x = self.float()?;
                let y = self.partner(&x);
                let operator = self.one_of(&[Op::Add, Op::Sub, Op::Mul, Op::Min, Op::Max]);
                self.one(operator, &[&x, &y])
            }
            11 => {
                let (x, y) = (self.float()?, self.float()?);
                let y = self.positive(&y)?;
                if x.value.shape().broadcast(y.value.shape()).is_err() {
                    return None;
                }
                if self.below(3) > 0 {
                    return self.one(Op::Div, &[&x, &y]);
                }
                let exponents = [0.5f32, 2.0, -1.0, 1.7];
                let exponent = Array::scalar(self.one_of(&exponents));
                let exponent = self.constant(exponent);
                self.one(Op::Pow, &[&y, &exponent])
            }
            12 => {
                let x = self.float()?;
                let (least, most) =
                    (self.constant(Array::scalar(-1.5f32)), self.constant(Array::scalar(1.25f32)));
                match self.below(3) {
                    0 => self.one(Op::Clip, &[&x, &least]),
                    1 => self.add(Op::Clip, &[Some(&x), None, Some(&most)])?.pop(),
                    _ => self.one(Op::Clip, &[&x, &least, &most]),
                }
            }
            13 => {
                let x = self.float()?;
                let condition = self.condition(&x)?;
                let (x, y) = (self.partner(&x), self.partner(&x));
                self.one(Op::Where, &[&condition, &x, &y])
            }
            14 => {
                let a = self.any(|item| item.value.element() == Bool)?;
                match self.below(3) {
                    0 => self.one(Op::Not, &[&a]),
                    operator => {
                        let shape = *a.value.shape();
                        let b = self.any(|item| {
                            item.value.element() == Bool && item.value.shape().broadcast(&shape).is_ok()
                        })?;
                        self.one(if operator == 1 { Op::And } else { Op::Or }, &[&a, &b])
                    }
                }
            }
            15 => self.cast(),
            16 => self.integers(),
            17..20 => self.product(),
            20 => self.convolution(),
            21 => self.pooling(),
            22 | 23 => self.norm(),
            24 => self.attention(),
            25 => self.quantization(),
            26..30 => self.movement(),
            30 | 31 => self.parts(),
            32 => self.gather(),
            _ => {
                let x = self.float()?;
                let axes = match self.below(4) {
                    0 => None,
                    1 => Some(vec![]),
                    _ => Some(vec![self.signed_axis(&x)]),
                };
                if x.dims().is_empty() {
                    return None;
                }
                let reduce = Reduce { axes, keepdims: self.below(2) == 0 };
                let operators = [Op::ReduceSum, Op::ReduceMean, Op::ReduceMax, Op::ReduceL2];
                let operator = self.one_of(&operators)(reduce);
                self.one(operator, &[&x])
            }
        }
    }

    fn function(&mut self) -> Option<Item> {
        let x = self.float()?;
        let operators = [
            Op::Abs,
            Op::Neg,
            Op::Reciprocal,
            Op::Sqrt,
            Op::Exp,
            Op::Log,
            Op::Erf,
            Op::Relu,
            Op::LeakyRelu { alpha: 0.125 },
            Op::Gelu { tanh: false },
            Op::Gelu { tanh: true },
            Op::Sigmoid,
            Op::HardSigmoid { alpha: 0.2, beta: 0.5 },
            Op::HardSwish,
            Op::Tanh,
            Op::Identity,
        ];
        let operator = self.one_of(&operators);
        match operator {
            Op::Reciprocal | Op::Sqrt | Op::Log => {
                let x = self.positive(&x)?;
                self.one(operator, &[&x])
            }
            _ => self.one(operator, &[&x]),
        }
    }

    fn cast(&mut self) -> Option<Item> {
        if self.below(2) == 0 {
            let x = self.any(|item| item.value.element() != F32)?;
            return self.one(Op::Cast { to: F32 }, &[&x]);
        }
        let x = self.float()?;
        let narrow = if cfg!(feature = "half") { [ElementType::F16, ElementType::Bf16] } else { [F64, I64] };
        let to = self.one_of(&[I64, I32, I8, Bool, F64, narrow[0], narrow[1]]);
        let x = self.one(Op::Cast { to }, &[&x])?;
        // Into f32 again, so that it is used.
        let x = if to.is_float() { self.one(Op::Tanh, &[&x])? } else { x };
        self.one(Op::Cast { to: F32 }, &[&x])
    }

    fn integers(&mut self) -> Option<Item> {
        let x = self.float()?;
        let x = self.one(Op::Cast { to: I64 }, &[&x])?;
        let y = self.one(Op::Cast { to: I64 }, &[&x])?;
        let operator = self.one_of(&[Op::Add, Op::Sub, Op::Mul, Op::Min, Op::Max]);
        let sum = self.one(operator, &[&x, &y])?;
        let operator = self.one_of(&[Op::Abs, Op::Neg, Op::Relu, Op::Identity]);
        let sum = self.one(operator, &[&sum])?;
        self.one(Op::Cast { to: F32 }, &[&sum])
    }

    #[allow(clippy::cast_precision_loss)]
    fn product(&mut self) -> Option<Item> {
        let x = self.of_rank(2)?;
        let (k, n) = (*x.dims().last()?, 1 + self.below(9));
        let sigma = 1.0 / (k.max(1) as f64).sqrt();
        match self.below(6) {
            0 => {
                let rank = x.dims().len();
                let perm: Vec<_> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
                let turned = self.one(Op::Transpose { perm }, &[&x])?;
                self.one(Op::MatMul, &[&x, &turned])
            }
            1 => self.gemm(),
            2 if k > 0 => {
                let weights =
                    Weights::from_tensor(Tensor::random_normal_f32(k, n, sigma, self.random.bits()).unwrap());
                let operator = Op::DequantizeLinear { axis: 0, block_size: k, output: F32 };
                if !(self.allowed)(&operator) {
                    return None;
                }
                let scheme = WeightScheme::INT8.with_scheme(QuantB::PerColumn { zero_point: 0 });
                let (weights, _) = weights.quantize(&scheme).unwrap();
                let dequantized = Weights::from_tensor(weights.dequantize().unwrap());
                let value = self.g.weights(format!("weights.{}", self.random.bits()), &weights).unwrap();
                self.nodes += 1;
                let values = Values::of_weights(&dequantized, value.tensor_type()).unwrap();
                self.one(Op::MatMul, &[&x, &Item { value, values, is_read: true }])
            }
            _ => {
                let w = self.floats(&[k, n], sigma);
                let y = self.one(Op::MatMul, &[&x, &w])?;
                let bias = self.floats(&[n], 0.5);
                let y = self.one(Op::Add, &[&y, &bias])?;
                let operator = self.one_of(&[Op::Gelu { tanh: false }, Op::Relu, Op::Identity, Op::Sigmoid]);
                self.one(operator, &[&y])
            }
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn gemm(&mut self) -> Option<Item> {
        let a = self.any(|item| item.value.element() == F32 && item.dims().len() == 2)?;
        let (transpose_a, transpose_b) = (self.below(2) == 0, self.below(2) == 0);
        let (k, n) = (a.dims()[usize::from(!transpose_a)], 1 + self.below(6));
        let dims = if transpose_b { [n, k] } else { [k, n] };
        let b = self.floats(&dims, 1.0 / (k.max(1) as f64).sqrt());
        let c = self.floats(&[n], 1.0);
        let operator =
            Op::Gemm { alpha: 0.75, beta: self.one_of(&[0.0, 1.0, -0.5]), transpose_a, transpose_b };
        self.one(operator, &[&a, &b, &c])
    }

    /// A value of four dimensions, made of another if need be.
    fn image(&mut self) -> Option<Item> {
        if let Some(x) =
            self.any(|item| item.value.element() == F32 && item.dims().len() == 4 && item.count() > 0)
        {
            return Some(x);
        }
        let w = self.floats(&[1, 4, 6, 5], 1.0);
        let x = self.float()?;
        let x = self.one(Op::ReduceMax(Reduce { axes: None, keepdims: false }), &[&x])?;
        self.one(Op::Add, &[&x, &w])
    }

    fn window(&mut self, kernel: &[usize]) -> Window {
        let mut list =
            |most: usize| -> Vec<usize> { kernel.iter().map(|_| 1 + self.random.below(most)).collect() };
        let (strides, dilations) = (list(2), list(2));
        let pads = kernel.iter().chain(kernel).map(|size| self.random.below(*size)).collect();
        Window { strides, pads, dilations }
    }

    #[allow(clippy::cast_precision_loss)]
    fn convolution(&mut self) -> Option<Item> {
        let x = self.image()?;
        let channels = x.dims()[1];
        let groups = if self.below(2) == 0 { 1 } else { channels };
        let kernel = [1 + self.below(3), 1 + self.below(3)];
        let outputs = groups * (1 + self.below(3));
        let inner = channels / groups;
        let sigma = 1.0 / ((inner * kernel[0] * kernel[1]) as f64).sqrt();
        let w = self.floats(&[outputs, inner, kernel[0], kernel[1]], sigma);
        let bias = self.floats(&[outputs], 0.5);
        let window = self.window(&kernel);
        let y = self.one(Op::Conv(window, Groups(groups)), &[&x, &w, &bias])?;
        if self.below(2) == 0 { self.batch_norm(&y) } else { self.one(Op::Relu, &[&y]) }
    }

    fn batch_norm(&mut self, x: &Item) -> Option<Item> {
        let channels = *x.dims().get(1)?;
        let of: [Item; 3] = std::array::from_fn(|_| self.floats(&[channels], 1.0));
        let variance = self.between(&[channels], 0.1, 2.0);
        self.one(Op::BatchNormalization { epsilon: 1e-5 }, &[x, &of[0], &of[1], &of[2], &variance])
    }

    fn pooling(&mut self) -> Option<Item> {
        let x = self.image()?;
        let shape = vec![1 + self.below(3), 1 + self.below(3)];
        let kernel = PoolKernel { shape: shape.clone(), ceil_mode: self.below(2) == 0 };
        let window = Window { dilations: vec![], ..self.window(&shape) };
        let operator = match self.below(3) {
            0 => Op::MaxPool(window, kernel),
            1 => Op::AveragePool { window, kernel, count_include_pad: self.below(2) == 0 },
            _ => Op::GlobalAveragePool,
        };
        self.one(operator, &[&x])
    }

    fn norm(&mut self) -> Option<Item> {
        let x = self.of_rank(2)?;
        if self.below(4) == 0 {
            return self.batch_norm(&x);
        }
        let axis = self.signed_axis(&x);
        if self.below(4) == 0 {
            return self.one(Op::Softmax { axis }, &[&x]);
        }
        let width = *x.dims().last()?;
        let (scale, bias) = (self.floats(&[width], 1.0), self.floats(&[width], 1.0));
        match self.below(3) {
            0 => self.one(Op::RmsNormalization { axis, epsilon: 1e-5 }, &[&x, &scale]),
            1 => self.one(Op::LayerNormalization { axis, epsilon: 1e-5 }, &[&x, &scale]),
            _ => self.one(Op::LayerNormalization { axis, epsilon: 1e-5 }, &[&x, &scale, &bias]),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn attention(&mut self) -> Option<Item> {
        let x = self.any(|item| item.value.element() == F32 && item.dims().len() == 3)?;
        let (k, size) = (x.dims()[2], 1 + self.below(4));
        let (kv_heads, shared) = (1 + self.below(2), 1 + self.below(2));
        let mut projected = |heads: usize| {
            let w = self.floats(&[k, heads * size], 1.0 / (k.max(1) as f64).sqrt());
            self.one(Op::MatMul, &[&x, &w])
        };
        let (q, k, v) = (projected(kv_heads * shared)?, projected(kv_heads)?, projected(kv_heads)?);
        let sequence = x.dims()[1];
        let attributes = Attention::new().heads(kv_heads * shared, kv_heads).causal(self.below(2) == 0);
        let mask = match self.below(3) {
            0 => None,
            1 => Some(self.floats(&[sequence, sequence], 1.0)),
            _ => {
                // A key that all see.
                let seen = (0..sequence).map(|key| key == 0 || self.random.below(3) > 0).collect();
                Some(self.constant(Array::new(&[sequence], seen).unwrap()))
            }
        };
        self.add(Op::Attention(attributes), &[Some(&q), Some(&k), Some(&v), mask.as_ref()])?.pop()
    }

    fn quantization(&mut self) -> Option<Item> {
        let x = self.of_rank(2)?;
        let along = self.below(2) == 0;
        let dims = if along { vec![x.dims()[1]] } else { vec![] };
        let scale = self.between(&dims, 0.05, 0.2);
        let count = dims.iter().product();
        let zero_point = if self.below(2) == 0 {
            Array::new(&dims, (0..count).map(|_| self.random.below(9) as u8 + 120).collect()).unwrap()
        } else {
            Array::new(&dims, (0..count).map(|_| self.random.below(9) as i8 - 4).collect()).unwrap()
        };
        let zero_point = self.constant(zero_point);
        let output = zero_point.value.element();
        debug_assert!(matches!(output, U8 | I8));
        let x =
            self.one(Op::QuantizeLinear { axis: 1, block_size: 0, output }, &[&x, &scale, &zero_point])?;
        let operator = Op::DequantizeLinear { axis: 1, block_size: 0, output: F32 };
        self.one(operator, &[&x, &scale, &zero_point])
    }

    #[allow(clippy::cast_possible_wrap)]
    fn movement(&mut self) -> Option<Item> {
        let x = self.any(|_| true)?;
        let rank = x.dims().len();
        match self.below(8) {
            0 => {
                let shape = if rank > 1 && self.below(2) == 0 {
                    let mut dims: Vec<_> = x.dims().iter().map(|dim| *dim as i64).collect();
                    let last = dims.pop()?;
                    *dims.last_mut()? *= last;
                    dims
                } else {
                    // Into another split of the elements.
                    let part = [2, 3, 4, 1].into_iter().find(|part| x.count().is_multiple_of(*part))?;
                    vec![part as i64, (x.count() / part) as i64]
                };
                self.one(Op::Reshape { shape }, &[&x])
            }
            1 => {
                let axis = self.below(rank + 1) as i64;
                self.one(Op::Flatten { axis }, &[&x])
            }
            2 => self.one(Op::Squeeze { axes: None }, &[&x]),
            3 => {
                let axis = self.below(rank + 1) as i64;
                self.one(Op::Unsqueeze { axes: vec![axis] }, &[&x])
            }
            4 => {
                let mut shape: Vec<_> = x
                    .dims()
                    .iter()
                    .map(|dim| if *dim == 1 { 1 + self.random.below(3) } else { *dim })
                    .collect();
                if self.below(2) == 0 {
                    shape.insert(0, 2);
                }
                self.one(Op::Expand { shape }, &[&x])
            }
            5 => {
                let mut perm: Vec<_> = (0..rank).collect();
                for index in (1..rank).rev() {
                    let other = self.below(index + 1);
                    perm.swap(index, other);
                }
                self.one(Op::Transpose { perm }, &[&x])
            }
            6 => {
                let pads = (0..2 * rank).map(|_| [0, 0, 1, 2, -1][self.random.below(5)]).collect();
                let operator = Op::Pad { pads };
                if x.value.element() == F32 && self.below(2) == 0 {
                    let fill = self.constant(Array::scalar(0.5f32));
                    return self.one(operator, &[&x, &fill]);
                }
                self.one(operator, &[&x])
            }
            _ => {
                let operator = Op::Trilu { upper: self.below(2) == 0, k: self.below(4) as i64 - 2 };
                self.one(operator, &[&x])
            }
        }
    }

    #[allow(clippy::cast_possible_wrap)]
    fn parts(&mut self) -> Option<Item> {
        let x = self.any(|item| !item.dims().is_empty())?;
        let axis = self.axis(&x);
        let length = x.dims()[axis];
        match self.below(3) {
            0 => {
                let y = self.any(|item| {
                    let is_like = |(along, (a, b)): (usize, (&usize, &usize))| along == axis || a == b;
                    item.value.element() == x.value.element()
                        && item.dims().len() == x.dims().len()
                        && item.dims().iter().zip(x.dims()).enumerate().all(is_like)
                })?;
                self.one(Op::Concat { axis: axis as i64 }, &[&x, &y])
            }
            1 => {
                let first = self.below(length + 1);
                let lengths = vec![first, length - first];
                self.add(Op::Split { axis: axis as i64, lengths }, &[Some(&x)])?.pop()
            }
            _ => {
                let step = [1, 2, -1][self.below(3)];
                let (start, end) = if step > 0 { (self.below(2) as i64, i64::MAX) } else { (-1, i64::MIN) };
                let operator = Op::Slice {
                    starts: vec![start],
                    ends: vec![end],
                    axes: vec![axis as i64],
                    steps: vec![step],
                };
                self.one(operator, &[&x])
            }
        }
    }

    #[allow(clippy::cast_possible_wrap)]
    fn gather(&mut self) -> Option<Item> {
        let x = self.any(|item| !item.dims().is_empty())?;
        let axis = self.axis(&x);
        let length = x.dims()[axis];
        let rows = if length == 0 { 0 } else { 1 + self.below(5) };
        let at = (0..rows).map(|_| self.random.below(2 * length) as i64 - length as i64).collect();
        let at = self.constant(Array::new(&[rows], at).unwrap());
        self.one(Op::Gather { axis: axis as i64 }, &[&x, &at])
    }

    /// Outputs are what nothing reads.
    fn finish(mut self) -> (Graph, Vec<Array>) {
        // An input that nothing reads is none.
        let unread: Vec<_> =
            self.pool.iter().take(self.inputs.len()).filter(|item| !item.is_read).cloned().collect();
        for item in &unread {
            self.g.node(Op::Identity, &[Some(item.value)]).map(|_| ()).unwrap();
        }
        let results: Vec<_> = self
            .pool
            .iter()
            .skip(self.inputs.len())
            .filter(|item| !item.is_read)
            .map(|item| item.value)
            .collect();
        let names: Vec<_> = (0..results.len()).map(|index| format!("y{index}")).collect();
        let outputs: Vec<_> = names.iter().map(String::as_str).zip(results).collect();
        (self.g.finish(&outputs).unwrap(), self.inputs)
    }
}

/// What gives some values of a graph: the nodes on the way there from inputs and constants, and from values that are
/// cut, which become inputs.
pub(crate) fn part_of(
    graph: &Graph,
    inputs: &[Array],
    outputs: &[usize],
    cut: &HashMap<usize, Array>,
) -> (Graph, Vec<Array>) {
    let mut needed = vec![false; graph.values.len()];
    for index in outputs {
        needed[*index] = true;
    }
    let mut nodes = Vec::new();
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().any(|index| needed[*index] && !cut.contains_key(index)) {
            nodes.push(node.clone());
            node.outputs.iter().chain(node.inputs.iter().flatten()).for_each(|index| needed[*index] = true);
        }
    }
    nodes.reverse();
    let computed: Vec<_> = nodes.iter().flat_map(|node| node.outputs.clone()).collect();
    let mut places = vec![None; graph.values.len()];
    let mut part = Graph {
        id: GraphId::new(),
        named: None,
        values: vec![],
        nodes: vec![],
        inputs: vec![],
        outputs: vec![],
        leading: None,
    };
    let mut arrays = Vec::new();
    for (index, value) in graph.values.iter().enumerate().filter(|(index, _)| needed[*index]) {
        let mut value = value.clone();
        let place = part.values.len();
        let is_cut = cut.contains_key(&index) && !computed.contains(&index);
        if matches!(value.source, Source::Input) || is_cut {
            value.source = Source::Input;
            part.inputs.push(place);
            let of_input = graph.inputs.iter().position(|input| *input == index);
            arrays.push(of_input.map_or_else(|| cut[&index].clone(), |input| inputs[input].clone()));
        }
        places[index] = Some(place);
        part.values.push(value);
    }
    for node in &mut nodes {
        node.inputs.iter_mut().flatten().for_each(|index| *index = places[*index].unwrap());
        node.outputs.iter_mut().for_each(|index| *index = places[*index].unwrap());
    }
    part.nodes = nodes;
    part.outputs = outputs
        .iter()
        .enumerate()
        .map(|(number, index)| (format!("y{number}"), places[*index].unwrap()))
        .collect();
    (part, arrays)
}

/// A smaller graph that fails too: with fewer outputs, earlier ones, and values of the f32 interpretation as inputs.
pub(crate) fn shrink(
    mut graph: Graph,
    mut inputs: Vec<Array>,
    fails: impl Fn(&Graph, &[Array]) -> bool,
) -> (Graph, Vec<Array>) {
    'smaller: loop {
        let outputs: Vec<_> = graph.outputs.iter().map(|(_, index)| *index).collect();
        let values = super::checks::plain_values(&graph, &inputs);
        let of_node = |index: usize| graph.nodes.iter().find(|node| node.outputs.contains(&index));
        let uncut = HashMap::new();
        let mut candidates: Vec<(Vec<usize>, HashMap<usize, Array>)> = Vec::new();
        if outputs.len() > 1 {
            candidates.extend(outputs.iter().map(|index| (vec![*index], uncut.clone())));
            candidates.extend(outputs.iter().map(|dropped| {
                (outputs.iter().copied().filter(|index| index != dropped).collect(), uncut.clone())
            }));
        }
        // The last node is left out.
        for node in outputs.iter().filter_map(|index| of_node(*index)) {
            let before = node.inputs.iter().flatten().copied().filter(|index| of_node(*index).is_some());
            let mut before: Vec<_> = before.collect();
            before.dedup();
            if outputs.len() == 1 && !before.is_empty() {
                candidates.push((before, uncut.clone()));
            }
        }
        for node in graph.nodes.iter().rev().flat_map(|node| &node.outputs) {
            if let (false, Some(array)) = (outputs.contains(node), &values[*node]) {
                candidates.push((outputs.clone(), HashMap::from([(*node, array.clone())])));
            }
        }
        for (outputs, cut) in candidates {
            let (smaller, smaller_inputs) = part_of(&graph, &inputs, &outputs, &cut);
            let size = |graph: &Graph| (graph.nodes.len(), graph.outputs.len());
            if size(&smaller) < size(&graph) && fails(&smaller, &smaller_inputs) {
                (graph, inputs) = (smaller, smaller_inputs);
                continue 'smaller;
            }
        }
        return (graph, inputs);
    }
}
