//! Whatever a shim's table holds it is taken or refused, and whatever its functions answer is a result or
//! an error. The shim itself ends the process where the crate breaks the contract.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use ane_matmul::graph::{Array, Graph, GraphBuilder};
use ane_matmul::{
    BackendId, Backends, CompileOptions, Compiled, DeviceMemory, DeviceTensor, ElementType, Error, Executor,
    Inputs, MatMul, OnMismatch, SelfCheck, ShimLibrary, Submission, Tensor, Threads, Ticket, Weights,
};
use ane_matmul_fuzz::shim::{Distortion, Table, with_plan};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Case {
    table: Distortion,
    device: u8,
    constant_b: bool,
    packages: bool,
    relaxed: bool,
    depth: u8,
    steps: Vec<Step>,
    plan: Vec<u8>,
}

/// What is done with an executor that has a queue.
#[derive(Debug, Arbitrary)]
enum Step {
    Submit,
    /// Tickets are taken by their place among those that were given out, those that have ended included.
    Wait(u8),
    WaitTimeout(u8, u16),
    Run,
    Scope(u8),
    Reopen(u8),
}

const M: usize = 2;
const N: usize = 3;
const K: usize = 4;

/// Operands that runs share.
struct Operands {
    a: Arc<DeviceTensor>,
    b: Option<Arc<DeviceTensor>>,
}

impl Operands {
    fn inputs(&self) -> Inputs<'_> {
        let inputs = Inputs::new(&*self.a);
        match &self.b {
            Some(b) => inputs.b(&**b),
            None => inputs,
        }
    }

    fn submission(&self, c: DeviceTensor) -> Submission {
        let submission = Submission::new(Arc::clone(&self.a), c);
        match &self.b {
            Some(b) => submission.b(Arc::clone(b)),
            None => submission,
        }
    }
}

/// Device memory holds what was copied there.
fn use_memory(memory: &DeviceMemory) -> ane_matmul::Result<()> {
    let numbers = Tensor::from_fn(N, K, |row, col| (row * K + col) as f32)?;
    let mut tensor = memory.zeros(ElementType::F32, N, K)?;
    assert!(!format!("{memory:?} {tensor:?}").is_empty());
    if let Ok(zeros) = tensor.download::<f32>() {
        assert_eq!(zeros.data(), [0.0; N * K]);
    }
    tensor.upload(&numbers)?;
    assert_eq!(tensor.download::<f32>()?.data(), numbers.data());
    assert_eq!(tensor.view().is_some(), tensor.view_mut().is_some());
    memory.zeros(ElementType::F32, 0, K)?.download::<f32>()?;
    Ok(())
}

/// Submissions, and waits in any order.
fn use_queue(compiled: &Compiled, operands: &Operands, case: &Case) -> ane_matmul::Result<()> {
    let memory = compiled.memory();
    let open = |depth: u8| compiled.executor_with_depth(usize::from(depth) % 8);
    let mut executor = open(case.depth)?;
    let (mut tickets, mut in_flight) = (Vec::<Ticket>::new(), Vec::<Ticket>::new());
    for step in &case.steps {
        match *step {
            Step::Submit => {
                let c = memory.zeros(ElementType::F32, M, N)?;
                match executor.submit(operands.submission(c)) {
                    Ok(ticket) => {
                        tickets.push(ticket);
                        in_flight.push(ticket);
                    }
                    Err(failure) => {
                        assert!(failure.submission.is_some() && !failure.to_string().is_empty());
                    }
                }
            }
            Step::Wait(index) => {
                let Some(&ticket) = tickets.get(usize::from(index) % tickets.len().max(1)) else { continue };
                wait(&mut executor, ticket, None, &mut in_flight);
            }
            Step::WaitTimeout(index, timeout) => {
                let Some(&ticket) = tickets.get(usize::from(index) % tickets.len().max(1)) else { continue };
                wait(&mut executor, ticket, Some(Duration::from_nanos(timeout.into())), &mut in_flight);
            }
            Step::Run => {
                let mut c = memory.zeros(ElementType::F32, M, N)?;
                let result = executor.run(operands.inputs(), &mut c);
                assert_eq!(matches!(result, Err(Error::Queue { .. })), !in_flight.is_empty());
            }
            Step::Scope(runs) => {
                let mut outputs = Vec::new();
                for _ in 0..runs % 8 {
                    outputs.push(memory.zeros(ElementType::F32, M, N)?);
                }
                let result = executor
                    .scope(|queue| outputs.iter_mut().try_for_each(|c| queue.submit(operands.inputs(), c)));
                assert!(in_flight.is_empty() || matches!(result, Err(Error::Queue { .. })));
            }
            Step::Reopen(depth) => {
                // What is in flight ends with the old one; its tickets mean nothing to the new one.
                executor = open(depth)?;
                in_flight.clear();
            }
        }
        assert_eq!(executor.in_flight(), in_flight.len());
    }
    Ok(())
}

