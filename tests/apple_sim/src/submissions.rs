//! Devices, buffers, submissions: tests that both shims pass.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::thread;

use crate::case::{Case, Data, Passing, Random};
use crate::drive::{
    EXCEPTION, INVALID_ARGUMENT, NO_DEVICE, OUT_OF_MEMORY, Open, PENDING, RUN_FAILED, close, device,
    memory_bytes, setting, simple, status,
};
use crate::host::{AneError, Constants, ExecutorOptions, Host, Operand, Options, RunArgs, RunInfo, create};
use crate::plan::{Desc, flag};
use crate::sweep;

/// A call that may fail, and what it fails with.
type Call<'a> = &'a dyn Fn() -> Result<(), i32>;

/// What is wrong with the arguments of a run: an operand in plain memory.
type Edit<'a> = &'a dyn Fn(&mut RunArgs, Operand);

/// No limit to a wait.
const FOREVER: u64 = u64::MAX;
/// What a shim takes at most.
const DEEPEST: u32 = 64;
const INVALID: Result<(), (i32, i32)> = Err((INVALID_ARGUMENT, 0));

fn ok<T>(result: Result<T, Box<AneError>>) -> T {
    result.unwrap_or_else(|e| panic!("status {}: {}", e.status, e.message()))
}

/// A buffer of a device.
struct Buffer<'h> {
    host: &'h Host,
    handle: *mut c_void,
}

impl<'h> Buffer<'h> {
    /// Filled with a byte.
    fn new(host: &'h Host, device: *mut c_void, kind: i32, bytes: usize) -> Self {
        let mut handle = null_mut();
        // SAFETY: an open device and a live out.
        ok(create(|e| unsafe { (host.shim.buffer_create)(device, kind, bytes as u64, &mut handle, e) }));
        let buffer = Self { host, handle };
        buffer.write(0, &vec![0xfd; bytes]);
        buffer
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let (data, length) = (bytes.as_ptr().cast(), bytes.len() as u64);
        // SAFETY: a live buffer, and memory as long as it says.
        ok(create(|e| unsafe { (self.host.shim.buffer_write)(self.handle, offset as u64, data, length, e) }));
    }

    fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0x55; length];
        let data = bytes.as_mut_ptr().cast();
        // SAFETY: as above.
        ok(create(|e| unsafe {
            (self.host.shim.buffer_read)(self.handle, offset as u64, data, length as u64, e)
        }));
        bytes
    }

    fn contents(&self) -> *mut u8 {
        // SAFETY: a live buffer.
        unsafe { (self.host.shim.buffer_contents)(self.handle) }.cast()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this shim; no submission uses it any more.
        unsafe { (self.host.shim.buffer_destroy)(self.handle) };
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// A product of M x N x K, its constant-free operands in buffers, and what each run must give.
const M: usize = 3;
const N: usize = 4;
const K: usize = 2;

/// The operands of one submission.
struct Lane<'h> {
    a: Buffer<'h>,
    b: Buffer<'h>,
    c: Buffer<'h>,
    offset: usize,
    value: f32,
}

impl<'h> Lane<'h> {
    /// Operands from an offset on; all elements of A are `value`, of B 1.
    fn new(host: &'h Host, device: *mut c_void, kind: i32, offset: usize, value: f32) -> Self {
        let buffer = |elements: usize| Buffer::new(host, device, kind, offset + elements * 4);
        let lane = Self { a: buffer(M * K), b: buffer(K * N), c: buffer(M * N), offset, value };
        lane.set(value);
        lane.b.write(offset, &bytes_of(&[1.0; K * N]));
        lane
    }

    fn set(&self, value: f32) {
        self.a.write(self.offset, &bytes_of(&[value; M * K]));
    }

    fn args(&self) -> RunArgs {
        let operand = |buffer: &Buffer<'_>, elements: usize| {
            Operand::buffer(buffer.handle, self.offset as u64, elements as u64 * 4)
        };
        RunArgs::new(M as u64, operand(&self.a, M * K), operand(&self.b, K * N), operand(&self.c, M * N))
    }

    /// C is what it must be, and nothing beside it was written.
    fn check(&self, value: f32) {
        let got = self.c.read(0, self.offset + M * N * 4);
        assert!(got[..self.offset].iter().all(|byte| *byte == 0xfd), "written before C");
        assert_eq!(got[self.offset..], bytes_of(&[value * K as f32; M * N]), "C of a run with {value}");
        self.c.write(0, &vec![0xfd; got.len()]);
    }

    fn is_blank(&self) -> bool {
        self.c.read(self.offset, M * N * 4).iter().all(|byte| *byte == 0xfd)
    }
}

fn open(host: &Host, depth: u32) -> Open<'_> {
    ok(Open::deep(host, &small(), &Constants::new(None), &Options::default(), depth))
}

fn small() -> Desc {
    simple(M as u64, N as u64, K as u64)
}

