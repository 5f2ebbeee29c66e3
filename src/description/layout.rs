//! Where the elements of a matrix, or of a batch of them, lie in memory.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};

/// The row-major layout of a matrix or of a batch of matrices.
///
/// Element (`row`, `col`) of item `i` lies at `i * batch_stride + row * leading_dimension + col`.
/// All figures count elements. A batch stride of 0 means that all items share one matrix.
///
/// ```
/// use ane_matmul::{Layout, TensorView};
///
/// let numbers = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 x 3
/// let left = Layout::strided(1, 2, 2, 3, 6)?; // its first two columns
/// assert_eq!((left.span(), left.is_packed()), (5, false));
/// let view = TensorView::with_layout(&numbers, left)?;
/// assert_eq!(view.row(0, 1), Some([4.0, 5.0].as_slice()));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    batch: usize,
    rows: usize,
    cols: usize,
    leading_dimension: usize,
    batch_stride: usize,
}

// Apart from the functions that are inlined: an error that is built and dropped in each costs the smallest products
// a tenth of their time.
#[cold]
const fn overflow(what: &'static str) -> Error {
    Error::SizeOverflow { what }
}

impl Layout {
    /// `batch` matrices of `rows` x `cols`, one after the other without gaps.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] when the elements cannot be counted.
    #[inline]
    pub fn packed(batch: usize, rows: usize, cols: usize) -> Result<Self> {
        let stride = rows.checked_mul(cols).ok_or_else(|| overflow("rows x cols"))?;
        Self::strided(batch, rows, cols, cols, stride)
    }

    /// `batch` matrices of `rows` x `cols` with a leading dimension and a batch stride, in elements.
    ///
    /// # Errors
    /// [`Error::LeadingDimension`] when rows would overlap, [`Error::SizeOverflow`] when the
    /// elements cannot be counted.
    #[inline]
    pub fn strided(
        batch: usize,
        rows: usize,
        cols: usize,
        leading_dimension: usize,
        batch_stride: usize,
    ) -> Result<Self> {
        let layout = Self { batch, rows, cols, leading_dimension, batch_stride };
        if leading_dimension < cols {
            return Err(Error::LeadingDimension { minimum: cols, got: leading_dimension });
        }
        layout.checked_span().ok_or_else(|| overflow("the extent of a matrix"))?;
        Ok(layout)
    }

    #[inline]
    fn checked_span(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let item = (self.rows - 1).checked_mul(self.leading_dimension)?.checked_add(self.cols)?;
        let span = (self.batch - 1).checked_mul(self.batch_stride)?.checked_add(item)?;
        // Slices are limited to isize::MAX bytes; 8 is the largest element size.
        (span <= isize::MAX.unsigned_abs() / 8).then_some(span)
    }

    /// The number of matrices.
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

    /// The distance from one row to the next, in elements.
    #[must_use]
    pub const fn leading_dimension(&self) -> usize {
        self.leading_dimension
    }

    /// The distance from one matrix of the batch to the next, in elements; 0 when they share one.
    #[must_use]
    pub const fn batch_stride(&self) -> usize {
        self.batch_stride
    }

