//! What fuzzing found, each once: it must not come back. `fuzz/` has the targets.

use ane_matmul::{BackendId, CompileOptions, MatMul, Threads};

/// Opening an executor listed the tiles of any product that packs nothing, for centuries.
#[test]
fn an_executor_of_an_absurd_product_opens_at_once() {
    let options = CompileOptions::default().threads(Threads::ONE);
    for (m, n, k) in
        [(usize::MAX >> 8, 1, 1), (1, usize::MAX >> 8, 1), (2, usize::MAX >> 8, 1), (1, 2, usize::MAX >> 8)]
    {
        let product = MatMul::new(m, n, k).unwrap();
        let compiled = product.compile(&BackendId::CPU, None, &options).unwrap();
        // Scratch memory of that size may be refused.
        match compiled.executor() {
            Ok(_) | Err(ane_matmul::Error::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
