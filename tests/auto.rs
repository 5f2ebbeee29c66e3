//! The backend `auto`: what it stands for, and what is said of it.

use ane_matmul::{
    BackendId, Backends, Basis, CompileOptions, Device, ElementType, ElementTypes, Error, Inputs, MachineKey,
    MatMul, Profile, ProfileState, Quarantine, RefusalReason, Sample, Series, ShimLibrary, Tensor, Threads,
    Verdict, Weights, explain,
};
use ane_matmul_shims::{REFERENCE, TEST_DOUBLE};

const REFERENCE_ID: &str = "reference";

fn backends() -> Backends {
    let mut backends = Backends::new();
    backends.set_profile(None);
    for path in [REFERENCE, TEST_DOUBLE] {
        // SAFETY: the libraries are built from this repository.
        let shim = unsafe { ShimLibrary::open(path) }.expect("a good shim");
        backends.add(shim).expect("a new name");
    }
    backends
}

/// A profile in which a run takes so long on each backend, and compiling for the reference shim 200 ms.
fn profile(backends: &Backends, run_ns: [(&str, f64); 2]) -> Profile {
    let mut profile = Profile::new(MachineKey::here());
    for (name, run_ns) in run_ns {
        let id = BackendId::new(name);
        let description = backends.info(&id).unwrap().description;
        let compile_ns = if name == REFERENCE_ID { 200e6 } else { 0.0 };
        let mut series = Series::new(id, description, ElementTypes::F32, Device::Unknown, 1);
        series.samples = [4, 8, 16]
            .map(|size| Sample::new(&MatMul::new(size, size, size).unwrap(), compile_ns, run_ns))
            .into();
        profile.add_series(series).unwrap();
    }
    profile
}

fn options() -> CompileOptions {
    CompileOptions::default().threads(Threads::ONE)
}

fn check(compiled: &ane_matmul::Compiled) {
    let one = Tensor::filled(8, 8, 1f32).unwrap();
    assert_eq!(compiled.run_to_tensor(Inputs::new(&one).b(&one)).unwrap().data(), [8.0; 64]);
}

#[test]
fn the_report_says_what_was_asked_for_what_was_chosen_and_why() {
    let mut backends = backends();
    let product = MatMul::new(8, 8, 8).unwrap();
    let named = backends.compile(&BackendId::CPU, &product, &options()).unwrap().report();
    assert_eq!((named.backend, named.requested_backend), (BackendId::CPU, BackendId::CPU));
    assert_eq!(named.chosen_by, Basis::Named);

    let compiled = backends.compile(&BackendId::AUTO, &product, &options()).unwrap();
    check(&compiled);
    let report = compiled.report();
    assert_eq!((report.backend, report.requested_backend), (BackendId::CPU, BackendId::AUTO));
    assert_eq!(report.chosen_by, Basis::DefaultRule { accelerator_pays: false });

    backends.set_profile(Some(profile(&backends, [("cpu", 500.0), (REFERENCE_ID, 100.0)])));
    let compiled = backends.compile(&BackendId::AUTO, &product, &options()).unwrap();
    check(&compiled);
    let report = compiled.report();
    assert_eq!((report.backend.as_str(), report.requested_backend), (REFERENCE_ID, BackendId::AUTO));
    let Basis::Profile { predicted_ns: 90..=110, runner_up: Some((second, 450..=550)) } = &report.chosen_by
    else {
        panic!("{:?}", report.chosen_by)
    };
    assert_eq!(*second, BackendId::CPU);
    assert!(report.chosen_by.to_string().contains("then cpu with"), "{}", report.chosen_by);

    // Half a second of runs earns 200 ms of compiling, one run does not.
    let chosen = |runs| {
        let options = options().expected_runs(runs);
        backends.compile(&BackendId::AUTO, &product, &options).unwrap().report().backend
    };
    assert_eq!([chosen(1), chosen(2_000_000)], [BackendId::CPU, BackendId::new(REFERENCE_ID)]);
}

#[test]
fn weights_reach_the_chosen_backend_and_mistakes_the_caller() {
    let backends = backends();
    let layer = MatMul::builder(8, 8, 8).build_constant_b().unwrap();
    let weights = Weights::from_tensor(Tensor::filled(8, 8, 1f32).unwrap());
    let with_weights = layer.with_weights(&weights).unwrap();
    let compiled = backends.compile(&BackendId::AUTO, &with_weights, &options()).unwrap();
    let one = Tensor::filled(8, 8, 1f32).unwrap();
    assert_eq!(compiled.run_to_tensor(Inputs::new(&one)).unwrap().data(), [8.0; 64]);
    let missing = backends.compile(&BackendId::AUTO, layer.product(), &options());
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    let threads = CompileOptions::default().threads(Threads::Count(9999.try_into().unwrap()));
    let product = MatMul::new(8, 8, 8).unwrap();
    assert!(matches!(backends.compile(&BackendId::AUTO, &product, &threads), Err(Error::Threads { .. })));
}

