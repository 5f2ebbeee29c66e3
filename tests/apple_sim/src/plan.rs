//! The structs of `ane_matmul.h` and `matmul_plan.h`, and the plan of a product.

use crate::library::Kernels;

/// `ANEMatMulDesc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct Desc {
    pub struct_size: u32,
    pub flags: u32,
    pub batch: u64,
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub lda: u64,
    pub ldb: u64,
    pub ldc: u64,
    pub ld_residual: u64,
    pub stride_a: u64,
    pub stride_b: u64,
    pub stride_c: u64,
    pub stride_residual: u64,
    pub type_a: i32,
    pub type_b: i32,
    pub type_accumulator: i32,
    pub type_c: i32,
    pub type_bias: i32,
    pub type_scale: i32,
    pub activation: i32,
    pub alpha: f32,
    pub quantisation: [u32; 8],
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Desc>() == 192);

#[allow(missing_docs, reason = "the names of ane_matmul.h")]
pub mod flag {
    pub const TRANSPOSE_A: u32 = 1;
    pub const TRANSPOSE_B: u32 = 2;
    pub const CONSTANT_B: u32 = 4;
    pub const BIAS: u32 = 8;
    pub const RESIDUAL: u32 = 16;
    pub const VARIABLE_M: u32 = 32;
}

/// `ANE_TYPE_F32`, `ANE_TYPE_F16` and `ANE_TYPE_BF16`.
#[allow(missing_docs, reason = "the names of ane_matmul.h")]
pub mod element {
    pub const F32: i32 = 2;
    pub const F16: i32 = 3;
    pub const BF16: i32 = 4;
}

/// `ANEMetalParams`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "see matmul_params.h")]
pub struct Params {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub partitions: u32,
    pub k_per_partition: u32,
    pub bias_increment: u32,
    pub alpha: f32,
    pub first_y: u32,
    pub first_z: u32,
    pub reserved0: u32,
    pub lda: u64,
    pub ldb: u64,
    pub ldc: u64,
    pub ld_residual: u64,
    pub stride_a: u64,
    pub stride_b: u64,
    pub stride_c: u64,
    pub stride_residual: u64,
}

const _: () = assert!(size_of::<Params>() == 104);

impl Params {
    /// The bytes that a kernel reads.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: plain data without padding (10 four-byte members, then 8 eight-byte ones).
        unsafe { std::slice::from_raw_parts((&raw const *self).cast::<u8>(), size_of::<Self>()) }.to_vec()
    }
}

/// `ANE_METAL_CONSTANT_COUNT`.
pub const CONSTANT_COUNT: usize = 14;

/// `ANEMetalLaunch`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "see matmul_plan.h")]
pub struct Launch {
    function: [[u8; 8]; 5],
    pub constants: [u32; CONSTANT_COUNT],
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub threadgroup_bytes: u32,
    reserved0: u32,
    row_macs: f64,
    pub params: Params,
}

impl Launch {
    /// The kernel's name.
    #[must_use]
    pub fn function(&self) -> String {
        self.function.iter().flatten().take_while(|b| **b != 0).map(|b| *b as char).collect()
    }
}

/// `ANEMetalPlan`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "see matmul_plan.h")]
pub struct Plan {
    pub kernel: u32,
    pub tile: u32,
    pub launch_count: u32,
    pub swap_operands: u32,
    pub scratch_bytes: u64,
    pub macs_per_command_buffer: u64,
    pub launches: [Launch; 2],
}

/// `ANEMetalOverrides`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "see matmul_plan.h")]
pub struct Overrides {
    pub tile_plus_one: u32,
    pub partitions: u32,
    pub no_gemv: u32,
    pub no_vectors: u32,
    pub macs_per_command_buffer: u64,
}

/// The plan of a run of `rows` rows on a device of a class.
///
/// # Panics
/// When the library was built without the plan.
#[must_use]
pub fn plan(kernels: &Kernels, desc: &Desc, rows: u64, device_class: u32, overrides: Overrides) -> Plan {
    type Function = unsafe extern "C" fn(*const Desc, u64, u32, *const Overrides, *mut Plan);
    let mut plan = Plan::default();
    // SAFETY: the types mirror the headers', whose sizes the assertions of this file repeat.
    unsafe { kernels.function::<Function>("emu_plan")(desc, rows, device_class, &overrides, &mut plan) };
    plan
}

/// The parts of a launch.
///
/// # Panics
/// When the library was built without the plan, or the parts do not end where the launch does.
#[must_use]
pub fn parts(kernels: &Kernels, plan: &Plan, index: usize) -> Vec<Launch> {
    type Function = unsafe extern "C" fn(*const Plan, u32, u64, *mut Launch) -> u64;
    // SAFETY: the type is the function's.
    let part = unsafe { kernels.function::<Function>("emu_part") };
    let [_, height, depth] = plan.launches[index].grid.map(u64::from);
    let (mut parts, mut first) = (Vec::new(), 0);
    while first < height * depth {
        let mut launch = Launch::default();
        // SAFETY: the types mirror the headers'.
        let next = unsafe { part(plan, index as u32, first, &mut launch) };
        assert!(first < next && next <= height * depth, "a part of nothing, or of more than there is");
        parts.push(launch);
        first = next;
    }
    parts
}

/// `ane_metal_device_class`.
///
/// # Panics
/// When the library was built without the plan, or a name has a NUL.
#[must_use]
pub fn device_class(kernels: &Kernels, architecture: &str, name: &str) -> u32 {
    type Function = unsafe extern "C" fn(*const std::ffi::c_char, *const std::ffi::c_char) -> u32;
    let [architecture, name] =
        [architecture, name].map(|text| std::ffi::CString::new(text).expect("a device's name has no NUL"));
    // SAFETY: the type is the function's.
    unsafe { kernels.function::<Function>("emu_device_class")(architecture.as_ptr(), name.as_ptr()) }
}
