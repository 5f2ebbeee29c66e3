//! Conversions from and to `ndarray` arrays (feature `ndarray`).
//!
//! Views are borrowed from arrays of one to three dimensions that are contiguous and row-major. Rows with
//! gaps are not: what lies in a gap may be borrowed by somebody else.

use ndarray::{Array2, Array3, ArrayBase, ArrayView, ArrayView2, ArrayView3, ArrayViewMut};
use ndarray::{Data, DataMut, Dimension};

use crate::alloc;
use crate::description::element::Element;
use crate::description::layout::Layout;
use crate::error::{Error, Result};
use crate::executor::{Inputs, IntoInputs};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, IntoView, IntoViewMut, Sealed, TensorView, TensorViewMut};

fn not_standard(shape: &[usize], strides: &[isize]) -> Error {
    Error::Description {
        problem: format!(
            "an array of shape {shape:?} with strides {strides:?} is not contiguous and row-major"
        ),
        help: "copy it (to_owned, Tensor::try_from), or pass the array it is the transpose of with transpose_a, transpose_b or Weights::transposed",
    }
}

/// One dimension is a row, three are a batch.
fn layout(shape: &[usize]) -> Result<Layout> {
    match *shape {
        [cols] => Layout::packed(1, 1, cols),
        [rows, cols] => Layout::packed(1, rows, cols),
        [batch, rows, cols] => Layout::packed(batch, rows, cols),
        _ => Err(Error::Description {
            problem: format!("an array of {} dimensions is no matrix", shape.len()),
            help: "pass an array of one to three dimensions",
        }),
    }
}

impl<'a, T: Element, D: Dimension> TryFrom<ArrayView<'a, T, D>> for TensorView<'a, T> {
    type Error = Error;

    /// Borrows a contiguous, row-major array of one to three dimensions.
    fn try_from(array: ArrayView<'a, T, D>) -> Result<Self> {
        let data = array.to_slice().ok_or_else(|| not_standard(array.shape(), array.strides()))?;
        Self::with_layout(data, layout(array.shape())?)
    }
}

impl<'a, T: Element, S: Data<Elem = T>, D: Dimension> TryFrom<&'a ArrayBase<S, D>> for TensorView<'a, T> {
    type Error = Error;

    /// Borrows a contiguous, row-major array of one to three dimensions.
    fn try_from(array: &'a ArrayBase<S, D>) -> Result<Self> {
        Self::try_from(array.view())
    }
}

impl<'a, T: Element, D: Dimension> TryFrom<ArrayViewMut<'a, T, D>> for TensorViewMut<'a, T> {
    type Error = Error;

    /// Borrows a contiguous, row-major array of one to three dimensions.
    fn try_from(array: ArrayViewMut<'a, T, D>) -> Result<Self> {
        let (layout, shape) = (layout(array.shape())?, array.shape().to_vec());
        let strides = array.strides().to_vec();
        let data = array.into_slice().ok_or_else(|| not_standard(&shape, &strides))?;
        Self::with_layout(data, layout)
    }
}

impl<'a, T: Element, S: DataMut<Elem = T>, D: Dimension> TryFrom<&'a mut ArrayBase<S, D>>
    for TensorViewMut<'a, T>
{
    type Error = Error;

    /// Borrows a contiguous, row-major array of one to three dimensions.
    fn try_from(array: &'a mut ArrayBase<S, D>) -> Result<Self> {
        Self::try_from(array.view_mut())
    }
}

impl<T: Element, D: Dimension> Sealed for ArrayView<'_, T, D> {}

impl<'a, T: Element, D: Dimension> IntoView<'a> for ArrayView<'a, T, D> {
    fn into_view(self) -> Result<AnyView<'a>> {
        TensorView::try_from(self).map(Into::into)
    }
}

impl<'a, T: Element, D: Dimension> IntoInputs<'a> for ArrayView<'a, T, D> {
    fn with_inputs<R>(self, run: impl FnOnce(&Inputs<'a>) -> Result<R>) -> Result<R> {
        run(&Inputs::new(self.into_view()?))
    }
}

impl<T: Element, S: Data<Elem = T>, D: Dimension> Sealed for &ArrayBase<S, D> {}

impl<'a, T: Element, S: Data<Elem = T>, D: Dimension> IntoView<'a> for &'a ArrayBase<S, D> {
    fn into_view(self) -> Result<AnyView<'a>> {
        self.view().into_view()
    }
}

impl<'a, T: Element, S: Data<Elem = T>, D: Dimension> IntoInputs<'a> for &'a ArrayBase<S, D> {
    fn with_inputs<R>(self, run: impl FnOnce(&Inputs<'a>) -> Result<R>) -> Result<R> {
        self.view().with_inputs(run)
    }
}

impl<T: Element, D: Dimension> Sealed for ArrayViewMut<'_, T, D> {}

impl<'a, T: Element, D: Dimension> IntoViewMut<'a> for ArrayViewMut<'a, T, D> {
    fn into_view_mut(self) -> Result<AnyViewMut<'a>> {
        TensorViewMut::try_from(self).map(Into::into)
    }
}

impl<T: Element, S: DataMut<Elem = T>, D: Dimension> Sealed for &mut ArrayBase<S, D> {}

impl<'a, T: Element, S: DataMut<Elem = T>, D: Dimension> IntoViewMut<'a> for &'a mut ArrayBase<S, D> {
    fn into_view_mut(self) -> Result<AnyViewMut<'a>> {
        self.view_mut().into_view_mut()
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
    fn a_layer_takes_arrays_and_writes_into_one() {
        let (x, w) = (Array::from_elem((2, 3), 2f32), Array::from_elem((3, 4), 0.5f32));
        let bias = Array::from_vec(vec![0f32, 1.0, 2.0, 3.0]);
        let weights = crate::Weights::new(&w).unwrap();
        let layer = crate::Linear::new(&weights).max_rows(2).bias(&bias);
        let layer = layer.compile(&crate::BackendId::CPU).unwrap();
        let mut y = Array2::<f32>::zeros((2, 4));
        layer.run(&x, &mut y).unwrap();
        assert_eq!(y, ndarray::array![[3.0, 4.0, 5.0, 6.0], [3.0, 4.0, 5.0, 6.0]]);
        layer.run(x.slice(s![..1, ..]), y.slice_mut(s![1.., ..])).unwrap();
        assert_eq!(Array2::try_from(crate::matmul(&x, w.view()).unwrap()).unwrap(), x.dot(&w));
        for wrong in [layer.run(x.t(), &mut y), layer.run(&x, y.view_mut().reversed_axes())] {
            assert!(matches!(wrong, Err(Error::Description { .. })), "{wrong:?}");
        }
        let wrong = crate::Linear::new(&weights).bias(y.slice(s![.., 0])).build();
        assert!(matches!(wrong, Err(Error::Description { .. })), "{wrong:?}");
        let four = Array::<f32, _>::zeros((1, 1, 1, 1));
        assert!(TensorView::try_from(&four).unwrap_err().to_string().contains("4 dimensions"));
    }

    #[test]
    fn a_batch_is_no_matrix() {
        assert!(Array2::try_from(Tensor::<f32>::zeros_batched(2, 1, 1).unwrap()).is_err());
    }
}
