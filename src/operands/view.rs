//! Borrowed matrices: typed views with strides, and views whose type is known at run time.

use std::ops::Range;

use crate::description::element::{Element, ElementType};
use crate::description::layout::Layout;
use crate::error::{Error, Result};
use crate::executor::{Inputs, IntoInputs};
use crate::operands::device_tensor::{DeviceTensor, DeviceView, DeviceViewMut, not_on_the_host};
use crate::operands::int4::Int4View;
use crate::operands::tensor::Tensor;

/// A borrowed matrix, or a batch of them, to read from.
///
/// ```
/// use ane_matmul::TensorView;
///
/// let numbers = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let view = TensorView::new(&numbers, 2, 3)?;
/// let right = view.slice(0..2, 1..3)?; // nothing is copied
/// assert_eq!((view.get(0, 1, 0), right.get(0, 1, 0)), (Some(4.0), Some(5.0)));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a, T> {
    data: &'a [T],
    layout: Layout,
}

/// A borrowed matrix, or a batch of them, to write to.
///
/// ```
/// use ane_matmul::{BackendId, Inputs, MatMul, Operand, TensorView, TensorViewMut};
///
/// let mut numbers = [0f32; 6];
/// let left = TensorViewMut::new(&mut numbers, 2, 3)?.slice(0..2, 0..2)?; // of 2 x 3
/// let product = MatMul::builder(2, 2, 1).leading_dimension(Operand::C, 3).build()?;
/// let inputs = Inputs::new(TensorView::new(&[1f32, 2.0], 2, 1)?).b(&[5f32, 7.0]);
/// product.compile(&BackendId::CPU)?.run(inputs, left)?;
/// assert_eq!(numbers, [5.0, 7.0, 0.0, 10.0, 14.0, 0.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorViewMut<'a, T> {
    data: &'a mut [T],
    layout: Layout,
}

// Inlined, and the error put together here: so views stay in registers. Written and read again, each would take a fifth
// of the time of the smallest products.
#[inline]
fn check_length(layout: &Layout, got: usize) -> Result<()> {
    let expected = layout.span();
    if got < expected {
        return Err(Error::DataLength { layout: text(*layout), expected, got });
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn text(layout: Layout) -> String {
    layout.to_string()
}

fn sub_layout(layout: &Layout, rows: &Range<usize>, cols: &Range<usize>) -> Result<(usize, Layout)> {
    let fits = |range: &Range<usize>, limit| range.start <= range.end && range.end <= limit;
    if !fits(rows, layout.rows()) || !fits(cols, layout.cols()) {
        return Err(Error::DataLength {
            layout: format!("rows {rows:?} and columns {cols:?}"),
            expected: rows.end.max(cols.end),
            got: layout.span(),
        });
    }
    let sub = layout.with_rows(rows.len()).with_cols(cols.len());
    let offset = if sub.is_empty() { 0 } else { rows.start * layout.leading_dimension() + cols.start };
    Ok((offset, sub))
}

impl<'a, T: Element> TensorView<'a, T> {
    /// A packed `rows` x `cols` matrix at the start of `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` is too short, [`Error::SizeOverflow`].
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_layout(data, Layout::packed(1, rows, cols)?)
    }

    /// A matrix or batch with any [`Layout`] at the start of `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` is too short.
    pub fn with_layout(data: &'a [T], layout: Layout) -> Result<Self> {
        check_length(&layout, data.len())?;
        Ok(Self { data: &data[..layout.span()], layout })
    }

    /// A view of data that are known to fit the layout.
    pub(crate) fn from_parts(data: &'a [T], layout: Layout) -> Self {
        Self { data: &data[..layout.span()], layout }
    }

    /// The elements from the first to the last, gaps included.
    #[must_use]
    pub const fn data(&self) -> &'a [T] {
        self.data
    }

    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The element at (`row`, `col`) of item `item`, or `None` outside the matrix.
    #[must_use]
    pub fn get(&self, item: usize, row: usize, col: usize) -> Option<T> {
        if item >= self.layout.batch() || row >= self.layout.rows() || col >= self.layout.cols() {
            return None;
        }
        self.data.get(self.layout.item_offset(item) + row * self.layout.leading_dimension() + col).copied()
    }

    /// Row `row` of item `item`, or `None` outside the matrix.
    #[must_use]
    pub fn row(&self, item: usize, row: usize) -> Option<&'a [T]> {
        if item >= self.layout.batch() || row >= self.layout.rows() {
            return None;
        }
        if self.layout.cols() == 0 {
            return Some(&[]);
        }
        let start = self.layout.item_offset(item) + row * self.layout.leading_dimension();
        self.data.get(start..start + self.layout.cols())
    }

    /// A part of every matrix of the batch: `rows` and `cols`, with the same strides.
    ///
    /// # Errors
    /// [`Error::DataLength`] when a range lies outside the matrix.
    pub fn slice(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Self> {
        let (offset, layout) = sub_layout(&self.layout, &rows, &cols)?;
        Ok(Self { data: &self.data[offset..offset + layout.span()], layout })
    }

    /// The same view with its element type known at run time.
    #[must_use]
    pub fn erased(self) -> AnyView<'a> {
        T::any_view(self)
    }
}

