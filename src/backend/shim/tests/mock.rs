//! The mock: what it is told to do, and what it has seen.

use std::alloc::Layout;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};

use super::super::*;
use crate::backend::Backends;
use crate::executor::{Compiled, Inputs};
use crate::operands::tensor::Tensor;

/// What the mock does and has seen; slots of one thread share it.
#[derive(Default)]
pub(super) struct Mock {
    /// The slot to fail, and how.
    pub(super) fail: Option<(&'static str, sys::ANEStatus, sys::ANERefusal)>,
    /// Reports success but makes no object.
    pub(super) empty_handed: Option<&'static str>,
    /// The bytes of the message, and whether to end it.
    pub(super) message: Vec<u8>,
    pub(super) log: Vec<u8>,
    /// Creations and destructions, in order.
    pub(super) events: Vec<String>,
    pub(super) live: Vec<usize>,
    /// Buffers: number, memory, and how to free it where it is the mock's.
    pub(super) buffers: Vec<(usize, *mut u8, Option<Layout>)>,
    /// Buffers that the host does not see where the device has memory of its own.
    pub(super) unseen: Vec<usize>,
    /// Products that came from a package.
    pub(super) loaded: Vec<usize>,
    pub(super) no_contents: bool,
    /// Bytes by which contents lie off their alignment.
    pub(super) shift: usize,
    pub(super) saves_nothing: bool,
    /// The scales of the last compilation, of A, B and C: their bytes, `None` for a null pointer.
    pub(super) scales: [Option<Vec<u8>>; 3],
    /// The operands of the last run: A, B and C.
    pub(super) operands: Vec<sys::ANEOperand>,
    /// What a run that is asked observes: device, start and end.
    pub(super) run_info: (sys::ANEDeviceKind, u64, u64),
    pub(super) chip: &'static [u8],
    /// 0 for a device that wraps no memory.
    pub(super) wrap_alignment: u64,
    /// Whether the device has memory of its own, takes constants, and how many submissions.
    pub(super) own_memory: bool,
    /// What the device says of its buffers instead of `own_memory`.
    pub(super) preferred_buffer: Option<sys::ANEBufferKind>,
    pub(super) constants: bool,
    pub(super) queue_depth: u32,
    pub(super) devices: u32,
    /// How often a wait with a limit finds a submission in flight.
    pub(super) polls: u32,
    /// The submissions that fail, by ticket.
    pub(super) failing: Vec<u64>,
    /// Ticket, executor and arguments of what was submitted and did not end.
    pub(super) in_flight: Vec<(u64, usize, sys::ANERunArgs)>,
    pub(super) arithmetic: u32,
    /// The constants of the last compilation: of B and of its scales.
    pub(super) compiled_constants: [bool; 2],
    /// Executors, and the depths that they were asked for.
    pub(super) depths: Vec<(usize, u32)>,
    pub(super) next: usize,
}

thread_local! {
    static MOCK: RefCell<Mock> = RefCell::default();
}

pub(super) fn mock<T>(f: impl FnOnce(&mut Mock) -> T) -> T {
    MOCK.with_borrow_mut(f)
}

/// Fails the slot if that was asked for.
pub(super) fn enter(slot: &'static str, err: *mut sys::ANEError) -> sys::ANEStatus {
    mock(|mock| {
        let Some((failing, status, refusal)) = mock.fail else { return sys::ANE_STATUS_OK };
        if failing != slot {
            return sys::ANE_STATUS_OK;
        }
        // SAFETY: the caller passes an error that is valid for the call.
        let err = unsafe { &mut *err };
        assert_eq!(err.struct_size as usize, size_of::<sys::ANEError>());
        (err.status, err.refusal, err.native_code) = (status, refusal, -7);
        for (target, &byte) in err.message.iter_mut().zip(&mock.message) {
            *target = c_char::from_ne_bytes([byte]);
        }
        for (target, &byte) in err.domain.iter_mut().zip(b"mock domain\0") {
            *target = c_char::from_ne_bytes([byte]);
        }
        if !err.log.is_null() {
            let room = usize::try_from(err.log_capacity).unwrap();
            for (index, &byte) in mock.log.iter().take(room).enumerate() {
                // SAFETY: the caller owns log_capacity bytes at log.
                unsafe { err.log.add(index).write(c_char::from_ne_bytes([byte])) };
            }
            err.log_length = mock.log.len() as u64;
        }
        status
    })
}

pub(super) fn create<T>(slot: &'static str, out: *mut *mut T, err: *mut sys::ANEError) -> sys::ANEStatus {
    let status = enter(slot, err);
    if status != sys::ANE_STATUS_OK || mock(|mock| mock.empty_handed == Some(slot)) {
        return status;
    }
    mock(|mock| {
        mock.next += 1;
        let id = mock.next;
        mock.live.push(id);
        mock.events.push(format!("+{slot}"));
        // SAFETY: the caller passes a place for the object.
        unsafe { out.write(std::ptr::without_provenance_mut(id * 16)) };
    });
    sys::ANE_STATUS_OK
}

pub(super) fn destroy<T>(slot: &'static str, object: *mut T) {
    mock(|mock| {
        let id = object.addr() / 16;
        let position = mock.live.iter().position(|&live| live == id);
        mock.live.remove(position.expect("destroyed twice, or never made"));
        mock.events.push(format!("-{slot}"));
    });
}

pub(super) fn alive<T>(object: *mut T) {
    mock(|mock| assert!(mock.live.contains(&(object.addr() / 16)), "used after it was destroyed"));
}

extern "C" fn device_count(count: *mut u32, err: *mut sys::ANEError) -> sys::ANEStatus {
    // SAFETY: the caller passes a place for the count.
    unsafe { count.write(mock(|mock| mock.devices)) };
    enter("device_count", err)
}

extern "C" fn device_open(
    index: u32,
    out: *mut *mut sys::ANEDevice,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    assert!(index < mock(|mock| mock.devices), "there is no such device");
    create("device_open", out, err)
}

extern "C" fn device_prepare(device: *mut sys::ANEDevice, err: *mut sys::ANEError) -> sys::ANEStatus {
    alive(device);
    mock(|mock| mock.events.push("prepare".into()));
    enter("device_prepare", err)
}

extern "C" fn device_info(
    index: u32,
    info: *mut sys::ANEDeviceInfo,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    assert!(index < mock(|mock| mock.devices), "there is no such device");
    // SAFETY: the caller passes an info that is valid for the call.
    let info = unsafe { &mut *info };
    // A name without an end, cut inside a character.
    info.name.fill(c_char::from_ne_bytes([b'n']));
    info.name[127] = c_char::from_ne_bytes([0xC3]);
    info.flags = sys::ANE_DEVICE_FLAG_TEST_DOUBLE.cast_unsigned();
    if mock(|mock| mock.constants) {
        info.flags |= sys::ANE_DEVICE_FLAG_CONSTANTS.cast_unsigned();
    }
    info.kind = 77;
    let own =
        if mock(|mock| mock.own_memory) { sys::ANE_BUFFER_DEVICE } else { sys::ANE_BUFFER_HOST_VISIBLE };
    info.preferred_buffer = mock(|mock| mock.preferred_buffer).unwrap_or(own);
    info.max_queue_depth = mock(|mock| mock.queue_depth);
    info.wrap_alignment = mock(|mock| mock.wrap_alignment);
    for (target, &byte) in info.chip.iter_mut().zip(mock(|mock| mock.chip)) {
        *target = c_char::from_ne_bytes([byte]);
    }
    enter("device_info", err)
}

extern "C" fn device_close(device: *mut sys::ANEDevice) {
    destroy("device_open", device);
}

extern "C" fn supports(
    device: *mut sys::ANEDevice,
    _: *const sys::ANEMatMulDesc,
    _: *const sys::ANECompileOptions,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    enter("supports", err)
}

extern "C" fn compile(
    device: *mut sys::ANEDevice,
    desc: *const sys::ANEMatMulDesc,
    constants: *const sys::ANEConstants,
    _: *const sys::ANECompileOptions,
    out: *mut *mut sys::ANEProduct,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    // SAFETY: both are valid for the call.
    let (desc, constants) = unsafe { (&*desc, &*constants) };
    let constant = desc.flags & sys::ANE_MATMUL_CONSTANT_B.cast_unsigned() != 0;
    assert_eq!(constant, constants.b.is_null() != constants.b_constant.is_null());
    mock(|mock| {
        mock.compiled_constants = [!constants.b_constant.is_null(), !constants.scales_b_constant.is_null()];
    });
    for constant in [constants.b_constant, constants.scales_b_constant] {
        if !constant.is_null() {
            alive(constant);
        }
    }
    let scales = [
        (constants.scale_a, constants.scale_a_bytes),
        (constants.scales_b, constants.scales_b_bytes),
        (constants.scale_c, constants.scale_c_bytes),
    ]
    .map(|(start, bytes)| {
        let bytes = usize::try_from(bytes).unwrap();
        // SAFETY: by the ABI there are so many bytes, for the call.
        (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), bytes) }.to_vec())
    });
    assert!(scales.iter().flatten().all(|scale| !scale.is_empty()));
    let bytes = [constants.b_bytes, constants.scales_b_bytes];
    for (constant, bytes) in [constants.b_constant, constants.scales_b_constant].into_iter().zip(bytes) {
        assert!(constant.is_null() || bytes > 0);
    }
    mock(|mock| mock.scales = scales);
    create("compile", out, err)
}

