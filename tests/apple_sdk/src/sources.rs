//! Where cargo keeps the sources of the `objc2-*` crates.

use std::io;
use std::path::PathBuf;
use std::process::Command;

/// The frameworks, in the order of their dependencies.
pub const FRAMEWORKS: [&str; 4] =
    ["Foundation", "Metal", "MetalPerformanceShaders", "MetalPerformanceShadersGraph"];

const CRATES: [&str; 4] = [
    "objc2-foundation",
    "objc2-metal",
    "objc2-metal-performance-shaders",
    "objc2-metal-performance-shaders-graph",
];

/// The directories of generated sources, one for each of [`FRAMEWORKS`].
///
/// # Errors
/// When cargo does not know one of the crates.
pub fn source_directories() -> io::Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    CRATES
        .iter()
        .map(|name| {
            packages
                .iter()
                .find(|package| package["name"] == *name)
                .and_then(|package| package["manifest_path"].as_str())
                .map(|manifest| PathBuf::from(manifest).with_file_name("src").join("generated"))
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("cargo does not know {name}")))
        })
        .collect()
}
