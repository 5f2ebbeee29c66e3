//! The scales of a compiled product, checked against its description.

use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;
use crate::description::quantization::{QuantA, QuantB, QuantOutput};
use crate::error::{Error, Operand, Result};
use crate::operands::view::AnyView;

/// The scales that come with the options; 1 where the description has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scales {
    pub a: f32,
    /// Of a dynamic B.
    pub b: f32,
    pub c: f32,
}

impl Scales {
    /// The scales of `options` that `product` asks for, rounded to the description's type of scales.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unexpected`], [`Error::Scale`], [`Error::Description`].
    pub(crate) fn resolve(product: &MatMul, options: &CompileOptions) -> Result<Self> {
        let quantization = product.quantization();
        let element = product.types().scales;
        let static_a = matches!(quantization.a, QuantA::Static { .. });
        let static_c = matches!(quantization.output, QuantOutput::Static { .. });
        let per_run_b = match quantization.b {
            _ if product.constant_b() => false,
            QuantB::None => false,
            QuantB::PerTensor { .. } => true,
            QuantB::PerColumn { .. } | QuantB::PerGroup { .. } => {
                return Err(Error::Description {
                    problem: "a dynamic B has scales per column or group".into(),
                    help: "describe it with one scale (QuantB::PerTensor), or make B constant",
                });
            }
        };
        Ok(Self {
            a: one(
                static_a,
                options.scale_a,
                element,
                [
                    "A has a static scale: pass it with CompileOptions::scale_a",
                    "describe the product with QuantA::Static to scale A",
                ],
            )?,
            b: one(
                per_run_b,
                options.scale_b,
                element,
                [
                    "B is quantised and dynamic: pass its scale with CompileOptions::scale_b",
                    "scale_b is for a quantised dynamic B, one that comes with every run; a constant B brings its scales in its Weights",
                ],
            )?,
            c: one(
                static_c,
                options.scale_c,
                element,
                [
                    "C has a static scale: pass it with CompileOptions::scale_c",
                    "describe the product with QuantOutput::Static to scale C",
                ],
            )?,
        })
    }
}

impl CompileOptions {
    /// The same options with the scales that `product` asks for.
    pub(crate) fn with_scales(mut self, product: &MatMul, scales: Scales) -> Self {
        let quantization = product.quantization();
        let wanted = |wanted: bool, scale| wanted.then_some(scale);
        self.scale_a = wanted(matches!(quantization.a, QuantA::Static { .. }), scales.a);
        self.scale_b = wanted(!product.constant_b() && quantization.b != QuantB::None, scales.b);
        self.scale_c = wanted(matches!(quantization.output, QuantOutput::Static { .. }), scales.c);
        self
    }
}

fn one(
    wanted: bool,
    scale: Option<f32>,
    element: ElementType,
    [missing, unexpected]: [&'static str; 2],
) -> Result<f32> {
    match (wanted, scale) {
        (false, None) => Ok(1.0),
        (true, None) => Err(Error::Missing { operand: Operand::Scales, help: missing }),
        (false, Some(_)) => Err(Error::Unexpected { operand: Operand::Scales, help: unexpected }),
        (true, Some(scale)) => {
            let rounded = round_to(scale, element)?;
            if is_scale(rounded) {
                Ok(rounded)
            } else {
                Err(Error::Scale { index: 0, value: scale, element })
            }
        }
    }
}

pub(crate) fn is_scale(scale: f32) -> bool {
    scale.is_finite() && scale > 0.0
}

/// A scale, rounded to the nearest of its type, ties to even.
pub(crate) fn round_to(scale: f32, element: ElementType) -> Result<f32> {
    match element {
        ElementType::F32 => Ok(scale),
        #[cfg(feature = "half")]
        ElementType::F16 => Ok(crate::operands::float16::to_f32(crate::operands::float16::from_f32(scale))),
        #[cfg(feature = "half")]
        ElementType::Bf16 => Ok(half::bf16::from_f32(scale).to_f32()),
        _ => Err(Error::Description {
            problem: format!("scales of type {element}"),
            help: "use f32, or f16 and bf16 with the feature `half`",
        }),
    }
}

/// The number of scales in a matrix, as rows and columns; `None` where B has no scales.
pub(crate) fn shape_of_b(scheme: QuantB, n: usize, k: usize) -> Option<(usize, usize)> {
    match scheme {
        QuantB::None => None,
        QuantB::PerTensor { .. } => Some((1, 1)),
        QuantB::PerColumn { .. } => Some((1, n)),
        QuantB::PerGroup { group_size, .. } => Some((k.div_ceil(group_size.max(1) as usize), n)),
    }
}

/// Checks the scales that came with a constant B: shape and type; their values were checked when they
/// were given.
pub(crate) fn check_b(product: &MatMul, scales: Option<AnyView<'_>>) -> Result<()> {
    match (shape_of_b(product.quantization().b, product.n(), product.k()), scales) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Error::Unexpected {
            operand: Operand::Scales,
            help: "describe the product with a Quantization whose b is not None to scale B",
        }),
        (Some(_), None) => Err(Error::Missing {
            operand: Operand::Scales,
            help: "B is quantised: add its scales with Weights::with_scales",
        }),
        (Some((rows, cols)), Some(scales)) => {
            let (layout, element) = (scales.layout(), product.types().scales);
            if scales.element_type() != element {
                return Err(Error::Type {
                    operand: Operand::Scales,
                    expected: element,
                    got: scales.element_type(),
                });
            }
            let items = product.b().batch();
            if (layout.rows(), layout.cols()) != (rows, cols) || ![1, items].contains(&layout.batch()) {
                let batch = if items == 1 { 1 } else { layout.batch().clamp(1, items) };
                return Err(Error::Shape {
                    operand: Operand::Scales,
                    expected: Layout::packed(batch, rows, cols)?.to_string(),
                    got: layout.to_string(),
                });
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::matmul::ElementTypes;
    use crate::description::quantization::Quantization;

    #[test]
    fn options_get_the_scales_that_a_product_asks_for() {
        let scales = Scales { a: 0.5, b: 0.25, c: 2.0 };
        let of = |quantization: Quantization, output, constant_b| {
            let types = ElementTypes { output, ..ElementTypes::INT8 };
            let product = MatMul::builder(1, 2, 3)
                .types(types)
                .quantization(quantization)
                .constant_b(constant_b)
                .build()
                .unwrap();
            let options = CompileOptions { allow_known_faults: true, ..CompileOptions::default() };
            let options = options.scale_a(7.0).scale_b(7.0).scale_c(7.0).with_scales(&product, scales);
            assert!(options.allow_known_faults);
            [options.scale_a, options.scale_b, options.scale_c]
        };
        let a = QuantA::Static { zero_point: 0 };
        let all = Quantization {
            a,
            b: QuantB::PerTensor { zero_point: 0 },
            output: QuantOutput::Static { zero_point: 0 },
            ..Quantization::default()
        };
        assert_eq!(of(all, ElementType::I8, false), [Some(0.5), Some(0.25), Some(2.0)]);
        assert_eq!(of(all, ElementType::I8, true), [Some(0.5), None, Some(2.0)]);
        let of_a = Quantization { a, ..Quantization::default() };
        assert_eq!(of(of_a, ElementType::F32, false), [Some(0.5), None, None]);
    }
}
