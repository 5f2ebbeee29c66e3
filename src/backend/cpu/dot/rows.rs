//! Rows of A as words, with what follows their sums.

use std::ops::Range;

use super::super::kernel::Lane;
use super::super::pack::Matrix;
#[cfg(all(target_arch = "x86_64", feature = "half"))]
use super::super::simd::avx512_words::any_subnormal;
#[cfg(target_arch = "x86_64")]
use super::super::simd::avx512_words::{copy_rows_unsigned, copy_unsigned};
use super::super::tile::RowTerms;
use super::super::typed::Plan;
use super::super::typed::load::{load_row, quantized, scale_for};
use super::SET_WORDS;
#[cfg(all(not(target_arch = "x86_64"), feature = "half"))]
use super::words::Narrow;
use super::words::lane_elements;
use crate::description::element::ElementType;
use crate::description::quantization::QuantA;
use crate::operands::view::AnyView;

/// Whether the instruction takes the bytes of A for unsigned: that of x86-64 does, that of AArch64 not.
const UNSIGNED: bool = cfg!(target_arch = "x86_64");

/// An A of the other sign has its bytes' highest bits turned over: 128 more, or 128 less.
const HIGHEST: u8 = 0x80;

/// Whether bytes of A are turned over on their way to words.
fn turned(plan: &Plan) -> bool {
    (plan.product.types().a == ElementType::U8) != UNSIGNED
}

/// What is taken off an 8-bit element of A as it lies in the words.
pub(super) fn offset(plan: &Plan) -> i32 {
    let zero_point = plan.product.quantization().a.zero_point();
    match (turned(plan), UNSIGNED) {
        (false, _) => zero_point,
        (true, true) => zero_point + 128,
        (true, false) => zero_point - 128,
    }
}

/// Whether rows have terms of their own: scales, or what a zero point of B adds.
pub(super) fn has_terms(plan: &Plan) -> bool {
    let quantization = plan.product.quantization();
    quantization.a == QuantA::DynamicPerRow || quantization.b.zero_point() != 0
}

/// Whether an element of a bf16 matrix is subnormal, which the instruction would take for 0.
///
/// # Safety
/// The instructions of the kernels are here.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
pub(super) unsafe fn has_subnormals(view: &AnyView<'_>) -> bool {
    let layout = view.layout();
    if layout.is_empty() {
        return false;
    }
    match view {
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => {
            let (rows, cols, stride) = (layout.rows(), layout.cols(), layout.leading_dimension());
            // Rows without a gap are one.
            let (rows, cols) = if stride == cols { (1, rows * cols) } else { (rows, cols) };
            (0..layout.batch()).any(|item| {
                let elements = &view.data()[layout.item_offset(item)..][..(rows - 1) * stride + cols];
                // SAFETY: a bf16 is its 16 bits; the rows are there, and the instructions by the function's
                // own contract.
                #[cfg(target_arch = "x86_64")]
                let any = unsafe { any_subnormal(elements.as_ptr().cast(), stride, rows, cols) };
                #[cfg(not(target_arch = "x86_64"))]
                let any =
                    elements.chunks(stride).any(|row| row[..cols].iter().any(|x| x.to_bits().is_subnormal()));
                any
            })
        }
        _ => false,
    }
}

