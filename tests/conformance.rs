//! Every backend that is here passes every conformance case, in every type that it takes.
//!
//! What ran, on which device, and what did not run and why, goes to standard error past the test
//! harness, so that a plain `cargo test` shows it. `ANE_MATMUL_TEST_BACKENDS=cpu,accelerate` runs those alone.

use std::collections::BTreeMap;
use std::io::Write as _;

use ane_matmul::{
    BackendId, BackendInfo, BackendStatus, Backends, CompileOptions, Device, ElementType, ElementTypes,
    Inputs, MatMul, RefusalReason, Tensor, TensorView, TensorViewMut, Threads, Weights,
};
use ane_matmul_conformance::{
    List, Scale, Suite, Way, cases, cases_of_type, integer_cases, run_suite, some, weight_only_cases,
};

/// The origin's figure for 16x16x16 with N(0, 0.02^2): printed beside the bound, not asserted,
/// since random draws with correct f32 sums may exceed it.
const ORIGIN_MAX_ABS_ERROR: f64 = 5e-10;

const APPLE: bool = cfg!(target_vendor = "apple");

/// A part of the suite: what it is called, its types, how much of it, the device to ask for.
type Part = (&'static str, ElementTypes, Scale, Device);

const F32: Part = ("f32", ElementTypes::F32, Scale::Full, Device::Unknown);
const F64: Part = ("f64", ElementTypes::F64, Scale::Full, Device::Unknown);
const F16: Part = ("f16", ElementTypes::F16, Scale::Full, Device::Unknown);
const BF16: Part = ("bf16", ElementTypes::BF16, Scale::Full, Device::Unknown);
const F16_STORED_TYPES: ElementTypes =
    ElementTypes { output: ElementType::F16, bias: ElementType::F16, ..ElementTypes::F16 };
const BF16_STORED: Part = (
    "bf16 stored, f32 sums",
    ElementTypes { output: ElementType::Bf16, bias: ElementType::Bf16, ..ElementTypes::BF16 },
    Scale::Full,
    Device::Unknown,
);
const F16_TYPES: ElementTypes = ElementTypes { accumulator: ElementType::F16, ..F16_STORED_TYPES };
const F16_STORED: Part = ("f16 stored, f32 sums", F16_STORED_TYPES, Scale::Small, Device::Unknown);
const F16_THROUGHOUT: Part = ("f16 throughout", F16_TYPES, Scale::Small, Device::Unknown);
const NEURAL_ENGINE: Part =
    ("f16 throughout, the Neural Engine a candidate", F16_TYPES, Scale::Small, Device::NeuralEngine);

/// What a backend is asked to run.
fn parts(id: &BackendId) -> &'static [Part] {
    match id.as_str() {
        "metal" => &[F32, F16, BF16],
        "mpsgraph" => &[F32, F16, F16_STORED, F16_THROUGHOUT, NEURAL_ENGINE],
        "cpu" => &[F32, F64, F16, BF16, F16_STORED, BF16_STORED],
        _ => &[F32],
    }
}

/// Says something that the harness does not keep to itself.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error can be written");
}

/// What the shims say where an Apple machine itself lacks what they need.
const NO_DEVICE: &str = "there is no Metal device";
const OLD_GPU: &str = "has no simdgroup_matrix";

/// Whether a backend may be absent. On an Apple system the shims are built and their devices open, or
/// the machine lacks what they need.
fn may_be_absent(id: &str, reason: &str, apple: bool) -> bool {
    match id {
        "metal" if apple => reason.contains(NO_DEVICE) || reason.contains(OLD_GPU),
        "mpsgraph" if apple => reason.contains(NO_DEVICE),
        "accelerate" => !apple,
        "cpu" => false,
        _ => true,
    }
}

/// Names the backends that are to be run, separated by commas; without it all that are here are. One that is named
/// and not here is a failure.
const ONLY: &str = "ANE_MATMUL_TEST_BACKENDS";

/// Why a backend does not run, where that is as it should be; `None` where it runs.
///
/// # Errors
/// Why it ought to run, and does not.
fn why_not(
    id: &str,
    absent: Option<&str>,
    only: Option<&str>,
    apple: bool,
) -> Result<Option<String>, String> {
    let named = only.map(|only| only.split(',').any(|name| name == id));
    match (absent, named) {
        (_, Some(false)) => Ok(Some(format!("{ONLY} names others"))),
        (None, _) => Ok(None),
        (Some(reason), Some(true)) => Err(format!("{id} is named by {ONLY}, and is not here: {reason}")),
        (Some(reason), None) if may_be_absent(id, reason, apple) => Ok(Some(reason.into())),
        (Some(reason), None) => {
            Err(format!("{id}: {reason}; build with ANE_MATMUL_REQUIRE_SHIMS=1 to see why"))
        }
    }
}

