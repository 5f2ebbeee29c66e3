//! The float64 product with its error bound, element by element.

use std::sync::{Mutex, PoisonError};

use crate::alloc;
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Threads};
use crate::description::quantization::{QuantB, Quantization};
use crate::description::scales::Scales;
use crate::description::with_weights::Product;
use crate::error::{Error, Operand, Result};
use crate::executor::{self, Compiled, Inputs, IntoInputs};
use crate::operands::view::{AnyView, IntoView};
use crate::operands::weights::Weights;
use crate::verify::accuracy::real::{IntegerOutput, Source, real_a, real_b, sums_integers};

/// The float64 result of a product, and how far from it a correct result may lie.
///
/// ```
/// use ane_matmul::accuracy::Reference;
/// use ane_matmul::{BackendId, Inputs, MatMul, Tensor};
///
/// let product = MatMul::new(8, 4, 256)?;
/// let (a, b) = (Tensor::random_normal_f32(8, 256, 1.0, 1)?, Tensor::random_normal_f32(256, 4, 1.0, 2)?);
/// let inputs = Inputs::new(&a).b(&b);
/// let c = product.compile(&BackendId::CPU)?.run_to_tensor(&inputs)?;
/// assert!(Reference::new(&product, &inputs)?.compare(&c)?.is_within_bound());
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Reference {
    layout: Layout,
    values: Vec<f64>,
    bounds: Vec<f64>,
    overflow: f64,
}

/// How far a result lies from its [`Reference`].
///
/// ```
/// use ane_matmul::accuracy::Reference;
/// use ane_matmul::{Inputs, MatMul};
///
/// let reference = Reference::new(&MatMul::new(1, 2, 1)?, &Inputs::new(&[2f32]).b(&[3f32, 4.0]))?;
/// let deviation = reference.compare(&[6f32, 9.0])?; // 8 is right
/// assert!(!deviation.is_within_bound() && deviation.worst_ratio > 1.0);
/// assert_eq!((deviation.max_abs_error, deviation.worst), (1.0, (0, 0, 1)));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Deviation {
    /// The largest absolute difference between finite elements.
    pub max_abs_error: f64,
    /// The bound of the element that comes closest to it, or exceeds it most.
    pub bound: f64,
    /// The largest ratio of difference to bound: at most 1 for a correct result. Infinite when an
    /// element is NaN or infinite and should not be, or the reverse.
    pub worst_ratio: f64,
    /// Item, row and column of that element.
    pub worst: (usize, usize, usize),
    /// Elements beyond their bound.
    pub violations: usize,
}

impl Deviation {
    /// Whether every element lies within its bound.
    #[must_use]
    pub const fn is_within_bound(&self) -> bool {
        self.violations == 0
    }
}

/// The sums and the sums of magnitudes of some rows of op(A) op(B); with `TWOFOLD` as [`add_product`] has them.
fn multiply_rows<const TWOFOLD: bool>(
    a: &[f64],
    b: &[f64],
    (n, k): (usize, usize),
    sums: &mut [f64],
    sizes: &mut [f64],
) {
    // Columns in strips that stay in the first-level cache while k runs.
    const STRIP: usize = 256;
    for (row, (sums, sizes)) in sums.chunks_mut(n).zip(sizes.chunks_mut(n)).enumerate() {
        let a = &a[row * k..][..k];
        for start in (0..n).step_by(STRIP) {
            let strip = start..n.min(start + STRIP);
            let (sums, sizes) = (&mut sums[strip.clone()], &mut sizes[strip.clone()]);
            let mut errors = [0.0; STRIP];
            for (p, &a) in a.iter().enumerate() {
                let b = &b[p * n..][strip.clone()];
                for (((sum, size), error), &b) in
                    sums.iter_mut().zip(sizes.iter_mut()).zip(&mut errors).zip(b)
                {
                    add_product::<TWOFOLD>(sum, error, a, b);
                    *size += term_size::<TWOFOLD>(a, b);
                }
            }
            for (sum, error) in sums.iter_mut().zip(errors) {
                *sum = total(*sum, error);
            }
        }
    }
}

/// Adds a product to a sum. With `TWOFOLD` what rounding took of the product and of the sum is added to
/// `error`, so that the [`total`] of both is the sum computed in twice the precision and then rounded: Ogita, Rump and
/// Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26 (2005), algorithm 5.3, with the product's error by a
/// fused multiply-add (3.5 there) and the sum's by Knuth's `TwoSum` (3.1).
#[inline]
pub(crate) fn add_product<const TWOFOLD: bool>(sum: &mut f64, error: &mut f64, a: f64, b: f64) {
    let (before, product) = (*sum, a * b);
    *sum += product;
    if TWOFOLD {
        let of_product = a.mul_add(b, -product);
        let added = *sum - before;
        let of_sum = (before - (*sum - added)) + (product - added);
        *error += of_product + of_sum;
    }
}

/// The [`magnitude`] of a product; with `TWOFOLD` infinite where it overflows, which no product of narrower types does.
#[inline]
pub(crate) fn term_size<const TWOFOLD: bool>(a: f64, b: f64) -> f64 {
    let product = a * b;
    if TWOFOLD && product.is_infinite() && a.is_finite() && b.is_finite() {
        return f64::INFINITY;
    }
    magnitude(product)
}

