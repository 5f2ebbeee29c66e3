//! Every kernel of `objc/matmul.metal`, in every schedule (in two, where it must be quick), against a float64 oracle.

use std::path::{Path, PathBuf};

use ane_matmul_conformance::thorough;
use apple_sim::compile::{Build, METAL_3_0, METAL_3_1, MetalVersion, build, objc_dir};
use apple_sim::library::{Kernels, Schedule};
use apple_sim::plan::device_class;
use apple_sim::sweep;

fn kernels(version: MetalVersion) -> Kernels {
    let (objc, dir) = (objc_dir(), PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let metal = objc.join("matmul.metal");
    let wanted = Build { metal: &metal, include: &objc, version, with_plan: true, only: &[] };
    let path = build(&wanted, Path::new(&dir)).unwrap_or_else(|e| panic!("{e}"));
    Kernels::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn all_cases_in_the_schedules() {
    let kernels = kernels(METAL_3_1);
    let cases = sweep::cases();
    // In order and against it, which shows what one threadgroup leaves to another.
    let schedules = if thorough() { &sweep::SCHEDULES[..] } else { &[Schedule::Ahead(0), Schedule::Reverse] };
    let tallies = sweep::run(&kernels, &cases, schedules, 10).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    println!("{} cases, {} schedules each", cases.len(), schedules.len());
    for (kernel, tally) in &tallies {
        println!(
            "{kernel}: {} cases, {} dispatches, {} B threadgroup memory",
            tally.cases, tally.dispatches, tally.threadgroup_bytes
        );
    }
    for name in kernels.names() {
        assert!(tallies.contains_key(&name), "no case runs {name}");
    }
}

/// A phone's "A17 Pro" is not a Mac's Pro, and what nobody knows is small.
#[test]
fn devices_are_classed_and_metal_3_0_has_no_bf16() {
    let kernels = kernels(METAL_3_0);
    let (small, medium, large) = (0, 1, 2);
    for (architecture, name, class) in [
        ("applegpu_g13g", "Apple M1", small),
        ("applegpu_g14s", "Apple M2 Pro", medium),
        ("applegpu_g17p", "Apple A17 Pro GPU", small),
        ("applegpu_g13s", "Apple M1 Max", medium),
        ("applegpu_g14d", "Apple M2 Ultra", large),
        ("applegpu_g99d", "of a name not known", large),
        ("air64_v27", "Apple Paravirtual device", small),
        ("", "Apple A17 Pro GPU", small),
        ("", "Apple M1 Pro", medium),
        ("", "Apple M1 Max", medium),
        ("", "Apple M1 Ultra", large),
    ] {
        assert_eq!(device_class(&kernels, architecture, name), class, "{architecture}, {name}");
    }
    let names = kernels.names();
    assert!(
        names.iter().any(|n| n.contains("f16")) && !names.iter().any(|n| n.contains("bf16")),
        "{names:?}"
    );
}
