//! A graph as bytes: what a helper process is sent, and what keys are made of.
//!
//! Words of 64 bits, little-endian; the values in their order, each node in place of its results.

use std::sync::Arc;

use crate::alloc;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::NibbleOrder;
use crate::error::{Error, Result};
use crate::graph::array::{Array, Elements};
use crate::graph::builder::{GraphBuilder, Value};
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::operator::{Attention, Groups, Operator, PoolKernel, Reduce, Window};
use crate::graph::shape::{Shape, TensorType};
use crate::operands::int4::Int4View;
use crate::operands::view::{AnyView, TensorView};
use crate::operands::weights::Weights;

const WHAT: &str = "a graph as bytes";

const INPUT: u64 = 0;
const CONSTANT: u64 = 1;
const WEIGHTS: u64 = 2;
const NODE: u64 = 3;
const END: u64 = 4;

/// What stands for the contents of constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    Elements,
    /// Their BLAKE3, from which no graph is made again.
    Hashes,
}

impl Graph {
    /// All that the graph is, names included.
    pub(crate) fn to_bytes(&self, contents: Contents) -> Result<Vec<u8>> {
        let mut writer = Writer { bytes: Vec::new(), contents };
        let mut nodes = self.nodes.iter();
        let mut index = 0;
        while let Some(value) = self.values.get(index) {
            index += 1;
            let kind = match &value.source {
                Source::Input => INPUT,
                Source::Constant(_) => CONSTANT,
                Source::Weights(_) => WEIGHTS,
                Source::Absent => return Err(Error::graph("it is what a pass left of another graph".into())),
                Source::Node => {
                    // Results stand one after the other, in the order of the nodes.
                    let node = nodes.next().filter(|node| node.outputs.first() == Some(&(index - 1)));
                    let node = node.ok_or_else(|| Error::graph("its values are in no order".into()))?;
                    writer.node(node)?;
                    index += node.outputs.len() - 1;
                    continue;
                }
            };
            writer.word(kind)?;
            writer.text(&value.name)?;
            writer.tensor_type(value.tensor_type)?;
            match &value.source {
                Source::Constant(array) => writer.array(array)?,
                Source::Weights(weights) => writer.weights(weights)?,
                Source::Input | Source::Node | Source::Absent => {}
            }
        }
        writer.word(END)?;
        writer.size(self.outputs.len())?;
        for (name, value) in &self.outputs {
            writer.text(name)?;
            writer.size(*value)?;
        }
        for input in &self.inputs {
            writer
                .word(self.leading.as_ref().is_some_and(|leading| leading.values[*input].is_some()).into())?;
        }
        Ok(writer.bytes)
    }

    /// What [`Graph::to_bytes`] with the elements was made of: another graph with the same values.
    ///
    /// # Errors
    /// [`Error::Graph`] for anything else; [`Error::OutOfMemory`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let mut g = GraphBuilder::new();
        let (mut values, mut inputs): (Vec<Value>, Vec<String>) = Default::default();
        loop {
            match reader.word()? {
                INPUT => {
                    let (name, of) = (reader.text()?, reader.tensor_type()?);
                    values.push(g.input(name.clone(), of.element, of.shape.dims())?);
                    inputs.push(name);
                }
                CONSTANT => {
                    let (name, of) = (reader.text()?, reader.tensor_type()?);
                    let array = reader.array(of)?;
                    values.push(g.value(name, of, Source::Constant(Arc::new(array))));
                }
                WEIGHTS => {
                    let (name, of) = (reader.text()?, reader.tensor_type()?);
                    let weights = reader.weights(of)?;
                    values.push(g.value(name, of, Source::Weights(weights)));
                }
                NODE => {
                    let (name, operator) = (reader.text()?, reader.operator()?);
                    let mut operands = Vec::new();
                    for _ in 0..reader.size()? {
                        operands.push(match reader.size()?.checked_sub(1) {
                            None => None,
                            Some(index) => Some(*values.get(index).ok_or_else(damaged)?),
                        });
                    }
                    values.extend(g.named(name).node(operator, &operands)?);
                }
                END => break,
                _ => return Err(damaged()),
            }
        }
        let mut outputs = Vec::new();
        for _ in 0..reader.size()? {
            let name = reader.text()?;
            outputs.push((name, *values.get(reader.size()?).ok_or_else(damaged)?));
        }
        let outputs: Vec<_> = outputs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let graph = g.finish(&outputs)?;
        let mut variable = Vec::new();
        for name in &inputs {
            if reader.word()? != 0 {
                variable.push(name.as_str());
            }
        }
        if !reader.0.is_empty() {
            return Err(damaged());
        }
        if variable.is_empty() { Ok(graph) } else { graph.variable_leading(&variable) }
    }
}

