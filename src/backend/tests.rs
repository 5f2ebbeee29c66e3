//! What backends have in common, and one that says what it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::description::options::Threads;
use crate::dispatch::machine::MachineKey;
use crate::dispatch::profile::{Profile, Quarantine};
use crate::executor::Inputs;
use crate::operands::tensor::Tensor;

/// A backend that says what it is told, and whose runs leave C as it is.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) device: Device,
    /// What a compiled product says of itself; `None` where compiling fails.
    pub(crate) info: Option<CompiledInfo>,
    /// What the runs of an executor observe, in turns.
    pub(crate) observations: Vec<RunObservation>,
    /// What compiling takes, and the first run of an executor.
    pub(crate) compile_time: Duration,
    pub(crate) first_run_time: Duration,
    /// While it is set, no executor can be opened.
    pub(crate) closed: Arc<AtomicBool>,
}

impl Scripted {
    /// The registry of the built-in backends and this one.
    pub(crate) fn registered(self) -> (Backends, BackendId) {
        let (mut backends, id) = (Backends::new(), BackendId::new("scripted"));
        backends.add_for_test(id.clone(), Arc::new(self));
        (backends, id)
    }
}

impl Backend for Scripted {
    fn describe(&self) -> String {
        "scripted".into()
    }

    fn device(&self) -> (Device, String) {
        (self.device, String::new())
    }

    fn supports(&self, _: &MatMul, _: &CompileOptions) -> Result<(), Refusal> {
        Ok(())
    }

    fn compile(
        &self,
        _: &MatMul,
        _: Option<&Weights>,
        _: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        std::thread::sleep(self.compile_time);
        let info = self.info.clone().ok_or(Error::SizeOverflow { what: "a scripted product" })?;
        let observations = self.observations.clone();
        let (first_run_time, closed) = (self.first_run_time, Arc::clone(&self.closed));
        Ok(Box::new(ScriptedProduct { info, observations, first_run_time, closed }))
    }
}

struct ScriptedProduct {
    info: CompiledInfo,
    observations: Vec<RunObservation>,
    first_run_time: Duration,
    closed: Arc<AtomicBool>,
}

impl CompiledProduct for ScriptedProduct {
    fn open(&self, _: usize) -> Result<Box<dyn Run>> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::OutOfMemory { what: "a scripted executor", bytes: 1 });
        }
        Ok(Box::new(ScriptedRun(self.observations.clone(), self.first_run_time)))
    }

    fn info(&self) -> CompiledInfo {
        self.info.clone()
    }
}

struct ScriptedRun(Vec<RunObservation>, Duration);

impl Run for ScriptedRun {
    fn run(&mut self, _: RunArgs<'_>) -> Result<()> {
        std::thread::sleep(std::mem::take(&mut self.1));
        Ok(())
    }

    fn run_observed(&mut self, _: RunArgs<'_>) -> Result<RunObservation> {
        let Some(&observation) = self.0.first() else { return Ok(RunObservation::default()) };
        self.0.rotate_left(1);
        Ok(observation)
    }
}

#[test]
fn a_backend_that_says_nothing_else_is_a_part_of_this_crate_and_wraps_any_memory() {
    let (backends, id) = Scripted::default().registered();
    assert!(!backends.get(&id).unwrap().is_foreign());
    let options = CompileOptions::default().threads(Threads::count(3).unwrap());
    assert_eq!(backends.threads(&id, &options).unwrap(), 3);
    assert_eq!(backends.info(&id).unwrap().wrap_alignment_bytes, Some(ALIGNMENT_BYTES));
}

#[test]
fn a_run_computes_although_its_engine_observes_nothing() {
    let product = MatMul::new(2, 2, 3).unwrap();
    let compiled = product.compile(&BackendId::CPU).unwrap();
    let (a, b) = (Tensor::filled(2, 3, 2f32).unwrap(), Tensor::filled(3, 2, 1f32).unwrap());
    let mut c = Tensor::<f32>::zeros(2, 2).unwrap();
    let seen = compiled.executor().unwrap().run_observed(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert_eq!((seen, c.data()), (RunObservation::default(), [6f32; 4].as_slice()));
}

#[test]
fn a_registry_has_the_profile_that_it_was_given() {
    let mut profile = Profile::new(MachineKey::here());
    profile.add_quarantine(Quarantine::here(BackendId::new("scripted"), None, "a test"));
    let mut backends = Backends::new();
    backends.set_profile(Some(profile.clone()));
    assert_eq!(backends.profile(), Some(&profile));
    backends.set_profile(None);
    assert_eq!(backends.profile(), None);
}
