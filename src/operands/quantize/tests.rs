//! What comes back of quantised weights, and what cannot be quantised.

use super::*;

const SCHEMES: [QuantB; 5] = [
    QuantB::PerTensor { zero_point: 0 },
    QuantB::PerColumn { zero_point: 1 },
    QuantB::PerGroup { group_size: 128, zero_point: 0 },
    QuantB::PerGroup { group_size: 32, zero_point: 3 },
    QuantB::PerGroup { group_size: 7, zero_point: 0 },
];

fn types() -> Vec<ElementType> {
    let mut types = vec![ElementType::F32];
    if cfg!(feature = "half") {
        types.extend([ElementType::F16, ElementType::Bf16]);
    }
    types
}

#[test]
fn every_element_comes_back_within_half_its_scale() {
    let b = Tensor::from_fn_batched(2, 130, 9, |item, row, col| {
        let x = Tensor::random_normal_f32(1, 1, 1.0, (item * 7919 + row * 31 + col) as u64).unwrap();
        x.data()[0] * 0.01 * (1 + col) as f32
    })
    .unwrap();
    for element in [ElementType::I8, ElementType::U8, ElementType::I4, ElementType::U4] {
        for scheme in SCHEMES.map(|scheme| signed_middle(scheme, element)) {
            for scales in types() {
                for transpose in [false, true] {
                    let order = if transpose { NibbleOrder::HighFirst } else { NibbleOrder::LowFirst };
                    let how = WeightScheme { element, scheme, scales, nibble_order: order };
                    check(&b, transpose, &how);
                }
            }
        }
    }
}

/// Unsigned integers need a zero point inside their range.
fn signed_middle(scheme: QuantB, element: ElementType) -> QuantB {
    let middle = match element {
        ElementType::U8 => 128,
        ElementType::U4 => 8,
        _ => 0,
    };
    match scheme {
        QuantB::PerTensor { zero_point } => QuantB::PerTensor { zero_point: zero_point + middle },
        QuantB::PerColumn { zero_point } => QuantB::PerColumn { zero_point: zero_point + middle },
        QuantB::PerGroup { group_size, zero_point } => {
            QuantB::PerGroup { group_size, zero_point: zero_point + middle }
        }
        other => other,
    }
}

fn quantize(b: &Tensor<f32>, how: &WeightScheme) -> Result<(Weights, QuantizationError)> {
    Weights::new(b)?.quantize(how)
}

fn check(b: &Tensor<f32>, transpose: bool, how: &WeightScheme) {
    let stored = Weights::new(b).unwrap();
    let original = if transpose { stored.transposed().unwrap() } else { stored };
    let (weights, error) = original.quantize(how).unwrap();
    assert_eq!((weights.scheme(), weights.is_transposed()), (how.scheme, transpose));
    let back = weights.dequantize().unwrap();
    let groups = Groups::new(&weights, how.scheme).unwrap();
    let scales = weights.scales().unwrap();
    assert_eq!(scales.element_type(), how.scales);
    let (mut max, mut sum, mut squares) = (0f64, 0f64, 0f64);
    for ((x, y), (item, row, col)) in b.data().iter().zip(back.data()).zip(weights.layout().elements()) {
        let (group, column) = groups.place(row, col);
        let scale = scales.get(item, group, column).unwrap();
        let off = (f64::from(*x) - f64::from(*y)).abs();
        assert!(off <= scale / 2.0 * (1.0 + 2f64.powi(-16)), "{how:?}: {x} became {y}, scale {scale}");
        max = max.max(off);
        sum += off * off;
        squares += f64::from(*x) * f64::from(*x);
    }
    let root_mean = |sum: f64| (sum / b.data().len() as f64).sqrt();
    let rms = root_mean(sum);
    assert!((error.rms - root_mean(squares)).abs() <= 1e-7, "{how:?}");
    assert!((error.max_abs_error - max).abs() <= 1e-7 && (error.rms_error - rms).abs() <= 1e-7, "{how:?}");
    assert!(error.rms_error > 0.0 && error.rms_error <= error.max_abs_error);
}

#[test]
fn a_batch_that_shares_one_matrix_is_quantised_as_that() {
    let b = Tensor::random_normal_f32(6, 5, 1.0, 3).unwrap();
    let shared = Layout::strided(4, 6, 5, 5, 0).unwrap();
    for how in [WeightScheme::INT8, WeightScheme::INT4] {
        let weights = Weights::new(TensorView::with_layout(b.data(), shared).unwrap()).unwrap();
        let ((batch, of_batch), (one, of_one)) =
            (weights.quantize(&how).unwrap(), quantize(&b, &how).unwrap());
        assert_eq!((batch.layout().batch(), batch.layout().batch_stride(), of_batch), (4, 0, of_one));
        assert_eq!(batch.view().memory().1, one.view().memory().1);
        assert_eq!(batch.scales().unwrap().layout(), one.scales().unwrap().layout());
        let items = batch.dequantize().unwrap();
        assert!(items.data().chunks(30).all(|item| item == one.dequantize().unwrap().data()));
    }
}

