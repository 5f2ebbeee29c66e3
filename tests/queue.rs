//! Submissions on the reference shim, whose worker computes them while the caller goes on: slow, failing, silent and out
//! of turn, dropped, forgotten and panicked over in flight.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ane_matmul::{
    BackendId, Backends, CompileOptions, Compiled, DeviceTensor, ElementType, Error, Executor, Inputs,
    Linear, MatMul, NativeStatus, OnMismatch, ProductCache, SelfCheck, ShimLibrary, Submission, Tensor,
    Weights,
};
use ane_matmul_shims::REFERENCE;

/// A registry with the reference shim as the environment has it for this call.
fn with(memory: &str, fault: &str) -> (Backends, BackendId) {
    static ENVIRONMENT: Mutex<()> = Mutex::new(());
    let _alone = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the shim reads it while a device is opened, which this program does here alone.
    unsafe {
        std::env::set_var("ANE_REFERENCE_MEMORY", memory);
        std::env::set_var("ANE_REFERENCE_FAULT", fault);
    }
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(REFERENCE) }.expect("a good shim");
    let mut backends = Backends::new();
    let id = backends.add(shim).expect("a new name");
    (backends, id)
}

fn compiled(memory: &str, fault: &str) -> Compiled {
    let (backends, id) = with(memory, fault);
    backends.compile(&id, &MatMul::new(3, 4, 5).unwrap(), &CompileOptions::default()).unwrap()
}

fn filled(compiled: &Compiled, rows: usize, cols: usize, value: f32) -> DeviceTensor {
    compiled.memory().upload(&Tensor::filled(rows, cols, value).unwrap()).unwrap()
}

/// Of a product whose result is `10 value` throughout.
fn submission(compiled: &Compiled, value: f32) -> Submission {
    let c = compiled.memory().zeros(ElementType::F32, 3, 4).unwrap();
    Submission::new(filled(compiled, 3, 5, value), c).b(filled(compiled, 5, 4, 2.0))
}

fn is_right(c: &DeviceTensor, value: f32) -> bool {
    c.download::<f32>().unwrap().data() == [10.0 * value; 12]
}

fn status(error: &Error) -> NativeStatus {
    match error {
        Error::Native(native) => native.status,
        other => panic!("{other:?}"),
    }
}

const MEMORIES: [&str; 2] = ["", "device"];

#[test]
fn many_in_flight_complete_with_their_own_results_in_any_order_of_waiting() {
    for memory in MEMORIES {
        // The second worker would like to compute the last one first.
        for fault in ["", "reorder:100000@work"] {
            let compiled = compiled(memory, fault);
            let mut executor = compiled.executor_with_depth(8).unwrap();
            let tickets: Vec<_> = (0u8..8)
                .map(|value| (value, executor.submit(submission(&compiled, value.into())).unwrap()))
                .collect();
            assert_eq!(executor.in_flight(), 8);
            for &(value, ticket) in tickets.iter().rev() {
                let done = executor.wait(ticket).unwrap();
                assert!(is_right(&done.submission.c, value.into()), "{value} with {memory} {fault}");
            }
        }
    }
}

#[test]
fn a_submission_that_fails_leaves_those_around_it_alone() {
    for memory in MEMORIES {
        let compiled = compiled(memory, "fail%3@work");
        let mut executor = compiled.executor_with_depth(64).unwrap();
        let tickets: Vec<_> = (0..64).map(|_| executor.submit(submission(&compiled, 1.0)).unwrap()).collect();
        let mut failed = 0;
        for ticket in tickets {
            match executor.wait(ticket) {
                Ok(done) => assert!(is_right(&done.submission.c, 1.0)),
                Err(failure) => {
                    failed += 1;
                    assert_eq!(status(&failure.error), NativeStatus::RunFailed);
                    assert!(failure.submission.is_some(), "its operands come back");
                }
            }
        }
        assert!((1..64).contains(&failed), "{failed} of 64 failed");
    }
}

