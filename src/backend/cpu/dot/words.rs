//! Narrow elements of B side by side in words of 32 bits, in panels as the dot-product instructions read
//! them.

use std::ops::Range;
use std::sync::Arc;

use super::super::buffer::Buffer;
use super::super::kernel::{Kernels, Lane};
use super::super::pack::{K_STEP, Matrix, pack_b, packed_b_len, packed_cols};
#[cfg(all(target_arch = "x86_64", feature = "half"))]
use super::super::simd::avx512_words::interleave_pairs;
#[cfg(target_arch = "x86_64")]
use super::super::simd::avx512_words::interleave_quads;
use crate::alloc;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantB;
use crate::error::Result;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// The elements in a word.
pub(super) const fn lane_elements(lane: Lane) -> usize {
    match lane {
        Lane::Bf16Pair => 2,
        Lane::Int8Quad => 4,
    }
}

/// The words of `k` elements.
pub(super) const fn words(lane: Lane, k: usize) -> usize {
    k.div_ceil(lane_elements(lane))
}

/// A constant B in panels of words, shared by all products of the same weights.
pub(super) struct PackedWords {
    buffer: Buffer,
    /// From item to item; 0 when all share one.
    item_stride: usize,
    /// The sum of each column of integers, item by item as the panels.
    pub column_sums: Vec<i32>,
}

impl PackedWords {
    pub(super) fn of(
        kernels: &'static Kernels,
        lane: Lane,
        product: &MatMul,
        weights: &Weights,
    ) -> Result<Arc<Self>> {
        weights.derived((kernels.name, product.transpose_b(), QuantB::None), || {
            Self::new(kernels, lane, product, weights)
        })
    }

    fn new(kernels: &'static Kernels, lane: Lane, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (n, k, layout) = (product.n(), words(lane, product.k()), product.b());
        let shared = layout.batch() > 1 && layout.batch_stride() == 0;
        let items = if shared { 1 } else { layout.batch() };
        let item_len = packed_b_len(kernels, k, n);
        let integers = if lane == Lane::Int8Quad { items.saturating_mul(n) } else { 0 };
        let mut packed = Self {
            buffer: Buffer::zeroed(items.saturating_mul(item_len), "packed weights")?,
            item_stride: if shared { 0 } else { item_len },
            column_sums: alloc::filled(integers, 0i32, "sums of weights")?,
        };
        let mut packer = Packer::new(kernels, lane, product)?;
        for item in 0..items {
            let out = packed.buffer.start_mut().wrapping_add(item * item_len);
            let sums = if integers > 0 { item * n..(item + 1) * n } else { 0..0 };
            // SAFETY: the weights cover their layout, the buffer has room for every item, and kernels are
            // of instructions that are here.
            unsafe { packer.pack(&weights.view(), item, &(0..n), out, &mut packed.column_sums[sums]) };
        }
        Ok(packed)
    }

    /// Where the panels of an item start.
    pub(super) fn item(&self, item: usize) -> *const f32 {
        self.buffer.start().wrapping_add(item * self.item_stride)
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes() + size_of_val(self.column_sums.as_slice())
    }
}

/// Packs parts of a B.
pub(super) struct Packer {
    kernels: &'static Kernels,
    lane: Lane,
    transpose: bool,
    k: usize,
    /// Columns of op(B) as rows of words, where B is transposed.
    stage: Vec<u32>,
}

impl Packer {
    pub(super) fn new(kernels: &'static Kernels, lane: Lane, product: &MatMul) -> Result<Self> {
        let transpose = product.transpose_b();
        let stage = if transpose { kernels.panel().saturating_mul(words(lane, product.k())) } else { 0 };
        let stage = alloc::filled(stage, 0u32, "packed operands")?;
        Ok(Self { kernels, lane, transpose, k: product.k(), stage })
    }

