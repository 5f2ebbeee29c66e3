//! The shared buffers of a device, and the operands that lie in them.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::table::Table;
use super::{DeviceHandle, sys};
use crate::error::{Error, NativeError, NativeStatus, Result};
use crate::operands::shared_buffer::{ALIGNMENT_BYTES, BufferMemory};

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
    fn find(&self, data: *const u8, bytes: usize) -> Option<(NonNull<sys::ANEBuffer>, usize)> {
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

/// A buffer of a shim's, known to its device's registry while it lives.
pub(super) struct ShimBuffer {
    raw: NonNull<sys::ANEBuffer>,
    start: NonNull<u8>,
    bytes: usize,
    device: Arc<DeviceHandle>,
}

// SAFETY: the contract lets any thread use a buffer; access to the memory follows the borrows of the
// SharedBuffer that holds it.
unsafe impl Send for ShimBuffer {}
// SAFETY: as for Send.
unsafe impl Sync for ShimBuffer {}

// SAFETY: memory of a shim's buffer, which lives until drop, is aligned (checked) and was zeroed, or is
// the caller's, who vouches for it.
unsafe impl BufferMemory for ShimBuffer {
    fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl ShimBuffer {
    pub(super) fn create(device: &Arc<DeviceHandle>, bytes: usize) -> Result<Self> {
        let buffer = Self::make(device, bytes, "buffer_create", |table, out, error| {
            // SAFETY: the device is open; out and error are valid for the call.
            unsafe { (table.slots.buffer_create)(device.raw.as_ptr(), bytes as u64, out, error) }
        })?;
        // SAFETY: the contract gives at least `bytes` bytes, which nobody else knows of yet.
        unsafe { buffer.start.as_ptr().write_bytes(0, bytes) };
        Ok(buffer)
    }

    /// # Safety
    /// As [`crate::Backends::wrap_memory`].
    pub(super) unsafe fn wrap(device: &Arc<DeviceHandle>, start: NonNull<u8>, bytes: usize) -> Result<Self> {
        Self::make(device, bytes, "buffer_wrap", |table, out, error| {
            let memory = start.as_ptr().cast::<c_void>();
            // SAFETY: the device is open; out and error are valid for the call; the caller keeps the
            // memory in place for as long as the buffer lives.
            unsafe { (table.slots.buffer_wrap)(device.raw.as_ptr(), memory, bytes as u64, out, error) }
        })
    }

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
        // SAFETY: the buffer was just made.
        let start = NonNull::new(unsafe { (table.slots.buffer_contents)(raw.as_ptr()) }.cast::<u8>());
        let Some(start) = start.filter(|start| start.addr().get().is_multiple_of(ALIGNMENT_BYTES)) else {
            // SAFETY: made above, and known to nobody.
            unsafe { (table.slots.buffer_destroy)(raw.as_ptr()) };
            return Err(Error::Native(Box::new(NativeError {
                backend: table.name.clone(),
                step: "buffer_contents",
                status: NativeStatus::Internal,
                code: 0,
                domain: String::new(),
                message: format!(
                    "the shim's memory starts at {start:?}, not at a multiple of {ALIGNMENT_BYTES} bytes; report this to its author"
                ),
                log: String::new(),
            })));
        };
        device.buffers.insert(start.addr().get(), bytes, raw);
        Ok(Self { raw, start, bytes, device: Arc::clone(device) })
    }
}

impl Drop for ShimBuffer {
    fn drop(&mut self) {
        self.device.buffers.remove(self.raw);
        // SAFETY: the shim made this buffer, and it is destroyed here only; its device still lives.
        unsafe { (self.device.table().slots.buffer_destroy)(self.raw.as_ptr()) }
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
