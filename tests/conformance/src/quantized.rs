//! Quantised products: every type and scheme on the shapes, strides and epilogues of the float cases.

use ane_matmul::ElementType::{Bf16, F16, F32, I4, I8, I32, U4, U8};
use ane_matmul::{ElementType, ElementTypes, NibbleOrder, QuantA, QuantB, QuantOutput, Quantization};

use crate::cases::{Case, Contents, Scale, Stride, cases};

/// Element types with a scheme that belongs to them, whose scales are drawn when a case runs.
type Scheme = (ElementTypes, Quantization);

const NONE: Quantization = Quantization {
    a: QuantA::None,
    b: QuantB::None,
    output: QuantOutput::None,
    nibble_order: NibbleOrder::LowFirst,
};

const fn types(a: ElementType, b: ElementType, output: ElementType, scales: ElementType) -> ElementTypes {
    let accumulator = if a.is_float() { F32 } else { I32 };
    ElementTypes { a, b, accumulator, output, bias: F32, scales }
}

const fn static_a(zero_point: i32) -> QuantA {
    QuantA::Static { scale: 1.0, zero_point }
}

const fn group(group_size: u32, zero_point: i32) -> QuantB {
    QuantB::PerGroup { group_size, zero_point }
}

const fn scheme(a: QuantA, b: QuantB, output: Option<i32>) -> Quantization {
    let output = match output {
        Some(zero_point) => QuantOutput::Static { scale: 1.0, zero_point },
        None => QuantOutput::None,
    };
    Quantization { a, b, output, ..NONE }
}

/// A sum of integers of a float A that is quantised by each run.
const fn dynamic(a: ElementType, output: ElementType) -> ElementTypes {
    ElementTypes { accumulator: I32, ..types(a, I8, output, F32) }
}

/// Every scheme that the CPU backend runs, with zero points at the ends of their types.
const INTEGER: [Scheme; 13] = [
    (types(I8, I8, F32, F32), scheme(static_a(0), QuantB::PerTensor { zero_point: 0 }, None)),
    (types(U8, I8, F32, F32), scheme(static_a(255), QuantB::PerColumn { zero_point: 0 }, None)),
    (types(I8, I8, I8, F32), scheme(static_a(-128), QuantB::PerColumn { zero_point: 127 }, Some(5))),
    (types(U8, I8, U8, F32), scheme(static_a(128), QuantB::PerTensor { zero_point: -128 }, Some(255))),
    (types(I8, I8, I8, F16), scheme(static_a(127), QuantB::PerTensor { zero_point: 0 }, Some(-128))),
    (types(U8, I8, U8, Bf16), scheme(static_a(0), QuantB::PerColumn { zero_point: -1 }, Some(0))),
    (types(I8, I8, I32, F32), NONE),
    (types(U8, I8, I32, F32), NONE),
    (types(I8, I8, Bf16, F32), scheme(static_a(3), QuantB::None, None)),
    (dynamic(F32, F32), scheme(QuantA::DynamicPerRow, QuantB::PerColumn { zero_point: 0 }, None)),
    (dynamic(F32, F32), scheme(QuantA::DynamicPerRow, QuantB::PerTensor { zero_point: 0 }, None)),
    (dynamic(Bf16, Bf16), scheme(QuantA::DynamicPerRow, QuantB::PerTensor { zero_point: 3 }, None)),
    (dynamic(F16, I8), scheme(QuantA::DynamicPerRow, QuantB::PerColumn { zero_point: 0 }, Some(1))),
];

const HIGH_FIRST: Quantization =
    Quantization { nibble_order: NibbleOrder::HighFirst, ..scheme(QuantA::None, group(32, 0), None) };

const WEIGHT_ONLY: [Scheme; 11] = [
    (types(F32, I8, F32, F16), scheme(QuantA::None, group(128, 0), None)),
    (types(F32, I4, F32, F16), scheme(QuantA::None, group(128, 0), None)),
    (types(Bf16, I4, F32, F16), HIGH_FIRST),
    (types(Bf16, I8, Bf16, F16), scheme(QuantA::None, group(128, 0), None)),
    (types(F32, U4, F32, F32), scheme(QuantA::None, group(7, 8), None)),
    (types(F16, U8, F16, Bf16), scheme(QuantA::None, QuantB::PerColumn { zero_point: 128 }, None)),
    (types(F32, I8, F32, F32), scheme(QuantA::None, QuantB::PerTensor { zero_point: -128 }, None)),
    (types(Bf16, U4, Bf16, F16), scheme(QuantA::None, group(64, 15), None)),
    (types(F32, I4, I8, F16), scheme(QuantA::None, group(128, 0), Some(-3))),
    (types(F32, I4, F32, F16), scheme(QuantA::None, group(1, 0), None)),
    (types(F32, I4, F32, F32), NONE),
];

