//! `ane-matmul compare`.

mod measure;
mod plot;
mod report;

use ane_matmul::{BackendId, BackendStatus, Backends, WholeFile};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{CompareArgs, Shape, backend_id};
use crate::failure::{Failure, Output};
use crate::machine::Machine;
use crate::output::print;

use measure::Measured;
use report::Comparison;

/// The sizes of the project's origin.
const DEFAULT_SIZES: [usize; 4] = [256, 512, 1024, 2048];

pub(crate) fn run(args: &CompareArgs) -> Output {
    let backends = crate::backends()?;
    for path in [&args.json, &args.svg].into_iter().flatten() {
        drop(WholeFile::create(path)?);
    }
    if args.json.is_some() && args.json == args.svg {
        return Err(Failure::new("--json and --svg name the same file: name two"));
    }
    let (ids, unavailable) = select(&backends, &args.backend)?;
    let shapes = shapes(args);
    let options = args.threads.options();

    let progress = ProgressBar::with_draw_target(Some(shapes.len() as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} products, {elapsed}]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    let mut measured = Measured::default();
    for &shape in &shapes {
        measure::measure(&backends, &ids, shape, &options, args.samples, &progress, &mut measured)?;
        progress.inc(1);
    }
    progress.finish_and_clear();

    let comparison = Comparison { machine: Machine::new(), measured, unavailable };
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", comparison.to_json());
        WholeFile::write_all(path, |file| file.write_all(text.as_bytes()))?;
    }
    if let Some(path) = &args.svg {
        let picture = plot::draw(&comparison).map_err(|error| Failure::new(format!("plot: {error}")))?;
        WholeFile::write_all(path, |file| file.write_all(picture.as_bytes()))?;
    }
    print(comparison.to_text())
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
type Absent = (BackendId, String);

/// The backends to time, and those that are not.
fn select(backends: &Backends, names: &[String]) -> Output<(Vec<BackendId>, Vec<Absent>)> {
    const DOUBLE: &str = "a test double of hardware: its times mean nothing";
    let mut unavailable = Vec::new();
    if names.is_empty() {
        let mut ids = Vec::new();
        for BackendStatus { id, state, .. } in backends.available() {
            match state {
                Ok(info) if info.is_test_double => unavailable.push((id, DOUBLE.to_owned())),
                Ok(_) => ids.push(id),
                Err(reason) => unavailable.push((id, reason)),
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
