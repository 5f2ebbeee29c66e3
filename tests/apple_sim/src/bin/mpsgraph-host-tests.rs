//! `ane_mpsgraph.m` through the C ABI, over the double of MPSGraph.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use apple_sim::case::{ALLOW_KNOWN_FAULTS, Case, Data, Passing};
use apple_sim::drive::{
    BACKGROUND, COMPILE_FAILED, EXCEPTION, INTERNAL, INVALID_ARGUMENT, IO, NO_DEVICE, NOT_IMPLEMENTED,
    OUT_OF_MEMORY, Open, PACKAGE_MISMATCH, REFUSED, RUN_FAILED, TIMEOUT, bad_runs, close, device, endurance,
    no_violations, run_tests, setting, simple, status, threads,
};
use apple_sim::host::{
    AneError, ConstantDesc, Constants, ExecutorOptions, Host, Operand, Options, ProductInfo, RunArgs,
    RunInfo, create,
};
use apple_sim::plan::{Desc, Overrides, element, flag};
use apple_sim::{submissions, sweep};

const GPU: i32 = 2;
const NEURAL_ENGINE: i32 = 3;
/// `ANE_REFUSAL_VENDOR_FAULT`.
const VENDOR_FAULT: i32 = 14;

/// Every case that the kernels run, as far as MPSGraph has the type, by every way of passing operands.
fn cases_through_the_abi(host: &Host) {
    let baseline = host.counter("live_objects");
    let bf16 = |case: &Case| {
        case.input == element::BF16 || case.output == element::BF16 || case.bias == Some(element::BF16)
    };
    let cases = sweep::cases();
    let mine = cases.iter().filter(|case| !bf16(case)).step_by(setting("ANE_SIM_CASE_STEP", 2));
    let device = device(host);
    let mut run = 0;
    for (i, case) in mine.enumerate() {
        let case = Case { overrides: Overrides::default(), ..case.clone() };
        // SAFETY: opened above.
        unsafe { case.run_shim(host, device, Passing::ALL[i % Passing::ALL.len()]) }
            .unwrap_or_else(|e| panic!("{e}"));
        run += 1;
    }
    close(host, device);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
    println!("  {run} cases, {} runs encoded", host.counter("runs_encoded"));
}

/// One whole life of everything, with every feed: bias and residual too.
fn life(host: &Host) -> Result<(), Box<AneError>> {
    let open = Open::new(host, &full(), &Constants::new(None))?;
    let info = run_full(&open)?;
    assert_eq!((info.observed, info.device_start_ns), (GPU, 1_000_000_000));
    // In one command buffer, or in two.
    assert!([1_500_000_000, 2_500_000_000].contains(&info.device_end_ns), "{info:?}");
    Ok(())
}

/// 3 x 4 x 2 with bias and residual.
fn full() -> Desc {
    Desc { flags: flag::BIAS | flag::RESIDUAL, type_bias: element::F32, ..simple(3, 4, 2) }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// Runs [`full`] on numbers whose places cannot be confused, and checks the result.
fn run_full(open: &Open<'_>) -> Result<RunInfo, Box<AneError>> {
    let mut a = bytes_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut b = bytes_of(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]);
    let mut bias = bytes_of(&[1000.0, 2000.0, 3000.0, 4000.0]);
    let mut residual = bytes_of(&(0..12u8).map(|i| f32::from(i) / 16.0).collect::<Vec<_>>());
    let mut c = vec![0xfdu8; 48];
    let mut info = RunInfo::default();
    let args = RunArgs {
        bias: Operand::data(&mut bias),
        residual: Operand::data(&mut residual),
        info: &mut info,
        ..RunArgs::new(3, Operand::data(&mut a), Operand::data(&mut b), Operand::data(&mut c))
    };
    // SAFETY: operands are live and as long as they say.
    create(|e| unsafe { (open.host.shim.executor_run)(open.executor, &args, e) })?;
    let products =
        [110.0, 140.0, 170.0, 200.0, 230.0, 300.0, 370.0, 440.0, 350.0, 460.0, 570.0, 680.0].into_iter();
    let expected: Vec<f32> = products
        .zip(0..12u8)
        .map(|(sum, i)| sum + 1000.0 * f32::from(i % 4 + 1) + f32::from(i) / 16.0)
        .collect();
    assert_eq!(c, bytes_of(&expected), "the result of 3 x 4 x 2 with bias and residual");
    Ok(info)
}

