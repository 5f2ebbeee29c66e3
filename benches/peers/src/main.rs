//! Measures this crate's products beside those of other libraries, and both beside what the machine
//! can do. `scripts/bench` installs what it needs and runs it; docs/benchmarks.md tells how.
#![warn(clippy::pedantic)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times and counts in floating point"
)]
#![allow(
    clippy::many_single_char_names,
    clippy::similar_names,
    clippy::float_cmp,
    clippy::doc_markdown,
    clippy::struct_excessive_bools,
    reason = "m, n, k, a, b, c are the field's names; product names, exact comparisons and flags are meant"
)]

mod apart;
mod args;
mod candidates;
mod json;
mod machine;
mod measure;
mod operands;
mod peaks;
mod plot;
mod probe;
mod quiet;
mod reference;
mod results;
mod shapes;
mod stats;
mod table;
mod targets;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use apart::Child;
use args::Args;
use candidates::Candidates;
use machine::Machine;
use measure::Effort;
use quiet::{CpuTime, Patience};
use results::{CaseResult, Results};

/// Set in the process that measures, whose environment chooses the libraries' kernels.
const STAGE_VARIABLE: &str = "ANE_MATMUL_PEERS_MEASURE";

/// In each run; what counts is the best of all.
const PEAK_TRIES: usize = 15;

fn main() -> ExitCode {
    let args = Args::read(env::args_os()).unwrap_or_else(|error| error.exit());
    let outcome = if let Some(name) = &args.probe {
        probe::child(name).map(|()| ExitCode::SUCCESS)
    } else if let Some(name) = &args.apart {
        apart::child(name, args.threads.iter().copied().max().unwrap_or(1)).map(|()| ExitCode::SUCCESS)
    } else if env::var_os(STAGE_VARIABLE).is_none() {
        measure_in_child()
    } else {
        measure(&args)
    };
    outcome.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

/// Runs this program again with the environment under which the libraries do best: they read it
/// when they are loaded.
fn measure_in_child() -> Result<ExitCode, String> {
    let executable = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(executable);
    command.args(env::args_os().skip(1)).env(STAGE_VARIABLE, "1");
    for setting in probe::best_settings() {
        match setting.value {
            Some(value) => command.env(setting.variable, value),
            None => command.env_remove(setting.variable),
        };
    }
    let status = command.status().map_err(|error| error.to_string())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &Args) -> Result<ExitCode, String> {
    let machine = Machine::read();
    let max_threads = args.threads.iter().copied().max().unwrap_or(1);
    let mut candidates = Candidates::load(max_threads, None);
    candidates.retain(&args.candidates);
    candidates.all.push(Box::new(peaks::ReadB));
    let mut children = Vec::new();
    if max_threads > 1 {
        for candidate in &candidates.all {
            children.push(Child::start(candidate.name(), max_threads)?);
        }
    }
    let effort = if args.quick {
        Effort { sample: Duration::from_millis(1), case: Duration::from_millis(400) }
    } else {
        Effort { sample: Duration::from_millis(2), case: Duration::from_millis(800) }
    };
    let cases = shapes::cases(args.quick, &args.precisions, &args.shapes, &args.threads);
    let mut results = Results {
        cases: cases.iter().copied().map(CaseResult::new).collect(),
        peers: candidates.peers,
        missing: candidates.missing,
        rates: Vec::new(),
        bandwidths: Vec::new(),
        others: Vec::new(),
        machine,
    };
    let last_level_bytes = results.machine.last_level_bytes();
    let start = Instant::now();
    let mut patience = Patience::new(Duration::from_secs(args.patience_s));
    for run in 0..args.runs {
        let cpu = CpuTime::now();
        eprintln!("run {} of {}: peaks", run + 1, args.runs);
        patience.wait(max_threads);
        results.keep_best_peaks(
            peaks::measure_rates(&args.threads, PEAK_TRIES),
            peaks::measure_bandwidth(&results.machine, &args.threads, PEAK_TRIES),
        );
        for (index, result) in results.cases.iter_mut().enumerate() {
            let elapsed_s = start.elapsed().as_secs();
            eprintln!(
                "run {} of {}, {elapsed_s} s: case {} of {}: {}",
                run + 1,
                args.runs,
                index + 1,
                cases.len(),
                result.case
            );
            let case_run = measure::run_case(
                result,
                &candidates.all,
                &mut children,
                last_level_bytes,
                effort,
                &mut patience,
            )?;
            result.add(case_run);
        }
        let others = cpu.zip(CpuTime::now()).map(|(start, end)| end.others_since(&start));
        results.others.extend(others);
    }
    report(args, &results)
}

/// Beside the directory of the build.
fn default_plots() -> PathBuf {
    let executable = env::current_exe().unwrap_or_default();
    executable.parent().and_then(Path::parent).unwrap_or(Path::new("target")).join("peers/plots")
}

fn report(args: &Args, results: &Results) -> Result<ExitCode, String> {
    let verdicts = targets::verdicts(results);
    print!("{}{}", table::surroundings(results), table::cases(results));
    print!("{}", table::verdicts(&verdicts));
    print!("{}", table::warnings(results));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&json::report(results, &verdicts))
            .map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
        println!("figures: {}", path.display());
    }
    let plots = args.plots.clone().unwrap_or_else(default_plots);
    for file in plot::write(results, &plots)? {
        println!("plot: {}", file.display());
    }
    let wrong = results.cases.iter().any(|result| result.not_run.iter().any(|not_run| not_run.wrong));
    let missing = results.missing.iter().any(|missing| missing.required) && !args.allow_missing;
    if wrong {
        eprintln!("error: a candidate computed wrong numbers");
    }
    if missing {
        eprintln!("error: a peer could not be loaded");
    }
    Ok(if wrong || missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
