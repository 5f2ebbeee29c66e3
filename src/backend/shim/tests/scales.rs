//! Scales reach the shim as the ABI says: elements of the description's type of scales, and null where there
//! are none.

use super::mock::{mock, with_mock};
use crate::description::element::{Element, ElementType};
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::CompileOptions;
use crate::description::quantization::{QuantA, QuantB, QuantOutput, Quantization};
use crate::error::Error;
use crate::operands::tensor::Tensor;
use crate::operands::view::TensorView;
use crate::operands::weights::Weights;

fn product(batch: usize, b: QuantB, scales: ElementType, constant_b: bool) -> MatMul {
    MatMul::builder(2, 3, 5)
        .batch(batch)
        .types(ElementTypes { output: ElementType::U8, scales, ..ElementTypes::INT8 })
        .quantization(Quantization {
            a: QuantA::Static { zero_point: 1 },
            b,
            output: QuantOutput::Static { zero_point: 2 },
            ..Quantization::default()
        })
        .constant_b(constant_b)
        .build()
        .unwrap()
}

fn weights<T: Element>(batch: usize, scales: &[T]) -> Weights {
    let b = Tensor::from_fn_batched(batch, 5, 3, |_, _, _| 1i8).unwrap();
    Weights::new(&b).unwrap().with_scales(TensorView::new(scales, 1, scales.len()).unwrap()).unwrap()
}

/// The bytes that a compilation on the mock was given, of A, B and C.
fn received(
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
) -> Result<[Option<Vec<u8>>; 3], Error> {
    let (backends, id) = with_mock(|_| {});
    backends.compile(&id, product, weights, options)?;
    Ok(mock(|mock| mock.scales.clone()))
}

fn options() -> CompileOptions {
    CompileOptions::default().scale_a(0.1).scale_c(3.0)
}

#[test]
fn every_scale_of_the_options_is_one_element_of_its_type() {
    let product = product(1, QuantB::PerTensor { zero_point: 0 }, ElementType::F32, false);
    let scales = received(&product, None, &options().scale_b(0.7)).unwrap();
    assert_eq!(scales, [0.1f32, 0.7, 3.0].map(|scale| Some(scale.to_ne_bytes().to_vec())));
}

#[cfg(feature = "half")]
#[test]
fn narrow_scales_are_rounded_to_two_bytes() {
    use half::{bf16, f16};
    let scheme = QuantB::PerTensor { zero_point: 0 };
    let options = options().scale_b(0.7);
    let scales = received(&product(1, scheme, ElementType::F16, false), None, &options).unwrap();
    assert_eq!(scales, [0.1, 0.7, 3.0].map(|scale| Some(f16::from_f32_const(scale).to_ne_bytes().to_vec())));
    let scales = received(&product(1, scheme, ElementType::Bf16, false), None, &options).unwrap();
    assert_eq!(scales, [0.1, 0.7, 3.0].map(|scale| Some(bf16::from_f32(scale).to_ne_bytes().to_vec())));

    let of_columns = [f16::from_f32_const(0.25), f16::from_f32_const(0.5), f16::from_f32_const(0.75)];
    let constant = product(1, QuantB::PerColumn { zero_point: 0 }, ElementType::F16, true);
    let [_, b, _] = received(&constant, Some(&weights(1, &of_columns)), &self::options()).unwrap();
    assert_eq!(b.unwrap(), of_columns.map(f16::to_ne_bytes).concat());
}

#[test]
fn scales_of_weights_come_with_them_for_all_items_or_for_each() {
    let bytes = |scales: &[f32]| scales.iter().flat_map(|scale| scale.to_ne_bytes()).collect::<Vec<_>>();
    let scheme = QuantB::PerColumn { zero_point: -4 };
    let constant = product(2, scheme, ElementType::F32, true);
    let shared = [0.25f32, 0.5, 0.75];
    let [a, b, c] = received(&constant, Some(&weights(2, &shared)), &options()).unwrap();
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (bytes(&[0.1]), bytes(&shared), bytes(&[3.0])));

    let each = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let b = Tensor::from_fn_batched(2, 5, 3, |_, _, _| 1i8).unwrap();
    let scales = Tensor::from_fn_batched(2, 1, 3, |item, _, col| each[item * 3 + col]).unwrap();
    let weights = Weights::new(&b).unwrap().with_scales(&scales).unwrap();
    let [_, b, _] = received(&constant, Some(&weights), &options()).unwrap();
    assert_eq!(b.unwrap(), bytes(&each));
}

#[test]
fn there_are_no_scales_without_a_scheme_and_none_go_wrong_unseen() {
    let plain = MatMul::new(2, 3, 5).unwrap();
    assert_eq!(received(&plain, None, &CompileOptions::default()).unwrap(), [None, None, None]);
    let scheme = QuantB::PerTensor { zero_point: 0 };
    let product = product(1, scheme, ElementType::F32, false);
    assert!(matches!(received(&plain, None, &options()), Err(Error::Unexpected { .. })));
    assert!(matches!(received(&product, None, &options()), Err(Error::Missing { .. })));
    let bad = options().scale_b(f32::NAN);
    assert!(matches!(received(&product, None, &bad), Err(Error::Scale { .. })));
}
