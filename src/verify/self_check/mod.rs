//! Verifying results while a program runs, and what to do when one is wrong.

mod checked;
mod checker;
mod freivalds;
mod linear;
#[allow(unsafe_code, reason = "kernels")]
mod multi_vector_gemv;
mod quantized;
mod reals;
mod rows;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU32;

use crate::backend::BackendId;
use crate::error::{Error, Result};

pub(crate) use checked::CheckedProduct;
pub use checker::ResultChecker;
pub(crate) use checker::{Prepared, seed};

/// Whether and how results are verified: a part of [`crate::CompileOptions`].
///
/// Products without an activation or an 8-bit output are verified by Freivalds' method with
/// [`SelfCheck::failure_probability`], the others by recomputing random rows in float64
/// ([`SelfCheck::wrong_share`]). [`ResultChecker`] says what exactly is found. Of graphs random steps, or parts of the
/// outputs, are recomputed: as many as rows.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Inputs, MatMul, OnMismatch, SelfCheck, Tensor};
///
/// let options = CompileOptions::default().self_check(SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu));
/// let compiled = MatMul::new(8, 8, 8)?.compile_with(&BackendId::CPU, &options)?;
/// let mut executor = compiled.executor()?;
/// let (x, mut y) = (Tensor::random_normal_f32(8, 8, 1.0, 1)?, Tensor::<f32>::zeros(8, 8)?);
/// executor.run(&Inputs::new(&x).b(&x), &mut y)?;
/// assert_eq!((executor.checks().checked, executor.checks().mismatches), (1, 0));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SelfCheck {
    /// Which runs are verified.
    pub schedule: CheckSchedule,
    /// What happens when a result is wrong.
    pub on_mismatch: OnMismatch,
    /// How likely a check may miss what it must find.
    pub failure_probability: f64,
    /// The share of the rows that a fault must spoil for a check of random rows to be held to
    /// [`SelfCheck::failure_probability`]. Freivalds' method sees all rows and does not use it.
    pub wrong_share: f64,
}

/// [`SelfCheck`] as a part of a key.
pub(crate) type SelfCheckKey = (CheckSchedule, OnMismatch, [u64; 2]);

/// Which runs of an executor are verified.
///
/// After a wrong result every run of that executor is.
///
/// ```
/// use ane_matmul::{BackendId, CheckSchedule, CompileOptions, Inputs, MatMul, SelfCheck};
///
/// let check = SelfCheck::first_run();
/// assert_eq!(check.schedule, CheckSchedule::FirstRun);
/// let options = CompileOptions::default().self_check(check);
/// let mut executor = MatMul::new(1, 1, 1)?.compile_with(&BackendId::CPU, &options)?.executor()?;
/// for _ in 0..10 {
///     executor.run(Inputs::new(&[2f32]).b(&[3f32]), &mut [0f32])?;
/// }
/// assert_eq!(executor.checks().checked, 1);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CheckSchedule {
    /// None.
    #[default]
    Off,
    /// The first run of each executor.
    FirstRun,
    /// The first of every so many runs.
    OneIn(NonZeroU32),
    /// All of them.
    EveryRun,
}

impl CheckSchedule {
    /// Whether the run after `before` others is verified.
    pub(crate) fn is_due(self, before: u64) -> bool {
        match self {
            Self::Off => false,
            Self::FirstRun => before == 0,
            Self::OneIn(count) => before.is_multiple_of(count.get().into()),
            Self::EveryRun => true,
        }
    }
}

/// What happens when a result is wrong.
///
/// ```
/// use ane_matmul::{OnMismatch, SelfCheck};
///
/// assert_eq!(SelfCheck::every_run().on_mismatch, OnMismatch::Error);
/// let check = SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu);
/// assert_eq!(check.on_mismatch, OnMismatch::RerunOnCpu);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnMismatch {
    /// The run returns [`Error::WrongResult`].
    #[default]
    Error,
    /// The run is done again on the CPU and succeeds; [`CheckCounts::reruns`] counts it, and
    /// [`crate::Executor::last_mismatch`] has what was wrong.
    ///
    /// It is done by the built-in CPU engine, whose result is verified too. Where that engine
    /// refuses the product, or is what was wrong, it is done in float64, which takes long.
    RerunOnCpu,
}

impl SelfCheck {
    /// [`SelfCheck::failure_probability`] where nothing else is said: what 2 vectors guarantee
    /// even against an adversary.
    pub const FAILURE_PROBABILITY: f64 = 0.25;

    const fn with(schedule: CheckSchedule) -> Self {
        Self {
            schedule,
            on_mismatch: OnMismatch::Error,
            failure_probability: Self::FAILURE_PROBABILITY,
            wrong_share: 0.5,
        }
    }

    /// No run is verified: the default.
    #[must_use]
    pub const fn off() -> Self {
        Self::with(CheckSchedule::Off)
    }

    /// The first run of each executor is verified.
    #[must_use]
    pub const fn first_run() -> Self {
        Self::with(CheckSchedule::FirstRun)
    }

    /// The first of every `runs` runs is verified.
    #[must_use]
    pub const fn one_in(runs: NonZeroU32) -> Self {
        Self::with(CheckSchedule::OneIn(runs))
    }

    /// Every run is verified.
    #[must_use]
    pub const fn every_run() -> Self {
        Self::with(CheckSchedule::EveryRun)
    }

    /// Sets what happens when a result is wrong.
    #[must_use]
    pub const fn on_mismatch(mut self, on_mismatch: OnMismatch) -> Self {
        self.on_mismatch = on_mismatch;
        self
    }

