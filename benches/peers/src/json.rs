//! The report for programs. The fields of `machine`, `peaks` and `results` are a stable contract:
//! more may come, none may go.

use serde_json::{Value, json};

use crate::candidates::{Kind, Origin};
use crate::results::{CaseResult, Entry, Results};
use crate::targets::Verdict;

pub(crate) fn report(results: &Results, verdicts: &[Verdict]) -> Value {
    json!({
        "machine": machine(results),
        "peaks": peaks(results),
        "results": results.cases.iter().flat_map(case).collect::<Vec<_>>(),
        "targets": verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}

fn machine(results: &Results) -> Value {
    let machine = &results.machine;
    let caches: Vec<Value> =
        machine.caches.iter().map(|cache| json!({"level": cache.level, "bytes": cache.bytes})).collect();
    let versions: Vec<Value> =
        results.peers.iter().map(|peer| json!({"name": peer.name, "version": peer.version})).collect();
    let not_run: Vec<Value> = results
        .missing
        .iter()
        .map(|missing| json!({"name": missing.name, "reason": missing.reason}))
        .collect();
    json!({
        "cpu": machine.cpu,
        "cores": machine.cores,
        "caches": caches,
        "instructions": machine.instructions,
        "system": machine.system,
        "date": machine.date,
        "others_share": results.others,
        "versions": versions,
        "not_run": not_run,
    })
}

fn peaks(results: &Results) -> Value {
    let arithmetic: Vec<Value> = results
        .rates
        .iter()
        .map(|rate| {
            json!({
                "precision": rate.precision,
                "instruction": rate.instruction,
                "threads": rate.threads,
                "gflops": rate.gflops,
            })
        })
        .collect();
    let read: Vec<Value> = results
        .bandwidths
        .iter()
        .map(|bandwidth| {
            json!({
                "level": bandwidth.level,
                "threads": bandwidth.threads,
                "working_set_bytes": bandwidth.working_set_bytes,
                "gbytes_per_s": bandwidth.gbytes_per_s,
            })
        })
        .collect();
    json!({"arithmetic": arithmetic, "read": read, "read_of_b": results.cases.iter().flat_map(read_of_b).collect::<Vec<_>>()})
}

/// Reading B alone, taken in turns with the products of one row.
fn read_of_b(result: &CaseResult) -> Vec<Value> {
    let case = &result.case;
    let ceilings = result.entries.iter().filter(|entry| entry.origin == Origin::Ceiling);
    ceilings
        .map(|entry| {
            json!({
                "precision": case.precision.name(),
                "batch": case.shape.batch, "m": case.shape.m, "n": case.shape.n, "k": case.shape.k,
                "threads": case.threads,
                "cold": case.cold,
                "median_ns": entry.median_ns(),
                "gbytes_per_s": case.b_bytes() as f64 / entry.median_ns(),
            })
        })
        .collect()
}

fn case(result: &CaseResult) -> Vec<Value> {
    let products = result.entries.iter().filter(|entry| entry.origin != Origin::Ceiling);
    products.map(|entry| product(result, entry)).collect()
}

fn product(result: &CaseResult, entry: &Entry) -> Value {
    let case = &result.case;
    json!({
        "candidate": entry.candidate,
        "precision": case.precision.name(),
        "batch": case.shape.batch,
        "m": case.shape.m,
        "n": case.shape.n,
        "k": case.shape.k,
        "threads": case.threads,
        "cold": case.cold,
        "fused": entry.kind == Kind::Fused,
        "median_ns": entry.median_ns(),
        "min_ns": entry.min_ns,
        "gflops": case.shape.flops() / entry.median_ns(),
        "max_rel_error": entry.max_rel_error,
        "runs": entry.run_medians_ns.len(),
        "disturbed": entry.disturbed,
        "run_medians_ns": entry.run_medians_ns,
    })
}

fn verdict(verdict: &Verdict) -> Value {
    json!({
        "target": verdict.target,
        "subject": verdict.subject,
        "against": verdict.against,
        "required": verdict.required,
        "ratio": verdict.ratio.middle,
        "low": verdict.ratio.low,
        "high": verdict.ratio.high,
        "met": verdict.is_met(),
        "outcome": verdict.outcome().name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{case_result, results};
    use crate::shapes::{Case, Precision, Shape};

    #[test]
    fn the_contract_holds() {
        let case = Case { precision: Precision::F32, shape: Shape::new(1, 30, 20), threads: 2, cold: true };
        let result = case_result(
            case,
            &[
                ("ane-matmul", Kind::Packed, Origin::Own, &[100.0, 120.0, 110.0]),
                ("ane-matmul/fused", Kind::Fused, Origin::Own, &[100.0]),
                ("read of B", Kind::Plain, Origin::Ceiling, &[50.0]),
            ],
        );
        let report = report(&results(vec![result]), &[]);
        for field in ["machine", "peaks", "results"] {
            assert!(!report[field].is_null(), "{field}");
        }
        let products = report["results"].as_array().unwrap();
        assert_eq!(products.len(), 2, "what only reads is no product");
        let first = products[0].as_object().unwrap();
        let contract = [
            "candidate",
            "precision",
            "m",
            "n",
            "k",
            "threads",
            "cold",
            "fused",
            "median_ns",
            "min_ns",
            "gflops",
            "max_rel_error",
            "runs",
        ];
        for field in contract {
            assert!(!first[field].is_null(), "{field}");
        }
        assert_eq!(first["median_ns"], 110.0);
        assert_eq!(first["runs"], 3);
        assert_eq!(first["gflops"], 1200.0 / 110.0);
        assert_eq!((first["cold"].as_bool(), first["fused"].as_bool()), (Some(true), Some(false)));
        assert_eq!(products[1]["fused"], true);
        assert_eq!(report["peaks"]["read_of_b"][0]["gbytes_per_s"], 2400.0 / 50.0);
    }
}
