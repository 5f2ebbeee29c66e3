//! Memory of the device's own, constants and submissions over the mock.

use std::sync::Arc;
use std::time::Duration;

use super::mock::{Mock, assert_nothing_leaked, compile_on, mock, with_mock};
use crate::backend::{BackendId, Backends};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::linear::Linear;
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;
use crate::description::quantization::QuantB;
use crate::error::{Error, NativeStatus};
use crate::executor::queue::Submission;
use crate::executor::{Compiled, Executor, Inputs};
use crate::operands::device_tensor::{DeviceMemory, DeviceTensor};
use crate::operands::tensor::Tensor;
use crate::operands::view::{TensorView, TensorViewMut};
use crate::operands::weights::Weights;
use crate::sys;
use crate::{RefusalReason, SelfCheck};

fn own_memory(mock: &mut Mock) {
    mock.own_memory = true;
}

fn compiled(setup: impl FnOnce(&mut Mock)) -> (Compiled, DeviceMemory) {
    let (backends, id) = with_mock(setup);
    let compiled = compile_on(&backends, &id).unwrap();
    let memory = compiled.memory().clone();
    (compiled, memory)
}

fn filled(memory: &DeviceMemory, value: f32) -> DeviceTensor {
    memory.upload(&Tensor::filled(2, 2, value).unwrap()).unwrap()
}

fn submission(memory: &DeviceMemory) -> Submission {
    Submission::new(filled(memory, 1.0), filled(memory, 9.0)).b(filled(memory, 2.0))
}

#[test]
fn operands_on_the_device_are_passed_as_its_buffers_and_those_on_the_host_beside_them() {
    let (compiled, memory) = compiled(own_memory);
    let (a, mut c) = (filled(&memory, 1.0), filled(&memory, 9.0));
    assert!(a.view().is_none() && c.view_mut().is_none() && compiled.report().bytes_held == 42);
    let b = Tensor::filled(2, 2, 2f32).unwrap();
    compiled.executor().unwrap().run(Inputs::new(&a).b(&b), &mut c).unwrap();
    mock(|mock| {
        let [a, b, c, _] = mock.operands[..] else { panic!("four operands") };
        assert!(a.data.is_null() && !a.buffer.is_null() && !b.data.is_null() && b.buffer.is_null());
        assert!(c.data.is_null() && !c.buffer.is_null() && c.buffer != a.buffer);
        assert_eq!([a.length_bytes, c.length_bytes, a.offset_bytes], [16, 16, 0]);
    });
    assert_eq!(
        (c.download::<f32>().unwrap().data(), a.download::<f32>().unwrap().data()),
        ([0f32; 4].as_slice(), [1f32; 4].as_slice())
    );
    drop((compiled, memory, a, c));
    assert_nothing_leaked();
}

#[test]
fn where_memory_is_unified_a_tensor_is_a_view() {
    let (compiled, memory) = compiled(|_| {});
    let mut c = memory.zeros(ElementType::F32, 2, 2).unwrap();
    let a = filled(&memory, 1.0);
    assert!(a.view().is_some_and(|view| view.get(0, 1, 1) == Some(1.0)) && c.view_mut().is_some());
    compiled.executor().unwrap().run(Inputs::new(&a).b(&a), &mut c).unwrap();
    mock(|mock| assert!(mock.operands[..3].iter().all(|operand| !operand.buffer.is_null())));
    drop((compiled, memory, a, c));
    // A device may give memory that the host sees where it was asked for its own.
    let (backends, id) = with_mock(|mock| mock.own_memory = true);
    mock(|mock| mock.own_memory = false);
    assert!(backends.memory(&id).unwrap().zeros(ElementType::F32, 2, 2).unwrap().view().is_some());
}

