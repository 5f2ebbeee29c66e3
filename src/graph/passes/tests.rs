//! Each pass by itself, and all of them, beside the graph as it is given.

use super::{Engine, PASSES, Rewritten};
use crate::backend::cpu::Cpu;
use crate::description::element::ElementType::{F32, I64};
use crate::error::Result;
use crate::graph::interpret::interpret;
use crate::graph::tests::checks::fixtures;
use crate::graph::tests::fixtures::Encoder;
use crate::graph::tests::random::{numbers, random_graph};
use crate::graph::{Array, Attention, Graph, GraphBuilder, Operator, Value};
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;

fn engine() -> Cpu {
    Cpu::new().unwrap()
}

fn random(dims: &[usize], seed: u64) -> Array {
    let count = dims.iter().product();
    Array::new(dims, Tensor::random_normal_f32(1, count, 1.0, seed).unwrap().data().to_vec()).unwrap()
}

/// The operators of a graph after all passes, in order.
fn operators(graph: &Graph) -> Vec<Operator> {
    Rewritten::new(graph, &engine(), |_, _| ()).graph.nodes.into_iter().map(|node| node.operator).collect()
}

fn names(graph: &Graph) -> Vec<&'static str> {
    operators(graph).iter().map(Operator::name).collect()
}

/// The largest difference of two graphs' outputs in float64, relative to the largest output; 0 for the same NaN.
fn distance(a: &Graph, b: &Graph, inputs: &[Array]) -> f64 {
    let inputs: Vec<_> = inputs.iter().collect();
    let (of_a, of_b) = (interpret::<f64>(a, &inputs).unwrap(), interpret::<f64>(b, &inputs).unwrap());
    let mut worst = 0f64;
    for ((_, a), (_, b)) in a.outputs.iter().zip(&b.outputs) {
        assert_eq!(of_a[*a].tensor_type, of_b[*b].tensor_type);
        let (a, b) = (numbers(&of_a[*a]), numbers(&of_b[*b]));
        let most = a.iter().filter(|a| a.is_finite()).fold(0f64, |most, a| most.max(a.abs()));
        for (a, b) in a.iter().zip(b) {
            let same = *a == b || a.is_nan() && b.is_nan();
            worst = worst.max(if same { 0.0 } else { (a - b).abs() / most });
        }
    }
    worst
}

fn encoder_inputs(encoder: &Encoder) -> Vec<Array> {
    let dims = [encoder.batch, encoder.sequence];
    let at = |of: &dyn Fn(usize) -> usize| {
        (0..dims[0] * dims[1]).map(|index| i64::try_from(of(index)).unwrap()).collect::<Vec<_>>()
    };
    let ids = at(&|index| index * 5 % encoder.vocabulary);
    let mask = at(&|index| usize::from(index % encoder.sequence < 5));
    vec![Array::new(&dims, ids).unwrap(), Array::new(&dims, mask).unwrap()]
}

#[test]
fn every_pass_keeps_what_a_graph_computes() {
    let encoder = Encoder::SMALL;
    let exported = encoder.exported().unwrap().variable_leading(&["ids", "mask"]).unwrap();
    let mut graphs = vec![("exported".to_owned(), exported, encoder_inputs(&encoder))];
    graphs.extend(fixtures().into_iter().map(|(name, graph, inputs)| (name.to_owned(), graph, inputs)));
    graphs.extend((0..12).map(|seed| {
        let (graph, inputs) = random_graph(seed, 60, |_| true);
        (format!("random {seed}"), graph, inputs)
    }));
    let mut changed = [0; PASSES.len()];
    for (name, graph, inputs) in &graphs {
        for (index, (pass, run)) in PASSES.iter().enumerate() {
            let mut rewritten = Rewritten::unchanged(graph);
            changed[index] += usize::from(run(&mut rewritten, &engine()));
            let off = distance(graph, &rewritten.graph, inputs);
            assert!(off < 2e-6, "{name}: {pass}: {off}\n{graph}\n{}", rewritten.graph);
        }
        let mut passes = 0;
        let rewritten = Rewritten::new(graph, &engine(), |_, _| passes += 1);
        assert!(distance(graph, &rewritten.graph, inputs) < 2e-6, "{name}");
        assert_eq!(rewritten.sources.len(), rewritten.graph.nodes.len());
        // Each node is where it is read only by what comes after it, and stands for one of its own name.
        let mut known: Vec<_> = rewritten
            .graph
            .values
            .iter()
            .map(|value| !matches!(value.source, crate::graph::description::Source::Node))
            .collect();
        for (node, sources) in rewritten.graph.nodes.iter().zip(&rewritten.sources) {
            assert!(node.inputs.iter().flatten().all(|input| known[*input]), "{name}");
            assert!(sources.iter().any(|source| graph.nodes[*source].name == node.name), "{name}");
            node.outputs.iter().for_each(|output| known[*output] = true);
        }
    }
    // Attention is split into heads only when it is one, and identities are rare.
    let idle: Vec<_> = PASSES.iter().zip(changed).filter(|(_, changed)| *changed == 0).collect();
    let idle: Vec<_> = idle.iter().map(|((name, _), _)| *name).collect();
    assert_eq!(idle, ["attention head fusion"]);
}

