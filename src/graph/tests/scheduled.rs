//! Runs that are verified on a schedule, on the CPU engine and on one whose faults are planted.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fixtures::{self, Encoder};
use super::random::random_graph;
use crate::backend::refusal::{NodeRefusal, Refusal};
use crate::backend::{Backend, BackendId, Backends, CompiledProduct, GraphInfo, GraphProgram, GraphRun};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, NativeError, NativeStatus, Result};
use crate::graph::description::Graph;
use crate::graph::interpret::{Data, Values, compute, interpret};
use crate::graph::{Array, CompiledGraph, GraphBuilder};
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;
use crate::verify::self_check::{CheckCounts, OnMismatch, SelfCheck};

/// An engine that computes as the f32 interpretation does, with a fault.
#[derive(Clone, Default)]
struct Plain {
    /// Whether it shows what lies between nodes.
    shows: bool,
    fault: Fault,
    device: Device,
    /// Whether compiling fails.
    fails: bool,
    compiled: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Default)]
enum Fault {
    #[default]
    None,
    /// The last element of this node's first result.
    Node(usize),
    /// The same, but only where values are kept, or only where they are not.
    NodeIf(usize, bool),
}

impl Backend for Plain {
    fn describe(&self) -> String {
        "plain".into()
    }

    fn device(&self) -> (Device, String) {
        (self.device, String::new())
    }

    fn supports(&self, _: &MatMul, _: &CompileOptions) -> Result<(), Refusal> {
        Ok(())
    }

    fn compile(
        &self,
        _: &MatMul,
        _: Option<&Weights>,
        _: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        Err(Error::SizeOverflow { what: "a product" })
    }

    fn refused_nodes(&self, _: &Graph, _: &CompileOptions) -> Result<Vec<NodeRefusal>> {
        Ok(Vec::new())
    }

    fn compile_graph(&self, graph: &Graph, _: &CompileOptions) -> Result<Box<dyn GraphProgram>> {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        if self.fails {
            return Err(Error::Native(Box::new(NativeError {
                backend: plain(),
                step: "compile",
                status: NativeStatus::CompileFailed,
                code: 0,
                domain: String::new(),
                message: "planted".into(),
                log: String::new(),
            })));
        }
        Ok(Box::new(Program { graph: graph.clone(), engine: self.clone() }))
    }
}

#[derive(Clone)]
struct Program {
    graph: Graph,
    engine: Plain,
}

impl GraphProgram for Program {
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>> {
        Ok(Box::new(PlainRun { program: self.clone(), keep_values, values: Vec::new() }))
    }

    fn shows_values(&self) -> bool {
        self.engine.shows
    }

    fn info(&self) -> GraphInfo {
        let steps = self.graph.nodes.iter().map(|node| node.name.clone()).collect();
        GraphInfo { step_of: (0..self.graph.nodes.len()).map(Some).collect(), steps, ..GraphInfo::default() }
    }
}

struct PlainRun {
    program: Program,
    keep_values: bool,
    values: Vec<Values<f32>>,
}

impl GraphRun for PlainRun {
    fn run(
        &mut self,
        leading: usize,
        inputs: &[&Array],
        outputs: &mut [&mut Array],
        _: Option<&mut [u64]>,
    ) -> Result<()> {
        let graph = &self.program.graph;
        let graph = if graph.leading.is_some() { &graph.with_leading(leading)? } else { graph };
        self.values = interpret::<f32>(graph, inputs)?;
        for (number, node) in graph.nodes.iter().enumerate() {
            let values = &mut self.values;
            let operands: Vec<_> =
                node.inputs.iter().map(|input| input.map(|index| &values[index])).collect();
            let mut results = compute(node, &operands)?;
            let wrong = match self.program.engine.fault {
                Fault::None => None,
                Fault::Node(node) => Some(node),
                Fault::NodeIf(node, kept) => (kept == self.keep_values).then_some(node),
            };
            if wrong == Some(number)
                && let Data::Floats(x) = &mut results[0].data
                && let Some(last) = x.last_mut()
            {
                *last += 1.0;
            }
            for (result, index) in results.into_iter().zip(&node.outputs) {
                self.values[*index] = result;
            }
        }
        for (output, (_, index)) in outputs.iter_mut().zip(&graph.outputs) {
            let value = &self.values[*index];
            output.start_with(&value.to_array(value.tensor_type.element)?);
        }
        Ok(())
    }

