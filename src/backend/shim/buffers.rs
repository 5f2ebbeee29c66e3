//! The memory of a device: buffers, the operands that lie in them, and constants.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::convert::element_type;
use super::table::{Table, size_u32};
use super::{DeviceHandle, sys};
use crate::backend::BackendId;
use crate::description::element::ElementType;
use crate::error::{Error, NativeStatus, Result};
use crate::operands::device_tensor::{DeviceBuffer, Storage};
use crate::operands::shared_buffer::{ALIGNMENT_BYTES, BufferMemory};
use crate::operands::weights::Weights;

/// One that the product does not have, or that has no bytes.
pub(super) const NO_OPERAND: sys::ANEOperand = sys::ANEOperand {
    data: std::ptr::null_mut(),
    buffer: std::ptr::null_mut(),
    offset_bytes: 0,
    length_bytes: 0,
};

/// Where the live buffers of a device lie.
#[derive(Default)]
pub(super) struct Registry {
    /// Runs without buffers take no lock.
    count: AtomicUsize,
    /// Sorted by start.
    ranges: RwLock<Vec<Entry>>,
}

struct Entry {
    start: usize,
    end: usize,
    raw: NonNull<sys::ANEBuffer>,
}

// SAFETY: the contract lets any thread use a device's buffers; an entry goes before its buffer.
unsafe impl Send for Registry {}
// SAFETY: as for Send.
unsafe impl Sync for Registry {}

impl Registry {
    fn insert(&self, start: usize, bytes: usize, raw: NonNull<sys::ANEBuffer>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|entry| entry.start < start);
        ranges.insert(at, Entry { start, end: start.saturating_add(bytes), raw });
        self.count.store(ranges.len(), Ordering::Release);
    }

    fn remove(&self, raw: NonNull<sys::ANEBuffer>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|entry| entry.raw != raw);
        self.count.store(ranges.len(), Ordering::Release);
    }

    /// The buffer in which `bytes` bytes at `data` lie, and where in it.
    pub(super) fn find(&self, data: *const u8, bytes: usize) -> Option<(NonNull<sys::ANEBuffer>, usize)> {
        if bytes == 0 || self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let (start, ranges) = (data.addr(), self.ranges.read().unwrap_or_else(PoisonError::into_inner));
        let after = ranges.partition_point(|entry| entry.start <= start);
        let entry = &ranges[after.checked_sub(1)?];
        (start.checked_add(bytes)? <= entry.end).then(|| (entry.raw, start - entry.start))
    }

    /// An operand of a run, in its buffer where it lies in one.
    pub(super) fn operand(&self, data: *mut u8, bytes: usize) -> sys::ANEOperand {
        if bytes == 0 {
            return NO_OPERAND;
        }
        let (data, buffer, offset) = match self.find(data, bytes) {
            Some((buffer, offset)) => {
                // The shim gets at these bytes by its own address of them. What foreign code reaches by
                // an address counts as reached through the exposed pointer: the view's, so that the
                // borrows of it hold.
                data.expose_provenance();
                (std::ptr::null_mut(), buffer.as_ptr(), offset)
            }
            None => (data, std::ptr::null_mut(), 0),
        };
        sys::ANEOperand { data: data.cast(), buffer, offset_bytes: offset as u64, length_bytes: bytes as u64 }
    }
}

/// A buffer of a shim's, destroyed when dropped.
struct Handle {
    raw: NonNull<sys::ANEBuffer>,
    bytes: usize,
    device: Arc<DeviceHandle>,
}

// SAFETY: the contract lets any thread use a buffer, several at once.
unsafe impl Send for Handle {}
// SAFETY: as for Send.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the shim made this buffer, and it is destroyed here only; its device still lives.
        unsafe { (self.device.table().slots.buffer_destroy)(self.raw.as_ptr()) }
    }
}

impl Handle {
    fn make(
        device: &Arc<DeviceHandle>,
        bytes: usize,
        step: &'static str,
        slot: impl FnOnce(&Table, *mut *mut sys::ANEBuffer, *mut sys::ANEError) -> sys::ANEStatus,
    ) -> Result<Self> {
        let table = device.table();
        let mut raw = std::ptr::null_mut();
        table.call(step, |error| slot(table, &raw mut raw, error))?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object(step))?;
        Ok(Self { raw, bytes, device: Arc::clone(device) })
    }

    fn create(device: &Arc<DeviceHandle>, kind: sys::ANEBufferKind, bytes: usize) -> Result<Self> {
        Self::make(device, bytes, "buffer_create", |table, out, error| {
            // SAFETY: the device is open; out and error are valid for the call.
            unsafe { (table.slots.buffer_create)(device.raw.as_ptr(), kind, bytes as u64, out, error) }
        })
    }

    fn contents(&self) -> Option<NonNull<u8>> {
        // SAFETY: the buffer lives.
        NonNull::new(unsafe { (self.device.table().slots.buffer_contents)(self.raw.as_ptr()) }.cast())
    }
}

