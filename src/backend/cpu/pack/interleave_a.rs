//! Rows of A as words of elements adjacent along k, with what follows their sums.

use std::ops::Range;

use super::upcast::{load_row, quantized, scale_for};
use super::{Format, Matrix, Word};
use crate::backend::cpu::epilogue::requantize::RowTerms;
#[cfg(all(target_arch = "x86_64", feature = "half"))]
use crate::backend::cpu::isa::avx512_interleave::any_subnormal;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::isa::avx512_interleave::{copy_rows_unsigned, copy_unsigned};
use crate::backend::cpu::plan::Plan;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantA;
use crate::operands::view::AnyView;

/// Rows of words that are a multiple of so many apart meet in one set of a first-level cache of 64 sets.
pub(crate) const SET_WORDS: usize = 1024;

/// Whether the instruction takes the bytes of A for unsigned: that of x86-64 does, that of AArch64 not.
const UNSIGNED: bool = cfg!(target_arch = "x86_64");

/// An A of the other sign has its bytes' highest bits flipped: 128 more, or 128 less.
const HIGHEST: u8 = 0x80;

/// Whether the highest bits of A's bytes are flipped on their way to words.
fn is_flipped(format: Format, product: &MatMul) -> bool {
    format == Format::Int8Quads && (product.types().a == ElementType::U8) != UNSIGNED
}

/// The zero point of the integers of A as they lie in the words.
fn zero_point(format: Format, product: &MatMul) -> i32 {
    let zero_point = product.quantization().a.zero_point();
    match (is_flipped(format, product), UNSIGNED) {
        (false, _) => zero_point,
        (true, true) => zero_point + 128,
        (true, false) => zero_point - 128,
    }
}

/// Makes zero-point compensations of the sums of B's columns.
pub(crate) fn compensate(format: Format, product: &MatMul, sums: &mut [i32]) {
    let zero_point = zero_point(format, product);
    for sum in sums {
        *sum = sum.wrapping_mul(zero_point);
    }
}

/// Whether rows have terms of their own: scales, or what a zero point of B adds.
pub(crate) fn has_row_terms(product: &MatMul) -> bool {
    let quantization = product.quantization();
    quantization.a == QuantA::DynamicPerRow || quantization.b.zero_point() != 0
}

/// Whether an element of a bf16 matrix is subnormal, which the instruction of x86-64 would take for 0.
///
/// # Safety
/// The instructions of the kernels are here.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
pub(crate) unsafe fn has_subnormals(view: &AnyView<'_>) -> bool {
    match view {
        #[cfg(all(target_arch = "x86_64", feature = "half"))]
        AnyView::Bf16(view) => {
            let layout = view.layout();
            if layout.is_empty() {
                return false;
            }
            let (rows, cols, stride) = (layout.rows(), layout.cols(), layout.leading_dimension());
            // Rows without a gap are one.
            let (rows, cols) = if stride == cols { (1, rows * cols) } else { (rows, cols) };
            (0..layout.batch()).any(|item| {
                let elements = &view.data()[layout.item_offset(item)..][..(rows - 1) * stride + cols];
                // SAFETY: a bf16 is its 16 bits; the rows are there, and the instructions by the function's
                // own contract.
                unsafe { any_subnormal(elements.as_ptr().cast(), stride, rows, cols) }
            })
        }
        _ => false,
    }
}

/// The rows of op(A) from `row` on where they are words as they lie.
pub(crate) fn as_it_lies(plan: &Plan, a: &AnyView<'_>, item: usize, row: usize) -> Option<Matrix> {
    let (product, format) = (&plan.product, plan.kernels.format);
    if product.transpose_a() {
        return None;
    }
    let elements = format.k_per_word();
    let layout = a.layout();
    let stride = layout.leading_dimension();
    let index = layout.item_offset(item) + row * stride;
    let start: *const Word = match (format, a) {
        #[cfg(feature = "half")]
        (Format::Bf16Pairs, AnyView::Bf16(view)) => view.data()[index..].as_ptr().cast(),
        (Format::Int8Quads, AnyView::U8(view)) if !is_flipped(format, product) && !has_row_terms(product) => {
            view.data()[index..].as_ptr().cast()
        }
        (Format::Int8Quads, AnyView::I8(view)) if !is_flipped(format, product) && !has_row_terms(product) => {
            view.data()[index..].as_ptr().cast()
        }
        _ => return None,
    };
    let whole = product.k().is_multiple_of(elements)
        && stride.is_multiple_of(elements)
        && !(stride / elements).is_multiple_of(SET_WORDS)
        && start.is_aligned();
    whole.then_some(Matrix { start, stride: stride / elements, transposed: false })
}

