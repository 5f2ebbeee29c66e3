//! The arithmetic of an interpretation.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::description::element::ElementType;
use crate::error::Result;

/// The floating-point type that every operator is computed in. An operation rounds once.
pub(crate) trait Real:
    Copy
    + Debug
    + PartialOrd
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const MINUS_INFINITY: Self;

    fn from_f64(x: f64) -> Self;
    fn from_i64(x: i64) -> Self;
    fn to_f64(self) -> f64;
    /// Towards 0, saturated; 0 for NaN.
    fn to_i64(self) -> i64;
    /// As a value of this type is stored.
    fn stored(self, element: ElementType) -> Result<Self>;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn erf(self) -> Self;
    fn erfc(self) -> Self;
    fn tanh(self) -> Self;
    fn pow(self, exponent: Self) -> Self;
    fn round_ties_even(self) -> Self;

    fn from_count(count: usize) -> Self {
        Self::from_i64(i64::try_from(count).unwrap_or(i64::MAX))
    }

    #[allow(clippy::eq_op, reason = "only NaN differs from itself")]
    fn is_nan(self) -> bool {
        self != self
    }

    /// The larger one; NaN where one is NaN.
    fn larger(self, other: Self) -> Self {
        if self.is_nan() || self > other { self } else { other }
    }

    /// The smaller one; NaN where one is NaN.
    fn smaller(self, other: Self) -> Self {
        if self.is_nan() || self < other { self } else { other }
    }
}

macro_rules! functions {
    ($rust:ty: $exp:ident $ln:ident $erf:ident $erfc:ident $tanh:ident $pow:ident) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const MINUS_INFINITY: Self = <$rust>::NEG_INFINITY;

        #[allow(clippy::cast_possible_truncation, reason = "it is to be rounded")]
        fn from_f64(x: f64) -> Self {
            x as Self
        }

        #[allow(clippy::cast_precision_loss, reason = "it is to be rounded")]
        fn from_i64(x: i64) -> Self {
            x as Self
        }

        fn to_f64(self) -> f64 {
            self.into()
        }

        #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
        fn to_i64(self) -> i64 {
            self as i64
        }

        fn abs(self) -> Self {
            <$rust>::abs(self)
        }

        fn sqrt(self) -> Self {
            <$rust>::sqrt(self)
        }

        fn exp(self) -> Self {
            libm::$exp(self)
        }

        fn ln(self) -> Self {
            libm::$ln(self)
        }

        fn erf(self) -> Self {
            libm::$erf(self)
        }

        fn erfc(self) -> Self {
            libm::$erfc(self)
        }

        fn tanh(self) -> Self {
            libm::$tanh(self)
        }

        fn pow(self, exponent: Self) -> Self {
            libm::$pow(self, exponent)
        }

        fn round_ties_even(self) -> Self {
            <$rust>::round_ties_even(self)
        }
    };
}

impl Real for f64 {
    functions! { f64: exp log erf erfc tanh pow }

    /// Without rounding.
    fn stored(self, _: ElementType) -> Result<Self> {
        Ok(self)
    }
}

impl Real for f32 {
    functions! { f32: expf logf erff erfcf tanhf powf }

    fn stored(self, element: ElementType) -> Result<Self> {
        match element {
            #[cfg(feature = "half")]
            ElementType::F16 => {
                use crate::operands::float16;
                Ok(float16::to_f32(float16::from_f32(self)))
            }
            #[cfg(feature = "half")]
            ElementType::Bf16 => Ok(half::bf16::from_f32(self).to_f32()),
            #[cfg(not(feature = "half"))]
            ElementType::F16 | ElementType::Bf16 => {
                Err(crate::error::Error::graph(format!("{element} needs the feature `half`")))
            }
            _ => Ok(self),
        }
    }
}
