//! The activations on vectors, within [`Activation::error_f32`](crate::Activation::error_f32).
//!
//! Exponentials are of minus a magnitude, so that nothing overflows and nothing cancels. Polynomials and
//! rational functions are minimax fits of this project's own (iteratively reweighted least squares in float64 at
//! Chebyshev nodes); the relative errors stated are those of the exact functions.

use std::f32::consts::{LN_2, LOG2_E};

use crate::backend::cpu::isa::{Simd, Vector};

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

/// 2^(x y) for products from -256 to 0 as s and p of s (1 + p). Below the normal numbers s is at most the
/// smallest of them. The product is not rounded, and p is precise relative to itself: 1.1e-7 with 16 steps, else
/// 4.4e-7.
#[inline(always)]
#[allow(clippy::approx_constant, reason = "fitted, and not the constant")]
unsafe fn exp2<V: Simd>(x: V, y: V) -> (V, V) {
    // SAFETY: by the callers' contract.
    unsafe {
        let (minus_n, scale) = x.exp2_split(y, 0.0);
        let r = x.fused_mul_add(y, minus_n);
        let p = if V::EXP2_STEPS == 16 {
            polynomial(r, [LN_2, 0.240_233_56, 0.055_504_11])
        } else {
            polynomial(r, [0.693_147_1, 0.240_223_51, 0.055_505_004, 0.009_666_245, 0.001_333_351_8])
        };
        (scale, r.mul(p))
    }
}

#[inline(always)]
pub(super) unsafe fn relu<V: Vector>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe { V::zero().max(x) }
}

/// e / (1 + e) below 0, 1 / (1 + e) above, where e = e^-|x|.
#[inline(always)]
pub(super) unsafe fn sigmoid<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let one = V::splat(1.0);
        let (scale, p) = exp2(V::splat(110.0).min(x.abs()), V::splat(-LOG2_E));
        let e = scale.mul_add(p, scale);
        x.select_less(V::splat(0.0), e, one).div(e.add(one))
    }
}

/// e^x for x up to 0, 0 from -104 down. The relative error is below 2^-19.3, most of it that of log2 e times x.
#[inline(always)]
pub(crate) unsafe fn exp_of_negative<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let (scale, p) = exp2(V::splat(-110.0).max(x), V::splat(LOG2_E));
        scale.mul_add(p, scale)
    }
}

/// h^2 with h = e^(x / 2), so that the last product alone overflows, and rounds what is below the smallest normal
/// number. The relative error is below 2^-18.8, and that of a subnormal result by half its last place more.
#[inline(always)]
pub(super) unsafe fn exp<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let (scale, p) = exp2(V::splat(110.0).min(x.abs()), V::splat(-0.5 * LOG2_E));
        let e = scale.mul_add(p, scale);
        let h = x.select_less(V::splat(0.0), e, V::splat(1.0).div(e));
        h.mul(h)
    }
}

/// x times the logistic function, by h = 2^(z y), the square root of what the latter is where it is small: h stays
/// normal where the result is. x must be finite below 0.
#[inline(always)]
unsafe fn times_logistic<V: Simd>(x: V, z: V, y: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let (scale, p) = exp2(z, y);
        let h = scale.mul_add(p, scale);
        let numerator = x.select_less(V::splat(0.0), x.mul(h).mul(h), x);
        numerator.div(h.mul_add(h, V::splat(1.0)))
    }
}

#[inline(always)]
pub(super) unsafe fn silu<V: Simd>(x: V) -> V {
    const LIMIT: f32 = 210.0;
    // SAFETY: by the callers' contract.
    unsafe {
        let z = V::splat(LIMIT).min(x.abs());
        times_logistic(V::splat(-LIMIT).max(x), z, V::splat(-0.5 * LOG2_E))
    }
}

/// (1 + tanh t) / 2 is the logistic function of 2 t.
#[inline(always)]
pub(super) unsafe fn gelu_tanh<V: Simd>(x: V) -> V {
    const LIMIT: f32 = 15.0;
    // SAFETY: by the callers' contract.
    unsafe {
        let z = V::splat(LIMIT).min(x.abs());
        // -t / z in powers of 2: sqrt(2 / pi) log2 e = 1.15110412, and 0.044715 times
        // that. Rounded down the first makes up for the rounding of the second where both are large.
        let y = z.mul(z).mul_add(V::splat(-0.051_471_62), V::splat(-1.151_104));
        times_logistic(V::splat(-LIMIT).max(x), z, y)
    }
}

/// max(x, 0) - T(|x|), where T(z) = z erfc(z / sqrt 2) / 2 = g(z) e^(-z^2 / 2), so that nothing cancels below 0.
#[inline(always)]
pub(super) unsafe fn gelu<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let z = V::splat(14.9).min(x.abs());
        let (square, y) = (z.mul(z), V::splat(-0.5 * LOG2_E));
        let (scale, minus_tail) = if V::LOOKS_UP {
            let (difference, scale) = square.exp2_split(y, EXP2_VERTEX);
            let u = square.fused_mul_add(y, difference);
            (scale, gelu_tail_by_table(z).mul(u.mul_add(u, V::splat(EXP2_CONSTANT))))
        } else {
            let (scale, p) = exp2(square, y);
            let minus_g = gelu_tail(z);
            (scale, minus_g.mul_add(p, minus_g))
        };
        // NaN comes from the maximum.
        minus_tail.mul_add(scale, relu(x))
    }
}

