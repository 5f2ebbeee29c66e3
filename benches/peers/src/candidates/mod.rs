//! The libraries that are compared.

mod blas;
mod onednn;
mod own;
mod rust_crates;

use crate::operands::Operands;
use crate::reference::UNIT;
use crate::shapes::{Case, Precision};

pub(crate) use blas::{BlasLibrary, BlasName};

/// What a candidate does with B, and after the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// B is packed ahead of the runs.
    Packed,
    /// B is dynamic.
    Plain,
    /// As `Packed`, with bias and GELU.
    Fused,
}

/// A library, in one way of using it.
pub(crate) trait Candidate {
    /// Its name in tables and JSON.
    fn name(&self) -> &str;

    fn kind(&self) -> Kind;

    /// Whose it is: the ratios compare the project's with the best of the others.
    fn origin(&self) -> Origin;

    /// What it computes.
    fn does(&self, precision: Precision) -> bool {
        precision == Precision::F32
    }

    /// Whether it computes batches, in one call.
    fn does_batches(&self) -> bool {
        false
    }

    /// The unit roundoff of the type in which it stores C.
    fn c_unit(&self) -> f64 {
        UNIT
    }

    /// Everything that does not belong to a run: packing, compiling. An error says why this
    /// candidate does not do this case.
    fn prepare(&self, case: &Case, operands: &Operands) -> Result<Box<dyn Product>, String>;
}

/// Whose a candidate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Own,
    RustCrate,
    NativeLibrary,
    /// No product: the reading of B alone.
    Ceiling,
}

/// A product that is ready to run.
pub(crate) trait Product {
    /// Runs `calls` times, with the next copy of B each time.
    fn run(&mut self, operands: &mut Operands, calls: usize);
}

/// Goes round the copies of B.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rotation(usize);

impl Rotation {
    #[inline]
    pub(crate) fn next(&mut self, copies: usize) -> usize {
        let current = self.0;
        self.0 = if current + 1 < copies { current + 1 } else { 0 };
        current
    }
}

/// Loads a library without letting its symbols meet those of another: two BLAS define the same.
fn open_local(path: &std::path::Path) -> Result<libloading::Library, String> {
    #[cfg(unix)]
    {
        use libloading::os::unix;
        // SAFETY: the libraries' initialisers set up threads and tables and have no preconditions.
        let library = unsafe { unix::Library::open(Some(path), unix::RTLD_NOW | unix::RTLD_LOCAL) };
        library.map(Into::into).map_err(|error| {
            // The loader's own words, which name what is missing.
            let detail =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            format!("{}: {error}{detail}", path.display())
        })
    }
    #[cfg(not(unix))]
    Err(format!("{}: the C libraries are loaded on Unix alone", path.display()))
}

/// A library that takes part, for the list of versions.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A library that does not take part.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Whether the run fails for it.
    pub(crate) required: bool,
}

/// Everything there is to compare.
pub(crate) struct Candidates {
    pub(crate) all: Vec<Box<dyn Candidate>>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) missing: Vec<Missing>,
}

impl Candidates {
    /// Loads every library, or that of the candidate `only`; `max_threads` is the most that a case will ask for.
    pub(crate) fn load(max_threads: usize, only: Option<&str>) -> Self {
        let mut candidates = Self { all: Vec::new(), peers: Vec::new(), missing: Vec::new() };
        let wanted = |library: &str| only.is_none_or(|name| name.starts_with(library));
        own::add(&mut candidates);
        rust_crates::add(&mut candidates, max_threads);
        blas::add(&mut candidates, wanted);
        if wanted("onednn") {
            onednn::add(&mut candidates);
        }
        candidates
    }

    fn add(&mut self, candidate: impl Candidate + 'static) {
        self.all.push(Box::new(candidate));
    }

    fn add_peer(&mut self, name: &str, version: impl Into<String>) {
        self.peers.push(Peer { name: name.to_owned(), version: version.into() });
    }

    fn add_missing(&mut self, name: &str, reason: impl Into<String>, required: bool) {
        self.missing.push(Missing { name: name.to_owned(), reason: reason.into(), required });
    }

    /// Keeps the candidates whose names `names` lists, if it lists any.
    pub(crate) fn retain(&mut self, names: &[String]) {
        if !names.is_empty() {
            self.all.retain(|candidate| names.iter().any(|name| name == candidate.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_visits_every_copy() {
        let mut rotation = Rotation::default();
        let visited: Vec<usize> = (0..5).map(|_| rotation.next(3)).collect();
        assert_eq!(visited, [0, 1, 2, 0, 1]);
        let mut single = Rotation::default();
        assert_eq!([single.next(1), single.next(1)], [0, 0]);
    }
}
