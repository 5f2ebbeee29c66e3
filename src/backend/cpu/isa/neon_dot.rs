//! Dot products of several narrow elements in a lane: the `dotprod` extension of 64-bit ARM.

use std::arch::aarch64::{
    vaddq_s32, vcvtq_f32_s32, vdupq_n_s32, vreinterpretq_f32_s32, vreinterpretq_s32_f32, vsubq_s32,
};
use std::arch::asm;

use super::SimdInteger;
use super::neon::Neon;
use crate::backend::cpu::epilogue::requantize::{start_of_columns, store_requantized};
use crate::backend::cpu::microkernel::{MicroTile, MultiplyAdd};

/// Four 8-bit integers in a lane, signed in A and in B, summed in i32 modulo 2^32: the instruction does not
/// saturate (Arm, Architecture Reference Manual for A-profile, SDOT (vector)).
pub(crate) struct Int8Quads;

impl MultiplyAdd<Neon> for Int8Quads {
    #[inline(always)]
    unsafe fn start<const NV: usize, const TAIL: bool>(t: &MicroTile) -> [Neon; NV] {
        // SAFETY: by the trait's contract.
        unsafe { start_of_columns::<Neon, NV, TAIL>(t) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Neon, b: Neon, sum: Neon) -> Neon {
        let mut sum = sum.0;
        // SAFETY: arithmetic on registers; the caller vouches for the instruction set. The intrinsic is not
        // stable.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum,
                a = in(vreg) a.0,
                b = in(vreg) b.0,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Neon(sum)
    }

    #[inline(always)]
    unsafe fn store<const MR: usize, const NV: usize, const TAIL: bool>(
        t: &MicroTile,
        sums: &[[Neon; NV]; MR],
    ) {
        // SAFETY: by the trait's contract.
        unsafe { store_requantized::<Neon, MR, NV, TAIL>(t, sums) };
    }
}

// SAFETY: each function is an instruction of NEON, which every 64-bit ARM has.
#[rustfmt::skip]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
unsafe impl SimdInteger for Neon {
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self { unsafe { Self(vreinterpretq_f32_s32(vdupq_n_s32(x))) } }
    #[inline(always)]
    unsafe fn add_i32(self, other: Self) -> Self {
        unsafe { Self(vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0), vreinterpretq_s32_f32(other.0)))) }
    }
    #[inline(always)]
    unsafe fn sub_i32(self, other: Self) -> Self {
        unsafe { Self(vreinterpretq_f32_s32(vsubq_s32(vreinterpretq_s32_f32(self.0), vreinterpretq_s32_f32(other.0)))) }
    }
    #[inline(always)]
    unsafe fn i32_to_f32(self) -> Self { unsafe { Self(vcvtq_f32_s32(vreinterpretq_s32_f32(self.0))) } }
}
