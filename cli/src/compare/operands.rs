//! The products that are timed, and random operands of them.

use std::fmt;

use ane_matmul::{AnyView, AnyViewMut, Element, MatMul, MatMulBuilder, Tensor, Weights};
use half::{bf16, f16};

use crate::args::{Precision, Shape};
use crate::failure::Output;

/// Standard deviation of floats: that of the project's origin.
const SIGMA: f64 = 0.02;

/// Standard deviation of integers: three of them fill 8 bits.
const INTEGER_SIGMA: f64 = 42.0;

/// What all products of a comparison have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) precision: Precision,
    pub(crate) constant_b: bool,
    /// Whether operands are also kept on the device.
    pub(crate) resident: bool,
}

impl Kind {
    pub(crate) fn product(self, shape: Shape) -> MatMulBuilder {
        MatMul::builder(shape.m, shape.n, shape.k).types(self.precision.types())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.precision.name())?;
        f.write_str(if self.constant_b { ", B constant" } else { "" })
    }
}

pub(crate) enum Matrix {
    F32(Tensor<f32>),
    F16(Tensor<f16>),
    Bf16(Tensor<bf16>),
    I8(Tensor<i8>),
    F64(Tensor<f64>),
}

impl Matrix {
    #[allow(clippy::cast_possible_truncation, reason = "clamped to the type's range")]
    fn random(precision: Precision, rows: usize, cols: usize, seed: u64) -> Output<Self> {
        let sigma = if precision == Precision::Int8 { INTEGER_SIGMA } else { SIGMA };
        let floats = Tensor::random_normal_f32(rows, cols, sigma, seed)?;
        Ok(match precision {
            Precision::F32 => Self::F32(floats),
            Precision::F16 => Self::F16(rounded(&floats, f16::from_f32_const)?),
            Precision::Bf16 => Self::Bf16(rounded(&floats, bf16::from_f32)?),
            Precision::F64 => Self::F64(Tensor::random_normal(rows, cols, sigma, seed)?),
            Precision::Int8 => Self::I8(rounded(&floats, |x| x.round().clamp(-127.0, 127.0) as i8)?),
        })
    }

    pub(crate) fn view(&self) -> AnyView<'_> {
        match self {
            Self::F32(tensor) => tensor.into(),
            Self::F16(tensor) => tensor.into(),
            Self::Bf16(tensor) => tensor.into(),
            Self::I8(tensor) => tensor.into(),
            Self::F64(tensor) => tensor.into(),
        }
    }

    /// A result of a product, with NaN in it.
    pub(crate) fn result(precision: Precision, shape: Shape) -> Output<Self> {
        let Shape { m, n, .. } = shape;
        Ok(match precision {
            Precision::F64 => Self::F64(Tensor::filled(m, n, f64::NAN)?),
            _ => Self::F32(Tensor::filled(m, n, f32::NAN)?),
        })
    }

    /// To write a result to.
    pub(crate) fn view_mut(&mut self) -> AnyViewMut<'_> {
        match self {
            Self::F32(tensor) => tensor.into(),
            Self::F16(tensor) => tensor.into(),
            Self::Bf16(tensor) => tensor.into(),
            Self::I8(tensor) => tensor.into(),
            Self::F64(tensor) => tensor.into(),
        }
    }

    pub(crate) fn into_weights(self) -> Output<Weights> {
        Ok(match self {
            Self::F32(tensor) => Weights::from_tensor(tensor),
            other => Weights::new(other.view())?,
        })
    }
}

fn rounded<T: Element>(floats: &Tensor<f32>, round: impl Fn(f32) -> T) -> Output<Tensor<T>> {
    let (data, cols) = (floats.data(), floats.view().layout().cols());
    let rows = floats.view().layout().rows();
    Ok(Tensor::from_fn(rows, cols, |row, col| round(data[row * cols + col]))?)
}

/// A and B.
pub(crate) fn random(shape: Shape, precision: Precision) -> Output<(Matrix, Matrix)> {
    let Shape { m, n, k } = shape;
    Ok((Matrix::random(precision, m, k, 1)?, Matrix::random(precision, k, n, 2)?))
}
