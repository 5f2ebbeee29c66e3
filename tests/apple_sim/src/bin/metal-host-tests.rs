//! `metal_matmul.m` through the C ABI, over the double of Metal and the emulated kernels.
//!
//! A program of its own rather than a test harness: GNUstep ends the process when a thread that used
//! Objective-C ends and the main thread never did.

use std::ptr::null_mut;

use apple_sim::case::{Case, Data, Passing};
use apple_sim::drive::{
    BACKGROUND, COMPILE_FAILED, EXCEPTION, INVALID_ARGUMENT, NO_DEVICE, NOT_IMPLEMENTED, OUT_OF_MEMORY, Open,
    REFUSED, RUN_FAILED, TIMEOUT, bad_runs, close, device, endurance, no_violations, run_tests, setting,
    simple, threads,
};
use apple_sim::host::{
    AneError, ConstantDesc, Constants, ExecutorOptions, Host, Options, ProductInfo, create,
};
use apple_sim::plan::{Desc, Overrides, element, flag};
use apple_sim::{submissions, sweep};

/// Cases of every kernel, by every way of passing operands.
fn cases_through_the_abi(host: &Host) {
    let baseline = host.counter("live_objects");
    let cases = sweep::cases();
    let names = ["Apple M1 (test double)", "Apple M2 Max (test double)", "Apple M2 Ultra (test double)"];
    let step = setting("ANE_SIM_CASE_STEP", 3);
    let mut run = 0;
    for (class, name) in names.into_iter().enumerate() {
        host.set_device_name(name);
        let device = device(host);
        let mine = cases.iter().filter(|c| c.device_class as usize == class).step_by(step);
        for (i, case) in mine.enumerate() {
            let case = Case { overrides: Overrides::default(), ..case.clone() };
            let passing = Passing::ALL[i % Passing::ALL.len()];
            host.set_schedule((i % 4) as i32, i as u64);
            // SAFETY: opened above.
            unsafe { case.run_shim(host, device, passing) }.unwrap_or_else(|e| panic!("{e}"));
            run += 1;
        }
        close(host, device);
    }
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
    println!("  {run} cases, {} dispatches", host.counter("dispatches"));
}

/// One whole life of everything, with a k that is split and so uses all objects.
fn life(host: &Host) -> Result<(), Box<AneError>> {
    let desc = simple(16, 16, 512);
    let mut a = vec![0u8; 16 * 512 * 4];
    let mut b = vec![0u8; 16 * 512 * 4];
    let mut c = vec![0xfdu8; 16 * 16 * 4];
    let open = Open::new(host, &desc, &Constants::new(None))?;
    let info = open.run(&mut a, &mut b, &mut c, 16)?;
    assert_eq!((info.observed, info.device_start_ns, info.device_end_ns), (2, 1_000_000_000, 2_500_000_000));
    assert!(c.iter().all(|byte| *byte == 0), "0 x 0 is 0");
    Ok(())
}