#[test]
fn a_wait_with_a_limit_ends_and_leaves_the_submission_in_flight() {
    let compiled = compiled("device", "slow:200000000@work");
    let mut executor = compiled.executor_with_depth(2).unwrap();
    let ticket = executor.submit(submission(&compiled, 3.0)).unwrap();
    assert!(executor.wait_timeout(ticket, Duration::ZERO).unwrap().is_none());
    assert!(executor.wait_timeout(ticket, Duration::from_millis(1)).unwrap().is_none());
    let done = executor.wait_timeout(ticket, Duration::from_secs(60)).unwrap().expect("it is done by then");
    assert!(is_right(&done.submission.c, 3.0));
}

#[test]
fn a_submission_on_which_the_device_falls_silent_ends_as_a_failure() {
    let compiled = compiled("device", "lose:300000000@work");
    let mut executor = compiled.executor_with_depth(2).unwrap();
    let ticket = executor.submit(submission(&compiled, 3.0)).unwrap();
    assert!(executor.wait_timeout(ticket, Duration::from_millis(1)).unwrap().is_none());
    assert_eq!(status(&executor.wait(ticket).unwrap_err().error), NativeStatus::NoDevice);
    // The oldest first, without a ticket, until there is none.
    executor.submit(submission(&compiled, 1.0)).unwrap();
    executor.submit(submission(&compiled, 2.0)).unwrap();
    assert_eq!(status(&executor.wait_next().unwrap_err().error), NativeStatus::NoDevice);
    assert_eq!(executor.in_flight(), 1);
    assert!(executor.wait_next().is_err() && executor.wait_next().unwrap().is_none());
    // Nobody waits for this one: destroying the executor ends.
    executor.submit(submission(&compiled, 3.0)).unwrap();
    drop(executor);
}

#[test]
fn executors_in_flight_may_be_dropped_forgotten_and_panicked_over() {
    for memory in MEMORIES {
        let compiled = compiled(memory, "slow:20000000@work");
        let start = |compiled: &Compiled| {
            let mut executor = compiled.executor_with_depth(3).unwrap();
            for _ in 0..3 {
                executor.submit(submission(compiled, 1.0)).unwrap();
            }
            executor
        };
        drop(start(&compiled));
        std::mem::forget(start(&compiled));
        let panicked = std::thread::scope(|scope| {
            let start = &start;
            let compiled = &compiled;
            let thread = scope.spawn(move || {
                let _executor = start(compiled);
                // Without the hook's message.
                std::panic::resume_unwind(Box::new("a test"));
            });
            thread.join().is_err()
        });
        assert!(panicked);
        // Moved to another thread in flight, and dropped there.
        let executor = start(&compiled);
        std::thread::spawn(move || drop(executor)).join().unwrap();
        let done = start(&compiled).submit(submission(&compiled, 1.0)).unwrap_err();
        assert!(matches!(done.error, Error::Queue { .. }));
    }
    // Those that were forgotten work on meanwhile.
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn a_scope_is_a_pipeline_whose_results_are_there_when_it_ends() {
    for memory in MEMORIES {
        let compiled = compiled(memory, "slow:1000000@work");
        let mut executor = compiled.executor_with_depth(3).unwrap();
        let (a, b) = (filled(&compiled, 3, 5, 4.0), filled(&compiled, 5, 4, 2.0));
        let zeros = || compiled.memory().zeros(ElementType::F32, 3, 4).unwrap();
        let mut outputs: Vec<_> = (0..20).map(|_| zeros()).collect();
        let count = executor.scope(|queue| {
            for c in &mut outputs {
                queue.submit(Inputs::new(&a).b(&b), c)?;
            }
            Ok(20)
        });
        assert_eq!(count.unwrap(), 20);
        assert!(outputs.iter().all(|c| is_right(c, 4.0)));
        let mut c = zeros();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            executor.scope(|queue| -> ane_matmul::Result<()> {
                queue.submit(Inputs::new(&a).b(&b), &mut c)?;
                // Without the hook's message.
                std::panic::resume_unwind(Box::new("a test"));
            })
        }));
        assert!(panicked.is_err());
        assert!(is_right(&c, 4.0), "it was waited for");
    }
}

