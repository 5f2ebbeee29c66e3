//! `multiply --check`.

use ane_matmul::accuracy::{Reference, freivalds};
use ane_matmul::{BackendId, Backends, CompileOptions, Inputs, MatMul, Tensor, TensorView};

use crate::failure::{Failure, Output};
use crate::multiply::Operands;

/// Random vectors for Freivalds' method: a wrong product passes with probability 2^-20 at most.
const ROUNDS: u32 = 20;

/// Rows to recompute where the result is not linear.
const ROWS: usize = 16;

/// Verifies a result; returns what was verified, in words.
pub(crate) fn verify(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    operands: &Operands,
    c: &Tensor<f32>,
) -> Output<String> {
    let product = &operands.product;
    let linear = product.linear_part();
    let inputs = Inputs::new(operands.a()?).b(operands.b()?);
    // Fresh vectors for every run: a fixed seed would always miss the same errors.
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.subsec_nanos().into());
    let rerun;
    let sums = if linear == *product {
        c
    } else {
        let mut sums = Tensor::<f32>::zeros_batched(product.batch(), product.m(), product.n())?;
        backends.compile(id, &linear, None, options)?.executor()?.run(&inputs, &mut sums)?;
        rerun = sums;
        &rerun
    };
    let found = freivalds(&linear, &inputs, None, sums, ROUNDS, seed)?;
    if !found.passed() {
        return Err(Failure::new(format!(
            "check failed: the linear part is wrong in row {} of item {} ({:.3e} times its tolerance); nothing was written; try another backend and report this",
            found.worst.1, found.worst.0, found.worst_ratio
        )));
    }
    let mut text = format!(
        "check passed: linear part, Freivalds' method, {} rounds, failure probability at most {:.2e} for errors above {:.2e}",
        found.rounds, found.failure_probability, found.detectable
    );
    if found.skipped != (0, 0) {
        text += &format!(
            "; not covered: {} rows and {} columns with NaN, infinity or overflow",
            found.skipped.0, found.skipped.1
        );
    }
    if linear != *product {
        let rows = verify_rows(operands, c, seed)?;
        text += &format!("\ncheck passed: {rows} random rows recomputed in float64");
    }
    Ok(text)
}

/// Recomputes random rows of the result; returns how many.
fn verify_rows(operands: &Operands, c: &Tensor<f32>, seed: u64) -> Output<usize> {
    let product = &operands.product;
    let all = product.batch() * product.m();
    if product.n() == 0 {
        return Ok(0);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let single = MatMul::builder(1, product.n(), product.k())
        .transpose_b(product.transpose_b())
        .bias(product.has_bias())
        .activation(product.activation())
        .build()?;
    let (a, b) = (operands.a()?, operands.b()?);
    let count = ROWS.min(all);
    for _ in 0..count {
        let index = random.usize(..all);
        let (item, row) = (index / product.m(), index % product.m());
        let get = |p: usize| if product.transpose_a() { a.get(item, p, row) } else { a.get(item, row, p) };
        let a_row = Tensor::from_fn(1, product.k(), |_, p| get(p).unwrap_or(f32::NAN))?;
        let start = product.b().item_offset(item).min(b.data().len());
        let b_item = TensorView::new(&b.data()[start..], product.b().rows(), product.b().cols())?;
        let mut inputs = Inputs::new(&a_row).b(b_item);
        if let Some(bias) = operands.bias() {
            inputs = inputs.bias(bias);
        }
        let c_row = c.view().row(item, row).unwrap_or_default();
        let deviation = Reference::new(&single, &inputs, None)?.compare(c_row)?;
        if !deviation.is_within_bound() {
            return Err(Failure::new(format!(
                "check failed: row {row} of item {item} is wrong in column {} ({:.3e} times its error bound); nothing was written; try another backend and report this",
                deviation.worst.2, deviation.worst_ratio
            )));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use ane_matmul::Activation;

    use super::*;

    /// What is said of relu(A B) = A B, whose rows all differ, where one of the rows is zero.
    fn verified(m: usize, n: usize, wrong: Option<(usize, usize)>, seed: u64) -> Output<usize> {
        let number = |item: usize, row: usize| f32::from(u8::try_from(10 * item + row + 1).unwrap());
        let builder = MatMul::builder(m, n, 2).batch(2).activation(Activation::Relu);
        let a = Tensor::from_fn_batched(2, m, 2, |item, row, _| number(item, row)).unwrap();
        let b = Tensor::from_fn_batched(2, 2, n, |_, _, _| 1f32).unwrap();
        let c = |item, row, _| if wrong == Some((item, row)) { 0.0 } else { 2.0 * number(item, row) };
        let c = Tensor::from_fn_batched(2, m, n, c).unwrap();
        verify_rows(&Operands::new(builder.build().unwrap(), a, b, None), &c, seed)
    }

    #[test]
    fn rows_of_every_item_are_recomputed() {
        for wrong in [(0, 0), (0, 2), (1, 0), (1, 1)] {
            let said = |seed| match verified(3, 4, Some(wrong), seed) {
                Err(Failure(message)) => Some(message),
                _ => None,
            };
            // Some seed draws that row.
            let message = (0..20).find_map(said).expect("a wrong row");
            assert!(message.contains(&format!("row {} of item {} is wrong", wrong.1, wrong.0)), "{message}");
        }
    }

    #[test]
    fn right_rows_are_counted_up_to_a_limit_and_empty_ones_not_at_all() {
        for (m, n, count) in [(3, 4, 6), (40, 1, ROWS), (0, 4, 0), (3, 0, 0)] {
            assert!(verified(m, n, None, 1).is_ok_and(|verified| verified == count), "{m}x{n}");
        }
    }
}
