//! Compiled products, kept within bounds and shared by threads.

mod key;
mod store;
mod sync;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::backend::{self, BackendId, Backends};
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;
use crate::description::with_weights::Product;
use crate::error::{Error, Result};
use crate::executor::Compiled;
use crate::graph::{CompiledGraph, Graph};
use crate::operands::weights::Weights;

use key::{Key, Subject};
use store::{Counts, Limits, Store};

pub(crate) use store::Weight;

/// What a [`ProductCache`] may hold.
///
/// ```
/// use ane_matmul::{Backends, CacheLimits, ProductCache};
///
/// let cache = ProductCache::new(Backends::new(), CacheLimits::new().bytes(64 << 20).products(100));
/// assert_eq!(cache.limits().bytes, 64 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheLimits {
    /// The most bytes; 1 GiB by default.
    pub bytes: usize,
    /// The most products; 4096 by default.
    pub products: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { bytes: 1 << 30, products: 4096 }
    }
}

impl CacheLimits {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the most bytes.
    #[must_use]
    pub const fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets the most products.
    #[must_use]
    pub const fn products(mut self, products: usize) -> Self {
        self.products = products;
        self
    }
}

/// What a [`ProductCache`] did since it was made, and what it holds.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CacheLimits, CompileOptions, MatMul, ProductCache};
///
/// let cache = ProductCache::new(Backends::new(), CacheLimits::default());
/// for _ in 0..10 {
///     cache.compile(&BackendId::CPU, &MatMul::new(2, 4, 3)?, &CompileOptions::default())?;
/// }
/// let statistics = cache.statistics();
/// assert_eq!((statistics.misses, statistics.hits, statistics.products), (1, 9, 1));
/// println!("{} of {} bytes", statistics.bytes, cache.limits().bytes);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// Requests that found a product.
    pub hits: u64,
    /// Requests that compiled, or tried to.
    pub misses: u64,
    /// Requests that waited for another thread's compilation of the same product.
    pub joined: u64,
    /// Products let go of: for the limits, by a trim, or because their weights were gone.
    pub evictions: u64,
    /// Compilations that failed or panicked.
    pub failures: u64,
    /// Products handed out but not kept, since each alone was beyond the limits.
    pub oversized: u64,
    /// Products held now.
    pub products: usize,
    /// Bytes held now, of [`CacheLimits::bytes`].
    pub bytes: usize,
    /// Compilations under way.
    pub in_flight: usize,
}

/// Compiled products, least recently used first out, for any number of threads.
///
/// [`ProductCache::compile`] takes what [`Backends::compile`] takes and hands out the product that it
/// holds, or compiles it. Threads that ask for one product at the same time compile it once; an error
/// reaches all of them, and the next request tries again. Share the cache by reference or in an `Arc`;
/// each thread opens an executor of its own.
///
/// **Key**: the description, [`Weights::id`], the backend, and of the options `threads` (automatic, a
/// number, or which pool), `device`, `fast_math`, `reduced_precision`, `instant_start`, `self_check`,
/// `allow_known_faults` and `quarantine`, with [`BackendId::AUTO`] `expected_runs` too. A known bias is not in it: it is the
/// handle's that is handed out. The others do not
/// change what is compiled: a hit ignores them.
///
/// **Bytes**: what the products hold ([`crate::Report::bytes_held`]) and the cache's records of them.
/// Weights that a backend packed for several products are counted once. Not counted are the caller's
/// weights, executors, products still being compiled and those that were evicted while an executor or
/// another handle keeps them: they go with the last of these. What a backend does not report it cannot
/// bound.
///
/// **Idle executors** of [`Compiled::run`], and the counts of their self-checks, belong to the handle that was
/// handed out and its clones, not to the cache: keep the handle while it is in use.
///
/// **A product beyond the limits** by itself is handed out and not kept, so that it displaces nothing;
/// it is compiled again at the next request.
///
/// **Quarantine**: with `CompileOptions::quarantine` the profile is read at every request, and a product
/// whose backend it keeps from products of this class is let go of and refused, or, with `auto`, compiled
/// for another backend. So is a graph.
///
/// **Weights** whose last handle outside of products is gone cannot be asked for again, and neither can a graph:
/// their products go at the next compilation, trim or look at the statistics.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CacheLimits, CompileOptions, Inputs, MatMul, ProductCache, Tensor};
///
/// # fn main() -> Result<(), ane_matmul::Error> {
/// let cache = ProductCache::new(Backends::new(), CacheLimits::new().bytes(64 << 20));
/// let a = Tensor::filled(4, 4, 1f32)?;
/// for m in [1, 2, 4, 2, 1] {
///     let compiled = cache.compile(&BackendId::CPU, &MatMul::new(m, 4, 4)?, &CompileOptions::default())?;
///     compiled.run_to_tensor(&Inputs::new(a.view().slice(0..m, 0..4)?).b(&a))?;
/// }
/// let statistics = cache.statistics();
/// assert_eq!((statistics.misses, statistics.hits), (3, 2));
/// # Ok(())
/// # }
/// ```
pub struct ProductCache {
    backends: Backends,
    limits: CacheLimits,
    store: Store<Key, Held, Error>,
}

/// What is held.
#[derive(Clone)]
enum Held {
    Product(Compiled),
    Graph(CompiledGraph),
}

