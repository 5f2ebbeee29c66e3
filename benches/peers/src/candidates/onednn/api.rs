//! The part of oneDNN's C interface that a matrix product needs, for major versions 2 and 3.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use libloading::Library;

/// Opaque handles of oneDNN's: engines, streams, memory, primitives and what describes them.
pub(super) type Handle = *mut c_void;
type Status = c_int;

const CPU: c_int = 1;
const IN_ORDER: c_uint = 1;
const WEIGHTS_DESCRIPTOR: c_int = 131;

/// `dnnl_data_type_t`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    F16 = 1,
    Bf16 = 2,
    F32 = 3,
    S8 = 5,
}

/// `dnnl_format_tag_t`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag {
    /// Whatever the library likes best.
    Any,
    /// Row-major.
    RowMajor,
}

impl Tag {
    const fn of(self, dimensions: i32) -> c_int {
        match self {
            Self::Any => 1,
            // dnnl_a, dnnl_ab and dnnl_abc follow each other.
            Self::RowMajor => dimensions + 1,
        }
    }
}

/// Arguments of a primitive.
pub(super) const SOURCE: c_int = 1;
pub(super) const DESTINATION: c_int = 17;
pub(super) const WEIGHTS: c_int = 33;
pub(super) const BIAS: c_int = 41;

/// `dnnl_exec_arg_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Argument {
    pub(super) index: c_int,
    pub(super) memory: Handle,
}

#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
    hash: *const c_char,
    cpu_runtime: c_uint,
    gpu_runtime: c_uint,
}

macro_rules! functions {
    ($(#[$attribute:meta])* $name:ident { $($function:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$attribute])*
        pub(super) struct $name { $($function: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl $name {
            /// SAFETY: the library must define the functions with these types.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                $(
                    // SAFETY: promised by the caller.
                    let $function = unsafe { *library.get($symbol)? };
                )*
                Ok(Self { $($function,)* })
            }
        }
    };
}

functions! {
    /// Equal in both versions, but for what a memory descriptor points to.
    Common {
        engine_create = b"dnnl_engine_create": fn(*mut Handle, c_int, usize) -> Status;
        stream_create = b"dnnl_stream_create": fn(*mut Handle, Handle, c_uint) -> Status;
        stream_wait = b"dnnl_stream_wait": fn(Handle) -> Status;
        memory_create = b"dnnl_memory_create": fn(*mut Handle, *const c_void, Handle, *mut c_void) -> Status;
        memory_set = b"dnnl_memory_set_data_handle": fn(Handle, *mut c_void) -> Status;
        memory_destroy = b"dnnl_memory_destroy": fn(Handle) -> Status;
        query_descriptor = b"dnnl_primitive_desc_query_md": fn(Handle, c_int, c_int) -> *const c_void;
        reorder = b"dnnl_reorder_primitive_desc_create":
            fn(*mut Handle, *const c_void, Handle, *const c_void, Handle, Handle) -> Status;
        primitive_create = b"dnnl_primitive_create": fn(*mut Handle, Handle) -> Status;
        primitive_execute = b"dnnl_primitive_execute": fn(Handle, Handle, c_int, *const Argument) -> Status;
        primitive_destroy = b"dnnl_primitive_destroy": fn(Handle) -> Status;
        description_destroy = b"dnnl_primitive_desc_destroy": fn(Handle) -> Status;
        attributes_create = b"dnnl_primitive_attr_create": fn(*mut Handle) -> Status;
        attributes_set_post_ops = b"dnnl_primitive_attr_set_post_ops": fn(Handle, Handle) -> Status;
        attributes_destroy = b"dnnl_primitive_attr_destroy": fn(Handle) -> Status;
        post_ops_create = b"dnnl_post_ops_create": fn(*mut Handle) -> Status;
        post_ops_destroy = b"dnnl_post_ops_destroy": fn(Handle) -> Status;
        version = b"dnnl_version": fn() -> *const Version;
        instruction_set = b"dnnl_get_effective_cpu_isa": fn() -> c_int;
    }
}

functions! {
    Two {
        descriptor_init = b"dnnl_memory_desc_init_by_tag": fn(*mut c_void, c_int, *const i64, c_int, c_int) -> Status;
        matmul_init = b"dnnl_matmul_desc_init":
            fn(*mut c_void, *const c_void, *const c_void, *const c_void, *const c_void) -> Status;
        description_create = b"dnnl_primitive_desc_create":
            fn(*mut Handle, *const c_void, Handle, Handle, Handle) -> Status;
        append_eltwise = b"dnnl_post_ops_append_eltwise": fn(Handle, f32, c_int, f32, f32) -> Status;
    }
}

functions! {
    Three {
        descriptor_create = b"dnnl_memory_desc_create_with_tag": fn(*mut Handle, c_int, *const i64, c_int, c_int) -> Status;
        descriptor_destroy = b"dnnl_memory_desc_destroy": fn(Handle) -> Status;
        description_create = b"dnnl_matmul_primitive_desc_create":
            fn(*mut Handle, Handle, *const c_void, *const c_void, *const c_void, *const c_void, Handle) -> Status;
        append_eltwise = b"dnnl_post_ops_append_eltwise": fn(Handle, c_int, f32, f32) -> Status;
    }
}

enum Major {
    Two(Two),
    Three(Three),
}

/// A loaded oneDNN with its CPU engine.
pub(super) struct Api {
    common: Common,
    major: Major,
    pub(super) engine: Handle,
    pub(super) stream: Handle,
    /// Keeps the functions above valid.
    _library: Library,
}

/// A memory descriptor: a plain struct in version 2, a handle in version 3.
pub(super) enum Descriptor<'a> {
    Two(Box<[u64; TWO_DESCRIPTOR_WORDS]>),
    Three(Handle, &'a Three),
}

/// More than `sizeof(dnnl_memory_desc_t)` and `sizeof(dnnl_matmul_desc_t)` of version 2, which are
/// 696 and 2800 bytes.
const TWO_DESCRIPTOR_WORDS: usize = 512;

impl Descriptor<'_> {
    pub(super) fn as_ptr(&self) -> *const c_void {
        match self {
            Self::Two(words) => words.as_ptr().cast(),
            Self::Three(handle, _) => *handle,
        }
    }
}

