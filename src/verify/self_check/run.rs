//! The self-check of one executor's runs.

use std::sync::Arc;

use crate::backend::instant_start::InstantStart;
use crate::backend::{BackendId, RunArgs};
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, Result};
use crate::executor::{Compiled, Executor, Inputs, RunObservation};
use crate::verify::self_check::{
    CheckCounts, CheckSchedule, Mismatch, OnMismatch, Prepared, ResultChecker, SelfCheck,
};

/// Verifies the runs of one executor.
#[derive(Debug)]
pub(crate) struct RunCheck {
    policy: SelfCheck,
    checker: ResultChecker,
    runs: u64,
    pub(crate) counts: CheckCounts,
    pub(crate) last_mismatch: Option<Mismatch>,
    /// The product on the CPU engine, once it was needed.
    fallback: Option<Box<Executor>>,
}

impl RunCheck {
    pub(crate) fn new(policy: SelfCheck, prepared: Arc<Prepared>) -> Result<Self> {
        Ok(Self {
            policy,
            checker: ResultChecker::from_prepared(prepared)?,
            runs: 0,
            counts: CheckCounts::default(),
            last_mismatch: None,
            fallback: None,
        })
    }

    fn is_due(&mut self) -> bool {
        let run = self.runs;
        self.runs += 1;
        self.counts.mismatches > 0
            || match self.policy.schedule {
                CheckSchedule::Off => false,
                CheckSchedule::FirstRun => run == 0,
                CheckSchedule::OneIn(count) => run.is_multiple_of(count.get().into()),
                CheckSchedule::EveryRun => true,
            }
    }

    /// Runs, and verifies the result where it is due.
    pub(crate) fn run(
        &mut self,
        run: impl FnOnce(RunArgs<'_>) -> Result<RunObservation>,
        compiled: &Compiled,
        mut args: RunArgs<'_>,
    ) -> Result<RunObservation> {
        if !self.is_due() {
            return run(args);
        }
        let mut inputs = Inputs::new(args.a);
        if let Some(b) = args.b {
            inputs = inputs.b(b);
        }
        if let Some(bias) = args.bias {
            inputs = inputs.bias(bias);
        }
        if let Some(residual) = args.residual {
            inputs = inputs.residual(residual);
        }
        let observation = run(RunArgs { c: args.c.reborrow(), ..args })?;
        self.counts.checked += 1;
        let Some(element) = self.checker.check_fitting(&inputs, args.c.as_view())? else {
            return Ok(observation);
        };
        let mismatch =
            Mismatch { backend: answered(compiled), product: compiled.product().to_string(), element };
        log::error!("{mismatch}");
        self.counts.mismatches += 1;
        #[cfg(feature = "profile")]
        if self.counts.mismatches == 1 {
            quarantine(compiled, &mismatch);
        }
        self.last_mismatch = Some(mismatch.clone());
        match self.policy.on_mismatch {
            OnMismatch::Error => Err(Error::WrongResult(Box::new(mismatch))),
            OnMismatch::RerunOnCpu => {
                self.rerun(compiled, &inputs, args)?;
                self.counts.reruns += 1;
                Ok(RunObservation { observed: Device::Cpu, device_time: None })
            }
        }
    }

    fn rerun(&mut self, compiled: &Compiled, inputs: &Inputs<'_>, mut args: RunArgs<'_>) -> Result<()> {
        if self.fallback.is_none() && *compiled.backend() != BackendId::CPU {
            let options = CompileOptions::default()
                .threads(compiled.threads().clone())
                .with_scales(compiled.product(), compiled.scales());
            let executor = compiled
                .product()
                .compile(&BackendId::CPU, compiled.weights(), &options)
                .and_then(|compiled| compiled.executor());
            match executor {
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

/// The backend whose result it was: with an instant start the CPU, until the one asked for has compiled.
fn answered(compiled: &Compiled) -> BackendId {
    match compiled.report().instant_start {
        Some(InstantStart::Compiling { .. } | InstantStart::Failed { .. }) => BackendId::CPU,
        _ => compiled.backend().clone(),
    }
}

/// Notes a wrong result in the profile, where one was named; a failure is not the run's.
#[cfg(feature = "profile")]
fn quarantine(compiled: &Compiled, mismatch: &Mismatch) {
    use crate::dispatch::profile::{Profile, Quarantine};
    let Some(path) = compiled.quarantine() else { return };
    let reason = format!("gave a wrong result: {}", mismatch.element);
    let entry = Quarantine::here(mismatch.backend.clone(), Some(compiled.product()), reason);
    if let Err(error) = Profile::update(path, |profile| profile.add_quarantine(entry)) {
        log::error!("backend `{}` is not quarantined: {error}", mismatch.backend);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::Facts;
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
            let facts = Some(Facts { instant_start, ..Facts::default() });
            let (backends, id) = Scripted { facts, ..Scripted::default() }.registered();
            let options = CompileOptions::default().self_check(SelfCheck::every_run());
            let compiled = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), None, &options).unwrap();
            let (one, mut c) = (Tensor::filled(2, 2, 1f32).unwrap(), Tensor::<f32>::zeros(2, 2).unwrap());
            let result = compiled.executor().unwrap().run(&Inputs::new(&one).b(&one), &mut c);
            let Err(Error::WrongResult(mismatch)) = result else { panic!("{result:?}") };
            assert_eq!(mismatch.backend, if of_cpu { BackendId::CPU } else { id });
        }
    }
}
