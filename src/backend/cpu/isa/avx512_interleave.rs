//! Narrow elements on their way to words of 32 bits: copied, interleaved and looked through.

#![allow(clippy::wildcard_imports, reason = "instructions have long names")]

use std::arch::x86_64::*;

use crate::backend::cpu::pack::interleave_b::Interleave;

/// The first `count` lanes of at most 64.
const fn lanes(count: usize) -> __mmask64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

/// Copies bytes with their highest bits flipped: i8 to u8, 128 more.
///
/// # Safety
/// AVX-512 F and BW are there; `from` has `count` bytes, and at `to` there is room for them.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn copy_unsigned(from: *const i8, count: usize, to: *mut u8) {
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
pub(crate) unsafe fn copy_rows_unsigned(
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

/// The least of what [`subnormals`] looks at.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw")]
fn least(least: __m512i, bf16: __m512i) -> __m512i {
    // Without the sign and less one, so that 0 is the largest.
    let twice = _mm512_add_epi16(bf16, bf16);
    _mm512_min_epu16(least, _mm512_add_epi16(twice, _mm512_set1_epi16(-1)))
}

/// Whether there was a subnormal bf16, neither 0 nor with a bit in its exponent.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw")]
fn subnormals(least: __m512i) -> bool {
    _mm512_cmplt_epu16_mask(least, _mm512_set1_epi16(0x00fe)) != 0
}

/// Whether a bf16 is subnormal in some rows, `stride` apart.
///
/// # Safety
/// AVX-512 F and BW are there, and `from` has the rows of `cols` elements.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn any_subnormal(from: *const u16, stride: usize, rows: usize, cols: usize) -> bool {
    let whole = cols / 32 * 32;
    #[allow(clippy::cast_possible_truncation, reason = "32 lanes")]
    let rest = lanes(cols - whole) as u32;
    let mut seen = _mm512_set1_epi16(-1);
    for row in 0..rows {
        // SAFETY: masked-out elements are not touched, others are there by the function's own contract.
        unsafe {
            let from = from.add(row * stride).cast::<i16>();
            for first in (0..whole).step_by(32) {
                seen = least(seen, _mm512_loadu_epi16(from.add(first)));
            }
            if rest != 0 {
                seen = least(seen, _mm512_maskz_loadu_epi16(rest, from.add(whole)));
            }
        }
    }
    subnormals(seen)
}

/// How far ahead a row is prefetched: rows are read a few bytes each, which the hardware
/// does not follow.
const AHEAD_BYTES: usize = 256;

/// Writes rows of bf16 as rows of pairs, with 0 for what is missing, and says whether one is subnormal:
/// [`Interleave`].
///
/// # Safety
/// AVX-512 F, VL and BW are there; the elements can be read, and there is room for the words.
#[cfg(feature = "half")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn interleave_pairs(i: &Interleave<u16>) -> bool {
    let mut seen = _mm512_set1_epi16(-1);
    for first in (0..i.cols).step_by(16) {
        let mask = mask16(i.cols - first);
        let row = |row: usize| {
            if row >= i.rows {
                return _mm512_setzero_si512();
            }
            let from = i.from.wrapping_add(row * i.from_stride + first);
            // SAFETY: masked-out elements are not touched, others are there by the function's own contract;
            // any address may be asked for.
            _mm512_cvtepu16_epi32(unsafe {
                _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(4 * AHEAD_BYTES));
                _mm256_maskz_loadu_epi16(mask, from.cast())
            })
        };
        for word in 0..i.rows.div_ceil(2) {
            let pairs = _mm512_or_si512(row(2 * word), _mm512_slli_epi32::<16>(row(2 * word + 1)));
            seen = least(seen, pairs);
            // SAFETY: there is room for whole vectors by the function's own contract.
            unsafe { _mm512_storeu_si512(i.to.add(word * i.to_stride + first).cast(), pairs) };
        }
    }
    subnormals(seen)
}

/// Writes rows of bytes as rows of quads, with 0 for what is missing, and adds them to the sums of the
/// columns: [`Interleave`].
///
/// # Safety
/// AVX-512 F, VL, BW and VNNI are there; the elements can be read, there is room for the words, and there
/// are sums for all columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn interleave_quads(i: &Interleave<i8>) {
    let ones = _mm512_set1_epi8(1);
    for first in (0..i.cols).step_by(16) {
        let mask = mask16(i.cols - first);
        let row = |row: usize| {
            if row >= i.rows {
                return _mm_setzero_si128();
            }
            let from = i.from.wrapping_add(row * i.from_stride + first);
            // SAFETY: masked-out elements are not touched, others are there by the function's own contract;
            // any address may be asked for.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD_BYTES));
                _mm_maskz_loadu_epi8(mask, from)
            }
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
