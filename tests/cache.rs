//! The cache of compiled products: what it finds, what it lets go of, what it tells.

use std::sync::Barrier;

use ane_matmul::graph::{Graph, GraphBuilder};
use ane_matmul::{
    BackendId, Backends, CacheLimits, CompileOptions, Device, ElementType, ElementTypes, Error, Inputs,
    MatMul, MatMulWithWeights, Product, ProductCache, ShimLibrary, Tensor, Threads, Weights,
};
use ane_matmul_shims::linked_reference;

fn cache(limits: CacheLimits) -> ProductCache {
    ProductCache::new(Backends::new(), limits)
}

fn plain(m: usize) -> MatMul {
    MatMul::new(m, 8, 8).unwrap()
}

fn one_thread() -> CompileOptions {
    CompileOptions::default().threads(Threads::ONE)
}

fn compile(cache: &ProductCache, product: &MatMul) {
    cache.compile(&BackendId::CPU, product, &one_thread()).unwrap();
}

/// Whether asking for `product` compiles it.
fn misses(cache: &ProductCache, product: &MatMul) -> bool {
    let before = cache.statistics().misses;
    compile(cache, product);
    cache.statistics().misses > before
}

#[test]
fn what_is_compiled_differently_is_another_product() {
    // SAFETY: the reference shim's table is a constant of this program.
    let shim = unsafe { ShimLibrary::from_table(linked_reference(), "the linked reference shim") }.unwrap();
    let mut backends = Backends::new();
    backends.set_profile(None);
    let reference = backends.add(shim).unwrap();
    let cache = ProductCache::new(backends, CacheLimits::default());
    let b = Tensor::filled(8, 8, 1f32).unwrap();
    let (one, other) = (Weights::new(&b).unwrap(), Weights::new(&b).unwrap());
    let [constant, other] = [&one, &other].map(|weights| plain(8).with_weights(weights).unwrap());
    let cpu = BackendId::CPU;
    let with = |change: fn(&mut CompileOptions)| {
        let mut options = one_thread();
        change(&mut options);
        options
    };
    let same = with(|_| {});
    let requests: [(&BackendId, &dyn Product, CompileOptions); 13] = [
        (&cpu, &plain(8), same.clone()),
        (&cpu, &plain(9), same.clone()),
        (&reference, &plain(8), same.clone()),
        (&cpu, &constant, same.clone()),
        (&cpu, &other, same.clone()),
        (&cpu, &plain(8), with(|options| options.threads = Threads::count(2).unwrap())),
        (&cpu, &plain(8), with(|options| options.threads = Threads::Auto)),
        (&cpu, &plain(8), with(|options| options.device = Device::Cpu)),
        (&cpu, &plain(8), with(|options| options.fast_math = true)),
        (&cpu, &plain(8), with(|options| options.reduced_precision = true)),
        (&reference, &plain(8), with(|options| options.instant_start = true)),
        (&BackendId::AUTO, &plain(8), same.clone()),
        (&BackendId::AUTO, &plain(8), with(|options| options.expected_runs = Some(1))),
    ];
    for round in 0..2 {
        for (backend, product, options) in &requests {
            let compiled = cache.compile(backend, *product, options).unwrap();
            assert_eq!((compiled.product(), compiled.weights()), (product.product(), product.weights()));
            assert_eq!(compiled.report().requested_backend, **backend);
        }
        let statistics = cache.statistics();
        let count = requests.len() as u64;
        assert_eq!((statistics.misses, statistics.hits), (count, round * count));
    }
    // What is compiled does not depend on these.
    let asked_otherwise = one_thread().expected_runs(1).packages("/nonexistent/directory");
    let before = cache.statistics();
    cache.compile(&cpu, &plain(8), &asked_otherwise).unwrap();
    assert_eq!(cache.statistics().hits, before.hits + 1);
}

#[test]
fn the_least_recently_used_goes_first() {
    let cache = cache(CacheLimits::new().products(3));
    for m in [1, 2, 3, 1, 4] {
        compile(&cache, &plain(m));
    }
    assert_eq!(cache.statistics().evictions, 1);
    assert!(![1, 3, 4].iter().any(|&m| misses(&cache, &plain(m))));
    assert!(misses(&cache, &plain(2)));
}

