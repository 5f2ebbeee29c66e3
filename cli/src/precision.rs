//! `multiply --precision` with anything but f32: operands rounded to the type, and what that costs.

use ane_matmul::accuracy::Reference;
use ane_matmul::npy::NpyTensor;
use ane_matmul::quantize::WeightScheme;
use ane_matmul::{
    AnyView, BackendId, Backends, CompileOptions, Compiled, Element, ElementType, Inputs, MatMul, QuantB,
    Tensor, TensorView, Weights,
};
use half::{bf16, f16};

use crate::failure::{Failure, Output};
use crate::output::note;

/// How quantised operands of int8 come about: a scale for each column of B.
const SCHEME: WeightScheme =
    WeightScheme::INT8.with_scheme(QuantB::PerColumn { zero_point: 0 }).with_scales(ElementType::F32);

/// Multiplications up to which all rows are compared with float64.
const ALL_ROWS: usize = 1 << 31;

/// Rows that are compared where all would take too long.
const ROWS: usize = 64;

/// The operands as they were read.
pub(crate) struct Given<'a> {
    pub(crate) product: &'a MatMul,
    pub(crate) a: &'a NpyTensor,
    pub(crate) b: &'a NpyTensor,
    pub(crate) bias: Option<&'a Tensor<f32>>,
}

/// The product in its types, and what to tell of its error.
pub(crate) fn multiply(
    given: &Given<'_>,
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    c: &mut Tensor<f32>,
    check: bool,
) -> Output<String> {
    match given.product.types().a {
        ElementType::F16 => floats(given, backends, id, options, c, check, f16::from_f64_const),
        ElementType::Bf16 => floats(given, backends, id, options, c, check, bf16::from_f64),
        _ => int8(given, backends, id, options, c, check),
    }?;
    let mut text = error(given, c);
    if check {
        text.insert_str(0, "check passed: every element recomputed in float64 from the rounded operands\n");
    }
    Ok(text)
}

/// Every element of a view, rounded.
fn rounded<T: Element>(view: AnyView<'_>, round: impl Fn(f64) -> T) -> Output<Vec<T>> {
    let layout = *view.layout();
    let tensor = Tensor::from_fn_batched(layout.batch(), layout.rows(), layout.cols(), |item, row, col| {
        round(view.get(item, row, col).unwrap_or(f64::NAN))
    })?;
    Ok(tensor.into_vec())
}

fn floats<T: Element>(
    given: &Given<'_>,
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    c: &mut Tensor<f32>,
    check: bool,
    round: impl Fn(f64) -> T + Copy,
) -> Output {
    let (a, b) = (rounded(given.a.view(), round)?, rounded(given.b.view(), round)?);
    let compiled = backends.compile(id, given.product, options)?;
    let inputs = Inputs::new(TensorView::with_layout(&a, *given.product.a())?)
        .b(TensorView::with_layout(&b, *given.product.b())?);
    run(given, &compiled, inputs, c, check)
}

/// A is quantised by the run, a scale for each row; B here, a scale for each column.
fn int8(
    given: &Given<'_>,
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    c: &mut Tensor<f32>,
    check: bool,
) -> Output {
    let product = given.product;
    #[allow(clippy::cast_possible_truncation, reason = "f32 is what the run quantises")]
    let a = rounded(given.a.view(), |x| x as f32)?;
    let weights = Weights::new(given.b.view())?;
    let weights = if product.transpose_b() { weights.transposed()? } else { weights };
    let (weights, _) = weights
        .quantize(&SCHEME)
        .map_err(|error| Failure::new(format!("the second factor cannot be quantised: {error}")))?;
    let compiled = backends.compile(id, &product.with_weights(&weights)?, options)?;
    run(given, &compiled, Inputs::new(TensorView::with_layout(&a, *product.a())?), c, check)
}

fn run(
    given: &Given<'_>,
    compiled: &Compiled,
    inputs: Inputs<'_>,
    c: &mut Tensor<f32>,
    check: bool,
) -> Output {
    if let Some(text) = compiled.report().note {
        note(text);
    }
    let inputs = match given.bias {
        Some(bias) => inputs.bias(bias.data()),
        None => inputs,
    };
    compiled.run(inputs, &mut *c)?;
    if check {
        let deviation = Reference::of(compiled, inputs)?.compare(&*c)?;
        if !deviation.is_within_bound() {
            let (item, row, col) = deviation.worst;
            return Err(Failure::new(format!(
                "check failed: row {row}, column {col} of item {item} is wrong ({:.3e} times its error bound); nothing was written; try another backend and report this",
                deviation.worst_ratio
            )));
        }
    }
    Ok(())
}

