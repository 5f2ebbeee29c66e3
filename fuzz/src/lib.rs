//! What the fuzz targets share: files for readers that read files, products from random bytes, a shim
//! that answers garbage.

pub mod operands;
pub mod products;
pub mod shim;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A directory of this process's own.
pub fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        // Whoever sets the variable removes the directory: a fuzzer ends without destructors.
        match std::env::var_os("ANE_MATMUL_FUZZ_PLACE") {
            Some(directory) => directory.into(),
            None => tempfile::tempdir().expect("a directory for the target's files").keep(),
        }
    })
}

/// A file that holds `bytes`.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = place().join(name);
    std::fs::write(&path, bytes).expect("the target's file can be written");
    path
}
