//! A sustained load, and what can be seen of it.

use std::time::{Duration, Instant};

use super::meter::{self, Power};
use super::operands::{Operands, SIGMA};
use super::verdict::exceeds;
use super::{Quartiles, Receipt, Witness, judge};
use crate::backend::{BackendId, Backends};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::error::{Error, Result};
use crate::executor::{Compiled, Executor, Inputs};
use crate::operands::tensor::Tensor;
use crate::verify::self_check::{Mismatch, ResultChecker, SelfCheck};

/// A sample lasts at least this long, so that the clock's own time does not count.
const SAMPLE_TIME: Duration = Duration::from_micros(200);

/// The CPU time that arithmetic needs is measured on a product no larger than this in any dimension, for
/// this long: a larger one needs no more for each operation that a cache this small would change.
const CONTROL_DIMENSION: usize = 1024;
const CONTROL_TIME: Duration = Duration::from_millis(50);

/// How likely the check of a result may miss that it is wrong.
const FAILURE_PROBABILITY: f64 = 1e-3;

/// How long and how often to run a product.
///
/// ```
/// use std::time::Duration;
/// use ane_matmul::evidence::Load;
///
/// let load = Load::default().window(Duration::from_millis(200)).rounds(5); // for verify()
/// assert_eq!(load.rounds * load.window, Duration::from_secs(1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// The time of one load, and of the idle time before; energy counters are read over it.
    pub window: Duration,
    /// Loads; each has one without the Neural Engine as a candidate before it, where it is one.
    pub rounds: u32,
}

impl Default for Load {
    /// Two rounds of a second each.
    fn default() -> Self {
        Self { window: Duration::from_secs(1), rounds: 2 }
    }
}

impl Load {
    /// Sets the time of one load.
    #[must_use]
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets the number of loads; 0 counts as 1.
    #[must_use]
    pub const fn rounds(mut self, rounds: u32) -> Self {
        self.rounds = rounds;
        self
    }
}

/// Compiles `product` as `options` ask, runs it on random operands (N(0, 0.02^2)) for some seconds
/// and hears every witness.
///
/// Where the Neural Engine is requested, the same product compiled for the GPU is the control, in
/// turns with it. CPU time counts the whole process: keep it idle otherwise. What it is held to, the CPU time
/// that the arithmetic needs, is measured first, on the backends `accelerate` and `cpu`. After each load a
/// result is verified, where there is an error bound to hold it to. Nothing is written anywhere; absent
/// witnesses are part of the receipt.
///
/// # Errors
/// As [`Backends::compile`] and [`Executor::run`]; [`Error::WrongResult`]; [`Error::Description`] for types
/// other than f32, f16 and bf16.
pub fn verify(
    backends: &Backends,
    id: &BackendId,
    product: &MatMul,
    options: &CompileOptions,
    load: &Load,
) -> Result<Receipt> {
    backends.supports(id, product, options)?;
    let mut operands = Operands::random(product)?;
    let compile = |id: &BackendId, operands: &Operands, options: &CompileOptions| {
        backends.compile_parts(id, product, operands.weights.as_ref(), options)
    };
    let compiled = compile(id, &operands, options)?;
    // The one that `auto` chose.
    let id = compiled.report().backend;
    let info = backends.info(&id)?;
    let control = if options.device == Device::NeuralEngine {
        match compile(&id, &operands, &options.clone().device(Device::Gpu)) {
            Ok(control) => Ok(control),
            Err(Error::Refused { refusal, .. }) => Err(format!("without it as a candidate: {refusal}")),
            Err(error) => return Err(error),
        }
    } else {
        Err("the Neural Engine was not requested".to_owned())
    };
    let mut checker = checker(product, &operands, options)?;
    let needed_by_a_run = cpu_time_needed(backends, product);
    let mut with = Watched::new(&compiled, &mut operands)?;
    let mut without =
        control.as_ref().ok().map(|control| Watched::new(control, &mut operands)).transpose()?;

    let idle = idle_power(load.window);
    for _ in 0..load.rounds.max(1) {
        if let Some(without) = &mut without {
            without.run_for(load.window, idle.is_ok(), &mut operands)?;
        }
        with.run_for(load.window, idle.is_ok(), &mut operands)?;
        if let Some(checker) = &mut checker {
            for watched in without.iter_mut().chain([&mut with]) {
                watched.check(checker, &id, product, &mut operands)?;
            }
        }
    }

    let mut witnesses = Vec::new();
    if info.is_test_double {
        witnesses.push(Witness::TestDouble);
    }
    witnesses.push(Witness::Engine { observed: with.observed(&compiled) });
    witnesses.push(with.cpu_time(needed_by_a_run));
    witnesses.push(with.device_time(without.as_ref()));
    witnesses.extend(energy(idle, &with, without.as_ref()));
    witnesses.push(match (&mut without, control) {
        (Some(without), _) => Witness::CandidateTime { with: with.quartiles(), without: without.quartiles() },
        (None, control) => {
            Witness::Absent { kind: "candidate-time", reason: control.err().unwrap_or_default() }
        }
    });
    Ok(Receipt {
        backend: id,
        device_name: info.device_name,
        product: product.to_string(),
        requested: options.device,
        runs: with.runs,
        verdict: judge(&witnesses),
        witnesses,
    })
}

