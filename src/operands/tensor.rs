//! Owned matrices.

use crate::alloc;
use crate::description::element::Element;
use crate::description::layout::Layout;
use crate::error::{Error, Result};
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::random::Random;

/// An owned, packed, row-major matrix, or a batch of them.
///
/// Elements are `f64` unless said otherwise. Item `i`, row `r`, column `c` lies at
/// `(i * rows + r) * cols + c`.
///
/// ```
/// use ane_matmul::Tensor;
///
/// let a = Tensor::from_fn(2, 3, |row, col| (row * 10 + col) as f32)?;
/// assert_eq!(a.transposed()?.data(), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<T = f64> {
    data: Vec<T>,
    batch: usize,
    rows: usize,
    cols: usize,
    batched: bool,
}

fn count(batch: usize, rows: usize, cols: usize) -> Result<usize> {
    let layout = Layout::packed(batch, rows, cols)?;
    Ok(layout.span())
}

impl<T: Element> Tensor<T> {
    /// A `rows` x `cols` matrix of zeros.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn zeros(rows: usize, cols: usize) -> Result<Self> {
        Self::filled(rows, cols, T::default())
    }

    /// A `rows` x `cols` matrix whose elements are all `value`.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn filled(rows: usize, cols: usize, value: T) -> Result<Self> {
        let data = alloc::filled(count(1, rows, cols)?, value, "a matrix")?;
        Ok(Self { data, batch: 1, rows, cols, batched: false })
    }

    /// Zeros of a layout's shape, packed.
    pub(crate) fn zeros_of(layout: &Layout) -> Result<Self> {
        match layout.batch() {
            1 => Self::zeros(layout.rows(), layout.cols()),
            batch => Self::zeros_batched(batch, layout.rows(), layout.cols()),
        }
    }

    /// A batch of `batch` matrices of zeros.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn zeros_batched(batch: usize, rows: usize, cols: usize) -> Result<Self> {
        let data = alloc::filled(count(batch, rows, cols)?, T::default(), "a batch of matrices")?;
        Ok(Self { data, batch, rows, cols, batched: true })
    }

    /// A `rows` x `cols` matrix that takes over `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` does not have exactly rows x cols elements.
    pub fn from_vec(data: Vec<T>, rows: usize, cols: usize) -> Result<Self> {
        Self { data, batch: 1, rows, cols, batched: false }.checked()
    }

    /// A batch of matrices that takes over `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` does not have exactly batch x rows x cols elements.
    pub fn from_vec_batched(data: Vec<T>, batch: usize, rows: usize, cols: usize) -> Result<Self> {
        Self { data, batch, rows, cols, batched: true }.checked()
    }

    fn checked(self) -> Result<Self> {
        let expected = count(self.batch, self.rows, self.cols)?;
        if self.data.len() != expected {
            return Err(Error::DataLength {
                layout: format!("{}x{}x{}", self.batch, self.rows, self.cols),
                expected,
                got: self.data.len(),
            });
        }
        Ok(self)
    }

    /// A `rows` x `cols` matrix of `f(row, col)`.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> T) -> Result<Self> {
        let mut tensor = Self::from_fn_batched(1, rows, cols, |_, row, col| f(row, col))?;
        tensor.batched = false;
        Ok(tensor)
    }

    /// A batch of matrices of `f(item, row, col)`.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn from_fn_batched(
        batch: usize,
        rows: usize,
        cols: usize,
        mut f: impl FnMut(usize, usize, usize) -> T,
    ) -> Result<Self> {
        let elements = count(batch, rows, cols)?;
        let mut data = alloc::with_capacity(elements, "a batch of matrices")?;
        // Of items and rows without elements there may be more than anyone can count to.
        let items = if elements == 0 { 0 } else { batch };
        for item in 0..items {
            for row in 0..rows {
                data.extend((0..cols).map(|col| f(item, row, col)));
            }
        }
        Ok(Self { data, batch, rows, cols, batched: true })
    }

    /// A packed copy of a view, gaps left out.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] when a broadcast view becomes too large, [`Error::OutOfMemory`].
    pub fn from_view(view: TensorView<'_, T>) -> Result<Self> {
        let layout = *view.layout();
        let mut data =
            alloc::with_capacity(count(layout.batch(), layout.rows(), layout.cols())?, "a copy of a view")?;
        for (item, row, _) in layout.row_spans() {
            data.extend_from_slice(view.row(item, row).unwrap_or_default());
        }
        let batched = layout.batch() != 1;
        Ok(Self { data, batch: layout.batch(), rows: layout.rows(), cols: layout.cols(), batched })
    }

    /// A copy with rows and columns of every item exchanged.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn transposed(&self) -> Result<Self> {
        let mut data = alloc::with_capacity(self.data.len(), "a transposed copy")?;
        let items = if self.data.is_empty() { 0 } else { self.batch };
        for item in 0..items {
            let start = item * self.rows * self.cols;
            for col in 0..self.cols {
                data.extend((0..self.rows).map(|row| self.data[start + row * self.cols + col]));
            }
        }
        Ok(Self { data, batch: self.batch, rows: self.cols, cols: self.rows, batched: self.batched })
    }

    /// The number of matrices; 1 for a single matrix.
    #[must_use]
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// The rows of one matrix.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The columns of one matrix.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Whether this was made as a batch, be it of one matrix: a 3-D array in a file.
    #[must_use]
    pub const fn is_batched(&self) -> bool {
        self.batched
    }

    /// The elements, item by item, row by row.
    #[must_use]
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The elements, to change.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// The elements, taken out.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.data
    }

    fn layout(&self) -> Layout {
        Layout::of_memory(self.batch, self.rows, self.cols)
    }

    /// The whole tensor to read from.
    #[must_use]
    pub fn view(&self) -> TensorView<'_, T> {
        TensorView::from_parts(&self.data, self.layout())
    }

    /// The whole tensor to write to.
    #[must_use]
    pub fn view_mut(&mut self) -> TensorViewMut<'_, T> {
        let layout = self.layout();
        TensorViewMut::from_parts(&mut self.data, layout)
    }
}

