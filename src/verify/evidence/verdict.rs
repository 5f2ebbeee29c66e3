//! From witnesses to a verdict: a pure function.

use std::time::Duration;

use super::{Confidence, Quartiles, Statement, Witness};
use crate::description::options::Device;

/// A process whose threads run this many cores' worth is busy, ...
const CPU_BUSY: f64 = 0.8;
/// ... and one below this waits for something else.
const CPU_WAITING: f64 = 0.2;
/// From this part of the CPU time that the arithmetic needs on, the CPU may have done it, ...
const CPU_MAY_DO: f64 = 0.25;
/// ... and below this part no CPU has: the fastest arithmetic of one beside f32 in vector registers is Intel's
/// AMX in bf16, with 512 multiply-adds in a cycle (`TDPBF16PS`) where two AVX-512 units do 32, which is 16
/// times as much; and our kernels reach a quarter of what the units could do at least.
const CPU_CANNOT_DO: f64 = 1.0 / 64.0;
/// Timestamps may exceed the time that passed by as much as clocks differ.
const CLOCK_TOLERANCE: f64 = 1.05;
/// Command buffers that take up this part of the time had the device at work. A smaller part may be
/// all of the work, and the rest the way there.
const DEVICE_BUSY: f64 = 0.5;
/// A counter rises when it shows this many watts more, ...
const RISE_WATTS: f64 = 0.1;
/// ... and this many times as much as before.
const RISE_FACTOR: f64 = 2.0;
/// What is at least this part of the control's is the same work, ...
const SAME_WORK: f64 = 0.5;
/// ... and what is below this part is not.
const LITTLE_WORK: f64 = 0.25;
/// Times this many times apart, with quartiles that do not meet, are different.
const DIFFERENT_TIMES: f64 = 1.25;

/// What the witnesses prove.
///
/// ```
/// use std::time::Duration;
/// use ane_matmul::Device;
/// use ane_matmul::evidence::{Confidence, Witness, judge};
///
/// let (engine, second) = (Witness::Engine { observed: Device::Cpu }, Duration::from_secs(1));
/// let verdict = judge(&[engine, Witness::CpuTime { cpu: second, wall: second, needed: None }]);
/// assert_eq!((verdict.observed, verdict.confidence), (Device::Cpu, Confidence::Strong));
/// println!("because {}", verdict.reasons.join("; "));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// The device that did the work; unknown where that cannot be told.
    pub observed: Device,
    /// How sure that is.
    pub confidence: Confidence,
    /// Why, in sentences; never empty.
    pub reasons: Vec<String>,
}

impl Verdict {
    fn new(observed: Device, confidence: Confidence, reason: &str) -> Self {
        Self { observed, confidence, reasons: vec![reason.to_owned()] }
    }

    fn unknown(reason: &str) -> Self {
        Self::new(Device::Unknown, Confidence::None, reason)
    }
}

impl Witness {
    /// What this witness says, taken alone.
    #[must_use]
    pub fn says(&self) -> Statement {
        match self {
            // That a backend claims the Neural Engine, or a mixture, proves nothing: none can know.
            Self::Engine { observed: device @ (Device::Cpu | Device::Gpu) } => Statement::For(*device),
            Self::CpuTime { cpu, wall, needed } => by_cpu_time(*cpu, *wall, *needed),
            Self::DeviceTime { device, control, wall } => by_device_time(*device, *control, *wall),
            Self::Energy { device, idle_watts, control_watts, load_watts } => {
                by_energy(*device, *idle_watts, *control_watts, *load_watts)
            }
            Self::CandidateTime { with, without } if differ(with, without) => Statement::Moved,
            _ => Statement::Nothing,
        }
    }
}

