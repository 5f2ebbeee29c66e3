//! Operands in the order in which the micro-kernels read them.
//!
//! - this file: numbers as they are, f32 or f64, copied or transposed;
//! - [`upcast`]: narrower elements as f32; [`panels16`]: a constant B of 16-bit elements; [`interleave_a`],
//!   [`interleave_b`]: elements adjacent along k in one word, for dot products; [`weight_only`]: 8 and 4-bit
//!   integers with their scales.

pub(crate) mod interleave_a;
pub(crate) mod interleave_b;
#[cfg(feature = "half")]
pub(crate) mod panels16;
pub(crate) mod upcast;
pub(crate) mod weight_only;

use std::sync::Arc;

use super::buffer::Buffer;
use super::isa::{Dot, Vector};
use super::microkernel::MicroKernels;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantB;
use crate::error::Result;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// 32 bits of an operand: what they hold is the [`Format`]'s. Strides are counted in words.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Word(#[allow(dead_code, reason = "kernels read it through pointers of their own")] u32);

/// What the words of a packed B hold, and those of A with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "half"), allow(dead_code, reason = "kernels of the feature `half`"))]
pub(crate) enum Format {
    /// An f32.
    F32,
    /// Half an f64.
    F64,
    /// Two f16, of adjacent columns. A is f32.
    F16,
    /// Two bf16, of adjacent columns. A is f32.
    Bf16,
    /// Two bf16, adjacent along k.
    Bf16Pairs,
    /// Four 8-bit integers, adjacent along k.
    Int8Quads,
    /// Two 8-bit integers, adjacent along k, for each of two adjacent columns. A has two integers of 16 bits.
    Int8Pairs,
}

impl Format {
    /// The elements along k in a word.
    pub(crate) const fn k_per_word(self) -> usize {
        match self {
            Self::F32 | Self::F64 | Self::F16 | Self::Bf16 => 1,
            Self::Bf16Pairs | Self::Int8Pairs => 2,
            Self::Int8Quads => 4,
        }
    }

    /// The words of a number of A and C: what is summed.
    pub(crate) const fn number_words(self) -> usize {
        if matches!(self, Self::F64) { 2 } else { 1 }
    }

    /// The words of `k` elements along k.
    pub(crate) const fn words(self, k: usize) -> usize {
        k.div_ceil(self.k_per_word())
    }
}

impl From<Dot> for Format {
    fn from(dot: Dot) -> Self {
        match dot {
            Dot::Bf16 => Self::Bf16Pairs,
            Dot::Int8 => Self::Int8Quads,
            Dot::Int8Pairs => Self::Int8Pairs,
        }
    }
}

/// A constant B in micro-panels: the same for every m, shared by all products of the same weights.
pub(crate) struct PackedB {
    buffer: Buffer,
    /// Words from item to item; 0 when all share one.
    item_stride: usize,
    /// The micro-kernels that read it.
    pub kernels: &'static MicroKernels,
    /// The sum of each column of integers, item by item; empty for other formats.
    pub column_sums: Vec<i32>,
}

impl PackedB {
    /// B for `kernels`, whose instructions are here.
    pub(crate) fn of(
        kernels: &'static MicroKernels,
        product: &MatMul,
        weights: &Weights,
    ) -> Result<Arc<Self>> {
        let key = (kernels.name, product.transpose_b(), QuantB::None);
        weights.derived(key, || Self::new(kernels, product, weights))
    }

    fn new(kernels: &'static MicroKernels, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (k, n, layout) = (product.k(), product.n(), product.b());
        let shared = layout.batch() > 1 && layout.batch_stride() == 0;
        let items = if shared { 1 } else { layout.batch() };
        let item_len = packed_b_len(kernels, kernels.format.words(k), n);
        let sums = if matches!(kernels.format, Format::Int8Quads | Format::Int8Pairs) { n } else { 0 };
        let mut packed = Self {
            buffer: Buffer::zeroed(items.saturating_mul(item_len), "packed weights")?,
            // Products with a batch and without one share what is packed here.
            item_stride: if items == 1 { 0 } else { item_len },
            kernels,
            column_sums: crate::alloc::filled(items.saturating_mul(sums), 0i32, "sums of weights")?,
        };
        let mut interleave = interleave_b::Packer::new(kernels, product)?;
        for item in 0..items {
            let to = packed.buffer.start_mut().wrapping_add(item * item_len);
            match (kernels.format, weights.view_for(product)) {
                (Format::F32 | Format::F64, view) => {
                    let b = Matrix::of(&view, layout, product.transpose_b(), item);
                    // SAFETY: the weights cover their layout, and the buffer has room for every item.
                    unsafe { pack_b(kernels, b, k, n, to) };
                }
                #[cfg(feature = "half")]
                (Format::F16 | Format::Bf16, view) => {
                    // SAFETY: the buffer has room for every item, of two elements in a word.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u16>(), item_len * 2) };
                    panels16::pack(kernels, product, &view, item, to);
                }
                (_, view) => {
                    let sums = &mut packed.column_sums[item * sums..(item + 1) * sums];
                    // SAFETY: as for f32; kernels are of instructions that are here.
                    unsafe { interleave.pack(&view, item, &(0..n), to, sums) };
                }
            }
        }
        Ok(packed)
    }

