//! Narrower elements as f32, in whole vectors: exact.

use super::simd::Simd;

/// A vector of f32 from as many elements of a narrower type, which need no alignment.
///
/// # Safety
/// As [`Simd`]; the functions read [`Simd::LANES`] elements.
pub(super) unsafe trait Widen: Simd {
    #[inline(always)]
    unsafe fn from_f32(from: *const f32) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self::load(from) }
    }
    /// IEEE 754 binary16.
    #[cfg(feature = "half")]
    unsafe fn from_f16(from: *const u16) -> Self;
    /// The upper halves of f32.
    #[cfg(feature = "half")]
    unsafe fn from_bf16(from: *const u16) -> Self;
    unsafe fn from_i8(from: *const i8) -> Self;
    unsafe fn from_u8(from: *const u8) -> Self;
}

/// An element type.
pub(super) trait Element {
    type Bits: Copy + Default;

    /// # Safety
    /// As [`Widen`].
    unsafe fn widen<V: Widen>(from: *const Self::Bits) -> V;
}

macro_rules! elements {
    ($($(#[$cfg:meta])* $name:ident, $bits:ty, $function:ident;)*) => {$(
        $(#[$cfg])*
        pub(super) struct $name;

        $(#[$cfg])*
        impl Element for $name {
            type Bits = $bits;

            #[inline(always)]
            unsafe fn widen<V: Widen>(from: *const $bits) -> V {
                // SAFETY: by the trait's contract.
                unsafe { V::$function(from) }
            }
        }
    )*};
}

elements! {
    F32, f32, from_f32;
    #[cfg(feature = "half")] F16, u16, from_f16;
    #[cfg(feature = "half")] Bf16, u16, from_bf16;
    I8, i8, from_i8;
    U8, u8, from_u8;
}

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

/// Rows of elements, and where their numbers go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elements {
    /// Of the function's type.
    pub from: *const u8,
    /// In elements.
    pub from_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub to: *mut f32,
    pub to_stride: usize,
}

pub(super) type WidenFn = unsafe fn(&Elements);

/// The functions of an instruction set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widening {
    pub f32: WidenFn,
    #[cfg(feature = "half")]
    pub f16: WidenFn,
    #[cfg(feature = "half")]
    pub bf16: WidenFn,
    pub i8: WidenFn,
    pub u8: WidenFn,
}

/// # Safety
/// As [`Simd`]; the rows can be read, and at `to` there is room for them.
#[inline(always)]
pub(super) unsafe fn widen_rows<V: Widen, E: Element>(r: &Elements) {
    // SAFETY: by the function's own contract.
    unsafe {
        let whole = r.cols / V::LANES * V::LANES;
        let mask = V::mask(r.cols - whole);
        for row in 0..r.rows {
            let from = r.from.cast::<E::Bits>().add(row * r.from_stride);
            let to = r.to.add(row * r.to_stride);
            for col in (0..whole).step_by(V::LANES) {
                E::widen::<V>(from.add(col)).store(to.add(col));
            }
            if whole < r.cols {
                let mut last = [E::Bits::default(); MAX_LANES];
                std::ptr::copy_nonoverlapping(from.add(whole), last.as_mut_ptr(), r.cols - whole);
                E::widen::<V>(last.as_ptr()).store_masked(to.add(whole), mask);
            }
        }
    }
}

/// A number that is exact in f32, lane by lane.
macro_rules! each_lane {
    ($lanes:expr, $from:expr, $f:expr) => {{
        let mut lanes = [0f32; $lanes];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = $f($from.add(i).read());
        }
        lanes
    }};
}

mod portable {
    use super::Widen;
    use crate::backend::cpu::simd::Simd;
    use crate::backend::cpu::simd::portable::Portable;

    // SAFETY: as many elements are read as there are lanes.
    #[rustfmt::skip]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
    unsafe impl Widen for Portable {
        #[cfg(feature = "half")]
        #[inline(always)]
        unsafe fn from_f16(from: *const u16) -> Self {
            unsafe { Self::load(each_lane!(8, from, |bits| crate::operands::float16::to_f32(half::f16::from_bits(bits))).as_ptr()) }
        }
        #[cfg(feature = "half")]
        #[inline(always)]
        unsafe fn from_bf16(from: *const u16) -> Self {
            unsafe { Self::load(each_lane!(8, from, |bits| f32::from_bits(u32::from(bits) << 16)).as_ptr()) }
        }
        #[inline(always)]
        unsafe fn from_i8(from: *const i8) -> Self {
            unsafe { Self::load(each_lane!(8, from, f32::from).as_ptr()) }
        }
        #[inline(always)]
        unsafe fn from_u8(from: *const u8) -> Self {
            unsafe { Self::load(each_lane!(8, from, f32::from).as_ptr()) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(clippy::wildcard_imports, reason = "instructions have long names")]

    use std::arch::x86_64::*;

    use super::Widen;
    use crate::backend::cpu::simd::avx2::Avx2;
    use crate::backend::cpu::simd::avx512::Avx512;

    // SAFETY: as many elements are read as there are lanes, by instructions of AVX2 and F16C.
    #[rustfmt::skip]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
    unsafe impl Widen for Avx2 {
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
    }

    // SAFETY: as many elements are read as there are lanes, by instructions of AVX-512 F.
    #[rustfmt::skip]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
    unsafe impl Widen for Avx512 {
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
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    #[cfg(feature = "half")]
    use std::arch::aarch64::{float32x4_t, vld1_u16, vreinterpretq_f32_u32, vshll_n_u16};

    use super::Widen;
    use crate::backend::cpu::simd::Simd;
    use crate::backend::cpu::simd::neon::Neon;

    // SAFETY: as many elements are read as there are lanes.
    #[rustfmt::skip]
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one comment covers all")]
    unsafe impl Widen for Neon {
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
            unsafe { Self::load(each_lane!(4, from, f32::from).as_ptr()) }
        }
        #[inline(always)]
        unsafe fn from_u8(from: *const u8) -> Self {
            unsafe { Self::load(each_lane!(4, from, f32::from).as_ptr()) }
        }
    }
}
