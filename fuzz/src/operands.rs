//! Operands of every element type, exactly as long as their layouts: a sanitizer sees what lies beyond.

use ane_matmul::{ElementType, Layout, NibbleOrder, Random};
use ane_matmul_conformance::Guarded;
use arbitrary::Arbitrary;
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
    random: &mut Random,
) -> Guarded {
    Guarded::input(element, layout, order, 0, |_, _, _| number(element, contents, random))
}

/// A number that the type has, or one that is rounded to it.
#[allow(clippy::cast_possible_truncation)]
fn number(element: ElementType, contents: Contents, random: &mut Random) -> f64 {
    let bits = random.bits();
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

fn float(contents: Contents, random: &mut Random, element: ElementType, any: f64) -> f64 {
    let tiny = element.min_positive();
    match contents {
        Contents::Normal => random.normal(),
        Contents::Bits => any,
        Contents::Subnormal => tiny * (random.normal() * 0.5),
        Contents::Huge => {
            element.max_finite() * (0.5 + 0.5 * (random.below(100) as f64 / 99.0)) * sign(random)
        }
        Contents::SmallIntegers => random.below(9) as f64 - 4.0,
        Contents::Special => match random.below(40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => 0.0,
            4 => -0.0,
            5 => tiny * random.normal(),
            6 => element.max_finite() * sign(random),
            7 => tiny,
            _ => random.normal(),
        },
    }
}

fn sign(random: &mut Random) -> f64 {
    if random.below(2) == 0 { 1.0 } else { -1.0 }
}
