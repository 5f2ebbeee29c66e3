//! Timing backends on one product.

use std::time::{Duration, Instant};

use crate::backend::Backends;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::CompileOptions;
use crate::dispatch::profile::{Sample, Series};
use crate::error::{Error, Result};
use crate::executor::{Executor, Inputs};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, TensorView, TensorViewMut};
use crate::operands::weights::Weights;

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The samples of one backend on one product should take about this long, ...
    pub(super) budget: Duration,
    /// ... within these numbers of samples.
    pub(super) samples: (usize, usize),
    /// A product that would take longer is left to the model.
    pub(super) longest: Duration,
    /// What is left out when all takes longer than this: passes over the products, but not the first.
    pub(super) total: Duration,
}

impl Limits {
    pub(super) const QUICK: Self = Self {
        budget: Duration::from_millis(12),
        samples: (3, 15),
        longest: Duration::from_millis(60),
        total: Duration::from_secs(30),
    };
    pub(super) const FULL: Self = Self {
        budget: Duration::from_millis(30),
        samples: (3, 21),
        longest: Duration::from_millis(500),
        total: Duration::MAX,
    };
}

/// A sample lasts at least this long, so that neither the clock's own time nor the waking of threads counts.
const SAMPLE_NS: f64 = 400_000.0;

/// Samples are taken in so many blocks, between those of the other backends, and the block with the lowest
/// median counts: what disturbs a machine only ever adds time.
const BLOCKS: usize = 2;

/// Runs before the samples, until caches are warm and the threads of the backend before have gone to sleep:
/// those of OpenBLAS keep a core busy for 2^26 cycles after their last product (`THREAD_TIMEOUT` in its
/// Makefile.rule).
const SETTLE: Duration = Duration::from_millis(25);
const SETTLE_ALONE: Duration = Duration::from_micros(200);

/// Compilations are repeated while they take less than this in all, for their median.
const COMPILE_BUDGET: Duration = Duration::from_millis(2);
const COMPILATIONS: usize = 5;

/// Operands large enough for every product of a list.
pub(super) struct Bench {
    a: Operand,
    b: Operand,
    c: Operand,
}

struct Candidate<'s> {
    series: &'s mut Series,
    ns_per_flop: &'s mut f64,
    executor: Executor,
    compile_ns: f64,
    first_run_ns: f64,
    runs_per_sample: usize,
    samples: usize,
    /// The lowest median of a block.
    run_ns: f64,
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds far below 2^53")]
fn ns(time: Duration) -> f64 {
    time.as_nanos() as f64
}

impl Bench {
    pub(super) fn new(types: ElementTypes, products: &[MatMul]) -> Result<Self> {
        let largest = |span: fn(&MatMul) -> usize| products.iter().map(span).max().unwrap_or(0);
        Ok(Self {
            a: Operand::new(types.a, largest(|product| product.a().span()), 1)?,
            b: Operand::new(types.b, largest(|product| product.b().span()), 2)?,
            c: Operand::new(types.output, largest(|product| product.c().span()), 3)?,
        })
    }

    /// Adds a sample to each series whose backend runs the product within the limits. The number beside a
    /// series is what an operation took last, in nanoseconds.
    pub(super) fn measure(
        &mut self,
        backends: &Backends,
        product: &MatMul,
        options: &CompileOptions,
        limits: &Limits,
        series: &mut [(Series, f64)],
    ) -> Result<()> {
        let a = self.a.view(product.a())?;
        let weights =
            if product.constant_b() { Some(Weights::new(self.b.view(product.b())?)?) } else { None };
        let inputs = Inputs::new(a);
        let inputs = if product.constant_b() { inputs } else { inputs.b(self.b.view(product.b())?) };
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for (series, ns_per_flop) in series {
            // Arithmetic gets no slower with more of it, the first few products apart.
            let slow = product.flops() * *ns_per_flop > ns(limits.longest) && product.flops() > 1e6;
            if slow || ns_per_flop.is_infinite() {
                continue;
            }
            let id = series.backend.clone();
            match prepare(backends, product, weights.as_ref(), options, series) {
                Ok((executor, compile_ns)) => candidates.push(Candidate {
                    series,
                    ns_per_flop,
                    executor,
                    compile_ns,
                    first_run_ns: 0.0,
                    runs_per_sample: 1,
                    samples: limits.samples.0,
                    run_ns: f64::INFINITY,
                }),
                Err(Error::Refused { .. }) => {}
                Err(error @ Error::Probed { .. }) => {
                    log::warn!("{id} is left out from {product} on: {error}");
                    *ns_per_flop = f64::INFINITY;
                }
                Err(error) => log::warn!("{id} is left out at {product}: {error}"),
            }
        }
        let c = &mut self.c;
        candidates.retain_mut(|candidate| match warm_up(candidate, &inputs, c, product, limits) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("{} is left out at {product}: {error}", candidate.series.backend);
                false
            }
        });
        let rivals = candidates.len() > 1;
        let settle = if options.threads.number() > 1 { SETTLE } else { SETTLE_ALONE };
        for _ in 0..BLOCKS {
            for candidate in &mut candidates {
                let start = Instant::now();
                while rivals && start.elapsed() < settle {
                    sample(&mut candidate.executor, 1, &inputs, c, product)?;
                }
                let mut samples_ns = Vec::with_capacity(candidate.samples);
                for _ in 0..candidate.samples.div_ceil(BLOCKS) {
                    let runs = candidate.runs_per_sample;
                    samples_ns.push(sample(&mut candidate.executor, runs, &inputs, c, product)?);
                }
                candidate.run_ns = candidate.run_ns.min(median(samples_ns));
            }
        }
        for candidate in candidates {
            *candidate.ns_per_flop = candidate.ns_per_flop.min(candidate.run_ns / product.flops());
            let mut sample = Sample::new(product, candidate.compile_ns, candidate.run_ns.max(1.0));
            sample.first_run_ns = (candidate.first_run_ns - candidate.run_ns).max(0.0);
            candidate.series.samples.push(sample);
        }
        Ok(())
    }
}

