//! Vectors of f32, one implementation for each instruction set.
//!
//! Kernels are written once over [`Simd`] and instantiated inside functions that enable the
//! instruction set, so everything here must be inlined into those.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_dot;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_words;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon_dot;
pub(super) mod portable;

/// A vector of [`Simd::LANES`] numbers.
///
/// # Safety
/// All functions may be called only where the instruction set is there and, for speed, inside a
/// function that enables it. Pointers need no alignment beyond that of f32; `load` and `store` access
/// [`Simd::LANES`] numbers, the masked forms only those that the mask selects.
pub(super) unsafe trait Simd: Copy {
    /// The numbers in a vector.
    const LANES: usize;
    /// Which lanes a masked access touches.
    type Mask: Copy;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `count` lanes, at most all.
    unsafe fn mask(count: usize) -> Self::Mask;
    /// Lanes that the mask does not select are 0.
    unsafe fn load_masked(from: *const f32, mask: Self::Mask) -> Self;
    unsafe fn store_masked(self, to: *mut f32, mask: Self::Mask);
    /// A masked load, or one of all lanes.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, mask: Option<Self::Mask>) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            match mask {
                Some(mask) => Self::load_masked(from, mask),
                None => Self::load(from),
            }
        }
    }
    /// A masked store, or one of all lanes.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, mask: Option<Self::Mask>) {
        // SAFETY: by the trait's contract.
        unsafe {
            match mask {
                Some(mask) => self.store_masked(to, mask),
                None => self.store(to),
            }
        }
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set can.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Where `self < other` the lane of `yes`, elsewhere (NaN included) of `no`.
    unsafe fn select_less(self, other: Self, yes: Self, no: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// The nearest integer, ties to even, for magnitudes below 2^22.
    unsafe fn round(self) -> Self;
    /// 2^self for integers from -126 to 127.
    unsafe fn exp2_integer(self) -> Self;
    /// The sum of the lanes, in an order that is always the same.
    unsafe fn sum(self) -> f32;
    /// Asks for a cache line that is read soon; any address will do.
    unsafe fn prefetch(from: *const f32);
    /// `LANES` rows of `LANES` numbers, `from_stride` apart, written as columns: row `i` of the result
    /// at `to + i * to_stride`. Only the first `rows` rows are read, the others count as 0; only the
    /// first `cols` numbers of a row are read and only so many rows written.
    unsafe fn transpose(
        from: *const f32,
        from_stride: usize,
        rows: usize,
        cols: usize,
        to: *mut f32,
        to_stride: usize,
    );
}
