//! Any library with the CBLAS interface: Accelerate on Apple systems, the system's BLAS elsewhere.

use std::sync::Arc;

use cblas_sys::{CBLAS_LAYOUT, CBLAS_TRANSPOSE, cblas_sgemm};

use crate::backend::epilogue::Epilogue;
use crate::backend::refusal::{Refusal, RefusalReason};
use crate::backend::{Backend, BackendId, CompiledInfo, CompiledProduct, Run, RunArgs, f32_only};
use crate::description::matmul::MatMul;
use crate::description::options::{CompileOptions, Device, Threads};
use crate::error::Result;
use crate::operands::weights::Weights;

#[cfg(target_vendor = "apple")]
use accelerate_src as _;

#[cfg(target_vendor = "apple")]
const ID: BackendId = BackendId::ACCELERATE;
#[cfg(not(target_vendor = "apple"))]
const ID: BackendId = BackendId::BLAS;

/// OpenBLAS's own functions, looked up at run time: another CBLAS does not have them.
#[cfg(all(unix, not(target_vendor = "apple")))]
fn openblas_symbol(name: &std::ffi::CStr) -> Option<*mut std::ffi::c_void> {
    // SAFETY: the name is a C string, and the default scope needs no handle.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

/// Sets the number of threads of the linked BLAS for the whole process, where it can be told.
///
/// OpenBLAS can (`openblas_set_num_threads`); returns whether the BLAS was told. This crate never
/// calls it by itself, since it changes what other users of the same BLAS in the process get.
#[cfg(all(unix, not(target_vendor = "apple")))]
#[allow(clippy::must_use_candidate, reason = "called for what it does")]
pub fn set_blas_threads(count: std::num::NonZeroUsize) -> bool {
    let Some(symbol) = openblas_symbol(c"openblas_set_num_threads") else { return false };
    // SAFETY: OpenBLAS's cblas.h declares `void openblas_set_num_threads(int)`.
    let set = unsafe { std::mem::transmute::<*mut std::ffi::c_void, extern "C" fn(i32)>(symbol) };
    set(int(count.get()));
    true
}

/// The threads that the linked BLAS uses, where it can be asked.
pub(crate) fn threads() -> Option<usize> {
    #[cfg(all(unix, not(target_vendor = "apple")))]
    {
        let symbol = openblas_symbol(c"openblas_get_num_threads")?;
        // SAFETY: OpenBLAS's cblas.h declares `int openblas_get_num_threads(void)`.
        let get = unsafe { std::mem::transmute::<*mut std::ffi::c_void, extern "C" fn() -> i32>(symbol) };
        usize::try_from(get()).ok()
    }
    #[cfg(not(all(unix, not(target_vendor = "apple"))))]
    None
}

/// What CBLAS counts in; `supports` has made sure that the numbers fit.
fn int(x: usize) -> i32 {
    i32::try_from(x).unwrap_or(i32::MAX)
}

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

    fn threads(&self, options: &CompileOptions) -> usize {
        threads().unwrap_or_else(|| options.threads.number())
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
        let wanted = match &options.threads {
            Threads::Auto => None,
            wanted => Some(wanted.number()),
        };
        let note = wanted.filter(|_| threads() != wanted).map(|wanted| {
            let used = threads().map_or_else(|| "an unknown number".into(), |threads| threads.to_string());
            format!(
                "{wanted} threads were asked for, the BLAS uses {used}: its threads belong to the process \
                 (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, VECLIB_MAXIMUM_THREADS, or set_blas_threads)"
            )
        });
        if let Some(note) = &note {
            log::warn!("{ID}: {note}");
        }
        Ok(Box::new(BlasProduct {
            plan: Arc::new(Plan { product: product.clone(), weights: weights.map(Weights::for_product) }),
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
    fn open(&self, _: usize) -> Result<Box<dyn Run>> {
        Ok(Box::new(BlasRun(Arc::clone(&self.plan))))
    }

    fn info(&self) -> CompiledInfo {
        CompiledInfo {
            bytes_held: size_of::<Plan>(),
            observed: Device::Cpu,
            threads: threads(),
            note: self.note.clone(),
            ..CompiledInfo::default()
        }
    }
}

struct BlasRun(Arc<Plan>);

impl Run for BlasRun {
    fn run(&mut self, args: RunArgs<'_>) -> Result<()> {
        let Plan { product, weights } = &*self.0;
        let epilogue = Epilogue::new(product, args.bias, args.residual);
        let mut operands =
            f32_only::operands(&ID, args, weights.as_ref().map(|weights| weights.view_for(product)))?;
        let b = operands.b.ok_or_else(|| f32_only::not_f32(&ID))?.data();
        let layout = *operands.c.layout();
        if layout.is_empty() {
            return Ok(());
        }
        for item in 0..layout.batch() {
            let a = &operands.a.data()[product.a().item_offset(item).min(operands.a.data().len())..];
            let b = &b[product.b().item_offset(item).min(b.len())..];
            let start = layout.item_offset(item);
            let c = &mut operands.c.data()[start..start + layout.item_span()];
            // Accelerate reads C although beta is 0 where m is 1, so that a NaN there stays (mlx#3563); where n is 1,
            // a library may take the same way.
            if product.k() == 0 || operands.m == 1 || product.n() == 1 {
                for row in c.chunks_mut(layout.leading_dimension()) {
                    row[..layout.cols()].fill(0.0);
                }
            }
            if product.k() != 0 {
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
    // SAFETY: the executor has checked that A, B and C cover their layouts for this m, so that
    // every element CBLAS addresses lies inside the slices; C is initialised, should it be read.
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

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::operands::view::{TensorView, TensorViewMut};
    use crate::{Activation, Operand};

    /// Held while the threads of the process's BLAS matter.
    pub(crate) static THREADS: Mutex<()> = Mutex::new(());

    fn compiled(product: &MatMul, threads: Threads) -> Box<dyn CompiledProduct> {
        Blas::new().compile(product, None, &CompileOptions::default().threads(threads)).unwrap()
    }

    #[test]
    fn a_blas_on_the_cpu_says_so() {
        let (device, name) = Blas::new().device();
        assert_eq!((device, name.as_str()), (Device::Cpu, std::env::consts::ARCH));
        assert!(Blas::new().describe().contains("CBLAS"));
        let product = MatMul::new(2, 2, 2).unwrap();
        let _lock = THREADS.lock();
        let info = compiled(&product, Threads::Auto).info();
        assert_eq!((info.observed, info.threads, info.note), (Device::Cpu, threads(), None));
        assert!(info.bytes_held >= size_of::<Plan>());
    }

    #[test]
    fn dimensions_beyond_32_bits_are_refused() {
        let supports = |product: &MatMul| Blas::new().supports(product, &CompileOptions::default());
        assert!(supports(&MatMul::new(2, 3, i32::MAX as usize).unwrap()).is_ok());
        let refusal = supports(&MatMul::new(2, 3, i32::MAX as usize + 1).unwrap()).unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::Dimension);
        let wide = MatMul::builder(1, 1, 1).leading_dimension(Operand::C, 1 << 31).build().unwrap();
        assert!(supports(&wide).is_err());
    }

    #[test]
    fn products_of_a_batch_have_their_epilogue() {
        for k in [2, 0] {
            let product = MatMul::builder(2, 3, k)
                .batch(2)
                .alpha(2.0)
                .bias(true)
                .activation(Activation::Relu)
                .leading_dimension(Operand::C, 4)
                .build()
                .unwrap();
            let (a, b): (Vec<f32>, Vec<f32>) = (
                (0..4 * k).map(|i| i as f32 - 3.0).collect(),
                (0..6 * k).map(|i| 0.5 * i as f32 - 2.0).collect(),
            );
            let bias = [1.0, -1.0, 0.5];
            let mut c = vec![f32::NAN; product.c().span()];
            let args = RunArgs {
                m: 2,
                a: TensorView::with_layout(&a, *product.a()).unwrap().erased(),
                b: Some(TensorView::with_layout(&b, *product.b()).unwrap().erased()),
                bias: Some(TensorView::new(&bias, 1, 3).unwrap().erased()),
                residual: None,
                c: TensorViewMut::with_layout(&mut c, *product.c()).unwrap().erased(),
            };
            compiled(&product, Threads::Auto).open(0).unwrap().run(args).unwrap();
            for (item, row, span) in product.c().row_spans() {
                for (col, got) in c[span].iter().enumerate() {
                    let sum: f32 =
                        (0..k).map(|p| a[(item * 2 + row) * k + p] * b[(item * k + p) * 3 + col]).sum();
                    assert_eq!(*got, (2.0 * sum + bias[col]).max(0.0), "k = {k}, {item}, {row}, {col}");
                }
            }
        }
    }

    #[cfg(all(unix, not(target_vendor = "apple")))]
    #[test]
    fn threads_that_a_blas_was_not_told_of_are_noted() {
        let _lock = THREADS.lock();
        let Some(before) = threads() else {
            // Another BLAS can neither be asked nor told.
            assert!(!set_blas_threads(std::num::NonZeroUsize::MIN));
            return;
        };
        let product = MatMul::new(2, 2, 2).unwrap();
        assert!(set_blas_threads(std::num::NonZeroUsize::MIN));
        assert_eq!(threads(), Some(1));
        assert_eq!(Blas::new().threads(&CompileOptions::default()), 1);
        assert_eq!(compiled(&product, Threads::ONE).info().note, None);
        let note = compiled(&product, Threads::Count(7.try_into().unwrap())).info().note.unwrap();
        assert!(note.contains("7 threads were asked for, the BLAS uses 1"), "{note}");
        assert!(set_blas_threads(before.try_into().unwrap()));
        assert_eq!(threads(), Some(before));
    }
}
