//! Products that abort, hang, exit or compute wrong numbers in a helper process. A program of its own
//! without the test harness: it is its own helper, and the shim reads its fault from the environment.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ane_matmul::graph::{Graph, GraphBuilder};
use ane_matmul::probe::{Probe, ProbeVerdict, serve};
use ane_matmul::{
    Activation, BackendId, Backends, CompileOptions, Device, ElementType, ElementTypes, Error, MatMul,
    QuantB, Quantization, ShimLibrary, Tensor, Weights,
};

/// What makes this program a helper.
const HELPER: &str = "--helper";
/// What makes it a program that probes something that hangs.
const PROBER: &str = "--prober";
/// The file where a helper writes its process id.
const PID_FILE: &str = "ANE_MATMUL_TEST_PID_FILE";

fn backends() -> (Backends, BackendId) {
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(ane_matmul_shims::NEURAL) }.expect("a good shim");
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    (backends, id)
}

fn set(fault: &str) {
    // SAFETY: the tests run one after the other, and no other thread reads the environment meanwhile.
    unsafe { std::env::set_var("ANE_REFERENCE_FAULT", fault) };
}

fn probe() -> Probe {
    Probe::new(std::env::current_exe().expect("this program")).arg(HELPER).time_limit(Duration::from_secs(60))
}