#[test]
fn an_exported_encoder_becomes_one_as_it_is_built_by_hand() {
    let encoder = Encoder::SMALL;
    let graph = encoder.exported().unwrap();
    let of_a_layer = ["MatMul", "Add", "MatMul", "Add", "MatMul", "Add", "Attention", "MatMul", "Add", "Add"];
    let of_a_layer =
        of_a_layer.iter().chain(&["LayerNormalization", "MatMul", "Add", "Gelu", "MatMul", "Add"]);
    let of_a_layer: Vec<_> = of_a_layer.chain(&["Add", "LayerNormalization"]).copied().collect();
    let before = ["Gather", "Add", "LayerNormalization", "Cast", "Unsqueeze", "Sub", "Mul"];
    let expected = [&before[..], &of_a_layer, &of_a_layer].concat();
    assert_eq!(names(&graph), expected);
    let attention = Attention::new().heads(3, 3).scale(0.5);
    assert!(operators(&graph).contains(&Operator::Attention(attention)));
    let passes: Vec<_> = graph.passes().unwrap().into_iter().map(|report| report.name).collect();
    let fusions = ["normalization fusion", "GELU fusion", "attention fusion", "attention head fusion"];
    assert!(fusions.iter().all(|fusion| passes.contains(fusion)), "{passes:?}");
}

/// A graph of one input x of 2 x 3 x 8.
fn of_x(build: impl Fn(&mut GraphBuilder, Value) -> Result<Value>) -> Graph {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[2, 3, 8]).unwrap();
    let y = build(&mut g, x).unwrap();
    g.finish(&[("y", y)]).unwrap()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of ways to write it")]
