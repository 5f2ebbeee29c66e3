//! The verdict on every backend, and the choice among them.

use std::fmt::{self, Write as _};

use super::neural_engine::{Obstacle, why_not_neural_engine};
use super::predictor::{Predictor, Question};
use super::rule;
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::backend::{Backend, BackendId};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};

/// What [`crate::Backends::explain`] says of a product.
///
/// ```
/// use ane_matmul::{CompileOptions, MatMul, explain};
///
/// let explanation = explain(&MatMul::new(32, 3072, 768)?, &CompileOptions::default());
/// for obstacle in &explanation.neural_engine {
///     println!("not on the Neural Engine: {obstacle}");
/// }
/// let (backend, why) = explanation.choice.expect("the CPU runs everything in f32");
/// println!("{backend}: {why}");
/// assert!(explanation.candidates.iter().any(|candidate| candidate.backend == backend));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The product.
    pub product: MatMul,
    /// The runs that the choice is for; `None` for so many that compiling does not count.
    pub expected_runs: Option<u64>,
    /// Every known backend, in the order of the registry.
    pub candidates: Vec<Candidate>,
    /// The backend that [`BackendId::AUTO`] stands for, and why; `None` when none runs the product.
    pub choice: Option<(BackendId, Basis)>,
    /// Whether there is a profile of this machine.
    pub profile: ProfileState,
    /// What keeps the product off the Neural Engine.
    pub neural_engine: Vec<Obstacle>,
}

/// One backend, and the verdict on it.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Device, MatMul, RefusalReason, Verdict, explain};
///
/// let on_gpu = CompileOptions::default().device(Device::Gpu);
/// let candidates = explain(&MatMul::new(2, 4, 3)?, &on_gpu).candidates;
/// let cpu = candidates.iter().find(|candidate| candidate.backend == BackendId::CPU).expect("always here");
/// assert!(matches!(&cpu.verdict, Verdict::Refused(refusal) if refusal.reason == RefusalReason::Device));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// The backend.
    pub backend: BackendId,
    /// What is known of it with this product.
    pub verdict: Verdict,
}

/// What is known of a backend with a product.
///
/// ```
/// use ane_matmul::{CompileOptions, MatMul, Verdict, explain};
///
/// let candidates = explain(&MatMul::new(2, 4, 3)?, &CompileOptions::default()).candidates;
/// let runs = |verdict: &Verdict| matches!(verdict, Verdict::Predicted(_) | Verdict::Unmeasured(_));
/// // The others are refused or unavailable, and the verdict has the reason.
/// assert!(candidates.iter().any(|candidate| runs(&candidate.verdict)));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It can run the product, in about this time.
    Predicted(Prediction),
    /// It can run the product; why nothing is known of the time.
    Unmeasured(String),
    /// It does not run the product, or may not.
    Refused(Refusal),
    /// It is not here, and why.
    Unavailable(String),
}

/// Predicted times.
///
/// ```
/// # use ane_matmul::{BackendId, Backends, Device, ElementTypes, MachineKey, Profile, Sample, Series};
/// use ane_matmul::{CompileOptions, MatMul, Threads, Verdict};
///
/// # let (mut backends, mut profile) = (Backends::new(), Profile::new(MachineKey::here()));
/// # let cpu = backends.info(&BackendId::CPU)?.description;
/// # let mut series = Series::new(BackendId::CPU, cpu, ElementTypes::F32, Device::Unknown, 1);
/// # series.samples.push(Sample::new(&MatMul::new(64, 64, 64)?, 2e6, 5e3));
/// # profile.add_series(series)?;
/// # backends.set_profile(Some(profile)); // the CPU comes first
/// let options = CompileOptions::default().threads(Threads::ONE).expected_runs(10);
/// let explanation = backends.explain(&MatMul::new(60, 60, 60)?, &options); // with a profile
/// let Verdict::Predicted(times) = &explanation.candidates[0].verdict else { panic!("{explanation:?}") };
/// assert_eq!(times.amortised_ns, times.run_ns + times.compile_ns / 10.0);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Of compiling and opening an executor, and what the first run takes longer than others.
    pub compile_ns: f64,
    /// Of one run.
    pub run_ns: f64,
    /// Of one run with its share of compiling, over the runs expected: what the choice goes by.
    pub amortised_ns: f64,
    /// The CPU threads that the backend would use.
    pub threads: usize,
}