extern "C" fn product_info(
    product: *mut sys::ANEProduct,
    info: *mut sys::ANEProductInfo,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(product);
    // SAFETY: the caller passes an info that is valid for the call.
    let info = unsafe { &mut *info };
    info.bytes_held = 42;
    info.arithmetic = mock(|mock| mock.arithmetic);
    let loaded = mock(|mock| mock.loaded.contains(&(product.addr() / 16)));
    info.flags = if loaded { sys::ANE_PRODUCT_FLAG_FROM_PACKAGE.cast_unsigned() } else { 0 };
    enter("product_info", err)
}

extern "C" fn product_destroy(product: *mut sys::ANEProduct) {
    destroy("compile", product);
}

extern "C" fn executor_create(
    product: *mut sys::ANEProduct,
    options: *const sys::ANEExecutorOptions,
    out: *mut *mut sys::ANEMatMulExecutor,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(product);
    // SAFETY: the caller passes options that are valid for the call.
    let options = unsafe { &*options };
    assert_eq!(options.struct_size as usize, size_of::<sys::ANEExecutorOptions>());
    let status = create("executor_create", out, err);
    mock(|mock| mock.depths.push((mock.next, options.queue_depth)));
    status
}

/// Reads the factors and writes zeros, as a device would.
pub(super) fn compute(args: &sys::ANERunArgs) {
    let place = |operand: &sys::ANEOperand| {
        if operand.buffer.is_null() {
            return operand.data.cast::<u8>();
        }
        assert!(operand.data.is_null(), "both a pointer and a buffer");
        alive(operand.buffer);
        let contents = memory_of(operand.buffer).addr();
        // As foreign code would: by the address.
        std::ptr::with_exposed_provenance_mut(contents + usize::try_from(operand.offset_bytes).unwrap())
    };
    // SAFETY: the operands cover their lengths; C overlaps no other.
    unsafe {
        for operand in [&args.a, &args.b] {
            let bytes = usize::try_from(operand.length_bytes).unwrap();
            if bytes > 0 {
                std::hint::black_box(
                    std::slice::from_raw_parts(place(operand), bytes)
                        .iter()
                        .map(|&b| u64::from(b))
                        .sum::<u64>(),
                );
            }
        }
        std::ptr::write_bytes(place(&args.c), 0, usize::try_from(args.c.length_bytes).unwrap());
    }
}