/// Every fault of the double gives its status, leaves nothing behind, and does not outlast itself.
fn faults(host: &Host) {
    // Fault, calls before it, GPU error code, status, refusal.
    let faults = [
        (1, 0, 0, NO_DEVICE, 0),
        (2, 0, 0, REFUSED, 13),
        (3, 0, 0, OUT_OF_MEMORY, 0),
        (4, 0, 0, OUT_OF_MEMORY, 0), // the scratch
        (4, 1, 0, OUT_OF_MEMORY, 0), // staging of A, B, C
        (4, 2, 0, OUT_OF_MEMORY, 0),
        (4, 3, 0, OUT_OF_MEMORY, 0),
        (5, 0, 0, COMPILE_FAILED, 0),
        (6, 0, 0, COMPILE_FAILED, 0),
        (6, 1, 0, COMPILE_FAILED, 0), // the reduction's
        (7, 0, 0, COMPILE_FAILED, 0),
        (7, 1, 0, COMPILE_FAILED, 0),
        (8, 0, 0, COMPILE_FAILED, 0),
        (9, 0, 0, OUT_OF_MEMORY, 0),
        (10, 0, 0, OUT_OF_MEMORY, 0),
        (11, 0, 1, RUN_FAILED, 0),
        (11, 0, 2, TIMEOUT, 0),
        (11, 0, 3, RUN_FAILED, 0),
        (11, 0, 7, BACKGROUND, 0),
        (11, 0, 8, OUT_OF_MEMORY, 0),
        (12, 0, 0, EXCEPTION, 0),
        (12, 1, 0, EXCEPTION, 0),
        (13, 0, 0, EXCEPTION, 0),
        (13, 2, 0, EXCEPTION, 0),
        (14, 0, 0, EXCEPTION, 0),
        (15, 0, 0, EXCEPTION, 0),
        (16, 0, 0, RUN_FAILED, 0),
        (32, 0, 0, EXCEPTION, 0), // no NSException: another object
        (33, 0, 0, EXCEPTION, 0), // of C++
        (33, 1, 0, EXCEPTION, 0),
    ];
    life(host).unwrap_or_else(|e| panic!("{}", e.message()));
    let baseline = host.counter("live_objects");
    for (fault, after, code, status, refusal) in faults {
        host.set_fault(fault, after);
        host.set("set_error", code);
        let error = life(host).expect_err(&format!("fault {fault} after {after} was not reported"));
        host.set_fault(0, 0);
        let got = (error.status, error.refusal);
        assert_eq!(got, (status, refusal), "fault {fault} after {after}: {}", error.message());
        if fault == 11 {
            assert_eq!((error.native_code, error.domain().as_str()), (code, "MTLCommandBufferErrorDomain"));
            assert!(error.message().contains("planted GPU error"), "{}", error.message());
        }
        if status == EXCEPTION {
            let text = if fault > 30 { "other than an NSException" } else { "planted exception" };
            assert!(error.message().contains(text), "fault {fault}: {}", error.message());
            assert_eq!(error.domain().is_empty(), fault > 30);
        }
        assert_eq!(host.counter("in_flight"), 0, "fault {fault} after {after} is not waited for");
        assert_eq!(host.counter("live_objects"), baseline, "fault {fault} after {after} leaks");
        life(host).unwrap_or_else(|e| panic!("after fault {fault}: {}", e.message()));
    }
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    println!("  {} faults", faults.len());
}

/// The compiler's output reaches the caller's log, cut to fit.
fn compile_log(host: &Host) {
    let device = device(host);
    let (desc, options, constants) = (simple(4, 4, 4), Options::default(), Constants::new(None));
    for capacity in [4096usize, 16, 0] {
        host.set_fault(5, 0);
        let mut log = vec![0x55u8; capacity + 1];
        let mut error = AneError::new();
        error.log = if capacity == 0 { null_mut() } else { log.as_mut_ptr().cast() };
        error.log_capacity = capacity as u64;
        let mut product = null_mut();
        // SAFETY: pointers to live values of the header's types.
        let status =
            unsafe { (host.shim.compile)(device, &desc, &constants, &options, &mut product, &mut error) };
        assert_eq!(status, COMPILE_FAILED);
        assert!(product.is_null(), "out was written");
        assert!(error.log_length > 16, "the whole length is told");
        assert_eq!(log[capacity], 0x55, "written beyond the log");
        if capacity > 0 {
            let end = log.iter().position(|b| *b == 0).expect("a NUL ends the log");
            assert_eq!(end as u64, error.log_length.min(capacity as u64 - 1));
        }
        if capacity == 4096 {
            let text = String::from_utf8_lossy(&log);
            assert!(text.contains("planted"), "{text}");
        }
    }
    host.set_fault(0, 0);
    // An error of an older and smaller layout, and none at all.
    let mut bad = desc;
    bad.flags = 0x8000_0000;
    let mut error = AneError::new();
    error.struct_size = 24;
    error.domain[0] = 7;
    // SAFETY: as above.
    unsafe {
        assert_eq!((host.shim.supports)(device, &bad, &options, &mut error), REFUSED);
        assert_eq!((host.shim.supports)(device, &bad, &options, null_mut()), REFUSED);
    }
    assert_eq!((error.status, error.domain[0]), (REFUSED, 7), "written beyond struct_size");
    close(host, device);
}