/// CPU time of exactly zero says nothing: the clock may not be there. A thread that waits may spin, and one
/// that worked may sleep: what the work needs tells them apart.
fn by_cpu_time(cpu: Duration, wall: Duration, needed: Option<Duration>) -> Statement {
    let (part, does, cannot) = match needed.filter(|needed| !needed.is_zero()) {
        Some(needed) => (cpu.as_secs_f64() / needed.as_secs_f64(), CPU_MAY_DO, CPU_CANNOT_DO),
        None => (cores(cpu, wall), CPU_BUSY, CPU_WAITING),
    };
    match part {
        part if !part.is_finite() || part <= 0.0 => Statement::Nothing,
        part if part >= does => Statement::For(Device::Cpu),
        part if part < cannot => Statement::Against(Device::Cpu),
        _ => Statement::Nothing,
    }
}

fn cores(cpu: Duration, wall: Duration) -> f64 {
    cpu.as_secs_f64() / wall.as_secs_f64()
}

/// Whether a device says that it took longer than the time that passed.
pub(super) fn exceeds(device: Duration, wall: Duration) -> bool {
    device.as_secs_f64() > CLOCK_TOLERANCE * wall.as_secs_f64()
}

fn by_device_time(device: Duration, control: Option<Duration>, wall: Duration) -> Statement {
    let of_control = control.map(|control| device.as_secs_f64() / control.as_secs_f64());
    // Zero: no timestamps. That the device did little shows beside the control alone.
    if device.is_zero() || wall.is_zero() {
        Statement::Nothing
    } else if exceeds(device, wall) {
        Statement::Impossible
    } else if of_control.is_some_and(|part| part < LITTLE_WORK) {
        Statement::Against(Device::Gpu)
    } else if device.as_secs_f64() >= DEVICE_BUSY * wall.as_secs_f64() {
        Statement::For(Device::Gpu)
    } else {
        Statement::Nothing
    }
}

fn by_energy(device: Device, idle: f64, control: Option<f64>, load: f64) -> Statement {
    let rises = |from: f64, to: f64| to - from >= RISE_WATTS && to >= RISE_FACTOR * from;
    let sane = [Some(idle), control, Some(load)]
        .into_iter()
        .flatten()
        .all(|watts| watts.is_finite() && watts >= 0.0);
    // Zero: no witness. It is also what a counter shows that cannot be read.
    if !sane || load == 0.0 {
        return Statement::Nothing;
    }
    match (device, control) {
        // The control leaves the Neural Engine out: whatever it shows then is someone else's.
        (Device::NeuralEngine, control) if rises(idle.max(control.unwrap_or(0.0)), load) => {
            Statement::For(device)
        }
        // The control keeps the GPU at work.
        (Device::Gpu, Some(control)) if rises(idle, control) => {
            let share = (load - idle) / (control - idle);
            if share >= SAME_WORK {
                Statement::For(device)
            } else if share < LITTLE_WORK {
                Statement::Against(device)
            } else {
                Statement::Nothing
            }
        }
        (Device::Gpu, _) if rises(idle, load) => Statement::For(device),
        // The CPU draws power under any load: some thread submits it.
        _ => Statement::Nothing,
    }
}

fn differ(with: &Quartiles, without: &Quartiles) -> bool {
    let (faster, slower) = if with.median <= without.median { (with, without) } else { (without, with) };
    let apart = slower.median.as_secs_f64() >= DIFFERENT_TIMES * faster.median.as_secs_f64();
    apart && faster.upper < slower.lower && !faster.median.is_zero()
}

/// All statements, sorted by what they are about.
#[derive(Debug, Default)]
struct Statements {
    engine: Device,
    /// CPU time belongs to this process, energy counters to all of them; device time is the backend's.
    cpu_time: Option<Statement>,
    cpu_busy: bool,
    /// Whether CPU time was held to what the arithmetic needs: otherwise it may be a thread that spins, or sleeps.
    cpu_measured: bool,
    device_time: Option<Statement>,
    gpu_energy: Option<Statement>,
    neural_engine_rises: bool,
    moved: bool,
}

