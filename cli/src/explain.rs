//! `ane-matmul explain`.

use std::fmt::Write as _;

use ane_matmul::{Candidate, ElementTypes, Explanation, MatMul, Obstacle, ProfileState, Verdict};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::args::ExplainArgs;
use crate::failure::Output;
use crate::output::{print, print_json, time};

pub(crate) fn run(args: &ExplainArgs) -> Output {
    let backends = crate::backends()?;
    let types = args.precision.types();
    let types = if args.uniform { ElementTypes::uniform(types.a) } else { types };
    let builder = MatMul::builder(args.shape.m, args.shape.n, args.shape.k).batch(args.batch).types(types);
    let product = crate::describe(builder, args.constant_b)?;
    let mut options = args.threads.options().device(args.device);
    options.expected_runs = args.runs;
    let explanation = backends.explain(&product, &options);
    crate::note_profile(&explanation.profile);
    if args.json { print_json(&to_json(&explanation)) } else { print(to_text(&explanation)) }
}

fn to_text(explanation: &Explanation) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["backend", "run", "compile", "a run, compiling shared", "threads", "verdict"]);
    for index in 1..5 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let chosen = explanation.choice.as_ref().map(|(id, _)| id);
    for Candidate { backend, verdict, .. } in &explanation.candidates {
        let mark = if chosen == Some(backend) { "chosen" } else { "" };
        let mut cells =
            [backend.to_string(), String::new(), String::new(), String::new(), String::new(), String::new()];
        cells[5] = match verdict {
            Verdict::Predicted(times) => {
                cells[1] = time(times.run_ns);
                cells[2] = time(times.compile_ns);
                cells[3] = time(times.amortised_ns);
                cells[4] = times.threads.to_string();
                mark.into()
            }
            Verdict::Unmeasured(reason) if mark.is_empty() => format!("not measured: {reason}"),
            Verdict::Unmeasured(reason) => format!("{mark}; not measured: {reason}"),
            Verdict::Refused(refusal) => format!("refused: {refusal}"),
            Verdict::Unavailable(reason) => format!("not here: {reason}"),
            _ => String::new(),
        };
        table.add_row(cells);
    }
    let runs = explanation.expected_runs.map_or_else(
        || "so many that compiling does not count (--runs N says how many)".into(),
        |runs| runs.to_string(),
    );
    let mut text = format!("{}\nruns expected: {runs}\n{table}\n", explanation.product);
    // Writing to a string cannot fail.
    let _ = match &explanation.choice {
        Some((id, why)) => writeln!(text, "auto is {id}: {why}"),
        None => writeln!(text, "auto is none: no backend runs this product"),
    };
    let _ = writeln!(text, "\nwhat keeps it off the Neural Engine, by the public record:");
    if explanation.neural_engine.is_empty() {
        let _ = writeln!(text, "nothing that is known");
    }
    for obstacle in &explanation.neural_engine {
        let _ = writeln!(text, "- {obstacle}");
    }
    text.trim_end().to_owned()
}

fn to_json(explanation: &Explanation) -> Value {
    let product = &explanation.product;
    let (state, problem) = match &explanation.profile {
        ProfileState::Used => ("used", None),
        ProfileState::Absent => ("absent", None),
        ProfileState::Ignored(problem) => ("ignored", Some(problem)),
        _ => ("unknown", None),
    };
    json!({
        "product": {
            "text": product.to_string(),
            "batch": product.batch(), "m": product.m(), "n": product.n(), "k": product.k(),
            "constant_b": product.constant_b(),
        },
        "expected_runs": explanation.expected_runs,
        "profile": { "state": state, "problem": problem },
        "candidates": explanation.candidates.iter().map(candidate_json).collect::<Vec<_>>(),
        "choice": explanation.choice.as_ref().map(|(id, why)| {
            json!({ "backend": id.as_str(), "why": why.to_string() })
        }),
        "neural_engine_obstacles": explanation.neural_engine.iter().map(obstacle_json).collect::<Vec<_>>(),
    })
}

fn candidate_json(candidate: &Candidate) -> Value {
    let mut value = match &candidate.verdict {
        Verdict::Predicted(times) => json!({
            "verdict": "predicted",
            "compile_ns": times.compile_ns,
            "run_ns": times.run_ns,
            "amortised_ns": times.amortised_ns,
            "threads": times.threads,
        }),
        Verdict::Unmeasured(reason) => json!({ "verdict": "unmeasured", "reason": reason }),
        Verdict::Refused(refusal) => json!({
            "verdict": "refused",
            "reason": refusal.reason.to_string(),
            "message": refusal.message,
        }),
        Verdict::Unavailable(reason) => json!({ "verdict": "unavailable", "reason": reason }),
        _ => json!({ "verdict": "unknown" }),
    };
    value["backend"] = candidate.backend.as_str().into();
    value
}

fn obstacle_json(obstacle: &Obstacle) -> Value {
    json!({
        "kind": obstacle.kind.to_string(),
        "consequence": obstacle.consequence.to_string(),
        "message": obstacle.message,
        "source": obstacle.source,
    })
}

