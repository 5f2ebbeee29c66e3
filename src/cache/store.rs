//! Values that are made once and kept within bounds, least recently used first: the protocol of
//! [`super::ProductCache`], apart from products, so that a model checker can run it
//! (`tests/cache_model`).
//!
//! The first request for a key makes its value, outside the lock; those that come meanwhile wait for
//! the outcome: the value, the error, or, where the maker panicked, the chance to make it themselves.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc as KeyRef, PoisonError};

use super::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What a value weighs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Bytes of its own.
    pub own: usize,
    /// Parts that it has in common with other values: whose each is (an address, good while the value lives),
    /// and how many bytes.
    pub shared: Vec<(usize, usize)>,
    /// Whether it may weigh something else later.
    pub may_change: bool,
}

impl Weight {
    /// The bytes of all parts that it has in common with others.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// What a store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub bytes: usize,
    pub count: usize,
}

/// What happened so far, and what is held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub hits: u64,
    pub misses: u64,
    pub joined: u64,
    pub evictions: u64,
    pub failures: u64,
    pub oversized: u64,
    pub count: usize,
    pub bytes: usize,
    pub in_flight: usize,
}

struct Entry<V> {
    value: V,
    weight: Weight,
    /// When it was last asked for.
    used: u64,
    /// Its place in the queue: when it was last asked for, or before.
    queued: u64,
}

enum Outcome<V, E> {
    Pending,
    Made(V),
    Failed(E),
    /// The maker panicked.
    Abandoned,
}

struct Flight<V, E> {
    outcome: Mutex<Outcome<V, E>>,
    settled: Condvar,
}

struct State<K, V, E> {
    entries: HashMap<KeyRef<K>, Entry<V>>,
    /// Keys by [`Entry::queued`]. A hit leaves its key where it is: eviction puts it right.
    queue: BTreeMap<u64, KeyRef<K>>,
    /// How many entries have each shared part in common, and its bytes.
    shared: HashMap<usize, (usize, usize)>,
    flights: HashMap<KeyRef<K>, Arc<Flight<V, E>>>,
    /// Entries whose weight may change.
    unsettled: Vec<KeyRef<K>>,
    clock: u64,
    counts: Counts,
}

pub(super) struct Store<K, V, E> {
    state: Mutex<State<K, V, E>>,
    limits: Limits,
    weigh: fn(&V) -> Weight,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs while a lock is held but a change of weight, which changes nothing yet.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash, V: Clone, E: Clone> Store<K, V, E> {
    /// What a held value takes here, at most about: its key, and its places in the tables, which are
    /// between a quarter and all but full.
    pub(super) const RECORD_BYTES: usize = size_of::<K>() + 16 + 4 * (size_of::<Entry<V>>() + 16);

    pub(super) fn new(limits: Limits, weigh: fn(&V) -> Weight) -> Self {
        let state = State {
            entries: HashMap::new(),
            queue: BTreeMap::new(),
            shared: HashMap::new(),
            flights: HashMap::new(),
            unsettled: Vec::new(),
            clock: 0,
            counts: Counts::default(),
        };
        Self { state: Mutex::new(state), limits, weigh }
    }

    /// The value of `key`: the one that is held, or what `make` makes, in this thread or in another.
    pub(super) fn get(&self, key: K, mut make: impl FnMut() -> Result<V, E>) -> Result<V, E> {
        loop {
            let mut state = lock(&self.state);
            if let Some(value) = state.hit(&key) {
                return Ok(value);
            }
            if let Some(flight) = state.flights.get(&key).cloned() {
                state.counts.joined += 1;
                drop(state);
                match flight.wait() {
                    Some(result) => return result,
                    None => continue,
                }
            }
            let flight = Arc::new(Flight { outcome: Mutex::new(Outcome::Pending), settled: Condvar::new() });
            let key = KeyRef::new(key);
            state.flights.insert(KeyRef::clone(&key), Arc::clone(&flight));
            state.counts.misses += 1;
            drop(state);
            let landing = Landing { store: self, key: Some(key), flight };
            let result = make();
            landing.settle(&result);
            return result;
        }
    }

    /// Lets go of the least recently used values until at most so many bytes are held.
    pub(super) fn trim_to(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.weigh_again(self.weigh);
        let evicted = state.evict(Limits { bytes, ..self.limits });
        drop(state);
        drop(evicted);
    }

    /// Lets go of every value that is not wanted; it counts as an eviction.
    pub(super) fn retain(&self, wanted: impl Fn(&V) -> bool) {
        let mut state = lock(&self.state);
        let unwanted: Vec<KeyRef<K>> =
            state.queue.values().filter(|key| !wanted(&state.entries[*key].value)).cloned().collect();
        let removed: Vec<_> = unwanted.iter().map(|key| state.remove(key)).collect();
        drop(state);
        drop(removed);
    }

    pub(super) fn counts(&self) -> Counts {
        let mut state = lock(&self.state);
        state.weigh_again(self.weigh);
        // A value that grew is not held beyond the bound until the next miss.
        let evicted = state.evict(self.limits);
        let counts = state.counts();
        drop(state);
        drop(evicted);
        counts
    }
}

impl<V: Clone, E: Clone> Flight<V, E> {
    /// The outcome; `None` where the maker gave up.
    fn wait(&self) -> Option<Result<V, E>> {
        let mut outcome = lock(&self.outcome);
        loop {
            match &*outcome {
                Outcome::Pending => {}
                Outcome::Made(value) => return Some(Ok(value.clone())),
                Outcome::Failed(error) => return Some(Err(error.clone())),
                Outcome::Abandoned => return None,
            }
            outcome = self.settled.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn settle(&self, result: Outcome<V, E>) {
        *lock(&self.outcome) = result;
        self.settled.notify_all();
    }
}

/// The duty of whoever makes a value to tell those that wait, also while a panic unwinds.
struct Landing<'a, K: Eq + Hash, V: Clone, E: Clone> {
    store: &'a Store<K, V, E>,
    key: Option<KeyRef<K>>,
    flight: Arc<Flight<V, E>>,
}

impl<K: Eq + Hash, V: Clone, E: Clone> Landing<'_, K, V, E> {
    fn settle(mut self, result: &Result<V, E>) {
        // Outside the lock: weighing asks the backend.
        let weight = result.as_ref().ok().map(self.store.weigh);
        let Some(key) = self.key.take() else { return };
        let mut state = lock(&self.store.state);
        state.flights.remove(&key);
        let mut evicted = Vec::new();
        match (result, weight) {
            (Ok(value), Some(weight)) => {
                state.weigh_again(self.store.weigh);
                evicted = state.insert(key, value.clone(), weight, self.store.limits);
            }
            _ => state.counts.failures += 1,
        }
        drop(state);
        self.flight.settle(match result {
            Ok(value) => Outcome::Made(value.clone()),
            Err(error) => Outcome::Failed(error.clone()),
        });
        // Last, and outside the lock: letting go of a value may take long.
        drop(evicted);
    }
}

impl<K: Eq + Hash, V: Clone, E: Clone> Drop for Landing<'_, K, V, E> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut state = lock(&self.store.state);
        state.flights.remove(&key);
        state.counts.failures += 1;
        drop(state);
        self.flight.settle(Outcome::Abandoned);
    }
}