    fn value(&self, value: usize) -> Result<Option<Array>> {
        if !self.program.engine.shows {
            return Ok(None);
        }
        self.values[value].to_array(self.values[value].tensor_type.element).map(Some)
    }
}

fn plain() -> BackendId {
    BackendId::new("plain")
}

impl Plain {
    fn registered(self) -> Backends {
        let mut backends = Backends::new();
        backends.set_profile(None);
        backends.add_for_test(plain(), Arc::new(self));
        backends
    }

    fn compile(self, graph: &Graph, check: SelfCheck) -> CompiledGraph {
        let options = CompileOptions::default().self_check(check);
        self.registered().compile_graph(&plain(), graph, &options).unwrap()
    }
}

/// Two linear layers for each of four sequences, with a bias, a residual and a sum over all elements of one.
fn layers() -> Graph {
    let weights = |k, n, seed| Weights::from_tensor(Tensor::random_normal_f32(k, n, 0.5, seed).unwrap());
    let mut g = GraphBuilder::new();
    let x = g.input("x", crate::ElementType::F32, &[4, 3, 6]).unwrap();
    let bias = g.constant("bias", Array::new(&[5], vec![0.5f32; 5]).unwrap()).unwrap();
    let up = g.linear("up", x, &weights(6, 5, 1), Some(bias)).unwrap();
    let up = g.named("gelu").gelu(up).unwrap();
    let down = g.linear("down", up, &weights(5, 6, 2), None).unwrap();
    let sum = g.named("residual").add(down, x).unwrap();
    let y = g.named("mean").reduce_mean(sum, &[1, 2], false).unwrap();
    g.finish(&[("y", y), ("sum", sum)]).unwrap()
}

fn x(leading: usize) -> Array {
    let numbers = Tensor::random_normal_f32(1, leading * 18, 1.0, 7).unwrap();
    Array::new(&[leading, 3, 6], numbers.data().to_vec()).unwrap()
}

/// All steps, whichever are drawn.
fn all() -> SelfCheck {
    SelfCheck::every_run().failure_probability(1e-9)
}

fn counts(checked: u64, mismatches: u64, reruns: u64) -> CheckCounts {
    CheckCounts { checked, mismatches, reruns }
}

#[test]
fn what_the_engine_computes_is_right_at_every_step() {
    let every = SelfCheck::every_run().failure_probability(1e-3);
    let check = |name: &str, graph: &Graph, inputs: &[Array]| {
        let options = CompileOptions::default().self_check(every);
        // What it has no step for, plain f32 computes.
        let mut engines = vec![Plain::default().compile(graph, every)];
        engines.push(Plain { shows: true, ..Plain::default() }.compile(graph, every));
        engines.extend(graph.compile_with(&BackendId::CPU, &options));
        for compiled in engines {
            let mut executor = compiled.executor().unwrap();
            let inputs: Vec<_> = inputs.iter().collect();
            let outputs = executor.run_to_arrays(&inputs);
            assert!(outputs.is_ok(), "{name} on {}: {outputs:?}", compiled.backend());
            assert_eq!(executor.checks(), counts(1, 0, 0), "{name}");
        }
    };
    let small = Encoder::SMALL;
    let ids = || Array::new(&[2, 7], (0..14).map(|id| id * 5 % 11).collect::<Vec<i64>>()).unwrap();
    let mask = Array::new(&[2, 7], (0..14).map(|at| i64::from(at % 7 < 5)).collect::<Vec<i64>>()).unwrap();
    check("bert", &small.bert().unwrap(), &[ids(), mask]);
    check("lowered", &small.lowered().unwrap(), &[ids()]);
    check(
        "quantized",
        &fixtures::quantized_linear(5).unwrap(),
        &[Array::new(&[5, 16], vec![0.3f32; 80]).unwrap()],
    );
    check("layers", &layers(), &[x(4)]);
    for seed in 0..20 {
        let (graph, inputs) = random_graph(seed, 30, |_| true);
        check(&format!("seed {seed}"), &graph, &inputs);
    }
}