fn observe(info: *mut sys::ANERunInfo) {
    if !info.is_null() {
        // SAFETY: the caller passes an info that is valid for the call.
        let info = unsafe { &mut *info };
        assert_eq!(info.struct_size as usize, size_of::<sys::ANERunInfo>());
        (info.observed, info.device_start_ns, info.device_end_ns) = mock(|mock| mock.run_info);
        info.flags = sys::ANE_RUN_FLAG_WITH_COPIES.cast_unsigned();
    }
}

extern "C" fn executor_run(
    executor: *mut sys::ANEMatMulExecutor,
    args: *const sys::ANERunArgs,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(executor);
    // SAFETY: the caller passes arguments that are valid for the call.
    let args = unsafe { &*args };
    mock(|mock| {
        let id = executor.addr() / 16;
        assert!(mock.in_flight.iter().all(|&(_, of, _)| of != id), "a run while submissions are in flight");
        mock.operands = vec![args.a, args.b, args.c, args.bias];
    });
    compute(args);
    observe(args.info);
    enter("executor_run", err)
}

extern "C" fn executor_submit(
    executor: *mut sys::ANEMatMulExecutor,
    args: *const sys::ANERunArgs,
    ticket: *mut sys::ANETicket,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(executor);
    // SAFETY: the caller passes arguments that are valid for the call.
    let args = unsafe { *args };
    assert!(args.info.is_null());
    for operand in [&args.a, &args.b, &args.bias, &args.residual, &args.c] {
        assert!(operand.data.is_null(), "plain memory in a submission");
    }
    let status = enter("executor_submit", err);
    if status == sys::ANE_STATUS_OK {
        mock(|mock| {
            let id = executor.addr() / 16;
            let there = mock.in_flight.iter().filter(|&&(_, of, _)| of == id).count();
            let depth = mock.depths.iter().find(|(of, _)| *of == id).unwrap().1;
            assert!(there < usize::try_from(depth).unwrap(), "more than the depth");
            mock.operands = vec![args.a, args.b, args.c, args.bias];
            mock.next += 1;
            let number = u64::try_from(mock.next).unwrap();
            mock.in_flight.push((number, id, args));
            // SAFETY: the caller passes a place for the ticket.
            unsafe { ticket.write(number) };
        });
    }
    status
}

