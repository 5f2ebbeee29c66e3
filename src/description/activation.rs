//! The functions that can end a product.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::fmt;
use std::str::FromStr;

/// A function applied to every element of the result, after bias and residual.
///
/// All of them give NaN for NaN. GELU and SiLU of minus infinity are 0, of either sign.
///
/// ```
/// use ane_matmul::{Activation, BackendId, Inputs, MatMul};
///
/// let product = MatMul::builder(1, 2, 1).activation(Activation::Relu).build()?;
/// let c = product.compile(&BackendId::CPU)?.run_to_tensor(Inputs::new(&[2f32]).b(&[3f32, -3.0]))?;
/// assert_eq!(c.data(), [6.0, 0.0]);
/// assert_eq!("gelu-tanh".parse(), Ok(Activation::GeluTanh)); // as the command line names it
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x / 2 * (1 + erf(x / sqrt 2))` (Hendrycks and Gimpel, arXiv:1606.08415).
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, the approximation given there.
    GeluTanh,
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
}

/// The constant of the tanh form of GELU (arXiv:1606.08415, section 2).
pub(crate) const GELU_CUBIC: f64 = 0.044_715;

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Relu, Self::Gelu, Self::GeluTanh, Self::Silu, Self::Sigmoid, Self::Tanh];

    /// The function in `f64`, as the reference that results are compared with.
    #[must_use]
    pub fn apply_f64(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            // f64::max would turn NaN into 0.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Gelu if x == f64::NEG_INFINITY => -0.0,
            // erfc keeps its relative precision where 1 + erf cancels.
            Self::Gelu => 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
            Self::GeluTanh if x == f64::NEG_INFINITY => -0.0,
            Self::GeluTanh => {
                // (1 + tanh t) / 2 is the logistic function of 2 t.
                x * logistic(2.0 * gelu_argument(x))
            }
            Self::Silu if x == f64::NEG_INFINITY => -0.0,
            Self::Silu => x * logistic(x),
            Self::Sigmoid => logistic(x),
            Self::Tanh => libm::tanh(x),
        }
    }

    /// The largest slope of the function, by which an error of its argument can grow.
    ///
    /// GELU's is at sqrt 2 (1.1290), of the tanh form near 1.45 (1.1292), SiLU's near 2.40
    /// (1.0999): maxima of the derivatives, rounded up.
    #[must_use]
    pub const fn lipschitz(self) -> f64 {
        match self {
            Self::None | Self::Relu | Self::Tanh => 1.0,
            Self::Gelu | Self::GeluTanh => 1.13,
            Self::Silu => 1.1,
            Self::Sigmoid => 0.25,
        }
    }

    /// How far [`Activation::apply`] and the `cpu` backend may be from the function at `x`, whose exact value
    /// is `fx`.
    ///
    /// For GELU, its tanh form, SiLU, sigmoid and tanh it is relative: 2^-17 of the result, whatever its size and
    /// sign, and nothing where it is infinite. None and ReLU are exact. A result below the smallest normal number
    /// may be any number of its sign up to that, or 0.
    #[must_use]
    pub fn error_f32(self, x: f64, fx: f64) -> f64 {
        match self {
            Self::None | Self::Relu => 0.0,
            Self::Gelu | Self::GeluTanh | Self::Silu | Self::Sigmoid | Self::Tanh => {
                if x.is_finite() {
                    2f64.powi(-17) * fx.abs()
                } else {
                    0.0
                }
            }
        }
    }

    /// How far [`Activation::apply_f64`], and with it a product of f64, may be from the function at `x`, whose exact
    /// value is `fx`.
    ///
    /// With u = 2^-53 it is 8 u of the result: what `libm`'s functions and the operations around them round. To the left
    /// of 0 the rounding of what is exponentiated grows with its size: GELU's erfc takes the square of its
    /// argument, which adds 4 u x^2 of the result, and the tanh form takes 2 t, t = sqrt(2 / pi) (x + 0.044715 x^3), which
    /// adds 16 u |t|. 2^-1000 more is for results near the end of the range, whose factors underflow before they do. None
    /// and ReLU are exact.
    ///
    /// ```
    /// use ane_matmul::Activation;
    ///
    /// let sigmoid = Activation::Sigmoid.apply_f64(1.0);
    /// let units = Activation::Sigmoid.error_f64(1.0, sigmoid) / (f64::EPSILON / 2.0 * sigmoid);
    /// assert_eq!(units, 8.0);
    /// ```
    #[must_use]
    pub fn error_f64(self, x: f64, fx: f64) -> f64 {
        let below = x.min(0.0);
        let units = match self {
            Self::None | Self::Relu => 0.0,
            Self::Silu | Self::Sigmoid | Self::Tanh => 8.0,
            Self::Gelu => 8.0 + 4.0 * below * below,
            Self::GeluTanh => 8.0 + 16.0 * gelu_argument(below).abs(),
        };
        let error = units * f64::EPSILON / 2.0 * fx.abs() + if units > 0.0 { 2f64.powi(-1000) } else { 0.0 };
        // Infinite results are exact, and t is infinite only where the result is 0.
        if error.is_finite() { error } else { 0.0 }
    }

    /// [`Activation::error_f32`] for any backend: 4 units in the last place of the argument more (whose size
    /// counts as at most 16 for GELU and SiLU, and 1 for sigmoid and tanh), since the `1 + erf` and `1 + tanh`
    /// of a vendor's library cancel for negative arguments.
    pub(crate) fn error_of_any_backend(self, x: f64, fx: f64) -> f64 {
        let argument = match self {
            Self::None | Self::Relu => 0.0,
            Self::Gelu | Self::GeluTanh | Self::Silu if x.is_infinite() => 0.0,
            Self::Gelu | Self::GeluTanh | Self::Silu => x.abs().min(16.0),
            Self::Sigmoid | Self::Tanh => x.abs().min(1.0),
        };
        self.error_f32(x, fx) + 4.0 * f64::from(f32::EPSILON) * argument
    }

    /// The function in `f32`, within [`Activation::error_f32`]: that of `f64`, rounded.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the rounding")]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            _ => self.apply_f64(f64::from(x)) as f32,
        }
    }

    /// The name used on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu-tanh",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
        }
    }
}

