//! Memory for packed operands.

use crate::error::Result;
use crate::operands::shared_buffer::{BufferMemory, HostMemory};

/// Numbers that start on a cache line.
pub(super) struct Buffer(HostMemory);

impl Buffer {
    /// `count` zeros; `what` names them in an error.
    pub(super) fn zeroed(count: usize, what: &'static str) -> Result<Self> {
        HostMemory::zeroed(count.saturating_mul(size_of::<f32>()), what).map(Self)
    }

    pub(super) fn start(&self) -> *const f32 {
        self.0.start().as_ptr().cast()
    }

    pub(super) fn start_mut(&mut self) -> *mut f32 {
        self.0.start().as_ptr().cast()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
