//! The profile of a machine: what was measured on it, and what went wrong on it.

#[cfg(feature = "profile")]
mod file;
mod quarantine;
#[cfg(feature = "profile")]
mod store;

use crate::backend::BackendId;
use crate::description::matmul::{ElementTypes, MatMul};
use crate::description::options::Device;
use crate::dispatch::machine::MachineKey;
use crate::error::{Error, Result};

pub use quarantine::{Quarantine, ShapeClass};

/// The most series that a profile holds.
pub(crate) const MAXIMUM_SERIES: usize = 1024;

/// The most samples that a series holds.
pub(crate) const MAXIMUM_SAMPLES: usize = 1024;

/// The most entries of quarantine that a profile keeps; the oldest go first.
pub(crate) const MAXIMUM_QUARANTINE: usize = 1024;

/// What was measured on a machine, and the backends that are quarantined on it.
///
/// The backend [`BackendId::AUTO`] chooses by it, and [`crate::calibrate`] measures it. With the feature
/// `profile` it is kept in a file (`Profile::load`, `Profile::save`, `Profile::update`).
///
/// ```
/// use ane_matmul::{Backends, BackendId, CompileOptions, MachineKey, MatMul, Profile, Quarantine};
///
/// let product = MatMul::new(2, 4, 3)?;
/// let mut profile = Profile::new(MachineKey::here()); // calibrate() makes one with measurements
/// profile.add_quarantine(Quarantine::here(BackendId::CPU, Some(&product), "an example"));
/// let mut backends = Backends::new();
/// backends.set_profile(Some(profile));
/// let explanation = backends.explain(&product, &CompileOptions::default());
/// assert!(explanation.choice.is_none_or(|(backend, _)| backend != BackendId::CPU));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    machine: MachineKey,
    series: Vec<Series>,
    quarantine: Vec<Quarantine>,
}

/// The samples of one backend with one set of types, on one device, with one number of threads.
///
/// ```
/// use ane_matmul::{BackendId, Backends, Device, ElementTypes, MachineKey, MatMul, Profile, Sample, Series};
///
/// let cpu = Backends::new().info(&BackendId::CPU)?.description;
/// let mut series = Series::new(BackendId::CPU, cpu, ElementTypes::F32, Device::Unknown, 1);
/// series.samples.push(Sample::new(&MatMul::new(64, 64, 64)?, 2e6, 5e3)); // 2 ms to compile, 5 us to run
/// let mut profile = Profile::new(MachineKey::here());
/// profile.add_series(series)?;
/// assert_eq!(profile.series()[0].samples.len(), 1);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Series {
    /// The backend.
    pub backend: BackendId,
    /// What the backend said of itself ([`crate::BackendInfo::description`]): another version is
    /// another series.
    pub description: String,
    /// The element types.
    pub types: ElementTypes,
    /// The device asked for.
    pub device: Device,
    /// The CPU threads used.
    pub threads: usize,
    /// What was measured, each product once.
    pub samples: Vec<Sample>,
}

impl Series {
    /// A series without samples.
    #[must_use]
    pub fn new(
        backend: BackendId,
        description: impl Into<String>,
        types: ElementTypes,
        device: Device,
        threads: usize,
    ) -> Self {
        Self { backend, description: description.into(), types, device, threads, samples: Vec::new() }
    }

    /// Whether `other` measures the same thing.
    fn replaces(&self, other: &Self) -> bool {
        (&self.backend, &self.types, self.device, self.threads)
            == (&other.backend, &other.types, other.device, other.threads)
    }
}

/// One product as measured.
///
/// ```
/// use ane_matmul::{MatMul, Sample};
///
/// let sample = Sample::new(&MatMul::new(8, 64, 256)?, 2e6, 5e3); // 2 ms to compile, 5 us to run
/// assert_eq!((sample.m, sample.n, sample.k, sample.run_ns), (8, 64, 256, 5e3));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Products in the batch.
    pub batch: usize,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
    /// Whether B was compiled in.
    pub constant_b: bool,
    /// How long compiling and opening an executor took.
    pub compile_ns: f64,
    /// How much longer the first run of an executor took than the later ones: some engines compile then.
    pub first_run_ns: f64,
    /// The time of a run.
    pub run_ns: f64,
}