#[test]
fn copies_keep_shapes_strides_and_what_lies_between_rows() {
    let (backends, id) = with_mock(own_memory);
    assert!(backends.info(&id).unwrap().copies_host_operands);
    let memory = backends.memory(&id).unwrap();
    let data: Vec<f32> = (0u8..24).map(f32::from).collect();
    let strided = Layout::strided(2, 2, 3, 4, 12).unwrap();
    let mut tensor = memory.upload(TensorView::with_layout(&data, strided).unwrap()).unwrap();
    assert_eq!((tensor.layout(), tensor.element_type()), (&strided, ElementType::F32));
    let packed = tensor.download::<f32>().unwrap();
    assert_eq!(packed.data(), [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 12.0, 13.0, 14.0, 16.0, 17.0, 18.0]);
    // From another layout, and into one: gaps stay.
    tensor.upload(&Tensor::from_vec_batched(vec![1f32; 12], 2, 2, 3).unwrap()).unwrap();
    let mut to = vec![7f32; 24];
    tensor.download_into(TensorViewMut::with_layout(&mut to, strided).unwrap()).unwrap();
    assert_eq!(to[..8], [1.0, 1.0, 1.0, 7.0, 1.0, 1.0, 1.0, 7.0]);
    let others: Vec<f32> = data.iter().map(|x| if *x == 3.0 { 99.0 } else { *x }).collect();
    tensor.upload(TensorView::with_layout(&others, strided).unwrap()).unwrap();
    assert_eq!(tensor.download::<f32>().unwrap(), packed);
    let start = mock(|mock| mock.buffers[0].1);
    // SAFETY: the mock's memory of the tensor, which nobody uses now.
    let gap = unsafe { start.add(3 * 4).cast::<[u8; 4]>().read() };
    assert_eq!(f32::from_ne_bytes(gap), 3.0, "the gap after the first row");
    assert_eq!(memory.zeros(ElementType::I8, 3, 5).unwrap().download::<i8>().unwrap().data(), [0; 15]);
    assert_eq!(memory.zeros(ElementType::F64, 0, 5).unwrap().download::<f64>().unwrap().data(), [0.0; 0]);
    // Cleared in steps of 1 MiB.
    let bytes = (2 << 20) + 5;
    let cleared = memory.zeros(ElementType::I8, 1, bytes).unwrap().download::<i8>().unwrap();
    assert!(cleared.data() == vec![0; bytes]);
    let text = |result: Result<_, Error>| match result {
        Err(Error::Memory { problem }) => problem,
        other => panic!("{other:?}"),
    };
    assert!(text(tensor.download::<f64>().map(drop)).contains("of f64"));
    assert!(
        text(tensor.upload(&Tensor::<f32>::zeros(2, 3).unwrap())).contains("pass one of that type and shape")
    );
    let other = memory.upload(TensorView::with_layout(&data, strided).unwrap()).unwrap();
    assert!(text(tensor.upload(&other)).contains("both matrices lie on a device"));
    assert!(text(memory.upload(&other).map(drop)).contains("on a device"));
    assert!(text(memory.zeros(ElementType::I4, 1, 1).map(drop)).contains("bind them"));
    assert!(text(Weights::new(&other).map(drop)).contains("download them"));
    let square = filled(&memory, 1.0);
    assert!(text(crate::matmul(&square, &square).map(drop)).contains("`cpu` has another"));
    drop((square, tensor, other, memory, backends));
    assert_nothing_leaked();
}

