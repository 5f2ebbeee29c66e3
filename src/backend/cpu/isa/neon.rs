//! 4 lanes of f32, 2 of f64: NEON, which every 64-bit ARM has.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use std::arch::aarch64::*;

use super::{Simd, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Neon(pub(crate) float32x4_t);

#[derive(Clone, Copy)]
pub(crate) struct NeonF64(float64x2_t);

/// What differs between the vectors by their instructions alone.
#[rustfmt::skip]
macro_rules! arithmetic {
    ($number:ty, $lanes:literal: $dup:ident $ld1:ident $st1:ident $add:ident $mul:ident $fma:ident $max:ident $addv:ident) => {
        type Number = $number;
        const LANES: usize = $lanes;
        type Mask = usize;

        #[inline(always)]
        unsafe fn splat(x: $number) -> Self { unsafe { Self($dup(x)) } }
        #[inline(always)]
        unsafe fn load(from: *const $number) -> Self { unsafe { Self($ld1(from)) } }
        #[inline(always)]
        unsafe fn store(self, to: *mut $number) { unsafe { $st1(to, self.0) } }
        #[inline(always)]
        unsafe fn mask(count: usize) -> usize { count.min($lanes) }
        #[inline(always)]
        unsafe fn load_masked(from: *const $number, mask: usize) -> Self {
            let mut lanes = [0.0; $lanes];
            unsafe {
                std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), mask);
                Self($ld1(lanes.as_ptr()))
            }
        }
        #[inline(always)]
        unsafe fn store_masked(self, to: *mut $number, mask: usize) {
            let mut lanes = [0.0; $lanes];
            unsafe {
                $st1(lanes.as_mut_ptr(), self.0);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, mask);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self { unsafe { Self($add(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self { unsafe { Self($mul(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self($fma(addend.0, self.0, factor.0)) } }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self { unsafe { Self($max(self.0, other.0)) } }
        #[inline(always)]
        unsafe fn sum(self) -> $number { unsafe { $addv(self.0) } }
        // A prefetch needs inline assembly; the hardware follows the streams by itself.
        #[inline(always)]
        unsafe fn prefetch<T>(_from: *const T) {}
    };
}

// SAFETY: each function is one or a few instructions of NEON; memory is accessed as the trait says:
// the masked forms copy as many numbers as the mask counts.
#[rustfmt::skip]
unsafe impl Vector for Neon {
    arithmetic! { f32, 4: vdupq_n_f32 vld1q_f32 vst1q_f32 vaddq_f32 vmulq_f32 vfmaq_f32 vmaxq_f32 vaddvq_f32 }

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

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Vector for NeonF64 {
    arithmetic! { f64, 2: vdupq_n_f64 vld1q_f64 vst1q_f64 vaddq_f64 vmulq_f64 vfmaq_f64 vmaxq_f64 vaddvq_f64 }

    #[inline(always)]
    unsafe fn transpose(from: *const f64, from_stride: usize, rows: usize, cols: usize, to: *mut f64, to_stride: usize) {
        unsafe {
            let mut x = [vdupq_n_f64(0.0); 2];
            for (i, row) in x.iter_mut().enumerate() {
                if i < rows {
                    *row = Self::load_masked(from.add(i * from_stride), Self::mask(cols)).0;
                }
            }
            let columns = [vtrn1q_f64(x[0], x[1]), vtrn2q_f64(x[0], x[1])];
            for (j, column) in columns.into_iter().enumerate() {
                if j < cols {
                    vst1q_f64(to.add(j * to_stride), column);
                }
            }
        }
    }
}

// SAFETY: as above.
#[rustfmt::skip]
unsafe impl Simd for Neon {
    type Words = int32x4_t;

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(vsubq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { unsafe { Self(vdivq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self { unsafe { Self(vminq_f32(self.0, other.0)) } }
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
    unsafe fn exp2_split(self, factor: Self, offset: f32) -> (Self, Self) {
        const SHIFT: f32 = 1.5 * 8_388_608.0 + 127.0;
        unsafe {
            // The sum's last bits are n, and what makes an exponent of it.
            let sum = vfmaq_f32(vdupq_n_f32(SHIFT), self.0, factor.0);
            let power = vmaxq_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(sum)), vdupq_n_s32(0));
            (Self(vsubq_f32(vdupq_n_f32(SHIFT + offset), sum)), Self(vreinterpretq_f32_s32(power)))
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 { unsafe { vmaxvq_f32(self.0) } }

    // The intrinsic is not stable; the instruction is part of ARMv8.0.
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_f16(from: *const u16) -> Self {
        unsafe {
            let wide: float32x4_t;
            std::arch::asm!(
                "fcvtl {wide:v}.4s, {narrow:v}.4h",
                wide = lateout(vreg) wide, narrow = in(vreg) vld1_u16(from),
                options(pure, nomem, nostack, preserves_flags),
            );
            Self(wide)
        }
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_bf16(from: *const u16) -> Self {
        unsafe { Self(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from)))) }
    }
    #[inline(always)]
    unsafe fn from_i8(from: *const i8) -> Self {
        unsafe { Self::load(std::array::from_fn::<f32, 4, _>(|i| f32::from(from.add(i).read())).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn from_u8(from: *const u8) -> Self {
        unsafe { Self::load(std::array::from_fn::<f32, 4, _>(|i| f32::from(from.add(i).read())).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> int32x4_t { unsafe { vld1q_s32(from.cast()) } }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(words: int32x4_t, index: u32) -> Self {
        unsafe {
            let left = vshlq_s32(words, vdupq_n_s32((32 - BITS * (index + 1)).cast_signed()));
            // A shift to the left by a negative number is one to the right.
            Self(vcvtq_f32_s32(vshlq_s32(left, vdupq_n_s32(BITS.cast_signed() - 32))))
        }
    }

}
