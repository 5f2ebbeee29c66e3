//! The cost of one call through a shim's table against a direct call of the same function.
//!
//! `cargo bench -p ane-matmul-benches --bench abi`
#![allow(missing_docs, reason = "criterion's macros generate public functions")]

use ane_matmul::{Backends, CompileOptions, Inputs, MatMul, ShimLibrary, Tensor};
use ane_matmul_shims::{DirectCall, linked_reference};
use criterion::{Criterion, criterion_group, criterion_main};

fn call(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1x1x1 on the reference shim");
    // SAFETY: the reference shim's table is a constant of this program.
    let shim = unsafe { ShimLibrary::from_table(linked_reference(), "reference") }.expect("a good shim");
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    let product = MatMul::new(1, 1, 1).expect("a valid product");
    let compiled = backends.compile(&id, &product, &CompileOptions::default()).expect("compiles");
    let mut executor = compiled.executor().expect("an executor");
    let one = Tensor::filled(1, 1, 1f32).expect("memory");
    let mut c = Tensor::<f32>::zeros(1, 1).expect("memory");
    let inputs = Inputs::new(&one).b(&one);
    group.bench_function("Executor::run", |bencher| bencher.iter(|| executor.run(inputs, &mut c)));
    let mut direct = DirectCall::new();
    group.bench_function("executor_run, called directly", |bencher| bencher.iter(|| direct.run()));
    group.finish();
}

criterion_group!(benches, call);
criterion_main!(benches);