/// The error of a result against the float64 product of the operands as read, in words.
fn error(given: &Given<'_>, c: &Tensor<f32>) -> String {
    let product = given.product;
    let (m, n, k) = (product.m(), product.n(), product.k());
    let all = product.batch() * m;
    if all == 0 || n == 0 {
        return "error against float64: there are no elements".into();
    }
    let every = all.saturating_mul(n).saturating_mul(k) <= ALL_ROWS;
    let mut random = fastrand::Rng::with_seed(all as u64);
    let rows: Vec<usize> =
        if every { (0..all).collect() } else { (0..ROWS.min(all)).map(|_| random.usize(..all)).collect() };
    let (mut max, mut sum, mut size, mut count, mut skipped) = (0f64, 0f64, 0f64, 0usize, 0usize);
    for &index in &rows {
        let (item, row) = (index / m, index % m);
        let result = c.view().row(item, row).unwrap_or_default();
        for (expected, &got) in reference_row(given, item, row).into_iter().zip(result) {
            let off = (f64::from(got) - expected).abs();
            if !off.is_finite() {
                let same = (expected.is_nan() && got.is_nan()) || f64::from(got) == expected;
                skipped += usize::from(!same);
                continue;
            }
            max = max.max(off);
            sum += off * off;
            size += expected * expected;
            count += 1;
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "a mean")]
    let count = count.max(1) as f64;
    let which =
        if every { format!("all {all} rows") } else { format!("{} random rows of {all}", rows.len()) };
    let mut text = format!(
        "error against float64 on {which}: largest {max:.3e}, RMS {:.3e}, RMS of the result {:.3e}",
        (sum / count).sqrt(),
        (size / count).sqrt()
    );
    if skipped > 0 {
        text += &format!("; {skipped} elements NaN or infinite in one alone, not counted");
    }
    text
}

/// A row of the result in float64, from the operands as read.
fn reference_row(given: &Given<'_>, item: usize, row: usize) -> Vec<f64> {
    let product = given.product;
    let (a, b) = (given.a.view(), given.b.view());
    let of = |view: &AnyView<'_>| if view.layout().batch() == 1 { 0 } else { item };
    let get = |view: &AnyView<'_>, transpose: bool, row: usize, col: usize| {
        let (r, c) = if transpose { (col, row) } else { (row, col) };
        view.get(of(view), r, c).unwrap_or(f64::NAN)
    };
    let mut sums = vec![0f64; product.n()];
    for p in 0..product.k() {
        let x = get(&a, product.transpose_a(), row, p);
        for (col, sum) in sums.iter_mut().enumerate() {
            *sum += x * get(&b, product.transpose_b(), p, col);
        }
    }
    for (col, sum) in sums.iter_mut().enumerate() {
        let bias = given.bias.map_or(0.0, |bias| f64::from(bias.data()[col]));
        *sum = product.activation().apply_f64(*sum + bias);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(m: usize, a: Vec<f32>, c: Vec<f32>) -> String {
        let product = MatMul::new(m, 2, 2).unwrap();
        let a = NpyTensor::F32(Tensor::from_vec(a, m, 2).unwrap());
        let b = NpyTensor::F32(Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], 2, 2).unwrap());
        let given = Given { product: &product, a: &a, b: &b, bias: None };
        error(&given, &Tensor::from_vec(c, m, 2).unwrap())
    }

    #[test]
    fn an_error_is_told_in_figures() {
        let text = told(2, vec![1.0, 2.0, 3.0, 4.0], vec![1.5, 2.0, 3.0, 4.0]);
        assert_eq!(
            text,
            "error against float64 on all 2 rows: largest 5.000e-1, RMS 2.500e-1, RMS of the result 2.739e0"
        );
        assert_eq!(told(0, vec![], vec![]), "error against float64: there are no elements");
    }

    #[test]
    fn elements_that_are_not_finite_in_one_alone_are_counted() {
        let infinite = vec![f32::MAX, f32::MAX, 1.0, 1.0];
        assert!(!told(2, infinite, vec![f32::MAX, f32::MAX, 1.0, 1.0]).contains("not counted"));
        // NaN times 0 is NaN too: both elements of the row.
        let nan = || vec![f32::NAN, 1.0, 1.0, 1.0];
        assert!(!told(2, nan(), vec![f32::NAN, f32::NAN, 1.0, 1.0]).contains("not counted"));
        let text = told(2, nan(), vec![f32::NAN, f32::INFINITY, 1.0, 1.0]);
        assert!(text.ends_with("; 1 elements NaN or infinite in one alone, not counted"), "{text}");
        let text = told(2, vec![1.0; 4], vec![f32::INFINITY, f32::NAN, 1.0, 1.0]);
        assert!(text.ends_with("; 2 elements NaN or infinite in one alone, not counted"), "{text}");
    }

    #[test]
    fn rows_of_a_batch_are_those_of_their_item() {
        let product =
            MatMul::builder(1, 2, 2).batch(2).batch_stride(ane_matmul::Operand::B, 0).build().unwrap();
        let a = NpyTensor::F32(Tensor::from_vec_batched(vec![1.0, 2.0, 3.0, 4.0], 2, 1, 2).unwrap());
        let b = NpyTensor::F32(Tensor::from_vec(vec![1.0, 0.0, 0.0, 2.0], 2, 2).unwrap());
        let given = Given { product: &product, a: &a, b: &b, bias: None };
        assert_eq!([0, 1].map(|item| reference_row(&given, item, 0)), [[1.0, 4.0], [3.0, 8.0]]);
    }
}
