//! `ane-matmul compare`.

mod amortization;
mod check;
#[cfg(test)]
mod fixture;
mod measure;
mod operands;
mod page;
mod plot;
mod report;

use ane_matmul::{BackendId, BackendStatus, Backends};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{CompareArgs, Shape, backend_id};
use crate::failure::{Failure, Output};
use crate::machine::Machine;
use crate::output::{keep_ticking, print};
use crate::whole_file;

use measure::{Measured, Plan};
use operands::Kind;
use report::Comparison;

/// The sizes of the project's origin.
const DEFAULT_SIZES: [usize; 4] = [256, 512, 1024, 2048];

pub(crate) fn run(args: &CompareArgs) -> Output {
    let backends = crate::backends()?;
    check_outputs(args)?;
    let shapes = shapes(args);
    if let Some(shape) = shapes.iter().find(|shape| [shape.m, shape.n, shape.k].contains(&0)) {
        return Err(Failure::new(format!(
            "{shape} has nothing to be timed; every dimension must be 1 or more"
        )));
    }
    let (ids, unavailable) = select(&backends, &args.backend)?;
    let timed = ids.iter().map(|id| Ok((id.clone(), backends.info(id)?))).collect::<Output<_>>()?;
    let options = args.threads.options();
    let kind = Kind { precision: args.precision, constant_b: args.constant_b, resident: args.resident };

    let progress = ProgressBar::with_draw_target(Some(shapes.len() as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} products, {elapsed}]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    let mut measured = Measured::default();
    keep_ticking(&progress);
    let (samples, progress) = (args.samples, &progress);
    let plan = Plan { backends: &backends, ids: &ids, kind, options: &options, samples, progress };
    for &shape in &shapes {
        measure::measure(&plan, shape, &mut measured)?;
        progress.inc(1);
    }
    progress.finish_and_clear();

    let comparison = Comparison { machine: Machine::new(), kind, measured, timed, unavailable };
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", comparison.to_json());
        whole_file::write(path, text.as_bytes())?;
    }
    if let Some(path) = &args.svg {
        let picture = plot::draw(&comparison).map_err(|error| Failure::new(format!("plot: {error}")))?;
        whole_file::write(path, picture.as_bytes())?;
    }
    if let Some(path) = &args.report {
        let page = page::render(&comparison, std::time::SystemTime::now());
        whole_file::write(path, page.as_bytes())?;
    }
    print(comparison.to_text())
}

/// Fails before the work, not after it, where a file cannot be written.
fn check_outputs(args: &CompareArgs) -> Output {
    let outputs: Vec<_> = [("--json", &args.json), ("--svg", &args.svg), ("--report", &args.report)]
        .into_iter()
        .filter_map(|(flag, path)| Some((flag, path.as_ref()?)))
        .collect();
    for (index, (flag, path)) in outputs.iter().enumerate() {
        whole_file::check(path)?;
        if let Some((other, _)) = outputs[..index].iter().find(|(_, earlier)| earlier == path) {
            return Err(Failure::new(format!("{other} and {flag} name the same file: name two")));
        }
    }
    Ok(())
}

fn shapes(args: &CompareArgs) -> Vec<Shape> {
    let sizes: &[usize] =
        if args.sizes.is_empty() && args.shapes.is_empty() { &DEFAULT_SIZES } else { &args.sizes };
    let squares = sizes.iter().map(|&size| Shape { m: size, n: size, k: size });
    let mut shapes: Vec<Shape> = Vec::new();
    for shape in squares.chain(args.shapes.iter().copied()) {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// A backend that is not timed, and why.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) backend: BackendId,
    pub(crate) reason: String,
    pub(crate) is_test_double: bool,
}

/// The backends to time, and those that are not.
fn select(backends: &Backends, names: &[String]) -> Output<(Vec<BackendId>, Vec<Absent>)> {
    const DOUBLE: &str = "a test double of hardware: its times mean nothing";
    let mut unavailable = Vec::new();
    if names.is_empty() {
        let mut ids = Vec::new();
        for BackendStatus { id, state, .. } in backends.available() {
            match state {
                Ok(info) if info.is_test_double => {
                    unavailable.push(Absent { backend: id, reason: DOUBLE.to_owned(), is_test_double: true });
                }
                Ok(_) => ids.push(id),
                Err(reason) => unavailable.push(Absent { backend: id, reason, is_test_double: false }),
            }
        }
        return Ok((ids, unavailable));
    }
    let mut ids: Vec<BackendId> = Vec::new();
    for name in names {
        let id = backend_id(name);
        if backends.info(&id)?.is_test_double {
            return Err(Failure::new(format!("backend `{id}` is not timed: it is {DOUBLE}")));
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok((ids, unavailable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code, reason = "a shim is foreign code")]
    fn a_test_double_is_named_and_not_timed() {
        let mut backends = Backends::new();
        // SAFETY: the library is built from this repository.
        let shim = unsafe { ane_matmul::ShimLibrary::open(ane_matmul_shims::TEST_DOUBLE) };
        let double = backends.add(shim.unwrap()).unwrap();
        let (ids, unavailable) = select(&backends, &[]).unwrap();
        assert!(ids.contains(&BackendId::CPU) && !ids.contains(&double));
        let doubles: Vec<_> = unavailable.iter().filter(|absent| absent.is_test_double).collect();
        assert_eq!(doubles.iter().map(|absent| &absent.backend).collect::<Vec<_>>(), [&double]);
        assert!(doubles[0].reason.contains("test double"));
        assert!(select(&backends, &[double.to_string()]).is_err());
    }
}