fn wait(executor: &mut Executor, ticket: Ticket, timeout: Option<Duration>, in_flight: &mut Vec<Ticket>) {
    let known = in_flight.contains(&ticket);
    let result = match timeout {
        Some(timeout) => executor.wait_timeout(ticket, timeout),
        None => executor.wait(ticket).map(Some),
    };
    match result {
        Ok(None) => assert!(known),
        Ok(Some(completed)) => {
            assert!(known);
            let _ = completed.submission.c.download::<f32>();
            in_flight.retain(|other| *other != ticket);
        }
        Err(failure) => {
            assert_eq!(failure.submission.is_some(), known);
            in_flight.retain(|other| *other != ticket);
        }
    }
}

/// A product of gathered rows and a comparison, with constants of both kinds, up to three of the leading dimension.
fn graph() -> ane_matmul::Result<Graph> {
    let mut g = GraphBuilder::new();
    let ids = g.input("ids", ElementType::I64, &[M, 2])?;
    let table = g.weights("table", &Weights::from_tensor(Tensor::from_fn(3, K, |row, col| (row + col) as f32)?))?;
    let x = g.gather(table, ids, 0)?;
    let weights = Weights::from_tensor(Tensor::from_fn(N, K, |row, col| (row * col) as f32)?).transposed()?;
    let bias = g.constant("bias", Array::new(&[N], vec![1f32; N])?)?;
    let y = g.linear("layer", x, &weights, Some(bias))?;
    let y = g.softmax(y, -1)?;
    let zero = g.scalar(0f32);
    let positive = g.greater(y, zero)?;
    g.finish(&[("y", y), ("positive", positive), ("again", y)])
}