impl Sample {
    /// What was measured of `product`, whose first run is like the others; times in nanoseconds.
    #[must_use]
    pub const fn new(product: &MatMul, compile_ns: f64, run_ns: f64) -> Self {
        Self {
            batch: product.batch(),
            m: product.m(),
            n: product.n(),
            k: product.k(),
            constant_b: product.constant_b(),
            compile_ns,
            first_run_ns: 0.0,
            run_ns,
        }
    }
}

impl Profile {
    /// A profile without measurements.
    #[must_use]
    pub const fn new(machine: MachineKey) -> Self {
        Self { machine, series: Vec::new(), quarantine: Vec::new() }
    }

    /// What it was measured on.
    #[must_use]
    pub const fn machine(&self) -> &MachineKey {
        &self.machine
    }

    /// What was measured.
    #[must_use]
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// Adds a series, in place of one of the same backend, types, device and threads.
    ///
    /// # Errors
    /// [`Error::Profile`] for no samples or more than 1024 of them, more than 1024 series, a dimension
    /// or a number of threads that is 0, or a time that is no positive number.
    pub fn add_series(&mut self, series: Series) -> Result<()> {
        let problem = |problem: String| Err(Error::Profile { problem });
        if series.samples.is_empty() || series.samples.len() > MAXIMUM_SAMPLES {
            return problem(format!(
                "a series has 1 to {MAXIMUM_SAMPLES} samples, not {}",
                series.samples.len()
            ));
        }
        if series.threads == 0 {
            return problem("a series was measured with 1 thread at least".into());
        }
        let time = |ns: f64| ns.is_finite() && (0.0..1e18).contains(&ns);
        for sample in &series.samples {
            if [sample.batch, sample.m, sample.n, sample.k].contains(&0) {
                return problem("a dimension of a sample is 0".into());
            }
            let times_ns = [sample.compile_ns, sample.first_run_ns, sample.run_ns];
            if !times_ns.iter().all(|&ns| time(ns)) || sample.run_ns == 0.0 {
                return problem(format!(
                    "a time must be a positive number of nanoseconds: {} to compile, {} more for the first run, {} to run",
                    sample.compile_ns, sample.first_run_ns, sample.run_ns
                ));
            }
        }
        self.series.retain(|old| !series.replaces(old));
        if self.series.len() >= MAXIMUM_SERIES {
            return problem(format!("a profile has at most {MAXIMUM_SERIES} series"));
        }
        self.series.push(series);
        Ok(())
    }

    /// Forgets what was measured, and takes `machine` as what is measured next; quarantine stays.
    pub fn clear_series(&mut self, machine: MachineKey) {
        self.machine = machine;
        self.series.clear();
    }

    /// The entries of quarantine, the oldest first.
    #[must_use]
    pub fn quarantine(&self) -> &[Quarantine] {
        &self.quarantine
    }

    /// Keeps a backend from products that it got wrong. An entry for the same backend, products, chip
    /// and OS build is replaced; beyond 1024 entries the oldest goes.
    pub fn add_quarantine(&mut self, entry: Quarantine) {
        self.quarantine.retain(|old| !entry.replaces(old));
        let excess = (self.quarantine.len() + 1).saturating_sub(MAXIMUM_QUARANTINE);
        self.quarantine.drain(..excess);
        self.quarantine.push(entry);
    }

    /// Lets backends out of quarantine: keeps the entries for which `keep` returns true.
    pub fn retain_quarantine(&mut self, keep: impl FnMut(&Quarantine) -> bool) {
        self.quarantine.retain(keep);
    }