/// A buffer that the host sees, known to its device's registry while it lives.
pub(super) struct ShimBuffer {
    start: NonNull<u8>,
    handle: Handle,
}

// SAFETY: the contract lets any thread use a buffer; its memory follows the borrows of who holds it.
unsafe impl Send for ShimBuffer {}
// SAFETY: as for Send.
unsafe impl Sync for ShimBuffer {}

// SAFETY: the contract keeps the memory in place until the buffer is destroyed; `cleared` initialises it, or it is the
// caller's, who vouches for it; `make` checks its alignment.
unsafe impl BufferMemory for ShimBuffer {
    fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn bytes(&self) -> usize {
        self.handle.bytes
    }
}

impl ShimBuffer {
    pub(super) fn create(device: &Arc<DeviceHandle>, bytes: usize) -> Result<Self> {
        let handle = Handle::create(device, sys::ANE_BUFFER_HOST_VISIBLE, bytes)?;
        let start = handle.contents();
        Ok(Self::make(handle, start)?.cleared())
    }

    /// # Safety
    /// As [`crate::Backends::wrap_memory`].
    pub(super) unsafe fn wrap(device: &Arc<DeviceHandle>, start: NonNull<u8>, bytes: usize) -> Result<Self> {
        let handle = Handle::make(device, bytes, "buffer_wrap", |table, out, error| {
            let memory = start.as_ptr().cast::<c_void>();
            // SAFETY: the device is open; out and error are valid for the call; the caller keeps the
            // memory in place for as long as the buffer lives.
            unsafe { (table.slots.buffer_wrap)(device.raw.as_ptr(), memory, bytes as u64, out, error) }
        })?;
        let start = handle.contents();
        Self::make(handle, start)
    }

    fn make(handle: Handle, start: Option<NonNull<u8>>) -> Result<Self> {
        let address = start.map_or(0, |start| start.addr().get());
        let Some(start) = start.filter(|_| address.is_multiple_of(ALIGNMENT_BYTES)) else {
            let message = format!(
                "the shim's memory starts at {address:#x}, not at a multiple of {ALIGNMENT_BYTES} bytes; report this to its author"
            );
            return Err(handle.device.table().native("buffer_contents", NativeStatus::Internal, message));
        };
        handle.device.buffers.insert(start.addr().get(), handle.bytes, handle.raw);
        Ok(Self { start, handle })
    }

    fn cleared(self) -> Self {
        // SAFETY: the contract gives at least `bytes` bytes, which nobody else knows of yet.
        unsafe { self.start.as_ptr().write_bytes(0, self.handle.bytes) };
        self
    }
}

impl Drop for ShimBuffer {
    fn drop(&mut self) {
        // Before the handle goes.
        self.handle.device.buffers.remove(self.handle.raw);
    }
}

/// A buffer that the host does not see.
struct DeviceOnly(Handle);

impl DeviceBuffer for DeviceOnly {
    fn bytes(&self) -> usize {
        self.0.bytes
    }

    fn read(&self, offset_bytes: usize, to: &mut [u8]) -> Result<()> {
        let (table, raw, bytes) = (self.0.device.table(), self.0.raw.as_ptr(), to.len() as u64);
        self.check(offset_bytes, to.len())?;
        let to = to.as_mut_ptr().cast();
        table.call("buffer_read", |error| {
            // SAFETY: the buffer lives and has these bytes; `to` and error are valid for the call.
            unsafe { (table.slots.buffer_read)(raw, offset_bytes as u64, to, bytes, error) }
        })
    }

    fn write(&self, offset_bytes: usize, from: &[u8]) -> Result<()> {
        let (table, raw, bytes) = (self.0.device.table(), self.0.raw.as_ptr(), from.len() as u64);
        self.check(offset_bytes, from.len())?;
        let from = from.as_ptr().cast();
        table.call("buffer_write", |error| {
            // SAFETY: as for `read`.
            unsafe { (table.slots.buffer_write)(raw, offset_bytes as u64, from, bytes, error) }
        })
    }

    fn native(&self) -> (usize, NonNull<c_void>) {
        (self.0.device.key(), self.0.raw.cast())
    }

    fn backend(&self) -> &BackendId {
        &self.0.device.table().name
    }
}

impl DeviceOnly {
    fn check(&self, offset_bytes: usize, bytes: usize) -> Result<()> {
        if offset_bytes.checked_add(bytes).is_some_and(|end| end <= self.0.bytes) {
            return Ok(());
        }
        Err(Error::Memory {
            problem: format!("{bytes} bytes from {offset_bytes} on, of a buffer of {} bytes", self.0.bytes),
        })
    }
}

