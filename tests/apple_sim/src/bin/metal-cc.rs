//! `metal-cc FILE.metal DIRECTORY VERSION`: builds a kernel library in the directory and prints
//! its path; on failure prints the compiler's complaint and exits with 1.
//!
//! `metal-cc --source-header OBJC FILE` writes `ane_metal_source.h`.

use std::path::Path;
use std::process::ExitCode;

use apple_sim::compile::{Build, MetalVersion, build};
use apple_sim::host::metal_source_header;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let ["--source-header", objc, file] = args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        let written = metal_source_header(Path::new(objc)).and_then(|text| std::fs::write(file, text));
        return match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{file}: {e}");
                ExitCode::FAILURE
            }
        };
    }
    let [metal, dir, version] = args.as_slice() else {
        eprintln!("usage: metal-cc FILE.metal DIRECTORY VERSION");
        return ExitCode::from(2);
    };
    let Ok(version) = version.parse() else {
        eprintln!("a Metal version is a number such as 310");
        return ExitCode::from(2);
    };
    let metal = Path::new(metal);
    let include = metal.parent().unwrap_or(Path::new("."));
    let wanted = Build { metal, include, version: MetalVersion(version), with_plan: false, only: &[] };
    match build(&wanted, Path::new(dir)) {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(log) => {
            eprint!("{log}");
            ExitCode::FAILURE
        }
    }
}
