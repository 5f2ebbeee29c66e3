//! Any engine behind the C ABI: the one place that calls into a shim.

mod buffers;
mod convert;
mod graph;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::refusal::{NodeRefusal, Refusal, RefusalReason};
use crate::backend::{
    Backend, BackendId, CompiledInfo, CompiledProduct, GraphProgram, Run, RunArgs, Submitted,
};
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::error::{Error, NativeStatus, Result};
use crate::executor::RunObservation;
use crate::files::package::PackageStore;
use crate::graph::Graph;
use crate::operands::device_tensor::Storage;
use crate::operands::shared_buffer::BufferMemory;
use crate::operands::weights::Weights;
use crate::sys;

use buffers::{Constant, Constants, Registry, ShimBuffer};
use table::{Table, characters, size_u32};

/// A native engine that speaks the C ABI of `include/ane_matmul.h`.
///
/// Add it to [`crate::Backends`] to use it. The library stays loaded until everything that was made
/// from it is gone.
///
/// ```no_run
/// use ane_matmul::{Backends, CompileOptions, MatMul, ShimLibrary};
///
/// // SAFETY: the library keeps to the contract of `include/ane_matmul.h`.
/// let shim = unsafe { ShimLibrary::open("./libnaive.so") }?;
/// let mut backends = Backends::new();
/// let id = backends.add(shim)?;
/// let compiled = backends.compile(&id, &MatMul::new(2, 4, 3)?, &CompileOptions::default())?;
/// assert_eq!(compiled.backend(), &id);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Clone)]
pub struct ShimLibrary {
    table: Arc<Table>,
}

impl ShimLibrary {
    /// Loads a dynamic library that exports `ane_matmul_shim`, and checks its version, its size,
    /// its slots and its name.
    ///
    /// # Safety
    /// This runs foreign code, now and in every call that follows. The library must keep to the
    /// contract of `include/ane_matmul.h`; what it does otherwise is undefined.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file, [`Error::Shim`] when it is no usable shim.
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<Self> {
        // SAFETY: the caller vouches for the library.
        let table = unsafe { table::load(path.as_ref()) }?;
        Ok(Self { table: Arc::new(table) })
    }

    /// Takes a table of functions that is linked into the program: a pointer to an `ANEShim`, as
    /// `ane_matmul_shim` returns it. `origin` stands in error messages.
    ///
    /// # Safety
    /// As [`ShimLibrary::open`]; `table` is null or points to an `ANEShim` that is never changed
    /// or freed, and of which `struct_size` bytes are readable.
    ///
    /// # Errors
    /// [`Error::Shim`] when it is no usable shim.
    pub unsafe fn from_table(table: *const c_void, origin: impl AsRef<Path>) -> Result<Self> {
        // SAFETY: the caller vouches for the table.
        let table = unsafe { Table::new(table.cast(), origin.as_ref(), None) }?;
        Ok(Self { table: Arc::new(table) })
    }

    /// The name of the backend.
    #[must_use]
    pub fn name(&self) -> &BackendId {
        &self.table.name
    }

