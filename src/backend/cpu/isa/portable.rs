//! 8 lanes in plain Rust, on every machine; also the reference of the other instruction sets.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }
}

// SAFETY: only loads and stores are unsafe, and they touch the lanes that the trait says.
#[rustfmt::skip]
unsafe impl Simd for Portable {
    const LANES: usize = 8;
    type Mask = usize;
    type Words = [u32; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self { Self([x; 8]) }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self { unsafe { Self(from.cast::<[f32; 8]>().read()) } }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) { unsafe { to.cast::<[f32; 8]>().write(self.0) } }
    #[inline(always)]
    unsafe fn mask(count: usize) -> usize { count.min(8) }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: usize) -> Self {
        let mut lanes = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), mask) }
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: usize) {
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, mask) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self { self.zip(other, |x, y| x + y) }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { self.zip(other, |x, y| x - y) }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self { self.zip(other, |x, y| x * y) }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { self.zip(other, |x, y| x / y) }
    // Two roundings: without the instruction a fused one is a slow call.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
    }
    // In float64 the product is exact.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the rounding")]
    unsafe fn fused_mul_add(self, factor: Self, addend: Self) -> Self {
        let fused = |i: usize| f64::from(self.0[i]) * f64::from(factor.0[i]) + f64::from(addend.0[i]);
        Self(std::array::from_fn(|i| fused(i) as f32))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self { self.zip(other, |x, y| if x < y { x } else { y }) }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self { self.zip(other, |x, y| if x > y { x } else { y }) }
    #[inline(always)]
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < other.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self { self.map(f32::abs) }
    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self { self.zip(sign, f32::copysign) }
    #[inline(always)]
    unsafe fn exp2_split(self, factor: Self, offset: f32) -> (Self, Self) {
        const SHIFT: f32 = 1.5 * 8_388_608.0 + 127.0;
        // The sum's last bits are n, and what makes an exponent of it.
        let sum = self.zip(factor, |x, y| x * y + SHIFT);
        let power = sum.map(|x| f32::from_bits((x.to_bits() << 23).cast_signed().max(0).cast_unsigned()));
        (sum.map(|x| (SHIFT + offset) - x), power)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 { self.0.into_iter().fold(f32::NEG_INFINITY, f32::max) }
    #[inline(always)]
    unsafe fn prefetch<T>(_from: *const T) {}

    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_f16(from: *const u16) -> Self {
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = crate::operands::float16::to_f32(half::f16::from_bits(unsafe { from.add(i).read() }));
        }
        Self(lanes)
    }
    #[cfg(feature = "half")]
    #[inline(always)]
    unsafe fn from_bf16(from: *const u16) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(u32::from(unsafe { from.add(i).read() }) << 16)))
    }
    #[inline(always)]
    unsafe fn from_i8(from: *const i8) -> Self { Self(std::array::from_fn(|i| f32::from(unsafe { from.add(i).read() }))) }
    #[inline(always)]
    unsafe fn from_u8(from: *const u8) -> Self { Self(std::array::from_fn(|i| f32::from(unsafe { from.add(i).read() }))) }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> [u32; 8] { unsafe { from.cast::<[u32; 8]>().read() } }
    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "of at most 8 bits")]
    unsafe fn unpack<const BITS: u32>(words: [u32; 8], index: u32) -> Self {
        Self(words.map(|word| ((word << (32 - BITS * (index + 1))).cast_signed() >> (32 - BITS)) as f32))
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, rows: usize, cols: usize, to: *mut f32, to_stride: usize) {
        for j in 0..cols {
            let column = std::array::from_fn(|i| if i < rows { unsafe { *from.add(i * from_stride + j) } } else { 0.0 });
            unsafe { Self(column).store(to.add(j * to_stride)) }
        }
    }
}
