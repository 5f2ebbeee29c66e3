//! The crate's whole conformance suite through `metal_matmul.m`, the double of Metal and the emulated
//! kernels, in every type that the kernels take; on devices of the larger classes, whose tiles differ,
//! its small cases.
//!
//! With the argument `small`, the small cases on all of them.

use std::path::Path;

use ane_matmul::{Backends, CompileOptions, ElementTypes, RefusalReason, ShimLibrary};
use ane_matmul_conformance::{Scale, cases_of_type, run_suite};
use apple_sim::host::{Host, Shim, build};

fn main() {
    let program = std::env::current_exe().expect("this program has a path");
    let dir = program.with_file_name("apple-sim");
    let own = dir.join(format!("conformance-{}", std::process::id()));
    let library = build(&apple_sim::compile::objc_dir(), &own, &[]).unwrap_or_else(|e| panic!("{e}"));
    let host =
        Host::open(&library, &program.with_file_name("metal-cc"), &dir).unwrap_or_else(|e| panic!("{e}"));
    std::fs::remove_dir_all(&own).expect("a directory of ours can be removed");
    let baseline = host.counter("live_objects");
    let first = if std::env::args().any(|a| a == "small") { Scale::Small } else { Scale::Full };
    for (name, scale) in
        [("Apple M1", first), ("Apple M4 Max", Scale::Small), ("Apple M2 Ultra", Scale::Small)]
    {
        host.set_device_name(name);
        let mut backends = Backends::new();
        // `metal` itself is a name that the crate keeps for Apple targets.
        let table: &'static Shim = Box::leak(Box::new(Shim { name: c"metal-double".as_ptr(), ..*host.shim }));
        // SAFETY: the table is static, and the shim keeps to the ABI as far as its own tests tell.
        let shim =
            unsafe { ShimLibrary::from_table((&raw const *table).cast(), Path::new("metal_matmul.m")) }
                .unwrap_or_else(|e| panic!("{e}"));
        let id = backends.add(shim).unwrap_or_else(|e| panic!("{e}"));
        assert!(backends.info(&id).unwrap_or_else(|e| panic!("{e}")).is_test_double);
        for (types_name, types) in
            [("f32", ElementTypes::F32), ("f16", ElementTypes::F16), ("bf16", ElementTypes::BF16)]
        {
            let cases = cases_of_type(types, scale);
            let allowed: &[RefusalReason] = &[];
            let summary = run_suite(&backends, &id, &CompileOptions::default(), &cases, allowed);
            println!(
                "{name} (double), {types_name}: {} of {} cases passed, {} refused, worst error/bound {:.3}",
                summary.passed,
                cases.len(),
                summary.refused.len(),
                summary.worst_ratio
            );
            assert_eq!(summary.passed, cases.len());
        }
    }
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
    println!("test result: ok. {} dispatches", host.counter("dispatches"));
}
