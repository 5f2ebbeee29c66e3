//! Whatever fields a description has, it is built or refused; and what is built can be asked about,
//! compiled or refused without absurd memory (`-malloc_limit_mb`) before its operands are seen. Weights as
//! it describes them make the product that it describes, and those that do not fit are refused.
#![no_main]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ane_matmul::{
    BackendId, Backends, CompileOptions, ElementType, Inputs, MatMul, QuantB, Tensor, Threads, Weights,
    why_not_neural_engine,
};
use ane_matmul_fuzz::operands::{self, Contents};
use ane_matmul_fuzz::products::{self, Fields};
use fastrand::Rng;
use libfuzzer_sys::fuzz_target;

fn hash(product: &MatMul) -> u64 {
    let mut hasher = DefaultHasher::new();
    product.hash(&mut hasher);
    hasher.finish()
}

/// Weights as `product` describes its B, where that is small and of types that weights have.
fn weights_of(product: &MatMul) -> Option<Weights> {
    let (types, quantization) = (product.types(), product.quantization());
    let scales = [ElementType::F32, ElementType::F16, ElementType::Bf16].contains(&types.scales);
    // Matrices without elements may have scales.
    let figures = [product.batch(), product.k(), product.n()].map(|figure| figure.max(1));
    let elements = figures.into_iter().fold(1, usize::saturating_mul).max(product.b().span());
    if types.b == ElementType::F64 || quantization.b != QuantB::None && !scales || elements > 1 << 12 {
        return None;
    }
    let (order, mut random) = (quantization.nibble_order, Rng::with_seed(0));
    let b = operands::random(types.b, *product.b(), order, Contents::Normal, &mut random);
    Some(products::weights(product, b.view(), || 0.5).expect("weights as described"))
}

fuzz_target!(|fields: Fields| {
    let Ok(product) = fields.describe() else { return };
    let again = fields.describe().expect("built before");
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
    // Weights that do not fit, or of a B that was to come with every run.
    let weights = Weights::from_tensor(Tensor::filled(2, 3, 1f32).expect("a small tensor"));
    let other = product.with_weights(&weights);
    assert!((product.k(), product.n()) == (2, 3) || other.is_err());
    let known = if product.constant_b() { weights_of(&product) } else { None };
    let bound = known.map(|weights| product.with_weights(&weights).expect("weights as described"));
    if let Some(bound) = &bound {
        assert_eq!(bound.product(), &product, "weights as described make another product");
    }
    for id in [BackendId::CPU, BackendId::AUTO] {
        let supported = backends.supports(&id, &product, &options);
        for bound in other.iter().chain(&bound) {
            let supported = backends.supports(&id, bound.product(), &options);
            assert_eq!(supported.is_ok(), backends.compile(&id, bound, &options).is_ok());
        }
        match backends.compile(&id, &product, &options) {
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