#[test]
fn a_result_is_the_next_products_operand_where_it_lies() {
    let (backends, id) = with("device", "");
    let weights = |value| Weights::from_tensor(Tensor::filled(6, 6, value).unwrap());
    let layers: Vec<_> = [0.5f32, 0.25]
        .map(|value| Linear::new(&weights(value)).max_rows(4).bias(&[1f32; 6]).build().unwrap())
        .iter()
        .map(|layer| backends.compile(&id, layer, &CompileOptions::default()).unwrap())
        .collect();
    let memory = backends.memory(&id).unwrap();
    let mut x = memory.upload(&Tensor::filled(4, 6, 1f32).unwrap()).unwrap();
    let mut y = memory.zeros(ElementType::F32, 4, 6).unwrap();
    for layer in &layers {
        layer.run(&x, &mut y).unwrap();
        std::mem::swap(&mut x, &mut y);
    }
    // 6/2 + 1 = 4, and 24/4 + 1 = 7.
    assert_eq!(x.download::<f32>().unwrap().data(), [7.0; 24]);
    // Fewer rows, of the operands that are there, also submitted.
    layers[0].run(x.first_rows(2), y.first_rows_mut(2)).unwrap();
    let rows = y.download::<f32>().unwrap();
    assert_eq!((rows.data()[..12].to_vec(), rows.data()[12..].to_vec()), (vec![22.0; 12], vec![4.0; 12]));
    let mut executor = layers[1].executor_with_depth(1).unwrap();
    let ticket = executor.submit(Submission::new(y, x).rows(3)).unwrap();
    let c = executor.wait(ticket).unwrap().submission.c.download::<f32>().unwrap();
    assert_eq!((c.data()[0], c.data()[12], c.data()[18]), (34.0, 7.0, 7.0));
    // No operand has so many.
    let short = |rows| memory.zeros(ElementType::F32, rows, 6).unwrap();
    let refused = executor.submit(Submission::new(short(4), short(2)).rows(3)).unwrap_err();
    assert!(matches!(refused.error, Error::Shape { .. }), "{refused}");
    let refused = executor.submit(Submission::new(short(2), short(4)).rows(3)).unwrap_err();
    assert!(matches!(refused.error, Error::Shape { .. }), "{refused}");
}

#[test]
fn a_submission_of_fewer_rows_takes_them_of_every_operand() {
    for memory in MEMORIES {
        let (backends, id) = with(memory, "");
        // A's rows are columns of what is stored.
        let product = MatMul::builder(3, 2, 2).transpose_a(true).residual(true).variable_m(true);
        let product = product.build().unwrap();
        let compiled = backends.compile(&id, &product, &CompileOptions::default()).unwrap();
        let upload = |data: [f32; 6], rows, cols| {
            compiled.memory().upload(&Tensor::from_vec(data.to_vec(), rows, cols).unwrap()).unwrap()
        };
        let submission = Submission::new(upload([1., 2., 3., 10., 20., 30.], 2, 3), upload([7.; 6], 3, 2))
            .b(filled(&compiled, 2, 2, 1.0))
            .residual(upload([100., 200., 300., 400., 500., 600.], 3, 2))
            .rows(2);
        let mut executor = compiled.executor_with_depth(1).unwrap();
        let ticket = executor.submit(submission).unwrap();
        let c = executor.wait(ticket).unwrap().submission.c.download::<f32>().unwrap();
        assert_eq!(c.data(), [111., 211., 322., 422., 7., 7.]);
    }
}

