//! Products of bf16 added in f32: the `bf16` extension of 64-bit ARM.

use std::arch::asm;

use super::neon::Neon;
use crate::backend::cpu::microkernel::MultiplyAdd;

/// Two bf16 in a lane, summed in f32.
///
/// By BFMLALB and BFMLALT: two fused multiply-adds, the first of the even elements along k, rounded as f32's are, so
/// that the results are those of upcast operands. BFDOT and BFMMLA round twice for each pair, to odd, by up to one
/// unit in the last place each, and flush (Arm, Architecture Reference Manual for A-profile): of an odd number of
/// terms that can be more than `docs/accuracy.md` allows.
pub(crate) struct Bf16Pairs;

impl MultiplyAdd<Neon> for Bf16Pairs {
    #[inline(always)]
    unsafe fn multiply_add(a: Neon, b: Neon, sum: Neon) -> Neon {
        let mut sum = sum.0;
        // SAFETY: arithmetic on registers; the caller vouches for the instruction set. The intrinsics are not
        // stable.
        unsafe {
            asm!(
                "bfmlalb {sum:v}.4s, {a:v}.8h, {b:v}.8h",
                "bfmlalt {sum:v}.4s, {a:v}.8h, {b:v}.8h",
                sum = inout(vreg) sum,
                a = in(vreg) a.0,
                b = in(vreg) b.0,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Neon(sum)
    }
}