fn gelu_is_found_however_it_is_written_and_nothing_else() {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    type Build = Box<dyn Fn(&mut GraphBuilder, Value) -> Result<Value>>;
    fn erf(g: &mut GraphBuilder, x: Value, factor: f64) -> Result<Value> {
        let scaled = g.mul_scalar(x, factor)?;
        let erf = g.erf(scaled)?;
        g.add_scalar(erf, 1.0)
    }
    fn tanh(g: &mut GraphBuilder, x: Value, cubic: f64) -> Result<Value> {
        let three = g.scalar(3f32);
        let cube = g.pow(x, three)?;
        let term = g.mul_scalar(cube, cubic)?;
        let sum = g.add(x, term)?;
        let inner = g.mul_scalar(sum, FRAC_2_PI.sqrt())?;
        let tanh = g.tanh(inner)?;
        g.add_scalar(tanh, 1.0)
    }
    let found: Vec<(bool, Build)> = vec![
        // x (1 + erf) / 2
        (
            false,
            Box::new(|g, x| {
                let e = erf(g, x, FRAC_1_SQRT_2)?;
                let product = g.mul(x, e)?;
                g.mul_scalar(product, 0.5)
            }),
        ),
        // (x / 2) (1 + erf)
        (
            false,
            Box::new(|g, x| {
                let e = erf(g, x, FRAC_1_SQRT_2)?;
                let half = g.mul_scalar(x, 0.5)?;
                g.mul(e, half)
            }),
        ),
        // x ((1 + erf) / 2)
        (
            false,
            Box::new(|g, x| {
                let e = erf(g, x, FRAC_1_SQRT_2)?;
                let two = g.scalar(2f32);
                let half = g.div(e, two)?;
                g.mul(half, x)
            }),
        ),
        // x / 2 + x / 2 erf
        (
            false,
            Box::new(|g, x| {
                let scaled = g.mul_scalar(x, FRAC_1_SQRT_2)?;
                let erf = g.erf(scaled)?;
                let half = g.mul_scalar(x, 0.5)?;
                let product = g.mul(half, erf)?;
                g.add(half, product)
            }),
        ),
        (
            true,
            Box::new(|g, x| {
                let t = tanh(g, x, 0.044_715)?;
                let half = g.mul_scalar(x, 0.5)?;
                g.mul(half, t)
            }),
        ),
        // tanh(sqrt(2 / pi) x (1 + 0.044715 x x))
        (
            true,
            Box::new(|g, x| {
                let square = g.mul(x, x)?;
                let term = g.mul_scalar(square, 0.044_715)?;
                let sum = g.add_scalar(term, 1.0)?;
                let scaled = g.mul_scalar(x, FRAC_2_PI.sqrt())?;
                let inner = g.mul(scaled, sum)?;
                let tanh = g.tanh(inner)?;
                let sum = g.add_scalar(tanh, 1.0)?;
                let product = g.mul(x, sum)?;
                g.mul_scalar(product, 0.5)
            }),
        ),
    ];
    for (index, (tanh, build)) in found.iter().enumerate() {
        assert_eq!(operators(&of_x(build)), [Operator::Gelu { tanh: *tanh }], "{index}");
    }
    let others: Vec<Build> = vec![
        // Another factor, within and behind.
        Box::new(|g, x| {
            let e = erf(g, x, FRAC_1_SQRT_2 * (1.0 + 1e-5))?;
            let product = g.mul(x, e)?;
            g.mul_scalar(product, 0.5)
        }),
        Box::new(|g, x| {
            let e = erf(g, x, FRAC_1_SQRT_2)?;
            let product = g.mul(x, e)?;
            g.mul_scalar(product, 0.501)
        }),
        // Of another x.
        Box::new(|g, x| {
            let other = g.abs(x)?;
            let e = erf(g, other, FRAC_1_SQRT_2)?;
            let product = g.mul(x, e)?;
            g.mul_scalar(product, 0.5)
        }),
        // x^2 (1 + erf) / 2
        Box::new(|g, x| {
            let e = erf(g, x, FRAC_1_SQRT_2)?;
            let product = g.mul(x, e)?;
            let product = g.mul(product, x)?;
            g.mul_scalar(product, 0.5)
        }),
        Box::new(|g, x| {
            let t = tanh(g, x, 0.0447)?;
            let half = g.mul_scalar(x, 0.5)?;
            g.mul(half, t)
        }),
    ];
    for (index, build) in others.iter().enumerate() {
        assert!(!names(&of_x(build)).contains(&"Gelu"), "{index}");
    }
}

/// The parts of a normalization of x over its last axis.
struct Norm {
    square_by_pow: bool,
    reciprocal: bool,
    subtract_mean: bool,
    scale: Option<Vec<usize>>,
    bias: Option<Vec<usize>>,
    axes: Vec<i64>,
}

impl Default for Norm {
    fn default() -> Self {
        Self {
            square_by_pow: true,
            reciprocal: false,
            subtract_mean: true,
            scale: Some(vec![8]),
            bias: Some(vec![8]),
            axes: vec![-1],
        }
    }
}

impl Norm {
    fn graph(&self) -> Graph {
        of_x(|g, x| {
            let centred = if self.subtract_mean {
                let mean = g.reduce_mean(x, &self.axes, true)?;
                g.sub(x, mean)?
            } else {
                x
            };
            let two = g.scalar(2f32);
            let squared = if self.square_by_pow { g.pow(centred, two)? } else { g.mul(centred, centred)? };
            let variance = g.reduce_mean(squared, &self.axes, true)?;
            let variance = g.add_scalar(variance, 1e-5)?;
            let deviation = g.sqrt(variance)?;
            let mut y = if self.reciprocal {
                let inverse = g.reciprocal(deviation)?;
                g.mul(inverse, centred)?
            } else {
                g.div(centred, deviation)?
            };
            if let Some(dims) = &self.scale {
                let scale = g.constant("scale", random(dims, 1))?;
                y = g.mul(scale, y)?;
            }
            if let Some(dims) = &self.bias {
                let bias = g.constant("bias", random(dims, 2))?;
                y = g.add(y, bias)?;
            }
            Ok(y)
        })
    }
}

