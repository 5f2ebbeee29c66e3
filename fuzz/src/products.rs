//! Descriptions of products from random fields.

use ane_matmul::{
    Activation, AnyView, ElementType, ElementTypes, MatMul, NibbleOrder, Operand, QuantA, QuantB,
    QuantOutput, Quantization, Result, Tensor, Weights,
};
use arbitrary::Arbitrary;
use half::{bf16, f16};

/// A number of elements: often small, sometimes absurd.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Size {
    Small(u8),
    Medium(u16),
    Any(usize),
}

impl Size {
    /// As it is.
    #[must_use]
    pub fn any(self) -> usize {
        match self {
            Self::Small(size) => size.into(),
            Self::Medium(size) => size.into(),
            Self::Any(size) => size,
        }
    }

    /// Small enough to be multiplied.
    #[must_use]
    pub fn bounded(self) -> usize {
        match self {
            Self::Small(size) => usize::from(size) % 40,
            Self::Medium(size) => usize::from(size) % 300,
            Self::Any(size) => size % 3,
        }
    }
}

/// A type of elements, by its place in the list.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Type(pub u8);

impl Type {
    /// Any type.
    #[must_use]
    pub fn any(self) -> ElementType {
        self.of(&ElementType::ALL)
    }

    /// One of some types.
    #[must_use]
    pub fn of(self, types: &[ElementType]) -> ElementType {
        types[usize::from(self.0) % types.len()]
    }
}

/// How operands are quantised.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Scheme {
    pub a: u8,
    pub b: u8,
    pub output: bool,
    pub zero_points: [i32; 3],
    pub group_size: u32,
    pub high_first: bool,
}

impl Scheme {
    /// The scheme, with `zero_point` and `scale` of each operand's; that of B is of weights.
    #[must_use]
    pub fn quantization(
        &self,
        zero_point: impl Fn(usize) -> i32,
        scale: impl Fn(usize) -> f32,
    ) -> Quantization {
        Quantization {
            a: match self.a % 3 {
                0 => QuantA::None,
                1 => QuantA::Static { scale: scale(0), zero_point: zero_point(0) },
                _ => QuantA::DynamicPerRow,
            },
            b: match self.b % 4 {
                0 => QuantB::None,
                1 => QuantB::PerTensor { zero_point: zero_point(1) },
                2 => QuantB::PerColumn { zero_point: zero_point(1) },
                _ => QuantB::PerGroup { group_size: self.group_size, zero_point: zero_point(1) },
            },
            output: if self.output {
                QuantOutput::Static { scale: scale(2), zero_point: zero_point(2) }
            } else {
                QuantOutput::None
            },
            nibble_order: if self.high_first { NibbleOrder::HighFirst } else { NibbleOrder::LowFirst },
        }
    }
}

/// The scheme of a B that comes with every run, where the one of weights has one scale.
#[must_use]
pub fn of_every_run(scheme: QuantB, scale: f32) -> QuantB {
    match scheme {
        QuantB::PerTensor { zero_point } => QuantB::Static { scale, zero_point },
        other => other,
    }
}

/// Weights as `product` describes its B, of the elements of `b`, with `scale` for each scale.
///
/// # Errors
/// As those of [`Weights`].
pub fn weights(product: &MatMul, b: AnyView<'_>, mut scale: impl FnMut() -> f32) -> Result<Weights> {
    let mut weights = Weights::new(b)?;
    if product.transpose_b() {
        weights = weights.transposed()?;
    }
    let scheme = product.quantization().b;
    let (rows, cols) = match scheme {
        QuantB::PerTensor { .. } => (1, 1),
        QuantB::PerColumn { .. } => (1, product.n()),
        QuantB::PerGroup { group_size, .. } => (product.k().div_ceil(group_size as usize), product.n()),
        _ => return Ok(weights),
    };
    let scales = Tensor::from_fn(rows, cols, |_, _| scale())?;
    match product.types().scales {
        ElementType::F16 => {
            let narrow = |x: &f32| f16::from_f32(*x).clamp(f16::MIN_POSITIVE, f16::MAX);
            let data = scales.data().iter().map(narrow).collect();
            weights.with_scales(scheme, &Tensor::from_vec(data, rows, cols)?)
        }
        ElementType::Bf16 => {
            let data = scales.data().iter().map(|x| bf16::from_f32(*x)).collect();
            weights.with_scales(scheme, &Tensor::from_vec(data, rows, cols)?)
        }
        _ => weights.with_scales(scheme, &scales),
    }
}

/// The fields of a description, each of them anything.
#[derive(Debug, Clone, Arbitrary)]
pub struct Fields {
    pub sizes: [Size; 3],
    pub batch: Option<Size>,
    pub leading_dimensions: [Option<Size>; 6],
    pub batch_strides: [Option<Size>; 6],
    pub flags: u8,
    pub types: Option<[Type; 6]>,
    pub scheme: Option<Scheme>,
    pub alpha: Option<f32>,
    pub activation: u8,
}

/// Every operand that strides can be set of, and two that have none.
pub const OPERANDS: [Operand; 6] =
    [Operand::A, Operand::B, Operand::C, Operand::Residual, Operand::Bias, Operand::Scales];

impl Fields {
    /// The description with all that was given.
    ///
    /// # Errors
    /// As [`ane_matmul::MatMulBuilder::build`].
    pub fn describe(&self) -> Result<MatMul> {
        let [m, n, k] = self.sizes.map(Size::any);
        let flag = |bit: u8| self.flags >> bit & 1 != 0;
        let mut builder = MatMul::builder(m, n, k)
            .transpose_a(flag(0))
            .transpose_b(flag(1))
            .variable_m(flag(3))
            .bias(flag(4))
            .residual(flag(5))
            .activation(Activation::ALL[usize::from(self.activation) % Activation::ALL.len()]);
        if let Some(batch) = self.batch {
            builder = builder.batch(batch.any());
        }
        for (index, operand) in OPERANDS.into_iter().enumerate() {
            if let Some(size) = self.leading_dimensions[index] {
                builder = builder.leading_dimension(operand, size.any());
            }
            if let Some(size) = self.batch_strides[index] {
                builder = builder.batch_stride(operand, size.any());
            }
        }
        if let Some([a, b, accumulator, output, bias, scales]) = self.types.map(|types| types.map(Type::any))
        {
            builder = builder.types(ElementTypes { a, b, accumulator, output, bias, scales });
        }
        if let Some(scheme) = self.scheme {
            let scale = if flag(6) { f32::from_bits(scheme.group_size) } else { 1.0 };
            let mut quantization = scheme.quantization(|index| scheme.zero_points[index], |_| scale);
            // Bit 7: the scheme of the other kind of B, which is refused.
            if flag(2) == flag(7) {
                quantization.b = of_every_run(quantization.b, scale);
            }
            builder = builder.quantization(quantization);
        }
        if let Some(alpha) = self.alpha {
            builder = builder.alpha(alpha);
        }
        if flag(2) { Ok(builder.build_constant_b()?.product().clone()) } else { builder.build() }
    }
}
