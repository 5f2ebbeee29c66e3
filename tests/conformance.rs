//! Every backend that is here passes every conformance case.

use ane_matmul::{BackendId, Backends, CompileOptions, Threads};
use ane_matmul_conformance::{Scale, cases, run_suite};

/// The origin's figure for 16x16x16 with N(0, 0.02^2): printed beside the bound, not asserted,
/// since random draws with correct f32 sums may exceed it.
const ORIGIN_MAX_ABS_ERROR: f64 = 5e-10;

#[test]
fn every_available_backend_conforms() {
    let backends = Backends::new();
    let cases = cases(Scale::Full);
    let mut ran = Vec::new();
    for status in backends.available() {
        if let Err(reason) = &status.state {
            println!("not run: {}: {reason}", status.id);
            continue;
        }
        let summary = run_suite(&backends, &status.id, &CompileOptions::default(), &cases, &[]);
        let (error, bound) = summary.origin.expect("the origin's case is among the cases");
        println!(
            "{}: {} cases passed; 16x16x16 N(0, 0.02^2): largest error {error:.2e}, bound {bound:.2e}, the origin's figure {ORIGIN_MAX_ABS_ERROR:.0e}",
            status.id, summary.passed
        );
        assert_eq!(summary.passed, cases.len());
        ran.push(status.id);
    }
    assert!(ran.contains(&BackendId::CPU));
}

#[test]
fn the_cpu_backend_conforms_on_any_number_of_threads() {
    let backends = Backends::new();
    let cases = cases(Scale::Full);
    for threads in [1, 2, 3, 7] {
        let options = CompileOptions::default().threads(Threads::count(threads).expect("not 0"));
        run_suite(&backends, &BackendId::CPU, &options, &cases, &[]);
    }
}