fn neural() -> BackendId {
    BackendId::new("neural")
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(HELPER) => {
            if let Some(file) = std::env::var_os(PID_FILE) {
                std::fs::write(file, std::process::id().to_string()).expect("a writable file");
            }
            return serve(&backends().0);
        }
        Some(PROBER) => {
            let product = MatMul::new(2, 2, 2).expect("a product");
            let _ = probe().run(&neural(), &product, &CompileOptions::default());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    verdicts();
    every_product_is_described_to_the_helper();
    what_is_no_helper_is_an_error();
    the_neural_engine_is_probed_before_its_first_use();
    one_helper_answers_until_a_product_does_not_pass();
    graphs_are_tried_out();
    graphs_are_probed_before_they_are_compiled();
    #[cfg(feature = "profile")]
    {
        crashes_are_quarantined();
        graphs_that_crash_are_quarantined();
    }
    #[cfg(target_os = "linux")]
    {
        no_process_is_left();
        a_helper_ends_with_its_prober();
    }
    println!("all passed");
    ExitCode::SUCCESS
}

fn verdict(fault: &str) -> ProbeVerdict {
    set(fault);
    let product = MatMul::new(4, 5, 6).expect("a product");
    let limit = if fault.starts_with("hang") { Duration::from_millis(500) } else { Duration::from_secs(60) };
    let verdict = probe().time_limit(limit).run(&neural(), &product, &CompileOptions::default());
    set("");
    verdict.expect("a verdict")
}

fn verdicts() {
    assert!(verdict("").passed());
    // More than a pipe holds, on both streams.
    assert!(verdict("flood").passed());
    for slot in ["open", "supports", "compile", "executor", "run", "close"] {
        let crashed = verdict(&format!("abort@{slot}"));
        #[cfg(unix)]
        assert!(matches!(crashed, ProbeVerdict::Crashed { signal: Some(6), .. }), "{slot}: {crashed:?}");
        assert!(!crashed.passed());
    }
    #[cfg(unix)]
    assert_eq!(verdict("abort").to_string(), "crashed: killed by signal 6 (SIGABRT)");
    for slot in ["compile", "run"] {
        let exited = verdict(&format!("exit@{slot}"));
        assert!(matches!(exited, ProbeVerdict::Crashed { signal: None, status: Some(3), .. }), "{exited:?}");
        let hung = verdict(&format!("hang@{slot}"));
        assert_eq!(hung, ProbeVerdict::Hung { time_limit: Duration::from_millis(500) });
        let ProbeVerdict::Failed { message } = verdict(&format!("fail@{slot}")) else { panic!("{slot}") };
        assert!(message.contains("planted fault"), "{message}");
    }
    let ProbeVerdict::WrongResult { message } = verdict("wrong") else { panic!("a wrong result") };
    assert!(message.contains("row 0, column 0"), "{message}");
}

fn every_product_is_described_to_the_helper() {
    let passes =
        |product: &MatMul, options: &CompileOptions| probe().run(&neural(), product, options).unwrap();
    let layer = MatMul::builder(7, 5, 6)
        .batch(2)
        .transpose_b(true)
        .variable_m(true)
        .bias(true)
        .residual(true)
        .alpha(0.5)
        .activation(Activation::Gelu);
    let neural_engine = CompileOptions::default().device(Device::NeuralEngine);
    let verdict = passes(layer.build_constant_b().unwrap().product(), &neural_engine);
    assert!(verdict.passed(), "{verdict}");
    let refused =
        passes(&MatMul::builder(2, 2, 2).types(ElementTypes::BF16).build().unwrap(), &neural_engine);
    assert!(matches!(refused, ProbeVerdict::Failed { .. }), "{refused:?}");
    let unknown = probe().run(&BackendId::new("nobody"), &MatMul::new(1, 1, 1).unwrap(), &neural_engine);
    assert!(matches!(unknown, Ok(ProbeVerdict::Failed { .. })), "{unknown:?}");
    let int8 = |b| {
        let quantization = Quantization { b, ..Quantization::default() };
        MatMul::builder(2, 2, 2).types(ElementTypes::INT8).quantization(quantization)
    };
    let one_scale = int8(QuantB::Static { scale: 1.0, zero_point: 0 }).build().unwrap();
    let of_weights = int8(QuantB::PerTensor { zero_point: 0 }).build_constant_b().unwrap();
    for int8 in [&one_scale, of_weights.product()] {
        let result = probe().run(&neural(), int8, &neural_engine);
        assert!(matches!(result, Err(Error::Probe { .. })), "{result:?}");
    }
}

/// With a table that ids choose from, and more bytes than a pipe holds.
fn graph(scale: f64) -> Graph {
    let mut g = GraphBuilder::new();
    let ids = g.input("ids", ElementType::I64, &[8, 3]).unwrap();
    let table = Weights::from_tensor(Tensor::random_normal_f32(2, 24, 1.0, 1).unwrap());
    let table = g.weights("table", &table).unwrap();
    let x = g.gather(table, ids, 0).unwrap();
    let weights = Weights::from_tensor(Tensor::random_normal_f32(24, 2000, scale, 2).unwrap());
    let h = g.named("up").linear("up", x, &weights, None).unwrap();
    let y = g.relu(h).unwrap();
    g.finish(&[("y", y)]).unwrap().variable_leading(&["ids"]).unwrap()
}

fn graph_verdict(fault: &str) -> ProbeVerdict {
    set(fault);
    let limit = if fault.starts_with("hang") { Duration::from_secs(2) } else { Duration::from_secs(60) };
    let probe = probe().time_limit(limit);
    let verdict = probe.run_graph(&backends().0, &neural(), &graph(1.0), &CompileOptions::default());
    set("");
    verdict.expect("a verdict")
}

fn graphs_are_tried_out() {
    assert!(graph_verdict("").passed());
    for slot in ["supports", "compile", "run"] {
        let crashed = graph_verdict(&format!("abort@{slot}"));
        assert!(matches!(crashed, ProbeVerdict::Crashed { .. }), "{slot}: {crashed:?}");
    }
    assert!(matches!(graph_verdict("hang@compile"), ProbeVerdict::Hung { .. }));
    let failed = graph_verdict("fail@compile");
    assert!(matches!(&failed, ProbeVerdict::Failed { message } if message.contains("planted")), "{failed:?}");
    // At one of eight leading indices, always the same for a helper.
    set("wrong");
    let mut g = GraphBuilder::new();
    let x = g.input("x", ElementType::F32, &[1, 3]).unwrap();
    let y = g.relu(x).unwrap();
    let single = g.finish(&[("y", y)]).unwrap();
    let backends = backends().0;
    let verdict = probe().run_graph(&backends, &neural(), &single, &CompileOptions::default());
    set("");
    let Ok(ProbeVerdict::WrongResult { message }) = verdict else { panic!("{verdict:?}") };
    assert!(message.contains("output `y` (f32[1, 3]) of a graph: row 0, column 0"), "{message}");
    let unknown =
        probe().run_graph(&backends, &BackendId::new("nobody"), &single, &CompileOptions::default());
    assert!(matches!(unknown, Err(Error::UnknownBackend { .. })), "{unknown:?}");
    #[cfg(unix)]
    {
        let silent = Probe::new("sleep").arg("100").time_limit(Duration::from_millis(300));
        let result = silent.run_graph(&backends, &neural(), &graph(1.0), &CompileOptions::default());
        assert!(matches!(result, Err(Error::Probe { .. })), "{result:?}");
    }
}

fn graphs_are_probed_before_they_are_compiled() {
    let (backends, id) = backends();
    let compile = |graph: &Graph, probe: &Arc<Probe>| {
        let options = CompileOptions::default().probe(Arc::clone(probe));
        backends.compile_graph(&id, graph, &options).map(drop)
    };
    let (one, other) = (graph(1.0), graph(2.0));
    let every_shim = Arc::new(probe().every_shim());
    set("abort@compile");
    let result = compile(&one, &every_shim);
    let text = result.unwrap_err().to_string();
    assert!(text.contains("does not stand the probe: it crashed"), "{text}");
    // Nothing else is probed; this process's device was opened before the fault was planted.
    compile(&one, &Arc::new(probe())).unwrap();
    set("");
    // A verdict holds for the graph, and for no other.
    assert!(matches!(compile(&one, &every_shim), Err(Error::Probed { .. })));
    compile(&other, &every_shim).unwrap();
    set("abort@compile");
    compile(&other, &every_shim).unwrap();
    set("");
}

fn what_is_no_helper_is_an_error() {
    let product = MatMul::new(2, 2, 2).unwrap();
    for (program, argument, part) in
        [("/no/such/program", "", "cannot be started"), (env!("CARGO"), "--version", "is no helper")]
    {
        let result = Probe::new(program).arg(argument).run(&neural(), &product, &CompileOptions::default());
        match result {
            Err(error @ Error::Probe { .. }) => assert!(error.to_string().contains(part), "{error}"),
            other => panic!("{program}: {other:?}"),
        }
    }
    #[cfg(unix)]
    {
        let silent = Probe::new("sleep").arg("100").time_limit(Duration::from_millis(300));
        let result = silent.run(&neural(), &product, &CompileOptions::default());
        assert!(matches!(result, Err(Error::Probe { .. })), "{result:?}");
    }
}

fn the_neural_engine_is_probed_before_its_first_use() {
    let (backends, id) = backends();
    let product = MatMul::new(4, 4, 4).unwrap();
    let compile = |device, probe: &Arc<Probe>| {
        let options = CompileOptions::default().device(device).probe(Arc::clone(probe));
        backends.compile(&id, &product, &options)
    };
    let crashing = Arc::new(probe());
    set("abort@compile");
    match compile(Device::NeuralEngine, &crashing) {
        Err(Error::Probed { backend, verdict }) => {
            assert_eq!(backend, id);
            assert!(matches!(*verdict, ProbeVerdict::Crashed { .. }));
        }
        other => panic!("{other:?}"),
    }
    // Nothing else is probed; this process's device was opened before the fault was planted.
    compile(Device::Unknown, &crashing).unwrap();
    let every_shim = Arc::new(probe().every_shim());
    assert!(matches!(compile(Device::Unknown, &every_shim), Err(Error::Probed { .. })));
    set("");
    // A verdict holds for the class, whatever it is: a hang is waited for once.
    assert!(matches!(compile(Device::NeuralEngine, &crashing), Err(Error::Probed { .. })));
    let passing = Arc::new(probe());
    compile(Device::NeuralEngine, &passing).unwrap();
    set("abort@compile");
    compile(Device::NeuralEngine, &passing).unwrap();
    set("");
}

fn one_helper_answers_until_a_product_does_not_pass() {
    // Who opens the device after the fault is planted has it, and who opened it before has not.
    let keeping = probe().keep_helper();
    let ask_of = |probe: &Probe, size| {
        probe.run(&neural(), &MatMul::new(size, size, size).unwrap(), &CompileOptions::default()).unwrap()
    };
    let ask = |size| ask_of(&keeping, size);
    assert!(ask(2).passed());
    set("abort@compile");
    assert!(ask(3).passed() && ask(4).passed(), "the same helper");
    let refused = MatMul::builder(2, 2, 2).types(ElementTypes::BF16).build().unwrap();
    let verdict = keeping.run(&neural(), &refused, &CompileOptions::default()).unwrap();
    assert!(matches!(verdict, ProbeVerdict::Failed { .. }), "{verdict:?}");
    assert!(matches!(ask(5), ProbeVerdict::Crashed { .. }), "another helper");
    set("hang@compile");
    let impatient = probe().keep_helper().time_limit(Duration::from_secs(2));
    assert!(matches!(ask_of(&impatient, 6), ProbeVerdict::Hung { .. }));
    set("wrong");
    assert!(matches!(ask(7), ProbeVerdict::WrongResult { .. }));
    set("");
    assert!(ask(8).passed());
    // What ends the helper while it waits is no fault of the next product.
    #[cfg(target_os = "linux")]
    {
        for pid in children() {
            let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap();
            assert!(killed.success());
        }
        assert!(ask(9).passed());
    }
}

/// The processes that this one started.
#[cfg(target_os = "linux")]
fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
    };
    tasks.flat_map(|task| of(task).split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[cfg(feature = "profile")]
fn crashes_are_quarantined() {
    use ane_matmul::{Profile, RefusalReason};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile/profile.json");
    let (backends, id) = backends();
    let product = MatMul::new(4, 4, 4).unwrap();
    let options = CompileOptions::default().quarantine(&path);
    for (fault, part) in
        [("abort@compile", "SIGABRT"), ("hang@compile", "hung"), ("exit", "status 3"), ("wrong", "wrong")]
    {
        set(fault);
        probe().time_limit(Duration::from_secs(2)).run(&id, &product, &options).unwrap();
        set("");
        let profile = Profile::load(&path).unwrap();
        let [entry] = profile.quarantine() else { panic!("{profile:?}") };
        assert!(entry.reason.contains(part), "{entry:?}");
        match backends.compile(&id, &product, &options) {
            Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::Quarantined),
            other => panic!("{other:?}"),
        }
    }
    // Neither what passes nor what is refused.
    Profile::update(&path, |profile| profile.retain_quarantine(|_| false)).unwrap();
    for fault in ["", "fail"] {
        set(fault);
        probe().run(&id, &product, &options).unwrap();
        assert!(Profile::load(&path).unwrap().quarantine().is_empty());
    }
    set("");
}

