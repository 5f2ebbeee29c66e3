//! Verdicts on synthetic witnesses: no trace was recorded on a Mac yet.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::backend::Backends;
use crate::description::matmul::MatMul;
use crate::description::options::CompileOptions;

const SECOND: Duration = Duration::from_secs(1);

fn engine(observed: Device) -> Witness {
    Witness::Engine { observed }
}

fn cpu(seconds: f64) -> Witness {
    Witness::CpuTime { cpu: Duration::from_secs_f64(seconds), wall: SECOND, needed: None }
}

/// CPU time in a second, where the arithmetic needs some.
fn cpu_of(seconds: f64, needed: f64) -> Witness {
    let [cpu, needed] = [seconds, needed].map(Duration::from_secs_f64);
    Witness::CpuTime { cpu, wall: SECOND, needed: Some(needed) }
}

/// Microseconds of command buffers in runs of 100 us.
fn device(us: u64, control_us: Option<u64>) -> Witness {
    let us_to_time = Duration::from_micros;
    Witness::DeviceTime { device: us_to_time(us), control: control_us.map(us_to_time), wall: us_to_time(100) }
}

fn energy(device: Device, idle_watts: f64, control_watts: Option<f64>, load_watts: f64) -> Witness {
    Witness::Energy { device, idle_watts, control_watts, load_watts }
}

fn quartiles(us: [u64; 3]) -> Quartiles {
    let [lower, median, upper] = us.map(Duration::from_micros);
    Quartiles { lower, median, upper }
}

fn times(with_us: [u64; 3], without_us: [u64; 3]) -> Witness {
    Witness::CandidateTime { with: quartiles(with_us), without: quartiles(without_us) }
}

fn absent() -> Witness {
    Witness::Absent { kind: "energy", reason: "not here".into() }
}

/// The counter of the Neural Engine rises over idle and control.
fn rising() -> Witness {
    energy(Device::NeuralEngine, 0.0, Some(0.01), 3.0)
}

fn moved() -> Witness {
    times([90, 100, 110], [190, 200, 210])
}

fn same_times() -> Witness {
    times([95, 100, 110], [98, 105, 120])
}

fn verdict(witnesses: &[Witness]) -> (Device, Confidence) {
    let Verdict { observed, confidence, reasons } = judge(witnesses);
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| !reason.is_empty()));
    assert_eq!(observed == Device::Unknown, confidence == Confidence::None, "{reasons:?}");
    (observed, confidence)
}

use Confidence::{None as NoConfidence, Strong, Weak};
use Device::{Cpu, Gpu, Mixed, NeuralEngine, Unknown};

