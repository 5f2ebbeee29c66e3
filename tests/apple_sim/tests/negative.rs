//! The harness's own tests: each planted fault is found, in every schedule, where it is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use apple_sim::compile::{Build, METAL_3_1, build};
use apple_sim::library::{Binding, Fault, Kernels, Memory, Report};
use apple_sim::sweep::SCHEDULES;

const FAULTS: [(&str, Fault); 32] = [
    ("missing_barrier", Fault::RaceThreadgroup),
    ("barrier_of_the_other_memory", Fault::RaceThreadgroup),
    ("barrier_of_no_memory", Fault::RaceThreadgroup),
    ("simdgroup_barrier_for_a_threadgroup", Fault::RaceThreadgroup),
    ("barrier_missing_before_reuse", Fault::RaceThreadgroup),
    ("two_writers", Fault::RaceThreadgroup),
    ("matrix_store_read_at_once", Fault::RaceThreadgroup),
    ("matrix_store_over_a_write", Fault::RaceThreadgroup),
    ("threadgroups_share_an_output", Fault::RaceDevice),
    ("threads_share_an_output", Fault::RaceDevice),
    ("device_exchange_without_device_barrier", Fault::RaceDevice),
    ("read_one_past", Fault::OutOfBounds),
    ("read_before", Fault::OutOfBounds),
    ("read_far_away", Fault::OutOfBounds),
    ("write_one_past", Fault::OutOfBounds),
    ("matrix_load_past", Fault::OutOfBounds),
    ("array_one_past", Fault::OutOfBounds),
    ("array_never_written", Fault::Uninitialised),
    ("array_of_the_group_before", Fault::Uninitialised),
    ("misaligned_vector", Fault::Misaligned),
    ("misaligned_array_vector", Fault::Misaligned),
    ("write_to_an_input", Fault::WriteToInput),
    ("read_of_an_output", Fault::ReadOfOutput),
    ("half_the_threads_at_a_barrier", Fault::Divergence),
    ("a_barrier_on_each_branch", Fault::Divergence),
    ("return_before_a_barrier", Fault::Divergence),
    ("half_the_lanes_in_a_sum", Fault::Divergence),
    ("a_lane_misses_a_store", Fault::Divergence),
    ("lanes_load_from_different_places", Fault::Divergence),
    ("too_much_threadgroup_memory", Fault::ThreadgroupMemory),
    ("buffer_not_bound", Fault::Launch),
    ("no_such_kernel", Fault::Launch),
];

const FINE: [&str; 4] = ["fine_exchange", "fine_simd_exchange", "fine_matrix", "fine_device_exchange"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("negative/faults.metal")
}

fn kernels() -> Kernels {
    let metal = source();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("negative");
    let wanted = Build { metal: &metal, include: &include, version: METAL_3_1, with_plan: false, only: &[] };
    let path = build(&wanted, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap_or_else(|e| panic!("{e}"));
    Kernels::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn run(kernels: &Kernels, name: &str, initialised: bool) -> Vec<Result<Vec<f32>, Report>> {
    SCHEDULES
        .into_iter()
        .map(|schedule| {
            let mut a = Memory::with((0..64u8).flat_map(|i| f32::from(i).to_ne_bytes()).collect());
            if !initialised {
                a.initialised[5 * 4] = 0;
            }
            let mut c = Memory::uninitialised(128 * 4);
            let bindings = [a.bind(0), c.bind(0), Binding::NONE];
            kernels.dispatch(name, &[], &bindings, [2, 1, 1], [64, 1, 1], schedule)?;
            Ok(c.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect())
        })
        .collect()
}

#[test]
fn every_fault_is_found_where_it_is() {
    let kernels = kernels();
    let text = std::fs::read_to_string(source()).expect("the source can be read");
    let mut found = HashSet::new();
    for (name, fault) in FAULTS {
        let marker = format!("// fault: {name}");
        let lines: Vec<String> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.trim_end().ends_with(&marker))
            .map(|(i, _)| format!("faults.metal:{}", i + 1))
            .collect();
        for (result, schedule) in run(&kernels, name, true).into_iter().zip(SCHEDULES) {
            let report = result.expect_err(&format!("{name} in {schedule:?} was not found"));
            // A race shows as a read of what is not yet there, where the schedule brings the reader first.
            let early = match fault {
                Fault::RaceThreadgroup => Fault::Uninitialised,
                Fault::RaceDevice => Fault::ReadOfOutput,
                _ => fault,
            };
            assert!([fault, early].contains(&report.fault), "{name} in {schedule:?}: {report}");
            found.insert((name, report.fault));
            assert!(
                lines.is_empty() && fault == Fault::Launch || lines.contains(&report.line),
                "{name} in {schedule:?} is at {lines:?}: {report}"
            );
        }
        assert!(found.contains(&(name, fault)), "{name} was never reported as {fault:?}");
    }
}

#[test]
fn kernels_without_a_fault_pass() {
    let kernels = kernels();
    for name in FINE {
        for result in run(&kernels, name, true) {
            let c = result.unwrap_or_else(|report| panic!("{name}: {report}"));
            let expected = match name {
                "fine_simd_exchange" => 31.0,
                "fine_matrix" => 0.0,
                _ => 63.0,
            };
            assert_eq!(c[0].to_bits(), f32::to_bits(expected), "{name}");
        }
    }
}

#[test]
fn every_kernel_of_the_file_is_expected() {
    let names = kernels().names();
    for name in &names {
        assert!(
            FINE.contains(&name.as_str()) || FAULTS.iter().any(|(n, _)| n == name),
            "{name} is not tested"
        );
    }
    assert_eq!(names.len(), FINE.len() + FAULTS.len() - 1);
}

#[test]
fn uninitialised_device_memory_is_found() {
    for result in run(&kernels(), "fine_exchange", false) {
        let report = result.expect_err("one element of a was never written");
        assert_eq!(
            (report.fault, report.buffer, report.byte),
            (Fault::Uninitialised, Some(0), 20),
            "{report}"
        );
    }
}
