//! What the engine must reach, and whether it does.

use crate::results::{CaseResult, Entry, Results};
use crate::shapes::{BATCH_SHAPES, Case, Precision, Shape, TARGET_SHAPES};
use crate::stats::{Interval, geometric_mean};

/// A target, and what was measured.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) target: &'static str,
    pub(crate) subject: String,
    /// What it is compared with.
    pub(crate) against: String,
    pub(crate) required: f64,
    pub(crate) ratio: Interval,
}

/// What the runs say about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Met,
    Missed,
    /// The runs differ so much that they tell nothing.
    Unclear,
}

/// An interval whose ends differ by more than this factor shows a disturbed machine: that it
/// reaches a target is no evidence.
const WIDEST: f64 = 1.25;

impl Verdict {
    /// A target is met when the interval reaches it, unless the interval is so wide that it would
    /// reach almost anything, or tells of what cannot be.
    pub(crate) fn outcome(&self) -> Outcome {
        let Interval { low, middle, high } = self.ratio;
        // Nothing is faster than reading: then it was the reading that others disturbed.
        let impossible = self.against == READ && middle > WIDEST;
        if !self.ratio.reaches(self.required) {
            Outcome::Missed
        } else if high <= WIDEST * low && !impossible {
            Outcome::Met
        } else {
            Outcome::Unclear
        }
    }

    pub(crate) fn is_met(&self) -> bool {
        self.outcome() == Outcome::Met
    }
}

impl Outcome {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Unclear => "unclear",
        }
    }
}

const OWN: &str = "ane-matmul";
const OWN_DYNAMIC: &str = "ane-matmul/dynamic";
const OWN_FUSED: &str = "ane-matmul/fused";
const OWN_INT8: &str = "ane-matmul/int8-weights";
const OWN_INT4: &str = "ane-matmul/int4-weights";
const READ: &str = "read of B";

/// The shapes of a layer, where packing ahead must pay.
const LAYER_SHAPES: [Shape; 2] = [Shape::new(32, 3072, 768), Shape::new(32, 768, 3072)];

/// The verdict on every target whose cases were measured.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for result in &results.cases {
        one_case(&mut verdicts, result);
    }
    means(&mut verdicts, results);
    for result in &results.cases {
        scaling(&mut verdicts, results, result);
    }
    // By target, for reading; within one in the order of the cases.
    verdicts.sort_by_key(|verdict| verdict.target);
    verdicts
}

fn compare(own: Option<&Entry>, other: Option<&Entry>) -> Option<(Interval, String)> {
    let (own, other) = (own?, other?);
    Some((Interval::of_speed(&own.run_medians_ns, &other.run_medians_ns), other.candidate.clone()))
}

fn one_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    match result.case.precision {
        Precision::F32 => one_f32_case(verdicts, result),
        Precision::Bf16 | Precision::Int8 => one_narrow_case(verdicts, result),
        Precision::F16 => one_f16_case(verdicts, result),
        Precision::Weights => one_weights_case(verdicts, result),
        Precision::F64 => one_f64_case(verdicts, result),
    }
}

/// bf16 and int8, where oneDNN alone has kernels.
fn one_narrow_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    let Case { precision, shape, cold, .. } = result.case;
    let own = result.entry(OWN);
    if shape.m == 1 {
        add(verdicts, result, "m = 1: 1.0 of the best peer", 1.0, compare(own, result.best_peer()));
        return;
    }
    if !TARGET_SHAPES.contains(&shape) {
        return;
    }
    let best = compare(own, result.best_peer());
    add(verdicts, result, "constant B, bf16 and int8: 0.95 of the best peer", 0.95, best);
    if precision == Precision::Bf16 && !cold && shape.m >= 32 {
        let fused = compare(result.entry(OWN_FUSED), own);
        add(verdicts, result, "bias and GELU, bf16: at most 10 % of the product", 1.0 / 1.1, fused);
    }
}

/// f16, where no peer on this machine packs ahead: a Rust crate multiplies it.
fn one_f16_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    if TARGET_SHAPES.contains(&result.case.shape) {
        let best = compare(result.entry(OWN), result.best_rust_crate());
        add(verdicts, result, "f16: 1.0 of the best Rust crate", 1.0, best);
    }
}

/// f64, at one square shape and a layer.
fn one_f64_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    let Case { shape, cold, .. } = result.case;
    if cold || ![Shape::square(512), LAYER_SHAPES[0]].contains(&shape) {
        return;
    }
    let constant = compare(result.entry(OWN), result.best_peer());
    add(verdicts, result, "f64, constant B: 0.95 of the best peer", 0.95, constant);
    let dynamic = compare(result.entry(OWN_DYNAMIC), result.best_plain_peer());
    add(verdicts, result, "f64, dynamic B: 0.95 of the best plain dgemm", 0.95, dynamic);
}

fn one_weights_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    if result.case.cold && result.case.shape.m == 1 {
        let ratio = compare(result.entry(OWN_INT4), result.entry(OWN_INT8));
        add(verdicts, result, "4-bit weights: 1.7 times 8-bit ones, B cold", 1.7, ratio);
    }
}

