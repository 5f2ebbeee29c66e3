//! Rows of A as words, with what follows their sums.

use super::super::kernel::Lane;
use super::super::pack::Matrix;
#[cfg(all(target_arch = "x86_64", feature = "half"))]
use super::super::simd::avx512_dot::any_subnormal;
#[cfg(target_arch = "x86_64")]
use super::super::simd::avx512_dot::copy_unsigned;
use super::super::typed::Plan;
use super::super::typed::load::{load_row, quantized, scale_for};
use super::SET_WORDS;
use super::words::lane_elements;
use crate::element::ElementType;
use crate::quantization::QuantA;
use crate::view::AnyView;

/// What turns the sums of a row into those of the description.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct RowTerms {
    /// Added to each sum, modulo 2^32.
    pub add: i32,
    /// The scale of the row.
    pub scale: f32,
}

/// What is taken off an 8-bit element of A as it lies in the words: they are unsigned.
pub(super) fn offset(plan: &Plan) -> i32 {
    let zero_point = plan.product.quantization().a.zero_point();
    if plan.product.types().a == ElementType::U8 { zero_point } else { zero_point + 128 }
}

/// Whether an element of a bf16 A is subnormal, which the instruction would take for 0.
///
/// # Safety
/// AVX-512 is there.
pub(super) unsafe fn has_subnormals(view: &AnyView<'_>) -> bool {
    match view {
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => view.layout().row_spans().any(|(_, _, span)| {
            let row = &view.data()[span];
            // SAFETY: a bf16 is its 16 bits; AVX-512 is there by the function's own contract.
            #[cfg(target_arch = "x86_64")]
            let any = unsafe { any_subnormal(std::slice::from_raw_parts(row.as_ptr().cast(), row.len())) };
            #[cfg(not(target_arch = "x86_64"))]
            let any = row.iter().any(|x| super::words::is_subnormal(x.to_bits()));
            any
        }),
        _ => false,
    }
}

/// The rows of op(A) from `row` on where they are words as they lie; the terms of each are then
/// [`direct_terms`].
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
        (Lane::Int8Quad, AnyView::U8(view)) if product.quantization().b.zero_point() == 0 => {
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

/// What follows the sums of rows that are read as they lie.
pub(super) fn direct_terms(plan: &Plan) -> RowTerms {
    RowTerms { add: 0, scale: plan.scales.a }
}

/// Writes row `row` of op(A) as words, 0 past its end, and says what follows its sums.
///
/// `floats_scratch` has room for k numbers where A is quantised on the way.
///
/// # Safety
/// AVX-512 is there.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl"))]
pub(super) unsafe fn write(
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
            match a {
                #[cfg(target_arch = "x86_64")]
                AnyView::I8(view) if step == 1 => {
                    let from = &view.data()[first..first + k];
                    // SAFETY: as many bytes are there as are written; AVX-512 is, by the function's contract.
                    unsafe { copy_unsigned(from.as_ptr(), k, out.as_mut_ptr()) };
                }
                AnyView::I8(view) => copy(view.data(), first, step, out, |x| x.cast_unsigned() ^ 0x80),
                AnyView::U8(view) => copy(view.data(), first, step, out, |x| x),
                _ => {
                    scale = quantize(plan, a, item, row, out, &mut floats_scratch[..k]);
                }
            }
            let zero_b = product.quantization().b.zero_point();
            let mut add = 0i32;
            if zero_b != 0 {
                let sum = out.iter().fold(0i32, |sum, &x| sum.wrapping_add(i32::from(x)));
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
        out.fill(0x80);
        return f32::NAN;
    }
    let scale = scale_for(floats_scratch.iter().fold(0f32, |largest, x| largest.max(x.abs())));
    for (out, &x) in out.iter_mut().zip(&*floats_scratch) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 255")]
        let unsigned = (quantized(x, scale) + 128.0) as u8;
        *out = unsigned;
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