#[test]
fn a_fault_in_any_node_is_found_and_named() {
    let graph = layers().variable_leading(&["x"]).unwrap();
    for (node, name) in [(0, "up"), (2, "gelu"), (3, "down"), (4, "residual"), (5, "mean")] {
        let node = graph.nodes.iter().position(|of| of.name == name).unwrap_or(node);
        for shows in [true, false] {
            let engine = Plain { shows, fault: Fault::Node(node), ..Plain::default() };
            let mut executor = engine.clone().compile(&graph, all()).executor().unwrap();
            // As many samples as are asked for find it at once where there is one leading index.
            let single = executor.run_to_arrays(&[&x(1)]);
            assert!(matches!(single, Err(Error::WrongResult(_))), "{name}: {single:?}");
            let mut executor = engine.compile(&graph, all()).executor().unwrap();
            // The fault is at one of three leading indices: it is drawn sooner or later.
            let found = (0..200).find_map(|_| executor.run_to_arrays(&[&x(3)]).err());
            let Some(Error::WrongResult(mismatch)) = found else { panic!("{name}: {found:?}") };
            assert_eq!(mismatch.backend, plain());
            if shows {
                assert!(mismatch.product.contains(&format!("node `{name}`")), "{mismatch}");
                assert!(mismatch.element.ratio() > 100.0);
                let expected = if name == "mean" { (0, 0, 2) } else { (2, 2, [5, 4][usize::from(node < 3)]) };
                let element = mismatch.element;
                assert_eq!((element.item, element.row, element.col), expected, "{mismatch}");
            } else {
                assert!(mismatch.product.contains("output `"), "{mismatch}");
                let off = mismatch.element.got - mismatch.element.expected;
                assert!(name != "mean" || (off - 1.0).abs() < 1e-3, "{mismatch}");
            }
            assert_eq!(executor.last_mismatch(), Some(&*mismatch));
            assert_eq!(executor.checks().mismatches, 1);
        }
    }
}

#[test]
fn a_second_run_with_other_bits_is_wrong() {
    let graph = layers();
    for kept in [true, false] {
        let engine = Plain { shows: true, fault: Fault::NodeIf(4, kept), ..Plain::default() };
        let mut executor = engine.compile(&graph, SelfCheck::first_run()).executor().unwrap();
        let Err(Error::WrongResult(mismatch)) = executor.run_to_arrays(&[&x(4)]) else { panic!("{kept}") };
        assert!(mismatch.product.contains("in a second run"), "{mismatch}");
        assert_eq!(mismatch.element.bound, 0.0);
    }
}

#[test]
fn a_wrong_run_is_done_again_on_the_cpu_or_in_float64() {
    let graph = layers().variable_leading(&["x"]).unwrap();
    let expected = graph.with_leading(1).unwrap().interpret_f64(&[&x(1)]).unwrap();
    let engine = Plain { fault: Fault::Node(4), ..Plain::default() };
    let check = SelfCheck::one_in(NonZeroU32::new(100).unwrap()).on_mismatch(OnMismatch::RerunOnCpu);
    let mut executor = engine.compile(&graph, check).executor().unwrap();
    let mut outputs =
        [Array::new(&[4], vec![9f32; 4]).unwrap(), Array::new(&[4, 3, 6], vec![9f32; 72]).unwrap()];
    for run in 1..=3 {
        // Every run is verified after the first wrong one.
        executor.run(&[&x(1)], &mut outputs.iter_mut().collect::<Vec<_>>()).unwrap();
        assert_eq!(executor.checks(), counts(run, run, run));
        let (got, expected) = (outputs[1].data::<f32>().unwrap(), expected[1].data::<f64>().unwrap());
        assert!(got.iter().zip(expected).all(|(got, expected)| (f64::from(*got) - expected).abs() < 1e-4));
        assert!(got[18..].iter().chain(&outputs[0].data::<f32>().unwrap()[1..]).all(|x| *x == 0.0));
    }
    // The CPU engine has no convolutions.
    let image =
        Array::new(&[2, 3, 17, 15], (0u16..1530).map(|at| f32::from(at % 23) / 9.0).collect()).unwrap();
    let cnn = fixtures::cnn(2).unwrap();
    let last = cnn.nodes.len() - 1;
    let engine = Plain { fault: Fault::Node(last), ..Plain::default() };
    let mut executor = engine.compile(&cnn, check).executor().unwrap();
    // At one of two leading indices.
    let found = (0..100).find_map(|_| {
        let outputs = executor.run_to_arrays(&[&image]).unwrap();
        (executor.checks().reruns > 0).then_some(outputs)
    });
    assert!(found.is_none() || found == Some(cnn.interpret_rounded(&[&image]).unwrap()));
}

