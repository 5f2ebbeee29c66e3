//! Descriptions, options and operands as the C ABI wants them.

use std::time::Duration;

use crate::backend::RunArgs;
use crate::description::activation::Activation;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::description::quantization::{NibbleOrder, QuantA, QuantB, QuantOutput, Quantization};
use crate::executor::{Arithmetic, RunObservation};
use crate::operands::device_tensor::DeviceView;
use crate::operands::view::{AnyView, AnyViewMut};
use crate::operands::weights::Weights;
use crate::sys;

use super::buffers::{NO_OPERAND, Registry};
use super::table::size_u32;

pub(super) fn element_type(element: ElementType) -> sys::ANEType {
    match element {
        ElementType::F64 => sys::ANE_TYPE_F64,
        ElementType::F32 => sys::ANE_TYPE_F32,
        ElementType::F16 => sys::ANE_TYPE_F16,
        ElementType::Bf16 => sys::ANE_TYPE_BF16,
        ElementType::I32 => sys::ANE_TYPE_I32,
        ElementType::I8 => sys::ANE_TYPE_I8,
        ElementType::U8 => sys::ANE_TYPE_U8,
        ElementType::I4 => sys::ANE_TYPE_I4,
        ElementType::U4 => sys::ANE_TYPE_U4,
        ElementType::I64 => sys::ANE_TYPE_I64,
        ElementType::Bool => sys::ANE_TYPE_BOOL,
    }
}

pub(super) fn nibble_order(order: NibbleOrder) -> i32 {
    match order {
        NibbleOrder::LowFirst => sys::ANE_NIBBLE_LOW_FIRST,
        NibbleOrder::HighFirst => sys::ANE_NIBBLE_HIGH_FIRST,
    }
}

pub(super) fn activation(activation: Activation) -> sys::ANEActivation {
    match activation {
        Activation::None => sys::ANE_ACTIVATION_NONE,
        Activation::Relu => sys::ANE_ACTIVATION_RELU,
        Activation::Gelu => sys::ANE_ACTIVATION_GELU_ERF,
        Activation::GeluTanh => sys::ANE_ACTIVATION_GELU_TANH,
        Activation::Silu => sys::ANE_ACTIVATION_SILU,
        Activation::Sigmoid => sys::ANE_ACTIVATION_SIGMOID,
        Activation::Tanh => sys::ANE_ACTIVATION_TANH,
    }
}

pub(super) fn device_kind(device: Device) -> sys::ANEDeviceKind {
    match device {
        Device::Unknown => sys::ANE_DEVICE_UNKNOWN,
        Device::Cpu => sys::ANE_DEVICE_CPU,
        Device::Gpu => sys::ANE_DEVICE_GPU,
        Device::NeuralEngine => sys::ANE_DEVICE_NEURAL_ENGINE,
        Device::Mixed => sys::ANE_DEVICE_MIXED,
    }
}

pub(super) fn device(kind: sys::ANEDeviceKind) -> Device {
    match kind {
        sys::ANE_DEVICE_CPU => Device::Cpu,
        sys::ANE_DEVICE_GPU => Device::Gpu,
        sys::ANE_DEVICE_NEURAL_ENGINE => Device::NeuralEngine,
        sys::ANE_DEVICE_MIXED => Device::Mixed,
        _ => Device::Unknown,
    }
}

