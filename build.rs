//! Builds the native half.
//!
//! For Apple targets the shims in `objc/` are compiled and their frameworks linked: on an Apple host, and
//! on others where the environment names an SDK or a cross-compiler, as `cc` reads them. Each shim stands
//! alone: what cannot be built is left out, and a warning and the backend's own reason say so; with
//! `ANE_MATMUL_REQUIRE_SHIMS=1` it is an error. `bindgen` reads the header on Apple hosts and with the
//! feature of its name; else the committed bindings are used, which are the same.

use std::path::Path;

#[cfg(any(target_vendor = "apple", feature = "bindgen"))]
#[path = "build/bindings.rs"]
mod bindings;

#[path = "build/deployment.rs"]
mod deployment;

#[path = "objc/metal_source.rs"]
mod metal_source;

struct Shim {
    name: &'static str,
    source: &'static str,
    /// The function that returns its table; the linked one has the crate's version behind its name, so that
    /// two versions of this crate live in one program.
    getter: &'static str,
    /// Set where it is there; in capitals, the variable with the reason why it is not.
    cfg: &'static str,
    /// Without CoreGraphics a command-line program on macOS is given no default Metal device
    /// (`MTLCreateSystemDefaultDevice`'s documentation).
    frameworks: &'static [&'static str],
    /// It includes the source of the kernels.
    kernels: bool,
}

const SHIMS: [Shim; 2] = [
    Shim {
        name: "MPSGraph",
        source: "objc/ane_mpsgraph.m",
        getter: "ane_mpsgraph_shim",
        cfg: "ane_matmul_mpsgraph",
        frameworks: &[
            "Foundation",
            "CoreGraphics",
            "Metal",
            "MetalPerformanceShaders",
            "MetalPerformanceShadersGraph",
        ],
        kernels: false,
    },
    Shim {
        name: "Metal",
        source: "objc/metal_matmul.m",
        getter: "ane_metal_shim",
        cfg: "ane_matmul_metal",
        frameworks: &["Foundation", "CoreGraphics", "Metal"],
        kernels: true,
    },
];

#[cfg(any(feature = "bindgen", target_vendor = "apple"))]
const HEADER: &str = "include/ane_graph.h";

