//! Descriptions of graphs: any operator with any attributes on any values, variable leading dimensions; and those that
//! are small are computed by the interpreter and by the CPU's engine, whose values are checked node by node.
#![no_main]

use ane_matmul::graph::{
    Array, Attention, Graph, GraphBuilder, Groups, Operator, PoolKernel, Reduce, Value, Window,
};
use ane_matmul::{BackendId, CompileOptions, ElementType, Error, Threads};
use ane_matmul_fuzz::products::Type;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Case {
    sources: Vec<Source>,
    nodes: Vec<Node>,
    outputs: Vec<u8>,
    /// A bit for each input whose leading dimension varies.
    variable: u8,
    leading: u8,
}

#[derive(Debug, Arbitrary)]
struct Source {
    of: Type,
    dims: Vec<Dim>,
    is_constant: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Dim {
    Small(u8),
    Any(usize),
}

impl Dim {
    fn get(self) -> usize {
        match self {
            Self::Small(dim) => usize::from(dim % 5),
            Self::Any(dim) => dim,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Small(i8),
    Any(i64),
}

impl Number {
    fn get(self) -> i64 {
        match self {
            Self::Small(number) => i64::from(number % 6),
            Self::Any(number) => number,
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Node {
    operator: u8,
    /// Values by their number; one beyond 200 is left out.
    inputs: Vec<u8>,
    number: Number,
    numbers: [Vec<Number>; 4],
    sizes: [Vec<Dim>; 4],
    size: Dim,
    of: Type,
    flags: u8,
    factors: [f32; 2],
}

impl Node {
    fn flag(&self, bit: u8) -> bool {
        self.flags >> bit & 1 != 0
    }

    fn list(&self, index: usize) -> Vec<i64> {
        self.numbers[index].iter().map(|number| number.get()).collect()
    }

    fn dims(&self, index: usize) -> Vec<usize> {
        self.sizes[index].iter().map(|dim| dim.get()).collect()
    }

    fn reduce(&self) -> Reduce {
        Reduce { axes: self.flag(0).then(|| self.list(0)), keepdims: self.flag(1) }
    }

    fn window(&self) -> Window {
        Window { strides: self.dims(0), pads: self.dims(1), dilations: self.dims(2) }
    }

    fn kernel(&self) -> PoolKernel {
        PoolKernel { shape: self.dims(3), ceil_mode: self.flag(1) }
    }

    fn attention(&self) -> Attention {
        let mut attention = Attention::new().causal(self.flag(0));
        if self.flag(1) {
            attention = attention.heads(self.size.get(), usize::from(self.flags % 3));
        }
        if self.flag(2) { attention.scale(self.factors[0]) } else { attention }
    }

    fn operator(&self) -> Operator {
        use Operator as Op;
        let (axis, block_size, output) = (self.number.get(), self.size.get(), self.of.any());
        let [alpha, beta] = self.factors;
        let epsilon = alpha;
        match self.operator % 61 {
            0 => Op::Abs,
            1 => Op::Neg,
            2 => Op::Reciprocal,
            3 => Op::Sqrt,
            4 => Op::Exp,
            5 => Op::Log,
            6 => Op::Erf,
            7 => Op::Relu,
            8 => Op::LeakyRelu { alpha },
            9 => Op::Gelu { tanh: self.flag(0) },
            10 => Op::Sigmoid,
            11 => Op::HardSigmoid { alpha, beta },
            12 => Op::HardSwish,
            13 => Op::Tanh,
            14 => Op::Clip,
            15 => Op::Not,
            16 => Op::Identity,
            17 => Op::Cast { to: output },
            18 => Op::Add,
            19 => Op::Sub,
            20 => Op::Mul,
            21 => Op::Div,
            22 => Op::Pow,
            23 => Op::Min,
            24 => Op::Max,
            25 => Op::Equal,
            26 => Op::Greater,
            27 => Op::GreaterOrEqual,
            28 => Op::Less,
            29 => Op::LessOrEqual,
            30 => Op::And,
            31 => Op::Or,
            32 => Op::Where,
            33 => Op::MatMul,
            34 => Op::Gemm { alpha, beta, transpose_a: self.flag(0), transpose_b: self.flag(1) },
            35 => Op::Conv(self.window(), Groups(self.size.get())),
            36 => Op::BatchNormalization { epsilon },
            37 => Op::LayerNormalization { axis, epsilon },
            38 => Op::RmsNormalization { axis, epsilon },
            39 => Op::Softmax { axis },
            40 => Op::Attention(self.attention()),
            41 => Op::QuantizeLinear { axis, block_size, output },
            42 => Op::DequantizeLinear { axis, block_size, output },
            43 => Op::Reshape { shape: self.list(0) },
            44 => Op::Flatten { axis },
            45 => Op::Squeeze { axes: self.flag(0).then(|| self.list(0)) },
            46 => Op::Unsqueeze { axes: self.list(0) },
            47 => Op::Expand { shape: self.dims(0) },
            48 => Op::Transpose { perm: self.dims(0) },
            49 => Op::Concat { axis },
            50 => Op::Split { axis, lengths: self.dims(0) },
            51 => Op::Slice { starts: self.list(0), ends: self.list(1), axes: self.list(2), steps: self.list(3) },
            52 => Op::Pad { pads: self.list(0) },
            53 => Op::Trilu { upper: self.flag(0), k: axis },
            54 => Op::Gather { axis },
            55 => Op::ReduceSum(self.reduce()),
            56 => Op::ReduceMean(self.reduce()),
            57 => Op::ReduceMax(self.reduce()),
            58 => Op::ReduceL2(self.reduce()),
            59 if self.flag(0) => Op::MaxPool(self.window(), self.kernel()),
            59 => {
                let count_include_pad = self.flag(2);
                Op::AveragePool { window: self.window(), kernel: self.kernel(), count_include_pad }
            }
            _ => Op::GlobalAveragePool,
        }
    }
}

/// The most elements of a value, and the most terms of a sum, of a graph that is computed.
const FEW: usize = 2000;

/// Elements from -3 to 5; 4-bit elements have no arrays.
fn array(of: ElementType, dims: &[usize]) -> Option<Array> {
    let count: usize = dims.iter().product();
    let integers = (0..count).map(|at| at as i64 * 7 % 9 - 3);
    match of {
        ElementType::F64 => Array::new(dims, integers.map(|x| x as f64).collect()),
        ElementType::F32 => Array::new(dims, integers.map(|x| x as f32).collect()),
        ElementType::I64 => Array::new(dims, integers.collect()),
        ElementType::I32 => Array::new(dims, integers.map(|x| x as i32).collect()),
        ElementType::I8 => Array::new(dims, integers.map(|x| x as i8).collect()),
        ElementType::U8 => Array::new(dims, integers.map(|x| (x + 3) as u8).collect()),
        ElementType::Bool => Array::new(dims, integers.map(|x| x > 0).collect()),
        _ => return None,
    }
    .ok()
}

fn is_small(value: &Value) -> bool {
    value.shape().dims().iter().map(|dim| (*dim).max(1)).product::<usize>() <= FEW
}

/// The errors are those that are documented.
fn check(error: &Error) {
    assert!(matches!(error, Error::Graph { .. } | Error::OutOfMemory { .. }), "{error:?}");
    assert!(!error.to_string().is_empty());
}

/// Computes a graph. If it is one of another with a variable leading dimension, that is run with so many, too.
fn compute(graph: &Graph, variable: Option<&Graph>) {
    let inputs: Option<Vec<_>> =
        graph.inputs().map(|(_, of)| array(of.element, of.shape.dims())).collect();
    let Some(inputs) = inputs else { return };
    let inputs: Vec<_> = inputs.iter().collect();
    let plain = graph.interpret_f32(&inputs);
    match &plain {
        Ok(outputs) => {
            let types: Vec<_> = graph.outputs().map(|(_, of)| of).collect();
            assert_eq!(outputs.iter().map(Array::tensor_type).collect::<Vec<_>>(), types);
        }
        Err(error) => check(error),
    }
    if let Err(error) = graph.interpret_f64(&inputs) {
        check(&error);
    }
    for graph in [Some(graph), variable].into_iter().flatten() {
        run(graph, &inputs, plain.is_err());
    }
}

/// Runs a graph on the engine, which may fail where the interpreter does.
fn run(graph: &Graph, inputs: &[&Array], may_fail: bool) {
    let options = CompileOptions::default().threads(Threads::ONE);
    let compiled = match graph.compile_with(&BackendId::CPU, &options) {
        Ok(compiled) => compiled,
        Err(Error::Refused { .. }) => return,
        Err(error) => return check(&error),
    };
    if let Err(error) = compiled.executor().and_then(|mut executor| executor.run_to_arrays(inputs)) {
        assert!(may_fail || matches!(error, Error::OutOfMemory { .. }), "{error}");
        return check(&error);
    }
    match compiled.check_nodes(inputs, |_| true) {
        Ok(report) => assert!(report.is_right(), "{:?}\n{graph}", report.wrong),
        Err(error) => check(&error),
    }
}

fuzz_target!(|case: Case| {
    let mut g = GraphBuilder::new();
    let (mut values, mut inputs) = (Vec::new(), Vec::new());
    for (index, source) in case.sources.iter().take(6).enumerate() {
        let dims: Vec<_> = source.dims.iter().map(|dim| dim.get()).collect();
        let count = dims.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim));
        let name = format!("x{index}");
        let constant = count.filter(|count| source.is_constant && *count <= FEW);
        match constant.and_then(|_| array(source.of.any(), &dims)) {
            Some(array) => values.push(g.constant(name, array).expect("the name is free")),
            None => match g.input(&*name, source.of.any(), &dims) {
                Ok(value) => {
                    inputs.push(name);
                    values.push(value);
                }
                Err(error) => check(&error),
            },
        }
    }
    let mut results = Vec::new();
    let mut is_cheap = true;
    for node in case.nodes.iter().take(30) {
        let pick = |index: &u8| (*index < 200).then(|| values.get(usize::from(*index) % values.len().max(1)).copied());
        let operands: Vec<_> = node.inputs.iter().take(8).map(|index| pick(index).flatten()).collect();
        match g.node(node.operator(), &operands) {
            Ok(added) => {
                is_cheap &= added.iter().all(is_small);
                values.extend(&added);
                results.extend(added);
            }
            Err(error) => check(&error),
        }
    }
    is_cheap &= values.iter().all(is_small);
    let names: Vec<_> = (0..case.outputs.len()).map(|index| format!("y{index}")).collect();
    let outputs = case.outputs.iter().filter_map(|index| results.get(usize::from(*index) % results.len().max(1)));
    let outputs: Vec<_> = names.iter().map(String::as_str).zip(outputs.copied()).collect();
    let graph = match g.finish(&outputs) {
        Ok(graph) => graph,
        Err(error) => return check(&error),
    };
    assert_eq!(graph.to_string().lines().filter(|line| line.starts_with("output ")).count(), outputs.len());
    if is_cheap {
        compute(&graph, None);
    }
    let variable = inputs.iter().enumerate().filter(|(index, _)| case.variable >> index & 1 != 0);
    let variable: Vec<_> = variable.map(|(_, name)| name.as_str()).collect();
    match graph.variable_leading(&variable) {
        Ok(graph) => match graph.with_leading(case.leading.into()) {
            Ok(smaller) if is_cheap => compute(&smaller, Some(&graph)),
            Ok(_) => {}
            Err(error) => check(&error),
        },
        Err(error) => check(&error),
    }
});
