//! f32 by f32, or f64 by f64: the macro-kernel on operands as they lie, or a product with a vector.

use std::ops::Range;

use crate::backend::cpu::epilogue::Epilogue;
use crate::backend::cpu::gemv::Gemv;
use crate::backend::cpu::macrokernel::{B, MacroTile, multiply};
use crate::backend::cpu::pack::{Matrix, Word, start_of_numbers};
use crate::backend::cpu::plan::Method;
use crate::backend::cpu::run::{Block, Call, RunB, Scratch};
use crate::backend::cpu::small::{Items, SmallProduct};
use crate::description::layout::Layout;

/// Numbers some words apart.
#[derive(Debug, Clone, Copy)]
struct Vector {
    start: *const Word,
    stride: usize,
}

#[derive(Debug, Clone, Copy)]
struct VectorMut {
    start: *mut Word,
    stride: usize,
}

/// Copies numbers of `words` words each.
///
/// # Safety
/// Both vectors have so many, and do not overlap.
unsafe fn copy_numbers(from: Vector, to: VectorMut, count: usize, words: usize) {
    let copy = |word: usize| {
        for i in 0..count {
            // SAFETY: by the function's own contract; the stride of a single number may be any.
            unsafe { *to.start.add(i * to.stride + word) = *from.start.add(i * from.stride + word) };
        }
    };
    (0..words).for_each(copy);
}

impl Call<'_> {
    /// Whether B is packed in the run.
    pub(crate) fn packs_direct_b(&self) -> bool {
        matches!(self.b, RunB::View(_)) && self.plan.method(self.m) == Method::Pack
    }

    /// All rows and columns of some items.
    pub(crate) fn small_items(&self, small: &mut SmallProduct, items: Range<usize>) {
        let (a, words) = start_of_numbers(&self.a);
        let stride = |layout: &Layout| layout.batch_stride().wrapping_mul(words);
        let b = match &self.b {
            RunB::Packed(packed) => packed.items(),
            RunB::View(b) => (start_of_numbers(b).0, stride(b.layout())),
            RunB::Integers(_) => unreachable!("the operands of this algorithm are numbers"),
        };
        let (rows, cols) = (0..self.plan.product.m(), 0..self.plan.product.n());
        let places = Items {
            a: (a, stride(self.a.layout())),
            b,
            c: (self.output.place_of(0, 0, 0).0, stride(self.output.layout())),
        };
        // SAFETY: as for `multiply` below.
        unsafe { small.run(self.plan, items, &places, |item| self.output.epilogue(item, &rows, &cols)) };
    }

    pub(crate) fn direct_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let plan = self.plan;
        let product = &plan.product;
        let (k, kernels) = (product.k(), plan.kernels);
        let words = kernels.number_words();
        let (c, c_stride) = self.output.place_of(*item, rows.start, cols.start);
        let epilogue = self.output.epilogue(*item, rows, cols);
        if k == 0 {
            for row in 0..rows.len() {
                // SAFETY: the row lies inside this share of C.
                unsafe { c.add(row * c_stride).write_bytes(0, cols.len() * words) };
            }
            if let Some(epilogue) = epilogue {
                // SAFETY: bias, residual and this share of C cover it.
                unsafe { (kernels.vector.epilogue)(&epilogue) };
            }
            return;
        }
        let a = Matrix::of(&self.a, product.a(), product.transpose_a(), *item).at(kernels, rows.start, 0);
        let b = match &self.b {
            RunB::View(b) => {
                let b = Matrix::of(b, product.b(), product.transpose_b(), *item).at(kernels, 0, cols.start);
                match plan.method(self.m) {
                    Method::Plain => B::Plain(b),
                    Method::Pack => B::Pack(b),
                    // As rows of outputs, B is its transpose.
                    Method::RowTimesB => {
                        let x =
                            Vector { start: a.start, stride: if a.transposed { a.stride } else { words } };
                        let y = VectorMut { start: c, stride: words };
                        let b = Matrix { transposed: !b.transposed, ..b };
                        // SAFETY: as for `multiply` below; x has room in scratch memory.
                        return unsafe { self.gemv(b, cols.len(), x, y, epilogue, scratch) };
                    }
                    Method::ATimesColumn => {
                        let x =
                            Vector { start: b.start, stride: if b.transposed { words } else { b.stride } };
                        let y = VectorMut { start: c, stride: c_stride };
                        // SAFETY: as for `multiply` below; x and y have room in scratch memory.
                        return unsafe { self.gemv(a, rows.len(), x, y, epilogue, scratch) };
                    }
                }
            }
            RunB::Packed(packed) => B::Packed(packed.panels(product, *item, cols.start, 0)),
            RunB::Integers(_) => unreachable!("the operands of this algorithm are numbers"),
        };
        let part = MacroTile {
            kernels,
            blocking: &plan.blocking,
            rows: rows.len(),
            cols: cols.len(),
            k,
            a,
            pack_a: plan.packs_a(rows.len(), cols.len()),
            b,
            epilogue,
            c,
            c_stride,
            accumulate: false,
            requantize: std::ptr::null(),
            scratch_a: scratch.a.start_mut(),
            scratch_b: scratch.b.start_mut(),
        };
        // SAFETY: the executor has checked that the operands cover their layouts for this m; shares of
        // C are disjoint, and so are their scratch memories, which are as long as the plan needs.
        unsafe { multiply(&part) };
    }

    /// `y = matrix x` for `outputs` rows, and the epilogue.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn gemv(
        &self,
        matrix: Matrix,
        outputs: usize,
        x: Vector,
        y: VectorMut,
        epilogue: Option<Epilogue>,
        scratch: &mut Scratch,
    ) {
        let (kernels, k) = (self.plan.kernels, self.plan.product.k());
        let (vector, words) = (kernels.vector, kernels.number_words());
        // SAFETY: by the function's own contract; what is not contiguous goes through scratch memory.
        unsafe {
            let contiguous_x = if x.stride == words {
                x.start
            } else {
                let copy = scratch.a.start_mut();
                copy_numbers(x, VectorMut { start: copy, stride: words }, k, words);
                copy.cast_const()
            };
            let contiguous_y = if y.stride == words { y.start } else { scratch.b.start_mut() };
            let gemv = Gemv {
                outputs,
                k,
                matrix: matrix.start.cast(),
                stride: matrix.stride / words,
                x: contiguous_x,
                y: contiguous_y,
            };
            if matrix.transposed {
                (vector.gemv.columns)(&gemv);
            } else {
                (vector.gemv.rows)(&gemv);
            }
            if y.stride != words {
                copy_numbers(Vector { start: contiguous_y, stride: words }, y, outputs, words);
            }
            if let Some(epilogue) = epilogue {
                (vector.epilogue)(&epilogue);
            }
        }
    }
}
