//! Shared buffers over the mock.

use super::mock::{assert_nothing_leaked, compile_on, mock, with_mock};
use super::{STATUSES, thinned};
use crate::backend::refusal::RefusalReason;
use crate::error::{Error, NativeStatus};
use crate::executor::Inputs;
use crate::operands::shared_buffer::ALIGNMENT_BYTES;
use crate::operands::view::{TensorView, TensorViewMut};
use crate::sys;

/// A page of the mock's.
#[repr(align(256))]
struct Page([f32; 64]);

#[test]
fn operands_in_buffers_are_passed_as_such() {
    let (backends, id) = with_mock(|_| {});
    let mut executor = compile_on(&backends, &id).unwrap().executor().unwrap();
    // Made in an order that is not that of their addresses, with others around them.
    let spare = backends.shared_buffer(&id, 64).unwrap();
    let mut c = backends.shared_buffer(&id, 40).unwrap();
    let a = backends.shared_buffer(&id, 16).unwrap();
    let b = [1f32; 4];
    drop(spare);
    assert_eq!(a.elements::<f32>(), [0.0; 4], "memory is zero at first");
    c.elements_mut::<f32>().fill(7.0);
    let a_view = TensorView::new(a.elements::<f32>(), 2, 2).unwrap();
    let inputs = Inputs::new(a_view).b(TensorView::new(&b, 2, 2).unwrap());
    let c_view = TensorViewMut::new(&mut c.elements_mut::<f32>()[6..], 2, 2).unwrap();
    executor.run(inputs, c_view).unwrap();
    assert_eq!(c.elements::<f32>(), [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 0.0, 0.0, 0.0, 0.0]);
    mock(|mock| {
        let [a, b, c, _] = mock.operands[..] else { panic!("four operands") };
        assert!(a.data.is_null() && !a.buffer.is_null() && a.offset_bytes == 0);
        assert!(!b.data.is_null() && b.buffer.is_null(), "plain memory is passed as a pointer");
        assert!(c.data.is_null() && !c.buffer.is_null() && c.offset_bytes == 24);
        assert_ne!(a.buffer, c.buffer);
        assert_eq!([a.length_bytes, b.length_bytes, c.length_bytes], [16; 3]);
    });
    // Memory of another device is plain memory to this one.
    let (others, other_id) = (crate::Backends::new(), crate::BackendId::CPU);
    let foreign = others.shared_buffer(&other_id, 16).unwrap();
    let inputs = Inputs::new(TensorView::new(foreign.elements::<f32>(), 2, 2).unwrap())
        .b(TensorView::new(&b, 2, 2).unwrap());
    executor.run(inputs, TensorViewMut::new(c.elements_mut::<f32>(), 2, 2).unwrap()).unwrap();
    mock(|mock| assert!(mock.operands[0].buffer.is_null()));
    drop((a, c, executor, backends));
    assert_nothing_leaked();
}

#[test]
fn buffers_keep_their_device_and_die_once() {
    let (backends, id) = with_mock(|_| {});
    let first = backends.shared_buffer(&id, 8).unwrap();
    let second = backends.shared_buffer(&id, 0).unwrap();
    assert_eq!((second.bytes(), second.elements::<f32>().len()), (0, 0));
    drop(backends);
    drop(first);
    mock(|mock| assert_eq!(mock.live.len(), 2, "{:?}", mock.events));
    drop(second);
    assert_nothing_leaked();
    mock(|mock| assert_eq!(mock.events.last().unwrap(), "-device_open"));
}

#[test]
fn memory_that_was_freed_is_forgotten() {
    let (backends, id) = with_mock(|_| {});
    let mut executor = compile_on(&backends, &id).unwrap().executor().unwrap();
    let mut page = Page([0.0; 64]);
    let start = page.0.as_mut_ptr();
    for wrapped in [true, false] {
        // SAFETY: the page outlives the buffer, and is used through it meanwhile.
        let buffer = wrapped.then(|| unsafe { backends.wrap_memory(&id, start.cast(), 256) }.unwrap());
        // SAFETY: initialised and aligned; read only while nothing writes.
        let a = unsafe { std::slice::from_raw_parts(start, 4) };
        let mut c = [f32::NAN; 4];
        let view = TensorView::new(a, 2, 2).unwrap();
        executor.run(Inputs::new(view).b(view), TensorViewMut::new(&mut c, 2, 2).unwrap()).unwrap();
        mock(|mock| assert_eq!(mock.operands[0].buffer.is_null(), !wrapped));
        drop(buffer);
    }
}

