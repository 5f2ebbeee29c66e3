//! A backend whose compilations end when and how a test says.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::backend::refusal::{NodeRefusal, RefusalReason};
use crate::backend::{BackendId, Backends};
use crate::error::Error;
use crate::executor::{Compiled, Inputs};
use crate::operands::tensor::Tensor;
use crate::verify::accuracy::Reference;

/// How a compilation ends.
enum End {
    Good,
    Fails,
    Panics,
    CannotBeOpened,
}

/// The CPU's engine under another name, which compiles when it is told.
struct Slow {
    engine: Arc<dyn Backend>,
    ends: Mutex<Receiver<End>>,
    began: Mutex<Sender<()>>,
    refuses: bool,
}

fn error() -> Error {
    Error::OutOfMemory { what: "a test", bytes: 7 }
}

/// A product that cannot be opened, or one that can.
struct Made(Option<Box<dyn CompiledProduct>>);

impl CompiledProduct for Made {
    fn open(&self, _: usize) -> Result<Box<dyn Run>> {
        Ok(Box::new(MadeRun(self.0.as_ref().ok_or_else(error)?.open(0)?)))
    }

    fn info(&self) -> CompiledInfo {
        CompiledInfo { bytes_held: 12345, observed: Device::Gpu, ..CompiledInfo::default() }
    }
}

/// Says that it ran elsewhere than the CPU.
struct MadeRun(Box<dyn Run>);

impl Run for MadeRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        self.0.run(args)
    }

    fn run_observed(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        self.0.run(args).map(|()| RunObservation { observed: Device::Gpu, ..RunObservation::default() })
    }
}

impl Backend for Slow {
    fn describe(&self) -> String {
        "slow".into()
    }

    fn device(&self) -> (Device, String) {
        (Device::Gpu, "a test".into())
    }

    fn is_foreign(&self) -> bool {
        true
    }

    fn supports(&self, _: &MatMul, _: &CompileOptions) -> Result<(), Refusal> {
        if self.refuses { Err(Refusal::new(RefusalReason::Other, "a test")) } else { Ok(()) }
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        Ok(Box::new(Made(if self.begin()? {
            Some(self.engine.compile(product, weights, &for_cpu(options))?)
        } else {
            None
        })))
    }

    fn refused_nodes(&self, _: &Graph, _: &CompileOptions) -> Result<Vec<NodeRefusal>> {
        Ok(Vec::new())
    }

    fn compile_graph(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn GraphProgram>> {
        Ok(Box::new(MadeGraph(if self.begin()? {
            Some(self.engine.compile_graph(graph, &for_cpu(options))?)
        } else {
            None
        })))
    }
}

impl Slow {
    /// Waits for the test; whether what is compiled can be opened.
    fn begin(&self) -> Result<bool> {
        self.began.lock().unwrap().send(()).unwrap();
        let end = self.ends.lock().unwrap().recv().unwrap();
        match end {
            End::Good => Ok(true),
            End::Fails => Err(error()),
            // Without the hook's message.
            End::Panics => std::panic::resume_unwind(Box::new("a test")),
            End::CannotBeOpened => Ok(false),
        }
    }
}

/// A graph that cannot be opened, or one that can.
struct MadeGraph(Option<Box<dyn GraphProgram>>);

impl GraphProgram for MadeGraph {
    fn open(&self, keep_values: bool) -> Result<Box<dyn GraphRun>> {
        self.0.as_ref().ok_or_else(error)?.open(keep_values)
    }

    fn info(&self) -> GraphInfo {
        GraphInfo { weight_bytes: 12345, ..GraphInfo::default() }
    }
}

struct Fixture {
    backends: Backends,
    id: BackendId,
    began: Receiver<()>,
    ends: Sender<End>,
}

fn fixture(refuses: bool) -> Fixture {
    let (ends, receiver) = channel();
    let (sender, began) = channel();
    let mut backends = Backends::new();
    let engine = Arc::clone(backends.get(&BackendId::CPU).unwrap());
    let id = BackendId::new("slow");
    let slow = Slow { engine, ends: Mutex::new(receiver), began: Mutex::new(sender), refuses };
    backends.add_for_test(id.clone(), Arc::new(slow));
    Fixture { backends, id, began, ends }
}

fn options() -> CompileOptions {
    CompileOptions::default().device(Device::Gpu).instant_start(true)
}

fn state(compiled: &Compiled) -> InstantStart {
    compiled.report().instant_start.expect("an instant start")
}

/// Waits for the background thread, which has been told how to end.
fn settled(compiled: &Compiled) -> InstantStart {
    wait_until(|| !matches!(state(compiled), InstantStart::Compiling { .. }));
    state(compiled)
}

/// A thread that never gets there fails the test instead of hanging it.
fn wait_until(mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::yield_now();
    }
}

