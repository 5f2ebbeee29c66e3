//! A shim's table of functions: checked once, then called.

use std::ffi::{CStr, c_char};
use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;

#[cfg(any(unix, windows))]
use libloading::Library;

use crate::backend::BackendId;
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::error::{Error, NativeError, NativeStatus, Result};
use crate::sys;

/// The size of the table.
pub(super) const MINIMUM_SIZE: usize = size_of::<sys::ANEShim>();

/// The longest name of a backend, in bytes.
const NAME_LIMIT: usize = 32;

/// Room for the long text of a failing compiler, in bytes.
const LOG_BYTES: usize = 16 * 1024;

macro_rules! slots {
    ($(#[$meta:meta])* $slots:ident of $table:ident: $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of a table, none of them missing.
        #[derive(Clone)]
        $(#[$meta])*
        pub(super) struct $slots {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $slots {
            fn new(table: &sys::$table) -> Result<Self, &'static str> {
                Ok(Self { $($name: table.$name.ok_or(stringify!($name))?,)* })
            }
        }
    };
}

slots! {
    Slots of ANEShim:
    device_count: fn(*mut u32, *mut sys::ANEError) -> sys::ANEStatus;
    device_info: fn(u32, *mut sys::ANEDeviceInfo, *mut sys::ANEError) -> sys::ANEStatus;
    device_open: fn(u32, *mut *mut sys::ANEDevice, *mut sys::ANEError) -> sys::ANEStatus;
    device_prepare: fn(*mut sys::ANEDevice, *mut sys::ANEError) -> sys::ANEStatus;
    device_close: fn(*mut sys::ANEDevice);
    supports: fn(*mut sys::ANEDevice, *const sys::ANEMatMulDesc, *const sys::ANECompileOptions, *mut sys::ANEError) -> sys::ANEStatus;
    buffer_create: fn(*mut sys::ANEDevice, sys::ANEBufferKind, u64, *mut *mut sys::ANEBuffer, *mut sys::ANEError) -> sys::ANEStatus;
    buffer_wrap: fn(*mut sys::ANEDevice, *mut std::ffi::c_void, u64, *mut *mut sys::ANEBuffer, *mut sys::ANEError) -> sys::ANEStatus;
    buffer_contents: fn(*mut sys::ANEBuffer) -> *mut std::ffi::c_void;
    buffer_write: fn(*mut sys::ANEBuffer, u64, *const std::ffi::c_void, u64, *mut sys::ANEError) -> sys::ANEStatus;
    buffer_read: fn(*mut sys::ANEBuffer, u64, *mut std::ffi::c_void, u64, *mut sys::ANEError) -> sys::ANEStatus;
    buffer_destroy: fn(*mut sys::ANEBuffer);
    constant_create: fn(*mut sys::ANEDevice, *const sys::ANEConstantDesc, *mut *mut sys::ANEConstant, *mut sys::ANEError) -> sys::ANEStatus;
    constant_destroy: fn(*mut sys::ANEConstant);
    compile: fn(*mut sys::ANEDevice, *const sys::ANEMatMulDesc, *const sys::ANEConstants, *const sys::ANECompileOptions, *mut *mut sys::ANEProduct, *mut sys::ANEError) -> sys::ANEStatus;
    product_save: fn(*mut sys::ANEProduct, *const c_char, *mut sys::ANEError) -> sys::ANEStatus;
    product_load: fn(*mut sys::ANEDevice, *const sys::ANEMatMulDesc, *const sys::ANEConstants, *const sys::ANECompileOptions, *const c_char, *mut *mut sys::ANEProduct, *mut sys::ANEError) -> sys::ANEStatus;
    product_info: fn(*mut sys::ANEProduct, *mut sys::ANEProductInfo, *mut sys::ANEError) -> sys::ANEStatus;
    product_destroy: fn(*mut sys::ANEProduct);
    executor_create: fn(*mut sys::ANEProduct, *const sys::ANEExecutorOptions, *mut *mut sys::ANEMatMulExecutor, *mut sys::ANEError) -> sys::ANEStatus;
    executor_run: fn(*mut sys::ANEMatMulExecutor, *const sys::ANERunArgs, *mut sys::ANEError) -> sys::ANEStatus;
    executor_submit: fn(*mut sys::ANEMatMulExecutor, *const sys::ANERunArgs, *mut sys::ANETicket, *mut sys::ANEError) -> sys::ANEStatus;
    executor_wait: fn(*mut sys::ANEMatMulExecutor, sys::ANETicket, u64, *mut sys::ANERunInfo, *mut sys::ANEError) -> sys::ANEStatus;
    executor_destroy: fn(*mut sys::ANEMatMulExecutor);
}

slots! {
    #[allow(dead_code, reason = "packages and submissions of graphs must be there, and are not used yet")]
    #[allow(clippy::struct_field_names, reason = "the slots' names")]
    GraphSlots of ANEGraphTable:
    graph_supports: fn(*mut sys::ANEDevice, *const sys::ANEGraphDesc, *const sys::ANECompileOptions, *mut sys::ANENodeRefusal, u32, *mut u32, *mut sys::ANEError) -> sys::ANEStatus;
    graph_save: fn(*mut sys::ANEGraph, *const c_char, *mut sys::ANEError) -> sys::ANEStatus;
    graph_load: fn(*mut sys::ANEDevice, *const sys::ANEGraphDesc, *const sys::ANECompileOptions, *const c_char, *mut *mut sys::ANEGraph, *mut sys::ANEError) -> sys::ANEStatus;
    graph_info: fn(*mut sys::ANEGraph, *mut sys::ANEGraphInfo, *mut sys::ANEError) -> sys::ANEStatus;
    graph_node_info: fn(*mut sys::ANEGraph, u32, *mut sys::ANENodeInfo, *mut sys::ANEError) -> sys::ANEStatus;
    graph_destroy: fn(*mut sys::ANEGraph);
    graph_executor_create: fn(*mut sys::ANEGraph, *const sys::ANEExecutorOptions, *mut *mut sys::ANEGraphExecutor, *mut sys::ANEError) -> sys::ANEStatus;
    graph_executor_run: fn(*mut sys::ANEGraphExecutor, *const sys::ANEGraphRunArgs, *mut sys::ANEError) -> sys::ANEStatus;
    graph_executor_submit: fn(*mut sys::ANEGraphExecutor, *const sys::ANEGraphRunArgs, *mut sys::ANETicket, *mut sys::ANEError) -> sys::ANEStatus;
    graph_executor_wait: fn(*mut sys::ANEGraphExecutor, sys::ANETicket, u64, *mut sys::ANERunInfo, *mut sys::ANEError) -> sys::ANEStatus;
    graph_executor_destroy: fn(*mut sys::ANEGraphExecutor);
}

type GraphCompile = unsafe extern "C" fn(
    *mut sys::ANEDevice,
    *const sys::ANEGraphDesc,
    *const sys::ANECompileOptions,
    *mut *mut sys::ANEGraph,
    *mut sys::ANEError,
) -> sys::ANEStatus;

/// How a shim comes by a graph.
#[derive(Clone)]
pub(super) enum GraphSource {
    Compiled(GraphCompile),
    /// It reads packages of this format alone.
    Packages(String),
}

/// A checked table of graphs.
pub(super) struct Graphs {
    pub(super) slots: GraphSlots,
    pub(super) source: GraphSource,
}

impl Graphs {
    /// # Safety
    /// The strings of `table` end in NUL.
    unsafe fn new(table: &sys::ANEGraphTable) -> Result<Self, String> {
        let source = match table.graph_compile {
            Some(compile) => GraphSource::Compiled(compile),
            None if table.package_format.is_null() => {
                return Err("its graph table has neither `graph_compile` nor a package_format".into());
            }
            // SAFETY: by the function's contract.
            None => GraphSource::Packages(unsafe { text(table.package_format) }),
        };
        Ok(Self { slots: GraphSlots::new(table).map_err(missing_slot)?, source })
    }
}

fn missing_slot(slot: &str) -> String {
    format!("its slot `{slot}` is null; every slot must be filled")
}

/// A checked table, and the library that it lives in.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) slots: Slots,
    /// Where it has graphs.
    pub(super) graphs: Option<Arc<Graphs>>,
    /// The backend, as errors name it.
    pub(super) name: BackendId,
    pub(super) version: String,
    /// Who else may change the file that it was loaded from.
    pub(super) writable_by_others: Option<String>,
    /// Keeps the functions in memory: a library goes after everything that came from it.
    _library: Option<Arc<Library>>,
}

impl Table {
    /// Checks the table at `raw`, which came from `origin`.
    ///
    /// # Safety
    /// `raw` is null, or points to a table that keeps to the contract of `include/ane_matmul.h`
    /// for as long as `library` stays loaded: its `struct_size` bytes are readable, its strings
    /// end in NUL, its functions do what the header says.
    pub(super) unsafe fn new(
        raw: *const sys::ANEShim,
        origin: &Path,
        library: Option<Library>,
    ) -> Result<Self> {
        let problem = |problem: String| Error::Shim { path: origin.into(), problem };
        if raw.is_null() {
            return Err(problem("ane_matmul_shim returned no table".into()));
        }
        if !raw.is_aligned() {
            return Err(problem(format!("its table at {raw:p} is not aligned")));
        }
        // SAFETY: the caller promises struct_size readable bytes, of which these are the first 4.
        let size = unsafe { raw.cast::<u32>().read() } as usize;
        let truncated = |what: &str, size: usize, here: usize| {
            problem(format!(
                "its {what} has {size} bytes, this version has {here}: it is truncated; build it against the header of this version"
            ))
        };
        // SAFETY: all-zero bytes are a valid ANEShim: integers, null pointers and empty options.
        let mut table: sys::ANEShim = unsafe { std::mem::zeroed() };
        // SAFETY: at least this many bytes are readable, and the target has room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(
                raw.cast::<u8>(),
                (&raw mut table).cast::<u8>(),
                size.min(size_of::<sys::ANEShim>()),
            );
        }
        if size < offset_of!(sys::ANEShim, name) {
            return Err(truncated("table", size, MINIMUM_SIZE));
        }
        // First: a table of another version may have another size.
        let (major, minor) = (table.abi_major, table.abi_minor);
        let (major_here, minor_here) = (sys::ANE_MATMUL_ABI_MAJOR, sys::ANE_MATMUL_ABI_MINOR);
        if i32::from(major) != major_here || (major_here == 0 && i32::from(minor) != minor_here) {
            return Err(problem(format!(
                "it speaks version {major}.{minor} of the ABI, this crate {major_here}.{minor_here}: build both against the same header"
            )));
        }
        if size < MINIMUM_SIZE {
            return Err(truncated("table", size, MINIMUM_SIZE));
        }
        let slots = Slots::new(&table).map_err(|slot| problem(missing_slot(slot)))?;
        let mut graphs = None;
        if !table.graphs.is_null() {
            if !table.graphs.is_aligned() {
                return Err(problem(format!("its graph table at {:p} is not aligned", table.graphs)));
            }
            // SAFETY: the caller promises a table of graphs as it does this one, of which these are the first 4 bytes.
            let size = unsafe { table.graphs.cast::<u32>().read() } as usize;
            if size < size_of::<sys::ANEGraphTable>() {
                return Err(truncated("graph table", size, size_of::<sys::ANEGraphTable>()));
            }
            // SAFETY: of this size, and never changed; the caller promises strings that end in NUL.
            graphs = Some(Arc::new(unsafe { Graphs::new(&*table.graphs) }.map_err(problem)?));
        }
        // SAFETY: the caller promises strings that end in NUL.
        let (name, version) = unsafe { (text(table.name), text(table.version)) };
        let valid =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(valid) {
            return Err(problem(format!(
                "its name {name:?} is no backend's: expected 1 to {NAME_LIMIT} lower-case letters, digits, '-' or '_'"
            )));
        }
        Ok(Self {
            slots,
            graphs,
            name: BackendId::new(name),
            version,
            writable_by_others: None,
            _library: library.map(Arc::new),
        })
    }

    /// The same, for a backend of this name.
    pub(super) fn named(&self, name: BackendId) -> Self {
        Self { name, ..self.clone() }
    }

    /// Calls a slot that may fail, and turns its failure into an error.
    pub(super) fn call(
        &self,
        step: &'static str,
        slot: impl FnOnce(*mut sys::ANEError) -> sys::ANEStatus,
    ) -> Result<()> {
        self.finish(step, None, slot)
    }

    /// As [`Table::call`], of a slot whose time may be over: whether it was not.
    pub(super) fn call_pending(
        &self,
        step: &'static str,
        slot: impl FnOnce(*mut sys::ANEError) -> sys::ANEStatus,
    ) -> Result<bool> {
        let mut pending = false;
        let ended = |error| match slot(error) {
            sys::ANE_STATUS_PENDING => {
                pending = true;
                sys::ANE_STATUS_OK
            }
            status => status,
        };
        self.call(step, ended).map(|()| !pending)
    }

    /// As [`Table::call`], with room for a compiler's log.
    pub(super) fn call_with_log(
        &self,
        step: &'static str,
        slot: impl FnOnce(*mut sys::ANEError) -> sys::ANEStatus,
    ) -> Result<()> {
        let mut log = vec![0u8; LOG_BYTES];
        self.finish(step, Some(&mut log), slot)
    }

    fn finish(
        &self,
        step: &'static str,
        mut log: Option<&mut [u8]>,
        slot: impl FnOnce(*mut sys::ANEError) -> sys::ANEStatus,
    ) -> Result<()> {
        // SAFETY: all-zero bytes are a valid ANEError: integers, characters and a null pointer.
        let mut error: sys::ANEError = unsafe { std::mem::zeroed() };
        error.struct_size = size_u32::<sys::ANEError>();
        if let Some(log) = log.as_deref_mut() {
            error.log = log.as_mut_ptr().cast();
            error.log_capacity = log.len() as u64;
        }
        let status = slot(&raw mut error);
        if status == sys::ANE_STATUS_OK {
            return Ok(());
        }
        let message = message_in(&error.message);
        if status == sys::ANE_STATUS_REFUSED {
            let refusal = Refusal::new(reason(error.refusal), message);
            return Err(Error::Refused { backend: self.name.clone(), refusal });
        }
        Err(Error::Native(Box::new(NativeError {
            backend: self.name.clone(),
            step,
            status: native_status(status),
            code: error.native_code,
            domain: characters(&error.domain),
            message,
            log: log.map(|log| lossy(log)).unwrap_or_default(),
        })))
    }

    /// The error for a slot that reports success without an object.
    pub(super) fn no_object(&self, step: &'static str) -> Error {
        let message = "the shim reported success but gave no object; report this to its author";
        self.native(step, NativeStatus::Internal, message.into())
    }

    /// An error of the shim's that it did not report itself.
    pub(super) fn native(&self, step: &'static str, status: NativeStatus, message: String) -> Error {
        Error::Native(Box::new(NativeError {
            backend: self.name.clone(),
            step,
            status,
            code: 0,
            domain: String::new(),
            message,
            log: String::new(),
        }))
    }
}