fn use_graphs(backends: &Backends, id: &BackendId, case: &Case, options: &CompileOptions) -> ane_matmul::Result<()> {
    let graph = graph()?;
    let graph = if case.depth % 2 == 0 { graph.variable_leading(&["ids"])? } else { graph };
    let variable = case.depth % 2 == 0;
    let refused = backends.refused_nodes(id, &graph, options)?;
    assert!(refused.iter().all(|refused| !refused.to_string().is_empty()));
    let _ = backends.refused_nodes(&BackendId::AUTO, &graph, options);
    let mut options = options.clone();
    if !case.relaxed && case.device & 0x80 != 0 {
        options = options.self_check(SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu));
    }
    let compiled = backends.compile_graph(id, &graph, &options)?;
    let report = compiled.report();
    assert!(!format!("{report} {}", report.to_json()).is_empty() && !report.to_svg().is_empty());
    let mut executor = compiled.executor()?;
    for step in case.steps.iter().take(8) {
        let leading = match step {
            Step::Wait(number) | Step::Scope(number) if variable => usize::from(*number) % (M + 1),
            _ => M,
        };
        let ids = Array::new(&[leading, 2], vec![1i64; leading * 2])?;
        match executor.run_to_arrays(&[&ids]) {
            Ok(outputs) => {
                // Whatever the shim wrote: the same twice, booleans that are some.
                let bits = |array: &Array| array.data::<f32>().map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                assert_eq!(bits(&outputs[0]), bits(&outputs[2]));
                let booleans = outputs[1].data::<bool>().expect("as described");
                assert!(booleans.iter().all(|boolean| u8::from(*boolean) <= 1));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let _ = compiled.check_whole(&[&ids]);
    }
    Ok(())
}

fn use_shim(table: &Table, case: &Case) -> ane_matmul::Result<()> {
    // SAFETY: as many bytes are readable as the table says, its strings end in NUL, and its functions
    // keep to the contract.
    let shim = unsafe { ShimLibrary::from_table(table.as_ptr(), "garbage") }?;
    assert!(!shim.name().as_str().is_empty() && !format!("{shim:?}").is_empty());
    let _ = format!("{:?}", shim.devices());
    let mut backends = Backends::new();
    let id = backends.add_device(shim, u32::from(case.device) % 5)?;
    assert!(!format!("{backends:?}").is_empty());
    let _ = backends.prepare(&id);
    let product = MatMul::builder(M, N, K);
    let product =
        if case.constant_b { product.build_constant_b()?.product().clone() } else { product.build()? };
    let mut options = CompileOptions::default().threads(Threads::ONE);
    if case.relaxed {
        options = options.fast_math(true).reduced_precision(true);
    }
    if case.packages {
        options = options.packages(ane_matmul_fuzz::place().join("garbage"));
    }
    let _ = format!("{:?}", backends.explain(&product, &options));
    let _ = backends.supports(&id, &product, &options);
    let _ = use_graphs(&backends, &id, case, &options);
    let (a, b) = (Tensor::filled(M, K, 1f32)?, Tensor::filled(K, N, 2f32)?);
    for bytes in [0, 64] {
        if let Ok(mut buffer) = backends.shared_buffer(&id, bytes) {
            assert!(!format!("{buffer:?}").is_empty());
            buffer.elements_mut::<f32>().fill(1.0);
        }
    }
    let mut page = Box::new(Page([0; 4096]));
    // SAFETY: the page outlives the buffer, which ends with the statement.
    if let Ok(mut buffer) = unsafe { backends.wrap_memory(&id, page.0.as_mut_ptr(), page.0.len()) } {
        buffer.elements_mut::<f32>().fill(1.0);
    }
    let _ = use_memory(&backends.memory(&id)?);
    let compiled = if case.constant_b {
        backends.compile(&id, &product.with_weights(&Weights::new(&b)?)?, &options)?
    } else {
        backends.compile(&id, &product, &options)?
    };
    assert!(!format!("{:?}", compiled.report()).is_empty());
    let mut executor = compiled.executor()?;
    let mut c = Tensor::<f32>::zeros(M, N)?;
    let inputs = Inputs::new(&a);
    let inputs = if case.constant_b { inputs } else { inputs.b(&b) };
    let _ = executor.run(&inputs, &mut c);
    let _ = executor.run_observed(&inputs, &mut c);
    let memory = compiled.memory();
    let operands = Operands {
        a: Arc::new(memory.upload(&a)?),
        b: if case.constant_b { None } else { Some(Arc::new(memory.upload(&b)?)) },
    };
    // Operands on the device, and those of both kinds.
    let mut resident = memory.zeros(ElementType::F32, M, N)?;
    let _ = executor.run(operands.inputs(), &mut resident);
    let _ = executor.run(operands.inputs(), &mut c);
    let _ = executor.run(&inputs, &mut resident);
    // Those on the host are not to be submitted.
    if let Ok(mut executor) = compiled.executor_with_depth(1) {
        let _ = executor.scope(|queue| queue.submit(&inputs, &mut c));
    }
    use_queue(&compiled, &operands, case)
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fuzz_target!(|case: Case| {
    let table = Table::new(&case.table);
    with_plan(&case.plan, || {
        if let Err(error) = use_shim(&table, &case) {
            assert!(!error.to_string().is_empty());
        }
    });
});
