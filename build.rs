//! Finds the system's CBLAS for the feature `blas`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(ane_matmul_fresh_bindings)");
    let target_vendor = std::env::var("CARGO_CFG_TARGET_VENDOR").unwrap_or_default();
    if std::env::var_os("CARGO_FEATURE_BLAS").is_some() && target_vendor != "apple" {
        link_blas();
    }
}

/// Links the library named by `ANE_MATMUL_BLAS`, by default OpenBLAS.
fn link_blas() {
    println!("cargo::rerun-if-env-changed=ANE_MATMUL_BLAS");
    let name = std::env::var("ANE_MATMUL_BLAS").unwrap_or_else(|_| "openblas".into());
    println!("cargo::rustc-link-lib=dylib={name}");
}
