//! A pool outlives what it lends.
use ane_matmul::{Compiled, PooledExecutor};

fn lend(compiled: &Compiled) -> PooledExecutor<'_> {
    let pool = compiled.pool(1).unwrap();
    pool.get().unwrap()
}

fn main() {}
