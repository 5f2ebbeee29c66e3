//! Elements of any type as f32: exact.

use std::ops::Range;

use crate::backend::cpu::isa::{Simd, Vector};
use crate::backend::cpu::microkernel::instances::VectorFunctions;
use crate::operands::view::AnyView;

/// An element type.
pub(crate) trait Element {
    type Bits: Copy + Default;

    /// # Safety
    /// As [`Simd`].
    unsafe fn upcast<V: Simd>(from: *const Self::Bits) -> V;

    /// The first `part` elements of a vector, or all; the lanes of others are 0.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn upcast_part<V: Simd>(from: *const Self::Bits, part: Option<usize>) -> V {
        // SAFETY: by the function's own contract; a copy has whole vectors.
        unsafe {
            let Some(part) = part else {
                return Self::upcast(from);
            };
            let mut last = [Self::Bits::default(); MAX_LANES];
            std::ptr::copy_nonoverlapping(from, last.as_mut_ptr(), part);
            Self::upcast(last.as_ptr())
        }
    }
}

macro_rules! elements {
    ($($(#[$cfg:meta])* $name:ident, $bits:ty, $function:ident;)*) => {$(
        $(#[$cfg])*
        pub(crate) struct $name;

        $(#[$cfg])*
        impl Element for $name {
            type Bits = $bits;

            #[inline(always)]
            unsafe fn upcast<V: Simd>(from: *const $bits) -> V {
                // SAFETY: by the trait's contract.
                unsafe { V::$function(from) }
            }
        }
    )*};
}

/// An f32.
pub(crate) struct F32;

impl Element for F32 {
    type Bits = f32;

    #[inline(always)]
    unsafe fn upcast<V: Simd>(from: *const f32) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn upcast_part<V: Simd>(from: *const f32, part: Option<usize>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(from, part.map(|count| V::mask(count))) }
    }
}

/// Elements of a matrix as vectors: f64 as they are, others upcast to f32.
pub(crate) trait Load<V: Vector> {
    type Bits: Copy;

    /// The first `part` elements of a vector, or all; the lanes of others are 0.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn load_part(from: *const Self::Bits, part: Option<usize>) -> V;
}

impl<V: Simd, E: Element> Load<V> for E {
    type Bits = E::Bits;

    #[inline(always)]
    unsafe fn load_part(from: *const E::Bits, part: Option<usize>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { E::upcast_part(from, part) }
    }
}

/// An f64.
pub(crate) struct F64;

impl<V: Vector<Number = f64>> Load<V> for F64 {
    type Bits = f64;

    #[inline(always)]
    unsafe fn load_part(from: *const f64, part: Option<usize>) -> V {
        // SAFETY: by the trait's contract.
        unsafe { V::load_part(from, part.map(|count| V::mask(count))) }
    }
}

elements! {
    #[cfg(feature = "half")] F16, u16, from_f16;
    #[cfg(feature = "half")] Bf16, u16, from_bf16;
    I8, i8, from_i8;
    U8, u8, from_u8;
}

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

/// Rows of elements, and where their numbers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements {
    /// Of the function's type.
    pub from: *const u8,
    /// In elements.
    pub from_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub to: *mut f32,
    pub to_stride: usize,
}

pub(crate) type UpcastFn = unsafe fn(&Elements);

/// The functions of an instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpcastFunctions {
    pub f32: UpcastFn,
    #[cfg(feature = "half")]
    pub f16: UpcastFn,
    #[cfg(feature = "half")]
    pub bf16: UpcastFn,
    pub i8: UpcastFn,
    pub u8: UpcastFn,
}

/// # Safety
/// As [`Simd`]; the rows can be read, and at `to` there is room for them.
#[inline(always)]
pub(crate) unsafe fn upcast_rows<V: Simd, E: Element>(r: &Elements) {
    // SAFETY: by the function's own contract.
    unsafe {
        let whole = r.cols / V::LANES * V::LANES;
        let mask = V::mask(r.cols - whole);
        for row in 0..r.rows {
            let from = r.from.cast::<E::Bits>().add(row * r.from_stride);
            let to = r.to.add(row * r.to_stride);
            for col in (0..whole).step_by(V::LANES) {
                E::upcast::<V>(from.add(col)).store(to.add(col));
            }
            if whole < r.cols {
                E::upcast_part::<V>(from.add(whole), Some(r.cols - whole)).store_masked(to.add(whole), mask);
            }
        }
    }
}

/// A part of op(X): rows and columns of one item.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub item: usize,
    pub transpose: bool,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Part {
    /// The runs of adjacent elements that X has of the part, and the elements of each.
    fn runs(&self) -> (&Range<usize>, &Range<usize>) {
        if self.transpose { (&self.cols, &self.rows) } else { (&self.rows, &self.cols) }
    }

    /// From run to run of the part as [`load`] leaves it.
    pub(crate) fn stride(&self) -> usize {
        run_stride(self.runs().1.len())
    }

    /// The numbers of the part as [`load`] leaves it.
    pub(crate) fn loaded_len(&self) -> usize {
        self.runs().0.len() * self.stride()
    }
}

