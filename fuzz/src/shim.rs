//! The table of the shim that answers garbage, as a fuzzer distorts it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::{CString, c_void};

use arbitrary::Arbitrary;

unsafe extern "C" {
    fn garbage_shim() -> *const c_void;
    fn garbage_graphs() -> *const c_void;
    fn garbage_plan(bytes: *const u8, length: usize);
}

/// The size of the table, the offsets of its name, its first function and its graphs, and how many
/// functions there are, from `include/ane_matmul.h`; `garbage.c` checks them.
const SIZE: usize = 224;
const NAME: usize = 8;
const FUNCTIONS: usize = 24;
const FUNCTION_COUNT: usize = 24;
const GRAPHS: usize = 216;

/// The size of a table of graphs, and the offset of its pointers, from `include/ane_graph.h`.
const GRAPH_SIZE: usize = 112;
const POINTERS: usize = 8;
const POINTER_COUNT: usize = 13;

/// How the table differs from a good one.
#[derive(Debug, Arbitrary)]
pub struct Distortion {
    pub size: Option<u16>,
    pub major: Option<u16>,
    /// Taken with a major only: while the major is 0, another minor is refused.
    pub minor: u16,
    /// Bit i: function i is null.
    pub null: u32,
    pub all_there: bool,
    pub graphs: Option<Graphs>,
    pub name: Option<Vec<u8>>,
    pub version: Option<Vec<u8>>,
}

/// How the table of graphs differs from a good one.
#[derive(Debug, Arbitrary)]
pub struct Graphs {
    pub size: Option<u8>,
    /// Bit i: pointer i is null; the first is a name.
    pub null: u16,
    pub all_there: bool,
}

/// Memory of an exact size.
struct Memory {
    start: *mut u8,
    layout: Layout,
}

impl Memory {
    /// The first `size` of `bytes`.
    fn new(bytes: &[u8], size: usize) -> Self {
        let layout = Layout::from_size_align(size, 8).expect("a small size");
        assert!((1..=bytes.len()).contains(&size));
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: both have this many bytes, and the target is new.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, size) };
        Self { start, layout }
    }

    fn graphs(graphs: &Graphs) -> Self {
        let size = graphs.size.map_or(GRAPH_SIZE, usize::from).max(4);
        let mut bytes = vec![0xA5; size.max(GRAPH_SIZE)];
        // SAFETY: the getter returns the address of a constant table of this size.
        put(&mut bytes, 0, unsafe { std::slice::from_raw_parts(garbage_graphs().cast(), GRAPH_SIZE) });
        put(&mut bytes, 0, &u32::try_from(size).expect("a small size").to_ne_bytes());
        for index in 0..POINTER_COUNT {
            if !graphs.all_there && graphs.null >> index & 1 != 0 {
                put(&mut bytes, POINTERS + 8 * index, &[0; 8]);
            }
        }
        Self::new(&bytes, size)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(self.start, self.layout) }
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..][..value.len()].copy_from_slice(value);
}

/// A table with as many readable bytes as it says, and what it points to.
pub struct Table {
    memory: Memory,
    _graphs: Option<Memory>,
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
        let graphs = distortion.graphs.as_ref().map(Memory::graphs);
        let size = distortion.size.map_or(SIZE, |size| usize::from(size) % 300).max(4);
        let mut bytes = vec![0xA5; size.max(SIZE)];
        // SAFETY: the getter returns the address of a constant table of this size.
        put(&mut bytes, 0, unsafe { std::slice::from_raw_parts(garbage_shim().cast(), SIZE) });
        put(&mut bytes, 0, &u32::try_from(size).expect("a small size").to_ne_bytes());
        if let Some(major) = distortion.major {
            put(&mut bytes, 4, &major.to_ne_bytes());
            put(&mut bytes, 6, &distortion.minor.to_ne_bytes());
        }
        for (index, string) in strings.iter().enumerate() {
            if let Some(string) = string {
                put(&mut bytes, NAME + 8 * index, &string.as_ptr().addr().to_ne_bytes());
            }
        }
        for index in 0..FUNCTION_COUNT {
            if !distortion.all_there && distortion.null >> index & 1 != 0 {
                put(&mut bytes, FUNCTIONS + 8 * index, &[0; 8]);
            }
        }
        if let Some(graphs) = &graphs {
            put(&mut bytes, GRAPHS, &graphs.start.addr().to_ne_bytes());
        }
        Self { memory: Memory::new(&bytes, size), _graphs: graphs, _strings: strings }
    }

    /// For `ShimLibrary::from_table`.
    #[must_use]
    pub const fn as_ptr(&self) -> *const c_void {
        self.memory.start.cast_const().cast()
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