#[test]
fn an_operand_on_another_device_is_refused() {
    let (backends, id) = with_mock(|mock| (mock.own_memory, mock.devices) = (true, 2));
    let mut both = backends.clone();
    let shim = super::check(&super::good_table()).unwrap();
    let names: Vec<_> = shim.devices().unwrap().into_iter().map(|device| device.id).collect();
    assert_eq!(names, [id.clone(), BackendId::new("mock:1")]);
    let other = both.add_device(shim.clone(), 1).unwrap();
    assert!(matches!(both.add_device(shim.clone(), 1), Err(Error::DuplicateBackend { .. })));
    let compiled = compile_on(&both, &id).unwrap();
    let (here, there) = (filled(compiled.memory(), 1.0), filled(&both.memory(&other).unwrap(), 1.0));
    let mut c = filled(compiled.memory(), 0.0);
    let mut executor = compiled.executor().unwrap();
    let error = executor.run(Inputs::new(&here).b(&there), &mut c).unwrap_err().to_string();
    assert!(error.contains("B lies on the device of `mock:1`, and `mock` has another"), "{error}");
    executor.run(Inputs::new(&here).b(&here), &mut c).unwrap();
    // What goes wrong on the second names the second.
    mock(|mock| mock.fail = Some(("compile", sys::ANE_STATUS_COMPILE_FAILED, 0)));
    let Err(Error::Native(native)) = compile_on(&both, &other) else { panic!("it fails") };
    assert_eq!(native.backend, other);
    mock(|mock| mock.fail = None);
    // Memory of the same device, opened once more, is another's.
    let mut again = Backends::new();
    again.add(shim.clone()).unwrap();
    let elsewhere = filled(&again.memory(&id).unwrap(), 1.0);
    let error = executor.run(Inputs::new(&here).b(&elsewhere), &mut c).unwrap_err().to_string();
    assert!(error.contains("use a clone of the one that compiled the product"), "{error}");
    mock(|mock| mock.devices = u32::MAX);
    let error = shim.devices().unwrap_err().to_string();
    assert!(error.contains("finds 4294967295 devices"), "{error}");
    mock(|mock| mock.devices = 2);
    // One that is not there is listed with the reason.
    let third = both.add_device(shim, 2).unwrap();
    let error = both.info(&third).unwrap_err().to_string();
    assert!(error.contains("there is no device 2: the shim finds 2"), "{error}");
    // It may be added again when it is there, and only then is it known for good.
    mock(|mock| mock.devices = 3);
    let shim = super::check(&super::good_table()).unwrap();
    assert_eq!(both.add_device(shim.clone(), 2).unwrap(), third);
    both.info(&third).unwrap();
    assert!(matches!(both.add_device(shim, 2), Err(Error::DuplicateBackend { .. })));
}

#[test]
fn weights_are_uploaded_once_for_all_products_and_destroyed_after_the_last() {
    let (backends, id) = with_mock(|mock| mock.constants = true);
    let scales = Tensor::filled(1, 3, 0.5f32).unwrap();
    let weights = Weights::new(&Tensor::filled(2, 3, 3i8).unwrap()).unwrap();
    let weights = weights.with_scales(QuantB::PerColumn { zero_point: 0 }, &scales).unwrap();
    let compile = |m: usize| {
        let layer = Linear::new(&weights).max_rows(m).build().unwrap();
        backends.compile(&id, &layer, &CompileOptions::default()).unwrap()
    };
    let (one, other) = (compile(1), compile(7));
    mock(|mock| {
        let created = |name: &str| mock.events.iter().filter(|event| *event == name).count();
        assert_eq!((created("+constant_create"), created("+compile")), (2, 2));
        assert_eq!((mock.compiled_constants, &mock.scales[1]), ([true; 2], &None));
    });
    assert_eq!(one.report().bytes_held, 42 + 6 + 12);
    assert_eq!(one.holding().shared, other.holding().shared);
    drop(one);
    drop(compile(9));
    mock(|mock| assert!(!mock.events.contains(&"-constant_create".into()), "{:?}", mock.events));
    drop(other);
    mock(|mock| {
        assert_eq!(
            mock.events[mock.events.len() - 3..],
            ["-compile", "-constant_create", "-constant_create"]
        );
    });
    drop(compile(1));
    drop(backends);
    assert_nothing_leaked();
    // The same elements under other scales have the elements in common alone.
    let elements = Weights::new(&Tensor::filled(2, 3, 3i8).unwrap()).unwrap();
    let (backends, id) = with_mock(|mock| mock.constants = true);
    let [one, other] = [0.5f32, 2.0].map(|scale| {
        let scales = Tensor::filled(1, 3, scale).unwrap();
        let weights = elements.clone().with_scales(QuantB::PerColumn { zero_point: 0 }, &scales).unwrap();
        backends.compile(&id, &Linear::new(&weights).build().unwrap(), &CompileOptions::default()).unwrap()
    });
    let (one_parts, other_parts) = (one.holding().shared, other.holding().shared);
    assert!(one_parts.len() == 2 && one_parts[0] == other_parts[0]);
    assert_ne!(one_parts[1], other_parts[1]);
    drop((one, other, backends));
    assert_nothing_leaked();
    // A shim that embeds them gets plain memory, and one that fails to make them says so.
    let (backends, id) = with_mock(|_| {});
    let layer = Linear::new(&weights).build().unwrap();
    backends.compile(&id, &layer, &CompileOptions::default()).unwrap();
    mock(|mock| assert_eq!((mock.compiled_constants, mock.scales[1].is_some()), ([false; 2], true)));
    drop(backends);
    let (backends, id) = with_mock(|mock| {
        mock.constants = true;
        mock.fail = Some(("constant_create", sys::ANE_STATUS_OUT_OF_MEMORY, 0));
    });
    let error = backends.compile(&id, &layer, &CompileOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Native(native) if native.status == NativeStatus::OutOfMemory), "{error}");
}

