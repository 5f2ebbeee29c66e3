//! Memory that the host and a device both see.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ptr::NonNull;

use crate::description::element::Element;
use crate::error::{Error, Result};

/// The least alignment of a buffer's start, in bytes: a cache line, and enough for every element.
pub(crate) const ALIGNMENT_BYTES: usize = 64;

/// What owns the memory of a [`SharedBuffer`], or borrows it by the caller's word.
///
/// # Safety
/// `bytes` bytes from `start` on, which is aligned to [`ALIGNMENT_BYTES`], are initialised and stay
/// valid and in place for as long as the value lives; nothing else writes to them but through the
/// buffer, or the owner of wrapped memory.
pub(crate) unsafe trait BufferMemory: Send + Sync {
    fn start(&self) -> NonNull<u8>;
    fn bytes(&self) -> usize;
}

/// Memory that the host and a backend's device both see: operands that lie in it are not copied.
///
/// Make one with [`crate::Backends::shared_buffer`], fill it through [`SharedBuffer::elements_mut`],
/// and run on views of its elements like on any other memory: the backend recognises what lies in a
/// buffer of its own. Whether an operand is then used in place is up to the backend; the result is
/// the same. `mpsgraph` does so for packed operands at the start of a buffer, `metal` for all.
///
/// ```
/// use ane_matmul::{BackendId, Backends, CompileOptions, Inputs, MatMul, TensorView, TensorViewMut};
///
/// let (backends, id) = (Backends::new(), BackendId::CPU);
/// let compiled = backends.compile(&id, &MatMul::new(2, 4, 3)?, &CompileOptions::default())?;
/// let mut a = backends.shared_buffer(&id, 2 * 3 * 4)?;
/// let mut b = backends.shared_buffer(&id, 3 * 4 * 4)?;
/// let mut c = backends.shared_buffer(&id, 2 * 4 * 4)?;
/// let mut executor = compiled.executor()?;
/// a.elements_mut::<f32>().fill(1.0);
/// b.elements_mut::<f32>().fill(2.0);
/// executor.run(
///     &Inputs::new(TensorView::new(a.elements::<f32>(), 2, 3)?).b(TensorView::new(b.elements::<f32>(), 3, 4)?),
///     TensorViewMut::new(c.elements_mut::<f32>(), 2, 4)?,
/// )?;
/// assert_eq!(c.elements::<f32>(), [6.0; 8]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub struct SharedBuffer(Box<dyn BufferMemory>);

impl SharedBuffer {
    pub(crate) fn new(memory: Box<dyn BufferMemory>) -> Self {
        Self(memory)
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The memory as elements of one type: as many as fit, zeros at first.
    #[must_use]
    pub fn elements<T: Element>(&self) -> &[T] {
        // SAFETY: initialised and aligned memory by the trait's contract; every bit pattern is a
        // valid element of the sealed trait; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.0.start().as_ptr().cast(), self.bytes() / size_of::<T>()) }
    }

    /// The memory as elements of one type, to write to.
    #[must_use]
    pub fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as for `elements`; `&mut self` makes this the only access.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.start().as_ptr().cast(), self.bytes() / size_of::<T>())
        }
    }
}

impl fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBuffer").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Memory of the host's, for backends that work on any.
pub(crate) struct HostMemory {
    start: NonNull<u8>,
    bytes: usize,
    /// `None` where it is the caller's.
    layout: Option<Layout>,
}

impl HostMemory {
    /// `what` names the memory in an error.
    pub(crate) fn zeroed(bytes: usize, what: &'static str) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { what, bytes };
        // At least one byte: an allocation of none has no place.
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT_BYTES).map_err(|_| out_of_memory())?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        Ok(Self { start, bytes, layout: Some(layout) })
    }

    /// # Safety
    /// The memory is initialised, aligned, and outlives the value; see [`BufferMemory`].
    pub(crate) unsafe fn borrowed(start: NonNull<u8>, bytes: usize) -> Self {
        Self { start, bytes, layout: None }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: allocated in `zeroed` with this layout, freed here only.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

// SAFETY: plain memory; access to it follows the borrows of the buffer that holds it.
unsafe impl Send for HostMemory {}
// SAFETY: as for Send.
unsafe impl Sync for HostMemory {}

// SAFETY: `zeroed` initialises and aligns it and frees it on drop only; `borrowed` asks the same of
// its caller.
unsafe impl BufferMemory for HostMemory {
    fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_zero_aligned_and_as_long_as_asked() {
        for bytes in [0, 1, 7, 64, 4097] {
            let mut buffer = SharedBuffer::new(Box::new(HostMemory::zeroed(bytes, "a test").unwrap()));
            assert_eq!((buffer.bytes(), buffer.elements::<u8>()), (bytes, vec![0u8; bytes].as_slice()));
            assert_eq!(buffer.elements::<f64>().len(), bytes / 8);
            assert_eq!(buffer.elements::<u8>().as_ptr().addr() % ALIGNMENT_BYTES, 0);
            buffer.elements_mut::<u8>().fill(3);
            assert_eq!(buffer.elements::<u8>(), vec![3u8; bytes]);
        }
        assert!(matches!(HostMemory::zeroed(usize::MAX - 8, "a test"), Err(Error::OutOfMemory { .. })));
    }

    #[test]
    fn borrowed_memory_is_the_callers_own() {
        #[repr(align(64))]
        struct Aligned([u8; 64]);
        let mut memory = Aligned([1; 64]);
        let start = NonNull::from(&mut memory.0).cast();
        // SAFETY: the array lives until the end of the test, and is used through the buffer meanwhile.
        let mut buffer = SharedBuffer::new(Box::new(unsafe { HostMemory::borrowed(start, 64) }));
        buffer.elements_mut::<i8>()[5] = -1;
        drop(buffer);
        assert_eq!(memory.0[5], 255);
    }
}