    /// The version of the shim, in its own words.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.table.version
    }

    /// Who, beside this process's user and the administrator, may change the file that the shim was loaded
    /// from, in words: code of theirs would run here. It is logged as a warning too.
    ///
    /// `None` where nobody may, for a table that is linked into the program, and on systems other than
    /// Unix, where it is not known.
    #[must_use]
    pub fn writable_by_others(&self) -> Option<&str> {
        self.table.writable_by_others.as_deref()
    }

    /// The devices that the shim finds here, in the order of their indices: [`crate::Backends::add_device`] takes one.
    ///
    /// # Errors
    /// [`Error::Native`], where they cannot be counted; none at all is no error.
    pub fn devices(&self) -> Result<Vec<ShimDevice>> {
        (0..self.device_count()?).map(|index| Ok(self.facts(index)?.device(self, index))).collect()
    }

    fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        self.table.call("device_count", |error| {
            // SAFETY: count and error are valid for the call.
            unsafe { (self.table.slots.device_count)(&raw mut count, error) }
        })?;
        if count > MAX_DEVICES {
            let message = format!("the shim finds {count} devices; report this to its author");
            return Err(self.table.native("device_count", NativeStatus::Internal, message));
        }
        Ok(count)
    }

    fn facts(&self, index: u32) -> Result<Facts> {
        // SAFETY: all-zero bytes are a valid ANEDeviceInfo: integers and characters.
        let mut info: sys::ANEDeviceInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANEDeviceInfo>();
        self.table.call("device_info", |error| {
            // SAFETY: info and error are valid for the call.
            unsafe { (self.table.slots.device_info)(index, &raw mut info, error) }
        })?;
        Ok(Facts(info))
    }

    /// The name of the backend for one of the devices.
    pub(super) fn device_id(&self, index: u32) -> BackendId {
        if index == 0 { self.name().clone() } else { BackendId::new(format!("{}:{index}", self.name())) }
    }

    /// Opens a device; the error says why it cannot be had.
    pub(super) fn into_backend(self, index: u32) -> Result<ShimBackend> {
        let name = self.device_id(index);
        let shim = Self { table: Arc::new(self.table.named(name)) };
        let count = shim.device_count()?;
        if index >= count {
            return Err(shim.table.native(
                "device_open",
                NativeStatus::NoDevice,
                format!("there is no device {index}: the shim finds {count}"),
            ));
        }
        let facts = shim.facts(index)?;
        let preferred = facts.0.preferred_buffer;
        if !matches!(preferred, sys::ANE_BUFFER_HOST_VISIBLE | sys::ANE_BUFFER_DEVICE) {
            let message = format!(
                "preferred_buffer is {preferred}, which is no kind of buffer; report this to its author"
            );
            return Err(shim.table.native("device_info", NativeStatus::Internal, message));
        }
        let device = DeviceHandle::open(shim.table, index, facts)?;
        Ok(ShimBackend { prepared: Mutex::new(None), device: Arc::new(device) })
    }
}

/// More devices than this are taken for a fault of the shim's.
const MAX_DEVICES: u32 = 4096;

/// A device that a shim finds.
///
/// ```no_run
/// use ane_matmul::{Backends, ShimLibrary};
///
/// // SAFETY: the library keeps to the contract of `include/ane_matmul.h`.
/// let shim = unsafe { ShimLibrary::open("./libcuda_shim.so") }?;
/// let mut backends = Backends::new();
/// for device in shim.devices()? {
///     println!("{}: {}", device.id, device.name);
///     backends.add_device(shim.clone(), device.index)?;
/// }
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShimDevice {
    /// Its number, by which it is opened.
    pub index: u32,
    /// The name that its backend gets.
    pub id: BackendId,
    /// The kind of device.
    pub kind: Device,
    /// Its own name.
    pub name: String,
}

/// What a shim says of a device.
struct Facts(sys::ANEDeviceInfo);

impl Facts {
    fn has(&self, flag: i32) -> bool {
        self.0.flags & flag.cast_unsigned() != 0
    }

    fn max_queue_depth(&self) -> usize {
        self.0.max_queue_depth as usize
    }

    fn device(&self, shim: &ShimLibrary, index: u32) -> ShimDevice {
        ShimDevice {
            index,
            id: shim.device_id(index),
            kind: convert::device(self.0.kind),
            name: characters(&self.0.name),
        }
    }
}

/// A shim that `build.rs` linked, or why it did not.
pub(super) type Linked = std::result::Result<Result<ShimLibrary>, &'static str>;

/// Declares the getter of a shim that `build.rs` linked, under the cfg that says so.
macro_rules! linked {
    ($cfg:ident, $function:ident, $getter:literal, $absent:literal) => {
        pub(super) fn $function() -> Linked {
            #[cfg($cfg)]
            {
                unsafe extern "C" {
                    #[link_name = concat!($getter, "_", env!("ANE_MATMUL_SYMBOLS"))]
                    fn getter() -> *const sys::ANEShim;
                }
                // SAFETY: the getter takes nothing and returns the address of a constant table,
                // built from this crate's sources against this crate's header.
                Ok(unsafe { ShimLibrary::from_table(getter().cast(), $getter) })
            }
            #[cfg(not($cfg))]
            Err(option_env!($absent).unwrap_or("it is not for this target"))
        }
    };
}

linked!(ane_matmul_metal, linked_metal, "ane_metal_shim", "NO_ANE_MATMUL_METAL");
linked!(ane_matmul_mpsgraph, linked_mpsgraph, "ane_mpsgraph_shim", "NO_ANE_MATMUL_MPSGRAPH");

impl std::fmt::Debug for ShimLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimLibrary").field("name", self.name()).field("version", &self.version()).finish()
    }
}

/// An open device, closed when dropped.
struct DeviceHandle {
    raw: NonNull<sys::ANEDevice>,
    facts: Facts,
    buffers: Registry,
    constants: Constants,
    /// With the name of this device's backend.
    table: Arc<Table>,
}

