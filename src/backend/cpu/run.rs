//! One run of a compiled product.

use std::sync::Arc;

use super::buffer::Buffer;
use super::finish::Finish;
use super::gemv::Gemv;
use super::pack::{Matrix, Panels};
use super::plan::{Method, Plan};
use super::product::{B, Part, multiply, scratch_a_len, scratch_b_len};
use super::split::{Share, Split};
use super::steps::{Starts, Steps};
use super::workers::Workers;
use super::{ConstantB, PackedB, matrix};
use crate::backend::f32_only::{f32_view, not_f32, operands};
use crate::backend::{BackendId, Run, RunArgs};
use crate::description::layout::Layout;
use crate::error::Result;
use crate::operands::view::{AnyView, AnyViewMut, TensorView};
use crate::operands::weights::Weights;

/// What an error calls the memory of an executor.
const SCRATCH: &str = "packed operands";

/// The run context of one executor: memory for packed operands, for each share of the product.
pub(super) struct CpuRun {
    plan: Arc<Plan>,
    workers: Workers<Scratch>,
    /// For runs with all rows.
    steps: Option<Steps>,
}

struct Scratch {
    a: Buffer,
    b: Buffer,
}

impl CpuRun {
    pub(super) fn new(plan: Arc<Plan>) -> Result<Self> {
        let Plan { product, kernels, blocking, b, .. } = &*plan;
        let (m, n, k) = (product.m(), product.n(), product.k());
        let workers = Workers::new(plan.threads, || {
            let for_a = scratch_a_len(kernels, blocking, m, k);
            let for_b = if matches!(b, ConstantB::None) { scratch_b_len(kernels, blocking, n, k) } else { 0 };
            // A product with a vector keeps x in the one and y in the other.
            let (for_a, for_b) = if m == 1 || n == 1 || product.variable_m() {
                (for_a.max(k), if n == 1 { for_b.max(m) } else { for_b })
            } else {
                (for_a, for_b)
            };
            Ok(Scratch { a: Buffer::zeroed(for_a, SCRATCH)?, b: Buffer::zeroed(for_b, SCRATCH)? })
        })?;
        Ok(Self { steps: Steps::of(&plan), plan, workers })
    }
}

impl CpuRun {
    /// Whether the product had steps, and was run by them.
    fn run_steps(&self, args: &mut RunArgs<'_>) -> bool {
        let plan = &*self.plan;
        let Some(steps) = self.steps.as_ref().filter(|_| args.m == plan.product.m()) else {
            return false;
        };
        // By reference: the views of a run are as long to copy as a small product is to compute.
        let (AnyView::F32(a), AnyViewMut::F32(c)) = (&args.a, &mut args.c) else {
            return false;
        };
        let b = match (&plan.b, &args.b) {
            (ConstantB::Packed(packed), _) => packed.buffer.start(),
            (_, Some(AnyView::F32(b))) => b.data().as_ptr(),
            _ => return false,
        };
        let starts = Starts { a: a.data().as_ptr(), b, c: c.data().as_mut_ptr() };
        let finish = plan.has_epilogue().then(|| Finish {
            c: starts.c,
            c_stride: c.layout().leading_dimension(),
            rows: plan.product.m(),
            cols: plan.product.n(),
            alpha: plan.alpha(),
            bias: args.bias.and_then(f32_view).map(|bias| bias.data().as_ptr()),
            residual: args
                .residual
                .and_then(f32_view)
                .map(|residual| (residual.data().as_ptr(), residual.layout().leading_dimension())),
            activation: plan.product.activation(),
        });
        // SAFETY: the executor has checked that the operands cover their layouts.
        unsafe { steps.run(plan.kernels, &starts, finish) };
        true
    }
}

