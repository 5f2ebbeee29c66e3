//! Nobody reads what a device still writes.
use ane_matmul::{DeviceTensor, Executor, Inputs};

fn submit(executor: &mut Executor, a: &DeviceTensor, c: &mut DeviceTensor) {
    let result = executor.scope(|queue| {
        queue.submit(Inputs::new(a), &mut *c)?;
        c.download::<f32>()
    });
    result.unwrap();
}

fn main() {}
