//! OpenBLAS and BLIS, each loaded from its own file and kept apart from the other, whatever the
//! system's alternatives name as the BLAS.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::Library;

use super::{Candidate, Candidates, Kind, Origin, Product, Rotation};
use crate::operands::{Narrow, Operands, Wide};
use crate::shapes::{Case, Precision, Shape};

const ROW_MAJOR: c_int = 101;
const NO_TRANSPOSE: c_int = 111;
const TRANSPOSE: c_int = 112;

type Gemm<T> = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    T,
    *const T,
    c_int,
    *const T,
    c_int,
    T,
    *mut T,
    c_int,
);
type Gemv<T> =
    unsafe extern "C" fn(c_int, c_int, c_int, c_int, T, *const T, c_int, *const T, c_int, T, *mut T, c_int);

/// The functions of one type.
#[derive(Clone, Copy)]
struct Functions<T> {
    gemm: Gemm<T>,
    gemv: Gemv<T>,
}

impl<T: From<f32> + Copy> Functions<T> {
    /// # Safety
    /// As the functions: packed row-major matrices of these dimensions, and a C that is this call's alone.
    unsafe fn multiply(self, vector: bool, [m, n, k]: [c_int; 3], a: *const T, b: *const T, c: *mut T) {
        let (zero, one) = (0f32.into(), 1f32.into());
        // SAFETY: by the function's own contract.
        unsafe {
            if vector {
                (self.gemv)(ROW_MAJOR, TRANSPOSE, k, n, one, b, n, a, 1, zero, c, 1);
            } else {
                (self.gemm)(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, m, n, k, one, a, k, b, n, zero, c, n);
            }
        }
    }
}

/// Which implementation of BLAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlasName {
    OpenBlas,
    Blis,
}

impl BlasName {
    pub(crate) const ALL: [Self; 2] = [Self::OpenBlas, Self::Blis];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OpenBlas => "openblas",
            Self::Blis => "blis",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::OpenBlas => "libopenblas-dev",
            Self::Blis => "libblis-dev",
        }
    }

    /// The variants with threads, in the directories where Debian keeps each.
    const fn files(self) -> [&'static str; 2] {
        match self {
            Self::OpenBlas => ["openblas-pthread/libopenblas.so.0", "openblas-openmp/libopenblas.so.0"],
            Self::Blis => ["blis-openmp/libblis.so.4", "blis-pthread/libblis.so.4"],
        }
    }
}

impl fmt::Display for BlasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A loaded BLAS.
pub(crate) struct BlasLibrary {
    name: BlasName,
    path: PathBuf,
    f32: Functions<f32>,
    f64: Functions<f64>,
    set_threads: SetThreads,
    /// Keeps the functions above valid.
    library: Library,
}

enum SetThreads {
    OpenBlas(unsafe extern "C" fn(c_int)),
    Blis(unsafe extern "C" fn(i64)),
}

impl BlasLibrary {
    pub(crate) fn load(name: BlasName) -> Result<Self, String> {
        let install = || format!("install it with: apt-get install {}", name.package());
        let path = name
            .files()
            .iter()
            .flat_map(|file| library_directories().map(move |directory| directory.join(file)))
            .find(|path| path.exists())
            .ok_or_else(|| format!("no {} was found; {}", name.files()[0], install()))?;
        let library = super::open_local(&path).map_err(|error| format!("{error}; {}", install()))?;
        let failure = |error: libloading::Error| format!("{}: {error}", path.display());
        // SAFETY: the functions have these types in cblas.h, openblas_config.h and blis.h; BLIS's
        // dim_t is 64 bits wide on 64-bit targets.
        let (f32, f64, set_threads) = unsafe {
            let f32 = Functions {
                gemm: *library.get::<Gemm<f32>>(b"cblas_sgemm").map_err(failure)?,
                gemv: *library.get::<Gemv<f32>>(b"cblas_sgemv").map_err(failure)?,
            };
            let f64 = Functions {
                gemm: *library.get::<Gemm<f64>>(b"cblas_dgemm").map_err(failure)?,
                gemv: *library.get::<Gemv<f64>>(b"cblas_dgemv").map_err(failure)?,
            };
            let set_threads = match name {
                BlasName::OpenBlas => {
                    SetThreads::OpenBlas(*library.get(b"openblas_set_num_threads").map_err(failure)?)
                }
                BlasName::Blis => {
                    // Asked for its kernels before this, it aborts.
                    library.get::<unsafe extern "C" fn()>(b"bli_init").map_err(failure)?();
                    SetThreads::Blis(*library.get(b"bli_thread_set_num_threads").map_err(failure)?)
                }
            };
            (f32, f64, set_threads)
        };
        Ok(Self { name, path, f32, f64, set_threads, library })
    }

