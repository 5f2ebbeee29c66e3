//! Whatever fields a description has, it is built or refused; and what is built can be asked about,
//! compiled or refused without absurd memory (`-malloc_limit_mb`) before its operands are seen.
#![no_main]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ane_matmul::{
    BackendId, Backends, CompileOptions, Inputs, MatMul, Tensor, Threads, Weights, why_not_neural_engine,
};
use ane_matmul_fuzz::products::Fields;
use libfuzzer_sys::fuzz_target;

fn hash(product: &MatMul) -> u64 {
    let mut hasher = DefaultHasher::new();
    product.hash(&mut hasher);
    hasher.finish()
}

fuzz_target!(|fields: Fields| {
    let Ok(product) = fields.builder().build() else { return };
    let again = fields.builder().build().expect("built before");
    assert_eq!((&product, hash(&product)), (&again, hash(&again)));
    assert!(!product.to_string().is_empty() && !format!("{product:?}").is_empty());
    assert!(product.flops() >= 0.0);
    let linear = product.linear_part();
    assert_eq!(linear.linear_part(), linear);

    let options = CompileOptions::default().threads(Threads::ONE);
    let backends = Backends::new();
    let explanation = backends.explain(&product, &options);
    assert_eq!(explanation.candidates.len(), backends.available().len());
    let _ = why_not_neural_engine(&product);
    for id in [BackendId::CPU, BackendId::AUTO] {
        let supported = backends.supports(&id, &product, &options);
        // Weights that do not fit, or that were not asked for.
        let weights = Weights::from_tensor(Tensor::filled(2, 3, 1f32).expect("a small tensor"));
        let wrong = backends.compile(&id, &product, Some(&weights), &options);
        let fits = product.constant_b() && (product.b().rows(), product.b().cols()) == (2, 3);
        assert!(fits || wrong.is_err());
        match backends.compile(&id, &product, None, &options) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(compiled) => {
                assert!(supported.is_ok() && !product.constant_b());
                // What fits one 2 x 3 matrix and nothing else.
                let x = Tensor::filled(2, 3, 1f32).expect("a small tensor");
                let mut y = Tensor::<f32>::zeros(2, 2).expect("a small tensor");
                // Scratch memory grows with the longest dimension, as the operands would.
                let moderate = [product.m(), product.n(), product.k()].iter().all(|&length| length < 1 << 22);
                if let Some(Ok(mut executor)) = moderate.then(|| compiled.executor()) {
                    let _ = executor.run(&Inputs::new(&x).b(&x).bias(x.data()), &mut y);
                }
            }
        }
    }
});