fn submit(open: &Open<'_>, args: &RunArgs) -> Result<u64, Box<AneError>> {
    let mut ticket = 0;
    // SAFETY: a live executor; operands are live until the ticket has ended.
    create(|e| unsafe { (open.host.shim.executor_submit)(open.executor, args, &mut ticket, e) })
        .inspect_err(|_| assert_eq!(ticket, 0, "a ticket was written on failure"))?;
    assert_ne!(ticket, 0);
    Ok(ticket)
}

fn wait(open: &Open<'_>, ticket: u64, timeout_ns: u64) -> Result<RunInfo, Box<AneError>> {
    let mut info = RunInfo::default();
    // SAFETY: a live executor.
    create(|e| unsafe { (open.host.shim.executor_wait)(open.executor, ticket, timeout_ns, &mut info, e) })?;
    Ok(info)
}

/// Runs a test with command buffers that are executed by whoever waits, then by threads.
fn both_ways(host: &Host, test: impl Fn(&Host)) {
    for lazy in [1, 0] {
        host.set("set_lazy", lazy);
        let baseline = host.counter("live_objects");
        test(host);
        assert_eq!(host.counter("in_flight"), 0, "something is in flight (lazy: {lazy})");
        assert_eq!(host.counter("live_objects"), baseline, "objects left (lazy: {lazy})");
        assert_eq!(host.counter("open_intervals"), 0, "intervals begun and not ended");
        assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    }
    host.set("set_lazy", 0);
}

