//! Small products beside a direct call of the gemm crate, and products of typical sizes.
//!
//! `cargo bench -p ane-matmul-benches --bench run`
#![allow(missing_docs, reason = "criterion's macros generate public functions")]

use ane_matmul::{Activation, BackendId, CompileOptions, Inputs, MatMul, Tensor, Threads, Weights};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn options() -> CompileOptions {
    CompileOptions::default().threads(Threads::ONE)
}

/// Small products, where what surrounds the kernel shows, beside a direct call of the gemm crate.
fn small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("small");
    for size in [16usize, 64, 256] {
        let a = Tensor::random_normal_f32(size, size, 0.02, 1).expect("memory");
        let b = Tensor::random_normal_f32(size, size, 0.02, 2).expect("memory");
        let mut c = Tensor::<f32>::zeros(size, size).expect("memory");
        let product = MatMul::new(size, size, size).expect("a valid product");
        let compiled = product.compile_with(&BackendId::CPU, &options()).expect("the CPU backend");
        let mut executor = compiled.executor().expect("an executor");
        let inputs = Inputs::new(&a).b(&b);
        group.bench_function(BenchmarkId::new("ane-matmul", size), |bencher| {
            bencher.iter(|| executor.run(inputs, &mut c));
        });
        let stride = size.cast_signed();
        group.bench_function(BenchmarkId::new("gemm crate", size), |bencher| {
            bencher.iter(|| {
                // SAFETY: the tensors are packed size x size matrices.
                unsafe {
                    gemm::gemm(
                        size,
                        size,
                        size,
                        c.data_mut().as_mut_ptr(),
                        1,
                        stride,
                        false,
                        a.data().as_ptr(),
                        1,
                        stride,
                        b.data().as_ptr(),
                        1,
                        stride,
                        0.0f32,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            });
        });
    }
    group.finish();
}

/// A dense layer with constant weights, with and without its epilogue.
fn dense_layer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dense layer 32x3072x768");
    let (m, n, k) = (32, 3072, 768);
    let weights = Weights::from_tensor(Tensor::random_normal_f32(k, n, 0.02, 1).expect("memory"));
    let x = Tensor::random_normal_f32(m, k, 1.0, 2).expect("memory");
    let bias = vec![0.1f32; n];
    let mut y = Tensor::<f32>::zeros(m, n).expect("memory");
    group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
    for (name, activation, with_bias) in
        [("plain", Activation::None, false), ("bias and GELU", Activation::Gelu, true)]
    {
        let layer = MatMul::builder(m, n, k)
            .bias(with_bias)
            .activation(activation)
            .with_weights(&weights)
            .expect("a valid product");
        let compiled = layer.compile_with(&BackendId::CPU, &options()).expect("the CPU backend");
        let mut executor = compiled.executor().expect("an executor");
        let inputs = Inputs::new(&x);
        let inputs = if with_bias { inputs.bias(&bias) } else { inputs };
        group.bench_function(name, |bencher| bencher.iter(|| executor.run(inputs, &mut y)));
    }
    group.finish();
}

criterion_group!(benches, small, dense_layer);
criterion_main!(benches);