#[test]
fn cache_checks_and_instant_start_know_of_devices() {
    let (backends, id) = with("device", "wrong@work");
    let product = MatMul::new(3, 4, 5).unwrap();
    let cache = ProductCache::new(backends.clone(), ane_matmul::CacheLimits::new());
    let cached = cache.compile(&id, &product, &CompileOptions::default()).unwrap();
    let mut executor = cached.executor_with_depth(1).unwrap();
    let ticket = executor.submit(submission(&cached, 1.0)).unwrap();
    assert!(!is_right(&executor.wait(ticket).unwrap().submission.c, 1.0), "the fault is planted");
    // A submission that is verified is done again, and the device gets the result.
    let check = SelfCheck::every_run().on_mismatch(OnMismatch::RerunOnCpu);
    let checked = backends.compile(&id, &product, &CompileOptions::default().self_check(check)).unwrap();
    let mut executor = checked.executor_with_depth(1).unwrap();
    let ticket = executor.submit(submission(&checked, 1.0)).unwrap();
    assert!(is_right(&executor.wait(ticket).unwrap().submission.c, 1.0));
    assert_eq!((executor.checks().checked, executor.checks().mismatches), (1, 1));
    // The CPU answers on copies until the device has compiled.
    let (backends, id) = with("device", "slow:300000000@compile");
    let options = CompileOptions::default().instant_start(true);
    let compiled = backends.compile(&id, &product, &options).unwrap();
    let mut executor = compiled.executor_with_depth(2).unwrap();
    let start = Instant::now();
    // What the device could not work on later is refused now.
    let (a, b, mut c) = (filled(&compiled, 3, 5, 1.0), Tensor::filled(5, 4, 2f32).unwrap(), [0f32; 12]);
    let plain = ane_matmul::TensorViewMut::new(&mut c, 3, 4).unwrap();
    let refused = executor.scope(|queue| queue.submit(Inputs::new(&a).b(&b), plain)).unwrap_err();
    assert!(refused.to_string().contains("B of a submission lies in the host's memory"), "{refused}");
    loop {
        let ticket = executor.submit(submission(&compiled, 2.0)).unwrap();
        let done = executor.wait_next().unwrap().expect("one is in flight");
        assert!(is_right(&done.submission.c, 2.0) && executor.wait(ticket).is_err());
        if matches!(compiled.report().instant_start, Some(ane_matmul::InstantStart::Switched { .. })) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it never switches");
    }
    let ticket = executor.submit(submission(&compiled, 2.0)).unwrap();
    assert!(is_right(&executor.wait(ticket).unwrap().submission.c, 2.0));
    // The device was prepared in the background too.
    assert_eq!(compiled.report().prepare_time, backends.prepare(&id).unwrap());
    assert!(matches!(
        compiled.report().instant_start,
        Some(ane_matmul::InstantStart::Switched { runs_on_cpu: 1.., .. })
    ));
}

#[test]
fn threads_submit_with_executors_of_their_own_and_share_what_they_read() {
    for memory in MEMORIES {
        let compiled = compiled(memory, "");
        let b = Arc::new(filled(&compiled, 5, 4, 2.0));
        std::thread::scope(|scope| {
            for thread in 0u8..4 {
                let (compiled, b) = (&compiled, &b);
                scope.spawn(move || {
                    let mut executor = compiled.executor_with_depth(4).unwrap();
                    for round in 0u8..50 {
                        let value = f32::from(thread) + f32::from(round);
                        let c = compiled.memory().zeros(ElementType::F32, 3, 4).unwrap();
                        let a = filled(compiled, 3, 5, value);
                        let ticket = executor.submit(Submission::new(a, c).b(Arc::clone(b))).unwrap();
                        assert!(is_right(&executor.wait(ticket).unwrap().submission.c, value));
                    }
                });
            }
        });
    }
}

