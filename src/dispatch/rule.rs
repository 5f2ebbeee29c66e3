//! The choice without a profile, by figures of this crate's predecessor.

use crate::backend::BackendId;
use crate::description::options::Device;

/// The operations of a product of 1024^3, from which a GPU won over the CPU's matrix unit, and how much it
/// won by there, measured by this crate's predecessor on an M4 Max, f32: at 1024 Metal took 2644 us, Accelerate
/// 3380 us; at 512 817 us and 378 us.
const CROSSOVER_FLOPS: f64 = 2.0 * 1024.0 * 1024.0 * 1024.0;
const GAIN_AT_CROSSOVER_NS: f64 = 736_000.0;

/// What compiling for a GPU took in the same measurements, about.
const COMPILE_NS: f64 = 200_000_000.0;

/// Engines on the CPU and off it, the preferred first; others follow in the order of the registry.
const ON_CPU: [BackendId; 3] = [BackendId::ACCELERATE, BackendId::CPU, BackendId::BLAS];
const OFF_CPU: [BackendId; 2] = [BackendId::METAL, BackendId::MPSGRAPH];

/// Whether an accelerator pays: a run has as many operations as a square product at the crossover, and the runs
/// expected earn what compiling costs, where the gain grows with the arithmetic.
pub(crate) fn accelerator_pays(flops: f64, expected_runs: Option<u64>) -> bool {
    let size = flops / CROSSOVER_FLOPS;
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let gain_ns = expected_runs.map(|runs| runs as f64 * GAIN_AT_CROSSOVER_NS * size);
    size >= 1.0 && gain_ns.is_none_or(|gain_ns| gain_ns >= COMPILE_NS)
}

/// Sorts backends that can run a product or a graph by preference.
pub(crate) fn rank(backends: &mut [(BackendId, Device)], flops: f64, expected_runs: Option<u64>) {
    let pays = accelerator_pays(flops, expected_runs);
    backends.sort_by_key(|(id, device)| {
        let on_cpu = *device == Device::Cpu || ON_CPU.contains(id);
        let order: &[BackendId] = if on_cpu { &ON_CPU } else { &OFF_CPU };
        (on_cpu == pays, order.iter().position(|other| other == id).unwrap_or(order.len()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cube(size: usize) -> f64 {
        crate::MatMul::new(size, size, size).unwrap().flops()
    }

    fn first(size: usize, runs: Option<u64>) -> String {
        let mut backends = [
            (BackendId::CPU, Device::Cpu),
            (BackendId::MPSGRAPH, Device::Unknown),
            (BackendId::METAL, Device::Gpu),
            (BackendId::ACCELERATE, Device::Cpu),
        ];
        rank(&mut backends, cube(size), runs);
        backends[0].0.to_string()
    }

    #[test]
    fn the_cpu_below_the_crossover_and_the_gpu_from_there_on() {
        assert_eq!([first(1023, None), first(1024, None)], ["accelerate", "metal"]);
        // 200 ms are earned in 272 runs that win 736 us each, and in 34 of eight times the size.
        assert_eq!([first(1024, Some(271)), first(1024, Some(272))], ["accelerate", "metal"]);
        assert_eq!([first(2048, Some(33)), first(2048, Some(34))], ["accelerate", "metal"]);
        assert_eq!(first(1 << 15, Some(1)), "metal");
    }

    #[test]
    fn loaded_shims_follow_those_that_are_preferred_by_name() {
        let ranked = |size: usize, apple: bool| {
            let mut backends = vec![
                (BackendId::CPU, Device::Cpu),
                (BackendId::new("slow"), Device::Cpu),
                (BackendId::new("open"), Device::Unknown),
                (BackendId::new("gpu"), Device::Gpu),
            ];
            if apple {
                backends.push((BackendId::MPSGRAPH, Device::Unknown));
            }
            rank(&mut backends, cube(size), None);
            backends.into_iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ranked(256, true), ["cpu", "slow", "mpsgraph", "open", "gpu"]);
        assert_eq!(ranked(1024, true), ["mpsgraph", "open", "gpu", "cpu", "slow"]);
        assert_eq!(ranked(1024, false), ["open", "gpu", "cpu", "slow"]);
    }

    #[test]
    fn without_apples_engines_the_built_in_one_comes_first() {
        let mut backends = [
            (BackendId::new("shim"), Device::Cpu),
            (BackendId::BLAS, Device::Cpu),
            (BackendId::CPU, Device::Cpu),
        ];
        rank(&mut backends, cube(4096), None);
        assert_eq!(backends.map(|(id, _)| id.to_string()), ["cpu", "blas", "shim"]);
    }
}
