//! The store of values on its own, and what a product is found by.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::key::Key;
use super::store::{Counts, Limits, Store};
use super::*;
use crate::backend::tests::Scripted;
use crate::description::options::{ThreadPool, Threads};

/// A value that weighs what it says, now and later.
type Value = Arc<AtomicUsize>;

fn store(bytes: usize, count: usize) -> Store<&'static str, Value, ()> {
    Store::new(Limits { bytes, count }, |value| Weight {
        own: value.load(Ordering::Relaxed),
        shared: Vec::new(),
        may_change: true,
    })
}

fn value(bytes: usize) -> Value {
    Arc::new(AtomicUsize::new(bytes))
}

/// Whether the store holds a key's value.
fn holds(store: &Store<&'static str, Value, ()>, key: &'static str) -> bool {
    store.get(key, || Err(())).is_ok()
}

#[test]
fn the_least_recently_used_value_goes_first_and_what_fits_exactly_stays() {
    let store = store(100, 2);
    for key in ["a", "b"] {
        store.get(key, || Ok(value(50))).unwrap();
    }
    assert!(holds(&store, "a"));
    store.get("c", || Ok(value(50))).unwrap();
    assert!(holds(&store, "a") && holds(&store, "c") && !holds(&store, "b"));
    store.get("whole", || Ok(value(100))).unwrap();
    assert!(holds(&store, "whole") && !holds(&store, "a") && !holds(&store, "c"));
    store.get("more", || Ok(value(101))).unwrap();
    assert!(holds(&store, "whole") && !holds(&store, "more"));
    let Counts { evictions, oversized, count, bytes, .. } = store.counts();
    assert_eq!((evictions, oversized, count, bytes), (3, 1, 1, 100));
}

#[test]
fn values_that_grow_are_weighed_again_until_they_go() {
    let store = store(100, 10);
    let (kept, gone) = (value(10), value(20));
    store.get("kept", || Ok(Arc::clone(&kept))).unwrap();
    store.get("gone", || Ok(Arc::clone(&gone))).unwrap();
    kept.store(15, Ordering::Relaxed);
    assert_eq!(store.counts().bytes, 35);
    store.retain(|value| !Arc::ptr_eq(value, &gone));
    kept.store(40, Ordering::Relaxed);
    assert_eq!(store.counts().bytes, 40);
    kept.store(101, Ordering::Relaxed);
    assert_eq!((store.counts().bytes, store.counts().count), (0, 0));
}

#[test]
fn a_panic_while_a_value_is_made_is_a_failure_and_leaves_nothing_behind() {
    let store = store(100, 10);
    assert!(catch_unwind(AssertUnwindSafe(|| store.get("a", || panic!("no value")))).is_err());
    let Counts { misses, failures, in_flight, count, .. } = store.counts();
    assert_eq!((misses, failures, in_flight, count), (1, 1, 0, 0));
    store.get("a", || Ok(value(1))).unwrap();
    assert!(holds(&store, "a"));
}

#[test]
fn who_asks_for_a_value_that_is_being_made_waits_for_it() {
    let store = store(100, 10);
    let ((began, begin), (finish, finished)) = (mpsc::channel(), mpsc::channel());
    std::thread::scope(|scope| {
        let store = &store;
        let make = move || {
            began.send(()).unwrap();
            finished.recv().unwrap();
            Ok(value(7))
        };
        let maker = scope.spawn(|| store.get("a", make).unwrap());
        begin.recv().unwrap();
        assert_eq!(store.counts().in_flight, 1);
        let other = scope.spawn(|| store.get("a", || Err(())).unwrap());
        let joined = (0..10_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            store.counts().joined == 1
        });
        finish.send(()).unwrap();
        assert!(joined);
        assert!(Arc::ptr_eq(&maker.join().unwrap(), &other.join().unwrap()));
    });
    let Counts { misses, joined, in_flight, .. } = store.counts();
    assert_eq!((misses, joined, in_flight), (1, 1, 0));
}

/// Of a size, so that each has an address of its own.
#[derive(Debug)]
struct Serial(#[allow(dead_code, reason = "only its size counts")] u8);

impl ThreadPool for Serial {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

#[test]
fn threads_are_a_part_of_the_key() {
    let product = MatMul::new(2, 3, 4).unwrap();
    let key = |threads: Threads| {
        Key::new(
            &BackendId::CPU,
            Subject::Product(product.clone(), None),
            &CompileOptions::default().threads(threads),
        )
    };
    let hash = |key: &Key| BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    let keys = [key(Threads::Auto), key(Threads::ONE), key(Threads::Count(2.try_into().unwrap()))];
    for (i, one) in keys.iter().enumerate() {
        for (j, other) in keys.iter().enumerate() {
            assert_eq!((one == other, hash(one) == hash(other)), (i == j, i == j));
        }
    }
    let pool: Arc<dyn ThreadPool> = Arc::new(Serial(0));
    let of_pool = key(Threads::Pool(Arc::clone(&pool)));
    let of_another = key(Threads::Pool(Arc::new(Serial(0))));
    assert!(of_pool != of_another && hash(&of_pool) != hash(&of_another));
    assert_eq!(of_pool, key(Threads::Pool(pool)));
    assert!(keys.iter().all(|other| of_pool != *other));
}

#[test]
fn a_cache_tells_its_limits_backends_and_what_it_holds() {
    let limits = CacheLimits::default().bytes(1 << 20).products(3);
    let (backends, id) = Scripted::default().registered();
    let cache = ProductCache::new(backends, limits);
    assert_eq!(cache.limits(), limits);
    assert_eq!(cache.backends().info(&id).unwrap().description, "scripted");
    let product = MatMul::new(2, 3, 4).unwrap();
    let compiled = cache.compile(&BackendId::CPU, &product, &CompileOptions::default()).unwrap();
    let record = Store::<Key, Held, Error>::RECORD_BYTES;
    assert_eq!(cache.statistics().bytes, compiled.holding().own + record);
    let text = format!("{cache:?}");
    assert!(text.contains("limits") && text.contains("statistics"), "{text}");
}
