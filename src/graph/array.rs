//! Elements of any rank on the host: constants, inputs and outputs of graphs.

use std::fmt;

use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::shape::{Shape, TensorType};
#[cfg(feature = "half")]
use crate::operands::float16;
use crate::random::Random;

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that an [`Array`] can hold: `f64`, `f32`, `i64`, `i32`, `i8`, `u8`, `bool`, and with the feature `half`
/// `half::f16` and `half::bf16`.
///
/// It cannot be implemented outside this crate. [`Array`] has an example.
pub trait ArrayElement:
    sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The element type that this Rust type stands for.
    const TYPE: ElementType;

    #[doc(hidden)]
    fn into_elements(data: Vec<Self>) -> Elements;
    #[doc(hidden)]
    fn of(elements: &Elements) -> Option<&[Self]>;
    #[doc(hidden)]
    fn of_mut(elements: &mut Elements) -> Option<&mut [Self]>;
}

/// Packed, row-major elements of any rank on the host.
///
/// ```
/// use ane_matmul::ElementType;
/// use ane_matmul::graph::Array;
///
/// let ids = Array::new(&[2, 3], vec![101i64, 7592, 102, 101, 2088, 102])?;
/// assert_eq!(ids.tensor_type().to_string(), "i64[2, 3]");
/// assert_eq!(ids.data::<i64>().expect("they are i64")[1], 7592);
/// assert!(ids.data::<f32>().is_none());
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Array {
    tensor_type: TensorType,
    elements: Elements,
}

