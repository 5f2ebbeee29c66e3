//! What the programs that drive a shim through the C ABI share.

use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::null_mut;

use crate::case::{Case, Data, Passing, Random};
use crate::host::{
    AneError, Constants, ExecutorOptions, Host, Operand, Options, RunArgs, RunInfo, build, create,
};
use crate::plan::{Desc, element, flag};

/// `ANE_STATUS_REFUSED`.
pub const REFUSED: i32 = 2;
/// `ANE_STATUS_OUT_OF_MEMORY`.
pub const OUT_OF_MEMORY: i32 = 3;
/// `ANE_STATUS_NO_DEVICE`.
pub const NO_DEVICE: i32 = 4;
/// `ANE_STATUS_COMPILE_FAILED`.
pub const COMPILE_FAILED: i32 = 5;
/// `ANE_STATUS_RUN_FAILED`.
pub const RUN_FAILED: i32 = 6;
/// `ANE_STATUS_EXCEPTION`.
pub const EXCEPTION: i32 = 7;
/// `ANE_STATUS_TIMEOUT`.
pub const TIMEOUT: i32 = 8;
/// `ANE_STATUS_BACKGROUND`.
pub const BACKGROUND: i32 = 9;
/// `ANE_STATUS_NOT_IMPLEMENTED`.
pub const NOT_IMPLEMENTED: i32 = 12;
/// `ANE_STATUS_INVALID_ARGUMENT`.
pub const INVALID_ARGUMENT: i32 = 1;
/// `ANE_STATUS_IO`.
pub const IO: i32 = 10;
/// `ANE_STATUS_PACKAGE_MISMATCH`.
pub const PACKAGE_MISMATCH: i32 = 11;
/// `ANE_STATUS_INTERNAL`.
pub const INTERNAL: i32 = 13;
/// `ANE_STATUS_PENDING`.
pub const PENDING: i32 = 14;

/// A shim by its getter, over the double; built from `ANE_SIM_OBJC` where that is set (the mutation
/// program does).
///
/// # Panics
/// When it cannot be built or loaded.
#[must_use]
pub fn host(getter: &str) -> Host {
    let objc = std::env::var_os("ANE_SIM_OBJC").map_or_else(crate::compile::objc_dir, PathBuf::from);
    let flags = std::env::var("ANE_SIM_CFLAGS").unwrap_or_default();
    let program = std::env::current_exe().expect("this program has a path");
    let dir = program.with_file_name("apple-sim");
    let own = dir.join(format!("host-{}", std::process::id()));
    let extra: Vec<&str> = flags.split_whitespace().collect();
    let library = build(&objc, &own, &extra).unwrap_or_else(|e| panic!("{e}"));
    let host = Host::open(&library, getter, &program.with_file_name("metal-cc"), &dir)
        .unwrap_or_else(|e| panic!("{e}"));
    // Loaded: the file is not needed any more, but for a sanitizer's stack traces.
    if extra.is_empty() {
        std::fs::remove_dir_all(&own).expect("a directory of ours can be removed");
    }
    host
}

/// Opens the device.
///
/// # Panics
/// When the shim does not.
#[must_use]
pub fn device(host: &Host) -> *mut c_void {
    host.open_device().unwrap_or_else(|e| panic!("{}", e.message()))
}

/// Closes a device that [`device`] opened.
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "test programs pass what `device` gave, once")]
pub fn close(host: &Host, device: *mut c_void) {
    // SAFETY: opened by the same shim, and used no more.
    unsafe { (host.shim.device_close)(device) };
}

/// A packed f32 product.
#[must_use]
pub fn simple(m: u64, n: u64, k: u64) -> Desc {
    Desc {
        struct_size: size_of::<Desc>() as u32,
        flags: 0,
        batch: 1,
        m,
        n,
        k,
        lda: k,
        ldb: n,
        ldc: n,
        ld_residual: n,
        stride_a: m * k,
        stride_b: k * n,
        stride_c: m * n,
        stride_residual: m * n,
        type_a: element::F32,
        type_b: element::F32,
        type_accumulator: element::F32,
        type_c: element::F32,
        type_bias: 0,
        type_scale: 0,
        activation: 0,
        alpha: 1.0,
        quantisation: [0; 8],
        reserved: [0; 3],
    }
}

/// A device, a product and an executor.
#[allow(missing_debug_implementations)]
pub struct Open<'h> {
    /// The shim.
    pub host: &'h Host,
    /// The device.
    pub device: *mut c_void,
    /// The product.
    pub product: *mut c_void,
    /// The executor.
    pub executor: *mut c_void,
}

