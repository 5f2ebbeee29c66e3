//! The shims on Linux: built against the doubles of `sim/`, driven through the C ABI.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null_mut;

use libloading::Library;

use crate::compile::output_of;
use crate::plan::Desc;

#[path = "../../../objc/metal_source.rs"]
#[allow(missing_docs, clippy::missing_errors_doc, reason = "shared with build.rs")]
mod metal_source;
pub use metal_source::metal_source_header;

/// The flags that GNUstep wants, without optimisation or sanitizer.
fn flags() -> Result<Vec<String>, String> {
    let gcc_include = output_of(Command::new("gcc").arg("-print-file-name=include"))?;
    let sim = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim");
    let mut flags: Vec<String> = [
        "-fobjc-runtime=gcc",
        "-fblocks",
        "-fexceptions",
        "-fobjc-exceptions",
        "-fconstant-string-class=NSConstantString",
        "-DGNUSTEP",
        "-DGNUSTEP_BASE_LIBRARY=1",
        "-DGNU_RUNTIME=1",
        "-D_NATIVE_OBJC_EXCEPTIONS",
        "-DANE_MATMUL_TEST_DOUBLE",
        "-DANE_MATMUL_APPLE_SHIMS",
        // Small enough that some cases run in parts.
        "-DANE_METAL_MACS_PER_COMMAND_BUFFER=262144",
        "-pthread",
        "-fPIC",
        "-g",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        "/usr/include/GNUstep",
        "-idirafter",
        gcc_include.trim(),
    ]
    .map(String::from)
    .to_vec();
    for dir in [sim.join("include"), sim.clone(), crate::compile::cpp_dir()] {
        flags.push(format!("-I{}", dir.display()));
    }
    Ok(flags)
}

/// Builds both shims of the directory `objc` with the double: a library in `dir`.
///
/// # Errors
/// What the compiler said.
pub fn build(objc: &Path, dir: &Path, extra: &[&str]) -> Result<PathBuf, String> {
    let io = |e: std::io::Error| e.to_string();
    fs::create_dir_all(dir).map_err(io)?;
    fs::write(dir.join("ane_metal_source.h"), metal_source::metal_source_header(objc).map_err(io)?)
        .map_err(io)?;
    let sim = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim");
    let include = crate::compile::objc_dir().join("../include");
    let library = dir.join("metal_host.so");
    output_of(
        Command::new("clang-19")
            .args(flags()?)
            .args(extra)
            .arg(format!("-I{}", include.display()))
            .arg(format!("-I{}", objc.display()))
            .arg(format!("-I{}", dir.display()))
            .args(["-shared", "-o"])
            .arg(&library)
            .args([objc.join("metal_matmul.m"), objc.join("ane_mpsgraph.m")])
            .args([sim.join("sim.m"), sim.join("graph.m"), sim.join("personality.c")])
            // So that the double can fail it.
            .arg("-Wl,--wrap=calloc")
            .args(["-lgnustep-base", "-lobjc", "-lstdc++", "-ldl", "-lm"]),
    )?;
    Ok(library)
}

/// `ANEError`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct AneError {
    pub struct_size: u32,
    pub status: i32,
    pub refusal: i32,
    reserved0: u32,
    pub native_code: i64,
    pub domain: [c_char; 64],
    pub message: [c_char; 512],
    pub log: *mut c_char,
    pub log_capacity: u64,
    pub log_length: u64,
}

const _: () = assert!(size_of::<AneError>() == 624);

impl AneError {
    /// An error to be filled, with no log.
    #[must_use]
    pub fn new() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            status: 0,
            refusal: 0,
            reserved0: 0,
            native_code: 0,
            domain: [0; 64],
            message: [0; 512],
            log: null_mut(),
            log_capacity: 0,
            log_length: 0,
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> String {
        // SAFETY: the shim ends it with a NUL, and so does `new`.
        unsafe { CStr::from_ptr(self.message.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> String {
        // SAFETY: as for the message.
        unsafe { CStr::from_ptr(self.domain.as_ptr()) }.to_string_lossy().into_owned()
    }
}

impl Default for AneError {
    fn default() -> Self {
        Self::new()
    }
}

/// `ANEConstants`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct Constants {
    pub struct_size: u32,
    reserved0: u32,
    pub b: *const c_void,
    pub b_bytes: u64,
    pub b_constant: *mut c_void,
    scales: [u64; 7],
    content_hash: [u8; 32],
}

const _: () = assert!(size_of::<Constants>() == 120);

impl Constants {
    /// With a constant B, or none.
    #[must_use]
    pub fn new(b: Option<&[u8]>) -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            reserved0: 0,
            b: b.map_or(std::ptr::null(), |b| b.as_ptr().cast()),
            b_bytes: b.map_or(0, |b| b.len() as u64),
            b_constant: null_mut(),
            scales: [0; 7],
            content_hash: [0; 32],
        }
    }