/// Words after the last row that may be written with it.
pub(crate) const SLACK_WORDS: usize = 16;

/// Where rows of A become words.
pub(crate) struct Rows<'a> {
    pub start: *mut Word,
    pub stride: usize,
    /// The words of a row.
    pub count: usize,
    /// What follows the sums of each row.
    pub terms: &'a mut [RowTerms],
    /// Room for k numbers where A is quantised on the way.
    pub floats: &'a mut [f32],
}

/// Interleaves rows of op(A), with 0 past their ends.
///
/// # Safety
/// There is room for the rows and [`SLACK_WORDS`] after them; the instructions of the kernels are here.
pub(crate) unsafe fn interleave(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    rows: Range<usize>,
    out: &mut Rows<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if plan.kernels.format == Format::Int8Pairs {
        // SAFETY: by the function's own contract.
        return unsafe { interleave_int8_pairs(plan, a, item, rows, out) };
    }
    // SAFETY: by the function's own contract.
    unsafe { interleave_for_extension(plan, a, item, rows, out) };
}

/// # Safety
/// As [`interleave`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn interleave_int8_pairs(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    rows: Range<usize>,
    out: &mut Rows<'_>,
) {
    // SAFETY: by the function's own contract.
    unsafe { write_rows(plan, a, item, rows, out) };
}

/// # Safety
/// As [`interleave`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
unsafe fn interleave_for_extension(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    rows: Range<usize>,
    out: &mut Rows<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if let (Format::Int8Quads, AnyView::I8(view)) = (plan.kernels.format, a)
        && !plan.product.transpose_a()
        && !has_row_terms(&plan.product)
    {
        let (layout, to) = (a.layout(), out.start.cast());
        let stride = layout.leading_dimension();
        let from = view.data()[layout.item_offset(item) + rows.start * stride..].as_ptr();
        // SAFETY: by the function's own contract.
        unsafe { copy_rows_unsigned(from, stride, rows.len(), plan.product.k(), to, out.stride * 4) };
        return;
    }
    // SAFETY: by the function's own contract.
    unsafe { write_rows(plan, a, item, rows, out) };
}

/// # Safety
/// As [`interleave`].
#[inline(always)]
unsafe fn write_rows(plan: &Plan, a: &AnyView<'_>, item: usize, rows: Range<usize>, out: &mut Rows<'_>) {
    for (i, row) in rows.enumerate() {
        // SAFETY: by the function's own contract.
        unsafe {
            let words = std::slice::from_raw_parts_mut(out.start.add(i * out.stride).cast(), out.count);
            out.terms[i] = write_row(plan, a, item, row, words, out.floats);
        }
    }
}

/// # Safety
/// As [`interleave`].
#[inline(always)]
unsafe fn write_row(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    row: usize,
    words: &mut [u32],
    floats_scratch: &mut [f32],
) -> RowTerms {
    let product = &plan.product;
    let k = product.k();
    let layout = a.layout();
    let start = layout.item_offset(item);
    let (first, step) = if product.transpose_a() {
        (start + row, layout.leading_dimension())
    } else {
        (start + row * layout.leading_dimension(), 1)
    };
    let last = words.len() - 1;
    words[last] = 0;
    if plan.kernels.format == Format::Bf16Pairs {
        #[cfg(feature = "half")]
        if let AnyView::Bf16(view) = a {
            let out = &mut halves(words)[..k];
            if step == 1 {
                for (out, x) in out.iter_mut().zip(&view.data()[first..first + k]) {
                    *out = x.to_bits();
                }
            } else {
                for (p, out) in out.iter_mut().enumerate() {
                    *out = view.data()[first + p * step].to_bits();
                }
            }
        }
        return RowTerms { add: 0, scale: plan.scales.a };
    }
    let (add, scale) = if plan.kernels.format == Format::Int8Pairs {
        let out = &mut halves(words)[..k];
        // SAFETY: by the function's own contract.
        unsafe { write_integers(plan, a, item, row, (first, step), out, floats_scratch) }
    } else {
        let out = &mut bytes(words)[..k];
        // SAFETY: by the function's own contract.
        unsafe { write_integers(plan, a, item, row, (first, step), out, floats_scratch) }
    };
    RowTerms { add, scale }
}