#[test]
fn the_devices_of_a_shim_are_backends_of_their_own() {
    let (mut backends, first) = with("device", "");
    // SAFETY: the library is built from this repository.
    let shim = unsafe { ShimLibrary::open(REFERENCE) }.expect("a good shim");
    let devices = shim.devices().unwrap();
    assert_eq!(devices.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1]);
    assert_ne!(devices[0].name, devices[1].name);
    let second = backends.add_device(shim, 1).unwrap();
    assert_eq!((first.as_str(), second.as_str()), ("reference", "reference:1"));
    let product = MatMul::new(3, 4, 5).unwrap();
    let on = |id| backends.compile(id, &product, &CompileOptions::default()).unwrap();
    let (one, two) = (on(&first), on(&second));
    assert_eq!(two.report().backend, second);
    let (a, b, mut c) = (filled(&two, 3, 5, 1.0), filled(&two, 5, 4, 2.0), filled(&two, 3, 4, 0.0));
    two.run(Inputs::new(&a).b(&b), &mut c).unwrap();
    assert!(is_right(&c, 1.0));
    assert!(matches!(one.run(Inputs::new(&a).b(&b), &mut c), Err(Error::Memory { .. })));
    // By way of the host.
    let a = one.memory().upload(&a.download::<f32>().unwrap()).unwrap();
    assert!(matches!(one.run(Inputs::new(&a).b(&b), &mut c), Err(Error::Memory { .. })));
}

#[test]
fn the_cpu_takes_submissions_too() {
    let compiled = MatMul::new(3, 4, 5).unwrap().compile(&BackendId::CPU).unwrap();
    let mut executor: Executor = compiled.executor_with_depth(1000).unwrap();
    let tickets: Vec<_> = (0..1000).map(|_| executor.submit(submission(&compiled, 1.0)).unwrap()).collect();
    for ticket in tickets {
        assert!(is_right(&executor.wait(ticket).unwrap().submission.c, 1.0));
    }
    // Host memory is as good as any here.
    let (a, b) = (Tensor::filled(3, 5, 1f32).unwrap(), Tensor::filled(5, 4, 2f32).unwrap());
    let mut c = Tensor::<f32>::zeros(3, 4).unwrap();
    executor.scope(|queue| queue.submit(Inputs::new(&a).b(&b), &mut c)).unwrap();
    assert_eq!(c.data(), [10.0; 12]);
    // What is submitted takes memory until it is waited for.
    compiled.executor_with_depth(65_536).unwrap();
    let error = compiled.executor_with_depth(65_537).unwrap_err().to_string();
    assert!(error.contains("takes 1 to 65536 submissions"), "{error}");
}

#[test]
fn an_executor_runs_nothing_while_submissions_are_in_flight() {
    // Without the check the CPU would compute all of these.
    let compiled = MatMul::new(3, 4, 5).unwrap().compile(&BackendId::CPU).unwrap();
    let mut executor = compiled.executor_with_depth(1).unwrap();
    let (a, b) = (Tensor::filled(3, 5, 1f32).unwrap(), Tensor::filled(5, 4, 2f32).unwrap());
    let (wide_a, wide_b) = (Tensor::filled(3, 5, 1f64).unwrap(), Tensor::filled(5, 4, 2f64).unwrap());
    let mut c = Tensor::<f32>::zeros(3, 4).unwrap();
    let mut wide_c = Tensor::<f64>::zeros(3, 4).unwrap();
    let (inputs, wide_inputs) = (Inputs::new(&a).b(&b), Inputs::new(&wide_a).b(&wide_b));
    let mut every_run = |executor: &mut Executor| {
        [
            executor.run(inputs, &mut c),
            executor.run_to_tensor(inputs).map(drop),
            executor.run_observed(inputs, &mut c).map(drop),
            executor.run_f64(wide_inputs, wide_c.view_mut()),
        ]
    };
    let ticket = executor.submit(submission(&compiled, 1.0)).unwrap();
    let results = every_run(&mut executor);
    assert!(results.iter().all(|result| matches!(result, Err(Error::Queue { .. }))), "{results:?}");
    executor.wait(ticket).unwrap();
    let results = every_run(&mut executor);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}
