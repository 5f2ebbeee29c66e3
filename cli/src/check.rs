//! `multiply --check`.

use ane_matmul::{
    Activation, AnyView, BackendId, Backends, CompileOptions, ElementType, Inputs, MatMul, ResultChecker,
    SelfCheck, Tensor,
};

use crate::failure::{Failure, Output};
use crate::multiply::Operands;

/// Random vectors for Freivalds' method, or random rows: each lets a fault of half the rows, or one of its
/// row's mean error bound, pass with probability 1/2 at most.
const ROUNDS: u32 = 20;

/// 2^-[`ROUNDS`].
const FAILURE_PROBABILITY: f64 = 1.0 / (1u32 << ROUNDS) as f64;

/// Verifies a result; returns what was verified, in words.
pub(crate) fn verify(
    backends: &Backends,
    id: &BackendId,
    options: &CompileOptions,
    operands: &Operands,
    c: &Tensor<f32>,
) -> Output<String> {
    let product = &operands.product;
    if product.activation() == Activation::None {
        return check(product, &operands.inputs()?, c.into(), "");
    }
    let linear = product.linear_part();
    let inputs = Inputs::new(operands.a()?).b(operands.b()?);
    let mut sums = Tensor::<f32>::zeros_batched(product.batch(), product.m(), product.n())?;
    backends.compile(id, &linear, options)?.run(inputs, &mut sums)?;
    let linear = check(&linear, &inputs, (&sums).into(), "linear part, ")?;
    Ok(format!("{linear}\n{}", check(product, &operands.inputs()?, c.into(), "")?))
}

/// Verifies `c`; `name` is a prefix where it is not the result itself.
pub(crate) fn check(product: &MatMul, inputs: &Inputs<'_>, c: AnyView<'_>, name: &str) -> Output<String> {
    let check = SelfCheck::every_run().failure_probability(FAILURE_PROBABILITY);
    if let Some(element) = ResultChecker::new(product, &check)?.check(inputs, c)? {
        return Err(Failure::new(format!(
            "check failed: {name}{element}; nothing was written; try another backend and report this"
        )));
    }
    let count = product.batch() * product.m();
    // Those of f64 leave Freivalds' method no precision to compare them in.
    if product.activation() != Activation::None || c.element_type() == ElementType::F64 {
        let checked = count.min(ROUNDS as usize);
        return Ok(format!("check passed: {checked} random rows of {count} recomputed in float64"));
    }
    let mut text = format!(
        "check passed: {name}Freivalds' method, {ROUNDS} vectors, failure probability at most {FAILURE_PROBABILITY:.2e} for an error as large as the mean error bound of its row"
    );
    let is_finite = |item, row| (0..product.n()).all(|col| c.get(item, row, col).is_some_and(f64::is_finite));
    let rows = (0..product.batch()).flat_map(|item| (0..product.m()).map(move |row| (item, row)));
    let in_part = rows.filter(|&(item, row)| !is_finite(item, row)).count();
    if in_part > 0 {
        text += &format!("; {in_part} rows of {count} hold NaN or infinity and are verified in part");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of two items of `m` rows, A B = C with an A of ones, of which one element is changed.
    fn verified(m: usize, activation: Activation, wrong: Option<(usize, f32)>) -> Output<String> {
        let product = MatMul::builder(m, 3, 2).batch(2).activation(activation).build().unwrap();
        let a = Tensor::from_fn_batched(2, m, 2, |_, _, _| 1f32).unwrap();
        let b = Tensor::from_fn_batched(2, 2, 3, |item, _, _| f32::from(u8::try_from(item + 1).unwrap()));
        let mut c =
            Tensor::from_fn_batched(2, m, 3, |item, _, _| f32::from(u8::try_from(2 * item + 2).unwrap()))
                .unwrap();
        if let Some((at, x)) = wrong {
            c.data_mut()[at] = x;
        }
        let operands = Operands::new(product, a, b.unwrap(), None);
        verify(&Backends::new(), &BackendId::CPU, &CompileOptions::default(), &operands, &c)
    }

    #[test]
    fn a_wrong_element_is_named() {
        for activation in [Activation::None, Activation::Relu] {
            for x in [5.0, f32::NAN] {
                let Err(Failure(message)) = verified(3, activation, Some((14, x))) else { panic!("passed") };
                assert!(message.contains("row 1, column 2 of item 1 is "), "{message}");
                assert!(message.contains("instead of 4e0"), "{message}");
            }
        }
    }

    #[test]
    fn what_was_verified_is_said() {
        let method = "Freivalds' method, 20 vectors, failure probability at most 9.54e-7 for an error";
        let text = verified(3, Activation::None, None).unwrap();
        assert!(
            text.starts_with(&format!("check passed: {method}")) && text.ends_with("of its row"),
            "{text}"
        );
        for (m, rows) in [(3, "6 random rows of 6"), (40, "20 random rows of 80"), (0, "0 random rows of 0")]
        {
            let text = verified(m, Activation::Relu, None).unwrap();
            assert!(text.starts_with(&format!("check passed: linear part, {method}")), "{text}");
            assert!(text.ends_with(&format!("\ncheck passed: {rows} recomputed in float64")), "{text}");
        }
    }
}