impl Drop for DeviceHandle {
    fn drop(&mut self) {
        // SAFETY: the shim opened this device, and it is closed here only; buffers, constants and products
        // hold it, so none is left.
        unsafe { (self.table.slots.device_close)(self.raw.as_ptr()) }
    }
}

/// A handle of a shim's, destroyed when dropped. It holds its parent, so that children go first.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident($raw:ident) from $parent:ident: $parent_type:ty, by $destroy:ident, $table:expr $(, $field:ident: $field_type:ty)*) => {
        $(#[$doc])*
        struct $name {
            raw: NonNull<sys::$raw>,
            $($field: $field_type,)*
            $parent: $parent_type,
        }

        impl $name {
            fn table(&self) -> &Table {
                let table: fn(&$parent_type) -> &Table = $table;
                table(&self.$parent)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the shim made this object, and it is destroyed here only; its parent
                // still lives, since `self` holds it.
                unsafe { (self.table().slots.$destroy)(self.raw.as_ptr()) }
            }
        }
    };
}

handle!(ProductHandle(ANEProduct) from device: Arc<DeviceHandle>, by product_destroy, |device| device.table(), constants: Vec<Arc<Constant>>);
handle!(ExecutorHandle(ANEMatMulExecutor) from product: Arc<ProductHandle>, by executor_destroy, |product| product.table());

// SAFETY: the contract lets any thread use a device, several at once.
unsafe impl Send for DeviceHandle {}
// SAFETY: as for Send.
unsafe impl Sync for DeviceHandle {}
// SAFETY: the contract lets any thread use a compiled product, several at once.
unsafe impl Send for ProductHandle {}
// SAFETY: as for Send.
unsafe impl Sync for ProductHandle {}
// SAFETY: the contract lets an executor move between threads; it is not Sync.
unsafe impl Send for ExecutorHandle {}

impl DeviceHandle {
    fn table(&self) -> &Table {
        &self.table
    }