/// Every fault of the double gives its status, leaves nothing behind, and does not outlast itself.
fn faults(host: &Host) {
    // Fault, calls before it, GPU error code, status.
    let faults = [
        (1, 0, 0, NO_DEVICE),
        (3, 0, 0, OUT_OF_MEMORY),
        (20, 0, 0, OUT_OF_MEMORY),
        (24, 0, 0, EXCEPTION), // the first tensor
        (24, 3, 0, EXCEPTION),
        (25, 0, 0, EXCEPTION),
        (21, 0, 0, COMPILE_FAILED),
        (28, 0, 0, INTERNAL),
        (4, 0, 0, OUT_OF_MEMORY), // staging of each operand
        (4, 1, 0, OUT_OF_MEMORY),
        (4, 4, 0, OUT_OF_MEMORY),
        (13, 0, 0, EXCEPTION),
        (13, 4, 0, EXCEPTION),
        (22, 0, 0, OUT_OF_MEMORY),
        (22, 4, 0, OUT_OF_MEMORY),
        (9, 0, 0, OUT_OF_MEMORY),
        (26, 0, 0, EXCEPTION),
        (23, 0, 0, RUN_FAILED),
        (11, 0, 1, RUN_FAILED),
        (11, 0, 2, TIMEOUT),
        (11, 0, 3, RUN_FAILED),
        (11, 0, 7, BACKGROUND),
        (11, 0, 8, OUT_OF_MEMORY),
        (16, 0, 0, RUN_FAILED),
        (29, 0, 1, RUN_FAILED), // the first command buffer of two
        (30, 0, 7, BACKGROUND), // the last
        (31, 0, 0, EXCEPTION),  // after a commit
        (32, 0, 0, EXCEPTION),  // no NSException: another object
        (33, 0, 0, EXCEPTION),  // of C++
    ];
    life(host).unwrap_or_else(|e| panic!("{}", e.message()));
    let baseline = host.counter("live_objects");
    for (fault, after, code, wanted) in faults {
        host.set_fault(fault, after);
        host.set("set_error", code);
        let error = life(host).expect_err(&format!("fault {fault} after {after} was not reported"));
        host.set_fault(0, 0);
        assert_eq!(
            (error.status, error.refusal),
            (wanted, 0),
            "fault {fault} after {after}: {}",
            error.message()
        );
        if [11, 29, 30].contains(&fault) {
            assert_eq!((error.native_code, error.domain().as_str()), (code, "MTLCommandBufferErrorDomain"));
            assert!(error.message().contains("planted GPU error"), "{}", error.message());
        }
        if wanted == EXCEPTION {
            let text = if fault > 31 { "other than an NSException" } else { "planted exception" };
            assert!(error.message().contains(text), "fault {fault}: {}", error.message());
            assert_eq!(error.domain().is_empty(), fault > 31);
        }
        assert_eq!(host.counter("in_flight"), 0, "fault {fault} after {after} is not waited for");
        assert_eq!(host.counter("live_objects"), baseline, "fault {fault} after {after} leaks");
        assert_eq!(host.counter("open_intervals"), 0, "fault {fault} after {after} leaves an interval open");
        life(host).unwrap_or_else(|e| panic!("after fault {fault}: {}", e.message()));
    }
    println!("  {} faults", faults.len());
}

