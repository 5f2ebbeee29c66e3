//! Any library with the CBLAS interface: Accelerate on Apple systems, the system's BLAS elsewhere.

use std::sync::Arc;

use cblas_sys::{CBLAS_LAYOUT, CBLAS_TRANSPOSE, cblas_sgemm};

use crate::backend::epilogue::Epilogue;
use crate::backend::{Backend, BackendId, CompiledProduct, Facts, Run, RunArgs, f32_only};
use crate::error::Result;
use crate::matmul::MatMul;
use crate::options::{CompileOptions, Device, Threads};
use crate::refusal::{Refusal, RefusalReason};
use crate::weights::Weights;

#[cfg(target_vendor = "apple")]
use accelerate_src as _;

#[cfg(target_vendor = "apple")]
const ID: BackendId = BackendId::ACCELERATE;
#[cfg(not(target_vendor = "apple"))]
const ID: BackendId = BackendId::BLAS;

pub(super) struct Blas;

impl Blas {
    pub(super) fn new() -> Self {
        Self
    }
}

impl Backend for Blas {
    fn describe(&self) -> String {
        if cfg!(target_vendor = "apple") {
            "Accelerate's CBLAS, f32".into()
        } else {
            "the system's CBLAS, f32".into()
        }
    }

    fn device(&self) -> (Device, String) {
        (Device::Cpu, std::env::consts::ARCH.into())
    }

    fn supports(&self, product: &MatMul, options: &CompileOptions) -> Result<(), Refusal> {
        f32_only::supports(product, options)?;
        let dimensions = [
            product.m(),
            product.n(),
            product.k(),
            product.a().leading_dimension(),
            product.b().leading_dimension(),
            product.c().leading_dimension(),
        ];
        if dimensions.iter().any(|&d| i32::try_from(d).is_err()) {
            return Err(Refusal::new(
                RefusalReason::Dimension,
                "CBLAS counts in 32 bits; use smaller dimensions or the backend `cpu`",
            ));
        }
        Ok(())
    }

    fn compile(
        &self,
        product: &MatMul,
        weights: Option<&Weights>,
        options: &CompileOptions,
    ) -> Result<Box<dyn CompiledProduct>> {
        let note = match options.threads {
            Threads::Auto => None,
            Threads::Count(_) | Threads::Pool(_) => Some(
                "CBLAS has no portable way to set threads: the library's own setting applies \
                 (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, VECLIB_MAXIMUM_THREADS)"
                    .to_owned(),
            ),
        };
        if let Some(note) = &note {
            log::warn!("{ID}: {note}");
        }
        Ok(Box::new(BlasProduct {
            plan: Arc::new(Plan { product: product.clone(), weights: weights.cloned() }),
            note,
        }))
    }
}

struct Plan {
    product: MatMul,
    weights: Option<Weights>,
}

struct BlasProduct {
    plan: Arc<Plan>,
    note: Option<String>,
}

impl CompiledProduct for BlasProduct {
    fn open(&self) -> Result<Box<dyn Run>> {
        Ok(Box::new(BlasRun(Arc::clone(&self.plan))))
    }

    fn facts(&self) -> Facts {
        Facts { bytes_held: size_of::<Plan>(), observed: Device::Cpu, threads: None, note: self.note.clone() }
    }
}

struct BlasRun(Arc<Plan>);

impl Run for BlasRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        let Plan { product, weights } = &*self.0;
        let epilogue = Epilogue::new(product, args.bias, args.residual);
        let mut operands = f32_only::operands(&ID, args, weights.as_ref().map(Weights::view))?;
        let layout = *operands.c.layout();
        if layout.is_empty() {
            return Ok(());
        }
        for item in 0..layout.batch() {
            let a = &operands.a.data()[product.a().item_offset(item).min(operands.a.data().len())..];
            let b = &operands.b.data()[product.b().item_offset(item).min(operands.b.data().len())..];
            let start = layout.item_offset(item);
            let c = &mut operands.c.data()[start..start + layout.item_span()];
            if product.k() == 0 {
                for row in c.chunks_mut(layout.leading_dimension()) {
                    row[..layout.cols()].fill(0.0);
                }
            } else {
                sgemm(product, operands.m, a, b, c);
            }
        }
        epilogue.apply_all(operands.c.data(), &layout);
        Ok(())
    }
}

/// One product; no dimension is 0, and the slices cover their layouts.
fn sgemm(product: &MatMul, m: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let transpose = |flag| if flag { CBLAS_TRANSPOSE::CblasTrans } else { CBLAS_TRANSPOSE::CblasNoTrans };
    // A single row may be described with any leading dimension, but CBLAS checks it; `supports`
    // has made sure that the numbers fit.
    let int = |x: usize| i32::try_from(x).unwrap_or(i32::MAX);
    // SAFETY: the executor has checked that A, B and C cover their layouts for this m, so that
    // every element CBLAS addresses lies inside the slices; with beta = 0 it does not read C.
    unsafe {
        cblas_sgemm(
            CBLAS_LAYOUT::CblasRowMajor,
            transpose(product.transpose_a()),
            transpose(product.transpose_b()),
            int(m),
            int(product.n()),
            int(product.k()),
            1.0,
            a.as_ptr(),
            int(product.a().leading_dimension()),
            b.as_ptr(),
            int(product.b().leading_dimension()),
            0.0,
            c.as_mut_ptr(),
            int(product.c().leading_dimension()),
        );
    }
}
