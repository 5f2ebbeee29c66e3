//! Verifying a product in quadratic time.

use crate::alloc;
use crate::description::matmul::MatMul;
use crate::error::{Error, Operand, Result};
use crate::executor::Inputs;
use crate::operands::view::AnyView;
use crate::random::Random;
use crate::verify::accuracy::real::check_unquantized;
use crate::verify::accuracy::reference::{epilogue_roundings, gamma};

/// What [`freivalds`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Freivalds {
    /// Random vectors tried.
    pub rounds: u32,
    /// How likely it is at most that an error beyond [`Freivalds::detectable`] went unseen:
    /// 2^-rounds.
    pub failure_probability: f64,
    /// The largest ratio of a row's residue to its tolerance: at most 1 for a correct product.
    pub worst_ratio: f64,
    /// Item and row of that residue.
    pub worst: (usize, usize),
    /// An error of a single element larger than this is detected with the stated probability: the
    /// largest tolerance of a row.
    pub detectable: f64,
    /// Rows and columns left out because an input there is NaN or infinite, or a sum overflows.
    pub skipped: (usize, usize),
}

impl Freivalds {
    /// Whether no error was found.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.worst_ratio <= 1.0
    }
}

struct Factor<'a> {
    view: AnyView<'a>,
    index: usize,
    transpose: bool,
}

impl Factor<'_> {
    fn get(&self, row: usize, col: usize) -> f64 {
        let (r, c) = if self.transpose { (col, row) } else { (row, col) };
        self.view.get(self.index, r, c).unwrap_or(f64::NAN)
    }

    /// Y = X V for all rounds in one pass over X: V has `rounds` columns. Columns of X marked in
    /// `skip` are left out.
    fn times(&self, v: &[f64], rounds: usize, skip: &[bool], y: &mut [f64]) {
        y.fill(0.0);
        for (row, y) in y.chunks_mut(rounds).enumerate() {
            for (col, v) in v.chunks(rounds).enumerate().filter(|(col, _)| !skip[*col]) {
                let x = self.get(row, col);
                for (y, &v) in y.iter_mut().zip(v) {
                    *y += x * v;
                }
            }
        }
    }
}

/// Verifies `c = alpha * op(A) op(B)` by Freivalds' method, in time proportional to the size of the
/// matrices (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977).
///
/// Every round draws a vector r of random signs and compares C r with alpha A (B r) in float64. A
/// row passes when the difference is within the sum of its elements' error bounds
/// ([`crate::verify::accuracy`]), so a correct product always passes. If one element is wrong by more than
/// that sum, flipping its sign in r changes the difference by twice the error, so that at least one
/// of the two vectors shows it: each round misses it with probability 1/2 at most.
///
/// Rows of A and columns of B that hold NaN or infinity are left out, and counted; so are rows of C
/// with an element that may overflow, and did.
///
/// For a product compiled with [`crate::CompileOptions::reduced_precision`] there is
/// [`crate::ResultChecker::with_options`].
///
/// # Errors
/// [`Error::Description`] when the product has bias, residual or activation: verify
/// [`MatMul::linear_part`] instead. [`Error::Missing`] without B, and for a quantised product; [`Error::OutOfMemory`].
pub fn freivalds<'c>(
    product: &MatMul,
    inputs: &Inputs<'_>,
    b: Option<AnyView<'_>>,
    c: impl Into<AnyView<'c>>,
    rounds: u32,
    seed: u64,
) -> Result<Freivalds> {
    check_unquantized(product)?;
    if *product != product.linear_part() {
        return Err(Error::Description {
            problem: "Freivalds' method verifies linear products only".into(),
            help: "verify MatMul::linear_part(), and recompute single rows for the activation",
        });
    }
    let c = c.into();
    let b = inputs.b_view().or(b).ok_or(Error::Missing {
        operand: Operand::B,
        help: "pass it with Inputs::b, or the weights' view where B is constant",
    })?;
    let mut random = Random::new(seed);
    let mut result = Freivalds {
        rounds,
        // Halves are exact, and 0 after so many.
        failure_probability: (0..rounds.min(1100)).fold(1.0, |probability, _| 0.5 * probability),
        worst_ratio: 0.0,
        worst: (0, 0),
        detectable: 0.0,
        skipped: (0, 0),
    };
    // Items without elements may be many.
    let items = if c.layout().is_empty() { 0 } else { product.batch() };
    for item in 0..items {
        let a = Factor { view: inputs.a_view(), index: item, transpose: product.transpose_a() };
        let b = Factor { view: b, index: item, transpose: product.transpose_b() };
        let c = Factor { view: c, index: item, transpose: false };
        verify_item(product, [&a, &b, &c], &mut random, &mut result)?;
    }
    Ok(result)
}