impl<T: Element> Tensor<T> {
    fn mapped<U: Element>(&self, f: impl Fn(T) -> U) -> Result<Tensor<U>> {
        let mut data = alloc::with_capacity(self.data.len(), "a converted copy")?;
        data.extend(self.data.iter().map(|&x| f(x)));
        Ok(Tensor { data, batch: self.batch, rows: self.rows, cols: self.cols, batched: self.batched })
    }

    /// A copy in `f64`; exact for every element type.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_f64(&self) -> Result<Tensor<f64>> {
        self.mapped(Element::to_f64)
    }
}

impl Tensor<f64> {
    /// A matrix of numbers from the normal distribution N(0, sigma^2), the same for the same seed
    /// on every platform.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    pub fn random_normal(rows: usize, cols: usize, sigma: f64, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        Self::from_fn(rows, cols, |_, _| sigma * random.normal())
    }

    /// A copy rounded to `f32` (to nearest, ties to even; beyond f32's range to infinity).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    #[allow(clippy::cast_possible_truncation, reason = "the rounding is the purpose")]
    pub fn to_f32(&self) -> Result<Tensor<f32>> {
        self.mapped(|x| x as f32)
    }
}

impl Tensor<f32> {
    /// A matrix of numbers from N(0, sigma^2), rounded from [`Tensor::<f64>::random_normal`].
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], [`Error::OutOfMemory`].
    #[allow(clippy::cast_possible_truncation, reason = "the rounding is the purpose")]
    pub fn random_normal_f32(rows: usize, cols: usize, sigma: f64, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        Self::from_fn(rows, cols, |_, _| (sigma * random.normal()) as f32)
    }
}

impl<'a, T: Element> From<&'a Tensor<T>> for AnyView<'a> {
    fn from(tensor: &'a Tensor<T>) -> Self {
        tensor.view().erased()
    }
}

impl<'a, T: Element> From<&'a mut Tensor<T>> for AnyViewMut<'a> {
    fn from(tensor: &'a mut Tensor<T>) -> Self {
        tensor.view_mut().erased()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_elements_take_no_time() {
        const MANY: usize = 1 << 40;
        let empty = Tensor::<f32>::from_fn(MANY, 0, |_, _| 1.0).unwrap();
        assert_eq!((empty.rows(), empty.cols()), (MANY, 0));
        assert_eq!(Tensor::from_view(empty.view()).unwrap().rows(), MANY);
        assert_eq!(empty.transposed().unwrap().transposed().unwrap().rows(), MANY);
        assert_eq!(crate::Weights::new(&empty).unwrap().layout().rows(), MANY);
        let items = Tensor::<f32>::from_fn_batched(MANY, 1, 0, |_, _, _| 1.0).unwrap();
        assert_eq!(Tensor::from_view(items.view()).unwrap().batch(), MANY);
        assert_eq!(items.transposed().unwrap().batch(), MANY);
    }

    #[test]
    #[cfg_attr(miri, ignore = "an interpreter ends where memory does")]
    fn shapes_are_checked() {
        assert!(matches!(
            Tensor::from_vec(vec![1.0; 5], 2, 3),
            Err(Error::DataLength { expected: 6, got: 5, .. })
        ));
        assert!(matches!(Tensor::<f32>::zeros(1 << 31, 1 << 31), Err(Error::SizeOverflow { .. })));
        assert!(matches!(Tensor::<f32>::zeros(1 << 30, 1 << 29), Err(Error::OutOfMemory { .. })));
    }

    #[test]
    fn transposing_twice_is_the_identity() {
        let tensor = Tensor::from_fn_batched(3, 2, 5, |i, r, c| (i * 100 + r * 10 + c) as f64).unwrap();
        let once = tensor.transposed().unwrap();
        assert_eq!(once.view().get(2, 4, 1), Some(214.0));
        assert_eq!(once.transposed().unwrap(), tensor);
    }

    #[test]
    fn random_is_reproducible() {
        let a = Tensor::random_normal(16, 16, 0.02, 1).unwrap();
        assert_eq!(a, Tensor::random_normal(16, 16, 0.02, 1).unwrap());
        assert_ne!(a, Tensor::random_normal(16, 16, 0.02, 2).unwrap());
        assert_eq!(a.to_f32().unwrap(), Tensor::random_normal_f32(16, 16, 0.02, 1).unwrap());
    }

    #[test]
    fn a_view_is_copied_without_its_gaps() {
        let data: Vec<f32> = (0u8..12).map(f32::from).collect();
        let view = TensorView::with_layout(&data, Layout::strided(2, 2, 2, 3, 6).unwrap()).unwrap();
        let copy = Tensor::from_view(view).unwrap();
        assert_eq!(copy.data(), [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0, 10.0]);
        let broadcast = TensorView::with_layout(&data, Layout::strided(2, 1, 2, 3, 0).unwrap()).unwrap();
        assert_eq!(Tensor::from_view(broadcast).unwrap().data(), [0.0, 1.0, 0.0, 1.0]);
    }
}