    /// Sets how likely a check may miss what it must find: more than 0 and less than 1.
    #[must_use]
    pub const fn failure_probability(mut self, probability: f64) -> Self {
        self.failure_probability = probability;
        self
    }

    /// Sets the share of the rows that a fault must spoil for a check of random rows to be held to
    /// the failure probability: more than 0, at most 1.
    #[must_use]
    pub const fn wrong_share(mut self, share: f64) -> Self {
        self.wrong_share = share;
        self
    }

    /// What is equal where the check is.
    pub(crate) fn key(&self) -> SelfCheckKey {
        let bits = [self.failure_probability, self.wrong_share].map(f64::to_bits);
        (self.schedule, self.on_mismatch, bits)
    }

    /// An error for figures out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        let problem = |problem: String, help| Err(Error::Description { problem, help });
        if !(self.failure_probability > 0.0 && self.failure_probability < 1.0) {
            return problem(
                format!("a self-check with a failure probability of {}", self.failure_probability),
                "give one between 0 and 1, such as 1e-3",
            );
        }
        if !(self.wrong_share > 0.0 && self.wrong_share <= 1.0) {
            return problem(
                format!("a self-check for a share of {} of the rows", self.wrong_share),
                "give one above 0 and at most 1, such as 0.5",
            );
        }
        Ok(())
    }

    /// The vectors that Freivalds' method needs: each halves the probability.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "f64's exponents are far below usize's range"
    )]
    fn vectors(&self) -> usize {
        (-self.failure_probability.log2()).ceil().max(1.0) as usize
    }

    /// The rows that must be drawn: s of them all miss a share f with probability (1 - f)^s.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is meant")]
    pub(crate) fn rows(&self) -> usize {
        if self.wrong_share >= 1.0 {
            return 1;
        }
        (self.failure_probability.ln() / (-self.wrong_share).ln_1p()).ceil().max(1.0) as usize
    }
}

impl Default for SelfCheck {
    fn default() -> Self {
        Self::off()
    }
}

/// What the self-checks of an executor did so far.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Inputs, MatMul, SelfCheck};
///
/// let options = CompileOptions::default().self_check(SelfCheck::every_run());
/// let compiled = MatMul::new(1, 1, 1)?.compile_with(&BackendId::CPU, &options)?;
/// compiled.run_to_tensor(Inputs::new(&[2f32]).b(&[3f32]))?;
/// let counts = compiled.checks(); // executors and pools count their own
/// assert_eq!((counts.checked, counts.mismatches, counts.reruns), (1, 0, 0));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CheckCounts {
    /// Runs that were verified.
    pub checked: u64,
    /// Results that were wrong.
    pub mismatches: u64,
    /// Runs that were done again on the CPU.
    pub reruns: u64,
}

/// An element of a result that is not within its error bound.
///
/// ```
/// use ane_matmul::{Inputs, MatMul, ResultChecker, SelfCheck};
///
/// let mut checker = ResultChecker::new(&MatMul::new(1, 2, 1)?, &SelfCheck::every_run())?;
/// let found = checker.check(&Inputs::new(&[2f32]).b(&[3f32, 4.0]), &[6f32, 9.0])?;
/// let wrong = found.expect("8 is right");
/// assert_eq!((wrong.row, wrong.col, wrong.expected, wrong.got), (0, 1, 8.0, 9.0));
/// assert!(wrong.ratio() > 1.0);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct WrongElement {
    /// The item of the batch.
    pub item: usize,
    /// The row.
    pub row: usize,
    /// The column; the worst of its row.
    pub col: usize,
    /// The float64 value.
    pub expected: f64,
    /// What the result holds.
    pub got: f64,
    /// How far from the float64 value it may lie ([`accuracy`](crate::verify::accuracy)); 0 where two runs of a graph must
    /// give the same bits.
    pub bound: f64,
}

impl WrongElement {
    /// The error as a multiple of the bound; infinite where NaN or infinity is wrong, or missing.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let ratio = (self.got - self.expected).abs() / self.bound;
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }
}

impl fmt::Display for WrongElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item, row, col, expected, got, bound } = self;
        write!(
            f,
            "row {row}, column {col} of item {item} is {got:e} instead of {expected:e} +- {bound:.2e} ({:.2e} times the bound)",
            self.ratio()
        )
    }
}

/// A wrong result: what, where, by how much, and of which backend.
///
/// ```
/// use ane_matmul::{BackendId, CompileOptions, Error, Inputs, MatMul, SelfCheck};
///
/// let options = CompileOptions::default().self_check(SelfCheck::every_run());
/// let mut executor = MatMul::new(1, 1, 1)?.compile_with(&BackendId::CPU, &options)?.executor()?;
/// match executor.run(Inputs::new(&[2f32]).b(&[3f32]), &mut [0f32]) {
///     Err(Error::WrongResult(mismatch)) => eprintln!("{}: {}", mismatch.backend, mismatch.element),
///     other => other?,
/// }
/// assert_eq!(executor.last_mismatch(), None);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The backend that computed it.
    pub backend: BackendId,
    /// The product, in words; of a graph the node or the output.
    pub product: String,
    /// The worst element of the row that was recomputed; of a graph one that is wrong, where the last two dimensions are
    /// rows and columns.
    pub element: WrongElement,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend `{}` computed {} wrong: {}", self.backend, self.product, self.element)
    }
}
