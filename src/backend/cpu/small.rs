//! Small products as a list of micro-kernel calls: what is decided about them is decided when an executor is
//! opened.

use std::ops::Range;
use std::ptr;

use super::epilogue::Epilogue;
use super::macrokernel::{Area, B, MacroTile, Visitor, visit};
use super::microkernel::{MicroKernel, MicroKernels, MicroTile};
use super::pack::{Matrix, Panels, Word};
use super::plan::{Algorithm, ConstantB, Method, Plan};
use crate::description::activation::Activation;
use crate::description::layout::Layout;

/// Products of more calls are not listed: deciding takes little of their time.
const MAX_CALLS: usize = 64;

/// An epilogue of which only the presence counts.
const NO_OPERANDS: Epilogue = Epilogue {
    c: ptr::null_mut(),
    c_stride: 0,
    words: 1,
    rows: 0,
    cols: 0,
    alpha: None,
    bias: None,
    residual: None,
    activation: Activation::None,
};

/// The micro-kernel calls of one item of a product that packs nothing when it runs, in order.
pub(crate) struct SmallProduct(Vec<Call>);

// SAFETY: the addresses in a list are those of the run that it computes, which has it alone.
unsafe impl Send for SmallProduct {}

enum Call {
    MicroKernel {
        function: MicroKernel,
        tile: MicroTile,
        /// The bytes from the start of A, B and C to the microtile's, and from that of B to what is prefetched.
        distances: [usize; 4],
    },
    Epilogue(Area),
}

/// Where a run finds the items of A, B and C: the first, and the words from one to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items {
    pub a: (*const Word, usize),
    pub b: (*const Word, usize),
    pub c: (*mut Word, usize),
}

impl SmallProduct {
    /// `None` where an item has too many microtiles, packs operands when it runs, or is not cut into microtiles.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let Plan { product, kernels, blocking, b, .. } = plan;
        let (m, n, k) = (product.m(), product.n(), product.k());
        if plan.algorithm != Algorithm::Direct || m == 0 || n == 0 || k == 0 || plan.packs_a(m, n) {
            return None;
        }
        // At least so many, before they are listed: a description may be of any size.
        let (rows, cols) = (kernels.mr(), kernels.max_panels(1) * kernels.nr());
        let [down, across, deep] = [m.div_ceil(rows), n.div_ceil(cols), k.div_ceil(blocking.kc)];
        if down.saturating_mul(across).saturating_mul(deep) > MAX_CALLS {
            return None;
        }
        // From row to row; that of a single row may be any.
        let words = |layout: &Layout| layout.leading_dimension().wrapping_mul(kernels.number_words());
        let b = match b {
            ConstantB::Packed(_) => B::Packed(Panels::packed(kernels, ptr::null(), k, n)),
            ConstantB::None if plan.method(m) == Method::Plain => {
                let stride = words(product.b());
                B::Plain(Matrix { start: ptr::null(), stride, transposed: false })
            }
            ConstantB::None | ConstantB::Plain(_) | ConstantB::Integers(_) => return None,
        };
        let (stride, transposed) = (words(product.a()), product.transpose_a());
        let part = MacroTile {
            kernels,
            blocking,
            rows: m,
            cols: n,
            k,
            a: Matrix { start: ptr::null(), stride, transposed },
            pack_a: false,
            b,
            epilogue: plan.has_epilogue().then_some(NO_OPERANDS),
            c: ptr::null_mut(),
            c_stride: words(product.c()),
            accumulate: false,
            requantize: ptr::null(),
            scratch_a: ptr::null_mut(),
            scratch_b: ptr::null_mut(),
        };
        let mut list = List(Vec::with_capacity(MAX_CALLS));
        // SAFETY: the part packs nothing, and the list accesses no memory.
        unsafe { visit(&part, &mut list) };
        (list.0.len() <= MAX_CALLS).then_some(Self(list.0))
    }

    /// Computes all rows and columns of `range` of the items.
    ///
    /// # Safety
    /// The items cover the layouts of `plan`, whose product this is, and so do the epilogues' operands; nothing else
    /// accesses those of C meanwhile.
    #[inline]
    pub(crate) unsafe fn run(
        &mut self,
        plan: &Plan,
        range: Range<usize>,
        items: &Items,
        epilogue: impl Fn(usize) -> Option<Epilogue>,
    ) {
        for item in range {
            let a = items.a.0.wrapping_add(item * items.a.1);
            let b = items.b.0.wrapping_add(item * items.b.1);
            let c = items.c.0.wrapping_add(item * items.c.1);
            let epilogue = epilogue(item);
            for call in &mut self.0 {
                match call {
                    Call::MicroKernel { function, tile, distances } => {
                        tile.a = a.wrapping_byte_add(distances[0]);
                        tile.b = b.wrapping_byte_add(distances[1]);
                        tile.c = c.wrapping_byte_add(distances[2]);
                        tile.ahead = b.wrapping_byte_add(distances[3]);
                        // SAFETY: by the function's own contract.
                        unsafe { function(tile) };
                    }
                    Call::Epilogue(area) => {
                        if let Some(epilogue) = &epilogue {
                            // SAFETY: as above.
                            unsafe { (plan.kernels.vector.epilogue)(&epilogue.part(*area)) };
                        }
                    }
                }
            }
        }
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
        // Of a list that begins at address 0, addresses are distances.
        let distances = [tile.a.addr(), tile.b.addr(), tile.c.addr(), tile.ahead.addr()];
        self.push(Call::MicroKernel { function, tile: *tile, distances });
    }

    unsafe fn epilogue(&mut self, _: &MicroKernels, _: &Epilogue, area: Area) {
        self.push(Call::Epilogue(area));
    }
}