#[test]
fn normalizations_are_found_in_their_parts() {
    let epsilon = 1e-5;
    let layer = |axis| Operator::LayerNormalization { axis, epsilon };
    let two = Some(vec![3, 8]);
    for (norm, expected) in [
        (Norm::default(), layer(2)),
        (Norm { square_by_pow: false, reciprocal: true, ..Norm::default() }, layer(2)),
        (Norm { bias: None, ..Norm::default() }, layer(2)),
        (Norm { scale: None, bias: None, ..Norm::default() }, layer(2)),
        (Norm { scale: None, ..Norm::default() }, layer(2)),
        (Norm { axes: vec![2, 1], scale: two.clone(), bias: two.clone(), ..Norm::default() }, layer(1)),
        (
            Norm { subtract_mean: false, bias: None, ..Norm::default() },
            Operator::RmsNormalization { axis: 2, epsilon },
        ),
        (
            Norm { subtract_mean: false, bias: None, reciprocal: true, ..Norm::default() },
            Operator::RmsNormalization { axis: 2, epsilon },
        ),
    ] {
        let graph = norm.graph();
        assert_eq!(operators(&graph), [expected]);
        let rewritten = Rewritten::new(&graph, &engine(), |_, _| ());
        assert!(distance(&graph, &rewritten.graph, &[random(&[2, 3, 8], 5)]) < 1e-12);
    }
    // RMS normalization has no bias; a scale for each row is none; the last axes alone are normalised.
    let rms = Norm { subtract_mean: false, ..Norm::default() }.graph();
    assert_eq!(names(&rms), ["RMSNormalization", "Add"]);
    let rows = Norm { scale: Some(vec![3, 1]), ..Norm::default() }.graph();
    assert_eq!(names(&rows), ["LayerNormalization", "Mul", "Add"]);
    let channels = Norm { axes: vec![1], scale: None, bias: None, ..Norm::default() }.graph();
    assert!(names(&channels).contains(&"ReduceMean"));
    // The mean of something else.
    let other = of_x(|g, x| {
        let other = g.abs(x)?;
        let mean = g.reduce_mean(other, &[-1], true)?;
        let centred = g.sub(x, mean)?;
        let squared = g.mul(centred, centred)?;
        let variance = g.reduce_mean(squared, &[-1], true)?;
        let variance = g.add_scalar(variance, 1e-5)?;
        let deviation = g.sqrt(variance)?;
        g.div(centred, deviation)
    });
    assert_eq!(names(&other), ["Abs", "ReduceMean", "Sub", "RMSNormalization"]);
    let rewritten = Rewritten::new(&other, &engine(), |_, _| ());
    assert!(distance(&other, &rewritten.graph, &[random(&[2, 3, 8], 5)]) < 1e-12);
}

/// Attention on q, k and v of (batch, places, heads * size), in its parts.
struct Parts {
    /// Of q, of k, behind the product.
    factors: [Option<f64>; 3],
    k_at_once: bool,
    mask: bool,
    softmax: i64,
    merge: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self { factors: [None, None, Some(0.25)], k_at_once: true, mask: true, softmax: -1, merge: true }
    }
}

impl Parts {
    const INPUTS: [(&str, usize); 3] = [("q", 5), ("k", 7), ("v", 7)];

