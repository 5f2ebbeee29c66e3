//! Elements interleaved in words, by dot-product instructions: sums become results in the micro-kernel.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::backend::cpu::epilogue::requantize::Requantize;
use crate::backend::cpu::isa::Dot;
use crate::backend::cpu::macrokernel::{B, MacroTile, multiply};
use crate::backend::cpu::pack::interleave_a::{Rows, as_it_lies, compensate, has_row_terms, interleave};
use crate::backend::cpu::pack::{Matrix, Panels};
use crate::backend::cpu::plan::interleaved_a_stride;
use crate::backend::cpu::run::{Block, Call, RunB, Scratch};

impl Call<'_> {
    /// Packs some columns of a dynamic B.
    pub(crate) fn interleave_b(&self, item: usize, cols: &Range<usize>, scratch: &mut Scratch) {
        let RunB::View(view) = &self.b else { return };
        let Some(packer) = &mut scratch.interleave else {
            unreachable!("a plan with a dynamic B has a packer");
        };
        let sums = scratch.compensation.get_mut(..cols.len()).unwrap_or_default();
        // SAFETY: the executor has checked that B covers its layout; the micro-panels have room for a block's
        // columns; a plan's kernels are of instructions that are here.
        if unsafe { packer.pack(view, item, cols, scratch.b.start_mut(), sums) } {
            self.subnormal_b.store(true, Ordering::Relaxed);
        }
        compensate(self.plan.kernels.format, &self.plan.product, sums);
    }

    pub(crate) fn dot_block(&self, block: &Block, dot: Dot, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let plan = self.plan;
        let (product, kernels) = (&plan.product, plan.kernels);
        let k = kernels.format.words(product.k());
        let (panels, compensation) = match &self.b {
            RunB::Packed(packed) => (
                packed.panels(product, *item, cols.start, 0),
                start_of(plan.of_columns(&plan.compensation, *item, cols.start)),
            ),
            RunB::View(_) | RunB::Integers(_) => {
                (Panels::packed(kernels, scratch.b.start(), k, cols.len()), scratch.compensation.as_ptr())
            }
        };
        let lacks = scratch.lacks(*item, rows);
        let a = as_it_lies(plan, &self.a, *item, rows.start).unwrap_or_else(|| {
            let (start, stride) = (scratch.a.start_mut(), interleaved_a_stride(kernels, product.k()));
            let mut to =
                Rows { start, stride, count: k, terms: &mut scratch.row_terms, floats: &mut scratch.row };
            if lacks {
                // SAFETY: the buffer has room for a block's rows; a plan's kernels are of instructions that are
                // here.
                unsafe { interleave(plan, &self.a, *item, rows.clone(), &mut to) };
            }
            Matrix { start, stride, transposed: false }
        });
        let (c, c_stride) = if plan.in_place() {
            self.output.place_of(*item, rows.start, cols.start)
        } else {
            (scratch.c.start_mut(), cols.len())
        };
        let requantize = Requantize {
            compensation,
            scales: start_of(plan.of_columns(&plan.column_scales, *item, cols.start)),
            rows: if has_row_terms(product) { scratch.row_terms.as_ptr() } else { std::ptr::null() },
        };
        let part = MacroTile {
            kernels,
            blocking: &plan.blocking,
            rows: rows.len(),
            cols: cols.len(),
            k,
            a,
            pack_a: false,
            b: B::Packed(panels),
            epilogue: if plan.in_place() { self.output.epilogue(*item, rows, cols) } else { None },
            c,
            c_stride,
            accumulate: false,
            requantize: if dot.of_integers() { &raw const requantize } else { std::ptr::null() },
            scratch_a: std::ptr::null_mut(),
            scratch_b: std::ptr::null_mut(),
        };
        // SAFETY: the executor has checked that the operands cover their layouts for this m; shares of C
        // are disjoint, and so are their scratch memories, which are as long as the plan needs; the terms of
        // columns and rows are those of the part.
        unsafe { multiply(&part) };
        if !plan.in_place() {
            let sums = scratch.c.numbers(rows.len() * cols.len());
            // SAFETY: this block of C is this call's alone.
            unsafe { self.output.block(block, sums, cols.len(), &mut scratch.row) };
        }
    }
}

fn start_of<T>(terms: Option<&[T]>) -> *const T {
    terms.map_or(std::ptr::null(), <[T]>::as_ptr)
}
