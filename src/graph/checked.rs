//! Runs of graphs that are verified on a schedule.

use crate::alloc;
use crate::backend::instant_start::InstantStart;
use crate::backend::{BUILT_IN, BackendId, Backends, GraphProgram};
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, Result};
use crate::graph::array::Array;
use crate::graph::check::{Wrong, check_outputs, check_same, check_steps};
use crate::graph::compiled::GraphExecutor;
use crate::graph::description::Graph;
use crate::random::Random;
use crate::verify::self_check::{CheckCounts, CheckSchedule, Mismatch, OnMismatch, SelfCheck, seed};

const WHAT: &str = "a check of a graph";

/// What the checks of a compiled graph go by.
pub(super) struct Policy {
    #[cfg_attr(not(feature = "profile"), allow(dead_code, reason = "quarantine is kept in profiles"))]
    backends: Backends,
    options: CompileOptions,
}

impl Policy {
    /// `None` where nothing is to be verified.
    pub(super) fn new(backends: &Backends, options: &CompileOptions) -> Result<Option<Self>> {
        if options.self_check.schedule == CheckSchedule::Off {
            return Ok(None);
        }
        options.self_check.validate()?;
        for (is_set, what) in
            [(options.fast_math, "fast math"), (options.reduced_precision, "reduced precision")]
        {
            if is_set {
                let problem =
                    format!("there is no error bound for graphs with {what}: leave out it or the self-check");
                return Err(Error::graph(problem));
            }
        }
        Ok(Some(Self { backends: backends.clone(), options: options.clone() }))
    }

    pub(super) fn checks(&self) -> Checks {
        Checks {
            policy: self.options.self_check,
            runs: 0,
            counts: CheckCounts::default(),
            last_mismatch: None,
            fallback: None,
            random: Random::new(seed()),
        }
    }

    /// Notes a wrong result in the profile, where one was named; a failure is not the run's.
    #[cfg(feature = "profile")]
    fn quarantine(&self, graph: &Graph, mismatch: &Mismatch) {
        let reason = format!("gave a wrong result: {}: {}", mismatch.product, mismatch.element);
        let entry = self.backends.quarantine_of(&mismatch.backend, graph, &self.options, reason);
        if let Err(error) = entry.and_then(|entry| crate::backend::add_quarantine(&self.options, entry)) {
            log::error!("backend `{}` is not quarantined: {error}", mismatch.backend);
        }
    }
}

/// A run that may be verified.
pub(super) struct CheckedRun<'a> {
    pub policy: &'a Policy,
    pub program: &'a dyn GraphProgram,
    pub backend: &'a BackendId,
    /// As compiled.
    pub graph: &'a Graph,
    pub leading: usize,
    pub inputs: &'a [&'a Array],
}

impl CheckedRun<'_> {
    /// The backend whose result it was: with an instant start the CPU, until the one asked for has compiled.
    fn answered(&self) -> BackendId {
        match self.program.info().instant_start {
            Some(InstantStart::Compiling { .. } | InstantStart::Failed { .. }) => BackendId::CPU,
            _ => self.backend.clone(),
        }
    }

    /// The graph of this run's leading dimension.
    fn graph(&self) -> Result<Graph> {
        match &self.graph.leading {
            Some(_) => self.graph.with_leading(self.leading),
            None => Ok(self.graph.clone()),
        }
    }

    /// Computes some steps again where the backend shows what lies between them, and else the outputs.
    fn find_wrong(
        &self,
        graph: &Graph,
        outputs: &[&Array],
        policy: &SelfCheck,
        random: &mut Random,
    ) -> Result<Option<Wrong>> {
        let samples = policy.rows();
        if self.program.shows_values() {
            let (before, info) = (self.answered(), self.program.info());
            let mut run = self.program.open(true)?;
            let mut again = alloc::with_capacity(outputs.len(), WHAT)?;
            for output in outputs {
                again.push(Array::zeros(output.tensor_type())?);
            }
            run.run(self.leading, self.inputs, &mut again.iter_mut().collect::<Vec<_>>(), None)?;
            // Else another backend answered the second time.
            if self.answered() == before {
                for ((name, _), (output, again)) in graph.outputs.iter().zip(outputs.iter().zip(&again)) {
                    if let Some(wrong) = check_same(name, output, again)? {
                        return Ok(Some(wrong));
                    }
                }
                let shown = |value| run.value(value);
                let (wrong, checked) =
                    check_steps(graph, self.inputs, outputs, &info.step_of, shown, samples, random)?;
                if checked > 0 {
                    return Ok(wrong);
                }
            }
        }
        check_outputs(graph, self.inputs, outputs, samples, random)
    }
}

