//! Every type and scheme by the kernels of f32: what has no kernel of its own, and what those are tested
//! against. `docs/quantization.md` defines the arithmetic.
//!
//! - [`support`]: what can run at all; [`load`]: elements as f32; [`finish`]: what follows the sums;
//!   [`run`]: one run.

pub(super) mod finish;
pub(super) mod load;
mod run;
mod support;

use std::sync::Arc;

use super::blocking::Blocking;
use super::kernel::Kernels;
use super::{Cpu, worthwhile_threads};
use crate::backend::{CompiledProduct, Facts, Run};
use crate::error::Result;
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device, ThreadPool};
use crate::quantization::QuantB;
use crate::scales::Scales;
use crate::weights::Weights;

pub(super) use run::TypedRun;
pub(super) use support::supports;

/// A compiled product: nothing is packed.
pub(super) struct Plan {
    pub product: MatMul,
    pub kernels: &'static Kernels,
    blocking: Blocking,
    weights: Option<Weights>,
    pub scales: Scales,
    /// alpha times the scale of each column of a constant B, item by item where items differ, where
    /// sums are of integers; empty where all columns have one scale.
    columns: Vec<f32>,
    pub pool: Option<Arc<dyn ThreadPool>>,
    pub threads: usize,
}

impl Plan {
    /// The rest of `columns` belongs to column `col` of item `item` and those after it.
    pub(super) fn column_scales(&self, item: usize, col: usize) -> Option<&[f32]> {
        let n = self.product.n();
        let item = if self.columns.len() == n { 0 } else { item };
        self.columns.get(item * n + col..(item + 1) * n)
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
    Ok(Box::new(TypedProduct(Arc::new(plan(cpu, product, weights, options)?))))
}

pub(super) fn plan(
    cpu: &Cpu,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
) -> Result<Plan> {
    let threads = worthwhile_threads(product, options.threads.number());
    Ok(Plan {
        product: product.clone(),
        kernels: cpu.kernels,
        blocking: cpu.blocking,
        weights: weights.cloned(),
        scales: Scales::resolve(product, options)?,
        columns: columns(product, weights)?,
        pool: cpu.pool_for(options, threads)?,
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
        Facts {
            bytes_held: size_of::<Plan>() + size_of_val(self.0.columns.as_slice()),
            observed: Device::Cpu,
            threads: Some(self.0.threads),
            ..Facts::default()
        }
    }
}
