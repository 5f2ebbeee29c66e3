//! Memory for packed operands.

use std::ptr;

use super::pack::Word;
use crate::error::Result;
use crate::operands::shared_buffer::{BufferMemory, HostMemory};

/// Words that start on a cache line; none by default.
#[derive(Default)]
pub(crate) struct Buffer(Option<HostMemory>);

impl Buffer {
    /// `count` words, all zero; `what` names them in an error.
    pub(crate) fn zeroed(count: usize, what: &'static str) -> Result<Self> {
        if count == 0 {
            return Ok(Self::default());
        }
        HostMemory::zeroed(count.saturating_mul(size_of::<Word>()), what).map(Some).map(Self)
    }

    pub(crate) fn start(&self) -> *const Word {
        self.0.as_ref().map_or(ptr::dangling(), |memory| memory.start().as_ptr().cast())
    }

    pub(crate) fn start_mut(&mut self) -> *mut Word {
        self.0.as_mut().map_or(ptr::dangling_mut(), |memory| memory.start().as_ptr().cast())
    }

    /// The first words, as f32.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn numbers(&mut self, count: usize) -> &mut [f32] {
        assert!(count <= self.bytes() / size_of::<f32>());
        // SAFETY: the buffer has as many, all initialised, and is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start_mut().cast(), count) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, BufferMemory::bytes)
    }
}