/// A run that failed leaves an executor that runs, also from another thread.
fn good_runs_after_bad_ones(host: &Host) {
    let open = Open::new(host, &full(), &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    for fault in [4, 22, 9, 26, 23, 11, 16, 31, 32, 33] {
        host.set_fault(fault, 0);
        host.set("set_error", 1);
        let failed = run_full(&open).is_err();
        host.set_fault(0, 0);
        // Staging is made once: its faults strike the first run only.
        assert!(failed || fault == 22, "fault {fault} was not reported");
        run_full(&open).unwrap_or_else(|e| panic!("after fault {fault}: {}", e.message()));
        let shared = Shared(&open);
        std::thread::scope(|scope| {
            let other = scope.spawn(move || run_full(shared.open()).map(drop).map_err(|e| e.message()));
            other.join().expect("no panic").unwrap_or_else(|e| panic!("after fault {fault}: {e}"));
        });
    }
}

/// An executor that moves between threads, as the ABI allows.
struct Shared<'a>(&'a Open<'a>);

impl<'a> Shared<'a> {
    fn open(&self) -> &'a Open<'a> {
        self.0
    }
}

// SAFETY: the ABI lets an executor be used by any thread, one at a time; the owner waits meanwhile.
unsafe impl Send for Shared<'_> {}

fn refusals(host: &Host) {
    let device = device(host);
    let good = simple(8, 8, 8);
    let none = Options::default();
    let supports = |desc: &Desc, options: &Options| {
        // SAFETY: pointers to live values of the header's types.
        status(create(|e| unsafe { (host.shim.supports)(device, desc, options, e) }))
    };
    let with = |edit: &dyn Fn(&mut Desc)| {
        let mut desc = good;
        edit(&mut desc);
        supports(&desc, &none)
    };
    let refused = |reason| Err((REFUSED, reason));
    assert_eq!(supports(&good, &none), Ok(()));
    assert_eq!(with(&|d| d.flags = 1 << 20), refused(19));
    assert_eq!(with(&|d| (d.type_a, d.type_b) = (element::BF16, element::BF16)), refused(1));
    assert_eq!(with(&|d| (d.type_a, d.type_b) = (6, 6)), refused(1));
    assert_eq!(with(&|d| d.type_b = element::F16), refused(1));
    assert_eq!(with(&|d| d.type_accumulator = element::F16), refused(1));
    assert_eq!(with(&|d| d.type_c = 1), refused(1));
    assert_eq!(with(&|d| (d.flags, d.type_bias) = (flag::BIAS, 5)), refused(1));
    assert_eq!(with(&|d| d.quantisation[0] = 1), refused(2));
    assert_eq!(with(&|d| d.quantisation[1] = 1), refused(2));
    assert_eq!(with(&|d| d.quantisation[6] = 1), refused(2));
    assert_eq!(with(&|d| d.activation = 7), refused(9));
    assert_eq!(with(&|d| d.activation = -1), refused(9));
    let scaled = |alpha, d: &mut Desc| (d.type_a, d.type_b, d.type_accumulator, d.alpha) = (3, 3, 3, alpha);
    for alpha in [65520.0, -1e30, 1e-6, -6.1e-5] {
        assert_eq!(with(&|d| scaled(alpha, d)), refused(9), "alpha {alpha} with sums in f16");
        assert_eq!(with(&|d| d.alpha = alpha), Ok(()));
    }
    for alpha in [0.0, 65504.0, -6.2e-5, 0.3] {
        assert_eq!(with(&|d| scaled(alpha, d)), Ok(()), "alpha {alpha} with sums in f16");
    }
    assert_eq!(with(&|d| d.k = 1 << 31), refused(3));
    assert_eq!(with(&|d| d.batch = 1 << 31), refused(3));
    assert_eq!(with(&|d| d.lda = 1 << 62), refused(4));
    assert_eq!(with(&|d| (d.m, d.lda) = (1 << 15, 1 << 20)), Ok(()), "rows far apart are packed");
    assert_eq!(with(&|d| d.struct_size = 100), Err((INVALID_ARGUMENT, 0)));

    // 2^31 bytes and more, whatever the device allows, casts included; then what the device does not allow.
    host.set("set_max_buffer_bytes", 1 << 40);
    let wide = |k: u64| move |d: &mut Desc| (d.m, d.k, d.lda, d.stride_a) = (16384, k, k, 16384 * k);
    assert_eq!(with(&wide(32768)), refused(4));
    assert_eq!(with(&|d| wide(32766)(d)), Ok(()));
    let stored = |d: &mut Desc| (d.type_a, d.type_b) = (element::F16, element::F16);
    assert_eq!(with(&|d| (wide(32766)(d), stored(d)).0), Ok(()));
    let rows = |m: u64| move |d: &mut Desc| (d.m, d.k, d.lda, d.stride_a) = (m, 32766, 32766, m * 32766);
    assert_eq!(with(&|d| (rows(32000)(d), stored(d)).0), refused(4));
    assert_eq!(with(&|d| (rows(32000)(d), stored(d), d.type_accumulator = element::F16).0), Ok(()));
    host.set("set_max_buffer_bytes", 1 << 20);
    assert_eq!(with(&wide(16383)), refused(4));
    host.set("set_max_buffer_bytes", 1 << 32);

    let kinds =
        [(0, Ok(())), (GPU, Ok(())), (1, refused(10)), (4, refused(10)), (NEURAL_ENGINE, refused(11))];
    for (kind, expected) in kinds {
        assert_eq!(supports(&good, &Options { device: kind, ..none }), expected, "device {kind}");
    }
    let engine = Options { device: NEURAL_ENGINE, ..none };
    let half = half();
    assert_eq!(supports(&half, &engine), Ok(()));
    assert_eq!(supports(&Desc { type_accumulator: element::F32, ..half }, &engine), refused(11));
    assert_eq!(supports(&Desc { type_c: element::F32, ..half }, &engine), refused(11));
    let bias = Desc { flags: flag::BIAS, type_bias: element::F32, ..half };
    assert_eq!(supports(&bias, &engine), refused(11));
    assert_eq!(supports(&bias, &none), Ok(()));
    let long = Desc { k: 16385, lda: 16385, stride_a: 16385 * 8, stride_b: 16385 * 8, ..half };
    assert_eq!(supports(&long, &engine), refused(3));
    assert_eq!(supports(&long, &none), Ok(()));
    close(host, device);
}

/// 8 x 8 x 8, f16 throughout.
fn half() -> Desc {
    let f16 = element::F16;
    Desc { type_a: f16, type_b: f16, type_accumulator: f16, type_c: f16, ..simple(8, 8, 8) }
}

/// What is asked of the compiler, and what a product says of where it runs.
fn options(host: &Host) {
    let compiled = |desc: &Desc, options: &Options| {
        let open = Open::with(host, desc, &Constants::new(None), options)
            .unwrap_or_else(|e| panic!("{}", e.message()));
        let mut info = ProductInfo::default();
        // SAFETY: a live product.
        create(|e| unsafe { (host.shim.product_info)(open.product, &mut info, e) })
            .unwrap_or_else(|e| panic!("{}", e.message()));
        assert!(info.compile_ns > 0 && info.executor_bytes >= 3 * 64 * 2 && info.flags == 0, "{info:?}");
        let seen = (info.requested, info.observed, host.counter("optimization_level"));
        (seen, host.counter("reduced_precision"), info.arithmetic)
    };
    let none = Options::default();
    let engine = Options { device: NEURAL_ENGINE, ..none };
    let fast = Options { flags: 1, ..none };
    assert_eq!(compiled(&half(), &none), ((0, GPU, 0), -1, 0));
    assert_eq!(compiled(&half(), &Options { device: GPU, ..none }), ((GPU, GPU, 0), -1, 0));
    assert_eq!(compiled(&half(), &engine), ((NEURAL_ENGINE, 0, 1), -1, 0));
    assert_eq!(compiled(&half(), &fast), ((0, GPU, 0), -1, 0), "there is none to allow");
    // The setter that came with system 26 is not sent to an older one (the double counts that).
    for system in [1600, 2600] {
        host.set("set_macos", system);
        assert_eq!(compiled(&half(), &none), ((0, GPU, 0), 0, 0));
        assert_eq!(compiled(&half(), &fast), ((0, GPU, 0), 2, 1));
        let reduced = Options { flags: 2, ..none };
        assert_eq!(compiled(&half(), &reduced), ((0, GPU, 0), 0, 0), "reduced precision is not fast math");
    }
    host.set("set_macos", 1500);
}

/// What a chip or a system gets wrong is refused there and nowhere else; whoever asks for it all the same gets the
/// wrong numbers, so that the double has the fault.
fn known_faults(host: &Host) {
    let case = |batch, m, n, k| Case { batch, m, n, k, data: Data::Integers, ..Case::default() };
    let biased = |m| Case { bias: Some(element::F32), ..case(1, m, 5, 3) };
    // Where it is wrong; what is wrong; the same where it is right; what is right.
    let faults = [
        ("Apple M1", 1500, case(1, 16, 17, 32767), "Apple M3", 1500, case(1, 16, 17, 32766)),
        ("Apple M2 Ultra", 2600, case(2, 16, 16, 32767), "Apple M4 Max", 1500, case(2, 15, 16, 32767)),
        ("Apple A16 GPU", 1500, case(1, 16, 17, 32768), "Apple A17 GPU", 1500, case(1, 16, 15, 32768)),
        ("Apple Paravirtual device", 1500, case(1, 16, 17, 32767), "Apple M5", 1500, case(1, 3, 4, 32767)),
        ("Apple M3", 1403, case(1, 32769, 1, 1), "Apple M3", 1404, case(1, 32768, 1, 1)),
        ("Apple M4", 1300, case(1, 2, 32769, 1), "Apple M4", 1404, case(1, 2, 32768, 1)),
        ("Apple M2", 2600, case(1, 1, 2, 32769), "Apple M3", 2600, case(1, 1, 2, 32768)),
        ("Apple M1", 1302, case(2, 3, 4, 5), "Apple M1", 1303, case(1, 3, 4, 5)),
        ("Apple M1", 2601, biased(1), "Apple M2", 2601, biased(2)),
        ("Apple M1", 1602, biased(1), "Apple M2", 1602, biased(2)),
        ("Apple M1", 2600, Case { residual: true, ..case(1, 1, 5, 3) }, "Apple M1", 2700, case(1, 1, 5, 3)),
        ("AMD Radeon RX 6800 XT", 1500, case(1, 3, 4, 5), "Apple M1", 1500, case(1, 3, 4, 5)),
    ];
    let run = |name: &str, system, case: &Case| {
        host.set_device_name(name);
        host.set("set_macos", system);
        let device = device(host);
        // SAFETY: opened above.
        let outcome = unsafe { case.run_shim(host, device, Passing::Data) };
        close(host, device);
        outcome
    };
    for (name, system, case, sound_name, sound_system, sound) in &faults {
        let refused = run(name, *system, case).expect_err(name);
        assert!(refused.contains("status 2: ") && refused.contains('#'), "{name}, {system}: {refused}");
        let allowed = run(name, *system, &Case { allow_known_faults: true, ..case.clone() });
        let wrong = allowed.expect_err("the double has no such fault");
        assert!(!wrong.contains("status "), "{wrong}");
        for (name, system, case) in [(sound_name, sound_system, case), (name, system, sound)] {
            // The case that is right there may be one of an AMD device, which has none.
            if !name.starts_with("AMD") {
                run(name, *system, case).unwrap_or_else(|e| panic!("{name}, {system}: {e}"));
            }
        }
    }
    host.set_device_name("Apple M5");
    let (device, batch) = (device(host), Desc { batch: 2, ..half() });
    let supports = |desc: &Desc, options| {
        // SAFETY: pointers to live values of the header's types.
        status(create(|e| unsafe { (host.shim.supports)(device, desc, &options, e) }))
    };
    assert_eq!(supports(&batch, Options::default()), Err((REFUSED, VENDOR_FAULT)));
    assert_eq!(supports(&batch, Options { flags: ALLOW_KNOWN_FAULTS, ..Options::default() }), Ok(()));
    assert_eq!(supports(&half(), Options::default()), Ok(()));
    let sums = Desc { type_accumulator: element::F32, ..batch };
    assert_eq!(supports(&sums, Options::default()), Err((REFUSED, VENDOR_FAULT)));
    let f32 = Desc { batch: 2, ..simple(8, 8, 8) };
    assert_eq!(supports(&f32, Options::default()), Ok(()));
    // What keeps the GPU for long.
    let n = 16384;
    let large =
        |m: u64| Desc { m, n, k: n, lda: n, ldb: n, ldc: n, stride_a: m * n, stride_b: n * n, ..half() };
    assert_eq!(supports(&large(n + 1), Options::default()), Err((REFUSED, VENDOR_FAULT)));
    assert_eq!(supports(&large(n), Options::default()), Ok(()));
    let largest = Desc { m: 16384, n: 16384, ldb: 16384, ldc: 16384, ..half() };
    let engine = Options { device: NEURAL_ENGINE, ..Options::default() };
    assert_eq!(supports(&largest, engine), Err((REFUSED, VENDOR_FAULT)));
    assert_eq!(supports(&largest, Options::default()), Ok(()));
    assert_eq!(supports(&Desc { m: 16383, ..largest }, engine), Ok(()));
    close(host, device);
    host.set_device_name("Apple M1 (test double)");
    host.set("set_macos", 1500);
    println!("  {} faults", faults.len() + 3);
}

/// Shared buffers in the graph's own layout are used in place: nothing is made or copied in a run.
fn buffers_in_place(host: &Host) {
    let baseline = host.counter("live_objects");
    let open = Open::new(host, &simple(3, 4, 2), &Constants::new(None))
        .unwrap_or_else(|e| panic!("{}", e.message()));
    let mut buffers = [null_mut(); 3];
    for (buffer, bytes) in buffers.iter_mut().zip([24, 32, 48]) {
        // SAFETY: an open device and a live out.
        create(|e| unsafe { (host.shim.buffer_create)(open.device, 0, bytes, buffer, e) })
            .unwrap_or_else(|e| panic!("{}", e.message()));
    }
    // SAFETY: live buffers of these lengths; nothing runs while they are filled.
    let contents = buffers.map(|b| unsafe { (host.shim.buffer_contents)(b) }.cast::<f32>());
    let made = host.counter("buffers_made");
    for round in 1..=10u8 {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(contents[0], 6).fill(f32::from(round));
            std::slice::from_raw_parts_mut(contents[1], 8).fill(2.0);
            std::slice::from_raw_parts_mut(contents[2], 12).fill(f32::NAN);
        }
        let operand = |i: usize, length_bytes| Operand::buffer(buffers[i], 0, length_bytes);
        let args = RunArgs::new(3, operand(0, 24), operand(1, 32), operand(2, 48));
        // SAFETY: live objects of one device.
        create(|e| unsafe { (host.shim.executor_run)(open.executor, &args, e) })
            .unwrap_or_else(|e| panic!("{}", e.message()));
        // SAFETY: the run is complete.
        let c = unsafe { std::slice::from_raw_parts(contents[2], 12) };
        assert_eq!(c, [4.0 * f32::from(round); 12]);
    }
    assert_eq!(host.counter("buffers_made"), made, "a run on shared buffers made others");
    for buffer in buffers {
        // SAFETY: made above.
        unsafe { (host.shim.buffer_destroy)(buffer) };
    }
    // In another layout they are copied.
    let padded =
        Case { batch: 2, m: 5, n: 6, k: 7, residual: true, padding: [3, 2, 5, 4], ..Case::default() };
    for i in 0..4 {
        let mut padding = [0; 4];
        padding[i] = padded.padding[i];
        for case in
            [padded.clone(), Case { padding, ..padded.clone() }, Case { batch: 1, padding, ..padded.clone() }]
        {
            // SAFETY: the device is open.
            unsafe { case.run_shim(host, open.device, Passing::Buffers) }.unwrap_or_else(|e| panic!("{e}"));
        }
    }
    drop(open);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// Compile once, run often: nothing is made in a run.
fn steady_state(host: &Host) {
    let desc = Desc { flags: flag::VARIABLE_M, ..simple(33, 20, 70) };
    let open = Open::new(host, &desc, &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    let (mut a, mut b, mut c) = (vec![0u8; 33 * 70 * 4], vec![0u8; 20 * 70 * 4], vec![0u8; 33 * 20 * 4]);
    let mut run = |m: u64| status(open.run(&mut a, &mut b, &mut c, m));
    assert_eq!(run(33), Ok(()));
    let counters = ["live_objects", "executables_made", "buffers_made"];
    let steady = counters.map(|name| host.counter(name));
    for i in 0..200 {
        assert_eq!(run([33, 1, 2, 17, 0][i % 5]), Ok(()));
    }
    assert_eq!(counters.map(|name| host.counter(name)), steady, "{counters:?} changed over 200 runs");
}

/// Constants are compiled into each product.
fn constants(host: &Host) {
    let baseline = host.counter("live_objects");
    let (device, (desc, b)) = (device(host), dense());
    let (mut constant, mut product) = (null_mut(), null_mut());
    assert_eq!(host.device_info(0).map(|info| info.flags & 2).map_err(|e| e.message()), Ok(0));
    let (options, wanted) = (Options::default(), ConstantDesc::new(element::F32, &b));
    // SAFETY: an open device, and pointers to live values of the header's types; B's is never followed.
    unsafe {
        let made = create(|e| (host.shim.constant_create)(device, &wanted, &mut constant, e));
        assert_eq!((status(made), constant.is_null()), (Err((NOT_IMPLEMENTED, 0)), true));
        (host.shim.constant_destroy)(null_mut());
        let shared = Constants::shared(8 as *mut _);
        let compiled = create(|e| (host.shim.compile)(device, &desc, &shared, &options, &mut product, e));
        assert_eq!((status(compiled), product.is_null()), (Err((INVALID_ARGUMENT, 0)), true));
    }
    close(host, device);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// Products without elements of C compile and run, and write nothing; k = 0 leaves bias and residual.
fn empty(host: &Host) {
    for (m, n) in [(0, 4), (4, 0), (0, 0)] {
        let open = Open::new(host, &simple(m, n, 2), &Constants::new(None))
            .unwrap_or_else(|e| panic!("{}", e.message()));
        let (mut a, mut b, mut c) = (vec![0u8; 64], vec![0u8; 64], vec![0xfdu8; 64]);
        assert_eq!(status(open.run(&mut a, &mut b, &mut c, m)), Ok(()));
        assert!(c.iter().all(|byte| *byte == 0xfd), "an empty C was written to");
    }
    let device = device(host);
    for (bias, residual) in [(None, false), (Some(element::F32), true)] {
        let case = Case { m: 3, n: 5, k: 0, bias, residual, ..Case::default() };
        // SAFETY: opened above.
        unsafe { case.run_shim(host, device, Passing::Data) }.unwrap_or_else(|e| panic!("{e}"));
    }
    close(host, device);
}

/// A directory of this run's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("mpsgraph-host-tests-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn save(open: &Open<'_>, path: &Path) -> Result<(), (i32, i32)> {
    let path = CString::new(path.to_string_lossy().as_bytes()).expect("no NUL");
    // SAFETY: a live product and a path.
    status(create(|e| unsafe { (open.host.shim.product_save)(open.product, path.as_ptr(), e) }))
}

/// Loads a product in place of the one of `open`.
fn load<'h>(
    host: &'h Host,
    desc: &Desc,
    constants: &Constants,
    path: &Path,
    options: &Options,
) -> Result<Open<'h>, (i32, i32)> {
    let path = CString::new(path.to_string_lossy().as_bytes()).expect("no NUL");
    let mut open = Open { host, device: device(host), product: null_mut(), executor: null_mut() };
    let (shim, device) = (host.shim, open.device);
    // SAFETY: pointers to live values of the header's types.
    status(create(|e| unsafe {
        (shim.product_load)(device, desc, constants, options, path.as_ptr(), &mut open.product, e)
    }))
    .inspect_err(|_| assert!(open.product.is_null(), "out was written on failure"))?;
    let (product, depth) = (open.product, ExecutorOptions::depth(2));
    // SAFETY: as above.
    status(create(|e| unsafe { (shim.executor_create)(product, &depth, &mut open.executor, e) }))?;
    Ok(open)
}