/// A sum with its error of [`add_product`], which has no meaning where the sum is not finite.
pub(crate) fn total(sum: f64, error: f64) -> f64 {
    if sum.is_finite() { sum + error } else { sum }
}

/// Whether float64 itself is not precise enough to judge a product: where its sums are float64.
pub(crate) fn is_twofold(product: &MatMul) -> bool {
    product.types().accumulator == ElementType::F64
}

/// The magnitude of a term, which counts towards rounding and overflow where it is finite.
pub(crate) fn magnitude(term: f64) -> f64 {
    let size = term.abs();
    if size < f64::INFINITY { size } else { 0.0 }
}

/// gamma_k of unit roundoff `u`, where k u is small; elsewhere k u, which holds for every k and every order
/// of summation (Jeannerod and Rump, "Improved error bounds for inner products in floating-point
/// arithmetic", SIAM J. Matrix Anal. Appl. 34, 2013), and a 32nd more for the roundings after the sum,
/// which gamma_k has room for.
#[allow(clippy::cast_precision_loss, reason = "a bound, rounded by far less than it is wide")]
pub(crate) fn gamma(k: usize, u: f64) -> f64 {
    let ku = k as f64 * u;
    let long = ku * (1.0 + 1.0 / 32.0);
    if ku < 1.0 { long.min(ku / (1.0 - ku)) } else { long }
}

/// The roundings of the epilogue's linear part.
fn epilogue_roundings(product: &MatMul) -> usize {
    usize::from(product.alpha().to_bits() != 1f32.to_bits())
        + usize::from(product.has_bias())
        + usize::from(product.residual().is_some())
}

/// The error bound of [`accuracy`](crate::verify::accuracy) for the elements of one product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub alpha: f64,
    /// Relative to the sum of magnitudes.
    pub gamma_k: f64,
    /// Relative to the sum of magnitudes and addends.
    pub gamma_e: f64,
    /// Relative to the result.
    pub u_out: f64,
    pub underflow: f64,
    /// Beyond this an intermediate result may overflow.
    pub overflow: f64,
    /// Integers are summed exactly: the magnitude of their sum alone counts.
    sums_integers: bool,
    /// Of what is computed in float64, as the reference is ([`is_twofold`]).
    twofold: bool,
    activation: Activation,
}

impl Bounds {
    pub(crate) fn new(product: &MatMul) -> Self {
        let types = product.types();
        let alpha = f64::from(product.alpha());
        let (u_acc, u_out) = (types.accumulator.unit_roundoff(), types.output.unit_roundoff());
        let (sums_integers, twofold) = (sums_integers(product), is_twofold(product));
        let (roundings, u_epilogue) = if sums_integers {
            (integer_roundings(product), ElementType::F32.unit_roundoff())
        } else if twofold {
            // Those of the reference count too, and that of its sum.
            (2 * epilogue_roundings(product) + 1, u_acc)
        } else {
            (epilogue_roundings(product), u_acc)
        };
        // Dequantising rounds each element, or each group's sum, and takes a zero point off in two more.
        let k = product.k() + if product.quantization().b == QuantB::None { 0 } else { 3 };
        let smallest = |element: ElementType| if element.is_float() { element.min_positive() } else { 0.0 };
        #[allow(clippy::cast_precision_loss, reason = "a bound, rounded by far less than it is wide")]
        let underflow = match (sums_integers, types.output.is_float()) {
            (true, false) => 0.0,
            (true, true) => (roundings + 1) as f64 * f64::from(f32::MIN_POSITIVE).max(smallest(types.output)),
            (false, _) => {
                (k + roundings + 1) as f64
                    * smallest(types.accumulator).max(smallest(types.output))
                    * alpha.abs().max(1.0)
            }
        };
        Self {
            alpha,
            gamma_k: gamma(k, u_acc),
            gamma_e: gamma(roundings, u_epilogue),
            u_out,
            underflow,
            overflow: largest(types.output).min(largest(types.accumulator)),
            sums_integers,
            twofold,
            activation: product.activation(),
        }
    }

    /// The bound for what is compiled with [`CompileOptions::reduced_precision`] or without it: operands of
    /// floating-point sums may be truncated to 11 significant bits first, as tf32 does (NVIDIA A100 Tensor
    /// Core GPU Architecture, 2020: 10 bits of mantissa). Each then loses less than d = 2^-10 of its size, and
    /// each term less than 2 d + d^2 of its own.
    pub(crate) fn with_precision(product: &MatMul, reduced: bool) -> Self {
        let mut bounds = Self::new(product);
        // Integers of eight bits are not truncated, and who asks for sums of f64 does not get less.
        if reduced && !bounds.sums_integers && !bounds.twofold {
            let lost = 2f64.powi(-10);
            bounds.gamma_k += (2.0 * lost + lost * lost) * (1.0 + bounds.gamma_k);
        }
        bounds
    }

