//! Dot products of pairs of 16-bit integers in a lane: `vpmaddwd`, of AVX2 and of AVX-512 BW.

#![allow(clippy::wildcard_imports, reason = "instructions have long names")]

use std::arch::x86_64::*;

use super::SimdInteger;
use super::avx2::Avx2;
use super::avx512::Avx512;
use crate::backend::cpu::epilogue::requantize::{start_of_columns, store_requantized};
use crate::backend::cpu::microkernel::{MicroTile, MultiplyAdd};
use crate::backend::cpu::pack::Word;

/// Two integers in a lane, of 16 bits in A and of 8 in B, which are widened as they are loaded; summed in i32 modulo
/// 2^32. No sum of two products of 8-bit integers leaves i32.
pub(crate) struct Int8Pairs;

/// What [`Int8Pairs`] does with vectors of an instruction set.
trait Madd: SimdInteger {
    /// Widens twice as many signed bytes as there are lanes.
    unsafe fn widen(from: *const i8) -> Self;
    /// The sum of two products in each lane.
    unsafe fn madd(self, other: Self) -> Self;
}

impl<V: Madd> MultiplyAdd<V> for Int8Pairs {
    const B_WORDS: usize = V::LANES / 2;

    #[inline(always)]
    unsafe fn load_b(from: *const Word, _: Option<V::Mask>) -> V {
        // SAFETY: by the trait's contract; micro-panels hold whole vectors.
        unsafe { V::widen(from.cast()) }
    }

    #[inline(always)]
    unsafe fn start<const NV: usize, const TAIL: bool>(t: &MicroTile) -> [V; NV] {
        // SAFETY: by the trait's contract.
        unsafe { start_of_columns::<V, NV, TAIL>(t) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: V, b: V, sum: V) -> V {
        // SAFETY: by the trait's contract.
        unsafe { sum.add_i32(a.madd(b)) }
    }

    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(t: &MicroTile, sums: &[[V; NV]; MR]) {
        // SAFETY: by the trait's contract.
        unsafe { store_requantized::<V, MR, NV, TAIL>(t, sums) };
    }
}

impl Madd for Avx512 {
    #[inline(always)]
    unsafe fn widen(from: *const i8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_castsi512_ps(_mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn madd(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let pairs = _mm512_madd_epi16(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(pairs))
        }
    }
}

impl Madd for Avx2 {
    #[inline(always)]
    unsafe fn widen(from: *const i8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn madd(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let pairs = _mm256_madd_epi16(_mm256_castps_si256(self.0), _mm256_castps_si256(other.0));
            Self(_mm256_castsi256_ps(pairs))
        }
    }
}

// SAFETY: each function is an instruction of AVX2, which the caller vouches for.
#[rustfmt::skip]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
unsafe impl SimdInteger for Avx2 {
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self { unsafe { Self(_mm256_castsi256_ps(_mm256_set1_epi32(x))) } }
    #[inline(always)]
    unsafe fn add_i32(self, other: Self) -> Self {
        unsafe { Self(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), _mm256_castps_si256(other.0)))) }
    }
    #[inline(always)]
    unsafe fn sub_i32(self, other: Self) -> Self {
        unsafe { Self(_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(self.0), _mm256_castps_si256(other.0)))) }
    }
    #[inline(always)]
    unsafe fn i32_to_f32(self) -> Self { unsafe { Self(_mm256_cvtepi32_ps(_mm256_castps_si256(self.0))) } }
}
