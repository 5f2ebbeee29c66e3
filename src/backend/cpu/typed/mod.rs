//! Every type and scheme by the kernels of f32: what has no kernel of its own, and what those are tested
//! against. `docs/quantization.md` defines the arithmetic.
//!
//! - [`support`]: what can run at all; [`load`]: elements as f32; [`finish`]: what follows the sums;
//!   [`run`]: one run.

pub(super) mod finish;
#[cfg(feature = "half")]
mod halves;
pub(super) mod load;
mod run;
mod support;

use std::sync::Arc;

use super::blocking::Blocking;
use super::kernel::Kernels;
use super::{Cpu, worthwhile_threads};
use crate::backend::{CompiledProduct, Facts, Run};
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, ThreadPool};
use crate::description::quantization::QuantB;
use crate::description::scales::Scales;
use crate::error::Result;
use crate::operands::weights::Weights;

#[cfg(feature = "half")]
use halves::HalfPanels;
pub(super) use run::TypedRun;
pub(super) use support::supports;

/// A compiled product.
pub(super) struct Plan {
    pub product: MatMul,
    pub kernels: &'static Kernels,
    blocking: Blocking,
    weights: Option<Weights>,
    #[cfg(feature = "half")]
    halves: Option<Arc<HalfPanels>>,
    pub scales: Scales,
    /// alpha times the scale of each column of a constant B, item by item where items differ, where
    /// sums are of integers; empty where all columns have one scale.
    columns: Vec<f32>,
    pub pool: Option<Arc<dyn ThreadPool>>,
    pub threads: usize,
}

impl Plan {
    /// The plan that reads 16-bit panels of constant weights, where they serve, and nothing else of B.
    #[cfg(feature = "half")]
    fn with_halves(mut self, weights: Option<&Weights>) -> Result<Self> {
        if let Some(weights) = weights {
            self.halves = HalfPanels::of(self.kernels, &self.product, weights)?;
            self.weights = self.weights.filter(|_| self.halves.is_none());
        }
        Ok(self)
    }

    /// The rest of `columns` belongs to column `col` of item `item` and those after it.
    pub(super) fn column_scales(&self, item: usize, col: usize) -> Option<&[f32]> {
        let n = self.product.n();
        let item = if self.columns.len() == n { 0 } else { item };
        self.columns.get(item * n + col..(item + 1) * n)
    }

    /// Whether B's elements are the numbers that are summed.
    fn b_as_stored(&self) -> bool {
        match self.product.quantization().b {
            QuantB::None => true,
            scheme => self.product.types().accumulator == ElementType::I32 && scheme.zero_point() == 0,
        }
    }

    /// The items with scales of B of their own; 1 where all share theirs.
    pub(super) fn items_of_scales(&self) -> usize {
        let scales = self.weights.as_ref().and_then(Weights::scales);
        scales.map_or(1, |scales| scales.layout().batch())
    }

    /// The one scale of B, where there is one.
    pub(super) fn shared_scale(&self, item: usize) -> f32 {
        let scales = self.weights.as_ref().and_then(Weights::scales);
        scales.map_or(self.scales.b, |scales| load::scale(&scales, item, 0, 0))
    }
}

pub(super) fn compile(
    cpu: &Cpu,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
) -> Result<Box<dyn CompiledProduct>> {
    let plan = plan(cpu, product, weights, options, 1)?;
    #[cfg(feature = "half")]
    let plan = plan.with_halves(weights)?;
    Ok(Box::new(TypedProduct(Arc::new(plan))))
}

/// `elements`: that a lane of the kernels multiplies at a time.
pub(super) fn plan(
    cpu: &Cpu,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
    elements: usize,
) -> Result<Plan> {
    let threads = worthwhile_threads(product, options.threads.number(), elements);
    let (pool, threads) = cpu.pool_for(options, threads)?;
    Ok(Plan {
        product: product.clone(),
        kernels: cpu.kernels,
        blocking: cpu.blocking,
        weights: weights.cloned(),
        #[cfg(feature = "half")]
        halves: None,
        scales: Scales::resolve(product, options)?,
        columns: columns(product, weights)?,
        pool,
        threads,
    })
}

/// [`Plan::columns`].
fn columns(product: &MatMul, weights: Option<&Weights>) -> Result<Vec<f32>> {
    let scales = weights.and_then(Weights::scales);
    let (QuantB::PerColumn { .. }, Some(scales)) = (product.quantization().b, scales) else {
        return Ok(Vec::new());
    };
    let layout = scales.layout();
    let mut columns = crate::alloc::with_capacity(layout.span(), "the scales of columns")?;
    for item in 0..layout.batch() {
        columns.extend((0..layout.cols()).map(|col| product.alpha() * load::scale(&scales, item, 0, col)));
    }
    Ok(columns)
}

struct TypedProduct(Arc<Plan>);

impl CompiledProduct for TypedProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(TypedRun::new(Arc::clone(&self.0))?))
    }

    fn facts(&self) -> Facts {
        #[cfg(feature = "half")]
        let shared = self.0.halves.as_ref().map(|panels| (Arc::as_ptr(panels).addr(), panels.bytes()));
        #[cfg(not(feature = "half"))]
        let shared: Option<(usize, usize)> = None;
        Facts {
            bytes_held: size_of::<Plan>()
                + size_of_val(self.0.columns.as_slice())
                + shared.map_or(0, |(_, bytes)| bytes),
            shared,
            observed: Device::Cpu,
            threads: Some(self.0.threads),
            ..Facts::default()
        }
    }
}
