//! Random products of narrow types on every kernel of the CPU engine: shapes, strides, transposes,
//! batches, element types, schemes, scales, zero points and epilogues, on one thread and on two.
//!
//! `run_case` holds each to the reference, runs it twice on each of two executors, and looks at the
//! guards around C.

#[path = "support/draws.rs"]
mod draws;
mod support;

use ane_matmul::ElementType::{Bf16, F16, F32, I4, I8, I32, U4, U8};
use ane_matmul::{
    Activation, BackendId, Backends, CompileOptions, ElementType, ElementTypes, NibbleOrder, QuantA, QuantB,
    QuantOutput, Quantization, Threads,
};
use ane_matmul_conformance::{Case, Contents, Failure, Stride, run_case};
use draws::draws;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use support::{emulated, on_every_kernel_of_narrow_types, report};

type Scheme = (ElementTypes, Quantization);

fn any_of<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(values)
}

fn float() -> impl Strategy<Value = ElementType> {
    any_of(&[F32, F16, Bf16])
}

/// An integer of a type, often at an end of its range.
fn zero_point(element: ElementType) -> BoxedStrategy<i32> {
    let (low, high) = match element {
        I8 => (-128, 127),
        U8 => (0, 255),
        I4 => (-8, 7),
        U4 => (0, 15),
        _ => return Just(0).boxed(),
    };
    prop_oneof![2 => Just(0), 1 => Just(low), 1 => Just(high), 2 => low..=high].boxed()
}

/// An output and its scheme.
fn output() -> impl Strategy<Value = (ElementType, QuantOutput)> {
    any_of(&[F32, F32, F16, Bf16, I8, U8]).prop_flat_map(|element| {
        let scheme = match element {
            I8 | U8 => prop::option::weighted(0.8, zero_point(element))
                .prop_map(|zero| match zero {
                    Some(zero_point) => QuantOutput::Static { scale: 1.0, zero_point },
                    None => QuantOutput::None,
                })
                .boxed(),
            _ => Just(QuantOutput::None).boxed(),
        };
        (Just(element), scheme)
    })
}

/// 16-bit floats in any mixture.
fn floats() -> impl Strategy<Value = Scheme> {
    let operands = prop_oneof![Just((Bf16, Bf16)), (float(), float())];
    (operands, output(), float()).prop_map(|((a, b), (output, scheme), bias)| {
        let types = ElementTypes { a, b, output, bias, ..ElementTypes::F32 };
        (types, Quantization { output: scheme, ..Quantization::default() })
    })
}

fn of_columns(zero_point: i32) -> impl Strategy<Value = QuantB> {
    prop_oneof![Just(QuantB::PerTensor { zero_point }), Just(QuantB::PerColumn { zero_point })]
}

/// Sums of 8-bit integers, of which A's come as they are or are made by each run.
fn integers() -> impl Strategy<Value = Scheme> {
    let a = any_of(&[I8, U8, I8, U8, F32, F16, Bf16]).prop_flat_map(|a| {
        let scheme = match a {
            I8 | U8 => prop_oneof![
                1 => Just(QuantA::None),
                4 => zero_point(a).prop_map(|zero_point| QuantA::Static { scale: 1.0, zero_point })
            ]
            .boxed(),
            _ => Just(QuantA::DynamicPerRow).boxed(),
        };
        (Just(a), scheme)
    });
    let b = prop_oneof![1 => Just(QuantB::None), 6 => zero_point(I8).prop_flat_map(of_columns)];
    (a, b, output(), float(), float(), prop::bool::weighted(0.15)).prop_map(
        |((a, scheme_a), b, (output, scheme_c), bias, scales, sums)| {
            let types = ElementTypes { a, b: I8, accumulator: I32, output, bias, scales };
            if sums && !a.is_float() {
                return (ElementTypes { output: I32, ..types }, Quantization::default());
            }
            (types, Quantization { a: scheme_a, b, output: scheme_c, ..Quantization::default() })
        },
    )
}

/// A float A by 8 and 4-bit weights.
fn weights() -> impl Strategy<Value = Scheme> {
    let b = any_of(&[I8, U8, I4, I4, U4]).prop_flat_map(|b| {
        let scheme = zero_point(b).prop_flat_map(|zero_point| {
            let size = prop_oneof![any_of(&[16, 32, 64, 128]), 1..40u32, 40..400u32];
            prop_oneof![
                1 => Just(QuantB::None),
                2 => of_columns(zero_point),
                5 => size.prop_map(move |group_size| QuantB::PerGroup { group_size, zero_point }),
            ]
        });
        (Just(b), scheme, any_of(&[NibbleOrder::LowFirst, NibbleOrder::HighFirst]))
    });
    (float(), b, output(), float(), float()).prop_map(
        |(a, (b, scheme, nibble_order), (output, scheme_c), bias, scales)| {
            let types = ElementTypes { a, b, accumulator: F32, output, bias, scales };
            (types, Quantization { a: QuantA::None, b: scheme, output: scheme_c, nibble_order })
        },
    )
}

