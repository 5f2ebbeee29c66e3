//! Builds the shim that answers garbage.

fn main() {
    println!("cargo::rerun-if-changed=garbage.c");
    println!("cargo::rerun-if-changed=../include");
    cc::Build::new().include("../include").std("c11").warnings(true).file("garbage.c").compile("garbage");
}
