//! Plants faults in the kernels, the plan and the shims, one at a time, and shows that each is caught.
//!
//! A fault in a kernel or the plan is judged by the case sweep over the f32 kernels, one in a shim by
//! its host tests; all in a process of their own, since a fault may crash or hang it.

mod mutants;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use apple_sim::compile::{Build, METAL_3_1, build, objc_dir};
use apple_sim::library::Kernels;
use apple_sim::plan::element;
use apple_sim::sweep;

use mutants::{MUTANTS, Mutant};

const LIMIT: Duration = Duration::from_secs(300);

/// Judges the kernels of a directory: prints the first failure.
fn judge_kernels(objc: &Path, out: &Path) -> Result<(), String> {
    let metal = objc.join("matmul.metal");
    let wanted = Build { metal: &metal, include: objc, version: METAL_3_1, with_plan: true, only: &["_f32"] };
    let library = build(&wanted, out).map_err(|e| format!("COMPILER: {e}"))?;
    let kernels = Kernels::open(&library)?;
    let cases: Vec<_> = sweep::cases().into_iter().filter(|c| c.input == element::F32).collect();
    sweep::run(&kernels, &cases, &sweep::SCHEDULES, 1).map(drop).map_err(|e| e.join("\n"))
}

/// What judges a fault.
#[derive(Debug, Clone, Copy)]
enum Judge {
    Kernels,
    Metal,
    Mpsgraph,
}

impl Judge {
    /// Those of a file, one of which must find a fault in it.
    fn of(file: &str) -> &'static [Self] {
        match file {
            "matmul.metal" | "matmul_plan.h" => &[Self::Kernels],
            "ane_mpsgraph.m" => &[Self::Mpsgraph],
            "shim_support.h" => &[Self::Metal, Self::Mpsgraph],
            _ => &[Self::Metal],
        }
    }

    fn command(self, objc: &Path, out: &Path) -> Result<Command, String> {
        let own = env::current_exe().map_err(|e| e.to_string())?;
        let (program, runs) = match self {
            Self::Kernels => {
                let mut command = Command::new(&own);
                command.arg("judge").arg(objc).arg(out);
                return Ok(command);
            }
            Self::Metal => ("metal-host-tests", "500"),
            Self::Mpsgraph => ("mpsgraph-host-tests", "10000"),
        };
        let mut command = Command::new(own.with_file_name(program));
        command
            .env("ANE_SIM_OBJC", objc)
            .env("ANE_SIM_CASE_STEP", "9")
            .env("ANE_SIM_RUNS", runs)
            .env("RUST_BACKTRACE", "0");
        Ok(command)
    }
}

/// Runs a judge on a directory: what it said, if it found fault.
fn judge(by: Judge, objc: &Path, out: &Path) -> Result<Option<String>, String> {
    let mut command = by.command(objc, out)?;
    let log = out.join("judge.log");
    let file = fs::File::create(&log).map_err(|e| e.to_string())?;
    let both = file.try_clone().map_err(|e| e.to_string())?;
    let mut child = command.stdout(file).stderr(Stdio::from(both)).spawn().map_err(|e| e.to_string())?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = String::from_utf8_lossy(&fs::read(&log).map_err(|e| e.to_string())?).into_owned();
    match status {
        // A process that ends early and quietly has not passed.
        Some(status) if status.success() && said.contains("test result: ok") => Ok(None),
        Some(status) => Ok(Some(format!("{said}\n{status}"))),
        None => Ok(Some("no end within the limit".into())),
    }
}