    fn graph(&self) -> Graph {
        let mut g = GraphBuilder::new();
        let [q, k, v] = Self::INPUTS.map(|(name, places)| g.input(name, F32, &[2, places, 12]).unwrap());
        let mut build = || {
            let split = |g: &mut GraphBuilder, x: Value, places, perm: &[usize]| {
                let split = g.reshape(x, &[2, places, 3, 4])?;
                g.transpose(split, perm)
            };
            let times = |g: &mut GraphBuilder, x: Value, factor: Option<f64>| match factor {
                Some(factor) => g.mul_scalar(x, factor),
                None => Ok(x),
            };
            let q = split(&mut g, q, 5, &[0, 2, 1, 3])?;
            let q = times(&mut g, q, self.factors[0])?;
            let k = if self.k_at_once {
                split(&mut g, k, 7, &[0, 2, 3, 1])?
            } else {
                let k = split(&mut g, k, 7, &[0, 2, 1, 3])?;
                g.transpose(k, &[0, 1, 3, 2])?
            };
            let k = times(&mut g, k, self.factors[1])?;
            let v = split(&mut g, v, 7, &[0, 2, 1, 3])?;
            let scores = g.matmul(q, k)?;
            let mut scores = times(&mut g, scores, self.factors[2])?;
            if self.mask {
                let mask = g.constant("mask", random(&[5, 7], 9))?;
                scores = g.add(mask, scores)?;
            }
            let weights = g.softmax(scores, self.softmax)?;
            let attended = g.matmul(weights, v)?;
            if !self.merge {
                return Ok(attended);
            }
            let attended = g.transpose(attended, &[0, 2, 1, 3])?;
            g.reshape(attended, &[2, 5, 12])
        };
        let y: Result<Value> = build();
        g.finish(&[("y", y.unwrap())]).unwrap()
    }
}

#[test]
fn attention_is_found_in_its_parts_with_its_heads() {
    let attention = |scale: f32| Operator::Attention(Attention::new().heads(3, 3).scale(scale));
    let inputs = Parts::INPUTS.map(|(_, places)| random(&[2, places, 12], places as u64));
    let all = Parts::default;
    for (parts, expected) in [
        (all(), attention(0.25)),
        (Parts { k_at_once: false, mask: false, ..all() }, attention(0.25)),
        (Parts { factors: [Some(0.5), Some(0.75), None], ..all() }, attention(0.375)),
        (Parts { factors: [None; 3], k_at_once: false, ..all() }, attention(1.0)),
    ] {
        let graph = parts.graph();
        assert_eq!(operators(&graph), [expected]);
        let rewritten = Rewritten::new(&graph, &engine(), |_, _| ());
        assert!(distance(&graph, &rewritten.graph, &inputs) < 1e-6);
    }
    // Heads that stay apart.
    let graph = Parts { merge: false, ..all() }.graph();
    assert_eq!(names(&graph).iter().filter(|name| **name == "Attention").count(), 1);
    assert!(operators(&graph).contains(&Operator::Attention(Attention::new().scale(0.25))));
    let rewritten = Rewritten::new(&graph, &engine(), |_, _| ());
    assert!(distance(&graph, &rewritten.graph, &inputs) < 1e-12);
    // Weights that are those of queries for a key.
    assert!(!names(&Parts { softmax: 2, ..all() }.graph()).contains(&"Attention"));
}

#[test]
fn what_others_read_of_a_fusion_stays() {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[2, 8]).unwrap();
    let mean = g.reduce_mean(x, &[-1], true).unwrap();
    let centred = g.sub(x, mean).unwrap();
    let squared = g.mul(centred, centred).unwrap();
    let variance = g.reduce_mean(squared, &[-1], true).unwrap();
    let variance = g.add_scalar(variance, 1e-5).unwrap();
    let deviation = g.sqrt(variance).unwrap();
    let y = g.div(centred, deviation).unwrap();
    let graph = g.finish(&[("y", y), ("mean", mean)]).unwrap();
    assert_eq!(names(&graph), ["ReduceMean", "LayerNormalization"]);
    let report = graph.compile(&crate::BackendId::CPU).unwrap().report();
    let step_of = |node: usize| report.nodes[node].step.as_deref();
    let (mean, last) = (&report.nodes[0].name, &report.nodes.last().unwrap().name);
    assert_eq!((step_of(0), step_of(1)), (Some(&**mean), Some(&**last)));
}

