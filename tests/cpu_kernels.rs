//! Every kernel of the CPU engine that this machine has passes the conformance suite when forced by
//! name.

mod support;

use ane_matmul::{BackendId, Backends, CompileOptions, ElementType, ElementTypes, Threads};
use ane_matmul_conformance::{
    Scale, cases_of_type, integer_cases, run_suite, shared_cases, some, weight_only_cases,
};
use support::{FORCE, emulated, on_every_kernel, on_every_kernel_of_narrow_types, report};

fn suite() {
    let backends = Backends::new();
    for (name, types) in [("f32", ElementTypes::F32), ("f64", ElementTypes::F64)] {
        let all = cases_of_type(types, if emulated() { Scale::Small } else { Scale::Full });
        for (part, threads) in [1, 2, 3].into_iter().enumerate() {
            let cases = some(all.clone(), part, 3);
            let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
            let summary = run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
            assert_eq!(summary.passed, cases.len());
            report(&format!(
                "{name}, threads: {threads}: {} cases passed, at most {:.2} of the bound",
                summary.passed, summary.worst_ratio
            ));
        }
    }
}

/// 16-bit floats, 8 and 4-bit weights, integers; the emulator has time for a part.
fn narrow_suite() {
    let backends = Backends::new();
    let scale = if emulated() { Scale::Tiny } else { Scale::Small };
    let bf16_stored =
        ElementTypes { output: ElementType::Bf16, bias: ElementType::Bf16, ..ElementTypes::BF16 };
    let f16_stored = ElementTypes { output: ElementType::F16, bias: ElementType::F16, ..ElementTypes::F16 };
    for (name, cases) in [
        ("f16", cases_of_type(ElementTypes::F16, scale)),
        ("f16 stored", cases_of_type(f16_stored, scale)),
        ("bf16", cases_of_type(ElementTypes::BF16, scale)),
        ("bf16 stored", cases_of_type(bf16_stored, scale)),
        ("weight-only", weight_only_cases(scale)),
        ("integers", integer_cases(scale)),
    ] {
        // Nothing here is worth a second thread.
        let options = CompileOptions::default().threads(Threads::ONE);
        let cases = some(cases, 0, 4);
        let summary = run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
        assert_eq!(summary.passed, cases.len());
        report(&format!("{name}: {} cases passed", summary.passed));
    }
    let cases = shared_cases();
    for threads in if emulated() { 2..3 } else { 2..4 } {
        let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
        let summary = run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
        report(&format!("shared by {threads} threads: {} cases passed", summary.passed));
    }
}

#[test]
fn every_kernel_conforms_on_narrow_types() {
    on_every_kernel_of_narrow_types("every_kernel_conforms_on_narrow_types", narrow_suite);
}

#[test]
fn every_kernel_conforms_when_forced_by_name() {
    on_every_kernel("every_kernel_conforms_when_forced_by_name", suite);
}

/// In a process of its own, whose environment no other test reads.
#[test]
fn kernels_that_nobody_knows_are_a_reason_that_names_those_here() {
    const TEST: &str = "kernels_that_nobody_knows_are_a_reason_that_names_those_here";
    if std::env::var(FORCE).is_ok_and(|name| name == "nonsense") {
        let backends = Backends::new();
        let status = backends.available().into_iter().find(|status| status.id == BackendId::CPU);
        let reason = status.expect("cpu is listed").state.expect_err("cpu has no such kernels");
        assert!(reason.contains("ANE_MATMUL_CPU=nonsense") && reason.contains("portable"), "{reason}");
        println!("{reason}");
        return;
    }
    let output = support::this_executable()
        .args(["--exact", TEST, "--nocapture"])
        .env(FORCE, "nonsense")
        .output()
        .expect("this executable runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
