//! The choice among simulated backends, whose costs are known: scored without a clock.

use approx::assert_abs_diff_eq;

use super::predictor::{Predictor, Question};
use super::*;
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::backend::{Backend, BackendId, CompiledProduct};
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::{CompileOptions, Device, Threads};
use crate::dispatch::calibrate::grid;
use crate::dispatch::machine::MachineKey;
use crate::dispatch::profile::{Profile, Quarantine, Sample, Series};
use crate::error::{Error, Result};
use crate::operands::weights::Weights;
use crate::random::Random;

/// Compile time and run time of a product, in nanoseconds.
type Cost = fn(&MatMul) -> (f64, f64);

struct Simulated {
    id: BackendId,
    cost: Cost,
    refusal: Option<RefusalReason>,
    threads: Option<usize>,
    test_double: bool,
}

impl Simulated {
    fn new(name: &'static str, cost: Cost) -> Self {
        Self { id: BackendId::new(name), cost, refusal: None, threads: None, test_double: false }
    }
}

impl Backend for Simulated {
    fn describe(&self) -> String {
        "simulated".into()
    }

    fn device(&self) -> (Device, String) {
        (Device::Cpu, String::new())
    }

    fn is_test_double(&self) -> bool {
        self.test_double
    }

    fn supports(&self, _: &MatMul, _: &CompileOptions) -> Result<(), Refusal> {
        self.refusal.map_or(Ok(()), |reason| Err(Refusal::new(reason, "simulated")))
    }

    fn threads(&self, options: &CompileOptions) -> usize {
        self.threads.unwrap_or_else(|| options.threads.number())
    }

    fn compile(
        &self,
        _: &MatMul,
        _: Option<&Weights>,
        _: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        Err(Error::SizeOverflow { what: "a simulated product" })
    }
}

fn bytes(product: &MatMul) -> (f64, f64) {
    let operands = [product.a().span(), product.c().span()];
    let b = product.b().span() as f64 * 4.0;
    let all = operands.iter().sum::<usize>() as f64 * 4.0 + b;
    (if product.constant_b() { all - b } else { all }, all)
}

/// A CPU of 100 GFLOP/s and 20 GB/s, which packs a constant B at 5 GB/s.
fn cpu(product: &MatMul) -> (f64, f64) {
    let (moving, all) = bytes(product);
    (500.0 + (all - moving) / 5.0, 100.0 + (product.flops() / 100.0).max(all / 20.0))
}

/// A GPU of 5 TFLOP/s and 200 GB/s, reached through copies at 15 GB/s, that takes 200 ms to compile.
fn gpu(product: &MatMul) -> (f64, f64) {
    let (moving, all) = bytes(product);
    (200e6, 150_000.0 + moving / 15.0 + (product.flops() / 5000.0).max(all / 200.0))
}

/// A fixed tile of 64 x 64, as fast as 20 TFLOP/s where it fits and many times slower where it does not.
fn tiles(product: &MatMul) -> (f64, f64) {
    let (_, all) = bytes(product);
    let padded = |dimension: usize| dimension.next_multiple_of(64) as f64;
    let work = product.batch() as f64 * padded(product.m()) * padded(product.n()) * product.k() as f64;
    (600e6, 100_000.0 + (2.0 * work / 20_000.0).max(all / 100.0))
}

fn engines() -> Vec<Simulated> {
    vec![Simulated::new("cpu", cpu), Simulated::new("gpu", gpu), Simulated::new("tiles", tiles)]
}