    /// With a constant of the device as B.
    #[must_use]
    pub fn shared(b: *mut c_void) -> Self {
        Self { b_constant: b, ..Self::new(None) }
    }
}

/// `ANEConstantDesc`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct ConstantDesc {
    pub struct_size: u32,
    pub element: i32,
    pub data: *const c_void,
    pub bytes: u64,
    content_hash: [u8; 32],
}

const _: () = assert!(size_of::<ConstantDesc>() == 56);

impl ConstantDesc {
    /// These bytes, of elements of a type.
    #[must_use]
    pub fn new(element: i32, data: &[u8]) -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            element,
            data: data.as_ptr().cast(),
            bytes: data.len() as u64,
            content_hash: [0; 32],
        }
    }
}

/// `ANEDeviceInfo`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct DeviceInfo {
    pub struct_size: u32,
    pub flags: u32,
    pub kind: i32,
    pub preferred_buffer: i32,
    pub wrap_alignment: u64,
    pub max_buffer_bytes: u64,
    name: [c_char; 128],
    chip: [c_char; 64],
    os_build: [c_char; 64],
    pub max_queue_depth: u32,
    reserved0: u32,
}

const _: () = assert!(size_of::<DeviceInfo>() == 296);

impl DeviceInfo {
    /// The device's name.
    #[must_use]
    pub fn name(&self) -> String {
        // SAFETY: the shim ends it with a NUL, and so does `device_info` of [`Host`].
        unsafe { CStr::from_ptr(self.name.as_ptr()) }.to_string_lossy().into_owned()
    }
}

/// `ANEExecutorOptions`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct ExecutorOptions {
    pub struct_size: u32,
    pub queue_depth: u32,
}

impl ExecutorOptions {
    /// So many submissions at once.
    #[must_use]
    pub const fn depth(queue_depth: u32) -> Self {
        Self { struct_size: size_of::<Self>() as u32, queue_depth }
    }
}

/// `ANECompileOptions`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct Options {
    pub struct_size: u32,
    pub flags: u32,
    pub device: i32,
    pub threads: u32,
    pub expected_runs: u64,
    pub time_limit_ns: u64,
    pub reserved: [u64; 4],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            struct_size: 64,
            flags: 0,
            device: 0,
            threads: 0,
            expected_runs: 0,
            time_limit_ns: 0,
            reserved: [0; 4],
        }
    }
}

/// `ANEOperand`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct Operand {
    pub data: *mut c_void,
    pub buffer: *mut c_void,
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

impl Operand {
    /// An operand that the description does not have.
    pub const NONE: Self = Self { data: null_mut(), buffer: null_mut(), offset_bytes: 0, length_bytes: 0 };

    /// Plain memory.
    #[must_use]
    pub fn data(bytes: &mut [u8]) -> Self {
        Self {
            data: bytes.as_mut_ptr().cast(),
            buffer: null_mut(),
            offset_bytes: 0,
            length_bytes: bytes.len() as u64,
        }
    }

    /// A buffer, from an offset on.
    #[must_use]
    pub const fn buffer(buffer: *mut c_void, offset_bytes: u64, length_bytes: u64) -> Self {
        Self { data: null_mut(), buffer, offset_bytes, length_bytes }
    }
}

/// `ANERunInfo`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct RunInfo {
    pub struct_size: u32,
    pub observed: i32,
    pub device_start_ns: u64,
    pub device_end_ns: u64,
    pub flags: u32,
    reserved0: u32,
}

const _: () = assert!(size_of::<RunInfo>() == 32);

impl Default for RunInfo {
    fn default() -> Self {
        let struct_size = size_of::<Self>() as u32;
        Self { struct_size, observed: 0, device_start_ns: 0, device_end_ns: 0, flags: 0, reserved0: 0 }
    }
}

/// `ANERunArgs`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct RunArgs {
    pub struct_size: u32,
    pub flags: u32,
    pub m: u64,
    pub a: Operand,
    pub b: Operand,
    pub bias: Operand,
    pub residual: Operand,
    pub c: Operand,
    pub info: *mut RunInfo,
}

const _: () = assert!(size_of::<RunArgs>() == 184);

impl RunArgs {
    /// A run of `m` rows without bias, residual and info.
    #[must_use]
    pub const fn new(m: u64, a: Operand, b: Operand, c: Operand) -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            flags: 0,
            m,
            a,
            b,
            bias: Operand::NONE,
            residual: Operand::NONE,
            c,
            info: null_mut(),
        }
    }
}

/// `ANEProductInfo`.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct ProductInfo {
    pub struct_size: u32,
    pub flags: u32,
    pub requested: i32,
    pub observed: i32,
    pub compile_ns: u64,
    pub bytes_held: u64,
    pub executor_bytes: u64,
    pub arithmetic: u32,
    reserved0: u32,
}