fn refusals(host: &Host) {
    let device = device(host);
    let good = simple(8, 8, 8);
    let none = Options::default();
    let supports = |desc: &Desc, options: &Options| {
        // SAFETY: pointers to live values of the header's types.
        create(|e| unsafe { (host.shim.supports)(device, desc, options, e) })
            .map_err(|e| (e.status, e.refusal))
    };
    assert_eq!(supports(&good, &none), Ok(()));
    let with = |edit: &dyn Fn(&mut Desc)| {
        let mut desc = good;
        edit(&mut desc);
        supports(&desc, &none)
    };
    let refused = |reason| Err((REFUSED, reason));
    assert_eq!(with(&|d| d.flags = 1 << 20), refused(19));
    assert_eq!(with(&|d| d.type_a = 6), refused(1));
    assert_eq!(with(&|d| d.type_b = element::F16), refused(1));
    assert_eq!(with(&|d| d.type_accumulator = element::F16), refused(1));
    assert_eq!(with(&|d| d.type_c = 1), refused(1));
    assert_eq!(with(&|d| (d.flags, d.type_bias) = (flag::BIAS, 5)), refused(1));
    assert_eq!(with(&|d| d.quantisation[0] = 1), refused(2));
    assert_eq!(with(&|d| d.quantisation[1] = 1), refused(2));
    assert_eq!(with(&|d| d.quantisation[6] = 1), refused(2));
    assert_eq!(with(&|d| d.activation = 7), refused(9));
    assert_eq!(with(&|d| d.activation = -1), refused(9));
    assert_eq!(with(&|d| d.k = 1 << 31), refused(3));
    assert_eq!(with(&|d| d.batch = 1 << 31), refused(3));
    assert_eq!(with(&|d| d.lda = 1 << 62), refused(4));
    assert_eq!(with(&|d| (d.m, d.lda) = (1 << 20, 1 << 20)), refused(4));
    assert_eq!(with(&|d| d.struct_size = 100), Err((INVALID_ARGUMENT, 0)));
    for (kind, expected) in [(0, Ok(())), (2, Ok(())), (1, refused(10)), (3, refused(10))] {
        assert_eq!(supports(&good, &Options { device: kind, ..none }), expected, "device {kind}");
    }
    let bf16 = |d: &mut Desc| (d.type_a, d.type_b) = (element::BF16, element::BF16);
    assert_eq!(with(&bf16), Ok(()));
    host.set("set_macos", 1300);
    assert_eq!(with(&bf16), refused(12));
    assert_eq!(with(&|d| d.type_c = element::BF16), refused(12));
    assert_eq!(with(&|d| d.type_a = element::F32), Ok(()));
    close(host, device);
    // Metal 3.0 compiles without bf16, and runs.
    life(host).unwrap_or_else(|e| panic!("macOS 13: {}", e.message()));
    host.set("set_macos", 1500);
}

/// Pipelines are not saved: Metal has its own cache of them.
fn packages(host: &Host) {
    let desc = simple(4, 5, 6);
    let (constants, options) = (Constants::new(None), Options::default());
    let open = Open::new(host, &desc, &constants).unwrap_or_else(|e| panic!("{}", e.message()));
    let mut loaded = null_mut();
    let path = c"/nowhere".as_ptr();
    // SAFETY: pointers to live values of the header's types.
    unsafe {
        assert_eq!((host.shim.product_save)(open.product, path, null_mut()), NOT_IMPLEMENTED);
        let load = host.shim.product_load;
        assert_eq!(
            load(open.device, &desc, &constants, &options, path, &mut loaded, null_mut()),
            NOT_IMPLEMENTED
        );
    }
    assert!(loaded.is_null(), "out was written on failure");
}