/// Whether there is a profile of this machine.
///
/// ```
/// use ane_matmul::{Backends, CompileOptions, MatMul, ProfileState};
///
/// let mut backends = Backends::new();
/// backends.set_profile(None); // and not the one that this machine may have in a file
/// let explanation = backends.explain(&MatMul::new(2, 4, 3)?, &CompileOptions::default());
/// assert_eq!(explanation.profile, ProfileState::Absent);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileState {
    /// There is.
    Used,
    /// There is none.
    Absent,
    /// There is one that cannot be used, and why.
    Ignored(String),
}

/// Why a backend was chosen.
///
/// ```
/// use ane_matmul::{BackendId, Basis, MatMul};
///
/// let product = MatMul::new(2, 4, 3)?;
/// let report = product.compile(&BackendId::AUTO)?.report();
/// println!("{}, {}", report.backend, report.chosen_by);
/// assert_ne!(report.chosen_by, Basis::Named);
/// assert_eq!(product.compile(&BackendId::CPU)?.report().chosen_by, Basis::Named);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// The caller named it.
    Named,
    /// No other runs the product.
    OnlyOne,
    /// It is the fastest by the profile of this machine.
    Profile {
        /// The predicted time of one run with its share of compiling, in nanoseconds.
        predicted_ns: u64,
        /// The next best, and its time.
        runner_up: Option<(BackendId, u64)>,
    },
    /// By published figures, without measurements of this machine: an accelerator pays, or does not.
    DefaultRule {
        /// Whether the rule says that an accelerator pays.
        accelerator_pays: bool,
    },
    /// Backends that were preferred failed to compile the product.
    Fallback {
        /// Each that failed, and how.
        failed: Vec<(BackendId, String)>,
    },
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named => write!(f, "named by the caller"),
            Self::OnlyOne => write!(f, "the only one that runs the product"),
            Self::Profile { predicted_ns, runner_up: None } => {
                write!(f, "the only one in the profile of this machine: {predicted_ns} ns for a run")
            }
            Self::Profile { predicted_ns, runner_up: Some((id, ns)) } => {
                write!(
                    f,
                    "fastest by the profile of this machine: {predicted_ns} ns for a run, then {id} with {ns} ns"
                )
            }
            Self::DefaultRule { accelerator_pays: true } => {
                write!(
                    f,
                    "without a profile: products of 1024^3 and more go to an accelerator where the runs expected earn the compilation"
                )
            }
            Self::DefaultRule { accelerator_pays: false } => {
                write!(
                    f,
                    "without a profile: products below 1024^3, and those of too few runs to earn the compilation, stay on the CPU"
                )
            }
            Self::Fallback { failed } => {
                write!(f, "what was preferred failed to compile:")?;
                failed.iter().try_for_each(|(id, error)| write!(f, " {id}: {error}"))
            }
        }
    }
}

/// A backend that can run the product, the best first.
pub(crate) type Ranked = Vec<(BackendId, Basis)>;

/// A known backend: here, or the reason why it is not.
pub(crate) type Known<'a> = (&'a BackendId, Result<&'a dyn Backend, &'a str>);

/// Judges every backend; also returns those that can run the product, the best first.
pub(crate) fn explain<'a>(
    known: impl Iterator<Item = Known<'a>>,
    predictor: Option<&Predictor>,
    product: &MatMul,
    options: &CompileOptions,
) -> (Explanation, Ranked) {
    let mut predicted: Vec<(BackendId, f64)> = Vec::new();
    let mut unmeasured: Vec<(BackendId, Device)> = Vec::new();
    let candidates: Vec<Candidate> = known
        .map(|(id, state)| {
            let verdict = match state {
                Ok(backend) => judge(id, backend, predictor, product, options),
                Err(reason) => Verdict::Unavailable(reason.to_owned()),
            };
            match (&verdict, state) {
                (Verdict::Predicted(prediction), _) => predicted.push((id.clone(), prediction.amortised_ns)),
                (Verdict::Unmeasured(_), Ok(backend)) => unmeasured.push((id.clone(), backend.device().0)),
                _ => {}
            }
            Candidate { backend: id.clone(), verdict }
        })
        .collect();
    predicted.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    rule::rank(&mut unmeasured, product.flops(), options.expected_runs);
    let ranked = rank(&predicted, unmeasured, product, options);
    let profile = match predictor {
        None => ProfileState::Absent,
        Some(predictor) => match predictor.problem() {
            Some(problem) => ProfileState::Ignored(problem.to_owned()),
            None if predictor.profile().series().is_empty() => ProfileState::Absent,
            None => ProfileState::Used,
        },
    };
    let explanation = Explanation {
        product: product.clone(),
        expected_runs: options.expected_runs,
        candidates,
        choice: ranked.first().cloned(),
        profile,
        neural_engine: why_not_neural_engine(product),
    };
    (explanation, ranked)
}

