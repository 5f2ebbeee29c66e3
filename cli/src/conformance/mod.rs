//! `ane-matmul conformance`.

mod helper;
mod report;

use std::time::Instant;

use ane_matmul_conformance::List;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{ConformanceArgs, RunArgs};
use crate::failure::{Failure, Output};
use crate::output::{keep_ticking, print, print_json};

pub(crate) use helper::serve;
use helper::{Answer, Ended, Helper};
use report::{Report, Tally};

/// Of so many crashes in a list the rest of it would say no more.
const CRASHES: usize = 10;

pub(crate) fn run(args: &ConformanceArgs) -> Output {
    let lists = select(args)?;
    let start = || Helper::start(&args.run, args.time_limit);
    let first = start()?;
    let mut report = Report::new(first.backend(), &args.run);
    let mut helper = Some(first);

    let total: usize = lists.iter().map(|(_, numbers)| numbers.len()).sum();
    let progress = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} cases, {elapsed}]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    keep_ticking(&progress);
    for (list, numbers) in lists {
        let cases = list.cases();
        let mut tally = Tally::new(list, numbers.len());
        let (began, mut crashes) = (Instant::now(), 0);
        for number in numbers {
            progress.inc(1);
            if crashes == CRASHES || report.problem.is_some() {
                tally.not_run += 1;
                continue;
            }
            progress.set_message(format!("{list}, case {number}"));
            let running = match helper.take().map_or_else(start, Ok) {
                Ok(running) => running,
                // What was found until then is worth something.
                Err(Failure(problem)) => {
                    report.problem = Some(format!("after a case that ended it: {problem}"));
                    tally.not_run += 1;
                    continue;
                }
            };
            let (answer, kept) = running.ask(list, number);
            helper = kept;
            match answer {
                // What hangs once would take its time each time.
                Answer::Ended(Ended::Late) => crashes = CRASHES,
                Answer::Ended(Ended::Crashed(_)) => crashes += 1,
                _ => {}
            }
            tally.add(number, &cases[number - 1], answer);
        }
        tally.time = began.elapsed();
        report.tallies.push(tally);
    }
    if let Some(Err(ended)) = helper.map(Helper::finish) {
        report.problem = Some(format!("after the last case: {ended}"));
    }
    progress.finish_and_clear();

    if args.json {
        print_json(&report.to_json())?
    } else {
        print(report.to_text())?
    }
    report.verdict(&args.require).map_err(Failure)
}

/// The lists to run, each once, with the numbers of their cases.
fn select(args: &ConformanceArgs) -> Output<Vec<(List, Vec<usize>)>> {
    let named = if args.lists.is_empty() { &List::ALL[..] } else { &args.lists };
    let mut lists: Vec<List> = Vec::new();
    for &list in named {
        if !lists.contains(&list) {
            lists.push(list);
        }
    }
    if let Some(list) = args.require.iter().find(|list| !lists.contains(list)) {
        return Err(Failure::new(format!("--require: {list} is not among the lists to run")));
    }
    if args.cases.is_empty() {
        return Ok(lists.into_iter().map(|list| (list, (1..=list.cases().len()).collect())).collect());
    }
    let [list] = lists[..] else {
        return Err(Failure::new(format!("--case: name one list with --list, got {}", lists.len())));
    };
    let count = list.cases().len();
    let numbers: Vec<usize> = args.cases.iter().map(|&number| number.get()).collect();
    match numbers.iter().find(|&&number| number > count) {
        Some(number) => Err(Failure::new(format!("--case: {list} has the cases 1 to {count}, got {number}"))),
        None => Ok(vec![(list, numbers)]),
    }
}

/// The command that runs a case again.
fn command(list: List, number: usize, run: &RunArgs) -> String {
    format!("ane-matmul conformance {} --list {list} --case {number}", run.to_arguments().join(" "))
}