/// -g of [`gelu`] up to 15, as a rational function (relative error 4.1e-7).
#[inline(always)]
unsafe fn gelu_tail<V: Simd>(z: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let numerator = polynomial(z, [-0.499_999_8, -0.363_052_82, -0.120_166_73, -0.017_201_11]);
        let denominator = polynomial(z, [1.0, 1.523_970_1, 0.956_443_4, 0.301_017_8, 0.043_121_655]);
        numerator.mul(z).div(denominator)
    }
}

/// 2^r from -1/32 to 1/32 is 0.2411125 (u^2 + [`EXP2_CONSTANT`]) with u = r + [`EXP2_VERTEX`] (relative error
/// 6.9e-7): a multiplication less than p of [`exp2`].
const EXP2_VERTEX: f32 = 1.4375;
const EXP2_CONSTANT: f32 = 2.081_033_7;

/// -0.2411125 g of [`gelu`] up to 14.94, the factor being that of u^2 + [`EXP2_CONSTANT`], as polynomials between 31
/// points (relative error 3.6e-6).
#[inline(always)]
unsafe fn gelu_tail_by_table<V: Simd>(z: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let [c0, c1, c2, c3] = z.add(V::splat(GELU_TAIL_START)).look_up(&GELU_TAIL);
        c3.mul_add(z, c2).mul_add(z, c1).mul_add(z, c0)
    }
}

/// tanh |x| = (1 - e) / (1 + e) with e = e^(-2 |x|), from e - 1, which does not cancel.
#[inline(always)]
pub(super) unsafe fn tanh<V: Simd>(x: V) -> V {
    // SAFETY: by the callers' contract.
    unsafe {
        let (scale, p) = exp2(V::splat(10.0).min(x.abs()), V::splat(-2.0 * LOG2_E));
        let less_1 = scale.mul_add(p, scale.sub(V::splat(1.0)));
        less_1.div(less_1.add(V::splat(2.0))).copysign(x)
    }
}

/// What [`gelu_tail_by_table`] adds to z, so that the first part, where g is z times a polynomial, is short.
const GELU_TAIL_START: f32 = 1.06;

/// The coefficients of 1, z, z^2 and z^3, in the order of [`Simd::look_up`].
#[rustfmt::skip]
static GELU_TAIL: [[f32; 32]; 4] = [
    [
        -0.006_965_019_7, -0.011_443_161, -0.016_500_931, -0.021_819_655, -0.027_155_902, -0.032_341_324,
        -0.037_269_72, -0.041_881_77, -0.048_022_356, -0.055_231_925, -0.061_201_5, -0.066_121_29,
        -0.070_178_72, -0.073_537_305, -0.076_332_26, -0.078_672_536, -0.081_459_485, -0.084_346_49,
        -0.086_486_19, -0.088_108_71, -0.089_364_4, -0.090_353_906, -0.091_146_216, -0.091_789_7, 0.0,
        -4.509_709_5e-6, -7.528_986e-5, -0.000_318_421_17, -0.000_823_687_24, -0.001_645_112, -0.002_801_167_8,
        -0.004_282_254_7,
    ],
    [
        -0.090_291_27, -0.078_947_04, -0.068_367, -0.058_892_738, -0.050_616_25, -0.043_494_61,
        -0.037_421_44, -0.032_267_667, -0.026_086_608, -0.019_763_395, -0.015_196_904, -0.011_859_891,
        -0.009_387_854, -0.007_530_555_6, -0.006_115_587_4, -0.005_023_13, -0.003_831_456, -0.002_734_341_7,
        -0.002_012_981_8, -0.001_521_418_8, -0.001_175_982_3, -0.000_926_692_5, -0.000_742_578_3,
        -0.000_603_817_4, -0.120_556, -0.120_386, -0.119_279_04, -0.116_964_5, -0.113_515_14, -0.109_146_49,
        -0.104_111_92, -0.098_651_62,
    ],
    [
        0.042_221_24, 0.032_624_14, 0.025_237_553, 0.019_606_886, 0.015_324_989, 0.012_062_938,
        0.009_567_231, 0.007_646_833, 0.005_571_684_3, 0.003_721_457_4, 0.002_556_285_1, 0.001_801_408_2,
        0.001_299_155_5, 0.000_956_674_16, 0.000_717_824_6, 0.000_547_793_3, 0.000_377_870_92,
        0.000_238_805_9, 0.000_157_699_88, 0.000_108_037_36, 7.635_027e-5, 5.540_932_4e-5, 4.114_458_7e-5,
        3.116_835_8e-5, 0.096_116_71, 0.093_870_99, 0.087_984_92, 0.080_590_025, 0.072_713_57, 0.064_952_83,
        0.057_634_28, 0.050_917_517,
    ],
    [
        -0.008_034_704, -0.005_323_381, -0.003_602_217, -0.002_485_748_4, -0.001_746_817_5,
        -0.001_248_490_4, -0.000_906_479_9, -0.000_667_868_5, -0.000_435_500_73, -0.000_254_881_04,
        -0.000_155_715_16, -9.876_449_6e-5, -6.473_537e-5, -4.367_713e-5, -3.023_378_1e-5, -2.141_029_3e-5,
        -1.333_028_65e-5, -7.450_777e-6, -4.409_515_4e-6, -2.736_360_3e-6, -1.767_137_2e-6, -1.180_605e-6,
        -8.121_15e-7, -5.729_836e-7, -0.057_251_34, -0.046_553_2, -0.035_911_802, -0.027_982_838,
        -0.021_967_178, -0.017_362_155, -0.013_811_059, -0.011_054_235,
    ],
];
