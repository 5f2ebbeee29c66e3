//! The product that the crate is used for most: rows times known weights.

use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::quantization::Quantization;
use crate::description::with_weights::MatMulWithWeights;
use crate::error::{Error, Result};
use crate::operands::view::IntoView;
use crate::operands::weights::Weights;

/// A dense layer, `y = activation(x W + bias)`: collects its parts, is validated when it is built or compiled.
///
/// W is k x n: k inputs, n outputs. PyTorch stores its transpose, outputs x inputs: [`Weights::transposed`].
/// Where W is square, nothing else tells the two apart.
///
/// ```
/// use ane_matmul::{Activation, BackendId, Linear, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(64, 32, 0.02, 1)?);
/// let bias = vec![0.1f32; 32];
/// let layer = Linear::new(&weights).max_rows(32).bias(&bias).activation(Activation::Gelu).compile(&BackendId::AUTO)?;
///
/// let x = Tensor::random_normal_f32(8, 64, 1.0, 2)?; // up to 32 rows
/// let mut y = Tensor::<f32>::zeros(8, 32)?;
/// layer.run(&x, &mut y)?; // from any thread
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a layer does nothing until it is compiled"]
pub struct Linear {
    weights: Weights,
    max_rows: usize,
    bias: Option<Result<Weights>>,
    activation: Activation,
    types: ElementTypes,
    quantization: Quantization,
}

impl Linear {
    /// A layer of these weights for one row.
    pub fn new(weights: &Weights) -> Self {
        Self {
            weights: weights.clone(),
            max_rows: 1,
            bias: None,
            activation: Activation::default(),
            types: ElementTypes::F32,
            quantization: Quantization::default(),
        }
    }

    /// The most rows of a run; 1 by default. Fewer may be run where it is more than 1.
    pub const fn max_rows(mut self, rows: usize) -> Self {
        self.max_rows = rows;
        self
    }

    /// Adds a bias of n elements to every row; it is copied.
    pub fn bias<'a>(mut self, bias: impl IntoView<'a>) -> Self {
        self.bias = Some(Weights::new(bias));
        self
    }

    /// The function applied last; none by default.
    pub const fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// The element types of x, of the sums and of y; by default f32, and f64 with weights of f64. Weights and bias have
    /// their own.
    pub const fn types(mut self, types: ElementTypes) -> Self {
        self.types = types;
        self
    }

    /// How x and y are quantised; not at all by default. Weights have a scheme of their own.
    pub const fn quantization(mut self, quantization: Quantization) -> Self {
        self.quantization = quantization;
        self
    }

    /// The weights: [`Weights::k`] is the number of inputs, [`Weights::n`] that of outputs.
    #[must_use]
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Validates the layer: what [`crate::Backends::compile`] and [`crate::ProductCache::compile`] take.
    ///
    /// # Errors
    /// [`Error::Description`] for 0 rows; as
    /// [`crate::MatMulBuilder::with_weights`] and [`MatMulWithWeights::with_bias`].
    pub fn build(&self) -> Result<MatMulWithWeights> {
        let weights = &self.weights;
        if self.max_rows == 0 {
            return Err(Error::Description {
                problem: "a layer for 0 rows".into(),
                help: "say the most rows of a run with Linear::max_rows",
            });
        }
        let wide = weights.element_type() == ElementType::F64 && self.types == ElementTypes::F32;
        let product = MatMul::builder(self.max_rows, weights.n(), weights.k())
            .batch(weights.layout().batch())
            .variable_m(self.max_rows > 1)
            .types(if wide { ElementTypes::F64 } else { self.types })
            .quantization(self.quantization)
            .activation(self.activation)
            .with_weights(weights)?;
        match &self.bias {
            None => Ok(product),
            Some(bias) => product.with_bias_handle(bias.clone()?),
        }
    }
}