impl<'h> Open<'h> {
    /// Compiles a product without wishes.
    ///
    /// # Errors
    /// The shim's error.
    pub fn new(host: &'h Host, desc: &Desc, constants: &Constants) -> Result<Self, Box<AneError>> {
        Self::with(host, desc, constants, &Options::default())
    }

    /// Compiles a product.
    ///
    /// # Errors
    /// The shim's error.
    pub fn with(
        host: &'h Host,
        desc: &Desc,
        constants: &Constants,
        options: &Options,
    ) -> Result<Self, Box<AneError>> {
        Self::deep(host, desc, constants, options, 0)
    }

    /// Compiles a product, with an executor that takes so many submissions.
    ///
    /// # Errors
    /// The shim's error.
    pub fn deep(
        host: &'h Host,
        desc: &Desc,
        constants: &Constants,
        options: &Options,
        depth: u32,
    ) -> Result<Self, Box<AneError>> {
        let mut open = Self { host, device: host.open_device()?, product: null_mut(), executor: null_mut() };
        let device = open.device;
        // SAFETY: pointers to live values of the header's types.
        create(|e| unsafe { (host.shim.compile)(device, desc, constants, options, &mut open.product, e) })?;
        let (product, depth) = (open.product, ExecutorOptions::depth(depth));
        // SAFETY: as above.
        create(|e| unsafe { (host.shim.executor_create)(product, &depth, &mut open.executor, e) })?;
        Ok(open)
    }

    /// Runs it on plain memory; an empty B is a constant one.
    ///
    /// # Errors
    /// The shim's error.
    pub fn run(&self, a: &mut [u8], b: &mut [u8], c: &mut [u8], m: u64) -> Result<RunInfo, Box<AneError>> {
        run(self.host, self.executor, a, b, c, m)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // A test that failed may have left it: nothing would ever complete.
        self.host.set("set_hold", 0);
        // SAFETY: made by this shim; NULL is accepted.
        unsafe {
            (self.host.shim.executor_destroy)(self.executor);
            (self.host.shim.product_destroy)(self.product);
            (self.host.shim.device_close)(self.device);
        }
    }
}

/// Runs an executor on plain memory; an empty B is a constant one.
fn run(
    host: &Host,
    executor: *mut c_void,
    a: &mut [u8],
    b: &mut [u8],
    c: &mut [u8],
    m: u64,
) -> Result<RunInfo, Box<AneError>> {
    let mut info = RunInfo::default();
    let b = if b.is_empty() { Operand::NONE } else { Operand::data(b) };
    let args = RunArgs { info: &mut info, ..RunArgs::new(m, Operand::data(a), b, Operand::data(c)) };
    // SAFETY: operands are live and as long as they say.
    create(|e| unsafe { (host.shim.executor_run)(executor, &args, e) })?;
    Ok(info)
}

/// A named test of a shim.
pub type Test = (&'static str, fn(&Host));

/// Runs tests in one process, on the main thread: GNUstep becomes multi-threaded for good when a thread
/// that called Objective-C ends and the main thread never did. Arguments of the program name those to run.
pub fn run_tests(getter: &str, tests: &[Test]) {
    let (host, wanted) = (host(getter), std::env::args().skip(1).collect::<Vec<_>>());
    let mut passed = 0;
    host.set("set_guard", 1);
    for (name, test) in tests.iter().filter(|test| wanted.is_empty() || wanted.iter().any(|w| w == test.0)) {
        println!("test {name} ...");
        test(&host);
        passed += 1;
    }
    println!("test result: ok. {passed} passed");
}

/// A number of the environment.
#[must_use]
pub fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// The status and refusal of a call.
///
/// # Errors
/// Those of the error.
pub fn status<T>(result: Result<T, Box<AneError>>) -> Result<(), (i32, i32)> {
    result.map(drop).map_err(|e| (e.status, e.refusal))
}

/// No rule of the frameworks was broken, and every interval has ended.
///
/// # Panics
/// When that is not so.
pub fn no_violations(host: &Host) {
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("open_intervals"), 0, "intervals begun and not ended");
}

