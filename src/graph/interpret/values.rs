//! The elements of a value while a graph is interpreted.

use crate::alloc;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph::array::{Array, Elements};
use crate::graph::interpret::real::Real;
use crate::graph::shape::TensorType;
use crate::operands::weights::Weights;

const WHAT: &str = "a value of a graph";

/// Packed, row-major elements, and the type that the graph says they have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Values<R> {
    pub tensor_type: TensorType,
    pub data: Data<R>,
}

/// All floating-point types are `R`, all integers `i64` in the range of their type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data<R> {
    Floats(Vec<R>),
    Integers(Vec<i64>),
    Booleans(Vec<bool>),
}

/// A vector of as many elements as there are.
pub(crate) fn collected<T>(count: usize, elements: impl IntoIterator<Item = T>) -> Result<Vec<T>> {
    let mut all = alloc::with_capacity(count, WHAT)?;
    all.extend(elements);
    Ok(all)
}

/// The same for elements that may be errors.
pub(crate) fn try_collected<T>(
    count: usize,
    elements: impl IntoIterator<Item = Result<T>>,
) -> Result<Vec<T>> {
    let mut all = alloc::with_capacity(count, WHAT)?;
    for element in elements {
        all.push(element?);
    }
    Ok(all)
}

pub(crate) fn mapped<T: Copy, U>(elements: &[T], function: impl Fn(T) -> U) -> Result<Vec<U>> {
    collected(elements.len(), elements.iter().map(|element| function(*element)))
}

pub(crate) fn filled<T: Clone>(count: usize, element: T) -> Result<Vec<T>> {
    alloc::filled(count, element, WHAT)
}

/// The least and the largest integer of a type; those of 64 bits where it is not one of fewer.
pub(crate) fn range(element: ElementType) -> (i64, i64) {
    element.integer_range().unwrap_or((i64::MIN, i64::MAX))
}

/// The integer of a type with the same low bits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it wraps")]
const fn wrapped(x: i64, element: ElementType) -> i64 {
    match element {
        ElementType::I32 => x as i32 as i64,
        ElementType::I8 => x as i8 as i64,
        ElementType::U8 => x as u8 as i64,
        _ => x,
    }
}

impl Values<f64> {
    /// The element as a number: true is 1.
    #[allow(clippy::cast_precision_loss, reason = "bounds are not that sharp")]
    pub(crate) fn number(&self, index: usize) -> f64 {
        match &self.data {
            Data::Floats(x) => x[index],
            Data::Integers(x) => x[index] as f64,
            Data::Booleans(x) => f64::from(u8::from(x[index])),
        }
    }
}

impl<R: Real> Data<R> {
    /// No elements.
    pub(crate) const fn empty(element: ElementType) -> Self {
        match element {
            ElementType::Bool => Self::Booleans(Vec::new()),
            _ if element.is_float() => Self::Floats(Vec::new()),
            _ => Self::Integers(Vec::new()),
        }
    }

    /// A single 0, or `false`.
    pub(crate) fn zero(element: ElementType) -> Self {
        match element {
            ElementType::Bool => Self::Booleans(vec![false]),
            _ if element.is_float() => Self::Floats(vec![R::ZERO]),
            _ => Self::Integers(vec![0]),
        }
    }

    pub(crate) fn floats(&self) -> Result<&[R]> {
        match self {
            Self::Floats(data) => Ok(data),
            _ => Err(Error::graph("it takes floating-point numbers".into())),
        }
    }

    pub(crate) fn integers(&self) -> Result<&[i64]> {
        match self {
            Self::Integers(data) => Ok(data),
            _ => Err(Error::graph("it takes integers".into())),
        }
    }

    pub(crate) fn booleans(&self) -> Result<&[bool]> {
        match self {
            Self::Booleans(data) => Ok(data),
            _ => Err(Error::graph("it takes booleans".into())),
        }
    }

    /// In the kind that a type is of: floating-point numbers are cut off and saturate.
    pub(crate) fn cast(&self, to: ElementType) -> Result<Self> {
        let (least, most) = range(to);
        Ok(match self {
            Self::Floats(x) if to.is_float() => Self::Floats(mapped(x, |x| x)?),
            Self::Floats(x) if to == ElementType::Bool => Self::Booleans(mapped(x, |x| x != R::ZERO)?),
            Self::Floats(x) => Self::Integers(mapped(x, |x| x.to_i64().clamp(least, most))?),
            Self::Integers(x) if to.is_float() => Self::Floats(mapped(x, R::from_i64)?),
            Self::Integers(x) if to == ElementType::Bool => Self::Booleans(mapped(x, |x| x != 0)?),
            Self::Integers(x) => Self::Integers(mapped(x, |x| x)?),
            Self::Booleans(x) if to.is_float() => {
                Self::Floats(mapped(x, |x| if x { R::ONE } else { R::ZERO })?)
            }
            Self::Booleans(x) if to == ElementType::Bool => Self::Booleans(mapped(x, |x| x)?),
            Self::Booleans(x) => Self::Integers(mapped(x, i64::from)?),
        })
    }