fn add(
    verdicts: &mut Vec<Verdict>,
    result: &CaseResult,
    target: &'static str,
    required: f64,
    compared: Option<(Interval, String)>,
) {
    let subject = result.case.to_string();
    verdicts.extend(compared.map(|(ratio, against)| Verdict { target, subject, against, required, ratio }));
}

fn one_f32_case(verdicts: &mut Vec<Verdict>, result: &CaseResult) {
    let Case { shape, cold, .. } = result.case;
    let own = result.entry(OWN);
    let mut add = |target, required, compared| add(verdicts, result, target, required, compared);
    if shape.m == 1 {
        add("m = 1: 1.0 of the best peer", 1.0, compare(own, result.best_peer()));
        add("m = 1: 0.85 of the read bandwidth", 0.85, compare(own, result.entry(READ)));
        return;
    }
    if BATCH_SHAPES.contains(&shape) {
        let dynamic = compare(result.entry(OWN_DYNAMIC), result.best_plain_peer());
        add("batch of tiny products, dynamic B: 1.0 of oneDNN", 1.0, dynamic);
    }
    let has_target = TARGET_SHAPES.contains(&shape);
    if has_target {
        add("constant B: 0.97 of the best peer", 0.97, compare(own, result.best_peer()));
    }
    if LAYER_SHAPES.contains(&shape) && !cold {
        add("constant B: 1.3 times the best Rust crate", 1.3, compare(own, result.best_rust_crate()));
    }
    if has_target && !cold {
        let dynamic = result.entry(OWN_DYNAMIC);
        add("dynamic B: 0.97 of the best plain sgemm", 0.97, compare(dynamic, result.best_plain_peer()));
        if shape.m >= 32 {
            add(
                "bias and GELU: at most 5 % of the product",
                1.0 / 1.05,
                compare(result.entry(OWN_FUSED), own),
            );
        }
    }
}

/// The geometric mean over the shapes with targets, for each precision and number of threads.
fn means(verdicts: &mut Vec<Verdict>, results: &Results) {
    for group in results.groups() {
        let (precision, threads) = group;
        let compared: Vec<(&Entry, &Entry)> = results
            .cases
            .iter()
            .filter(|result| result.case.group() == group && !result.case.cold)
            .filter(|result| TARGET_SHAPES.contains(&result.case.shape))
            .filter_map(|result| Some((result.entry(OWN)?, result.best_peer()?)))
            .collect();
        if compared.len() < 2 {
            continue;
        }
        let runs = compared.iter().map(|(own, best)| own.run_medians_ns.len().min(best.run_medians_ns.len()));
        let means: Vec<f64> = (0..runs.min().unwrap_or(0))
            .map(|run| {
                geometric_mean(
                    compared.iter().map(|(own, best)| best.run_medians_ns[run] / own.run_medians_ns[run]),
                )
            })
            .collect();
        verdicts.push(Verdict {
            target: "constant B: geometric mean above 1.00",
            subject: format!("{}, {} shapes, {threads} thread(s)", precision.name(), compared.len()),
            against: "the best peer of each".to_owned(),
            required: 1.0,
            ratio: Interval::of(&means),
        });
    }
}

