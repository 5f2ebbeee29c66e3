//! 8 lanes of f32 and 4 of f64 in plain Rust, on every machine; also the reference of the other instruction sets.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one comment covers the functions of the trait, each a few instructions"
)]

use super::{Simd, Vector};

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

#[derive(Clone, Copy)]
pub(crate) struct PortableF64([f64; 4]);

macro_rules! vectors {
    ($($name:ident: $number:ty, $lanes:literal, |$x:ident| $sum:expr;)*) => {$(
        impl $name {
            #[inline(always)]
            fn zip(self, other: Self, f: impl Fn($number, $number) -> $number) -> Self {
                Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
            }
        }

        // SAFETY: only loads and stores are unsafe, and they touch the lanes that the trait says.
        #[rustfmt::skip]
        unsafe impl Vector for $name {
            type Number = $number;
            const LANES: usize = $lanes;
            type Mask = usize;

            #[inline(always)]
            unsafe fn splat(x: $number) -> Self { Self([x; $lanes]) }
            #[inline(always)]
            unsafe fn load(from: *const $number) -> Self { unsafe { Self(from.cast::<[$number; $lanes]>().read()) } }
            #[inline(always)]
            unsafe fn store(self, to: *mut $number) { unsafe { to.cast::<[$number; $lanes]>().write(self.0) } }
            #[inline(always)]
            unsafe fn mask(count: usize) -> usize { count.min($lanes) }
            #[inline(always)]
            unsafe fn load_masked(from: *const $number, mask: usize) -> Self {
                let mut lanes = [0.0; $lanes];
                unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), mask) }
                Self(lanes)
            }
            #[inline(always)]
            unsafe fn store_masked(self, to: *mut $number, mask: usize) {
                unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, mask) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self { self.zip(other, |x, y| x + y) }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self { self.zip(other, |x, y| x * y) }
            // Two roundings: without the instruction a fused one is a slow call.
            #[inline(always)]
            unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self { self.zip(other, |x, y| if x > y { x } else { y }) }
            #[inline(always)]
            unsafe fn sum(self) -> $number {
                let $x = self.0;
                $sum
            }
            #[inline(always)]
            unsafe fn prefetch<T>(_from: *const T) {}

            #[inline(always)]
            unsafe fn transpose(
                from: *const $number, from_stride: usize, rows: usize, cols: usize, to: *mut $number, to_stride: usize,
            ) {
                for j in 0..cols {
                    let column = std::array::from_fn(|i| if i < rows { unsafe { *from.add(i * from_stride + j) } } else { 0.0 });
                    unsafe { Self(column).store(to.add(j * to_stride)) }
                }
            }
        }
    )*};
}

vectors! {
    Portable: f32, 8, |x| ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
    PortableF64: f64, 4, |x| (x[0] + x[2]) + (x[1] + x[3]);
}

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }
}

// SAFETY: only loads and stores are unsafe, and they touch the lanes that the trait says.
#[rustfmt::skip]
unsafe impl Simd for Portable {
    type Words = [u32; 8];

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self { self.zip(other, |x, y| x - y) }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self { self.zip(other, |x, y| x / y) }
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
    unsafe fn largest(self) -> f32 { self.0.into_iter().fold(f32::NEG_INFINITY, f32::max) }

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

}
