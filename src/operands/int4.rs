//! Borrowed matrices of 4-bit integers, two to a byte.

use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::NibbleOrder;
use crate::error::{Error, Result};
use crate::operands::view::AnyView;

/// A borrowed matrix of 4-bit integers, or a batch of them, to read from.
///
/// A [`Layout`] counts elements: the element at index e lies in byte e / 2, in the half that
/// [`NibbleOrder`] says. Rows are not padded: with an odd leading dimension every second row begins
/// within a byte. Signed elements are in two's complement, -8 to 7.
///
/// ```
/// use ane_matmul::{Int4View, Layout, NibbleOrder};
///
/// let view = Int4View::signed(&[0x71, 0x0F], Layout::packed(1, 1, 3)?, NibbleOrder::LowFirst)?;
/// assert_eq!([0, 1, 2].map(|col| view.get(0, 0, col)), [Some(1), Some(7), Some(-1)]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Int4View<'a> {
    bytes: &'a [u8],
    layout: Layout,
    signed: bool,
    order: NibbleOrder,
}

impl<'a> Int4View<'a> {
    /// Signed elements at the start of `bytes`.
    ///
    /// # Errors
    /// [`Error::DataLength`] when `bytes` is shorter than half the layout's span, rounded up.
    pub fn signed(bytes: &'a [u8], layout: Layout, order: NibbleOrder) -> Result<Self> {
        Self::new(bytes, layout, true, order)
    }

    /// Unsigned elements at the start of `bytes`.
    ///
    /// # Errors
    /// As [`Int4View::signed`].
    pub fn unsigned(bytes: &'a [u8], layout: Layout, order: NibbleOrder) -> Result<Self> {
        Self::new(bytes, layout, false, order)
    }

    fn new(bytes: &'a [u8], layout: Layout, signed: bool, order: NibbleOrder) -> Result<Self> {
        let expected = layout.span();
        if bytes.len() < expected.div_ceil(2) {
            return Err(Error::DataLength {
                layout: format!("{layout} of 4-bit elements, two to a byte"),
                expected,
                got: 2 * bytes.len(),
            });
        }
        Ok(Self::from_parts(bytes, layout, signed, order))
    }

    pub(crate) fn with_layout(self, layout: Layout) -> Self {
        Self::from_parts(self.bytes, layout, self.signed, self.order)
    }

    /// A view of bytes that are known to fit the layout.
    pub(crate) fn from_parts(bytes: &'a [u8], layout: Layout, signed: bool, order: NibbleOrder) -> Self {
        Self { bytes: &bytes[..layout.span().div_ceil(2)], layout, signed, order }
    }

    /// The bytes from the first element's to the last's.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Shape and strides, in elements.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// [`ElementType::I4`] or [`ElementType::U4`].
    #[must_use]
    pub const fn element_type(&self) -> ElementType {
        if self.signed { ElementType::I4 } else { ElementType::U4 }
    }

    /// Which half of a byte comes first.
    #[must_use]
    pub const fn nibble_order(&self) -> NibbleOrder {
        self.order
    }

    /// The element at (`row`, `col`) of item `item`, or `None` outside the matrix.
    #[must_use]
    pub fn get(&self, item: usize, row: usize, col: usize) -> Option<i8> {
        if item >= self.layout.batch() || row >= self.layout.rows() || col >= self.layout.cols() {
            return None;
        }
        Some(self.at(self.layout.item_offset(item) + row * self.layout.leading_dimension() + col))
    }

    /// The element at index `index` of the layout.
    pub(crate) fn at(&self, index: usize) -> i8 {
        let byte = self.bytes[index / 2];
        let low = index.is_multiple_of(2) == (self.order == NibbleOrder::LowFirst);
        let nibble = if low { byte & 0xF } else { byte >> 4 };
        if self.signed { (nibble << 4).cast_signed() >> 4 } else { nibble.cast_signed() }
    }
}

impl<'a> From<Int4View<'a>> for AnyView<'a> {
    fn from(view: Int4View<'a>) -> Self {
        Self::Int4(view)
    }
}

/// Packs 4-bit integers, of which the low four bits count, two to a byte.
pub(crate) fn pack(elements: impl IntoIterator<Item = i8>, order: NibbleOrder, bytes: &mut Vec<u8>) {
    let mut half = None;
    let mut pair = |first: u8, second: u8| {
        bytes.push(match order {
            NibbleOrder::LowFirst => first | second << 4,
            NibbleOrder::HighFirst => first << 4 | second,
        });
    };
    for element in elements {
        let nibble = element.cast_unsigned() & 0xF;
        match half.take() {
            None => half = Some(nibble),
            Some(first) => pair(first, nibble),
        }
    }
    if let Some(first) = half {
        pair(first, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_comes_back_in_both_orders() {
        let signed: Vec<i8> = (0..35).map(|i| (i % 16) - 8).collect();
        for order in [NibbleOrder::LowFirst, NibbleOrder::HighFirst] {
            let mut bytes = Vec::new();
            pack(signed.iter().copied(), order, &mut bytes);
            assert_eq!(bytes.len(), 18);
            let view = Int4View::signed(&bytes, Layout::packed(1, 5, 7).unwrap(), order).unwrap();
            let unsigned = Int4View::unsigned(&bytes, *view.layout(), order).unwrap();
            for (index, &expected) in signed.iter().enumerate() {
                assert_eq!(view.get(0, index / 7, index % 7), Some(expected));
                assert_eq!(unsigned.get(0, index / 7, index % 7), Some(expected & 15));
            }
            assert_eq!((view.get(0, 5, 0), view.get(0, 0, 7), view.get(1, 0, 0)), (None, None, None));
        }
        assert!(matches!(
            Int4View::signed(&[0; 17], Layout::packed(1, 5, 7).unwrap(), NibbleOrder::LowFirst),
            Err(Error::DataLength { expected: 35, got: 34, .. })
        ));
    }
}
