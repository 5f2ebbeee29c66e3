//! Memory for packed operands.

use crate::alloc;
use crate::error::Result;

/// Numbers that start on a cache line.
pub(super) struct Buffer {
    data: Vec<f32>,
    offset: usize,
}

const LINE: usize = 64 / size_of::<f32>();

impl Buffer {
    /// `count` zeros.
    pub(super) fn zeroed(count: usize, what: &'static str) -> Result<Self> {
        let data = alloc::filled(count.saturating_add(LINE), 0.0, what)?;
        let offset = data.as_ptr().align_offset(64).min(LINE);
        Ok(Self { data, offset })
    }

    pub(super) fn start(&self) -> *const f32 {
        self.data[self.offset..].as_ptr()
    }

    pub(super) fn start_mut(&mut self) -> *mut f32 {
        self.data[self.offset..].as_mut_ptr()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }
}