/// What the checks of an executor did, and what they need.
pub(super) struct Checks {
    policy: SelfCheck,
    runs: u64,
    counts: CheckCounts,
    last_mismatch: Option<Mismatch>,
    /// The graph on the CPU engine, once it was needed.
    fallback: Option<Box<GraphExecutor>>,
    random: Random,
}

impl Checks {
    pub(super) const fn counts(&self) -> CheckCounts {
        self.counts
    }

    pub(super) const fn last_mismatch(&self) -> Option<&Mismatch> {
        self.last_mismatch.as_ref()
    }

    /// Notes a run that succeeded: whether it is to be verified.
    pub(super) fn is_due(&mut self) -> bool {
        let run = self.runs;
        self.runs += 1;
        self.counts.mismatches > 0 || self.policy.schedule.is_due(run)
    }

    /// Verifies the outputs of a run.
    pub(super) fn check(&mut self, run: &CheckedRun<'_>, outputs: &mut [&mut Array]) -> Result<()> {
        let graph = run.graph()?;
        self.counts.checked += 1;
        let Some((product, element)) = self.find_wrong(run, &graph, outputs)? else { return Ok(()) };
        let mismatch = Mismatch { backend: run.answered(), product, element };
        log::error!("{mismatch}");
        self.counts.mismatches += 1;
        #[cfg(feature = "profile")]
        if self.counts.mismatches == 1 {
            run.policy.quarantine(run.graph, &mismatch);
        }
        self.last_mismatch = Some(mismatch.clone());
        match self.policy.on_mismatch {
            OnMismatch::Error => Err(Error::WrongResult(Box::new(mismatch))),
            OnMismatch::RerunOnCpu => {
                self.rerun(run, &graph, outputs)?;
                self.counts.reruns += 1;
                Ok(())
            }
        }
    }

    fn find_wrong(
        &mut self,
        run: &CheckedRun<'_>,
        graph: &Graph,
        outputs: &[&mut Array],
    ) -> Result<Option<Wrong>> {
        // Without what lies beyond this run's leading dimension.
        let mut fitting = alloc::with_capacity(outputs.len(), WHAT)?;
        for (output, (_, of)) in outputs.iter().zip(graph.outputs()) {
            fitting.push(output.part(0, of.shape)?);
        }
        run.find_wrong(graph, &fitting.iter().collect::<Vec<_>>(), &self.policy, &mut self.random)
    }

    /// Runs on the CPU engine; in float64 where that refuses the graph, or is what was wrong.
    fn rerun(&mut self, run: &CheckedRun<'_>, graph: &Graph, outputs: &mut [&mut Array]) -> Result<()> {
        if self.fallback.is_none() && *run.backend != BackendId::CPU {
            match on_cpu(run) {
                Ok(executor) => self.fallback = Some(Box::new(executor)),
                Err(error) => log::warn!("the run is done again in float64: {error}"),
            }
        }
        if let Some(fallback) = &mut self.fallback {
            let results = fallback.run_to_arrays(run.inputs)?;
            let samples = self.policy.rows();
            let results: Vec<&Array> = results.iter().collect();
            match check_outputs(graph, run.inputs, &results, samples, &mut self.random)? {
                None => {
                    outputs.iter_mut().zip(results).for_each(|(output, result)| output.start_with(result));
                    return Ok(());
                }
                Some((what, element)) => log::error!("backend `cpu` computed {what} wrong too: {element}"),
            }
        }
        for (output, result) in outputs.iter_mut().zip(graph.interpret_rounded(run.inputs)?) {
            output.start_with(&result);
        }
        Ok(())
    }
}

/// The graph on the CPU engine, without checks of its own.
fn on_cpu(run: &CheckedRun<'_>) -> Result<GraphExecutor> {
    let options = CompileOptions {
        device: Device::Unknown,
        self_check: SelfCheck::off(),
        ..CompileOptions::default().threads(run.policy.options.threads.clone())
    };
    BUILT_IN.compile_graph(&BackendId::CPU, run.graph, &options)?.executor()
}
