//! What this machine is.

use ane_matmul::MachineKey;
use serde_json::{Value, json};

/// Facts about the machine that figures depend on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) allowed_threads: usize,
    pub(crate) instruction_sets: Vec<&'static str>,
    /// The operating system and its version.
    pub(crate) os: String,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let allowed_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let key = MachineKey::here();
        let os = os_name().unwrap_or_else(|| std::env::consts::OS.into());
        Self {
            cpu: key.chip,
            cores: cores().unwrap_or(allowed_threads),
            allowed_threads,
            instruction_sets: instruction_sets(),
            os: format!("{os}, build {}", key.os_build),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "allowed_threads": self.allowed_threads,
            "instruction_sets": self.instruction_sets,
            "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS,
            "os_version": self.os,
            "ane_matmul_version": env!("CARGO_PKG_VERSION"),
        })
    }
}

#[cfg(target_vendor = "apple")]
fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(target_vendor = "apple")]
fn cores() -> Option<usize> {
    sysctl("hw.physicalcpu")?.parse().ok()
}

#[cfg(target_vendor = "apple")]
fn os_name() -> Option<String> {
    Some(format!("{} {}", std::env::consts::OS, sysctl("kern.osproductversion")?))
}

#[cfg(not(target_vendor = "apple"))]
fn os_name() -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

#[cfg(not(target_vendor = "apple"))]
fn cores() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    Some(info.lines().filter(|line| line.starts_with("processor")).count()).filter(|&count| count > 0)
}

/// The instruction sets that matter to matrix products and that this CPU has.
fn instruction_sets() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! detect {
        ($macro:ident: $($name:tt),*) => {
            $(if std::arch::$macro!($name) { found.push($name); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    detect!(is_x86_feature_detected: "sse4.2", "avx", "f16c", "fma", "avx2", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    detect!(is_aarch64_feature_detected: "neon", "fp16", "dotprod", "bf16", "i8mm", "sve", "sve2");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_as_many_cores_as_threads_are_allowed_at_least() {
        let machine = Machine::new();
        assert!(machine.cores >= machine.allowed_threads, "{machine:?}");
        #[cfg(not(target_vendor = "apple"))]
        if let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") {
            let listed = info.matches("\nprocessor").count() + usize::from(info.starts_with("processor"));
            assert_eq!(cores(), Some(listed).filter(|&count| count != 0));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instruction_sets_are_those_that_were_detected() {
        let found = instruction_sets();
        assert_eq!(found.contains(&"avx2"), is_x86_feature_detected!("avx2"));
        assert_eq!(found.contains(&"sse4.2"), is_x86_feature_detected!("sse4.2"));
        assert!(
            found
                .iter()
                .all(|name| ["sse", "avx", "f16c", "fma"].iter().any(|start| name.starts_with(start)))
        );
    }

    #[cfg(not(target_vendor = "apple"))]
    #[test]
    fn the_system_has_the_name_that_it_gives_itself() {
        match std::fs::read_to_string("/etc/os-release") {
            Ok(release) if release.contains("PRETTY_NAME=") => {
                let name = os_name().unwrap();
                assert!(
                    release.contains(&format!("PRETTY_NAME=\"{name}\""))
                        || release.contains(&format!("PRETTY_NAME={name}"))
                );
                assert!(!name.is_empty());
            }
            _ => assert_eq!(os_name(), None),
        }
    }
}