/// What is measured goes before what is not.
fn rank(
    predicted: &[(BackendId, f64)],
    unmeasured: Vec<(BackendId, Device)>,
    product: &MatMul,
    options: &CompileOptions,
) -> Ranked {
    let alone = predicted.len() + unmeasured.len() == 1;
    let rule = Basis::DefaultRule {
        accelerator_pays: rule::accelerator_pays(product.flops(), options.expected_runs),
    };
    let of_profile = predicted.iter().enumerate().map(|(index, (id, ns))| {
        let runner_up = predicted.get(index + 1).map(|(id, ns)| (id.clone(), whole(*ns)));
        (id.clone(), Basis::Profile { predicted_ns: whole(*ns), runner_up })
    });
    of_profile
        .chain(unmeasured.into_iter().map(|(id, _)| (id, rule.clone())))
        .map(|(id, basis)| (id, if alone { Basis::OnlyOne } else { basis }))
        .collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a saturating cast of a time")]
fn whole(ns: f64) -> u64 {
    ns.round() as u64
}

/// What keeps a backend from being chosen, whatever is to be computed.
pub(crate) fn may_be_chosen(backend: &dyn Backend, options: &CompileOptions) -> Result<(), Refusal> {
    if backend.is_test_double() {
        let message = "a test double of hardware is never chosen; name it";
        return Err(Refusal::new(RefusalReason::Other, message));
    }
    let threads = backend.threads(options);
    // A limit that was asked for is kept.
    if !matches!(options.threads, Threads::Auto) && threads > options.threads.number() {
        let asked = options.threads.number();
        return Err(Refusal::new(
            RefusalReason::Threads,
            format!("uses {threads} threads, {asked} were asked for; name it to use it nevertheless"),
        ));
    }
    Ok(())
}

fn judge(
    id: &BackendId,
    backend: &dyn Backend,
    predictor: Option<&Predictor>,
    product: &MatMul,
    options: &CompileOptions,
) -> Verdict {
    if let Err(refusal) = crate::backend::supports(id, backend, product, options) {
        return Verdict::Refused(refusal);
    }
    if let Some(entry) = predictor.and_then(|predictor| predictor.profile().quarantined(id, product)) {
        return Verdict::Refused(crate::backend::in_quarantine(entry));
    }
    if let Err(refusal) = may_be_chosen(backend, options) {
        return Verdict::Refused(refusal);
    }
    let threads = backend.threads(options);
    let Some(predictor) = predictor else { return Verdict::Unmeasured("there is no profile".into()) };
    let description = backend.describe();
    let question = Question { backend: id, description: &description, device: options.device, threads };
    match predictor.predict(&question, product) {
        Ok(times) => {
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            let share = options.expected_runs.map_or(0.0, |runs| times.compile_ns / runs.max(1) as f64);
            Verdict::Predicted(Prediction {
                compile_ns: times.compile_ns,
                run_ns: times.run_ns,
                amortised_ns: times.run_ns + share,
                threads,
            })
        }
        Err(reason) => Verdict::Unmeasured(reason),
    }
}

/// The refusal of `auto`, when no backend runs a product.
pub(crate) fn refusal_of_all(explanation: &Explanation) -> Refusal {
    let mut reason = None;
    let mut message = String::from("no backend runs this product");
    for candidate in &explanation.candidates {
        if let Verdict::Refused(refusal) = &candidate.verdict {
            reason.get_or_insert(refusal.reason);
            // Writing to a string cannot fail.
            let _ = write!(message, "; {}: {}", candidate.backend, refusal.message);
        }
    }
    Refusal::new(reason.unwrap_or(RefusalReason::NotBuilt), message)
}
