//! Whether a result is right, before it is timed.

use ane_matmul::accuracy::Reference;
use ane_matmul::{AnyView, ElementType, Inputs, Product, ResultChecker, SelfCheck};

use crate::failure::Output;

/// Multiplications up to which every element is compared with a float64 product, which takes as many in
/// float64 four times over: those of 512^3.
pub(crate) const WHOLE: usize = 1 << 27;

/// How likely random projections miss an error as large as its row's mean bound, at most: ten vectors, in five
/// passes over each operand.
pub(crate) const FAILURE_PROBABILITY: f64 = 1.0 / 1024.0;

/// How a result was checked and found right, and what that measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Check {
    /// Every element against the float64 product.
    Reference {
        max_abs_error: f64,
        /// The largest of all elements.
        error_bound: f64,
        /// The largest ratio of an error to its bound.
        worst_ratio: f64,
    },
    /// Against A (B r) for random r, which measures no error.
    Projections,
}

impl Check {
    /// The name in tables and JSON.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Reference { .. } => "reference",
            Self::Projections => "projections",
        }
    }
}

/// Checks results of one product.
pub(crate) enum Checker {
    Reference(Reference),
    Projections(Box<ResultChecker>),
}

impl Checker {
    /// With the float64 product where it has at most `whole` multiplications, else by projections.
    pub(crate) fn new(product: &impl Product, inputs: &Inputs<'_>, whole: usize) -> Output<Self> {
        let size = product.product();
        // Projections in float64 have no precision left for f64.
        let wide = size.types().accumulator == ElementType::F64;
        if wide || size.m().saturating_mul(size.n()).saturating_mul(size.k()) <= whole {
            return Ok(Self::Reference(Reference::new(product, inputs)?));
        }
        let check = SelfCheck::every_run().failure_probability(FAILURE_PROBABILITY);
        Ok(Self::Projections(Box::new(ResultChecker::new(product, &check)?)))
    }

    /// How a result was found right, or what is wrong with it.
    pub(crate) fn check(&mut self, inputs: &Inputs<'_>, c: AnyView<'_>) -> Output<Result<Check, String>> {
        Ok(match self {
            Self::Reference(reference) => {
                let deviation = reference.compare(c)?;
                if deviation.is_within_bound() {
                    Ok(Check::Reference {
                        max_abs_error: deviation.max_abs_error,
                        error_bound: reference.bounds().iter().copied().fold(0.0, f64::max),
                        worst_ratio: deviation.worst_ratio,
                    })
                } else {
                    Err(format!(
                        "{} elements beyond their error bound, the worst by {:.3e} times",
                        deviation.violations, deviation.worst_ratio
                    ))
                }
            }
            Self::Projections(checker) => match checker.check(inputs, c)? {
                None => Ok(Check::Projections),
                Some(element) => Err(element.to_string()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use ane_matmul::{Element, Tensor};

    use super::*;
    use crate::args::Precision;
    use crate::compare::operands::{Kind, random};

    fn a_wrong_result_is_found<T: Element + From<f32>>(product: &impl Product, inputs: &Inputs<'_>) {
        let name = product.product();
        let options = ane_matmul::CompileOptions::default();
        let compiled =
            ane_matmul::Backends::new().compile(&ane_matmul::BackendId::CPU, product, &options).unwrap();
        let mut right = Tensor::<T>::zeros(40, 30).unwrap();
        compiled.run(inputs, &mut right).unwrap();
        for (whole, method) in [(40 * 30 * 20, "reference"), (40 * 30 * 20 - 1, "projections")] {
            let mut checker = Checker::new(product, inputs, whole).unwrap();
            let check = checker.check(inputs, (&right).into()).unwrap().unwrap();
            let method = if T::TYPE == ElementType::F64 { "reference" } else { method };
            assert_eq!(check.name(), method, "{name}");
            let mut wrong = right.clone();
            wrong.data_mut()[777] = T::from(if wrong.data()[777].to_f64() > 0.0 { -0.01 } else { 0.01 });
            let problem = checker.check(inputs, (&wrong).into()).unwrap().unwrap_err();
            let part = if method == "projections" { "row 25, column 27" } else { "1 elements beyond" };
            assert!(problem.contains(part), "{name}: {problem}");
        }
    }

    #[test]
    fn a_wrong_result_of_any_type_is_found_by_either_check() {
        for precision in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Int8, Precision::F64] {
            let shape = "40x30x20".parse().unwrap();
            let (a, b) = random(shape, precision).unwrap();
            let product = Kind { precision, constant_b: false, resident: false }.product(shape);
            let inputs = Inputs::new(a.view());
            let dynamic = product.clone().build().unwrap();
            if precision == Precision::F64 {
                a_wrong_result_is_found::<f64>(&dynamic, &inputs.b(b.view()));
            } else {
                a_wrong_result_is_found::<f32>(&dynamic, &inputs.b(b.view()));
            }
            let constant = product.with_weights(&b.into_weights().unwrap()).unwrap();
            if precision == Precision::F64 {
                a_wrong_result_is_found::<f64>(&constant, &inputs);
            } else {
                a_wrong_result_is_found::<f32>(&constant, &inputs);
            }
        }
    }
}
