//! Products of a float A with constant 8 or 4-bit weights: B is read once, as integers.
//!
//! - [`lanes`]: vectors made from integers; [`kernel`]: the kernel over them; [`pack`]: weights in its
//!   order; [`run`]: one run.
//!
//! B lies in panels of one vector of columns, each a single stream of memory: for each group along k its
//! words, one for each column, of 4 or 8 integers with consecutive k, the first in the low bits; then the
//! scales of the columns as f32. 128 4-bit weights take 68 bytes so.

mod kernel;
mod lanes;
mod pack;
mod run;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::kernel::Kernels as Engine;
use super::{Cpu, worthwhile_threads};
use crate::backend::{CompiledProduct, Facts, Run};
use crate::description::element::ElementType;
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, ThreadPool};
use crate::description::quantization::QuantB;
use crate::description::scales::Scales;
use crate::error::Result;
use crate::operands::weights::Weights;

use kernel::Kernels;
use pack::Packed;
use run::WeightOnlyRun;

/// Groups shorter than this would lie mostly empty in whole words with their scales.
const SHORTEST_GROUP: usize = 16;

/// Whether the kernels here run a product that [`super::typed::supports`] allows.
pub(super) fn applies(product: &MatMul) -> bool {
    let (types, k) = (product.types(), product.k());
    let whole = matches!(types.b, ElementType::I8 | ElementType::U8 | ElementType::I4 | ElementType::U4);
    let group = pack::group_len(product.quantization().b, k);
    product.constant_b()
        && whole
        && types.a.is_float()
        && types.accumulator == ElementType::F32
        && product.quantization().b != QuantB::None
        && !product.b().is_empty()
        && (group >= SHORTEST_GROUP || group == k)
}

struct Plan {
    product: MatMul,
    scales: Scales,
    engine: &'static Engine,
    kernels: &'static Kernels,
    packed: Arc<Packed>,
    pool: Option<Arc<dyn ThreadPool>>,
    threads: usize,
}

/// Compiles a product that [`applies`].
pub(super) fn compile(
    cpu: &Cpu,
    product: &MatMul,
    weights: &Weights,
    options: &CompileOptions,
) -> Result<Box<dyn CompiledProduct>> {
    let threads = worthwhile_threads(product, options.threads.number(), 1);
    compile_for(cpu, product, weights, options, threads)
}

/// Compiles for so many of the threads that the options allow.
fn compile_for(
    cpu: &Cpu,
    product: &MatMul,
    weights: &Weights,
    options: &CompileOptions,
    threads: usize,
) -> Result<Box<dyn CompiledProduct>> {
    let (pool, threads) = cpu.pool_for(options, threads)?;
    let kernels = kernel::of(cpu.kernels.name);
    let key = (cpu.kernels.name, product.transpose_b(), product.quantization().b);
    let plan = Plan {
        product: product.clone(),
        scales: Scales::resolve(product, options)?,
        engine: cpu.kernels,
        kernels,
        packed: weights.derived(key, || Packed::new(kernels.lanes, product, weights))?,
        pool,
        threads,
    };
    Ok(Box::new(WeightOnly(Arc::new(plan))))
}

struct WeightOnly(Arc<Plan>);

impl CompiledProduct for WeightOnly {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(WeightOnlyRun::new(Arc::clone(&self.0))?))
    }

    fn facts(&self) -> Facts {
        let packed = &self.0.packed;
        Facts {
            bytes_held: size_of::<Plan>() + packed.bytes(),
            shared: Some((Arc::as_ptr(packed).addr(), packed.bytes())),
            observed: Device::Cpu,
            threads: Some(self.0.threads),
            ..Facts::default()
        }
    }
}