#[test]
fn a_device_is_prepared_once_and_apart_from_compiling() {
    let (backends, id) = with_mock(|_| {});
    let first = backends.prepare(&id).unwrap();
    assert!(first.is_some() && compile_on(&backends, &id).unwrap().report().prepare_time == first);
    compile_on(&backends, &id).unwrap();
    mock(|mock| assert_eq!(mock.events.iter().filter(|event| *event == "prepare").count(), 1));
    assert_eq!(backends.prepare(&BackendId::CPU).unwrap(), None);
    drop(backends);
    // A failure is tried again.
    let (backends, id) = with_mock(|mock| mock.fail = Some(("device_prepare", sys::ANE_STATUS_NO_DEVICE, 0)));
    assert!(backends.prepare(&id).is_err());
    mock(|mock| mock.fail = None);
    backends.prepare(&id).unwrap();
}

#[test]
fn arithmetic_is_reported_and_what_was_not_allowed_is_refused() {
    for (flags, fast_math, reduced_precision, expected) in [
        (0, false, false, Some("as described")),
        (1, false, true, None),
        (1, true, false, Some("fast math")),
        (2, true, false, None),
        (2 | 4, false, true, Some("tf32, bf16")),
        (8, false, true, Some("f16")),
        (8, false, false, None),
    ] {
        let (backends, id) = with_mock(|mock| mock.arithmetic = flags);
        let mut options = CompileOptions::default();
        (options.fast_math, options.reduced_precision) = (fast_math, reduced_precision);
        let result = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options);
        match (result, expected) {
            (Ok(compiled), Some(text)) => assert_eq!(compiled.report().arithmetic.to_string(), text),
            (Err(Error::Refused { refusal, .. }), None) => {
                assert_eq!(refusal.reason, RefusalReason::Precision);
            }
            (result, _) => panic!("{flags}: {result:?}"),
        }
        drop(backends);
        assert_nothing_leaked();
    }
}

