//! What fuzzing found, each once: it must not come back. `fuzz/` has the targets.

use ane_matmul::accuracy::Reference;
use ane_matmul::{
    BackendId, CompileOptions, ElementType, ElementTypes, Error, Inputs, Layout, MatMul, Operand, QuantA,
    QuantB, Quantization, ResultChecker, SelfCheck, Tensor, Threads, Weights,
};

/// Opening an executor listed the tiles of any product that packs nothing, for centuries.
#[test]
fn an_executor_of_an_absurd_product_opens_at_once() {
    let options = CompileOptions::default().threads(Threads::ONE);
    for (m, n, k) in
        [(usize::MAX >> 8, 1, 1), (1, usize::MAX >> 8, 1), (2, usize::MAX >> 8, 1), (1, 2, usize::MAX >> 8)]
    {
        let product = MatMul::new(m, n, k).unwrap();
        let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
        // Scratch memory of that size may be refused.
        match compiled.executor() {
            Ok(_) | Err(Error::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Strides of single rows and dimensions of empty products overflowed when they were taken for bytes.
#[test]
fn figures_that_no_element_depends_on_may_be_any() {
    const HUGE: usize = usize::MAX >> 1;
    let options = CompileOptions::default().threads(Threads::ONE);
    let row = MatMul::builder(1, 200, 2).leading_dimension(Operand::A, HUGE);
    let column = MatMul::builder(2, 200, 1).transpose_a(true).leading_dimension(Operand::A, HUGE);
    let none = MatMul::builder(HUGE >> 8, 200, 2).batch(0).batch_stride(Operand::A, 0);
    // Read as it lies, with what follows some rows later asked for ahead.
    let in_place = MatMul::builder(4, 65, 1).leading_dimension(Operand::B, HUGE);
    for builder in [row, column, none, in_place] {
        for builder in [builder.clone(), builder.transpose_b(true)] {
            // The strides that follow from a description may be refused.
            let Ok(product) = builder.build() else { continue };
            let compiled = product.compile_with(&BackendId::CPU, &options).unwrap();
            assert!(matches!(compiled.executor(), Ok(_) | Err(Error::OutOfMemory { .. })), "{product}");
        }
    }
}

/// Layouts overflowed when they were shown, and when it was asked whether they are packed.
#[test]
fn layouts_of_any_size_can_be_asked_about() {
    const HUGE: usize = usize::MAX >> 1;
    let empty = Layout::strided(2, 3, 0, HUGE, 1).unwrap();
    assert_eq!(empty.to_string(), format!("2x3x0 with leading dimension {HUGE} with batch stride 1"));
    let shared = Layout::strided(HUGE, 2, 2, 2, 0).unwrap();
    assert!(!shared.is_packed());
    assert!(shared.to_string().ends_with("with batch stride 0"));
}

/// Magnitudes of 32-bit integers with zero points at the ends overflowed when they were multiplied.
#[test]
fn integers_with_zero_points_at_the_ends_cannot_be_summed() {
    use ElementType::I32;
    let build = |k| {
        MatMul::builder(1, 1, k)
            .types(ElementTypes { scales: ElementType::F32, ..ElementTypes::uniform(I32) })
            .quantization(Quantization {
                a: QuantA::Static { scale: 1.0, zero_point: i32::MAX },
                b: QuantB::Static { scale: 1.0, zero_point: i32::MAX },
                ..Quantization::default()
            })
            .build()
    };
    assert!(matches!(build(1), Err(Error::Accumulator { maximum: 0, .. })));
    assert!(build(0).is_ok());
}

/// The reference took NaN for wrong where an infinite term meets sums that overflow the other way.
#[test]
fn infinity_may_meet_an_overflow() {
    let a = Tensor::from_vec(vec![-1e30f32, -1e30, f32::INFINITY], 1, 3).unwrap();
    let b = Tensor::from_vec(vec![1e30f32, 1e30, 1.0], 3, 1).unwrap();
    let product = MatMul::new(1, 1, 3).unwrap();
    let inputs = Inputs::new(&a).b(&b);
    let judge = |inputs: &Inputs<'_>, got: f32| {
        let got = Tensor::filled(1, 1, got).unwrap();
        let reference = Reference::new(&product, inputs).unwrap().compare(&got).unwrap().is_within_bound();
        let rows = MatMul::builder(1, 1, 3).activation(ane_matmul::Activation::Relu).build().unwrap();
        let mut checker = ResultChecker::new(&rows, &SelfCheck::every_run()).unwrap();
        assert_eq!(checker.check(inputs, &got).unwrap().is_none(), reference, "{got:?}");
        reference
    };
    assert!(judge(&inputs, f32::NAN) && judge(&inputs, f32::INFINITY));
    assert!(!judge(&inputs, f32::NEG_INFINITY) && !judge(&inputs, 1.0));
    // Without an overflow NaN is as wrong as ever.
    let small = Tensor::from_vec(vec![-1f32, -1.0, 1.0], 3, 1).unwrap();
    let inputs = Inputs::new(&a).b(&small);
    assert!(judge(&inputs, f32::INFINITY) && !judge(&inputs, f32::NAN));
}

/// A time of many digits was loaded as its neighbour.
#[cfg(feature = "profile")]
#[test]
fn figures_of_a_profile_are_loaded_as_they_were_saved() {
    use ane_matmul::Profile;
    let place = tempfile::tempdir().unwrap();
    let (given, saved) = (place.path().join("given.json"), place.path().join("saved.json"));
    let machine = r#"{"chip":"c","os_build":"o","crate_version":"0.1.0","features":""}"#;
    let types = r#"{"a":"f32","b":"f32","accumulator":"f32","output":"f32","bias":"f32","scales":"f32"}"#;
    let sample = r#"{"batch":1,"m":8,"n":8,"k":8,"constant_b":false,"compile_ns":100.5,"first_run_ns":0.5,"run_ns":999900000621656243.0}"#;
    let series = format!(
        r#"{{"backend":"cpu","description":"d","types":{types},"device":"unknown","threads":1,"samples":[{sample}]}}"#
    );
    let text = format!(r#"{{"format":2,"machine":{machine},"series":[{series}],"quarantine":[]}}"#);
    std::fs::write(&given, text).unwrap();
    let profile = Profile::load(&given).unwrap();
    profile.save(&saved).unwrap();
    assert_eq!(Profile::load(&saved).unwrap(), profile);
}

/// The parser of NumPy headers took minutes for eleven nested brackets.
#[cfg(feature = "npy")]
#[test]
fn a_header_of_nested_brackets_is_refused_at_once() {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "{".repeat(11));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    let read = ane_matmul::npy::read_from(bytes.as_slice(), "nested.npy");
    assert!(read.unwrap_err().to_string().contains("nested too deeply"));
}

/// Rows without elements were walked one by one.
#[test]
fn empty_scales_are_taken_at_once() {
    let scales = Tensor::<f32>::filled(1 << 46, 0, 1.0).unwrap();
    let weights = Weights::new(&Tensor::filled(1 << 46, 0, 1i8).unwrap()).unwrap();
    let of_each_row = QuantB::PerGroup { group_size: 1, zero_point: 0 };
    assert!(weights.with_scales(of_each_row, &scales).is_ok());
}
