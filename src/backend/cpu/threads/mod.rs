//! The threads of a product: [`split`] shares it out, [`workers`] gives each thread memory of its own and hands out
//! pieces of the shares, [`pool`] runs the threads by the protocol of [`rendezvous`], [`place`] says where.

mod place;
pub(crate) mod pool;
mod rendezvous;
pub(crate) mod split;
mod sync;
pub(crate) mod workers;

use std::fmt;
use std::sync::Arc;

use crate::description::options::ThreadPool;
use pool::Pool;

/// Who computes a product besides the caller.
#[derive(Clone)]
pub(crate) enum Team {
    Own {
        pool: Arc<Pool>,
        /// Whether a run is worth the waking of threads that sleep.
        long: bool,
    },
    /// A pool of the caller's.
    Callers(Arc<dyn ThreadPool>),
}

impl Team {
    /// As [`ThreadPool::run`].
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Self::Own { pool, long } => pool.run(tasks, *long, task),
            Self::Callers(pool) => pool.run(tasks, task),
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { pool, .. } => pool.fmt(f),
            Self::Callers(pool) => pool.fmt(f),
        }
    }
}