    /// Whether there is no element at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.batch == 0 || self.rows == 0 || self.cols == 0
    }

    /// The elements from the first to one past the last, gaps included.
    #[must_use]
    #[inline]
    pub const fn span(&self) -> usize {
        if self.is_empty() { 0 } else { (self.batch - 1) * self.batch_stride + self.item_span() }
    }

    /// [`Layout::span`] of one matrix of the batch.
    #[must_use]
    #[inline]
    pub const fn item_span(&self) -> usize {
        if self.is_empty() { 0 } else { (self.rows - 1) * self.leading_dimension + self.cols }
    }

    /// Whether the elements lie one after the other without gaps, each item with its own.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        // Items that share memory, or have none, may be more than can be counted.
        let Some(rows) = self.batch.checked_mul(self.rows) else { return false };
        let Some(elements) = rows.checked_mul(self.cols) else { return false };
        self.span() == elements
    }

    /// Where item `item` begins, in elements.
    #[must_use]
    pub const fn item_offset(&self, item: usize) -> usize {
        item * self.batch_stride
    }

    /// Items, rows and columns.
    pub(crate) const fn shape(&self) -> [usize; 3] {
        [self.batch, self.rows, self.cols]
    }

    /// Item, row, and where the row's elements lie, for every row that has elements.
    pub(crate) fn row_spans(self) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        let (batch, rows) = if self.is_empty() { (0, 0) } else { (self.batch, self.rows) };
        (0..batch).flat_map(move |item| {
            (0..rows).map(move |row| {
                let start = self.item_offset(item) + row * self.leading_dimension;
                (item, row, start..start + self.cols)
            })
        })
    }

    /// Item, row and column of every element.
    pub(crate) fn elements(self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.row_spans().flat_map(|(item, row, span)| (0..span.len()).map(move |col| (item, row, col)))
    }

    /// Whether `self` addresses the same elements as `other`: strides that no element depends on
    /// (of a single row, of a single item) do not count.
    #[must_use]
    pub const fn addresses_same(&self, other: &Self) -> bool {
        self.batch == other.batch
            && self.rows == other.rows
            && self.cols == other.cols
            && (self.is_empty()
                || ((self.rows == 1 || self.leading_dimension == other.leading_dimension)
                    && (self.batch == 1 || self.batch_stride == other.batch_stride)))
    }

    pub(crate) const fn with_rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    pub(crate) const fn with_cols(mut self, cols: usize) -> Self {
        self.cols = cols;
        self
    }

    /// The first rows and columns of each item; all, where there are not so many.
    pub(crate) fn part(self, rows: usize, cols: usize) -> Self {
        self.with_rows(rows.min(self.rows)).with_cols(cols.min(self.cols))
    }

    /// Packed matrices whose elements are in memory already, so that their count cannot overflow.
    pub(crate) const fn of_memory(batch: usize, rows: usize, cols: usize) -> Self {
        Self { batch, rows, cols, leading_dimension: cols, batch_stride: rows * cols }
    }

    /// One matrix as that of each of `batch` items; several are left as they are.
    pub(crate) const fn broadcast(self, batch: usize) -> Self {
        if self.batch == 1 && batch != 1 { Self { batch, batch_stride: 0, ..self } } else { self }
    }

    /// The rows of all items as those of one, where they lie evenly behind one another.
    pub(crate) fn as_rows(self) -> Option<Self> {
        let leading_dimension = if self.rows == 1 { self.batch_stride } else { self.leading_dimension };
        let evenly = self.rows.checked_mul(leading_dimension) == Some(self.batch_stride);
        let rows = self.batch.checked_mul(self.rows)?;
        (evenly && leading_dimension >= self.cols).then_some(Self {
            batch: 1,
            rows,
            leading_dimension,
            ..self
        })
    }

    /// The first item alone.
    pub(crate) fn first_item(self) -> Self {
        Self { batch: self.batch.min(1), ..self }
    }

    /// A single row, which cannot overflow: its elements are in memory already.
    pub(crate) const fn row(cols: usize) -> Self {
        Self { batch: 1, rows: 1, cols, leading_dimension: cols, batch_stride: cols }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch != 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(f, "{}x{}", self.rows, self.cols)?;
        if self.rows > 1 && self.leading_dimension != self.cols {
            write!(f, " with leading dimension {}", self.leading_dimension)?;
        }
        if self.batch > 1 && Some(self.batch_stride) != self.rows.checked_mul(self.leading_dimension) {
            write!(f, " with batch stride {}", self.batch_stride)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_counts_gaps_but_not_past_the_last_row() {
        let layout = Layout::strided(3, 4, 5, 7, 100).unwrap();
        assert_eq!(layout.span(), 200 + 3 * 7 + 5);
        assert!(!layout.is_packed());
        assert_eq!(Layout::strided(3, 0, 5, 7, 100).unwrap().span(), 0);
    }

    #[test]
    fn overflow_and_overlap_are_errors() {
        assert!(matches!(Layout::packed(1, usize::MAX, 2), Err(Error::SizeOverflow { .. })));
        assert!(matches!(Layout::packed(2, 1 << 40, 1 << 21), Err(Error::SizeOverflow { .. })));
        assert!(matches!(
            Layout::strided(1, 2, 3, 2, 6),
            Err(Error::LeadingDimension { minimum: 3, got: 2 })
        ));
    }

    #[test]
    fn irrelevant_strides_are_ignored() {
        let a = Layout::strided(1, 1, 5, 7, 100).unwrap();
        assert!(a.addresses_same(&Layout::packed(1, 1, 5).unwrap()));
        let b = Layout::strided(1, 2, 5, 7, 100).unwrap();
        assert!(!b.addresses_same(&Layout::packed(1, 2, 5).unwrap()));
    }

    #[test]
    fn broadcast_items_share_memory() {
        let layout = Layout::strided(8, 2, 3, 3, 0).unwrap();
        assert_eq!(layout.span(), 6);
        assert!(!layout.is_packed());
    }

    #[test]
    fn rows_of_items_that_lie_evenly_are_rows_of_one() {
        let rows = |batch, rows, cols, leading, stride| {
            let layout = Layout::strided(batch, rows, cols, leading, stride).unwrap();
            layout.as_rows().map(|one| {
                assert_eq!((one.batch(), one.span()), (1, layout.span()));
                (one.rows(), one.leading_dimension())
            })
        };
        assert_eq!(rows(3, 4, 5, 7, 28), Some((12, 7)));
        assert_eq!(rows(3, 1, 5, 7, 9), Some((3, 9)));
        // Items apart, items in one another's gaps, items that overlap.
        assert_eq!([rows(3, 4, 5, 7, 29), rows(3, 4, 5, 15, 5), rows(3, 1, 5, 5, 2)], [None; 3]);
    }

    #[test]
    fn strides_are_named_where_they_matter() {
        let text = |batch, rows, cols, leading_dimension, batch_stride| {
            Layout::strided(batch, rows, cols, leading_dimension, batch_stride).unwrap().to_string()
        };
        assert_eq!(text(1, 2, 3, 3, 6), "2x3");
        assert_eq!(text(1, 1, 3, 9, 100), "1x3");
        assert_eq!(text(3, 4, 5, 5, 20), "3x4x5");
        assert_eq!(text(3, 4, 5, 7, 28), "3x4x5 with leading dimension 7");
        assert_eq!(text(3, 4, 5, 5, 100), "3x4x5 with batch stride 100");
    }

    #[test]
    fn the_same_elements_are_addressed_where_what_counts_is_the_same() {
        let layout =
            |batch, rows, cols, leading, stride| Layout::strided(batch, rows, cols, leading, stride).unwrap();
        let one = layout(2, 3, 4, 5, 20);
        assert!(one.addresses_same(&one));
        for other in [
            layout(3, 3, 4, 5, 20),
            layout(2, 2, 4, 5, 20),
            layout(2, 3, 3, 5, 20),
            layout(2, 3, 4, 6, 20),
            layout(2, 3, 4, 5, 21),
        ] {
            assert!(!one.addresses_same(&other) && !other.addresses_same(&one), "{other}");
        }
        assert!(layout(1, 3, 4, 5, 20).addresses_same(&layout(1, 3, 4, 5, 99)));
        assert!(layout(1, 1, 4, 5, 20).addresses_same(&layout(1, 1, 4, 6, 20)));
        assert!(layout(2, 3, 0, 5, 20).addresses_same(&layout(2, 3, 0, 6, 21)));
        assert!(!layout(2, 3, 0, 5, 20).addresses_same(&layout(2, 2, 0, 5, 20)));
    }
}