/// Devices are counted and told apart; each computes with buffers of its own.
///
/// # Panics
/// When that is not so.
pub fn devices(host: &Host) {
    let shim = host.shim;
    let count = || {
        let mut count = 77;
        // SAFETY: count is live.
        status(create(|e| unsafe { (shim.device_count)(&mut count, e) })).map(|()| count)
    };
    let (baseline, name) = (host.counter("live_objects"), "Apple M1 (test double)");
    host.set_device_name(name);
    assert_eq!(count(), Ok(1));
    host.set("set_devices", 3);
    assert_eq!(count(), Ok(3));
    let names: Vec<String> = (0..3).map(|index| ok(host.device_info(index)).name()).collect();
    // In the double's order, and the default first.
    assert_eq!(names, [name.into(), format!("{name}, number 2"), format!("{name}, number 1")]);
    assert_eq!(host.device_info(3).map(drop).map_err(|e| e.status), Err(NO_DEVICE));
    let info = ok(host.device_info(0));
    assert_eq!((info.flags & 1, info.kind, info.preferred_buffer, info.max_queue_depth), (1, 2, 0, DEEPEST));
    assert!(info.max_buffer_bytes > 0 && info.wrap_alignment > 0);
    host.set("set_unified", 0);
    assert_eq!(ok(host.device_info(0)).preferred_buffer, 1);
    host.set("set_unified", 1);

    let mut others = [null_mut(); 2];
    for (index, other) in (1..).zip(&mut others) {
        // SAFETY: out is live.
        ok(create(|e| unsafe { (shim.device_open)(index, other, e) }));
        let case = Case { m: 5, n: 4, k: 3, data: Data::Integers, ..Case::default() };
        // SAFETY: opened above.
        unsafe { case.run_shim(host, *other, Passing::Buffers) }.unwrap_or_else(|e| panic!("{e}"));
    }
    let mut none = null_mut();
    // SAFETY: out is live.
    let beyond = create(|e| unsafe { (shim.device_open)(3, &mut none, e) });
    assert_eq!((status(beyond), none.is_null()), (Err((NO_DEVICE, 0)), true));
    for other in others {
        // SAFETY: an open device; once more is cheap.
        unsafe {
            ok(create(|e| (shim.device_prepare)(other, e)));
            ok(create(|e| (shim.device_prepare)(other, e)));
        }
        close(host, other);
    }
    let facts = || host.device_info(0).map(drop).map_err(|e| e.status);
    let opened = || host.open_device().map(drop).map_err(|e| e.status);
    let counted = || count().map(drop).map_err(|e| e.0);
    let calls: [(i32, i32, Call<'_>); 8] = [
        (1, NO_DEVICE, &counted),
        (1, NO_DEVICE, &facts),
        (1, NO_DEVICE, &opened),
        (47, EXCEPTION, &counted),
        (47, EXCEPTION, &facts),
        (47, EXCEPTION, &opened),
        (48, EXCEPTION, &facts),
        (49, EXCEPTION, &opened),
    ];
    for (fault, wanted, call) in calls {
        host.set_fault(fault, 0);
        assert_eq!(call(), Err(wanted), "fault {fault}");
        host.set_fault(0, 0);
    }
    host.set("set_devices", 1);
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// Buffers of either kind are written and read at any byte, also by several threads at once.
///
/// # Panics
/// When that is not so.
pub fn buffers(host: &Host) {
    let baseline = host.counter("live_objects");
    for unified in [1, 0] {
        host.set("set_unified", unified);
        let device = device(host);
        for kind in [0, 1] {
            let buffer = Buffer::new(host, device, kind, 103);
            assert_eq!(buffer.contents().is_null(), kind == 1 && unified == 0);
            assert!(buffer.contents().is_null() || buffer.contents().align_offset(64) == 0);
            let mut expected = vec![0xfd; 103];
            let blits = host.counter("blits");
            for (offset, length) in
                [(0, 103), (4, 8), (1, 1), (3, 2), (7, 4), (99, 4), (102, 1), (103, 0), (8, 95)]
            {
                let bytes: Vec<u8> = (0..length).map(|i| (offset * 7 + i) as u8).collect();
                buffer.write(offset, &bytes);
                expected[offset..offset + length].copy_from_slice(&bytes);
                assert_eq!(buffer.read(0, 103), expected, "{length} bytes from {offset} on");
                assert_eq!(buffer.read(offset, length), bytes);
            }
            assert_eq!(host.counter("blits") > blits, kind == 1 && unified == 0);
            let outside = |offset, length| {
                let mut bytes = [0x55u8; 200];
                // SAFETY: what lies outside is refused before it is touched.
                unsafe {
                    let data: *mut c_void = bytes.as_mut_ptr().cast();
                    let read = (host.shim.buffer_read)(buffer.handle, offset, data, length, null_mut());
                    let write = (host.shim.buffer_write)(buffer.handle, offset, data, length, null_mut());
                    assert!(bytes.iter().all(|byte| *byte == 0x55), "written beyond the buffer");
                    (read, write)
                }
            };
            for (offset, length) in [(0, 104), (103, 1), (104, 0), (u64::MAX, 2), (8, u64::MAX)] {
                assert_eq!(outside(offset, length), (INVALID_ARGUMENT, INVALID_ARGUMENT));
            }
            neighbours(host, device, kind);
        }
        let (mut none, create_buffer) = (null_mut(), host.shim.buffer_create);
        // SAFETY: out is live.
        let odd = create(|e| unsafe { create_buffer(device, 2, 8, &mut none, e) });
        assert_eq!((status(odd), none.is_null()), (INVALID, true));
        // Rounded up to whole words this would be a buffer of none.
        for bytes in [u64::MAX, u64::MAX - 2] {
            // SAFETY: as above.
            let huge = create(|e| unsafe { create_buffer(device, 1, bytes, &mut none, e) });
            assert_eq!((status(huge), none.is_null()), (Err((OUT_OF_MEMORY, 0)), true));
        }
        for (fault, wanted) in [(4, OUT_OF_MEMORY), (13, EXCEPTION), (51, OUT_OF_MEMORY), (48, EXCEPTION)] {
            host.set_fault(fault, 0);
            // SAFETY: as above.
            let failed = create(|e| unsafe { create_buffer(device, 1, 8, &mut none, e) });
            assert_eq!((status(failed), none.is_null()), (Err((wanted, 0)), true), "fault {fault}");
            host.set_fault(0, 0);
        }
        close(host, device);
    }
    transfer_faults(host);
    host.set("set_unified", 1);
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// Threads that write to bytes beside each other's lose none.
fn neighbours(host: &Host, device: *mut c_void, kind: i32) {
    const EACH: usize = 3;
    host.set("set_latency_us", 0);
    let buffer = Buffer::new(host, device, kind, 4 * EACH);
    let handle = buffer.handle as usize;
    thread::scope(|scope| {
        for t in 0..4usize {
            scope.spawn(move || {
                for round in 0..30u8 {
                    let bytes = [round + t as u8; EACH];
                    let (offset, data) = ((t * EACH) as u64, bytes.as_ptr().cast());
                    // SAFETY: the buffer outlives the scope.
                    let status = unsafe {
                        (host.shim.buffer_write)(handle as *mut c_void, offset, data, EACH as u64, null_mut())
                    };
                    assert_eq!(status, 0);
                    let mut back = [0; EACH];
                    let data = back.as_mut_ptr().cast();
                    // SAFETY: as above.
                    let status = unsafe {
                        (host.shim.buffer_read)(handle as *mut c_void, offset, data, EACH as u64, null_mut())
                    };
                    assert_eq!((status, back), (0, bytes), "a neighbour's write undid one of thread {t}");
                }
            });
        }
    });
    host.set("set_latency_us", 300);
}

/// A transfer that fails says so, changes nothing, and the next one works.
fn transfer_faults(host: &Host) {
    let device = device(host);
    let buffer = Buffer::new(host, device, 1, 64);
    let live = host.counter("live_objects");
    let faults = [
        (4, 0, OUT_OF_MEMORY), // the staging
        (9, 0, OUT_OF_MEMORY),
        (46, 0, OUT_OF_MEMORY),
        (13, 0, EXCEPTION),
        (50, 0, EXCEPTION),
        (45, 0, EXCEPTION),
        (42, 0, EXCEPTION),
        (40, 0, EXCEPTION),
        (41, 0, EXCEPTION),
        (43, 0, EXCEPTION),
        (11, 0, RUN_FAILED),
        (16, 0, RUN_FAILED),
        (11, 1, RUN_FAILED), // the second copy of a write that is not of whole words
        (45, 1, EXCEPTION),
    ];
    host.set("set_error", 1);
    for (fault, after, wanted) in faults {
        for writes in [true, false] {
            if after == 1 && !writes {
                continue;
            }
            let mut bytes = [0x55u8; 6];
            host.set_fault(fault, after);
            // SAFETY: a live buffer, and memory as long as it says.
            let failed = create(|e| unsafe {
                let data: *mut c_void = bytes.as_mut_ptr().cast();
                if writes {
                    (host.shim.buffer_write)(buffer.handle, 9, data, 6, e)
                } else {
                    (host.shim.buffer_read)(buffer.handle, 9, data, 6, e)
                }
            });
            host.set_fault(0, 0);
            assert_eq!(status(failed), Err((wanted, 0)), "fault {fault} after {after}, writes {writes}");
            assert_eq!(bytes, [0x55; 6], "a read that failed left something");
            // What was committed before an exception may still be in flight: a read goes behind it.
            buffer.write(9, &[1, 2, 3, 4, 5, 6]);
            assert_eq!(buffer.read(8, 8), [0xfd, 1, 2, 3, 4, 5, 6, 0xfd]);
            assert_eq!(host.counter("live_objects"), live, "fault {fault} after {after} leaks");
        }
    }
    drop(buffer);
    close(host, device);
}

/// Products on memory that the host does not see, in place and copied.
///
/// # Panics
/// When a result is wrong.
pub fn private_memory(host: &Host) {
    host.set("set_unified", 0);
    host.set("set_latency_us", 20);
    let bf16 = crate::plan::element::BF16;
    let cases = sweep::cases();
    let mine = cases.iter().filter(|c| ![c.input, c.output, c.bias.unwrap_or(0)].contains(&bf16));
    let device = device(host);
    let mut run = 0;
    for (i, case) in mine.step_by(setting("ANE_SIM_CASE_STEP", 2) * 11).enumerate() {
        let case = Case { overrides: crate::plan::Overrides::default(), ..case.clone() };
        let passing = [Passing::Device, Passing::DeviceOffsets, Passing::Buffers][i % 3];
        // SAFETY: opened above.
        unsafe { case.run_shim(host, device, passing) }.unwrap_or_else(|e| panic!("{e}"));
        run += 1;
    }
    close(host, device);
    host.set("set_unified", 1);
    host.set("set_latency_us", 300);
    println!("  {run} cases");
}

/// Submissions run while others are open, are waited for in any order, and say of themselves alone.
///
/// # Panics
/// When that is not so.
pub fn submissions(host: &Host) {
    both_ways(host, |host| {
        for (kind, offset) in [(0, 0), (0, 20), (1, 0), (1, 6)] {
            host.set("set_unified", 1 - i64::from(kind));
            several(host, kind, offset);
        }
        host.set("set_unified", 1);
        what_a_caller_may_not(host);
        fewer_rows(host);
        copied_then_in_place(host);
    });
}

/// Three at once, over and over, that end out of their order.
fn several(host: &Host, kind: i32, offset: usize) {
    const DEPTH: usize = 3;
    let open = open(host, DEPTH as u32);
    let lanes: Vec<Lane<'_>> =
        (0..DEPTH).map(|i| Lane::new(host, open.device, kind, offset, 1.0 + i as f32)).collect();
    let mut random = Random(7);
    let mut in_flight: Vec<Option<u64>> = vec![None; DEPTH];
    let (mut last_ticket, mut times) = (0, Vec::new());
    for round in 0..40u64 {
        let lane = (random.next_u64() % DEPTH as u64) as usize;
        if let Some(ticket) = in_flight[lane].take() {
            let info = ok(wait(&open, ticket, FOREVER));
            assert_eq!((info.observed, info.flags), (2, 0));
            assert!(info.device_start_ns < info.device_end_ns);
            times.push((ticket, info.device_start_ns));
            lanes[lane].check(lanes[lane].value + (ticket % 5) as f32);
        }
        let value = lanes[lane].value + ((last_ticket + 1) % 5) as f32;
        lanes[lane].set(value);
        let ticket = ok(submit(&open, &lanes[lane].args()));
        assert!(ticket > last_ticket, "round {round}: ticket {ticket} after {last_ticket}");
        (in_flight[lane], last_ticket) = (Some(ticket), ticket);
    }
    for (lane, ticket) in lanes.iter().zip(in_flight) {
        if let Some(ticket) = ticket {
            let info = ok(wait(&open, ticket, FOREVER));
            times.push((ticket, info.device_start_ns));
            lane.check(lane.value + (ticket % 5) as f32);
        }
    }
    times.sort_unstable();
    assert!(times.is_sorted_by(|a, b| a.1 < b.1), "times of another submission: {times:?}");
}

fn what_a_caller_may_not(host: &Host) {
    let open = open(host, 2);
    let lanes = [1.0, 2.0, 3.0].map(|value| Lane::new(host, open.device, 0, 0, value));
    let [first, second] = [0, 1].map(|i| ok(submit(&open, &lanes[i].args())));
    assert_eq!(status(submit(&open, &lanes[2].args())), INVALID, "a third of two");
    // SAFETY: live operands.
    let run = || status(create(|e| unsafe { (host.shim.executor_run)(open.executor, &lanes[2].args(), e) }));
    assert_eq!(run(), INVALID, "a run while submissions are open");
    for unknown in [0, second + 1, u64::MAX] {
        assert_eq!(status(wait(&open, unknown, FOREVER)), INVALID, "ticket {unknown}");
    }
    ok(wait(&open, first, FOREVER));
    lanes[0].check(1.0);
    assert_eq!(status(wait(&open, first, FOREVER)), INVALID, "a ticket that has ended");
    assert_eq!(run(), INVALID);
    assert!(lanes[2].is_blank(), "a refused run wrote to C");
    // Its place is free again, though an older one is open.
    let third = ok(submit(&open, &lanes[2].args()));
    assert!(![first, second].contains(&third));
    assert_eq!(status(submit(&open, &lanes[0].args())), INVALID, "a third of two");
    for (ticket, lane) in [(third, 2), (second, 1)] {
        ok(wait(&open, ticket, FOREVER));
        lanes[lane].check(lanes[lane].value);
    }
    assert_eq!(run(), Ok(()));
    lanes[2].check(3.0);

    let mut plain = vec![0u8; M * N * 4];
    let edits: [Edit<'_>; 7] = [
        &|args, plain| args.a = plain,
        &|args, plain| args.b = plain,
        &|args, plain| args.c = plain,
        &|args, plain| args.bias = plain,
        &|args, _| args.m = M as u64 + 1,
        &|args, _| args.flags = 1,
        &|args, _| args.a.length_bytes -= 4,
    ];
    for (i, edit) in edits.iter().enumerate() {
        let mut args = lanes[0].args();
        edit(&mut args, Operand::data(&mut plain));
        assert_eq!(status(submit(&open, &args)), INVALID, "edit {i}");
    }
    let mut info = RunInfo::default();
    assert_eq!(status(submit(&open, &RunArgs { info: &mut info, ..lanes[0].args() })), INVALID);
    assert!(lanes[0].is_blank(), "a refused submission wrote to C");

    for (depth, wanted) in [(0, Ok(())), (1, Ok(())), (DEEPEST, Ok(())), (DEEPEST + 1, INVALID)] {
        let mut executor = null_mut();
        let options = ExecutorOptions::depth(depth);
        // SAFETY: live pointers.
        let made =
            create(|e| unsafe { (host.shim.executor_create)(open.product, &options, &mut executor, e) });
        assert_eq!(status(made), wanted, "depth {depth}");
        if wanted.is_ok() {
            let other = Open { host, device: null_mut(), product: null_mut(), executor };
            let taken = (0..=depth).map_while(|_| submit(&other, &lanes[0].args()).ok()).collect::<Vec<_>>();
            assert_eq!(taken.len(), depth as usize, "depth {depth}");
            for ticket in taken {
                ok(wait(&other, ticket, FOREVER));
            }
            // SAFETY: made above; the rest of `other` is not its own.
            unsafe { (host.shim.executor_destroy)(executor) };
            std::mem::forget(other);
        } else {
            assert!(executor.is_null(), "out was written on failure");
        }
    }
    let small = ExecutorOptions { struct_size: 4, queue_depth: 0 };
    let mut executor = null_mut();
    // SAFETY: live pointers.
    let made = create(|e| unsafe { (host.shim.executor_create)(open.product, &small, &mut executor, e) });
    assert_eq!(status(made), INVALID);
}

/// Submissions of fewer rows than compiled for, and of none.
fn fewer_rows(host: &Host) {
    let desc = Desc { flags: flag::VARIABLE_M, ..small() };
    let open = ok(Open::deep(host, &desc, &Constants::new(None), &Options::default(), 2));
    let lane = Lane::new(host, open.device, 0, 0, 3.0);
    let tickets = [1, 0].map(|m| ok(submit(&open, &RunArgs { m, ..lane.args() })));
    let infos = tickets.map(|ticket| ok(wait(&open, ticket, FOREVER)));
    assert_eq!((infos[0].observed, infos[1].observed, infos[1].device_end_ns), (2, 0, 0));
    let c = lane.c.read(0, M * N * 4);
    assert_eq!(c[..N * 4], bytes_of(&[3.0 * K as f32; N]));
    assert!(c[N * 4..].iter().all(|byte| *byte == 0xfd), "more rows than asked for");
}

/// What a submission that is copied leaves behind is nothing to the next one, which is not.
fn copied_then_in_place(host: &Host) {
    let open = open(host, 1);
    let lanes = [(20, 1.0), (0, 2.0)].map(|(offset, value)| Lane::new(host, open.device, 0, offset, value));
    for lane in &lanes {
        let ticket = ok(submit(&open, &lane.args()));
        ok(wait(&open, ticket, FOREVER));
        lane.check(lane.value);
    }
    assert!(lanes[0].is_blank(), "the second submission wrote to the C of the first");
}

/// A wait ends when its time is over, or the submission; older ones come first, whatever fails early.
///
/// # Panics
/// When that is not so.
pub fn waits(host: &Host) {
    both_ways(host, |host| {
        let open = open(host, 2);
        let lanes = [1.0, 2.0].map(|value| Lane::new(host, open.device, 0, 0, value));
        host.set("set_hold", 1);
        let tickets = [0, 1].map(|i| ok(submit(&open, &lanes[i].args())));
        let pending = |ticket, timeout| {
            let error = wait(&open, ticket, timeout).expect_err("it cannot have completed");
            assert_eq!((error.status, error.refusal), (PENDING, 0));
        };
        pending(tickets[1], 0);
        pending(tickets[0], 0);
        if host.counter("lazy") == 0 {
            // Held until we say so.
            for timeout in [1, 2_000_000] {
                pending(tickets[0], timeout);
                pending(tickets[1], timeout);
            }
        }
        host.set("set_hold", 0);
        // Longer than any machine takes.
        ok(wait(&open, tickets[1], 600_000_000_000));
        lanes[1].check(2.0);
        ok(wait(&open, tickets[0], 0));
        lanes[0].check(1.0);

        // The second fails at once, the first is still to begin.
        host.set("set_error", 1);
        host.set("set_hold", 1);
        let first = ok(submit(&open, &lanes[0].args()));
        host.set_fault(52, 0);
        let second = ok(submit(&open, &lanes[1].args()));
        host.set_fault(0, 0);
        pending(second, 0);
        host.set("set_hold", 0);
        let error = wait(&open, second, FOREVER).expect_err("it failed");
        assert_eq!((error.status, error.native_code), (RUN_FAILED, 1));
        ok(wait(&open, first, 0));
        lanes[0].check(1.0);
    });
}

/// Submissions do not wait for each other, while executors are few.
///
/// # Panics
/// When they do.
pub fn room(host: &Host) {
    let blocked = host.counter("blocked");
    host.set("set_hold", 1);
    let mut open = open(host, DEEPEST);
    let (mut second, depth) = (null_mut(), ExecutorOptions::depth(DEEPEST));
    // SAFETY: a live product and a live out.
    ok(create(|e| unsafe { (host.shim.executor_create)(open.product, &depth, &mut second, e) }));
    let lanes: Vec<_> = (0..2 * DEEPEST).map(|_| Lane::new(host, open.device, 0, 0, 1.0)).collect();
    for (lane, executor) in lanes.iter().zip([open.executor, second].into_iter().cycle()) {
        let mut ticket = 0;
        // SAFETY: live executors and operands, which outlive them.
        ok(create(|e| unsafe { (host.shim.executor_submit)(executor, &lane.args(), &mut ticket, e) }));
    }
    assert_eq!(host.counter("blocked"), blocked, "a submission waited for another");
    host.set("set_hold", 0);
    // SAFETY: made above; they wait, and NULL is accepted later.
    unsafe {
        (host.shim.executor_destroy)(second);
        (host.shim.executor_destroy)(open.executor);
    }
    open.executor = null_mut();
    drop((lanes, open));
}

/// What fails says so with its own ticket, and with none before or after it. `fault` fails one submission.
fn one_fails(host: &Host, fault: i32) {
    let open = open(host, 3);
    let lanes = [1.0, 2.0, 3.0].map(|value| Lane::new(host, open.device, 0, 20, value));
    for (code, wanted) in [(1, 6), (2, 8), (4, NO_DEVICE), (7, 9), (8, OUT_OF_MEMORY), (11, NO_DEVICE)] {
        host.set("set_error", code);
        for order in [[2, 0, 1], [0, 1, 2], [1, 2, 0]] {
            host.set_fault(fault, 1);
            let tickets: Vec<u64> = lanes.iter().map(|lane| ok(submit(&open, &lane.args()))).collect();
            // Where looks execute what is looked at, a limit is one of a wait that never ends.
            let limit = if host.counter("lazy") == 1 { 20_000_000_000 } else { FOREVER };
            for i in order {
                match wait(&open, tickets[i], limit) {
                    Ok(_) => {
                        assert_ne!(i, 1, "the one that failed");
                        lanes[i].check(lanes[i].value);
                    }
                    Err(error) => {
                        assert_eq!((i, error.status, error.native_code), (1, wanted, code), "{order:?}");
                        assert!(error.message().contains("planted GPU error"), "{}", error.message());
                        assert!(lanes[1].is_blank(), "C of a run that failed was copied");
                    }
                }
            }
            host.set_fault(0, 0);
        }
    }
}

/// The same for the shims, by what fails one submission of theirs.
///
/// # Panics
/// When that is not so.
pub fn failures(host: &Host, faults: &[i32]) {
    both_ways(host, |host| faults.iter().for_each(|fault| one_fails(host, *fault)));
}

/// A fault at each call of the framework's, in a submission between two good ones: an error of that one, with nothing
/// left in flight. `more` are those that only one shim meets.
///
/// # Panics
/// When that is not so.
pub fn submission_faults(host: &Host, more: &[(i32, i32, i32)]) {
    // Fault, calls before it, status. Operands are staged.
    let common = [
        (4, 0, OUT_OF_MEMORY),
        (4, 2, OUT_OF_MEMORY),
        (13, 1, EXCEPTION),
        (9, 0, OUT_OF_MEMORY),
        (50, 0, EXCEPTION),
        (42, 0, EXCEPTION),
        (32, 0, EXCEPTION),
        (33, 0, EXCEPTION),
        (40, 0, EXCEPTION),
        (43, 0, EXCEPTION),
        (44, 0, EXCEPTION),
    ];
    both_ways(host, |host| {
        for (fault, after, wanted) in common.iter().chain(more).copied() {
            // A new executor for each, so that staging is made in it.
            let open = open(host, 3);
            let lanes = [1.0, 2.0, 3.0].map(|value| Lane::new(host, open.device, 0, 20, value));
            let before = ok(submit(&open, &lanes[0].args()));
            // Executed before the fault is there to hit it.
            ok(wait_without_ending(&open, before));
            host.set_fault(fault, after);
            let failed = submit(&open, &lanes[1].args()).and_then(|ticket| wait(&open, ticket, FOREVER));
            host.set_fault(0, 0);
            let error = failed.expect_err(&format!("fault {fault} after {after} was not reported"));
            assert_eq!(error.status, wanted, "fault {fault} after {after}: {}", error.message());
            assert_eq!(
                host.counter("in_flight"),
                0,
                "fault {fault} after {after} leaves something in flight"
            );
            let behind = ok(submit(&open, &lanes[2].args()));
            ok(wait(&open, behind, FOREVER));
            ok(wait(&open, before, FOREVER));
            lanes[2].check(3.0);
            lanes[0].check(1.0);
            let again = ok(submit(&open, &lanes[1].args()));
            ok(wait(&open, again, FOREVER));
            lanes[1].check(2.0);
        }
        looks_that_raise(host);
    });
    no_memory(host);
}

/// Lets a submission complete, and leaves its ticket.
fn wait_without_ending(open: &Open<'_>, ticket: u64) -> Result<(), Box<AneError>> {
    // A younger one, which ends after it.
    let lane = Lane::new(open.host, open.device, 0, 0, 1.0);
    let younger = submit(open, &lane.args())?;
    assert!(younger > ticket);
    wait(open, younger, FOREVER).map(drop)
}

/// An exception in a wait with a limit ends the ticket too.
fn looks_that_raise(host: &Host) {
    let open = open(host, 1);
    let lane = Lane::new(host, open.device, 0, 0, 1.0);
    for fault in [41, 40] {
        let ticket = ok(submit(&open, &lane.args()));
        host.set_fault(fault, 0);
        let error = wait(&open, ticket, 600_000_000_000).expect_err("it raised");
        host.set_fault(0, 0);
        assert_eq!(error.status, EXCEPTION, "{}", error.message());
        assert_eq!(status(wait(&open, ticket, 0)), INVALID, "the ticket has ended");
        assert_eq!(host.counter("in_flight"), 0, "fault {fault} is not waited for");
        lane.check(1.0);
    }
}

/// Host memory that is refused, in each function that makes an object.
fn no_memory(host: &Host) {
    let baseline = host.counter("live_objects");
    for after in 0..3 {
        host.set_fault(51, after);
        let failed = Open::deep(host, &small(), &Constants::new(None), &Options::default(), 2);
        host.set_fault(0, 0);
        let error = failed.map(drop).expect_err(&format!("calloc {after} did not fail"));
        assert_eq!(error.status, OUT_OF_MEMORY, "{}", error.message());
        assert_eq!(host.counter("live_objects"), baseline, "calloc {after}: objects left");
    }
}

/// An executor that is destroyed completes what it was given.
///
/// # Panics
/// When it does not.
pub fn destroyed_in_flight(host: &Host) {
    both_ways(host, |host| {
        for offset in [0, 20] {
            let mut open = open(host, 3);
            let lanes = [1.0, 2.0, 3.0].map(|value| Lane::new(host, open.device, 0, offset, value));
            for lane in &lanes {
                ok(submit(&open, &lane.args()));
            }
            // SAFETY: made by this shim; NULL is accepted later.
            unsafe { (host.shim.executor_destroy)(open.executor) };
            open.executor = null_mut();
            assert_eq!(host.counter("in_flight"), 0, "destroyed while its submissions run");
            lanes.iter().for_each(|lane| lane.check(lane.value));
        }
    });
}

/// Executors of several threads on one queue that is too small for them all: each goes on, and gets its own results.
///
/// # Panics
/// When that is not so.
pub fn full_queue(host: &Host) {
    let baseline = host.counter("live_objects");
    host.set("set_latency_us", 20);
    for (lazy, limit) in [(0, 1), (0, 2), (0, 5), (1, 1), (1, 3)] {
        host.set("set_lazy", lazy);
        host.set("set_queue_limit", limit);
        let blocked = host.counter("blocked");
        let open = open(host, 0);
        let (own, product) = (open.device as usize, open.product as usize);
        thread::scope(|scope| {
            for t in 0..4u8 {
                scope.spawn(move || {
                    let (mut executor, depth) = (null_mut(), ExecutorOptions::depth(4));
                    // SAFETY: the product outlives the scope.
                    ok(create(|e| unsafe {
                        (host.shim.executor_create)(product as *mut c_void, &depth, &mut executor, e)
                    }));
                    let mine = Open { host, device: null_mut(), product: null_mut(), executor };
                    let lanes = [0u8, 1, 2, 3].map(|i| {
                        let value = f32::from(t) * 10.0 + f32::from(i);
                        Lane::new(host, own as *mut c_void, 0, usize::from(i % 2) * 20, value)
                    });
                    for _ in 0..10 {
                        let tickets = lanes.each_ref().map(|lane| ok(submit(&mine, &lane.args())));
                        for (lane, ticket) in lanes.iter().zip(tickets) {
                            ok(wait(&mine, ticket, FOREVER));
                            lane.check(lane.value);
                        }
                    }
                    drop(mine);
                });
            }
        });
        drop(open);
        assert!(host.counter("blocked") > blocked, "nobody ever waited for room in a queue of {limit}");
    }
    host.set("set_queue_limit", 0);
    host.set("set_lazy", 0);
    host.set("set_latency_us", 300);
    assert_eq!(host.counter("violations"), 0, "{}", host.last_violation());
    assert_eq!(host.counter("live_objects"), baseline, "objects left");
}

/// The double finds a host that touches what the device works on: without that the other tests prove less.
///
/// # Panics
/// When it does not.
pub fn memory_in_flight(host: &Host) {
    if std::env::var_os("ANE_SIM_CFLAGS").is_some() {
        println!("  not run: sanitizers know one address of a byte");
        return;
    }
    let open = open(host, 1);
    let lane = Lane::new(host, open.device, 0, 0, 1.0);
    let touches: [(&dyn Fn(), i64); 4] = [
        (&|| drop(lane.a.read(0, 4)), 0),
        (&|| lane.a.write(0, &[0; 4]), 1),
        (&|| drop(lane.c.read(0, 4)), 1),
        (&|| lane.c.write(0, &[0; 4]), 1),
    ];
    for (i, (touch, wanted)) in touches.iter().enumerate() {
        host.set("set_hold", 1);
        let ticket = ok(submit(&open, &lane.args()));
        touch();
        assert_eq!(host.counter("take_violations"), *wanted, "touch {i}");
        host.set("set_hold", 0);
        ok(wait(&open, ticket, FOREVER));
        touch();
        assert_eq!(host.counter("take_violations"), 0, "touch {i} after the wait");
    }
}

/// 100,000 submissions, four at once, leave memory and objects as they were; `ANE_SIM_RUNS` sets another number.
///
/// # Panics
/// When that is not so.
pub fn endurance_of_submissions(host: &Host) {
    let rounds = setting("ANE_SIM_RUNS", 100_000);
    host.set("set_latency_us", 0);
    host.set("set_lazy", 1);
    let open = open(host, 4);
    // Two of them staged.
    let lanes = [0usize, 20, 0, 20].map(|offset| Lane::new(host, open.device, 0, offset, 1.0));
    let submit_many = |count: usize| {
        let mut tickets = [0; 4];
        for i in 0..count + 4 {
            let (lane, ticket) = (&lanes[i % 4], &mut tickets[i % 4]);
            if *ticket != 0 {
                // Also with a limit, and so with looks.
                ok(wait(&open, *ticket, if i.is_multiple_of(3) { 600_000_000_000 } else { FOREVER }));
                lane.check(1.0);
            }
            *ticket = if i < count { ok(submit(&open, &lane.args())) } else { 0 };
        }
    };
    submit_many(rounds / 20);
    let (live, (resident, heap)) = (host.counter("live_objects"), memory_bytes());
    submit_many(rounds);
    assert_eq!(host.counter("live_objects"), live, "objects left by {rounds} submissions");
    let after = memory_bytes();
    let (resident, heap) = (after.0.saturating_sub(resident), after.1.saturating_sub(heap));
    println!("  {rounds} submissions: {resident} more bytes resident, {heap} more on the heap");
    drop(lanes);
    drop(open);
    host.set("set_lazy", 0);
    host.set("set_latency_us", 300);
    if std::env::var_os("ANE_SIM_CFLAGS").is_none() {
        assert!(resident < 1 << 20, "{resident} bytes more are resident after {rounds} submissions");
        assert!(heap < 16 * (rounds / 10).max(64), "{heap} bytes more are on the heap");
    }
}
