//! Normalisations.

use super::{Inputs, LARGEST, TINY, U, WHAT, part, storage};
use crate::alloc;
use crate::error::{Error, Result};
use crate::graph::accuracy::elementwise::Number;
use crate::graph::interpret::{Values, broadcast};
use crate::graph::shape::MAX_RANK;
use crate::verify::accuracy::{gamma, magnitude};

/// 1 / sqrt(x) for a sum x of squares, and a positive constant that engines have exactly: itself, how far it may lie,
/// and its largest value. 6 u for roundings of sum, root and quotient, or an approximation with a step of Newton's.
fn inverse_root(square: f64, error: f64, epsilon: f64) -> (f64, f64, f64) {
    let inverse = 1.0 / (square + epsilon).sqrt();
    let most = (1.0 + 6.0 * U) / ((square - error).max(0.0) + epsilon).sqrt();
    let least = (1.0 - 6.0 * U) / (square + error + epsilon).sqrt();
    (inverse, (most - inverse).max(inverse - least), most)
}

/// Scale (x - mean) / sqrt(variance + epsilon) + bias over the dimensions from an axis on; `centred` or without mean.
///
/// With n elements, d = x - mean and v = mean of d^2 (or d = x), and e the error of each x:
///
/// - of the mean: gamma_(n + 1) mean |x| + mean e;
/// - of d: that, e, and u |d|;
/// - of v: mean (2 |d| e_d + e_d^2), and gamma_(n + 4) of the mean of (|d| + e_d)^2;
/// - of r = 1 / sqrt(v + epsilon): as far as v reaches, but not below 0, and 6 u;
/// - of d r: |d| e_r + e_d max r; and whatever these are, |d r| and 2 sqrt n, since |d| is at most sqrt(n v). So the
///   bound stays finite where x is constant, or nearly;
/// - then 4 u for the roundings of the products and the sum with the bias.
///
/// It holds for two passes over x, and for Welford's method; not for mean x^2 - mean^2, which cancels.
pub(super) fn normalized(
    inputs: &Inputs<'_>,
    values: &Values<f64>,
    axis: i64,
    epsilon: f32,
    centred: bool,
) -> Result<Vec<f64>> {
    let shape = values.tensor_type.shape;
    let count = shape.count();
    let mut errors = alloc::with_capacity(count, WHAT)?;
    if count == 0 {
        return Ok(errors);
    }
    let axis = shape.axis(axis).map_err(Error::graph)?;
    let size: usize = shape.dims()[axis..].iter().product();
    let (x, scale, bias) = (inputs.get(0)?, inputs.get(1)?, inputs.optional(2));
    let mut scales = broadcast(scale.shape(), &shape);
    let mut biases = bias.map(|bias| broadcast(bias.shape(), &shape));
    let mut lane: Vec<Number> = alloc::filled(size, (0.0, 0.0), WHAT)?;
    for start in (0..count).step_by(size) {
        for (along, x_along) in lane.iter_mut().enumerate() {
            *x_along = x.at(start + along);
        }
        let moments = moments(&mut lane, epsilon.into(), centred);
        for (d, of_d) in &lane {
            let scale = scales.next().map_or((f64::NAN, 0.0), |offset| scale.at(offset));
            let bias = biases
                .as_mut()
                .and_then(Iterator::next)
                .zip(bias)
                .map_or((0.0, 0.0), |(offset, bias)| bias.at(offset));
            let (inverse, of_inverse, most) = moments;
            let normal = d * inverse;
            let of_normal =
                (part(*d, of_inverse) + part(most, *of_d)).min(normal.abs() + 2.0 * count_of(size).sqrt());
            // All of it infinite: nothing is known.
            let of_normal =
                if most.is_infinite() && *d != 0.0 || most.is_nan() { f64::INFINITY } else { of_normal };
            errors.push(scaled(values, errors.len(), (normal, of_normal), scale, bias, 4.0 * U));
        }
    }
    Ok(errors)
}

