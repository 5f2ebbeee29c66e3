//! How integer operands stand for real numbers.

/// The quantisation of a product: `real = scale * (integer - zero_point)`.
///
/// Zero points are part of the description. Scales are data: those of a constant B come with its
/// [`crate::Weights`], others with [`crate::CompileOptions`]. `docs/quantization.md` defines the
/// arithmetic.
/// With `Quantization::default()` nothing is quantised.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum QuantA {
    /// A is not quantised.
    #[default]
    None,
    /// One scale, [`crate::CompileOptions::scale_a`].
    Static {
        /// Subtracted from A's integers.
        zero_point: i32,
    },
    /// A is float; each row is quantised to -127 to 127 with a scale of its own, a 127th of its largest
    /// magnitude, when the product runs.
    DynamicPerRow,
}

/// The scales of B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum QuantB {
    /// B is not quantised.
    #[default]
    None,
    /// One scale.
    PerTensor {
        /// Subtracted from B's integers.
        zero_point: i32,
    },
    /// One scale for each of the n columns.
    PerColumn {
        /// Subtracted from B's integers.
        zero_point: i32,
    },
    /// One scale for each column and each group of rows (along k), for weight-only quantisation.
    PerGroup {
        /// Rows of B to a scale; at least 1. The last group may be shorter.
        group_size: u32,
        /// Subtracted from B's integers.
        zero_point: i32,
    },
}

impl QuantB {
    /// The zero point, 0 where there is none.
    #[must_use]
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::None => 0,
            Self::PerTensor { zero_point }
            | Self::PerColumn { zero_point }
            | Self::PerGroup { zero_point, .. } => zero_point,
        }
    }
}

impl QuantA {
    /// The zero point, 0 where there is none.
    #[must_use]
    pub const fn zero_point(self) -> i32 {
        match self {
            Self::Static { zero_point } => zero_point,
            Self::None | Self::DynamicPerRow => 0,
        }
    }
}

/// The scale of an integer output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum QuantOutput {
    /// The output is not quantised.
    #[default]
    None,
    /// One scale, [`crate::CompileOptions::scale_c`]. Values are rounded to nearest, ties to even, and
    /// saturate; NaN becomes the zero point.
    Static {
        /// Added to the output's integers.
        zero_point: i32,
    },
}

/// Which of the two 4-bit elements of a byte comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum NibbleOrder {
    /// Element 2i in bits 0 to 3 of byte i, element 2i + 1 in bits 4 to 7.
    #[default]
    LowFirst,
    /// Element 2i in bits 4 to 7 of byte i, element 2i + 1 in bits 0 to 3.
    HighFirst,
}
