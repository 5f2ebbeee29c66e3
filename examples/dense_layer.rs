//! A dense layer on a batch: weights compiled in once, any number of rows up to a maximum.
//!
//! `cargo run --release --example dense_layer`

use ane_matmul::{Activation, BackendId, CompileOptions, Inputs, MatMul, Tensor, Weights};

const INPUTS: usize = 768;
const OUTPUTS: usize = 3072;
const MAX_ROWS: usize = 32;

fn main() -> Result<(), ane_matmul::Error> {
    // As PyTorch stores a linear layer: outputs x inputs.
    let weights = Weights::from_tensor(Tensor::random_normal_f32(OUTPUTS, INPUTS, 0.02, 1)?);
    let bias = vec![0.01f32; OUTPUTS];

    let layer = MatMul::builder(MAX_ROWS, OUTPUTS, INPUTS)
        .transpose_b(true)
        .constant_b(true)
        .variable_m(true)
        .bias(true)
        .activation(Activation::Gelu)
        .build()?;
    let compiled = layer.compile(&BackendId::CPU, Some(&weights), &CompileOptions::default())?;
    println!("{layer}: {:?}", compiled.report());

    // One executor for each thread that serves requests.
    let mut executor = compiled.executor()?;
    for rows in [1, 7, MAX_ROWS] {
        let x = Tensor::random_normal_f32(rows, INPUTS, 1.0, 2)?;
        let mut y = Tensor::<f32>::zeros(rows, OUTPUTS)?;
        let start = std::time::Instant::now();
        executor.run(&Inputs::new(&x).bias(&bias), &mut y)?;
        let largest = y.data().iter().copied().fold(0.0, f32::max);
        println!("{rows} rows in {:?}, largest output {largest:.4}", start.elapsed());
    }
    Ok(())
}
