//! Operands outlive the run that reads them.
use ane_matmul::{Executor, Inputs, Tensor};

fn run(executor: &mut Executor, c: &mut Tensor<f32>) {
    let a = Tensor::filled(2, 2, 1f32).unwrap();
    let inputs = Inputs::new(&a).b(&a);
    drop(a);
    executor.run(&inputs, c).unwrap();
}

fn main() {}
