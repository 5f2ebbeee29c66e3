//! The machine, how busy it is, and the versions of what was built.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

/// What is known of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Of the first core's data caches, from the first level on, as the system says.
    pub(crate) caches: Vec<Cache>,
    pub(crate) instructions: Vec<&'static str>,
    pub(crate) system: String,
    pub(crate) date: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) level: usize,
    pub(crate) bytes: usize,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let mut caches = read_caches(Path::new("/sys/devices/system/cpu/cpu0/cache"));
        if caches.is_empty() {
            // Common sizes, where the system does not say.
            caches = vec![
                Cache { level: 1, bytes: 32 << 10 },
                Cache { level: 2, bytes: 1 << 20 },
                Cache { level: 3, bytes: 32 << 20 },
            ];
        }
        Self {
            cpu: cpu_name(),
            cores: available_parallelism().map_or(1, usize::from),
            caches,
            instructions: crate::peaks::instruction_sets(),
            system: output("uname", &["-srm"]).unwrap_or_else(|| std::env::consts::OS.to_owned()),
            date: output("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default(),
        }
    }

    pub(crate) fn last_level_bytes(&self) -> usize {
        self.caches.last().map_or(0, |cache| cache.bytes)
    }
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").or_else(|| output("sysctl", &["-n", "machdep.cpu.brand_string"]));
    let name = name.unwrap_or_else(|| "unknown".to_owned());
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}

fn read_caches(directory: &Path) -> Vec<Cache> {
    let mut caches: Vec<Cache> = (0..8)
        .filter_map(|index| {
            let read = |file: &str| fs::read_to_string(directory.join(format!("index{index}/{file}"))).ok();
            let data = read("type").is_some_and(|kind| matches!(kind.trim(), "Data" | "Unified"));
            let level = read("level")?.trim().parse().ok()?;
            let bytes = parse_size(read("size")?.trim())?;
            data.then_some(Cache { level, bytes })
        })
        .collect();
    caches.sort_by_key(|cache| cache.level);
    caches
}

/// `48K`, `32M` or bytes.
fn parse_size(text: &str) -> Option<usize> {
    let unit = match text.chars().last()? {
        'K' => 1 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1].parse::<usize>().ok().map(|number| number * unit)
}

fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The crate's version and commit.
pub(crate) fn own_version() -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let commit = output("git", &["-C", directory, "describe", "--always", "--dirty", "--exclude=*"]);
    format!("{}, commit {}", locked_version("ane-matmul"), commit.as_deref().unwrap_or("unknown"))
}

/// The version of a crate that this was built with.
pub(crate) fn locked_version(name: &str) -> String {
    version_in(include_str!("../../../Cargo.lock"), name).unwrap_or("unknown").to_owned()
}

fn version_in<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let package =
        lock.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\"\n")))?;
    let version = package.lines().find_map(|line| line.strip_prefix("version = "))?;
    Some(version.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        assert_eq!(parse_size("48K"), Some(48 << 10));
        assert_eq!(parse_size("32M"), Some(32 << 20));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("x"), None);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"a-b\"\nversion = \"2.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\n";
        assert_eq!(version_in(lock, "a"), Some("1.2.3"));
        assert_eq!(version_in(lock, "c"), None);
        for name in ["ane-matmul", "gemm", "faer", "matrixmultiply", "private-gemm-x86"] {
            assert_ne!(locked_version(name), "unknown", "{name}");
        }
    }
}
