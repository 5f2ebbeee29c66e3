//! Types and dimensions of the values of a graph.

use std::fmt;

use crate::description::element::ElementType;
use crate::error::{Error, Result};

/// The most dimensions of a value.
pub const MAX_RANK: usize = 8;

/// The dimensions of a value, outermost first: none for a single element.
///
/// ```
/// use ane_matmul::graph::Shape;
///
/// let shape = Shape::new(&[32, 128, 384])?;
/// assert_eq!((shape.rank(), shape.count(), shape.to_string()), (3, 32 * 128 * 384, "[32, 128, 384]".into()));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    // The unused ones are 0, for comparisons.
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// No dimensions: a single element.
    pub const SCALAR: Self = Self { dims: [0; MAX_RANK], rank: 0 };

    /// A shape of these dimensions.
    ///
    /// # Errors
    /// [`Error::Graph`] for more than [`MAX_RANK`] dimensions, and for more elements than memory can hold; a
    /// dimension of 0 counts as 1 there.
    pub fn new(dims: &[usize]) -> Result<Self> {
        Self::of(dims).map_err(Error::graph)
    }

    pub(crate) fn of(dims: &[usize]) -> Result<Self, String> {
        if dims.len() > MAX_RANK {
            return Err(format!("{} dimensions; there may be {MAX_RANK}", dims.len()));
        }
        let count = dims.iter().try_fold(1usize, |count, dim| count.checked_mul((*dim).max(1)));
        // Of elements of up to 8 bytes.
        if count.is_none_or(|count| count > isize::MAX.unsigned_abs() / 8) {
            return Err(format!("a shape of {dims:?} has more elements than memory can hold"));
        }
        let mut shape = Self::SCALAR;
        shape.dims[..dims.len()].copy_from_slice(dims);
        #[allow(clippy::cast_possible_truncation, reason = "at most MAX_RANK")]
        {
            shape.rank = dims.len() as u8;
        }
        Ok(shape)
    }

    /// The dimensions.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// The number of dimensions.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The number of elements.
    #[must_use]
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// An axis, counted from the end where it is negative.
    pub(crate) fn axis(&self, axis: i64) -> Result<usize, String> {
        axis_of(axis, self.rank()).ok_or_else(|| format!("there is no axis {axis} in {self}"))
    }

    /// The same with another dimension along an axis: no larger than one that it had.
    pub(crate) const fn with_dim(mut self, axis: usize, dim: usize) -> Self {
        self.dims[axis] = dim;
        self
    }

    /// The elements from one index of each axis to the next, of packed elements.
    pub(crate) fn strides(&self) -> [usize; MAX_RANK] {
        let mut strides = [1; MAX_RANK];
        for axis in (1..self.rank()).rev() {
            strides[axis - 1] = strides[axis] * self.dims[axis];
        }
        strides
    }

    /// Two shapes broadcast to each other, as NumPy does.
    pub(crate) fn broadcast(&self, other: &Self) -> Result<Self, String> {
        let rank = self.rank().max(other.rank());
        let dim = |shape: &Self, axis: usize| {
            (axis + shape.rank()).checked_sub(rank).map_or(1, |axis| shape.dims[axis])
        };
        let mut dims = [0; MAX_RANK];
        for (axis, out) in dims[..rank].iter_mut().enumerate() {
            *out = match (dim(self, axis), dim(other, axis)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return Err(format!("{self} and {other} cannot be broadcast to each other")),
            };
        }
        Self::of(&dims[..rank])
    }
}

/// An axis of `rank`, counted from the end where it is negative.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    usize::try_from(axis).ok().filter(|_| axis < rank)
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:?}", self.dims()))
    }
}

/// What a value is: the type of its elements, and its dimensions.
///
/// ```
/// use ane_matmul::ElementType;
/// use ane_matmul::graph::{Shape, TensorType};
///
/// let ids = TensorType::new(ElementType::I64, Shape::new(&[32, 128])?);
/// assert_eq!((ids.to_string(), ids.bytes()), ("i64[32, 128]".into(), 32 * 128 * 8));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct TensorType {
    /// The type of the elements.
    pub element: ElementType,
    /// The dimensions.
    pub shape: Shape,
}

impl TensorType {
    /// Elements of a type, of these dimensions.
    #[must_use]
    pub const fn new(element: ElementType, shape: Shape) -> Self {
        Self { element, shape }
    }

    /// The bytes of the elements, packed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // A shape has no more elements than memory holds of 8 bytes each.
        self.element.bytes(self.shape.count()).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.element, self.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_bounds() {
        assert!(Shape::new(&[1; 9]).unwrap_err().to_string().contains("9 dimensions; there may be 8"));
        for dims in [[usize::MAX, 2], [0, usize::MAX], [1 << 40, 1 << 30]] {
            assert!(Shape::new(&dims).unwrap_err().to_string().contains("more elements"), "{dims:?}");
        }
        let largest = isize::MAX.unsigned_abs() / 8;
        assert_eq!(Shape::new(&[largest]).unwrap().count(), largest);
        assert_eq!((Shape::SCALAR.count(), Shape::new(&[]).unwrap()), (1, Shape::SCALAR));
        assert_eq!(Shape::new(&[3, 0, 2]).unwrap().count(), 0);
    }

    #[test]
    fn axes_count_from_either_end() {
        let shape = Shape::new(&[2, 3, 4]).unwrap();
        assert_eq!([0, 2, -1, -3].map(|axis| shape.axis(axis)), [Ok(0), Ok(2), Ok(2), Ok(0)]);
        for axis in [3, -4, i64::MIN, i64::MAX] {
            assert!(shape.axis(axis).unwrap_err().contains("[2, 3, 4]"));
        }
        assert!(Shape::SCALAR.axis(0).is_err());
        assert_eq!(shape.strides()[..3], [12, 4, 1]);
    }

    #[test]
    fn broadcasting_is_numpys() {
        let of = |dims: &[usize]| Shape::new(dims).unwrap();
        for (a, b, c) in [
            (&[2, 3][..], &[3][..], &[2, 3][..]),
            (&[2, 1], &[1, 5], &[2, 5]),
            (&[], &[4, 0], &[4, 0]),
            (&[1], &[0], &[0]),
            (&[7, 1, 5], &[2, 1], &[7, 2, 5]),
        ] {
            assert_eq!(of(a).broadcast(&of(b)), Ok(of(c)));
            assert_eq!(of(b).broadcast(&of(a)), Ok(of(c)));
        }
        for (a, b) in [(&[2, 3][..], &[2][..]), (&[0], &[2])] {
            assert!(of(a).broadcast(&of(b)).unwrap_err().contains("cannot be broadcast"));
        }
        // Each fits, but not both.
        assert!(of(&[1 << 40, 1]).broadcast(&of(&[1 << 40])).unwrap_err().contains("more elements"));
    }
}
