//! The crates `gemm`, `faer` and `matrixmultiply`: B is dynamic.

use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::ThreadPool;

use super::{Candidate, Candidates, Kind, Origin, Product, Rotation};
use crate::machine::locked_version;
use crate::operands::{Narrow, Operands, Wide};
use crate::shapes::{Case, Precision, Shape};

/// One product by a library, with row-major operands.
type Multiply<T> = fn(shape: Shape, threads: usize, a: &[T], b: &[T], c: &mut [T]);

struct RustCrate {
    name: &'static str,
    multiply: (Multiply<f32>, Multiply<f64>),
    /// matrixmultiply has one number of threads for the process.
    pool: Option<Arc<ThreadPool>>,
}

pub(super) fn add(candidates: &mut Candidates, max_threads: usize) {
    let pool = match rayon::ThreadPoolBuilder::new().num_threads(max_threads).build() {
        Ok(pool) => Some(Arc::new(pool)),
        Err(error) => {
            candidates.add_missing("gemm and faer with threads", error.to_string(), true);
            None
        }
    };
    candidates.add_peer("gemm", locked_version("gemm"));
    candidates.add_peer(
        "faer",
        format!("{}, private-gemm-x86 {}", locked_version("faer"), locked_version("private-gemm-x86")),
    );
    candidates.add_peer("matrixmultiply", locked_version("matrixmultiply"));
    let gemm = (multiply_gemm as Multiply<f32>, multiply_gemm as Multiply<f64>);
    candidates.add(RustCrate { name: "gemm", multiply: gemm, pool: pool.clone() });
    candidates.add(GemmF16 { pool: pool.clone() });
    let faer = (multiply_faer as Multiply<f32>, multiply_faer as Multiply<f64>);
    candidates.add(RustCrate { name: "faer", multiply: faer, pool });
    let matrixmultiply = (multiply_sgemm as Multiply<f32>, multiply_dgemm as Multiply<f64>);
    candidates.add(RustCrate { name: "matrixmultiply", multiply: matrixmultiply, pool: None });
}

impl Candidate for RustCrate {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Plain
    }

    fn origin(&self) -> Origin {
        Origin::RustCrate
    }

    fn does(&self, precision: Precision) -> bool {
        matches!(precision, Precision::F32 | Precision::F64)
    }

    fn prepare(&self, case: &Case, _: &Operands) -> Result<Box<dyn Product>, String> {
        if case.threads > 1 && self.pool.is_none() {
            return Err("its number of threads is fixed for the process; measured with one".to_owned());
        }
        let pool = self.pool.clone().filter(|_| case.threads > 1);
        Ok(Box::new(RustProduct {
            multiply: self.multiply,
            threads: case.threads,
            pool,
            rotation: Rotation::default(),
        }))
    }
}

struct RustProduct {
    multiply: (Multiply<f32>, Multiply<f64>),
    threads: usize,
    pool: Option<Arc<ThreadPool>>,
    rotation: Rotation,
}

impl Product for RustProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Self { multiply, threads, pool, rotation } = self;
        let Operands { shape, a, b, c, narrow, .. } = operands;
        let mut batch = || {
            for _ in 0..calls {
                if let Narrow::F64(Wide { pair, c }) = narrow {
                    let b = &pair.b[rotation.next(pair.b.len())];
                    multiply.1(*shape, *threads, pair.a.as_slice(), b.as_slice(), c.as_mut_slice());
                } else {
                    let b = &b[rotation.next(b.len())];
                    multiply.0(*shape, *threads, a.as_slice(), b.as_slice(), c.as_mut_slice());
                }
            }
        };
        // Calls from within the pool are spared the way into it.
        match pool {
            Some(pool) => pool.install(batch),
            None => batch(),
        }
    }
}

/// `gemm` in f16, which it stores C in as well.
struct GemmF16 {
    pool: Option<Arc<ThreadPool>>,
}

impl Candidate for GemmF16 {
    fn name(&self) -> &'static str {
        "gemm"
    }

    fn kind(&self) -> Kind {
        Kind::Plain
    }

    fn origin(&self) -> Origin {
        Origin::RustCrate
    }

    fn does(&self, precision: Precision) -> bool {
        precision == Precision::F16
    }

    fn c_unit(&self) -> f64 {
        // Sums of parts of k, and of single products where m is 1, are stored in between.
        2.0 * f64::from(f16::EPSILON)
    }

    fn prepare(&self, case: &Case, _: &Operands) -> Result<Box<dyn Product>, String> {
        let Shape { m, n, .. } = case.shape;
        Ok(Box::new(GemmF16Product {
            threads: case.threads,
            pool: self.pool.clone().filter(|_| case.threads > 1),
            rotation: Rotation::default(),
            c: vec![f16::ZERO; m * n],
        }))
    }
}

struct GemmF16Product {
    threads: usize,
    pool: Option<Arc<ThreadPool>>,
    rotation: Rotation,
    c: Vec<f16>,
}

impl Product for GemmF16Product {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Self { threads, pool, rotation, c } = self;
        let Operands { shape, narrow, .. } = operands;
        let Narrow::F16(pair) = narrow else { unreachable!("`does` f16 alone") };
        let mut batch = || {
            for _ in 0..calls {
                let b = &pair.b[rotation.next(pair.b.len())];
                multiply_gemm(*shape, *threads, pair.a.as_slice(), b.as_slice(), c);
            }
        };
        match pool {
            Some(pool) => pool.install(batch),
            None => batch(),
        }
        // Once for all calls: where its numbers are compared.
        c.convert_to_f32_slice(operands.c.as_mut_slice());
    }
}

fn multiply_gemm<T: From<f16> + 'static>(shape: Shape, threads: usize, a: &[T], b: &[T], c: &mut [T]) {
    let Shape { m, n, k, .. } = shape;
    let (n_stride, k_stride) = (n.cast_signed(), k.cast_signed());
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the slices hold packed row-major matrices of these dimensions.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n_stride,
            false,
            a.as_ptr(),
            1,
            k_stride,
            b.as_ptr(),
            1,
            n_stride,
            f16::ZERO.into(),
            f16::ONE.into(),
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn multiply_faer<T: ComplexField>(shape: Shape, threads: usize, a: &[T], b: &[T], c: &mut [T]) {
    let Shape { m, n, k, .. } = shape;
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    let a = MatRef::from_row_major_slice(a, m, k);
    let b = MatRef::from_row_major_slice(b, k, n);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    matmul(c, Accum::Replace, a, b, T::one_impl(), par);
}

macro_rules! matrixmultiply {
    ($name:ident, $type:ty, $gemm:ident) => {
        fn $name(shape: Shape, _: usize, a: &[$type], b: &[$type], c: &mut [$type]) {
            let Shape { m, n, k, .. } = shape;
            let (n_stride, k_stride) = (n.cast_signed(), k.cast_signed());
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            // SAFETY: the slices hold packed row-major matrices of these dimensions.
            unsafe {
                matrixmultiply::$gemm(m, k, n, 1.0, a, k_stride, 1, b, n_stride, 1, 0.0, c, n_stride, 1);
            }
        }
    };
}

matrixmultiply!(multiply_sgemm, f32, sgemm);
matrixmultiply!(multiply_dgemm, f64, dgemm);