const _: () = assert!(size_of::<ProductInfo>() == 48);

impl Default for ProductInfo {
    fn default() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            flags: 0,
            requested: 0,
            observed: 0,
            compile_ns: 0,
            bytes_held: 0,
            executor_bytes: 0,
            arithmetic: 0,
            reserved0: 0,
        }
    }
}

type Object = *mut c_void;
type Err = *mut AneError;

/// `ANEShim`.
#[repr(C)]
#[allow(missing_docs, reason = "see ane_matmul.h")]
pub struct Shim {
    pub struct_size: u32,
    pub abi_major: u16,
    pub abi_minor: u16,
    pub name: *const c_char,
    pub version: *const c_char,
    pub device_count: unsafe extern "C" fn(*mut u32, Err) -> i32,
    pub device_info: unsafe extern "C" fn(u32, *mut DeviceInfo, Err) -> i32,
    pub device_open: unsafe extern "C" fn(u32, *mut Object, Err) -> i32,
    pub device_prepare: unsafe extern "C" fn(Object, Err) -> i32,
    pub device_close: unsafe extern "C" fn(Object),
    pub supports: unsafe extern "C" fn(Object, *const Desc, *const Options, Err) -> i32,
    pub buffer_create: unsafe extern "C" fn(Object, i32, u64, *mut Object, Err) -> i32,
    pub buffer_wrap: unsafe extern "C" fn(Object, *mut c_void, u64, *mut Object, Err) -> i32,
    pub buffer_contents: unsafe extern "C" fn(Object) -> *mut c_void,
    pub buffer_write: unsafe extern "C" fn(Object, u64, *const c_void, u64, Err) -> i32,
    pub buffer_read: unsafe extern "C" fn(Object, u64, *mut c_void, u64, Err) -> i32,
    pub buffer_destroy: unsafe extern "C" fn(Object),
    pub constant_create: unsafe extern "C" fn(Object, *const ConstantDesc, *mut Object, Err) -> i32,
    pub constant_destroy: unsafe extern "C" fn(Object),
    pub compile:
        unsafe extern "C" fn(Object, *const Desc, *const Constants, *const Options, *mut Object, Err) -> i32,
    pub product_save: unsafe extern "C" fn(Object, *const c_char, Err) -> i32,
    pub product_load: unsafe extern "C" fn(
        Object,
        *const Desc,
        *const Constants,
        *const Options,
        *const c_char,
        *mut Object,
        Err,
    ) -> i32,
    pub product_info: unsafe extern "C" fn(Object, *mut ProductInfo, Err) -> i32,
    pub product_destroy: unsafe extern "C" fn(Object),
    pub executor_create: unsafe extern "C" fn(Object, *const ExecutorOptions, *mut Object, Err) -> i32,
    pub executor_run: unsafe extern "C" fn(Object, *const RunArgs, Err) -> i32,
    pub executor_submit: unsafe extern "C" fn(Object, *const RunArgs, *mut u64, Err) -> i32,
    pub executor_wait: unsafe extern "C" fn(Object, u64, u64, *mut RunInfo, Err) -> i32,
    pub executor_destroy: unsafe extern "C" fn(Object),
    pub graphs: *const c_void,
}

const _: () = assert!(size_of::<Shim>() == 224);

// SAFETY: a constant table: its pointers are to functions and strings that live as long as the library.
unsafe impl Sync for Shim {}

/// The shim's table, and the double's controls.
pub struct Host {
    library: ManuallyDrop<Library>,
    /// The table.
    pub shim: &'static Shim,
}

impl Host {
    /// Loads a library that [`build`] made, and one of its shims by its getter; `compiler` is
    /// `metal-cc`, and writes to `dir`.
    ///
    /// # Errors
    /// What the loader said.
    pub fn open(library: &Path, getter: &str, compiler: &Path, dir: &Path) -> Result<Self, String> {
        // SAFETY: the product of `build`. It is never unloaded: Objective-C classes cannot be.
        let library = unsafe { Library::new(library) }.map_err(|e| e.to_string())?;
        // SAFETY: the header's type; the table is static.
        let shim = unsafe {
            let getter = library
                .get::<unsafe extern "C" fn() -> &'static Shim>(getter.as_bytes())
                .map_err(|e| e.to_string())?;
            getter()
        };
        let host = Self { library: ManuallyDrop::new(library), shim };
        let text = |path: &Path| CString::new(path.to_string_lossy().as_bytes()).map_err(|e| e.to_string());
        let (compiler, dir) = (text(compiler)?, text(dir)?);
        // SAFETY: the type is that of sim.h.
        unsafe {
            let set = host
                .library
                .get::<unsafe extern "C" fn(*const c_char, *const c_char)>(b"ane_sim_metal_set_compiler")
                .map_err(|e| e.to_string())?;
            set(compiler.as_ptr(), dir.as_ptr());
        }
        Ok(host)
    }

