//! A product that is computed once.

use crate::backend::BackendId;
use crate::description::element::ElementType;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::quantization::Quantization;
use crate::error::{Error, Operand, Result};
use crate::executor::Inputs;
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, IntoView};

/// The product of two matrices, or of two batches of them, once, on the backend `cpu`.
///
/// `a` is m x k, `b` is k x n; one matrix is shared by all items of the other's batch. Elements are f32, with
/// the feature `half` f16 and bf16 too, or those of i8 and u8 in `a` by i8 in `b`; `b` may be integers of 4 and 8
/// bits with an `a` of floats. Sums and result are f32; of two integers sums are exact, in i32. What runs more than once is compiled: [`MatMul`], [`crate::Linear`].
///
/// ```
/// use ane_matmul::{Tensor, matmul};
///
/// let (a, b) = (Tensor::filled(2, 3, 1f32)?, Tensor::filled(3, 4, 2f32)?);
/// let c = matmul(&a, &b)?;
/// assert_eq!(c.data(), [6.0; 8]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] where the columns of `a` are not the rows of `b`, or their batches differ;
/// [`Error::Type`] for f64, which [`matmul_f64`] multiplies; [`Error::Refused`] for other types;
/// [`Error::Accumulator`] for sums of integers that i32 may not hold;
/// [`Error::OutOfMemory`], [`Error::SizeOverflow`].
pub fn matmul<'a, 'b>(a: impl IntoView<'a>, b: impl IntoView<'b>) -> Result<Tensor<f32>> {
    let (a, b) = (a.into_view()?, b.into_view()?);
    for (operand, view) in [(Operand::A, &a), (Operand::B, &b)] {
        if view.element_type() == ElementType::F64 {
            return Err(Error::Type { operand, expected: ElementType::F32, got: ElementType::F64 });
        }
    }
    let integers = !a.element_type().is_float() && !b.element_type().is_float();
    let types = ElementTypes {
        a: a.element_type(),
        b: b.element_type(),
        accumulator: if integers { ElementType::I32 } else { ElementType::F32 },
        ..ElementTypes::F32
    };
    let (product, inputs) = describe(a, b, types)?;
    product.compile(&BackendId::CPU)?.run_to_tensor(inputs)
}

/// [`matmul`] of f64, computed in float64 throughout.
///
/// ```
/// use ane_matmul::{Tensor, matmul_f64};
///
/// let (a, b) = (Tensor::filled(2, 3, 1.0)?, Tensor::filled(3, 4, 0.1)?);
/// assert_eq!(matmul_f64(&a, &b)?.data(), [0.1 + 0.1 + 0.1; 8]); // f32 has 0.3
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// # Errors
/// [`Error::Type`] for other types than f64; else as [`matmul`].
pub fn matmul_f64<'a, 'b>(a: impl IntoView<'a>, b: impl IntoView<'b>) -> Result<Tensor<f64>> {
    let (a, b) = (a.into_view()?, b.into_view()?);
    for (operand, view) in [(Operand::A, &a), (Operand::B, &b)] {
        if view.element_type() != ElementType::F64 {
            let (expected, got) = (ElementType::F64, view.element_type());
            return Err(Error::Type { operand, expected, got });
        }
    }
    let (product, inputs) = describe(a, b, ElementTypes::F64)?;
    let mut c = Tensor::zeros_of(product.c())?;
    product.compile(&BackendId::CPU)?.run(inputs, &mut c)?;
    Ok(c)
}

/// The product of two matrices or batches of them, where one matrix stands for every item.
fn describe<'v>(a: AnyView<'v>, b: AnyView<'v>, types: ElementTypes) -> Result<(MatMul, Inputs<'v>)> {
    let (of_a, of_b) = (*a.layout(), *b.layout());
    let batch = if of_a.batch() == 1 { of_b.batch() } else { of_a.batch() };
    if of_a.cols() != of_b.rows() || ![1, batch].contains(&of_b.batch()) {
        return Err(Error::Shape {
            operand: Operand::B,
            expected: format!("{} rows, as A has columns, for a batch of {batch}", of_a.cols()),
            got: of_b.to_string(),
            help: "pass factors that fit, or the transpose of one (Tensor::transposed)",
        });
    }
    let mut product = MatMul::builder(of_a.rows(), of_b.cols(), of_a.cols()).batch(batch).types(types);
    let (a, b) = (a.broadcast(batch), b.broadcast(batch));
    for (operand, layout) in [(Operand::A, a.layout()), (Operand::B, b.layout())] {
        product = product
            .leading_dimension(operand, layout.leading_dimension())
            .batch_stride(operand, layout.batch_stride());
    }
    if let AnyView::Int4(view) = &b {
        let nibble_order = view.nibble_order();
        product = product.quantization(Quantization { nibble_order, ..Quantization::default() });
    }
    Ok((product.build()?, Inputs::new(a).b(b)))
}
