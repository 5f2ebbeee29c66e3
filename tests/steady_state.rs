//! In steady state the crate's own code allocates nothing, and memory stays flat.
//!
//! A program of its own, without the test harness, whose threads would be counted too.

#[path = "support/counting.rs"]
mod counting;

use std::sync::Arc;

use ane_matmul::graph::{Array, Attention, GraphBuilder, Operator};
use ane_matmul::{
    Activation, BackendId, Backends, CompileOptions, ElementType, ElementTypes, Inputs, InstantStart, MatMul,
    QuantB, Quantization, SelfCheck, ShimLibrary, Submission, Tensor, Threads, Weights,
};
use ane_matmul_conformance::{Case, compile_on_cpu, with_run};
use ane_matmul_shims::REFERENCE;
use counting::{allocations, bytes_live};

/// While another backend compiles, after the move to it, and after its failure.
fn instant_start() {
    let product = MatMul::new(8, 8, 8).unwrap();
    let options = CompileOptions::default().threads(Threads::ONE).instant_start(true);
    let (a, mut c) = (Tensor::filled(8, 8, 1f32).unwrap(), Tensor::<f32>::zeros(8, 8).unwrap());
    let inputs = Inputs::new(&a).b(&a);
    for fault in ["hang@compile", "", "fail@compile"] {
        // SAFETY: no other thread reads the environment: the shim reads it when its device is opened.
        unsafe { std::env::set_var("ANE_REFERENCE_FAULT", fault) };
        // SAFETY: the library is built from this repository.
        let shim = unsafe { ShimLibrary::open(REFERENCE) }.unwrap();
        let mut backends = Backends::new();
        let id = backends.add(shim).unwrap();
        let compiled = backends.compile(&id, &product, &options).unwrap();
        let mut executor = compiled.executor().unwrap();
        let state = || compiled.report().instant_start.unwrap();
        while fault != "hang@compile" && matches!(state(), InstantStart::Compiling { .. }) {
            std::thread::yield_now();
        }
        // The move allocates; and the thread that compiles may do so while it starts.
        executor.run(inputs, &mut c).unwrap();
        let quiet = (0..100).any(|_| {
            let before = allocations();
            for _ in 0..1000 {
                executor.run(inputs, &mut c).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
            allocations() == before
        });
        println!("instant start, {fault}: {:?}", state());
        assert!(quiet, "{fault}: runs allocate");
        assert!(match fault {
            "hang@compile" => matches!(state(), InstantStart::Compiling { runs_on_cpu: 1000.. }),
            "" => matches!(state(), InstantStart::Switched { runs_on_cpu: 0, .. }),
            _ =>
                matches!(state(), InstantStart::Failed { ref reason, .. } if reason.contains("planted fault")),
        });
    }
}

/// Owned and borrowed submissions, as many in flight as fit: of Rust's memory nothing is allocated or left, whatever
/// their number (a million with `ANE_MATMUL_THOROUGH`), and of the shim's nothing stays.
fn submissions() {
    let count = if ane_matmul_conformance::thorough() { 1_000_000 } else { 40_000 };
    // SAFETY: no other thread reads the environment.
    unsafe { std::env::set_var("ANE_REFERENCE_FAULT", "") };
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(REFERENCE) }.unwrap();
    let mut backends = Backends::new();
    let id = backends.add(shim).unwrap();
    let compiled = backends.compile(&id, &MatMul::new(1, 1, 1).unwrap(), &CompileOptions::default()).unwrap();
    let mut executor = compiled.executor_with_depth(8).unwrap();
    let one = || compiled.memory().upload(&[1f32]).unwrap();
    let b = Arc::new(one());
    let mut idle: Vec<_> = (0..8).map(|_| Submission::new(one(), one()).b(Arc::clone(&b))).collect();
    let (a, mut outputs) = (one(), [one(), one(), one(), one()]);
    let mut tickets = std::collections::VecDeque::with_capacity(8);
    let mut round = |executor: &mut ane_matmul::Executor| {
        while let Some(submission) = idle.pop() {
            tickets.push_back(executor.submit(submission).unwrap());
        }
        while let Some(ticket) = tickets.pop_front() {
            idle.push(executor.wait(ticket).unwrap().submission);
        }
        let borrowed = executor
            .scope(|queue| outputs.iter_mut().try_for_each(|c| queue.submit(Inputs::new(&a).b(&*b), c)));
        borrowed.unwrap();
    };
    (0..100).for_each(|_| round(&mut executor));
    let resident_bytes = || counting::process().map_or(0, |(resident, _)| resident);
    let (resident, before) = (resident_bytes(), allocations());
    (0..count / 12).for_each(|_| round(&mut executor));
    assert_eq!(allocations() - before, 0, "allocations of submissions");
    let grown = resident_bytes().saturating_sub(resident);
    println!("submissions: {count} grew the resident memory by {grown} bytes");
    assert!(grown < 1 << 20, "{count} submissions grew the resident memory by {grown} bytes");
}