/// Every scheme, and 16-bit floats.
pub fn narrow_types() -> impl Iterator<Item = (ElementTypes, Quantization)> {
    let floats = [
        ElementTypes::F16,
        ElementTypes::BF16,
        ElementTypes { output: Bf16, bias: Bf16, ..ElementTypes::BF16 },
        ElementTypes { b: F16, ..ElementTypes::BF16 },
    ];
    floats.into_iter().map(|types| (types, NONE)).chain(INTEGER).chain(WEIGHT_ONLY)
}

/// Every narrow type and scheme on products that are worth two threads, of many columns and of many rows,
/// with constant B and a whole epilogue.
#[must_use]
pub fn shared_cases() -> Vec<Case> {
    let shapes = [(3, 611, 430), (150, 70, 129)];
    let base = shapes.map(|(m, n, k)| Case {
        constant_b: true,
        alpha: 0.75,
        bias: true,
        residual: true,
        strides: [Stride::Padded(1), Stride::Packed, Stride::Padded(3), Stride::Padded(2)],
        ..Case::new(m, n, k)
    });
    narrow_types().flat_map(|scheme| base.clone().map(|case| apply(&case, &scheme))).collect()
}

/// Integer products: of i8, u8 and float A, with every kind of scale and output.
#[must_use]
pub fn integer_cases(scale: Scale) -> Vec<Case> {
    let mut quantized = with_schemes(scale, &INTEGER);
    if scale == Scale::Full {
        limits(&mut quantized);
    }
    quantized
}

/// Products of a float A with 8 and 4-bit weights.
#[must_use]
pub fn weight_only_cases(scale: Scale) -> Vec<Case> {
    with_schemes(scale, &WEIGHT_ONLY)
}

/// A case in other types, without what they do not take.
fn apply(case: &Case, &(types, quantization): &Scheme) -> Case {
    let mut case = case.clone();
    (case.types, case.quantization) = (types, quantization);
    if matches!(quantization.b, QuantB::PerColumn { .. } | QuantB::PerGroup { .. }) {
        case.constant_b = true;
    }
    if types.output == I32 {
        (case.bias, case.residual, case.alpha) = (false, false, 1.0);
        case.activation = ane_matmul::Activation::None;
    }
    case
}

/// Every scheme on some shapes, and on every float case one after the other.
fn with_schemes(scale: Scale, schemes: &[Scheme]) -> Vec<Case> {
    let base = cases(scale);
    let mut quantized = Vec::new();
    for (case, scheme) in base.iter().zip(schemes.iter().cycle()) {
        if !matches!(case.contents, Contents::Tiny | Contents::Origin) {
            quantized.push(apply(case, scheme));
        }
    }
    for (m, n, k) in [(1, 33, 257), (5, 70, 129), (17, 16, 128), (33, 65, 300)] {
        for scheme in schemes {
            for bits in 0..8 {
                let mut case = Case::new(m, n, k);
                case.constant_b = bits & 1 != 0;
                (case.bias, case.transposes) = (bits & 1 == 0, [bits & 4 != 0, bits & 2 != 0]);
                case.contents = if bits == 3 { Contents::Extremes } else { Contents::Normal };
                quantized.push(apply(&case, scheme));
            }
        }
    }
    // One in seven is enough for interpreters, and meets every scheme.
    if scale == Scale::Tiny {
        quantized.into_iter().filter(|case| case.dims[3] <= 129).step_by(7).collect()
    } else {
        quantized
    }
}

/// Sums that reach the ends of the accumulator, at the largest k.
fn limits(quantized: &mut Vec<Case>) {
    let ends = scheme(static_a(-128), QuantB::PerTensor { zero_point: 127 }, None);
    for (types, quantization, k) in [
        (types(I8, I8, I32, F32), NONE, 131_071),
        (types(U8, I8, I32, F32), NONE, 65_793),
        (types(I8, I8, F32, F32), ends, 33_025),
        (
            dynamic(F32, F32),
            scheme(QuantA::DynamicPerRow, QuantB::PerTensor { zero_point: 0 }, None),
            132_104,
        ),
    ] {
        for contents in [Contents::Extremes, Contents::Lowest, Contents::Normal] {
            for (m, n) in [(1, 5), (3, 33)] {
                for constant_b in [false, true] {
                    let mut case = Case::new(m, n, k);
                    (case.types, case.quantization, case.contents) = (types, quantization, contents);
                    case.constant_b = constant_b;
                    quantized.push(case);
                }
            }
        }
    }
}
