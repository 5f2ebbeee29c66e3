//! 4 lanes: NEON, which every 64-bit ARM has.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use std::arch::aarch64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(in super::super) struct Neon(pub(in super::super) float32x4_t);

// SAFETY: each function is one or a few instructions of NEON; memory is accessed as the trait says:
// the masked forms copy as many numbers as the mask counts.
#[rustfmt::skip]
unsafe impl Simd for Neon {
    const LANES: usize = 4;
    type Mask = usize;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { unsafe { Self(vdupq_n_f32(x)) } }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(vld1q_f32(from)) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { vst1q_f32(to, self.0) } }
    #[inline(always)]
    unsafe fn mask(count: usize) -> usize { count.min(4) }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: usize) -> Self {
        let mut lanes = [0.0; 4];
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), mask);
            Self(vld1q_f32(lanes.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: usize) {
        let mut lanes = [0.0; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), self.0);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, mask);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { unsafe { Self(vaddq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(vsubq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self { unsafe { Self(vmulq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { unsafe { Self(vdivq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self(vfmaq_f32(addend.0, self.0, factor.0)) } }
    #[inline(always)]
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        unsafe { Self(vbslq_f32(vcltq_f32(self.0, other.0), yes.0, no.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self { unsafe { Self(vabsq_f32(self.0)) } }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        unsafe { Self(vbslq_f32(vdupq_n_u32(0x8000_0000), sign.0, self.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self { unsafe { Self(vrndnq_f32(self.0)) } }
    #[inline(always)]
    unsafe fn exp2_integer(self) -> Self {
        unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(self.0), vdupq_n_s32(127));
            Self(vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 { unsafe { vaddvq_f32(self.0) } }
    // A prefetch needs inline assembly; the hardware follows the streams by itself.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let mut x = [vdupq_n_f32(0.0); 4];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = if cols >= 4 { vld1q_f32(from.add(i * from_stride)) } else { Self::load_masked(from.add(i * from_stride), cols).0 };
                }
            }
            let (even, odd) = (vtrnq_f32(x[0], x[1]), vtrnq_f32(x[2], x[3]));
            let columns = [
                vcombine_f32(vget_low_f32(even.0), vget_low_f32(odd.0)),
                vcombine_f32(vget_low_f32(even.1), vget_low_f32(odd.1)),
                vcombine_f32(vget_high_f32(even.0), vget_high_f32(odd.0)),
                vcombine_f32(vget_high_f32(even.1), vget_high_f32(odd.1)),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                if j < cols {
                    vst1q_f32(to.add(j * to_stride), column);
                }
            }
        }
    }
}