#[test]
fn zeros_stay_zeros_and_bad_weights_are_errors() {
    let zeros = Tensor::<f32>::zeros(5, 3).unwrap();
    let (weights, error) = quantize(&zeros, &WeightScheme::INT4).unwrap();
    assert_eq!(weights.dequantize().unwrap(), zeros);
    assert_eq!((error.max_abs_error, error.rms_error, error.max_scale), (0.0, 0.0, 1.0));
    for bad in [f32::NAN, f32::INFINITY] {
        let b = Tensor::filled(2, 2, bad).unwrap();
        let message = quantize(&b, &WeightScheme::INT8).unwrap_err().to_string();
        assert!(message.contains("row 0, column 0"), "{message}");
    }
    let negative = Tensor::filled(2, 2, -1f32).unwrap();
    let unsigned = WeightScheme { element: ElementType::U8, ..WeightScheme::INT8 };
    assert!(quantize(&negative, &unsigned).unwrap_err().to_string().contains("no integer"));
    let float = WeightScheme { element: ElementType::F32, ..WeightScheme::INT8 };
    assert!(quantize(&negative, &float).is_err());
    assert!(quantize(&negative, &WeightScheme::INT8.with_scheme(QuantB::None)).is_err());
    let none = QuantB::PerGroup { group_size: 0, zero_point: 0 };
    assert!(quantize(&negative, &WeightScheme::INT8.with_scheme(none)).is_err());
    assert!(quantize(&Tensor::zeros(0, 0).unwrap(), &WeightScheme::INT8).is_ok());
}

#[cfg(feature = "safetensors")]
#[test]
fn what_is_representable_is_what_can_be_quantised() {
    let limit = half::f16::MAX.to_f32_const();
    let off_centre = WeightScheme {
        element: ElementType::U8,
        ..WeightScheme::INT8.with_scheme(QuantB::PerTensor { zero_point: 100 })
    };
    let f32_scales = WeightScheme::INT4.with_scales(ElementType::F32);
    for scheme in [WeightScheme::INT8, WeightScheme::INT4, f32_scales, off_centre] {
        let zero = f64::from(scheme.scheme.zero_point());
        let (first, last) = scheme.range().map(|(first, last)| (first - zero, last - zero)).unwrap();
        let mut both = [false; 2];
        #[allow(clippy::cast_possible_truncation, reason = "small numbers")]
        let ends = [limit * last as f32, limit * first as f32];
        for x in ends.into_iter().flat_map(|x| [x, x.next_up(), x.next_down(), x / 2.0]).chain([
            0.0,
            -0.0,
            1e-40,
            -1e-9,
            f32::MAX,
            f32::MIN,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ]) {
            let b = Tensor::from_fn(3, 4, |row, col| if (row, col) == (1, 2) { x } else { 0.5 }).unwrap();
            let can = quantize(&b, &scheme).is_ok();
            assert_eq!(representable(&(&b).into(), &scheme).unwrap(), can, "{scheme:?}: {x}");
            both[usize::from(can)] = true;
        }
        assert_eq!(both, [true; 2]);
    }
}

#[cfg(feature = "half")]
#[test]
fn scales_are_rounded_up_and_those_beyond_f16_are_errors() {
    for x in [1e-9, 6e-8, 6.1e-5, 0.001_234_567, 1.0, 1.000_01, 65503.0] {
        let scale = f64::from(round_up(x, ElementType::F16).unwrap());
        let below = half::f16::from_bits(half::f16::from_f64_const(scale).to_bits() - 1).to_f64_const();
        assert!(scale >= x && below < x, "{x}: {scale}");
    }
    let large = Tensor::filled(2, 2, 1e9f32).unwrap();
    assert!(matches!(quantize(&large, &WeightScheme::INT8), Err(Error::Scale { .. })));
    assert!(quantize(&large, &WeightScheme::INT8.with_scales(ElementType::F32)).is_ok());
}

#[test]
fn scales_of_f32_are_the_smallest_that_suffice() {
    for x in [0.1, 1.0, 1.0 + 1e-9, 1.0 - 1e-9, 3e38] {
        let scale = round_up(x, ElementType::F32).unwrap();
        assert!(f64::from(scale) >= x && f64::from(scale.next_down()) < x, "{x}: {scale}");
    }
}

#[test]
fn columns_and_groups_have_scales_of_their_own() {
    let b = Tensor::from_fn(8, 3, |row, col| if row < 4 { (1 + col) as f32 } else { 10.0 }).unwrap();
    let scales = |scheme| quantize(&b, &WeightScheme::INT8.with_scheme(scheme)).unwrap().0;
    let groups = QuantB::PerGroup { group_size: 4, zero_point: 0 };
    let weights = scales(groups);
    let by_group = weights.scales().unwrap();
    for (group, col, largest) in [(0, 0, 1.0), (0, 2, 3.0), (1, 0, 10.0), (1, 2, 10.0)] {
        let scale = by_group.get(0, group, col).unwrap();
        assert!((scale * 127.0 / largest - 1.0).abs() < 1e-3, "{group} {col}: {scale}");
    }
}
