//! How integer operands stand for real numbers.

use std::hash::{Hash, Hasher};

/// The quantisation of a product: `real = scale * (integer - zero_point)`.
///
/// With `Quantization::default()` nothing is quantised. A constant B brings scheme and scales of its own:
/// they are part of its [`crate::Weights`], and replace `b` and `nibble_order`. `docs/quantization.md`
/// defines the arithmetic.
///
/// ```
/// use ane_matmul::{ElementTypes, MatMul, QuantA, QuantB, Quantization};
///
/// let quantization = Quantization {
///     a: QuantA::Static { scale: 0.02, zero_point: 3 },
///     b: QuantB::Static { scale: 0.01, zero_point: 0 },
///     ..Quantization::default()
/// };
/// let product = MatMul::builder(8, 64, 256).types(ElementTypes::INT8).quantization(quantization).build()?;
/// assert_eq!(product.quantization().a.scale(), Some(0.02));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Scales are compared and hashed by their bits. They are positive and finite, which
/// [`crate::MatMulBuilder::build`] checks, and rounded there to the description's type of scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Quantization {
    /// The scheme of A.
    pub a: QuantA,
    /// The scheme of B.
    pub b: QuantB,
    /// The scheme of the output.
    pub output: QuantOutput,
    /// The order of 4-bit elements within a byte.
    pub nibble_order: NibbleOrder,
}

/// The scales of A.
///
/// ```
/// use ane_matmul::{BackendId, ElementTypes, Inputs, MatMul, QuantA, Quantization, TensorView};
///
/// let a = QuantA::Static { scale: 0.5, zero_point: 1 };
/// let quantization = Quantization { a, ..Quantization::default() };
/// let product = MatMul::builder(1, 1, 2).types(ElementTypes::INT8).quantization(quantization).build()?;
/// let inputs = Inputs::new(&[3i8, 5]).b(TensorView::new(&[10i8, 20], 2, 1)?); // A stands for 1 and 2
/// assert_eq!(product.compile(&BackendId::CPU)?.run_to_tensor(inputs)?.data(), [50.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum QuantA {
    /// A is not quantised.
    #[default]
    None,
    /// One scale, known when the product is described.
    Static {
        /// What one step of A's integers stands for.
        scale: f32,
        /// Subtracted from A's integers.
        zero_point: i32,
    },
    /// A is float; each row is quantised to -127 to 127 with a scale of its own, a 127th of its largest
    /// magnitude, when the product runs.
    DynamicPerRow,
}

/// The scales of B.
///
/// ```
/// use ane_matmul::{QuantB, TensorView, Weights};
///
/// let integers = [1i8, -2, 3, 4, -5, 6]; // 3 x 2: a scale for each of the two columns
/// let weights = Weights::new(TensorView::new(&integers, 3, 2)?)?
///     .with_scales(QuantB::PerColumn { zero_point: 0 }, &[0.5f32, 0.25])?;
/// assert_eq!(weights.dequantize()?.data(), [0.5, -0.5, 1.5, 1.0, -2.5, 1.5]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum QuantB {
    /// B is not quantised.
    #[default]
    None,
    /// One scale, for a B that comes with every run.
    Static {
        /// What one step of B's integers stands for.
        scale: f32,
        /// Subtracted from B's integers.
        zero_point: i32,
    },
    /// Of weights: one scale.
    PerTensor {
        /// Subtracted from B's integers.
        zero_point: i32,
    },
    /// Of weights: one scale for each of the n columns.
    PerColumn {
        /// Subtracted from B's integers.
        zero_point: i32,
    },
    /// Of weights: one scale for each column and each group of rows (along k), for weight-only quantisation.
    PerGroup {
        /// Rows of B to a scale; at least 1. The last group may be shorter.
        group_size: u32,
        /// Subtracted from B's integers.
        zero_point: i32,
    },
}

/// The scale of an integer output.
///
/// ```
/// use ane_matmul::{BackendId, ElementType, ElementTypes, Inputs, MatMul, QuantOutput, Quantization};
///
/// let output = QuantOutput::Static { scale: 0.5, zero_point: 3 };
/// let product = MatMul::builder(1, 2, 1)
///     .types(ElementTypes { output: ElementType::I8, ..ElementTypes::F32 })
///     .quantization(Quantization { output, ..Quantization::default() })
///     .build()?;
/// let mut c = [0i8; 2];
/// product.compile(&BackendId::CPU)?.run(Inputs::new(&[1f32]).b(&[4f32, 100.0]), &mut c)?;
/// assert_eq!(c, [11, 127]); // 4 / 0.5 + 3, and the largest i8
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum QuantOutput {
    /// The output is not quantised.
    #[default]
    None,
    /// One scale. Values are rounded to nearest, ties to even, and saturate; NaN becomes the zero point.
    Static {
        /// What one step of C's integers stands for.
        scale: f32,
        /// Added to the output's integers.
        zero_point: i32,
    },
}