/// Turns a lane into what is divided, with its errors; the divisor's inverse, its error, and the largest it may be.
fn moments(lane: &mut [Number], epsilon: f64, centred: bool) -> (f64, f64, f64) {
    let n = count_of(lane.len());
    let mean_of = |lane: &[Number], of: &dyn Fn(Number) -> f64| lane.iter().map(|x| of(*x)).sum::<f64>() / n;
    let size_of = |(x, error): Number| magnitude(x) + error;
    let mut overflows = false;
    if centred {
        let mean = mean_of(lane, &|(x, _)| x);
        let size = mean_of(lane, &size_of);
        overflows |= size * n >= LARGEST;
        let of_mean = gamma(lane.len() + 1, U) * size + mean_of(lane, &|(_, error)| error) + TINY;
        for (x, error) in lane.iter_mut() {
            *x -= mean;
            *error += of_mean;
            *error += U * (magnitude(*x) + *error) + TINY;
        }
    }
    let square = mean_of(lane, &|(d, _)| d * d);
    let squares = mean_of(lane, &|d| size_of(d) * size_of(d));
    overflows |= squares * n >= LARGEST;
    let of_inputs = mean_of(lane, &|(d, error)| part(2.0 * d, error) + error * error);
    let error = of_inputs + gamma(lane.len() + 4, U) * squares + 2.0 * TINY;
    if overflows && square.is_finite() {
        return (1.0 / (square + epsilon).sqrt(), f64::INFINITY, f64::INFINITY);
    }
    if !square.is_finite() {
        // NaN, or 1 / infinity, as exact as the inputs are.
        return (1.0 / (square + epsilon).sqrt(), if of_inputs.is_finite() { 0.0 } else { of_inputs }, 0.0);
    }
    inverse_root(square, error, epsilon)
}

/// Of x scale + bias, with roundings of `u` relative to the parts.
fn scaled(values: &Values<f64>, index: usize, x: Number, scale: Number, bias: Number, u: f64) -> f64 {
    let y = values.data.floats().ok().and_then(|all| all.get(index).copied()).unwrap_or(f64::NAN);
    let sizes = |(x, error): Number| magnitude(x) + error;
    let product = sizes(x) * sizes(scale);
    let of_inputs = part(scale.0, x.1) + part(x.0, scale.1) + part(x.1, scale.1) + bias.1;
    let error = of_inputs + u * (product + sizes(bias)) + TINY * (2.0 + sizes(scale));
    let overflows = y.is_finite() && product.max(sizes(bias)) >= LARGEST;
    let error = if overflows { f64::INFINITY } else { error };
    error + storage(values.tensor_type.element, y, error)
}

#[allow(clippy::cast_precision_loss, reason = "bounds are not that sharp")]
fn count_of(count: usize) -> f64 {
    count as f64
}

/// With a factor scale / sqrt(variance + epsilon) that may have been computed before, and multiplied into what is
/// before it: 8 roundings of the parts with x and with the mean.
pub(super) fn batch_normalized(inputs: &Inputs<'_>, values: &Values<f64>, epsilon: f32) -> Result<Vec<f64>> {
    let shape = values.tensor_type.shape;
    let count = shape.count();
    let mut errors = alloc::with_capacity(count, WHAT)?;
    if count == 0 {
        return Ok(errors);
    }
    let (x, scale, bias) = (inputs.get(0)?, inputs.get(1)?, inputs.get(2)?);
    let (mean, variance) = (inputs.get(3)?, inputs.get(4)?);
    debug_assert!(shape.rank() <= MAX_RANK);
    let size: usize = shape.dims()[2..].iter().product();
    let channels = scale.shape().count();
    for index in 0..count {
        let channel = index / size % channels;
        let (mean, (variance, of_variance)) = (mean.at(channel), variance.at(channel));
        let (x, of_x) = x.at(index);
        let (inverse, of_inverse, most) = inverse_root(variance, of_variance, epsilon.into());
        let open = of_variance > 0.0 && variance - of_variance + f64::from(epsilon) <= 0.0;
        let of_difference = of_x + mean.1;
        let parts = magnitude(x) + magnitude(mean.0) + of_difference;
        let normal = (x - mean.0) * inverse;
        let of_normal =
            part(x - mean.0, of_inverse) + part(most, of_difference) + 8.0 * U * magnitude(parts * most);
        let of_normal = if open { f64::INFINITY } else { of_normal };
        errors.push(scaled(values, index, (normal, of_normal), scale.at(channel), bias.at(channel), 2.0 * U));
    }
    Ok(errors)
}
