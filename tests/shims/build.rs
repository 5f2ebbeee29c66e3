//! Builds the reference shim twice, linked in and as a dynamic library, once more as a test double,
//! libraries that are broken on purpose, and one that ends what it is preloaded into.

use std::path::{Path, PathBuf};

/// What is different in each further library: a name, and what is compiled on top of the reference.
const CHANGED: [(&str, &str); 13] = [
    ("missing_symbol", "int nothing_here;"),
    ("null_table", "const ANEShim *ane_matmul_shim(void) { return 0; }"),
    ("truncated", "shim.struct_size = 100;"),
    ("wrong_major", "shim.abi_major = 2;"),
    ("later_minor", "shim.abi_minor = 7; shim.struct_size += 64; shim.name = \"later\";"),
    ("null_slot", "shim.executor_run = 0;"),
    ("bad_name", "shim.name = \"Not A Name\";"),
    ("null_name", "shim.name = 0;"),
    ("garbage_name", "shim.name = \"\\xff\\xfe\";"),
    ("graph_null_slot", "graphs.graph_info = 0;"),
    ("graph_truncated", "graphs.struct_size = 40;"),
    ("graph_nowhere", "graphs.graph_compile = 0;"),
    (
        "packaged",
        "graphs.graph_compile = 0; graphs.package_format = \"mlpackage\"; shim.name = \"packaged\";",
    ),
];

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = Path::new("../..");
    let source = root.join("examples/shims/reference.c");
    let include = root.join("include");
    for changed in ["examples/shims", "include"] {
        println!("cargo::rerun-if-changed={}", root.join(changed).display());
    }

    let mut build = cc::Build::new();
    build.include(&include).std("c11").warnings(true).extra_warnings(true).warnings_into_errors(true);
    println!("cargo::rerun-if-changed=direct.c");
    build.clone().file(&source).file("direct.c").compile("ane_matmul_reference");
    println!("cargo::rustc-link-lib=m");
    println!("cargo::rustc-link-lib=pthread");

    // A library with the C compiler's runtime of AddressSanitizer would end a program that has the Rust one.
    let sanitized = std::env::var_os("CARGO_CFG_SANITIZE").is_some();
    let apple = std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    let extension = if apple { "dylib" } else { "so" };
    let library = |name: &str, file: &Path| {
        let target = out.join(format!("lib{name}.{extension}"));
        let mut command = build.get_compiler().to_command();
        command.args(["-fPIC", "-shared", "-o"]).arg(&target).arg(file).args(["-lm", "-pthread"]);
        if sanitized {
            command.arg("-fno-sanitize=all");
        }
        let status = command.status().expect("the C compiler runs");
        assert!(status.success(), "{name}: {status}");
        println!("cargo::rustc-env=SHIM_{}={}", name.to_uppercase(), target.display());
    };
    library("reference", &source);
    println!("cargo::rerun-if-changed=double.c");
    library("double", Path::new("double.c"));
    println!("cargo::rerun-if-changed=neural.c");
    library("neural", Path::new("neural.c"));
    println!("cargo::rerun-if-changed=liar.c");
    library("liar", Path::new("liar.c"));
    println!("cargo::rerun-if-changed=signal_at_fsync.c");
    library("signal_at_fsync", Path::new("signal_at_fsync.c"));
    for (name, change) in CHANGED {
        let whole = change.contains("ane_matmul_shim") || change.starts_with("int");
        let text = if whole {
            format!("#include \"ane_matmul.h\"\n{change}\n")
        } else {
            let reference = std::path::absolute(&source).expect("a path");
            format!(
                "#define ane_matmul_shim reference_shim
#include \"{}\"
#undef ane_matmul_shim
const ANEShim *ane_matmul_shim(void);
const ANEShim *ane_matmul_shim(void) {{
    static ANEShim shim;
    static ANEGraphTable graphs;
    shim = *reference_shim();
    graphs = *shim.graphs;
    shim.graphs = &graphs;
    {change}
    return &shim;
}}
",
                reference.display()
            )
        };
        let file = out.join(format!("{name}.c"));
        std::fs::write(&file, text).expect("OUT_DIR is writable");
        library(name, &file);
    }
}
