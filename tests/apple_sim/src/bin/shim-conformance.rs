//! The crate's whole conformance suite through the Objective-C shims and the test doubles of their
//! frameworks, in every type that they take; on devices of other classes, whose tiles differ or which
//! lack a fault of the first, its small cases.
//!
//! `shim-conformance [metal|mpsgraph] [small]`; with `small`, the small cases on all of them.

use std::path::Path;

use ane_matmul::{Backends, CompileOptions, ElementType, ElementTypes, ShimLibrary};
use ane_matmul_conformance::{Scale, cases_of_type, run_suite};
use apple_sim::host::{Host, Shim, build};

const F16_STORED: ElementTypes =
    ElementTypes { output: ElementType::F16, bias: ElementType::F16, ..ElementTypes::F16 };
const F16_THROUGHOUT: ElementTypes = ElementTypes { accumulator: ElementType::F16, ..F16_STORED };

struct Subject {
    name: &'static str,
    getter: &'static str,
    /// `metal` and `mpsgraph` are names that the crate keeps for Apple targets.
    double: &'static std::ffi::CStr,
    devices: &'static [&'static str],
    types: &'static [(&'static str, ElementTypes)],
}

const SUBJECTS: [Subject; 2] = [
    Subject {
        name: "metal",
        getter: "ane_metal_shim",
        double: c"metal-double",
        devices: &["Apple M1", "Apple M4 Max", "Apple M2 Ultra"],
        types: &[("f32", ElementTypes::F32), ("f16", ElementTypes::F16), ("bf16", ElementTypes::BF16)],
    },
    Subject {
        name: "mpsgraph",
        getter: "ane_mpsgraph_shim",
        double: c"mpsgraph-double",
        devices: &["Apple M1", "Apple M4 Max"],
        types: &[
            ("f32", ElementTypes::F32),
            ("f16", ElementTypes::F16),
            ("f16 stored, f32 sums", F16_STORED),
            ("f16 throughout", F16_THROUGHOUT),
        ],
    },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let program = std::env::current_exe().expect("this program has a path");
    let dir = program.with_file_name("apple-sim");
    let own = dir.join(format!("conformance-{}", std::process::id()));
    let library = build(&apple_sim::compile::objc_dir(), &own, &[]).unwrap_or_else(|e| panic!("{e}"));
    let chosen = |subject: &&Subject| {
        let named = |s: &Subject| arguments.iter().any(|a| a == s.name);
        named(subject) || !SUBJECTS.iter().any(named)
    };
    for subject in SUBJECTS.iter().filter(chosen) {
        let host = Host::open(&library, subject.getter, &program.with_file_name("metal-cc"), &dir)
            .unwrap_or_else(|e| panic!("{e}"));
        run(subject, &host, arguments.iter().any(|a| a == "small"));
    }
    std::fs::remove_dir_all(&own).expect("a directory of ours can be removed");
    println!("test result: ok");
}

fn run(subject: &Subject, host: &Host, small: bool) {
    let baseline = host.counter("live_objects");
    for (index, name) in subject.devices.iter().enumerate() {
        host.set_device_name(name);
        let scale = if index == 0 && !small { Scale::Full } else { Scale::Small };
        let mut backends = Backends::new();
        let table: &'static Shim = Box::leak(Box::new(Shim { name: subject.double.as_ptr(), ..*host.shim }));
        // SAFETY: the table is static, and the shim keeps to the ABI as far as its own tests tell.
        let shim = unsafe { ShimLibrary::from_table((&raw const *table).cast(), Path::new(subject.name)) }
            .unwrap_or_else(|e| panic!("{e}"));
        let id = backends.add(shim).unwrap_or_else(|e| panic!("{e}"));
        assert!(backends.info(&id).unwrap_or_else(|e| panic!("{e}")).is_test_double);
        for (types_name, types) in subject.types {
            let cases = cases_of_type(*types, scale);
            let summary = run_suite(&backends, &id, &CompileOptions::default(), &cases, &[]);
            println!(
                "{}: {name} (double), {types_name}: {} of {} cases passed, {} refused, worst error/bound {:.3}",
                subject.name,
                summary.passed,
                cases.len(),
                summary.refused.len(),
                summary.worst_ratio
            );
            assert_eq!(summary.passed, cases.len());
        }
    }
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("open_intervals"), 0, "intervals begun and not ended");
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}
