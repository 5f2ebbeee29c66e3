//! Builds a kernel library: preprocess, translate, compile, link. Results are kept by content.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::translate::{Mode, translate};

/// The version of Metal that the kernels are compiled as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetalVersion(pub u32);

/// macOS 13 and iOS 16: no bf16.
pub const METAL_3_0: MetalVersion = MetalVersion(300);
/// macOS 14 and iOS 17.
pub const METAL_3_1: MetalVersion = MetalVersion(310);

const CLANG: &str = "clang++-19";

/// The directory of the C++ half of the emulator.
#[must_use]
pub fn cpp_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp")
}

/// The directory of the crate's Objective-C and Metal sources.
#[must_use]
pub fn objc_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../objc")
}

/// Runs a command; its standard output, or what it complained about.
pub(crate) fn output_of(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    // A sanitizer's library is for this process, not for compilers.
    let output =
        command.env_remove("LD_PRELOAD").output().map_err(|e| format!("{program} cannot be run: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The text of a kernel file after preprocessing, with line markers.
///
/// # Errors
/// What the preprocessor said.
pub fn preprocess(metal: &Path, include: &Path, version: MetalVersion) -> Result<String, String> {
    let text = output_of(
        Command::new(CLANG)
            .args(["-E", "-x", "c++", "-std=c++14", "-nostdinc"])
            .arg(format!("-D__METAL_VERSION__={}", version.0))
            .arg("-I")
            .arg(cpp_dir().join("metal"))
            .arg("-I")
            .arg(include)
            .arg(metal),
    )?;
    // The same text must give the same library wherever it lies.
    let name = metal.file_name().unwrap_or_default().to_string_lossy();
    Ok(text.replace(&*metal.to_string_lossy(), &name))
}

/// A kernel library to build.
#[derive(Debug, Clone)]
pub struct Build<'a> {
    /// The kernel file.
    pub metal: &'a Path,
    /// Where its own includes are, and the plan's header.
    pub include: &'a Path,
    /// The version to compile as.
    pub version: MetalVersion,
    /// Whether to link the plan (`matmul_plan.h`) in.
    pub with_plan: bool,
    /// Only instances whose name has one of these parts; empty for all.
    pub only: &'a [&'a str],
}

/// Keeps the instances that are wanted: compiling them is what takes time.
fn keep_instances(preprocessed: &str, only: &[&str]) -> String {
    if only.is_empty() {
        return preprocessed.to_owned();
    }
    let mut out = String::new();
    let mut rest = preprocessed;
    while let Some(start) = rest.find("template [[host_name(") {
        let end = rest[start..].find(';').map_or(rest.len(), |n| start + n + 1);
        let name = rest[start..end].replace("\" \"", "");
        out += &rest[..start];
        if only.iter().any(|part| name.contains(part)) {
            out += &rest[start..end];
        } else {
            out.extend(rest[start..end].matches('\n'));
        }
        rest = &rest[end..];
    }
    out + rest
}

fn hash_files(hasher: &mut DefaultHasher, dir: &Path) -> Result<(), String> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .map_err(|e| format!("{}: {e}", dir.display()))?
        .flatten()
        .map(|e| e.path())
        .collect();
    paths.sort();
    for path in paths.iter().filter(|p| p.is_file()) {
        fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?.hash(hasher);
    }
    Ok(())
}

fn compile(source: &Path, object: &Path, flags: &[&str], include: &[&Path]) -> Result<(), String> {
    let mut command =
        Command::new(if source.extension() == Some(OsStr::new("c")) { "clang-19" } else { CLANG });
    command.args(["-c", "-g", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror"]).args(flags);
    for dir in include {
        command.arg("-I").arg(dir);
    }
    output_of(command.arg("-o").arg(object).arg(source)).map(drop)
}

/// Builds a library in `dir`, unless one of the same content is there: its path.
///
/// # Errors
/// What the translator, compiler or linker said.
pub fn build(build: &Build<'_>, dir: &Path) -> Result<PathBuf, String> {
    let preprocessed = keep_instances(&preprocess(build.metal, build.include, build.version)?, build.only);
    let translation = translate(&preprocessed, Mode::Run)?;
    let mut hasher = DefaultHasher::new();
    translation.text.hash(&mut hasher);
    build.with_plan.hash(&mut hasher);
    hash_files(&mut hasher, &cpp_dir())?;
    if build.with_plan {
        hash_files(&mut hasher, build.include)?;
    }
    let stem = format!("{:016x}", hasher.finish());
    let library = dir.join(format!("{stem}.so"));
    if library.exists() {
        return Ok(library);
    }
    // Built under a name of its own and moved: another thread or process may be building the same.
    static BUILDS: AtomicU32 = AtomicU32::new(0);
    let work = dir.join(format!("{stem}.{}.{}", std::process::id(), BUILDS.fetch_add(1, Ordering::Relaxed)));
    let io = |e: std::io::Error| format!("{}: {e}", work.display());
    fs::create_dir_all(&work).map_err(io)?;
    let source = work.join("kernels.cpp");
    fs::write(&source, format!("#include \"kernel.hpp\"\n{}", translation.text)).map_err(io)?;
    let cpp = cpp_dir();
    let abi = objc_dir().join("../include");
    let float16 =
        ["-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"];
    let mut flags = vec!["-std=c++20", "-fvisibility=hidden", "-fsanitize=thread", "-fno-vectorize"];
    flags.extend([
        "-fno-slp-vectorize",
        "-ffp-contract=off",
        "-Wno-unused-function",
        "-Wno-unused-const-variable",
    ]);
    flags.extend(["-Wno-unused-parameter", "-mllvm", "-tsan-instrument-read-before-write=1"]);
    flags.extend(["-mllvm", "-tsan-instrument-func-entry-exit=0", "-Wno-pass-failed"]);
    flags.extend(float16);
    let include = [cpp.as_path(), build.include, abi.as_path()];
    let mut objects = vec![work.join("kernels.o"), work.join("runtime.o")];
    compile(&source, &objects[0], &flags, &include)?;
    let mut flags = vec!["-std=c++20", "-O2", "-Wno-reserved-identifier"];
    flags.extend(float16);
    compile(&cpp.join("runtime.cpp"), &objects[1], &flags, &include)?;
    if build.with_plan {
        objects.push(work.join("plan.o"));
        compile(&cpp.join("plan.c"), &objects[2], &["-std=c11"], &include)?;
    }
    // The library's own __tsan_* must win over a sanitizer's in the program that loads it.
    let exports = work.join("exports");
    fs::write(&exports, "{ global: emu_*; local: *; };").map_err(io)?;
    let linked = work.join("library.so");
    output_of(
        Command::new(CLANG)
            .args(["-shared", "-Wl,-Bsymbolic"])
            .arg(format!("-Wl,--version-script={}", exports.display()))
            .arg("-o")
            .arg(&linked)
            .args(&objects),
    )?;
    fs::rename(&linked, &library).map_err(io)?;
    fs::remove_dir_all(&work).map_err(io)?;
    Ok(library)
}
