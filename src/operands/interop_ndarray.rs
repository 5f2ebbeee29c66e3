//! Conversions from and to `ndarray` arrays (feature `ndarray`).

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use crate::alloc;
use crate::description::element::Element;
use crate::description::layout::Layout;
use crate::error::{Error, Result};
use crate::operands::tensor::Tensor;
use crate::operands::view::TensorView;

fn not_standard(shape: &[usize], strides: &[isize]) -> Error {
    Error::Description {
        problem: format!(
            "an array of shape {shape:?} with strides {strides:?} is not contiguous and row-major"
        ),
        help: "copy it with Tensor::try_from, or pass the array it is the transpose of with transpose_a or transpose_b",
    }
}

impl<'a, T: Element> TryFrom<ArrayView2<'a, T>> for TensorView<'a, T> {
    type Error = Error;

    /// Borrows a contiguous, row-major array.
    fn try_from(array: ArrayView2<'a, T>) -> Result<Self> {
        let (rows, cols) = array.dim();
        let data = array.to_slice().ok_or_else(|| not_standard(array.shape(), array.strides()))?;
        Self::new(data, rows, cols)
    }
}

impl<'a, T: Element> TryFrom<ArrayView3<'a, T>> for TensorView<'a, T> {
    type Error = Error;

    /// Borrows a contiguous, row-major batch.
    fn try_from(array: ArrayView3<'a, T>) -> Result<Self> {
        let (batch, rows, cols) = array.dim();
        let data = array.to_slice().ok_or_else(|| not_standard(array.shape(), array.strides()))?;
        Self::with_layout(data, Layout::packed(batch, rows, cols)?)
    }
}

impl<T: Element> TryFrom<ArrayView2<'_, T>> for Tensor<T> {
    type Error = Error;

    /// Copies an array of any strides.
    fn try_from(array: ArrayView2<'_, T>) -> Result<Self> {
        let (rows, cols) = array.dim();
        let mut data = alloc::with_capacity(array.len(), "a copy of an array")?;
        data.extend(array.iter().copied());
        Self::from_vec(data, rows, cols)
    }
}

impl<T: Element> TryFrom<ArrayView3<'_, T>> for Tensor<T> {
    type Error = Error;

    /// Copies a batch of any strides.
    fn try_from(array: ArrayView3<'_, T>) -> Result<Self> {
        let (batch, rows, cols) = array.dim();
        let mut data = alloc::with_capacity(array.len(), "a copy of an array")?;
        data.extend(array.iter().copied());
        Self::from_vec_batched(data, batch, rows, cols)
    }
}

impl<T: Element> TryFrom<Tensor<T>> for Array2<T> {
    type Error = Error;

    /// Takes over the elements of a single matrix; a batch becomes an [`Array3`] instead.
    fn try_from(tensor: Tensor<T>) -> Result<Self> {
        let (batch, rows, cols) = (tensor.batch(), tensor.rows(), tensor.cols());
        let problem = || Error::Description {
            problem: format!("a batch of {batch} matrices is no 2-D array"),
            help: "convert it to an Array3",
        };
        if batch != 1 {
            return Err(problem());
        }
        Self::from_shape_vec((rows, cols), tensor.into_vec()).map_err(|_| problem())
    }
}

impl<T: Element> From<Tensor<T>> for Array3<T> {
    /// Takes over the elements.
    fn from(tensor: Tensor<T>) -> Self {
        let shape = (tensor.batch(), tensor.rows(), tensor.cols());
        // A tensor holds exactly batch x rows x cols elements.
        Self::from_shape_vec(shape, tensor.into_vec())
            .unwrap_or_else(|_| Self::from_elem((0, 0, 0), T::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, Axis, s};

    #[test]
    fn round_trip() {
        let array = Array::from_shape_fn((2, 3, 4), |(i, j, k)| (i * 100 + j * 10 + k) as f32);
        let tensor = Tensor::try_from(array.view()).unwrap();
        assert_eq!(tensor.view().get(1, 2, 3), Some(123.0));
        assert_eq!(Array3::from(tensor), array);
        let matrix = array.index_axis(Axis(0), 1).to_owned();
        assert_eq!(Array2::try_from(Tensor::try_from(matrix.view()).unwrap()).unwrap(), matrix);
    }

    #[test]
    fn views_borrow_what_is_contiguous_and_refuse_the_rest() {
        let array = Array::from_shape_fn((3, 4), |(i, j)| (i * 10 + j) as f32);
        let view = TensorView::try_from(array.view()).unwrap();
        assert_eq!(view.data().as_ptr(), array.as_ptr());
        assert!(TensorView::try_from(array.t()).is_err());
        assert!(TensorView::try_from(array.slice(s![.., 1..3])).is_err());
        let copy = Tensor::try_from(array.t()).unwrap();
        assert_eq!((copy.rows(), copy.view().get(0, 3, 2)), (4, Some(23.0)));
        let reversed = Tensor::try_from(array.slice(s![..;-1, ..;2])).unwrap();
        assert_eq!(reversed.data(), [20.0, 22.0, 10.0, 12.0, 0.0, 2.0]);
    }

    #[test]
    fn a_batch_is_no_matrix() {
        assert!(Array2::try_from(Tensor::<f32>::zeros_batched(2, 1, 1).unwrap()).is_err());
    }
}