impl Run for CpuRun {
    fn run(&mut self, mut args: RunArgs<'_>) -> Result<()> {
        if self.run_steps(&mut args) {
            return Ok(());
        }
        let plan = &*self.plan;
        let weights = match &plan.b {
            ConstantB::Plain(weights) => Some(Weights::view(weights)),
            ConstantB::None | ConstantB::Packed(_) => None,
        };
        let (bias, residual) = (args.bias.and_then(f32_view), args.residual.and_then(f32_view));
        let mut operands = operands(&BackendId::CPU, args, weights)?;
        let layout = *operands.c.layout();
        if layout.is_empty() {
            return Ok(());
        }
        let b = match (&plan.b, &operands.b) {
            (ConstantB::Packed(packed), _) => Source::Packed(packed),
            (_, Some(b)) => Source::Given(b.data()),
            (_, None) => return Err(not_f32(&BackendId::CPU)),
        };
        let call = Call {
            plan,
            m: operands.m,
            a: operands.a.data(),
            b,
            bias: bias.map(|bias| bias.data()),
            residual,
            c: operands.c.data().as_mut_ptr(),
            layout,
        };
        let Some(pool) = plan.pool.as_ref() else {
            call.compute(&call.everything(), self.workers.caller());
            return Ok(());
        };
        let (items, rows, cols) = (layout.batch(), layout.rows(), layout.cols());
        let split = Split::new(plan.kernels, plan.threads, items, rows, cols, call.packs_b());
        self.workers.run(&**pool, split.parts(), |index, scratch| {
            call.compute(&split.share(plan.kernels, index, items, rows, cols), scratch);
        })
    }
}

/// Where a run finds B.
#[derive(Clone, Copy)]
enum Source<'a> {
    Given(&'a [f32]),
    Packed(&'a PackedB),
}

/// The operands of one run.
struct Call<'a> {
    plan: &'a Plan,
    m: usize,
    a: &'a [f32],
    b: Source<'a>,
    bias: Option<&'a [f32]>,
    residual: Option<TensorView<'a, f32>>,
    c: *mut f32,
    layout: Layout,
}

// SAFETY: C comes from an exclusive borrow that outlives the run; each share accesses its own part of it alone.
unsafe impl Sync for Call<'_> {}

