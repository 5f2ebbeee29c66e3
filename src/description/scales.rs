//! Scales: what one is, and how many a scheme of B has.

use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantB;
use crate::error::{Error, Result};

/// The scales that a description has; 1 where it has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scales {
    pub a: f32,
    /// Of a B that comes with every run.
    pub b: f32,
    pub c: f32,
}

impl Scales {
    pub(crate) fn of(product: &MatMul) -> Self {
        let quantization = product.quantization();
        Self {
            a: quantization.a.scale().unwrap_or(1.0),
            b: quantization.b.scale().unwrap_or(1.0),
            c: quantization.output.scale().unwrap_or(1.0),
        }
    }
}

/// A scale, rounded to its type.
///
/// # Errors
/// [`Error::Scale`] where it is not positive and finite, before or after; [`Error::Description`] for a type
/// that scales do not have.
pub(crate) fn checked(scale: f32, element: ElementType) -> Result<f32> {
    let rounded = round_to(scale, element)?;
    if is_scale(rounded) { Ok(rounded) } else { Err(Error::Scale { index: 0, value: scale, element }) }
}

pub(crate) fn is_scale(scale: f32) -> bool {
    scale.is_finite() && scale > 0.0
}

/// A scale, rounded to the nearest of its type, ties to even.
pub(crate) fn round_to(scale: f32, element: ElementType) -> Result<f32> {
    match element {
        ElementType::F32 => Ok(scale),
        #[cfg(feature = "half")]
        ElementType::F16 => Ok(crate::operands::float16::to_f32(crate::operands::float16::from_f32(scale))),
        #[cfg(feature = "half")]
        ElementType::Bf16 => Ok(half::bf16::from_f32(scale).to_f32()),
        _ => Err(Error::Description {
            problem: format!("scales of type {element}"),
            help: "use f32, or f16 and bf16 with the feature `half`",
        }),
    }
}

/// The number of scales in a matrix, as rows and columns; `None` for a scheme that is not of weights.
pub(crate) fn shape_of_b(scheme: QuantB, n: usize, k: usize) -> Option<(usize, usize)> {
    match scheme {
        QuantB::None | QuantB::Static { .. } => None,
        QuantB::PerTensor { .. } => Some((1, 1)),
        QuantB::PerColumn { .. } => Some((1, n)),
        QuantB::PerGroup { group_size, .. } => Some((k.div_ceil(group_size.max(1) as usize), n)),
    }
}
