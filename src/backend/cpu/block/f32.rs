//! f32 by f32: the macro-kernel on operands as they lie, or a product with a vector.

use std::ops::Range;

use crate::backend::cpu::epilogue::Epilogue;
use crate::backend::cpu::gemv::Gemv;
use crate::backend::cpu::macrokernel::{B, MacroTile, multiply};
use crate::backend::cpu::pack::Matrix;
use crate::backend::cpu::plan::Method;
use crate::backend::cpu::run::{Block, Call, RunB, Scratch};
use crate::backend::cpu::small::{Items, SmallProduct};
use crate::operands::view::AnyView;

#[derive(Debug, Clone, Copy)]
struct Vector {
    start: *const f32,
    stride: usize,
}

#[derive(Debug, Clone, Copy)]
struct VectorMut {
    start: *mut f32,
    stride: usize,
}

impl Call<'_> {
    /// Whether B is packed in the run.
    pub(crate) fn packs_f32_b(&self) -> bool {
        matches!(self.b, RunB::View(_)) && self.plan.method(self.m) == Method::Pack
    }

    /// All rows and columns of some items.
    pub(crate) fn small_items(&self, small: &mut SmallProduct, items: Range<usize>) {
        let AnyView::F32(a) = &self.a else {
            unreachable!("the operands of this algorithm are f32");
        };
        let b = match &self.b {
            RunB::Packed(packed) => packed.items(),
            RunB::View(AnyView::F32(b)) => (b.data().as_ptr().cast(), b.layout().batch_stride()),
            RunB::View(_) | RunB::Integers(_) => unreachable!("the operands of this algorithm are f32"),
        };
        let (rows, cols) = (0..self.plan.product.m(), 0..self.plan.product.n());
        let places = Items {
            a: (a.data().as_ptr().cast(), a.layout().batch_stride()),
            b,
            c: (self.output.place_of(0, 0, 0).0, self.output.layout().batch_stride()),
        };
        // SAFETY: as for `multiply` below.
        unsafe { small.run(self.plan, items, &places, |item| self.output.epilogue(item, &rows, &cols)) };
    }

    pub(crate) fn f32_block(&self, block: &Block, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let plan = self.plan;
        let product = &plan.product;
        let k = product.k();
        let (c, c_stride) = self.output.place_of(*item, rows.start, cols.start);
        let epilogue = self.output.epilogue(*item, rows, cols);
        if k == 0 {
            for row in 0..rows.len() {
                // SAFETY: the row lies inside this share of C.
                unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride), cols.len()) }.fill(0.0);
            }
            if let Some(epilogue) = epilogue {
                // SAFETY: bias, residual and this share of C cover it.
                unsafe { (plan.kernels.vector.epilogue)(&epilogue) };
            }
            return;
        }
        let AnyView::F32(a) = &self.a else {
            unreachable!("the operands of this algorithm are f32");
        };
        let a = Matrix::of(a.data(), product.a(), product.transpose_a(), *item).at(rows.start, 0);
        let b = match &self.b {
            RunB::View(AnyView::F32(b)) => {
                let b = Matrix::of(b.data(), product.b(), product.transpose_b(), *item).at(0, cols.start);
                match plan.method(self.m) {
                    Method::Plain => B::Plain(b),
                    Method::Pack => B::Pack(b),
                    // As rows of outputs, B is its transpose.
                    Method::RowTimesB => {
                        let x =
                            Vector { start: a.start.cast(), stride: if a.transposed { a.stride } else { 1 } };
                        let y = VectorMut { start: c, stride: 1 };
                        let b = Matrix { transposed: !b.transposed, ..b };
                        // SAFETY: as for `multiply` below; x has room in scratch memory.
                        return unsafe { self.gemv(b, cols.len(), x, y, epilogue, scratch) };
                    }
                    Method::ATimesColumn => {
                        let x =
                            Vector { start: b.start.cast(), stride: if b.transposed { 1 } else { b.stride } };
                        let y = VectorMut { start: c, stride: c_stride };
                        // SAFETY: as for `multiply` below; x and y have room in scratch memory.
                        return unsafe { self.gemv(a, rows.len(), x, y, epilogue, scratch) };
                    }
                }
            }
            RunB::Packed(packed) => B::Packed(packed.panels(product, *item, cols.start, 0)),
            RunB::View(_) | RunB::Integers(_) => unreachable!("the operands of this algorithm are f32"),
        };
        let part = MacroTile {
            kernels: plan.kernels,
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
        let (vector, k) = (self.plan.kernels.vector, self.plan.product.k());
        // SAFETY: by the function's own contract; what is not contiguous goes through scratch memory.
        unsafe {
            let contiguous_x = if x.stride == 1 {
                x.start
            } else {
                let copy: *mut f32 = scratch.a.start_mut().cast();
                for i in 0..k {
                    copy.add(i).write(*x.start.add(i * x.stride));
                }
                copy.cast_const()
            };
            let contiguous_y = if y.stride == 1 { y.start } else { scratch.b.start_mut().cast() };
            let gemv = Gemv {
                outputs,
                k,
                matrix: matrix.start.cast(),
                stride: matrix.stride,
                x: contiguous_x,
                y: contiguous_y,
            };
            if matrix.transposed {
                (vector.gemv.columns)(&gemv);
            } else {
                (vector.gemv.rows)(&gemv);
            }
            if y.stride != 1 {
                for i in 0..outputs {
                    y.start.add(i * y.stride).write(*contiguous_y.add(i));
                }
            }
            if let Some(epilogue) = epilogue {
                (vector.epilogue)(&epilogue);
            }
        }
    }
}