    /// The value of an element and how far from it a correct result may lie, from the sum over k, the
    /// sum of its terms' magnitudes ([`magnitude`]), bias and residual.
    pub(crate) fn element(&self, sum: f64, sums: f64, bias: f64, residual: f64) -> (f64, f64) {
        let size = self.alpha.abs() * if self.sums_integers { magnitude(sum) } else { sums };
        let addends = magnitude(bias) + magnitude(residual);
        let x = self.alpha * sum + bias + residual;
        let linear = self.gamma_k * size + self.gamma_e * (size + addends);
        let value = self.activation.apply_f64(x);
        let bound = self.activation.lipschitz() * linear
            + if self.twofold {
                2.0 * self.activation.error_f64(x, value)
            } else {
                self.activation.error_of_any_backend(x, value)
            }
            + self.u_out * magnitude(value)
            + self.underflow;
        // Magnitudes near the end of the range may overflow on the way to a finite sum, or to one
        // that alpha makes small again.
        let overflows = sums.max(size + addends) >= self.overflow;
        (value, if overflows { f64::INFINITY } else { bound })
    }
}

/// The roundings between an exact sum of integers and the activation: of the sum to f32, of the scales
/// of A and B and alpha multiplied with each other, and of the product with them; of bias and residual,
/// and of what a quantised residual stands for.
fn integer_roundings(product: &MatMul) -> usize {
    let types = product.types();
    let unscaled =
        *product.quantization() == Quantization::default() && product.alpha().to_bits() == 1f32.to_bits();
    if unscaled && types.output == ElementType::I32 && *product == product.linear_part() {
        return 0;
    }
    4 + usize::from(product.has_bias()) + 2 * usize::from(product.residual().is_some())
}

/// The largest finite number on the way through a type; integers are scaled in f32.
fn largest(element: ElementType) -> f64 {
    if element.is_float() { element.max_finite() } else { f64::from(f32::MAX) }
}

