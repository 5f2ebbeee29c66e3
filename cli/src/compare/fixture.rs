//! Made-up figures for tests.

use ane_matmul::{BackendId, Device};

use crate::args::{Precision, Shape};
use crate::compare::check::Check;
use crate::compare::measure::{Contender, Measured, Timing};
use crate::compare::operands::Kind;
use crate::compare::report::Comparison;
use crate::machine::Machine;

/// A backend, as it is shown, on a square product of a size, with its median time in nanoseconds.
pub(crate) fn timing(size: usize, backend: &str, median_ns: f64) -> Timing {
    let shape = Shape { m: size, n: size, k: size };
    let id = backend.strip_suffix(", resident").unwrap_or(backend);
    Timing {
        backend: Contender { id: BackendId::new(id), resident: id != backend },
        stands_for: None,
        shape,
        threads: Some(1),
        requested: Device::Unknown,
        observed: Device::Unknown,
        compile_ns: 1,
        first_run_ns: 1,
        median_ns,
        min_ns: median_ns,
        samples: 1,
        gflops: 1.0,
        check: Check::Reference { max_abs_error: 0.0, error_bound: 1.0, worst_ratio: 0.0 },
    }
}

/// What a run of `compare` would have found.
pub(crate) fn comparison(times: &[(usize, &str, f64)]) -> Comparison {
    Comparison {
        machine: Machine::new(),
        kind: Kind { precision: Precision::F32, constant_b: false, resident: false },
        measured: Measured {
            timings: times
                .iter()
                .map(|&(size, backend, median_ns)| timing(size, backend, median_ns))
                .collect(),
            ..Measured::default()
        },
        timed: Vec::new(),
        unavailable: Vec::new(),
    }
}