pub(super) fn description(product: &MatMul) -> sys::ANEMatMulDesc {
    let types = product.types();
    let quantization = product.quantization();
    let flags = [
        (product.transpose_a(), sys::ANE_MATMUL_TRANSPOSE_A),
        (product.transpose_b(), sys::ANE_MATMUL_TRANSPOSE_B),
        (product.constant_b(), sys::ANE_MATMUL_CONSTANT_B),
        (product.has_bias(), sys::ANE_MATMUL_BIAS),
        (product.residual().is_some(), sys::ANE_MATMUL_RESIDUAL),
        (product.variable_m(), sys::ANE_MATMUL_VARIABLE_M),
    ];
    let quantized = quantization.a != QuantA::None
        || quantization.b != QuantB::None
        || quantization.output != QuantOutput::None;
    let (a, b, c) = (product.a(), product.b(), product.c());
    sys::ANEMatMulDesc {
        struct_size: size_u32::<sys::ANEMatMulDesc>(),
        flags: flags
            .into_iter()
            .filter(|(set, _)| *set)
            .fold(0, |flags, (_, flag)| flags | flag.cast_unsigned()),
        batch: product.batch() as u64,
        m: product.m() as u64,
        n: product.n() as u64,
        k: product.k() as u64,
        lda: a.leading_dimension() as u64,
        ldb: b.leading_dimension() as u64,
        ldc: c.leading_dimension() as u64,
        ld_residual: product.residual().map_or(0, |layout| layout.leading_dimension() as u64),
        stride_a: a.batch_stride() as u64,
        stride_b: b.batch_stride() as u64,
        stride_c: c.batch_stride() as u64,
        stride_residual: product.residual().map_or(0, |layout| layout.batch_stride() as u64),
        type_a: element_type(types.a),
        type_b: element_type(types.b),
        type_accumulator: element_type(types.accumulator),
        type_c: element_type(types.output),
        type_bias: if product.has_bias() { element_type(types.bias) } else { sys::ANE_TYPE_NONE },
        type_scale: if quantized { element_type(types.scales) } else { sys::ANE_TYPE_NONE },
        activation: activation(product.activation()),
        alpha: product.alpha(),
        quant_a: match quantization.a {
            QuantA::None => sys::ANE_QUANT_A_NONE,
            QuantA::Static { .. } => sys::ANE_QUANT_A_STATIC,
            QuantA::DynamicPerRow => sys::ANE_QUANT_A_DYNAMIC_PER_ROW,
        },
        quant_b: match quantization.b {
            QuantB::None => sys::ANE_QUANT_B_NONE,
            QuantB::Static { .. } | QuantB::PerTensor { .. } => sys::ANE_QUANT_B_PER_TENSOR,
            QuantB::PerColumn { .. } => sys::ANE_QUANT_B_PER_COLUMN,
            QuantB::PerGroup { .. } => sys::ANE_QUANT_B_PER_GROUP,
        },
        zero_point_a: quantization.a.zero_point(),
        zero_point_b: quantization.b.zero_point(),
        group_size: group_size(quantization),
        nibble_order: nibble_order(quantization.nibble_order),
        quant_c: match quantization.output {
            QuantOutput::None => sys::ANE_QUANT_C_NONE,
            QuantOutput::Static { .. } => sys::ANE_QUANT_C_STATIC,
        },
        zero_point_c: quantization.output.zero_point(),
        reserved: [0; 3],
    }
}

fn group_size(quantization: &Quantization) -> u32 {
    match quantization.b {
        QuantB::PerGroup { group_size, .. } => group_size,
        _ => 0,
    }
}

/// `threads` has been checked to be no pool of the caller's.
pub(super) fn options(options: &CompileOptions) -> sys::ANECompileOptions {
    let flags = [
        (options.fast_math, sys::ANE_OPTION_FAST_MATH),
        (options.reduced_precision, sys::ANE_OPTION_REDUCED_PRECISION),
        (options.allow_known_faults, sys::ANE_OPTION_ALLOW_KNOWN_FAULTS),
    ];
    sys::ANECompileOptions {
        struct_size: size_u32::<sys::ANECompileOptions>(),
        flags: flags
            .into_iter()
            .filter(|(set, _)| *set)
            .fold(0, |flags, (_, flag)| flags | flag.cast_unsigned()),
        device: device_kind(options.device),
        threads: match &options.threads {
            Threads::Count(count) => u32::try_from(count.get()).unwrap_or(u32::MAX),
            Threads::Auto | Threads::Pool(_) => 0,
        },
        expected_runs: options.expected_runs.unwrap_or(0),
        time_limit_ns: options
            .time_limit
            .map_or(0, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1)),
        reserved: [0; 4],
    }
}

/// The scales of a description, each as one element of the description's type of scales.
pub(super) struct NativeScales {
    bytes: usize,
    a: Option<[u8; 4]>,
    b: Option<[u8; 4]>,
    c: Option<[u8; 4]>,
}

impl NativeScales {
    pub(super) fn of(product: &MatMul) -> Self {
        let (quantization, element) = (product.quantization(), product.types().scales);
        let native = |scale: Option<f32>| scale.map(|scale| native_scale(scale, element));
        Self {
            bytes: element.bits() / 8,
            a: native(quantization.a.scale()),
            b: native(quantization.b.scale()),
            c: native(quantization.output.scale()),
        }
    }

    fn memory(&self, scale: Option<&[u8; 4]>) -> (*const std::ffi::c_void, u64) {
        scale.map_or((std::ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), self.bytes as u64))
    }
}

