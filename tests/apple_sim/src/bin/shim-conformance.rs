//! The crate's whole conformance suite through the Objective-C shims and the test doubles of their
//! frameworks, in every type that they take; on devices of other classes, whose tiles differ or which
//! lack a fault of the first, its small cases.
//!
//! `shim-conformance [metal|mpsgraph] [small]`; with `small`, the small cases on all of them.

use std::path::Path;
use std::sync::Arc;

use ane_matmul::{
    BackendId, Backends, CompileOptions, Device, ElementType, ElementTypes, Inputs, MatMul, RefusalReason,
    ShimLibrary, Submission, Tensor, TensorView, TensorViewMut, Weights,
};
use ane_matmul_conformance::{Scale, cases_of_type, run_suite, some};
use apple_sim::host::{Host, Shim, build};

const F16_STORED: ElementTypes =
    ElementTypes { output: ElementType::F16, bias: ElementType::F16, ..ElementTypes::F16 };
const F16_THROUGHOUT: ElementTypes = ElementTypes { accumulator: ElementType::F16, ..F16_STORED };

const ANY: Device = Device::Unknown;

struct Subject {
    name: &'static str,
    getter: &'static str,
    /// `metal` and `mpsgraph` are names that the crate keeps for Apple targets.
    double: &'static std::ffi::CStr,
    devices: &'static [&'static str],
    types: &'static [(&'static str, ElementTypes, Device)],
}

