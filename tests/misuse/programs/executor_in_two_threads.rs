//! Two threads may not run one executor at once.
use ane_matmul::{Executor, Inputs, Tensor};

fn run(executor: &mut Executor, inputs: &Inputs<'_>, mut c: [Tensor<f32>; 2]) {
    let [first, second] = &mut c;
    std::thread::scope(|scope| {
        scope.spawn(|| executor.run(inputs, first).unwrap());
        scope.spawn(|| executor.run(inputs, second).unwrap());
    });
}

fn main() {}
