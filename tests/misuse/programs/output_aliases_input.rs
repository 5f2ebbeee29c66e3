//! The output may not be one of the inputs.
use ane_matmul::{BackendId, Inputs, MatMul, Tensor};

fn main() {
    let compiled = MatMul::new(2, 2, 2).unwrap().compile(&BackendId::CPU).unwrap();
    let mut executor = compiled.executor().unwrap();
    let mut x = Tensor::filled(2, 2, 1f32).unwrap();
    let inputs = Inputs::new(&x).b(&x);
    executor.run(&inputs, &mut x).unwrap();
}