/// More threads beside one.
fn scaling(verdicts: &mut Vec<Verdict>, results: &Results, result: &CaseResult) {
    let case = result.case;
    if case.threads == 1 || case.cold {
        return;
    }
    let Some(single) = results.case(&Case { threads: 1, ..case }) else { return };
    let mut add = |target, required, candidate| {
        if let Some((ratio, _)) = compare(result.entry(candidate), single.entry(candidate)) {
            let subject = format!("{candidate}, {case}");
            verdicts.push(Verdict { target, subject, against: "1 thread".to_owned(), required, ratio });
        }
    };
    for candidate in [OWN, OWN_DYNAMIC] {
        add("threads: never slower than one", 1.0, candidate);
    }
    if case.threads != 2 {
        return;
    }
    if case.shape.flops() >= Shape::square(512).flops() {
        add("2 threads: 1.9 times one from 512^3 up", 1.9, OWN);
    } else if case.shape.flops() >= Shape::square(256).flops() {
        add("2 threads: 1.85 times one from 256^3 up", 1.85, OWN);
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::candidates::{Kind, Origin};
    use crate::results::tests::{case_result, results};

    fn verdict<'a>(verdicts: &'a [Verdict], target: &str) -> &'a Verdict {
        verdicts.iter().find(|verdict| verdict.target.starts_with(target)).expect(target)
    }

    fn case(shape: Shape, threads: usize) -> Case {
        Case { precision: Precision::F32, shape, threads, cold: false }
    }

    #[test]
    fn a_target_is_met_when_the_interval_reaches_it() {
        let result = case_result(
            case(LAYER_SHAPES[0], 1),
            &[
                (OWN, Kind::Packed, Origin::Own, &[10.0, 10.0, 10.0]),
                (OWN_DYNAMIC, Kind::Plain, Origin::Own, &[12.0, 12.0, 12.0]),
                (OWN_FUSED, Kind::Fused, Origin::Own, &[11.0, 11.0, 10.4]),
                ("onednn-pypi", Kind::Packed, Origin::NativeLibrary, &[9.0, 9.5, 9.7]),
                ("gemm", Kind::Plain, Origin::RustCrate, &[12.9, 12.8, 12.7]),
            ],
        );
        let verdicts = verdicts(&results(vec![result]));
        let constant = verdict(&verdicts, "constant B: 0.97");
        assert_eq!(constant.against, "onednn-pypi");
        assert_eq!(constant.ratio, Interval { low: 0.9, middle: 0.95, high: 0.97 });
        assert!(constant.is_met());
        assert!(!verdict(&verdicts, "constant B: 1.3").is_met());
        assert!(verdict(&verdicts, "dynamic B").is_met());
        assert!(verdict(&verdicts, "bias and GELU").is_met());
    }

    #[test]
    fn a_wide_interval_is_no_evidence() {
        let outcome = |low, high| {
            let ratio = Interval { low, middle: f64::midpoint(low, high), high };
            Verdict { target: "", subject: String::new(), against: String::new(), required: 1.0, ratio }
                .outcome()
        };
        assert_eq!(outcome(0.9, 1.0), Outcome::Met);
        assert_eq!(outcome(0.5, 3.0), Outcome::Unclear);
        assert_eq!(outcome(1.0, 3.0), Outcome::Unclear);
        assert_eq!(outcome(2.0, 2.1), Outcome::Met);
        assert_eq!(outcome(0.5, 0.99), Outcome::Missed);
        assert_eq!(outcome(f64::NAN, f64::NAN), Outcome::Missed);
    }

    #[test]
    fn one_row_is_compared_with_reading() {
        let result = case_result(
            case(Shape::new(1, 3072, 768), 1),
            &[
                (OWN, Kind::Packed, Origin::Own, &[10.0]),
                (READ, Kind::Plain, Origin::Ceiling, &[8.0]),
                ("faer", Kind::Plain, Origin::RustCrate, &[12.0]),
            ],
        );
        let verdicts = verdicts(&results(vec![result]));
        assert_eq!(verdicts.len(), 2);
        assert!(verdict(&verdicts, "m = 1: 1.0").is_met());
        assert!(!verdict(&verdicts, "m = 1: 0.85").is_met());
    }

    #[test]
    fn threads_are_compared_with_one() {
        let of = |threads, time_ns: &[f64]| {
            case_result(case(Shape::square(512), threads), &[(OWN, Kind::Packed, Origin::Own, time_ns)])
        };
        let verdicts = verdicts(&results(vec![of(1, &[19.0, 18.0]), of(2, &[10.0, 10.0])]));
        let doubled = verdict(&verdicts, "2 threads: 1.9");
        assert_eq!((doubled.ratio.low, doubled.ratio.high), (1.8, 1.9));
        assert!(doubled.is_met());
        assert!(verdict(&verdicts, "threads: never slower").is_met());
    }

    #[test]
    fn narrow_types_have_targets_of_their_own() {
        let bf16 = Case { precision: Precision::Bf16, ..case(LAYER_SHAPES[0], 1) };
        let of_bf16 = case_result(
            bf16,
            &[
                (OWN, Kind::Packed, Origin::Own, &[10.0, 10.0]),
                (OWN_FUSED, Kind::Fused, Origin::Own, &[11.5, 11.5]),
                ("onednn-pypi", Kind::Packed, Origin::NativeLibrary, &[9.6, 9.6]),
            ],
        );
        let cold = Case { precision: Precision::Weights, cold: true, ..case(Shape::new(1, 3072, 768), 1) };
        let of_weights = case_result(
            cold,
            &[(OWN_INT4, Kind::Packed, Origin::Own, &[10.0]), (OWN_INT8, Kind::Packed, Origin::Own, &[17.5])],
        );
        let verdicts = verdicts(&results(vec![of_bf16, of_weights]));
        assert_eq!(verdicts.len(), 3);
        assert!(verdict(&verdicts, "constant B, bf16").is_met());
        assert!(!verdict(&verdicts, "bias and GELU, bf16").is_met());
        assert!(verdict(&verdicts, "4-bit weights").is_met());
    }

    #[test]
    fn the_mean_is_taken_run_by_run() {
        let of = |size, own_ns: &[f64], peer_ns: &[f64]| {
            case_result(
                case(Shape::square(size), 1),
                &[
                    (OWN, Kind::Packed, Origin::Own, own_ns),
                    ("faer", Kind::Plain, Origin::RustCrate, peer_ns),
                ],
            )
        };
        let results = results(vec![of(64, &[1.0, 1.0], &[2.0, 1.0]), of(512, &[1.0, 1.0], &[0.5, 1.0])]);
        let verdicts = verdicts(&results);
        let mean = verdict(&verdicts, "constant B: geometric");
        assert_abs_diff_eq!(mean.ratio.low, 1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(mean.ratio.high, 1.0, epsilon = 1e-12);
    }
}
