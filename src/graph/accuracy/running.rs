//! Arithmetic that keeps the error beside the number: what an interpretation computes with to bound an engine's.

use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::description::element::ElementType;
use crate::error::Result;
use crate::graph::accuracy::{FUNCTION, LARGEST, TINY, U, elementwise, part, storage};
use crate::graph::interpret::Real;
use crate::verify::accuracy::{gamma, magnitude};

/// A number in f64, and how far from it an engine's may lie that computes in f32: gamma of `roundings` times `size`,
/// and `error`.
///
/// A running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3) that does
/// not depend on the order of sums: an addition adds up sizes and errors, and counts a rounding more than its operands
/// have; so a sum of n terms that have r roundings each ends with `size` the sum of their sizes and n + r roundings
/// (section 3.1 there: gamma_r and gamma_n are gamma_(n + r) together; section 4.2: in any order). Every other
/// operation turns its operands' roundings into errors first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub x: f64,
    /// At least |x|; of a sum the sizes of its terms.
    pub size: f64,
    pub roundings: usize,
    pub error: f64,
}

impl Running {
    /// A number that an engine has with this error.
    pub(super) const fn with_error(x: f64, size: f64, error: f64) -> Self {
        Self { x, size, roundings: 0, error }
    }

    /// How far an engine's number may lie, with so many roundings more.
    pub(super) fn bound(self, more: usize) -> f64 {
        gamma(self.roundings + more, U) * self.size + self.error
    }

    fn total(self) -> f64 {
        self.bound(0)
    }

    /// The result of one operation that rounds once, of operands whose errors have come to `error`.
    fn rounded(x: f64, size: f64, error: f64) -> Self {
        let overflows = x.is_finite() && size + error >= LARGEST;
        let error = if overflows { f64::INFINITY } else { error + TINY };
        Self { x, size, roundings: 1, error }
    }

    /// The result of a function, which has an error of its own.
    fn of_function(x: f64, error: f64) -> Self {
        Self { roundings: 0, ..Self::rounded(x, magnitude(x), error + FUNCTION * magnitude(x)) }
    }

    /// The size of a factor: the errors of a sum's terms are in its error by then.
    fn factor(self) -> f64 {
        if self.roundings == 0 { self.size } else { magnitude(self.x) }
    }
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        self.x == other.x
    }
}

impl PartialOrd for Running {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.x.partial_cmp(&other.x)
    }
}

impl Neg for Running {
    type Output = Self;

    fn neg(self) -> Self {
        Self { x: -self.x, ..self }
    }
}

impl Add for Running {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let roundings = self.roundings.max(other.roundings) + 1;
        let sum = Self::rounded(self.x + other.x, self.size + other.size, self.error + other.error);
        Self { roundings, ..sum }
    }
}

impl Sub for Running {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let x = self.x - other.x;
        let error = self.total() + other.total();
        Self::rounded(x, magnitude(x) + error, error)
    }
}

impl Mul for Running {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let (a, b) = (self.total(), other.total());
        let error = part(self.x, b) + part(other.x, a) + part(a, b);
        Self::rounded(self.x * other.x, self.factor() * other.factor() + error, error)
    }
}

impl Div for Running {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        let x = self.x / other.x;
        let error = elementwise::quotient_error((self.x, self.total()), (other.x, other.total()));
        Self::rounded(x, magnitude(x) + error, error)
    }
}

impl Real for Running {
    const ZERO: Self = Self::with_error(0.0, 0.0, 0.0);
    const ONE: Self = Self::with_error(1.0, 1.0, 0.0);
    const MINUS_INFINITY: Self = Self::with_error(f64::NEG_INFINITY, 0.0, 0.0);

    fn from_f64(x: f64) -> Self {
        Self::with_error(x, magnitude(x), 0.0)
    }

    #[allow(clippy::cast_precision_loss, reason = "its error counts")]
    fn from_i64(x: i64) -> Self {
        let x = x as f64;
        Self::with_error(x, x.abs(), elementwise::integer_rounding(x))
    }

    fn to_f64(self) -> f64 {
        self.x
    }

    #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
    fn to_i64(self) -> i64 {
        self.x as i64
    }

    fn stored(self, element: ElementType) -> Result<Self> {
        let error = self.error + storage(element, self.x, self.total());
        Ok(Self { error, ..self })
    }

    fn abs(self) -> Self {
        Self { x: self.x.abs(), ..self }
    }

    /// Of what is a sum of squares, if not a positive constant: an engine's is not below 0 either.
    fn sqrt(self) -> Self {
        let (x, error) = (self.x.sqrt(), self.total());
        let below = x - (self.x - error).max(0.0).sqrt();
        let above = (self.x + error).sqrt() - x;
        let error = if error > 0.0 { below.max(above) } else { 0.0 };
        Self::rounded(x, magnitude(x) + error, error)
    }

    fn exp(self) -> Self {
        Self::of_function(libm::exp(self.x), elementwise::exp_error(self.x, self.total()))
    }

    fn ln(self) -> Self {
        Self::of_function(libm::log(self.x), elementwise::log_error(self.x, self.total()))
    }

    fn erf(self) -> Self {
        Self::of_function(libm::erf(self.x), elementwise::ERF_SLOPE * self.total())
    }

    fn erfc(self) -> Self {
        Self::of_function(libm::erfc(self.x), elementwise::ERF_SLOPE * self.total())
    }

    fn tanh(self) -> Self {
        Self::of_function(libm::tanh(self.x), self.total())
    }

    fn pow(self, exponent: Self) -> Self {
        let (a, b) = ((self.x, self.total()), (exponent.x, exponent.total()));
        let power = libm::pow(a.0, b.0);
        Self::of_function(power, elementwise::pow_error(a, b, power))
    }

    fn round_ties_even(self) -> Self {
        let x = self.x.round_ties_even();
        let error = self.total();
        let away = |to: f64| (to.round_ties_even() - x).abs();
        Self::with_error(
            x,
            magnitude(x),
            if error > 0.0 { away(self.x + error).max(away(self.x - error)) } else { 0.0 },
        )
    }

    /// One that is smaller whatever the errors does not count.
    fn larger(self, other: Self) -> Self {
        if self.x.is_nan() || other.x.is_nan() {
            return if self.x.is_nan() { self } else { other };
        }
        let (a, b) = (self.total(), other.total());
        let x = self.x.max(other.x);
        let high = (self.x + a).max(other.x + b);
        let low = (self.x - a).max(other.x - b);
        let error = if a + b > 0.0 && x.is_finite() { (high - x).max(x - low) } else { 0.0 };
        Self::with_error(x, magnitude(x), error)
    }

    fn smaller(self, other: Self) -> Self {
        -(-self).larger(-other)
    }
}