/// Memory that the device computes on without a copy.
pub(super) fn allocate(
    device: &Arc<DeviceHandle>,
    kind: sys::ANEBufferKind,
    bytes: usize,
) -> Result<Storage> {
    if kind == sys::ANE_BUFFER_HOST_VISIBLE {
        return ShimBuffer::create(device, bytes).map(|buffer| Storage::Host(Box::new(buffer)));
    }
    let handle = Handle::create(device, kind, bytes)?;
    match handle.contents() {
        None => Ok(Storage::Device(Box::new(DeviceOnly(handle)))),
        start => Ok(Storage::Host(Box::new(ShimBuffer::make(handle, start)?.cleared()))),
    }
}

/// A constant on the device, which products have in common.
pub(super) struct Constant {
    pub(super) raw: NonNull<sys::ANEConstant>,
    pub(super) bytes: usize,
    /// What it was made of, which lives as long: no other has its address meanwhile.
    _source: Weights,
    device: Arc<DeviceHandle>,
}

// SAFETY: the contract lets any thread use a constant, several at once.
unsafe impl Send for Constant {}
// SAFETY: as for Send.
unsafe impl Sync for Constant {}

impl Drop for Constant {
    fn drop(&mut self) {
        // SAFETY: the shim made this constant, and it is destroyed here only; products hold it, so none is left.
        unsafe { (self.device.table().slots.constant_destroy)(self.raw.as_ptr()) }
    }
}

/// The constants of a device, by the address, the bytes and the type of what they were made of.
#[derive(Default)]
pub(super) struct Constants(Mutex<Vec<Known>>);

type Known = ((usize, usize, ElementType), Weak<Constant>);

impl Constants {
    /// The elements of some weights on the device, once for all that use them at the same time.
    pub(super) fn of(device: &Arc<DeviceHandle>, weights: &Weights, hashed: bool) -> Result<Arc<Constant>> {
        let (data, bytes) = weights.view().memory();
        let key = (data.addr(), bytes, weights.element_type());
        // Held while it is made, so that it is made once.
        let mut all = device.constants.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, constant)| constant.strong_count() > 0);
        if let Some(found) =
            all.iter().find(|(of, _)| *of == key).and_then(|(_, constant)| constant.upgrade())
        {
            return Ok(found);
        }
        let desc = sys::ANEConstantDesc {
            struct_size: size_u32::<sys::ANEConstantDesc>(),
            type_: element_type(weights.element_type()),
            data: data.cast(),
            bytes: bytes as u64,
            content_hash: if hashed { *weights.content_hash() } else { [0; 32] },
        };
        let (table, mut raw) = (device.table(), std::ptr::null_mut());
        table.call("constant_create", |error| {
            // SAFETY: the device is open; the description, whose memory the weights keep, out and error are valid.
            unsafe {
                (table.slots.constant_create)(device.raw.as_ptr(), &raw const desc, &raw mut raw, error)
            }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| table.no_object("constant_create"))?;
        let (source, device) = (weights.for_product(), Arc::clone(device));
        let constant = Arc::new(Constant { raw, bytes, _source: source, device });
        all.push((key, Arc::downgrade(&constant)));
        Ok(constant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(address: usize) -> NonNull<sys::ANEBuffer> {
        NonNull::new(std::ptr::without_provenance_mut(address)).unwrap()
    }

    #[test]
    fn an_operand_is_found_where_it_lies_in_a_buffer_to_its_last_byte() {
        let (one, two) = (raw(16), raw(32));
        let registry = Registry::default();
        let find = |start, bytes| registry.find(std::ptr::without_provenance(start), bytes);
        assert_eq!(find(1000, 4), None);
        // The second begins where the first ends; they are made in another order.
        registry.insert(1100, 50, two);
        registry.insert(1000, 100, one);
        for (start, bytes, found) in [
            (999, 1, None),
            (999, 101, None),
            (1000, 100, Some((one, 0))),
            (1000, 101, None),
            (1099, 1, Some((one, 99))),
            (1099, 2, None),
            (1100, 50, Some((two, 0))),
            (1149, 1, Some((two, 49))),
            (1149, 2, None),
            (1150, 1, None),
            (1120, usize::MAX, None),
            // What has no bytes is in no buffer.
            (1000, 0, None),
            (1150, 0, None),
        ] {
            assert_eq!(find(start, bytes), found, "{bytes} bytes at {start}");
        }
        registry.remove(two);
        assert_eq!((find(1100, 1), find(1000, 100)), (None, Some((one, 0))));
    }
}