const APPLE_HOST: bool = cfg!(target_vendor = "apple");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=objc");
    for variable in ["ANE_MATMUL_REQUIRE_SHIMS", "ANE_MATMUL_BLAS", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rustc-check-cfg=cfg(ane_matmul_fresh_bindings)");
    for shim in SHIMS {
        println!("cargo::rustc-check-cfg=cfg({})", shim.cfg);
    }
    let root = variable("CARGO_MANIFEST_DIR");
    // For crates that build a shim of their own against the same header: DEP_ANE_MATMUL_INCLUDE.
    println!("cargo::metadata=include={}", Path::new(&root).join("include").display());

    let apple_target = variable("CARGO_CFG_TARGET_VENDOR") == "apple";
    if cfg!(feature = "bindgen") || (APPLE_HOST && apple_target) {
        match fresh_bindings() {
            Ok(()) => println!("cargo::rustc-cfg=ane_matmul_fresh_bindings"),
            Err(reason) => println!("cargo::warning=the committed bindings are used: {}", one_line(&reason)),
        }
    }
    if apple_target {
        // A C identifier.
        let version = variable("CARGO_PKG_VERSION").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        println!("cargo::rustc-env=ANE_MATMUL_SYMBOLS={version}");
        let compiler = compiler();
        for shim in &SHIMS {
            let built = compiler.as_ref().map_err(Clone::clone);
            if let Err(reason) = built.and_then(|compiler| build(shim, compiler, &version)) {
                leave_out(shim, &reason);
            }
        }
    } else if std::env::var_os("CARGO_FEATURE_BLAS").is_some() {
        let library = variable("ANE_MATMUL_BLAS");
        println!("cargo::rustc-link-lib=dylib={}", if library.is_empty() { "openblas" } else { &library });
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A variable whose change is a reason to build again; nothing when it is not set or empty.
fn watched(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Says why a shim is not there: now, and later where its backend is asked for.
fn leave_out(shim: &Shim, reason: &str) {
    let (name, reason) = (shim.name, one_line(reason));
    if !matches!(variable("ANE_MATMUL_REQUIRE_SHIMS").as_str(), "" | "0") {
        println!("cargo::error=the {name} shim cannot be built: {reason}");
    } else {
        println!("cargo::warning=built without the {name} shim: {reason}");
    }
    println!("cargo::rustc-env=NO_{}={reason}", shim.cfg.to_uppercase());
}

/// What the shims are compiled with.
struct Compiler {
    /// The variable of the deployment target and the oldest one, where the environment does not choose.
    deployment_target: Option<(&'static str, &'static str)>,
    /// Clang, where the environment names no compiler: `cc` takes the host's for macOS, which is often GCC.
    clang: bool,
}

fn compiler() -> Result<Compiler, String> {
    if std::env::var_os("DOCS_RS").is_some() {
        return Err("documentation needs none".into());
    }
    let (name, oldest) = deployment::oldest(&variable("CARGO_CFG_TARGET_OS"))?;
    let chosen = watched(name);
    if let Some(target) = &chosen {
        deployment::check(name, target, oldest)?;
    }
    let target = variable("TARGET");
    let usual = format!("CC_{}", target.replace('-', "_"));
    // As `cc` looks for it; each is watched, whichever is found.
    let cross =
        [format!("CC_{target}"), usual.clone(), "TARGET_CC".into()].map(|name| watched(&name).is_some());
    let cross = cross.contains(&true);
    let sdk = watched("SDKROOT");
    if !APPLE_HOST && !cross && sdk.is_none() {
        return Err(format!(
            "this host has no Apple SDK: set SDKROOT to one, or {usual} to a cross-compiler that brings one (docs/cross-compiling.md)"
        ));
    }
    // A wrong path would end in a header that is not found.
    if let Some(sdk) = sdk.filter(|sdk| Path::new(sdk).is_relative() || !Path::new(sdk).is_dir()) {
        return Err(format!("SDKROOT={sdk} is not the absolute path of a directory; name an SDK of Apple's"));
    }
    Ok(Compiler {
        deployment_target: chosen.is_none().then_some((name, oldest)),
        clang: !APPLE_HOST && !cross && watched("CC").is_none(),
    })
}

fn build(shim: &Shim, compiler: &Compiler, version: &str) -> Result<(), String> {
    let out = variable("OUT_DIR");
    if shim.kernels {
        let kernels = metal_source::metal_source_header(Path::new("objc"))
            .map_err(|error| format!("objc/matmul.metal: {error}"))?;
        std::fs::write(Path::new(&out).join("ane_metal_source.h"), kernels)
            .map_err(|error| error.to_string())?;
    }

    let mut build = cc::Build::new();
    build.file(shim.source).include("include").include("objc").include(&out);
    build.define(shim.getter, format!("{}_{version}", shim.getter).as_str());
    build.flag("-fno-objc-arc").flag("-fobjc-exceptions");
    build.warnings(true).extra_warnings(true);
    if let Some((name, oldest)) = compiler.deployment_target {
        build.env(name, oldest);
    }
    if compiler.clang {
        build.compiler("clang");
    }
    build.try_compile(shim.cfg).map_err(|error| {
        let hint = if APPLE_HOST { "" } else { " (docs/cross-compiling.md has SDKROOT and CC_)" };
        println!("cargo::warning={}{hint}", one_line(&error.to_string()));
        format!("{} did not compile for {}", shim.source, variable("TARGET"))
    })?;
    for framework in shim.frameworks {
        println!("cargo::rustc-link-lib=framework={framework}");
    }
    println!("cargo::rustc-cfg={}", shim.cfg);
    Ok(())
}

#[cfg(any(target_vendor = "apple", feature = "bindgen"))]
fn fresh_bindings() -> Result<(), String> {
    let text = bindings::bindings(HEADER)?;
    let path = Path::new(&variable("OUT_DIR")).join("bindings.rs");
    std::fs::write(path, text).map_err(|error| error.to_string())
}

#[cfg(not(any(target_vendor = "apple", feature = "bindgen")))]
fn fresh_bindings() -> Result<(), String> {
    unreachable!("only asked for on Apple hosts and with the feature")
}