#[test]
fn constants_are_computed_once_with_the_bits_of_a_run() {
    let build = |given: bool| {
        let mut g = GraphBuilder::new();
        let x = g.input("x", F32, &[4, 6]).unwrap();
        let made_of = random(&[6, 6], 3);
        let c = if given { g.input("c", F32, &[6, 6]) } else { g.constant("c", made_of.clone()) };
        let c = g.exp(c.unwrap()).unwrap();
        let c = g.transpose(c, &[1, 0]).unwrap();
        let c = g.softmax(c, -1).unwrap();
        let sum = g.reduce_sum(c, &[0], false).unwrap();
        let y = g.matmul(x, c).unwrap();
        let y = g.mul(y, sum).unwrap();
        (g.finish(&[("y", y), ("c", c)]).unwrap(), made_of)
    };
    let ((folded, made_of), (plain, _)) = (build(false), build(true));
    assert_eq!(names(&folded), ["MatMul", "Mul"]);
    let x = random(&[4, 6], 1);
    let run = |graph: &Graph, inputs: &[&Array]| {
        let compiled = graph.compile(&crate::BackendId::CPU).unwrap();
        assert!(compiled.check_nodes(inputs, |_| true).unwrap().is_right());
        compiled.executor().unwrap().run_to_arrays(inputs).unwrap()
    };
    let bits = |array: &Array| array.data::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (a, b) = (run(&folded, &[&x]), run(&plain, &[&x, &made_of]));
    assert_eq!(bits(&a[1]), bits(&b[1]));
    let off = bits(&a[0]).iter().zip(bits(&b[0])).filter(|(a, b)| *a != b).count();
    assert_eq!(off, 0);
    // What would take more memory than it is made of, and what fails, are left for the run.
    let mut g = GraphBuilder::new();
    let index = g.constant("index", Array::new(&[1], vec![7i64]).unwrap()).unwrap();
    let data = g.constant("data", random(&[3], 1)).unwrap();
    let large = g.expand(data, &[1 << 18, 3]).unwrap();
    let element = g.gather(data, index, 0).unwrap();
    let graph = g.finish(&[("large", large), ("element", element)]).unwrap();
    assert_eq!(names(&graph), ["Expand", "Gather"]);
    let compiled = graph.compile(&crate::BackendId::CPU).unwrap();
    let error = compiled.executor().unwrap().run_to_arrays(&[]).unwrap_err().to_string();
    assert!(error.contains("index 7 is out of range"), "{error}");
}

#[test]
fn transposed_weights_are_the_same_weights() {
    let weights = Weights::from_tensor(Tensor::random_normal_f32(5, 8, 1.0, 1).unwrap());
    let graph = of_x(|g, x| {
        let w = g.weights("w", &weights)?;
        let w = g.transpose(w, &[1, 0])?;
        g.matmul(x, w)
    });
    let rewritten = Rewritten::new(&graph, &engine(), |_, _| ());
    assert_eq!(rewritten.graph.nodes.len(), 1);
    assert!(distance(&graph, &rewritten.graph, &[random(&[2, 3, 8], 5)]) == 0.0);
    let own = rewritten.graph.weights().next().unwrap();
    assert!(std::ptr::eq(own.view().memory().0, weights.view().memory().0));
}

#[test]
fn equal_nodes_are_computed_once_and_dead_ones_not_at_all() {
    let graph = of_x(|g, x| {
        let (a, b) = (g.scalar(2f32), g.scalar(2f32));
        let (first, second) = (g.mul(x, a)?, g.mul(x, b)?);
        let same = g.identity(second)?;
        let same = g.reshape(same, &[2, 3, 8])?;
        g.exp(x)?;
        g.add(first, same)
    });
    assert_eq!(names(&graph), ["Mul", "Add"]);
    // An output keeps its node.
    let mut g = GraphBuilder::new();
    let x = g.input("x", I64, &[2]).unwrap();
    let (a, b) = (g.neg(x).unwrap(), g.neg(x).unwrap());
    let c = g.identity(b).unwrap();
    let graph = g.finish(&[("a", a), ("b", b), ("c", c)]).unwrap();
    let x = Array::new(&[2], vec![3i64, -4]).unwrap();
    let run =
        graph.compile(&crate::BackendId::CPU).unwrap().executor().unwrap().run_to_arrays(&[&x]).unwrap();
    assert!(run.iter().all(|output| output.data::<i64>() == Some(&[-3, 4][..])));
}

#[test]
fn an_engine_that_takes_nothing_folds_nothing() {
    struct None_;
    impl Engine for None_ {
        fn takes(&self, _: &Graph, _: &crate::graph::description::NodeInfo) -> bool {
            false
        }
        fn outputs(&self, _: &Graph) -> Result<Vec<Array>> {
            unreachable!()
        }
    }
    let graph = of_x(|g, x| {
        let c = g.scalar(2f32);
        let c = g.exp(c)?;
        g.mul(x, c)
    });
    assert_eq!(Rewritten::new(&graph, &None_, |_, _| ()).graph.nodes.len(), 2);
}
