//! What measurements depend on: chip, operating system, and this build of the crate.

use std::sync::LazyLock;

/// What a [`crate::Profile`] was measured on; figures of one key say nothing about another.
///
/// ```
/// use ane_matmul::{MachineKey, Profile};
///
/// let mut key = MachineKey::here();
/// println!("{} with {}", key.chip, key.os_build);
/// key.os_build = "24A335".into(); // after an update, say
/// let (_, difference) = Profile::new(key).for_this_machine();
/// assert!(difference.expect("another build").contains("24A335"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MachineKey {
    /// The chip: `machdep.cpu.brand_string` on macOS, `hw.machine` on iOS, the model of
    /// `/proc/cpuinfo` on Linux, `PROCESSOR_IDENTIFIER` on Windows; otherwise the architecture.
    pub chip: String,
    /// The build of the operating system: `kern.osversion` on Apple systems, the release of the kernel
    /// on Linux; otherwise the system's name.
    pub os_build: String,
    /// The version of this crate.
    pub crate_version: String,
    /// What changes the backends of a build or their speed, separated by commas: the features `blas`
    /// and `half`, and `debug` for a build with debug assertions.
    pub features: String,
}

impl MachineKey {
    /// The key of this machine and this build.
    #[must_use]
    pub fn here() -> Self {
        HERE.clone()
    }

    /// What differs from `other`, in words; `None` where nothing does.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let fields = [
            ("chip", &self.chip, &other.chip),
            ("OS build", &self.os_build, &other.os_build),
            ("crate version", &self.crate_version, &other.crate_version),
            ("features", &self.features, &other.features),
        ];
        let (name, mine, others) = fields.into_iter().find(|(_, mine, others)| mine != others)?;
        Some(format!("its {name} is `{mine}`, not `{others}`"))
    }
}

static HERE: LazyLock<MachineKey> = LazyLock::new(|| {
    let features = [
        ("blas", cfg!(feature = "blas")),
        ("half", cfg!(feature = "half")),
        ("debug", cfg!(debug_assertions)),
    ];
    MachineKey {
        chip: chip().unwrap_or_else(|| std::env::consts::ARCH.into()),
        os_build: os_build().unwrap_or_else(|| std::env::consts::OS.into()),
        crate_version: env!("CARGO_PKG_VERSION").into(),
        features: features
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect::<Vec<_>>()
            .join(","),
    }
});

/// A string that the kernel knows by name.
#[cfg(target_vendor = "apple")]
#[allow(unsafe_code, reason = "sysctl is a C function")]
pub(crate) fn sysctl(name: &std::ffi::CStr) -> Option<String> {
    let mut bytes = [0u8; 256];
    let mut length = bytes.len();
    // SAFETY: the name is a C string, `length` is the size of `bytes`, and nothing is set.
    let status = unsafe {
        libc::sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &raw mut length, std::ptr::null_mut(), 0)
    };
    let text = std::ffi::CStr::from_bytes_until_nul(bytes.get(..length)?).ok()?.to_str().ok()?.trim();
    (status == 0 && !text.is_empty()).then(|| text.to_owned())
}

#[cfg(target_vendor = "apple")]
fn chip() -> Option<String> {
    if cfg!(target_os = "macos") { sysctl(c"machdep.cpu.brand_string") } else { sysctl(c"hw.machine") }
}

#[cfg(target_vendor = "apple")]
fn os_build() -> Option<String> {
    sysctl(c"kern.osversion")
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn chip() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |key: &str| {
        info.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
    };
    // arm64 kernels name the implementer and the part, but no model.
    value("model name").or_else(|| {
        Some(format!("arm64 implementer {} part {}", value("CPU implementer")?, value("CPU part")?))
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn os_build() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(release.trim().to_owned()).filter(|release| !release.is_empty())
}

#[cfg(not(any(target_vendor = "apple", target_os = "linux", target_os = "android")))]
fn chip() -> Option<String> {
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}

#[cfg(not(any(target_vendor = "apple", target_os = "linux", target_os = "android")))]
fn os_build() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let here = MachineKey::here();
        assert_eq!(here.difference(&here), None);
        assert!(!here.chip.is_empty() && !here.os_build.is_empty());
        let other = MachineKey { os_build: "23F79".into(), ..here.clone() };
        assert!(other.difference(&here).unwrap().starts_with("its OS build is `23F79`, not `"));
        let other = MachineKey { features: "other".into(), ..here.clone() };
        assert!(other.difference(&here).unwrap().contains("features"));
    }
}
