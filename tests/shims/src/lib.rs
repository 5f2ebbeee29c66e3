//! The reference shim, linked in and as a dynamic library, and libraries that are broken on purpose.

use std::ffi::c_void;

/// The reference shim as a dynamic library.
pub const REFERENCE: &str = env!("SHIM_REFERENCE");

/// The reference shim as `double`, which says that it is a test double of hardware.
pub const TEST_DOUBLE: &str = env!("SHIM_DOUBLE");

/// The reference shim as `neural`, which takes the Neural Engine as a candidate.
pub const NEURAL: &str = env!("SHIM_NEURAL");

/// The reference shim as `liar`, which says of itself what `ANE_LIAR` names.
pub const LIAR: &str = env!("SHIM_LIAR");

/// No shim: preloaded into a program (`LD_PRELOAD`), it sends the signal `ANE_MATMUL_TEST_SIGNAL` where a file
/// that is written is flushed to the disk, and keeps it from going on.
pub const SIGNAL_AT_FSYNC: &str = env!("SHIM_SIGNAL_AT_FSYNC");

/// A name, the library, and a part of the message that loading it must give.
pub const BROKEN: [(&str, &str, &str); 11] = [
    ("missing symbol", env!("SHIM_MISSING_SYMBOL"), "does not export `ane_matmul_shim`"),
    ("null table", env!("SHIM_NULL_TABLE"), "returned no table"),
    ("truncated", env!("SHIM_TRUNCATED"), "its table has 100 bytes"),
    ("wrong major", env!("SHIM_WRONG_MAJOR"), "it speaks version 2.2 of the ABI, this crate 0.2"),
    ("null slot", env!("SHIM_NULL_SLOT"), "its slot `executor_run` is null"),
    ("bad name", env!("SHIM_BAD_NAME"), "its name \"Not A Name\" is no backend's"),
    ("null name", env!("SHIM_NULL_NAME"), "its name \"\" is no backend's"),
    ("garbage name", env!("SHIM_GARBAGE_NAME"), "is no backend's"),
    (
        "null graph slot",
        env!("SHIM_GRAPH_NULL_SLOT"),
        "its slot `graph_info` is null; every slot must be filled",
    ),
    (
        "truncated graph table",
        env!("SHIM_GRAPH_TRUNCATED"),
        "its graph table has 40 bytes, this version has 112",
    ),
    (
        "no way to a graph",
        env!("SHIM_GRAPH_NOWHERE"),
        "its graph table has neither `graph_compile` nor a package_format",
    ),
];

/// The reference shim as `packaged`, which loads graphs from packages and compiles none.
pub const PACKAGED: &str = env!("SHIM_PACKAGED");

/// A library of a later minor version, which while the major is 0 is another ABI.
pub const LATER_MINOR: &str = env!("SHIM_LATER_MINOR");

#[link(name = "ane_matmul_reference", kind = "static")]
unsafe extern "C" {
    fn ane_matmul_shim() -> *const c_void;
    fn ane_direct_open() -> i32;
    fn ane_direct_run() -> i32;
}

/// A product on the reference shim that C calls, for comparison with the way through Rust.
#[derive(Debug)]
pub struct DirectCall(());

impl DirectCall {
    /// Compiles the product.
    ///
    /// # Panics
    /// When it cannot be compiled.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        // SAFETY: the function takes nothing; only this type calls it.
        assert_eq!(unsafe { ane_direct_open() }, 1);
        Self(())
    }

    /// Runs it once; returns the status.
    pub fn run(&mut self) -> i32 {
        // SAFETY: the product was compiled by `new`.
        unsafe { ane_direct_run() }
    }
}

/// The table of the reference shim that is linked into this program.
#[must_use]
pub fn linked_reference() -> *const c_void {
    // SAFETY: the getter takes nothing and returns the address of a constant.
    unsafe { ane_matmul_shim() }
}
