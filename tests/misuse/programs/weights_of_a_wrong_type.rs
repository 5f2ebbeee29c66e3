//! Weights are matrices of element types, and f64 is not taken for f32.
use ane_matmul::{Tensor, Weights};

fn main() {
    let wide = Tensor::filled(2, 2, 1f64).unwrap();
    Weights::from_tensor(wide);
    Weights::new("weights");
}
