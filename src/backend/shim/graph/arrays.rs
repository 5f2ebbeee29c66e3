//! A graph as the flat arrays of `include/ane_graph.h`.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::alloc;
use crate::backend::shim::buffers::{Constant, Constants};
use crate::backend::shim::convert::{element_type, nibble_order};
use crate::backend::shim::table::size_u32;
use crate::backend::shim::{DeviceHandle, sys};
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::description::{Graph, NodeInfo, Source};
use crate::graph::leading::Varying;
use crate::graph::shape::TensorType;
use crate::graph::{MAX_RANK, Shape};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// An operand that is left out: `ANE_GRAPH_NONE`.
pub(in crate::backend::shim) const NONE: u32 = u32::MAX;

/// All that a description points at, except for the graph's own constants. Values have their indices in the graph;
/// initializers of attributes come after them.
pub(super) struct Arrays<'a> {
    tensors: Vec<sys::ANETensor>,
    nodes: Vec<sys::ANENode>,
    operands: Vec<u32>,
    attributes: Vec<sys::ANEAttribute>,
    integers: Vec<i64>,
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    flags: u32,
    /// Of the constants on the device.
    pub(super) constants: Vec<Arc<Constant>>,
    names: Vec<CString>,
    /// Contents of the initializers that stand for attributes.
    contents: Vec<Box<[i64]>>,
    /// Those in the order in which they cross.
    weights: Vec<Weights>,
    graph: PhantomData<&'a Graph>,
}

impl<'a> Arrays<'a> {
    /// With `device`, weights are constants of it.
    pub(super) fn new(graph: &'a Graph, device: Option<&Arc<DeviceHandle>>) -> Result<Self> {
        let mut arrays = Self {
            tensors: alloc::with_capacity(graph.values.len(), "a graph's tensors")?,
            nodes: alloc::with_capacity(graph.nodes.len(), "a graph's nodes")?,
            operands: Vec::new(),
            attributes: Vec::new(),
            integers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            flags: 0,
            constants: Vec::new(),
            names: Vec::new(),
            contents: Vec::new(),
            weights: Vec::new(),
            graph: PhantomData,
        };
        if graph.leading.is_some() {
            arrays.flags |= sys::ANE_GRAPH_VARIABLE_LEADING.cast_unsigned();
        }
        for (index, value) in graph.values.iter().enumerate() {
            let varying = graph.leading.as_ref().and_then(|leading| leading.values[index]);
            let tensor = arrays.tensor(&value.name, value.tensor_type, varying);
            arrays.tensors.push(tensor);
            match &value.source {
                Source::Input | Source::Node | Source::Absent => {}
                Source::Constant(array) => {
                    arrays.fill(index, array.elements().start().cast(), array.tensor_type().bytes());
                }
                Source::Weights(weights) => arrays.fill_with_weights(index, weights, device)?,
            }
        }
        for node in &graph.nodes {
            arrays.node(graph, node)?;
        }
        for input in &graph.inputs {
            arrays.inputs.push(count(*input)?);
        }
        for output in written_outputs(graph) {
            arrays.outputs.push(count(graph.outputs[output].1)?);
        }
        Ok(arrays)
    }

    /// Borrows the arrays: the result must not outlive them.
    pub(super) fn desc(&self) -> Result<sys::ANEGraphDesc> {
        Ok(sys::ANEGraphDesc {
            struct_size: size_u32::<sys::ANEGraphDesc>(),
            flags: self.flags,
            tensor_size: size_u32::<sys::ANETensor>(),
            node_size: size_u32::<sys::ANENode>(),
            attribute_size: size_u32::<sys::ANEAttribute>(),
            tensor_count: count(self.tensors.len())?,
            node_count: count(self.nodes.len())?,
            operand_count: count(self.operands.len())?,
            attribute_count: count(self.attributes.len())?,
            integer_count: count(self.integers.len())?,
            input_count: count(self.inputs.len())?,
            output_count: count(self.outputs.len())?,
            tensors: self.tensors.as_ptr(),
            nodes: self.nodes.as_ptr(),
            operands: self.operands.as_ptr(),
            attributes: self.attributes.as_ptr(),
            integers: self.integers.as_ptr(),
            inputs: self.inputs.as_ptr(),
            outputs: self.outputs.as_ptr(),
            content_hash: [0; 32],
        })
    }

    fn name(&mut self, name: &str) -> *const std::ffi::c_char {
        // Without a NUL there is no error.
        let name = CString::new(name.replace('\0', "\u{FFFD}")).unwrap_or_default();
        // The characters stay where they are when the vector grows.
        let start = name.as_ptr();
        self.names.push(name);
        start
    }

    fn tensor(&mut self, name: &str, of: TensorType, varying: Option<Varying>) -> sys::ANETensor {
        let mut dims = [0; MAX_RANK];
        for (to, dim) in dims.iter_mut().zip(of.shape.dims()) {
            *to = *dim as u64;
        }
        sys::ANETensor {
            name: self.name(name),
            type_: element_type(of.element),
            // At most MAX_RANK.
            rank: u32::try_from(of.shape.rank()).unwrap_or_default(),
            dims,
            data: std::ptr::null(),
            bytes: 0,
            constant: std::ptr::null_mut(),
            flags: 0,
            nibble_order: 0,
            variable_axis: varying.map_or(-1, |varying| i32::try_from(varying.axis).unwrap_or(-1)),
            reserved0: 0,
            variable_count: varying.map_or(0, |varying| varying.count as u64),
        }
    }

