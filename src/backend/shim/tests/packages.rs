//! Saved products over the mock.

use std::path::Path;
use std::time::Duration;

use super::mock::{Mock, assert_nothing_leaked, mock, with_mock};
use super::{STATUSES, thinned};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device};
use crate::error::{Error, Result};
use crate::executor::Report;
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;
use crate::sys;

/// Compiles with packages in `directory`; says what the mock saw of it.
fn compile(
    directory: &Path,
    product: &MatMul,
    weights: Option<&Weights>,
    setup: impl FnOnce(&mut Mock),
    options: impl FnOnce(CompileOptions) -> CompileOptions,
) -> (Result<Report>, Vec<String>) {
    let (backends, id) = with_mock(setup);
    let options = options(CompileOptions::default().packages(directory));
    let report = backends.compile_parts(&id, product, weights, &options).map(|compiled| {
        compiled.executor().unwrap();
        compiled.report()
    });
    drop(backends);
    assert_nothing_leaked();
    let seen = mock(|mock| {
        mock.events
            .iter()
            .filter(|e| ["+compile", "+product_load", "save"].contains(&e.as_str()))
            .cloned()
            .collect()
    });
    (report, seen)
}

/// Every status that is no success, and every refusal.
fn failures() -> impl Iterator<Item = (sys::ANEStatus, sys::ANERefusal)> {
    let refusals = (1..=sys::ANE_REFUSAL_OTHER).map(|refusal| (sys::ANE_STATUS_REFUSED, refusal));
    let all = STATUSES.into_iter().map(|(status, _)| (status, 0)).chain(refusals);
    (0..).zip(all).filter(|&(index, _)| thinned(index, 0)).map(|(_, failure)| failure)
}

const FRESH: [&str; 2] = ["+compile", "save"];
const LOADED: [&str; 1] = ["+product_load"];

fn plain(directory: &Path, setup: impl FnOnce(&mut Mock)) -> (Report, Vec<String>) {
    let (report, seen) = compile(directory, &MatMul::new(2, 2, 2).unwrap(), None, setup, |options| options);
    (report.unwrap(), seen)
}

#[test]
fn the_second_start_loads() {
    let directory = tempfile::tempdir().unwrap();
    let (first, seen) = plain(directory.path(), |_| {});
    assert_eq!((seen, first.from_package, first.note), (FRESH.map(String::from).to_vec(), false, None));
    let (second, seen) = plain(directory.path(), |_| {});
    assert_eq!((seen, second.from_package, second.note), (LOADED.map(String::from).to_vec(), true, None));
}

#[test]
fn whatever_changes_the_product_compiles_again() {
    let directory = tempfile::tempdir().unwrap();
    let product = |n: usize| MatMul::builder(2, n, 2).constant(true).build().unwrap();
    let weights = |n: usize, value: f32| Weights::from_tensor(Tensor::filled(2, n, value).unwrap());
    let starts = || {
        let same = |options| options;
        let at = directory.path();
        [
            compile(at, &product(2), Some(&weights(2, 1.0)), |_| {}, same),
            compile(at, &product(2), Some(&weights(2, 2.0)), |_| {}, same),
            compile(at, &product(3), Some(&weights(3, 1.0)), |_| {}, same),
            compile(at, &product(2), Some(&weights(2, 1.0)), |mock| mock.chip = b"another chip\0", same),
            compile(at, &product(2), Some(&weights(2, 1.0)), |_| {}, |options| options.device(Device::Gpu)),
            compile(
                at,
                &product(2),
                Some(&weights(2, 1.0)),
                |_| {},
                |mut options| {
                    options.reduced_precision = true;
                    options
                },
            ),
        ]
    };
    for (_, seen) in starts() {
        assert_eq!(seen, FRESH);
    }
    for (_, seen) in starts() {
        assert_eq!(seen, LOADED);
    }
    // What does not change the product.
    let (_, seen) = compile(
        directory.path(),
        &product(2),
        Some(&weights(2, 1.0)),
        |_| {},
        |options| CompileOptions { time_limit: Some(Duration::from_secs(5)), ..options.expected_runs(5) },
    );
    assert_eq!(seen, LOADED);
}

#[test]
fn a_package_that_fails_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    plain(directory.path(), |_| {});
    for (status, refusal) in failures() {
        let (report, seen) =
            plain(directory.path(), |mock| mock.fail = Some(("product_load", status, refusal)));
        assert_eq!((seen, report.from_package), (FRESH.map(String::from).to_vec(), false));
    }
    let (report, seen) = plain(directory.path(), |mock| mock.empty_handed = Some("product_load"));
    assert_eq!((seen, report.from_package), (FRESH.map(String::from).to_vec(), false));
    assert_eq!(plain(directory.path(), |_| {}).1, LOADED);
    // Damaged on disk: the shim does not see it.
    let package = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(package.join("product.mpsgraphpackage/product"), "damaged").unwrap();
    assert_eq!(plain(directory.path(), |_| {}).1, FRESH);
}

#[test]
fn what_cannot_be_kept_runs_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    for (status, refusal) in failures() {
        let (report, seen) =
            plain(directory.path(), |mock| mock.fail = Some(("product_save", status, refusal)));
        assert_eq!(seen, ["+compile"]);
        let note = report.note.unwrap();
        assert!(note.contains("not kept for the next start") && note.contains("a message"), "{note}");
    }
    // Success without a package is no success.
    let (report, _) = plain(directory.path(), |mock| mock.saves_nothing = true);
    assert!(report.note.unwrap().contains("not kept"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something is left over");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (report, seen) = compile(&file, &MatMul::new(2, 2, 2).unwrap(), None, |_| {}, |options| options);
    assert!(matches!(report, Err(Error::Io { .. })) && seen.is_empty());
}
