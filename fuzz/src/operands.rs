//! Operands of every element type, exactly as long as their layouts: a sanitizer sees what lies beyond.

use ane_matmul::{ElementType, Layout, NibbleOrder};
use ane_matmul_conformance::{Guarded, normal};
use arbitrary::Arbitrary;
use fastrand::Rng;
use half::{bf16, f16};

/// What an operand holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Contents {
    /// N(0, 1); integers of the whole range.
    Normal,
    /// N(0, 1) with NaN, infinities, signed zeros, subnormals and the ends of the range strewn in.
    Special,
    /// Any bits.
    Bits,
    /// Subnormal numbers, and the smallest normal ones.
    Subnormal,
    /// The largest magnitudes.
    Huge,
    /// Integers from -4 to 4.
    SmallIntegers,
}

/// Random numbers where elements lie.
#[must_use]
pub fn random(
    element: ElementType,
    layout: Layout,
    order: NibbleOrder,
    contents: Contents,
    random: &mut Rng,
) -> Guarded {
    Guarded::input(element, layout, order, 0, |_, _, _| number(element, contents, random))
}

/// A number that the type has, or one that is rounded to it.
#[allow(clippy::cast_possible_truncation)]
fn number(element: ElementType, contents: Contents, random: &mut Rng) -> f64 {
    let bits = random.u64(..);
    let byte = integer(contents, bits) as u8;
    match element {
        ElementType::F16 => float(contents, random, element, f16::from_bits(bits as u16).to_f64()),
        ElementType::Bf16 => float(contents, random, element, bf16::from_bits(bits as u16).to_f64()),
        ElementType::I32 => f64::from(bits as i32),
        ElementType::I8 => f64::from(byte.cast_signed()),
        ElementType::U8 => f64::from(byte),
        ElementType::I4 | ElementType::U4 => f64::from(byte & 0xF),
        _ => float(contents, random, element, f64::from(f32::from_bits(bits as u32))),
    }
}

fn integer(contents: Contents, bits: u64) -> u64 {
    match contents {
        Contents::SmallIntegers => bits % 5,
        Contents::Huge => [0x7F, 0x80, 0xFF, 0][(bits % 4) as usize],
        _ => bits,
    }
}

fn float(contents: Contents, random: &mut Rng, element: ElementType, any: f64) -> f64 {
    let tiny = element.min_positive();
    match contents {
        Contents::Normal => normal(random),
        Contents::Bits => any,
        Contents::Subnormal => tiny * (normal(random) * 0.5),
        Contents::Huge => {
            element.max_finite() * (0.5 + 0.5 * (f64::from(random.u8(..100)) / 99.0)) * sign(random)
        }
        Contents::SmallIntegers => f64::from(random.i8(-4..=4)),
        Contents::Special => match random.u8(..40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => 0.0,
            4 => -0.0,
            5 => tiny * normal(random),
            6 => element.max_finite() * sign(random),
            7 => tiny,
            _ => normal(random),
        },
    }
}

fn sign(random: &mut Rng) -> f64 {
    if random.bool() { 1.0 } else { -1.0 }
}
