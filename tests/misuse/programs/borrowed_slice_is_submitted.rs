//! A submission owns its operands: memory that is only borrowed is no part of one.
use ane_matmul::{Executor, Submission, Tensor};

fn submit(executor: &mut Executor, a: &Tensor<f32>, c: &mut Tensor<f32>) {
    executor.submit(Submission::new(a, c)).unwrap();
}

fn main() {}
