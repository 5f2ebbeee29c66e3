//! The table of the shim that answers garbage, as a fuzzer distorts it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::{CString, c_void};

use arbitrary::Arbitrary;

unsafe extern "C" {
    fn garbage_shim() -> *const c_void;
    fn garbage_plan(bytes: *const u8, length: usize);
}

/// The size of the table, the offset of its name, and that of its first function, from
/// `include/ane_matmul.h`.
const SIZE: usize = 176;
const NAME: usize = 8;
const FUNCTIONS: usize = 24;

/// How the table differs from a good one.
#[derive(Debug, Arbitrary)]
pub struct Distortion {
    pub size: Option<u16>,
    pub major: Option<u16>,
    /// Taken with a major only: while the major is 0, another minor is refused.
    pub minor: u16,
    /// Bit i: function i is null.
    pub null: u16,
    pub all_there: bool,
    pub name: Option<Vec<u8>>,
    pub version: Option<Vec<u8>>,
}

/// A table with as many readable bytes as it says, and its strings.
pub struct Table {
    memory: *mut u8,
    layout: Layout,
    _strings: [Option<CString>; 2],
}

impl Table {
    /// # Panics
    /// Never: the sizes are small.
    #[must_use]
    pub fn new(distortion: &Distortion) -> Self {
        let string = |bytes: &Option<Vec<u8>>| {
            bytes.as_ref().map(|bytes| {
                let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
                CString::new(&bytes[..end]).expect("no NUL")
            })
        };
        let strings = [string(&distortion.name), string(&distortion.version)];
        let size = distortion.size.map_or(SIZE, |size| usize::from(size) % 300).max(4);
        let mut bytes = vec![0xA5; size.max(SIZE)];
        // SAFETY: the getter returns the address of a constant table of this size.
        bytes[..SIZE].copy_from_slice(unsafe { std::slice::from_raw_parts(garbage_shim().cast(), SIZE) });
        bytes[..4].copy_from_slice(&u32::try_from(size).expect("a small size").to_ne_bytes());
        if let Some(major) = distortion.major {
            bytes[4..6].copy_from_slice(&major.to_ne_bytes());
            bytes[6..8].copy_from_slice(&distortion.minor.to_ne_bytes());
        }
        for (index, string) in strings.iter().enumerate() {
            if let Some(string) = string {
                bytes[NAME + 8 * index..][..8].copy_from_slice(&string.as_ptr().addr().to_ne_bytes());
            }
        }
        for index in 0..16 {
            if !distortion.all_there && distortion.null >> index & 1 != 0 {
                bytes[FUNCTIONS + 8 * index..][..8].fill(0);
            }
        }
        let layout = Layout::from_size_align(size, 8).expect("a small size");
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: both have this many bytes, and the target is new.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, size) };
        Self { memory, layout, _strings: strings }
    }

    /// For `ShimLibrary::from_table`.
    #[must_use]
    pub const fn as_ptr(&self) -> *const c_void {
        self.memory.cast_const().cast()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

/// Calls `body` while the shim answers what `bytes` say, and success after their end.
pub fn with_plan(bytes: &[u8], body: impl FnOnce()) {
    // SAFETY: the bytes outlive the calls, and nothing else calls the shim.
    unsafe { garbage_plan(bytes.as_ptr(), bytes.len()) };
    body();
    // SAFETY: no bytes are none.
    unsafe { garbage_plan(std::ptr::null(), 0) };
}
