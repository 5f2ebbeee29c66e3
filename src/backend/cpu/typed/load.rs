//! Elements as the numbers that are summed.

use std::ops::Range;

use crate::layout::Layout;
use crate::view::AnyView;

/// A part of op(X): rows and columns of one item.
#[derive(Debug, Clone)]
pub(in super::super) struct Part {
    pub item: usize,
    pub transpose: bool,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

/// Writes `f(row, col, element)` of a part into `out`, row by row, where `element(index)` is the element
/// at an index of the layout.
fn block<T, U>(
    layout: &Layout,
    part: &Part,
    out: &mut [U],
    element: impl Fn(usize) -> T,
    f: impl Fn(usize, usize, T) -> U,
) {
    let (row_step, col_step) =
        if part.transpose { (1, layout.leading_dimension()) } else { (layout.leading_dimension(), 1) };
    let start = layout.item_offset(part.item);
    for (row, out) in part.rows.clone().zip(out.chunks_mut(part.cols.len().max(1))) {
        for (col, out) in part.cols.clone().zip(out) {
            *out = f(row, col, element(start + row * row_step + col * col_step));
        }
    }
}

/// Loads `f(row, col, element)` with the elements, of any type but f64 and i32, as f32: exact.
pub(in super::super) fn floats(
    view: &AnyView<'_>,
    part: &Part,
    out: &mut [f32],
    f: impl Fn(usize, usize, f32) -> f32,
) {
    let layout = view.layout();
    match view {
        AnyView::F32(view) => block(layout, part, out, |i| view.data()[i], f),
        #[cfg(feature = "half")]
        AnyView::F16(view) => block(layout, part, out, |i| view.data()[i].to_f32(), f),
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => block(layout, part, out, |i| view.data()[i].to_f32(), f),
        AnyView::I8(view) => block(layout, part, out, |i| f32::from(view.data()[i]), f),
        AnyView::U8(view) => block(layout, part, out, |i| f32::from(view.data()[i]), f),
        AnyView::Int4(view) => block(layout, part, out, |i| f32::from(view.at(i)), f),
        // Refused by `supports`.
        AnyView::F64(_) | AnyView::I32(_) => out.fill(f32::NAN),
    }
}

/// Loads i8 or u8 elements less a zero point.
pub(in super::super) fn integers(view: &AnyView<'_>, part: &Part, zero_point: i32, out: &mut [i32]) {
    let layout = view.layout();
    match view {
        AnyView::I8(view) => {
            block(layout, part, out, |i| i32::from(view.data()[i]), |_, _, x| x - zero_point);
        }
        AnyView::U8(view) => {
            block(layout, part, out, |i| i32::from(view.data()[i]), |_, _, x| x - zero_point);
        }
        // Refused by `supports`.
        _ => out.fill(0),
    }
}

/// A floating-point element as f32.
#[allow(clippy::cast_possible_truncation, reason = "the element is no wider than f32")]
pub(in super::super) fn scale(view: &AnyView<'_>, item: usize, row: usize, col: usize) -> f32 {
    let item = if view.layout().batch() == 1 { 0 } else { item };
    view.get(item, row, col).unwrap_or(f64::NAN) as f32
}

/// The scale that quantises numbers of this largest magnitude to -127 to 127.
pub(in super::super) fn scale_for(largest: f32) -> f32 {
    (largest / 127.0).max(f32::MIN_POSITIVE)
}

/// The integer that stands for `x`; `scale` is [`scale_for`] a magnitude no smaller than that of `x`.
#[allow(clippy::cast_possible_truncation, reason = "within -127 and 127")]
pub(in super::super) fn quantized(x: f32, scale: f32) -> i32 {
    (x / scale).round_ties_even() as i32
}