/// A profile as `calibrate --quick` would measure it, every time off by up to 3 percent.
fn profile(engines: &[Simulated], threads: usize) -> Profile {
    let mut random = Random::new(7);
    let mut profile = Profile::new(MachineKey::here());
    for engine in engines {
        let mut series =
            Series::new(engine.id.clone(), engine.describe(), ElementTypes::F32, Device::Unknown, threads);
        for shape in grid::shapes(grid::QUICK) {
            let product = shape.product(ElementTypes::F32).unwrap();
            let (compile_ns, run_ns) = (engine.cost)(&product);
            let mut noise = || 0.97 + 0.06 * random.uniform();
            // An engine may leave some of it to the first run.
            let mut sample = Sample::new(&product, 0.7 * compile_ns * noise(), run_ns * noise());
            sample.first_run_ns = 0.3 * compile_ns;
            series.samples.push(sample);
        }
        profile.add_series(series).unwrap();
    }
    profile
}

fn explained(
    engines: &[Simulated],
    predictor: Option<&Predictor>,
    product: &MatMul,
    options: &CompileOptions,
) -> Explanation {
    let known = engines.iter().map(|engine| (&engine.id, Ok(engine as &dyn Backend)));
    explain(known, predictor, product, options).0
}

fn chosen(
    engines: &[Simulated],
    predictor: Option<&Predictor>,
    product: &MatMul,
    options: &CompileOptions,
) -> String {
    explained(engines, predictor, product, options).choice.map_or("none".into(), |(id, _)| id.to_string())
}

fn verdict(explanation: &Explanation, name: &str) -> Verdict {
    let of_name = |candidate: &&Candidate| candidate.backend.as_str() == name;
    explanation.candidates.iter().find(of_name).unwrap().verdict.clone()
}

#[test]
fn regret_over_simulated_backends() {
    let engines = engines();
    let predictor = Predictor::new(profile(&engines, 1));
    for runs in [None, Some(1), Some(100), Some(10_000)] {
        let options = CompileOptions { expected_runs: runs, ..CompileOptions::default() };
        let total = |engine: &Simulated, product: &MatMul| {
            let (compile_ns, run_ns) = (engine.cost)(product);
            run_ns + runs.map_or(0.0, |runs| compile_ns / runs as f64)
        };
        let mut random = Random::new(11);
        let (mut worst, mut sum, mut count) = (1f64, 0.0, 0);
        let mut wins = [0; 3];
        while count < 300 {
            let mut dimension = || {
                let octave = random.below(12);
                1 + random.below(2 << octave)
            };
            let product = MatMul::builder(dimension(), dimension(), dimension())
                .constant(count % 2 == 0)
                .batch(1 + count % 3)
                .build()
                .unwrap();
            let times: Vec<f64> = engines.iter().map(|engine| total(engine, &product)).collect();
            let best = times.iter().copied().fold(f64::INFINITY, f64::min);
            let name = chosen(&engines, Some(&predictor), &product, &options);
            let index = engines.iter().position(|engine| engine.id.as_str() == name).unwrap();
            wins[index] += 1;
            worst = worst.max(times[index] / best);
            sum += (times[index] / best).ln();
            count += 1;
        }
        let mean = (sum / f64::from(u32::try_from(count).unwrap())).exp();
        println!("runs {runs:?}: regret {mean:.4}, worst {worst:.3}; chosen {wins:?}");
        assert!(mean <= 1.05 && worst <= 1.5, "runs {runs:?}: regret {mean}, worst {worst}");
        assert!(
            wins[0] > 0 && (runs == Some(1) || wins[1] + wins[2] > 0),
            "one backend always won: {wins:?}"
        );
    }
}

#[test]
fn a_product_to_be_run_once_does_not_pay_for_compiling() {
    let engines = engines();
    let predictor = Predictor::new(profile(&engines, 1));
    let product = MatMul::new(1024, 1024, 1024).unwrap();
    let of_runs = |runs| {
        let options = CompileOptions { expected_runs: runs, ..CompileOptions::default() };
        chosen(&engines, Some(&predictor), &product, &options)
    };
    assert_eq!([of_runs(Some(1)), of_runs(Some(100_000)), of_runs(None)], ["cpu", "tiles", "tiles"]);
    // 21 ms on the CPU against 1.4 ms on the GPU and 200 ms once.
    assert_eq!([of_runs(Some(5)), of_runs(Some(20))], ["cpu", "gpu"]);
}

