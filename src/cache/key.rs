//! What a product is found by.

use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
#[cfg(feature = "profile")]
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::BackendId;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, ThreadPool, Threads};
use crate::graph::description::GraphId;
use crate::verify::self_check::SelfCheckKey;

/// What is compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "every look-up would allocate")]
pub(super) enum Subject {
    /// A product, and the identity of its weights.
    Product(MatMul, Option<u64>),
    Graph(GraphId),
}

/// All that what is compiled depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    backend: BackendId,
    subject: Subject,
    threads: ThreadsKey,
    device: Device,
    fast_math: bool,
    reduced_precision: bool,
    instant_start: bool,
    self_check: SelfCheckKey,
    allow_known_faults: bool,
    #[cfg(feature = "profile")]
    quarantine: Option<PathBuf>,
    /// Where the choice of a backend depends on them.
    expected_runs: Option<u64>,
}

#[derive(Debug, Clone)]
enum ThreadsKey {
    /// Not the number it stands for: to ask the system takes longer than everything else.
    Auto,
    Count(NonZeroUsize),
    /// By its address, which is its own while the key holds it.
    Pool(Arc<dyn ThreadPool>),
}

impl PartialEq for ThreadsKey {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Auto, Self::Auto) => true,
            (Self::Count(one), Self::Count(other)) => one == other,
            (Self::Pool(one), Self::Pool(other)) => std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other)),
            _ => false,
        }
    }
}

impl Eq for ThreadsKey {}

impl Hash for ThreadsKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Auto => 0usize.hash(state),
            Self::Count(count) => count.hash(state),
            Self::Pool(pool) => Arc::as_ptr(pool).cast::<()>().hash(state),
        }
    }
}

impl Key {
    pub(super) fn new(backend: &BackendId, subject: Subject, options: &CompileOptions) -> Self {
        // Named one by one, so that a new option cannot be forgotten here.
        let CompileOptions {
            threads,
            device,
            fast_math,
            reduced_precision,
            instant_start,
            self_check,
            allow_known_faults,
            #[cfg(feature = "profile")]
            quarantine,
            expected_runs,
            time_limit: _,
            packages: _,
            probe: _,
        } = options;
        Self {
            backend: backend.clone(),
            subject,
            threads: match threads {
                Threads::Auto => ThreadsKey::Auto,
                Threads::Count(count) => ThreadsKey::Count(*count),
                Threads::Pool(pool) => ThreadsKey::Pool(Arc::clone(pool)),
            },
            device: *device,
            fast_math: *fast_math,
            reduced_precision: *reduced_precision,
            instant_start: *instant_start,
            self_check: self_check.key(),
            allow_known_faults: *allow_known_faults,
            #[cfg(feature = "profile")]
            quarantine: quarantine.clone(),
            expected_runs: expected_runs.filter(|_| *backend == BackendId::AUTO),
        }
    }
}
