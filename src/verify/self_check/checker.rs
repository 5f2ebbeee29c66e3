//! Verifying one result.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use crate::Activation;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;
use crate::description::quantization::Quantization;
use crate::description::with_weights::Product;
use crate::error::{Error, Operand, Result};
use crate::executor::{self, Inputs, IntoInputs};
use crate::operands::view::{AnyView, IntoView};
use crate::operands::weights::Weights;
use crate::random::Random;
use crate::verify::accuracy::Bounds;
use crate::verify::self_check::freivalds::{Freivalds, Operands, Projections};
use crate::verify::self_check::linear::Linear;
use crate::verify::self_check::quantized::{self, Quantized};
use crate::verify::self_check::reals::Reals;
use crate::verify::self_check::rows::Row;
use crate::verify::self_check::{SelfCheck, WrongElement};

/// Verifies results of one product, wherever they come from.
///
/// A product **without an activation** (alpha, bias and residual may be there) is verified by
/// Freivalds' method (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977):
/// C r is compared with alpha A (B r) + bias r + residual r for random vectors r, in one pass over
/// each operand. The row whose residue is the largest multiple of the row's mean error bound, where
/// that is more than 1/2, is recomputed in float64 and held to its error bounds element by element. So
/// a correct result never fails, whatever is drawn, and a failure names a wrong element.
///
/// What is found: the numbers of r lie in [0.5, 1) and have random signs. Flipping the sign that
/// meets an element changes the row's residue by the element's error at least, so each vector shows an
/// error of the row's mean bound with probability 1/2 at least, whatever else is wrong; 2
/// vectors (the fewest) miss it with probability 1/4 at most, `p` needs log2(1 / p), rounded up to an
/// even number. That holds for adversarial faults. A single wrong element is seen by every vector,
/// and faults that do not know r cancel with a probability near 0. Where sound rounding errors are
/// larger than the mean bound (short sums, wide rows, f16 and bf16 results), an error must stand out
/// of the largest of them to be found.
///
/// A product of **integers**, or with integer weights, is verified by the same method in float64, where
/// sums of integers are exact, if its output is floating-point or the sums themselves
/// (`docs/quantization.md` has the arithmetic).
///
/// A product **with an activation**, or with a quantised output, is verified by recomputing random rows
/// in float64, element by element: if a share f of the rows is wrong, s rows miss that with probability (1 - f)^s.
///
/// NaN and infinity must be where they belong. A row of A or of the residual that holds one is
/// outside Freivalds' method, and one such row, drawn at random, is recomputed. So is one row of those
/// where C alone holds one, be it wrong or the end of C's range. Columns of B that hold one are outside
/// too, and the rows are then verified without them, in float64, at about the cost of the product.
///
/// ```
/// use ane_matmul::{Inputs, MatMul, ResultChecker, SelfCheck, Tensor};
///
/// let product = MatMul::new(2, 2, 2)?;
/// let (a, b) = (Tensor::filled(2, 2, 1f32)?, Tensor::filled(2, 2, 3f32)?);
/// let mut checker = ResultChecker::new(&product, &SelfCheck::every_run())?;
/// let inputs = Inputs::new(&a).b(&b);
/// assert_eq!(checker.check(&inputs, &Tensor::filled(2, 2, 6f32)?)?, None);
/// let wrong = Tensor::from_vec(vec![6f32, 6.0, 6.0, 7.0], 2, 2)?;
/// let found = checker.check(&inputs, &wrong)?.expect("a wrong element");
/// assert_eq!((found.row, found.col, found.expected, found.got), (1, 1, 6.0, 7.0));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct ResultChecker {
    prepared: Arc<Prepared>,
    state: State,
    row: Row,
    random: Random,
    /// Where it is known.
    bias: Option<Weights>,
}

/// What the checkers of a compiled product share.
#[derive(Debug)]
pub(crate) struct Prepared {
    reals: Reals,
    bounds: Bounds,
    method: Method,
}

#[derive(Debug)]
enum Method {
    Linear(Arc<Projections<Linear>>),
    /// In float64, with what integers stand for.
    Quantized(Arc<Projections<Quantized>>),
    /// As many random rows.
    Rows(usize),
}

/// What a method needs for one executor.
#[derive(Debug)]
enum State {
    Linear(Box<Freivalds<Linear>>),
    Quantized(Box<Freivalds<Quantized>>),
    Rows(usize),
}

/// Numbers that nobody chose: the keys of the standard library's hash maps.
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

impl Prepared {
    pub(super) fn reals(&self) -> &Reals {
        &self.reals
    }

    /// # Errors
    /// [`Error::Description`] where the options have no error bound to be held to;
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(
        product: &MatMul,
        weights: Option<&Weights>,
        check: &SelfCheck,
        options: &CompileOptions,
    ) -> Result<Self> {
        check.validate()?;
        let problem = |problem: String, help| Err(Error::Description { problem, help });
        let reals = Reals::new(product, weights);
        if options.fast_math {
            return problem(
                "a self-check with fast math, which has no error bound".into(),
                "turn one of them off",
            );
        }
        let bounds = Bounds::with_precision(product, options.reduced_precision);
        let types = product.types();
        let used = [types.a, types.b, types.accumulator, types.output];
        let floats = used.iter().all(|t| t.is_float()) && *product.quantization() == Quantization::default();
        let b = weights.map(|weights| weights.view_for(product));
        let (vectors, mut random) = (check.vectors(), Random::new(seed()));
        let method = if used.contains(&ElementType::F64) {
            Method::Rows(check.rows())
        } else if floats && product.activation() == Activation::None {
            Method::Linear(Arc::new(Projections::new(&reals, b, vectors, &mut random)?))
        } else if !floats && quantized::is_linear(&reals, &bounds) {
            Method::Quantized(Arc::new(Projections::new(&reals, b, vectors, &mut random)?))
        } else {
            Method::Rows(check.rows())
        };
        Ok(Self { reals, bounds, method })
    }
}