impl Reference {
    /// Computes the reference of a run with `inputs`, which must fit `product`, quantised or not. The rows of
    /// A say how many rows the run has.
    ///
    /// For an integer output the values are the integers, and the bounds 0 but where the real number
    /// lies so near to the middle between two integers that an error allowed before the rounding may
    /// change the integer.
    ///
    /// Costs four float64 operations per multiplication, on all allowed threads. Sums of f64 are computed in twice
    /// the precision of float64, in three times as many.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unexpected`], [`Error::Rows`] and [`Error::Shape`] for operands that do not
    /// fit; their types may be others than the description's, such as f64;
    /// [`Error::Memory`] for those that lie on a device; [`Error::OutOfMemory`] for the float64 copies.
    pub fn new<'i>(product: &(impl Product + ?Sized), inputs: impl IntoInputs<'i>) -> Result<Self> {
        Self::with_options(product, inputs, &CompileOptions::default())
    }

    /// [`Reference::new`] for what was compiled with `options`, wherever that was:
    /// [`CompileOptions::reduced_precision`] widens the bounds to what truncated operands may cost.
    ///
    /// ```
    /// use ane_matmul::accuracy::Reference;
    /// use ane_matmul::{CompileOptions, Inputs, MatMul, Tensor};
    ///
    /// let product = MatMul::new(1, 1, 1)?;
    /// let a = Tensor::filled(1, 1, 1.0009f32)?; // 1 in 11 significant bits
    /// let b = Tensor::filled(1, 1, 1f32)?;
    /// let mut options = CompileOptions::default();
    /// options.reduced_precision = true;
    /// let reference = Reference::with_options(&product, &Inputs::new(&a).b(&b), &options)?;
    /// assert!(reference.compare(&Tensor::filled(1, 1, 1f32)?)?.is_within_bound());
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Reference::new`]; [`Error::Description`] with `fast_math`, which has no error bound.
    pub fn with_options<'i>(
        product: &(impl Product + ?Sized),
        inputs: impl IntoInputs<'i>,
        options: &CompileOptions,
    ) -> Result<Self> {
        if options.fast_math {
            return Err(Error::Description {
                problem: "a reference with fast math, which has no error bound".into(),
                help: "turn fast math off",
            });
        }
        let (weights, bias, product) = (product.weights(), product.bias_handle(), product.product());
        let bounds = Bounds::with_precision(product, options.reduced_precision);
        inputs.with_inputs(|inputs| Self::compute(product, inputs, weights, bias, &bounds))
    }

    /// Computes the reference of a run of a compiled product with `inputs`, as [`Reference::with_options`] with
    /// the options that it was compiled with, of which `fast_math` counts for nothing.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn of<'i>(compiled: &Compiled, inputs: impl IntoInputs<'i>) -> Result<Self> {
        let bounds = Bounds::with_precision(compiled.product(), compiled.reduced_precision());
        let (product, weights, bias) = (compiled.product(), compiled.weights(), compiled.bias());
        inputs.with_inputs(|inputs| Self::compute(product, inputs, weights, bias, &bounds))
    }

    /// `weights` and `bias` are those that `product` knows.
    pub(crate) fn compute(
        product: &MatMul,
        inputs: &Inputs<'_>,
        weights: Option<&Weights>,
        bias: Option<&Weights>,
        element_bounds: &Bounds,
    ) -> Result<Self> {
        inputs.check_on_host()?;
        let a = inputs.a_view();
        let m = if product.transpose_a() { a.layout().cols() } else { a.layout().rows() };
        executor::check(product, bias, inputs, &product.c_for(m))?;
        let known = weights.map(|weights| weights.view_for(product));
        let b = known.or(inputs.b_view()).ok_or(Error::Missing {
            operand: Operand::B,
            help: "pass the product with its weights (MatMul::with_weights)",
        })?;
        let inputs = match bias {
            Some(bias) => &inputs.bias(bias.view()),
            None => inputs,
        };
        let (scales, scales_b) = (Scales::of(product), weights.and_then(Weights::scales));
        let (n, k) = (product.n(), product.k());
        let layout = Layout::packed(product.batch(), m, n)?;
        let mut reference = Self {
            layout,
            values: alloc::filled(layout.span(), 0.0, "the float64 reference")?,
            bounds: alloc::filled(layout.span(), 0.0, "the error bounds")?,
            overflow: element_bounds.overflow,
        };
        if layout.is_empty() {
            return Ok(reference);
        }
        for item in 0..product.batch() {
            let source = Source { view: a, item, transpose: product.transpose_a(), rows: m, cols: k };
            let (packed_a, row_scales) = real_a(product, &source, scales)?;
            let source = Source { view: b, item, transpose: product.transpose_b(), rows: k, cols: n };
            let real_b = real_b(product, &source, scales_b, scales)?;
            let range = item * m * n..(item + 1) * m * n;
            let (values, bounds) = (&mut reference.values[range.clone()], &mut reference.bounds[range]);
            let multiply =
                if is_twofold(product) { multiply_on_threads::<true> } else { multiply_on_threads::<false> };
            multiply(&packed_a, &real_b.values, (n, k), values, bounds);
            if let Some(magnitudes) = &real_b.magnitudes {
                let mut sums = alloc::filled(values.len(), 0.0, "the error bounds")?;
                bounds.fill(0.0);
                multiply_on_threads::<false>(&packed_a, magnitudes, (n, k), &mut sums, bounds);
            }
            for (row, (values, bounds)) in values.chunks_mut(n).zip(bounds.chunks_mut(n)).enumerate() {
                for (col, (value, bound)) in values.iter_mut().zip(bounds).enumerate() {
                    let row_scale = row_scales.get(row).copied().unwrap_or(1.0);
                    let scale = row_scale * real_b.columns.get(col).copied().unwrap_or(1.0);
                    *value *= scale;
                    *bound *= scale;
                }
            }
        }
        reference.finish(product, inputs, scales, element_bounds);
        Ok(reference)
    }

    /// Turns sums and sums of magnitudes into values and bounds.
    fn finish(&mut self, product: &MatMul, inputs: &Inputs<'_>, scales: Scales, bounds: &Bounds) {
        let output = IntegerOutput::new(product, scales);
        let (rows, cols) = (self.layout.rows(), self.layout.cols());
        for (index, (value, bound)) in self.values.iter_mut().zip(&mut self.bounds).enumerate() {
            let (item, row, col) = (index / cols / rows, index / cols % rows, index % cols);
            let addend = |view: Option<AnyView<'_>>, item, row| {
                view.map_or(0.0, |view| view.get(item, row, col).unwrap_or(f64::NAN))
            };
            let bias = addend(inputs.bias_view(), 0, 0);
            let residual = match (inputs.residual_view(), output) {
                (Some(view), Some(output)) => output.real(view.get(item, row, col).unwrap_or(f64::NAN)),
                (view, _) => addend(view, item, row),
            };
            (*value, *bound) = bounds.element(*value, *bound, bias, residual);
            if let Some(output) = output {
                (*value, *bound) = output.round(*value, *bound);
            }
        }
    }

    /// The layout of [`Reference::values`] and [`Reference::bounds`]: packed.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The float64 results.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// How far from its value each element may lie; infinite where an intermediate result may
    /// overflow.
    #[must_use]
    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    /// Compares a result with this reference.
    ///
    /// NaN must meet NaN, and infinity the same infinity, unless the bound allows for overflow.
    ///
    /// # Errors
    /// [`Error::Shape`] when the result has another shape, [`Error::Memory`] when it lies on a device.
    pub fn compare<'c>(&self, c: impl IntoView<'c>) -> Result<Deviation> {
        let c = c.into_view()?;
        c.check_on_host("C")?;
        let got = c.layout();
        if got.shape() != self.layout.shape() {
            return Err(Error::Shape {
                operand: Operand::C,
                expected: self.layout.to_string(),
                got: got.to_string(),
                help: "pass the result of the run that the reference is of",
            });
        }
        let mut deviation =
            Deviation { max_abs_error: 0.0, bound: 0.0, worst_ratio: 0.0, worst: (0, 0, 0), violations: 0 };
        let (rows, cols) = (self.layout.rows(), self.layout.cols());
        for (index, (&value, &bound)) in self.values.iter().zip(&self.bounds).enumerate() {
            let at = (index / cols / rows, index / cols % rows, index % cols);
            let got = c.get(at.0, at.1, at.2).unwrap_or(f64::NAN);
            let error = (got - value).abs();
            if error.is_finite() {
                deviation.max_abs_error = deviation.max_abs_error.max(error);
            }
            let ratio = ratio(value, got, bound, self.overflow);
            if ratio > 1.0 {
                deviation.violations += 1;
            }
            // Where nothing deviates, an element whose bound is not 0 says more.
            if ratio > deviation.worst_ratio || (deviation.worst_ratio == 0.0 && deviation.bound == 0.0) {
                (deviation.worst_ratio, deviation.bound, deviation.worst) = (ratio, bound, at);
            }
        }
        Ok(deviation)
    }
}

/// The error over its bound; at most 1 when the element is right.
pub(crate) fn ratio(value: f64, got: f64, bound: f64, overflow: f64) -> f64 {
    if bound == f64::INFINITY && overflow == f64::MAX {
        // The reference itself may have overflowed.
        return 0.0;
    }
    if value.is_nan() || got.is_nan() {
        // Where partial sums may overflow, infinity minus infinity is possible.
        let right = got.is_nan() && (value.is_nan() || bound == f64::INFINITY);
        return if right { 0.0 } else { f64::INFINITY };
    }
    if value == got {
        return 0.0;
    }
    if value.is_infinite() {
        return f64::INFINITY;
    }
    if bound == f64::INFINITY {
        return 0.0;
    }
    if got.is_infinite() {
        // A finite float64 value may round to infinity in a narrower type.
        return if value.abs() + bound > overflow && (got > 0.0) == (value > 0.0) {
            1.0
        } else {
            f64::INFINITY
        };
    }
    (got - value).abs() / bound
}

fn multiply_on_threads<const TWOFOLD: bool>(
    a: &[f64],
    b: &[f64],
    (n, k): (usize, usize),
    sums: &mut [f64],
    sizes: &mut [f64],
) {
    let rows = sums.len() / n;
    let threads = if rows * n * k < 1 << 20 { 1 } else { Threads::Auto.number().min(rows) };
    let rows_each = rows.div_ceil(threads);
    if threads == 1 || k == 0 {
        multiply_rows::<TWOFOLD>(a, b, (n, k), sums, sizes);
        return;
    }
    let chunks = a.chunks(rows_each * k).zip(sums.chunks_mut(rows_each * n));
    let chunks = Mutex::new(chunks.zip(sizes.chunks_mut(rows_each * n)));
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(((a, sums), sizes)) = next() {
            multiply_rows::<TWOFOLD>(a, b, (n, k), sums, sizes);
        }
    };
    std::thread::scope(|scope| {
        // Fewer do it too, where no more can be started.
        let start = |_: &usize| std::thread::Builder::new().spawn_scoped(scope, work).is_ok();
        let _ = (1..threads).take_while(start).count();
        work();
    });
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::description::matmul::ElementTypes;
    use crate::operands::tensor::Tensor;
    use crate::operands::view::TensorView;

    #[test]
    fn small_product_by_hand() {
        let product = MatMul::builder(2, 2, 2).alpha(2.0).bias(true).build().unwrap();
        let a = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], 2, 2).unwrap();
        let b = Tensor::from_vec(vec![5f32, -6.0, 7.0, 8.0], 2, 2).unwrap();
        let inputs = Inputs::new(&a).b(&b).bias(&[1f32, 2.0]);
        let reference = Reference::new(&product, inputs).unwrap();
        assert_eq!(reference.values(), [39.0, 22.0, 87.0, 30.0]);
        // gamma_2 |2| (5 + 14) + gamma_2 (|2| (5 + 14) + 1) + u |C| + underflow
        let u = 2f64.powi(-24);
        let gamma2 = 2.0 * u / (1.0 - 2.0 * u);
        let expected = gamma2 * 38.0 + gamma2 * 39.0 + u * 39.0 + 10.0 * 2f64.powi(-126);
        assert_abs_diff_eq!(reference.bounds()[0], expected, epsilon = 1e-15);
    }

    #[test]
    fn a_wrong_element_is_found_and_located() {
        let product = MatMul::new(3, 4, 5).unwrap();
        let a = Tensor::random_normal_f32(3, 5, 1.0, 1).unwrap();
        let b = Tensor::random_normal_f32(5, 4, 1.0, 2).unwrap();
        let reference = Reference::new(&product, Inputs::new(&a).b(&b)).unwrap();
        let mut c = reference.values().to_vec();
        let compare = |c: &[f64]| reference.compare(TensorView::new(c, 3, 4).unwrap()).unwrap();
        assert!(compare(&c).is_within_bound());
        c[6] += 3.0 * reference.bounds()[6];
        let deviation = compare(&c);
        assert_eq!((deviation.violations, deviation.worst), (1, (0, 1, 2)));
        assert_abs_diff_eq!(deviation.worst_ratio, 3.0, epsilon = 1e-6);
        c[6] = f64::NAN;
        assert_eq!(compare(&c).worst_ratio, f64::INFINITY);
    }

    #[test]
    fn a_wrong_element_that_must_be_exact_is_located() {
        let types = ElementTypes { output: ElementType::I32, ..ElementTypes::INT8 };
        let product = MatMul::builder(1, 3, 1).types(types).build().unwrap();
        let (a, b) = (Tensor::filled(1, 1, 2i8).unwrap(), Tensor::filled(1, 3, 3i8).unwrap());
        let reference = Reference::new(&product, Inputs::new(&a).b(&b)).unwrap();
        let c = Tensor::from_vec(vec![6, 7, 6], 1, 3).unwrap();
        let deviation = reference.compare(&c).unwrap();
        assert_eq!((deviation.violations, deviation.worst, deviation.bound), (1, (0, 0, 1), 0.0));
        assert_eq!(deviation.worst_ratio, f64::INFINITY);
    }

    #[test]
    fn nan_and_infinity_must_match() {
        let max = f64::from(f32::MAX);
        assert_eq!(ratio(f64::NAN, f64::NAN, 1.0, max), 0.0);
        assert_eq!(ratio(f64::NAN, 1.0, 1.0, max), f64::INFINITY);
        assert_eq!(ratio(1.0, f64::NAN, 1.0, max), f64::INFINITY);
        assert_eq!(ratio(f64::NAN, 1.0, f64::INFINITY, max), f64::INFINITY);
        assert_eq!(ratio(f64::INFINITY, f64::NAN, 0.0, max), f64::INFINITY);
        assert_eq!(ratio(f64::INFINITY, f64::NAN, f64::INFINITY, max), 0.0);
        assert_eq!(ratio(f64::INFINITY, f64::NEG_INFINITY, 1.0, max), f64::INFINITY);
        assert_eq!(ratio(f64::INFINITY, f64::INFINITY, 1.0, max), 0.0);
        assert_eq!(ratio(1.0, f64::INFINITY, 1.0, max), f64::INFINITY);
        assert_eq!(ratio(max * 2.0, f64::INFINITY, 1.0, max), 1.0);
        assert_eq!(ratio(-max * 2.0, f64::INFINITY, 1.0, max), f64::INFINITY);
        assert_eq!(ratio(max * 0.9, f64::INFINITY, max * 0.2, max), 1.0);
        assert_eq!(ratio(max * 0.5, f64::INFINITY, 4.0, max), f64::INFINITY);
    }

    #[test]
    fn a_sum_may_overflow_before_alpha_makes_it_small() {
        let product = MatMul::builder(1, 1, 1).alpha(1e-10).build().unwrap();
        let large = Tensor::filled(1, 1, 1e20f32).unwrap();
        let reference = Reference::new(&product, Inputs::new(&large).b(&large)).unwrap();
        for c in [f32::INFINITY, 1e30] {
            assert!(reference.compare(&Tensor::filled(1, 1, c).unwrap()).unwrap().is_within_bound());
        }
    }

    #[test]
    fn threads_do_not_change_the_reference() {
        let (m, n, k) = (150, 130, 110);
        let a = Tensor::random_normal(m, k, 1.0, 1).unwrap();
        let b = Tensor::random_normal(k, n, 1.0, 2).unwrap();
        let (mut sums, mut sizes) = (vec![0.0; m * n], vec![0.0; m * n]);
        multiply_rows::<true>(a.data(), b.data(), (n, k), &mut sums, &mut sizes);
        let (mut sums2, mut sizes2) = (vec![0.0; m * n], vec![0.0; m * n]);
        multiply_on_threads::<true>(a.data(), b.data(), (n, k), &mut sums2, &mut sizes2);
        assert_eq!((sums, sizes), (sums2, sizes2));
    }

    /// In float64 (2^27 + 1) (2^27 - 1) - 2^54 is 0, and is -1.
    #[test]
    fn a_sum_of_f64_is_computed_in_twice_the_precision() {
        let big = 2f64.powi(27);
        let (a, b) = ([big + 1.0, big, 0.25], [big - 1.0, -big, 1.0]);
        let product = MatMul::builder(1, 1, 3).transpose_b(true).types(ElementTypes::F64).build().unwrap();
        let reference = Reference::new(&product, Inputs::new(&a).b(&b)).unwrap();
        assert_eq!(reference.values(), [-0.75]);
        // k = 3, no roundings of the epilogue, one of the reference.
        let (u, size) = (2f64.powi(-53), 2.0 * big * big);
        let bound = (3.0 + 1.0) * u * size;
        assert!((reference.bounds()[0] / bound - 1.0).abs() < 1e-9, "{:e}", reference.bounds()[0]);
        // f32's precision is not f64's.
        let deviation = reference.compare(&[10.0 * big]).unwrap();
        assert!(!deviation.is_within_bound());
    }

    #[test]
    fn roundings_to_f32_are_beyond_the_bound_of_f64() {
        let (m, n, k) = (5, 7, 300);
        let product = MatMul::builder(m, n, k).types(ElementTypes::F64).build().unwrap();
        let a = Tensor::random_normal(m, k, 1.0, 1).unwrap();
        let b = Tensor::random_normal(k, n, 1.0, 2).unwrap();
        let reference = Reference::new(&product, Inputs::new(&a).b(&b)).unwrap();
        let compare = |round: fn(f64) -> f64, of_sum: fn(f64) -> f64| {
            let element = |row: usize, col: usize| {
                let terms = (0..k).map(|p| round(a.data()[row * k + p]) * b.data()[p * n + col]);
                of_sum(terms.sum())
            };
            let c = Tensor::from_fn(m, n, element).unwrap();
            reference.compare(&c).unwrap()
        };
        #[allow(clippy::cast_possible_truncation, reason = "the fault")]
        let to_f32 = |x: f64| f64::from(x as f32);
        assert!(compare(|x| x, |x| x).is_within_bound());
        assert_eq!(compare(to_f32, |x| x).violations, m * n);
        assert!(compare(|x| x, to_f32).violations > m * n / 2);
    }

    #[test]
    fn sums_of_f64_that_overflow_may_be_anything() {
        let product = MatMul::builder(1, 1, 2).transpose_b(true).types(ElementTypes::F64).build().unwrap();
        let reference = Reference::new(&product, Inputs::new(&[1e200, 1e200]).b(&[1e200, -1e200])).unwrap();
        for c in [0.0, f64::INFINITY, f64::NAN] {
            assert!(reference.compare(&[c]).unwrap().is_within_bound(), "{c}");
        }
        // An infinite operand is no overflow.
        let reference = Reference::new(&product, Inputs::new(&[f64::INFINITY, 1.0]).b(&[1.0, 1.0])).unwrap();
        assert!(reference.compare(&[f64::INFINITY]).unwrap().is_within_bound());
        assert!(!reference.compare(&[1.0]).unwrap().is_within_bound());
    }

    #[test]
    fn truncated_operands_widen_the_bound() {
        let product = MatMul::new(2, 2, 40).unwrap();
        let gamma_k = |reduced| Bounds::with_precision(&product, reduced).gamma_k;
        assert_eq!(gamma_k(false), Bounds::new(&product).gamma_k);
        let expected = gamma_k(false) + (2f64.powi(-9) + 2f64.powi(-20)) * (1.0 + gamma_k(false));
        assert_abs_diff_eq!(gamma_k(true), expected, epsilon = 1e-15);
        let integers = MatMul::builder(2, 2, 40).types(ElementTypes::INT8).build().unwrap();
        assert_eq!(Bounds::with_precision(&integers, true).gamma_k, Bounds::new(&integers).gamma_k);
    }

    /// The exact result of operands cut to `bits` significant bits, against the reference for `reduced_precision`
    /// or without: by how much of its bound the worst element is off. C is 2 x 3.
    fn cut(k: usize, transposed: bool, x: impl Fn(usize) -> f32, bits: u32, reduced: bool) -> f64 {
        let product =
            MatMul::builder(2, 3, k).transpose_a(transposed).transpose_b(transposed).bias(transposed);
        let product = product.build().unwrap();
        let matrix = |layout: &Layout, first: usize| {
            let x = |row, col| x(first + row * layout.cols() + col);
            Tensor::from_fn(layout.rows(), layout.cols(), x).unwrap()
        };
        let (a, b) = (matrix(product.a(), 0), matrix(product.b(), 2 * k));
        let bias = [1.5f32, -2.5, 0.25];
        let at = |x: &Tensor<f32>, row: usize, col: usize| {
            let (row, col) = if transposed { (col, row) } else { (row, col) };
            let x = x.view().get(0, row, col).unwrap();
            f64::from(f32::from_bits(x.to_bits() >> (24 - bits) << (24 - bits)))
        };
        let c = Tensor::from_fn(2, 3, |row, col| {
            let sum: f64 = (0..k).map(|p| at(&a, row, p) * at(&b, p, col)).sum();
            if transposed { sum + f64::from(bias[col]) } else { sum }
        })
        .unwrap();
        if transposed {
            worst(&product, &Inputs::new(&a).b(&b).bias(&bias), &c, reduced)
        } else {
            let product = product.with_weights(&Weights::new(&b).unwrap()).unwrap();
            worst(&product, &Inputs::new(&a), &c, reduced)
        }
    }

    fn worst(product: &(impl Product + ?Sized), inputs: &Inputs<'_>, c: &Tensor, reduced: bool) -> f64 {
        let options = CompileOptions { reduced_precision: reduced, ..CompileOptions::default() };
        let reference = Reference::with_options(product, inputs, &options).unwrap();
        let compiled = crate::Backends::new().compile(&crate::BackendId::CPU, product, &options).unwrap();
        assert_eq!(Reference::of(&compiled, inputs).unwrap().bounds(), reference.bounds());
        if !reduced {
            assert_eq!(Reference::new(product, inputs).unwrap().bounds(), reference.bounds());
        }
        reference.compare(c).unwrap().worst_ratio
    }

    #[test]
    #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn operands_of_11_bits_are_right_with_reduced_precision_and_shorter_ones_are_not() {
        for (k, transposed) in [(1, false), (1, true), (7, true), (2000, false), (2000, true), (20_000, true)]
        {
            // All of one sign, so that what is lost adds up however long the sum is.
            let mut random = crate::random::Random::new(k as u64);
            let numbers: Vec<f32> = (0..5 * k).map(|_| (1.0 + random.uniform()) as f32).collect();
            let random = |index: usize| numbers[index];
            assert!(cut(k, transposed, random, 11, true) < 1.0, "k = {k}");
            assert!(cut(k, transposed, random, 8, true) > 1.0, "k = {k}");
            // k u alone allows for as much from some 10,000 terms on.
            assert!(k > 10_000 || cut(k, transposed, random, 11, false) > 1.0, "k = {k}");
            // The most that 11 bits and 10 bits can lose: ones from there on.
            let most = |bits: i32| move |_: usize| (1.0 + 2f64.powi(1 - bits) - 2f64.powi(-23)) as f32;
            let at_the_end = cut(k, transposed, most(11), 11, true);
            let lost = 2f64.powi(-9);
            let share = lost / (lost + gamma(k, 2f64.powi(-24)));
            assert!(at_the_end > 0.97 * share && at_the_end < 1.0, "k = {k}: {at_the_end}");
            let beyond = cut(k, transposed, most(10), 10, true);
            assert!(beyond > 1.0, "k = {k}: {beyond}");
        }
    }

    #[test]
    fn a_reference_with_options_wants_what_they_are_for() {
        let product = MatMul::new(1, 1, 1).unwrap();
        let one = Tensor::filled(1, 1, 1f32).unwrap();
        let inputs = Inputs::new(&one).b(&one);
        let with = |inputs: &Inputs<'_>, options: &CompileOptions| {
            Reference::with_options(&product, inputs, options)
        };
        let plain = CompileOptions::default();
        let fast = CompileOptions { fast_math: true, ..CompileOptions::default() };
        assert!(with(&inputs, &plain).is_ok());
        assert!(matches!(with(&inputs, &fast), Err(Error::Description { .. })));
        assert!(matches!(with(&Inputs::new(&one), &plain), Err(Error::Missing { .. })));
        let known = product.with_weights(&Weights::new(&one).unwrap()).unwrap();
        let twice = Reference::with_options(&known, inputs, &plain);
        assert!(matches!(twice, Err(Error::Unexpected { operand: Operand::B, .. })));
    }

    #[test]
    fn roundings_after_an_exact_sum_are_counted() {
        let types = ElementTypes { output: ElementType::I32, bias: ElementType::I32, ..ElementTypes::INT8 };
        let plain = || MatMul::builder(2, 3, 4).types(types);
        assert_eq!(integer_roundings(&plain().build().unwrap()), 0);
        assert_eq!(integer_roundings(&plain().bias(true).build().unwrap()), 5);
        assert_eq!(integer_roundings(&plain().residual(true).build().unwrap()), 6);
        assert_eq!(integer_roundings(&plain().alpha(2.0).build().unwrap()), 4);
        let floats = MatMul::builder(2, 3, 4).types(ElementTypes::INT8).build().unwrap();
        assert_eq!(integer_roundings(&floats), 4);
    }

    #[test]
    fn addends_near_the_end_of_the_range_may_overflow() {
        let bounds = Bounds::new(&MatMul::builder(1, 1, 1).bias(true).build().unwrap());
        let max = f64::from(f32::MAX);
        assert_eq!(bounds.element(0.7 * max, 0.7 * max, -0.7 * max, 0.0).1, f64::INFINITY);
        assert!(bounds.element(0.7 * max, 0.7 * max, 2.0, 0.0).1.is_finite());
    }

    #[test]
    fn a_right_result_is_held_to_a_bound_and_may_overflow_at_the_end_of_the_range() {
        let product = MatMul::new(1, 1, 1).unwrap();
        let one = Tensor::filled(1, 1, 1f32).unwrap();
        let compare = |a: f32, c: f32| {
            let a = Tensor::filled(1, 1, a).unwrap();
            let reference = Reference::new(&product, Inputs::new(&a).b(&one)).unwrap();
            let deviation = reference.compare(&Tensor::filled(1, 1, c).unwrap()).unwrap();
            (deviation.violations, deviation.worst_ratio, deviation.bound == reference.bounds()[0])
        };
        assert_eq!(compare(3.0, 3.0), (0, 0.0, true));
        assert_eq!(compare(f32::MAX.next_down(), f32::INFINITY), (0, 1.0, true));
    }

    #[test]
    fn scales_of_rows_and_columns_count_in_values_and_bounds() {
        use crate::backend::BackendId;
        use crate::description::quantization::{QuantA, QuantB};
        let quantization =
            Quantization { a: QuantA::Static { scale: 0.5, zero_point: 1 }, ..Quantization::default() };
        let (a, b) = ([9i8], [3i8, 5]);
        let weights = Weights::new(&b).unwrap();
        let weights = weights.with_scales(QuantB::PerColumn { zero_point: 0 }, &[4f32, 0.25]).unwrap();
        let product = MatMul::builder(1, 2, 1)
            .types(ElementTypes::INT8)
            .quantization(quantization)
            .with_weights(&weights)
            .unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        let a = TensorView::new(&a, 1, 1).unwrap();
        let reference = Reference::of(&compiled, Inputs::new(a)).unwrap();
        assert_eq!(reference.values(), [48.0, 5.0]);
        let bounds = Bounds::new(product.product());
        for (value, bound) in reference.values().iter().zip(reference.bounds()) {
            assert_eq!(bounds.element(*value, *value, 0.0, 0.0), (*value, *bound));
        }
    }
}