extern "C" fn executor_wait(
    executor: *mut sys::ANEMatMulExecutor,
    ticket: sys::ANETicket,
    timeout_ns: u64,
    info: *mut sys::ANERunInfo,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(executor);
    let id = executor.addr() / 16;
    let index = mock(|mock| mock.in_flight.iter().position(|&(number, of, _)| (number, of) == (ticket, id)));
    let index = index.expect("a ticket that is unknown or ended");
    let pending = mock(|mock| {
        let pending = timeout_ns != u64::MAX && mock.polls > 0;
        mock.polls -= u32::from(pending);
        pending
    });
    if pending {
        return sys::ANE_STATUS_PENDING;
    }
    let (_, _, args) = mock(|mock| mock.in_flight.remove(index));
    compute(&args);
    observe(info);
    if mock(|mock| mock.failing.contains(&ticket)) {
        // SAFETY: the caller passes an error that is valid for the call.
        unsafe { (*err).message[0] = c_char::from_ne_bytes([b'!']) };
        return sys::ANE_STATUS_RUN_FAILED;
    }
    enter("executor_wait", err)
}

extern "C" fn executor_destroy(executor: *mut sys::ANEMatMulExecutor) {
    let id = executor.addr() / 16;
    // The device ends what it was given, and only then.
    loop {
        let index = mock(|mock| mock.in_flight.iter().position(|&(_, of, _)| of == id));
        let Some(index) = index else { break };
        let (_, _, args) = mock(|mock| mock.in_flight.remove(index));
        compute(&args);
    }
    destroy("executor_create", executor);
}