/// The t of the tanh form of GELU.
fn gelu_argument(x: f64) -> f64 {
    FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + GELU_CUBIC * x * x * x)
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Activation`]'s.
///
/// ```
/// use ane_matmul::Activation;
///
/// let error = "swish".parse::<Activation>().expect_err("it is called silu here");
/// assert_eq!(error.0, "swish");
/// println!("{error}"); // names those that there are
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown activation `{0}`; known: none, relu, gelu, gelu-tanh, silu, sigmoid, tanh")]
pub struct UnknownActivation(pub String);

impl FromStr for Activation {
    type Err = UnknownActivation;

    fn from_str(name: &str) -> Result<Self, UnknownActivation> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| UnknownActivation(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn samples() -> impl Iterator<Item = f32> {
        (-4000i16..=4000).map(|i| f32::from(i) / 137.0).chain([
            1e-30,
            -1e-30,
            88.0,
            -88.0,
            104.0,
            -104.0,
            -5.3,
            -13.1,
            -9.9,
            -92.5,
            3e38,
            -3e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            f32::MIN_POSITIVE,
        ])
    }

    #[test]
    fn f32_stays_within_the_stated_error() {
        for activation in Activation::ALL {
            for x in samples() {
                let expected = activation.apply_f64(f64::from(x));
                let got = f64::from(activation.apply(x));
                let bound = activation.error_f32(f64::from(x), expected) + 2f64.powi(-126);
                assert!(
                    got == expected || (got - expected).abs() <= bound,
                    "{activation}({x}): expected {expected}, got {got}, bound {bound}"
                );
            }
        }
    }

    /// Exact values by mpmath with 300 bits.
    #[test]
    #[allow(clippy::unreadable_literal, reason = "as they were printed")]
    fn f64_stays_within_the_stated_error() {
        for (activation, x, exact) in [
            (Activation::Gelu, -37.5, -1.7270073785932332e-306),
            (Activation::Gelu, -23.0625, -1.2707506110650456e-116),
            (Activation::Gelu, -8.3125, -3.894682710560588e-16),
            (Activation::Gelu, -1.0625, -0.15300465268959412),
            (Activation::Gelu, 0.3125, 0.1945842870219241),
            (Activation::Gelu, 2.9375, 2.9326403443500793),
            (Activation::GeluTanh, -20.5, -1.3502940601643467e-280),
            (Activation::GeluTanh, -9.8125, -8.185312515124563e-36),
            (Activation::GeluTanh, -2.3125, -0.02364577399617604),
            (Activation::GeluTanh, 0.6875, 0.5184027048205461),
            (Activation::GeluTanh, 3.0625, 3.059527344962557),
            (Activation::Silu, -712.5, -2.6179811343073812e-307),
            (Activation::Silu, -700.25, -5.377026350130888e-302),
            (Activation::Silu, -30.0625, -2.6426961469269637e-12),
            (Activation::Silu, -1.1875, -0.27752629883542285),
            (Activation::Silu, 5.5625, 5.541226309726706),
            (Activation::Sigmoid, -745.0, 5e-324),
            (Activation::Sigmoid, -708.0, 3.307553003638408e-308),
            (Activation::Sigmoid, -36.8125, 1.0292820165922371e-16),
            (Activation::Sigmoid, -0.5625, 0.3629692055196168),
            (Activation::Sigmoid, 12.3125, 0.9999955048184215),
            (Activation::Tanh, -19.0625, -1.0),
            (Activation::Tanh, -0.15625, -0.1549907303716235),
            (Activation::Tanh, 0.0009765625, 0.0009765621895592603),
            (Activation::Tanh, 2.5625, 0.9881778622875124),
        ] {
            let error = (activation.apply_f64(x) - exact).abs();
            // That of the number above, which is rounded.
            let bound = activation.error_f64(x, exact) + f64::EPSILON / 2.0 * exact.abs();
            assert!(error <= bound, "{activation}({x}): off by {error:e}, bound {bound:e}");
        }
        assert_eq!(Activation::Relu.error_f64(-3.0, 0.0), 0.0);
        for activation in Activation::ALL {
            for x in [f64::INFINITY, f64::NEG_INFINITY, -1e300] {
                let y = activation.apply_f64(x);
                assert!(activation.error_f64(x, y).is_finite(), "{activation}({x})");
            }
        }
    }

    #[test]
    fn corners() {
        for activation in Activation::ALL {
            assert!(activation.apply(f32::NAN).is_nan(), "{activation}");
            assert!(activation.apply_f64(f64::NAN).is_nan(), "{activation}");
        }
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            assert_eq!(activation.apply(f32::NEG_INFINITY), 0.0);
            assert_eq!(activation.apply_f64(f64::NEG_INFINITY), 0.0);
            assert_eq!(activation.apply(f32::INFINITY), f32::INFINITY);
        }
        assert_eq!(Activation::Tanh.apply(f32::INFINITY), 1.0);
        assert_eq!(Activation::Sigmoid.apply(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn known_values() {
        // Abramowitz and Stegun, table 26.1: Phi(1) = 0.841344746.
        assert_abs_diff_eq!(Activation::Gelu.apply_f64(1.0), 0.841_344_746_068_543, epsilon = 1e-12);
        assert_abs_diff_eq!(Activation::Sigmoid.apply_f64(2.0), 0.880_797_077_977_882, epsilon = 1e-12);
        assert_abs_diff_eq!(Activation::GeluTanh.apply_f64(1.0), 0.841_191_990_608_276, epsilon = 1e-9);
    }

    #[test]
    fn slopes_stay_below_the_lipschitz_constant() {
        for activation in Activation::ALL {
            for i in -4000..=4000 {
                let x = f64::from(i) / 400.0;
                let slope = (activation.apply_f64(x + 1e-6) - activation.apply_f64(x)) / 1e-6;
                assert!(slope.abs() <= activation.lipschitz() + 1e-6, "{activation} at {x}: {slope}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for activation in Activation::ALL {
            assert_eq!(activation.name().parse(), Ok(activation));
        }
        assert!("swish".parse::<Activation>().is_err());
    }

    #[test]
    fn errors_are_parts_of_the_result_and_of_a_limited_argument() {
        let (part, ulp) = (2f64.powi(-17), f64::from(f32::EPSILON));
        for activation in [Activation::Sigmoid, Activation::Tanh] {
            assert_eq!(activation.error_f32(-0.5, 0.25), 0.25 * part);
            assert_eq!(activation.error_of_any_backend(-0.5, 0.25), 0.25 * part + 2.0 * ulp);
            assert_eq!(activation.error_of_any_backend(8.0, -1.0), part + 4.0 * ulp);
        }
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            assert_eq!(activation.error_f32(-2.0, -0.5), 0.5 * part);
            assert_eq!(activation.error_of_any_backend(-2.0, -0.5), 0.5 * part + 8.0 * ulp);
            assert_eq!(activation.error_of_any_backend(32.0, 32.0), 32.0 * part + 64.0 * ulp);
            assert_eq!(activation.error_of_any_backend(f64::INFINITY, f64::INFINITY), 0.0);
        }
        assert_eq!(Activation::Relu.error_of_any_backend(3.0, 3.0), 0.0);
    }
}