#[test]
fn ten_threads_compile_one_product_once() {
    let cache = cache(CacheLimits::default());
    let weights = Weights::from_tensor(Tensor::random_normal_f32(2000, 500, 1.0, 1).unwrap());
    let product = MatMul::new(8, 500, 2000).unwrap().with_weights(&weights).unwrap();
    let barrier = Barrier::new(10);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                barrier.wait();
                cache.compile(&BackendId::CPU, &product, &one_thread()).unwrap();
            });
        }
    });
    let statistics = cache.statistics();
    assert_eq!((statistics.misses, statistics.hits + statistics.joined), (1, 9));
    assert_eq!((statistics.products, statistics.in_flight), (1, 0));
}

#[test]
fn failures_reach_the_caller_and_are_not_kept() {
    let cache = cache(CacheLimits::default());
    let wide = MatMul::builder(2, 2, 2).types(ElementTypes::uniform(ElementType::F16)).build().unwrap();
    for failures in 1..3 {
        let refused = cache.compile(&BackendId::CPU, &wide, &one_thread());
        assert!(matches!(refused, Err(Error::Refused { .. })));
        let unknown = cache.compile(&BackendId::new("nothing"), &plain(2), &one_thread());
        assert!(matches!(unknown, Err(Error::UnknownBackend { .. })));
        assert_eq!(cache.statistics().failures, 2 * failures);
    }
    assert_eq!((cache.statistics().products, cache.statistics().bytes), (0, 0));
}

/// With one thread, whose pool is none.
fn layer(m: usize, weights: &Weights) -> MatMulWithWeights {
    MatMul::new(m, 64, 64).unwrap().with_weights(weights).unwrap()
}

fn square() -> Tensor<f32> {
    Tensor::filled(64, 64, 1f32).unwrap()
}

#[test]
fn packed_weights_count_once_for_every_m() {
    let cache = cache(CacheLimits::default());
    let weights = Weights::from_tensor(square());
    let packed = 64 * 64 * size_of::<f32>();
    let bytes_with = |m| {
        cache.compile(&BackendId::CPU, &layer(m, &weights), &one_thread()).unwrap();
        cache.statistics().bytes
    };
    let one = bytes_with(2);
    assert!(one > packed);
    let two = bytes_with(3);
    assert!(two - one < packed / 2, "{one} then {two}");
    // The common part goes with the last that uses it.
    cache.trim_to(two - 1);
    assert!(cache.statistics().bytes > packed);
    cache.trim_to(packed);
    assert_eq!((cache.statistics().bytes, cache.statistics().products), (0, 0));
}

#[test]
fn an_evicted_product_runs_on_and_goes_with_its_last_executor() {
    let cache = cache(CacheLimits::default());
    let x = Tensor::filled(2, 64, 1f32).unwrap();
    let weights = Weights::from_tensor(square());
    let mut executor = {
        let compiled = cache.compile(&BackendId::CPU, &layer(2, &weights), &one_thread()).unwrap();
        compiled.executor().unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut y = Tensor::<f32>::zeros(2, 64).unwrap();
            for _ in 0..2000 {
                executor.run(Inputs::new(&x), &mut y).unwrap();
                assert!(y.data().iter().all(|&y| y == 64.0));
            }
        });
        cache.clear();
    });
    assert_eq!((cache.statistics().products, cache.statistics().bytes), (0, 0));
}

#[test]
fn a_product_beyond_the_limit_is_handed_out_and_displaces_nothing() {
    let cache = cache(CacheLimits::new().bytes(8 << 10));
    compile(&cache, &plain(1));
    let weights = Weights::from_tensor(square());
    for round in 1..3 {
        let compiled = cache.compile(&BackendId::CPU, &layer(2, &weights), &one_thread()).unwrap();
        assert_eq!(
            compiled.run_to_tensor(Inputs::new(&Tensor::filled(2, 64, 1f32).unwrap())).unwrap().data()[0],
            64.0
        );
        assert_eq!(cache.statistics().oversized, round);
    }
    assert!(!misses(&cache, &plain(1)));
    // Nothing is kept at all.
    let none = ProductCache::new(Backends::new(), CacheLimits::new().products(0));
    assert!(misses(&none, &plain(1)) && misses(&none, &plain(1)));
}