#[test]
fn a_submission_gives_its_operands_back_when_it_is_waited_for() {
    for own in [false, true] {
        let (compiled, memory) = compiled(|mock| (mock.own_memory, mock.polls) = (own, 2));
        let mut executor = compiled.executor_with_depth(2).unwrap();
        let b = Arc::new(filled(&memory, 2.0));
        let submit = |executor: &mut Executor| {
            executor.submit(Submission::new(filled(&memory, 1.0), filled(&memory, 9.0)).b(Arc::clone(&b)))
        };
        let (one, two) = (submit(&mut executor).unwrap(), submit(&mut executor).unwrap());
        // As many as it takes, and no run meanwhile.
        let full = submit(&mut executor).unwrap_err();
        assert!(full.to_string().contains("submissions in flight: 2, as many"), "{full}");
        assert!(full.submission.is_some_and(|submission| submission.b.is_some()));
        let host = Tensor::<f32>::zeros(2, 2).unwrap();
        let error = executor.run_to_tensor(Inputs::new(&host).b(&host)).unwrap_err();
        assert!(matches!(error, Error::Queue { .. }), "{error}");
        for _ in 0..2 {
            assert!(executor.wait_timeout(one, Duration::from_millis(1)).unwrap().is_none());
        }
        let done = executor.wait_timeout(one, Duration::ZERO).unwrap().expect("complete");
        assert_eq!(done.submission.c.download::<f32>().unwrap().data(), [0.0; 4]);
        assert_eq!((executor.in_flight(), Arc::strong_count(&b)), (1, 3));
        let again = executor.wait(one).unwrap_err();
        assert!(again.submission.is_none() && again.to_string().contains("waited for already"), "{again}");
        drop(done);
        executor.wait(two).unwrap();
        executor.run_to_tensor(Inputs::new(&host).b(&host)).unwrap();
        let three = submit(&mut executor).unwrap();
        let mut other = compiled.executor_with_depth(1).unwrap();
        // It has a ticket of the number of `one`.
        let own = submit(&mut other).unwrap();
        assert!(other.wait(one).unwrap_err().to_string().contains("of another executor"));
        executor.wait(three).unwrap();
        other.wait(own).unwrap();
        drop((b, executor, other, compiled, memory));
        assert_nothing_leaked();
    }
}

#[test]
fn a_timeout_beyond_the_nanoseconds_of_the_abi_is_without_end() {
    let (compiled, memory) = compiled(own_memory);
    let mut executor = compiled.executor_with_depth(1).unwrap();
    // The lowest 64 bits of the nanoseconds are all ones, and all zeros.
    for timeout in [Duration::MAX, Duration::from_nanos(u64::MAX) + Duration::from_nanos(1)] {
        let ticket = executor.submit(submission(&memory)).unwrap();
        // A wait with a limit would find it in flight.
        mock(|mock| mock.polls = 1);
        assert!(executor.wait_timeout(ticket, timeout).unwrap().is_some(), "{timeout:?}");
    }
}

#[test]
fn a_submission_fails_alone_and_its_operands_come_back() {
    let (compiled, memory) = compiled(own_memory);
    let mut executor = compiled.executor_with_depth(3).unwrap();
    let tickets: Vec<_> = (0..3).map(|_| executor.submit(submission(&memory)).unwrap()).collect();
    mock(|mock| mock.failing = vec![mock.in_flight[1].0]);
    executor.wait(tickets[2]).unwrap();
    let failure = executor.wait(tickets[1]).unwrap_err();
    assert!(matches!(&failure.error, Error::Native(native) if native.status == NativeStatus::RunFailed));
    assert!(failure.submission.is_some());
    executor.wait(tickets[0]).unwrap();
    // One that is not taken.
    mock(|mock| mock.fail = Some(("executor_submit", sys::ANE_STATUS_OUT_OF_MEMORY, 0)));
    let failure = executor.submit(submission(&memory)).unwrap_err();
    assert!(matches!(&failure.error, Error::Native(native) if native.status == NativeStatus::OutOfMemory));
    let error: Error = failure.into();
    assert!(matches!(error, Error::Native(_)));
    assert_eq!(executor.in_flight(), 0);
    let failure = executor.submit(submission(&memory).rows(3)).unwrap_err();
    assert!(matches!(&failure.error, Error::Rows { compiled: 2, got: 3, .. }));
    // One that does not fit.
    let wrong = memory.zeros(ElementType::F32, 2, 3).unwrap();
    let failure =
        executor.submit(Submission::new(wrong, filled(&memory, 0.0)).b(filled(&memory, 0.0))).unwrap_err();
    assert!(matches!(&failure.error, Error::Shape { .. }));
}

