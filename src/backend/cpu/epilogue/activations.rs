//! The activations on vectors, within [`Activation::error_f32`](crate::Activation::error_f32).
//!
//! Polynomials are minimax fits of this project's own (iteratively reweighted least squares in
//! float64 at Chebyshev nodes); the errors stated are those of the exact polynomial.

use crate::backend::cpu::isa::Simd;

#[inline(always)]
unsafe fn polynomial<V: Simd, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let mut sum = V::splat(coefficients[N - 1]);
        for &coefficient in coefficients[..N - 1].iter().rev() {
            sum = sum.mul_add(x, V::splat(coefficient));
        }
        sum
    }
}

/// e^x: relative error of the polynomial 2e-9. Below -87.3 as at -87.3, infinity above 88.4.
#[inline(always)]
unsafe fn exp<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        // Twice `select_less` lets NaN through.
        let (low, high) = (V::splat(-87.3), V::splat(89.0));
        let x = x.select_less(low, low, x);
        let x = high.select_less(x, high, x);
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first with 9 bits, so that n times it is exact.
        let r = n.mul_add(V::splat(-0.691_406_25), x);
        let r = n.mul_add(V::splat(-0.001_740_930_6), r);
        let p = polynomial(
            r,
            [1.0, 1.0, 0.499_999_9, 0.166_664_2, 0.041_668_225, 0.008_374_824, 0.001_383_683_2],
        );
        // 2^128, where 89 leads, has the bits of infinity.
        p.mul(n.exp2_integer())
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
unsafe fn logistic<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let one = V::splat(1.0);
        one.div(one.add(exp(V::splat(0.0).sub(x))))
    }
}

#[inline(always)]
pub(super) unsafe fn relu<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let zero = V::splat(0.0);
        x.select_less(zero, zero, x)
    }
}

#[inline(always)]
pub(super) unsafe fn sigmoid<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe { logistic(x) }
}

/// Below -120 the function is 0, and minus infinity times 0 would be NaN.
#[inline(always)]
pub(super) unsafe fn silu<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let low = V::splat(-120.0);
        let x = x.select_less(low, low, x);
        x.mul(logistic(x))
    }
}

#[inline(always)]
pub(super) unsafe fn gelu_tanh<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let low = V::splat(-120.0);
        let x = x.select_less(low, low, x);
        // (1 + tanh t) / 2 is the logistic function of 2 t; 2 sqrt(2 / pi) = 1.5957691.
        let inner = x.mul(x).mul_add(V::splat(1.595_769 * 0.044_715), V::splat(1.595_769));
        x.mul(logistic(x.mul(inner)))
    }
}

/// x / 2 (1 + erf(x / sqrt 2)), erf as x times a polynomial in x^2 (error 1.7e-8); beyond 5.5 the
/// result is 0 or x within 1.1e-7.
#[inline(always)]
pub(super) unsafe fn gelu<V: Simd>(x: V) -> V {
    const LIMIT: f32 = 5.5;
    // SAFETY: by the callers' contract.
    unsafe {
        let square = x.mul(x);
        // The square mapped from 0..LIMIT^2 to -1..1, where the powers do not cancel.
        let s = square.mul_add(V::splat(2.0 / (LIMIT * LIMIT)), V::splat(-1.0));
        // Two chains instead of a long one, whose latency would show; half of the function, so that one
        // multiplication ends it.
        let s2 = s.mul(s);
        let even = polynomial(
            s2,
            [
                0.128_551_93,
                0.047_737_63,
                0.032_070_255,
                0.020_364_586,
                0.010_227_758,
                0.004_621_897_5,
                0.000_720_009_7,
                0.000_631_590_3,
            ],
        );
        let odd = polynomial(
            s2,
            [
                -0.064_172_335,
                -0.038_792_785,
                -0.026_048_256,
                -0.014_999_106_5,
                -0.006_819_821_5,
                -0.002_418_792,
                -0.000_529_017_9,
                -0.000_236_453_6,
            ],
        );
        let p = odd.mul_add(s, even);
        let inside = square.mul_add(p, x.mul(V::splat(0.5)));
        let (limit, zero) = (V::splat(LIMIT), V::splat(0.0));
        let result = limit.select_less(x, x, inside);
        x.select_less(V::splat(-LIMIT), zero, result)
    }
}

/// x + x^3 P(x^2) up to 0.625 (relative error 5e-9), 1 - 2 / (1 + e^2x) beyond.
#[inline(always)]
pub(super) unsafe fn tanh<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let square = x.mul(x);
        let p =
            polynomial(square, [-0.333_332_78, 0.133_313_28, -0.053_729_23, 0.020_601_999, -0.005_660_780_7]);
        let near = x.mul(square).mul_add(p, x);
        let y = x.abs();
        let one = V::splat(1.0);
        let far = one.sub(V::splat(2.0).div(one.add(exp(y.add(y)))));
        y.select_less(V::splat(0.625), near, far.copysign(x))
    }
}