fn operands() -> (crate::MatMulWithWeights, Tensor<f32>) {
    let weights = Weights::from_tensor(Tensor::random_normal_f32(300, 7, 1.0, 2).unwrap());
    let product = MatMul::new(5, 7, 300).unwrap().with_weights(&weights).unwrap();
    (product, Tensor::random_normal_f32(5, 300, 1.0, 1).unwrap())
}

#[test]
fn executors_move_between_runs_and_stay_within_the_bound() {
    let Fixture { backends, id, began, ends } = fixture(false);
    let (product, x) = operands();
    let compiled = backends.compile(&id, &product, &options()).unwrap();
    began.recv().unwrap();
    let inputs = Inputs::new(&x);
    let reference = Reference::new(&product, inputs).unwrap();
    let run = |executor: &mut crate::Executor| {
        let mut c = Tensor::<f32>::zeros(5, 7).unwrap();
        executor.run(inputs, &mut c).unwrap();
        let deviation = reference.compare(&c).unwrap();
        assert!(deviation.is_within_bound(), "{deviation:?}");
    };
    let (mut one, mut other) = (compiled.executor().unwrap(), compiled.executor().unwrap());
    for _ in 0..3 {
        run(&mut one);
    }
    let observed = |executor: &mut crate::Executor| {
        executor.run_observed(inputs, &mut Tensor::<f32>::zeros(5, 7).unwrap()).unwrap().observed
    };
    assert_eq!(observed(&mut other), Device::Cpu);
    assert_eq!(state(&compiled), InstantStart::Compiling { runs_on_cpu: 4 });
    let report = compiled.report();
    assert_eq!((report.observed, report.requested, &report.backend), (Device::Cpu, Device::Gpu, &id));

    ends.send(End::Good).unwrap();
    assert!(matches!(settled(&compiled), InstantStart::Switched { runs_on_cpu: 4, .. }));
    for executor in [&mut one, &mut other, &mut compiled.executor().unwrap()] {
        run(executor);
        run(executor);
        assert_eq!(observed(executor), Device::Gpu);
    }
    // Nothing ran on the CPU any more, and its product is gone.
    assert!(matches!(state(&compiled), InstantStart::Switched { runs_on_cpu: 4, .. }));
    let report = compiled.report();
    assert_eq!((report.observed, report.bytes_held), (Device::Gpu, 12345));
}

#[test]
fn a_failed_compilation_leaves_the_cpu_with_the_reason() {
    let (product, x) = operands();
    for (end, reason) in [
        (End::Fails, error().to_string()),
        (End::CannotBeOpened, error().to_string()),
        (End::Panics, "the compilation panicked".to_owned()),
    ] {
        let Fixture { backends, id, began, ends } = fixture(false);
        let compiled = backends.compile(&id, &product, &options()).unwrap();
        began.recv().unwrap();
        let mut executor = compiled.executor().unwrap();
        let mut c = Tensor::<f32>::zeros(5, 7).unwrap();
        executor.run(Inputs::new(&x), &mut c).unwrap();
        ends.send(end).unwrap();
        assert_eq!(settled(&compiled), InstantStart::Failed { runs_on_cpu: 1, reason: reason.clone() });
        executor.run(Inputs::new(&x), &mut c).unwrap();
        assert_eq!(compiled.run_to_tensor(Inputs::new(&x)).unwrap(), c);
        assert_eq!(state(&compiled), InstantStart::Failed { runs_on_cpu: 3, reason });
        assert_eq!(compiled.report().observed, Device::Cpu);
    }
}

#[test]
fn what_was_made_for_a_dropped_product_is_thrown_away() {
    let Fixture { backends, id, began, ends } = fixture(false);
    let (product, x) = operands();
    let inner = Arc::downgrade(backends.get(&id).unwrap());
    let compiled = backends.compile(&id, &product, &options()).unwrap();
    began.recv().unwrap();
    // Neither drop waits for the thread, and an executor alone keeps the product.
    let mut executor = compiled.executor().unwrap();
    drop(compiled);
    let mut c = Tensor::<f32>::zeros(5, 7).unwrap();
    executor.run(Inputs::new(&x), &mut c).unwrap();
    drop(executor);
    drop(backends);
    assert!(inner.strong_count() > 0, "the thread compiles");
    ends.send(End::Good).unwrap();
    wait_until(|| inner.strong_count() == 0);
}

