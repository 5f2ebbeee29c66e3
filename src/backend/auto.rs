//! The backend `auto`: which of the registry's backends it stands for.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use super::{BUILT_IN, Backend, BackendId, BackendInfo, Backends};
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::dispatch::profile::Profile;
use crate::dispatch::{self, Basis, Explanation, Predictor, Ranked};
use crate::error::{Error, Result};
use crate::executor::Compiled;
use crate::graph::{CompiledGraph, Graph, report};
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
                Err(error) if another_may_do(&error) => {
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

    /// The backends that `auto` may stand for with a graph, in the order that products have without a profile; never
    /// none.
    pub(super) fn rank_graph(&self, graph: &Graph, options: &CompileOptions) -> Result<Vec<BackendId>> {
        let mut able: Vec<(BackendId, Device)> = Vec::new();
        let (mut reason, mut message) = (None, String::from("no backend runs this graph"));
        for entry in &self.entries {
            let Ok(backend) = &entry.state else { continue };
            match self.judge_graph(&entry.id, backend.as_ref(), graph, options) {
                Ok(()) => able.push((entry.id.clone(), backend.device().0)),
                Err(refusal) => {
                    reason.get_or_insert(refusal.reason);
                    // Writing to a string cannot fail.
                    let _ = write!(message, "; {}: {}", entry.id, refusal.message);
                }
            }
        }
        if able.is_empty() {
            let refusal = Refusal::new(reason.unwrap_or(RefusalReason::NotBuilt), message);
            return Err(Error::Refused { backend: BackendId::AUTO, refusal });
        }
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let flops = graph.nodes.iter().map(|node| report::flops(graph, node) as f64).sum();
        dispatch::rank(&mut able, flops, options.expected_runs);
        Ok(able.into_iter().map(|(id, _)| id).collect())
    }

    fn judge_graph(
        &self,
        id: &BackendId,
        backend: &dyn Backend,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<(), Refusal> {
        let refused = self.refused_nodes(id, graph, options).map_err(Refusal::of_failure)?;
        if let Some(first) = refused.first() {
            let (count, all) = (refused.len(), graph.nodes.len());
            let message = format!("{count} of {all} nodes, the first: {first}");
            return Err(Refusal::new(first.refusal.reason, message));
        }
        if let Some(predictor) = self.profile.get() {
            let key = || self.graph_key(id, graph, options);
            let entry = predictor.profile().quarantined_graph(id, key).map_err(Refusal::of_failure)?;
            entry.map_or(Ok(()), |entry| Err(super::in_quarantine(entry)))?;
        }
        dispatch::may_be_chosen(backend, options)
    }

    pub(super) fn compile_auto_graph(
        &self,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<CompiledGraph> {
        options.threads.check()?;
        let mut first = None;
        for id in self.rank_graph(graph, options)? {
            match self.compile_accepted_graph(&id, graph, options) {
                Ok(compiled) => {
                    log::debug!("a graph of {} nodes: auto is {id}", graph.nodes.len());
                    return Ok(compiled);
                }
                Err(error) if another_may_do(&error) => {
                    log::warn!("a graph of {} nodes: {id} was chosen and failed: {error}", graph.nodes.len());
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first
            .unwrap_or(Error::Unavailable { backend: BackendId::AUTO, reason: "no backend is left".into() }))
    }
}

/// Whether another backend may do: where an engine fails, but not where the caller got something wrong.
const fn another_may_do(error: &Error) -> bool {
    matches!(
        error,
        Error::Native(_) | Error::Refused { .. } | Error::OutOfMemory { .. } | Error::Probed { .. }
    )
}

/// What is known of every built-in backend with this product, and which one [`BackendId::AUTO`] stands
/// for; see [`Backends::explain`].
#[must_use]
pub fn explain(product: &MatMul, options: &CompileOptions) -> Explanation {
    BUILT_IN.explain(product, options)
}