impl QuantA {
    /// The scale, where it is known when the product is described.
    #[must_use]
    pub const fn scale(self) -> Option<f32> {
        match self {
            Self::Static { scale, .. } => Some(scale),
            Self::None | Self::DynamicPerRow => None,
        }
    }

    /// The zero point, 0 where there is none.
    #[must_use]
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::Static { zero_point, .. } => zero_point,
            Self::None | Self::DynamicPerRow => 0,
        }
    }

    const fn parts(self) -> (u8, u32, i32) {
        match self {
            Self::None => (0, 0, 0),
            Self::Static { scale, zero_point } => (1, scale.to_bits(), zero_point),
            Self::DynamicPerRow => (2, 0, 0),
        }
    }
}

impl QuantB {
    /// The scale, where it is known when the product is described.
    #[must_use]
    pub const fn scale(self) -> Option<f32> {
        match self {
            Self::Static { scale, .. } => Some(scale),
            _ => None,
        }
    }

    /// The zero point, 0 where there is none.
    #[must_use]
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Static { zero_point, .. }
            | Self::PerTensor { zero_point }
            | Self::PerColumn { zero_point }
            | Self::PerGroup { zero_point, .. } => zero_point,
        }
    }

    /// Whether this is the scheme of weights: its scales are data beside the integers.
    pub(crate) const fn is_of_weights(self) -> bool {
        matches!(self, Self::PerTensor { .. } | Self::PerColumn { .. } | Self::PerGroup { .. })
    }

    const fn parts(self) -> (u8, u32, i32) {
        match self {
            Self::None => (0, 0, 0),
            Self::Static { scale, zero_point } => (1, scale.to_bits(), zero_point),
            Self::PerTensor { zero_point } => (2, 0, zero_point),
            Self::PerColumn { zero_point } => (3, 0, zero_point),
            Self::PerGroup { group_size, zero_point } => (4, group_size, zero_point),
        }
    }
}

impl QuantOutput {
    /// The scale of a quantised output.
    #[must_use]
    pub const fn scale(self) -> Option<f32> {
        match self {
            Self::Static { scale, .. } => Some(scale),
            Self::None => None,
        }
    }

    /// The zero point, 0 where there is none.
    #[must_use]
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::Static { zero_point, .. } => zero_point,
            Self::None => 0,
        }
    }

    const fn parts(self) -> (u8, u32, i32) {
        match self {
            Self::None => (0, 0, 0),
            Self::Static { scale, zero_point } => (1, scale.to_bits(), zero_point),
        }
    }
}

/// By the bits of scales: equality must hold of every value with itself, and agree with the hash.
macro_rules! compared_by_parts {
    ($($scheme:ty)*) => {$(
        impl PartialEq for $scheme {
            fn eq(&self, other: &Self) -> bool {
                self.parts() == other.parts()
            }
        }

        impl Eq for $scheme {}

        impl Hash for $scheme {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.parts().hash(state);
            }
        }
    )*};
}

compared_by_parts! { QuantA QuantB QuantOutput }

/// Which of the two 4-bit elements of a byte comes first.
///
/// ```
/// use ane_matmul::{Int4View, Layout, NibbleOrder};
///
/// let first_of_0x21 = |order| {
///     let view = Int4View::unsigned(&[0x21], Layout::packed(1, 1, 2)?, order)?;
///     Ok::<_, ane_matmul::Error>(view.get(0, 0, 0))
/// };
/// assert_eq!(first_of_0x21(NibbleOrder::LowFirst)?, Some(1));
/// assert_eq!(first_of_0x21(NibbleOrder::HighFirst)?, Some(2));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum NibbleOrder {
    /// Element 2i in bits 0 to 3 of byte i, element 2i + 1 in bits 4 to 7.
    #[default]
    LowFirst,
    /// Element 2i in bits 4 to 7 of byte i, element 2i + 1 in bits 0 to 3.
    HighFirst,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_compared_by_bits() {
        let a = |scale| QuantA::Static { scale, zero_point: 0 };
        assert_eq!(a(f32::NAN), a(f32::NAN));
        assert_ne!(a(0.0), a(-0.0));
        assert_ne!(a(1.0), QuantA::Static { scale: 1.0, zero_point: 1 });
        assert_ne!(QuantB::PerTensor { zero_point: 0 }, QuantB::PerColumn { zero_point: 0 });
        assert_ne!(
            QuantB::Static { scale: 1.0, zero_point: 0 },
            QuantB::Static { scale: 0.5, zero_point: 0 }
        );
        assert_ne!(QuantOutput::Static { scale: 1.0, zero_point: 0 }, QuantOutput::None);
    }
}