impl Statements {
    fn of(witnesses: &[Witness]) -> Self {
        let mut all = Self::default();
        for witness in witnesses {
            let says = witness.says();
            if says == Statement::Nothing {
                continue;
            }
            match (witness, says) {
                (Witness::Engine { .. }, Statement::For(device)) => all.engine = device,
                (Witness::CpuTime { cpu, wall, needed }, _) => {
                    all.cpu_time = Some(says);
                    all.cpu_measured = needed.is_some_and(|needed| !needed.is_zero());
                    all.cpu_busy = says == Statement::For(Device::Cpu) && cores(*cpu, *wall) >= CPU_BUSY;
                }
                (Witness::DeviceTime { .. }, _) => all.device_time = Some(says),
                (Witness::Energy { device: Device::Gpu, .. }, _) => all.gpu_energy = Some(says),
                (Witness::Energy { .. }, Statement::For(Device::NeuralEngine)) => {
                    all.neural_engine_rises = true;
                }
                (_, Statement::Moved) => all.moved = true,
                _ => {}
            }
        }
        all
    }

    fn gpu(&self, statement: Statement) -> usize {
        [self.device_time, self.gpu_energy].into_iter().filter(|says| *says == Some(statement)).count()
    }
}

/// Who did the work, from what was seen. A pure function of its argument.
///
/// What was requested is no argument. All that a backend says, its timestamps included, is one witness, and
/// what is impossible in it spoils the rest. CPU time outranks counters of the whole chip. Where witnesses
/// contradict each other the answer is unknown.
#[must_use]
pub fn judge(witnesses: &[Witness]) -> Verdict {
    if witnesses.contains(&Witness::TestDouble) {
        return Verdict::unknown("a test double of hardware proves nothing");
    }
    if let Some(impossible) = witnesses.iter().find(|witness| witness.says() == Statement::Impossible) {
        return Verdict::unknown(&format!("what the backend says is not believed: {impossible}"));
    }
    let all = Statements::of(witnesses);
    match all.engine {
        Device::Cpu => judge_cpu_engine(&all),
        Device::Gpu => judge_gpu_engine(&all),
        _ if all.neural_engine_rises => judge_neural_engine(&all),
        _ => judge_open_engine(&all),
    }
}

fn judge_cpu_engine(all: &Statements) -> Verdict {
    let others = all.neural_engine_rises || all.gpu_energy == Some(Statement::For(Device::Gpu));
    if all.device_time == Some(Statement::For(Device::Gpu)) {
        return Verdict::unknown(
            "the backend says cpu, but gives timestamps of a device that cover the time",
        );
    }
    match all.cpu_time {
        Some(Statement::Against(_)) => {
            Verdict::unknown("the backend says cpu, but this process spent too little CPU time for that")
        }
        Some(Statement::For(_)) if others => Verdict::new(
            Device::Cpu,
            Confidence::Weak,
            "the backend runs on the CPU, which worked, but another device's energy counter rose, perhaps for another process",
        ),
        Some(Statement::For(_)) => Verdict::new(
            Device::Cpu,
            Confidence::Strong,
            "the backend runs on the CPU, and this process spent the CPU time for it",
        ),
        _ => Verdict::new(
            Device::Cpu,
            Confidence::Weak,
            "the backend runs on the CPU; whether that did the work is not clear",
        ),
    }
}

