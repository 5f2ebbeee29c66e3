//! What the programs that drive a shim through the C ABI share.

use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::null_mut;

use crate::host::{AneError, Constants, Host, Operand, Options, RunArgs, RunInfo, build, create};
use crate::plan::{Desc, element};

/// `ANE_STATUS_REFUSED`.
pub const REFUSED: i32 = 2;
/// `ANE_STATUS_OUT_OF_MEMORY`.
pub const OUT_OF_MEMORY: i32 = 3;
/// `ANE_STATUS_NO_DEVICE`.
pub const NO_DEVICE: i32 = 4;
/// `ANE_STATUS_COMPILE_FAILED`.
pub const COMPILE_FAILED: i32 = 5;
/// `ANE_STATUS_RUN_FAILED`.
pub const RUN_FAILED: i32 = 6;
/// `ANE_STATUS_EXCEPTION`.
pub const EXCEPTION: i32 = 7;
/// `ANE_STATUS_TIMEOUT`.
pub const TIMEOUT: i32 = 8;
/// `ANE_STATUS_BACKGROUND`.
pub const BACKGROUND: i32 = 9;
/// `ANE_STATUS_NOT_IMPLEMENTED`.
pub const NOT_IMPLEMENTED: i32 = 12;
/// `ANE_STATUS_INVALID_ARGUMENT`.
pub const INVALID_ARGUMENT: i32 = 1;
/// `ANE_STATUS_IO`.
pub const IO: i32 = 10;
/// `ANE_STATUS_PACKAGE_MISMATCH`.
pub const PACKAGE_MISMATCH: i32 = 11;
/// `ANE_STATUS_INTERNAL`.
pub const INTERNAL: i32 = 13;

/// A shim by its getter, over the double; built from `ANE_SIM_OBJC` where that is set (the mutation
/// program does).
///
/// # Panics
/// When it cannot be built or loaded.
#[must_use]
pub fn host(getter: &str) -> Host {
    let objc = std::env::var_os("ANE_SIM_OBJC").map_or_else(crate::compile::objc_dir, PathBuf::from);
    let flags = std::env::var("ANE_SIM_CFLAGS").unwrap_or_default();
    let program = std::env::current_exe().expect("this program has a path");
    let dir = program.with_file_name("apple-sim");
    let own = dir.join(format!("host-{}", std::process::id()));
    let extra: Vec<&str> = flags.split_whitespace().collect();
    let library = build(&objc, &own, &extra).unwrap_or_else(|e| panic!("{e}"));
    let host = Host::open(&library, getter, &program.with_file_name("metal-cc"), &dir)
        .unwrap_or_else(|e| panic!("{e}"));
    // Loaded: the file is not needed any more, but for a sanitizer's stack traces.
    if extra.is_empty() {
        std::fs::remove_dir_all(&own).expect("a directory of ours can be removed");
    }
    host
}

/// Opens the device.
///
/// # Panics
/// When the shim does not.
#[must_use]
pub fn device(host: &Host) -> *mut c_void {
    host.open_device().unwrap_or_else(|e| panic!("{}", e.message()))
}

/// Closes a device that [`device`] opened.
pub fn close(host: &Host, device: *mut c_void) {
    // SAFETY: opened by the same shim, and used no more.
    unsafe { (host.shim.device_close)(device) };
}

/// A packed f32 product.
#[must_use]
pub fn simple(m: u64, n: u64, k: u64) -> Desc {
    Desc {
        struct_size: size_of::<Desc>() as u32,
        flags: 0,
        batch: 1,
        m,
        n,
        k,
        lda: k,
        ldb: n,
        ldc: n,
        ld_residual: n,
        stride_a: m * k,
        stride_b: k * n,
        stride_c: m * n,
        stride_residual: m * n,
        type_a: element::F32,
        type_b: element::F32,
        type_accumulator: element::F32,
        type_c: element::F32,
        type_bias: 0,
        type_scale: 0,
        activation: 0,
        alpha: 1.0,
        quantisation: [0; 8],
        reserved: [0; 3],
    }
}

/// A device, a product and an executor.
#[allow(missing_debug_implementations)]
pub struct Open<'h> {
    /// The shim.
    pub host: &'h Host,
    /// The device.
    pub device: *mut c_void,
    /// The product.
    pub product: *mut c_void,
    /// The executor.
    pub executor: *mut c_void,
}

impl<'h> Open<'h> {
    /// Compiles a product without wishes.
    ///
    /// # Errors
    /// The shim's error.
    pub fn new(host: &'h Host, desc: &Desc, constants: &Constants) -> Result<Self, Box<AneError>> {
        Self::with(host, desc, constants, &Options::default())
    }

    /// Compiles a product.
    ///
    /// # Errors
    /// The shim's error.
    pub fn with(
        host: &'h Host,
        desc: &Desc,
        constants: &Constants,
        options: &Options,
    ) -> Result<Self, Box<AneError>> {
        let mut open = Self { host, device: host.open_device()?, product: null_mut(), executor: null_mut() };
        let device = open.device;
        // SAFETY: pointers to live values of the header's types.
        create(|e| unsafe { (host.shim.compile)(device, desc, constants, options, &mut open.product, e) })?;
        let product = open.product;
        // SAFETY: as above.
        create(|e| unsafe { (host.shim.executor_create)(product, &mut open.executor, e) })?;
        Ok(open)
    }

    /// Runs it on plain memory; an empty B is a constant one.
    ///
    /// # Errors
    /// The shim's error.
    pub fn run(&self, a: &mut [u8], b: &mut [u8], c: &mut [u8], m: u64) -> Result<RunInfo, Box<AneError>> {
        let mut info = RunInfo { struct_size: size_of::<RunInfo>() as u32, ..RunInfo::default() };
        let args = RunArgs {
            struct_size: size_of::<RunArgs>() as u32,
            flags: 0,
            m,
            a: Operand::data(a),
            b: if b.is_empty() { Operand::NONE } else { Operand::data(b) },
            bias: Operand::NONE,
            residual: Operand::NONE,
            c: Operand::data(c),
            info: &mut info,
        };
        // SAFETY: operands are live and as long as they say.
        create(|e| unsafe { (self.host.shim.executor_run)(self.executor, &args, e) })?;
        Ok(info)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this shim; NULL is accepted.
        unsafe {
            (self.host.shim.executor_destroy)(self.executor);
            (self.host.shim.product_destroy)(self.product);
            (self.host.shim.device_close)(self.device);
        }
    }
}

