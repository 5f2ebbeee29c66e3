//! What a self-check costs beside the run that it follows, on one thread.

use std::time::Instant;

use ane_matmul::{
    Activation, BackendId, Backends, CompileOptions, Inputs, MatMul, Product, ResultChecker, SelfCheck,
    Tensor, Threads, Weights,
};

/// Runs, each followed by a check.
const TURNS: usize = 151;

/// The median of what it took, in microseconds.
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn compare(name: &str, layer: &impl Product, inputs: &Inputs<'_>, check: SelfCheck) {
    let mut c = Tensor::<f32>::zeros(layer.product().m(), layer.product().n()).expect("memory");
    let options = CompileOptions::default().threads(Threads::ONE);
    let compiled = Backends::new().compile(&BackendId::CPU, layer, &options).expect("the CPU backend");
    let mut executor = compiled.executor().expect("an executor");
    let mut checker = ResultChecker::new(layer, &check).expect("a checker");
    let mut samples = [Vec::new(), Vec::new()];
    for turn in 0..TURNS + 10 {
        let start = Instant::now();
        executor.run(inputs, &mut c).expect("a run");
        let ran = start.elapsed();
        let start = Instant::now();
        let found = checker.check(inputs, &c).expect("operands that fit");
        let checked = start.elapsed();
        assert_eq!(found, None);
        if turn >= 10 {
            samples[0].push(ran.as_secs_f64() * 1e6);
            samples[1].push(checked.as_secs_f64() * 1e6);
        }
    }
    let [product, check] = samples.map(median);
    println!("{name:44} {product:9.1} us {check:8.1} us {:6.2} %", 100.0 * check / product);
}

fn main() {
    let random = |rows, cols, seed| Tensor::random_normal_f32(rows, cols, 1.0, seed).expect("memory");
    println!("{:44} {:>12} {:>11} {:>8}", "", "product", "check", "share");
    let every = SelfCheck::every_run();
    for size in [256, 512, 1024] {
        let (a, weights) = (random(size, size, 1), Weights::from_tensor(random(size, size, 2)));
        let product = MatMul::builder(size, size, size);
        let inputs = Inputs::new(&a);
        let layer = product.clone().with_weights(&weights).expect("a product");
        compare(&format!("{size}^3, constant B"), &layer, &inputs, every);
        if size == 1024 {
            let checked = every.failure_probability(1e-3);
            compare("1024^3, constant B, probability 1e-3", &layer, &inputs, checked);
            let bias = vec![0.5f32; size];
            let layer = product.clone().bias(true).with_weights(&weights).expect("a product");
            compare("1024^3, constant B, bias", &layer, &inputs.bias(&bias), every);
            let layer = product
                .clone()
                .bias(true)
                .activation(Activation::Gelu)
                .with_weights(&weights)
                .expect("a product");
            compare("1024^3, constant B, bias, GELU", &layer, &inputs.bias(&bias), every);
            let positive = Tensor::from_fn(size, size, |i, j| a.data()[i * size + j].abs()).expect("memory");
            let weights = Weights::from_tensor(positive.clone());
            let layer = product.with_weights(&weights).expect("a product");
            let inputs = Inputs::new(&positive);
            compare("1024^3, constant B, nothing negative", &layer, &inputs, every);
            let b = random(size, size, 2);
            let layer = MatMul::new(size, size, size).expect("a product");
            compare("1024^3, another B each run", &layer, &Inputs::new(&a).b(&b), every);
            let layer = MatMul::builder(size, size, size).transpose_a(true).transpose_b(true);
            let layer = layer.build().expect("a product");
            compare("1024^3, A^T B^T, another B each run", &layer, &Inputs::new(&a).b(&b), every);
        }
    }
}