/// Every narrow type and scheme, with B constant and not, small and on two threads.
fn narrow_types() {
    let options = CompileOptions::default().threads(Threads::count(2).unwrap());
    let mut products = 0;
    for ((types, quantization), constant_b) in narrow_types_of_the_suite() {
        for (m, n, k) in [(3, 33, 65), (70, 150, 129)] {
            let whole = types.output == ElementType::I32;
            let case = Case {
                types,
                quantization,
                constant_b,
                bias: !whole,
                residual: !whole,
                activation: if whole { Activation::None } else { Activation::Gelu },
                ..Case::new(m, n, k)
            };
            with_run(&case, &options, |run| {
                run();
                let before = allocations();
                (0..20).for_each(|_| run());
                assert_eq!(allocations() - before, 0, "allocations of {case}");
            });
            products += 1;
        }
    }
    println!("{products} products of narrow types: 0 allocations in 20 runs each");
}

/// A B that comes with every run has no scales of columns or groups.
fn narrow_types_of_the_suite() -> impl Iterator<Item = ((ElementTypes, Quantization), bool)> {
    ane_matmul_conformance::narrow_types().flat_map(|(types, quantization)| {
        let constant = matches!(quantization.b, QuantB::PerColumn { .. } | QuantB::PerGroup { .. });
        [constant, true]
            .into_iter()
            .take(if constant { 1 } else { 2 })
            .map(move |b| ((types, quantization), b))
    })
}

/// A graph with a step of every kind, with all of the leading dimension and fewer, on one thread and on two.
fn graphs() {
    let mut g = GraphBuilder::new();
    let ids = g.input("ids", ElementType::I64, &[4, 6]).unwrap();
    let table = Weights::from_tensor(Tensor::random_normal_f32(9, 32, 1.0, 1).unwrap());
    let table = g.weights("table", &table).unwrap();
    let x = g.gather(table, ids, 0).unwrap();
    let layer = Weights::from_tensor(Tensor::random_normal_f32(32, 96, 0.2, 2).unwrap());
    let heads = g.linear("heads", x, &layer, None).unwrap();
    let parts = g.split(heads, -1, &[32, 32, 32]).unwrap();
    let seen = g.cast(ids, ElementType::Bool).unwrap();
    let seen = g.unsqueeze(seen, &[1, 2]).unwrap();
    let attributes = Attention::new().heads(2, 2);
    let attended = g.attention(parts[0], parts[1], parts[2], Some(seen), attributes).unwrap();
    let ones = g.constant("ones", Array::new(&[32], vec![1f32; 32]).unwrap()).unwrap();
    let normal = g.layer_normalization(attended, ones, ones, 1e-5).unwrap();
    let turned = g.transpose(normal, &[0, 2, 1]).unwrap();
    let scores = g.matmul(normal, turned).unwrap();
    let weights = g.softmax(scores, -1).unwrap();
    let clipped = g.relu(weights).unwrap();
    let backwards = Operator::Slice { starts: vec![-1], ends: vec![-7], axes: vec![2], steps: vec![-1] };
    let backwards = g.node(backwards, &[Some(clipped)]).unwrap()[0];
    let joined = g.concat(&[clipped, backwards], -1).unwrap();
    let padded = g.node(Operator::Pad { pads: vec![0, 0, 1, 0, 0, 2] }, &[Some(joined)]).unwrap()[0];
    let sum = g.reduce_sum(padded, &[1], true).unwrap();
    let y = g.div(padded, sum).unwrap();
    let graph = g.finish(&[("y", y)]).unwrap().variable_leading(&["ids"]).unwrap();
    for threads in [1, 2] {
        let options = CompileOptions::default().threads(Threads::count(threads).unwrap());
        let mut executor = graph.compile_with(&BackendId::CPU, &options).unwrap().executor().unwrap();
        let ids = [4, 1].map(|batch| Array::new(&[batch, 6], vec![3i64; batch * 6]).unwrap());
        let mut y = Array::new(&[4, 6, 15], vec![0f32; 4 * 6 * 15]).unwrap();
        let mut run = || ids.iter().for_each(|ids| executor.run(&[ids], &mut [&mut y]).unwrap());
        (0..50).for_each(|_| run());
        let before = (allocations(), bytes_live());
        (0..1000).for_each(|_| run());
        assert_eq!((allocations(), bytes_live()), before, "allocations of a graph on {threads} threads");
    }
}

