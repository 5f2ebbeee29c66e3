//! 16 lanes of f32, 8 of f64: AVX-512 F and DQ.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use std::arch::x86_64::*;

use super::{Simd, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

#[derive(Clone, Copy)]
pub(crate) struct Avx512F64(__m512d);

/// What 4 bits stand for.
static NIBBLES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];

/// The bits of 2^(i / 16) less i in those of n that [`Simd::exp2_split`] adds to it.
static SIXTEENTHS: [u32; 16] = [
    0x3f80_0000,
    0x3f7d_aac3,
    0x3f7b_95c2,
    0x3f79_c3d3,
    0x3f78_37f0,
    0x3f76_f532,
    0x3f75_fed7,
    0x3f75_583f,
    0x3f75_04f3,
    0x3f75_08a4,
    0x3f75_672a,
    0x3f76_248c,
    0x3f77_44fd,
    0x3f78_ccdf,
    0x3f7a_c0c7,
    0x3f7d_257d,
];

// SAFETY: each function is one or a few instructions of AVX-512, which the caller vouches for; memory
// is accessed as the trait says, since masked-out lanes of a masked access are not touched.
#[rustfmt::skip]
unsafe impl Vector for Avx512 {
    const LANES: usize = 16;
    type Mask = __mmask16;

    x86_arithmetic! { f32: _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_mul_ps _mm512_fmadd_ps _mm512_max_ps }