#[cfg(feature = "profile")]
fn graphs_that_crash_are_quarantined() {
    use ane_matmul::{Profile, RefusalReason};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    let (backends, id) = backends();
    let (one, other) = (graph(1.0), graph(2.0));
    let options = CompileOptions::default().quarantine(&path);
    set("abort@compile");
    probe().run_graph(&backends, &id, &one, &options).unwrap();
    set("fail@compile");
    probe().run_graph(&backends, &id, &other, &options).unwrap();
    set("");
    let profile = Profile::load(&path).unwrap();
    let [entry] = profile.quarantine() else { panic!("{profile:?}") };
    assert!(entry.reason.contains("SIGABRT") && entry.graph.is_some() && entry.shape_class.is_none());
    match backends.compile_graph(&id, &one, &options) {
        Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::Quarantined),
        other => panic!("{other:?}"),
    }
    backends.compile_graph(&id, &other, &options).unwrap();
    let entry = entry.clone();
    Profile::update(&path, |profile| profile.retain_quarantine(|other| *other != entry)).unwrap();
    backends.compile_graph(&id, &one, &options).unwrap();
}

/// Every helper was waited for.
#[cfg(target_os = "linux")]
fn no_process_is_left() {
    assert_eq!(children(), [""; 0], "a helper is left");
}

/// A helper that hangs does not outlive a program that was killed.
#[cfg(target_os = "linux")]
fn a_helper_ends_with_its_prober() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let mut prober = std::process::Command::new(std::env::current_exe().unwrap())
        .arg(PROBER)
        .env("ANE_REFERENCE_FAULT", "hang@compile")
        .env(PID_FILE, &file)
        .spawn()
        .unwrap();
    let pid = loop {
        match std::fs::read_to_string(&file) {
            Ok(pid) if !pid.is_empty() => break pid,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    std::thread::sleep(Duration::from_millis(200));
    prober.kill().unwrap();
    prober.wait().unwrap();
    // It may stay as a zombie where nobody waits for orphans.
    let alive = || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    };
    for _ in 0..1000 {
        if !alive() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the helper {pid} is left");
}