impl ResultChecker {
    /// Prepares to verify results of `product`. Everything that checks need is allocated here. Of `check`
    /// only the probabilities are used.
    ///
    /// # Errors
    /// [`Error::Description`] for probabilities out of range; [`Error::Missing`] for the description alone of a
    /// product whose B is known; [`Error::OutOfMemory`].
    pub fn new(product: &(impl Product + ?Sized), check: &SelfCheck) -> Result<Self> {
        Self::with_options(product, check, &CompileOptions::default())
    }

    /// [`ResultChecker::new`] for what was compiled with `options`: `reduced_precision` widens the error
    /// bound.
    ///
    /// # Errors
    /// As [`ResultChecker::new`]; [`Error::Description`] with `fast_math`, which has no error bound.
    pub fn with_options(
        product: &(impl Product + ?Sized),
        check: &SelfCheck,
        options: &CompileOptions,
    ) -> Result<Self> {
        if product.product().constant_b() && product.weights().is_none() {
            return Err(Error::Missing {
                operand: Operand::B,
                help: "the description says that B is known: check what MatMul::with_weights makes of it",
            });
        }
        let checker = Self::of_parts(product.product(), product.weights(), check, options)?;
        Ok(Self { bias: product.bias_handle().cloned(), ..checker })
    }

    /// `weights` are what `product` says of B.
    pub(crate) fn of_parts(
        product: &MatMul,
        weights: Option<&Weights>,
        check: &SelfCheck,
        options: &CompileOptions,
    ) -> Result<Self> {
        Self::from_prepared(Arc::new(Prepared::new(product, weights, check, options)?))
    }

    pub(crate) fn from_prepared(prepared: Arc<Prepared>) -> Result<Self> {
        let Prepared { reals: Reals { product, .. }, method, .. } = &*prepared;
        let state = match method {
            Method::Linear(projections) => {
                State::Linear(Box::new(Freivalds::new(product, Arc::clone(projections))?))
            }
            Method::Quantized(projections) => {
                State::Quantized(Box::new(Freivalds::new(product, Arc::clone(projections))?))
            }
            Method::Rows(count) => State::Rows(*count),
        };
        Ok(Self { row: Row::new(product)?, state, random: Random::new(seed()), bias: None, prepared })
    }

    /// Verifies `c` as the result of a run with `inputs`: the wrong element that was found, if any.
    /// Allocates nothing.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unexpected`], [`Error::Rows`], [`Error::Shape`] and
    /// [`Error::Type`] when an operand does not fit the product, [`Error::Memory`] when one lies on a device.
    pub fn check<'i, 'c>(
        &mut self,
        inputs: impl IntoInputs<'i>,
        c: impl IntoView<'c>,
    ) -> Result<Option<WrongElement>> {
        let c = c.into_view()?;
        c.check_on_host("C")?;
        inputs.with_inputs(|inputs| {
            inputs.check_on_host()?;
            let product = &self.prepared.reals.product;
            executor::check(product, self.bias.as_ref(), inputs, c.layout())?;
            executor::check_types(product, inputs, c.element_type())?;
            match self.bias.clone() {
                Some(bias) => self.check_fitting(&inputs.bias(bias.view()), c),
                None => self.check_fitting(inputs, c),
            }
        })
    }

    /// [`ResultChecker::check`] of operands that are known to fit.
    pub(crate) fn check_fitting(
        &mut self,
        inputs: &Inputs<'_>,
        c: AnyView<'_>,
    ) -> Result<Option<WrongElement>> {
        let Self { prepared, state, row, random, bias: _ } = self;
        let Prepared { reals, bounds, .. } = &**prepared;
        let b =
            reals.b(inputs).ok_or(Error::Missing { operand: Operand::B, help: "pass it with Inputs::b" })?;
        if c.layout().is_empty() {
            return Ok(None);
        }
        let mut recompute = |at| {
            row.compute(reals, bounds, inputs, b, at);
            row.compare(bounds, c, at)
        };
        let operands = Operands { reals, bounds, inputs, b, c };
        let suspects = match state {
            State::Linear(freivalds) => freivalds.suspects(&operands, random),
            State::Quantized(freivalds) => freivalds.suspects(&operands, random),
            State::Rows(count) => {
                let all = c.layout().batch() * c.layout().rows();
                let draw = |index: usize| if *count >= all { index } else { random.below(all) };
                let mut rows = (0..(*count).min(all)).map(draw);
                return Ok(
                    rows.find_map(|index| recompute((index / c.layout().rows(), index % c.layout().rows())))
                );
            }
        };
        Ok(suspects.rows().find_map(recompute))
    }

    /// Writes the float64 result, rounded to C's type, into `c`.
    pub(crate) fn recompute_all(&mut self, inputs: &Inputs<'_>, c: &mut crate::AnyViewMut<'_>) {
        let Prepared { reals, bounds, .. } = &*self.prepared;
        let Some(b) = reals.b(inputs) else { return };
        let layout = *c.layout();
        for (item, row, span) in layout.row_spans() {
            c.write_row(span, self.row.compute(reals, bounds, inputs, b, (item, row)));
        }
    }
}
