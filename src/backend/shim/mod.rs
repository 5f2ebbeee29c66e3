//! Any engine behind the C ABI: the one place that calls into a shim.

mod convert;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::backend::{Backend, BackendId, CompiledProduct, Facts, Run, RunArgs};
use crate::error::{Error, Result};
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device, Threads};
use crate::refusal::{Refusal, RefusalReason};
use crate::sys;
use crate::weights::Weights;

use table::{Table, characters, size_u32};

/// A native engine that speaks the C ABI of `include/ane_matmul.h`.
///
/// Add it to [`crate::Backends`] to use it. The library stays loaded until everything that was made
/// from it is gone.
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

    /// Opens the device; the error says why it cannot be had.
    pub(super) fn into_backend(self) -> Result<ShimBackend> {
        let device = DeviceHandle::open(Arc::clone(&self.table))?;
        // SAFETY: all-zero bytes are a valid ANEDeviceInfo: integers and characters.
        let mut info: sys::ANEDeviceInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANEDeviceInfo>();
        self.table.call("device_info", |error| {
            // SAFETY: the device is open; info and error are valid for the call.
            unsafe { (self.table.slots.device_info)(device.raw.as_ptr(), &raw mut info, error) }
        })?;
        Ok(ShimBackend {
            kind: convert::device(info.kind),
            device_name: characters(&info.name),
            test_double: info.flags & sys::ANE_DEVICE_FLAG_TEST_DOUBLE.cast_unsigned() != 0,
            device: Arc::new(device),
        })
    }
}

/// Declares the getter of a shim that `build.rs` linked, under the cfg that says so.
macro_rules! linked {
    ($cfg:ident, $function:ident, $getter:ident) => {
        /// The shim of this name, where this build has it.
        pub(super) fn $function() -> Option<Result<ShimLibrary>> {
            #[cfg($cfg)]
            {
                unsafe extern "C" {
                    fn $getter() -> *const sys::ANEShim;
                }
                // SAFETY: the getter takes nothing and returns the address of a constant table,
                // built from this crate's sources against this crate's header.
                Some(unsafe { ShimLibrary::from_table($getter().cast(), stringify!($getter)) })
            }
            #[cfg(not($cfg))]
            None
        }
    };
}

linked!(ane_matmul_metal, linked_metal, ane_metal_shim);
linked!(ane_matmul_mpsgraph, linked_mpsgraph, ane_mpsgraph_shim);

impl std::fmt::Debug for ShimLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimLibrary").field("name", self.name()).field("version", &self.version()).finish()
    }
}

/// A handle of a shim's, destroyed when dropped. It holds its parent, so that children go first.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident($raw:ident) from $parent:ident: $parent_type:ty, by $destroy:ident, $table:expr) => {
        $(#[$doc])*
        struct $name {
            raw: NonNull<sys::$raw>,
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

handle!(DeviceHandle(ANEDevice) from table: Arc<Table>, by device_close, |table| table);
handle!(ProductHandle(ANEProduct) from device: Arc<DeviceHandle>, by product_destroy, |device| device.table());
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
    fn open(table: Arc<Table>) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: out and error are valid for the call.
        table.call("device_open", |error| unsafe { (table.slots.device_open)(&raw mut raw, error) })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("device_open"))?;
        Ok(Self { raw, table })
    }
}

pub(super) struct ShimBackend {
    kind: Device,
    device_name: String,
    test_double: bool,
    device: Arc<DeviceHandle>,
}

impl Backend for ShimBackend {
    fn describe(&self) -> String {
        let table = self.device.table();
        format!("shim `{}`, version {}", table.name, table.version)
    }

    fn device(&self) -> (Device, String) {
        (self.kind, self.device_name.clone())
    }

    fn is_test_double(&self) -> bool {
        self.test_double
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        if let Threads::Pool(_) = options.threads {
            return Err(Refusal::new(
                RefusalReason::Threads,
                "a shim cannot use a thread pool of the caller's; ask for a number of threads",
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
        match result {
            Ok(()) => Ok(()),
            Err(Error::Refused { refusal, .. }) => Err(refusal),
            Err(error) => Err(Refusal::new(RefusalReason::Other, error.to_string())),
        }
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        let table = self.device.table();
        let (description, options) = (convert::description(product), convert::options(options));
        let constants = convert::constants(weights);
        let mut raw = std::ptr::null_mut();
        table.call_with_log("compile", |error| {
            // SAFETY: the device is open; the other pointers are valid for the call, those in
            // `constants` because `weights` is borrowed until it returns.
            unsafe {
                (table.slots.compile)(
                    self.device.raw.as_ptr(),
                    &raw const description,
                    &raw const constants,
                    &raw const options,
                    &raw mut raw,
                    error,
                )
            }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("compile"))?;
        Ok(Box::new(ShimProduct(Arc::new(ProductHandle { raw, device: Arc::clone(&self.device) }))))
    }
}

struct ShimProduct(Arc<ProductHandle>);

impl CompiledProduct for ShimProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        let table = self.0.table();
        let mut raw = std::ptr::null_mut();
        table.call("executor_create", |error| {
            // SAFETY: the product lives; out and error are valid for the call.
            unsafe { (table.slots.executor_create)(self.0.raw.as_ptr(), &raw mut raw, error) }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("executor_create"))?;
        Ok(Box::new(ShimRun(ExecutorHandle { raw, product: Arc::clone(&self.0) })))
    }

    fn facts(&self) -> Facts {
        let table = self.0.table();
        // SAFETY: all-zero bytes are a valid ANEProductInfo: integers.
        let mut info: sys::ANEProductInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_u32::<sys::ANEProductInfo>();
        let result = table.call("product_info", |error| {
            // SAFETY: the product lives; info and error are valid for the call.
            unsafe { (table.slots.product_info)(self.0.raw.as_ptr(), &raw mut info, error) }
        });
        match result {
            Ok(()) => Facts {
                bytes_held: usize::try_from(info.bytes_held).unwrap_or(usize::MAX),
                observed: convert::device(info.observed),
                threads: None,
                note: None,
            },
            Err(error) => Facts { note: Some(error.to_string()), ..Facts::default() },
        }
    }
}

struct ShimRun(ExecutorHandle);

impl Run for ShimRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        let table = self.0.table();
        let raw_args = convert::run_args(&mut args);
        table.call("executor_run", |error| {
            // SAFETY: the executor lives, and `&mut self` makes this its only use; the operands
            // are borrowed in `args` until the call returns, cover the described layouts, and C
            // overlaps no other, as Rust's borrows guarantee.
            unsafe { (table.slots.executor_run)(self.0.raw.as_ptr(), &raw const raw_args, error) }
        })
    }
}
