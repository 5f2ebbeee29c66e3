//! Runs that are verified: what a compiled product and its runs become where a self-check is asked for.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::instant_start::InstantStart;
use crate::backend::{BUILT_IN, BackendId, CompiledInfo, CompiledProduct, Run, RunArgs, Submitted};
use crate::description::options::{CompileOptions, Device, Threads};
use crate::error::{Error, Result};
use crate::executor::{Executor, Inputs, RunObservation};
use crate::operands::device_tensor::with_host_copies;
use crate::verify::self_check::{CheckCounts, Mismatch, OnMismatch, Prepared, ResultChecker, SelfCheck};

/// A compiled product whose runs are verified.
pub(crate) struct CheckedProduct(Arc<Shared>);

/// What the runs of a product have in common.
struct Shared {
    compiled: Box<dyn CompiledProduct>,
    backend: BackendId,
    prepared: Arc<Prepared>,
    policy: SelfCheck,
    threads: Threads,
    #[cfg(feature = "profile")]
    quarantine: Option<std::path::PathBuf>,
}

impl CheckedProduct {
    /// `compiled` for `backend` with `options`.
    pub(crate) fn new(
        compiled: Box<dyn CompiledProduct>,
        backend: BackendId,
        prepared: Prepared,
        options: &CompileOptions,
    ) -> Self {
        Self(Arc::new(Shared {
            compiled,
            backend,
            prepared: Arc::new(prepared),
            policy: options.self_check,
            threads: options.threads.clone(),
            #[cfg(feature = "profile")]
            quarantine: options.quarantine.clone(),
        }))
    }
}

impl CompiledProduct for CheckedProduct {
    fn open(&self, queue_depth: usize) -> Result<Box<dyn Run>> {
        Ok(Box::new(Checked {
            run: self.0.compiled.open(queue_depth)?,
            checker: ResultChecker::from_prepared(Arc::clone(&self.0.prepared))?,
            runs: 0,
            counts: CheckCounts::default(),
            last_mismatch: None,
            fallback: None,
            product: Arc::clone(&self.0),
        }))
    }

    fn info(&self) -> CompiledInfo {
        self.0.compiled.info()
    }
}

impl Shared {
    /// The backend whose result it was: with an instant start the CPU, until the one asked for has compiled.
    fn answered(&self) -> BackendId {
        match self.compiled.info().instant_start {
            Some(InstantStart::Compiling { .. } | InstantStart::Failed { .. }) => BackendId::CPU,
            _ => self.backend.clone(),
        }
    }

    fn options_for_cpu(&self) -> CompileOptions {
        CompileOptions::default().threads(self.threads.clone())
    }

    /// The product on the CPU engine.
    fn on_cpu(&self) -> Result<Executor> {
        let reals = self.prepared.reals();
        let options = self.options_for_cpu();
        BUILT_IN.compile_parts(&BackendId::CPU, &reals.product, reals.weights.as_ref(), &options)?.executor()
    }

    /// Notes a wrong result in the profile, where one was named; a failure is not the run's.
    #[cfg(feature = "profile")]
    fn quarantine(&self, mismatch: &Mismatch) {
        use crate::dispatch::profile::{Profile, Quarantine};
        let Some(path) = &self.quarantine else { return };
        let reason = format!("gave a wrong result: {}", mismatch.element);
        let product = &self.prepared.reals().product;
        let entry = Quarantine::here(mismatch.backend.clone(), Some(product), reason);
        if let Err(error) = Profile::update(path, |profile| profile.add_quarantine(entry)) {
            log::error!("backend `{}` is not quarantined: {error}", mismatch.backend);
        }
    }
}

/// A run context whose results are verified.
struct Checked {
    // Before `product`: a run context goes before the product that it came from.
    run: Box<dyn Run>,
    checker: ResultChecker,
    runs: u64,
    counts: CheckCounts,
    last_mismatch: Option<Mismatch>,
    /// The product on the CPU engine, once it was needed.
    fallback: Option<Box<Executor>>,
    product: Arc<Shared>,
}

impl Checked {
    fn is_due(&mut self) -> bool {
        let run = self.runs;
        self.runs += 1;
        self.counts.mismatches > 0 || self.product.policy.schedule.is_due(run)
    }

