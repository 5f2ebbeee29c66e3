//! A dense layer on a batch: weights compiled in once, any number of rows up to a maximum.
//!
//! `cargo run --release --example dense_layer`

use ane_matmul::{Activation, Linear, Tensor, Weights};

const INPUTS: usize = 768;
const OUTPUTS: usize = 3072;
const MAX_ROWS: usize = 32;

fn main() -> Result<(), ane_matmul::Error> {
    // PyTorch stores a linear layer as outputs x inputs: the transpose.
    let weights = Weights::from_tensor(Tensor::random_normal_f32(OUTPUTS, INPUTS, 0.02, 1)?).transposed()?;
    let bias = vec![0.01f32; OUTPUTS];

    let layer = Linear::new(&weights)
        .max_rows(MAX_ROWS)
        .bias(&bias)
        .activation(Activation::Gelu)
        .compile_default()?;
    println!("{}: {:?}", layer.product(), layer.report());

    for rows in [1, 7, MAX_ROWS] {
        let x = Tensor::random_normal_f32(rows, INPUTS, 1.0, 2)?;
        let mut y = Tensor::<f32>::zeros(rows, OUTPUTS)?;
        let start = std::time::Instant::now();
        layer.run(&x, &mut y)?; // from any thread
        let largest = y.data().iter().copied().fold(0.0, f32::max);
        println!("{rows} rows in {:?}, largest output {largest:.4}", start.elapsed());
    }
    Ok(())
}
