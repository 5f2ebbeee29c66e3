//! Every interleaving, within a bound on preemptions, of threads that share the cache's store, over the
//! very source of its protocol; and copies of that source with faults planted, each of which some model
//! must find.
//!
//! A wake-up that is missed, or a lock that is taken while a value is let go of, is a deadlock, which
//! the checker reports.

use std::process::Command;
use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};

mod sync {
    pub(super) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

#[path = "../../../src/cache/store.rs"]
#[allow(unused, unreachable_pub, reason = "the models use a part")]
mod store;

type Key = usize;

/// A value says its key; the world counts the values that live.
struct Made<P: Protocol> {
    key: Key,
    bytes: usize,
    shared: Option<(usize, usize)>,
    grown: AtomicUsize,
    world: Arc<World<P>>,
}

type Value<P> = Arc<Made<P>>;

struct World<P: Protocol> {
    store: P,
    made: [AtomicUsize; 6],
    alive: AtomicUsize,
}

impl<P: Protocol> Drop for Made<P> {
    fn drop(&mut self) {
        self.world.alive.fetch_sub(1, Ordering::Relaxed);
        // Letting go of a value may come back to the store.
        let (count, bytes) = self.world.store.held();
        assert!(count <= P::COUNT && bytes <= P::BYTES, "{count} values, {bytes} bytes");
    }
}

trait Protocol: Send + Sync + Sized + 'static {
    const BYTES: usize = 10;
    const COUNT: usize = 2;
    fn new() -> Self;
    fn get(&self, key: Key, make: &mut dyn FnMut() -> Result<Value<Self>, u8>) -> Result<Value<Self>, u8>;
    fn trim_to(&self, bytes: usize);
    fn clear(&self);
    /// Values and bytes.
    fn held(&self) -> (usize, usize);
    fn in_flight(&self) -> usize;
    /// Requests by what became of them: a request counts twice where it joined and then had to make.
    fn requests(&self) -> u64;
}

macro_rules! implement {
    ($store:ident, $fixture:ident) => {
        pub(crate) struct $fixture($store::Store<$crate::Key, $crate::Value<$fixture>, u8>);

        fn weigh(value: &$crate::Value<$fixture>) -> $store::Weight {
            let grown = value.grown.load($crate::Ordering::Relaxed);
            $store::Weight {
                own: value.bytes + grown,
                shared: value.shared.into_iter().collect(),
                may_change: value.key == 5,
            }
        }

        impl $crate::Protocol for $fixture {
            fn new() -> Self {
                Self($store::Store::new($store::Limits { bytes: Self::BYTES, count: Self::COUNT }, weigh))
            }
            fn get(
                &self,
                key: $crate::Key,
                make: &mut dyn FnMut() -> Result<$crate::Value<Self>, u8>,
            ) -> Result<$crate::Value<Self>, u8> {
                self.0.get(key, make)
            }
            fn trim_to(&self, bytes: usize) {
                self.0.trim_to(bytes);
            }
            fn clear(&self) {
                self.0.retain(|_| false);
            }
            fn held(&self) -> (usize, usize) {
                let counts = self.0.counts();
                (counts.count, counts.bytes)
            }
            fn in_flight(&self) -> usize {
                self.0.counts().in_flight
            }
            fn requests(&self) -> u64 {
                let counts = self.0.counts();
                counts.hits + counts.misses + counts.joined
            }
        }
    };
}

implement!(store, Real);

macro_rules! faults {
    ($($name:ident)*) => {
        $(mod $name {
            use super::sync;

            #[allow(unused, unreachable_pub, clippy::all, clippy::pedantic, reason = "faults are planted here")]
            mod store {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
            }

            implement!(store, Faulty);

            pub(super) fn check() {
                super::check_all::<Faulty>();
            }
        })*

        const PLANTED: &[(&str, fn())] = &[$((stringify!($name), $name::check)),*];
    };
}

include!(concat!(env!("OUT_DIR"), "/faults.rs"));

impl<P: Protocol> World<P> {
    fn new() -> Arc<Self> {
        let made = std::array::from_fn(|_| AtomicUsize::new(0));
        Arc::new(Self { store: P::new(), made, alive: AtomicUsize::new(0) })
    }

    fn make(self: &Arc<Self>, key: Key, bytes: usize, shared: Option<(usize, usize)>) -> Value<P> {
        self.made[key].fetch_add(1, Ordering::Relaxed);
        self.alive.fetch_add(1, Ordering::Relaxed);
        // Making takes the store's lock nowhere; looking at it must be possible.
        self.store.in_flight();
        Arc::new(Made { key, bytes, shared, grown: AtomicUsize::new(0), world: Arc::clone(self) })
    }

    fn get(self: &Arc<Self>, key: Key, bytes: usize) -> Value<P> {
        let value = self.store.get(key, &mut || Ok(self.make(key, bytes, None))).expect("it can be made");
        assert_eq!(value.key, key);
        value
    }

    fn made(&self, key: Key) -> usize {
        self.made[key].load(Ordering::Relaxed)
    }

    /// Nothing is left behind, and the store holds what it says.
    fn end(self: Arc<Self>) {
        assert_eq!(self.store.in_flight(), 0);
        let (count, bytes) = self.store.held();
        assert!(count <= P::COUNT && bytes <= P::BYTES, "{count} values, {bytes} bytes");
        assert_eq!(self.alive.load(Ordering::Relaxed), count, "values live");
        self.store.clear();
        assert_eq!(self.store.held(), (0, 0));
        assert_eq!(self.alive.load(Ordering::Relaxed), 0, "values left behind");
    }
}

fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(body);
}