#[test]
fn executors_that_are_dropped_or_forgotten_in_flight_leave_the_device_its_operands() {
    for own in [false, true] {
        let (compiled, memory) = compiled(|mock| mock.own_memory = own);
        let mut executor = compiled.executor_with_depth(4).unwrap();
        for _ in 0..3 {
            executor.submit(submission(&memory)).unwrap();
        }
        // The mock uses the operands where it destroys the executor: Miri sees whether they were there.
        drop(executor);
        mock(|mock| {
            assert!(mock.in_flight.is_empty());
            let of = |name: &str| mock.events.iter().rposition(|event| event == name).unwrap();
            assert!(of("-executor_create") < of("-buffer"), "{:?}", mock.events);
        });
        // A pool takes none back that is busy.
        let pool = compiled.pool(1).unwrap();
        let failure = pool.get().unwrap().submit(submission(&memory)).unwrap_err();
        assert!(failure.to_string().contains("executor_with_depth"), "{failure}");
        drop((failure, pool, compiled, memory));
        assert_nothing_leaked();
    }
    let (compiled, memory) = compiled(own_memory);
    let mut executor = compiled.executor_with_depth(4).unwrap();
    executor.submit(submission(&memory)).unwrap();
    let in_flight = mock(|mock| mock.in_flight.clone());
    // As `std::mem::forget` would, but for Miri, which looks for what is left.
    let mut forgotten = std::mem::ManuallyDrop::new(executor);
    drop((compiled, memory));
    // The device still works, on operands that are still there.
    let (_, _, args) = in_flight[0];
    super::mock::compute(&args);
    // SAFETY: dropped here only, and not used again.
    unsafe { std::mem::ManuallyDrop::drop(&mut forgotten) };
    assert_nothing_leaked();
}

#[test]
fn what_is_borrowed_is_complete_when_its_scope_ends() {
    for own in [false, true] {
        let (compiled, memory) = compiled(|mock| mock.own_memory = own);
        let mut executor = compiled.executor_with_depth(2).unwrap();
        let (a, b) = (filled(&memory, 1.0), filled(&memory, 2.0));
        let mut outputs: Vec<_> = (0..5).map(|_| filled(&memory, 9.0)).collect();
        executor
            .scope(|queue| outputs.iter_mut().try_for_each(|c| queue.submit(Inputs::new(&a).b(&b), c)))
            .unwrap();
        for c in &outputs {
            assert_eq!(c.download::<f32>().unwrap().data(), [0.0; 4]);
        }
        // A panic, and an error, wait too.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            executor.scope(|queue| {
                queue.submit(Inputs::new(&a).b(&b), &mut outputs[0])?;
                // Without the hook's message.
                std::panic::resume_unwind(Box::new("a test"));
                #[allow(unreachable_code)]
                Ok(())
            })
        }));
        assert!(result.is_err() && mock(|mock| mock.in_flight.is_empty()));
        let error = executor.scope(|queue| {
            queue.submit(Inputs::new(&a).b(&b), &mut outputs[0])?;
            Err::<(), _>(Error::Interrupted)
        });
        assert!(matches!(error, Err(Error::Interrupted)) && mock(|mock| mock.in_flight.is_empty()));
        // The first failure is that of the scope, unless it was seen before.
        let next = mock(|mock| u64::try_from(mock.next).unwrap());
        mock(|mock| mock.failing = vec![next + 2]);
        let (first, second) = outputs.split_at_mut(1);
        let error = executor.scope(|queue| {
            queue.submit(Inputs::new(&a).b(&b), &mut first[0])?;
            queue.submit(Inputs::new(&a).b(&b), &mut second[0])
        });
        assert!(
            matches!(&error, Err(Error::Native(native)) if native.status == NativeStatus::RunFailed),
            "{error:?}"
        );
        // One that is seen while the scope goes on stops nothing.
        let next = mock(|mock| u64::try_from(mock.next).unwrap());
        mock(|mock| mock.failing = vec![next + 1]);
        let mut taken = 0;
        let error = executor.scope(|queue| {
            outputs.iter_mut().try_for_each(|c| {
                taken += 1;
                queue.submit(Inputs::new(&a).b(&b), c)
            })
        });
        assert!(matches!(&error, Err(Error::Native(_))) && taken == outputs.len(), "{error:?} after {taken}");
        executor.scope(|queue| queue.submit(Inputs::new(&a).b(&b), &mut outputs[0])).unwrap();
        // Memory of the host's, but for a shared buffer, is no operand of a submission.
        let host = Tensor::<f32>::zeros(2, 2).unwrap();
        let error = executor.scope(|queue| queue.submit(Inputs::new(&host).b(&b), &mut outputs[0]));
        assert!(
            matches!(&error, Err(Error::Memory { problem }) if problem.contains("A of a submission")),
            "{error:?}"
        );
        let shared = memory.shared_buffer(16).unwrap();
        let view = TensorView::new(shared.elements::<f32>(), 2, 2).unwrap();
        executor.scope(|queue| queue.submit(Inputs::new(view).b(&b), &mut outputs[0])).unwrap();
        // Without room, and beside submissions that are owned.
        let error = compiled.executor().unwrap().scope(|_| Ok(()));
        assert!(matches!(error, Err(Error::Queue { .. })));
        executor.submit(submission(&memory)).unwrap();
        assert!(matches!(executor.scope(|_| Ok(())), Err(Error::Queue { .. })));
        drop((executor, a, b, outputs, shared, compiled, memory));
        assert_nothing_leaked();
    }
}