    /// The first micro-panel of the first item, and the words from item to item.
    pub(crate) fn items(&self) -> (*const Word, usize) {
        (self.buffer.start(), self.item_stride)
    }

    /// The micro-panels of an item from column `col`, which begins one, and the row `first_k` of B on.
    pub(crate) fn panels(&self, product: &MatMul, item: usize, col: usize, first_k: usize) -> Panels {
        let (k, n) = (self.kernels.format.words(product.k()), product.n());
        let whole = packed_b_len(self.kernels, k, col);
        let start = self.buffer.start().wrapping_add(item * self.item_stride + whole);
        Panels { first_k, ..Panels::packed(self.kernels, start, k, n - col) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.bytes() + size_of_val(self.column_sums.as_slice())
    }
}

/// Where the micro-panels of a part of B lie: blocks of NR adjacent columns, or fewer in the last one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels {
    pub base: *const Word,
    /// Words from a micro-panel to the next one.
    pub step: usize,
    /// Words from k to k + 1, in every micro-panel but a narrower last one.
    pub stride: usize,
    /// Words from k to k + 1 in a last micro-panel that is narrower.
    pub last_stride: usize,
    /// The row of B that counts as the first.
    pub first_k: usize,
}

impl Panels {
    /// A matrix as it is: k rows, `stride` apart.
    pub(crate) fn plain(kernels: &MicroKernels, base: *const Word, stride: usize) -> Self {
        Self { base, step: kernels.panel_words(), stride, last_stride: stride, first_k: 0 }
    }

    /// What [`pack_b`] made of `k` rows and `cols` columns.
    pub(crate) fn packed(kernels: &MicroKernels, base: *const Word, k: usize, cols: usize) -> Self {
        let stride = kernels.panel_words();
        let last = cols & (kernels.nr() - 1);
        let last_stride = kernels.vectors(last) * kernels.b_words;
        Self { base, step: stride * k, stride, last_stride, first_k: 0 }
    }

    /// Where row `k` of a micro-panel lies; only the last one may be `narrow`.
    pub(crate) fn at(&self, panel: usize, k: usize, narrow: bool) -> *const Word {
        self.base.wrapping_add(panel * self.step + (self.first_k + k) * self.stride_of(narrow))
    }

    /// Words from k to k + 1.
    pub(crate) fn stride_of(&self, narrow: bool) -> usize {
        if narrow { self.last_stride } else { self.stride }
    }
}

/// The columns that `cols` take when packed: whole vectors.
pub(crate) fn packed_cols(kernels: &MicroKernels, cols: usize) -> usize {
    kernels.vectors(cols) * kernels.lanes()
}

/// The words in the micro-panels of `k` rows and `cols` columns, which [`pack_b`] writes.
pub(crate) fn packed_b_len(kernels: &MicroKernels, k: usize, cols: usize) -> usize {
    k * kernels.vectors(cols) * kernels.b_words
}

/// A matrix in memory: where it starts, the words between its contiguous runs, and whether those
/// are columns of the operand instead of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub start: *const Word,
    pub stride: usize,
    pub transposed: bool,
}

impl Matrix {
    /// One item of an operand of f32 or f64.
    pub(crate) fn of(view: &AnyView<'_>, layout: &Layout, transposed: bool, item: usize) -> Self {
        let (start, words) = start_of_numbers(view);
        let start = start.wrapping_add(layout.item_offset(item) * words);
        // The stride of a single run may be any.
        Self { start, stride: layout.leading_dimension().wrapping_mul(words), transposed }
    }

    /// The part from `row` and `col` on.
    pub(crate) fn at(&self, kernels: &MicroKernels, row: usize, col: usize) -> Self {
        let (run, offset) = if self.transposed { (col, row) } else { (row, col) };
        let words = run * self.stride + offset * kernels.number_words();
        Self { start: self.start.wrapping_add(words), ..*self }
    }
}

/// The first word of an operand of f32 or f64, and the words of each number.
pub(crate) fn start_of_numbers(view: &AnyView<'_>) -> (*const Word, usize) {
    match view {
        AnyView::F32(view) => (view.data().as_ptr().cast(), 1),
        AnyView::F64(view) => (view.data().as_ptr().cast(), 2),
        _ => unreachable!("what is read as it lies is f32 or f64"),
    }
}