/// From run to run of a loaded part: apart from powers of two, which meet in few sets of a cache.
pub(crate) const fn run_stride(elements: usize) -> usize {
    elements.next_multiple_of(16) + 16
}

/// Loads a part run by run as X has it, of any type but f64 and i32: exact.
///
/// The element `j` of run `i` is at `i * part.stride() + j`, and [`Part::loaded_len`] numbers are there.
pub(crate) fn load(vector: &VectorFunctions, view: &AnyView<'_>, part: &Part, out: &mut [f32]) {
    let (runs, elements) = part.runs();
    rows(vector, view, part.item, runs, elements, out, part.stride());
}

/// Loads elements of one run of X, which is a row, or a column of its transpose.
pub(crate) fn load_run(
    vector: &VectorFunctions,
    view: &AnyView<'_>,
    item: usize,
    run: usize,
    elements: Range<usize>,
    out: &mut [f32],
) {
    rows(vector, view, item, &(run..run + 1), &elements, out, 0);
}

/// Loads runs of X to places `stride` apart.
///
/// # Panics
/// When X or `out` is shorter.
pub(crate) fn rows(
    vector: &VectorFunctions,
    view: &AnyView<'_>,
    item: usize,
    runs: &Range<usize>,
    elements: &Range<usize>,
    out: &mut [f32],
    stride: usize,
) {
    let from_stride = view.layout().leading_dimension();
    let (rows, cols) = (runs.len(), elements.len());
    if rows == 0 || cols == 0 {
        return;
    }
    let first = view.layout().item_offset(item) + runs.start * from_stride + elements.start;
    let range = first..first + (rows - 1) * from_stride + cols;
    assert!(out.len() >= (rows - 1) * stride + cols);
    let upcast = &vector.upcast;
    let (function, from): (_, *const u8) = match view {
        AnyView::F32(view) => (upcast.f32, view.data()[range].as_ptr().cast()),
        #[cfg(feature = "half")]
        AnyView::F16(view) => (upcast.f16, view.data()[range].as_ptr().cast()),
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => (upcast.bf16, view.data()[range].as_ptr().cast()),
        AnyView::I8(view) => (upcast.i8, view.data()[range].as_ptr().cast()),
        AnyView::U8(view) => (upcast.u8, view.data()[range].as_ptr().cast()),
        AnyView::Int4(view) => {
            for row in 0..rows {
                for (col, out) in out[row * stride..][..cols].iter_mut().enumerate() {
                    *out = f32::from(view.at(first + row * from_stride + col));
                }
            }
            return;
        }
        // Refused by `supports`.
        AnyView::F64(_) | AnyView::I32(_) | AnyView::Device(_) => return out.fill(f32::NAN),
    };
    let rows = Elements { from, from_stride, rows, cols, to: out.as_mut_ptr(), to_stride: stride };
    // SAFETY: X and `out` have all of the rows, elements are of the function's type, and are of
    // instructions that are here.
    unsafe { function(&rows) };
}

/// Replaces the numbers of a loaded part by `f(row, col, number)`, with the row and column of op(X).
pub(crate) fn map(part: &Part, numbers: &mut [f32], mut f: impl FnMut(usize, usize, f32) -> f32) {
    let (runs, elements) = part.runs();
    for (run, numbers) in runs.clone().zip(numbers.chunks_mut(part.stride())) {
        for (element, x) in elements.clone().zip(numbers) {
            let (row, col) = if part.transpose { (element, run) } else { (run, element) };
            *x = f(row, col, *x);
        }
    }
}

/// Loads a row of op(X), of which `out` holds all.
pub(crate) fn load_row(
    vector: &VectorFunctions,
    view: &AnyView<'_>,
    item: usize,
    transpose: bool,
    row: usize,
    out: &mut [f32],
) {
    if transpose {
        rows(vector, view, item, &(0..out.len()), &(row..row + 1), out, 1);
    } else {
        load_run(vector, view, item, row, 0..out.len(), out);
    }
}

/// A floating-point element as f32.
#[allow(clippy::cast_possible_truncation, reason = "the element is no wider than f32")]
pub(crate) fn scale(view: &AnyView<'_>, item: usize, row: usize, col: usize) -> f32 {
    let item = if view.layout().batch() == 1 { 0 } else { item };
    view.get(item, row, col).unwrap_or(f64::NAN) as f32
}

/// The scale that quantises numbers of this largest magnitude to -127 to 127.
pub(crate) fn scale_for(largest: f32) -> f32 {
    (largest / 127.0).max(f32::MIN_POSITIVE)
}

/// The integer that stands for `x`; `scale` is [`scale_for`] a magnitude no smaller than that of `x`.
pub(crate) fn quantized(x: f32, scale: f32) -> f32 {
    (x / scale).round_ties_even()
}