impl Drop for Descriptor<'_> {
    fn drop(&mut self) {
        if let Self::Three(handle, functions) = self {
            // SAFETY: the handle is this descriptor's own.
            unsafe { (functions.descriptor_destroy)(*handle) };
        }
    }
}

fn check(what: &str, status: Status) -> Result<(), String> {
    match status {
        0 => Ok(()),
        1 => Err(format!("oneDNN: {what}: out of memory")),
        2 => Err(format!("oneDNN: {what}: invalid arguments")),
        3 => Err(format!("oneDNN: {what}: not implemented")),
        status => Err(format!("oneDNN: {what}: status {status}")),
    }
}

/// Gives `create` a place for a handle.
fn created(what: &str, create: impl FnOnce(*mut Handle) -> Status) -> Result<Handle, String> {
    let mut handle = ptr::null_mut();
    check(what, create(&raw mut handle))?;
    Ok(handle)
}

impl Api {
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let library = super::super::open_local(path)?;
        let failure = |error: libloading::Error| format!("{}: {error}", path.display());
        // SAFETY: the types are those of dnnl.h in versions 2.6 and 3.2, which keep them within a
        // major version; which one it is, is asked before a function of one alone is loaded.
        let (common, major) = unsafe {
            let common = Common::load(&library).map_err(failure)?;
            let major = match (*(common.version)()).major {
                2 => Major::Two(Two::load(&library).map_err(failure)?),
                3 => Major::Three(Three::load(&library).map_err(failure)?),
                other => return Err(format!("{}: version {other} is not known here", path.display())),
            };
            (common, major)
        };
        // SAFETY: plain creation on the CPU.
        let engine = created("engine", |engine| unsafe { (common.engine_create)(engine, CPU, 0) })?;
        // SAFETY: the engine was just made.
        let stream = created("stream", |stream| unsafe { (common.stream_create)(stream, engine, IN_ORDER) })?;
        Ok(Self { common, major, engine, stream, _library: library })
    }

    pub(super) fn version(&self) -> String {
        // SAFETY: a static struct, and a function without arguments.
        let (version, instruction_set) =
            unsafe { (&*(self.common.version)(), (self.common.instruction_set)()) };
        let instructions = match instruction_set {
            0x7 => "avx2",
            0x27 => "avx512_core",
            0x67 => "avx512_core_vnni",
            0xe7 => "avx512_core_bf16",
            _ => "other",
        };
        let Version { major, minor, patch, .. } = version;
        format!("{major}.{minor}.{patch}, instructions {instructions} ({instruction_set:#x})")
    }

    pub(super) fn descriptor(
        &self,
        dimensions: &[usize],
        element: Type,
        tag: Tag,
    ) -> Result<Descriptor<'_>, String> {
        let size = |&size| i64::try_from(size).expect("a matrix that fits memory");
        let sizes: Vec<i64> = dimensions.iter().map(size).collect();
        let count = c_int::try_from(sizes.len()).expect("few dimensions");
        let (dimensions, element, tag) = (sizes.as_ptr(), element as c_int, tag.of(count));
        match &self.major {
            Major::Two(two) => {
                let mut words = Box::new([0u64; TWO_DESCRIPTOR_WORDS]);
                let place = words.as_mut_ptr().cast();
                // SAFETY: the place is larger than the struct that is written to it.
                check("memory descriptor", unsafe {
                    (two.descriptor_init)(place, count, dimensions, element, tag)
                })?;
                Ok(Descriptor::Two(words))
            }
            Major::Three(three) => {
                // SAFETY: so many dimensions are given.
                let handle = created("memory descriptor", |handle| unsafe {
                    (three.descriptor_create)(handle, count, dimensions, element, tag)
                })?;
                Ok(Descriptor::Three(handle, three))
            }
        }
    }

    /// The description of a product, of whatever kernels oneDNN chooses for it.
    pub(super) fn matmul(
        &self,
        [source, weights, destination]: [&Descriptor<'_>; 3],
        bias: Option<&Descriptor<'_>>,
        attributes: Handle,
    ) -> Result<Handle, String> {
        let bias = bias.map_or(ptr::null(), Descriptor::as_ptr);
        let [source, weights, destination] = [source, weights, destination].map(Descriptor::as_ptr);
        match &self.major {
            Major::Two(two) => {
                let mut words = Box::new([0u64; TWO_DESCRIPTOR_WORDS]);
                let operation = words.as_mut_ptr().cast::<c_void>();
                // SAFETY: the place is larger than the struct, and the descriptors are initialised.
                check("product", unsafe {
                    (two.matmul_init)(operation, source, weights, bias, destination)
                })?;
                // SAFETY: the operation was just initialised; no hint is needed.
                created("product", |handle| unsafe {
                    (two.description_create)(handle, operation, attributes, self.engine, ptr::null_mut())
                })
            }
            // SAFETY: the descriptors are valid.
            Major::Three(three) => created("product", |handle| unsafe {
                (three.description_create)(
                    handle,
                    self.engine,
                    source,
                    weights,
                    bias,
                    destination,
                    attributes,
                )
            }),
        }
    }

    /// Attributes that end a product with the GELU that uses erf.
    pub(super) fn gelu_attributes(&self) -> Result<Handle, String> {
        let common = &self.common;
        // SAFETY: the handles are made here, in this order, and the attributes copy the operations.
        unsafe {
            let operations = created("operations", |handle| (common.post_ops_create)(handle))?;
            let status = match &self.major {
                Major::Two(two) => (two.append_eltwise)(operations, 1.0, 0x30, 0.0, 0.0),
                Major::Three(three) => (three.append_eltwise)(operations, 0x31, 0.0, 0.0),
            };
            check("GELU", status)?;
            let attributes = created("attributes", |handle| (common.attributes_create)(handle))?;
            check("attributes", (common.attributes_set_post_ops)(attributes, operations))?;
            (common.post_ops_destroy)(operations);
            Ok(attributes)
        }
    }

    pub(super) fn destroy_attributes(&self, attributes: Handle) {
        // SAFETY: made by `gelu_attributes` and not used again.
        unsafe { (self.common.attributes_destroy)(attributes) };
    }

    /// The layout that a product wants its weights in; it lives as long as `description`.
    pub(super) fn weights_descriptor(&self, description: Handle) -> *const c_void {
        // SAFETY: a valid description.
        unsafe { (self.common.query_descriptor)(description, WEIGHTS_DESCRIPTOR, 0) }
    }

    /// The description of a copy from one layout to another.
    pub(super) fn reorder(&self, from: *const c_void, to: *const c_void) -> Result<Handle, String> {
        // SAFETY: valid descriptors of matrices of one shape.
        created("reorder", |handle| unsafe {
            (self.common.reorder)(handle, from, self.engine, to, self.engine, ptr::null_mut())
        })
    }

    /// Makes the primitive, and destroys the description where it succeeds.
    pub(super) fn primitive(&self, description: Handle) -> Result<Handle, String> {
        // SAFETY: a valid description.
        let primitive =
            created("primitive", |handle| unsafe { (self.common.primitive_create)(handle, description) })?;
        // SAFETY: the primitive keeps what it needs of it.
        unsafe { (self.common.description_destroy)(description) };
        Ok(primitive)
    }

    /// Memory at `data`, or where that is null, memory of the library's own.
    pub(super) fn memory(&self, descriptor: *const c_void, data: *mut c_void) -> Result<Handle, String> {
        // DNNL_MEMORY_ALLOCATE.
        let data = if data.is_null() { ptr::without_provenance_mut(usize::MAX) } else { data };
        // SAFETY: a valid descriptor.
        created("memory", |handle| unsafe {
            (self.common.memory_create)(handle, descriptor, self.engine, data)
        })
    }

    /// SAFETY: `memory` is valid, and `data` is as large as its descriptor says.
    pub(super) unsafe fn set_memory(&self, memory: Handle, data: *mut c_void) {
        // SAFETY: promised by the caller.
        unsafe { (self.common.memory_set)(memory, data) };
    }

    /// Runs a primitive to its end.
    ///
    /// SAFETY: the primitive and the memory of the arguments are valid, and nobody else uses what
    /// is written.
    #[inline]
    pub(super) unsafe fn execute(&self, primitive: Handle, arguments: &[Argument]) -> Result<(), String> {
        let count = c_int::try_from(arguments.len()).expect("few arguments");
        // SAFETY: promised by the caller.
        unsafe {
            check("run", (self.common.primitive_execute)(primitive, self.stream, count, arguments.as_ptr()))?;
            check("run", (self.common.stream_wait)(self.stream))
        }
    }

    pub(super) fn destroy_primitive(&self, primitive: Handle) {
        // SAFETY: the handle is not used again.
        unsafe { (self.common.primitive_destroy)(primitive) };
    }

    pub(super) fn destroy_memory(&self, memory: Handle) {
        // SAFETY: the handle is not used again.
        unsafe { (self.common.memory_destroy)(memory) };
    }
}
