//! The built-in CPU backend: f32 products on the kernels of the `gemm` crate, on threads of our
//! own.

mod pool;

use std::sync::Arc;

use crate::backend::epilogue::Epilogue;
use crate::backend::{Backend, BackendId, CompiledProduct, Facts, Run, RunArgs, f32_only};
use crate::error::Result;
use crate::layout::Layout;
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device, ThreadPool, Threads};
use crate::refusal::Refusal;
use crate::weights::Weights;

use pool::Pool;

/// Products below this many floating-point operations stay on one thread: handing them over costs
/// more than it saves (a few microseconds against about 10 on one core).
const PARALLEL_FLOPS: f64 = 5e5;

/// Blocks of C start at multiples of this many columns or rows, so that at most the last block of
/// a thread ends inside a register tile.
const BLOCK_ALIGN: usize = 48;

pub(super) struct Cpu;

impl Cpu {
    pub(super) fn new() -> Self {
        Self
    }
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        "built-in engine: kernels of the gemm crate, f32".into()
    }

    fn device(&self) -> (Device, String) {
        (Device::Cpu, std::env::consts::ARCH.into())
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        f32_only::supports(product, options)
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        let threads = if product.flops() < PARALLEL_FLOPS { 1 } else { options.threads.number() };
        let pool: Option<Arc<dyn ThreadPool>> = match &options.threads {
            _ if threads == 1 => None,
            Threads::Pool(pool) => Some(Arc::clone(pool)),
            Threads::Auto | Threads::Count(_) => Some(Arc::new(Pool::new(threads)?)),
        };
        Ok(Box::new(CpuProduct(Arc::new(Plan { product: product.clone(), weights: weights.cloned(), pool }))))
    }
}

struct Plan {
    product: MatMul,
    weights: Option<Weights>,
    pool: Option<Arc<dyn ThreadPool>>,
}

struct CpuProduct(Arc<Plan>);

impl CompiledProduct for CpuProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(CpuRun(Arc::clone(&self.0))))
    }

    fn facts(&self) -> Facts {
        Facts {
            bytes_held: size_of::<Plan>(),
            observed: Device::Cpu,
            threads: Some(self.0.pool.as_ref().map_or(1, |pool| pool.threads())),
            note: None,
            from_package: false,
        }
    }
}

struct CpuRun(Arc<Plan>);

impl Run for CpuRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        let plan = &*self.0;
        let epilogue = Epilogue::new(&plan.product, args.bias, args.residual);
        let weights = plan.weights.as_ref().map(Weights::view);
        let mut operands = f32_only::operands(&BackendId::CPU, args, weights)?;
        let layout = *operands.c.layout();
        if layout.is_empty() {
            return Ok(());
        }
        let grid = Grid::new(&layout, plan.pool.as_ref().map_or(1, |pool| pool.threads()));
        let job = Job {
            product: &plan.product,
            m: operands.m,
            a: operands.a.data(),
            b: operands.b.data(),
            c: CPointer(operands.c.data().as_mut_ptr()),
            layout,
            epilogue,
        };
        let task = |index| job.compute(&grid.block(&layout, index));
        match &plan.pool {
            Some(pool) => pool.run(grid.tasks(), &task),
            None => (0..grid.tasks()).for_each(task),
        }
        Ok(())
    }
}

/// How C is cut into blocks: items of the batch, and rows or columns of each, whichever is longer.
#[derive(Debug, Clone, Copy)]
struct Grid {
    by_rows: bool,
    blocks_per_item: usize,
    block_length: usize,
    items: usize,
}

/// A part of one item of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    item: usize,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

impl Grid {
    fn new(layout: &Layout, threads: usize) -> Self {
        let items = layout.batch();
        let by_rows = layout.rows() >= layout.cols();
        let length = if by_rows { layout.rows() } else { layout.cols() };
        let wanted = if items.is_multiple_of(threads) { 1 } else { threads };
        let block_length = length.div_ceil(wanted).next_multiple_of(BLOCK_ALIGN).min(length);
        Self { by_rows, blocks_per_item: length.div_ceil(block_length), block_length, items }
    }

