//! Narrow elements side by side in words of 32 bits, as the dot-product instructions read them.

use super::super::buffer::Buffer;
use super::super::kernel::{Kernels, Lane};
use super::super::pack::{Matrix, pack_b, packed_b_len};
use crate::alloc;
use crate::error::Result;
use crate::matmul::MatMul;
use crate::quantization::QuantB;
use crate::view::AnyView;
use crate::weights::Weights;

/// A constant B in panels of words, shared by all products of the same weights.
pub(super) struct PackedWords {
    buffer: Buffer,
    /// From item to item; 0 when all share one.
    item_stride: usize,
    /// The sum of each column of integers, item by item as the panels.
    pub column_sums: Vec<i32>,
    /// Whether a bf16 is subnormal, which the instruction would take for 0.
    pub has_subnormals: bool,
}

/// The elements in a word.
pub(super) const fn lane_elements(lane: Lane) -> usize {
    match lane {
        Lane::Bf16Pair => 2,
        Lane::Int8Quad => 4,
    }
}

/// The words of `k` elements.
pub(super) const fn words(lane: Lane, k: usize) -> usize {
    k.div_ceil(lane_elements(lane))
}

impl PackedWords {
    pub(super) fn of(
        kernels: &Kernels,
        lane: Lane,
        product: &MatMul,
        weights: &Weights,
    ) -> Result<std::sync::Arc<Self>> {
        weights.derived((kernels.name, product.transpose_b(), QuantB::None), || {
            Self::new(kernels, lane, product, weights)
        })
    }

    fn new(kernels: &Kernels, lane: Lane, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (n, k, layout) = (product.n(), words(lane, product.k()), product.b());
        let shared = layout.batch() > 1 && layout.batch_stride() == 0;
        let items = if shared { 1 } else { layout.batch() };
        let item_len = packed_b_len(kernels, k, n);
        let mut packed = Self {
            buffer: Buffer::zeroed(items.saturating_mul(item_len), "packed weights")?,
            item_stride: if shared { 0 } else { item_len },
            column_sums: Vec::new(),
            has_subnormals: false,
        };
        let mut rows = alloc::filled(n.saturating_mul(k), 0u32, "weights on their way to panels")?;
        if lane == Lane::Int8Quad {
            packed.column_sums = alloc::filled(items.saturating_mul(n), 0i32, "sums of weights")?;
        }
        let (across, down) = if product.transpose_b() {
            (layout.leading_dimension(), 1)
        } else {
            (1, layout.leading_dimension())
        };
        for item in 0..items {
            rows.fill(0);
            let start = layout.item_offset(item);
            for p in 0..product.k() {
                let (row, shift) =
                    (p / lane_elements(lane) * n, p % lane_elements(lane) * 32 / lane_elements(lane));
                let row = &mut rows[row..row + n];
                match weights.view() {
                    #[cfg(feature = "half")]
                    AnyView::Bf16(view) => {
                        for (col, word) in row.iter_mut().enumerate() {
                            let bits = view.data()[start + p * down + col * across].to_bits();
                            packed.has_subnormals |= is_subnormal(bits);
                            *word |= u32::from(bits) << shift;
                        }
                    }
                    AnyView::I8(view) => {
                        let sums = &mut packed.column_sums[item * n..(item + 1) * n];
                        for (col, (word, sum)) in row.iter_mut().zip(sums).enumerate() {
                            let x = view.data()[start + p * down + col * across];
                            *sum = sum.wrapping_add(i32::from(x));
                            *word |= u32::from(x.cast_unsigned()) << shift;
                        }
                    }
                    // `lane_of` leaves the two.
                    _ => {}
                }
            }
            let from = Matrix { start: rows.as_ptr().cast(), stride: n, transposed: false };
            // SAFETY: there are k rows of n words, and the buffer has room for every item; kernels move
            // words as they are.
            unsafe { pack_b(kernels, from, k, n, packed.buffer.start_mut().add(item * item_len)) };
        }
        Ok(packed)
    }

    /// Where the panels of an item start.
    pub(super) fn item(&self, item: usize) -> *const f32 {
        self.buffer.start().wrapping_add(item * self.item_stride)
    }

    /// The sums of an item's columns from `first` on.
    pub(super) fn sums(&self, item: usize, first: usize, n: usize) -> &[i32] {
        let item = if self.item_stride == 0 { 0 } else { item };
        &self.column_sums[item * n + first..(item + 1) * n]
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes() + size_of_val(self.column_sums.as_slice())
    }
}

/// Whether bf16 bits stand for a subnormal number.
#[cfg(feature = "half")]
pub(super) const fn is_subnormal(bits: u16) -> bool {
    bits & 0x7f80 == 0 && bits & 0x007f != 0
}