/// The bytes of one scale; a type of two bytes takes the first two.
fn native_scale(scale: f32, element: ElementType) -> [u8; 4] {
    #[cfg(feature = "half")]
    {
        let short = |[low, high]: [u8; 2]| [low, high, 0, 0];
        match element {
            ElementType::F16 => return short(crate::operands::float16::from_f32(scale).to_ne_bytes()),
            ElementType::Bf16 => return short(half::bf16::from_f32(scale).to_ne_bytes()),
            _ => {}
        }
    }
    // Without `half` the scales have been checked to be f32.
    let _ = element;
    scale.to_ne_bytes()
}

/// Borrows `weights` and `scales`: the result must not outlive them. The hash of the weights takes a
/// while: with `hashed` only.
pub(super) fn constants(weights: Option<&Weights>, scales: &NativeScales, hashed: bool) -> sys::ANEConstants {
    let (b, b_bytes) = weights.map_or((std::ptr::null(), 0), |weights| weights.view().memory());
    let (scales_b, scales_b_bytes) = match weights.and_then(Weights::scales) {
        Some(view) => {
            let (start, bytes) = view.memory();
            (start.cast(), bytes as u64)
        }
        None => scales.memory(scales.b.as_ref()),
    };
    let (scale_a, scale_a_bytes) = scales.memory(scales.a.as_ref());
    let (scale_c, scale_c_bytes) = scales.memory(scales.c.as_ref());
    sys::ANEConstants {
        struct_size: size_u32::<sys::ANEConstants>(),
        reserved0: 0,
        b: b.cast(),
        b_bytes: b_bytes as u64,
        b_constant: std::ptr::null_mut(),
        scales_b,
        scales_b_bytes,
        scales_b_constant: std::ptr::null_mut(),
        scale_a,
        scale_a_bytes,
        scale_c,
        scale_c_bytes,
        content_hash: weights.filter(|_| hashed).map_or([0; 32], |weights| *weights.content_hash()),
    }
}

/// Borrows the operands: the result must not outlive them. What lies on a device lies on that of `buffers`, as has been
/// checked.
pub(super) fn run_args(args: &mut RunArgs<'_>, buffers: &Registry) -> sys::ANERunArgs {
    let operand = |view: Option<&AnyView<'_>>| match view {
        None => NO_OPERAND,
        Some(AnyView::Device(view)) => device_operand(*view),
        Some(view) => {
            let (data, bytes) = view.memory();
            buffers.operand(data.cast_mut(), bytes)
        }
    };
    let c = match &mut args.c {
        AnyViewMut::Device(view) => device_operand(view.as_view()),
        view => {
            let (data, bytes) = view.memory();
            buffers.operand(data, bytes)
        }
    };
    sys::ANERunArgs {
        struct_size: size_u32::<sys::ANERunArgs>(),
        flags: 0,
        m: args.m as u64,
        a: operand(Some(&args.a)),
        b: operand(args.b.as_ref()),
        bias: operand(args.bias.as_ref()),
        residual: operand(args.residual.as_ref()),
        c,
        info: std::ptr::null_mut(),
    }
}

/// An operand in memory that only the device sees.
fn device_operand(view: DeviceView<'_>) -> sys::ANEOperand {
    if view.bytes() == 0 {
        return NO_OPERAND;
    }
    let (_, buffer) = view.buffer().native();
    sys::ANEOperand {
        data: std::ptr::null_mut(),
        buffer: buffer.as_ptr().cast(),
        offset_bytes: 0,
        length_bytes: view.bytes() as u64,
    }
}

/// What a product makes use of.
pub(super) fn arithmetic(flags: u32) -> Arithmetic {
    let has = |flag: i32| flags & flag.cast_unsigned() != 0;
    Arithmetic {
        fast_math: has(sys::ANE_ARITHMETIC_FAST_MATH),
        tf32: has(sys::ANE_ARITHMETIC_TF32),
        bf16: has(sys::ANE_ARITHMETIC_BF16),
        f16: has(sys::ANE_ARITHMETIC_F16),
    }
}

/// What a run observed. Of a clock that stands still or runs backwards nothing is known.
pub(super) fn observation(info: &sys::ANERunInfo) -> RunObservation {
    let ns = info.device_end_ns.checked_sub(info.device_start_ns);
    RunObservation {
        observed: device(info.observed),
        with_copies: info.flags & sys::ANE_RUN_FLAG_WITH_COPIES.cast_unsigned() != 0,
        device_time: ns.filter(|&ns| ns > 0 && info.device_start_ns > 0).map(Duration::from_nanos),
    }
}