/// Writes a row of integers; what is added to its sums, and its scale.
///
/// # Safety
/// As [`interleave`].
#[inline(always)]
unsafe fn write_integers<T: Integer>(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    row: usize,
    (first, step): (usize, usize),
    out: &mut [T],
    floats_scratch: &mut [f32],
) -> (i32, f32) {
    let (product, k) = (&plan.product, out.len());
    let mut scale = plan.scales.a;
    match a {
        AnyView::I8(view) if step == 1 => {
            // SAFETY: the instructions are here.
            unsafe { T::copy_signed(&view.data()[first..first + k], out) };
        }
        AnyView::I8(view) => copy(view.data(), first, step, out, T::of_signed),
        AnyView::U8(view) => copy(view.data(), first, step, out, T::of_unsigned),
        _ => scale = quantize(plan, a, item, row, out, &mut floats_scratch[..k]),
    }
    let zero_b = product.quantization().b.zero_point();
    let mut add = 0i32;
    if zero_b != 0 {
        let sum = out.iter().fold(0i32, |sum, &x| sum.wrapping_add(x.into_i32()));
        // A description's k is far below 2^31.
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "modulo 2^32")]
        let k = k as i32;
        add = k.wrapping_mul(zero_point(plan.kernels.format, product)).wrapping_sub(sum).wrapping_mul(zero_b);
    }
    (add, scale)
}

/// The bits of an integer of A in a word.
trait Integer: Copy {
    fn of_signed(x: i8) -> Self;
    fn of_unsigned(x: u8) -> Self;
    fn into_i32(self) -> i32;

    /// [`Integer::of_signed`] for a row.
    ///
    /// # Safety
    /// As [`interleave`].
    #[inline(always)]
    unsafe fn copy_signed(from: &[i8], to: &mut [Self]) {
        copy(from, 0, 1, to, Self::of_signed);
    }
}

/// Of an i16, in pairs.
impl Integer for u16 {
    #[inline(always)]
    fn of_signed(x: i8) -> Self {
        i16::from(x).cast_unsigned()
    }

    #[inline(always)]
    fn of_unsigned(x: u8) -> Self {
        x.into()
    }

    #[inline(always)]
    fn into_i32(self) -> i32 {
        self.cast_signed().into()
    }
}

/// Of what the instruction takes, in quads.
impl Integer for u8 {
    #[inline(always)]
    fn of_signed(x: i8) -> Self {
        x.cast_unsigned() ^ if UNSIGNED { HIGHEST } else { 0 }
    }

    #[inline(always)]
    fn of_unsigned(x: u8) -> Self {
        x ^ if UNSIGNED { 0 } else { HIGHEST }
    }

    #[inline(always)]
    fn into_i32(self) -> i32 {
        if UNSIGNED { self.into() } else { self.cast_signed().into() }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn copy_signed(from: &[i8], to: &mut [Self]) {
        let count = from.len().min(to.len());
        // SAFETY: as many bytes are there as are written; the instructions by the function's own contract.
        unsafe { copy_unsigned(from.as_ptr(), count, to.as_mut_ptr()) };
    }
}

#[inline(always)]
fn copy<T: Copy, U>(data: &[T], first: usize, step: usize, out: &mut [U], f: impl Fn(T) -> U) {
    if step == 1 {
        for (out, &x) in out.iter_mut().zip(&data[first..]) {
            *out = f(x);
        }
    } else {
        for (p, out) in out.iter_mut().enumerate() {
            *out = f(data[first + p * step]);
        }
    }
}

/// Quantises a row; returns its scale, NaN where an element is not finite.
#[inline(always)]
fn quantize<T: Integer>(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    row: usize,
    out: &mut [T],
    floats_scratch: &mut [f32],
) -> f32 {
    load_row(plan.kernels.vector, a, item, plan.product.transpose_a(), row, floats_scratch);
    // Bits of magnitudes are ordered as these are, infinity and NaN last, and vectors compare them at once.
    let largest = floats_scratch.iter().fold(0, |largest: u32, x| largest.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        out.fill(T::of_signed(0));
        return f32::NAN;
    }
    let scale = scale_for(largest);
    for (out, &x) in out.iter_mut().zip(&*floats_scratch) {
        // By way of i32, which vectors are converted to at once.
        #[allow(clippy::cast_possible_truncation, reason = "-127 to 127")]
        let integer = quantized(x, scale) as i32 as i8;
        *out = T::of_signed(integer);
    }
    scale
}

fn bytes(words: &mut [u32]) -> &mut [u8] {
    let len = size_of_val(words);
    // SAFETY: any bytes are u8, and the slice is as long.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

fn halves(words: &mut [u32]) -> &mut [u16] {
    let len = words.len() * 2;
    // SAFETY: any two bytes are a u16, words are aligned for it, and the slice is as long.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}