/// Elsewhere, as in WebAssembly, there are none.
#[cfg(not(any(unix, windows)))]
type Library = std::convert::Infallible;

#[cfg(not(any(unix, windows)))]
pub(super) unsafe fn load(path: &Path) -> Result<Table> {
    Err(Error::Shim { path: path.into(), problem: "this system has no dynamic libraries".into() })
}

/// Loads a dynamic library and checks its table.
///
/// # Safety
/// Loading runs the library's initialisers, and its table must keep to the contract.
#[cfg(any(unix, windows))]
pub(super) unsafe fn load(path: &Path) -> Result<Table> {
    let problem = |problem: String| Error::Shim { path: path.into(), problem };
    // A bare name would be searched for in the system's library directories.
    let file = std::fs::canonicalize(path).map_err(|source| Error::io(path, "load", source))?;
    let writable_by_others = crate::files::private_dir::writable_by_others(&file);
    if let Some(who) = &writable_by_others {
        log::warn!("{} is code that this process runs, and {who}", file.display());
    }
    // SAFETY: the caller vouches for the library's initialisers.
    let library = unsafe { Library::new(&file) }
        .map_err(|error| problem(format!("it cannot be loaded as a dynamic library: {}", cause(&error))))?;
    // SAFETY: the header declares the getter with this signature, and the caller vouches for it.
    let getter = unsafe { library.get::<unsafe extern "C" fn() -> *const sys::ANEShim>(c"ane_matmul_shim") }
        .map(|getter| *getter)
        .map_err(|error| problem(format!("it does not export `ane_matmul_shim`: {}", cause(&error))))?;
    // SAFETY: the caller vouches for the getter.
    let raw = unsafe { getter() };
    // SAFETY: the caller vouches for the table, which lives as long as the library.
    let table = unsafe { Table::new(raw, path, Some(library)) }?;
    Ok(Table { writable_by_others, ..table })
}

