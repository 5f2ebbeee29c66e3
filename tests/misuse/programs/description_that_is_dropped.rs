//! What does nothing by itself is not dropped by accident.
#![deny(unused_must_use)]
use ane_matmul::{CompileOptions, Inputs, Linear, MatMul, SelfCheck, Tensor, Weights};

fn main() {
    MatMul::builder(2, 2, 2).bias(true);
    CompileOptions::default().self_check(SelfCheck::every_run());
    let x = Tensor::filled(2, 2, 1f32).unwrap();
    Inputs::new(&x).b(&x);
    MatMul::new(2, 2, 2);
    let weights = Weights::from_tensor(x);
    Linear::new(&weights).max_rows(2);
    weights.transposed();
}
