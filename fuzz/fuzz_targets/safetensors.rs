//! Whatever a safetensors file holds is weights or errors; quantising it gives a file that is read again.
#![no_main]

use ane_matmul::ElementType;
use ane_matmul::safetensors::{QuantizeOptions, SafetensorsFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As the index of shards, of which there may be one.
    let _ = SafetensorsFile::read(ane_matmul_fuzz::file("index.json", bytes));
    let path = ane_matmul_fuzz::file("in.safetensors", bytes);
    let file = SafetensorsFile::read(&path);
    assert_eq!(SafetensorsFile::read_from(bytes, "a stream").is_ok(), file.is_ok());
    let Ok(file) = file else { return };
    let names = file.names();
    for name in names.iter().chain(&file.quantized_names()) {
        if let Ok(weights) = file.weights(name) {
            assert!(weights.layout().span() <= bytes.len());
            let _ = weights.content_hash();
        }
        let _ = file.weights_f32(name);
        let _ = file.vector_f32(name);
        if let Ok(quantized) = file.quantized(name) {
            assert!(quantized.scales().is_some());
            let _ = quantized.dequantize();
        }
        if let Some(Ok(layer)) = name.strip_suffix(".weight").map(|layer| file.linear(layer)) {
            let _ = layer.build();
        }
    }
    let copy = ane_matmul_fuzz::place().join("out.safetensors");
    for (element, transpose) in [(ElementType::I8, true), (ElementType::I4, false)] {
        let mut options = QuantizeOptions::new(element);
        (options.group_size, options.transpose_b) = (3, transpose);
        let mut told = 0;
        match file.quantize(&options, &copy, |_, _| told += 1) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(()) => {
                assert_eq!(told, names.len());
                let again = SafetensorsFile::read(&copy).expect("what was written is read");
                for name in again.quantized_names() {
                    again.quantized(&name).expect("what was quantised is read");
                }
            }
        }
    }
});
