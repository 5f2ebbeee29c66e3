//! A float A by constant 8 or 4-bit weights: micro-panels of one vector of columns, each by all rows of a block.

use std::ops::Range;

use crate::backend::cpu::microkernel::weight_only::PanelArgs;
use crate::backend::cpu::pack::upcast::load_row;
use crate::backend::cpu::pack::weight_only::{PackedIntegers, group_len};
use crate::backend::cpu::run::{Block, Call, RunB, Scratch, blocks};

impl Call<'_> {
    pub(crate) fn weight_only_block(&self, block: &Block, scratch: &mut Scratch) {
        let RunB::Integers(packed) = self.b else {
            unreachable!("the plan of this algorithm has packed integers");
        };
        if scratch.lacks(block.item, &block.rows) {
            self.pack_rows(block.item, &block.rows, packed, scratch);
        }
        for cols in blocks(&block.cols, self.plan.kernels.lanes()) {
            self.panel(&Block { cols, ..block.clone() }, packed, scratch);
        }
    }

    /// The micro-panels of some rows of A: how many rows each has, and how many of them are there.
    fn row_tiles(&self, rows: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let kernels = &self.plan.kernels.vector.weight_only;
        let mut left = rows;
        std::iter::from_fn(move || {
            (left > 0).then(|| {
                let tile = kernels.tile_rows(left);
                let there = tile.min(left);
                left -= there;
                (tile, there)
            })
        })
    }

    /// Brings rows of A into the kernel's order; rows that a tile has beyond them are 0.
    fn pack_rows(&self, item: usize, rows: &Range<usize>, packed: &PackedIntegers, scratch: &mut Scratch) {
        let product = &self.plan.product;
        let (k, padded_k) = (product.k(), packed.padded_k());
        let per_word = 32 / packed.bits;
        let group = group_len(product.quantization().b, k);
        let padded_group = packed.words * per_word;
        let all = scratch.a.bytes() / size_of::<f32>();
        let (a, row) = (scratch.a.numbers(all), &mut scratch.row[..k]);
        let mut next = rows.start;
        let mut rest = a;
        for (tile, there) in self.row_tiles(rows.len()) {
            let (a, others) = rest.split_at_mut(tile * padded_k);
            rest = others;
            // What lies there from other rows would be multiplied by the offset.
            if there < tile || k != padded_k {
                a.fill(0.0);
            }
            for i in 0..there {
                load_row(self.plan.kernels.vector, &self.a, item, product.transpose_a(), next, row);
                next += 1;
                if tile == 1 && group == padded_group {
                    a[..k].copy_from_slice(row);
                    continue;
                }
                for (numbers, to) in row.chunks(group).zip(a.chunks_mut(padded_group * tile)) {
                    for (numbers, to) in numbers.chunks(per_word).zip(to.chunks_mut(per_word * tile)) {
                        to[i * per_word..][..numbers.len()].copy_from_slice(numbers);
                    }
                }
            }
        }
    }

    /// The columns of one micro-panel of B.
    fn panel(&self, block: &Block, packed: &PackedIntegers, scratch: &mut Scratch) {
        let Block { item, rows, cols } = block;
        let plan = self.plan;
        let (vector, lanes) = (plan.kernels.vector, plan.kernels.lanes());
        let (b, padded_k) = (packed.panel(*item, cols.start / lanes), packed.padded_k());
        let mut a: *const f32 = scratch.a.start().cast();
        let mut sums: *mut f32 = scratch.c.start_mut().cast();
        for (tile, _) in self.row_tiles(rows.len()) {
            let args = PanelArgs {
                b,
                groups: packed.groups,
                words: packed.words,
                last_words: packed.last_words,
                a,
                offset: packed.offset,
                sums,
            };
            // SAFETY: A, B and the sums are packed for these kernels, whose instructions are here.
            unsafe { vector.weight_only.panel(packed.bits, packed.offset != 0.0, tile)(&args) };
            a = a.wrapping_add(tile * padded_k);
            sums = sums.wrapping_add(tile * lanes);
        }
        let sums = scratch.c.numbers(rows.len() * lanes);
        if !plan.in_place() {
            // SAFETY: this block of C is this call's alone.
            return unsafe { self.output.block(block, sums, lanes, &mut scratch.row) };
        }
        let (c, c_stride) = self.output.place_of(*item, rows.start, cols.start);
        for (index, sums) in sums.chunks(lanes).enumerate() {
            // SAFETY: these columns of C are this thread's alone, and do not overlap its scratch memory.
            unsafe {
                std::ptr::copy_nonoverlapping(sums.as_ptr().cast(), c.add(index * c_stride), cols.len());
            };
        }
        if let Some(epilogue) = self.output.epilogue(*item, rows, cols) {
            // SAFETY: bias, residual and these columns of C cover it.
            unsafe { (vector.epilogue)(&epilogue) };
        }
    }
}