    #[inline(always)]
    unsafe fn mask(count: usize) -> __mmask16 { if count >= 16 { !0 } else { (1 << count) - 1 } }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: __mmask16) -> Self { unsafe { Self(_mm512_maskz_loadu_ps(mask, from)) } }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: __mmask16) { unsafe { _mm512_mask_storeu_ps(to, mask, self.0) } }
    #[inline(always)]
    unsafe fn sum(self) -> f32 { unsafe { _mm512_reduce_add_ps(self.0) } }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let mask = Self::mask(cols);
            let mut x = [_mm512_setzero_ps(); 16];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = _mm512_maskz_loadu_ps(mask, from.add(i * from_stride));
                }
            }
            // Pairs of rows, then of pairs, then of quarters of a vector.
            let mut y = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            for i in 0..4 {
                for (j, (lo, hi)) in [(y[4 * i], y[4 * i + 2]), (y[4 * i + 1], y[4 * i + 3])].into_iter().enumerate() {
                    let (lo, hi) = (_mm512_castps_pd(lo), _mm512_castps_pd(hi));
                    x[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
                    x[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
                }
            }
            // x[4 i + j] has column j + 4 q of rows 4 i .. 4 i + 4 in its quarter q.
            for j in 0..4 {
                let even01 = _mm512_shuffle_f32x4::<0x88>(x[j], x[4 + j]);
                let odd01 = _mm512_shuffle_f32x4::<0xdd>(x[j], x[4 + j]);
                let even23 = _mm512_shuffle_f32x4::<0x88>(x[8 + j], x[12 + j]);
                let odd23 = _mm512_shuffle_f32x4::<0xdd>(x[8 + j], x[12 + j]);
                y[j] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
                y[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even01, even23);
                y[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
                y[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd01, odd23);
            }
            for (j, row) in y.into_iter().enumerate() {
                if j < cols {
                    _mm512_storeu_ps(to.add(j * to_stride), row);
                }
            }
        }
    }
}

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Vector for Avx512F64 {
    const LANES: usize = 8;
    type Mask = __mmask8;

    x86_arithmetic! { f64: _mm512_set1_pd _mm512_loadu_pd _mm512_storeu_pd _mm512_add_pd _mm512_mul_pd _mm512_fmadd_pd _mm512_max_pd }

    #[inline(always)]
    unsafe fn mask(count: usize) -> __mmask8 { if count >= 8 { !0 } else { (1 << count) - 1 } }
    #[inline(always)]
    unsafe fn load_masked(from: *const f64, mask: __mmask8) -> Self { unsafe { Self(_mm512_maskz_loadu_pd(mask, from)) } }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f64, mask: __mmask8) { unsafe { _mm512_mask_storeu_pd(to, mask, self.0) } }
    #[inline(always)]
    unsafe fn sum(self) -> f64 { unsafe { _mm512_reduce_add_pd(self.0) } }

    #[inline(always)]
    unsafe fn transpose(from: *const f64, from_stride: usize, rows: usize, cols: usize, to: *mut f64, to_stride: usize) {
        unsafe {
            let mask = Self::mask(cols);
            let mut x = [_mm512_setzero_pd(); 8];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = _mm512_maskz_loadu_pd(mask, from.add(i * from_stride));
                }
            }
            // Pairs of rows: y[2 i + j] has column j + 2 q of rows 2 i and 2 i + 1 in its quarter q.
            let mut y = [_mm512_setzero_pd(); 8];
            for i in 0..4 {
                y[2 * i] = _mm512_unpacklo_pd(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm512_unpackhi_pd(x[2 * i], x[2 * i + 1]);
            }
            for j in 0..2 {
                let even01 = _mm512_shuffle_f64x2::<0x88>(y[j], y[2 + j]);
                let odd01 = _mm512_shuffle_f64x2::<0xdd>(y[j], y[2 + j]);
                let even23 = _mm512_shuffle_f64x2::<0x88>(y[4 + j], y[6 + j]);
                let odd23 = _mm512_shuffle_f64x2::<0xdd>(y[4 + j], y[6 + j]);
                x[j] = _mm512_shuffle_f64x2::<0x88>(even01, even23);
                x[4 + j] = _mm512_shuffle_f64x2::<0xdd>(even01, even23);
                x[2 + j] = _mm512_shuffle_f64x2::<0x88>(odd01, odd23);
                x[6 + j] = _mm512_shuffle_f64x2::<0xdd>(odd01, odd23);
            }
            for (j, row) in x.into_iter().enumerate() {
                if j < cols {
                    _mm512_storeu_pd(to.add(j * to_stride), row);
                }
            }
        }
    }
}

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Simd for Avx512 {
    const LOOKS_UP: bool = true;
    const EXP2_STEPS: u32 = 16;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn largest(self) -> f32 { unsafe { _mm512_reduce_max_ps(self.0) } }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(_mm512_sub_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { unsafe { Self(_mm512_div_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self { unsafe { Self(_mm512_min_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0);
            Self(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self { unsafe { Self(_mm512_abs_ps(self.0)) } }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        unsafe {
            let minus = _mm512_set1_ps(-0.0);
            Self(_mm512_or_ps(_mm512_andnot_ps(minus, self.0), _mm512_and_ps(minus, sign.0)))
        }
    }
    #[inline(always)]
    unsafe fn exp2_split(self, factor: Self, offset: f32) -> (Self, Self) {
        const SHIFT: f32 = 1.5 * 524_288.0;
        unsafe {
            // The sum's last bits are n in sixteenths.
            let sum = _mm512_fmadd_ps(self.0, factor.0, _mm512_set1_ps(SHIFT));
            let bits = _mm512_castps_si512(sum);
            let fraction = _mm512_permutexvar_epi32(bits, _mm512_loadu_si512(SIXTEENTHS.as_ptr().cast()));
            let power = _mm512_add_epi32(_mm512_slli_epi32::<19>(bits), fraction);
            let power = _mm512_max_epi32(power, _mm512_setzero_si512());
            (Self(_mm512_sub_ps(_mm512_set1_ps(SHIFT + offset), sum)), Self(_mm512_castsi512_ps(power)))
        }
    }
    #[inline(always)]
    unsafe fn look_up<const N: usize>(self, tables: &[[f32; 32]; N]) -> [Self; N] {
        unsafe {
            // The permutation looks at the low 5 bits: two of the exponent and three of the mantissa.
            let index = _mm512_srli_epi32::<20>(_mm512_castps_si512(self.0));
            let mut entries = [self; N];
            for (entry, table) in entries.iter_mut().zip(tables) {
                let (low, high) = (_mm512_loadu_ps(table.as_ptr()), _mm512_loadu_ps(table.as_ptr().add(16)));
                *entry = Self(_mm512_permutex2var_ps(low, index, high));
            }
            entries
        }
    }

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_f16(from: *const u16) -> Self { unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) } }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_bf16(from: *const u16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn from_i8(from: *const i8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn from_u8(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m512i { unsafe { _mm512_loadu_si512(from.cast()) } }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(words: __m512i, index: u32) -> Self {
        unsafe {
            if BITS == 4 {
                // The permutation looks at the low 4 bits of each index: a table of all values.
                let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32((4 * index).cast_signed()));
                Self(_mm512_permutexvar_ps(shifted, _mm512_loadu_ps(NIBBLES.as_ptr())))
            } else {
                let left = _mm512_sllv_epi32(words, _mm512_set1_epi32((24 - 8 * index).cast_signed()));
                Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(left)))
            }
        }
    }

}