extern "C" fn constant_create(
    device: *mut sys::ANEDevice,
    desc: *const sys::ANEConstantDesc,
    out: *mut *mut sys::ANEConstant,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    // SAFETY: the caller passes a description that is valid for the call, as is its memory.
    let bytes = unsafe {
        let desc = &*desc;
        assert_eq!(desc.struct_size as usize, size_of::<sys::ANEConstantDesc>());
        std::slice::from_raw_parts(desc.data.cast::<u8>(), usize::try_from(desc.bytes).unwrap())
    };
    std::hint::black_box(bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
    create("constant_create", out, err)
}

extern "C" fn constant_destroy(constant: *mut sys::ANEConstant) {
    destroy("constant_create", constant);
}

extern "C" fn buffer_write(
    buffer: *mut sys::ANEBuffer,
    offset_bytes: u64,
    data: *const c_void,
    bytes: u64,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(buffer);
    let status = enter("buffer_write", err);
    if status == sys::ANE_STATUS_OK {
        let memory = memory_of(buffer).wrapping_add(usize::try_from(offset_bytes).unwrap());
        // SAFETY: the caller stays within the buffer and passes so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.cast(), memory, usize::try_from(bytes).unwrap()) };
    }
    status
}

extern "C" fn buffer_read(
    buffer: *mut sys::ANEBuffer,
    offset_bytes: u64,
    data: *mut c_void,
    bytes: u64,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(buffer);
    let status = enter("buffer_read", err);
    if status == sys::ANE_STATUS_OK {
        let memory = memory_of(buffer).wrapping_add(usize::try_from(offset_bytes).unwrap());
        // SAFETY: the caller stays within the buffer and passes room for so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(memory, data.cast(), usize::try_from(bytes).unwrap()) };
    }
    status
}

fn memory_of(buffer: *mut sys::ANEBuffer) -> *mut u8 {
    let id = buffer.addr() / 16;
    mock(|mock| mock.buffers.iter().find(|(buffer, ..)| *buffer == id).unwrap().1)
}

extern "C" fn buffer_create(
    device: *mut sys::ANEDevice,
    kind: sys::ANEBufferKind,
    bytes: u64,
    out: *mut *mut sys::ANEBuffer,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    let status = create("buffer_create", out, err);
    if status == sys::ANE_STATUS_OK && mock(|mock| mock.empty_handed.is_none()) {
        let layout = Layout::from_size_align(usize::try_from(bytes).unwrap().max(1), 64).unwrap();
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc(layout) };
        // Contents are undefined, and no zeros by chance: Miri sees by itself whether they are read.
        if !cfg!(miri) {
            // SAFETY: so many bytes were allocated.
            unsafe { memory.write_bytes(0xA5, layout.size()) };
        }
        // The device gets at it by its address.
        memory.expose_provenance();
        mock(|mock| {
            mock.buffers.push((mock.next, memory, Some(layout)));
            if kind == sys::ANE_BUFFER_DEVICE {
                mock.unseen.push(mock.next);
            }
        });
    }
    status
}

extern "C" fn buffer_wrap(
    device: *mut sys::ANEDevice,
    data: *mut c_void,
    _: u64,
    out: *mut *mut sys::ANEBuffer,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    let status = create("buffer_wrap", out, err);
    if status == sys::ANE_STATUS_OK && mock(|mock| mock.empty_handed.is_none()) {
        mock(|mock| mock.buffers.push((mock.next, data.cast(), None)));
    }
    status
}

extern "C" fn buffer_contents(buffer: *mut sys::ANEBuffer) -> *mut c_void {
    alive(buffer);
    let memory = memory_of(buffer);
    mock(|mock| {
        let unseen = mock.own_memory && mock.unseen.contains(&(buffer.addr() / 16));
        if mock.no_contents || unseen { std::ptr::null_mut() } else { memory.wrapping_add(mock.shift).cast() }
    })
}

extern "C" fn buffer_destroy(buffer: *mut sys::ANEBuffer) {
    let id = buffer.addr() / 16;
    let position = mock(|mock| mock.buffers.iter().position(|(buffer, ..)| *buffer == id));
    let (_, memory, layout) =
        mock(|mock| mock.buffers.remove(position.expect("destroyed twice, or never made")));
    if let Some(layout) = layout {
        // SAFETY: allocated in `buffer_create` with this layout.
        unsafe { std::alloc::dealloc(memory, layout) };
    }
    destroy("buffer", buffer);
}

extern "C" fn product_save(
    product: *mut sys::ANEProduct,
    path: *const c_char,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(product);
    let status = enter("product_save", err);
    if status == sys::ANE_STATUS_OK && !mock(|mock| mock.saves_nothing) {
        // SAFETY: the caller passes a string that ends in NUL.
        let path = unsafe { CStr::from_ptr(path) }.to_str().unwrap();
        std::fs::create_dir(path).unwrap();
        std::fs::write(format!("{path}/product"), "a product").unwrap();
        mock(|mock| mock.events.push("save".into()));
    }
    status
}

