//! The built-in CPU backend: products on micro-kernels and threads of our own.
//!
//! - [`simd`]: vectors of one instruction set; [`kernel`]: the micro-kernel over them, and the
//!   choice at run time; [`math`] and [`finish`]: the epilogue; [`gemv`]: products with a vector;
//!   [`widen`]: narrower elements as f32.
//! - [`blocking`]: block sizes from the caches; [`pack`]: operands in the kernel's order;
//!   [`product`]: one thread's share, block by block; [`split`]: the shares; [`pool`]: the threads.
//! - [`plan`]: what is decided when a product is compiled; [`run`]: one run; [`steps`]: small products as
//!   lists of tiles.
//! - [`weight_only`]: a float A by 8 and 4-bit weights; [`dot`]: bf16 and 8-bit products by
//!   instructions of their own; [`typed`]: every other type, as f32.

#![allow(
    clippy::inline_always,
    reason = "vectors must be inlined into the functions that enable their instructions"
)]

mod blocking;
mod buffer;
mod dot;
mod finish;
mod gemv;
mod kernel;
mod math;
mod pack;
mod plan;
mod pool;
mod product;
pub(crate) mod project;
mod rendezvous;
mod run;
mod simd;
mod split;
mod steps;
mod sync;
#[cfg(test)]
mod tests;
mod tile;
mod typed;
mod weight_only;
mod widen;
mod workers;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::backend::refusal::Refusal;
use crate::backend::{Backend, CompiledProduct, Facts, Run, f32_only};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, ThreadPool, Threads};
use crate::description::quantization::QuantB;
use crate::error::Result;
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

use blocking::{Blocking, Caches};
use buffer::Buffer;
use kernel::{Kernels, Lane};
use pack::{Matrix, pack_b, packed_b_len};
use plan::Plan;
use pool::Pool;
use run::CpuRun;

/// A thread pays when it takes over at least so much work: handing over and back costs about 2
/// microseconds.
const WORK_PER_THREAD_NS: f64 = 6_000.0;

/// The multiply-adds and the bytes of operands that a core gets through in a nanosecond, about: to
/// judge the work, not to predict it.
const MULTIPLY_ADDS_PER_NS: f64 = 60.0;
const BYTES_PER_NS: f64 = 20.0;

pub(super) struct Cpu {
    kernels: &'static Kernels,
    blocking: Blocking,
    /// Threads that products with as many threads share while any of them lives.
    pools: Mutex<Vec<(usize, Weak<Pool>)>>,
}

impl Cpu {
    /// # Errors
    /// With the reason, when the environment asks for kernels that are not here.
    pub(super) fn new() -> Result<Self, String> {
        let kernels = kernel::detect()?;
        let blocking = Blocking::new(kernels, Caches::of_this_machine());
        Ok(Self { kernels, blocking, pools: Mutex::default() })
    }

    /// A pool of `threads` threads, or of as many as can be started.
    fn pool(&self, threads: usize, all: bool) -> Result<Arc<Pool>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let here = |pool: &Weak<Pool>| pool.upgrade().filter(|pool| pool.is_here());
        pools.retain(|(_, pool)| here(pool).is_some());
        let known = pools.iter().find(|(count, _)| *count == threads).and_then(|(_, pool)| here(pool));
        if let Some(pool) = known.filter(|pool| !all || pool.threads() == threads) {
            return Ok(pool);
        }
        let pool = Arc::new(Pool::new(threads, all)?);
        pools.push((threads, Arc::downgrade(&pool)));
        Ok(pool)
    }
}

/// The threads that are worth their hand-over, where a lane multiplies `elements` at a time.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn worthwhile_threads(product: &MatMul, threads: usize, elements: usize) -> usize {
    let types = product.types();
    let operands = [(product.a(), types.a), (product.b(), types.b), (product.c(), types.output)];
    let bits = |(layout, element): (&Layout, ElementType)| layout.span() as f64 * element.bits() as f64;
    let arithmetic_ns = product.flops() / 2.0 / (MULTIPLY_ADDS_PER_NS * elements as f64);
    let memory_ns = operands.into_iter().map(bits).sum::<f64>() / 8.0 / BYTES_PER_NS;
    let worthwhile = arithmetic_ns.max(memory_ns) / WORK_PER_THREAD_NS;
    (worthwhile as usize).clamp(1, threads)
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let dot = |lane, of: &str| {
            kernel::dot(self.kernels, lane)
                .map_or_else(String::new, |dot| format!(", {} kernels for {of}", dot.name))
        };
        format!(
            "built-in engine: {} kernels{}{}",
            self.kernels.name,
            dot(Lane::Bf16Pair, "bf16"),
            dot(Lane::Int8Quad, "8-bit integers")
        )
    }

    fn device(&self) -> (Device, String) {
        (Device::Cpu, std::env::consts::ARCH.into())
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        f32_only::supports(product, options).or_else(|_| typed::supports(product, options))
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        if f32_only::supports(product, options).is_err() {
            if let Some(weights) = weights.filter(|_| weight_only::applies(product)) {
                return weight_only::compile(self, product, weights, options);
            }
            if let Some(compiled) = dot::compile(self, product, weights, options)? {
                return Ok(compiled);
            }
            return typed::compile(self, product, weights, options);
        }
        let threads = worthwhile_threads(product, options.threads.number(), 1);
        Ok(Box::new(self.compile_for(product, weights, options, threads)?))
    }
}

