//! Which device ran? Independent witnesses, and a verdict that never takes a request for an answer
//! (feature `evidence`).
//!
//! ```
//! use std::time::Duration;
//! use ane_matmul::{BackendId, Backends, CompileOptions, Device, MatMul};
//! use ane_matmul::evidence::{Load, verify};
//!
//! # fn main() -> Result<(), ane_matmul::Error> {
//! let product = MatMul::new(64, 64, 64)?;
//! let load = Load::default().window(Duration::from_millis(50));
//! let receipt = verify(&Backends::new(), &BackendId::CPU, &product, &CompileOptions::default(), &load)?;
//! println!("{receipt}");
//! assert!(receipt.require(Device::NeuralEngine).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! On a Mac, with the Neural Engine as a candidate (only products that are f16 throughout are):
//!
//! ```no_run
//! use ane_matmul::{BackendId, Backends, CompileOptions, Device, ElementType, ElementTypes, MatMul};
//! use ane_matmul::evidence::{Load, verify};
//!
//! # fn main() -> Result<(), ane_matmul::Error> {
//! let half = ElementTypes::uniform(ElementType::F16);
//! let product = MatMul::builder(512, 512, 512).types(half).build()?;
//! let options = CompileOptions::default().device(Device::NeuralEngine);
//! let receipt = verify(&Backends::new(), &BackendId::MPSGRAPH, &product, &options, &Load::default())?;
//! receipt.require(Device::NeuralEngine)
//! # }
//! ```
//!
//! [`judge`] is the whole logic, a pure function; `docs/evidence.md` has the source of each rule. No
//! Mac was at hand: its thresholds are choices, and its tests use synthetic figures.

mod load;
mod meter;
mod operands;
mod verdict;

use std::fmt;
use std::time::Duration;

use crate::backend::BackendId;
use crate::description::options::Device;
use crate::error::{Error, Result};

pub use load::{Load, verify};
pub use verdict::{Verdict, judge};

/// Something that was seen while a product ran, with its raw figures.
///
/// ```
/// use ane_matmul::Device;
/// use ane_matmul::evidence::{Statement, Witness};
///
/// // Receipt::witnesses has what verify() saw.
/// let witness = Witness::Engine { observed: Device::Cpu };
/// assert_eq!((witness.kind(), witness.says()), ("engine", Statement::For(Device::Cpu)));
/// assert_eq!(witness.to_string(), "the backend says cpu");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Witness {
    /// The results come from a stand-in for hardware.
    TestDouble,
    /// What the backend says of the product: known by construction, such as our own CPU kernels, or
    /// MPSGraph at optimisation level 0 (`MPSGraph.h`: the GPU alone).
    Engine {
        /// The device, unknown where the backend cannot tell.
        observed: Device,
    },
    /// CPU time of all threads of this process during the load.
    CpuTime {
        /// Summed over the threads.
        cpu: Duration,
        /// Elapsed.
        wall: Duration,
        /// What this crate's CPU kernels, or Accelerate where that needs less, take for as much arithmetic, in
        /// f32 and on one thread; `None` where that was not measured.
        needed: Option<Duration>,
    },
    /// Timestamps of the device's command buffers, means of a run: Metal's `GPUStartTime` to
    /// `GPUEndTime`, which may include waiting. The backend gives them: with [`Witness::Engine`] they are
    /// one witness, not two.
    DeviceTime {
        /// From start to end by the device's clock; zero where the device gave none.
        device: Duration,
        /// The same of the product without the Neural Engine as a candidate.
        control: Option<Duration>,
        /// Elapsed, with everything around it.
        wall: Duration,
    },
    /// The power that an energy counter of the chip showed; it counts every process.
    Energy {
        /// Whose counter.
        device: Device,
        /// Before the load, in watts.
        idle_watts: f64,
        /// While the same product ran without the Neural Engine as a candidate, in watts.
        control_watts: Option<f64>,
        /// During the load, in watts.
        load_watts: f64,
    },
    /// The time of a run with the Neural Engine as a candidate and without (MPSGraph's optimisation
    /// levels 1 and 0), samples interleaved.
    CandidateTime {
        /// With.
        with: Quartiles,
        /// Without.
        without: Quartiles,
    },
    /// A witness that could not be heard.
    Absent {
        /// Which.
        kind: &'static str,
        /// Why.
        reason: String,
    },
}

/// How the samples of a time are spread.
///
/// ```
/// use std::time::Duration;
/// use ane_matmul::evidence::{Quartiles, Statement, Witness};
///
/// let around = |us: u64| {
///     let [lower, median, upper] = [us - 1, us, us + 1].map(Duration::from_micros);
///     Quartiles { lower, median, upper }
/// };
/// let witness = Witness::CandidateTime { with: around(10), without: around(20) };
/// assert_eq!(witness.says(), Statement::Moved);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "three numbers")]
pub struct Quartiles {
    /// A quarter of the samples took less.
    pub lower: Duration,
    /// Half of the samples took less.
    pub median: Duration,
    /// Three quarters of the samples took less.
    pub upper: Duration,
}

