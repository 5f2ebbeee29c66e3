//! Products whose B is known.

use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::error::{Error, Operand, Result};
use crate::operands::view::{AnyView, IntoView};
use crate::operands::weights::Weights;

/// What can be compiled: a [`MatMul`], whose B comes with every run, or a [`MatMulWithWeights`].
///
/// It cannot be implemented outside this crate.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CompileOptions, Compiled, Error, MatMul, Product, Tensor, Weights};
///
/// fn on_the_cpu(product: &impl Product) -> Result<Compiled, Error> {
///     Backends::new().compile(&BackendId::CPU, product, &CompileOptions::default())
/// }
/// let product = MatMul::new(2, 4, 3)?;
/// assert!(on_the_cpu(&product)?.weights().is_none());
/// let weights = Weights::from_tensor(Tensor::zeros(3, 4)?);
/// assert_eq!(on_the_cpu(&product.with_weights(&weights)?)?.weights(), Some(&weights));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub trait Product: sealed::Sealed {
    /// The description.
    fn product(&self) -> &MatMul;

    /// B, where it is known.
    fn weights(&self) -> Option<&Weights>;

    /// The bias, where it is known.
    fn bias(&self) -> Option<AnyView<'_>> {
        self.bias_handle().map(Weights::view)
    }

    #[doc(hidden)]
    fn bias_handle(&self) -> Option<&Weights>;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::MatMul {}
    impl Sealed for super::MatMulWithWeights {}
}

impl Product for MatMul {
    fn product(&self) -> &MatMul {
        self
    }

    fn weights(&self) -> Option<&Weights> {
        None
    }

    fn bias_handle(&self) -> Option<&Weights> {
        None
    }
}

impl Product for MatMulWithWeights {
    fn product(&self) -> &MatMul {
        &self.product
    }

    fn weights(&self) -> Option<&Weights> {
        Some(&self.weights)
    }

    fn bias_handle(&self) -> Option<&Weights> {
        self.bias.as_ref()
    }
}

/// A product with a B of its own, and perhaps a bias: runs bring A, and what else is not known.
///
/// Made by [`MatMul::with_weights`], [`crate::MatMulBuilder::with_weights`] and [`crate::Linear::build`].
///
/// ```
/// use ane_matmul::{BackendId, MatMul, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::filled(3, 2, 2f32)?);
/// let product = MatMul::new(1, 2, 3)?.with_weights(&weights)?.with_bias(&[1f32, -1.0])?;
/// let y = product.compile(&BackendId::CPU)?.run_to_tensor(&[1f32, 2.0, 3.0])?;
/// assert_eq!(y.data(), [13.0, 11.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MatMulWithWeights {
    product: MatMul,
    weights: Weights,
    bias: Option<Weights>,
}

impl MatMulWithWeights {
    /// `product` says of B what `weights` are.
    pub(crate) fn new(product: MatMul, weights: &Weights) -> Self {
        Self { product, weights: weights.clone(), bias: None }
    }

    /// The same product with a bias that is added in every run, copied here.
    ///
    /// # Errors
    /// [`Error::Shape`] where it is no row of n elements; [`Error::Description`] for a type that a bias does
    /// not have; [`Error::OutOfMemory`].
    pub fn with_bias<'a>(self, bias: impl IntoView<'a>) -> Result<Self> {
        self.with_bias_handle(Weights::new(bias)?)
    }

    pub(crate) fn with_bias_handle(self, bias: Weights) -> Result<Self> {
        let (got, expected) = (bias.layout(), Layout::row(self.product.n()));
        if !got.addresses_same(&expected) {
            return Err(Error::Shape {
                operand: Operand::Bias,
                expected: expected.to_string(),
                got: got.to_string(),
                help: "pass one number for each of the n columns of B; were the weights meant to be their transpose (Weights::transposed)?",
            });
        }
        let product = self.product.with_bias_of(bias.element_type())?;
        Ok(Self { product, bias: Some(bias), ..self })
    }

    /// The description.
    #[must_use]
    pub const fn product(&self) -> &MatMul {
        &self.product
    }

    /// B.
    #[must_use]
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// The description of a product whose B will be known when it is compiled, before there are weights: to
/// ask about, not to compile.
///
/// ```
/// use ane_matmul::{CompileOptions, MatMul, explain};
///
/// let product = MatMul::builder(32, 3072, 768).build_constant_b()?;
/// let explanation = explain(product.product(), &CompileOptions::default());
/// assert!(explanation.choice.is_some() && explanation.product.constant_b());
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConstantB(pub(super) MatMul);

impl ConstantB {
    /// The description.
    #[must_use]
    pub const fn product(&self) -> &MatMul {
        &self.0
    }

    /// The product with its B: see [`crate::MatMulBuilder::with_weights`].
    ///
    /// # Errors
    /// As [`crate::MatMulBuilder::with_weights`].
    pub fn with_weights(&self, weights: &Weights) -> Result<MatMulWithWeights> {
        self.0.with_weights(weights)
    }
}
