//! Small products as a list of tiles: what is decided about them is decided when an executor is opened.

use super::ConstantB;
use super::finish::Finish;
use super::kernel::{Kernels, TileFn};
use super::pack::{Matrix, Panels};
use super::plan::{Method, Plan};
use super::product::{Area, B, Part, Visitor, visit};
use super::tile::Tile;
use crate::description::activation::Activation;

/// Products of more tiles are not listed: deciding takes little of their time.
const MAX_STEPS: usize = 64;

/// An epilogue of which only the presence counts.
const NO_OPERANDS: Finish = Finish {
    c: std::ptr::null_mut(),
    c_stride: 0,
    rows: 0,
    cols: 0,
    alpha: None,
    bias: None,
    residual: None,
    activation: Activation::None,
};

/// The tiles of a product that packs nothing when it runs, in order.
pub(super) struct Steps(Vec<Step>);

// SAFETY: what a listed tile has for addresses are distances, which are the same to every thread.
unsafe impl Send for Steps {}

enum Step {
    /// The tile's addresses are distances from the start of its operand.
    Tile(TileFn, Tile),
    Finish(Area),
}

/// Where the operands of one run start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Starts {
    pub a: *const f32,
    /// As given, or packed.
    pub b: *const f32,
    pub c: *mut f32,
}

impl Steps {
    /// `None` where a product has too many tiles, packs operands when it runs, or is not cut into tiles.
    pub(super) fn of(plan: &Plan) -> Option<Self> {
        let Plan { product, kernels, blocking, b, pool, .. } = plan;
        let (m, n, k) = (product.m(), product.n(), product.k());
        if pool.is_some() || product.batch() != 1 || m == 0 || n == 0 || k == 0 || plan.packs_a(m, n) {
            return None;
        }
        // At least so many, before they are listed: a description may be of any size.
        let (rows, cols) = (kernels.max_rows(), kernels.max_panels(1) * kernels.panel());
        let [down, across, deep] = [m.div_ceil(rows), n.div_ceil(cols), k.div_ceil(blocking.k_outer)];
        if down.saturating_mul(across).saturating_mul(deep) > MAX_STEPS {
            return None;
        }
        let b = match b {
            ConstantB::Packed(_) => B::Packed(Panels::packed(kernels, std::ptr::null(), k, n)),
            ConstantB::None if plan.method(m) == Method::Plain => {
                let stride = product.b().leading_dimension();
                B::Plain(Matrix { start: std::ptr::null(), stride, transposed: false })
            }
            ConstantB::None | ConstantB::Plain(_) => return None,
        };
        let (stride, transposed) = (product.a().leading_dimension(), product.transpose_a());
        let part = Part {
            kernels,
            blocking,
            rows: m,
            cols: n,
            k,
            a: Matrix { start: std::ptr::null(), stride, transposed },
            pack_a: false,
            b,
            finish: plan.has_epilogue().then_some(NO_OPERANDS),
            c: std::ptr::null_mut(),
            c_stride: product.c().leading_dimension(),
            accumulate: false,
            results: std::ptr::null(),
            scratch_a: std::ptr::null_mut(),
            scratch_b: std::ptr::null_mut(),
        };
        let mut list = List(Vec::with_capacity(MAX_STEPS));
        // SAFETY: the part packs nothing, and the list accesses no memory.
        unsafe { visit(&part, &mut list) };
        (list.0.len() <= MAX_STEPS).then_some(Self(list.0))
    }

    /// # Safety
    /// The operands cover the product's layouts, `finish` is its epilogue, and nothing else accesses C
    /// meanwhile.
    pub(super) unsafe fn run(&self, kernels: &Kernels, starts: &Starts, finish: Option<Finish>) {
        for step in &self.0 {
            match step {
                Step::Tile(function, distances) => {
                    let b = |distance: *const f32| starts.b.wrapping_byte_add(distance.addr());
                    let tile = Tile {
                        a: starts.a.wrapping_byte_add(distances.a.addr()),
                        b: b(distances.b),
                        ahead: b(distances.ahead),
                        c: starts.c.wrapping_byte_add(distances.c.addr()),
                        ..*distances
                    };
                    // SAFETY: by the function's own contract: the list was made for these layouts.
                    unsafe { function(&tile) };
                }
                Step::Finish(area) => {
                    if let Some(finish) = &finish {
                        // SAFETY: as above.
                        unsafe { (kernels.finish)(&finish.part(*area)) };
                    }
                }
            }
        }
    }
}

/// Notes the first tiles, and that there are more.
struct List(Vec<Step>);

impl List {
    fn push(&mut self, step: Step) {
        if self.0.len() <= MAX_STEPS {
            self.0.push(step);
        }
    }
}

impl Visitor for List {
    unsafe fn tile(&mut self, function: TileFn, tile: &Tile) {
        self.push(Step::Tile(function, *tile));
    }

    unsafe fn finish(&mut self, _: &Kernels, _: &Finish, area: Area) {
        self.push(Step::Finish(area));
    }
}
