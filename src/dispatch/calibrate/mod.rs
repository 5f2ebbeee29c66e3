//! Measuring the profile of this machine.

pub(crate) mod grid;
mod measure;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
#[cfg(feature = "profile")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::{BackendId, Backends};
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::{CompileOptions, Device, Threads};
use crate::dispatch::machine::MachineKey;
use crate::dispatch::profile::{Profile, Series};
use crate::error::{Error, Result};
use crate::verify::probe::Probe;

use measure::{Bench, Limits};

/// How much to measure.
///
/// ```
/// use ane_matmul::{CalibrateOptions, Effort};
///
/// let options = CalibrateOptions::new(Effort::Full); // for calibrate()
/// assert_eq!(options.effort, Effort::Full);
/// assert_eq!(CalibrateOptions::default().effort, Effort::Quick);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Effort {
    /// Some 140 products, or as many as half a minute allows, shared among the types and numbers of threads; a quarter at least.
    #[default]
    Quick,
    /// Some 380 products, each for longer: a few minutes.
    Full,
}

/// What to measure.
///
/// ```no_run
/// use std::num::NonZeroUsize;
/// use std::ops::ControlFlow;
/// use ane_matmul::{BackendId, Backends, CalibrateOptions, Effort, calibrate};
///
/// let mut options = CalibrateOptions::new(Effort::Quick);
/// options.backends = vec![BackendId::CPU];
/// options.threads = vec![NonZeroUsize::MIN];
/// let profile = calibrate(&Backends::new(), &options, |_| ControlFlow::Continue(()))?;
/// assert!(profile.series().iter().all(|series| series.backend == BackendId::CPU && series.threads == 1));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// How much.
    pub effort: Effort,
    /// The numbers of CPU threads; if empty, 1 and all that the process may use, and with [`Effort::Full`]
    /// the powers of two in between.
    pub threads: Vec<NonZeroUsize>,
    /// The backends; if empty, all that are here. Test doubles of hardware are never measured.
    pub backends: Vec<BackendId>,
    /// Whether the threads of the process's BLAS may be set for the time of the measurement, as
    /// `set_blas_threads` does; they are put back. Otherwise a BLAS is measured with the threads that it has.
    pub set_blas_threads: bool,
    /// Tries products out in a process of their own first ([`probe`](crate::verify::probe)). A backend that crashes or hangs
    /// there, or computes wrong numbers, is left out from then on.
    pub probe: Option<Arc<Probe>>,
    /// The profile that notes what the probe found ([`CompileOptions::quarantine`]).
    #[cfg(feature = "profile")]
    pub quarantine: Option<PathBuf>,
}

impl CalibrateOptions {
    /// Everything that is here, with so much effort.
    #[must_use]
    pub fn new(effort: Effort) -> Self {
        Self { effort, ..Self::default() }
    }

    fn thread_counts(&self) -> Vec<usize> {
        if !self.threads.is_empty() {
            return self.threads.iter().map(|count| count.get()).collect();
        }
        let all = Threads::Auto.number();
        let mut counts = vec![1];
        if self.effort == Effort::Full {
            counts.extend((1..usize::BITS).map(|bit| 1 << bit).take_while(|&count| count < all));
        }
        counts.push(all);
        counts.dedup();
        counts
    }
}

/// How far a calibration is.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use std::time::{Duration, Instant};
/// use ane_matmul::{Backends, CalibrateOptions, calibrate};
///
/// let start = Instant::now();
/// let profile = calibrate(&Backends::new(), &CalibrateOptions::default(), |progress| {
///     eprintln!("{} of {}: {}", progress.done, progress.total, progress.product);
///     let in_time = start.elapsed() < Duration::from_secs(120);
///     if in_time { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// })?; // Error::Interrupted after two minutes
/// assert!(!profile.series().is_empty());
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CalibrateProgress<'a> {
    /// Products measured, or left out for lack of time.
    pub done: usize,
    /// Products to measure.
    pub total: usize,
    /// The product that is measured next.
    pub product: &'a MatMul,
    /// The CPU threads that it is measured with.
    pub threads: usize,
}

/// Types that backends may run, and the devices to ask for with them.
fn kinds() -> Vec<(ElementTypes, Device)> {
    let mut kinds = vec![(ElementTypes::F32, Device::Unknown)];
    if cfg!(feature = "half") {
        let f16 = ElementTypes::uniform(crate::description::element::ElementType::F16);
        kinds.extend([
            (ElementTypes::F16, Device::Unknown),
            (ElementTypes::BF16, Device::Unknown),
            (f16, Device::Unknown),
            (f16, Device::NeuralEngine),
        ]);
    }
    kinds
}

