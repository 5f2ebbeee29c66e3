//! What is submitted in a scope outlives the scope.
use ane_matmul::{DeviceMemory, DeviceTensor, ElementType, Executor, Inputs};

fn submit(executor: &mut Executor, memory: &DeviceMemory, a: &DeviceTensor) {
    let result = executor.scope(|queue| {
        let mut c = memory.zeros(ElementType::F32, 2, 2)?;
        queue.submit(Inputs::new(a), &mut c)
    });
    result.unwrap();
}

fn main() {}