#[test]
fn runs_are_verified_on_their_schedule() {
    let graph = layers();
    for (check, expected) in [
        (SelfCheck::off(), [0, 0, 0, 0]),
        (SelfCheck::first_run(), [1, 1, 1, 1]),
        (SelfCheck::one_in(NonZeroU32::new(3).unwrap()), [1, 1, 1, 2]),
        (SelfCheck::every_run(), [1, 2, 3, 4]),
    ] {
        let options = CompileOptions::default().self_check(check);
        let compiled = graph.compile_with(&BackendId::CPU, &options).unwrap();
        let mut executor = compiled.executor().unwrap();
        let checked = expected.map(|_| {
            executor.run_to_arrays(&[&x(4)]).unwrap();
            executor.checks().checked
        });
        assert_eq!(checked, expected);
        // Checks on demand are none of them.
        assert!(compiled.check_whole(&[&x(4)]).unwrap().is_right());
        assert_eq!(executor.checks().checked, expected[3]);
    }
}

#[test]
fn checks_without_a_bound_and_checks_that_make_no_sense_are_errors() {
    let every = CompileOptions::default().self_check(SelfCheck::every_run());
    let graph = layers();
    for options in [every.clone().fast_math(true), every.clone().reduced_precision(true)] {
        let error = graph.compile_with(&BackendId::CPU, &options).unwrap_err();
        assert!(error.to_string().contains("leave out it or the self-check"), "{error}");
    }
    let none = every.self_check(SelfCheck::every_run().failure_probability(0.0));
    assert!(matches!(graph.compile_with(&BackendId::CPU, &none), Err(Error::Description { .. })));
}