/// Measures the backends of this machine on products of many shapes, with and without a constant B.
///
/// f32, and with the feature `half` bf16 and f16 too where a backend runs them; the Neural Engine as a
/// candidate where a backend takes that request. `progress` is called before each product, and stops
/// everything by returning [`ControlFlow::Break`]. The machine should have nothing else to do.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use ane_matmul::{Backends, CalibrateOptions, Effort, calibrate};
///
/// let mut backends = Backends::new();
/// let profile = calibrate(&backends, &CalibrateOptions::new(Effort::Quick), |progress| {
///     println!("{} of {}: {}", progress.done, progress.total, progress.product);
///     ControlFlow::Continue(())
/// })?;
/// backends.set_profile(Some(profile)); // or keep it: profile.save(Profile::default_path()?)
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::UnknownBackend`] and [`Error::Unavailable`] for a backend that was
/// named; [`Error::OutOfMemory`] for the operands; [`Error::Threads`]. A backend that fails is left out
/// where it fails, with a warning in the log.
pub fn calibrate(
    backends: &Backends,
    options: &CalibrateOptions,
    progress: impl FnMut(CalibrateProgress<'_>) -> ControlFlow<()>,
) -> Result<Profile> {
    let (shapes, limits) = match options.effort {
        Effort::Quick => (grid::shapes(grid::QUICK), Limits::QUICK),
        Effort::Full => (grid::shapes(grid::FULL), Limits::FULL),
    };
    calibrate_on(&shapes, &limits, backends, options, progress)
}

/// [`calibrate`] on some shapes.
fn calibrate_on(
    shapes: &[grid::Shape],
    limits: &Limits,
    backends: &Backends,
    options: &CalibrateOptions,
    mut progress: impl FnMut(CalibrateProgress<'_>) -> ControlFlow<()>,
) -> Result<Profile> {
    let ids = selected(backends, options)?;
    let counts = options.thread_counts();
    let mut plan: Vec<(usize, Device, Vec<BackendId>, Vec<MatMul>)> = Vec::new();
    for (types, device) in kinds() {
        let products: Vec<MatMul> = shapes.iter().map(|shape| shape.product(types)).collect::<Result<_>>()?;
        for (index, &threads) in counts.iter().enumerate() {
            let compile_options = CompileOptions::default().threads(Threads::count(threads)?).device(device);
            let able: Vec<BackendId> = ids
                .iter()
                .filter(|(_, kind)| index == 0 || *kind == Device::Cpu)
                .map(|(id, _)| id.clone())
                .filter(|id| products.iter().any(|p| backends.supports(id, p, &compile_options).is_ok()))
                .collect();
            if !able.is_empty() {
                plan.push((threads, device, able, products.clone()));
            }
        }
    }
    let total = plan.iter().map(|(.., products)| products.len()).sum();
    let mut profile = Profile::new(MachineKey::here());
    let mut done = 0;
    let restore = BlasThreads::remember(options.set_blas_threads);
    let start = Instant::now();
    let parts = u32::try_from(plan.len()).unwrap_or(u32::MAX);
    for (part, (threads, device, able, products)) in (1..).zip(plan) {
        // What earlier parts did not take is there for the later ones.
        let until = limits.total / parts * part;
        restore.set(threads);
        let mut compile_options = CompileOptions::default().threads(Threads::count(threads)?).device(device);
        compile_options.probe.clone_from(&options.probe);
        #[cfg(feature = "profile")]
        compile_options.quarantine.clone_from(&options.quarantine);
        let types = *products[0].types();
        let mut bench = Bench::new(types, &products)?;
        let mut series: Vec<(Series, f64)> = Vec::new();
        for id in able {
            let info = backends.info(&id)?;
            let used = backends.threads(&id, &compile_options)?;
            // Before anything is known, a rate that no engine falls short of: 0.1 GFLOP/s.
            series.push((Series::new(id, info.description, types, device, used), 10.0));
        }
        for one in &mut series {
            // What an engine does once, at its first use, belongs to no product.
            let runs =
                |product: &&MatMul| backends.supports(&one.0.backend, product, &compile_options).is_ok();
            if let Some(product) = products.iter().find(runs) {
                let mut first_use = [one.clone()];
                bench.measure(backends, product, &compile_options, limits, &mut first_use)?;
                if first_use[0].1.is_infinite() {
                    // A probe left it out.
                    one.1 = f64::INFINITY;
                }
            }
        }
        for (index, product) in products.iter().enumerate() {
            if index >= products.len().div_ceil(grid::PASSES) && start.elapsed() > until {
                break;
            }
            if progress(CalibrateProgress { done: done + index, total, product, threads }).is_break() {
                return Err(Error::Interrupted);
            }
            bench.measure(backends, product, &compile_options, limits, &mut series)?;
        }
        done += products.len();
        for (series, _) in series {
            if !series.samples.is_empty() {
                profile.add_series(series)?;
            }
        }
    }
    Ok(profile)
}

/// The backends to measure, and their devices.
fn selected(backends: &Backends, options: &CalibrateOptions) -> Result<Vec<(BackendId, Device)>> {
    if options.backends.is_empty() {
        let here = backends.available().into_iter();
        return Ok(here
            .filter_map(|status| {
                let info = status.state.ok().filter(|info| !info.is_test_double)?;
                Some((status.id, info.device))
            })
            .collect());
    }
    let mut ids: Vec<(BackendId, Device)> = Vec::new();
    for id in &options.backends {
        let info = backends.info(id)?;
        if info.is_test_double || *id == BackendId::AUTO {
            return Err(Error::Unavailable {
                backend: id.clone(),
                reason: "it is no engine to be timed; name another".into(),
            });
        }
        if ids.iter().all(|(other, _)| other != id) {
            ids.push((id.clone(), info.device));
        }
    }
    Ok(ids)
}

/// The threads of the process's BLAS, put back when dropped.
struct BlasThreads(Option<NonZeroUsize>);

impl BlasThreads {
    #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
    fn remember(allowed: bool) -> Self {
        Self(crate::backend::blas_threads().and_then(NonZeroUsize::new).filter(|_| allowed))
    }

    #[cfg(not(all(feature = "blas", unix, not(target_vendor = "apple"))))]
    fn remember(_: bool) -> Self {
        Self(None)
    }

    #[cfg_attr(
        not(all(feature = "blas", unix, not(target_vendor = "apple"))),
        allow(unused_variables, clippy::unused_self)
    )]
    fn set(&self, threads: usize) {
        #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
        if let (Some(_), Some(threads)) = (self.0, NonZeroUsize::new(threads)) {
            crate::backend::set_blas_threads(threads);
        }
    }
}

impl Drop for BlasThreads {
    fn drop(&mut self) {
        self.set(self.0.map_or(0, NonZeroUsize::get));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::grid::Extent;
    use super::*;
    use crate::backend::tests::Scripted;
    use crate::dispatch::profile::Sample;

    #[test]
    fn threads_to_measure_are_those_named_or_one_and_all() {
        let all = Threads::Auto.number();
        let quick = CalibrateOptions::new(Effort::Quick).thread_counts();
        assert_eq!(quick, if all == 1 { vec![1] } else { vec![1, all] });
        let full = CalibrateOptions::new(Effort::Full).thread_counts();
        assert!(full.is_sorted_by(|one, next| one < next), "{full:?}");
        assert_eq!((full[0], full[full.len() - 1]), (1, all));
        assert_eq!(full.len(), 1 + all.next_power_of_two().ilog2() as usize);
        let threads = [5, 3].map(|count: usize| count.try_into().unwrap()).to_vec();
        assert_eq!(CalibrateOptions { threads, ..CalibrateOptions::default() }.thread_counts(), [5, 3]);
    }

    #[test]
    fn backends_that_are_no_engines_are_not_measured() {
        let backends = Backends::new();
        let measured = |ids: &[BackendId]| {
            let options = CalibrateOptions { backends: ids.to_vec(), ..CalibrateOptions::default() };
            selected(&backends, &options).map(|ids| ids.into_iter().map(|(id, _)| id).collect::<Vec<_>>())
        };
        let all = measured(&[]).unwrap();
        assert!(all.contains(&BackendId::CPU) && !all.contains(&BackendId::AUTO));
        assert_eq!(measured(&[BackendId::CPU, BackendId::CPU]).unwrap(), [BackendId::CPU]);
        assert!(matches!(measured(&[BackendId::AUTO]), Err(Error::Unavailable { .. })));
        assert!(matches!(measured(&[BackendId::new("none")]), Err(Error::UnknownBackend { .. })));
    }

    #[test]
    fn every_type_that_a_backend_may_run_is_measured() {
        let kinds = kinds();
        assert!(kinds.contains(&(ElementTypes::F32, Device::Unknown)));
        assert_eq!(kinds.len(), if cfg!(feature = "half") { 5 } else { 1 });
        assert_eq!(
            kinds.iter().filter(|(_, device)| *device == Device::NeuralEngine).count(),
            usize::from(cfg!(feature = "half"))
        );
    }

    #[cfg(all(feature = "blas", unix, not(target_vendor = "apple")))]
    #[test]
    fn threads_of_a_blas_are_put_back_and_left_alone_unless_they_may_be_set() {
        use crate::backend::blas_threads;
        let _lock = crate::backend::BLAS_THREADS.lock();
        let before = blas_threads();
        for allowed in [false, true] {
            let restore = BlasThreads::remember(allowed);
            // Not every BLAS can be told.
            let other = before.map(|count| if count == 1 { 2 } else { 1 });
            restore.set(other.unwrap_or(1));
            assert_eq!(blas_threads(), if allowed { other } else { before });
            drop(restore);
            assert_eq!(blas_threads(), before);
        }
    }

    #[test]
    fn engines_of_other_devices_are_measured_once_and_all_progress_is_told() {
        let shapes = &grid::shapes(grid::QUICK)[..2];
        for (device, counts) in [(Device::Gpu, &[1][..]), (Device::Cpu, &[1, 2])] {
            // It cannot compile: there is nothing to be timed.
            let (backends, id) = Scripted { device, ..Scripted::default() }.registered();
            let threads = [1, 2].map(|count: usize| count.try_into().unwrap()).to_vec();
            let options = CalibrateOptions { backends: vec![id], threads, ..CalibrateOptions::default() };
            let mut told = Vec::new();
            let profile = calibrate_on(shapes, &Limits::QUICK, &backends, &options, |step| {
                told.push((step.done, step.total, step.threads));
                ControlFlow::Continue(())
            });
            assert!(profile.unwrap().series().is_empty());
            let total = kinds().len() * counts.len() * shapes.len();
            let expected = (0..total).map(|done| (done, total, counts[done / shapes.len() % counts.len()]));
            assert_eq!(told, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "an interpreter takes as long as the delays that are told apart")]
    fn compiling_and_a_first_run_are_told_apart() {
        const LONG: Duration = Duration::from_millis(30);
        let shapes = &grid::shapes(grid::QUICK)[..3];
        for (compile_time, first_run_time) in [(LONG, Duration::ZERO), (Duration::ZERO, LONG)] {
            let info = Some(crate::backend::CompiledInfo::default());
            let scripted = Scripted { info, compile_time, first_run_time, ..Scripted::default() };
            let (backends, id) = scripted.registered();
            let options = CalibrateOptions { backends: vec![id], ..CalibrateOptions::default() };
            let profile =
                calibrate_on(shapes, &Limits::QUICK, &backends, &options, |_| ControlFlow::Continue(()));
            let profile = profile.unwrap();
            // A busy machine makes anything long, but not everything.
            let samples = &profile.series()[0].samples;
            let long = |ns: fn(&Sample) -> f64| samples.iter().all(|s| ns(s) >= 0.9 * LONG.as_nanos() as f64);
            assert_eq!(long(|s| s.compile_ns), !compile_time.is_zero(), "{samples:?}");
            assert_eq!(long(|s| s.first_run_ns), !first_run_time.is_zero(), "{samples:?}");
            assert!(!long(|s| s.run_ns), "{samples:?}");
        }
    }

    #[test]
    fn a_calibration_without_time_has_the_first_pass_of_everything() {
        let shapes = grid::shapes(Extent { scattered: 16, maximum: 4 });
        let (backends, id) =
            Scripted { info: Some(crate::backend::CompiledInfo::default()), ..Scripted::default() }
                .registered();
        let options = CalibrateOptions { backends: vec![id], ..CalibrateOptions::default() };
        let limits = Limits { total: Duration::ZERO, ..Limits::QUICK };
        let mut told = Vec::new();
        let profile = calibrate_on(&shapes, &limits, &backends, &options, |step| {
            told.push(step.done);
            ControlFlow::Continue(())
        });
        let first_pass = shapes.len().div_ceil(grid::PASSES);
        assert!(profile.unwrap().series().iter().all(|series| series.samples.len() == first_pass));
        let part = |part: usize| part * shapes.len()..part * shapes.len() + first_pass;
        assert_eq!(told, (0..kinds().len()).flat_map(part).collect::<Vec<_>>());
    }
}
