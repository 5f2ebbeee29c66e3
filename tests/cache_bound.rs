//! Thousands of random shapes (10,000 in a thorough run): the memory of a cache stays under its bound, and all of it comes back.
//!
//! A program of its own, without the test harness, whose threads would be counted too. `--shapes N` asks for
//! another number of shapes, for where everything takes longer.

#[path = "support/counting.rs"]
mod counting;

use std::time::Instant;

use ane_matmul::{
    BackendId, Backends, CacheLimits, CompileOptions, Inputs, MatMul, ProductCache, Tensor, Threads, Weights,
};
use ane_matmul_conformance::thorough;
use counting::bytes_live;
use fastrand::Rng;

/// Some of the products share weights, some bring their own, some have none.
fn shapes(count: usize, limits: CacheLimits) {
    let options = CompileOptions::default().threads(Threads::ONE);
    // The engine looks at the machine once, and standard output gets its buffer.
    MatMul::new(1, 1, 1).unwrap().compile_with(&BackendId::CPU, &options).unwrap();
    println!("{count} shapes, {limits:?}");
    let before = bytes_live();
    let shared: Vec<Weights> =
        (0..4).map(|i| Weights::from_tensor(Tensor::filled(64 << i, 96, 1f32).unwrap())).collect();
    let mut random = Rng::with_seed(8);
    let mut below = |limit| random.usize(..limit);
    let empty = bytes_live();
    let cache = ProductCache::new(Backends::new(), limits);
    let (mut peak_counted, mut peak_live, mut last) = (0, 0, None);
    for shape in 0..count {
        let (m, n, k) = (1 + below(256), 2 + below(255), 1 + below(512));
        let weights = match below(3) {
            0 => None,
            1 => Some(shared[below(4)].clone()),
            _ => Some(Weights::from_tensor(Tensor::filled(k, n, 1f32).unwrap())),
        };
        let (k, n) = weights.as_ref().map_or((k, n), |weights| (weights.k(), weights.n()));
        let product = MatMul::new(m, n, k).unwrap();
        let compiled = match &weights {
            Some(weights) => {
                cache.compile(&BackendId::CPU, &product.with_weights(weights).unwrap(), &options)
            }
            None => cache.compile(&BackendId::CPU, &product, &options),
        }
        .unwrap();
        if shape % 100 == 0 {
            let (a, b) = (Tensor::filled(m, k, 1f32).unwrap(), Tensor::filled(k, n, 1f32).unwrap());
            let inputs = Inputs::new(&a);
            let inputs = if weights.is_some() { inputs } else { inputs.b(&b) };
            assert_eq!(compiled.run_to_tensor(inputs).unwrap().data()[0], k as f32);
        }
        drop(compiled);
        // The weights of this product are the caller's until the next.
        let own = weights.filter(|weights| !shared.contains(weights));
        let callers = own.as_ref().map_or(0, |_| n * k * size_of::<f32>() + 512);
        drop(last.replace(own));
        let statistics = cache.statistics();
        assert!(statistics.bytes <= limits.bytes && statistics.products <= limits.products, "{statistics:?}");
        peak_counted = peak_counted.max(statistics.bytes);
        let held = bytes_live().saturating_sub(empty + callers);
        peak_live = peak_live.max(held);
        assert!(held <= limits.bytes + SLACK, "{held} bytes at shape {shape}, {statistics:?}");
    }
    let statistics = cache.statistics();
    assert_eq!(statistics.misses + statistics.hits, count as u64);
    assert!(statistics.evictions > count as u64 / 10, "{statistics:?}");
    println!("at most {peak_counted} bytes counted, {peak_live} allocated; {statistics:?}");
    drop((last, cache, shared));
    assert_eq!(bytes_live(), before, "bytes left behind");
}

/// The cache itself and its backends, which are not counted.
const SLACK: usize = 16 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let count = arguments
        .iter()
        .position(|argument| argument == "--shapes")
        .map_or(if thorough() { 10_000 } else { 2_000 }, |at| {
            arguments.get(at + 1).and_then(|count| count.parse().ok()).expect("--shapes wants a number")
        });
    shapes(count, CacheLimits::new().bytes(4 << 20).products(1 << 20));
    shapes(count, CacheLimits::new().bytes(1 << 20).products(1 << 20));
    shapes(count, CacheLimits::new().bytes(1 << 30).products(100));

    // What a hit costs: printed, not asserted.
    let cache = ProductCache::new(Backends::new(), CacheLimits::default());
    let options = CompileOptions::default();
    let products: Vec<_> = (1..101).map(|m| MatMul::new(m, 64, 64).unwrap()).collect();
    for product in &products {
        cache.compile(&BackendId::CPU, product, &options).unwrap();
    }
    let start = Instant::now();
    let rounds = count / 5;
    for _ in 0..rounds {
        for product in &products {
            cache.compile(&BackendId::CPU, product, &options).unwrap();
        }
    }
    let hits = rounds * products.len();
    println!("{:.0} ns for each of {hits} hits", start.elapsed().as_nanos() as f64 / hits as f64);
    println!("1 passed, 0 failed");
}
