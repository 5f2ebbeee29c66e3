//! `ane-matmul probe`.

use std::sync::Arc;

use ane_matmul::probe::Probe;
use ane_matmul::{ElementTypes, MatMul, Profile};

use crate::args::{PROBE_HELPER, ProbeArgs, backend_id};
use crate::failure::{Failure, Output};
use crate::output::print;

/// This program as its own helper.
pub(crate) fn own_probe() -> Output<Probe> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format!("the path of this program is not known: {error}")))?;
    Ok(Probe::new(program).arg(PROBE_HELPER))
}

/// A probe of every product on backends that are no part of this program, for `calibrate`.
pub(crate) fn for_calibration() -> Output<Arc<Probe>> {
    Ok(Arc::new(own_probe()?.every_shim().keep_helper()))
}

pub(crate) fn run(args: &ProbeArgs) -> Output {
    let types = args.precision.types();
    let types = if args.uniform { ElementTypes::uniform(types.a) } else { types };
    let builder = MatMul::builder(args.shape.m, args.shape.n, args.shape.k).types(types);
    let product = crate::describe(builder, args.constant_b)?;
    let mut options = args.threads.options().device(args.device).allow_known_faults(args.allow_known_faults);
    options.quarantine.clone_from(&args.quarantine);
    if let Some(path) = &args.quarantine {
        // Fail before the work, not after it.
        Profile::check_update(path)?;
    }
    let backend = backend_id(&args.backend);
    let verdict = own_probe()?.time_limit(args.time_limit).run(&backend, &product, &options)?;
    let text = format!("{product} on {backend}: {verdict}");
    if verdict.passed() { print(text) } else { Err(Failure::new(text)) }
}