#[test]
fn what_no_backend_runs_is_refused_with_every_reason() {
    let backends = backends();
    let int8 = MatMul::builder(8, 8, 8)
        .types(ElementTypes { a: ElementType::I4, ..ElementTypes::INT8 })
        .build()
        .unwrap();
    let error = backends.compile(&BackendId::AUTO, &int8, &options()).unwrap_err();
    let Error::Refused { backend, refusal } = &error else { panic!("{error}") };
    assert_eq!((backend, refusal.reason), (&BackendId::AUTO, RefusalReason::ElementType));
    assert!(error.to_string().contains("cpu: ") && error.to_string().contains("reference: "), "{error}");
    assert!(backends.supports(&BackendId::AUTO, &int8, &options()).is_err());
    assert!(backends.supports(&BackendId::AUTO, &MatMul::new(1, 1, 1).unwrap(), &options()).is_ok());
}

#[test]
fn quarantine_keeps_a_backend_away() {
    let mut backends = backends();
    let product = MatMul::new(8, 8, 8).unwrap();
    let id = BackendId::new(REFERENCE_ID);
    let mut profile = profile(&backends, [("cpu", 500.0), (REFERENCE_ID, 100.0)]);
    profile.add_quarantine(Quarantine::here(id.clone(), Some(&product), "gave a wrong result"));
    backends.set_profile(Some(profile));
    let report = backends.compile(&BackendId::AUTO, &product, &options()).unwrap().report();
    assert_eq!(report.backend, BackendId::CPU);
    let explanation = backends.explain(&product, &options());
    let candidate = explanation.candidates.iter().find(|candidate| candidate.backend == id).unwrap();
    let Verdict::Refused(refusal) = &candidate.verdict else { panic!("{candidate:?}") };
    assert_eq!(refusal.reason, RefusalReason::Quarantined);
    assert!(refusal.message.contains("gave a wrong result"));
}

#[test]
fn without_a_profile_a_loaded_shim_on_the_cpu_comes_after_the_engines_of_this_crate() {
    let mut backends = backends();
    // An accelerator would pay, and there is none.
    let product = MatMul::new(2048, 2048, 2048).unwrap();
    let chosen = |backends: &Backends| backends.explain(&product, &options()).choice;
    if cfg!(not(target_vendor = "apple")) {
        let rule = Basis::DefaultRule { accelerator_pays: true };
        assert_eq!(chosen(&backends), Some((BackendId::CPU, rule)));
    }
    let explanation = backends.explain(&product, &options());
    let reference = explanation.candidates.iter().find(|c| c.backend.as_str() == REFERENCE_ID).unwrap();
    assert_eq!(reference.verdict, Verdict::Unmeasured("there is no profile".into()));
    // Nothing measured, and the others in quarantine: the rule gets to it, and not to the test double.
    let mut profile = Profile::new(MachineKey::here());
    for status in backends.available().into_iter().filter(|status| status.id.as_str() != REFERENCE_ID) {
        profile.add_quarantine(Quarantine::here(status.id, None, "gave a wrong result"));
    }
    backends.set_profile(Some(profile));
    assert_eq!(chosen(&backends), Some((BackendId::new(REFERENCE_ID), Basis::OnlyOne)));
}

#[test]
fn measurements_of_another_build_are_ignored_and_said_to_be() {
    let mut backends = backends();
    let measured = profile(&backends, [("cpu", 500.0), (REFERENCE_ID, 100.0)]);
    let mut key = MachineKey::here();
    key.crate_version = "0.0.1".into();
    let mut other = Profile::new(key);
    for series in measured.series() {
        other.add_series(series.clone()).unwrap();
    }
    backends.set_profile(Some(other));
    let explanation = backends.explain(&MatMul::new(8, 8, 8).unwrap(), &options());
    assert!(matches!(&explanation.profile, ProfileState::Ignored(why) if why.contains("crate version")));
    assert!(matches!(explanation.choice, Some((_, Basis::DefaultRule { .. }))));
}

#[test]
fn every_known_backend_has_a_verdict() {
    let backends = backends();
    let explanation = backends.explain(&MatMul::new(32, 3072, 768).unwrap(), &options());
    let known: Vec<_> = backends.available().into_iter().map(|status| status.id).collect();
    let judged: Vec<_> = explanation.candidates.iter().map(|candidate| candidate.backend.clone()).collect();
    assert_eq!(judged, known);
    let double = explanation.candidates.iter().find(|c| c.backend.as_str() == "double").unwrap();
    assert!(matches!(&double.verdict, Verdict::Refused(why) if why.message.contains("test double")));
    #[cfg(not(target_vendor = "apple"))]
    {
        let metal = explanation.candidates.iter().find(|c| c.backend == BackendId::METAL).unwrap();
        assert!(matches!(&metal.verdict, Verdict::Unavailable(_)));
        assert_eq!(explanation.neural_engine.last().unwrap().kind, ane_matmul::ObstacleKind::OsVersion);
    }
    // The free function knows the built-in ones.
    assert!(explain(&MatMul::new(1, 1, 1).unwrap(), &options()).choice.is_some());
}

#[test]
fn auto_is_no_backend_of_its_own() {
    let backends = backends();
    assert!(backends.available().iter().all(|status| status.id != BackendId::AUTO));
    assert_eq!(backends.info(&BackendId::AUTO).unwrap().wrap_alignment_bytes, None);
    let error = backends.shared_buffer(&BackendId::AUTO, 64).unwrap_err();
    assert!(error.to_string().contains("name a backend"), "{error}");
}
