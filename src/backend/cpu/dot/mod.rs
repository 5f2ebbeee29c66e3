//! bf16 and 8-bit products with constant weights, by instructions that sum several products in a lane.
//!
//! The tiles, panels, blocks and shares are those of f32, with words of 32 bits in the place of numbers.
//! - [`words`]: B in panels of words; [`rows`]: A in rows of words; [`run`]: one run.
//!
//! What these instructions are not there for, [`super::typed`] computes; both follow
//! `docs/quantization.md`.

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
use crate::backend::{CompiledProduct, Facts, Run};
use crate::element::ElementType::{Bf16, F16, F32, I8, I32, U8};
use crate::error::Result;
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device};
use crate::quantization::{QuantA, QuantB, Quantization};
use crate::weights::Weights;

pub(super) use rows::RowTerms;
use run::DotRun;
pub(super) use run::IntegerSums;
use words::{PackedWords, lane_elements};

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
    weights: &Weights,
    options: &CompileOptions,
) -> Result<Option<Box<dyn CompiledProduct>>> {
    let Some(lane) = lane_of(product) else {
        return Ok(None);
    };
    let Some(kernels) = dot(cpu.kernels, lane) else {
        return Ok(None);
    };
    let b = PackedWords::of(kernels, lane, product, weights)?;
    if b.has_subnormals {
        return Ok(None);
    }
    let typed = Arc::new(typed::plan(cpu, product, Some(weights), options, lane_elements(lane))?);
    Ok(Some(Box::new(DotProduct(Arc::new(DotPlan { typed, lane, kernels, blocking: cpu.blocking, b })))))
}

struct DotPlan {
    typed: Arc<Plan>,
    lane: Lane,
    kernels: &'static Kernels,
    blocking: Blocking,
    b: Arc<PackedWords>,
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
}

struct DotProduct(Arc<DotPlan>);

impl CompiledProduct for DotProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(DotRun::new(Arc::clone(&self.0))?))
    }

    fn facts(&self) -> Facts {
        Facts {
            bytes_held: size_of::<DotPlan>() + self.0.b.bytes(),
            shared: Some((Arc::as_ptr(&self.0.b).addr(), self.0.b.bytes())),
            observed: Device::Cpu,
            threads: Some(self.0.typed.threads),
            ..Facts::default()
        }
    }
}