/// The rows of op(A) from `row` on where they are words as they lie.
pub(super) fn direct(plan: &Plan, lane: Lane, a: &AnyView<'_>, item: usize, row: usize) -> Option<Matrix> {
    let product = &plan.product;
    if product.transpose_a() {
        return None;
    }
    let elements = lane_elements(lane);
    let layout = a.layout();
    let stride = layout.leading_dimension();
    let index = layout.item_offset(item) + row * stride;
    let start: *const f32 = match (lane, a) {
        #[cfg(feature = "half")]
        (Lane::Bf16Pair, AnyView::Bf16(view)) => view.data()[index..].as_ptr().cast(),
        (Lane::Int8Quad, AnyView::U8(view)) if !turned(plan) && !has_terms(plan) => {
            view.data()[index..].as_ptr().cast()
        }
        (Lane::Int8Quad, AnyView::I8(view)) if !turned(plan) && !has_terms(plan) => {
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
pub(super) const SLACK_WORDS: usize = 16;

/// Where rows of A become words.
pub(super) struct Words<'a> {
    pub start: *mut u32,
    pub stride: usize,
    /// The words of a row.
    pub count: usize,
    /// What follows the sums of each row.
    pub terms: &'a mut [RowTerms],
    /// Room for k numbers where A is quantised on the way.
    pub floats: &'a mut [f32],
}

/// Writes rows of op(A) as words, 0 past their ends.
///
/// # Safety
/// There is room for the rows and [`SLACK_WORDS`] after them; the instructions of the kernels are here.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
pub(super) unsafe fn write(
    plan: &Plan,
    lane: Lane,
    a: &AnyView<'_>,
    item: usize,
    rows: Range<usize>,
    out: &mut Words<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if let (Lane::Int8Quad, AnyView::I8(view)) = (lane, a)
        && !plan.product.transpose_a()
        && !has_terms(plan)
    {
        let (layout, to) = (a.layout(), out.start.cast());
        let stride = layout.leading_dimension();
        let from = view.data()[layout.item_offset(item) + rows.start * stride..].as_ptr();
        // SAFETY: by the function's own contract.
        unsafe { copy_rows_unsigned(from, stride, rows.len(), plan.product.k(), to, out.stride * 4) };
        return;
    }
    for (i, row) in rows.enumerate() {
        // SAFETY: by the function's own contract.
        unsafe {
            let words = std::slice::from_raw_parts_mut(out.start.add(i * out.stride), out.count);
            out.terms[i] = write_row(plan, lane, a, item, row, words, out.floats);
        }
    }
}

/// # Safety
/// As [`write`].
#[inline(always)]
unsafe fn write_row(
    plan: &Plan,
    lane: Lane,
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
    let mut scale = plan.scales.a;
    match lane {
        Lane::Bf16Pair => {
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
            RowTerms { add: 0, scale }
        }
        Lane::Int8Quad => {
            let out = &mut bytes(words)[..k];
            let turn = if turned(plan) { HIGHEST } else { 0 };
            match a {
                #[cfg(target_arch = "x86_64")]
                AnyView::I8(view) if step == 1 => {
                    let from = &view.data()[first..first + k];
                    // SAFETY: as many bytes are there as are written; the instructions are here.
                    unsafe { copy_unsigned(from.as_ptr(), k, out.as_mut_ptr()) };
                }
                AnyView::I8(view) => copy(view.data(), first, step, out, |x| x.cast_unsigned() ^ turn),
                AnyView::U8(view) => copy(view.data(), first, step, out, |x| x ^ turn),
                _ => {
                    scale = quantize(plan, a, item, row, out, &mut floats_scratch[..k]);
                }
            }
            let zero_b = product.quantization().b.zero_point();
            let mut add = 0i32;
            if zero_b != 0 {
                let element = |x: u8| if UNSIGNED { i32::from(x) } else { i32::from(x.cast_signed()) };
                let sum = out.iter().fold(0i32, |sum, &x| sum.wrapping_add(element(x)));
                // A description's k is far below 2^31.
                #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "modulo 2^32")]
                let k = k as i32;
                add = k.wrapping_mul(offset(plan)).wrapping_sub(sum).wrapping_mul(zero_b);
            }
            if product.quantization().a != QuantA::DynamicPerRow {
                scale = plan.scales.a;
            }
            RowTerms { add, scale }
        }
    }
}

#[inline(always)]
fn copy<T: Copy>(data: &[T], first: usize, step: usize, out: &mut [u8], f: impl Fn(T) -> u8) {
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
fn quantize(
    plan: &Plan,
    a: &AnyView<'_>,
    item: usize,
    row: usize,
    out: &mut [u8],
    floats_scratch: &mut [f32],
) -> f32 {
    load_row(plan.kernels, a, item, plan.product.transpose_a(), row, floats_scratch);
    let all_finite = floats_scratch.iter().all(|x| x.is_finite());
    if !all_finite {
        // Zeros.
        out.fill(if UNSIGNED { HIGHEST } else { 0 });
        return f32::NAN;
    }
    let scale = scale_for(floats_scratch.iter().fold(0f32, |largest, x| largest.max(x.abs())));
    for (out, &x) in out.iter_mut().zip(&*floats_scratch) {
        #[allow(clippy::cast_possible_truncation, reason = "-127 to 127")]
        let integer = quantized(x, scale) as i8;
        *out = integer.cast_unsigned() ^ if UNSIGNED { HIGHEST } else { 0 };
    }
    scale
}

fn bytes(words: &mut [u32]) -> &mut [u8] {
    let len = size_of_val(words);
    // SAFETY: any bytes are u8, and the slice is as long.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

#[cfg(feature = "half")]
fn halves(words: &mut [u32]) -> &mut [u16] {
    let len = words.len() * 2;
    // SAFETY: any two bytes are a u16, words are aligned for it, and the slice is as long.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}