fn plant(mutant: &Mutant, dir: &Path) -> Result<(), String> {
    let objc = objc_dir();
    for file in [
        "matmul.metal",
        "matmul_params.h",
        "matmul_plan.h",
        "metal_matmul.m",
        "ane_mpsgraph.m",
        "shim_support.h",
    ] {
        let mut text = fs::read_to_string(objc.join(file)).map_err(|e| e.to_string())?;
        if file == mutant.file {
            if text.matches(mutant.text).count() != 1 {
                return Err(format!("`{}` is not once in {file}", mutant.text));
            }
            text = text.replace(mutant.text, mutant.replacement);
        }
        fs::write(dir.join(file), text).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// The line of a judge's words that says most.
fn summary(said: &str) -> String {
    // GNUstep's own complaints, Rust's hint about backtraces, and what tests say of themselves say nothing of the fault.
    let noise = |l: &str| {
        l.contains(" File NS") || l.starts_with("note:") || l.starts_with("  ") || l.starts_with("test ")
    };
    let lines = || said.lines().filter(|l| !l.trim().is_empty() && !noise(l));
    let line = lines()
        .find(|l| {
            ["Race", " at ", "error", "C[", "byte", "assert", "status"].iter().any(|w| l.contains(w))
                && !l.contains("panicked")
        })
        .or_else(|| lines().next_back())
        .unwrap_or_default();
    // A case's own words are long, and stand first.
    let line = line
        .rfind("metal:")
        .or_else(|| line.find(" C["))
        .map_or(line, |at| &line[line[..at].rfind(": ").map_or(0, |n| n + 2)..]);
    line.trim().chars().take(170).collect()
}

/// A directory of mutated sources, and one for what is built of them.
fn scratch(name: &str) -> Result<(PathBuf, PathBuf, PathBuf), String> {
    let own = env::current_exe().map_err(|e| e.to_string())?;
    let scratch = own.with_file_name(format!("mutate-{}-{name}", std::process::id()));
    let (objc, out) = (scratch.join("objc"), scratch.join("out"));
    for dir in [&objc, &out] {
        fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    }
    Ok((scratch, objc, out))
}

/// Plants a mutant and judges it: what was said, or nothing when it survived.
fn try_mutant(mutant: &Mutant, objc: &Path, out: &Path) -> Result<Option<String>, String> {
    plant(mutant, objc).map_err(|e| format!("{}: {e}", mutant.name))?;
    for by in Judge::of(mutant.file) {
        match judge(*by, objc, out)? {
            // A fault that does not compile proves nothing.
            Some(said)
                if ["COMPILER: ", "error generated", "errors generated"].iter().any(|w| said.contains(w)) =>
            {
                return Err(format!("{} does not compile:\n{said}", mutant.name));
            }
            Some(said) => return Ok(Some(said)),
            None => {}
        }
    }
    Ok(None)
}

/// The mutants that no worker has taken yet.
fn worker(name: &str, queue: &Mutex<Vec<&Mutant>>, survivors: &AtomicU32) -> Result<(), String> {
    let (scratch, objc, out) = scratch(name)?;
    loop {
        let next = queue.lock().map_err(|e| e.to_string())?.pop();
        let Some(mutant) = next else { break };
        match try_mutant(mutant, &objc, &out)? {
            Some(said) => println!("caught   {} ({}): {}", mutant.name, mutant.file, summary(&said)),
            None => {
                survivors.fetch_add(1, Ordering::Relaxed);
                println!("SURVIVED {} ({})", mutant.name, mutant.file);
            }
        }
    }
    fs::remove_dir_all(&scratch).map_err(|e| e.to_string())
}

/// Does all of it at the same time.
fn in_parallel<const N: usize>(work: [impl FnOnce() -> Result<(), String> + Send; N]) -> Result<(), String> {
    thread::scope(|scope| {
        let workers = work.map(|work| scope.spawn(work));
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| Err("a worker panicked".into())))
    })
}

/// All judges on the sources as they are.
fn baseline() -> Result<(), String> {
    let sound = |by: Judge| {
        let (scratch, objc, out) = scratch(&format!("baseline-{by:?}"))?;
        plant(&Mutant { name: "none", file: "", text: "", replacement: "" }, &objc)?;
        if let Some(said) = judge(by, &objc, &out)? {
            return Err(format!("without a fault the judge finds one:\n{said}"));
        }
        fs::remove_dir_all(&scratch).map_err(|e| e.to_string())
    };
    in_parallel([Judge::Kernels, Judge::Metal, Judge::Mpsgraph].map(|by| move || sound(by)))
}

fn run(filter: Option<&str>, step: usize) -> Result<bool, String> {
    baseline()?;
    let chosen: Vec<&Mutant> = MUTANTS
        .iter()
        .filter(|m| filter.is_none_or(|f| m.name.contains(f) || m.file == f))
        .step_by(step)
        .collect();
    let planted = chosen.len();
    let (queue, survivors) = (Mutex::new(chosen), AtomicU32::new(0));
    let (queue_of, survivors_of) = (&queue, &survivors);
    in_parallel(["0", "1"].map(|name| move || worker(name, queue_of, survivors_of)))?;
    let survived = survivors.into_inner();
    println!("mutation: {planted} planted, {} caught, {survived} survived", planted as u32 - survived);
    Ok(survived == 0)
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["judge", objc, out] => judge_kernels(&PathBuf::from(objc), &PathBuf::from(out)).map(|()| {
            println!("test result: ok");
            true
        }),
        [] => run(None, 1),
        ["--step", step] => {
            step.parse().map_err(|_| format!("`{step}` is no number")).and_then(|n| run(None, n))
        }
        [filter] => run(Some(filter), 1),
        _ => Err("usage: shim-mutate [--step N | FILE | PART-OF-A-NAME]".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
