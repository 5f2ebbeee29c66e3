//! Constant weights of 8 and 4 bits, with their scales.
//!
//! B lies in micro-panels of one vector of columns, each a single stream of memory: for each group along k its
//! words, one for each column, of 4 or 8 integers with consecutive k, the first in the low bits; then the
//! scales of the columns as f32. 128 4-bit weights take 68 bytes so.

use super::Word;
use super::upcast::scale;
use crate::backend::cpu::buffer::Buffer;
use crate::backend::cpu::microkernel::MicroKernels;
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantB;
use crate::error::{Error, Result};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// The rows of B (along k) that share a scale, at most `k`.
pub(crate) fn group_len(scheme: QuantB, k: usize) -> usize {
    match scheme {
        QuantB::PerGroup { group_size, .. } => k.min(group_size as usize),
        _ => k,
    }
}

/// A constant B in micro-panels.
pub(crate) struct PackedIntegers {
    buffer: Buffer,
    /// Of each integer.
    pub bits: usize,
    pub groups: usize,
    /// The words of a column in a group, and in the last one.
    pub words: usize,
    pub last_words: usize,
    /// What each packed integer has yet to lose.
    pub offset: f32,
    panel_len: usize,
    panels: usize,
    shared: bool,
}

impl PackedIntegers {
    pub(crate) fn new(kernels: &MicroKernels, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (n, k, lanes) = (product.n(), product.k(), kernels.lanes());
        let scheme = product.quantization().b;
        let element = product.types().b;
        let group = group_len(scheme, k);
        let groups = k.div_ceil(group);
        let per_word = 32 / element.bits();
        let words = group.div_ceil(per_word);
        let last_words = (k - (groups - 1) * group).div_ceil(per_word);
        let panel_len = ((groups - 1) * (words + 1) + last_words + 1) * lanes;
        let panels = n.div_ceil(lanes);
        let items =
            if product.b().batch_stride() == 0 && weights.shares_scales() { 1 } else { product.batch() };
        let len = items.checked_mul(panels).and_then(|count| count.checked_mul(panel_len));
        let len = len.ok_or(Error::SizeOverflow { what: "packed weights" })?;
        // Unsigned integers are packed as signed ones, less half their range.
        let bias = match element {
            ElementType::U8 => 128,
            ElementType::U4 => 8,
            _ => 0,
        };
        #[allow(clippy::cast_precision_loss, reason = "of at most 9 bits")]
        let offset = (scheme.zero_point() - bias) as f32;
        let mut buffer = Buffer::zeroed(len, "packed weights")?;
        // SAFETY: the buffer holds so many numbers of 4 bytes, all initialised, and is borrowed alone.
        let out = unsafe { std::slice::from_raw_parts_mut(buffer.start_mut().cast::<u32>(), len) };
        let halves_apart = element.bits() == 4 && kernels.vector.weight_only.halves_apart;
        let packing = Packing { product, weights, lanes, halves_apart, group, per_word, bias };
        for (index, panel) in out.chunks_mut(panel_len.max(1)).enumerate() {
            packing.panel(index / panels, index % panels * lanes, panel);
        }
        let shared = items == 1;
        Ok(Self {
            buffer,
            bits: element.bits(),
            groups,
            words,
            last_words,
            offset,
            panel_len,
            panels,
            shared,
        })
    }

    /// k with every group in whole words.
    pub(crate) fn padded_k(&self) -> usize {
        ((self.groups - 1) * self.words + self.last_words) * (32 / self.bits)
    }

    /// Where a micro-panel begins.
    pub(crate) fn panel(&self, item: usize, panel: usize) -> *const Word {
        let item = if self.shared { 0 } else { item };
        self.buffer.start().wrapping_add((item * self.panels + panel) * self.panel_len)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }
}

/// Four words, the low halves first.
fn part_halves(words: &mut [u32]) {
    let half = |i: usize| words[i % 4] >> (i / 4 * 16) & 0xffff;
    let parted = [0, 2, 4, 6].map(|i| half(i) | half(i + 1) << 16);
    words.copy_from_slice(&parted);
}

struct Packing<'a> {
    product: &'a MatMul,
    weights: &'a Weights,
    lanes: usize,
    /// [`Simd::HALVES_APART`](crate::backend::cpu::isa::Simd::HALVES_APART).
    halves_apart: bool,
    group: usize,
    per_word: usize,
    bias: i32,
}

impl Packing<'_> {
    /// Packs the columns from `first` on.
    fn panel(&self, item: usize, first: usize, mut out: &mut [u32]) {
        let (n, k) = (self.product.n(), self.product.k());
        let cols = self.lanes.min(n - first);
        for (group, start) in (0..k).step_by(self.group).enumerate() {
            let end = k.min(start + self.group);
            for word in (start..end).step_by(self.per_word) {
                let (to, rest) = out.split_at_mut(self.lanes);
                out = rest;
                self.words(item, word..end.min(word + self.per_word), first, &mut to[..cols]);
                if self.halves_apart {
                    to.chunks_exact_mut(4).for_each(part_halves);
                }
            }
            let (to, rest) = out.split_at_mut(self.lanes);
            out = rest;
            for (col, to) in (first..).zip(&mut to[..cols]) {
                *to = self.scale(item, group, col).to_bits();
            }
        }
    }

    fn words(&self, item: usize, rows: std::ops::Range<usize>, first: usize, out: &mut [u32]) {
        let layout = self.product.b();
        let (row_step, col_step) = if self.product.transpose_b() {
            (1, layout.leading_dimension())
        } else {
            (layout.leading_dimension(), 1)
        };
        let view = self.weights.view();
        let bits = 32 / self.per_word;
        let mask = u32::MAX >> (32 - bits);
        for (col, out) in (first..).zip(out) {
            for (i, row) in rows.clone().enumerate() {
                let index = layout.item_offset(item) + row * row_step + col * col_step;
                let integer = match &view {
                    AnyView::I8(view) => i32::from(view.data()[index]),
                    AnyView::U8(view) => i32::from(view.data()[index]),
                    AnyView::Int4(view) => i32::from(view.at(index)),
                    // `plan::is_weight_only` leaves integers only.
                    _ => 0,
                };
                *out |= ((integer - self.bias).cast_unsigned() & mask) << (i * bits);
            }
        }
    }

    fn scale(&self, item: usize, group: usize, col: usize) -> f32 {
        let scales = self.weights.scales();
        let scales = scales.as_ref();
        match self.product.quantization().b {
            QuantB::PerGroup { .. } => scales.map_or(1.0, |scales| scale(scales, item, group, col)),
            QuantB::PerColumn { .. } => scales.map_or(1.0, |scales| scale(scales, item, 0, col)),
            _ => scales.map_or(1.0, |scales| scale(scales, item, 0, 0)),
        }
    }
}