    /// Packs some columns of op(B); the sums of integers are written to `sums`, which is empty for bf16. Whether
    /// a bf16 among them is subnormal, which the instruction would take for 0.
    ///
    /// # Safety
    /// `view` covers the product's B, `out` has room for [`packed_b_len`] of its words, and the
    /// instructions of the kernels are here.
    pub(super) unsafe fn pack(
        &mut self,
        view: &AnyView<'_>,
        item: usize,
        cols: &Range<usize>,
        out: *mut f32,
        sums: &mut [i32],
    ) -> bool {
        sums.fill(0);
        let layout = view.layout();
        match (self.lane, view) {
            #[cfg(feature = "half")]
            (Lane::Bf16Pair, AnyView::Bf16(view)) => {
                let data = view.data();
                // SAFETY: a bf16 is its 16 bits.
                let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u16>(), data.len()) };
                // SAFETY: by the function's own contract.
                unsafe { self.pack_elements::<u16, 2>(data, layout, item, cols, out, sums) }
            }
            (Lane::Int8Quad, AnyView::I8(view)) => {
                // SAFETY: by the function's own contract.
                unsafe { self.pack_elements::<i8, 4>(view.data(), layout, item, cols, out, sums) }
            }
            // `lane_of` leaves the two.
            _ => false,
        }
    }

    /// # Safety
    /// As [`Packer::pack`].
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
    unsafe fn pack_elements<T: Narrow, const PER_WORD: usize>(
        &mut self,
        data: &[T],
        layout: &Layout,
        item: usize,
        cols: &Range<usize>,
        out: *mut f32,
        sums: &mut [i32],
    ) -> bool {
        let mut subnormal = false;
        let (kernels, k) = (self.kernels, self.k);
        let (panel, words) = (kernels.panel(), k.div_ceil(PER_WORD));
        let (start, stride) = (layout.item_offset(item), layout.leading_dimension());
        if self.transpose {
            for first in cols.clone().step_by(panel) {
                let there = panel.min(cols.end - first);
                for (i, row) in self.stage.chunks_exact_mut(words).take(there).enumerate() {
                    let column = &data[start + (first + i) * stride..][..k];
                    let mut elements = column.chunks(PER_WORD);
                    for (word, elements) in row.iter_mut().zip(&mut elements) {
                        *word = word_of::<T, PER_WORD>(elements);
                    }
                    subnormal |= column.iter().fold(false, |any, x| any | x.is_subnormal());
                    if let Some(sum) = sums.get_mut(first - cols.start + i) {
                        *sum = column.iter().fold(0, |sum, x| sum.wrapping_add(x.integer()));
                    }
                }
                let from = Matrix { start: self.stage.as_ptr().cast(), stride: words, transposed: true };
                let out = out.wrapping_add((first - cols.start) * words);
                // SAFETY: the stage has the columns, and `out` room for them; kernels move words as they are.
                unsafe { pack_b(kernels, from, words, there, out) };
            }
            return subnormal;
        }
        // Few rows at a time, so that their pages stay at hand.
        for first_word in (0..words).step_by(K_STEP) {
            let some = first_word..words.min(first_word + K_STEP);
            for first in cols.clone().step_by(panel) {
                let there = panel.min(cols.end - first);
                let width = packed_cols(kernels, there);
                let of_panel = Interleave {
                    from: data[start + some.start * PER_WORD * stride + first..].as_ptr(),
                    from_stride: stride,
                    rows: k.min(some.end * PER_WORD) - some.start * PER_WORD,
                    cols: there,
                    to: out.wrapping_add((first - cols.start) * words + some.start * width).cast(),
                    to_stride: width,
                    sums: sums.get_mut(first - cols.start..).unwrap_or_default().as_mut_ptr(),
                };
                // SAFETY: the rows are there, since B covers its layout, as well as the sums of integers;
                // `out` has room for the panel's words.
                subnormal |= unsafe { T::interleave::<PER_WORD>(&of_panel) };
            }
        }
        subnormal
    }
}

/// Rows of B that become rows of words, in whole vectors of columns.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Interleave<T> {
    pub from: *const T,
    pub from_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub to: *mut u32,
    pub to_stride: usize,
    /// Of the columns, for integers.
    pub sums: *mut i32,
}

/// An element that words hold.
pub(super) trait Narrow: Copy {
    fn bits(self) -> u32;

    /// What sums of columns are of.
    fn integer(self) -> i32;

    /// Whether the instruction takes it for 0, though it is not.
    fn is_subnormal(self) -> bool;

    /// Writes `PER_WORD` rows at a time as words, with 0 for what is missing, and adds integers to the sums
    /// of their columns; whether an element is subnormal.
    ///
    /// # Safety
    /// The elements and the sums are there, there is room for the words, and the instructions of the
    /// kernels are here.
    #[inline(always)]
    unsafe fn interleave<const PER_WORD: usize>(i: &Interleave<Self>) -> bool {
        let mut subnormal = false;
        for word in 0..i.rows.div_ceil(PER_WORD) {
            for col in 0..i.to_stride {
                let rows = word * PER_WORD..i.rows.min((word + 1) * PER_WORD);
                let mut bits = 0;
                for (place, row) in rows.enumerate().filter(|_| col < i.cols) {
                    // SAFETY: by the function's own contract.
                    let x = unsafe { *i.from.add(row * i.from_stride + col) };
                    bits |= x.bits() << (place * 32 / PER_WORD);
                    subnormal |= x.is_subnormal();
                    if PER_WORD == 4 {
                        // SAFETY: as above.
                        unsafe { *i.sums.add(col) = (*i.sums.add(col)).wrapping_add(x.integer()) };
                    }
                }
                // SAFETY: as above.
                unsafe { i.to.add(word * i.to_stride + col).write(bits) };
            }
        }
        subnormal
    }
}

impl Narrow for i8 {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.cast_unsigned().into()
    }

    #[inline(always)]
    fn integer(self) -> i32 {
        self.into()
    }

    #[inline(always)]
    fn is_subnormal(self) -> bool {
        false
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn interleave<const PER_WORD: usize>(i: &Interleave<i8>) -> bool {
        // SAFETY: by the function's own contract.
        unsafe { interleave_quads(i) };
        false
    }
}

/// A bf16, of whose columns there are no sums.
#[cfg(feature = "half")]
impl Narrow for u16 {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.into()
    }

    #[inline(always)]
    fn integer(self) -> i32 {
        0
    }

    #[inline(always)]
    fn is_subnormal(self) -> bool {
        self & 0x7f80 == 0 && self & 0x007f != 0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn interleave<const PER_WORD: usize>(i: &Interleave<u16>) -> bool {
        // SAFETY: by the function's own contract.
        unsafe { interleave_pairs(i) }
    }
}

#[inline(always)]
fn word_of<T: Narrow, const PER_WORD: usize>(elements: &[T]) -> u32 {
    elements.iter().enumerate().fold(0, |word, (i, x)| word | x.bits() << (i * 32 / PER_WORD))
}