fn verify_item(
    product: &MatMul,
    [a, b, c]: [&Factor<'_>; 3],
    random: &mut Random,
    result: &mut Freivalds,
) -> Result<()> {
    const WHAT: &str = "Freivalds' vectors";
    let (m, n, k) = (c.view.layout().rows(), product.n(), product.k());
    let alpha = f64::from(product.alpha());
    let mut skip_rows = alloc::filled(m, false, WHAT)?;
    for (row, skip) in skip_rows.iter_mut().enumerate() {
        *skip = (0..k).any(|p| !a.get(row, p).is_finite());
    }
    let mut skip_cols = alloc::filled(n, false, WHAT)?;
    for p in 0..k {
        for (col, skip) in skip_cols.iter_mut().enumerate() {
            *skip |= !b.get(p, col).is_finite();
        }
    }
    result.skipped.0 += skip_rows.iter().filter(|&&skip| skip).count();
    result.skipped.1 += skip_cols.iter().filter(|&&skip| skip).count();

    let rounds = result.rounds as usize;
    if rounds == 0 || m == 0 {
        return Ok(());
    }
    for (row, skip) in skip_rows.iter_mut().enumerate().filter(|(_, skip)| !**skip) {
        *skip = overflows(product, [a, b, c], row, &skip_cols);
        result.skipped.0 += usize::from(*skip);
    }
    let mut tolerance = alloc::filled(m, 0.0, WHAT)?;
    tolerances(product, [a, b], &skip_cols, &mut tolerance)?;
    let vectors = |rows: usize| {
        let count = rows.checked_mul(rounds).ok_or(Error::SizeOverflow { what: "rounds x rows" })?;
        alloc::filled(count, 0.0, WHAT)
    };
    let mut signs = vectors(n)?;
    signs.fill_with(|| if random.bits() >> 63 == 0 { 1.0 } else { -1.0 });
    let (mut br, mut abr, mut cr) = (vectors(k)?, vectors(m)?, vectors(m)?);
    b.times(&signs, rounds, &skip_cols, &mut br);
    a.times(&br, rounds, &alloc::filled(k, false, WHAT)?, &mut abr);
    c.times(&signs, rounds, &skip_cols, &mut cr);
    for row in (0..m).filter(|&row| !skip_rows[row]) {
        result.detectable = result.detectable.max(tolerance[row]);
        for round in row * rounds..(row + 1) * rounds {
            let residue = (cr[round] - alpha * abr[round]).abs();
            let ratio = if residue == 0.0 {
                0.0
            } else if residue.is_nan() {
                f64::INFINITY
            } else {
                residue / tolerance[row]
            };
            if ratio > result.worst_ratio {
                (result.worst_ratio, result.worst) = (ratio, (c.index, row));
            }
        }
    }
    Ok(())
}

/// Whether a row of C has an element that is not finite and may be so: its sum may leave the range
/// of the accumulator or of C. Such a row has no residue; any other infinity shows in one.
fn overflows(product: &MatMul, [a, b, c]: [&Factor<'_>; 3], row: usize, skip_cols: &[bool]) -> bool {
    let types = product.types();
    let limit = types.accumulator.max_finite().min(types.output.max_finite());
    let col = (0..product.n()).find(|&col| !skip_cols[col] && !c.get(row, col).is_finite());
    col.is_some_and(|col| {
        let size: f64 = (0..product.k()).map(|p| (a.get(row, p) * b.get(p, col)).abs()).sum();
        let scale = f64::from(product.alpha()).abs().max(1.0);
        scale * size * (1.0 + gamma(product.k() + 1, types.accumulator.unit_roundoff())) >= limit
    })
}

/// The sums over each row of the elements' error bounds, float64's own rounding included.
#[allow(clippy::cast_precision_loss, reason = "a bound, rounded by far less than it is wide")]
fn tolerances(
    product: &MatMul,
    [a, b]: [&Factor<'_>; 2],
    skip_cols: &[bool],
    tolerance: &mut [f64],
) -> Result<()> {
    let (n, k) = (product.n(), product.k());
    let types = product.types();
    let u_acc = types.accumulator.unit_roundoff();
    let roundings = epilogue_roundings(product);
    let double = gamma(k + n + 2, f64::EPSILON);
    let relative = gamma(k, u_acc) + gamma(roundings, u_acc) + types.output.unit_roundoff() + 2.0 * double;
    let underflow = n as f64
        * (k + roundings + 1) as f64
        * types.accumulator.min_positive().max(types.output.min_positive());
    let mut row_sizes = alloc::filled(k, 0.0, "Freivalds' vectors")?;
    for (p, size) in row_sizes.iter_mut().enumerate() {
        *size = (0..n).filter(|&col| !skip_cols[col]).map(|col| b.get(p, col).abs()).sum();
    }
    for (row, tolerance) in tolerance.iter_mut().enumerate() {
        let size: f64 = (0..k).map(|p| a.get(row, p).abs() * row_sizes[p]).sum();
        *tolerance = f64::from(product.alpha()).abs() * size * relative * (1.0 + relative) + underflow;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operands::tensor::Tensor;

    fn setup() -> (MatMul, Tensor<f32>, Tensor<f32>, Tensor<f32>) {
        let product = MatMul::builder(20, 30, 40).transpose_a(true).alpha(0.5).build().unwrap();
        let a = Tensor::random_normal_f32(40, 20, 1.0, 1).unwrap();
        let b = Tensor::random_normal_f32(40, 30, 1.0, 2).unwrap();
        let c = Tensor::from_fn(20, 30, |i, j| {
            let sum: f32 = (0..40).map(|p| a.data()[p * 20 + i] * b.data()[p * 30 + j]).sum();
            0.5 * sum
        })
        .unwrap();
        (product, a, b, c)
    }

    #[test]
    fn a_product_without_elements_takes_no_time() {
        for (m, n) in [(0, 1 << 24), (1 << 24, 0)] {
            let product = MatMul::builder(m, n, 1).batch(1 << 24).build().unwrap();
            let (a, b) = (Tensor::<f32>::zeros(1, 1).unwrap(), Tensor::<f32>::zeros(1, 1).unwrap());
            let c = Tensor::<f32>::zeros_batched(1 << 24, m, n).unwrap();
            let found = freivalds(&product, &Inputs::new(&a).b(&b), None, &c, 20, 1).unwrap();
            assert!(found.passed() && found.skipped == (0, 0));
        }
    }

    #[test]
    fn a_correct_product_passes() {
        let (product, a, b, c) = setup();
        let found = freivalds(&product, &Inputs::new(&a).b(&b), None, &c, 20, 1).unwrap();
        assert!(found.passed(), "{found:?}");
        assert!(found.worst_ratio > 0.0);
        assert_eq!(found.failure_probability, 2f64.powi(-20));
    }

    #[test]
    fn an_infinity_is_right_only_where_a_sum_overflows() {
        let product = MatMul::new(3, 2, 2).unwrap();
        let a = Tensor::from_vec(vec![1e30f32, 1.0, 2.0, 3.0, 1.0, 1.0], 3, 2).unwrap();
        let b = Tensor::from_vec(vec![1e30f32, 1.0, 1.0, 1.0], 2, 2).unwrap();
        let mut c = Tensor::from_vec(vec![f32::INFINITY, 1e30, 2e30, 5.0, 1e30, 2.0], 3, 2).unwrap();
        let check = |c: &Tensor<f32>| freivalds(&product, &Inputs::new(&a).b(&b), None, c, 20, 1).unwrap();
        assert!(check(&c).passed(), "{:?}", check(&c));
        assert_eq!(check(&c).skipped, (1, 0));
        for wrong in [f32::INFINITY, f32::NAN] {
            c.data_mut()[5] = wrong;
            assert!(!check(&c).passed());
            assert_eq!((check(&c).worst, check(&c).worst_ratio), ((0, 2), f64::INFINITY));
        }
        c.data_mut()[5] = 2.0;
        c.data_mut()[0] = 1e38;
        assert!(!check(&c).passed(), "a sum that overflows is not finite");
    }

    #[test]
    fn one_wrong_element_is_found() {
        let (product, a, b, c) = setup();
        let inputs = Inputs::new(&a).b(&b);
        let detectable = freivalds(&product, &inputs, None, &c, 1, 1).unwrap().detectable;
        let mut random = Random::new(3);
        for seed in 0..200 {
            let mut wrong = c.clone();
            #[allow(clippy::cast_possible_truncation)]
            let error = (detectable * 2.0) as f32;
            wrong.data_mut()[random.below(600)] += error;
            let found = freivalds(&product, &inputs, None, &wrong, 20, seed).unwrap();
            assert!(!found.passed(), "seed {seed}: {found:?}");
        }
    }

    #[test]
    fn nan_inputs_are_left_out_and_nan_results_are_not() {
        let (product, mut a, b, mut c) = setup();
        a.data_mut()[7] = f32::NAN; // row 7 of op(A)
        for col in 0..30 {
            c.data_mut()[7 * 30 + col] = f32::NAN;
        }
        let inputs = Inputs::new(&a).b(&b);
        let found = freivalds(&product, &inputs, None, &c, 5, 1).unwrap();
        assert!(found.passed(), "{found:?}");
        assert_eq!(found.skipped, (1, 0));
        c.data_mut()[3] = f32::NAN;
        assert!(!freivalds(&product, &inputs, None, &c, 5, 1).unwrap().passed());
    }

    #[test]
    fn an_activation_is_refused() {
        let product = MatMul::builder(1, 1, 1).bias(true).build().unwrap();
        let one = Tensor::filled(1, 1, 1f32).unwrap();
        let inputs = Inputs::new(&one).b(&one).bias(&[1f32]);
        assert!(matches!(freivalds(&product, &inputs, None, &one, 1, 1), Err(Error::Description { .. })));
    }

    #[test]
    fn errors_that_cancel_in_a_sum_are_found() {
        let (product, a, b, mut c) = setup();
        c.data_mut()[3] += 1.0;
        c.data_mut()[4] -= 1.0;
        assert!(!freivalds(&product, &Inputs::new(&a).b(&b), None, &c, 20, 1).unwrap().passed());
    }

    #[test]
    fn columns_with_nan_are_left_out_and_no_rounds_find_nothing() {
        let (product, a, mut b, mut c) = setup();
        b.data_mut()[3 * 30 + 5] = f32::NAN; // column 5
        for row in 0..20 {
            c.data_mut()[row * 30 + 5] = f32::NAN;
        }
        let inputs = Inputs::new(&a).b(&b);
        let found = freivalds(&product, &inputs, None, &c, 5, 1).unwrap();
        assert!(found.passed(), "{found:?}");
        assert_eq!(found.skipped, (0, 1));
        c.data_mut()[6] += 1.0;
        assert!(!freivalds(&product, &inputs, None, &c, 20, 1).unwrap().passed());
        let none = freivalds(&product, &inputs, None, &c, 0, 1).unwrap();
        assert_eq!((none.passed(), none.failure_probability), (true, 1.0));
    }

    #[test]
    fn the_tolerance_of_a_row_is_the_sum_of_its_bounds() {
        let (product, a, b, c) = setup();
        let detectable = freivalds(&product, &Inputs::new(&a).b(&b), None, &c, 1, 1).unwrap().detectable;
        let size = |i: usize| -> f64 {
            (0..40)
                .map(|p| {
                    let row: f64 = (0..30).map(|j| f64::from(b.data()[p * 30 + j]).abs()).sum();
                    f64::from(a.data()[p * 20 + i]).abs() * row
                })
                .sum()
        };
        let largest = (0..20).map(size).fold(0.0, f64::max);
        // gamma_40, at least one rounding for alpha, one for C.
        let least = 0.5 * largest * 42.0 * 2f64.powi(-24);
        assert!(detectable >= least && detectable < 1.1 * least, "{detectable} {least}");
    }
}
