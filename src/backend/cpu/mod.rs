//! The built-in CPU backend: products on micro-kernels and threads of our own.
//!
//! - [`plan`]: what is decided when a product is compiled; [`run`]: one run, block by block; [`block`]: one block
//!   by each algorithm; [`small`]: products of a few micro-kernel calls.
//! - [`macrokernel`]: the loops over NC, KC and MC; [`blocking`]: their sizes from the caches; [`gemv`]: products
//!   with a vector.
//! - [`microkernel`]: the micro-kernels, and the list of all that are compiled; [`isa`]: instruction sets and
//!   their vectors.
//! - [`graph`]: whole graphs.
//! - [`rows`]: normalisations, softmax and functions of single numbers, and [`attention`]: in blocks, for graphs.
//! - [`pack`]: operands in the order of the micro-kernels; [`epilogue`]: what follows the sums; [`threads`].

#![allow(
    clippy::inline_always,
    reason = "vectors must be inlined into the functions that enable their instructions"
)]

#[cfg_attr(not(test), allow(dead_code, reason = "for graphs"))]
mod attention;
mod block;
mod blocking;
mod buffer;
mod epilogue;
mod gemv;
mod graph;
pub(crate) mod isa;
mod macrokernel;
mod microkernel;
mod pack;
mod plan;
#[cfg_attr(not(test), allow(dead_code, reason = "for graphs"))]
mod rows;
mod run;
mod small;
mod support;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::backend::refusal::{NodeRefusal, Refusal};
use crate::backend::{Backend, CompiledInfo, CompiledProduct, GraphProgram, Run};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::error::Result;
use crate::graph::passes::Rewritten;
use crate::graph::{Graph, PassReport};
use crate::operands::weights::Weights;

use blocking::{Blocking, Caches};
use isa::{Dot, Isa};
use microkernel::instances;
use pack::interleave_a::has_subnormals;
use plan::{Algorithm, Plan};
use run::CpuRun;
use threads::Team;
use threads::pool::Pool;

/// A thread pays when it takes over at least so much work: handing over and back costs about 2
/// microseconds.
const WORK_PER_THREAD_NS: f64 = 6_000.0;

/// Threads that sleep are woken for at least so much work, unless one product follows another: waking one costs the
/// caller 12 to 30 microseconds (on a virtual machine), and it may come too late.
const WORK_TO_WAKE_NS: f64 = 400_000.0;

/// The multiply-adds and the bytes of operands that a core gets through in a nanosecond, about: to
/// judge the work, not to predict it.
const MULTIPLY_ADDS_PER_NS: f64 = 60.0;
const BYTES_PER_NS: f64 = 20.0;

pub(crate) struct Cpu {
    isa: Isa,
    /// For f32 and for f64.
    blocking: [Blocking; 2],
    /// Threads that products with as many threads share while any of them lives.
    pools: Mutex<Vec<(usize, Weak<Pool>)>>,
}

impl Cpu {
    /// # Errors
    /// With the reason, when the environment asks for kernels that are not here.
    pub(crate) fn new() -> Result<Self, String> {
        let isa = Isa::detect()?;
        let (kernels, caches) = (instances::of(isa), Caches::of_this_machine());
        let blocking = [&kernels.f32, &kernels.f64].map(|kernels| Blocking::new(kernels, caches));
        Ok(Self { isa, blocking, pools: Mutex::default() })
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

/// About how long one thread takes, where a lane of 32 bits multiplies `elements` at a time; f64 have two lanes each.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn work_ns(product: &MatMul, elements: usize) -> f64 {
    let types = product.types();
    let operands = [(product.a(), types.a), (product.b(), types.b), (product.c(), types.output)];
    let bits = |(layout, element): (&Layout, ElementType)| layout.span() as f64 * element.bits() as f64;
    let lanes = if product.is_f64() { 2.0 } else { 1.0 };
    let arithmetic_ns = product.flops() / 2.0 * lanes / (MULTIPLY_ADDS_PER_NS * elements as f64);
    let memory_ns = operands.into_iter().map(bits).sum::<f64>() / 8.0 / BYTES_PER_NS;
    arithmetic_ns.max(memory_ns)
}

/// The threads that are worth their hand-over.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate")]
fn worthwhile_threads(work_ns: f64, threads: usize) -> usize {
    ((work_ns / WORK_PER_THREAD_NS) as usize).clamp(1, threads)
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let dot = |dot: Option<Dot>, of: &str| {
            let kernels = dot.filter(|dot| self.isa.has(*dot)).and_then(|dot| instances::dot(self.isa, dot));
            kernels.map_or_else(String::new, |kernels| format!(", {} kernels for {of}", kernels.name))
        };
        format!(
            "built-in engine: {} kernels{}{}",
            self.isa.name(),
            dot(Some(Dot::Bf16), "bf16"),
            dot(self.isa.int8(), "8-bit integers")
        )
    }