#[test]
fn refusals_and_wrong_operands_are_errors_at_once() {
    let Fixture { backends, id, .. } = fixture(true);
    let (product, _) = operands();
    let refused = backends.compile(&id, &product, &options());
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let Fixture { backends, id, began, .. } = fixture(false);
    assert!(matches!(backends.compile(&id, product.product(), &options()), Err(Error::Missing { .. })));
    assert!(began.try_recv().is_err(), "nothing was compiled");
}

#[test]
fn a_product_that_the_cpu_refuses_is_waited_for() {
    let Fixture { backends, id, began, ends } = fixture(false);
    // The engine behind the test's backend cannot compile it either: that it was asked is the point.
    let wide = MatMul::builder(2, 2, 2)
        .types(crate::ElementTypes::uniform(crate::ElementType::F16))
        .build()
        .unwrap();
    ends.send(End::CannotBeOpened).unwrap();
    let compiled = backends.compile(&id, &wide, &options()).unwrap();
    began.recv().unwrap();
    assert!(
        matches!(state(&compiled), InstantStart::Waited { reason } if reason.contains("does not run f16"))
    );
}

#[test]
fn the_cpu_is_asked_for_the_same_but_for_the_device() {
    let of_cpu = for_cpu(&options().threads(crate::Threads::count(3).unwrap()));
    assert_eq!((of_cpu.device, of_cpu.threads.number()), (Device::Unknown, 3));
}

#[test]
fn the_cpu_itself_starts_at_once() {
    let (product, _) = operands();
    let options = CompileOptions::default().instant_start(true);
    let compiled = Backends::new().compile(&BackendId::CPU, &product, &options).unwrap();
    assert_eq!(compiled.report().instant_start, None);
}

#[test]
fn the_backend_that_was_asked_for_speaks_for_itself() {
    let (product, _) = operands();
    let product = product.product();
    for refuses in [false, true] {
        let Fixture { backends, id, .. } = fixture(refuses);
        let cpu = backends.get(&BackendId::CPU).unwrap();
        for asked_for in [cpu, backends.get(&id).unwrap()] {
            let both = WithInstantStart::new(Ok(cpu), asked_for, product, &options());
            let said = |backend: &dyn Backend| {
                let supports = backend.supports(product, &options()).map_err(|refusal| refusal.to_string());
                (backend.describe(), backend.device(), backend.is_foreign(), supports)
            };
            assert_eq!(said(&both), said(&**asked_for));
        }
    }
}

fn doubling() -> Graph {
    use crate::description::element::ElementType::F32;
    let mut g = crate::graph::GraphBuilder::new();
    let x = g.input("x", F32, &[2]).unwrap();
    let y = g.add(x, x).unwrap();
    g.finish(&[("y", y)]).unwrap()
}

#[test]
fn the_cpu_answers_for_a_graph_until_the_backend_has_compiled() {
    let (x, expected) = (Array::new(&[2], vec![1f32, 2.0]).unwrap(), [2f32, 4.0]);
    for end in [End::Good, End::Fails, End::Panics, End::CannotBeOpened] {
        let good = matches!(end, End::Good);
        let Fixture { backends, id, began, ends } = fixture(false);
        let compiled = backends.compile_graph(&id, &doubling(), &options()).unwrap();
        let mut executor = compiled.executor().unwrap();
        let mut run = || executor.run_to_arrays(&[&x]).unwrap()[0].data::<f32>().unwrap() == expected;
        began.recv().unwrap();
        assert!(run() && run());
        let waiting = InstantStart::Compiling { runs_on_cpu: 2 };
        assert_eq!(compiled.report().instant_start, Some(waiting.clone()));
        ends.send(end).unwrap();
        while compiled.report().instant_start == Some(waiting.clone()) {
            std::thread::yield_now();
        }
        assert!(run());
        let state = compiled.report().instant_start.unwrap();
        match state {
            InstantStart::Switched { runs_on_cpu: 2, .. } if good => {
                assert_eq!(compiled.report().weight_bytes, 12345);
            }
            InstantStart::Failed { runs_on_cpu: 3, .. } if !good => {}
            state => panic!("{state:?}"),
        }
    }
}