    fn tasks(&self) -> usize {
        self.items * self.blocks_per_item
    }

    fn block(&self, layout: &Layout, index: usize) -> Block {
        let item = index / self.blocks_per_item;
        let start = index % self.blocks_per_item * self.block_length;
        if self.by_rows {
            let rows = self.block_length.min(layout.rows() - start);
            Block { item, row: start, rows, col: 0, cols: layout.cols() }
        } else {
            let cols = self.block_length.min(layout.cols() - start);
            Block { item, row: 0, rows: layout.rows(), col: start, cols }
        }
    }
}

/// C, of which every task writes a block of its own.
#[derive(Clone, Copy)]
struct CPointer(*mut f32);

// SAFETY: the pointer comes from an exclusive borrow that outlives the run; tasks write disjoint
// blocks through it and never read another's.
unsafe impl Send for CPointer {}
// SAFETY: as for Send.
unsafe impl Sync for CPointer {}

struct Job<'a> {
    product: &'a MatMul,
    m: usize,
    a: &'a [f32],
    b: &'a [f32],
    c: CPointer,
    layout: Layout,
    epilogue: Epilogue<'a>,
}

impl Job<'_> {
    fn compute(&self, block: &Block) {
        let product = self.product;
        let k = product.k();
        let ldc = self.layout.leading_dimension();
        let c_start = self.layout.item_offset(block.item) + block.row * ldc + block.col;
        if k > 0 {
            let (a_rows, a_cols) = strides(product.a(), product.transpose_a());
            let (b_rows, b_cols) = strides(product.b(), product.transpose_b());
            let a = &self.a[product.a().item_offset(block.item) + block.row * a_rows..];
            let b = &self.b[product.b().item_offset(block.item) + block.col * b_cols..];
            debug_assert!((block.rows - 1) * a_rows + (k - 1) * a_cols < a.len());
            debug_assert!((k - 1) * b_rows + (block.cols - 1) * b_cols < b.len());
            debug_assert!(block.row + block.rows <= self.m);
            // SAFETY: the executor has checked that A, B and C cover their layouts for this m, so
            // every element addressed by these strides lies inside the slices; the blocks of C of
            // different tasks are disjoint; C is not read (read_dst is false).
            unsafe {
                gemm::gemm(
                    block.rows,
                    block.cols,
                    k,
                    self.c.0.add(c_start),
                    1,
                    ldc.cast_signed(),
                    false,
                    a.as_ptr(),
                    a_cols.cast_signed(),
                    a_rows.cast_signed(),
                    b.as_ptr(),
                    b_cols.cast_signed(),
                    b_rows.cast_signed(),
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        if k > 0 && self.epilogue.is_identity() {
            return;
        }
        for row in 0..block.rows {
            // SAFETY: the row lies inside this task's block of C, which nobody else touches.
            let sums =
                unsafe { std::slice::from_raw_parts_mut(self.c.0.add(c_start + row * ldc), block.cols) };
            if k == 0 {
                sums.fill(0.0);
            }
            self.epilogue.apply(block.item, block.row + row, block.col, sums);
        }
    }
}

/// The distances between rows and between columns of op(X).
fn strides(layout: &Layout, transpose: bool) -> (usize, usize) {
    let ld = layout.leading_dimension();
    if transpose { (1, ld) } else { (ld, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_c_exactly_once() {
        for (batch, rows, cols) in
            [(1, 1, 1), (1, 100, 7), (3, 7, 100), (2, 96, 96), (5, 1, 1000), (4, 333, 77)]
        {
            let layout = Layout::packed(batch, rows, cols).unwrap();
            for threads in 1..6 {
                let grid = Grid::new(&layout, threads);
                let mut seen = vec![0u8; layout.span()];
                for index in 0..grid.tasks() {
                    let block = grid.block(&layout, index);
                    for row in block.row..block.row + block.rows {
                        for col in block.col..block.col + block.cols {
                            seen[(block.item * rows + row) * cols + col] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&count| count == 1), "{layout} on {threads} threads");
            }
        }
    }
}