/// The backends to run; says of the others that they are not run, and why.
fn to_run(backends: &Backends) -> Vec<(BackendId, BackendInfo)> {
    let statuses = backends.available();
    let only = std::env::var(ONLY).ok();
    for name in only.iter().flat_map(|only| only.split(',')) {
        let known = statuses.iter().any(|status| status.id.as_str() == name);
        assert!(known, "{ONLY} names `{name}`, which is no backend");
    }
    let mut run = Vec::new();
    for BackendStatus { id, state, .. } in statuses {
        let absent = state.as_ref().err().map(String::as_str);
        match why_not(id.as_str(), absent, only.as_deref(), APPLE) {
            Ok(Some(reason)) => say(&format!("conformance: {id}: not run: {reason}")),
            Ok(None) => run.push((id, state.expect("it is here"))),
            Err(fault) => panic!("{fault}"),
        }
    }
    assert!(!run.is_empty());
    run
}

#[test]
fn every_available_backend_conforms() {
    let backends = Backends::new();
    for (id, info) in to_run(&backends) {
        for &(name, types, scale, device) in parts(&id) {
            let options = CompileOptions::default().device(device);
            let cases = cases_of_type(types, scale);
            // What `f32` has shown of shapes and strides need not be shown of each type.
            let cases = if types == ElementTypes::F32 { cases } else { some(cases, 0, 3) };
            let start = std::time::Instant::now();
            // bf16 in Metal wants a later system, long sums are too much for the Neural Engine, and MPSGraph has faults
            // on some chips.
            let allowed: &[RefusalReason] = match (id.as_str(), device) {
                ("mpsgraph", Device::NeuralEngine) => &[RefusalReason::Dimension, RefusalReason::VendorFault],
                ("mpsgraph", _) => &[RefusalReason::VendorFault],
                _ => &[RefusalReason::OsVersion],
            };
            let summary = run_suite(&backends, &id, &options, &cases, allowed);
            let origin = summary.origin.map(|(error, bound)| {
                format!("; 16x16x16 N(0, 0.02^2): largest error {error:.2e}, bound {bound:.2e}, the origin's figure {ORIGIN_MAX_ABS_ERROR:.0e}")
            });
            say(&format!(
                "conformance: {} ({}, {}), {name}: {} of {} cases passed, {} refused, worst error/bound {:.3}, {:.1} s{}",
                id,
                info.device,
                info.device_name,
                summary.passed,
                cases.len(),
                summary.refused.len(),
                summary.worst_ratio,
                start.elapsed().as_secs_f64(),
                origin.unwrap_or_default()
            ));
            let reasons: BTreeMap<_, _> =
                summary.refused.iter().map(|(case, reason)| (reason.as_str(), case)).collect();
            for (reason, case) in reasons {
                let count = summary.refused.iter().filter(|(_, other)| other == reason).count();
                say(&format!("conformance: {id}: {count} refused, {case} among them: {reason}"));
            }
            assert_eq!(summary.passed + summary.refused.len(), cases.len());
            assert!(summary.passed > 0 || types.a == ElementType::Bf16, "{id} refuses every case");
        }
    }
}

/// Submissions, and operands that stay on the device, in every type.
#[test]
fn every_available_backend_takes_submissions_and_keeps_operands() {
    let backends = Backends::new();
    // Of narrow types most backends take some.
    let allowed = [RefusalReason::ElementType, RefusalReason::Quantization, RefusalReason::VendorFault];
    let options = CompileOptions::default();
    for (id, info) in to_run(&backends) {
        for list in [List::Asynchronous, List::Resident] {
            let (start, cases) = (std::time::Instant::now(), some(list.cases(), 0, 3));
            let suite = Suite::new(&backends, &id, &options).way(list.way());
            let summary = suite.check(&cases, &allowed);
            say(&format!(
                "conformance: {id} ({}, {}), {list}: {} of {} cases passed, {} refused, {:.1} s",
                info.device,
                info.device_name,
                summary.passed,
                cases.len(),
                summary.refused.len(),
                start.elapsed().as_secs_f64(),
            ));
            assert_eq!(summary.passed + summary.refused.len(), cases.len());
            assert!(summary.passed > cases.len() / 2 && (id != BackendId::CPU || summary.refused.is_empty()));
        }
    }
}

/// A case is known by its list and number: both stay what they are.
#[test]
fn a_name_and_a_number_stand_for_one_case() {
    let mut ways = Vec::new();
    for list in List::ALL {
        assert_eq!(list.name().parse(), Ok(list));
        let cases = list.cases();
        assert!(cases.len() > 800, "{list}: {}", cases.len());
        assert_eq!(cases, list.cases());
        assert!(cases.iter().all(|case| case.describe().is_ok()), "{list}");
        if !ways.contains(&list.way()) {
            ways.push(list.way());
        }
    }
    assert_eq!(ways, [Way::Host, Way::Submitted, Way::Resident]);
    assert!("f8".parse::<List>().unwrap_err().contains("weight-only"));
}

