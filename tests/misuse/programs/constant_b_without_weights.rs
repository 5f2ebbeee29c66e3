//! A product whose B is to be known is compiled with its weights.
use ane_matmul::{BackendId, MatMul};

fn main() {
    let product = MatMul::builder(2, 2, 2).build_constant_b().unwrap();
    product.compile(&BackendId::CPU).unwrap();
}