#[test]
fn verdicts_are_typed() {
    let mut engines = engines();
    let mut profile = profile(&engines, 1);
    let product = MatMul::new(512, 512, 512).unwrap();
    let options = CompileOptions::default().threads(Threads::ONE);
    profile.add_quarantine(Quarantine::here(BackendId::new("tiles"), Some(&product), "gave a wrong result"));
    engines.push(Simulated { refusal: Some(RefusalReason::ElementType), ..Simulated::new("types", cpu) });
    engines.push(Simulated { threads: Some(2), ..Simulated::new("greedy", cpu) });
    engines.push(Simulated { test_double: true, ..Simulated::new("double", cpu) });
    engines.push(Simulated::new("new", cpu));
    let predictor = Predictor::new(profile);
    let explanation = explained(&engines, Some(&predictor), &product, &options);
    let reason = |name| match verdict(&explanation, name) {
        Verdict::Refused(refusal) => refusal.reason,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(reason("tiles"), RefusalReason::Quarantined);
    assert_eq!(reason("types"), RefusalReason::ElementType);
    assert_eq!(reason("greedy"), RefusalReason::Threads);
    assert_eq!(reason("double"), RefusalReason::Other);
    assert!(matches!(verdict(&explanation, "new"), Verdict::Unmeasured(_)));
    assert!(matches!(verdict(&explanation, "gpu"), Verdict::Predicted(_)));
    assert_eq!(explanation.profile, ProfileState::Used);
    let (id, basis) = explanation.choice.unwrap();
    assert_eq!(id.as_str(), "gpu");
    assert!(matches!(basis, Basis::Profile { runner_up: Some((id, _)), .. } if id.as_str() == "cpu"));
    // Other products of the quarantined backend are free.
    let other = MatMul::new(2048, 2048, 2048).unwrap();
    assert_eq!(chosen(&engines, Some(&predictor), &other, &options), "tiles");
}

#[test]
fn without_a_usable_profile_the_rule_applies() {
    let engines = engines();
    let product = MatMul::new(64, 64, 64).unwrap();
    let options = CompileOptions::default();
    let absent = explained(&engines, None, &product, &options);
    assert_eq!(absent.profile, ProfileState::Absent);
    assert!(
        matches!(absent.choice, Some((id, Basis::DefaultRule { accelerator_pays: false })) if id == BackendId::CPU)
    );
    let key = MachineKey { os_build: "another".into(), ..MachineKey::here() };
    let predictor = Predictor::new(Profile::new(key));
    let ignored = explained(&engines, Some(&predictor), &product, &options);
    assert!(matches!(ignored.profile, ProfileState::Ignored(problem) if problem.contains("OS build")));
    assert!(matches!(ignored.choice, Some((_, Basis::DefaultRule { .. }))));
    // Nothing was measured: a profile of quarantine alone.
    let predictor = Predictor::new(Profile::new(MachineKey::here()));
    assert_eq!(explained(&engines, Some(&predictor), &product, &options).profile, ProfileState::Absent);
    #[cfg(feature = "profile")]
    {
        let predictor = Predictor::unusable("damaged".into());
        let ignored = explained(&engines, Some(&predictor), &product, &options);
        assert_eq!(ignored.profile, ProfileState::Ignored("damaged".into()));
    }
}

#[test]
fn what_was_measured_goes_before_what_was_not_and_one_alone_needs_no_reason() {
    let engines = engines();
    let predictor = Predictor::new(profile(&engines[1..2], 1));
    let product = MatMul::new(64, 64, 64).unwrap();
    let options = CompileOptions::default().threads(Threads::ONE);
    let basis = |engines: &[Simulated], predictor| {
        explained(engines, predictor, &product, &options).choice.map(|(id, basis)| (id.to_string(), basis))
    };
    for predictor in [None, Some(&predictor)] {
        assert_eq!(basis(&engines[1..2], predictor), Some(("gpu".into(), Basis::OnlyOne)));
    }
    let Some((id, Basis::Profile { runner_up: None, .. })) = basis(&engines[..2], Some(&predictor)) else {
        panic!("the one that was measured")
    };
    assert_eq!(id, "gpu");
}

#[test]
fn a_series_of_another_version_or_type_is_not_used() {
    let engines = engines();
    let predictor = Predictor::new(profile(&engines, 1));
    let ask = |description: &str, device, types| {
        let product = MatMul::builder(64, 64, 64).types(types).build().unwrap();
        let question = Question { backend: &BackendId::CPU, description, device, threads: 1 };
        predictor.predict(&question, &product)
    };
    assert!(ask("simulated", Device::Unknown, ElementTypes::F32).is_ok());
    assert!(ask("simulated", Device::Cpu, ElementTypes::F32).is_ok());
    assert!(ask("newer", Device::Unknown, ElementTypes::F32).unwrap_err().contains("another version"));
    assert!(ask("simulated", Device::NeuralEngine, ElementTypes::F32).is_err());
    assert!(ask("simulated", Device::Unknown, ElementTypes::BF16).is_err());
}

#[test]
fn numbers_of_threads_are_interpolated() {
    let engines = [Simulated::new("cpu", cpu)];
    let mut both = profile(&engines, 2);
    let mut eight = both.series()[0].clone();
    eight.threads = 8;
    for sample in &mut eight.samples {
        sample.run_ns /= 4.0;
    }
    both.add_series(eight).unwrap();
    let predictor = Predictor::new(both);
    let product = MatMul::new(300, 300, 300).unwrap();
    let time = |threads| {
        let question =
            Question { backend: &BackendId::CPU, description: "simulated", device: Device::Unknown, threads };
        predictor.predict(&question, &product).unwrap().run_ns
    };
    for (threads, speedup) in [(1, 1.0), (2, 1.0), (4, 2.0), (8, 4.0), (16, 4.0)] {
        assert_abs_diff_eq!(time(1) / time(threads), speedup, epsilon = 1e-6);
    }
}

#[test]
fn extreme_products_have_finite_predictions() {
    let engines = engines();
    let predictor = Predictor::new(profile(&engines, 1));
    for (m, n, k) in [(0, 0, 0), (1, 1, 1), (1 << 27, 1, 1 << 27), (1 << 27, 1 << 27, 0), (1, 1, 1 << 50)] {
        let product = MatMul::new(m, n, k).unwrap();
        let explanation = explained(&engines, Some(&predictor), &product, &CompileOptions::default());
        for candidate in &explanation.candidates {
            let Verdict::Predicted(times) = candidate.verdict else { panic!("{candidate:?}") };
            assert!(times.run_ns.is_finite() && times.run_ns > 0.0, "{m} {n} {k}: {times:?}");
        }
    }
}

#[test]
fn hostile_measurements_do_not_break_the_fit() {
    let engines = engines();
    for (compile_ns, run_ns) in [(0.0, 1e-300), (9e17, 9e17), (0.0, 1.0)] {
        let mut series = Series::new(BackendId::CPU, "simulated", ElementTypes::F32, Device::Unknown, 1);
        let product = MatMul::new(usize::MAX >> 40, 1, 1 << 30).unwrap();
        series.samples = vec![Sample::new(&product, compile_ns, run_ns); 40];
        let mut profile = Profile::new(MachineKey::here());
        profile.add_series(series).unwrap();
        let predictor = Predictor::new(profile);
        let small = MatMul::new(3, 3, 3).unwrap();
        // Whatever is predicted, something is chosen.
        assert_eq!(chosen(&engines, Some(&predictor), &small, &CompileOptions::default()), "cpu");
    }
}
