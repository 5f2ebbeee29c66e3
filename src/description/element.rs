//! Element types, and the trait that ties a Rust type to one.

use std::fmt;

use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};

/// The type of a matrix element.
///
/// All of them can be described; a backend refuses the combinations that it does not run
/// ([`crate::RefusalReason::ElementType`]).
///
/// ```
/// use ane_matmul::{ElementType, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::zeros(3, 5)?);
/// assert_eq!(weights.element_type(), ElementType::F32);
/// assert_eq!(ElementType::I4.bytes(3 * 5), Some(8)); // half of 15, rounded up
/// assert_eq!(ElementType::F16.max_finite(), 65504.0);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ElementType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper 16 bits of a binary32.
    Bf16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 4-bit integer, two to a byte in the description's [`crate::NibbleOrder`].
    I4,
    /// Unsigned 4-bit integer, two to a byte in the description's [`crate::NibbleOrder`].
    U4,
    /// Signed 64-bit integer, in graphs alone.
    I64,
    /// A byte that is 0 or 1, in graphs alone.
    Bool,
}

impl ElementType {
    /// Every type.
    pub const ALL: [Self; 11] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I32,
        Self::I8,
        Self::U8,
        Self::I4,
        Self::U4,
        Self::I64,
        Self::Bool,
    ];

    /// The size of one element in bits.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 64,
            Self::F32 | Self::I32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::I4 | Self::U4 => 4,
        }
    }

    /// The bytes that `count` elements take, or `None` on overflow; 4-bit types round up.
    #[must_use]
    pub const fn bytes(self, count: usize) -> Option<usize> {
        match self {
            Self::I4 | Self::U4 => Some(count.div_ceil(2)),
            _ => count.checked_mul(self.bits() / 8),
        }
    }

    /// Whether this is a floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The least and the largest integer of a type of up to 32 bits; `None` for others.
    pub(crate) const fn integer_range(self) -> Option<(i64, i64)> {
        match self {
            Self::I32 => Some((i32::MIN as i64, i32::MAX as i64)),
            Self::I8 => Some((-128, 127)),
            Self::U8 => Some((0, 255)),
            Self::I4 => Some((-8, 7)),
            Self::U4 => Some((0, 15)),
            _ => None,
        }
    }

    /// The unit roundoff of a floating-point type (half the distance from 1 to the next number);
    /// 0 for integers.
    ///
    /// Source: Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., table 2.1.
    #[must_use]
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON / 2.0,
            Self::F32 => f64::from(f32::EPSILON) / 2.0,
            Self::F16 => 1.0 / 2048.0,
            Self::Bf16 => 1.0 / 256.0,
            _ => 0.0,
        }
    }

    /// The largest finite value of the type.
    #[must_use]
    pub fn max_finite(self) -> f64 {
        match self {
            Self::F64 => f64::MAX,
            Self::F32 => f64::from(f32::MAX),
            Self::F16 => 65504.0,
            Self::Bf16 => f64::from(f32::from_bits(0x7F7F_0000)),
            Self::I32 => f64::from(i32::MAX),
            Self::I8 => 127.0,
            Self::U8 => 255.0,
            Self::I4 => 7.0,
            Self::U4 => 15.0,
            #[allow(clippy::cast_precision_loss, reason = "the nearest f64")]
            Self::I64 => i64::MAX as f64,
            Self::Bool => 1.0,
        }
    }

    /// The smallest positive normal value of a floating-point type; 0 for integers.
    #[must_use]
    pub fn min_positive(self) -> f64 {
        match self {
            Self::F64 => f64::MIN_POSITIVE,
            Self::F32 | Self::Bf16 => f64::from(f32::MIN_POSITIVE),
            Self::F16 => 1.0 / 16384.0,
            _ => 0.0,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I4 => "i4",
            Self::U4 => "u4",
            Self::I64 => "i64",
            Self::Bool => "bool",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that matrices can hold.
///
/// Implemented for `f64`, `f32`, `i32`, `i8`, `u8`, and with the feature `half` for `half::f16`
/// and `half::bf16`. It cannot be implemented outside this crate.
///
/// ```
/// use ane_matmul::{Element, ElementType, Tensor};
///
/// fn sum<T: Element>(matrix: &Tensor<T>) -> f64 {
///     matrix.data().iter().map(|element| element.to_f64()).sum()
/// }
/// assert_eq!(sum(&Tensor::filled(2, 3, 4i8)?), 24.0);
/// assert_eq!(i8::TYPE, ElementType::I8);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The element type that this Rust type stands for.
    const TYPE: ElementType;

    /// The value as `f64`; exact for every type here.
    fn to_f64(self) -> f64;

    #[doc(hidden)]
    fn any_view(view: TensorView<'_, Self>) -> AnyView<'_>;

    #[doc(hidden)]
    fn any_view_mut(view: TensorViewMut<'_, Self>) -> AnyViewMut<'_>;
}

macro_rules! element {
    ($($rust:ty => $variant:ident, |$x:ident| $to_f64:expr;)*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$variant;
            fn to_f64(self) -> f64 {
                let $x = self;
                $to_f64
            }
            #[inline]
            fn any_view(view: TensorView<'_, Self>) -> AnyView<'_> {
                AnyView::$variant(view)
            }
            #[inline]
            fn any_view_mut(view: TensorViewMut<'_, Self>) -> AnyViewMut<'_> {
                AnyViewMut::$variant(view)
            }
        }
    )*};
}

element! {
    f64 => F64, |x| x;
    f32 => F32, |x| f64::from(x);
    i32 => I32, |x| f64::from(x);
    i8 => I8, |x| f64::from(x);
    u8 => U8, |x| f64::from(x);
}

#[cfg(feature = "half")]
element! {
    half::f16 => F16, |x| crate::operands::float16::to_f64(x);
    half::bf16 => Bf16, |x| x.to_f64();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bit_types_round_up_to_bytes() {
        assert_eq!(ElementType::I4.bytes(5), Some(3));
        assert_eq!(ElementType::U4.bytes(0), Some(0));
        assert_eq!(ElementType::F64.bytes(usize::MAX / 4), None);
    }

    #[test]
    fn roundoff_is_half_an_epsilon() {
        assert_eq!(ElementType::F32.unit_roundoff() * 2.0, f64::from(f32::EPSILON));
        assert_eq!(ElementType::F64.unit_roundoff() * 2.0, f64::EPSILON);
    }

    #[test]
    fn types_have_the_figures_of_their_formats() {
        let figures = |element: ElementType| (element.unit_roundoff(), element.min_positive());
        assert_eq!(figures(ElementType::F64), (f64::EPSILON / 2.0, f64::MIN_POSITIVE));
        assert_eq!(figures(ElementType::F32), (f64::from(f32::EPSILON) / 2.0, f64::from(f32::MIN_POSITIVE)));
        assert_eq!(figures(ElementType::F16), (1.0 / 2048.0, 1.0 / 16384.0));
        assert_eq!(figures(ElementType::Bf16), (1.0 / 256.0, f64::from(f32::MIN_POSITIVE)));
        assert_eq!(figures(ElementType::I8), (0.0, 0.0));
    }
}