    /// The version and the kernels that the library chose for this CPU.
    pub(crate) fn version(&self) -> String {
        let text = |function: unsafe extern "C" fn() -> *const c_char| {
            // SAFETY: the functions of this type return a constant string.
            unsafe { CStr::from_ptr(function()) }.to_string_lossy().into_owned()
        };
        // SAFETY: as in openblas_config.h and blis.h; arch_t is an enum, so an int.
        let described = unsafe {
            match self.name {
                BlasName::OpenBlas => {
                    let config = self.library.get(b"openblas_get_config").map(|get| text(*get));
                    let core = self.library.get(b"openblas_get_corename").map(|get| text(*get));
                    config.and_then(|config| Ok(format!("{config}, kernels {}", core?)))
                }
                BlasName::Blis => {
                    let version = self.library.get(b"bli_info_get_version_str").map(|get| text(*get));
                    let kernels = self
                        .library
                        .get::<unsafe extern "C" fn() -> c_int>(b"bli_arch_query_id")
                        .and_then(|query| {
                            let id = query();
                            let string = self
                                .library
                                .get::<unsafe extern "C" fn(c_int) -> *const c_char>(b"bli_arch_string")?;
                            Ok(CStr::from_ptr(string(id)).to_string_lossy().into_owned())
                        });
                    version.and_then(|version| Ok(format!("{version}, kernels {}", kernels?)))
                }
            }
        };
        let described = described.unwrap_or_else(|error| format!("unknown: {error}"));
        format!("{described} ({})", self.path.display())
    }

    fn set_threads(&self, threads: usize) {
        // SAFETY: a positive number of threads.
        unsafe {
            match self.set_threads {
                SetThreads::OpenBlas(set) => set(c_int::try_from(threads).expect("few threads")),
                SetThreads::Blis(set) => set(i64::try_from(threads).expect("few threads")),
            }
        }
    }
}

fn library_directories() -> impl Iterator<Item = &'static Path> {
    let triple = match std::env::consts::ARCH {
        "x86_64" => "/usr/lib/x86_64-linux-gnu",
        "aarch64" => "/usr/lib/aarch64-linux-gnu",
        _ => "/usr/lib",
    };
    [triple, "/usr/lib64", "/usr/local/lib"].into_iter().map(Path::new)
}

pub(super) fn add(candidates: &mut Candidates, wanted: impl Fn(&str) -> bool) {
    for name in BlasName::ALL.into_iter().filter(|name| wanted(name.name())) {
        match BlasLibrary::load(name) {
            Ok(library) => {
                let library = Arc::new(library);
                candidates.add_peer(name.name(), library.version());
                candidates.add(Blas { library: library.clone(), vector: false, name: name.to_string() });
                candidates.add(Blas { library, vector: true, name: format!("{name}/gemv") });
            }
            Err(reason) => candidates.add_missing(name.name(), reason, true),
        }
    }
}

/// sgemm or dgemm, or sgemv or dgemv for one row.
struct Blas {
    library: Arc<BlasLibrary>,
    vector: bool,
    name: String,
}

impl Candidate for Blas {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Plain
    }

    fn origin(&self) -> Origin {
        Origin::NativeLibrary
    }

    fn does(&self, precision: Precision) -> bool {
        matches!(precision, Precision::F32 | Precision::F64)
    }

    fn prepare(&self, case: &Case, _: &Operands) -> Result<Box<dyn Product>, String> {
        if self.vector && case.shape.m != 1 {
            return Err("for m = 1 alone".to_owned());
        }
        Ok(Box::new(self.library.product(self.vector, case.threads)))
    }
}

impl BlasLibrary {
    pub(crate) fn product(self: &Arc<Self>, vector: bool, threads: usize) -> impl Product + use<> {
        BlasProduct { library: self.clone(), vector, threads, rotation: Rotation::default() }
    }
}

struct BlasProduct {
    library: Arc<BlasLibrary>,
    vector: bool,
    threads: usize,
    rotation: Rotation,
}

impl Product for BlasProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Operands { shape: Shape { m, n, k, .. }, a, b, c, narrow, .. } = operands;
        let dims = [*m, *n, *k].map(|size| c_int::try_from(size).expect("BLAS takes sizes as int"));
        let BlasLibrary { f32, f64, .. } = *self.library;
        self.library.set_threads(self.threads);
        for _ in 0..calls {
            // SAFETY: the buffers hold packed row-major matrices of these dimensions, and C is
            // this call's alone.
            unsafe {
                if let Narrow::F64(Wide { pair, c }) = narrow {
                    let b = pair.b[self.rotation.next(pair.b.len())].as_slice().as_ptr();
                    let (a, c) = (pair.a.as_slice().as_ptr(), c.as_mut_slice().as_mut_ptr());
                    f64.multiply(self.vector, dims, a, b, c);
                } else {
                    let b = b[self.rotation.next(b.len())].as_slice().as_ptr();
                    f32.multiply(self.vector, dims, a.as_slice().as_ptr(), b, c.as_mut_slice().as_mut_ptr());
                }
            }
        }
    }
}