/// What results are held to; `None` for a product without an error bound.
fn checker(product: &MatMul, operands: &Operands, options: &CompileOptions) -> Result<Option<ResultChecker>> {
    let check = SelfCheck::every_run().failure_probability(FAILURE_PROBABILITY);
    match ResultChecker::of_parts(product, operands.weights.as_ref(), &check, options) {
        Ok(checker) => Ok(Some(checker)),
        Err(Error::Description { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The CPU time that the arithmetic of a run needs, in f32 and on one thread, with whichever of our CPU
/// backends needs less; `None` where nothing can be measured.
fn cpu_time_needed(backends: &Backends, product: &MatMul) -> Option<Duration> {
    let [m, n, k] = [product.m(), product.n(), product.k()].map(|size| size.min(CONTROL_DIMENSION));
    let control = MatMul::new(m, n, k).ok()?;
    let scale = product.flops() / control.flops();
    let options = CompileOptions::default().threads(Threads::count(1).ok()?);
    let (a, b) =
        (Tensor::random_normal_f32(m, k, SIGMA, 1).ok()?, Tensor::random_normal_f32(k, n, SIGMA, 2).ok()?);
    let measure = |id: &BackendId| -> Option<Duration> {
        let mut executor = backends.compile(id, &control, &options).ok()?.executor().ok()?;
        let (inputs, mut c) = (Inputs::new(&a).b(&b), Tensor::<f32>::zeros(m, n).ok()?);
        executor.run(inputs, &mut c).ok()?;
        let (before, start, mut runs) = (meter::process_cpu_time().ok()?, Instant::now(), 0u64);
        while runs == 0 || start.elapsed() < CONTROL_TIME {
            executor.run(inputs, &mut c).ok()?;
            runs += 1;
        }
        let cpu = meter::process_cpu_time().ok()?.saturating_sub(before);
        Duration::try_from_secs_f64(cpu.as_secs_f64() / f64_from(runs) * scale).ok()
    };
    [BackendId::ACCELERATE, BackendId::CPU].iter().filter_map(measure).min()
}

fn idle_power(window: Duration) -> Result<Power, String> {
    meter::has_energy_counters()?;
    meter::power(window)
}

/// One compiled product under load, with everything seen of it so far.
struct Watched {
    executor: Executor,
    runs_per_sample: u32,
    runs: u64,
    samples: Vec<Duration>,
    wall: Duration,
    cpu: Result<Duration, &'static str>,
    device_time: Duration,
    /// Device time and elapsed time of a run, where the former exceeds the latter.
    impossible: Option<(Duration, Duration)>,
    observed: Option<Device>,
    power: Vec<Result<Power, String>>,
}

impl Watched {
    /// Runs twice: an engine may compile in its first run, and the second says how long one takes.
    fn new(compiled: &Compiled, operands: &mut Operands) -> Result<Self> {
        let mut watched = Self {
            executor: compiled.executor()?,
            runs_per_sample: 1,
            runs: 0,
            samples: Vec::new(),
            wall: Duration::ZERO,
            cpu: Ok(Duration::ZERO),
            device_time: Duration::ZERO,
            impossible: None,
            observed: None,
            power: Vec::new(),
        };
        watched.sample(operands)?;
        let once = watched.sample(operands)?.max(Duration::from_nanos(1));
        let runs_per_sample = SAMPLE_TIME.as_nanos().div_ceil(once.as_nanos()).max(1);
        watched.runs_per_sample = u32::try_from(runs_per_sample).unwrap_or(u32::MAX);
        (watched.runs, watched.device_time, watched.observed) = (0, Duration::ZERO, None);
        watched.impossible = None;
        Ok(watched)
    }

    /// Runs a few times; returns the time of one run.
    fn sample(&mut self, operands: &mut Operands) -> Result<Duration> {
        let (inputs, c) = operands.parts()?;
        let start = Instant::now();
        let mut device = Duration::ZERO;
        for _ in 0..self.runs_per_sample {
            let seen = self.executor.run_observed(inputs, c.view_mut()?)?;
            device = device.saturating_add(seen.device_time.unwrap_or_default());
            self.observed = Some(match self.observed {
                Some(before) if before != seen.observed => Device::Unknown,
                _ => seen.observed,
            });
        }
        let elapsed = start.elapsed();
        self.runs += u64::from(self.runs_per_sample);
        self.device_time = self.device_time.saturating_add(device);
        if exceeds(device, elapsed) {
            self.impossible = Some((device / self.runs_per_sample, elapsed / self.runs_per_sample));
        }
        Ok(elapsed / self.runs_per_sample)
    }

    /// Runs once more, on a C that holds nothing right, and verifies the result.
    fn check(
        &mut self,
        checker: &mut ResultChecker,
        id: &BackendId,
        product: &MatMul,
        operands: &mut Operands,
    ) -> Result<()> {
        let (inputs, c) = operands.parts()?;
        c.spoil();
        self.executor.run(inputs, c.view_mut()?)?;
        match checker.check(inputs, c.view()?)? {
            None => Ok(()),
            Some(element) => Err(Error::WrongResult(Box::new(Mismatch {
                backend: id.clone(),
                product: product.to_string(),
                element,
            }))),
        }
    }

    /// Runs for `window`, and as long as the energy counters are being read.
    fn run_for(&mut self, window: Duration, read_power: bool, operands: &mut Operands) -> Result<()> {
        let cpu_before = meter::process_cpu_time();
        let start = Instant::now();
        let (result, power) = std::thread::scope(|scope| {
            let thread = || std::thread::Builder::new().spawn_scoped(scope, || meter::power(window));
            let meter = read_power.then(thread);
            let result = loop {
                match self.sample(operands) {
                    Ok(sample) => self.samples.push(sample),
                    Err(error) => break Err(error),
                }
                let reading = matches!(&meter, Some(Ok(meter)) if !meter.is_finished());
                if start.elapsed() >= window && !reading {
                    break Ok(());
                }
            };
            let power = meter.map(|meter| {
                let meter = meter.map_err(|error| format!("no thread could be started ({error})"))?;
                meter.join().unwrap_or_else(|_| Err("the reading failed".into()))
            });
            (result, power)
        });
        self.wall += start.elapsed();
        self.cpu = match (self.cpu, cpu_before, meter::process_cpu_time()) {
            (Ok(sum), Ok(before), Ok(after)) => Ok(sum + after.saturating_sub(before)),
            (Err(reason), ..) | (_, Err(reason), _) | (.., Err(reason)) => Err(reason),
        };
        self.power.extend(power);
        result
    }

    /// What the backend said of the runs, or else of the product.
    fn observed(&self, compiled: &Compiled) -> Device {
        match self.observed {
            Some(observed) if observed != Device::Unknown => observed,
            _ => compiled.report().observed,
        }
    }

    fn cpu_time(&self, needed_by_a_run: Option<Duration>) -> Witness {
        let needed = needed_by_a_run
            .and_then(|needed| Duration::try_from_secs_f64(needed.as_secs_f64() * f64_from(self.runs)).ok());
        match self.cpu {
            Ok(cpu) => Witness::CpuTime { cpu, wall: self.wall, needed },
            Err(reason) => Witness::Absent { kind: "cpu-time", reason: reason.into() },
        }
    }

    fn device_time(&self, control: Option<&Self>) -> Witness {
        if self.device_time.is_zero() {
            let reason = "the backend gives no timestamps of its device".into();
            return Witness::Absent { kind: "device-time", reason };
        }
        let impossible = [Some(self), control].into_iter().flatten().find_map(|seen| seen.impossible);
        if let Some((device, wall)) = impossible {
            return Witness::DeviceTime { device, control: None, wall };
        }
        let of_a_run = |time: Duration, runs: u64| time.div_f64(f64_from(runs));
        Witness::DeviceTime {
            device: of_a_run(self.device_time, self.runs),
            control: control
                .filter(|control| !control.device_time.is_zero())
                .map(|control| of_a_run(control.device_time, control.runs)),
            wall: of_a_run(self.wall, self.runs),
        }
    }

    fn mean_power(&self) -> Result<Power, String> {
        let mut sum = Power { cpu: 0.0, gpu: 0.0, neural_engine: 0.0 };
        for power in &self.power {
            let power = power.clone()?;
            sum.cpu += power.cpu;
            sum.gpu += power.gpu;
            sum.neural_engine += power.neural_engine;
        }
        let count = f64_from(self.power.len() as u64);
        Ok(Power { cpu: sum.cpu / count, gpu: sum.gpu / count, neural_engine: sum.neural_engine / count })
    }

    fn quartiles(&mut self) -> Quartiles {
        self.samples.sort_unstable();
        let at =
            |quarter: usize| self.samples.get(self.samples.len() * quarter / 4).copied().unwrap_or_default();
        Quartiles { lower: at(1), median: at(2), upper: at(3) }
    }
}

/// The witnesses of the three counters, or why there are none.
fn energy(idle: Result<Power, String>, with: &Watched, without: Option<&Watched>) -> Vec<Witness> {
    let read = || {
        let (idle, load) = (idle?, with.mean_power()?);
        let control = without.map(Watched::mean_power).transpose()?;
        let witness = |device, watts: fn(&Power) -> f64| Witness::Energy {
            device,
            idle_watts: watts(&idle),
            control_watts: control.as_ref().map(watts),
            load_watts: watts(&load),
        };
        Ok(vec![
            witness(Device::NeuralEngine, |power| power.neural_engine),
            witness(Device::Gpu, |power| power.gpu),
            witness(Device::Cpu, |power| power.cpu),
        ])
    };
    read().unwrap_or_else(|reason| vec![Witness::Absent { kind: "energy", reason }])
}

#[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn f64_from(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CompiledInfo;
    use crate::backend::tests::Scripted;
    use crate::executor::RunObservation;
    use crate::verify::evidence::Witness;

    const SECOND: Duration = Duration::from_secs(1);

    fn watched() -> (Compiled, Watched) {
        let product = MatMul::new(2, 2, 2).unwrap();
        let mut operands = Operands::random(&product).unwrap();
        let compiled = product.compile(&BackendId::CPU).unwrap();
        let watched = Watched::new(&compiled, &mut operands).unwrap();
        (compiled, watched)
    }

    #[test]
    fn a_load_is_what_was_asked_for() {
        let load = Load::default().window(3 * SECOND).rounds(7);
        assert_eq!(load, Load { window: 3 * SECOND, rounds: 7 });
    }

    #[test]
    fn what_was_seen_before_the_load_does_not_count() {
        let (compiled, mut watched) = watched();
        assert_eq!((watched.runs, watched.device_time, watched.observed), (0, Duration::ZERO, None));
        watched.runs_per_sample = 3;
        let mut operands = Operands::random(compiled.product()).unwrap();
        watched.sample(&mut operands).unwrap();
        watched.sample(&mut operands).unwrap();
        assert_eq!((watched.runs, watched.observed), (6, Some(Device::Unknown)));
        // Runs that are said to be of different devices are of none that is known.
        watched.observed = Some(Device::Gpu);
        watched.runs_per_sample = 1;
        watched.sample(&mut operands).unwrap();
        assert_eq!(watched.observed, Some(Device::Unknown));
        assert_eq!(watched.observed(&compiled), Device::Cpu);
        watched.observed = Some(Device::Gpu);
        assert_eq!(watched.observed(&compiled), Device::Gpu);
    }

    #[test]
    fn runs_on_one_device_are_of_it_and_their_times_add_up() {
        let seen = |observed, seconds| RunObservation {
            observed,
            device_time: Some(seconds * SECOND),
            ..RunObservation::default()
        };
        let observed = |observations: Vec<RunObservation>| {
            let scripted =
                Scripted { info: Some(CompiledInfo::default()), observations, ..Scripted::default() };
            let (backends, id) = scripted.registered();
            let product = MatMul::new(2, 2, 2).unwrap();
            let mut operands = Operands::random(&product).unwrap();
            let compiled = backends.compile(&id, &product, &CompileOptions::default()).unwrap();
            let mut watched = Watched::new(&compiled, &mut operands).unwrap();
            watched.runs_per_sample = 2;
            watched.sample(&mut operands).unwrap();
            (watched.observed, watched.device_time)
        };
        assert_eq!(observed(vec![seen(Device::Gpu, 3)]), (Some(Device::Gpu), 6 * SECOND));
        let both = vec![seen(Device::Gpu, 3), seen(Device::NeuralEngine, 1)];
        assert_eq!(observed(both), (Some(Device::Unknown), 4 * SECOND));
    }

    #[test]
    fn without_the_neural_engine_there_is_no_control() {
        let product = MatMul::new(2, 2, 2).unwrap();
        let load = Load::default().window(Duration::ZERO).rounds(0);
        let options = CompileOptions::default();
        let receipt = verify(&Backends::new(), &BackendId::CPU, &product, &options, &load).unwrap();
        let reason = receipt.witnesses.iter().find_map(|witness| match witness {
            Witness::Absent { kind: "candidate-time", reason } => Some(reason.as_str()),
            _ => None,
        });
        assert_eq!(reason, Some("the Neural Engine was not requested"));
    }

    #[test]
    fn a_load_lasts_as_long_as_its_window() {
        let (compiled, mut watched) = watched();
        let mut operands = Operands::random(compiled.product()).unwrap();
        let window = Duration::from_millis(20);
        watched.run_for(window, false, &mut operands).unwrap();
        assert!(watched.wall >= window && !watched.samples.is_empty() && watched.power.is_empty());
        assert!(watched.cpu.unwrap() > Duration::ZERO);
        watched.run_for(Duration::ZERO, true, &mut operands).unwrap();
        assert_eq!(watched.power.len(), 1);
    }

    #[test]
    fn times_of_a_device_are_those_of_a_run() {
        let ((_, mut with), (_, mut control)) = (watched(), watched());
        assert!(matches!(with.device_time(None), Witness::Absent { kind: "device-time", .. }));
        (with.device_time, with.wall, with.runs) = (6 * SECOND, 8 * SECOND, 2);
        let time = |with: &Watched, control: Option<&Watched>| match with.device_time(control) {
            Witness::DeviceTime { device, control, wall } => (device, control, wall),
            other => panic!("{other}"),
        };
        assert_eq!(time(&with, None), (3 * SECOND, None, 4 * SECOND));
        assert_eq!(time(&with, Some(&control)), (3 * SECOND, None, 4 * SECOND));
        (control.device_time, control.runs) = (10 * SECOND, 5);
        assert_eq!(time(&with, Some(&control)), (3 * SECOND, Some(2 * SECOND), 4 * SECOND));
    }

    #[test]
    fn power_is_the_mean_of_its_readings() {
        let (_, mut with) = watched();
        let power = |cpu: f64| Ok(Power { cpu, gpu: 10.0 * cpu, neural_engine: 100.0 * cpu });
        with.power = vec![power(1.0), power(2.0), power(6.0)];
        let witnesses = energy(power(0.5), &with, None);
        let watts: Vec<_> = witnesses
            .iter()
            .map(|witness| match witness {
                Witness::Energy { device, idle_watts, control_watts: None, load_watts } => {
                    (*device, *idle_watts, *load_watts)
                }
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(
            watts,
            [(Device::NeuralEngine, 50.0, 300.0), (Device::Gpu, 5.0, 30.0), (Device::Cpu, 0.5, 3.0)]
        );
        with.power.push(Err("unreadable".into()));
        let witnesses = energy(power(0.5), &with, None);
        assert!(
            matches!(&witnesses[..], [Witness::Absent { kind: "energy", reason }] if reason == "unreadable")
        );
    }

    #[test]
    fn quartiles_of_samples_in_any_order() {
        let (_, mut with) = watched();
        with.samples = [7, 1, 5, 3, 8, 2, 6, 4].map(Duration::from_secs).to_vec();
        let Quartiles { lower, median, upper } = with.quartiles();
        assert_eq!([lower, median, upper].map(|time| time.as_secs()), [3, 5, 7]);
    }

    #[test]
    fn operands_are_as_widely_spread_as_the_project_s_first_ones() {
        let mut operands = Operands::random(&MatMul::new(1, 1000, 1).unwrap()).unwrap();
        let (inputs, _) = operands.parts().unwrap();
        let b = inputs.b_view().unwrap();
        let variance = (0..1000).map(|col| b.get(0, 0, col).unwrap().powi(2)).sum::<f64>() / 1000.0;
        assert!((0.015..0.025).contains(&variance.sqrt()), "{variance}");
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn counters_of_another_system_are_absent() {
        assert!(idle_power(Duration::ZERO).is_err() && meter::power(Duration::ZERO).is_err());
    }
}