#[test]
fn products_of_weights_that_are_gone_go_too() {
    let cache = cache(CacheLimits::default());
    let weights = Weights::from_tensor(square());
    let clone = weights.clone();
    let compiled = cache.compile(&BackendId::CPU, &layer(2, &weights), &one_thread()).unwrap();
    drop(weights);
    compile(&cache, &plain(1));
    assert_eq!(cache.statistics().products, 2, "a clone can still name it");
    drop(clone);
    compile(&cache, &plain(2));
    assert_eq!((cache.statistics().products, cache.statistics().evictions), (2, 1));
    assert!(compiled.executor().is_ok());
}

#[cfg(feature = "profile")]
#[test]
fn a_product_that_is_quarantined_later_is_not_handed_out() {
    use ane_matmul::{Profile, Quarantine, RefusalReason};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    let cache = cache(CacheLimits::default());
    let options = one_thread().quarantine(&path);
    let compile = |m| cache.compile(&BackendId::CPU, &plain(m), &options);
    compile(8).unwrap();
    compile(16).unwrap();
    let entry = Quarantine::here(BackendId::CPU, Some(&plain(8)), "wrong");
    Profile::update(&path, |profile| profile.add_quarantine(entry)).unwrap();
    match compile(8) {
        Err(Error::Refused { refusal, .. }) => assert_eq!(refusal.reason, RefusalReason::Quarantined),
        other => panic!("{other:?}"),
    }
    assert_eq!(cache.statistics().products, 1);
    let hits = cache.statistics().hits;
    compile(16).unwrap();
    assert_eq!(cache.statistics().hits, hits + 1);
    Profile::update(&path, |profile| profile.retain_quarantine(|_| false)).unwrap();
    compile(8).unwrap();
}

/// An encoder's layer for sentences of so many words.
fn sentences(words: usize, weights: &Weights) -> Graph {
    let mut g = GraphBuilder::new();
    let x = g.input("x", ElementType::F32, &[4, words, 64]).unwrap();
    let y = g.linear("layer", x, weights, None).unwrap();
    let y = g.softmax(y, -1).unwrap();
    g.finish(&[("y", y)]).unwrap()
}

#[test]
fn graphs_of_several_lengths_have_their_weights_in_common() {
    let cache = cache(CacheLimits::default());
    let weights = Weights::from_tensor(Tensor::filled(64, 256, 0.5f32).unwrap());
    let graphs = [16, 32].map(|words| sentences(words, &weights).variable_leading(&["x"]).unwrap());
    let options = CompileOptions::default().threads(Threads::ONE);
    let compile = |graph: &Graph| cache.compile_graph(&BackendId::CPU, graph, &options).unwrap();
    compile(&graphs[0]);
    let one = cache.statistics().bytes;
    compile(&graphs[1]);
    let two = cache.statistics().bytes;
    let packed = 64 * 256 * size_of::<f32>();
    assert!(one > packed && two - one < packed, "{one} and {two} bytes");
    // Clones are the same graph, and so are those of one leading dimension.
    compile(&graphs[0].clone());
    let of_three = |graph: &Graph| graph.with_leading(3).unwrap();
    let (third, again, other) = (of_three(&graphs[0]), of_three(&graphs[0]), of_three(&graphs[1]));
    for graph in [&third, &again, &other] {
        compile(graph);
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.misses, statistics.hits, statistics.products), (4, 2, 4));
    // A product of the weights has them in common too.
    let before = cache.statistics().bytes;
    let layer = MatMul::new(8, 256, 64).unwrap().with_weights(&weights).unwrap();
    cache.compile(&BackendId::CPU, &layer, &options).unwrap();
    assert!(cache.statistics().bytes - before < packed);
    // What nobody can ask for again goes.
    drop((third, again));
    assert_eq!(cache.statistics().products, 5);
    drop(graphs);
    assert_eq!(cache.statistics().products, 3);
    drop(other);
    assert_eq!(cache.statistics().products, 1);
}