fn damaged() -> Error {
    Error::graph("the bytes are not those of a graph".into())
}

/// Visits an attribute as a word: reads it, or writes to it.
type Visit<'a> = dyn FnMut(&mut u64) -> Result<()> + 'a;

fn number(value: &mut i64, visit: &mut Visit<'_>) -> Result<()> {
    let mut word = value.cast_unsigned();
    visit(&mut word)?;
    *value = word.cast_signed();
    Ok(())
}

fn size(value: &mut usize, visit: &mut Visit<'_>) -> Result<()> {
    let mut word = *value as u64;
    visit(&mut word)?;
    *value = usize::try_from(word).map_err(|_| damaged())?;
    Ok(())
}

fn flag(value: &mut bool, visit: &mut Visit<'_>) -> Result<()> {
    let mut word = u64::from(*value);
    visit(&mut word)?;
    *value = word != 0;
    Ok(())
}

fn float(value: &mut f32, visit: &mut Visit<'_>) -> Result<()> {
    let mut word = u64::from(value.to_bits());
    visit(&mut word)?;
    *value = f32::from_bits(u32::try_from(word).map_err(|_| damaged())?);
    Ok(())
}

fn element(value: &mut ElementType, visit: &mut Visit<'_>) -> Result<()> {
    let mut index = ElementType::ALL.iter().position(|other| other == value).unwrap_or(usize::MAX);
    size(&mut index, visit)?;
    *value = *ElementType::ALL.get(index).ok_or_else(damaged)?;
    Ok(())
}