/// A product that is run with A alone, 3 x 4 x 2.
fn dense() -> (Desc, Vec<u8>) {
    (
        Desc { flags: flag::CONSTANT_B, ..simple(3, 4, 2) },
        bytes_of(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]),
    )
}

fn run_dense(open: &Open<'_>) {
    let mut a = bytes_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mut c = vec![0xfdu8; 48];
    assert_eq!(status(open.run(&mut a, &mut [], &mut c, 3)), Ok(()));
    let expected = [110.0, 140.0, 170.0, 200.0, 230.0, 300.0, 370.0, 440.0, 350.0, 460.0, 570.0, 680.0];
    assert_eq!(c, bytes_of(&expected));
}

/// What was saved runs as what was compiled; what does not fit is not trusted; what cannot be fed is not kept.
fn packages(host: &Host) {
    let baseline = host.counter("live_objects");
    let (scratch, none, (desc, b)) = (Scratch::new(), Options::default(), dense());
    let constants = Constants::new(Some(&b));
    let compile = |desc: &Desc| {
        let constants =
            if desc.flags & flag::CONSTANT_B == 0 { Constants::new(None) } else { Constants::new(Some(&b)) };
        Open::new(host, desc, &constants).unwrap_or_else(|e| panic!("{}", e.message()))
    };
    let load = |desc: &Desc, path: &Path| load(host, desc, &constants, path, &none);
    let path = scratch.0.join("dense.mpsgraphpackage");
    let open = compile(&desc);
    assert_eq!(load(&desc, &path).err(), Some((IO, 0)), "there is none yet");
    assert_eq!(save(&open, &path), Ok(()));
    // Whether or not an executable from a package tells its feeds.
    for told in [0, 1] {
        host.set("set_loaded_tensors", told);
        let loaded = load(&desc, &path).unwrap_or_else(|e| panic!("{e:?}"));
        let mut info = ProductInfo::default();
        // SAFETY: a live product.
        create(|e| unsafe { (host.shim.product_info)(loaded.product, &mut info, e) })
            .unwrap_or_else(|e| panic!("{}", e.message()));
        assert_eq!((info.flags, host.counter("optimization_level")), (1, 0));
        run_dense(&loaded);
        run_dense(&loaded);
    }
    assert_eq!(save(&open, &scratch.0.join("no/such/directory")), Err((IO, 0)));
    host.set_fault(27, 0);
    assert_eq!(save(&open, &scratch.0.join("fault")), Err((IO, 0)));
    host.set_fault(0, 0);

    // Two operands of one shape: a package of theirs would compute A B or B A.
    for flags in [0, flag::CONSTANT_B | flag::BIAS, flag::CONSTANT_B | flag::RESIDUAL] {
        let several = Desc { flags, type_bias: element::F32, ..simple(2, 2, 2) };
        let place = scratch.0.join(format!("several-{flags}"));
        assert_eq!(save(&compile(&several), &place), Err((NOT_IMPLEMENTED, 0)), "flags {flags}");
        assert_eq!(load(&several, &path).err(), Some((NOT_IMPLEMENTED, 0)), "flags {flags}");
        assert!(!place.exists());
    }
    // Those that tell are asked.
    let mismatch = Some((PACKAGE_MISMATCH, 0));
    let more = Desc { flags: flag::CONSTANT_B, ..simple(3, 2, 4) };
    assert_eq!(load(&more, &path).err(), mismatch, "another k");
    let f16 = Desc { type_a: element::F16, type_b: element::F16, ..desc };
    assert_eq!(load(&f16, &path).err(), mismatch, "another type of A and B");
    let f16 = Desc { type_c: element::F16, ..desc };
    assert_eq!(load(&f16, &path).err(), mismatch, "another type of C");
    host.set("set_loaded_tensors", 0);
    std::fs::write(path.join("graph.plist"), "damaged").expect("the package can be overwritten");
    assert_eq!(load(&desc, &path).err(), mismatch, "damaged");

    let empty = compile(&Desc { flags: flag::CONSTANT_B, ..simple(0, 4, 2) });
    assert_eq!(save(&empty, &scratch.0.join("empty")), Err((NOT_IMPLEMENTED, 0)));
    host.set("set_macos", 1300);
    assert_eq!(save(&open, &scratch.0.join("13")), Err((NOT_IMPLEMENTED, 0)));
    assert_eq!(load(&desc, &path).err(), Some((NOT_IMPLEMENTED, 0)));
    // Without packages everything else works.
    life(host).unwrap_or_else(|e| panic!("macOS 13: {}", e.message()));
    host.set("set_macos", 1500);
    drop((open, empty));
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

fn main() {
    run_tests(
        "ane_mpsgraph_shim",
        &[
            ("faults", faults),
            ("good_runs_after_bad_ones", good_runs_after_bad_ones),
            ("refusals", refusals),
            ("options", options),
            ("bad_runs", bad_runs),
            ("packages", packages),
            ("known_faults", known_faults),
            ("buffers_in_place", buffers_in_place),
            ("steady_state", steady_state),
            ("empty", empty),
            ("devices", submissions::devices),
            ("buffers", submissions::buffers),
            ("constants", constants),
            ("submissions", submissions::submissions),
            ("waits", submissions::waits),
            ("room", submissions::room),
            // The first or the last command buffer of one submission of three.
            ("failures", |host| submissions::failures(host, &[29, 30])),
            ("submission_faults", |host| {
                submissions::submission_faults(
                    host,
                    &[
                        (22, 0, OUT_OF_MEMORY), // tensor data
                        (22, 2, OUT_OF_MEMORY),
                        (26, 0, EXCEPTION),
                        (31, 0, EXCEPTION), // after a commit
                        (23, 0, RUN_FAILED),
                    ],
                );
            }),
            ("destroyed_in_flight", submissions::destroyed_in_flight),
            ("full_queue", submissions::full_queue),
            ("memory_in_flight", submissions::memory_in_flight),
            ("private_memory", submissions::private_memory),
            ("threads", threads),
            ("cases_through_the_abi", cases_through_the_abi),
            ("endurance", endurance),
            ("endurance_of_submissions", submissions::endurance_of_submissions),
            ("no_violations", no_violations),
        ],
    );
}
