//! Elements of B adjacent along k in one word, in micro-panels as the dot-product instructions read them.

use std::ops::Range;

use super::{Format, K_STEP, Matrix, Word, pack_b, packed_cols};
use crate::alloc;
#[cfg(all(target_arch = "x86_64", feature = "half"))]
use crate::backend::cpu::isa::avx512_interleave::interleave_pairs;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::isa::avx512_interleave::interleave_quads;
use crate::backend::cpu::microkernel::MicroKernels;
use crate::backend::cpu::run::blocks;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::error::Result;
use crate::operands::view::AnyView;

/// Packs parts of a B.
pub(crate) struct Packer {
    kernels: &'static MicroKernels,
    transpose: bool,
    k: usize,
    /// Columns of op(B) as rows of words, where B is transposed.
    stage: Vec<u32>,
}

impl Packer {
    pub(crate) fn new(kernels: &'static MicroKernels, product: &MatMul) -> Result<Self> {
        let transpose = product.transpose_b();
        let words = kernels.format.words(product.k());
        let staged = transpose && matches!(kernels.format, Format::Bf16Pairs | Format::Int8Quads);
        let stage = if staged { kernels.nr().saturating_mul(words) } else { 0 };
        let stage = alloc::filled(stage, 0u32, "packed operands")?;
        Ok(Self { kernels, transpose, k: product.k(), stage })
    }

    /// Packs some columns of op(B); the sums of integers are written to `sums`, which is empty for bf16. Whether
    /// a bf16 among them is subnormal, which the instruction would take for 0.
    ///
    /// # Safety
    /// `view` covers the product's B, `out` has room for [`packed_b_len`](super::packed_b_len) of its words, and the
    /// instructions of the kernels are here.
    pub(crate) unsafe fn pack(
        &mut self,
        view: &AnyView<'_>,
        item: usize,
        cols: &Range<usize>,
        out: *mut Word,
        sums: &mut [i32],
    ) -> bool {
        sums.fill(0);
        let layout = view.layout();
        match (self.kernels.format, view) {
            #[cfg(feature = "half")]
            (Format::Bf16Pairs, AnyView::Bf16(view)) => {
                let data = view.data();
                // SAFETY: a bf16 is its 16 bits.
                let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u16>(), data.len()) };
                // SAFETY: by the function's own contract.
                unsafe { self.pack_elements::<u16, 2>(data, layout, item, cols, out, sums) }
            }
            (Format::Int8Quads, AnyView::I8(view)) => {
                // SAFETY: by the function's own contract.
                unsafe { self.pack_elements::<i8, 4>(view.data(), layout, item, cols, out, sums) }
            }
            (Format::Int8Pairs, AnyView::I8(view)) => {
                // SAFETY: by the function's own contract.
                unsafe { self.pack_int8_pairs(view.data(), layout, item, cols, out, sums) };
                false
            }
            // A plan has no other.
            _ => false,
        }
    }

    /// # Safety
    /// As [`Packer::pack`].
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2"))]
    unsafe fn pack_int8_pairs(
        &self,
        data: &[i8],
        layout: &Layout,
        item: usize,
        cols: &Range<usize>,
        out: *mut Word,
        sums: &mut [i32],
    ) {
        let (kernels, k) = (self.kernels, self.k);
        let pairs = k.div_ceil(2);
        let (start, stride) = (layout.item_offset(item), layout.leading_dimension());
        let len = packed_cols(kernels, cols.len()) * pairs;
        // SAFETY: by the function's own contract: half a word for each pair.
        let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u16>(), len) };
        let pair = |low: i8, high: i8| u16::from_le_bytes([low.cast_unsigned(), high.cast_unsigned()]);
        // Few rows at a time, so that their pages stay at hand.
        for rows in blocks(&(0..pairs), if self.transpose { pairs } else { K_STEP }) {
            for some in blocks(cols, kernels.nr()) {
                let (first, width) = (some.start - cols.start, packed_cols(kernels, some.len()));
                let panel = &mut out[first * pairs..][..width * pairs];
                let sums = &mut sums[first..][..some.len()];
                if self.transpose {
                    for (i, (col, sum)) in some.zip(sums).enumerate() {
                        let column = &data[start + col * stride..][..k];
                        *sum = column.iter().fold(0, |sum, &x| sum.wrapping_add(x.into()));
                        for (to, x) in panel[i..].iter_mut().step_by(width).zip(column.chunks(2)) {
                            *to = pair(x[0], x.get(1).copied().unwrap_or(0));
                        }
                    }
                    continue;
                }
                for row in rows.clone() {
                    let row_of = |row: usize| &data[start + row * stride + some.start..][..some.len()];
                    let (low, to) = (row_of(2 * row), &mut panel[row * width..][..some.len()]);
                    if 2 * row + 1 == k {
                        for ((to, sum), &low) in to.iter_mut().zip(&mut *sums).zip(low) {
                            *to = pair(low, 0);
                            *sum = sum.wrapping_add(low.into());
                        }
                        continue;
                    }
                    let both = low.iter().zip(row_of(2 * row + 1));
                    for ((to, sum), (&low, &high)) in to.iter_mut().zip(&mut *sums).zip(both) {
                        *to = pair(low, high);
                        *sum = sum.wrapping_add(i32::from(low) + i32::from(high));
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Packer::pack`].
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
    unsafe fn pack_elements<T: Interleaved, const PER_WORD: usize>(
        &mut self,
        data: &[T],
        layout: &Layout,
        item: usize,
        cols: &Range<usize>,
        out: *mut Word,
        sums: &mut [i32],
    ) -> bool {
        let mut subnormal = false;
        let (kernels, k) = (self.kernels, self.k);
        let (panel, words) = (kernels.nr(), k.div_ceil(PER_WORD));
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
pub(crate) struct Interleave<T> {
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
pub(crate) trait Interleaved: Copy {
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

impl Interleaved for i8 {
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
impl Interleaved for u16 {
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
        cfg!(target_arch = "x86_64") && self & 0x7f80 == 0 && self & 0x007f != 0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn interleave<const PER_WORD: usize>(i: &Interleave<u16>) -> bool {
        // SAFETY: by the function's own contract.
        unsafe { interleave_pairs(i) }
    }
}

#[inline(always)]
fn word_of<T: Interleaved, const PER_WORD: usize>(elements: &[T]) -> u32 {
    elements.iter().enumerate().fold(0, |word, (i, x)| word | x.bits() << (i * 32 / PER_WORD))
}