fn list<T: Default>(
    list: &mut Vec<T>,
    each: fn(&mut T, &mut Visit<'_>) -> Result<()>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let mut count = list.len();
    size(&mut count, visit)?;
    for index in 0..count {
        // One by one: what a number of elements says is not believed.
        if index == list.len() {
            list.push(T::default());
        }
        each(&mut list[index], visit)?;
    }
    Ok(())
}

fn optional<T: Default>(
    value: &mut Option<T>,
    each: impl FnOnce(&mut T, &mut Visit<'_>) -> Result<()>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let mut is_there = value.is_some();
    flag(&mut is_there, visit)?;
    if is_there { each(value.get_or_insert_default(), visit) } else { Ok(()) }
}

fn window(Window { strides, pads, dilations }: &mut Window, visit: &mut Visit<'_>) -> Result<()> {
    [strides, pads, dilations].into_iter().try_for_each(|sizes| list(sizes, size, visit))
}

fn kernel(PoolKernel { shape, ceil_mode }: &mut PoolKernel, visit: &mut Visit<'_>) -> Result<()> {
    list(shape, size, visit)?;
    flag(ceil_mode, visit)
}

fn reduce(Reduce { axes, keepdims }: &mut Reduce, visit: &mut Visit<'_>) -> Result<()> {
    optional(axes, |axes, visit| list(axes, number, visit), visit)?;
    flag(keepdims, visit)
}

/// All attributes of an operator.
#[allow(clippy::too_many_lines, reason = "a table of operators")]
fn attributes(operator: &mut Operator, visit: &mut Visit<'_>) -> Result<()> {
    use Operator as Op;
    match operator {
        Op::Abs
        | Op::Neg
        | Op::Reciprocal
        | Op::Sqrt
        | Op::Exp
        | Op::Log
        | Op::Erf
        | Op::Relu
        | Op::Sigmoid
        | Op::HardSwish
        | Op::Tanh
        | Op::Clip
        | Op::Not
        | Op::Identity
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Pow
        | Op::Min
        | Op::Max
        | Op::Equal
        | Op::Greater
        | Op::GreaterOrEqual
        | Op::Less
        | Op::LessOrEqual
        | Op::And
        | Op::Or
        | Op::Where
        | Op::MatMul
        | Op::GlobalAveragePool => Ok(()),
        Op::LeakyRelu { alpha } => float(alpha, visit),
        Op::Gelu { tanh } => flag(tanh, visit),
        Op::HardSigmoid { alpha, beta } => {
            float(alpha, visit)?;
            float(beta, visit)
        }
        Op::Cast { to } => element(to, visit),
        Op::Gemm { alpha, beta, transpose_a, transpose_b } => {
            float(alpha, visit)?;
            float(beta, visit)?;
            flag(transpose_a, visit)?;
            flag(transpose_b, visit)
        }
        Op::Conv(of, Groups(groups)) => {
            window(of, visit)?;
            size(groups, visit)
        }
        Op::BatchNormalization { epsilon } => float(epsilon, visit),
        Op::LayerNormalization { axis, epsilon } | Op::RmsNormalization { axis, epsilon } => {
            number(axis, visit)?;
            float(epsilon, visit)
        }
        Op::Attention(Attention { heads, scale, is_causal }) => {
            let both = |(q, kv): &mut (usize, usize), visit: &mut Visit<'_>| {
                size(q, visit)?;
                size(kv, visit)
            };
            optional(heads, both, visit)?;
            optional(scale, float, visit)?;
            flag(is_causal, visit)
        }
        Op::QuantizeLinear { axis, block_size, output }
        | Op::DequantizeLinear { axis, block_size, output } => {
            number(axis, visit)?;
            size(block_size, visit)?;
            element(output, visit)
        }
        Op::Reshape { shape } => list(shape, number, visit),
        Op::Squeeze { axes } => optional(axes, |axes, visit| list(axes, number, visit), visit),
        Op::Unsqueeze { axes } => list(axes, number, visit),
        Op::Expand { shape } => list(shape, size, visit),
        Op::Transpose { perm } => list(perm, size, visit),
        Op::Softmax { axis } | Op::Flatten { axis } | Op::Concat { axis } | Op::Gather { axis } => {
            number(axis, visit)
        }
        Op::Split { axis, lengths } => {
            number(axis, visit)?;
            list(lengths, size, visit)
        }
        Op::Slice { starts, ends, axes, steps } => {
            [starts, ends, axes, steps].into_iter().try_for_each(|numbers| list(numbers, number, visit))
        }
        Op::Pad { pads } => list(pads, number, visit),
        Op::Trilu { upper, k } => {
            flag(upper, visit)?;
            number(k, visit)
        }
        Op::ReduceSum(of) | Op::ReduceMean(of) | Op::ReduceMax(of) | Op::ReduceL2(of) => reduce(of, visit),
        Op::MaxPool(of, size) => {
            window(of, visit)?;
            kernel(size, visit)
        }
        Op::AveragePool { window: of, kernel: size, count_include_pad } => {
            window(of, visit)?;
            kernel(size, visit)?;
            flag(count_include_pad, visit)
        }
    }
}

/// Every operator, with attributes to be read over.
fn blank() -> [Operator; 62] {
    use Operator as Op;
    let (axis, epsilon, alpha, beta) = (0, 0.0, 0.0, 0.0);
    let (block_size, output) = (0, ElementType::F32);
    let reduce = || Reduce { axes: None, keepdims: false };
    let kernel = || PoolKernel { shape: Vec::new(), ceil_mode: false };
    let none = Vec::new;
    [
        Op::Abs,
        Op::Neg,
        Op::Reciprocal,
        Op::Sqrt,
        Op::Exp,
        Op::Log,
        Op::Erf,
        Op::Relu,
        Op::LeakyRelu { alpha },
        Op::Gelu { tanh: false },
        Op::Sigmoid,
        Op::HardSigmoid { alpha, beta },
        Op::HardSwish,
        Op::Tanh,
        Op::Clip,
        Op::Not,
        Op::Identity,
        Op::Cast { to: output },
        Op::Add,
        Op::Sub,
        Op::Mul,
        Op::Div,
        Op::Pow,
        Op::Min,
        Op::Max,
        Op::Equal,
        Op::Greater,
        Op::GreaterOrEqual,
        Op::Less,
        Op::LessOrEqual,
        Op::And,
        Op::Or,
        Op::Where,
        Op::MatMul,
        Op::Gemm { alpha, beta, transpose_a: false, transpose_b: false },
        Op::Conv(Window::default(), Groups::default()),
        Op::BatchNormalization { epsilon },
        Op::LayerNormalization { axis, epsilon },
        Op::RmsNormalization { axis, epsilon },
        Op::Softmax { axis },
        Op::Attention(Attention::default()),
        Op::QuantizeLinear { axis, block_size, output },
        Op::DequantizeLinear { axis, block_size, output },
        Op::Reshape { shape: none() },
        Op::Flatten { axis },
        Op::Squeeze { axes: None },
        Op::Unsqueeze { axes: none() },
        Op::Expand { shape: Vec::new() },
        Op::Transpose { perm: Vec::new() },
        Op::Concat { axis },
        Op::Split { axis, lengths: Vec::new() },
        Op::Slice { starts: none(), ends: none(), axes: none(), steps: none() },
        Op::Pad { pads: none() },
        Op::Trilu { upper: false, k: 0 },
        Op::Gather { axis },
        Op::ReduceSum(reduce()),
        Op::ReduceMean(reduce()),
        Op::ReduceMax(reduce()),
        Op::ReduceL2(reduce()),
        Op::MaxPool(Window::default(), kernel()),
        Op::AveragePool { window: Window::default(), kernel: kernel(), count_include_pad: false },
        Op::GlobalAveragePool,
    ]
}

/// Element types whose elements are Rust's, with their names among elements and views.
macro_rules! each_type {
    ($all:ident) => {
        $all! {
            F64: f64, F32: f32,
            #[cfg(feature = "half")] F16: half::f16,
            #[cfg(feature = "half")] Bf16: half::bf16,
            I32: i32, I8: i8, U8: u8,
        }
    };
}

struct Writer {
    bytes: Vec<u8>,
    contents: Contents,
}

impl Writer {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        // Grows as vectors do.
        let out_of_memory = |_| Error::OutOfMemory { what: WHAT, bytes: bytes.len() };
        self.bytes.try_reserve(bytes.len()).map_err(out_of_memory)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn word(&mut self, word: u64) -> Result<()> {
        self.add(&word.to_le_bytes())
    }

    fn size(&mut self, size: usize) -> Result<()> {
        self.word(size as u64)
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.size(text.len())?;
        self.add(text.as_bytes())
    }

    fn tensor_type(&mut self, of: TensorType) -> Result<()> {
        let (mut type_of, mut dims) = (of.element, of.shape.dims().to_vec());
        let mut visit = |word: &mut u64| self.word(*word);
        element(&mut type_of, &mut visit)?;
        list(&mut dims, size, &mut visit)
    }

    fn node(&mut self, node: &NodeInfo) -> Result<()> {
        self.word(NODE)?;
        self.text(&node.name)?;
        self.text(node.operator.name())?;
        attributes(&mut node.operator.clone(), &mut |word| self.word(*word))?;
        self.size(node.inputs.len())?;
        node.inputs.iter().try_for_each(|input| self.size(input.map_or(0, |index| index + 1)))
    }

    /// Elements, from where what holds them begins to the end of the bytes; or their hash.
    fn elements<const N: usize>(&mut self, elements: impl Iterator<Item = [u8; N]>) -> Result<()> {
        let mut chunk: Vec<u8> = alloc::with_capacity(1 << 14, WHAT)?;
        let mut hasher = blake3::Hasher::new();
        let mut flush = |chunk: &mut Vec<u8>| -> Result<()> {
            match self.contents {
                Contents::Elements => self.add(chunk)?,
                Contents::Hashes => {
                    hasher.update(chunk);
                }
            }
            chunk.clear();
            Ok(())
        };
        for bytes in elements {
            if chunk.len() + N > chunk.capacity() {
                flush(&mut chunk)?;
            }
            chunk.extend_from_slice(&bytes);
        }
        flush(&mut chunk)?;
        if self.contents == Contents::Hashes {
            self.add(hasher.finalize().as_bytes())?;
        }
        Ok(())
    }

    fn array(&mut self, array: &Array) -> Result<()> {
        macro_rules! all {
            ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
                match array.elements() {
                    $($(#[$meta])* Elements::$variant(data) => {
                        self.elements(data.iter().map(|element| element.to_le_bytes()))
                    })*
                    Elements::I64(data) => self.elements(data.iter().map(|element| element.to_le_bytes())),
                    Elements::Bool(data) => self.elements(data.iter().map(|element| [u8::from(*element)])),
                }
            };
        }
        each_type! { all }
    }

    /// Whichever way they are stored: as they are multiplied.
    fn weights(&mut self, weights: &Weights) -> Result<()> {
        if self.contents == Contents::Hashes {
            return self.add(weights.content_hash());
        }
        let weights = weights.in_order()?;
        for dim in [weights.layout().batch(), weights.k(), weights.n()] {
            self.size(dim)?;
        }
        macro_rules! all {
            ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
                match weights.view() {
                    $($(#[$meta])* AnyView::$variant(view) => {
                        self.elements(view.data().iter().map(|element| element.to_le_bytes()))
                    })*
                    AnyView::Int4(view) => {
                        self.word(u64::from(view.nibble_order() == NibbleOrder::LowFirst))?;
                        self.elements(view.bytes().iter().map(|byte| [*byte]))
                    }
                    AnyView::Device(_) => Err(Error::graph("weights lie on the host".into())),
                }
            };
        }
        each_type! { all }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u64> {
        let bytes = self.take(8)?.try_into().map_err(|_| damaged())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn size(&mut self) -> Result<usize> {
        usize::try_from(self.word()?).map_err(|_| damaged())
    }

    fn text(&mut self) -> Result<String> {
        let length = self.size()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| damaged())?;
        Ok(text.to_owned())
    }

    fn read(&mut self, word: &mut u64) -> Result<()> {
        *word = self.word()?;
        Ok(())
    }

    fn tensor_type(&mut self) -> Result<TensorType> {
        let (mut type_of, mut dims) = (ElementType::F32, Vec::new());
        let mut visit = |word: &mut u64| self.read(word);
        element(&mut type_of, &mut visit)?;
        list(&mut dims, size, &mut visit)?;
        Ok(TensorType::new(type_of, Shape::new(&dims)?))
    }

    fn operator(&mut self) -> Result<Operator> {
        let name = self.text()?;
        let mut operator = blank().into_iter().find(|other| other.name() == name).ok_or_else(damaged)?;
        attributes(&mut operator, &mut |word| self.read(word))?;
        Ok(operator)
    }

    /// The next `count` elements.
    fn elements<T, const N: usize>(&mut self, count: usize, of: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.take(count.checked_mul(N).ok_or_else(damaged)?)?;
        let mut elements = alloc::with_capacity(count, WHAT)?;
        elements.extend(bytes.as_chunks().0.iter().map(|bytes| of(*bytes)));
        Ok(elements)
    }

    fn array(&mut self, of: TensorType) -> Result<Array> {
        let (dims, count) = (of.shape.dims(), of.shape.count());
        macro_rules! all {
            ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
                match of.element {
                    $($(#[$meta])* ElementType::$variant => {
                        Array::new(dims, self.elements(count, <$rust>::from_le_bytes)?)
                    })*
                    ElementType::I64 => Array::new(dims, self.elements(count, i64::from_le_bytes)?),
                    ElementType::Bool => Array::new(dims, self.elements(count, |[byte]| byte != 0)?),
                    _ => Err(damaged()),
                }
            };
        }
        each_type! { all }
    }

    fn weights(&mut self, of: TensorType) -> Result<Weights> {
        let [batch, k, n] = [self.size()?, self.size()?, self.size()?];
        let layout = Layout::packed(batch, k, n)?;
        let count = layout.span();
        if count != of.shape.count() {
            return Err(damaged());
        }
        macro_rules! all {
            ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
                match of.element {
                    $($(#[$meta])* ElementType::$variant => {
                        let data = self.elements(count, <$rust>::from_le_bytes)?;
                        Weights::new(TensorView::with_layout(&data, layout)?)
                    })*
                    ElementType::I4 | ElementType::U4 => {
                        let low_first = self.word()? != 0;
                        let order = if low_first { NibbleOrder::LowFirst } else { NibbleOrder::HighFirst };
                        let bytes = self.take(count.div_ceil(2))?;
                        Weights::new(match of.element {
                            ElementType::I4 => Int4View::signed(bytes, layout, order)?,
                            _ => Int4View::unsigned(bytes, layout, order)?,
                        })
                    }
                    _ => Err(damaged()),
                }
            };
        }
        each_type! { all }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::graph::tests::cases::cases;
    use crate::graph::tests::fixtures;
    use crate::graph::tests::random::random_graph;
    use crate::operands::quantize::WeightScheme;
    use crate::operands::tensor::Tensor;

    fn key(graph: &Graph) -> Vec<u8> {
        graph.to_bytes(Contents::Hashes).unwrap()
    }

    fn assert_round_trip(graph: &Graph) {
        let bytes = graph.to_bytes(Contents::Elements).unwrap();
        let again = Graph::from_bytes(&bytes).unwrap();
        assert_eq!(graph.to_string(), again.to_string());
        assert_eq!(bytes, again.to_bytes(Contents::Elements).unwrap());
    }

    #[test]
    fn every_operator_comes_back() {
        let mut seen = HashSet::new();
        for (_, graph, _) in cases() {
            seen.extend(graph.nodes().map(|(_, operator)| operator.name()));
            assert_round_trip(&graph);
        }
        for seed in 0..10 {
            assert_round_trip(&random_graph(seed, 60, |_| true).0);
        }
        for operator in blank() {
            assert!(seen.remove(operator.name()), "{operator}");
        }
        assert!(seen.is_empty(), "{seen:?}");
    }

    #[test]
    fn weights_of_all_types_and_a_variable_leading_dimension_come_back() {
        let small = fixtures::Encoder::SMALL;
        assert_round_trip(&small.bert().unwrap());
        let weights = Weights::from_tensor(Tensor::random_normal_f32(6, 4, 1.0, 1).unwrap());
        let stored = weights.transposed().unwrap();
        let (int4, _) = weights.quantize(&WeightScheme::INT4).unwrap();
        let mut g = GraphBuilder::new();
        let x = g.input("x", ElementType::F32, &[5, 6]).unwrap();
        let one = g.linear("one", x, &weights, None).unwrap();
        let back = g.linear("back", one, &stored, None).unwrap();
        let y = g.linear("two", back, &int4, None).unwrap();
        let graph = g.finish(&[("y", y)]).unwrap();
        assert_round_trip(&graph);
        // In whichever order they were stored.
        let again = Graph::from_bytes(&graph.to_bytes(Contents::Elements).unwrap()).unwrap();
        let x = Array::new(&[5, 6], (0u8..30).map(f32::from).collect()).unwrap();
        assert_eq!(graph.interpret_f64(&[&x]).unwrap(), again.interpret_f64(&[&x]).unwrap());
        let variable = graph.clone().variable_leading(&["x"]).unwrap();
        assert_round_trip(&variable);
        assert_ne!(key(&graph), key(&variable));
    }

    #[test]
    fn a_key_is_of_contents_and_of_every_attribute() {
        let graph = |alpha: f32, constant: f32, weight: f32, name: &str| {
            let mut weights = Tensor::filled(3, 2, 1f32).unwrap();
            weights.data_mut()[5] = weight;
            let mut g = GraphBuilder::new();
            let x = g.input("x", ElementType::F32, &[4, 3]).unwrap();
            let h = g.linear("h", x, &Weights::from_tensor(weights), None).unwrap();
            let c = g.constant("c", Array::new(&[2], vec![1.0, constant]).unwrap()).unwrap();
            let sum = g.named(name).add(h, c).unwrap();
            let y = g.leaky_relu(sum, alpha).unwrap();
            key(&g.finish(&[("y", y)]).unwrap())
        };
        let one = graph(0.5, 2.0, 3.0, "sum");
        assert_eq!(one, graph(0.5, 2.0, 3.0, "sum"));
        for other in [
            graph(0.25, 2.0, 3.0, "sum"),
            graph(0.5, 2.5, 3.0, "sum"),
            graph(0.5, 2.0, 3.5, "sum"),
            graph(0.5, 2.0, 3.0, "total"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn cuts_and_changed_bytes_are_errors_or_graphs() {
        let (graph, _) = random_graph(3, 12, |_| true);
        let bytes = graph.to_bytes(Contents::Elements).unwrap();
        for length in (0..bytes.len()).step_by(bytes.len() / 500 + 1) {
            assert!(Graph::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
        for index in (0..bytes.len()).step_by(bytes.len() / 500 + 1) {
            for value in [0xff, bytes[index] ^ 1, 0] {
                let mut changed = bytes.clone();
                changed[index] = value;
                if let Ok(graph) = Graph::from_bytes(&changed) {
                    assert!(!graph.to_string().is_empty());
                }
            }
        }
    }
}
