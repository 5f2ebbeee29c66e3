//! An executor moves between threads, and is not shared by them.
use ane_matmul::{Compiled, Executor, ProductCache};

fn moves<T: Send>() {}
fn is_shared<T: Sync>() {}

fn main() {
    moves::<Executor>();
    is_shared::<Compiled>();
    is_shared::<ProductCache>();
    is_shared::<Executor>();
}