    /// As values of a type are stored: floating-point numbers rounded as `R` has it, integers wrapped.
    pub(crate) fn stored(mut self, element: ElementType) -> Result<Self> {
        match &mut self {
            Self::Floats(data) => {
                for x in data {
                    *x = x.stored(element)?;
                }
            }
            Self::Integers(data) => data.iter_mut().for_each(|x| *x = wrapped(*x, element)),
            Self::Booleans(_) => {}
        }
        Ok(self)
    }
}

impl<R: Real> Values<R> {
    pub(crate) fn of_array(array: &Array) -> Result<Self> {
        let data = match array.elements() {
            Elements::F64(x) => Data::Floats(mapped(x, R::from_f64)?),
            Elements::F32(x) => Data::Floats(mapped(x, |x| R::from_f64(x.into()))?),
            #[cfg(feature = "half")]
            Elements::F16(x) => {
                Data::Floats(mapped(x, |x| R::from_f64(crate::operands::float16::to_f64(x)))?)
            }
            #[cfg(feature = "half")]
            Elements::Bf16(x) => Data::Floats(mapped(x, |x| R::from_f64(x.to_f64()))?),
            Elements::I64(x) => Data::Integers(mapped(x, |x| x)?),
            Elements::I32(x) => Data::Integers(mapped(x, i64::from)?),
            Elements::I8(x) => Data::Integers(mapped(x, i64::from)?),
            Elements::U8(x) => Data::Integers(mapped(x, i64::from)?),
            Elements::Bool(x) => Data::Booleans(mapped(x, |x| x)?),
        };
        Ok(Self { tensor_type: array.tensor_type(), data })
    }

    /// The elements of a constant matrix, or a batch of them, k x n.
    pub(crate) fn of_weights(weights: &Weights, tensor_type: TensorType) -> Result<Self> {
        let (view, k, n) = (weights.view(), weights.k(), weights.n());
        let stored = |row, col| if weights.is_transposed() { (col, row) } else { (row, col) };
        let mut all = alloc::with_capacity(tensor_type.shape.count(), WHAT)?;
        if k > 0 && n > 0 {
            for item in 0..weights.layout().batch() {
                for (row, col) in (0..k).flat_map(|row| (0..n).map(move |col| stored(row, col))) {
                    // Every element of weights, 32-bit integers included, is an f64.
                    all.extend(view.get(item, row, col));
                }
            }
        }
        if all.len() != tensor_type.shape.count() {
            return Err(Error::DataLength {
                layout: tensor_type.to_string(),
                expected: tensor_type.shape.count(),
                got: all.len(),
            });
        }
        let data = if tensor_type.element.is_float() {
            Data::Floats(mapped(&all, R::from_f64)?)
        } else {
            Data::Integers(mapped(&all, Real::to_i64)?)
        };
        Ok(Self { tensor_type, data })
    }

    /// The elements as an array of `element`, which is wide enough for them.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they are in range")]
    pub(crate) fn to_array(&self, element: ElementType) -> Result<Array> {
        let dims = self.tensor_type.shape.dims();
        match (&self.data, element) {
            (Data::Floats(x), ElementType::F64) => Array::new(dims, mapped(x, R::to_f64)?),
            (Data::Floats(x), ElementType::F32) => Array::new(dims, mapped(x, |x| x.to_f64() as f32)?),
            #[cfg(feature = "half")]
            (Data::Floats(x), ElementType::F16) => {
                Array::new(dims, mapped(x, |x| crate::operands::float16::from_f64(x.to_f64()))?)
            }
            #[cfg(feature = "half")]
            (Data::Floats(x), ElementType::Bf16) => {
                Array::new(dims, mapped(x, |x| half::bf16::from_f64(x.to_f64()))?)
            }
            (Data::Integers(x), ElementType::I64) => Array::new(dims, mapped(x, |x| x)?),
            (Data::Integers(x), ElementType::I32) => Array::new(dims, mapped(x, |x| x as i32)?),
            (Data::Integers(x), ElementType::I8) => Array::new(dims, mapped(x, |x| x as i8)?),
            (Data::Integers(x), ElementType::U8) => Array::new(dims, mapped(x, |x| x as u8)?),
            (Data::Booleans(x), ElementType::Bool) => Array::new(dims, mapped(x, |x| x)?),
            _ => Err(Error::graph(format!("there are no arrays of {element}"))),
        }
    }
}
