//! What does nothing by itself is not dropped by accident.
#![deny(unused_must_use)]
use ane_matmul::{CompileOptions, Inputs, MatMul, SelfCheck, Tensor};

fn main() {
    MatMul::builder(2, 2, 2).bias(true);
    CompileOptions::default().self_check(SelfCheck::every_run());
    let x = Tensor::filled(2, 2, 1f32).unwrap();
    Inputs::new(&x).b(&x);
    MatMul::new(2, 2, 2);
}