#[cfg(feature = "profile")]
#[test]
fn a_graph_that_was_wrong_is_kept_from_the_backend_until_it_is_let_out() {
    use crate::backend::refusal::RefusalReason;
    use crate::cache::{CacheLimits, ProductCache};
    use crate::dispatch::machine::MachineKey;
    use crate::dispatch::profile::{Profile, Quarantine};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    let options = CompileOptions::default().quarantine(&path).self_check(SelfCheck::first_run());
    let graph = layers();
    let backends = Plain { fault: Fault::Node(4), device: Device::Cpu, ..Plain::default() }.registered();
    let cache = ProductCache::new(backends.clone(), CacheLimits::default());
    let compiled = cache.compile_graph(&plain(), &graph, &options).unwrap();
    let found = (0..200).find_map(|_| compiled.executor().unwrap().run_to_arrays(&[&x(4)]).err());
    assert!(matches!(found, Some(Error::WrongResult(_))), "{found:?}");

    let refusal =
        |graph: &Graph, options: &CompileOptions| match backends.compile_graph(&plain(), graph, options) {
            Err(Error::Refused { refusal, .. }) => Some(refusal),
            compiled => {
                compiled.unwrap();
                None
            }
        };
    let refused = refusal(&graph, &options).expect("it is in quarantine");
    assert_eq!(refused.reason, RefusalReason::Quarantined);
    for part in ["gave a wrong result: output `", "Profile::retain_quarantine"] {
        assert!(refused.message.contains(part), "{refused}");
    }
    // The same contents again, in another process say; not what is held, either.
    assert!(refusal(&layers(), &options).is_some());
    assert!(cache.compile_graph(&plain(), &graph, &options).is_err());
    assert_eq!(cache.statistics().products, 0);
    let chosen = backends.compile_graph(&BackendId::AUTO, &graph, &options).unwrap();
    assert_eq!(chosen.backend(), &BackendId::CPU);
    // Not other graphs, options, products, nor other backends.
    assert!(refusal(&graph.clone().variable_leading(&["x"]).unwrap(), &options).is_none());
    assert!(refusal(&graph, &options.clone().device(Device::Gpu)).is_none());
    backends.compile_graph(&BackendId::CPU, &graph, &options).unwrap();
    backends.supports(&plain(), &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();

    Profile::update(&path, |profile| {
        let here = MachineKey::here();
        assert!(profile.quarantine().iter().all(|entry| entry.graph.is_some() && entry.chip == here.chip));
        profile.retain_quarantine(|entry| entry.graph.is_none());
    })
    .unwrap();
    assert!(refusal(&graph, &options).is_none());
    // What is kept from everything is kept from graphs, too, beside an entry of another graph.
    let other = graph.clone().variable_leading(&["x"]).unwrap();
    let entry = backends.quarantine_of(&plain(), &other, &options, "wrong".into()).unwrap();
    Profile::update(&path, |profile| profile.add_quarantine(entry)).unwrap();
    assert!(refusal(&graph, &options).is_none());
    Profile::update(&path, |profile| profile.add_quarantine(Quarantine::here(plain(), None, "hung")))
        .unwrap();
    assert!(refusal(&graph, &options).is_some());
}

#[test]
fn auto_is_the_first_backend_that_runs_every_node() {
    let auto = |engine: Plain, graph: &Graph| {
        engine.registered().compile_graph(&BackendId::AUTO, graph, &CompileOptions::default())
    };
    let chosen = |engine: Plain, graph: &Graph| auto(engine, graph).unwrap().backend().to_string();
    let (small, cnn) = (layers(), fixtures::cnn(1).unwrap());
    let gpu = || Plain { device: Device::Gpu, ..Plain::default() };
    assert_eq!(chosen(gpu(), &small), "cpu");
    assert_eq!(chosen(gpu(), &cnn), "plain");
    // From the operations of a product of 1024^3 on.
    let mut g = GraphBuilder::new();
    let x = g.input("x", crate::ElementType::F32, &[4096, 512]).unwrap();
    let w = Weights::from_tensor(Tensor::filled(512, 512, 1f32).unwrap());
    let y = g.linear("y", x, &w, None).unwrap();
    let large = g.finish(&[("y", y)]).unwrap();
    assert_eq!(chosen(gpu(), &large), "plain");
    assert_eq!(chosen(Plain { device: Device::Cpu, ..Plain::default() }, &large), "cpu");
    let engine = Plain { fails: true, ..gpu() };
    let compiled = Arc::clone(&engine.compiled);
    assert_eq!(chosen(engine.clone(), &large), "cpu");
    assert_eq!(compiled.load(Ordering::Relaxed), 1);
    assert!(matches!(auto(engine, &cnn), Err(Error::Native(_))));

    let backends = Backends::new();
    let options = CompileOptions::default();
    let error = backends.compile_graph(&BackendId::AUTO, &cnn, &options).unwrap_err().to_string();
    for part in ["no backend runs this graph; cpu: ", " nodes, the first: node `", "Conv"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error, backends.refused_nodes(&BackendId::AUTO, &cnn, &options).unwrap_err().to_string());
    assert_eq!(backends.refused_nodes(&BackendId::AUTO, &small, &options).unwrap(), []);
}

#[test]
fn auto_goes_by_the_quarantine_of_its_profile() {
    use crate::dispatch::machine::MachineKey;
    use crate::dispatch::profile::Profile;

    let graph = layers();
    let mut backends = Plain { device: Device::Cpu, ..Plain::default() }.registered();
    let options = CompileOptions::default();
    let mut profile = Profile::new(MachineKey::here());
    let entry = backends.quarantine_of(&BackendId::CPU, &graph, &options, "a test".into()).unwrap();
    profile.add_quarantine(entry);
    backends.set_profile(Some(profile));
    let chosen = |graph: &Graph| backends.compile_graph(&BackendId::AUTO, graph, &options).unwrap();
    assert_eq!(chosen(&graph).backend(), &plain());
    assert_eq!(chosen(&graph.variable_leading(&["x"]).unwrap()).backend(), &BackendId::CPU);
}
