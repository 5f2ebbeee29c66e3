//! A queue is gone with its scope.
use ane_matmul::{DeviceTensor, Executor, Inputs};

fn submit(executor: &mut Executor, a: &DeviceTensor, c: &mut DeviceTensor) {
    let mut kept = None;
    let result = executor.scope(|queue| {
        kept = Some(queue);
        Ok(())
    });
    result.unwrap();
    kept.unwrap().submit(Inputs::new(a), c).unwrap();
}

fn main() {}