#[cfg(test)]
mod tests {
    use ane_matmul::{
        BackendId, Backends, CompileOptions, Device, MachineKey, Profile, Sample, Series, Threads,
    };

    use super::*;

    /// Of a product whose time on `cpu` is in a profile.
    fn explanation() -> Explanation {
        let mut backends = Backends::new();
        let description = backends.info(&BackendId::CPU).unwrap().description;
        let mut series = Series::new(BackendId::CPU, description, ElementTypes::F32, Device::Unknown, 1);
        let product = MatMul::new(8, 16, 32).unwrap();
        series.samples = vec![Sample::new(&product, 2000.0, 1500.0)];
        let mut profile = Profile::new(MachineKey::here());
        profile.add_series(series).unwrap();
        backends.set_profile(Some(profile));
        let mut options = CompileOptions::default().threads(Threads::ONE);
        options.expected_runs = Some(10);
        backends.explain(&product, &options)
    }

    fn candidate<'a>(explanation: &'a mut Explanation, id: &BackendId) -> &'a mut Candidate {
        explanation.candidates.iter_mut().find(|candidate| candidate.backend == *id).unwrap()
    }

    #[test]
    fn every_verdict_is_a_row_of_the_text() {
        let mut explanation = explanation();
        let row = |explanation: &Explanation, id: &BackendId| {
            let text = to_text(explanation);
            let start = format!("| {id} ");
            text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{text}")).to_owned()
        };
        let predicted = row(&explanation, &BackendId::CPU);
        assert!(predicted.contains("us") && predicted.contains("chosen"), "{predicted}");
        let absent = row(&explanation, &BackendId::METAL);
        assert!(absent.contains("not here: ") && !absent.contains("chosen"), "{absent}");
        candidate(&mut explanation, &BackendId::METAL).verdict = Verdict::Unmeasured("never tried".into());
        assert!(row(&explanation, &BackendId::METAL).contains("| not measured: never tried"));
        candidate(&mut explanation, &BackendId::CPU).verdict = Verdict::Unmeasured("never tried".into());
        assert!(row(&explanation, &BackendId::CPU).contains("chosen; not measured: never tried"));
        let refusal = ane_matmul::Refusal::new(ane_matmul::RefusalReason::Device, "not there");
        candidate(&mut explanation, &BackendId::METAL).verdict = Verdict::Refused(refusal);
        assert!(row(&explanation, &BackendId::METAL).contains("refused: "));
        let text = to_text(&explanation);
        assert!(text.contains("runs expected: 10\n") && text.contains("auto is cpu: "), "{text}");
        explanation.neural_engine.clear();
        assert!(to_text(&explanation).ends_with("nothing that is known"));
    }

    #[test]
    fn every_verdict_has_its_figures_in_json() {
        let mut explanation = explanation();
        let of = |explanation: &Explanation, id: &BackendId| {
            let json = to_json(explanation);
            let all = json["candidates"].as_array().unwrap().clone();
            all.into_iter().find(|candidate| candidate["backend"] == id.as_str()).unwrap()
        };
        let predicted = of(&explanation, &BackendId::CPU);
        assert_eq!((&predicted["verdict"], &predicted["threads"]), (&json!("predicted"), &json!(1)));
        assert!(predicted["run_ns"].as_f64().unwrap() > 0.0);
        assert_eq!(of(&explanation, &BackendId::METAL)["verdict"], "unavailable");
        candidate(&mut explanation, &BackendId::METAL).verdict = Verdict::Unmeasured("never tried".into());
        let unmeasured = json!({ "backend": "metal", "verdict": "unmeasured", "reason": "never tried" });
        assert_eq!(of(&explanation, &BackendId::METAL), unmeasured);
        let refusal = ane_matmul::Refusal::new(ane_matmul::RefusalReason::Device, "not there");
        candidate(&mut explanation, &BackendId::METAL).verdict = Verdict::Refused(refusal);
        let refused = of(&explanation, &BackendId::METAL);
        assert_eq!((&refused["verdict"], &refused["message"]), (&json!("refused"), &json!("not there")));

        let whole = to_json(&explanation);
        assert_eq!((&whole["product"]["k"], &whole["choice"]["backend"]), (&json!(32), &json!("cpu")));
        for obstacle in whole["neural_engine_obstacles"].as_array().unwrap() {
            assert!(obstacle["kind"].is_string() && obstacle["message"].is_string(), "{obstacle}");
        }
        assert!(!explanation.neural_engine.is_empty());
        for (state, name) in [
            (ProfileState::Used, json!({ "state": "used", "problem": null })),
            (ProfileState::Absent, json!({ "state": "absent", "problem": null })),
            (ProfileState::Ignored("old".into()), json!({ "state": "ignored", "problem": "old" })),
        ] {
            explanation.profile = state;
            assert_eq!(to_json(&explanation)["profile"], name);
        }
    }
}
