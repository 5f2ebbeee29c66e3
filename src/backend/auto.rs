//! The backend `auto`: which of the registry's backends it stands for.

use std::sync::{Arc, OnceLock};

use super::{BUILT_IN, BackendId, BackendInfo, Backends};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::dispatch::profile::Profile;
use crate::dispatch::{self, Basis, Explanation, Predictor, Ranked};
use crate::error::{Error, Result};
use crate::executor::Compiled;
use crate::operands::weights::Weights;

/// The profile of a registry: given, or read when it is first needed.
#[derive(Clone, Default)]
pub(super) struct ProfileSlot(Arc<OnceLock<Option<Predictor>>>);

impl ProfileSlot {
    fn given(profile: Option<Profile>) -> Self {
        Self(Arc::new(OnceLock::from(profile.map(Predictor::new))))
    }

    fn get(&self) -> Option<&Predictor> {
        self.0.get_or_init(stored).as_ref()
    }
}

/// The profile of this machine on disk.
#[cfg(feature = "profile")]
fn stored() -> Option<Predictor> {
    let path = Profile::default_path().ok()?;
    let predictor = match Profile::load(path) {
        Ok(profile) => Predictor::new(profile),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => Predictor::unusable(error.to_string()),
    };
    if let Some(problem) = predictor.problem() {
        log::warn!("{problem}; it is ignored until `ane-matmul calibrate` makes a new one");
    }
    Some(predictor)
}

#[cfg(not(feature = "profile"))]
fn stored() -> Option<Predictor> {
    None
}

pub(super) fn info() -> BackendInfo {
    BackendInfo {
        description: "the fastest of the others for each product, by measurement".into(),
        device: Device::Unknown,
        device_name: String::new(),
        is_test_double: false,
        wrap_alignment_bytes: None,
        max_queue_depth: 0,
        copies_host_operands: false,
    }
}

impl Backends {
    /// Takes the profile that [`BackendId::AUTO`] chooses by, or none.
    ///
    /// Otherwise, and with the feature `profile`, the file at `Profile::default_path` is read when `auto`
    /// is first used, once. Measurements of another machine or build are ignored, with a warning in the
    /// log; quarantine of this chip and OS build counts in any case.
    pub fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile = ProfileSlot::given(profile);
        if let Some(problem) = self.profile.get().and_then(Predictor::problem) {
            log::warn!("{problem}; it is ignored");
        }
    }

    /// The profile in use.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.get().map(Predictor::profile)
    }

    /// What is known of every backend with this product, and which one [`BackendId::AUTO`] stands for.
    ///
    /// With a profile the choice is the least predicted time of a run, its share of compiling included when
    /// [`CompileOptions::expected_runs`] are given; without that number compiling does not count. Types
    /// and backends that were not measured are chosen only where nothing measured runs the product.
    ///
    /// Without a profile: below the work of 1024^3 the CPU (`accelerate`, `cpu`, `blas` in this order, then
    /// loaded shims whose device is the CPU), from there on what is off the CPU (`metal`, `mpsgraph`, then all
    /// other loaded shims, also those of an unknown device), if the runs expected earn the compilation: 200 ms
    /// against 736 us a run at 1024^3, more in proportion to the work (measured by this
    /// crate's predecessor, on an M4 Max). Shims follow in the order in which they were added; where no backend of the preferred
    /// side runs the product, the other side does.
    ///
    /// ```
    /// use ane_matmul::{BackendId, Backends, CompileOptions, MatMul};
    ///
    /// let mut backends = Backends::new();
    /// backends.set_profile(None);
    /// let explanation = backends.explain(&MatMul::new(32, 3072, 768)?, &CompileOptions::default());
    /// let (chosen, why) = explanation.choice.expect("the CPU runs everything in f32");
    /// println!("{chosen}: {why}");
    /// for candidate in &explanation.candidates {
    ///     println!("{}: {:?}", candidate.backend, candidate.verdict);
    /// }
    /// # Ok::<(), ane_matmul::Error>(())
    /// ```
    #[must_use]
    pub fn explain(&self, product: &MatMul, options: &CompileOptions) -> Explanation {
        self.judge(product, options).0
    }

    fn judge(&self, product: &MatMul, options: &CompileOptions) -> (Explanation, Ranked) {
        let known = self
            .entries
            .iter()
            .map(|entry| (&entry.id, entry.state.as_ref().map(AsRef::as_ref).map_err(String::as_str)));
        dispatch::explain(known, self.profile.get(), product, options)
    }

    /// The backends that `auto` may stand for, the best first; never none.
    pub(super) fn rank(&self, product: &MatMul, options: &CompileOptions) -> Result<Ranked> {
        let (explanation, ranked) = self.judge(product, options);
        if ranked.is_empty() {
            let refusal = dispatch::refusal_of_all(&explanation);
            return Err(Error::Refused { backend: BackendId::AUTO, refusal });
        }
        Ok(ranked)
    }

    pub(super) fn compile_auto(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Compiled> {
        options.threads.check()?;
        let mut failed: Vec<(BackendId, String)> = Vec::new();
        let mut first = None;
        for (id, basis) in self.rank(product, options)? {
            match self.compile_supported(&id, product, weights, options) {
                Ok(compiled) => {
                    let basis = if failed.is_empty() { basis } else { Basis::Fallback { failed } };
                    log::debug!("{product}: auto is {id}: {basis}");
                    return Ok(compiled.chosen_for(BackendId::AUTO, basis));
                }
                // Another backend may do where an engine fails; what the caller got wrong it does not mend.
                Err(
                    error @ (Error::Native(_)
                    | Error::Refused { .. }
                    | Error::OutOfMemory { .. }
                    | Error::Probed { .. }),
                ) => {
                    log::warn!("{product}: {id} was chosen and failed: {error}");
                    failed.push((id, error.to_string()));
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first
            .unwrap_or(Error::Unavailable { backend: BackendId::AUTO, reason: "no backend is left".into() }))
    }
}

/// What is known of every built-in backend with this product, and which one [`BackendId::AUTO`] stands
/// for; see [`Backends::explain`].
#[must_use]
pub fn explain(product: &MatMul, options: &CompileOptions) -> Explanation {
    BUILT_IN.explain(product, options)
}
