//! A result has one place, which a submission owns until it is waited for.
use ane_matmul::{DeviceTensor, Executor, Submission};

fn submit(executor: &mut Executor, a: DeviceTensor, c: DeviceTensor) {
    executor.submit(Submission::new(a, c)).unwrap();
    println!("{:?}", c.download::<f32>());
}

fn main() {}
