//! Writes a copy of the protocol with each fault planted, for the models to find it.

use std::path::Path;

include!("faults.rs");

const SOURCE: &str = "../../src/backend/cpu/threads/rendezvous.rs";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=faults.rs");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let source = std::fs::read_to_string(SOURCE).expect("the protocol's source");
    // Inner comments cannot be included in a module.
    let source: String =
        source.lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect();
    let mut names = String::new();
    for (name, good, bad) in FAULTS {
        let places = source.matches(good).count();
        assert_eq!(places, 1, "{name}: {places} places in {SOURCE} read {good:?}: adapt faults.rs");
        std::fs::write(Path::new(&out).join(format!("{name}.rs")), source.replace(good, bad))
            .expect("a copy");
        names.push_str(name);
        names.push('\n');
    }
    std::fs::write(Path::new(&out).join("faults.rs"), format!("faults! {{\n{names}}}\n")).expect("the list");
}