/// Compiles, and says how long that took: without the probe, which costs a process once.
fn prepare(
    backends: &Backends,
    product: &MatMul,
    weights: Option<&Weights>,
    options: &CompileOptions,
    series: &Series,
) -> Result<(Executor, f64)> {
    backends.supports(&series.backend, product, options)?;
    backends.try_out(&series.backend, product, options)?;
    let mut times = Vec::new();
    let start = Instant::now();
    loop {
        let compilation = Instant::now();
        let executor = backends.compile_parts(&series.backend, product, weights, options)?.executor()?;
        times.push(ns(compilation.elapsed()));
        if times.len() == COMPILATIONS || start.elapsed() > COMPILE_BUDGET {
            return Ok((executor, median(times)));
        }
    }
}

/// Runs a few times, and decides how often to run.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, small numbers")]
fn warm_up(
    candidate: &mut Candidate<'_>,
    inputs: &Inputs<'_>,
    c: &mut Operand,
    product: &MatMul,
    limits: &Limits,
) -> Result<()> {
    candidate.first_run_ns = sample(&mut candidate.executor, 1, inputs, c, product)?;
    let once_ns = sample(&mut candidate.executor, 1, inputs, c, product)?.max(1.0);
    candidate.runs_per_sample = (SAMPLE_NS / once_ns).ceil().max(1.0) as usize;
    #[allow(clippy::cast_precision_loss)]
    let sample_ns = once_ns * candidate.runs_per_sample as f64;
    let (fewest, most) = limits.samples;
    candidate.samples = ((ns(limits.budget) / sample_ns) as usize).clamp(fewest, most);
    Ok(())
}

/// The time of one run, averaged over some.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn sample(
    executor: &mut Executor,
    runs: usize,
    inputs: &Inputs<'_>,
    c: &mut Operand,
    product: &MatMul,
) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..runs {
        executor.run(inputs, c.view_mut(product.c())?)?;
    }
    Ok(ns(start.elapsed()) / runs as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// Elements of one type, as many as the largest operand has.
enum Operand {
    F32(Vec<f32>),
    #[cfg(feature = "half")]
    F16(Vec<half::f16>),
    #[cfg(feature = "half")]
    Bf16(Vec<half::bf16>),
}

impl Operand {
    /// Random numbers: zeros may be multiplied faster.
    fn new(element: ElementType, count: usize, seed: u64) -> Result<Self> {
        let random = Tensor::random_normal_f32(1, count.max(1), 0.02, seed)?.into_vec();
        match element {
            ElementType::F32 => Ok(Self::F32(random)),
            #[cfg(feature = "half")]
            ElementType::F16 => {
                Ok(Self::F16(random.into_iter().map(crate::operands::float16::from_f32).collect()))
            }
            #[cfg(feature = "half")]
            ElementType::Bf16 => Ok(Self::Bf16(random.into_iter().map(half::bf16::from_f32).collect())),
            other => Err(Error::Profile { problem: format!("{other} cannot be measured in this build") }),
        }
    }

    fn view(&self, layout: &Layout) -> Result<AnyView<'_>> {
        match self {
            Self::F32(data) => Ok(TensorView::with_layout(&data[..layout.span()], *layout)?.erased()),
            #[cfg(feature = "half")]
            Self::F16(data) => Ok(TensorView::with_layout(&data[..layout.span()], *layout)?.erased()),
            #[cfg(feature = "half")]
            Self::Bf16(data) => Ok(TensorView::with_layout(&data[..layout.span()], *layout)?.erased()),
        }
    }

    fn view_mut(&mut self, layout: &Layout) -> Result<AnyViewMut<'_>> {
        match self {
            Self::F32(data) => Ok(TensorViewMut::with_layout(&mut data[..layout.span()], *layout)?.erased()),
            #[cfg(feature = "half")]
            Self::F16(data) => Ok(TensorViewMut::with_layout(&mut data[..layout.span()], *layout)?.erased()),
            #[cfg(feature = "half")]
            Self::Bf16(data) => Ok(TensorViewMut::with_layout(&mut data[..layout.span()], *layout)?.erased()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_values() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![5.0]), 5.0);
        assert_eq!(median(vec![9.0, 1.0, 4.0]), 4.0);
        assert_eq!(median(vec![8.0, 1.0, 2.0, 4.0]), 3.0);
        assert_eq!(median(vec![8.0, 1.0, 2.0, 4.0, 16.0, 32.0]), 6.0);
        assert_eq!(ns(Duration::from_micros(3)), 3000.0);
    }
}
