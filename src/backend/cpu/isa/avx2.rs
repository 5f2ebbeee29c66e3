//! 8 lanes of f32, 4 of f64: AVX2 and FMA.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use std::arch::x86_64::*;

use super::{Simd, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);

#[derive(Clone, Copy)]
pub(crate) struct Avx2F64(__m256d);

/// The first `count` lanes.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    lanes: __m256i,
    count: usize,
}

/// A window of 8 from here on selects as many lanes of f32 as it has ones, or lanes of f64 by pairs of them.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The upper and lower bytes of the bf16 of 0 to 7 and of -8 to -1, the 4-bit integers in the order of their bits.
const HIGH_BYTES: [u8; 16] =
    [0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf];
const LOW_BYTES: [u8; 16] =
    [0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0, 0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80];

// SAFETY: each function is one or a few instructions of AVX2 and FMA, which the caller vouches for;
// memory is accessed as the trait says, since masked-out lanes of a masked access are not touched.
#[rustfmt::skip]
unsafe impl Vector for Avx2 {
    const LANES: usize = 8;
    type Mask = Mask;

    x86_arithmetic! { f32: _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_mul_ps _mm256_fmadd_ps _mm256_max_ps }

    #[inline(always)]
    unsafe fn mask(count: usize) -> Mask {
        let count = count.min(8);
        unsafe { Mask { lanes: _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast()), count } }
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: Mask) -> Self { unsafe { Self(_mm256_maskload_ps(from, mask.lanes)) } }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: Mask) {
        // In parts: a masked store is microcode on AMD's cores.
        unsafe {
            let Mask { count, .. } = mask;
            if count == 8 {
                return self.store(to);
            }
            let mut part = _mm256_castps256_ps128(self.0);
            if count & 4 != 0 {
                _mm_storeu_ps(to, part);
                part = _mm256_extractf128_ps::<1>(self.0);
            }
            if count & 2 != 0 {
                _mm_storel_epi64(to.add(count & 4).cast(), _mm_castps_si128(part));
                part = _mm_movehl_ps(part, part);
            }
            if count & 1 != 0 {
                _mm_store_ss(to.add(count & 6), part);
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let mask = Self::mask(cols);
            let mut x = [_mm256_setzero_ps(); 8];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = _mm256_maskload_ps(from.add(i * from_stride), mask.lanes);
                }
            }
            // Pairs of rows, then of pairs, then of halves of a vector.
            let mut y = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            for i in 0..2 {
                for j in 0..2 {
                    let (lo, hi) = (y[4 * i + j], y[4 * i + j + 2]);
                    x[4 * i + 2 * j] = _mm256_shuffle_ps::<0x44>(lo, hi);
                    x[4 * i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(lo, hi);
                }
            }
            for j in 0..4 {
                y[j] = _mm256_permute2f128_ps::<0x20>(x[j], x[4 + j]);
                y[4 + j] = _mm256_permute2f128_ps::<0x31>(x[j], x[4 + j]);
            }
            for (j, row) in y.into_iter().enumerate() {
                if j < cols {
                    _mm256_storeu_ps(to.add(j * to_stride), row);
                }
            }
        }
    }
}

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Vector for Avx2F64 {
    const LANES: usize = 4;
    type Mask = Mask;

    x86_arithmetic! { f64: _mm256_set1_pd _mm256_loadu_pd _mm256_storeu_pd _mm256_add_pd _mm256_mul_pd _mm256_fmadd_pd _mm256_max_pd }

    #[inline(always)]
    unsafe fn mask(count: usize) -> Mask {
        let count = count.min(4);
        unsafe { Mask { lanes: _mm256_loadu_si256(MASKS.as_ptr().add(8 - 2 * count).cast()), count } }
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const f64, mask: Mask) -> Self { unsafe { Self(_mm256_maskload_pd(from, mask.lanes)) } }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f64, mask: Mask) {
        // In parts, as of f32.
        unsafe {
            let Mask { count, .. } = mask;
            if count == 4 {
                return self.store(to);
            }
            let mut part = _mm256_castpd256_pd128(self.0);
            if count & 2 != 0 {
                _mm_storeu_pd(to, part);
                part = _mm256_extractf128_pd::<1>(self.0);
            }
            if count & 1 != 0 {
                _mm_store_sd(to.add(count & 2), part);
            }
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        unsafe {
            let half = _mm_add_pd(_mm256_castpd256_pd128(self.0), _mm256_extractf128_pd::<1>(self.0));
            _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f64, from_stride: usize, rows: usize, cols: usize, to: *mut f64, to_stride: usize) {
        unsafe {
            let mask = Self::mask(cols);
            let mut x = [_mm256_setzero_pd(); 4];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = _mm256_maskload_pd(from.add(i * from_stride), mask.lanes);
                }
            }
            let (low01, high01) = (_mm256_unpacklo_pd(x[0], x[1]), _mm256_unpackhi_pd(x[0], x[1]));
            let (low23, high23) = (_mm256_unpacklo_pd(x[2], x[3]), _mm256_unpackhi_pd(x[2], x[3]));
            let columns = [
                _mm256_permute2f128_pd::<0x20>(low01, low23),
                _mm256_permute2f128_pd::<0x20>(high01, high23),
                _mm256_permute2f128_pd::<0x31>(low01, low23),
                _mm256_permute2f128_pd::<0x31>(high01, high23),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                if j < cols {
                    _mm256_storeu_pd(to.add(j * to_stride), column);
                }
            }
        }
    }
}

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Simd for Avx2 {
    type Words = __m256i;

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(_mm256_sub_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { unsafe { Self(_mm256_div_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self { unsafe { Self(_mm256_min_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        unsafe { Self(_mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0))) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self { unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) } }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        unsafe {
            let minus = _mm256_set1_ps(-0.0);
            Self(_mm256_or_ps(_mm256_andnot_ps(minus, self.0), _mm256_and_ps(minus, sign.0)))
        }
    }
    #[inline(always)]
    unsafe fn exp2_split(self, factor: Self, offset: f32) -> (Self, Self) {
        const SHIFT: f32 = 1.5 * 8_388_608.0 + 127.0;
        unsafe {
            // The sum's last bits are n, and what makes an exponent of it.
            let sum = _mm256_fmadd_ps(self.0, factor.0, _mm256_set1_ps(SHIFT));
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(sum));
            let power = _mm256_max_epi32(power, _mm256_setzero_si256());
            (Self(_mm256_sub_ps(_mm256_set1_ps(SHIFT + offset), sum)), Self(_mm256_castsi256_ps(power)))
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)))
        }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_f16(from: *const u16) -> Self { unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) } }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_bf16(from: *const u16) -> Self {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn from_i8(from: *const i8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn from_u8(from: *const u8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m256i { unsafe { _mm256_loadu_si256(from.cast()) } }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(words: __m256i, index: u32) -> Self {
        unsafe {
            let left = _mm256_sllv_epi32(words, _mm256_set1_epi32((32 - BITS * (index + 1)).cast_signed()));
            Self(_mm256_cvtepi32_ps(_mm256_srav_epi32(left, _mm256_set1_epi32((32 - BITS).cast_signed()))))
        }
    }

    const HALVES_APART: bool = true;

    #[inline(always)]
    unsafe fn for_each_integer<const BITS: u32>(words: __m256i, mut f: impl FnMut(usize, Self)) {
        unsafe {
            if BITS != 4 {
                for index in 0..32 / BITS {
                    f(index as usize, Self::unpack::<BITS>(words, index));
                }
                return;
            }
            // Shifts and conversions share two ports, shuffles have others.
            let table = |bytes: &[u8; 16]| _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast()));
            let (high_bytes, low_bytes) = (table(&HIGH_BYTES), table(&LOW_BYTES));
            for odd in 0..2 {
                let nibbles = if odd == 0 { words } else { _mm256_srli_epi16::<4>(words) };
                let nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
                let low = _mm256_shuffle_epi8(low_bytes, nibbles);
                let high = _mm256_shuffle_epi8(high_bytes, nibbles);
                // bf16, of two bytes of each word in turn.
                for (half, pairs) in [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)].into_iter().enumerate() {
                    let first = _mm256_slli_epi32::<16>(pairs);
                    let second = _mm256_and_si256(pairs, _mm256_set1_epi32(-1 << 16));
                    f(4 * half + odd, Self(_mm256_castsi256_ps(first)));
                    f(4 * half + odd + 2, Self(_mm256_castsi256_ps(second)));
                }
            }
        }
    }

}