#[test]
fn a_queue_has_the_depth_that_the_device_takes() {
    let (compiled, memory) = compiled(|mock| mock.queue_depth = 3);
    for depth in [0, 4, usize::MAX] {
        let error = compiled.executor_with_depth(depth).unwrap_err().to_string();
        assert!(error.contains("takes 1 to 3 submissions"), "{error}");
    }
    drop(compiled.executor_with_depth(3).unwrap());
    mock(|mock| assert_eq!(mock.depths.last().unwrap().1, 3));
    drop(compiled.executor().unwrap());
    mock(|mock| assert_eq!(mock.depths.last().unwrap().1, 0));
    drop((compiled, memory));
    // One that takes none computes at once, also in plain memory.
    let (compiled, memory) = self::compiled(|mock| mock.queue_depth = 0);
    let mut executor = compiled.executor_with_depth(100).unwrap();
    mock(|mock| assert_eq!(mock.depths.last().unwrap().1, 0, "as deep as the shim takes"));
    let ticket = executor.submit(submission(&memory)).unwrap();
    mock(|mock| assert!(mock.in_flight.is_empty() && !mock.operands.is_empty()));
    assert_eq!(executor.wait(ticket).unwrap().submission.c.download::<f32>().unwrap().data(), [0.0; 4]);
}