    /// Contents that stay where they are while the arrays are used.
    fn fill(&mut self, tensor: usize, data: *const std::ffi::c_void, bytes: usize) {
        let tensor = &mut self.tensors[tensor];
        tensor.flags |= sys::ANE_TENSOR_INITIALIZER.cast_unsigned();
        (tensor.data, tensor.bytes) = (data, bytes as u64);
    }

    fn fill_with_weights(
        &mut self,
        index: usize,
        weights: &Weights,
        device: Option<&Arc<DeviceHandle>>,
    ) -> Result<()> {
        let weights = weights.in_order()?;
        let (data, bytes) = weights.view().memory();
        self.fill(index, data.cast(), bytes);
        if let AnyView::Int4(view) = weights.view() {
            self.tensors[index].nibble_order = nibble_order(view.nibble_order());
        }
        // A single element has plain memory everywhere.
        let elements: u64 = self.tensors[index].dims[..self.tensors[index].rank as usize].iter().product();
        if let Some(device) = device.filter(|_| elements > 1) {
            let constant = Constants::of(device, &weights, false)?;
            self.tensors[index].data = std::ptr::null();
            self.tensors[index].constant = constant.raw.as_ptr();
            self.constants.push(constant);
        }
        self.weights.push(weights);
        Ok(())
    }

    fn node(&mut self, graph: &Graph, node: &NodeInfo) -> Result<()> {
        let (first_operand, first_attribute) = (count(self.operands.len())?, count(self.attributes.len())?);
        let op = self.operator(graph, node)?;
        for output in &node.outputs {
            let output = count(*output)?;
            self.operands.push(output);
        }
        let (end, attribute_end) = (count(self.operands.len())?, count(self.attributes.len())?);
        let output_count = count(node.outputs.len())?;
        let name = self.name(&node.name);
        self.nodes.push(sys::ANENode {
            name,
            op,
            first_operand,
            input_count: end - first_operand - output_count,
            output_count,
            first_attribute,
            attribute_count: attribute_end - first_attribute,
        });
        Ok(())
    }

    /// Values in an operator's order.
    pub(super) fn values(&mut self, values: &[Option<usize>]) -> Result<()> {
        for value in values {
            let operand = value.map_or(Ok(NONE), count)?;
            self.operands.push(operand);
        }
        Ok(())
    }

    /// An input that is an initializer here: a list, or a single number without dimensions.
    pub(super) fn initializer(&mut self, name: &str, numbers: Vec<i64>, is_list: bool) -> Result<()> {
        let shape = if is_list { Shape::new(&[numbers.len()])? } else { Shape::SCALAR };
        let index = self.tensors.len();
        let tensor = self.tensor(name, TensorType::new(ElementType::I64, shape), None);
        self.tensors.push(tensor);
        let numbers = numbers.into_boxed_slice();
        self.fill(index, numbers.as_ptr().cast(), size_of_val(&*numbers));
        self.contents.push(numbers);
        self.operands.push(count(index)?);
        Ok(())
    }

    pub(super) fn int(&mut self, name: sys::ANEAttributeName, integer: i64) {
        let attribute = sys::ANEAttribute { integer, ..attribute(name, sys::ANE_ATTRIBUTE_INT) };
        self.attributes.push(attribute);
    }

    pub(super) fn flag(&mut self, name: sys::ANEAttributeName, flag: bool) {
        self.int(name, i64::from(flag));
    }

    pub(super) fn float(&mut self, name: sys::ANEAttributeName, number: f32) {
        let attribute = sys::ANEAttribute { number, ..attribute(name, sys::ANE_ATTRIBUTE_FLOAT) };
        self.attributes.push(attribute);
    }

    /// Left out where it is empty.
    pub(super) fn ints(&mut self, name: sys::ANEAttributeName, numbers: &[usize]) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let (first, length) = (count(self.integers.len())?, count(numbers.len())?);
        self.integers.extend(integers(numbers)?);
        let list = attribute(name, sys::ANE_ATTRIBUTE_INTS);
        self.attributes.push(sys::ANEAttribute { first, count: length, ..list });
        Ok(())
    }
}

fn attribute(name: sys::ANEAttributeName, kind: sys::ANEAttributeKind) -> sys::ANEAttribute {
    sys::ANEAttribute { name, kind, integer: 0, number: 0.0, first: 0, count: 0, reserved0: 0 }
}

pub(super) fn integers(numbers: &[usize]) -> Result<Vec<i64>> {
    let integer = |number: &usize| i64::try_from(*number).map_err(|_| too_large());
    numbers.iter().map(integer).collect()
}

fn count(number: usize) -> Result<u32> {
    u32::try_from(number).ok().filter(|number| *number != NONE).ok_or_else(too_large)
}

fn too_large() -> Error {
    Error::graph("it is larger than the C ABI can describe".into())
}

/// The graph's outputs of which each is another value: a shim writes each once.
pub(super) fn written_outputs(graph: &Graph) -> impl Iterator<Item = usize> + '_ {
    (0..graph.outputs.len()).filter(|output| twin(graph, *output).is_none())
}

/// An earlier output that is the same value.
pub(super) fn twin(graph: &Graph, output: usize) -> Option<usize> {
    graph.outputs[..output].iter().position(|(_, value)| *value == graph.outputs[output].1)
}
