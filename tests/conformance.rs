//! Every backend that is here passes every conformance case, in every type that it takes.
//!
//! What ran, on which device, and what did not run and why, goes to standard error past the test
//! harness, so that a plain `cargo test` shows it.

use std::io::Write as _;

use ane_matmul::{
    BackendId, Backends, CompileOptions, Device, ElementType, ElementTypes, Inputs, MatMul, RefusalReason,
    Tensor, TensorView, TensorViewMut, Threads, Weights,
};
use ane_matmul_conformance::{
    Scale, cases, cases_of_type, integer_cases, run_suite, some, weight_only_cases,
};

/// The origin's figure for 16x16x16 with N(0, 0.02^2): printed beside the bound, not asserted,
/// since random draws with correct f32 sums may exceed it.
const ORIGIN_MAX_ABS_ERROR: f64 = 5e-10;

const APPLE: bool = cfg!(target_vendor = "apple");

/// A part of the suite: what it is called, its types, how much of it, the device to ask for.
type Part = (&'static str, ElementTypes, Scale, Device);

const F32: Part = ("f32", ElementTypes::F32, Scale::Full, Device::Unknown);
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
        "cpu" => &[F32, F16, BF16, F16_STORED, BF16_STORED],
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

#[test]
fn every_available_backend_conforms() {
    let backends = Backends::new();
    let mut ran = Vec::new();
    for status in backends.available() {
        let info = match &status.state {
            Ok(info) => info,
            Err(reason) => {
                say(&format!("conformance: {}: not run: {reason}", status.id));
                assert!(
                    may_be_absent(status.id.as_str(), reason, APPLE),
                    "{}: {reason}; build with ANE_MATMUL_REQUIRE_SHIMS=1 to see why",
                    status.id
                );
                continue;
            }
        };
        for &(name, types, scale, device) in parts(&status.id) {
            let options = CompileOptions::default().device(device);
            let cases = cases_of_type(types, scale);
            // What `f32` has shown of shapes and strides need not be shown of each type.
            let cases = if types == ElementTypes::F32 { cases } else { some(cases, 0, 3) };
            let start = std::time::Instant::now();
            // bf16 in Metal wants a later system, and long sums are too much for the Neural Engine.
            let allowed: &[RefusalReason] = match device {
                Device::NeuralEngine => &[RefusalReason::Dimension],
                _ => &[RefusalReason::OsVersion],
            };
            let summary = run_suite(&backends, &status.id, &options, &cases, allowed);
            let origin = summary.origin.map(|(error, bound)| {
                format!("; 16x16x16 N(0, 0.02^2): largest error {error:.2e}, bound {bound:.2e}, the origin's figure {ORIGIN_MAX_ABS_ERROR:.0e}")
            });
            say(&format!(
                "conformance: {} ({}, {}), {name}: {} of {} cases passed, {} refused, worst error/bound {:.3}, {:.1} s{}",
                status.id,
                info.device,
                info.device_name,
                summary.passed,
                cases.len(),
                summary.refused.len(),
                summary.worst_ratio,
                start.elapsed().as_secs_f64(),
                origin.unwrap_or_default()
            ));
            if let Some((case, reason)) = summary.refused.first() {
                say(&format!("conformance: {}: the first refusal: {case}: {reason}", status.id));
            }
            assert_eq!(summary.passed + summary.refused.len(), cases.len());
        }
        ran.push(status.id);
    }
    assert!(ran.contains(&BackendId::CPU));
}

#[test]
fn an_apple_build_without_its_shims_fails() {
    let left_out = "not in this build";
    assert!(include_str!("../src/backend/mod.rs").contains("shim is not in this build"));
    assert!(!may_be_absent("metal", left_out, true) && !may_be_absent("mpsgraph", left_out, true));
    assert!(!may_be_absent("accelerate", left_out, true) && may_be_absent("blas", left_out, true));
    assert!(may_be_absent("metal", left_out, false) && may_be_absent("mpsgraph", left_out, false));

    let shims = [include_str!("../objc/metal_matmul.m"), include_str!("../objc/ane_mpsgraph.m")];
    assert!(shims.iter().all(|shim| shim.contains(NO_DEVICE)) && shims[0].contains(OLD_GPU));
    assert!(may_be_absent("metal", OLD_GPU, true) && !may_be_absent("mpsgraph", OLD_GPU, true));
    assert!(may_be_absent("mpsgraph", NO_DEVICE, true));
}

/// Shared buffers and packages on every backend that is here, through the public API.
#[test]
fn every_available_backend_takes_shared_buffers_and_keeps_packages() {
    let backends = Backends::new();
    let directory = tempfile::tempdir().unwrap();
    let product = MatMul::builder(5, 7, 3).constant_b(true).build().unwrap();
    let weights = Weights::from_tensor(Tensor::filled(3, 7, 2f32).unwrap());
    for status in backends.available().into_iter().filter(|status| status.state.is_ok()) {
        let id = &status.id;
        let options = CompileOptions::default().packages(directory.path().join(id.as_str()));
        for start in ["first", "second"] {
            let compiled = backends.compile(id, &product, Some(&weights), &options).unwrap();
            let mut a = backends.shared_buffer(id, 5 * 3 * 4).unwrap();
            let mut c = backends.shared_buffer(id, 5 * 7 * 4).unwrap();
            let mut executor = compiled.executor().unwrap();
            for round in [1f32, 2.0] {
                a.elements_mut::<f32>().fill(round);
                c.elements_mut::<f32>().fill(f32::NAN);
                let inputs = Inputs::new(TensorView::new(a.elements::<f32>(), 5, 3).unwrap());
                executor.run(&inputs, TensorViewMut::new(c.elements_mut::<f32>(), 5, 7).unwrap()).unwrap();
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
