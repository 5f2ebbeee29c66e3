//! Dot products of several narrow elements in a lane: AVX-512 BF16 and VNNI.

#![allow(clippy::wildcard_imports, reason = "instructions have long names")]

use std::arch::x86_64::*;

use super::super::dot::{IntegerSums, RowTerms};
use super::super::product::Area;
use super::super::tile::Dot;
use super::avx512::Avx512;

/// Two bf16 in a lane, summed in f32.
///
/// The instruction takes subnormal inputs for 0 and rounds to nearest; a result below the smallest normal
/// number is 0 (Intel, Intrinsics Guide, `_mm512_dpbf16_ps`).
pub(in super::super) struct Bf16Pairs;

impl Dot<Avx512> for Bf16Pairs {
    #[inline(always)]
    unsafe fn add_product(a: Avx512, b: Avx512, sum: Avx512) -> Avx512 {
        // SAFETY: the caller vouches for the instruction set; bf16 vectors are 32 numbers of 16 bits.
        unsafe {
            Avx512(_mm512_dpbf16_ps(
                sum.0,
                std::mem::transmute::<std::arch::x86_64::__m512, std::arch::x86_64::__m512bh>(a.0),
                std::mem::transmute::<std::arch::x86_64::__m512, std::arch::x86_64::__m512bh>(b.0),
            ))
        }
    }
}

/// Four 8-bit integers in a lane, unsigned in A and signed in B, summed in i32 modulo 2^32: this form of
/// the instruction does not saturate.
pub(in super::super) struct Int8Quads;

impl Dot<Avx512> for Int8Quads {
    #[inline(always)]
    unsafe fn add_product(a: Avx512, b: Avx512, sum: Avx512) -> Avx512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let bits = |x: Avx512| _mm512_castps_si512(x.0);
            Avx512(_mm512_castsi512_ps(_mm512_dpbusd_epi32(bits(sum), bits(a), bits(b))))
        }
    }
}

/// The first `count` lanes of at most 64.
const fn lanes(count: usize) -> __mmask64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

/// Copies bytes with their highest bits turned over: i8 to u8, 128 more.
///
/// # Safety
/// AVX-512 F and BW are there; `from` has `count` bytes, and at `to` there is room for them.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn copy_unsigned(from: *const i8, count: usize, to: *mut u8) {
    let highest = _mm512_set1_epi8(i8::MIN);
    let mut first = 0;
    while first < count {
        let mask = lanes(count - first);
        // SAFETY: masked-out bytes are not touched, others are there by the function's own contract.
        unsafe {
            let x = _mm512_maskz_loadu_epi8(mask, from.add(first));
            _mm512_mask_storeu_epi8(to.add(first).cast(), mask, _mm512_xor_si512(x, highest));
        }
        first += 64;
    }
}

/// Whether a bf16 is subnormal: neither 0 nor with a bit in its exponent.
///
/// # Safety
/// AVX-512 F and BW are there.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn any_subnormal(elements: &[u16]) -> bool {
    let (exponent, fraction) = (_mm512_set1_epi16(0x7f80), _mm512_set1_epi16(0x007f));
    let mut any = 0;
    for part in elements.chunks(32) {
        #[allow(clippy::cast_possible_truncation, reason = "32 lanes")]
        let mask = lanes(part.len()) as u32;
        // SAFETY: masked-out elements are not touched.
        let x = unsafe { _mm512_maskz_loadu_epi16(mask, part.as_ptr().cast()) };
        any |= _mm512_testn_epi16_mask(x, exponent) & _mm512_test_epi16_mask(x, fraction);
    }
    any != 0
}

/// Turns sums over unsigned elements of A, which lie in C as i32, into those of the description.
///
/// # Safety
/// AVX-512 F is there; `area` lies within what `s` is for, and `c` is where its C starts; nothing else
/// accesses that meanwhile.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn dequantize(s: &IntegerSums<'_>, area: Area, c: *mut f32, c_stride: usize) {
    let offset = _mm512_set1_epi32(s.offset);
    let cols = area.col..area.col + area.cols;
    for first in cols.clone().step_by(16) {
        let sums = &s.column_sums[first..cols.end.min(first + 16)];
        #[allow(clippy::cast_possible_truncation, reason = "16 lanes")]
        let mask = lanes(sums.len()) as u16;
        // SAFETY: masked-out lanes are not touched; the others are there by the function's own contract.
        unsafe {
            let taken_off = _mm512_mullo_epi32(_mm512_maskz_loadu_epi32(mask, sums.as_ptr()), offset);
            let scales = match s.columns {
                Some(columns) => _mm512_maskz_loadu_ps(mask, columns[first..].as_ptr()),
                None => _mm512_set1_ps(s.shared),
            };
            let mut c = c.add(first - area.col);
            for &RowTerms { add, scale } in &s.terms[area.row..area.row + area.rows] {
                let sums = _mm512_maskz_loadu_epi32(mask, c.cast());
                let sums = _mm512_add_epi32(_mm512_sub_epi32(sums, taken_off), _mm512_set1_epi32(add));
                let result = if s.whole {
                    sums
                } else {
                    let factor = _mm512_mul_ps(_mm512_set1_ps(scale), scales);
                    _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor))
                };
                _mm512_mask_storeu_epi32(c.cast(), mask, result);
                c = c.wrapping_add(c_stride);
            }
        }
    }
}
