//! Random operands of any product of floats.

use half::{bf16, f16};

use crate::description::element::{Element, ElementType};
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::error::{Error, Result};
use crate::executor::Inputs;
use crate::operands::float16;
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::random::Random;

/// Standard deviation of the elements: that of the project's origin.
pub(super) const SIGMA: f64 = 0.02;

/// An operand with its memory.
pub(super) enum Matrix {
    F32(Vec<f32>, Layout),
    F16(Vec<f16>, Layout),
    Bf16(Vec<bf16>, Layout),
}

impl Matrix {
    fn random(element: ElementType, layout: Layout, seed: u64) -> Result<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let matrix = match element {
            ElementType::F32 => Self::F32(fill(&layout, seed, |x| x as f32)?, layout),
            ElementType::F16 => Self::F16(fill(&layout, seed, float16::from_f64)?, layout),
            ElementType::Bf16 => Self::Bf16(fill(&layout, seed, bf16::from_f64)?, layout),
            other => {
                return Err(Error::Description {
                    problem: format!("operands of type {other} cannot be made up"),
                    help: "verify a product of f32, f16 or bf16",
                });
            }
        };
        Ok(matrix)
    }

    pub(super) fn view(&self) -> Result<AnyView<'_>> {
        Ok(match self {
            Self::F32(data, layout) => TensorView::with_layout(data, *layout)?.erased(),
            Self::F16(data, layout) => TensorView::with_layout(data, *layout)?.erased(),
            Self::Bf16(data, layout) => TensorView::with_layout(data, *layout)?.erased(),
        })
    }

    /// Sets every element to NaN.
    pub(super) fn spoil(&mut self) {
        match self {
            Self::F32(data, _) => data.fill(f32::NAN),
            Self::F16(data, _) => data.fill(f16::NAN),
            Self::Bf16(data, _) => data.fill(bf16::NAN),
        }
    }

    pub(super) fn view_mut(&mut self) -> Result<AnyViewMut<'_>> {
        Ok(match self {
            Self::F32(data, layout) => TensorViewMut::with_layout(data, *layout)?.erased(),
            Self::F16(data, layout) => TensorViewMut::with_layout(data, *layout)?.erased(),
            Self::Bf16(data, layout) => TensorViewMut::with_layout(data, *layout)?.erased(),
        })
    }
}

/// Random elements.
fn fill<T: Element>(layout: &Layout, seed: u64, round: impl Fn(f64) -> T) -> Result<Vec<T>> {
    let mut random = Random::new(seed);
    let mut data = Vec::new();
    data.try_reserve_exact(layout.span()).map_err(|_| Error::OutOfMemory {
        what: "an operand",
        bytes: layout.span().saturating_mul(size_of::<T>()),
    })?;
    data.resize_with(layout.span(), || round(SIGMA * random.normal()));
    Ok(data)
}

/// All operands of a product.
pub(super) struct Operands {
    a: Matrix,
    b: Option<Matrix>,
    bias: Option<Matrix>,
    residual: Option<Matrix>,
    pub(super) weights: Option<Weights>,
    pub(super) c: Matrix,
}

impl Operands {
    pub(super) fn random(product: &MatMul) -> Result<Self> {
        let types = product.types();
        let b = Matrix::random(types.b, *product.b(), 2)?;
        let (b, weights) =
            if product.constant_b() { (None, Some(Weights::new(b.view()?)?)) } else { (Some(b), None) };
        let bias = product.has_bias().then(|| Matrix::random(types.bias, Layout::row(product.n()), 3));
        Ok(Self {
            a: Matrix::random(types.a, *product.a(), 1)?,
            b,
            bias: bias.transpose()?,
            residual: product
                .residual()
                .map(|layout| Matrix::random(types.output, *layout, 4))
                .transpose()?,
            weights,
            c: Matrix::random(types.output, *product.c(), 5)?,
        })
    }

    /// The operands that are read, and C.
    pub(super) fn parts(&mut self) -> Result<(Inputs<'_>, &mut Matrix)> {
        let mut inputs = Inputs::new(self.a.view()?);
        if let Some(b) = &self.b {
            inputs = inputs.b(b.view()?);
        }
        if let Some(bias) = &self.bias {
            inputs = inputs.bias(bias.view()?);
        }
        if let Some(residual) = &self.residual {
            inputs = inputs.residual(residual.view()?);
        }
        Ok((inputs, &mut self.c))
    }
}
