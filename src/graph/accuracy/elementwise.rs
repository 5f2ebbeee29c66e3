//! How errors of numbers become errors of functions of them, and what computing them in f32 adds.

use crate::description::activation::Activation;
use crate::graph::accuracy::{FUNCTION, LARGEST, TINY, U, part};
use crate::graph::operator::Operator;
use crate::verify::accuracy::magnitude;

/// The largest slope of erf, 2 / sqrt pi, at 0.
pub(super) const ERF_SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI;

/// The largest slope of `HardSwish`: x / 3 + 1/2 at 3.
const HARD_SWISH_SLOPE: f64 = 1.5;

/// A number and how far from it an engine's may lie.
pub(super) type Number = (f64, f64);

/// What an integer loses as a f32.
pub(super) fn integer_rounding(x: f64) -> f64 {
    // 2^24: up to there all are numbers of f32.
    if x.abs() <= 1.0 / U { 0.0 } else { U * x.abs() }
}

/// a / b for any a and b within their errors; infinite where b may be 0.
pub(super) fn quotient_error((a, of_a): Number, (b, of_b): Number) -> f64 {
    if of_a == 0.0 && of_b == 0.0 {
        return 0.0;
    }
    // Also where one of these is NaN.
    let is_apart = b.abs() > of_b;
    if !is_apart {
        return f64::INFINITY;
    }
    (of_a + part(a / b, of_b)) / (b.abs() - of_b)
}

pub(super) fn exp_error(x: f64, error: f64) -> f64 {
    if error == 0.0 { 0.0 } else { libm::exp(x + error) - libm::exp(x) }
}

pub(super) fn log_error(x: f64, error: f64) -> f64 {
    match error {
        0.0 => 0.0,
        _ if x > error => -libm::log1p(-error / x),
        _ => f64::INFINITY,
    }
}

pub(super) fn sqrt_error(x: f64, error: f64) -> f64 {
    match error {
        0.0 => 0.0,
        _ if x >= error => error / (x.sqrt() + (x - error).sqrt()),
        _ => f64::INFINITY,
    }
}

/// A power is monotone in each argument while the base is positive, and for an exact integer as exponent on either
/// side of 0; elsewhere the error is infinite.
pub(super) fn pow_error((a, of_a): Number, (b, of_b): Number, power: f64) -> f64 {
    if of_a == 0.0 && of_b == 0.0 {
        return 0.0;
    }
    let is_integer = of_b == 0.0 && b.trunc() == b;
    if !(a > of_a || is_integer && (b >= 0.0 || a.abs() > of_a)) {
        return f64::INFINITY;
    }
    let corners = [(-of_a, -of_b), (-of_a, of_b), (of_a, -of_b), (of_a, of_b)];
    let away = corners.map(|(of_a, of_b)| (libm::pow(a + of_a, b + of_b) - power).abs());
    // An even power is least at 0.
    let at_zero = if a.abs() <= of_a { power.abs() } else { 0.0 };
    away.into_iter().fold(at_zero, |most, away| if away <= most { most } else { away })
}

/// What the clipped number min(1, max(0, x)) may be off by.
fn clipped_error(x: f64, error: f64) -> f64 {
    let clipped = |x: f64| x.clamp(0.0, 1.0);
    if error == 0.0 { 0.0 } else { (clipped(x + error) - clipped(x)).max(clipped(x) - clipped(x - error)) }
}

fn of_activation(activation: Activation, x: f64, error: f64, y: f64) -> f64 {
    let of_input = if error == 0.0 { 0.0 } else { activation.lipschitz() * error };
    of_input + activation.error_of_any_backend(x, y) + TINY
}

/// The bound of a function of one number, whose result is y; without the rounding to a narrower type than f32. `None`
/// where the operator is no such function.
pub(super) fn function(operator: &Operator, (x, error): Number, y: f64) -> Option<f64> {
    let size = magnitude(y);
    let rounded = |error: f64, part: f64| error + part * (size + error) + TINY;
    Some(match operator {
        Operator::Reciprocal => rounded(quotient_error((1.0, 0.0), (x, error)), 4.0 * U),
        Operator::Sqrt => rounded(sqrt_error(x, error), 4.0 * U),
        Operator::Exp => rounded(exp_error(x, error), FUNCTION),
        Operator::Log => rounded(log_error(x, error), FUNCTION),
        Operator::Erf => rounded(ERF_SLOPE * error, FUNCTION),
        Operator::Gelu { tanh: false } => of_activation(Activation::Gelu, x, error, y),
        Operator::Gelu { tanh: true } => of_activation(Activation::GeluTanh, x, error, y),
        Operator::Sigmoid => of_activation(Activation::Sigmoid, x, error, y),
        Operator::Tanh => of_activation(Activation::Tanh, x, error, y),
        // Positive numbers are passed on.
        Operator::LeakyRelu { .. } if x - error >= 0.0 => error,
        Operator::LeakyRelu { alpha } => {
            let slope = if x + error < 0.0 { 0f32 } else { 1.0 }.max(alpha.abs());
            rounded(part(slope.into(), error), U)
        }
        Operator::HardSigmoid { alpha, beta } => {
            let (alpha, beta) = (f64::from(*alpha), f64::from(*beta));
            let linear =
                part(alpha, error) + 3.0 * U * magnitude(alpha.abs() * (x.abs() + error) + beta.abs());
            clipped_error(alpha * x + beta, linear + TINY)
        }
        Operator::HardSwish => {
            let linear = 3.0 * U * (magnitude(x) + 1.0);
            let own = part(x, clipped_error(x / 6.0 + 0.5, linear)) + 2.0 * U * size + TINY;
            own + HARD_SWISH_SLOPE * error
        }
        _ => return None,
    })
}

/// The bound of a sum, difference, product or quotient of two numbers.
pub(super) fn arithmetic(operator: &Operator, a: Number, b: Number, y: f64) -> Option<f64> {
    let size = magnitude(y);
    let rounded = |error: f64, part: f64| error + part * (size + error) + TINY;
    Some(match operator {
        Operator::Add | Operator::Sub => rounded(a.1 + b.1, U),
        Operator::Mul => rounded(part(a.0, b.1) + part(b.0, a.1) + part(a.1, b.1), U),
        // The reciprocal may be rounded first.
        Operator::Div => rounded(quotient_error(a, b), 3.0 * U),
        Operator::Pow => {
            // As e^(b ln a): the exponent is rounded, an error relative to the power.
            let exponent = magnitude(b.0 * libm::log(a.0.abs()));
            rounded(pow_error(a, b, y), FUNCTION + 4.0 * U * exponent)
        }
        _ => return None,
    })
}

/// Whether a comparison may come out differently, or any truth of numbers that lie so close.
pub(super) fn is_open((a, of_a): Number, (b, of_b): Number) -> bool {
    // Two infinities, or a NaN, are what they are.
    let is_apart = (a - b).abs() > of_a + of_b;
    of_a + of_b > 0.0 && !is_apart
}

/// Whether a number with this error may be beyond the range of f32.
pub(super) fn may_overflow(x: f64, error: f64) -> bool {
    x.is_finite() && x.abs() + error >= LARGEST
}
