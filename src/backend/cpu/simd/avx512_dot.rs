//! Dot products of several narrow elements in a lane: AVX-512 BF16 and VNNI.

#![allow(clippy::wildcard_imports, reason = "instructions have long names")]

use std::arch::x86_64::*;

use super::super::dot::{Integers, Interleave, store_results};
use super::super::tile::{Dot, Tile};
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

    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(t: &Tile, sums: &[[Avx512; NV]; MR]) {
        // SAFETY: by the trait's contract.
        unsafe { store_results::<Avx512, MR, NV, TAIL>(t, sums) };
    }
}

// SAFETY: each function is an instruction of AVX-512 F, which the caller vouches for.
unsafe impl Integers for Avx512 {
    #[inline(always)]
    unsafe fn splat_integer(x: i32) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_castsi512_ps(_mm512_set1_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn add_integers(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let sum = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(sum))
        }
    }

    #[inline(always)]
    unsafe fn sub_integers(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let difference = _mm512_sub_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(difference))
        }
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_castps_si512(self.0))) }
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

/// [`copy_unsigned`] for rows that are `from_stride` and `to_stride` bytes apart, in whole vectors: what lies
/// after a row is overwritten, up to 64 bytes.
///
/// # Safety
/// AVX-512 F and BW are there; `from` has the rows of `count` bytes, and at `to` there is room for them and 64
/// bytes more.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn copy_rows_unsigned(
    from: *const i8,
    from_stride: usize,
    rows: usize,
    count: usize,
    to: *mut u8,
    to_stride: usize,
) {
    let highest = _mm512_set1_epi8(i8::MIN);
    let whole = count / 64 * 64;
    let rest = lanes(count - whole);
    for row in 0..rows {
        // SAFETY: masked-out bytes are not touched, others are there by the function's own contract.
        unsafe {
            let (from, to) = (from.add(row * from_stride), to.add(row * to_stride));
            for first in (0..whole).step_by(64) {
                let x = _mm512_loadu_epi8(from.add(first));
                _mm512_storeu_epi8(to.add(first).cast(), _mm512_xor_si512(x, highest));
            }
            if rest != 0 {
                let x = _mm512_maskz_loadu_epi8(rest, from.add(whole));
                _mm512_storeu_epi8(to.add(whole).cast(), _mm512_xor_si512(x, highest));
            }
        }
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

/// Writes rows of 16-bit elements as rows of pairs, with 0 for what is missing: [`Interleave`].
///
/// # Safety
/// AVX-512 F, VL and BW are there; the elements can be read, and there is room for the words.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in super::super) unsafe fn interleave_pairs(i: &Interleave<u16>) {
    for first in (0..i.cols).step_by(16) {
        let mask = mask16(i.cols - first);
        let row = |row: usize| {
            if row >= i.rows {
                return _mm512_setzero_si512();
            }
            // SAFETY: masked-out elements are not touched, others are there by the function's own contract.
            _mm512_cvtepu16_epi32(unsafe {
                _mm256_maskz_loadu_epi16(mask, i.from.add(row * i.from_stride + first).cast())
            })
        };
        for word in 0..i.rows.div_ceil(2) {
            let pairs = _mm512_or_si512(row(2 * word), _mm512_slli_epi32::<16>(row(2 * word + 1)));
            // SAFETY: there is room for whole vectors by the function's own contract.
            unsafe { _mm512_storeu_si512(i.to.add(word * i.to_stride + first).cast(), pairs) };
        }
    }
}

/// Writes rows of bytes as rows of quads, with 0 for what is missing, and adds them to the sums of the
/// columns: [`Interleave`].
///
/// # Safety
/// AVX-512 F, VL, BW and VNNI are there; the elements can be read, there is room for the words, and there
/// are sums for all columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn interleave_quads(i: &Interleave<i8>) {
    let ones = _mm512_set1_epi8(1);
    for first in (0..i.cols).step_by(16) {
        let mask = mask16(i.cols - first);
        let row = |row: usize| {
            if row >= i.rows {
                return _mm_setzero_si128();
            }
            // SAFETY: masked-out elements are not touched, others are there by the function's own contract.
            unsafe { _mm_maskz_loadu_epi8(mask, i.from.add(row * i.from_stride + first)) }
        };
        // SAFETY: as above.
        let mut sums = unsafe { _mm512_maskz_loadu_epi32(mask, i.sums.add(first)) };
        for word in 0..i.rows.div_ceil(4) {
            let [r0, r1, r2, r3] = [0, 1, 2, 3].map(|i| row(4 * word + i));
            // Bytes of rows 0 and 1 by turns, of 2 and 3, then pairs of both by turns.
            let (low01, high01) = (_mm_unpacklo_epi8(r0, r1), _mm_unpackhi_epi8(r0, r1));
            let (low23, high23) = (_mm_unpacklo_epi8(r2, r3), _mm_unpackhi_epi8(r2, r3));
            let low = _mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23));
            let high =
                _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23));
            let quads = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            sums = _mm512_dpbusd_epi32(sums, ones, quads);
            // SAFETY: there is room for whole vectors by the function's own contract.
            unsafe { _mm512_storeu_si512(i.to.add(word * i.to_stride + first).cast(), quads) };
        }
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_epi32(i.sums.add(first), mask, sums) };
    }
}

/// The first `count` lanes of at most 16.
const fn mask16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}