impl<K: Eq + Hash, V: Clone, E> State<K, V, E> {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn hit(&mut self, key: &K) -> Option<V> {
        let now = self.clock + 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = now;
        self.clock = now;
        self.counts.hits += 1;
        Some(entry.value.clone())
    }

    /// Holds a value and returns what had to go for it. One that fits no empty store is not held.
    fn insert(&mut self, key: KeyRef<K>, value: V, weight: Weight, limits: Limits) -> Vec<V> {
        let alone = weight.own.saturating_add(weight.shared_bytes());
        if alone > limits.bytes || limits.count == 0 {
            self.counts.oversized += 1;
            return Vec::new();
        }
        let now = self.tick();
        self.add(&weight);
        if weight.may_change {
            self.unsettled.push(KeyRef::clone(&key));
        }
        self.queue.insert(now, KeyRef::clone(&key));
        self.entries.insert(key, Entry { value, weight, used: now, queued: now });
        self.evict(limits)
    }

    /// Removes the least recently used entries until what is left is within the limits.
    fn evict(&mut self, limits: Limits) -> Vec<V> {
        let mut evicted = Vec::new();
        while self.counts.bytes > limits.bytes || self.entries.len() > limits.count {
            let Some((queued, key)) = self.queue.pop_first() else { break };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.used != queued => {
                    entry.queued = entry.used;
                    self.queue.insert(entry.used, key);
                }
                _ => evicted.extend(self.remove(&key)),
            }
        }
        evicted
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(2 * self.entries.len());
        }
        self.queue.remove(&entry.queued);
        if entry.weight.may_change {
            self.unsettled.retain(|other| **other != *key);
        }
        self.subtract(&entry.weight);
        self.counts.evictions += 1;
        Some(entry.value)
    }

    fn add(&mut self, weight: &Weight) {
        self.counts.bytes = self.counts.bytes.saturating_add(weight.own);
        for (part, bytes) in weight.shared.iter().copied() {
            let (users, counted) = self.shared.entry(part).or_default();
            *users += 1;
            if *users == 1 {
                *counted = bytes;
                self.counts.bytes = self.counts.bytes.saturating_add(bytes);
            }
        }
    }

    fn subtract(&mut self, weight: &Weight) {
        self.counts.bytes = self.counts.bytes.saturating_sub(weight.own);
        for (part, _) in &weight.shared {
            let Some((users, bytes)) = self.shared.get_mut(part) else { continue };
            *users -= 1;
            if *users == 0 {
                self.counts.bytes = self.counts.bytes.saturating_sub(*bytes);
                self.shared.remove(part);
            }
        }
    }

    /// Weighs again what may weigh something else by now.
    fn weigh_again(&mut self, weigh: fn(&V) -> Weight) {
        for key in std::mem::take(&mut self.unsettled) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let weight = weigh(&entry.value);
            let before = std::mem::replace(&mut entry.weight, weight.clone());
            self.subtract(&before);
            self.add(&weight);
            if weight.may_change {
                self.unsettled.push(key);
            }
        }
    }

    fn counts(&self) -> Counts {
        Counts { count: self.entries.len(), in_flight: self.flights.len(), ..self.counts }
    }
}
