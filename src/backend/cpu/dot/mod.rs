//! bf16 and 8-bit products, by instructions that sum several products in a lane.
//!
//! The tiles, panels, blocks and shares are those of f32, with words of 32 bits in the place of numbers.
//! - [`words`]: B in panels of words; [`rows`]: A in rows of words; [`results`]: what becomes of sums of
//!   integers; [`run`]: one run.
//!
//! What these instructions are not there for, [`super::typed`] computes; both follow
//! `docs/quantization.md`.

mod results;
mod rows;
mod run;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;

use super::blocking::Blocking;
use super::kernel::{Kernels, Lane, dot};
use super::typed;
use super::{Cpu, typed::Plan};
use crate::alloc;
use crate::backend::{CompiledProduct, Facts, Run};
use crate::description::element::ElementType::{Bf16, F16, F32, I8, I32, U8};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::description::quantization::{QuantA, QuantB, Quantization};
use crate::error::Result;
use crate::operands::weights::Weights;

#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(unused_imports, reason = "kernels of these two alone use it")
)]
pub(super) use results::{Integers, start_of_columns, store_results};
use run::DotRun;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_imports, reason = "kernels of x86-64 alone use it")
)]
pub(super) use words::Interleave;
use words::{PackedWords, lane_elements};

/// Fewer rows are not worth the packing of a B that comes with the run.
const MIN_ROWS: usize = 3;

/// Rows of words that are a multiple of so many apart meet in one set of a first-level cache of 64 sets.
const SET_WORDS: usize = 1024;

/// What a product's words hold; `None` for products that these instructions cannot compute.
fn lane_of(product: &MatMul) -> Option<Lane> {
    let types = product.types();
    let quantization = product.quantization();
    if product.k() == 0 {
        return None;
    }
    match (types.a, types.b, types.accumulator) {
        (Bf16, Bf16, F32) if *quantization == Quantization::default() => Some(Lane::Bf16Pair),
        (I8 | U8, I8, I32) => Some(Lane::Int8Quad),
        (F32 | F16 | Bf16, I8, I32) if quantization.a == QuantA::DynamicPerRow => Some(Lane::Int8Quad),
        _ => None,
    }
    .filter(|_| !matches!(quantization.b, QuantB::PerGroup { .. }))
}

/// The compiled product, where this machine has the instructions for it.
pub(super) fn compile(
    cpu: &Cpu,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
) -> Result<Option<Box<dyn CompiledProduct>>> {
    let Some(lane) = lane_of(product) else {
        return Ok(None);
    };
    let Some(kernels) = dot(cpu.kernels, lane) else {
        return Ok(None);
    };
    if weights.is_none() && product.m() < MIN_ROWS {
        return Ok(None);
    }
    // SAFETY: the kernels are of instructions that are here.
    if weights.is_some_and(|weights| unsafe { rows::has_subnormals(&weights.view()) }) {
        return Ok(None);
    }
    let b = weights.map(|weights| PackedWords::of(kernels, lane, product, weights)).transpose()?;
    let typed = Arc::new(typed::plan(cpu, product, weights, options, lane_elements(lane))?);
    let offset = rows::offset(&typed);
    let mut taken_off = Vec::new();
    if let Some(b) = &b {
        taken_off = alloc::copied(&b.column_sums, WHAT)?;
        for sum in &mut taken_off {
            *sum = sum.wrapping_mul(offset);
        }
    }
    let scales = if lane == Lane::Int8Quad { column_scales(&typed)? } else { Vec::new() };
    let blocking = cpu.blocking;
    Ok(Some(Box::new(DotProduct(Arc::new(DotPlan { typed, lane, kernels, blocking, b, taken_off, scales })))))
}

/// [`DotPlan::scales`].
fn column_scales(typed: &Plan) -> Result<Vec<f32>> {
    let product = &typed.product;
    if product.types().output == I32 {
        return Ok(Vec::new());
    }
    let (n, items) = (product.n(), typed.items_of_scales());
    let mut scales = alloc::with_capacity(items.saturating_mul(n), WHAT)?;
    // Where rows have scales of their own, they come first in the product of both.
    let row = if rows::has_terms(typed) { 1.0 } else { typed.scales.a };
    for item in 0..items {
        match typed.column_scales(item, 0) {
            Some(columns) => scales.extend(columns.iter().map(|column| row * column)),
            None => scales.extend(std::iter::repeat_n(row * (product.alpha() * typed.shared_scale(item)), n)),
        }
    }
    Ok(scales)
}

/// What errors call the memory of terms.
const WHAT: &str = "terms of columns";

struct DotPlan {
    typed: Arc<Plan>,
    lane: Lane,
    kernels: &'static Kernels,
    blocking: Blocking,
    /// A constant B.
    b: Option<Arc<PackedWords>>,
    /// [`Results::taken_off`](super::tile::Results) for each column of a constant B.
    taken_off: Vec<i32>,
    /// [`Results::scales`](super::tile::Results); empty where results are the sums.
    scales: Vec<f32>,
}

impl DotPlan {
    /// Whether the sums may be written to C and finished there: the epilogue's operands are f32.
    fn in_place(&self) -> bool {
        let product = &self.typed.product;
        match product.types().output {
            I32 => true,
            output => output == F32 && (!product.has_bias() || product.types().bias == F32),
        }
    }

    /// Where the terms of an item's columns start from `col` on: null where there are none.
    fn of_columns<T>(&self, terms: &[T], item: usize, col: usize) -> *const T {
        let n = self.typed.product.n();
        let item = if terms.len() == n { 0 } else { item };
        let of_columns = terms.get(item * n + col..).filter(|terms| !terms.is_empty());
        of_columns.map_or(std::ptr::null(), <[T]>::as_ptr)
    }
}

struct DotProduct(Arc<DotPlan>);

impl CompiledProduct for DotProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(DotRun::new(Arc::clone(&self.0))?))
    }

    fn facts(&self) -> Facts {
        let plan = &*self.0;
        let packed = plan.b.as_ref().map(|b| (Arc::as_ptr(b).addr(), b.bytes()));
        Facts {
            bytes_held: size_of::<DotPlan>()
                + packed.map_or(0, |(_, bytes)| bytes)
                + size_of_val(plan.taken_off.as_slice())
                + size_of_val(plan.scales.as_slice()),
            shared: packed,
            observed: Device::Cpu,
            threads: Some(plan.typed.threads),
            ..Facts::default()
        }
    }
}