    /// An address that no other device has while this one is open.
    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn open(table: Arc<Table>, index: u32, facts: Facts) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        table.call("device_open", |error| {
            // SAFETY: out and error are valid for the call.
            unsafe { (table.slots.device_open)(index, &raw mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("device_open"))?;
        Ok(Self { raw, facts, buffers: Registry::default(), constants: Constants::default(), table })
    }
}

pub(super) struct ShimBackend {
    /// How long the device was prepared, once it was.
    prepared: Mutex<Option<Duration>>,
    device: Arc<DeviceHandle>,
}

impl Backend for ShimBackend {
    fn describe(&self) -> String {
        let table = self.device.table();
        format!("shim `{}`, version {}", table.name, table.version)
    }

    fn device(&self) -> (Device, String) {
        (convert::device(self.device.facts.0.kind), characters(&self.device.facts.0.name))
    }

    fn is_test_double(&self) -> bool {
        self.device.facts.has(sys::ANE_DEVICE_FLAG_TEST_DOUBLE)
    }

    fn prepare(&self) -> Result<Option<Duration>> {
        // Held while it is prepared, so that it is prepared once.
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.is_none() {
            let (start, table) = (Instant::now(), self.device.table());
            table.call("device_prepare", |error| {
                // SAFETY: the device is open; error is valid for the call.
                unsafe { (table.slots.device_prepare)(self.device.raw.as_ptr(), error) }
            })?;
            *prepared = Some(start.elapsed());
        }
        Ok(*prepared)
    }

    fn max_queue_depth(&self) -> usize {
        self.device.facts.max_queue_depth()
    }

    fn device_key(&self) -> usize {
        self.device.key()
    }

    fn holds(&self, start: *const u8, bytes: usize) -> bool {
        bytes == 0 || self.device.buffers.find(start, bytes).is_some()
    }

    fn copies_host_operands(&self) -> bool {
        self.device.facts.0.preferred_buffer != sys::ANE_BUFFER_HOST_VISIBLE
    }

    fn allocate(&self, bytes: usize) -> Result<Storage> {
        buffers::allocate(&self.device, self.device.facts.0.preferred_buffer, bytes)
    }

    fn is_foreign(&self) -> bool {
        true
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        if let Threads::Pool(_) = options.threads {
            return Err(pool_refusal());
        }
        let types = product.types();
        let bias = if product.has_bias() { types.bias } else { types.a };
        if [types.a, types.b, types.accumulator, types.output, bias].contains(&ElementType::F64) {
            return Err(Refusal::new(
                RefusalReason::ElementType,
                "shims are not asked for f64, which no engine behind one has; use the cpu backend",
            ));
        }
        let table = self.device.table();
        let (description, options) = (convert::description(product), convert::options(options));
        let result = table.call("supports", |error| {
            // SAFETY: the device is open; the other pointers are valid for the call.
            unsafe {
                (table.slots.supports)(
                    self.device.raw.as_ptr(),
                    &raw const description,
                    &raw const options,
                    error,
                )
            }
        });
        result.map_err(Refusal::of_failure)
    }

    fn wrap_alignment_bytes(&self) -> Option<usize> {
        usize::try_from(self.device.facts.0.wrap_alignment).ok().filter(|&bytes| bytes > 0)
    }

    fn buffer(&self, bytes: usize) -> Result<Box<dyn BufferMemory>> {
        Ok(Box::new(ShimBuffer::create(&self.device, bytes)?))
    }

    unsafe fn wrap(&self, start: NonNull<u8>, bytes: usize) -> Result<Box<dyn BufferMemory>> {
        // SAFETY: by this function's own contract.
        Ok(Box::new(unsafe { ShimBuffer::wrap(&self.device, start, bytes) }?))
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        let Some(directory) = &options.packages else {
            let handle = self.make(product, weights, options, None)?;
            return Ok(Box::new(ShimProduct { handle, note: None }));
        };
        let store = PackageStore::open(directory)?;
        let key = self.package_key(product, weights, options);
        if let Some(path) = store.find(&key) {
            match self.make(product, weights, options, Some(&path)) {
                Ok(handle) => return Ok(Box::new(ShimProduct { handle, note: None })),
                Err(error) => log::warn!("{}: {error}; the product is compiled again", path.display()),
            }
        }
        let handle = self.make(product, weights, options, None)?;
        let note = store.save(&key, |path| self.save(&handle, path)).err().map(|error| match error {
            Error::Native(native) if native.status == NativeStatus::NotImplemented => {
                format!("not kept for the next start: {}", native.message)
            }
            error => {
                log::warn!("a compiled product was not kept: {error}");
                format!("not kept for the next start: {error}")
            }
        });
        Ok(Box::new(ShimProduct { handle, note }))
    }

    fn refused_nodes(&self, graph: &Graph, options: &CompileOptions) -> Result<Vec<NodeRefusal>> {
        self.refused_graph_nodes(graph, options)
    }

    fn compile_graph(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn GraphProgram>> {
        Ok(Box::new(self.compile_shim_graph(graph, options)?))
    }
}

fn pool_refusal() -> Refusal {
    Refusal::new(
        RefusalReason::Threads,
        "a shim cannot use a thread pool of the caller's; ask for a number of threads",
    )
}

impl ShimBackend {
    /// Compiles a product, or loads it from what [`ShimBackend::save`] wrote.
    fn make(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
        saved: Option<&Path>,
    ) -> Result<Arc<ProductHandle>> {
        let table = self.device.table();
        let path = saved.map(c_path).transpose()?;
        let (description, native_options) = (convert::description(product), convert::options(options));
        let scales = convert::NativeScales::of(product);
        let hashed = options.packages.is_some();
        let mut native_constants = convert::constants(weights, &scales, hashed);
        let constants = self.upload_constants(weights, &mut native_constants, hashed)?;
        let step = if saved.is_some() { "product_load" } else { "compile" };
        let mut raw = std::ptr::null_mut();
        let device = self.device.raw.as_ptr();
        let (desc, consts, opts) =
            (&raw const description, &raw const native_constants, &raw const native_options);
        table.call_with_log(step, |error| match &path {
            // SAFETY: the device is open; the other pointers are valid for the call, those in
            // `native_constants` because `weights` and `scales` are borrowed, and `constants` held, until it returns.
            None => unsafe { (table.slots.compile)(device, desc, consts, opts, &raw mut raw, error) },
            // SAFETY: as above; the path ends in NUL.
            Some(path) => unsafe {
                let load = table.slots.product_load;
                load(device, desc, consts, opts, path.as_ptr(), &raw mut raw, error)
            },
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object(step))?;
        let handle = Arc::new(ProductHandle { raw, constants, device: Arc::clone(&self.device) });
        // What cannot be asked is noted in the product's report.
        if let Ok(info) = handle.info() {
            self.check_arithmetic(info.arithmetic, &native_options)?;
        }
        Ok(handle)
    }

    /// Puts constants of the device in place of what `constants` has in the host's memory, where the shim takes them.
    fn upload_constants(
        &self,
        weights: Option<&Weights>,
        constants: &mut sys::ANEConstants,
        hashed: bool,
    ) -> Result<Vec<Arc<Constant>>> {
        let Some(weights) = weights.filter(|_| self.device.facts.has(sys::ANE_DEVICE_FLAG_CONSTANTS)) else {
            return Ok(Vec::new());
        };
        let b = Constants::of(&self.device, weights, hashed)?;
        (constants.b, constants.b_constant) = (std::ptr::null(), b.raw.as_ptr());
        let mut held = vec![b];
        if let Some(scales) = weights.scale_weights() {
            let scales = Constants::of(&self.device, scales, hashed)?;
            (constants.scales_b, constants.scales_b_constant) = (std::ptr::null(), scales.raw.as_ptr());
            held.push(scales);
        }
        Ok(held)
    }

    /// Refuses a product or a graph that makes use of arithmetic that was not allowed.
    fn check_arithmetic(&self, arithmetic: u32, options: &sys::ANECompileOptions) -> Result<()> {
        let allowed = |option: i32| options.flags & option.cast_unsigned() != 0;
        let used = convert::arithmetic(arithmetic);
        let reduced = used.tf32 || used.bf16 || used.f16;
        if (used.fast_math && !allowed(sys::ANE_OPTION_FAST_MATH))
            || (reduced && !allowed(sys::ANE_OPTION_REDUCED_PRECISION))
        {
            let refusal = Refusal::new(
                RefusalReason::Precision,
                format!(
                    "the shim computes it with {used}, which was not allowed (CompileOptions::fast_math, reduced_precision)"
                ),
            );
            return Err(Error::Refused { backend: self.device.table().name.clone(), refusal });
        }
        Ok(())
    }

    fn save(&self, product: &ProductHandle, path: &Path) -> Result<()> {
        let (table, path) = (self.device.table(), c_path(path)?);
        table.call("product_save", |error| {
            // SAFETY: the product lives; the path ends in NUL; error is valid for the call.
            unsafe { (table.slots.product_save)(product.raw.as_ptr(), path.as_ptr(), error) }
        })
    }

    /// All that a saved product depends on.
    fn package_key(&self, product: &MatMul, weights: Option<&Weights>, options: &CompileOptions) -> String {
        let table = self.device.table();
        // What changes how long compiling takes, but not its result.
        let options = CompileOptions { expected_runs: None, time_limit: None, ..options.clone() };
        let quantization = product.quantization();
        let hash = weights.map_or_else(
            || "none".to_owned(),
            |weights| blake3::Hash::from_bytes(*weights.content_hash()).to_hex().to_string(),
        );
        format!(
            "ane-matmul package 1\nshim {} {}\nchip {}\nos {}\nproduct {:?}\noptions {:?}\nscales {:?}\nweights {hash}",
            table.name,
            table.version,
            characters(&self.device.facts.0.chip),
            characters(&self.device.facts.0.os_build),
            convert::description(product),
            convert::options(&options),
            [quantization.a.scale(), quantization.b.scale(), quantization.output.scale()],
        )
    }
}

/// A path for a shim, which takes UTF-8.
fn c_path(path: &Path) -> Result<CString> {
    let text = path.to_str().and_then(|text| CString::new(text).ok());
    text.ok_or_else(|| {
        let problem = std::io::Error::other("the path is not UTF-8: name another directory");
        Error::io(path, "keep packages in", problem)
    })
}

struct ShimProduct {
    handle: Arc<ProductHandle>,
    /// Why it was not kept, where it should have been.
    note: Option<String>,
}

impl ProductHandle {
    fn info(&self) -> Result<sys::ANEProductInfo> {
        let table = self.table();
        // SAFETY: all-zero bytes are a valid ANEProductInfo: integers.
        let mut info: sys::ANEProductInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANEProductInfo>();
        table.call("product_info", |error| {
            // SAFETY: the product lives; info and error are valid for the call.
            unsafe { (table.slots.product_info)(self.raw.as_ptr(), &raw mut info, error) }
        })?;
        Ok(info)
    }
}

impl CompiledProduct for ShimProduct {
    fn open(&self, queue_depth: usize) -> Result<Box<dyn Run>> {
        let table = self.handle.table();
        let options = sys::ANEExecutorOptions {
            struct_size: size_u32::<sys::ANEExecutorOptions>(),
            // A shim that takes none computes while it is submitted to. Its own depth is of this type.
            queue_depth: u32::try_from(queue_depth.min(self.handle.device.facts.max_queue_depth()))
                .unwrap_or(u32::MAX),
        };
        let (product, mut raw) = (self.handle.raw.as_ptr(), std::ptr::null_mut());
        table.call("executor_create", |error| {
            // SAFETY: the product lives; options, out and error are valid for the call.
            unsafe { (table.slots.executor_create)(product, &raw const options, &raw mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("executor_create"))?;
        Ok(Box::new(ShimRun(ExecutorHandle { raw, product: Arc::clone(&self.handle) })))
    }

    fn info(&self) -> CompiledInfo {
        let constants = &self.handle.constants;
        let shared_bytes = constants.iter().map(|constant| constant.bytes).sum();
        let part = |constant: &Arc<Constant>| (Arc::as_ptr(constant).addr(), constant.bytes);
        let shared = [constants.first().map(part), constants.get(1).map(part)];
        match self.handle.info() {
            Ok(info) => CompiledInfo {
                bytes_held: usize::try_from(info.bytes_held)
                    .unwrap_or(usize::MAX)
                    .saturating_add(shared_bytes),
                shared,
                observed: convert::device(info.observed),
                note: self.note.clone(),
                from_package: info.flags & sys::ANE_PRODUCT_FLAG_FROM_PACKAGE.cast_unsigned() != 0,
                arithmetic: convert::arithmetic(info.arithmetic),
                ..CompiledInfo::default()
            },
            Err(error) => CompiledInfo {
                note: Some(error.to_string()),
                bytes_held: shared_bytes,
                shared,
                ..CompiledInfo::default()
            },
        }
    }
}

struct ShimRun(ExecutorHandle);

impl Run for ShimRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        self.call(args, std::ptr::null_mut())
    }

    fn run_observed(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        let mut info = empty_info();
        self.call(args, &raw mut info)?;
        Ok(convert::observation(&info))
    }

    unsafe fn submit(&mut self, mut args: RunArgs<'_>) -> Result<Submitted> {
        if self.0.product.device.facts.max_queue_depth() == 0 {
            return Ok(Submitted::Done(self.run_observed(args)));
        }
        let table = self.0.table();
        let raw_args = convert::run_args(&mut args, &self.0.product.device.buffers);
        let mut ticket = 0;
        table.call("executor_submit", |error| {
            // SAFETY: the executor lives, and `&mut self` makes this its only use; the operands lie in buffers of
            // its device and stay untouched until the ticket ends or the executor is destroyed, as the caller
            // promises; ticket and error are valid for the call.
            unsafe {
                (table.slots.executor_submit)(
                    self.0.raw.as_ptr(),
                    &raw const raw_args,
                    &raw mut ticket,
                    error,
                )
            }
        })?;
        Ok(Submitted::Ticket(ticket))
    }

    fn wait(&mut self, ticket: u64, timeout: Option<Duration>) -> Result<Option<RunObservation>> {
        let (table, mut info) = (self.0.table(), empty_info());
        let timeout_ns =
            timeout.map_or(u64::MAX, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        let ended = table.call_pending("executor_wait", |error| {
            // SAFETY: the executor lives, and `&mut self` makes this its only use; info and error are valid.
            unsafe {
                (table.slots.executor_wait)(self.0.raw.as_ptr(), ticket, timeout_ns, &raw mut info, error)
            }
        })?;
        Ok(ended.then(|| convert::observation(&info)))
    }
}

fn empty_info() -> sys::ANERunInfo {
    // SAFETY: all-zero bytes are a valid ANERunInfo: integers.
    let info: sys::ANERunInfo = unsafe { std::mem::zeroed() };
    sys::ANERunInfo { struct_size: size_u32::<sys::ANERunInfo>(), ..info }
}

impl ShimRun {
    /// `info` is null or valid for the call.
    fn call(&mut self, mut args: RunArgs<'_>, info: *mut sys::ANERunInfo) -> Result<()> {
        let table = self.0.table();
        let mut raw_args = convert::run_args(&mut args, &self.0.product.device.buffers);
        raw_args.info = info;
        table.call("executor_run", |error| {
            // SAFETY: the executor lives, and `&mut self` makes this its only use; the operands
            // are borrowed in `args` until the call returns, cover the described layouts, and C
            // overlaps no other, as Rust's borrows guarantee; `info` is null or valid.
            unsafe { (table.slots.executor_run)(self.0.raw.as_ptr(), &raw const raw_args, error) }
        })
    }
}
