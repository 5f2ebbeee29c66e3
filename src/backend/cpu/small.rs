//! Small products as a list of micro-kernel calls: what is decided about them is decided when an executor is
//! opened.

use super::epilogue::Epilogue;
use super::epilogue::store::Output;
use super::macrokernel::{Area, B, MacroTile, Visitor, visit};
use super::microkernel::{MicroKernel, MicroKernels, MicroTile};
use super::pack::{Matrix, Panels, Word};
use super::plan::{Algorithm, ConstantB, Method, Plan};
use crate::backend::RunArgs;
use crate::description::activation::Activation;
use crate::operands::view::{AnyView, AnyViewMut};

/// Products of more calls are not listed: deciding takes little of their time.
const MAX_CALLS: usize = 64;

/// An epilogue of which only the presence counts.
const NO_OPERANDS: Epilogue = Epilogue {
    c: std::ptr::null_mut(),
    c_stride: 0,
    rows: 0,
    cols: 0,
    alpha: None,
    bias: None,
    residual: None,
    activation: Activation::None,
};

/// The micro-kernel calls of a product that packs nothing when it runs, in order.
pub(crate) struct SmallProduct(Vec<Call>);

// SAFETY: what a listed call has for addresses are distances, which are the same to every thread.
unsafe impl Send for SmallProduct {}

enum Call {
    /// The microtile's addresses are distances from the start of its operand.
    MicroKernel(MicroKernel, MicroTile),
    Epilogue(Area),
}

impl SmallProduct {
    /// `None` where a product has too many microtiles, packs operands when it runs, or is not cut into microtiles.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let Plan { product, kernels, blocking, b, pool, .. } = plan;
        let (m, n, k) = (product.m(), product.n(), product.k());
        let other = plan.algorithm != Algorithm::F32 || pool.is_some() || product.batch() != 1;
        if other || m == 0 || n == 0 || k == 0 || plan.packs_a(m, n) {
            return None;
        }
        // At least so many, before they are listed: a description may be of any size.
        let (rows, cols) = (kernels.mr(), kernels.max_panels(1) * kernels.nr());
        let [down, across, deep] = [m.div_ceil(rows), n.div_ceil(cols), k.div_ceil(blocking.kc)];
        if down.saturating_mul(across).saturating_mul(deep) > MAX_CALLS {
            return None;
        }
        let b = match b {
            ConstantB::Packed(_) => B::Packed(Panels::packed(kernels, std::ptr::null(), k, n)),
            ConstantB::None if plan.method(m) == Method::Plain => {
                let stride = product.b().leading_dimension();
                B::Plain(Matrix { start: std::ptr::null(), stride, transposed: false })
            }
            ConstantB::None | ConstantB::Plain(_) | ConstantB::Integers(_) => return None,
        };
        let (stride, transposed) = (product.a().leading_dimension(), product.transpose_a());
        let part = MacroTile {
            kernels,
            blocking,
            rows: m,
            cols: n,
            k,
            a: Matrix { start: std::ptr::null(), stride, transposed },
            pack_a: false,
            b,
            epilogue: plan.has_epilogue().then_some(NO_OPERANDS),
            c: std::ptr::null_mut(),
            c_stride: product.c().leading_dimension(),
            accumulate: false,
            requantize: std::ptr::null(),
            scratch_a: std::ptr::null_mut(),
            scratch_b: std::ptr::null_mut(),
        };
        let mut list = List(Vec::with_capacity(MAX_CALLS));
        // SAFETY: the part packs nothing, and the list accesses no memory.
        unsafe { visit(&part, &mut list) };
        (list.0.len() <= MAX_CALLS).then_some(Self(list.0))
    }

    /// Runs `plan`, whose product this is. `false`, without having done anything, for fewer rows or operands that
    /// are not f32.
    pub(crate) fn run(&self, plan: &Plan, args: &mut RunArgs<'_>) -> bool {
        if args.m != plan.product.m() {
            return false;
        }
        // By reference: the views of a run are as long to copy as a small product is to compute.
        let (AnyView::F32(a), AnyViewMut::F32(view)) = (&args.a, &mut args.c) else {
            return false;
        };
        let b = match (&plan.b, &args.b) {
            (ConstantB::Packed(packed), _) => packed.start(),
            (_, Some(AnyView::F32(b))) => b.data().as_ptr().cast(),
            _ => return false,
        };
        let a = a.data().as_ptr().cast::<Word>();
        let (c, epilogue) = if plan.has_epilogue() {
            let output = Output::new(plan, args.bias, args.residual, &mut args.c);
            let epilogue = output.epilogue(0, &(0..plan.product.m()), &(0..plan.product.n()));
            (output.place_of(0, 0, 0).0, epilogue)
        } else {
            (view.data().as_mut_ptr(), None)
        };
        for call in &self.0 {
            match call {
                Call::MicroKernel(function, distances) => {
                    let of_b = |distance: *const Word| b.wrapping_byte_add(distance.addr());
                    let tile = MicroTile {
                        a: a.wrapping_byte_add(distances.a.addr()),
                        b: of_b(distances.b),
                        ahead: of_b(distances.ahead),
                        c: c.wrapping_byte_add(distances.c.addr()),
                        ..*distances
                    };
                    // SAFETY: the executor has checked that the operands cover their layouts, for which the list
                    // was made.
                    unsafe { function(&tile) };
                }
                Call::Epilogue(area) => {
                    if let Some(epilogue) = &epilogue {
                        // SAFETY: as above.
                        unsafe { (plan.kernels.vector.epilogue)(&epilogue.part(*area)) };
                    }
                }
            }
        }
        true
    }
}

/// Notes the first calls, and that there are more.
struct List(Vec<Call>);

impl List {
    fn push(&mut self, call: Call) {
        if self.0.len() <= MAX_CALLS {
            self.0.push(call);
        }
    }
}

impl Visitor for List {
    unsafe fn microtile(&mut self, function: MicroKernel, tile: &MicroTile) {
        self.push(Call::MicroKernel(function, *tile));
    }

    unsafe fn epilogue(&mut self, _: &MicroKernels, _: &Epilogue, area: Area) {
        self.push(Call::Epilogue(area));
    }
}
