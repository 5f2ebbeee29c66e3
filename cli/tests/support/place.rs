//! A directory of a test's own, with what commands read.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use ane_matmul::{Tensor, npy};

pub(crate) struct Place(tempfile::TempDir);

#[allow(dead_code, reason = "no test needs all of it")]
impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of what is in it, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// An m x 1 and a 1 x n matrix: the product is much larger than they are.
    pub(crate) fn factors(&self, m: usize, n: usize) -> [PathBuf; 2] {
        let paths = [self.path("a.npy"), self.path("b.npy")];
        npy::write(&paths[0], &Tensor::filled(m, 1, 1f32).unwrap()).unwrap();
        npy::write(&paths[1], &Tensor::filled(1, n, 2f32).unwrap()).unwrap();
        paths
    }

    /// A safetensors file of one tensor, of zeros.
    pub(crate) fn weights(&self) -> PathBuf {
        let header = r#"{"w":{"dtype":"F32","shape":[128,128],"data_offsets":[0,65536]}}       "#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + 65_536, 0);
        fs::write(self.path("w.safetensors"), bytes).unwrap();
        self.path("w.safetensors")
    }

    /// Command lines that write `out`, over a kilobyte each, with what they read.
    pub(crate) fn writers(&self, out: &Path) -> [Vec<OsString>; 5] {
        let ([a, b], weights) = (self.factors(200, 200), self.weights());
        let compare = |option: &str| {
            let words = ["compare", "--sizes", "8", "--samples", "1", option];
            words.into_iter().map(OsString::from).chain([out.into()]).collect()
        };
        [
            vec!["multiply".into(), a.into(), b.into(), "-o".into(), out.into()],
            vec!["quantize".into(), weights.into(), out.into(), "--type".into(), "int8".into()],
            compare("--json"),
            compare("--svg"),
            compare("--report"),
        ]
    }
}