/// Compile once, run often: nothing is made in a run, and nothing stays.
fn steady_state(host: &Host) {
    let before = host.counter("libraries_compiled");
    let mut desc = simple(33, 20, 700);
    desc.flags = flag::VARIABLE_M;
    let open = Open::new(host, &desc, &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    let (mut a, mut b, mut c) = (vec![0u8; 33 * 700 * 4], vec![0u8; 20 * 700 * 4], vec![0u8; 33 * 20 * 4]);
    for m in [33, 1, 2] {
        assert!(open.run(&mut a, &mut b, &mut c, m).is_ok());
    }
    let counters = ["live_objects", "libraries_compiled", "pipelines_made", "buffers_made"];
    let steady = counters.map(|name| host.counter(name));
    for i in 0..300 {
        let m = [33, 1, 2, 17][i % 4];
        assert!(open.run(&mut a, &mut b, &mut c, m).is_ok());
    }
    assert_eq!(counters.map(|name| host.counter(name)), steady, "{counters:?} changed over 300 runs");
    // The same product again uses the device's pipelines.
    let mut product = null_mut();
    let (constants, options) = (Constants::new(None), Options::default());
    // SAFETY: pointers to live values of the header's types.
    unsafe {
        assert_eq!(
            (host.shim.compile)(open.device, &desc, &constants, &options, &mut product, null_mut()),
            0
        );
        let mut info = ProductInfo::default();
        assert_eq!((host.shim.product_info)(product, &mut info, null_mut()), 0);
        assert_eq!((info.requested, info.observed, info.flags), (0, 0, 0));
        let operands = (33 * 700 + 20 * 700 + 33 * 20) * 4;
        assert!(info.executor_bytes >= operands && info.compile_ns > 0, "{info:?}");
        (host.shim.product_destroy)(product);
    }
    assert_eq!(host.counter("libraries_compiled"), before + 1);
    assert_eq!(host.counter("pipelines_made"), steady[2], "a second product made pipelines");
}

/// A library that is compiled ahead is not compiled again, and only once.
fn prepared(host: &Host) {
    let device = device(host);
    let compiled = host.counter("libraries_compiled");
    for _ in 0..2 {
        // SAFETY: an open device.
        create(|e| unsafe { (host.shim.device_prepare)(device, e) })
            .unwrap_or_else(|e| panic!("{}", e.message()));
        assert_eq!(host.counter("libraries_compiled"), compiled + 1);
    }
    let case = Case { m: 4, n: 5, k: 6, ..Case::default() };
    // SAFETY: opened above.
    unsafe { case.run_shim(host, device, Passing::Data) }.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(host.counter("libraries_compiled"), compiled + 1);
    close(host, device);
    for (fault, wanted) in [(5, COMPILE_FAILED), (15, EXCEPTION)] {
        let device = self::device(host);
        host.set_fault(fault, 0);
        // SAFETY: an open device.
        let failed = create(|e| unsafe { (host.shim.device_prepare)(device, e) });
        assert_eq!(failed.map_err(|e| e.status), Err(wanted));
        host.set_fault(0, 0);
        close(host, device);
    }
}

/// A constant is one buffer for all products that use it, and stays as long as it or one of them does.
fn constants(host: &Host) {
    let baseline = host.counter("live_objects");
    let device = device(host);
    let (shim, options) = (host.shim, Options::default());
    let b: Vec<u8> = [2f32; 6 * 5].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let make = |device, desc: &ConstantDesc| {
        let mut constant = null_mut();
        // SAFETY: an open device, and data as long as it says.
        let made = create(|e| unsafe { (shim.constant_create)(device, desc, &mut constant, e) });
        assert_eq!(made.is_ok(), !constant.is_null(), "out was written on failure");
        made.map(|()| constant).map_err(|e| e.status)
    };
    let desc = |m| Desc { flags: flag::CONSTANT_B, ..simple(m, 5, 6) };
    let compile = |device, desc: &Desc, constants: &Constants| {
        let (mut product, mut executor) = (null_mut(), null_mut());
        // SAFETY: pointers to live values of the header's types.
        unsafe {
            create(|e| (shim.compile)(device, desc, constants, &options, &mut product, e))?;
            create(|e| (shim.executor_create)(product, &ExecutorOptions::depth(1), &mut executor, e))?;
        }
        Ok::<_, Box<AneError>>(Open { host, device: null_mut(), product, executor })
    };
    let run = |open: &Open<'_>, m: usize| {
        let mut a: Vec<u8> = [1f32; 6].repeat(m).iter().flat_map(|v| v.to_ne_bytes()).collect();
        let mut c = vec![0xfdu8; m * 5 * 4];
        open.run(&mut a, &mut [], &mut c, m as u64).unwrap_or_else(|e| panic!("{}", e.message()));
        assert!(c.chunks(4).all(|element| element == 12f32.to_ne_bytes()), "C by a constant of the device");
    };
    assert_eq!(host.device_info(0).map(|info| info.flags & 2).map_err(|e| e.message()), Ok(2));
    let constant = make(device, &ConstantDesc::new(element::F32, &b)).expect("a constant");
    let made = host.counter("buffers_made");
    let products = [1, 3, 4].map(|m| {
        compile(device, &desc(m), &Constants::shared(constant)).unwrap_or_else(|e| panic!("{}", e.message()))
    });
    assert_eq!(host.counter("buffers_made"), made, "a product copied its constant");
    let mut info = ProductInfo::default();
    // SAFETY: a live product.
    unsafe { assert_eq!((shim.product_info)(products[0].product, &mut info, null_mut()), 0) };
    let shared = info.bytes_held;
    let copy =
        compile(device, &desc(1), &Constants::new(Some(&b))).unwrap_or_else(|e| panic!("{}", e.message()));
    // SAFETY: a live product.
    unsafe { assert_eq!((shim.product_info)(copy.product, &mut info, null_mut()), 0) };
    assert_eq!((info.bytes_held, info.arithmetic), (shared + 6 * 5 * 4, 0), "constants are not counted");
    let [one, three, four] = products;
    run(&one, 1);
    drop(one);
    run(&three, 3);
    run(&four, 4);
    drop(three);
    run(&four, 4);
    run(&copy, 1);
    drop((four, copy));
    let after =
        compile(device, &desc(3), &Constants::shared(constant)).unwrap_or_else(|e| panic!("{}", e.message()));
    run(&after, 3);
    drop(after);

    let other = self::device(host);
    let refused = |desc: &Desc, constants: &Constants, device| {
        compile(device, desc, constants).map(drop).map_err(|e| e.status)
    };
    let half = Desc { type_a: element::F16, type_b: element::F16, ..desc(3) };
    let longer = Desc { k: 7, lda: 7, ..desc(3) };
    let mut twice = Constants::new(Some(&b));
    twice.b_constant = constant;
    assert_eq!(refused(&half, &Constants::shared(constant), device), Err(INVALID_ARGUMENT), "another type");
    assert_eq!(refused(&longer, &Constants::shared(constant), device), Err(INVALID_ARGUMENT), "too short");
    assert_eq!(refused(&desc(3), &twice, device), Err(INVALID_ARGUMENT), "both");
    assert_eq!(
        refused(&desc(3), &Constants::shared(constant), other),
        Err(INVALID_ARGUMENT),
        "another device's"
    );
    close(host, other);
    for (fault, wanted) in [(4, OUT_OF_MEMORY), (13, EXCEPTION), (51, OUT_OF_MEMORY)] {
        host.set_fault(fault, 0);
        assert_eq!(make(device, &ConstantDesc::new(element::F32, &b)), Err(wanted), "fault {fault}");
        host.set_fault(0, 0);
    }
    let [mut small, mut none] = [0; 2].map(|_| ConstantDesc::new(element::F32, &b));
    (small.struct_size, none.data) = (8, std::ptr::null());
    assert_eq!([make(device, &small), make(device, &none)], [Err(INVALID_ARGUMENT); 2]);
    let empty = make(device, &ConstantDesc::new(element::F32, &[])).expect("an empty constant");
    // SAFETY: made above; NULL is accepted.
    unsafe {
        (shim.constant_destroy)(empty);
        (shim.constant_destroy)(constant);
        (shim.constant_destroy)(null_mut());
    }
    close(host, device);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// A run in more parts than its queue has room for: each is committed before the next is made.
fn parts_in_a_full_queue(host: &Host) {
    for (lazy, limit) in [(0, 1), (1, 1), (1, 2)] {
        host.set("set_lazy", lazy);
        host.set("set_queue_limit", limit);
        let (device, blocked) = (device(host), host.counter("blocked"));
        let case = Case { m: 200, n: 96, k: 130, data: Data::Integers, ..Case::default() };
        // SAFETY: opened above.
        unsafe { case.run_shim(host, device, Passing::Buffers) }.unwrap_or_else(|e| panic!("{e}"));
        close(host, device);
        assert!(host.counter("blocked") > blocked, "the run was no longer than the queue");
    }
    host.set("set_queue_limit", 0);
    host.set("set_lazy", 0);
}

fn main() {
    run_tests(
        "ane_metal_shim",
        &[
            ("faults", faults),
            ("compile_log", compile_log),
            ("refusals", refusals),
            ("bad_runs", bad_runs),
            ("prepared", prepared),
            ("packages", packages),
            ("steady_state", steady_state),
            ("devices", submissions::devices),
            ("buffers", submissions::buffers),
            ("constants", constants),
            ("submissions", submissions::submissions),
            ("waits", submissions::waits),
            ("room", submissions::room),
            ("failures", |host| submissions::failures(host, &[11])),
            ("submission_faults", |host| {
                submissions::submission_faults(host, &[(10, 0, OUT_OF_MEMORY), (12, 0, EXCEPTION)]);
            }),
            ("destroyed_in_flight", submissions::destroyed_in_flight),
            ("full_queue", submissions::full_queue),
            ("parts_in_a_full_queue", parts_in_a_full_queue),
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
