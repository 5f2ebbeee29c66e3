//! Dot products of several narrow elements in a lane: AVX-512 BF16 and VNNI.

use std::arch::x86_64::{_mm512_castps_si512, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32};

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
