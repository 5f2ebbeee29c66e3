//! Builds the native half.
//!
//! On Apple hosts and targets the shims in `objc/` are compiled, the header is read by `bindgen`,
//! and the frameworks are linked. Where that is not possible (another host, docs.rs) the committed
//! bindings are used, the shims are left out, and a warning says so; with
//! `ANE_MATMUL_REQUIRE_SHIMS=1` that is an error.

use std::path::Path;

#[cfg(target_vendor = "apple")]
#[path = "build/bindings.rs"]
mod bindings;

#[cfg(target_vendor = "apple")]
#[path = "build/deployment.rs"]
mod deployment;

#[cfg(target_vendor = "apple")]
#[path = "objc/metal_source.rs"]
mod metal_source;

/// Source, cfg that says it is there, frameworks to link. Without CoreGraphics a command-line
/// program on macOS is given no default Metal device (`MTLCreateSystemDefaultDevice`'s documentation).
const SHIMS: [(&str, &str, &[&str]); 2] = [
    (
        "objc/ane_mpsgraph.m",
        "ane_matmul_mpsgraph",
        &["Foundation", "CoreGraphics", "Metal", "MetalPerformanceShaders", "MetalPerformanceShadersGraph"],
    ),
    ("objc/metal_matmul.m", "ane_matmul_metal", &["Foundation", "CoreGraphics", "Metal"]),
];

const HEADER: &str = "include/ane_matmul.h";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={HEADER}");
    println!("cargo::rerun-if-changed=objc");
    for variable in ["ANE_MATMUL_REQUIRE_SHIMS", "ANE_MATMUL_BLAS", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rustc-check-cfg=cfg(ane_matmul_fresh_bindings)");
    for (_, cfg, _) in SHIMS {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // For crates that build a shim of their own against the same header: DEP_ANE_MATMUL_INCLUDE.
    println!("cargo::metadata=include={}", Path::new(&root).join("include").display());

    let apple_target = variable("CARGO_CFG_TARGET_VENDOR") == "apple";
    if apple_target {
        if let Err(reason) = build_shims() {
            if variable("ANE_MATMUL_REQUIRE_SHIMS") == "1" {
                println!("cargo::error=the native shims cannot be built: {reason}");
            } else {
                println!("cargo::warning=built without the MPSGraph and Metal shims: {reason}");
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

#[cfg(not(target_vendor = "apple"))]
fn build_shims() -> Result<(), String> {
    Err("they need an Apple host with the Command Line Tools".into())
}

#[cfg(target_vendor = "apple")]
fn build_shims() -> Result<(), String> {
    if std::env::var_os("DOCS_RS").is_some() {
        return Err("documentation needs none".into());
    }
    let (variable_name, oldest) = deployment::oldest(&variable("CARGO_CFG_TARGET_OS"))?;
    println!("cargo::rerun-if-env-changed={variable_name}");
    let chosen = std::env::var(variable_name).ok();
    if let Some(target) = &chosen {
        deployment::check(variable_name, target, oldest)?;
    }
    let out = variable("OUT_DIR");
    let text = bindings::bindings(HEADER)?;
    std::fs::write(Path::new(&out).join("bindings.rs"), text).map_err(|error| error.to_string())?;
    println!("cargo::rustc-cfg=ane_matmul_fresh_bindings");
    let kernels = metal_source::metal_source_header(Path::new("objc"))
        .map_err(|error| format!("objc/matmul.metal: {error}"))?;
    std::fs::write(Path::new(&out).join("ane_metal_source.h"), kernels).map_err(|error| error.to_string())?;

    for (source, cfg, frameworks) in SHIMS {
        if !Path::new(source).exists() {
            continue;
        }
        let mut build = cc::Build::new();
        build.file(source).include("include").include("objc").include(&out);
        build.flag("-fno-objc-arc").flag("-fobjc-exceptions");
        build.warnings(true).extra_warnings(true);
        if chosen.is_none() {
            build.env(variable_name, oldest);
        }
        build.try_compile(cfg).map_err(|error| format!("{source}: {error}"))?;
        for framework in frameworks {
            println!("cargo::rustc-link-lib=framework={framework}");
        }
        println!("cargo::rustc-cfg={cfg}");
    }
    Ok(())
}
