//! Training a linear layer y = x w: the gradients are products with transposes,
//! dw = x^T dy and dx = dy w^T, each compiled once and run every step.
//!
//! `cargo run --release --example linear_gradients`

use ane_matmul::{Error, Inputs, MatMul, Tensor, matmul};

const BATCH: usize = 64;
const INPUTS: usize = 32;
const OUTPUTS: usize = 8;
const STEPS: usize = 100;
const LEARNING_RATE: f32 = 0.3;

fn main() -> Result<(), Error> {
    let forward = MatMul::new(BATCH, OUTPUTS, INPUTS)?.compile_default()?;
    // alpha carries the mean over the batch.
    let mean = 1.0 / f32::from(u16::try_from(BATCH).expect("a small batch"));
    let weight_gradient = MatMul::builder(INPUTS, OUTPUTS, BATCH).transpose_a(true).alpha(mean).build()?;
    let weight_gradient = weight_gradient.compile_default()?;
    let input_gradient =
        MatMul::builder(BATCH, INPUTS, OUTPUTS).transpose_b(true).build()?.compile_default()?;

    let x = Tensor::random_normal_f32(BATCH, INPUTS, 1.0, 1)?;
    let truth = Tensor::random_normal_f32(INPUTS, OUTPUTS, 1.0, 2)?;
    let target = matmul(&x, &truth)?;

    let mut w = Tensor::<f32>::zeros(INPUTS, OUTPUTS)?;
    let (mut y, mut dw) = (target.clone(), w.clone());
    let mut dx = Tensor::<f32>::zeros(BATCH, INPUTS)?;
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        forward.run(Inputs::new(&x).b(&w), &mut y)?;
        let mut dy = y.clone();
        for (dy, target) in dy.data_mut().iter_mut().zip(target.data()) {
            *dy -= target;
        }
        losses.push(dy.data().iter().map(|dy| dy * dy).sum::<f32>() * mean);
        weight_gradient.run(Inputs::new(&x).b(&dy), &mut dw)?;
        // What a layer below would receive.
        input_gradient.run(Inputs::new(&dy).b(&w), &mut dx)?;
        for (w, dw) in w.data_mut().iter_mut().zip(dw.data()) {
            *w -= LEARNING_RATE * dw;
        }
    }
    println!("loss {:.4} after the first step, {:.2e} after {STEPS}", losses[0], losses[STEPS - 1]);
    assert!(losses[STEPS - 1] < 1e-3 * losses[0], "training must converge");
    Ok(())
}