impl Held {
    /// Whether anyone can ask for it again.
    fn can_be_named(&self) -> bool {
        match self {
            Self::Product(compiled) => compiled.weights().is_none_or(Weights::can_be_named),
            Self::Graph(compiled) => compiled.can_be_named(),
        }
    }
}

fn weigh(held: &Held) -> Weight {
    let holding = match held {
        Held::Product(compiled) => compiled.holding(),
        Held::Graph(compiled) => compiled.holding(),
    };
    Weight { own: holding.own.saturating_add(Store::<Key, Held, Error>::RECORD_BYTES), ..holding }
}

impl ProductCache {
    /// An empty cache of products for `backends`.
    #[must_use]
    pub fn new(backends: Backends, limits: CacheLimits) -> Self {
        let store = Store::new(Limits { bytes: limits.bytes, count: limits.products }, weigh);
        Self { backends, limits, store }
    }

    /// The product for this backend: the one held, or compiled now, or by another thread that began
    /// before.
    ///
    /// # Errors
    /// As [`Backends::compile`].
    ///
    /// # Panics
    /// Where the compilation in this thread does; other threads that wait for it then compile.
    pub fn compile(
        &self,
        id: &BackendId,
        product: &(impl Product + ?Sized),
        options: &CompileOptions,
    ) -> Result<Compiled> {
        let (bias, weights, product) = (product.bias_handle(), product.weights(), product.product());
        let compiled = self.get(id, product, weights, options)?;
        if backend::quarantined(compiled.backend(), product, options).is_ok() {
            return Ok(compiled.for_caller(bias));
        }
        self.store.retain(|held| match held {
            Held::Product(held) => held.product() != product || held.backend() != compiled.backend(),
            Held::Graph(_) => true,
        });
        Ok(self.get(id, product, weights, options)?.for_caller(bias))
    }

    fn get(
        &self,
        id: &BackendId,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Compiled> {
        let subject = Subject::Product(product.clone(), weights.map(Weights::id));
        let held = self.store.get(Key::new(id, subject, options), || {
            self.let_go_of_the_orphaned();
            let compiled = self.backends.compile_parts(id, product, weights, options)?;
            self.warn_of(product, id, compiled.report().bytes_held);
            Ok(Held::Product(compiled))
        })?;
        match held {
            Held::Product(compiled) => Ok(compiled),
            Held::Graph(_) => unreachable!("the key of a product finds one"),
        }
    }

    /// The graph for this backend, as [`ProductCache::compile`] has it for products: it counts as one of these, with the
    /// weights that graphs and products have in common counted once. Its key is the graph instead of the description:
    /// clones, and [`Graph::with_leading`] of the same number, are the same graph.
    ///
    /// # Errors
    /// As [`Backends::compile_graph`].
    ///
    /// # Panics
    /// As [`ProductCache::compile`].
    pub fn compile_graph(
        &self,
        id: &BackendId,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<CompiledGraph> {
        let compiled = self.get_graph(id, graph, options)?;
        if self.backends.check_quarantine(compiled.backend(), graph, options).is_ok() {
            return Ok(compiled);
        }
        self.store.retain(|held| match held {
            Held::Product(_) => true,
            Held::Graph(held) => held.graph().id != graph.id || held.backend() != compiled.backend(),
        });
        self.get_graph(id, graph, options)
    }

    fn get_graph(&self, id: &BackendId, graph: &Graph, options: &CompileOptions) -> Result<CompiledGraph> {
        let held = self.store.get(Key::new(id, Subject::Graph(graph.id), options), || {
            self.let_go_of_the_orphaned();
            let compiled = self.backends.compile_graph(id, graph, options)?;
            self.warn_of("a graph", id, compiled.report().weight_bytes);
            Ok(Held::Graph(compiled))
        })?;
        match held {
            Held::Graph(compiled) => Ok(compiled),
            Held::Product(_) => unreachable!("the key of a graph finds one"),
        }
    }

    fn warn_of(&self, what: impl fmt::Display, id: &BackendId, bytes: usize) {
        if bytes > self.limits.bytes {
            log::warn!(
                "{what} for {id} holds {bytes} bytes, beyond the limit of {}: it is not kept",
                self.limits.bytes
            );
        }
    }

    /// Lets go of the least recently used products until at most `bytes` are held; call it on memory
    /// pressure. What executors use goes with them.
    ///
    /// Products that are being compiled meanwhile are kept when they are done.
    pub fn trim_to(&self, bytes: usize) {
        self.let_go_of_the_orphaned();
        self.store.trim_to(bytes);
    }

    /// Lets go of every product.
    pub fn clear(&self) {
        self.store.retain(|_| false);
    }

    /// What happened so far, and what is held now.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        self.let_go_of_the_orphaned();
        let Counts { hits, misses, joined, evictions, failures, oversized, count, bytes, in_flight } =
            self.store.counts();
        CacheStatistics {
            hits,
            misses,
            joined,
            evictions,
            failures,
            oversized,
            products: count,
            bytes,
            in_flight,
        }
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// The backends that products are compiled for.
    #[must_use]
    pub const fn backends(&self) -> &Backends {
        &self.backends
    }

    fn let_go_of_the_orphaned(&self) {
        self.store.retain(Held::can_be_named);
    }
}

impl fmt::Debug for ProductCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProductCache")
            .field("limits", &self.limits)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}
