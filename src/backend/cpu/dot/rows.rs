//! Rows of A as words, with what follows their sums.

use super::super::kernel::Lane;
use super::super::typed::Plan;
use super::super::typed::load::{Part, floats, quantized, scale_for};
#[cfg(feature = "half")]
use super::words::is_subnormal;
use crate::element::ElementType;
use crate::quantization::QuantA;
use crate::view::AnyView;

/// What turns the sums of a row into those of the description.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowTerms {
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
pub(super) fn has_subnormals(view: &AnyView<'_>) -> bool {
    match view {
        #[cfg(feature = "half")]
        AnyView::Bf16(view) => view.layout().row_spans().any(|(_, _, span)| {
            view.data()[span].iter().fold(false, |any, x| any | is_subnormal(x.to_bits()))
        }),
        _ => false,
    }
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
                AnyView::I8(view) => copy(view.data(), first, step, out, |x| x.cast_unsigned() ^ 0x80),
                AnyView::U8(view) => copy(view.data(), first, step, out, |x| x),
                _ => {
                    scale = quantize(product.transpose_a(), a, item, row, out, &mut floats_scratch[..k]);
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
    transpose: bool,
    a: &AnyView<'_>,
    item: usize,
    row: usize,
    out: &mut [u8],
    floats_scratch: &mut [f32],
) -> f32 {
    match a {
        AnyView::F32(view) if !transpose => {
            let first = view.layout().item_offset(item) + row * view.layout().leading_dimension();
            floats_scratch.copy_from_slice(&view.data()[first..first + floats_scratch.len()]);
        }
        _ => {
            let part = Part { item, transpose, rows: row..row + 1, cols: 0..floats_scratch.len() };
            floats(a, &part, floats_scratch, |_, _, x| x);
        }
    }
    let all_finite = floats_scratch.iter().all(|x| x.is_finite());
    if !all_finite {
        out.fill(0x80);
        return f32::NAN;
    }
    let scale = scale_for(floats_scratch.iter().fold(0f32, |largest, x| largest.max(x.abs())));
    for (out, &x) in out.iter_mut().zip(&*floats_scratch) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 255")]
        let unsigned = (quantized(x, scale) + 128) as u8;
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
