//! Dot products of several narrow elements in a lane: AVX-512 BF16 and VNNI.

#![allow(clippy::wildcard_imports, reason = "instructions have long names")]

use std::arch::x86_64::*;

use super::SimdInteger;
use super::avx512::Avx512;
use crate::backend::cpu::epilogue::requantize::{start_of_columns, store_requantized};
use crate::backend::cpu::microkernel::{MicroTile, MultiplyAdd};

/// Two bf16 in a lane, summed in f32.
///
/// The instruction takes subnormal inputs for 0 and rounds to nearest; a result below the smallest normal
/// number is 0 (Intel, Intrinsics Guide, `_mm512_dpbf16_ps`).
#[cfg(feature = "half")]
pub(crate) struct Bf16Pairs;

#[cfg(feature = "half")]
impl MultiplyAdd<Avx512> for Bf16Pairs {
    #[inline(always)]
    unsafe fn multiply_add(a: Avx512, b: Avx512, sum: Avx512) -> Avx512 {
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
pub(crate) struct Int8Quads;

impl MultiplyAdd<Avx512> for Int8Quads {
    #[inline(always)]
    unsafe fn start<const NV: usize, const TAIL: bool>(t: &MicroTile) -> [Avx512; NV] {
        // SAFETY: by the trait's contract.
        unsafe { start_of_columns::<Avx512, NV, TAIL>(t) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Avx512, b: Avx512, sum: Avx512) -> Avx512 {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let bits = |x: Avx512| _mm512_castps_si512(x.0);
            Avx512(_mm512_castsi512_ps(_mm512_dpbusd_epi32(bits(sum), bits(a), bits(b))))
        }
    }

    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(
        t: &MicroTile,
        sums: &[[Avx512; NV]; MR],
    ) {
        // SAFETY: by the trait's contract.
        unsafe { store_requantized::<Avx512, MR, NV, TAIL>(t, sums) };
    }
}

// SAFETY: each function is an instruction of AVX-512 F, which the caller vouches for.
unsafe impl SimdInteger for Avx512 {
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_castsi512_ps(_mm512_set1_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn add_i32(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let sum = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(sum))
        }
    }

    #[inline(always)]
    unsafe fn sub_i32(self, other: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let difference = _mm512_sub_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Self(_mm512_castsi512_ps(difference))
        }
    }

    #[inline(always)]
    unsafe fn i32_to_f32(self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_castps_si512(self.0))) }
    }
}