impl<'a, T: Element> TensorViewMut<'a, T> {
    /// A packed `rows` x `cols` matrix at the start of `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` is too short, [`Error::SizeOverflow`].
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_layout(data, Layout::packed(1, rows, cols)?)
    }

    /// A matrix or batch with any [`Layout`] at the start of `data`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `data` is too short.
    pub fn with_layout(data: &'a mut [T], layout: Layout) -> Result<Self> {
        check_length(&layout, data.len())?;
        Ok(Self { data: &mut data[..layout.span()], layout })
    }

    /// A view of data that are known to fit the layout.
    pub(crate) fn from_parts(data: &'a mut [T], layout: Layout) -> Self {
        Self { data: &mut data[..layout.span()], layout }
    }

    /// The elements from the first to the last, gaps included.
    #[must_use]
    pub fn data(&mut self) -> &mut [T] {
        self.data
    }

    /// The elements for as long as the view itself could live.
    #[must_use]
    pub fn into_data(self) -> &'a mut [T] {
        self.data
    }

    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A part of every matrix of the batch: `rows` and `cols`, with the same strides.
    ///
    /// # Errors
    /// [`Error::DataLength`] when a range lies outside the matrix.
    pub fn slice(self, rows: Range<usize>, cols: Range<usize>) -> Result<Self> {
        let (offset, layout) = sub_layout(&self.layout, &rows, &cols)?;
        Ok(Self { data: &mut self.data[offset..offset + layout.span()], layout })
    }

    /// The same view for a shorter time, so that it can be used again.
    #[must_use]
    pub fn reborrow(&mut self) -> TensorViewMut<'_, T> {
        TensorViewMut { data: self.data, layout: self.layout }
    }

    /// The same view to read from.
    #[must_use]
    pub fn as_view(&self) -> TensorView<'_, T> {
        TensorView { data: self.data, layout: self.layout }
    }

    /// The same view with its element type known at run time.
    #[must_use]
    pub fn erased(self) -> AnyViewMut<'a> {
        T::any_view_mut(self)
    }
}