fn judge_gpu_engine(all: &Statements) -> Verdict {
    let excluded = all.cpu_measured && all.cpu_time == Some(Statement::Against(Device::Cpu));
    let shown = all.gpu_energy == Some(Statement::For(Device::Gpu));
    if all.gpu(Statement::Against(Device::Gpu)) > 0 {
        return Verdict::unknown("the backend says gpu, but the GPU did little during the load");
    }
    if all.cpu_time == Some(Statement::For(Device::Cpu)) {
        return Verdict::unknown(
            "the backend says gpu, but this process spent the CPU time that the CPU would need; verify a larger product",
        );
    }
    match (excluded || shown, all.neural_engine_rises) {
        (true, true) => Verdict::new(
            Device::Gpu,
            Confidence::Weak,
            "the backend says gpu, and the CPU or energy agrees, but the energy counter of the Neural Engine rose, perhaps for another process",
        ),
        (true, false) if shown => Verdict::new(
            Device::Gpu,
            Confidence::Strong,
            "the backend says gpu, and the energy counter shows the GPU busy",
        ),
        (true, false) => Verdict::new(
            Device::Gpu,
            Confidence::Strong,
            "the backend says gpu, and this process spent too little CPU time for the CPU to have done it",
        ),
        (false, true) => Verdict::unknown(
            "the backend says gpu, but the energy counter of the Neural Engine rose and nothing else shows the GPU",
        ),
        (false, false) => Verdict::new(
            Device::Gpu,
            Confidence::Weak,
            "the backend says gpu, and nothing that it does not control shows it; verify a larger product",
        ),
    }
}

/// An engine that cannot tell, and an energy counter of the Neural Engine that rose.
fn judge_neural_engine(all: &Statements) -> Verdict {
    let second = all.moved || all.gpu(Statement::Against(Device::Gpu)) > 0;
    if all.gpu(Statement::For(Device::Gpu)) > 0 {
        Verdict::new(
            Device::Mixed,
            Confidence::Weak,
            "the energy counter of the Neural Engine rose, and the GPU was busy",
        )
    } else if all.cpu_busy {
        // Less may be what it takes to submit a small product.
        Verdict::new(
            Device::Mixed,
            Confidence::Weak,
            "the energy counter of the Neural Engine rose, and the CPU was busy",
        )
    } else if second {
        Verdict::new(
            Device::NeuralEngine,
            Confidence::Strong,
            "the energy counter of the Neural Engine rose, and a second witness shows that the work left the GPU",
        )
    } else {
        Verdict::new(
            Device::NeuralEngine,
            Confidence::Weak,
            "the energy counter of the Neural Engine rose, which another process may have caused; no second witness",
        )
    }
}

/// An engine that cannot tell, and nothing of the Neural Engine.
fn judge_open_engine(all: &Statements) -> Verdict {
    let (supporting, contradicting) =
        (all.gpu(Statement::For(Device::Gpu)), all.gpu(Statement::Against(Device::Gpu)));
    let worked = all.cpu_measured && all.cpu_time == Some(Statement::For(Device::Cpu));
    match (supporting, contradicting) {
        (1.., 0) if worked => Verdict::unknown(
            "the GPU's witnesses show it busy, but this process spent the CPU time that the CPU would need; verify a larger product",
        ),
        (1.., 1..) => {
            Verdict::unknown("the timestamps of the GPU and its energy counter contradict each other")
        }
        (2, 0) if all.moved => Verdict::new(
            Device::Gpu,
            Confidence::Weak,
            "the GPU's timestamps and energy counter show it busy, but allowing the Neural Engine changed the time",
        ),
        (2, 0) => Verdict::new(
            Device::Gpu,
            Confidence::Strong,
            "the GPU's timestamps and energy counter show it busy",
        ),
        (1, 0) if all.moved => {
            Verdict::unknown("one witness shows the GPU, but allowing the Neural Engine changed the time")
        }
        (1, 0) => {
            Verdict::new(Device::Gpu, Confidence::Weak, "one witness shows the GPU busy; it may have waited")
        }
        (0, 1..) if all.cpu_time == Some(Statement::For(Device::Cpu)) => Verdict::new(
            Device::Cpu,
            Confidence::Weak,
            "the GPU did little, and this process kept the CPU busy",
        ),
        (0, 1..) => Verdict::unknown("the GPU did little, and nothing shows which device did the work"),
        _ if all.moved => Verdict::unknown(
            "allowing the Neural Engine changed the time, but nothing shows which device did the work",
        ),
        _ => Verdict::unknown("no witness shows which device did the work"),
    }
}