impl Call<'_> {
    fn everything(&self) -> Share {
        Share { items: 0..self.layout.batch(), rows: 0..self.layout.rows(), cols: 0..self.layout.cols() }
    }

    fn packs_b(&self) -> bool {
        matches!(self.b, Source::Given(_)) && self.plan.method(self.m) == Method::Pack
    }

    fn compute(&self, share: &Share, scratch: &mut Scratch) {
        if share.rows.is_empty() || share.cols.is_empty() {
            return;
        }
        for item in share.items.clone() {
            self.compute_item(share, item, scratch);
        }
    }

    fn compute_item(&self, share: &Share, item: usize, scratch: &mut Scratch) {
        let Plan { product, kernels, blocking, .. } = self.plan;
        let (rows, cols, k) = (share.rows.len(), share.cols.len(), product.k());
        let c_stride = self.layout.leading_dimension();
        let c_offset = self.layout.item_offset(item) + share.rows.start * c_stride + share.cols.start;
        let c = self.c.wrapping_add(c_offset);
        let finish = self.finish(item, share, c, c_stride);
        if k == 0 {
            for row in 0..rows {
                // SAFETY: the row lies inside this share of C.
                unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride), cols) }.fill(0.0);
            }
            if let Some(finish) = finish {
                // SAFETY: bias, residual and this share of C cover it.
                unsafe { (kernels.finish)(&finish) };
            }
            return;
        }
        let a = matrix(self.a, product.a(), product.transpose_a(), item).at(share.rows.start, 0);
        let b = match self.b {
            Source::Packed(packed) => B::Packed(self.panels(packed, item, share)),
            Source::Given(b) => {
                let b = matrix(b, product.b(), product.transpose_b(), item).at(0, share.cols.start);
                match self.plan.method(self.m) {
                    Method::Plain => B::Plain(b),
                    Method::Pack => B::Pack(b),
                    // As rows of outputs, B is its transpose.
                    Method::RowTimesB => {
                        let x = Vector { start: a.start, stride: if a.transposed { a.stride } else { 1 } };
                        let b = Matrix { transposed: !b.transposed, ..b };
                        // SAFETY: as for `multiply` below; x has room in scratch memory.
                        unsafe {
                            self.vector(b, cols, x, VectorMut { start: c, stride: 1 }, finish, scratch);
                        };
                        return;
                    }
                    Method::ATimesColumn => {
                        let x = Vector { start: b.start, stride: if b.transposed { 1 } else { b.stride } };
                        // SAFETY: as for `multiply` below; x and y have room in scratch memory.
                        unsafe {
                            self.vector(
                                a,
                                rows,
                                x,
                                VectorMut { start: c, stride: c_stride },
                                finish,
                                scratch,
                            );
                        };
                        return;
                    }
                }
            }
        };
        let part = Part {
            kernels,
            blocking,
            rows,
            cols,
            k,
            a,
            pack_a: self.plan.packs_a(rows, cols),
            b,
            finish,
            c,
            c_stride,
            accumulate: false,
            results: std::ptr::null(),
            scratch_a: scratch.a.start_mut(),
            scratch_b: scratch.b.start_mut(),
        };
        // SAFETY: the executor has checked that the operands cover their layouts for this m; shares of
        // C are disjoint, and so are their scratch memories, which are as long as the plan needs.
        unsafe { multiply(&part) };
    }

    /// The epilogue of a share, if there is any.
    fn finish(&self, item: usize, share: &Share, c: *mut f32, c_stride: usize) -> Option<Finish> {
        let product = &self.plan.product;
        self.plan.has_epilogue().then(|| Finish {
            c,
            c_stride,
            rows: share.rows.len(),
            cols: share.cols.len(),
            alpha: self.plan.alpha(),
            bias: self.bias.map(|bias| bias[share.cols.start..].as_ptr()),
            residual: self.residual.map(|view| {
                let residual = matrix(view.data(), view.layout(), false, item);
                (residual.at(share.rows.start, share.cols.start).start, residual.stride)
            }),
            activation: product.activation(),
        })
    }

    /// The panels of a constant B from a share's first column on.
    fn panels(&self, packed: &PackedB, item: usize, share: &Share) -> Panels {
        let Plan { product, kernels, .. } = self.plan;
        let (k, first) = (product.k(), share.cols.start);
        let start = packed.buffer.start().wrapping_add(item * packed.item_stride + first * k);
        Panels::packed(kernels, start, k, product.n() - first)
    }

    /// `y = matrix x` for `outputs` rows, and the epilogue.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn vector(
        &self,
        matrix: Matrix,
        outputs: usize,
        x: Vector,
        y: VectorMut,
        finish: Option<Finish>,
        scratch: &mut Scratch,
    ) {
        let Plan { product, kernels, .. } = self.plan;
        let k = product.k();
        // SAFETY: by the function's own contract; what is not contiguous goes through scratch memory.
        unsafe {
            let contiguous_x = if x.stride == 1 {
                x.start
            } else {
                let copy = scratch.a.start_mut();
                for i in 0..k {
                    copy.add(i).write(*x.start.add(i * x.stride));
                }
                copy.cast_const()
            };
            let contiguous_y = if y.stride == 1 { y.start } else { scratch.b.start_mut() };
            let gemv = Gemv {
                outputs,
                k,
                matrix: matrix.start,
                stride: matrix.stride,
                x: contiguous_x,
                y: contiguous_y,
            };
            if matrix.transposed {
                (kernels.gemv_columns)(&gemv);
            } else {
                (kernels.gemv_rows)(&gemv);
            }
            if y.stride != 1 {
                for i in 0..outputs {
                    y.start.add(i * y.stride).write(*contiguous_y.add(i));
                }
            }
            if let Some(finish) = finish {
                (kernels.finish)(&finish);
            }
        }
    }
}

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
