//! Vectors of f32 that are made from packed integers, one implementation for each instruction set.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "one comment covers the functions of a trait, each a few instructions"
)]

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A vector of [`Lanes::LANES`] numbers.
///
/// # Safety
/// All functions may be called only where the instruction set is there and, for speed, inside a function
/// that enables it. Loads and stores access [`Lanes::LANES`] numbers of 4 bytes, without need of alignment.
pub(super) unsafe trait Lanes: Copy {
    const LANES: usize;
    /// As many 32-bit words.
    type Words: Copy;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn words(from: *const u32) -> Self::Words;
    /// The signed integers of `BITS` bits, 4 or 8, that begin at bit `BITS * index` of each word.
    unsafe fn integers<const BITS: u32>(words: Self::Words, index: u32) -> Self;
    /// Asks for a cache line that is read soon; any address will do.
    unsafe fn prefetch(from: *const u32);
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// What 4 bits stand for.
#[cfg(target_arch = "x86_64")]
static NIBBLES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];

// SAFETY: each function is a few instructions of AVX-512 F, which the caller vouches for.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
unsafe impl Lanes for Avx512 {
    const LANES: usize = 16;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { unsafe { Self(_mm512_set1_ps(x)) } }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(_mm512_loadu_ps(from)) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { _mm512_storeu_ps(to, self.0) } }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { unsafe { Self(_mm512_add_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(_mm512_sub_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) } }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> __m512i { unsafe { _mm512_loadu_si512(from.cast()) } }
    #[inline(always)]
    unsafe fn integers<const BITS: u32>(words: __m512i, index: u32) -> Self {
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
    #[inline(always)]
    unsafe fn prefetch(from: *const u32) { unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) } }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY: each function is a few instructions of AVX2 and FMA, which the caller vouches for.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
unsafe impl Lanes for Avx2 {
    const LANES: usize = 8;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { unsafe { Self(_mm256_set1_ps(x)) } }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(_mm256_loadu_ps(from)) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { _mm256_storeu_ps(to, self.0) } }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { unsafe { Self(_mm256_add_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(_mm256_sub_ps(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) } }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> __m256i { unsafe { _mm256_loadu_si256(from.cast()) } }
    #[inline(always)]
    unsafe fn integers<const BITS: u32>(words: __m256i, index: u32) -> Self {
        unsafe {
            let left = _mm256_sllv_epi32(words, _mm256_set1_epi32((32 - BITS * (index + 1)).cast_signed()));
            Self(_mm256_cvtepi32_ps(_mm256_srav_epi32(left, _mm256_set1_epi32((32 - BITS).cast_signed()))))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u32) { unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) } }
}

#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t);

// SAFETY: each function is a few instructions of NEON, which every 64-bit ARM has.
#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
unsafe impl Lanes for Neon {
    const LANES: usize = 4;
    type Words = int32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { unsafe { Self(vdupq_n_f32(x)) } }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(vld1q_f32(from)) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { vst1q_f32(to, self.0) } }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { unsafe { Self(vaddq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { unsafe { Self(vsubq_f32(self.0, other.0)) } }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self { unsafe { Self(vfmaq_f32(addend.0, self.0, factor.0)) } }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> int32x4_t { unsafe { vld1q_s32(from.cast()) } }
    #[inline(always)]
    unsafe fn integers<const BITS: u32>(words: int32x4_t, index: u32) -> Self {
        unsafe {
            let left = vshlq_s32(words, vdupq_n_s32((32 - BITS * (index + 1)).cast_signed()));
            // A shift to the left by a negative number is one to the right.
            Self(vcvtq_f32_s32(vshlq_s32(left, vdupq_n_s32(BITS.cast_signed() - 32))))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u32) {}
}

/// 8 lanes in plain Rust, on every machine.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY: only loads and stores are unsafe, and they touch the lanes that the trait says.
#[rustfmt::skip]
unsafe impl Lanes for Portable {
    const LANES: usize = 8;
    type Words = [u32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { Self([x; 8]) }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(from.cast::<[f32; 8]>().read_unaligned()) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) } }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { self.zip(other, |x, y| x + y) }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { self.zip(other, |x, y| x - y) }
    // Two roundings: without the instruction a fused one is a slow call.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
    }
    #[inline(always)]
    unsafe fn words(from: *const u32) -> [u32; 8] { unsafe { from.cast::<[u32; 8]>().read_unaligned() } }
    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
    unsafe fn integers<const BITS: u32>(words: [u32; 8], index: u32) -> Self {
        Self(words.map(|word| ((word << (32 - BITS * (index + 1))).cast_signed() >> (32 - BITS)) as f32))
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u32) {}
}
