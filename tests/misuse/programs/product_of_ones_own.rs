//! What backends compile is this crate's to say.
use ane_matmul::{MatMul, Product, Weights};

struct Own(MatMul);

impl Product for Own {
    fn product(&self) -> &MatMul {
        &self.0
    }

    fn weights(&self) -> Option<&Weights> {
        None
    }

    fn bias_handle(&self) -> Option<&Weights> {
        None
    }
}

fn main() {}
