//! What the CPU backend runs.

use crate::backend::refusal::{Refusal, RefusalReason};
use crate::description::element::ElementType::{self, Bf16, F16, F32, I4, I8, I32, U4, U8};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::description::quantization::{QuantA, QuantB, Quantization};

/// Refuses another device.
pub(super) fn check_device(options: &CompileOptions) -> Result<(), Refusal> {
    if matches!(options.device, Device::Unknown | Device::Cpu) {
        return Ok(());
    }
    let message = format!(
        "runs on the CPU, not on {}; leave the device open or choose another backend",
        options.device
    );
    Err(Refusal::new(RefusalReason::Device, message))
}

/// Refuses what no algorithm computes.
pub(super) fn supports(product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
    check_device(options)?;
    let types = product.types();
    let quantization = product.quantization();
    let refuse = |reason, message: String| Err(Refusal::new(reason, message));
    let float = |element| matches!(element, F32 | F16 | Bf16);
    let quantized = (Quantization { nibble_order: quantization.nibble_order, ..Quantization::default() })
        != *quantization;
    let whole = |element| matches!(element, I8 | U8 | I4 | U4);
    let operands = match (types.a, types.b, types.accumulator) {
        _ if product.is_f64() => return Ok(()),
        (a, b, F32) => float(a) && (float(b) || whole(b)),
        (I8 | U8, I8, I32) => true,
        (a, I8, I32) => float(a) && quantization.a == QuantA::DynamicPerRow,
        _ => false,
    };
    if !operands {
        return refuse(
            RefusalReason::ElementType,
            format!(
                "does not run {} x {} summed in {}; it runs f32, f16 and bf16 by each other or by 8 and 4-bit integers summed in f32, and i8 or u8 (or a float A quantised per row) by i8 summed in i32, and f64 where A, B, sums, C, bias and residual are f64",
                types.a, types.b, types.accumulator
            ),
        );
    }
    let output = match types.output {
        I32 => {
            types.accumulator == I32
                && !quantized
                && *product == product.linear_part()
                && product.alpha() == 1.0
        }
        output => float(output) || matches!(output, I8 | U8),
    };
    if !output {
        return refuse(
            RefusalReason::ElementType,
            format!(
                "does not write {}; it writes f32, f16, bf16, i8 and u8, and i32 for sums of integers without scales, alpha, bias, residual and activation",
                types.output
            ),
        );
    }
    for (used, element, what) in
        [(product.has_bias(), types.bias, "a bias"), (quantized, types.scales, "scales")]
    {
        if used && !float(element) {
            return refuse(
                RefusalReason::ElementType,
                format!("does not take {what} of type {element}; use f32, f16 or bf16"),
            );
        }
    }
    if !cfg!(feature = "half") && uses_half(product, quantized) {
        return refuse(RefusalReason::NotBuilt, "f16 and bf16 need the feature `half`".into());
    }
    let scheme = match (types.accumulator, quantization.a, quantization.b) {
        (I32, _, QuantB::PerGroup { .. }) => Some(
            "groups of B along k whose products are summed as integers; sum in f32 or use a scale per column",
        ),
        (F32, QuantA::DynamicPerRow, _) => {
            Some("an A that is quantised per row and summed in f32; sum in i32")
        }
        _ => None,
    };
    if let Some(scheme) = scheme {
        return refuse(RefusalReason::Quantization, format!("does not run {scheme}"));
    }
    Ok(())
}

fn uses_half(product: &MatMul, quantized: bool) -> bool {
    let types = product.types();
    let half = |element: ElementType| matches!(element, F16 | Bf16);
    [types.a, types.b, types.output].into_iter().any(half)
        || (product.has_bias() && half(types.bias))
        || (quantized && half(types.scales))
}