#[test]
fn a_run_on_the_device_is_verified_on_copies() {
    // Zeros are wrong for every product but that of zeros.
    let (backends, id) = with_mock(own_memory);
    let check = SelfCheck { on_mismatch: crate::OnMismatch::RerunOnCpu, ..SelfCheck::every_run() };
    let options = CompileOptions::default().self_check(check);
    let compiled = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();
    let memory = compiled.memory();
    let (a, b, mut c) = (filled(memory, 1.0), filled(memory, 2.0), filled(memory, 9.0));
    let mut executor = compiled.executor_with_depth(2).unwrap();
    executor.run(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert_eq!(c.download::<f32>().unwrap().data(), [4.0; 4], "the rerun's result is on the device");
    let ticket = executor.submit(submission(memory)).unwrap();
    let done = executor.wait(ticket).unwrap();
    assert_eq!(done.submission.c.download::<f32>().unwrap().data(), [4.0; 4]);
    assert_eq!((executor.checks().checked, executor.checks().reruns), (2, 2));
    // A submission that is refused is not the first run that is verified, and the second is not waited for.
    let options = CompileOptions::default()
        .self_check(SelfCheck::first_run().on_mismatch(crate::OnMismatch::RerunOnCpu));
    let compiled = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();
    let mut executor = compiled.executor_with_depth(1).unwrap();
    mock(|mock| mock.fail = Some(("executor_submit", sys::ANE_STATUS_OUT_OF_MEMORY, 0)));
    let refused = executor.submit(submission(memory)).unwrap_err();
    assert!(matches!(refused.error, Error::Native(_)) && executor.in_flight() == 0);
    mock(|mock| mock.fail = Some(("executor_wait", sys::ANE_STATUS_RUN_FAILED, 0)));
    let ticket = executor.submit(submission(memory)).unwrap();
    assert!(matches!(executor.wait(ticket).unwrap_err().error, Error::Native(_)));
    mock(|mock| mock.fail = None);
    let ticket = executor.submit(submission(memory)).unwrap();
    executor.wait(ticket).unwrap();
    assert_eq!(executor.checks().checked, 1);
    // Without a mismatch so far, those that follow are as they were submitted.
    let options = CompileOptions::default().self_check(SelfCheck::first_run());
    let zeros = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();
    let mut executor = zeros.executor_with_depth(1).unwrap();
    let of_zeros = || Submission::new(filled(memory, 0.0), filled(memory, 9.0)).b(filled(memory, 0.0));
    for in_flight in [0, 1] {
        let ticket = executor.submit(of_zeros()).unwrap();
        mock(|mock| assert_eq!(mock.in_flight.len(), in_flight));
        executor.wait(ticket).unwrap();
        assert_eq!(executor.checks().checked, 1);
    }
    // A result that is right stays where it is: nothing is written to the device.
    let mut operands = of_zeros();
    let mut executor = zeros.executor().unwrap();
    mock(|mock| mock.fail = Some(("buffer_write", sys::ANE_STATUS_IO, 0)));
    let b = operands.b.clone().unwrap();
    executor.run(Inputs::new(&*operands.a).b(&*b), &mut operands.c).unwrap();
    assert_eq!(executor.checks().checked, 1);
    mock(|mock| mock.fail = None);
    let options = CompileOptions::default().self_check(SelfCheck::every_run());
    let compiled = backends.compile(&id, &MatMul::new(2, 2, 2).unwrap(), &options).unwrap();
    let mut executor = compiled.executor_with_depth(1).unwrap();
    let ticket = executor.submit(submission(memory)).unwrap();
    assert!(matches!(executor.wait(ticket).unwrap_err().error, Error::WrongResult(_)));
}

#[test]
fn a_bias_that_is_known_is_uploaded_for_submissions() {
    let (backends, id) = with_mock(own_memory);
    let weights = Weights::from_tensor(Tensor::filled(2, 3, 1f32).unwrap());
    let layer = Linear::new(&weights).bias(&[1f32, 2.0, 3.0]).build().unwrap();
    let compiled = backends.compile(&id, &layer, &CompileOptions::default()).unwrap();
    let memory = compiled.memory();
    let x = memory.upload(&[1f32, 2.0]).unwrap();
    let y = memory.zeros(ElementType::F32, 1, 3).unwrap();
    let mut executor = compiled.executor_with_depth(1).unwrap();
    let ticket = executor.submit(Submission::new(x, y)).unwrap();
    mock(|mock| assert!(!mock.operands[3].buffer.is_null()));
    executor.wait(ticket).unwrap();
    // Runs use it too.
    executor.run(&[1f32, 2.0], &mut [0f32; 3]).unwrap();
    mock(|mock| assert!(!mock.operands[3].buffer.is_null()));
}

#[test]
fn failures_of_copies_are_errors() {
    let (backends, id): (Backends, _) = with_mock(own_memory);
    let memory = backends.memory(&id).unwrap();
    let tensor = filled(&memory, 1.0);
    for slot in ["buffer_write", "buffer_read"] {
        mock(|mock| mock.fail = Some((slot, sys::ANE_STATUS_NO_DEVICE, 0)));
        let result = match slot {
            "buffer_read" => tensor.download::<f32>().map(drop),
            _ => memory.upload(&[1f32]).map(drop),
        };
        assert!(matches!(&result, Err(Error::Native(native)) if native.step == slot), "{result:?}");
    }
}
