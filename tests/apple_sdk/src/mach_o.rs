//! What a linked program for Apple's systems says of itself, as `llvm-objdump` and `llvm-nm` print it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Command;

use crate::{AVAILABILITY, Since, availability};

/// What a program must be.
#[derive(Debug)]
pub struct Expected<'a> {
    /// `macos` or `ios`.
    pub platform: &'a str,
    /// The oldest system that it says to run on, `13.0`.
    pub oldest: &'a str,
    /// The last parts of the install names of all libraries that it loads.
    pub libraries: BTreeSet<&'a str>,
    /// All symbols that a dynamic library exports; not looked at in programs.
    pub exports: Option<BTreeSet<&'a str>>,
}

/// Frameworks of whose symbols the first systems must be known.
const DATED: [&str; 3] = ["Metal", "MetalPerformanceShaders", "MetalPerformanceShadersGraph"];

/// Everything that is not as expected of a linked file.
///
/// # Errors
/// When LLVM's tools do not run.
pub fn check(file: &Path, expected: &Expected) -> io::Result<Vec<String>> {
    let headers = run("llvm-objdump-19", &["--macho", "--private-headers"], file)?;
    let imports = run("llvm-nm-19", &["-m", "--undefined-only"], file)?;
    let since = availability(AVAILABILITY).map_err(io::Error::other)?;
    let mut found = headers_differ(&headers, expected);
    found.extend(wrong_imports(&imports, expected, &since));
    if let Some(exports) = &expected.exports {
        let text = run("llvm-nm-19", &["--extern-only", "--defined-only", "--just-symbol-name"], file)?;
        let names: BTreeSet<&str> = text.lines().collect();
        if names != *exports {
            found.push(format!("it exports {names:?}, not {exports:?}"));
        }
    }
    Ok(found)
}

fn run(tool: &str, arguments: &[&str], file: &Path) -> io::Result<String> {
    let output = Command::new(tool).args(arguments).arg(file).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{tool}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The words after a key of a load command.
fn values<'a>(headers: &'a str, key: &str) -> Vec<&'a str> {
    let words = headers.lines().filter_map(|line| line.trim().split_once(' '));
    words.filter(|(found, _)| *found == key).map(|(_, value)| value.trim()).collect()
}

fn headers_differ(headers: &str, expected: &Expected) -> Vec<String> {
    let mut found = Vec::new();
    for (key, wanted) in [("platform", expected.platform), ("minos", expected.oldest)] {
        let said = values(headers, key);
        if said != [wanted] {
            found.push(format!("its {key} is {said:?}, not {wanted}"));
        }
    }
    let loads: Vec<&str> = headers
        .split("Load command ")
        .filter(|command| command.contains("cmd LC_LOAD_"))
        .flat_map(|command| values(command, "name"))
        .collect();
    let names = loads.iter().filter_map(|name| name.split(" (offset").next()?.rsplit('/').next());
    let names: BTreeSet<&str> = names.filter(|name| *name != "dyld").collect();
    if names != expected.libraries {
        let more: Vec<_> = names.difference(&expected.libraries).collect();
        let missing: Vec<_> = expected.libraries.difference(&names).collect();
        found.push(format!("it loads {more:?} that it should not, and not {missing:?}"));
    }
    found
}

/// Symbols that are younger than the oldest system without being weak, or weak without need, or undated.
fn wrong_imports(imports: &str, expected: &Expected, since: &BTreeMap<&str, Since>) -> Vec<String> {
    let oldest = expected
        .oldest
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    let mut found = Vec::new();
    for line in imports.lines() {
        let Some((symbol, library)) = line.strip_suffix(')').and_then(|line| line.rsplit_once(" (from "))
        else {
            continue;
        };
        if !DATED.contains(&library) {
            continue;
        }
        let weak = symbol.contains(" weak ");
        let symbol = symbol.rsplit(' ').next().unwrap_or_default();
        let name = symbol.strip_prefix("_OBJC_CLASS_$").unwrap_or(symbol).trim_start_matches('_');
        let Some(since) = since.get(name) else {
            found.push(format!("{name} of {library} is not in availability.txt"));
            continue;
        };
        let first = if expected.platform == "macos" { since.macos } else { since.ios };
        let young = oldest.is_some_and(|oldest| first > oldest);
        if young && !weak {
            found.push(format!(
                "{name} is there from {} {}.{} on, and not a weak import: the program does not start before",
                expected.platform, first.0, first.1
            ));
        } else if weak && !young {
            found.push(format!("{name} is a weak import without need"));
        }
    }
    if !imports.contains("(from ") {
        found.push("it imports nothing that could be checked".into());
    }
    found
}