/// m, n, k: mostly small; one in four is worth two threads.
fn dims() -> impl Strategy<Value = [usize; 3]> {
    let size =
        || prop_oneof![4 => 1..40usize, 2 => 40..140usize, 1 => Just(1), 1 => Just(0), 1 => 140..500usize];
    let small = [size(), size(), size()]
        .prop_filter("a product of moderate size", |[m, n, k]| m * n * k <= 1_000_000);
    let large = [
        prop_oneof![Just(1), 1..20usize, 20..70usize].boxed(),
        (30..400usize).boxed(),
        (100..1200usize).boxed(),
    ]
    .prop_filter("a product for two threads", |[m, n, k]| {
        (n * k > 60_000 || m * n * k > 720_000) && m * n * k <= 3_000_000
    });
    prop_oneof![3 => small, 1 => large]
}

/// The strides of A, B, C and the residual; items of C may not overlap.
fn strides() -> impl Strategy<Value = [Stride; 4]> {
    let stride = || prop_oneof![3 => Just(Stride::Packed), 2 => (1..20usize).prop_map(Stride::Padded)];
    let input = || prop_oneof![5 => stride(), 1 => Just(Stride::Shared)].boxed();
    [input(), input(), stride().boxed(), input()]
}

fn case() -> impl Strategy<Value = Case> {
    let scheme = prop_oneof![floats(), integers(), weights()];
    let epilogue = (
        prop_oneof![2 => Just(1f32), 1 => Just(0f32), 2 => -2f32..2f32],
        any::<[bool; 2]>(),
        prop_oneof![Just(Activation::None), prop::sample::select(&Activation::ALL[..])],
    );
    let contents = prop_oneof![
        6 => Just(Contents::Normal),
        1 => any_of(&[Contents::SmallIntegers, Contents::Extremes, Contents::Lowest]),
        1 => any_of(&[Contents::Special, Contents::Tiny]),
    ];
    let batch = prop_oneof![3 => Just(1usize), 1 => 2..4usize];
    let rows = prop::option::weighted(0.15, 0..8usize);
    let forms = (any::<[bool; 2]>(), any::<bool>(), prop::option::of(any::<bool>()));
    (scheme, dims(), (batch, rows), strides(), epilogue, contents, forms).prop_map(
        |((types, quantization), [m, n, k], (batch, rows), strides, epilogue, contents, forms)| {
            let (alpha, [bias, residual], activation) = epilogue;
            let (transposes, constant, scales_of_items) = forms;
            let plain = types.output == I32;
            let of_columns = matches!(quantization.b, QuantB::PerColumn { .. } | QuantB::PerGroup { .. });
            Case {
                dims: [if m * n * k > 1_200_000 { 1 } else { batch }, m, n, k],
                transposes,
                strides,
                alpha: if plain { 1.0 } else { alpha },
                bias: bias && !plain,
                residual: residual && !plain,
                activation: if plain { Activation::None } else { activation },
                constant_b: constant || of_columns,
                rows: rows.map(|eighths| m * eighths / 7),
                contents,
                types,
                quantization,
                scales_of_items,
                bare: false,
            }
        },
    )
}

fn check(backends: &Backends, case: &Case, seed: u64) -> Result<(), TestCaseError> {
    let run = |threads| {
        let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
        run_case(backends, &BackendId::CPU, &options, case, seed).map_err(|failure| {
            let (Failure::Wrong(message) | Failure::Refused(_, message)) = failure;
            TestCaseError::fail(format!("{case}, {threads} threads: {message}"))
        })
    };
    prop_assert!(run(1)?.bits == run(2)?.bits, "{case}: other bits on two threads than on one");
    Ok(())
}

fn properties() {
    let backends = Backends::new();
    let config = if emulated() { draws(40, 40) } else { draws(50, 250) };
    let cases = config.cases;
    let mut runner = TestRunner::new(config);
    match runner.run(&(case(), any::<u64>()), |(case, seed)| check(&backends, &case, seed)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, (_, seed))) => panic!("{reason}; seed {seed}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    report(&format!("{cases} products within their bounds"));
}

#[test]
fn any_product_of_narrow_types_is_within_its_bound() {
    on_every_kernel_of_narrow_types("any_product_of_narrow_types_is_within_its_bound", properties);
}