macro_rules! any_views {
    ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {
        /// A [`TensorView`] whose element type is known at run time.
        ///
        /// ```
        /// use ane_matmul::{AnyView, ElementType, Tensor};
        ///
        /// let tensor = Tensor::filled(2, 3, 7i8)?;
        /// let view = AnyView::from(&tensor);
        /// assert_eq!((view.element_type(), view.get(0, 1, 2)), (ElementType::I8, Some(7.0)));
        /// # Ok::<(), ane_matmul::Error>(())
        /// ```
        #[derive(Debug, Clone, Copy)]
        #[non_exhaustive]
        pub enum AnyView<'a> {
            $(
                $(#[$meta])*
                #[doc = concat!("Elements of type `", stringify!($rust), "`.")]
                $variant(TensorView<'a, $rust>),
            )*
            /// 4-bit integers, signed or unsigned, two to a byte.
            Int4(Int4View<'a>),
            /// Elements of any type that only a device sees.
            Device(DeviceView<'a>),
        }

        /// A [`TensorViewMut`] whose element type is known at run time.
        ///
        /// ```
        /// use ane_matmul::{AnyViewMut, Tensor};
        ///
        /// let mut tensor = Tensor::<f32>::zeros(2, 3)?;
        /// if let AnyViewMut::F32(mut view) = AnyViewMut::from(&mut tensor) {
        ///     view.data().fill(1.0);
        /// }
        /// assert_eq!(tensor.data(), [1.0; 6]);
        /// # Ok::<(), ane_matmul::Error>(())
        /// ```
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum AnyViewMut<'a> {
            $(
                $(#[$meta])*
                #[doc = concat!("Elements of type `", stringify!($rust), "`.")]
                $variant(TensorViewMut<'a, $rust>),
            )*
            /// Elements of any type that only a device sees.
            Device(DeviceViewMut<'a>),
        }

        impl AnyView<'_> {
            /// Shape and strides.
            #[must_use]
            pub const fn layout(&self) -> &Layout {
                match self {
                    $($(#[$meta])* Self::$variant(view) => view.layout(),)*
                    Self::Int4(view) => view.layout(),
                    Self::Device(view) => view.layout(),
                }
            }

            /// The type of the elements.
            #[must_use]
            pub const fn element_type(&self) -> ElementType {
                match self {
                    $($(#[$meta])* Self::$variant(_) => <$rust as Element>::TYPE,)*
                    Self::Int4(view) => view.element_type(),
                    Self::Device(view) => view.element_type(),
                }
            }

            /// The first element's address, null where the host has none, and the bytes up to the last element's end.
            pub(crate) fn memory(&self) -> (*const u8, usize) {
                match self {
                    $($(#[$meta])* Self::$variant(view) => {
                        (view.data().as_ptr().cast(), size_of_val(view.data()))
                    })*
                    Self::Int4(view) => (view.bytes().as_ptr(), view.bytes().len()),
                    Self::Device(view) => (std::ptr::null(), view.bytes()),
                }
            }

            /// The same elements in another layout, which lies within this one's span.
            pub(crate) fn with_layout(self, layout: Layout) -> Self {
                match self {
                    $($(#[$meta])* Self::$variant(TensorView { data, .. }) => {
                        Self::$variant(TensorView::from_parts(data, layout))
                    })*
                    Self::Int4(view) => Self::Int4(view.with_layout(layout)),
                    Self::Device(view) => Self::Device(view.with_layout(layout)),
                }
            }

            /// The same matrix for each of `batch` items; a view of several is left as it is.
            pub(crate) fn broadcast(self, batch: usize) -> Self {
                self.with_layout(self.layout().broadcast(batch))
            }

            /// The first rows and columns of each item; all, where there are not so many.
            pub(crate) fn part(self, rows: usize, cols: usize) -> Self {
                self.with_layout(self.layout().part(rows, cols))
            }

            /// For those who read elements.
            pub(crate) fn check_on_host(&self, what: impl std::fmt::Display) -> Result<()> {
                if let Self::Device(_) = self { Err(not_on_the_host(what)) } else { Ok(()) }
            }

            /// The element at (`row`, `col`) of item `item` as `f64`, or `None` outside the matrix and of elements
            /// that only a device sees.
            #[must_use]
            pub fn get(&self, item: usize, row: usize, col: usize) -> Option<f64> {
                match self {
                    $($(#[$meta])* Self::$variant(view) => view.get(item, row, col).map(Element::to_f64),)*
                    Self::Int4(view) => view.get(item, row, col).map(f64::from),
                    Self::Device(_) => None,
                }
            }
        }

        impl AnyViewMut<'_> {
            /// The first element's address, null where the host has none, and the bytes up to the last element's end.
            pub(crate) fn memory(&mut self) -> (*mut u8, usize) {
                match self {
                    $($(#[$meta])* Self::$variant(view) => {
                        let bytes = size_of_val(view.data());
                        (view.data().as_mut_ptr().cast(), bytes)
                    })*
                    Self::Device(view) => (std::ptr::null_mut(), view.as_view().bytes()),
                }
            }

            /// Shape and strides.
            #[must_use]
            pub const fn layout(&self) -> &Layout {
                match self {
                    $($(#[$meta])* Self::$variant(view) => view.layout(),)*
                    Self::Device(view) => view.layout(),
                }
            }

            /// The same view for a shorter time, so that it can be used again.
            #[must_use]
            pub fn reborrow(&mut self) -> AnyViewMut<'_> {
                match self {
                    $($(#[$meta])* Self::$variant(view) => AnyViewMut::$variant(view.reborrow()),)*
                    Self::Device(view) => AnyViewMut::Device(view.reborrow()),
                }
            }

            /// The same view to read from.
            #[must_use]
            pub fn as_view(&self) -> AnyView<'_> {
                match self {
                    $($(#[$meta])* Self::$variant(view) => AnyView::$variant(view.as_view()),)*
                    Self::Device(view) => AnyView::Device(view.as_view()),
                }
            }

            /// The type of the elements.
            #[must_use]
            pub const fn element_type(&self) -> ElementType {
                match self {
                    $($(#[$meta])* Self::$variant(_) => <$rust as Element>::TYPE,)*
                    Self::Device(view) => view.element_type(),
                }
            }
        }

        impl<'a> AnyViewMut<'a> {
            /// The same elements in another layout, which lies within this one's span.
            pub(crate) fn with_layout(self, layout: Layout) -> Self {
                match self {
                    $($(#[$meta])* Self::$variant(TensorViewMut { data, .. }) => {
                        Self::$variant(TensorViewMut::from_parts(data, layout))
                    })*
                    Self::Device(view) => Self::Device(view.with_layout(layout)),
                }
            }

            /// The first rows and columns of each item; all, where there are not so many.
            pub(crate) fn part(self, rows: usize, cols: usize) -> Self {
                let layout = self.layout().part(rows, cols);
                self.with_layout(layout)
            }

            /// Copies the elements of a matrix, or a batch of them, of the same shape and type on the host.
            ///
            /// # Errors
            /// [`Error::Memory`] where either lies on a device or they do not agree.
            pub(crate) fn copy_from(&mut self, from: &AnyView<'_>) -> Result<()> {
                match (self, from) {
                    $($(#[$meta])* (Self::$variant(to), AnyView::$variant(from))
                        if to.layout.shape() == from.layout.shape() => {
                        let layout = to.layout;
                        for (item, row, span) in layout.row_spans() {
                            to.data[span].copy_from_slice(from.row(item, row).unwrap_or_default());
                        }
                        Ok(())
                    })*
                    (to, from) => Err(Error::Memory {
                        problem: format!(
                            "a copy of {} {} to {} {}: pass a matrix on the host of the same shape and type",
                            from.element_type(), from.layout(), to.element_type(), to.layout()
                        ),
                    }),
                }
            }
        }
    };
}

any_views! {
    F64: f64,
    F32: f32,
    #[cfg(feature = "half")]
    F16: half::f16,
    #[cfg(feature = "half")]
    Bf16: half::bf16,
    I32: i32,
    I8: i8,
    U8: u8,
}

impl AnyViewMut<'_> {
    /// Rounds float64 values to the element type, into the elements of `span`. Integers saturate.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounding is the point")]
    pub(crate) fn write_row(&mut self, span: Range<usize>, values: &[f64]) {
        fn write<T: Element>(
            view: &mut TensorViewMut<'_, T>,
            span: Range<usize>,
            values: &[f64],
            round: impl Fn(f64) -> T,
        ) {
            for (y, &x) in view.data()[span].iter_mut().zip(values) {
                *y = round(x);
            }
        }
        match self {
            Self::F64(view) => write(view, span, values, |x| x),
            Self::F32(view) => write(view, span, values, |x| x as f32),
            #[cfg(feature = "half")]
            Self::F16(view) => write(view, span, values, crate::operands::float16::from_f64),
            #[cfg(feature = "half")]
            Self::Bf16(view) => write(view, span, values, half::bf16::from_f64),
            Self::I32(view) => write(view, span, values, |x| x as i32),
            Self::I8(view) => write(view, span, values, |x| x as i8),
            Self::U8(view) => write(view, span, values, |x| x as u8),
            Self::Device(_) => debug_assert!(false, "no row of what only a device sees is written"),
        }
    }
}

/// What can be read from as a matrix where it lies: `&Tensor`, a [`TensorView`], an [`AnyView`], an
/// [`Int4View`], `&DeviceTensor`; `&[T]`, `&[T; N]` and `&Vec<T>`, which are one row; with the feature `ndarray` arrays by reference and
/// views of them that are contiguous and row-major.
///
/// ```
/// use ane_matmul::{Tensor, TensorView, matmul};
///
/// let flat = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // as it is, one row of 6
/// let a = TensorView::new(&flat, 2, 3)?;
/// assert_eq!(matmul(a, &Tensor::filled(3, 1, 1f32)?)?.data(), [6.0, 15.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// It cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no matrix that can be borrowed",
    note = "pass a reference, as in `&x`; a slice is one row, `TensorView::new(&data, rows, cols)?` a matrix",
    note = "arrays of ndarray 0.17 need the feature `ndarray`"
)]
pub trait IntoView<'a>: Sealed {
    #[doc(hidden)]
    fn into_view(self) -> Result<AnyView<'a>>;
}

/// What can be written to as a matrix where it lies: as [`IntoView`], but mutable.
///
/// ```
/// use ane_matmul::{BackendId, Linear, Weights};
///
/// let layer = Linear::new(&Weights::new(&[2f32, 3.0])?).compile(&BackendId::CPU)?; // 1 x 2
/// let mut y = [0f32; 2];
/// layer.run(&[10f32], &mut y)?;
/// assert_eq!(y, [20.0, 30.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// It cannot be implemented outside this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no matrix that can be borrowed to be written to",
    note = "pass a reference, as in `&mut y`; a slice is one row, `TensorViewMut::new(&mut data, rows, cols)?` a matrix",
    note = "arrays of ndarray 0.17 need the feature `ndarray`"
)]
pub trait IntoViewMut<'a>: Sealed {
    #[doc(hidden)]
    fn into_view_mut(self) -> Result<AnyViewMut<'a>>;
}

mod sealed {
    pub trait Sealed {}
}
pub(crate) use sealed::Sealed;

/// Everything that becomes a view without an error: what it is generic over, and what it is.
macro_rules! readable {
    ($([$($generics:tt)*] $source:ty;)*) => {$(
        impl<'a, $($generics)*> Sealed for $source {}

        impl<'a, $($generics)*> IntoView<'a> for $source {
            #[inline]
            fn into_view(self) -> Result<AnyView<'a>> {
                Ok(self.into())
            }
        }

        impl<'a, $($generics)*> IntoInputs<'a> for $source {
            #[inline]
            fn with_inputs<R>(self, run: impl FnOnce(&Inputs<'a>) -> Result<R>) -> Result<R> {
                run(&Inputs::new(self))
            }
        }
    )*};
}

readable! {
    [] AnyView<'a>;
    [] Int4View<'a>;
    [T: Element] TensorView<'a, T>;
    [T: Element] &'a Tensor<T>;
    [] &'a DeviceTensor;
    [T: Element] &'a [T];
    [T: Element] &'a Vec<T>;
    [T: Element, const N: usize] &'a [T; N];
}

macro_rules! writable {
    ($([$($generics:tt)*] $source:ty;)*) => {$(
        impl<'a, $($generics)*> Sealed for $source {}

        impl<'a, $($generics)*> IntoViewMut<'a> for $source {
            #[inline]
            fn into_view_mut(self) -> Result<AnyViewMut<'a>> {
                Ok(self.into())
            }
        }
    )*};
}

writable! {
    [] AnyViewMut<'a>;
    [T: Element] TensorViewMut<'a, T>;
    [T: Element] &'a mut Tensor<T>;
    [] &'a mut DeviceTensor;
    [T: Element] &'a mut [T];
    [T: Element] &'a mut Vec<T>;
    [T: Element, const N: usize] &'a mut [T; N];
}

impl<'a, T: Element> From<TensorView<'a, T>> for AnyView<'a> {
    fn from(view: TensorView<'a, T>) -> Self {
        view.erased()
    }
}

impl<'a, T: Element> From<TensorViewMut<'a, T>> for AnyViewMut<'a> {
    fn from(view: TensorViewMut<'a, T>) -> Self {
        view.erased()
    }
}

impl<'a, T: Element> From<&'a [T]> for AnyView<'a> {
    /// A single row.
    fn from(row: &'a [T]) -> Self {
        TensorView { data: row, layout: Layout::row(row.len()) }.erased()
    }
}

impl<'a, T: Element, const N: usize> From<&'a [T; N]> for AnyView<'a> {
    /// A single row.
    fn from(row: &'a [T; N]) -> Self {
        Self::from(row.as_slice())
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for AnyView<'a> {
    /// A single row.
    fn from(row: &'a Vec<T>) -> Self {
        Self::from(row.as_slice())
    }
}

impl<'a, T: Element> From<&'a mut [T]> for AnyViewMut<'a> {
    /// A single row.
    fn from(row: &'a mut [T]) -> Self {
        let layout = Layout::row(row.len());
        TensorViewMut { data: row, layout }.erased()
    }
}

impl<'a, T: Element, const N: usize> From<&'a mut [T; N]> for AnyViewMut<'a> {
    /// A single row.
    fn from(row: &'a mut [T; N]) -> Self {
        Self::from(row.as_mut_slice())
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for AnyViewMut<'a> {
    /// A single row.
    fn from(row: &'a mut Vec<T>) -> Self {
        Self::from(row.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_keeps_the_strides() {
        let data: Vec<f32> = (0u8..24).map(f32::from).collect();
        let view = TensorView::with_layout(&data, Layout::strided(2, 3, 4, 4, 12).unwrap()).unwrap();
        let part = view.slice(1..3, 2..4).unwrap();
        assert_eq!(part.get(1, 1, 1), Some(23.0));
        assert_eq!(part.row(0, 0), Some([6.0f32, 7.0].as_slice()));
        assert_eq!(part.get(0, 2, 0), None);
        assert!(view.slice(1..4, 0..1).is_err());
        assert_eq!(view.slice(3..3, 0..4).unwrap().layout().span(), 0);
    }

    #[test]
    fn short_data_is_an_error() {
        assert!(matches!(
            TensorView::new(&[0f32; 5], 2, 3),
            Err(Error::DataLength { expected: 6, got: 5, .. })
        ));
    }

    #[test]
    fn a_view_of_no_elements_needs_no_data() {
        let view = TensorView::<f32>::new(&[], 0, 7).unwrap();
        assert_eq!(view.row(0, 0), None);
        assert_eq!(TensorView::<f32>::new(&[], 3, 0).unwrap().row(0, 2), Some([].as_slice()));
    }

    #[test]
    fn float64_numbers_are_rounded_to_every_type_in_their_span_alone() {
        fn write<T: Element + PartialEq>(around: T, [a, b, c, d]: [T; 4]) {
            let mut data = [around; 6];
            let mut view = TensorViewMut::new(&mut data, 1, 6).unwrap().erased();
            view.write_row(1..5, &[-1e10, 7.0, 1e10, 0.1]);
            assert_eq!(data, [around, a, b, c, d, around]);
        }
        write(3f64, [-1e10, 7.0, 1e10, 0.1]);
        write(3f32, [-1e10, 7.0, 1e10, 0.1]);
        #[cfg(feature = "half")]
        {
            write(half::f16::ONE, [0xFC00, 0x4700, 0x7C00, 0x2E66].map(half::f16::from_bits));
            write(half::bf16::ONE, [0xD015, 0x40E0, 0x5015, 0x3DCD].map(half::bf16::from_bits));
        }
        write(3i32, [i32::MIN, 7, i32::MAX, 0]);
        write(3i8, [i8::MIN, 7, i8::MAX, 0]);
        write(3u8, [0, 7, u8::MAX, 0]);
    }

    #[test]
    fn a_row_outside_the_matrix_is_none() {
        let data = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let view = TensorView::with_layout(&data, Layout::packed(2, 2, 2).unwrap()).unwrap();
        assert_eq!(view.row(1, 0), Some(&[5.0, 6.0][..]));
        assert_eq!((view.row(0, 2), view.row(2, 0)), (None, None));
    }
}
