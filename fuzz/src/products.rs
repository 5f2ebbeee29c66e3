//! Descriptions of products from random fields.

use ane_matmul::{
    Activation, ElementType, ElementTypes, MatMul, MatMulBuilder, NibbleOrder, Operand, QuantA, QuantB,
    QuantOutput, Quantization,
};
use arbitrary::Arbitrary;

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
    /// The scheme, with `zero_point` of each operand's.
    #[must_use]
    pub fn quantization(&self, zero_point: impl Fn(usize) -> i32) -> Quantization {
        Quantization {
            a: match self.a % 3 {
                0 => QuantA::None,
                1 => QuantA::Static { zero_point: zero_point(0) },
                _ => QuantA::DynamicPerRow,
            },
            b: match self.b % 4 {
                0 => QuantB::None,
                1 => QuantB::PerTensor { zero_point: zero_point(1) },
                2 => QuantB::PerColumn { zero_point: zero_point(1) },
                _ => QuantB::PerGroup { group_size: self.group_size, zero_point: zero_point(1) },
            },
            output: if self.output {
                QuantOutput::Static { zero_point: zero_point(2) }
            } else {
                QuantOutput::None
            },
            nibble_order: if self.high_first { NibbleOrder::HighFirst } else { NibbleOrder::LowFirst },
        }
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
    /// A builder with all that was given.
    pub fn builder(&self) -> MatMulBuilder {
        let [m, n, k] = self.sizes.map(Size::any);
        let flag = |bit: u8| self.flags >> bit & 1 != 0;
        let mut builder = MatMul::builder(m, n, k)
            .transpose_a(flag(0))
            .transpose_b(flag(1))
            .constant_b(flag(2))
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
            builder = builder.quantization(scheme.quantization(|index| scheme.zero_points[index]));
        }
        if let Some(alpha) = self.alpha {
            builder = builder.alpha(alpha);
        }
        builder
    }
}