    fn device(&self) -> (Device, String) {
        (Device::Cpu, std::env::consts::ARCH.into())
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        support::supports(product, options)
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        Ok(Box::new(self.compile_product(product, weights, options)?))
    }

    fn refused_nodes(&self, graph: &Graph, options: &CompileOptions) -> Result<Vec<NodeRefusal>> {
        Ok(self.refused_graph_nodes(graph, options))
    }

    fn passes(&self, graph: &Graph) -> Vec<PassReport> {
        let mut reports = Vec::new();
        Rewritten::new(graph, self, |name, graph| reports.push(PassReport { name, graph: graph.clone() }));
        reports
    }

    fn compile_graph(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn GraphProgram>> {
        Ok(Box::new(self.compile_graph_program(graph, options)?))
    }
}

impl Cpu {
    fn algorithm(&self, product: &MatMul, weights: Option<&Weights>) -> Algorithm {
        match (Algorithm::of(product, self.isa), weights) {
            // SAFETY: the instructions of such a choice are here.
            (Algorithm::Dot(Dot::Bf16), Some(weights)) if unsafe { has_subnormals(&weights.view()) } => {
                Algorithm::Upcast
            }
            (algorithm, _) => algorithm,
        }
    }

    /// The team of `threads` threads, if the caller's own is not enough, and how many there are: fewer where nobody
    /// asked for a number, and no more can be started.
    fn team(&self, options: &CompileOptions, threads: usize, work_ns: f64) -> Result<(Option<Team>, usize)> {
        let pool = match &options.threads {
            _ if threads == 1 => return Ok((None, 1)),
            Threads::Pool(pool) => return Ok((Some(Team::Callers(Arc::clone(pool))), threads)),
            Threads::Auto => self.pool(threads, false)?,
            Threads::Count(_) => self.pool(threads, true)?,
        };
        let threads = pool.threads();
        Ok((Some(Team::Own { pool, long: work_ns >= WORK_TO_WAKE_NS }), threads))
    }

    fn compile_product(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<CpuProduct> {
        // Items with scales of their own have each a B of its own.
        let rows = product.as_rows().filter(|_| weights.is_none_or(Weights::shares_scales));
        let product = rows.as_ref().unwrap_or(product);
        let algorithm = self.algorithm(product, weights);
        let work_ns = work_ns(product, algorithm.elements_per_lane());
        let threads = worthwhile_threads(work_ns, options.threads.number());
        self.compile_for(algorithm, product, weights, options, threads)
    }

    /// Compiles for so many of the threads that the options allow.
    fn compile_for(
        &self,
        algorithm: Algorithm,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
        threads: usize,
    ) -> Result<CpuProduct> {
        let team = self.team(options, threads, work_ns(product, algorithm.elements_per_lane()))?;
        let blocking = self.blocking[usize::from(product.is_f64())];
        let plan = Plan::new(algorithm, self.isa, blocking, team, product, weights)?;
        Ok(CpuProduct(Arc::new(plan)))
    }
}

struct CpuProduct(Arc<Plan>);

impl CompiledProduct for CpuProduct {
    fn open(&self, _: usize) -> Result<Box<dyn Run>> {
        Ok(Box::new(CpuRun::new(Arc::clone(&self.0))?))
    }

    fn info(&self) -> CompiledInfo {
        CompiledInfo {
            bytes_held: self.0.bytes(),
            shared: [self.0.b.shared(), None],
            observed: Device::Cpu,
            threads: Some(self.0.threads),
            ..CompiledInfo::default()
        }
    }
}
