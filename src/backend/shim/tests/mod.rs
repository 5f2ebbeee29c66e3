//! A mock table: every status and refusal at every slot, object lifetimes, bad messages. No
//! foreign code, so that Miri can run it.

mod buffers;
mod graphs;
mod mock;
mod packages;
#[cfg(not(miri))]
mod reference_graphs;
mod resident;
mod scales;

use std::ffi::CStr;
use std::time::Duration;

use super::*;
use crate::description::matmul::ElementTypes;
use crate::error::NativeStatus;
use crate::executor::Inputs;
use crate::operands::tensor::Tensor;
use mock::{assert_nothing_leaked, check, compile_on, good_table, mock, run_on, with_mock};

/// A pool of the caller's.
#[derive(Debug)]
struct Inline;
impl crate::description::options::ThreadPool for Inline {
    fn threads(&self) -> usize {
        1
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Miri runs a fifth of the pairs, with every slot and every code among them.
fn thinned(first: usize, second: usize) -> bool {
    !cfg!(miri) || (first + second).is_multiple_of(5)
}

const SLOTS: [&str; 9] = [
    "device_count",
    "device_info",
    "device_open",
    "device_prepare",
    "supports",
    "compile",
    "product_info",
    "executor_create",
    "executor_run",
];

/// Every status but success and refusal, and two without a name.
const STATUSES: [(sys::ANEStatus, NativeStatus); 14] = [
    (sys::ANE_STATUS_INVALID_ARGUMENT, NativeStatus::InvalidArgument),
    (sys::ANE_STATUS_OUT_OF_MEMORY, NativeStatus::OutOfMemory),
    (sys::ANE_STATUS_NO_DEVICE, NativeStatus::NoDevice),
    (sys::ANE_STATUS_COMPILE_FAILED, NativeStatus::CompileFailed),
    (sys::ANE_STATUS_RUN_FAILED, NativeStatus::RunFailed),
    (sys::ANE_STATUS_EXCEPTION, NativeStatus::Exception),
    (sys::ANE_STATUS_TIMEOUT, NativeStatus::Timeout),
    (sys::ANE_STATUS_BACKGROUND, NativeStatus::Background),
    (sys::ANE_STATUS_IO, NativeStatus::Io),
    (sys::ANE_STATUS_PACKAGE_MISMATCH, NativeStatus::PackageMismatch),
    (sys::ANE_STATUS_NOT_IMPLEMENTED, NativeStatus::NotImplemented),
    (sys::ANE_STATUS_INTERNAL, NativeStatus::Internal),
    (-1, NativeStatus::Internal),
    (i32::MAX, NativeStatus::Internal),
];

#[test]
fn objects_die_in_order_each_once() {
    let (backends, id) = with_mock(|_| {});
    run_on(&backends, &id).unwrap();
    drop(backends);
    assert_nothing_leaked();
    mock(|mock| {
        assert_eq!(
            mock.events,
            [
                "+device_open",
                "prepare",
                "+compile",
                "+executor_create",
                "-executor_create",
                "-compile",
                "-device_open",
            ]
        );
    });
}

#[test]
fn children_keep_their_parents() {
    let (backends, id) = with_mock(|_| {});
    let compiled = compile_on(&backends, &id).unwrap();
    let (first, second) = (compiled.executor().unwrap(), compiled.executor().unwrap());
    drop(backends);
    drop(compiled);
    drop(second);
    mock(|mock| assert_eq!(mock.live.len(), 3, "{:?}", mock.events));
    drop(first);
    assert_nothing_leaked();
}

#[test]
fn every_status_at_every_slot_becomes_its_error() {
    for (row, slot) in SLOTS.into_iter().enumerate() {
        for (col, (code, status)) in STATUSES.into_iter().enumerate() {
            if !thinned(row, col) {
                continue;
            }
            let (backends, id) = with_mock(|mock| mock.fail = Some((slot, code, 0)));
            let result = run_on(&backends, &id);
            match (slot, result) {
                ("device_count" | "device_open" | "device_info", Err(Error::Unavailable { reason, .. })) => {
                    assert!(reason.contains(&format!("{slot} failed: a message ({status}")), "{reason}");
                }
                ("product_info", Ok(())) => {
                    let note = compile_on(&backends, &id).unwrap().report().note;
                    assert!(note.is_some_and(|note| note.contains("product_info failed: a message")));
                }
                (_, Err(Error::Native(native))) => {
                    assert_eq!((native.step, native.status, native.code), (slot, status, -7));
                    assert_eq!(
                        (native.domain.as_str(), native.message.as_str()),
                        ("mock domain", "a message")
                    );
                }
                (slot, other) => panic!("{slot} with {code}: {other:?}"),
            }
            drop(backends);
            assert_nothing_leaked();
        }
    }
}

#[test]
fn every_refusal_at_every_slot_keeps_its_reason() {
    for (row, slot) in SLOTS.into_iter().enumerate() {
        for (col, (code, &reason)) in (1..).zip(&RefusalReason::ALL).enumerate() {
            if !thinned(row, col) {
                continue;
            }
            let (backends, id) = with_mock(|mock| mock.fail = Some((slot, sys::ANE_STATUS_REFUSED, code)));
            match run_on(&backends, &id) {
                Err(Error::Unavailable { reason: text, .. })
                    if ["device_count", "device_open", "device_info"].contains(&slot) =>
                {
                    assert!(text.contains(&format!("a message ({reason})")), "{text}");
                }
                Ok(()) if slot == "product_info" => {
                    let note = compile_on(&backends, &id).unwrap().report().note.unwrap();
                    assert!(note.contains(&format!("a message ({reason})")), "{note}");
                }
                Err(Error::Refused { refusal, backend }) => {
                    assert_eq!(
                        (refusal.reason, refusal.message.as_str(), &backend),
                        (reason, "a message", &id)
                    );
                }
                other => panic!("{slot} with {reason}: {other:?}"),
            }
            drop(backends);
            assert_nothing_leaked();
        }
    }
    for code in [0, -1, 20, i32::MAX, i32::MIN] {
        let (backends, id) = with_mock(|mock| mock.fail = Some(("supports", sys::ANE_STATUS_REFUSED, code)));
        assert!(
            matches!(run_on(&backends, &id), Err(Error::Refused { refusal, .. }) if refusal.reason == RefusalReason::Other)
        );
    }
    let last = i32::try_from(RefusalReason::ALL.len()).unwrap();
    assert_eq!(last, sys::ANE_REFUSAL_OTHER);
}

#[test]
fn success_without_an_object_is_an_error() {
    for slot in ["device_open", "compile", "executor_create"] {
        let (backends, id) = with_mock(|mock| mock.empty_handed = Some(slot));
        let text = run_on(&backends, &id).unwrap_err().to_string();
        assert!(text.contains("gave no object"), "{slot}: {text}");
        drop(backends);
        assert_nothing_leaked();
    }
}

#[test]
fn messages_are_read_within_their_bounds() {
    let native = |message: &[u8], log: &[u8]| {
        let (backends, id) = with_mock(|mock| {
            mock.fail = Some(("compile", sys::ANE_STATUS_COMPILE_FAILED, 0));
            mock.message = message.to_vec();
            mock.log = log.to_vec();
        });
        match compile_on(&backends, &id) {
            Err(Error::Native(native)) => (native.message, native.log),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(native(b"\0", b"").0, "the shim gave no message");
    assert_eq!(native(&[b'x'; 512], b"").0.len(), 512);
    assert_eq!(native(&[b'x'; 2000], b"").0.len(), 512);
    assert_eq!(native(b"caf\xC3\0", b"").0, "caf\u{FFFD}");
    assert_eq!(native(b"\x1b[31mred\x07\0", b"").0, "\u{FFFD}[31mred\u{FFFD}");
    assert_eq!(native(b"m\0", b"line 1\nline 2\0").1, "line 1\nline 2");
    assert_eq!(native(b"m\0", &vec![b'y'; 20_000]).1.len(), 16 * 1024);
}

#[test]
fn device_info_is_read_within_its_bounds() {
    let (backends, id) = with_mock(|_| {});
    let info = backends.info(&id).unwrap();
    assert_eq!(info.device_name, "n".repeat(127) + "\u{FFFD}");
    assert_eq!((info.device, info.is_test_double), (Device::Unknown, true));
    assert_eq!(compile_on(&backends, &id).unwrap().report().bytes_held, 42);
    drop(backends);
    let (backends, id) = with_mock(|mock| mock.preferred_buffer = Some(9));
    let error = backends.info(&id).unwrap_err().to_string();
    assert!(error.contains("preferred_buffer is 9, which is no kind of buffer"), "{error}");
}

#[test]
fn what_a_run_observed_is_read_and_nothing_made_of_clocks_that_stand_still() {
    let (gpu, neural_engine) = (sys::ANE_DEVICE_GPU, sys::ANE_DEVICE_NEURAL_ENGINE);
    for (run_info, observed, nanoseconds) in [
        ((gpu, 100, 350), Device::Gpu, Some(250)),
        ((neural_engine, 0, 0), Device::NeuralEngine, None),
        ((77, 5, 5), Device::Unknown, None),
        ((gpu, 9, 3), Device::Gpu, None),
        ((gpu, 0, 3), Device::Gpu, None),
    ] {
        let (backends, id) = with_mock(|mock| mock.run_info = run_info);
        let mut executor = compile_on(&backends, &id).unwrap().executor().unwrap();
        let (one, mut c) = (Tensor::filled(2, 2, 1f32).unwrap(), Tensor::<f32>::zeros(2, 2).unwrap());
        let seen = executor.run_observed(Inputs::new(&one).b(&one), &mut c).unwrap();
        assert_eq!((seen.observed, seen.device_time), (observed, nanoseconds.map(Duration::from_nanos)));
        assert!(seen.with_copies, "the mock says so");
    }
}

#[test]
fn a_pool_of_the_callers_is_refused() {
    let (backends, id) = with_mock(|_| {});
    let options = CompileOptions::default().threads(Threads::Pool(Arc::new(Inline)));
    let result = backends.supports(&id, &MatMul::new(1, 1, 1).unwrap(), &options);
    assert!(
        matches!(result, Err(Error::Refused { refusal, .. }) if refusal.reason == RefusalReason::Threads)
    );
}

#[test]
fn f64_is_refused_before_a_shim_is_asked() {
    let (backends, id) = with_mock(|_| {});
    let supports = |types: ElementTypes, bias: bool| {
        let product = MatMul::builder(1, 1, 1).types(types).bias(bias).build().unwrap();
        backends.supports(&id, &product, &CompileOptions::default())
    };
    let of_bias = ElementTypes { bias: ElementType::F64, ..ElementTypes::F32 };
    let of_output = ElementTypes { output: ElementType::F64, ..ElementTypes::F32 };
    for (types, bias) in [(ElementTypes::F64, false), (of_bias, true), (of_output, false)] {
        let result = supports(types, bias);
        assert!(
            matches!(&result, Err(Error::Refused { refusal, .. }) if refusal.message.contains("not asked for f64")),
            "{result:?}"
        );
    }
    assert!(supports(of_bias, false).is_ok(), "there is no bias");
}

/// A table with one field changed, and a part of the message.
type Damage = (fn(&mut sys::ANEShim), &'static str);

#[test]
fn damaged_tables_are_refused() {
    const LONG: &CStr = c"a-name-of-more-than-thirty-two-bytes";
    let damages: [Damage; 11] = [
        (|table| table.struct_size = 0, "its table has 0 bytes"),
        (|table| table.struct_size = 223, "its table has 223 bytes"),
        (|table| table.abi_major = 1, "version 1.2 of the ABI"),
        (|table| table.abi_major = u16::MAX, "version 65535.2"),
        // Nothing is promised of the minor while the major is 0.
        (|table| table.abi_minor += 1, "version 0.3 of the ABI, this crate 0.2"),
        (|table| table.name = std::ptr::null(), "its name \"\""),
        (|table| table.name = c"".as_ptr(), "its name \"\""),
        (|table| table.name = c"Cpu".as_ptr(), "its name \"Cpu\""),
        (|table| table.name = c"\xFF".as_ptr(), "is no backend's"),
        (|table| table.name = LONG.as_ptr(), "1 to 32"),
        (|table| table.supports = None, "its slot `supports` is null"),
    ];
    for (damage, expected) in damages {
        let mut table = good_table();
        damage(&mut table);
        let text = check(&table).unwrap_err().to_string();
        assert!(text.contains(expected) && text.starts_with("a mock: not a usable shim: "), "{text}");
    }
}

#[test]
fn every_slot_must_be_filled() {
    macro_rules! each {
        ($($slot:ident)*) => {$(
            let mut table = good_table();
            table.$slot = None;
            let text = check(&table).unwrap_err().to_string();
            assert!(text.contains(concat!("its slot `", stringify!($slot), "` is null")), "{text}");
        )*};
    }
    each! {
        device_count device_info device_open device_prepare device_close supports buffer_create buffer_wrap
        buffer_contents buffer_write buffer_read buffer_destroy constant_create constant_destroy compile product_save
        product_load product_info product_destroy executor_create executor_run executor_submit executor_wait
        executor_destroy
    }
}

#[test]
fn a_table_of_the_minimum_size_is_not_read_beyond_it() {
    let mut table = good_table();
    table.struct_size = u32::try_from(table::MINIMUM_SIZE).unwrap();
    // An allocation of just that size: Miri reports a read beyond it.
    let mut memory = vec![0u64; table::MINIMUM_SIZE / 8];
    // SAFETY: both are at least this long, and the vector is aligned for pointers.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const table).cast::<u8>(),
            memory.as_mut_ptr().cast::<u8>(),
            table::MINIMUM_SIZE,
        );
    }
    // SAFETY: the table has struct_size readable bytes and C strings.
    let shim = unsafe { ShimLibrary::from_table(memory.as_ptr().cast(), "a small mock") }.unwrap();
    assert_eq!(shim.version(), "1");
    // SAFETY: a misaligned pointer is refused before anything is read.
    let shifted = unsafe { ShimLibrary::from_table(memory.as_ptr().cast::<u8>().add(4).cast(), "shifted") };
    assert!(shifted.unwrap_err().to_string().contains("not aligned"));
}

#[test]
fn a_longer_table_is_read_as_far_as_it_is_known() {
    #[repr(C)]
    struct Later {
        known: sys::ANEShim,
        slots: [u64; 8],
    }
    let mut table = Later { known: good_table(), slots: [u64::MAX; 8] };
    table.known.struct_size = size_u32::<Later>();
    // SAFETY: the table has struct_size readable bytes and C strings.
    let shim = unsafe { ShimLibrary::from_table((&raw const table).cast(), "a later mock") }.unwrap();
    // What is beyond would have been copied over something else: Miri reports that.
    assert_eq!((shim.name().as_str(), table.slots), ("mock", [u64::MAX; 8]));
}

#[test]
fn constants_mirror_the_header() {
    use crate::{Activation, ElementType};
    let types = [
        ElementType::F64,
        ElementType::F32,
        ElementType::F16,
        ElementType::Bf16,
        ElementType::I32,
        ElementType::I8,
        ElementType::U8,
        ElementType::I4,
        ElementType::U4,
    ];
    for (code, element) in (1..).zip(types) {
        assert_eq!(convert::element_type(element), code);
    }
    for (code, activation) in (0..).zip(Activation::ALL) {
        assert_eq!(convert::activation(activation), code);
    }
    for device in [Device::Unknown, Device::Cpu, Device::Gpu, Device::NeuralEngine, Device::Mixed] {
        assert_eq!(convert::device(convert::device_kind(device)), device);
    }
}

#[test]
fn operators_and_attributes_of_graphs_have_numbers_of_their_own() {
    for prefix in ["#define ANE_OP_", "#define ANE_ATTR_"] {
        let lines = include_str!("../../../../include/ane_graph.h").lines();
        let numbers: Vec<u32> = lines
            .filter_map(|line| line.strip_prefix(prefix)?.split_whitespace().nth(1)?.parse().ok())
            .collect();
        let different: std::collections::HashSet<_> = numbers.iter().collect();
        assert!(numbers.len() > 50 && different.len() == numbers.len(), "{prefix}: {numbers:?}");
    }
}

#[test]
fn descriptions_reach_the_shim_unchanged() {
    use crate::{ElementTypes, Operand, QuantA, QuantB, QuantOutput, Quantization};
    let product = MatMul::builder(3, 4, 5)
        .batch(2)
        .transpose_a(true)
        .variable_m(true)
        .residual(true)
        .leading_dimension(Operand::A, 7)
        .batch_stride(Operand::B, 0)
        .leading_dimension(Operand::C, 9)
        .leading_dimension(Operand::Residual, 6)
        .alpha(0.5)
        .activation(crate::Activation::Silu)
        .types(ElementTypes { output: crate::ElementType::I8, ..ElementTypes::INT8 })
        .quantization(Quantization {
            a: QuantA::Static { scale: 1.0, zero_point: -3 },
            b: QuantB::PerGroup { group_size: 128, zero_point: 2 },
            output: QuantOutput::Static { scale: 1.0, zero_point: 5 },
            nibble_order: crate::NibbleOrder::HighFirst,
        })
        .constant(true)
        .build()
        .unwrap();
    let desc = convert::description(&product);
    assert_eq!((desc.batch, desc.m, desc.n, desc.k), (2, 3, 4, 5));
    assert_eq!((desc.lda, desc.ldb, desc.ldc, desc.ld_residual), (7, 4, 9, 6));
    assert_eq!((desc.stride_a, desc.stride_b, desc.stride_c, desc.stride_residual), (35, 0, 27, 18));
    assert_eq!(desc.flags, 0x1 | 0x4 | 0x10 | 0x20);
    assert_eq!((desc.alpha, desc.activation), (0.5, sys::ANE_ACTIVATION_SILU));
    assert_eq!((desc.quant_a, desc.quant_b, desc.quant_c), (1, 3, 1));
    assert_eq!((desc.zero_point_a, desc.zero_point_b, desc.zero_point_c), (-3, 2, 5));
    assert_eq!((desc.group_size, desc.nibble_order, desc.type_scale), (128, 1, sys::ANE_TYPE_F32));
}

#[test]
fn scales_have_a_type_where_anything_is_quantised() {
    use crate::description::matmul::ElementTypes;
    use crate::description::quantization::{QuantA, QuantB, QuantOutput, Quantization};
    let of = |types: ElementTypes, quantization: Quantization| {
        let product = MatMul::builder(2, 3, 4).types(types).quantization(quantization).constant(true);
        convert::description(&product.build().unwrap()).type_scale
    };
    let none = Quantization::default();
    assert_eq!(of(ElementTypes::F32, none), sys::ANE_TYPE_NONE);
    let a = Quantization { a: QuantA::Static { scale: 1.0, zero_point: 0 }, ..none };
    assert_eq!(of(ElementTypes::INT8, a), sys::ANE_TYPE_F32);
    let b = Quantization { b: QuantB::PerTensor { zero_point: 0 }, ..none };
    let weights = ElementTypes { b: crate::ElementType::I8, ..ElementTypes::F32 };
    assert_eq!(of(weights, b), sys::ANE_TYPE_F32);
    let output = Quantization { output: QuantOutput::Static { scale: 1.0, zero_point: 0 }, ..none };
    let bytes = ElementTypes { output: crate::ElementType::I8, ..weights };
    assert_eq!(of(bytes, output), sys::ANE_TYPE_F32);
}
