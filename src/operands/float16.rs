//! Conversions of f16 that run wherever the program does.
//!
//! The crate `half` uses F16C where the processor reports it. Those instructions need AVX too, and a virtual
//! machine or a system can keep that from programs while F16C is still reported: they fault there.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// Whether what `half` chooses can run.
fn as_half_chooses() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("avx")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    {
        true
    }
}

#[inline]
pub(crate) fn to_f32(x: f16) -> f32 {
    if as_half_chooses() { x.to_f32() } else { x.to_f32_const() }
}

#[inline]
pub(crate) fn to_f64(x: f16) -> f64 {
    if as_half_chooses() { x.to_f64() } else { x.to_f64_const() }
}

/// The nearest, ties to even.
#[inline]
pub(crate) fn from_f32(x: f32) -> f16 {
    if as_half_chooses() { f16::from_f32(x) } else { f16::from_f32_const(x) }
}

/// The nearest, ties to even.
#[inline]
pub(crate) fn from_f64(x: f64) -> f16 {
    if as_half_chooses() { f16::from_f64(x) } else { f16::from_f64_const(x) }
}

/// The nearest of each, ties to even.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn from_f32_slice(to: &mut [f16], from: &[f32]) {
    if as_half_chooses() {
        to.convert_from_f32_slice(from);
    } else {
        assert_eq!(to.len(), from.len());
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = f16::from_f32_const(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the thorough run this is emulated on a processor with F16C and without AVX.
    #[test]
    fn every_number_is_itself_and_between_two_the_nearest_is_taken() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            let (single, double) = (to_f32(x), to_f64(x));
            assert_eq!(single.is_nan(), x.is_nan());
            if !x.is_nan() {
                assert_eq!(f64::from(single), double);
                assert_eq!((from_f32(single), from_f64(double)), (x, x));
            }
        }
        let mut rounded = [f16::ZERO; 9];
        let sums = [1.0, 1.000_4, 1.000_5, 1.001_5, 65519.0, 65520.0, 2e-8, 4e-8, -1.000_6f32];
        from_f32_slice(&mut rounded, &sums);
        let expected = [0x3c00, 0x3c00, 0x3c01, 0x3c02, 0x7bff, 0x7c00, 0, 1, 0xbc01];
        assert_eq!(rounded.map(f16::to_bits), expected);
        assert_eq!(sums.map(|x| from_f32(x).to_bits()), expected);
        assert_eq!(sums.map(|x| from_f64(f64::from(x)).to_bits()), expected);
    }
}