type Case = (&'static str, Vec<Witness>, (Device, Confidence));

fn check(cases: &[Case]) {
    for (name, witnesses, expected) in cases {
        assert_eq!(verdict(witnesses), *expected, "{name}: {:?}", judge(witnesses).reasons);
    }
}

#[test]
fn verdicts_on_synthetic_traces() {
    let idle_gpu = || energy(Gpu, 0.02, Some(8.0), 0.1);
    let busy_gpu = || energy(Gpu, 0.02, Some(8.0), 7.5);
    let cases: [Case; 35] = [
        ("nothing", vec![], (Unknown, NoConfidence)),
        ("nothing heard", vec![engine(Unknown), absent()], (Unknown, NoConfidence)),
        // The Neural Engine.
        ("counter and time", vec![engine(Unknown), cpu(0.05), rising(), moved()], (NeuralEngine, Strong)),
        ("counter and a GPU that sank", vec![engine(Unknown), rising(), idle_gpu()], (NeuralEngine, Strong)),
        (
            "counter and command buffers that shrank",
            vec![engine(Unknown), rising(), device(5, Some(90))],
            (NeuralEngine, Strong),
        ),
        ("the counter alone", vec![engine(Unknown), rising()], (NeuralEngine, Weak)),
        ("counter, the same times", vec![engine(Unknown), rising(), same_times()], (NeuralEngine, Weak)),
        (
            "short command buffers without a control are no second witness",
            vec![engine(Unknown), rising(), device(5, None)],
            (NeuralEngine, Weak),
        ),
        ("counter and a busy GPU", vec![engine(Unknown), rising(), busy_gpu(), moved()], (Mixed, Weak)),
        (
            "counter and full command buffers",
            vec![engine(Unknown), rising(), device(80, Some(90)), moved()],
            (Mixed, Weak),
        ),
        (
            "counter and a small product's submission",
            vec![engine(Unknown), rising(), cpu_of(0.3, 0.2), moved()],
            (NeuralEngine, Strong),
        ),
        ("counter and a busy CPU", vec![engine(Unknown), rising(), cpu(1.0), moved()], (Mixed, Weak)),
        // What an engine claims without being able to know it.
        ("a claim", vec![engine(NeuralEngine)], (Unknown, NoConfidence)),
        ("a claim and a time", vec![engine(NeuralEngine), moved()], (Unknown, NoConfidence)),
        ("a claim of a mixture", vec![engine(Mixed), cpu(0.9)], (Unknown, NoConfidence)),
        (
            "a claim against the GPU's witnesses",
            vec![engine(NeuralEngine), device(90, None), busy_gpu()],
            (Gpu, Strong),
        ),
        // Counters that say nothing.
        (
            "a counter at zero",
            vec![engine(Unknown), energy(NeuralEngine, 0.0, Some(0.0), 0.0), moved()],
            (Unknown, NoConfidence),
        ),
        (
            "someone else's Neural Engine",
            vec![engine(Unknown), energy(NeuralEngine, 3.0, Some(3.0), 3.1), moved()],
            (Unknown, NoConfidence),
        ),
        (
            "it rose in the control too",
            vec![engine(Unknown), energy(NeuralEngine, 0.0, Some(3.0), 3.0), moved()],
            (Unknown, NoConfidence),
        ),
        (
            "a rise within noise",
            vec![engine(Unknown), energy(NeuralEngine, 0.0, None, 0.05), moved()],
            (Unknown, NoConfidence),
        ),
        (
            "a counter that is no number",
            vec![engine(Unknown), energy(NeuralEngine, f64::NAN, None, 3.0)],
            (Unknown, NoConfidence),
        ),
        // The GPU.
        ("level 0 and a CPU that did not do it", vec![engine(Gpu), cpu_of(0.1, 40.0)], (Gpu, Strong)),
        ("level 0 and a CPU that waited, or slept", vec![engine(Gpu), cpu(0.1)], (Gpu, Weak)),
        ("level 0 and a busy GPU", vec![engine(Gpu), busy_gpu()], (Gpu, Strong)),
        ("level 0 and short command buffers", vec![engine(Gpu), device(3, None), cpu(0.5)], (Gpu, Weak)),
        ("level 0, nothing else", vec![engine(Gpu), absent()], (Gpu, Weak)),
        ("level 0, GPU busy, Neural Engine too", vec![engine(Gpu), cpu_of(0.1, 40.0), rising()], (Gpu, Weak)),
        // What a GPU's driver may do: spin while it waits, for work that would take a CPU far longer.
        ("a GPU, short kernels", vec![engine(Gpu), device(3, None), cpu_of(1.0, 80.0)], (Gpu, Strong)),
        ("a GPU that is little faster", vec![engine(Gpu), device(80, None), cpu_of(1.0, 8.0)], (Gpu, Weak)),
        (
            "candidate, but on the GPU",
            vec![engine(Unknown), device(80, Some(82)), busy_gpu(), same_times()],
            (Gpu, Strong),
        ),
        ("one witness of the GPU", vec![engine(Unknown), device(80, Some(82)), same_times()], (Gpu, Weak)),
        (
            "one witness of the GPU, and the CPU's work",
            vec![engine(Unknown), device(80, None), cpu_of(1.0, 0.9)],
            (Unknown, NoConfidence),
        ),
        (
            "timestamps, someone's energy, and the CPU's work",
            vec![engine(Unknown), device(80, None), busy_gpu(), cpu_of(1.0, 0.9)],
            (Unknown, NoConfidence),
        ),
        (
            "timestamps against energy",
            vec![engine(Unknown), device(80, Some(82)), idle_gpu()],
            (Unknown, NoConfidence),
        ),
        (
            "the GPU, but the time changed",
            vec![engine(Unknown), device(80, Some(82)), moved()],
            (Unknown, NoConfidence),
        ),
    ];
    check(&cases);
}

#[test]
fn what_a_backend_says_of_itself_is_one_witness() {
    let cases: [Case; 7] = [
        ("statements of one backend", vec![engine(Gpu), device(80, None)], (Gpu, Weak)),
        (
            "it worked on the CPU",
            vec![engine(Gpu), device(80, None), cpu_of(1.0, 0.9)],
            (Unknown, NoConfidence),
        ),
        (
            "and slept afterwards",
            vec![engine(Gpu), device(80, None), cpu_of(0.1, 0.1)],
            (Unknown, NoConfidence),
        ),
        (
            "an hour in a run",
            vec![engine(Gpu), device(3_600_000_000, None), cpu(0.1)],
            (Unknown, NoConfidence),
        ),
        ("the same of the CPU", vec![engine(Cpu), device(106, None), cpu(1.0)], (Unknown, NoConfidence)),
        ("clocks that differ", vec![engine(Gpu), device(104, None), cpu_of(0.1, 40.0)], (Gpu, Strong)),
        ("level 0, only the Neural Engine seen", vec![engine(Gpu), rising()], (Unknown, NoConfidence)),
    ];
    check(&cases);
}

#[test]
fn verdicts_on_the_cpu() {
    let cases: [Case; 6] = [
        ("own kernels, busy", vec![engine(Cpu), cpu(1.9)], (Cpu, Strong)),
        ("own kernels, held to what they need", vec![engine(Cpu), cpu_of(1.0, 1.1)], (Cpu, Strong)),
        ("something that spins", vec![engine(Cpu), cpu_of(1.0, 80.0)], (Unknown, NoConfidence)),
        ("own kernels, waiting", vec![engine(Cpu), cpu(0.05)], (Unknown, NoConfidence)),
        (
            "own kernels, someone's Neural Engine",
            vec![engine(Cpu), cpu(1.0), energy(NeuralEngine, 0.0, None, 3.0)],
            (Cpu, Weak),
        ),
        (
            "the placement chose the CPU",
            vec![engine(Unknown), cpu(1.0), device(2, Some(90)), moved()],
            (Cpu, Weak),
        ),
    ];
    check(&cases);
    let silent_gpu = energy(Gpu, 0.02, Some(8.0), 0.0);
    assert_eq!(verdict(&[engine(Unknown), rising(), silent_gpu]), (NeuralEngine, Weak), "zero is no witness");
    assert_eq!(verdict(&[engine(Cpu), absent()]), (Cpu, Weak));
    assert_eq!(verdict(&[engine(Cpu), cpu(1.0), device(80, None)]), (Unknown, NoConfidence));
    assert_eq!(verdict(&[engine(Unknown), cpu(1.0)]), (Unknown, NoConfidence), "a thread may spin");
}

#[test]
fn an_engine_cannot_say_what_none_can_know() {
    for (claimed, says) in [
        (Unknown, Statement::Nothing),
        (NeuralEngine, Statement::Nothing),
        (Mixed, Statement::Nothing),
        (Gpu, Statement::For(Gpu)),
        (Cpu, Statement::For(Cpu)),
    ] {
        assert_eq!(engine(claimed).says(), says);
    }
}

#[test]
fn a_test_double_proves_nothing() {
    assert_eq!(verdict(&[Witness::TestDouble, engine(Gpu), device(80, None)]), (Unknown, NoConfidence));
    assert_eq!(verdict(&[rising(), moved(), Witness::TestDouble]), (Unknown, NoConfidence));
}

#[test]
fn times_that_overlap_are_the_same() {
    assert_eq!(times([90, 130, 200], [80, 100, 150]).says(), Statement::Nothing);
    assert_eq!(times([100, 110, 115], [95, 98, 99]).says(), Statement::Nothing, "apart, but by little");
    assert_eq!(times([200, 210, 220], [90, 100, 110]).says(), Statement::Moved, "slower counts too");
    assert_eq!(times([0, 0, 0], [90, 100, 110]).says(), Statement::Nothing);
}

fn device_kind() -> impl Strategy<Value = Device> {
    prop::sample::select(vec![Unknown, Cpu, Gpu, NeuralEngine, Mixed])
}

fn watts() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(f64::NAN), 0.0..0.2, 0.0..20.0]
}

