//! Whatever a NumPy file holds is a tensor or an error; what is read is written and read again.
#![no_main]

use ane_matmul::npy::{self, NpyTensor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = ane_matmul_fuzz::file("in.npy", bytes);
    let _ = npy::read_vector(&path);
    let tensor = npy::read(&path);
    assert_eq!(npy::read_from(bytes, "a stream").is_ok(), tensor.is_ok());
    let Ok(tensor) = tensor else { return };
    let (size, count) = match &tensor {
        NpyTensor::F32(tensor) => (4, tensor.data().len()),
        NpyTensor::F64(tensor) => (8, tensor.data().len()),
        _ => unreachable!("another type was read"),
    };
    assert!(size * count < bytes.len(), "more elements than bytes");
    let copy = ane_matmul_fuzz::place().join("out.npy");
    match &tensor {
        NpyTensor::F32(tensor) => npy::write(&copy, tensor),
        NpyTensor::F64(tensor) => npy::write(&copy, tensor),
        _ => unreachable!("another type was read"),
    }
    .expect("a tensor is written");
    let again = npy::read(&copy).expect("what was written is read");
    let bits = |tensor: NpyTensor| -> Vec<u64> {
        let batched = tensor.is_batched();
        let view = tensor.view();
        let layout = view.layout();
        let mut bits =
            vec![u64::from(batched), layout.batch() as u64, layout.rows() as u64, layout.cols() as u64];
        match &tensor {
            NpyTensor::F32(tensor) => bits.extend(tensor.data().iter().map(|x| u64::from(x.to_bits()))),
            NpyTensor::F64(tensor) => bits.extend(tensor.data().iter().map(|x| x.to_bits())),
            _ => {}
        }
        bits
    };
    assert_eq!(bits(tensor), bits(again));
});