    /// The entry that keeps `backend` from `product` on this chip and this OS build, if there is one.
    /// Crate version and features do not matter.
    #[must_use]
    pub fn quarantined(&self, backend: &BackendId, product: &MatMul) -> Option<&Quarantine> {
        let here = MachineKey::here();
        self.quarantine.iter().rev().find(|entry| {
            entry.is_of(backend, &here)
                && entry.graph.is_none()
                && entry.shape_class.as_ref().is_none_or(|class| *class == ShapeClass::of(product))
        })
    }

    /// The same for a graph, whose key is made where an entry is one's.
    pub(crate) fn quarantined_graph(
        &self,
        backend: &BackendId,
        key: impl FnOnce() -> Result<String>,
    ) -> Result<Option<&Quarantine>> {
        let here = MachineKey::here();
        let all = || {
            let of_graphs = |entry: &&Quarantine| entry.is_of(backend, &here) && entry.shape_class.is_none();
            self.quarantine.iter().rev().filter(of_graphs)
        };
        let key = if all().any(|entry| entry.graph.is_some()) { Some(key()?) } else { None };
        Ok(all().find(|entry| entry.graph.is_none() || entry.graph == key))
    }

    /// The same profile, without its measurements where they are not of this machine and this build; and
    /// then what differs. Quarantine stays, since every entry names its own chip and OS build.
    #[must_use]
    pub fn for_this_machine(mut self) -> (Self, Option<String>) {
        let here = MachineKey::here();
        let difference = self.machine.difference(&here);
        if difference.is_some() {
            self.clear_series(here);
        }
        (self, difference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn series(threads: usize, run_ns: f64) -> Series {
        let product = MatMul::builder(2, 3, 4).constant(true).build().unwrap();
        let mut series = Series::new(BackendId::CPU, "engine", ElementTypes::F32, Device::Unknown, threads);
        series.samples.push(Sample::new(&product, 10.0, run_ns));
        series
    }

    pub(super) fn quarantine(product: &MatMul) -> Quarantine {
        Quarantine::here(BackendId::MPSGRAPH, Some(product), "gave a wrong result")
    }

    #[test]
    fn a_series_replaces_its_like() {
        let mut profile = Profile::new(MachineKey::here());
        for (threads, ns) in [(1, 5.0), (2, 6.0), (1, 7.0)] {
            profile.add_series(series(threads, ns)).unwrap();
        }
        let kept: Vec<_> = profile.series().iter().map(|s| (s.threads, s.samples[0].run_ns)).collect();
        assert_eq!(kept, [(2, 6.0), (1, 7.0)]);
    }

    #[test]
    fn measurements_that_cannot_be_are_errors() {
        let mut profile = Profile::new(MachineKey::here());
        for ns in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e30] {
            let error = profile.add_series(series(1, ns)).unwrap_err();
            assert!(matches!(error, Error::Profile { .. }), "{ns}");
        }
        assert!(profile.add_series(series(0, 1.0)).is_err());
        let mut first = series(1, 1.0);
        first.samples[0].first_run_ns = -1.0;
        assert!(profile.add_series(first).is_err());
        let mut empty = series(1, 1.0);
        empty.samples.clear();
        assert!(profile.add_series(empty).is_err());
        let mut zero = series(1, 1.0);
        zero.samples[0].k = 0;
        assert!(profile.add_series(zero).is_err());
        assert!(profile.series().is_empty());
    }

    #[test]
    fn another_machines_measurements_are_dropped_and_its_quarantine_kept() {
        let key = MachineKey { crate_version: "0.0.1".into(), ..MachineKey::here() };
        let mut profile = Profile::new(key);
        profile.add_series(series(1, 1.0)).unwrap();
        let product = MatMul::new(2, 2, 2).unwrap();
        profile.add_quarantine(quarantine(&product));
        let (profile, difference) = profile.for_this_machine();
        assert!(difference.unwrap().contains("crate version"));
        assert!(profile.series().is_empty());
        assert!(profile.quarantined(&BackendId::MPSGRAPH, &product).is_some());
        let mut same = Profile::new(MachineKey::here());
        same.add_series(series(1, 1.0)).unwrap();
        assert_eq!(same.clone().for_this_machine(), (same, None));
    }
}