    /// Runs by `run`, and verifies the result where it is due.
    fn run_by(
        &mut self,
        args: RunArgs<'_>,
        run: impl FnOnce(&mut dyn Run, RunArgs<'_>) -> Result<RunObservation>,
    ) -> Result<RunObservation> {
        if self.is_due() { self.run_checked(args, run) } else { run(self.run.as_mut(), args) }
    }

    fn run_checked(
        &mut self,
        mut args: RunArgs<'_>,
        run: impl FnOnce(&mut dyn Run, RunArgs<'_>) -> Result<RunObservation>,
    ) -> Result<RunObservation> {
        let observation = run(self.run.as_mut(), RunArgs { c: args.c.reborrow(), ..args });
        // The check is due for the next run, then.
        let observation = observation.inspect_err(|_| self.runs -= 1)?;
        let reruns = self.counts.reruns;
        let (observation, _) = with_host_copies(
            args,
            |args| Ok((self.check(args, observation)?, self.counts.reruns)),
            |(_, now)| *now > reruns,
        )?;
        Ok(observation)
    }

    /// Verifies a result; all operands lie on the host.
    fn check(&mut self, args: RunArgs<'_>, observation: RunObservation) -> Result<RunObservation> {
        let inputs = Inputs::of(&args);
        self.counts.checked += 1;
        let Some(element) = self.checker.check_fitting(&inputs, args.c.as_view())? else {
            return Ok(observation);
        };
        let product = self.product.prepared.reals().product.to_string();
        let mismatch = Mismatch { backend: self.product.answered(), product, element };
        log::error!("{mismatch}");
        self.counts.mismatches += 1;
        #[cfg(feature = "profile")]
        if self.counts.mismatches == 1 {
            self.product.quarantine(&mismatch);
        }
        self.last_mismatch = Some(mismatch.clone());
        match self.product.policy.on_mismatch {
            OnMismatch::Error => Err(Error::WrongResult(Box::new(mismatch))),
            OnMismatch::RerunOnCpu => {
                self.rerun(&inputs, args)?;
                self.counts.reruns += 1;
                Ok(RunObservation { observed: Device::Cpu, ..RunObservation::default() })
            }
        }
    }

    fn rerun(&mut self, inputs: &Inputs<'_>, mut args: RunArgs<'_>) -> Result<()> {
        if self.fallback.is_none() && self.product.backend != BackendId::CPU {
            match self.product.on_cpu() {
                Ok(executor) => self.fallback = Some(Box::new(executor)),
                Err(error) => log::warn!("the run is done again in float64: {error}"),
            }
        }
        if let Some(fallback) = &mut self.fallback {
            fallback.run(inputs, args.c.reborrow())?;
            match self.checker.check_fitting(inputs, args.c.as_view())? {
                None => return Ok(()),
                Some(element) => log::error!("backend `cpu` computed it wrong too: {element}"),
            }
        }
        self.checker.recompute_all(inputs, &mut args.c);
        Ok(())
    }
}

impl Run for Checked {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        self.run_by(args, |run, args| run.run(args).map(|()| RunObservation::default())).map(drop)
    }

    fn run_observed(&mut self, args: RunArgs<'_>) -> Result<RunObservation> {
        self.run_by(args, |run, args| run.run_observed(args))
    }

    /// A submission whose result is to be verified is waited for.
    #[allow(unsafe_code, reason = "see `Run::submit`")]
    unsafe fn submit(&mut self, args: RunArgs<'_>) -> Result<Submitted> {
        if !self.is_due() {
            // SAFETY: by this function's own contract.
            return unsafe { self.run.submit(args) };
        }
        let mut rejected = false;
        let observation = self.run_checked(args, |run, args| {
            // SAFETY: it is waited for below, while the operands are borrowed.
            match unsafe { run.submit(args) }.inspect_err(|_| rejected = true)? {
                Submitted::Done(observation) => observation,
                Submitted::Ticket(ticket) => loop {
                    if let Some(observation) = run.wait(ticket, None)? {
                        return Ok(observation);
                    }
                },
            }
        });
        match observation {
            Err(error) if rejected => Err(error),
            observation => Ok(Submitted::Done(observation)),
        }
    }

    fn wait(&mut self, ticket: u64, timeout: Option<Duration>) -> Result<Option<RunObservation>> {
        self.run.wait(ticket, timeout)
    }

    fn checks(&self) -> CheckCounts {
        self.counts
    }

    fn last_mismatch(&self) -> Option<&Mismatch> {
        self.last_mismatch.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend as _;
    use crate::backend::tests::Scripted;
    use crate::description::matmul::MatMul;
    use crate::operands::tensor::Tensor;

    #[test]
    fn a_wrong_result_is_of_the_cpu_until_the_backend_asked_for_has_compiled() {
        let (runs_on_cpu, reason) = (0, String::from("a test"));
        for (instant_start, of_cpu) in [
            (None, false),
            (Some(InstantStart::Compiling { runs_on_cpu }), true),
            (Some(InstantStart::Failed { runs_on_cpu, reason: reason.clone() }), true),
            (Some(InstantStart::Switched { runs_on_cpu, compile_time: Duration::ZERO }), false),
            (Some(InstantStart::Waited { reason }), false),
        ] {
            let info = Some(CompiledInfo { instant_start, ..CompiledInfo::default() });
            let (backends, id) = Scripted { info, ..Scripted::default() }.registered();
            let options = CompileOptions::default().self_check(SelfCheck::every_run());
            let compiled = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();
            let (one, mut c) = (Tensor::filled(2, 2, 1f32).unwrap(), Tensor::<f32>::zeros(2, 2).unwrap());
            let result = compiled.executor().unwrap().run(Inputs::new(&one).b(&one), &mut c);
            let Err(Error::WrongResult(mismatch)) = result else { panic!("{result:?}") };
            assert_eq!(mismatch.backend, if of_cpu { BackendId::CPU } else { id });
        }
    }

    #[test]
    fn the_cpu_runs_it_with_the_same_threads() {
        let product = MatMul::new(1, 1, 1).unwrap();
        let options =
            CompileOptions::default().threads(Threads::count(3).unwrap()).self_check(SelfCheck::every_run());
        let prepared = Prepared::new(&product, None, &options.self_check, &options).unwrap();
        let compiled = Scripted { info: Some(CompiledInfo::default()), ..Scripted::default() };
        let compiled = compiled.compile(&product, None, &options).unwrap();
        let checked = CheckedProduct::new(compiled, BackendId::CPU, prepared, &options);
        let threads = checked.0.options_for_cpu().threads;
        assert!(matches!(threads, Threads::Count(count) if count.get() == 3), "{threads:?}");
    }
}