#[test]
fn only_whole_pages_are_wrapped() {
    let (backends, id) = with_mock(|_| {});
    assert_eq!(backends.info(&id).unwrap().wrap_alignment_bytes, Some(256));
    let mut page = Page([5.0; 64]);
    let start = page.0.as_mut_ptr().cast::<u8>();
    for (start, bytes) in
        [(start, 255), (start, 0), (start.wrapping_add(64), 256), (std::ptr::null_mut(), 256)]
    {
        // SAFETY: what is not the whole page is refused before it is touched.
        let error = unsafe { backends.wrap_memory(&id, start, bytes) }.unwrap_err();
        assert!(matches!(error, Error::WrapAlignment { alignment_bytes: Some(256), .. }), "{error}");
    }
    // SAFETY: the page lives until the end of the test.
    let buffer = unsafe { backends.wrap_memory(&id, start, 256) }.unwrap();
    assert_eq!(buffer.elements::<f32>(), [5.0; 64], "wrapped memory keeps its contents");
    drop((buffer, backends));
    assert_nothing_leaked();
}

#[test]
fn a_device_that_wraps_nothing_says_so() {
    let (backends, id) = with_mock(|mock| mock.wrap_alignment = 0);
    assert_eq!(backends.info(&id).unwrap().wrap_alignment_bytes, None);
    let mut page = Page([5.0; 64]);
    // SAFETY: nothing is wrapped.
    let error = unsafe { backends.wrap_memory(&id, page.0.as_mut_ptr().cast(), 256) }.unwrap_err();
    assert!(matches!(error, Error::WrapAlignment { alignment_bytes: None, .. }), "{error}");
}

#[test]
fn failures_of_the_shim_become_errors() {
    for slot in ["buffer_create", "buffer_wrap"] {
        for empty_handed in [false, true] {
            let (backends, id) = with_mock(|mock| {
                if empty_handed {
                    mock.empty_handed = Some(slot);
                } else {
                    mock.fail = Some((slot, sys::ANE_STATUS_OUT_OF_MEMORY, 0));
                }
            });
            let mut page = Page([0.0; 64]);
            let result = match slot {
                "buffer_create" => backends.shared_buffer(&id, 64),
                // SAFETY: the page outlives the buffer, which is not made.
                _ => unsafe { backends.wrap_memory(&id, page.0.as_mut_ptr().cast(), 256) },
            };
            let Err(Error::Native(native)) = result else { panic!("{slot}: {result:?}") };
            let expected = if empty_handed { NativeStatus::Internal } else { NativeStatus::OutOfMemory };
            assert_eq!((native.step, native.status), (slot, expected));
            drop(backends);
            assert_nothing_leaked();
        }
    }
    let made = |slot, code, refusal| {
        let (backends, id) = with_mock(|mock| mock.fail = Some((slot, code, refusal)));
        let mut page = Page([0.0; 64]);
        let result = match slot {
            "buffer_create" => backends.shared_buffer(&id, 64),
            // SAFETY: the page outlives the buffer, which is not made.
            _ => unsafe { backends.wrap_memory(&id, page.0.as_mut_ptr().cast(), 256) },
        };
        drop(backends);
        assert_nothing_leaked();
        result.unwrap_err()
    };
    for (row, slot) in ["buffer_create", "buffer_wrap"].into_iter().enumerate() {
        for (_, (code, status)) in (0..).zip(STATUSES).filter(|&(col, _)| thinned(row, col)) {
            let Error::Native(native) = made(slot, code, 0) else { panic!("{slot} with {code}") };
            assert_eq!((native.step, native.status, native.message.as_str()), (slot, status, "a message"));
        }
        for (col, &reason) in (1..).zip(&RefusalReason::ALL).filter(|&(col, _)| thinned(row, col)) {
            let code = i32::try_from(col).unwrap();
            let Error::Refused { refusal, .. } = made(slot, sys::ANE_STATUS_REFUSED, code) else {
                panic!("{slot} with {reason}")
            };
            assert_eq!((refusal.reason, refusal.message.as_str()), (reason, "a message"));
        }
    }
    for (no_contents, shift) in [(true, 0), (false, ALIGNMENT_BYTES / 2)] {
        let (backends, id) = with_mock(|mock| (mock.no_contents, mock.shift) = (no_contents, shift));
        let text = backends.shared_buffer(&id, 64).unwrap_err().to_string();
        assert!(text.contains("buffer_contents") && text.contains("multiple of 64"), "{text}");
        drop(backends);
        assert_nothing_leaked();
    }
}
