//! A constant B of 16-bit elements, in micro-panels as it is.

use super::upcast::{Elements, Part, UpcastFn};
use super::{Format, PackedB};
use crate::backend::cpu::microkernel::MicroKernels;
use crate::description::matmul::MatMul;
use crate::operands::view::AnyView;

/// Packs one item of B.
///
/// # Panics
/// When `to` is shorter than the micro-panels.
pub(crate) fn pack(
    kernels: &MicroKernels,
    product: &MatMul,
    view: &AnyView<'_>,
    item: usize,
    to: &mut [u16],
) {
    let (k, n, layout) = (product.k(), product.n(), product.b());
    let (down, across) =
        if product.transpose_b() { (1, layout.leading_dimension()) } else { (layout.leading_dimension(), 1) };
    let start = layout.item_offset(item);
    let mut rest = to;
    for first in (0..n).step_by(kernels.nr()) {
        let cols = kernels.nr().min(n - first);
        let width = kernels.vectors(cols) * kernels.lanes();
        let (panel, others) = rest.split_at_mut(width * k);
        rest = others;
        for (p, row) in panel.chunks_exact_mut(width).enumerate() {
            for (col, to) in row[..cols].iter_mut().enumerate() {
                let index = start + p * down + (first + col) * across;
                *to = match view {
                    AnyView::F16(view) => view.data()[index].to_bits(),
                    AnyView::Bf16(view) => view.data()[index].to_bits(),
                    // The format is that of B's elements.
                    _ => 0,
                };
            }
        }
    }
}

/// Writes some rows of the micro-panels of some columns, which begin one, as micro-panels of f32.
///
/// # Panics
/// When `to` is shorter.
pub(crate) fn upcast(packed: &PackedB, product: &MatMul, part: &Part, to: &mut [f32]) {
    let kernels = packed.kernels;
    let upcast: UpcastFn = match kernels.format {
        Format::F16 => kernels.vector.upcast.f16,
        Format::Bf16 => kernels.vector.upcast.bf16,
        Format::F32 | Format::F64 | Format::Bf16Pairs | Format::Int8Quads | Format::Int8Pairs => {
            unreachable!("of 16 bits, not interleaved")
        }
    };
    let (n, nr, k) = (product.n(), kernels.nr(), part.rows.len());
    for (col, to) in part.cols.clone().step_by(nr).zip(to.chunks_mut(nr * k)) {
        let width = kernels.vectors(nr.min(n - col)) * kernels.lanes();
        let from = packed.panels(product, part.item, col, part.rows.start).at(0, 0, n - col < nr);
        let elements = Elements {
            from: from.cast(),
            from_stride: width,
            rows: 1,
            cols: width * k,
            to: to[..width * k].as_mut_ptr(),
            to_stride: 0,
        };
        // SAFETY: the micro-panel has so many elements from there on, of the function's type.
        unsafe { upcast(&elements) };
    }
}