/// Two or three threads want one value, which is made once.
fn check_one_flight<P: Protocol>(others: usize, preemptions: usize) {
    model(preemptions, move || {
        let world = World::<P>::new();
        let threads: Vec<_> = (0..others)
            .map(|_| {
                let world = Arc::clone(&world);
                loom::thread::spawn(move || drop(world.get(0, 4)))
            })
            .collect();
        drop(world.get(0, 4));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(world.made(0), 1);
        assert_eq!(world.store.requests(), others as u64 + 1);
        world.end();
    });
}

/// Whoever waits for a maker that fails gets its error; who comes later makes it.
fn check_failure<P: Protocol>() {
    model(2, || {
        let world = World::<P>::new();
        let tries = Arc::new(AtomicUsize::new(0));
        let attempt = |world: &World<P>, tries: &AtomicUsize| {
            let mut own = false;
            let result = world.store.get(0, &mut || {
                own = true;
                Err(u8::try_from(tries.fetch_add(1, Ordering::Relaxed)).unwrap())
            });
            (own, result.err().expect("nothing can be made"))
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (world, tries) = (Arc::clone(&world), Arc::clone(&tries));
                loom::thread::spawn(move || attempt(&world, &tries))
            })
            .collect();
        let mut results = vec![attempt(&world, &tries)];
        results.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        let makers = results.iter().filter(|(own, _)| *own).count();
        assert_eq!(makers, tries.load(Ordering::Relaxed), "an error is told once to each");
        for (own, error) in &results {
            assert!(*own || results.iter().any(|(maker, other)| *maker && other == error));
        }
        assert_eq!(world.store.requests(), 3, "whoever joined was told the error");
        drop(world.get(0, 4));
        world.end();
    });
}

/// A maker that panics leaves the others the chance to make it.
fn check_panic<P: Protocol>() {
    model(2, || {
        let world = World::<P>::new();
        let other = {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || drop(world.get(0, 4)))
        };
        let panicking = std::panic::AssertUnwindSafe(|| {
            world.store.get(0, &mut || -> Result<Value<P>, u8> {
                // Without the hook's message.
                std::panic::resume_unwind(Box::new("a maker"))
            })
        });
        // It may find the other's value instead.
        drop(std::panic::catch_unwind(panicking));
        other.join().unwrap();
        assert_eq!(world.made(0), 1);
        world.end();
    });
}

/// Threads with keys of their own: the limits hold, and nothing is left.
fn check_eviction<P: Protocol>() {
    model(2, || {
        let world = World::<P>::new();
        let other = {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || {
                drop(world.get(0, 4));
                drop(world.get(1, 6));
            })
        };
        drop(world.get(2, 5));
        world.store.trim_to(4);
        other.join().unwrap();
        world.end();
    });
}

/// One thread: order, weights and limits.
fn check_alone<P: Protocol>() {
    model(0, || {
        let world = World::<P>::new();
        let held = || world.store.held();
        let keys = [0, 1, 0, 2];
        keys.iter().for_each(|&key| drop(world.get(key, 1)));
        // Before anything else is asked of the store, which may put it right.
        assert_eq!(world.alive.load(Ordering::Relaxed), 2, "the third displaced one");
        assert_eq!(held(), (2, 2), "the count is limited");
        drop(world.get(0, 1));
        drop(world.get(1, 1));
        assert_eq!((world.made(0), world.made(1), world.made(2)), (1, 2, 1), "the least recently used went");
        drop(world.get(3, 10));
        assert_eq!(held(), (1, 10), "bytes are limited");
        drop(world.get(4, 11));
        assert_eq!(held(), (1, 10), "what fits nowhere displaces nothing");
        world.store.clear();
        let with_shared = |key, own| {
            drop(world.store.get(key, &mut || Ok(world.make(key, own, Some((7, 4))))));
        };
        with_shared(0, 1);
        with_shared(1, 1);
        assert_eq!(held(), (2, 6), "a common part counts once");
        world.store.trim_to(5);
        assert_eq!(held(), (1, 5), "it stays with the last");
        world.store.trim_to(0);
        assert_eq!(held(), (0, 0));
        let growing = world.get(5, 1);
        growing.grown.store(3, Ordering::Relaxed);
        assert_eq!(held(), (1, 4), "what grows is weighed again");
        drop(growing);
        Arc::clone(&world).end();
    });
}

fn check_all<P: Protocol>() {
    check_alone::<P>();
    check_one_flight::<P>(1, 3);
    check_one_flight::<P>(2, 2);
    check_failure::<P>();
    check_panic::<P>();
    check_eviction::<P>();
}

#[test]
fn order_weights_and_limits() {
    check_alone::<Real>();
}

#[test]
fn a_value_is_made_once() {
    check_one_flight::<Real>(1, 3);
    check_one_flight::<Real>(2, 2);
}

#[test]
fn an_error_reaches_all_who_wait() {
    check_failure::<Real>();
}

#[test]
fn a_panic_hangs_nobody() {
    check_panic::<Real>();
}

#[test]
fn limits_hold_between_threads() {
    check_eviction::<Real>();
}

/// In processes of their own: the checker may abort where it finds something.
#[test]
fn every_planted_fault_is_found() {
    const PLANT: &str = "CACHE_MODEL_PLANT";
    if let Ok(name) = std::env::var(PLANT) {
        let (_, check) = PLANTED.iter().find(|(known, _)| *known == name).unwrap();
        check();
        return;
    }
    let mut missed = Vec::new();
    for (name, _) in PLANTED {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_planted_fault_is_found", "--nocapture"])
            .env(PLANT, name)
            .output()
            .unwrap();
        if output.status.success() {
            missed.push(*name);
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = stderr.lines().skip_while(|line| !line.contains("panicked")).nth(1).unwrap_or("");
            println!("{name}: found: {said}");
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