impl Cpu {
    /// The pool that runs on `threads` threads, if the caller's own is not enough, and how many there are: fewer
    /// where nobody asked for a number, and no more can be started.
    fn pool_for(
        &self,
        options: &CompileOptions,
        threads: usize,
    ) -> Result<(Option<Arc<dyn ThreadPool>>, usize)> {
        let own = match &options.threads {
            _ if threads == 1 => return Ok((None, 1)),
            Threads::Pool(pool) => return Ok((Some(Arc::clone(pool)), threads)),
            Threads::Auto => self.pool(threads, false)?,
            Threads::Count(_) => self.pool(threads, true)?,
        };
        let threads = own.threads();
        Ok((Some(own), threads))
    }

    /// Compiles for so many of the threads that the options allow.
    fn compile_for(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
        threads: usize,
    ) -> Result<CpuProduct> {
        let (pool, threads) = self.pool_for(options, threads)?;
        let b = match weights {
            None => ConstantB::None,
            // A product with a vector is bound by the reading of A.
            Some(weights) if product.n() == 1 || product.k() == 0 => ConstantB::Plain(weights.for_product()),
            Some(weights) => ConstantB::Packed(PackedB::of(self.kernels, product, weights)?),
        };
        let plan = Plan {
            product: product.clone(),
            kernels: self.kernels,
            blocking: self.blocking,
            b,
            pool,
            threads,
        };
        Ok(CpuProduct(Arc::new(plan)))
    }
}

/// What a compiled product knows of a constant B.
enum ConstantB {
    None,
    Plain(Weights),
    Packed(Arc<PackedB>),
}

/// A constant B in panels: the same for every m, shared by all products of the same weights.
struct PackedB {
    buffer: Buffer,
    /// From item to item; 0 when all share one.
    item_stride: usize,
}

impl PackedB {
    fn of(kernels: &Kernels, product: &MatMul, weights: &Weights) -> Result<Arc<Self>> {
        weights.derived((kernels.name, product.transpose_b(), QuantB::None), || {
            Self::new(kernels, product, weights)
        })
    }

    fn new(kernels: &Kernels, product: &MatMul, weights: &Weights) -> Result<Self> {
        let (k, n) = (product.k(), product.n());
        let layout = product.b();
        let shared = layout.batch() > 1 && layout.batch_stride() == 0;
        let items = if shared { 1 } else { layout.batch() };
        let item_len = packed_b_len(kernels, k, n);
        let mut buffer = Buffer::zeroed(items.saturating_mul(item_len), "packed weights")?;
        // `supports` leaves f32 only.
        if let AnyView::F32(view) = weights.view() {
            for item in 0..items {
                let b = matrix(view.data(), layout, product.transpose_b(), item);
                // SAFETY: the weights cover their layout, and the buffer has room for every item.
                unsafe { pack_b(kernels, b, k, n, buffer.start_mut().add(item * item_len)) };
            }
        }
        Ok(Self { buffer, item_stride: if shared { 0 } else { item_len } })
    }
}

/// The matrix of one item.
fn matrix(data: &[f32], layout: &Layout, transposed: bool, item: usize) -> Matrix {
    let start = data.as_ptr().wrapping_add(layout.item_offset(item));
    Matrix { start, stride: layout.leading_dimension(), transposed }
}

struct CpuProduct(Arc<Plan>);

impl CompiledProduct for CpuProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(CpuRun::new(Arc::clone(&self.0))?))
    }

    fn facts(&self) -> Facts {
        let packed = match &self.0.b {
            ConstantB::Packed(packed) => Some((Arc::as_ptr(packed).addr(), packed.buffer.bytes())),
            ConstantB::None | ConstantB::Plain(_) => None,
        };
        Facts {
            bytes_held: size_of::<Plan>() + packed.map_or(0, |(_, bytes)| bytes),
            shared: packed,
            observed: Device::Cpu,
            threads: Some(self.0.threads),
            ..Facts::default()
        }
    }
}