/// What a caller can do wrong is an error, and touches nothing.
///
/// # Panics
/// When that is not so.
pub fn bad_runs(host: &Host) {
    let desc = simple(4, 5, 6);
    let open = Open::new(host, &desc, &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    let (mut a, mut b, mut c) = (vec![0u8; 96], vec![0u8; 120], vec![0xfdu8; 80]);
    assert_eq!(status(open.run(&mut a, &mut b, &mut c, 4)), Ok(()));
    c.fill(0xfd);
    let invalid = Err((INVALID_ARGUMENT, 0));
    assert_eq!(status(open.run(&mut a[..92], &mut b, &mut c, 4)), invalid);
    assert_eq!(status(open.run(&mut a, &mut b[..116], &mut c, 4)), invalid);
    assert_eq!(status(open.run(&mut a, &mut b, &mut c[..76], 4)), invalid);
    assert_eq!(status(open.run(&mut a, &mut [], &mut c, 4)), invalid);
    assert_eq!(status(open.run(&mut a, &mut b, &mut c, 3)), invalid);
    assert_eq!(status(open.run(&mut a, &mut b, &mut c, 5)), invalid);
    assert!(c.iter().all(|byte| *byte == 0xfd), "a refused run wrote to C");

    let (other, mut foreign, mut short) = (device(host), null_mut(), null_mut());
    // SAFETY: out is live.
    unsafe {
        assert_eq!((host.shim.buffer_create)(other, 0, 4096, &mut foreign, null_mut()), 0);
        assert_eq!((host.shim.buffer_create)(open.device, 0, 100, &mut short, null_mut()), 0);
    }
    let mut run_with = |operand: Operand| {
        let args = RunArgs::new(4, operand, Operand::data(&mut b), Operand::data(&mut c));
        // SAFETY: operands are live and as long as they say, or the shim must notice.
        status(create(|e| unsafe { (host.shim.executor_run)(open.executor, &args, e) }))
    };
    let buffer = |buffer, offset_bytes| Operand::buffer(buffer, offset_bytes, 96);
    assert_eq!(run_with(buffer(short, 0)), Ok(()));
    assert_eq!(run_with(buffer(short, 4)), Ok(()));
    assert_eq!(run_with(buffer(short, 8)), invalid);
    assert_eq!(run_with(buffer(short, u64::MAX - 7)), invalid);
    assert_eq!(run_with(buffer(foreign, 0)), invalid);
    assert_eq!(run_with(Operand { buffer: short, ..Operand::data(&mut a) }), invalid);
    // SAFETY: made above; NULL is accepted.
    unsafe {
        (host.shim.buffer_destroy)(foreign);
        (host.shim.buffer_destroy)(short);
        (host.shim.buffer_destroy)(null_mut());
        (host.shim.product_destroy)(null_mut());
        (host.shim.executor_destroy)(null_mut());
        (host.shim.device_close)(null_mut());
    }
    close(host, other);

    // Wrapping wants whole pages, and a constant B all of its bytes.
    let mut page = vec![0u8; 3 * 4096];
    let start = page.as_mut_ptr().wrapping_add(page.as_ptr().align_offset(4096));
    let mut out = null_mut();
    // SAFETY: a live page; what is not one is refused before it is touched.
    unsafe {
        let wrap = host.shim.buffer_wrap;
        assert_eq!(wrap(open.device, start.add(4).cast(), 4096, &mut out, null_mut()), INVALID_ARGUMENT);
        assert_eq!(wrap(open.device, start.cast(), 4000, &mut out, null_mut()), INVALID_ARGUMENT);
        assert_eq!(wrap(open.device, start.cast(), 0, &mut out, null_mut()), INVALID_ARGUMENT);
        assert_eq!(wrap(open.device, null_mut(), 4096, &mut out, null_mut()), INVALID_ARGUMENT);
        let constant_b = Desc { flags: flag::CONSTANT_B, ..desc };
        let (short_b, options) = ([0u8; 116], Options::default());
        for constants in [Constants::new(None), Constants::new(Some(&short_b))] {
            let compile = host.shim.compile;
            let got = compile(open.device, &constant_b, &constants, &options, &mut out, null_mut());
            assert_eq!(got, INVALID_ARGUMENT);
        }
    }
    assert!(out.is_null(), "out was written on failure");
}

/// Products of their own from several threads at once, on one device; then one product of all threads,
/// with an executor each.
///
/// # Panics
/// When a result is wrong or objects are left.
pub fn threads(host: &Host) {
    let baseline = host.counter("live_objects");
    let own = device(host) as usize;
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            scope.spawn(move || {
                let mut random = Random(t);
                for i in 0..6 {
                    let (m, n, k) =
                        (random.pick(&[1, 9, 40]), random.pick(&[1, 17, 33]), random.pick(&[5, 200]));
                    let case = Case { m, n, k, seed: t * 100 + i, data: Data::Integers, ..Case::default() };
                    // SAFETY: opened above, and closed below.
                    unsafe { case.run_shim(host, own as *mut c_void, Passing::Data) }
                        .unwrap_or_else(|e| panic!("{e}"));
                }
            });
        }
    });
    close(host, own as *mut c_void);

    let desc = simple(3, 4, 2);
    let open = Open::new(host, &desc, &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    let product = open.product as usize;
    std::thread::scope(|scope| {
        for t in 1..=4u8 {
            scope.spawn(move || {
                let mut executor = null_mut();
                let none = ExecutorOptions::depth(0);
                // SAFETY: the product outlives the scope.
                create(|e| unsafe {
                    (host.shim.executor_create)(product as *mut c_void, &none, &mut executor, e)
                })
                .unwrap_or_else(|e| panic!("{}", e.message()));
                let mut a: Vec<u8> = [f32::from(t); 6].iter().flat_map(|v| v.to_ne_bytes()).collect();
                let mut b: Vec<u8> = [1f32; 8].iter().flat_map(|v| v.to_ne_bytes()).collect();
                let expected: Vec<u8> =
                    [2.0 * f32::from(t); 12].iter().flat_map(|v| v.to_ne_bytes()).collect();
                for _ in 0..40 {
                    let mut c = vec![0xfdu8; 48];
                    run(host, executor, &mut a, &mut b, &mut c, 3)
                        .unwrap_or_else(|e| panic!("{}", e.message()));
                    assert_eq!(c, expected, "thread {t} got another's result");
                }
                // SAFETY: made above.
                unsafe { (host.shim.executor_destroy)(executor) };
            });
        }
    });
    drop(open);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// Resident memory of this process and what is allocated of its heap, in bytes.
pub(crate) fn memory_bytes() -> (usize, usize) {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0);
    // SAFETY: it has no preconditions.
    (pages * 4096, unsafe { libc::mallinfo2() }.uordblks)
}

