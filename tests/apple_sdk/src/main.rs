//! `apple-sdk DIRECTORY` writes the declarations there.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: apple-sdk DIRECTORY");
        return ExitCode::from(2);
    };
    match apple_sdk::write_headers(Path::new(&directory), include_str!("../availability.txt")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