#[test]
fn an_apple_build_without_its_shims_fails() {
    let left_out = "not in this build";
    assert!(include_str!("../src/backend/mod.rs").contains("shim is not in this build"));
    assert!(!may_be_absent("metal", left_out, true) && !may_be_absent("mpsgraph", left_out, true));
    assert!(!may_be_absent("accelerate", left_out, true) && may_be_absent("blas", left_out, true));
    assert!(may_be_absent("metal", left_out, false) && may_be_absent("mpsgraph", left_out, false));

    let (support, metal) = (include_str!("../objc/shim_support.h"), include_str!("../objc/metal_matmul.m"));
    assert!(support.contains(NO_DEVICE) && metal.contains(OLD_GPU));
    assert!(may_be_absent("metal", OLD_GPU, true) && !may_be_absent("mpsgraph", OLD_GPU, true));
    assert!(may_be_absent("mpsgraph", NO_DEVICE, true));
}

/// What is left out is said to be, and what is named runs or fails.
#[test]
fn a_backend_that_is_named_is_not_left_out() {
    let reason = |why: &str| Ok(Some(why.to_owned()));
    for apple in [false, true] {
        assert_eq!(why_not("cpu", None, None, apple), Ok(None));
        assert_eq!(why_not("metal", None, Some("metal,mpsgraph"), apple), Ok(None));
        for absent in [None, Some(NO_DEVICE)] {
            assert_eq!(why_not("metal", absent, Some("cpu"), apple), reason(&format!("{ONLY} names others")));
        }
        assert_eq!(why_not("metal", Some(NO_DEVICE), None, apple), reason(NO_DEVICE));
        let fault = why_not("metal", Some(NO_DEVICE), Some("cpu,metal"), apple).unwrap_err();
        assert!(fault.contains(ONLY) && fault.contains(NO_DEVICE), "{fault}");
        assert!(why_not("cpu", Some("gone"), None, apple).is_err());
    }
    // No name is taken for a part of another.
    assert!(why_not("metal", Some(NO_DEVICE), Some("metallic"), true).unwrap().is_some());
}

/// Shared buffers and packages on every backend that is here, through the public API.
#[test]
fn every_available_backend_takes_shared_buffers_and_keeps_packages() {
    let backends = Backends::new();
    let directory = tempfile::tempdir().unwrap();
    let weights = Weights::from_tensor(Tensor::filled(3, 7, 2f32).unwrap());
    let product = MatMul::new(5, 7, 3).unwrap().with_weights(&weights).unwrap();
    for (id, _) in &to_run(&backends) {
        let options = CompileOptions::default().packages(directory.path().join(id.as_str()));
        for start in ["first", "second"] {
            let compiled = backends.compile(id, &product, &options).unwrap();
            let mut a = backends.shared_buffer(id, 5 * 3 * 4).unwrap();
            let mut c = backends.shared_buffer(id, 5 * 7 * 4).unwrap();
            let mut executor = compiled.executor().unwrap();
            for round in [1f32, 2.0] {
                a.elements_mut::<f32>().fill(round);
                c.elements_mut::<f32>().fill(f32::NAN);
                let inputs = Inputs::new(TensorView::new(a.elements::<f32>(), 5, 3).unwrap());
                executor.run(inputs, TensorViewMut::new(c.elements_mut::<f32>(), 5, 7).unwrap()).unwrap();
                assert_eq!(c.elements::<f32>(), [6.0 * round; 35], "{id}, {start} start");
            }
            let report = compiled.report();
            say(&format!(
                "packages: {id}, {start} start: from a package: {}, {:?}{}",
                report.from_package,
                report.compile_time,
                report.note.as_deref().map(|note| format!("; {note}")).unwrap_or_default()
            ));
            // Systems that cannot keep a product say so in the note.
            let expected = id == &BackendId::MPSGRAPH && start == "second" && report.note.is_none();
            assert_eq!(report.from_package, expected, "{id}, {start} start");
        }
    }
}

/// Quantised products on the CPU backend: all types and schemes, on any number of threads.
#[test]
fn the_cpu_backend_conforms_on_quantised_products() {
    let backends = Backends::new();
    for (name, cases) in
        [("integers", integer_cases(Scale::Full)), ("weight-only", weight_only_cases(Scale::Full))]
    {
        for (part, threads) in [1, 3].into_iter().enumerate() {
            let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
            let cases = some(cases.clone(), part, 4);
            let summary = run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
            assert_eq!(summary.passed, cases.len());
            say(&format!(
                "conformance: cpu, {name}, threads: {threads}: {} cases passed, worst error/bound {:.3}",
                summary.passed, summary.worst_ratio
            ));
        }
    }
}

#[test]
fn the_cpu_backend_conforms_on_any_number_of_threads() {
    let backends = Backends::new();
    for (part, threads) in [1, 2, 3, 7].into_iter().enumerate() {
        let cases = some(cases(Scale::Full), part, 4);
        let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
        run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
    }
}

/// The bounds of the reference and of self-checks are the same where operands may be truncated, which the CPU
/// does not do.
#[test]
fn the_cpu_backend_conforms_with_reduced_precision() {
    let backends = Backends::new();
    let mut options = CompileOptions::default();
    options.reduced_precision = true;
    for (part, cases) in [cases(Scale::Full), integer_cases(Scale::Small), weight_only_cases(Scale::Small)]
        .into_iter()
        .enumerate()
    {
        let cases = some(cases, part, 4);
        let summary = run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
        assert_eq!(summary.passed, cases.len());
    }
}
