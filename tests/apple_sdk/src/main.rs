//! `apple-sdk write DARWIN DIRECTORY MACOS...` writes `sdkMACOS` of each macOS, with Darwin's headers from DARWIN.
//!
//! `apple-sdk check PLATFORM OLDEST LIBRARIES EXPORTS FILE...` checks linked programs: lists are separated by commas,
//! and `-` as EXPORTS asks for none.

use std::path::Path;
use std::process::ExitCode;

use apple_sdk::Declared;
use apple_sdk::mach_o::{Expected, check};

fn run(arguments: &[&str]) -> Result<(), String> {
    match arguments {
        ["write", darwin, directory, systems @ ..] => {
            let declared = Declared::read().map_err(|error| error.to_string())?;
            systems.iter().try_for_each(|macos| {
                let sdk = Path::new(directory).join(format!("sdk{macos}"));
                let macos = macos.parse().map_err(|error| format!("{macos}: {error}"))?;
                declared.write_sdk(&sdk, Path::new(darwin), macos).map_err(|error| error.to_string())
            })
        }
        ["check", platform, oldest, libraries, exports, files @ ..] if !files.is_empty() => {
            let expected = Expected {
                platform,
                oldest,
                libraries: libraries.split(',').collect(),
                exports: (*exports != "-").then(|| exports.split(',').collect()),
            };
            let mut found = Vec::new();
            for file in files {
                let wrong = check(Path::new(file), &expected).map_err(|error| format!("{file}: {error}"))?;
                found.extend(wrong.into_iter().map(|wrong| format!("{file}: {wrong}")));
            }
            if found.is_empty() { Ok(()) } else { Err(found.join("\nerror: ")) }
        }
        _ => Err("usage: apple-sdk write DARWIN DIRECTORY MACOS...\n       apple-sdk check PLATFORM OLDEST LIBRARIES EXPORTS FILE...".into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