const SUBJECTS: [Subject; 2] = [
    Subject {
        name: "metal",
        getter: "ane_metal_shim",
        double: c"metal-double",
        devices: &["Apple M1", "Apple M4 Max", "Apple M2 Ultra"],
        types: &[
            ("f32", ElementTypes::F32, ANY),
            ("f16", ElementTypes::F16, ANY),
            ("bf16", ElementTypes::BF16, ANY),
        ],
    },
    Subject {
        name: "mpsgraph",
        getter: "ane_mpsgraph_shim",
        double: c"mpsgraph-double",
        devices: &["Apple M1", "Apple M4 Max"],
        types: &[
            ("f32", ElementTypes::F32, ANY),
            ("f16", ElementTypes::F16, ANY),
            ("f16 stored, f32 sums", F16_STORED, ANY),
            ("f16 throughout", F16_THROUGHOUT, ANY),
            ("f16 throughout, the Neural Engine a candidate", F16_THROUGHOUT, Device::NeuralEngine),
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
        shared_buffers(subject, &host).unwrap_or_else(|e| panic!("{e}"));
        submissions(subject, &host).unwrap_or_else(|e| panic!("{e}"));
        packages(subject, &host, &own).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
        assert_eq!(host.counter("live_objects"), 0, "objects left");
    }
    std::fs::remove_dir_all(&own).expect("a directory of ours can be removed");
    println!("test result: ok");
}

/// The shim as a backend of the crate's.
fn backends(subject: &Subject, host: &Host) -> (Backends, BackendId) {
    let mut backends = Backends::new();
    let table: &'static Shim = Box::leak(Box::new(Shim { name: subject.double.as_ptr(), ..*host.shim }));
    // SAFETY: the table is static, and the shim keeps to the ABI as far as its own tests tell.
    let shim = unsafe { ShimLibrary::from_table((&raw const *table).cast(), Path::new(subject.name)) }
        .unwrap_or_else(|e| panic!("{e}"));
    let id = backends.add(shim).unwrap_or_else(|e| panic!("{e}"));
    assert!(backends.info(&id).unwrap_or_else(|e| panic!("{e}")).is_test_double);
    (backends, id)
}

/// Shared buffers of the Rust API reach the shim as such: a run makes no buffers of its own.
fn shared_buffers(subject: &Subject, host: &Host) -> ane_matmul::Result<()> {
    let (backends, id) = backends(subject, host);
    let compiled = backends.compile(&id, &MatMul::new(5, 7, 3)?, &CompileOptions::default())?;
    let mut executor = compiled.executor()?;
    let mut a = backends.shared_buffer(&id, 5 * 3 * 4)?;
    let mut b = backends.shared_buffer(&id, 3 * 7 * 4)?;
    let mut c = backends.shared_buffer(&id, 5 * 7 * 4)?;
    b.elements_mut::<f32>().fill(2.0);
    let made = host.counter("buffers_made");
    for round in 1..=4u8 {
        a.elements_mut::<f32>().fill(f32::from(round));
        let inputs = Inputs::new(TensorView::new(a.elements::<f32>(), 5, 3)?).b(TensorView::new(
            b.elements::<f32>(),
            3,
            7,
        )?);
        executor.run(inputs, TensorViewMut::new(c.elements_mut::<f32>(), 5, 7)?)?;
        assert_eq!(c.elements::<f32>(), [6.0 * f32::from(round); 35]);
    }
    assert_eq!(host.counter("buffers_made"), made, "operands in shared buffers were copied");
    println!("{}: shared buffers are used in place", subject.name);
    Ok(())
}

/// Matrices that stay on the device and runs that are submitted reach the shim as such, also where the host does not
/// see the device's memory.
fn submissions(subject: &Subject, host: &Host) -> ane_matmul::Result<()> {
    for unified in [1, 0] {
        host.set("set_unified", unified);
        let (backends, id) = backends(subject, host);
        let compiled = backends.compile(&id, &MatMul::new(5, 7, 3)?, &CompileOptions::default())?;
        let memory = compiled.memory();
        let b = Arc::new(memory.upload(&Tensor::filled(3, 7, 2f32)?)?);
        let mut executor = compiled.executor_with_depth(3)?;
        let mut tickets = Vec::new();
        for value in [1f32, 2.0, 3.0] {
            let (a, c) =
                (memory.upload(&Tensor::filled(5, 3, value)?)?, memory.zeros(ElementType::F32, 5, 7)?);
            assert_eq!(c.view().is_some(), unified == 1, "the host sees the memory of a private buffer");
            let submission = Submission::new(a, c).b(Arc::clone(&b));
            tickets.push(executor.submit(submission).map_err(|e| e.error)?);
        }
        for (ticket, value) in tickets.into_iter().zip([1f32, 2.0, 3.0]).rev() {
            let done = executor.wait(ticket).map_err(|e| e.error)?;
            assert_eq!(done.submission.c.download::<f32>()?.data(), [6.0 * value; 35]);
        }
    }
    host.set("set_unified", 1);
    println!("{}: submissions on memory of the device", subject.name);
    Ok(())
}

/// A second start loads what the first compiled, where the shim keeps it: products with one operand.
fn packages(subject: &Subject, host: &Host, dir: &Path) -> ane_matmul::Result<()> {
    let (weights, bias) = (Weights::from_tensor(Tensor::filled(3, 7, 2f32)?), vec![1f32; 7]);
    let product = MatMul::new(5, 7, 3)?.with_weights(&weights)?;
    let biased = MatMul::builder(5, 7, 3).bias(true).with_weights(&weights)?;
    let (input, mut loaded) = (Tensor::filled(5, 3, 1f32)?, Vec::new());
    for chip in ["Apple M1", "Apple M1", "Apple M4 Max", "Apple M1"] {
        host.set_device_name(chip);
        let (backends, id) = backends(subject, host);
        let options = CompileOptions::default().packages(dir.join("packages"));
        let compiled = backends.compile(&id, &product, &options)?;
        assert_eq!(compiled.run_to_tensor(Inputs::new(&input))?.data(), [6.0; 35]);
        let report = compiled.report();
        assert_eq!(report.note.is_some(), subject.name == "metal", "{:?}", report.note);
        let compiled = backends.compile(&id, &biased, &options)?;
        assert_eq!(compiled.run_to_tensor(Inputs::new(&input).bias(&bias))?.data(), [7.0; 35]);
        assert!(compiled.report().note.is_some() && !compiled.report().from_package);
        loaded.push(report.from_package);
    }
    assert_eq!(loaded, [false, subject.name == "mpsgraph", false, subject.name == "mpsgraph"]);
    println!("{}: started four times, from a package {loaded:?}", subject.name);
    Ok(())
}

fn run(subject: &Subject, host: &Host, small: bool) {
    let baseline = host.counter("live_objects");
    // Late enough to catch a missing wait, and no longer: this is thousands of runs.
    host.set("set_latency_us", 50);
    for (index, name) in subject.devices.iter().enumerate() {
        host.set_device_name(name);
        let scale = if index == 0 && !small { Scale::Full } else { Scale::Small };
        let (backends, id) = backends(subject, host);
        for (types_name, types, device) in subject.types {
            let cases = cases_of_type(*types, scale);
            // The first device has every f32 case in every run.
            let whole = scale == Scale::Full && *types == ElementTypes::F32;
            let cases = if whole { cases } else { some(cases, index, 4) };
            // The suite has one sum that is too long for the Neural Engine.
            let allowed: &[RefusalReason] =
                if *device == Device::NeuralEngine { &[RefusalReason::Dimension] } else { &[] };
            let options = CompileOptions::default().device(*device);
            let summary = run_suite(&backends, &id, &options, &cases, allowed);
            println!(
                "{}: {name} (double), {types_name}: {} of {} cases passed, {} refused, worst error/bound {:.3}",
                subject.name,
                summary.passed,
                cases.len(),
                summary.refused.len(),
                summary.worst_ratio
            );
            assert_eq!(summary.passed + summary.refused.len(), cases.len());
            assert!(summary.refused.len() <= 1, "{:?}", summary.refused);
        }
    }
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("open_intervals"), 0, "intervals begun and not ended");
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}