extern "C" fn product_load(
    device: *mut sys::ANEDevice,
    _: *const sys::ANEMatMulDesc,
    constants: *const sys::ANEConstants,
    _: *const sys::ANECompileOptions,
    path: *const c_char,
    out: *mut *mut sys::ANEProduct,
    err: *mut sys::ANEError,
) -> sys::ANEStatus {
    alive(device);
    // SAFETY: the caller passes a string that ends in NUL, and constants.
    let (path, constants) = unsafe { (CStr::from_ptr(path).to_str().unwrap(), &*constants) };
    assert_eq!(std::fs::read_to_string(format!("{path}/product")).unwrap(), "a product");
    assert_eq!(constants.b.is_null(), constants.content_hash == [0; 32]);
    let status = create("product_load", out, err);
    if status == sys::ANE_STATUS_OK {
        mock(|mock| mock.loaded.push(mock.next));
    }
    status
}

pub(super) fn good_table() -> sys::ANEShim {
    sys::ANEShim {
        struct_size: size_u32::<sys::ANEShim>(),
        abi_major: u16::try_from(sys::ANE_MATMUL_ABI_MAJOR).unwrap(),
        abi_minor: u16::try_from(sys::ANE_MATMUL_ABI_MINOR).unwrap(),
        name: c"mock".as_ptr(),
        version: c"1".as_ptr(),
        device_count: Some(device_count),
        device_info: Some(device_info),
        device_open: Some(device_open),
        device_prepare: Some(device_prepare),
        device_close: Some(device_close),
        supports: Some(supports),
        buffer_create: Some(buffer_create),
        buffer_wrap: Some(buffer_wrap),
        buffer_contents: Some(buffer_contents),
        buffer_write: Some(buffer_write),
        buffer_read: Some(buffer_read),
        buffer_destroy: Some(buffer_destroy),
        constant_create: Some(constant_create),
        constant_destroy: Some(constant_destroy),
        compile: Some(compile),
        product_save: Some(product_save),
        product_load: Some(product_load),
        product_info: Some(product_info),
        product_destroy: Some(product_destroy),
        executor_create: Some(executor_create),
        executor_run: Some(executor_run),
        executor_submit: Some(executor_submit),
        executor_wait: Some(executor_wait),
        executor_destroy: Some(executor_destroy),
        graphs: std::ptr::null(),
    }
}

pub(super) fn check(table: &sys::ANEShim) -> Result<ShimLibrary> {
    // SAFETY: the table is a whole ANEShim with C strings; what is made from it copies it.
    unsafe { ShimLibrary::from_table((&raw const *table).cast(), "a mock") }
}

/// A registry with the mock, whose state is fresh but for `fail`.
pub(super) fn with_mock(setup: impl FnOnce(&mut Mock)) -> (Backends, BackendId) {
    with_table(&good_table(), setup)
}

pub(super) fn with_table(table: &sys::ANEShim, setup: impl FnOnce(&mut Mock)) -> (Backends, BackendId) {
    mock(|mock| {
        *mock = Mock {
            message: b"a message\0".to_vec(),
            chip: b"mock chip\0",
            wrap_alignment: 256,
            queue_depth: 4,
            devices: 1,
            ..Mock::default()
        };
        setup(mock);
    });
    let mut backends = Backends::new();
    let id = backends.add(check(table).unwrap()).unwrap();
    (backends, id)
}

pub(super) fn compile_on(backends: &Backends, id: &BackendId) -> Result<Compiled> {
    backends.compile(id, &MatMul::new(2, 2, 2)?, &CompileOptions::default())
}

pub(super) fn run_on(backends: &Backends, id: &BackendId) -> Result<()> {
    let one = Tensor::filled(2, 2, 1f32)?;
    let mut c = Tensor::<f32>::filled(2, 2, f32::NAN)?;
    let compiled = compile_on(backends, id)?;
    let mut executor = compiled.executor()?;
    drop(compiled);
    executor.run(Inputs::new(&one).b(&one), &mut c)?;
    assert_eq!(c.data(), [0.0; 4]);
    Ok(())
}

pub(super) fn assert_nothing_leaked() {
    mock(|mock| assert!(mock.live.is_empty() && mock.buffers.is_empty(), "leaked: {:?}", mock.events));
}