    /// Reads one of the double's counters.
    ///
    /// # Panics
    /// When there is none of the name.
    #[must_use]
    pub fn counter(&self, name: &str) -> i64 {
        let symbol = format!("ane_sim_metal_{name}");
        // SAFETY: the counters of sim.h have this type.
        unsafe {
            self.library
                .get::<unsafe extern "C" fn() -> i64>(symbol.as_bytes())
                .unwrap_or_else(|e| panic!("{symbol}: {e}"))()
        }
    }

    /// Sets a number of the double (`set_error`, `set_macos`, `set_max_buffer_bytes`).
    ///
    /// # Panics
    /// When there is none of the name.
    pub fn set(&self, name: &str, value: i64) {
        let symbol = format!("ane_sim_metal_{name}");
        // SAFETY: the setters of sim.h named here take 64 bits.
        unsafe {
            self.library
                .get::<unsafe extern "C" fn(i64)>(symbol.as_bytes())
                .unwrap_or_else(|e| panic!("{symbol}: {e}"))(value);
        }
    }

    /// Makes the double fail at `fault` after `after` calls of its kind.
    ///
    /// # Panics
    /// When the library lacks the function.
    pub fn set_fault(&self, fault: i32, after: i32) {
        // SAFETY: the type is that of sim.h.
        unsafe {
            self.library
                .get::<unsafe extern "C" fn(i32, i32)>(b"ane_sim_metal_set_fault")
                .unwrap_or_else(|e| panic!("{e}"))(fault, after);
        }
    }

    /// Sets the schedule of the emulator.
    ///
    /// # Panics
    /// When the library lacks the function.
    pub fn set_schedule(&self, schedule: i32, seed: u64) {
        // SAFETY: the type is that of sim.h.
        unsafe {
            self.library
                .get::<unsafe extern "C" fn(i32, u64)>(b"ane_sim_metal_set_schedule")
                .unwrap_or_else(|e| panic!("{e}"))(schedule, seed);
        }
    }

    /// The device's name from now on.
    ///
    /// # Panics
    /// When the library lacks the function, or the name has a NUL.
    pub fn set_device_name(&self, name: &str) {
        let name = CString::new(name).expect("a device's name has no NUL");
        // SAFETY: the type is that of sim.h.
        unsafe {
            self.library
                .get::<unsafe extern "C" fn(*const c_char)>(b"ane_sim_metal_set_device_name")
                .unwrap_or_else(|e| panic!("{e}"))(name.as_ptr());
        }
    }

    /// The last rule of Metal that was broken.
    ///
    /// # Panics
    /// When the library lacks the function.
    #[must_use]
    pub fn last_violation(&self) -> String {
        // SAFETY: the type is that of sim.h; the text is static.
        unsafe {
            let text = self
                .library
                .get::<unsafe extern "C" fn() -> *const c_char>(b"ane_sim_metal_last_violation")
                .unwrap_or_else(|e| panic!("{e}"))();
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }

    /// Opens the default device.
    ///
    /// # Errors
    /// The shim's error.
    pub fn open_device(&self) -> Result<Object, Box<AneError>> {
        let mut device = null_mut();
        // SAFETY: out and err are live.
        create(|err| unsafe { (self.shim.device_open)(0, &mut device, err) })?;
        Ok(device)
    }

    /// Facts of a device.
    ///
    /// # Errors
    /// The shim's error.
    pub fn device_info(&self, index: u32) -> Result<DeviceInfo, Box<AneError>> {
        let mut info = DeviceInfo {
            struct_size: size_of::<DeviceInfo>() as u32,
            flags: 0,
            kind: 0,
            preferred_buffer: 0,
            wrap_alignment: 0,
            max_buffer_bytes: 0,
            name: [0; 128],
            chip: [0; 64],
            os_build: [0; 64],
            max_queue_depth: 0,
            reserved0: 0,
        };
        // SAFETY: info and err are live.
        create(|err| unsafe { (self.shim.device_info)(index, &mut info, err) })?;
        Ok(info)
    }
}

/// Calls a slot with an error to fill.
///
/// # Errors
/// The error when the status is not `ANE_STATUS_OK`; its `status` is the one returned.
///
/// # Panics
/// When the error's status is not the one returned.
pub fn create(call: impl FnOnce(Err) -> i32) -> Result<(), Box<AneError>> {
    let mut error = Box::new(AneError::new());
    let status = call(&mut *error);
    if status == 0 {
        return Ok(());
    }
    assert_eq!(error.status, status, "the status in the error: {}", error.message());
    assert!(!error.message().is_empty(), "status {status} without a message");
    Err(error)
}