fn witness() -> impl Strategy<Value = Witness> {
    let us = || {
        (0u64..300, 0u64..300, 0u64..300).prop_map(|(a, b, c)| {
            let mut us = [a, b, c];
            us.sort_unstable();
            us
        })
    };
    prop_oneof![
        device_kind().prop_map(engine),
        (0.0..2.0).prop_map(cpu),
        (0.0..2.0, 0.0..20.0).prop_map(|(seconds, needed)| cpu_of(seconds, needed)),
        (0u64..200, prop::option::of(0u64..200)).prop_map(|(us, control)| device(us, control)),
        (device_kind(), watts(), prop::option::of(watts()), watts())
            .prop_map(|(device, idle, control, load)| energy(device, idle, control, load)),
        (us(), us()).prop_map(|(with, without)| times(with, without)),
        Just(absent()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn the_neural_engine_takes_a_counter_that_rose(witnesses in prop::collection::vec(witness(), 0..8)) {
        let verdict = judge(&witnesses);
        let rose = witnesses.iter().any(|witness| matches!(
            *witness,
            Witness::Energy { device: NeuralEngine, idle_watts, control_watts, load_watts }
                if load_watts > idle_watts && control_watts.is_none_or(|control| load_watts > control)
        ));
        if matches!(verdict.observed, NeuralEngine | Mixed) {
            prop_assert!(rose, "{verdict:?} from {witnesses:?}");
        }
        if verdict.observed == NeuralEngine && verdict.confidence == Strong {
            let seconds = [Statement::Moved, Statement::Against(Gpu)];
            prop_assert!(witnesses.iter().any(|witness| seconds.contains(&witness.says())));
        }
    }

    #[test]
    fn a_counter_at_zero_and_an_absent_witness_change_nothing(
        witnesses in prop::collection::vec(witness(), 0..6),
        idle in watts(),
        control in prop::option::of(watts()),
    ) {
        for silent in [
            energy(NeuralEngine, idle, control, 0.0),
            energy(Gpu, idle, control, 0.0),
            device(0, Some(90)),
            cpu(0.0),
            absent(),
        ] {
            let mut more = witnesses.clone();
            more.push(silent);
            prop_assert_eq!(judge(&more), judge(&witnesses));
        }
    }
}

fn receipt(requested: Device, witnesses: Vec<Witness>) -> Receipt {
    Receipt {
        backend: BackendId::MPSGRAPH,
        device_name: "synthetic".into(),
        product: "512x512x512".into(),
        requested,
        runs: 1,
        verdict: judge(&witnesses),
        witnesses,
    }
}

#[test]
fn what_is_required_must_be_proved() {
    let proved = receipt(NeuralEngine, vec![engine(Unknown), rising(), moved()]);
    assert!(proved.require(NeuralEngine).is_ok() && proved.require(Unknown).is_ok());
    let error = proved.require(Gpu).unwrap_err();
    assert!(matches!(error, Error::Unproven { required: Gpu, observed: NeuralEngine, .. }), "{error}");
    for witnesses in [
        vec![engine(NeuralEngine)],
        vec![engine(Unknown), rising()],
        vec![engine(Unknown), rising(), moved(), device(80, None)],
        vec![engine(Cpu), cpu(1.0)],
    ] {
        let unproved = receipt(NeuralEngine, witnesses);
        let error = unproved.require(NeuralEngine).unwrap_err();
        assert!(matches!(error, Error::Unproven { required: NeuralEngine, .. }), "{error}");
        assert!(error.to_string().contains("not proved that neural-engine did the work"));
    }
}

#[test]
fn a_receipt_in_words_has_the_request_the_observation_and_the_figures() {
    let text = receipt(NeuralEngine, vec![engine(Unknown), energy(NeuralEngine, 0.5, None, 0.0), absent()])
        .to_string();
    for part in [
        "requested:  neural-engine",
        "observed:   unknown",
        "confidence: none",
        "0.000 W, idle 0.500 W: nothing",
        "energy is absent, not here: nothing",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_cpu_engine_is_seen_on_the_cpu() {
    let load = Load::default().window(Duration::from_millis(60)).rounds(1);
    let product = MatMul::builder(96, 80, 64).batch(2).transpose_b(true).bias(true).residual(true);
    let product = product.build().unwrap();
    // A machine that is busy with other things can leave this process waiting.
    let seen = (0..20).any(|_| {
        let receipt =
            verify(&Backends::new(), &BackendId::CPU, &product, &CompileOptions::default(), &load).unwrap();
        assert!(receipt.runs > 0 && receipt.requested == Unknown);
        assert!(receipt.witnesses.contains(&engine(Cpu)));
        assert!(matches!(receipt.verdict.observed, Cpu | Unknown), "{receipt}");
        if cfg!(unix) {
            let works = |w: &Witness| matches!(w, Witness::CpuTime { cpu, .. } if !cpu.is_zero());
            assert!(receipt.witnesses.iter().any(works), "{receipt}");
        }
        receipt.verdict.observed == Cpu
    });
    assert!(seen, "never seen at work");
}

#[test]
fn constant_weights_and_refusals() {
    let load = Load::default().window(Duration::from_millis(5));
    let options = CompileOptions::default();
    let constant = MatMul::builder(8, 8, 8).constant(true).build().unwrap();
    let receipt = verify(&Backends::new(), &BackendId::CPU, &constant, &options, &load).unwrap();
    assert_eq!(receipt.witnesses.iter().filter(|witness| witness.kind() == "engine").count(), 1);
    let f16_sums = crate::ElementTypes::uniform(crate::ElementType::F16);
    let half = MatMul::builder(8, 8, 8).types(f16_sums).build().unwrap();
    let error = verify(&Backends::new(), &BackendId::CPU, &half, &options, &load).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let asked = options.device(NeuralEngine);
    match verify(&Backends::new(), &BackendId::CPU, &constant, &asked, &load) {
        Ok(receipt) => assert_ne!(receipt.verdict.observed, NeuralEngine),
        Err(error) => assert!(matches!(error, Error::Refused { .. }), "{error}"),
    }
}

#[test]
fn witnesses_at_the_ends_of_what_they_may_say() {
    let gpu = |idle, control, load| energy(Gpu, idle, control, load).says();
    let says = [
        ("as much CPU time as of one that waits", cpu(0.2).says(), Statement::Nothing),
        ("a sixty-fourth of what is needed", cpu_of(1.0, 64.0).says(), Statement::Nothing),
        ("less than that", cpu_of(1.0, 64.1).says(), Statement::Against(Cpu)),
        ("a quarter of it", cpu_of(1.0, 4.0).says(), Statement::For(Cpu)),
        ("a little less", cpu_of(1.0, 4.1).says(), Statement::Nothing),
        ("all of it, and asleep", cpu_of(0.1, 0.1).says(), Statement::For(Cpu)),
        ("work that needs nothing", cpu_of(0.1, 0.0).says(), Statement::Against(Cpu)),
        ("as long as the run, and a twentieth", device(105, None).says(), Statement::For(Gpu)),
        ("longer than the run", device(106, None).says(), Statement::Impossible),
        ("a quarter of the control, half of the time", device(50, Some(200)).says(), Statement::For(Gpu)),
        ("a rise of less than 0.1 W", gpu(0.03, None, 0.08), Statement::Nothing),
        ("less than twice as much", gpu(3.0, None, 5.5), Statement::Nothing),
        ("a rise", gpu(1.0, None, 3.0), Statement::For(Gpu)),
        ("less than nothing", gpu(-1.0, None, 3.0), Statement::Nothing),
        ("no number", gpu(1.0, None, f64::INFINITY), Statement::Nothing),
        ("a control and a load that do not rise", gpu(1.0, Some(1.05), 1.0), Statement::Nothing),
        ("a tenth of the control's rise", gpu(1.0, Some(11.0), 2.0), Statement::Against(Gpu)),
        ("an eighth of it, more than half in watts", gpu(1.0, Some(5.0), 1.5), Statement::Against(Gpu)),
        ("a quarter of it", gpu(1.0, Some(5.0), 2.0), Statement::Nothing),
        ("more than half of it, from a high idle", gpu(4.0, Some(9.0), 6.6), Statement::For(Gpu)),
        ("quartiles that meet", times([80, 100, 120], [120, 200, 210]).says(), Statement::Nothing),
    ];
    for (name, says, expected) in says {
        assert_eq!(says, expected, "{name}");
    }
}

#[test]
fn a_reason_says_which_witnesses_decided() {
    let busy = || device(80, Some(90));
    let idle = || energy(Gpu, 0.02, Some(8.0), 0.1);
    let cases = [
        (vec![engine(Gpu), device(5, Some(90))], Unknown, "says gpu, but the GPU did little"),
        (vec![busy(), idle()], Unknown, "contradict each other"),
        (vec![idle()], Unknown, "the GPU did little, and nothing shows"),
        (vec![idle(), cpu(1.0)], Cpu, "kept the CPU busy"),
        (vec![busy(), energy(Gpu, 0.02, Some(8.0), 7.5), moved()], Gpu, "changed the time"),
        (vec![moved()], Unknown, "changed the time, but nothing shows"),
        (vec![same_times()], Unknown, "no witness shows"),
    ];
    for (witnesses, observed, reason) in cases {
        let verdict = judge(&witnesses);
        assert_eq!(verdict.observed, observed, "{verdict:?}");
        assert!(verdict.reasons[0].contains(reason), "{reason}: {verdict:?}");
    }
}