/// What one witness says.
///
/// ```
/// use std::time::Duration;
/// use ane_matmul::Device;
/// use ane_matmul::evidence::{Statement, Witness};
///
/// let second = Duration::from_secs(1);
/// // It needs a second of the CPU's time, which gave a millisecond.
/// let witness = Witness::CpuTime { cpu: second / 1000, wall: second, needed: Some(second) };
/// assert_eq!(witness.says(), Statement::Against(Device::Cpu));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Statement {
    /// The device worked.
    For(Device),
    /// The device did little of the work, or none.
    Against(Device),
    /// Allowing the Neural Engine changed where the work went; not where to.
    Moved,
    /// It cannot be: what else this witness says is not to be believed either.
    Impossible,
    /// Nothing either way: a counter at zero is of this kind.
    Nothing,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(device) => write!(f, "for {device}"),
            Self::Against(device) => write!(f, "against {device}"),
            Self::Moved => f.write_str("the work moved"),
            Self::Impossible => f.write_str("impossible"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// How well a verdict is supported.
///
/// ```
/// use ane_matmul::Device;
/// use ane_matmul::evidence::{Confidence, Witness, judge};
///
/// let verdict = judge(&[Witness::Engine { observed: Device::Cpu }]);
/// assert_eq!(verdict.confidence, Confidence::Weak); // one witness is no proof
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Confidence {
    /// Not at all: the device is unknown.
    None,
    /// By one witness, or by several with one against them.
    Weak,
    /// By two independent witnesses, with none against them: a proof.
    Strong,
}

impl Confidence {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Weak => "weak",
            Self::Strong => "strong",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What was asked for, what was observed, and why.
///
/// ```no_run
/// use ane_matmul::evidence::{Load, verify};
/// use ane_matmul::{BackendId, Backends, CompileOptions, Device, MatMul};
///
/// let (backends, options) = (Backends::new(), CompileOptions::default());
/// let product = MatMul::new(1024, 1024, 1024)?;
/// let receipt = verify(&backends, &BackendId::METAL, &product, &options, &Load::default())?;
/// println!("{}, confidence: {}", receipt.verdict.observed, receipt.verdict.confidence);
/// receipt.require(Device::Gpu)?; // an error where that is not proved
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Receipt {
    /// The backend that ran.
    pub backend: BackendId,
    /// What its device calls itself.
    pub device_name: String,
    /// The product, in words.
    pub product: String,
    /// The device that was asked for.
    pub requested: Device,
    /// Runs of the load.
    pub runs: u64,
    /// The device observed, how sure that is, and why.
    pub verdict: Verdict,
    /// Every witness, heard or absent.
    pub witnesses: Vec<Witness>,
}

impl Receipt {
    /// An error unless it is proved that `device` did the work: observed, with
    /// [`Confidence::Strong`]. A mixture is no proof. [`Device::Unknown`] requires nothing.
    ///
    /// # Errors
    /// [`Error::Unproven`].
    pub fn require(&self, device: Device) -> Result<()> {
        let Verdict { observed, confidence, reasons } = &self.verdict;
        if device == Device::Unknown || (*observed == device && *confidence == Confidence::Strong) {
            return Ok(());
        }
        Err(Error::Unproven { required: device, observed: *observed, reason: reasons.join("; ") })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, device_name, product, requested, runs, verdict, witnesses } = self;
        writeln!(f, "product:    {product}, {runs} runs on {backend} ({device_name})")?;
        writeln!(f, "requested:  {requested}")?;
        writeln!(f, "observed:   {}", verdict.observed)?;
        writeln!(f, "confidence: {}", verdict.confidence)?;
        for reason in &verdict.reasons {
            writeln!(f, "because:    {reason}")?;
        }
        for witness in witnesses {
            writeln!(f, "witness:    {witness}: {}", witness.says())?;
        }
        Ok(())
    }
}

impl Witness {
    /// The name used in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TestDouble => "test-double",
            Self::Engine { .. } => "engine",
            Self::CpuTime { .. } => "cpu-time",
            Self::DeviceTime { .. } => "device-time",
            Self::Energy { .. } => "energy",
            Self::CandidateTime { .. } => "candidate-time",
            Self::Absent { kind, .. } => kind,
        }
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TestDouble => f.write_str("the backend is a test double of hardware"),
            Self::Engine { observed } => write!(f, "the backend says {observed}"),
            Self::CpuTime { cpu, wall, needed } => {
                write!(f, "CPU time {cpu:.3?} in {wall:.3?}")?;
                match needed {
                    Some(needed) => write!(f, ", where our kernels need {needed:.3?} for the arithmetic"),
                    None => Ok(()),
                }
            }
            Self::DeviceTime { device, control, wall } => {
                write!(f, "command buffers {device:.3?} of a run's {wall:.3?}")?;
                match control {
                    Some(control) => write!(f, ", without the Neural Engine as a candidate {control:.3?}"),
                    None => Ok(()),
                }
            }
            Self::Energy { device, idle_watts, control_watts, load_watts } => {
                write!(f, "energy counter of {device} {load_watts:.3} W, idle {idle_watts:.3} W")?;
                match control_watts {
                    Some(watts) => write!(f, ", without the Neural Engine as a candidate {watts:.3} W"),
                    None => Ok(()),
                }
            }
            Self::CandidateTime { with, without } => write!(
                f,
                "a run takes {:.3?} ({:.3?} to {:.3?}) with the Neural Engine as a candidate, {:.3?} ({:.3?} to {:.3?}) without",
                with.median, with.lower, with.upper, without.median, without.lower, without.upper
            ),
            Self::Absent { kind, reason } => write!(f, "{kind} is absent, {reason}"),
        }
    }
}

#[cfg(test)]
mod tests;