/// Rows of B that are packed at a time, while the source's pages and the target's lines are at hand.
pub(crate) const K_STEP: usize = 8;

/// Packs `k` rows and `cols` columns of op(B) into micro-panels; missing columns of the last vector are 0.
///
/// # Safety
/// `b` covers them, and `to` has room for [`packed_b_len`]; the instruction set is there.
pub(crate) unsafe fn pack_b(kernels: &MicroKernels, b: Matrix, k: usize, cols: usize, to: *mut Word) {
    let panel = kernels.nr();
    let (lanes, words) = (kernels.lanes(), kernels.number_words());
    // SAFETY: rows, columns and targets stay below k, cols and the packed length.
    unsafe {
        if b.transposed {
            for first in (0..cols).step_by(panel) {
                let there = panel.min(cols - first);
                let width = packed_cols(kernels, there) * words;
                let to = to.add(first * k * words);
                for row in (0..k).step_by(lanes) {
                    for col in (0..there).step_by(lanes) {
                        let from = b.at(kernels, row, first + col).start;
                        let (rows, ks) = (lanes.min(there - col), lanes.min(k - row));
                        (kernels.vector.transpose)(
                            from,
                            b.stride,
                            rows,
                            ks,
                            to.add(row * width + col * words),
                            width,
                        );
                    }
                }
            }
        } else {
            for row in (0..k).step_by(K_STEP) {
                let rows = K_STEP.min(k - row);
                for first in (0..cols).step_by(panel) {
                    let there = panel.min(cols - first);
                    let width = packed_cols(kernels, there) * words;
                    let to = to.add(first * k * words + row * width);
                    (kernels.vector.copy)(b.at(kernels, row, first).start, b.stride, rows, there, to, width);
                }
            }
        }
    }
}

/// Words from k to k + 1 in a packed micro-panel of `rows` rows of A.
pub(crate) fn a_panel_stride(kernels: &MicroKernels, rows: usize) -> usize {
    // Whole vectors are written; one that is cut short is completed by the next k.
    let rows = if rows <= kernels.lanes() { rows } else { rows.next_multiple_of(kernels.lanes()) };
    rows * kernels.number_words()
}

/// The words that [`pack_a`] may touch from `to` on.
pub(crate) fn packed_a_len(kernels: &MicroKernels, rows: usize, k: usize) -> usize {
    a_panel_stride(kernels, rows) * k + kernels.lanes() * kernels.number_words()
}

/// Packs a micro-panel of `rows` rows and `k` columns of op(A), so that the rows lie side by side.
///
/// # Safety
/// `a` covers them, and `to` has room for [`packed_a_len`]; the instruction set is there.
pub(crate) unsafe fn pack_a(kernels: &MicroKernels, a: Matrix, rows: usize, k: usize, to: *mut Word) {
    let stride = a_panel_stride(kernels, rows);
    let (lanes, words) = (kernels.lanes(), kernels.number_words());
    // SAFETY: as for `pack_b`; a vector reaches at most one vector past the last row's end.
    unsafe {
        if a.transposed {
            (kernels.vector.copy)(a.start, a.stride, k, rows, to, stride);
        } else {
            for col in (0..k).step_by(lanes) {
                for row in (0..rows).step_by(lanes) {
                    let from = a.at(kernels, row, col).start;
                    let to = to.add(col * stride + row * words);
                    (kernels.vector.transpose)(
                        from,
                        a.stride,
                        lanes.min(rows - row),
                        lanes.min(k - col),
                        to,
                        stride,
                    );
                }
            }
        }
    }
}

/// Copies `rows` rows of `cols` numbers in whole vectors: what is missing of a row's last vector is 0.
///
/// # Safety
/// As [`Vector`]; the rows can be read, and at `to` there is room for their whole vectors.
#[inline(always)]
pub(crate) unsafe fn copy_rows<V: Vector>(
    from: *const V::Number,
    from_stride: usize,
    rows: usize,
    cols: usize,
    to: *mut V::Number,
    to_stride: usize,
) {
    // SAFETY: by the function's own contract.
    unsafe {
        let whole = cols / V::LANES * V::LANES;
        let mask = V::mask(cols - whole);
        for row in 0..rows {
            let (from, to) = (from.add(row * from_stride), to.add(row * to_stride));
            for col in (0..whole).step_by(V::LANES) {
                V::load(from.add(col)).store(to.add(col));
            }
            if whole < cols {
                V::load_masked(from.add(whole), mask).store(to.add(whole));
            }
        }
    }
}
