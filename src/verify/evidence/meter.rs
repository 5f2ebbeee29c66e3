//! Clocks and counters: CPU time of the process, power of the chip.

use std::time::Duration;

/// CPU time of all threads of this process so far.
#[cfg(unix)]
pub(super) fn process_cpu_time() -> Result<Duration, &'static str> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).map_err(|_| "the clock of the process is not set")
}

/// CPU time of all threads of this process so far.
#[cfg(not(unix))]
pub(super) fn process_cpu_time() -> Result<Duration, &'static str> {
    Err("CPU time is read on Unix systems only")
}

/// Average power in watts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Power {
    pub(super) cpu: f64,
    pub(super) gpu: f64,
    pub(super) neural_engine: f64,
}

/// Whether [`power`] can be asked, or why not.
pub(super) fn has_energy_counters() -> Result<(), &'static str> {
    if cfg!(all(feature = "energy", target_os = "macos")) {
        Ok(())
    } else if cfg!(target_os = "macos") {
        Err("not in this build: build with --features energy")
    } else {
        Err("energy counters of Neural Engine, GPU and CPU are read on macOS only")
    }
}

/// The average power over `window`, which it waits for; from IOReport's counters, without root.
#[cfg(all(feature = "energy", target_os = "macos"))]
pub(super) fn power(window: Duration) -> Result<Power, String> {
    let milliseconds = u32::try_from(window.as_millis()).unwrap_or(u32::MAX).max(1);
    let sample = || -> Result<Power, String> {
        let mut sampler = macmon::Sampler::new().map_err(|error| error.to_string())?;
        let metrics = sampler.get_metrics(milliseconds).map_err(|error| error.to_string())?;
        Ok(Power {
            cpu: metrics.cpu_power.into(),
            gpu: metrics.gpu_power.into(),
            neural_engine: metrics.ane_power.into(),
        })
    };
    // macmon asserts what it expects of the counters of a chip: on one that it does not know it panics.
    std::panic::catch_unwind(sample)
        .unwrap_or_else(|_| Err("macmon does not know this chip's counters".into()))
}

/// There are no counters to ask: see [`has_energy_counters`].
#[cfg(not(all(feature = "energy", target_os = "macos")))]
pub(super) fn power(_window: Duration) -> Result<Power, String> {
    has_energy_counters().map_err(str::to_owned).and(Err("no counters".into()))
}