/// 100,000 runs and 10,000 lives of products and executors leave memory and objects as they were;
/// `ANE_SIM_RUNS` sets another number of runs.
///
/// # Panics
/// When that is not so.
pub fn endurance(host: &Host) {
    let runs = setting("ANE_SIM_RUNS", 100_000);
    let desc = simple(2, 2, 2);
    host.set("set_latency_us", 0);
    let open = Open::new(host, &desc, &Constants::new(None)).unwrap_or_else(|e| panic!("{}", e.message()));
    let (mut a, mut b, mut c) = (vec![0u8; 16], vec![0u8; 16], vec![0u8; 16]);
    let mut one = || {
        c.fill(0xfd);
        open.run(&mut a, &mut b, &mut c, 2).unwrap_or_else(|e| panic!("{}", e.message()));
        assert!(c.iter().all(|byte| *byte == 0), "0 x 0 is 0");
    };
    let life = || {
        let (mut product, mut executor) = (null_mut(), null_mut());
        let (constants, options) = (Constants::new(None), Options::default());
        // SAFETY: pointers to live values of the header's types; made here, destroyed here.
        unsafe {
            let compile = host.shim.compile;
            assert_eq!(compile(open.device, &desc, &constants, &options, &mut product, null_mut()), 0);
            let depth = ExecutorOptions::depth(2);
            assert_eq!((host.shim.executor_create)(product, &depth, &mut executor, null_mut()), 0);
            (host.shim.executor_destroy)(executor);
            (host.shim.product_destroy)(product);
        }
    };
    for _ in 0..runs / 50 {
        one();
        life();
    }
    let (live, (resident, heap)) = (host.counter("live_objects"), memory_bytes());
    for i in 0..runs {
        one();
        if i % 10 == 0 {
            life();
        }
    }
    assert_eq!(host.counter("live_objects"), live, "objects left by {runs} runs");
    let after = memory_bytes();
    let (resident, heap) = (after.0.saturating_sub(resident), after.1.saturating_sub(heap));
    host.set("set_latency_us", 300);
    println!(
        "  {runs} runs, {} lives: {resident} more bytes resident, {heap} more on the heap",
        runs.div_ceil(10)
    );
    // A leak of 16 bytes a run or a life shows on the heap. Sanitizers keep what was freed for a while.
    if std::env::var_os("ANE_SIM_CFLAGS").is_none() {
        assert!(resident < 1 << 20, "{resident} bytes more are resident after {runs} runs");
        assert!(heap < 16 * (runs / 10).max(64), "{heap} bytes more are on the heap after {runs} runs");
    }
}
