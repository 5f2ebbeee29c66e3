//! A constant B of 16-bit elements, in panels as it is.

use std::sync::Arc;

use super::super::buffer::Buffer;
use super::super::kernel::{Kernels, halves};
use super::super::pack::{Panels, packed_b_len};
use super::super::widen::{Elements, WidenFn};
use super::load::Part;
use crate::description::element::ElementType::{Bf16, F16};
use crate::description::matmul::MatMul;
use crate::description::quantization::QuantB;
use crate::error::Result;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// The panels of all items, shared by all products of the same weights.
pub(super) struct HalfPanels {
    buffer: Buffer,
    /// From item to item; 0 when all share one.
    item_stride: usize,
    /// Those that read them.
    pub kernels: &'static Kernels,
    /// Makes their elements f32.
    widen: WidenFn,
}

impl HalfPanels {
    /// `None` where B is not of such elements.
    pub(super) fn of(kernels: &Kernels, product: &MatMul, weights: &Weights) -> Result<Option<Arc<Self>>> {
        let (kernels, widen) = match product.types().b {
            F16 => (halves(kernels, true), kernels.widening.f16),
            Bf16 => (halves(kernels, false), kernels.widening.bf16),
            _ => return Ok(None),
        };
        let key = (kernels.name, product.transpose_b(), QuantB::None);
        weights.derived(key, || Self::new(kernels, widen, product, weights)).map(Some)
    }

    fn new(kernels: &'static Kernels, widen: WidenFn, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (k, n, layout) = (product.k(), product.n(), product.b());
        let shared = layout.batch() > 1 && layout.batch_stride() == 0;
        let items = if shared { 1 } else { layout.batch() };
        let item_len = packed_b_len(kernels, k, n);
        let mut buffer = Buffer::zeroed(items.saturating_mul(item_len), "packed weights")?;
        let (down, across) = if product.transpose_b() {
            (1, layout.leading_dimension())
        } else {
            (layout.leading_dimension(), 1)
        };
        for item in 0..items {
            let start = layout.item_offset(item);
            // SAFETY: the buffer has room for every item, of two elements in a word.
            let out: &mut [u16] = unsafe {
                std::slice::from_raw_parts_mut(buffer.start_mut().add(item * item_len).cast(), item_len * 2)
            };
            let panels = (0..n).step_by(kernels.panel());
            let mut rest = out;
            for first in panels {
                let cols = kernels.panel().min(n - first);
                let width = kernels.vectors(cols) * kernels.lanes;
                let (panel, others) = rest.split_at_mut(width * k);
                rest = others;
                for (p, row) in panel.chunks_exact_mut(width).enumerate() {
                    for (col, out) in row[..cols].iter_mut().enumerate() {
                        let index = start + p * down + (first + col) * across;
                        *out = match weights.view() {
                            AnyView::F16(view) => view.data()[index].to_bits(),
                            AnyView::Bf16(view) => view.data()[index].to_bits(),
                            // `of` leaves the two.
                            _ => 0,
                        };
                    }
                }
            }
        }
        Ok(Self { buffer, item_stride: if shared { 0 } else { item_len }, kernels, widen })
    }

    /// The panels of an item from column `col`, which begins one, and the row `p` of B on.
    pub(super) fn panels(&self, product: &MatMul, item: usize, col: usize, p: usize) -> Panels {
        let (k, n) = (product.k(), product.n());
        let whole = packed_b_len(self.kernels, k, col);
        let start = self.buffer.start().wrapping_add(item * self.item_stride + whole);
        Panels { first_k: p, ..Panels::packed(self.kernels, start, k, n - col) }
    }

    /// Writes some rows of the panels of some columns, which begin one, as panels of f32.
    pub(super) fn expand(&self, product: &MatMul, part: &Part, out: &mut [f32]) {
        let (n, panel, k) = (product.n(), self.kernels.panel(), part.rows.len());
        for (col, out) in part.cols.clone().step_by(panel).zip(out.chunks_mut(panel * k)) {
            let width = self.kernels.vectors(panel.min(n - col)) * self.kernels.lanes;
            let from = self.panels(product, part.item, col, part.rows.start).at(0, 0, n - col < panel);
            let elements = Elements {
                from: from.cast(),
                from_stride: width,
                rows: 1,
                cols: width * k,
                to: out[..width * k].as_mut_ptr(),
                to_stride: 0,
            };
            // SAFETY: the panel has so many elements from there on, of the function's type.
            unsafe { (self.widen)(&elements) };
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }
}