/// The loader's own words, which the library's error keeps as its source.
#[cfg(any(unix, windows))]
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

pub(super) fn size_u32<T>() -> u32 {
    // Structs of the ABI have a few hundred bytes.
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// A C string, or an empty one for null; broken UTF-8 is replaced.
///
/// # Safety
/// `pointer` is null or points to a string that ends in NUL.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by the function's contract.
    lossy(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// The text in an array of characters: up to the first NUL, never beyond the array; broken UTF-8
/// is replaced.
pub(super) fn characters(array: &[c_char]) -> String {
    let bytes: Vec<u8> = array.iter().map(|&c| c.to_ne_bytes()[0]).take_while(|&byte| byte != 0).collect();
    lossy(&bytes)
}

/// [`characters`], or that there are none.
pub(super) fn message_in(array: &[c_char]) -> String {
    let message = characters(array);
    if message.is_empty() { "the shim gave no message".to_owned() } else { message }
}

fn lossy(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    // Control characters would garble a terminal.
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

pub(super) fn reason(code: sys::ANERefusal) -> RefusalReason {
    usize::try_from(code)
        .ok()
        .and_then(|code| code.checked_sub(1))
        .and_then(|index| RefusalReason::ALL.get(index).copied())
        .unwrap_or(RefusalReason::Other)
}

fn native_status(status: sys::ANEStatus) -> NativeStatus {
    match status {
        sys::ANE_STATUS_INVALID_ARGUMENT => NativeStatus::InvalidArgument,
        sys::ANE_STATUS_REFUSED => NativeStatus::Refused,
        sys::ANE_STATUS_OUT_OF_MEMORY => NativeStatus::OutOfMemory,
        sys::ANE_STATUS_NO_DEVICE => NativeStatus::NoDevice,
        sys::ANE_STATUS_COMPILE_FAILED => NativeStatus::CompileFailed,
        sys::ANE_STATUS_RUN_FAILED => NativeStatus::RunFailed,
        sys::ANE_STATUS_EXCEPTION => NativeStatus::Exception,
        sys::ANE_STATUS_TIMEOUT => NativeStatus::Timeout,
        sys::ANE_STATUS_BACKGROUND => NativeStatus::Background,
        sys::ANE_STATUS_IO => NativeStatus::Io,
        sys::ANE_STATUS_PACKAGE_MISMATCH => NativeStatus::PackageMismatch,
        sys::ANE_STATUS_NOT_IMPLEMENTED => NativeStatus::NotImplemented,
        _ => NativeStatus::Internal,
    }
}
