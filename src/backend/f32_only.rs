//! What the backends that run f32 alone have in common.

use crate::backend::refusal::{Refusal, RefusalReason};
use crate::backend::{BackendId, RunArgs};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, NativeError, NativeStatus, Result};
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};

/// Refuses everything but f32 on the CPU.
pub(crate) fn supports(product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
    let types = product.types();
    if !product.has_f32_types() {
        return Err(Refusal::new(
            RefusalReason::ElementType,
            format!(
                "runs f32 only, not {} x {} summed in {} to {}; convert the operands to f32",
                types.a, types.b, types.accumulator, types.output
            ),
        ));
    }
    if !product.is_f32() {
        return Err(Refusal::new(
            RefusalReason::Quantization,
            "does not run quantised operands; dequantise them",
        ));
    }
    match options.device {
        Device::Unknown | Device::Cpu => Ok(()),
        device => Err(Refusal::new(
            RefusalReason::Device,
            format!("runs on the CPU, not on {device}; leave the device open or choose another backend"),
        )),
    }
}

pub(crate) fn f32_view(view: AnyView<'_>) -> Option<TensorView<'_, f32>> {
    match view {
        AnyView::F32(view) => Some(view),
        _ => None,
    }
}

/// The f32 operands of a run.
pub(crate) struct F32Args<'a> {
    pub m: usize,
    pub a: TensorView<'a, f32>,
    /// `None` where the backend keeps a constant B in a form of its own.
    pub b: Option<TensorView<'a, f32>>,
    pub c: TensorViewMut<'a, f32>,
}

/// Takes the f32 operands out of a run; B comes from the run or from the weights.
pub(crate) fn operands<'a>(
    backend: &BackendId,
    args: RunArgs<'a>,
    weights: Option<AnyView<'a>>,
) -> Result<F32Args<'a>> {
    let b = args.b.or(weights).and_then(f32_view);
    match (args.a, args.c) {
        (AnyView::F32(a), AnyViewMut::F32(c)) => Ok(F32Args { m: args.m, a, b, c }),
        _ => Err(not_f32(backend)),
    }
}

/// An operand that `supports` and the executor's checks should have kept away.
pub(crate) fn not_f32(backend: &BackendId) -> Error {
    Error::Native(Box::new(NativeError {
        backend: backend.clone(),
        step: "run",
        status: NativeStatus::Internal,
        code: 0,
        domain: String::new(),
        message: "an operand is not f32".into(),
        log: String::new(),
    }))
}