fn main() {
    let weights = Weights::from_tensor(Tensor::random_normal_f32(24, 40, 1.0, 1).unwrap());
    let layer = MatMul::builder(8, 40, 24)
        .variable_m(true)
        .bias(true)
        .residual(true)
        .activation(Activation::Gelu)
        .with_weights(&weights)
        .unwrap();
    let options = CompileOptions::default().threads(Threads::count(2).unwrap());
    let compiled = layer.compile_with(&BackendId::CPU, &options).unwrap();
    let mut executor = compiled.executor().unwrap();
    let x = Tensor::random_normal_f32(8, 24, 1.0, 2).unwrap();
    let (bias, residual) = (vec![0.5f32; 40], Tensor::random_normal_f32(8, 40, 1.0, 3).unwrap());
    let mut y = Tensor::<f32>::zeros(8, 40).unwrap();
    let inputs = Inputs::new(&x).bias(&bias).residual(&residual);
    executor.run(inputs, &mut y).unwrap();

    let before = allocations();
    for _ in 0..1000 {
        executor.run(inputs, &mut y).unwrap();
    }
    let total = allocations() - before;
    println!("8x40x24: {total} allocations in 1000 runs");
    assert_eq!(total, 0);

    submissions();
    graphs();

    // With a bias that is known, on executors of a pool and of the product's own.
    let known = layer.with_bias(&bias).unwrap().compile_with(&BackendId::CPU, &options).unwrap();
    let (pool, inputs_known) = (known.pool(2).unwrap(), Inputs::new(&x).residual(&residual));
    let mut run = || {
        known.run(inputs_known, &mut y).unwrap();
        pool.run(inputs_known, &mut y).unwrap();
    };
    run();
    let before = allocations();
    (0..1000).for_each(|_| run());
    assert_eq!(allocations() - before, 0, "allocations of a pool");

    // On two threads, B packed in every run.
    let product = MatMul::new(256, 288, 256).unwrap();
    let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
    let mut large = compiled.executor().unwrap();
    let (a, b) = (Tensor::filled(256, 256, 1f32).unwrap(), Tensor::filled(256, 288, 2f32).unwrap());
    let mut c = Tensor::<f32>::zeros(256, 288).unwrap();
    let inputs_large = Inputs::new(&a).b(&b);
    let warm_up = |runs, executor: &mut ane_matmul::Executor, c: &mut Tensor<f32>| {
        let before = allocations();
        for _ in 0..runs {
            executor.run(inputs_large, &mut *c).unwrap();
        }
        allocations() - before
    };
    warm_up(50, &mut large, &mut c);
    let total = warm_up(100, &mut large, &mut c);
    println!("256x288x256 on 2 threads: {total} allocations in 100 runs");
    assert_eq!(total, 0);

    // f64 operands: the copies are made by the first run.
    let wide = Tensor::random_normal(16, 16, 0.02, 1).unwrap();
    let mut c64 = Tensor::<f64>::zeros(16, 16).unwrap();
    let product = MatMul::new(16, 16, 16).unwrap();
    let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
    let mut executor64 = compiled.executor().unwrap();
    let inputs64 = Inputs::new(&wide).b(&wide);
    executor64.run_f64(inputs64, c64.view_mut()).unwrap();
    let before = allocations();
    for _ in 0..100 {
        executor64.run_f64(inputs64, c64.view_mut()).unwrap();
    }
    let total = allocations() - before;
    assert_eq!(total, 0, "allocations of run_f64");

    // On the threads of `large`, which have started.
    narrow_types();

    // With every run verified, by Freivalds' method and by rows, with B constant and not.
    for constant in [false, true] {
        for activation in [Activation::None, Activation::Relu] {
            let product = MatMul::builder(8, 40, 24).activation(activation).build().unwrap();
            let options = options.clone().self_check(SelfCheck::every_run());
            let compiled = compile_on_cpu(&product, constant.then(|| weights.view()), &options).unwrap();
            let mut executor = compiled.executor().unwrap();
            let b = weights.view();
            let inputs = if constant { Inputs::new(&x) } else { Inputs::new(&x).b(b) };
            executor.run(inputs, &mut y).unwrap();
            let before = allocations();
            for _ in 0..100 {
                executor.run(inputs, &mut y).unwrap();
            }
            assert_eq!(
                allocations() - before,
                0,
                "allocations of {product} with checks, constant B: {constant}"
            );
            assert_eq!(executor.checks().checked, 101);
        }
    }

    let live = bytes_live();
    for _ in 0..1_000_000 {
        executor.run(inputs, &mut y).unwrap();
    }
    assert_eq!(bytes_live(), live, "bytes after 1,000,000 runs");
    println!("1,000,000 runs: {live} bytes live before and after");
    // Last: a thread of it hangs until the end.
    instant_start();
    println!("1 passed, 0 failed");
}