macro_rules! elements {
    ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
        /// The elements of an [`Array`], which has an example.
        #[doc(hidden)]
        #[derive(Clone, PartialEq, Debug)]
        pub enum Elements {
            $($(#[$meta])* $variant(Vec<$rust>),)*
        }

        $(
            $(#[$meta])*
            impl sealed::Sealed for $rust {}
            $(#[$meta])*
            impl ArrayElement for $rust {
                const TYPE: ElementType = ElementType::$variant;

                fn into_elements(data: Vec<Self>) -> Elements {
                    Elements::$variant(data)
                }

                fn of(elements: &Elements) -> Option<&[Self]> {
                    match elements {
                        Elements::$variant(data) => Some(data),
                        _ => None,
                    }
                }

                fn of_mut(elements: &mut Elements) -> Option<&mut [Self]> {
                    match elements {
                        Elements::$variant(data) => Some(data),
                        _ => None,
                    }
                }
            }
        )*

        impl Elements {
            /// Where the elements lie.
            pub(crate) fn start(&self) -> *const u8 {
                match self {
                    $($(#[$meta])* Self::$variant(data) => data.as_ptr().cast(),)*
                }
            }

            /// Where the elements lie, to write to.
            pub(crate) fn start_mut(&mut self) -> *mut u8 {
                match self {
                    $($(#[$meta])* Self::$variant(data) => data.as_mut_ptr().cast(),)*
                }
            }
        }

        impl Array {
            /// Zeros of a type; `false` of booleans.
            ///
            /// # Errors
            /// [`Error::OutOfMemory`]; [`Error::Graph`] for 4-bit elements, which are weights, and for 16-bit ones
            /// without the feature `half`.
            pub fn zeros(tensor_type: TensorType) -> Result<Self> {
                const WHAT: &str = "an array";
                let count = tensor_type.shape.count();
                let elements = match tensor_type.element {
                    $($(#[$meta])* ElementType::$variant => {
                        Elements::$variant(alloc::filled(count, <$rust>::default(), WHAT)?)
                    })*
                    element => return Err(Error::graph(format!("there are no arrays of {element}"))),
                };
                Ok(Self { tensor_type, elements })
            }

            /// The elements from `start` on, in another shape.
            pub(crate) fn part(&self, start: usize, shape: Shape) -> Result<Self> {
                let elements = match &self.elements {
                    $($(#[$meta])* Elements::$variant(data) => {
                        let part = &data[start..start + shape.count()];
                        Elements::$variant(alloc::copied(part, "a part of an array")?)
                    })*
                };
                Ok(Self { tensor_type: TensorType::new(self.tensor_type.element, shape), elements })
            }

            /// Takes over the elements of an array of the same type as the first ones; the others are set to 0.
            pub(crate) fn start_with(&mut self, other: &Self) {
                match (&mut self.elements, &other.elements) {
                    $($(#[$meta])* (Elements::$variant(to), Elements::$variant(from)) => {
                        let (start, rest) = to.split_at_mut(from.len());
                        start.copy_from_slice(from);
                        rest.fill(<$rust>::default());
                    })*
                    _ => debug_assert!(false, "arrays of one type"),
                }
            }
        }
    };
}

elements! {
    F64: f64,
    F32: f32,
    #[cfg(feature = "half")]
    F16: half::f16,
    #[cfg(feature = "half")]
    Bf16: half::bf16,
    I64: i64,
    I32: i32,
    I8: i8,
    U8: u8,
    Bool: bool,
}

impl Array {
    /// An array of these dimensions, of the elements in row-major order.
    ///
    /// # Errors
    /// [`Error::DataLength`] where there are not as many as the dimensions say; as [`Shape::new`].
    pub fn new<T: ArrayElement>(dims: &[usize], data: Vec<T>) -> Result<Self> {
        let tensor_type = TensorType::new(T::TYPE, Shape::new(dims)?);
        let expected = tensor_type.shape.count();
        if data.len() != expected {
            return Err(Error::DataLength { layout: tensor_type.to_string(), expected, got: data.len() });
        }
        Ok(Self { tensor_type, elements: T::into_elements(data) })
    }

    /// A single element, without dimensions.
    #[must_use]
    pub fn scalar<T: ArrayElement>(element: T) -> Self {
        Self {
            tensor_type: TensorType::new(T::TYPE, Shape::SCALAR),
            elements: T::into_elements(vec![element]),
        }
    }

    /// The type of the elements, and the dimensions.
    #[must_use]
    pub const fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// The dimensions.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.tensor_type.shape
    }

    /// The elements in row-major order; `None` where `T` is not their type.
    #[must_use]
    pub fn data<T: ArrayElement>(&self) -> Option<&[T]> {
        T::of(&self.elements)
    }

    /// The elements in row-major order, to write to; `None` where `T` is not their type.
    #[must_use]
    pub fn data_mut<T: ArrayElement>(&mut self) -> Option<&mut [T]> {
        T::of_mut(&mut self.elements)
    }

    /// Normal numbers, booleans of either kind, and integers of these two.
    #[allow(clippy::cast_possible_truncation, reason = "random numbers, rounded")]
    pub(crate) fn random(tensor_type: TensorType, integers: [i8; 2], random: &mut Random) -> Result<Self> {
        let mut array = Self::zeros(tensor_type)?;
        let mut integer = || integers[random.below(2)];
        match &mut array.elements {
            Elements::I64(data) => data.fill_with(|| integer().into()),
            Elements::I32(data) => data.fill_with(|| integer().into()),
            Elements::I8(data) => data.fill_with(integer),
            Elements::U8(data) => data.fill_with(|| integer().unsigned_abs()),
            Elements::Bool(data) => data.fill_with(|| random.below(2) == 1),
            Elements::F64(data) => data.fill_with(|| random.normal()),
            Elements::F32(data) => data.fill_with(|| random.normal() as f32),
            #[cfg(feature = "half")]
            Elements::F16(data) => data.fill_with(|| float16::from_f64(random.normal())),
            #[cfg(feature = "half")]
            Elements::Bf16(data) => data.fill_with(|| half::bf16::from_f64(random.normal())),
        }
        Ok(array)
    }

    pub(crate) const fn elements(&self) -> &Elements {
        &self.elements
    }

    pub(crate) const fn elements_mut(&mut self) -> &mut Elements {
        &mut self.elements
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("tensor_type", &self.tensor_type).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_hold_what_their_type_says() {
        let error = Array::new(&[2, 2], vec![1f32; 3]).unwrap_err().to_string();
        assert!(error.contains("expected 4 elements for f32[2, 2], got 3"), "{error}");
        let types = ElementType::ALL.map(|element| TensorType::new(element, Shape::new(&[2, 0]).unwrap()));
        let made =
            types.iter().filter(|of| Array::zeros(**of).is_ok_and(|array| array.tensor_type() == **of));
        assert_eq!(made.count(), if cfg!(feature = "half") { 9 } else { 7 });
        let mut array = Array::scalar(false);
        array.data_mut::<bool>().unwrap()[0] = true;
        assert_eq!(array, Array::scalar(true));
        assert_ne!(Array::scalar(1i64), Array::scalar(1i32));
    }
}
