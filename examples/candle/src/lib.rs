//! Products of ane-matmul on the tensors of candle, on the CPU: what a layer reads lies where candle put it,
//! and candle keeps what the layer wrote. Neither is copied.
//!
//! ```
//! use ane_matmul::{Activation, BackendId, Linear};
//! use ane_matmul_example_candle::{linear, weights};
//! use candle_core::{Device, Module, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let w = Tensor::randn(0f32, 0.02, (32, 64), &Device::Cpu)?; // outputs x inputs, as candle stores them
//! let layer = Linear::new(&weights(&w)?).max_rows(8).activation(Activation::Relu).compile(&BackendId::AUTO)?;
//!
//! let x = Tensor::randn(0f32, 1.0, (2, 5, 64), &Device::Cpu)?;
//! let y = linear(&layer, &x)?; // from any thread
//! assert_eq!(y.dims(), [2, 5, 32]);
//!
//! // A function of a tensor is a module of candle's.
//! let module = |x: &Tensor| linear(&layer, x);
//! assert_eq!(module.forward(&x)?.dims(), [2, 5, 32]);
//! # Ok(())
//! # }
//! ```
#![warn(clippy::pedantic)]

use ane_matmul::{Compiled, TensorView, TensorViewMut, Weights};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Storage, Tensor, bail};

/// Weights from a matrix that candle stores as outputs x inputs, as `candle_nn::Linear` does.
///
/// They are copied: the library's weights own their memory.
///
/// # Errors
/// When the tensor is no matrix of f32 on the CPU.
pub fn weights(w: &Tensor) -> Result<Weights> {
    let (outputs, inputs) = w.dims2()?;
    // A copy for a tensor whose elements do not lie in order; else the same tensor.
    let w = w.contiguous()?;
    let (storage, layout) = w.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("expected weights on the CPU") };
    let view = TensorView::new(elements(storage, layout)?, outputs, inputs).map_err(Error::wrap)?;
    Weights::new(view).and_then(|weights| weights.transposed()).map_err(Error::wrap)
}

/// Applies a layer to the last dimension of `x`, which has as many elements as the layer has inputs. There may
/// be any number of rows: they are run in blocks of as many as the layer was compiled for.
///
/// The result is no part of candle's graph of gradients.
///
/// # Errors
/// When `x` does not lie on the CPU, is not of f32, has another last dimension, or is not contiguous: then
/// [`Tensor::contiguous`] makes a copy. When the run fails.
pub fn linear(layer: &Compiled, x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Dense(layer))
}

/// [`linear`] as an operation of candle's.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a>(pub &'a Compiled);

impl CustomOp1 for Dense<'_> {
    fn name(&self) -> &'static str {
        "ane-matmul-dense"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let product = self.0.product();
        let (inputs, outputs) = (product.k(), product.n());
        let Some((&width, outer)) = layout.dims().split_last() else { bail!("expected rows, got a scalar") };
        if width != inputs {
            bail!("expected a last dimension of {inputs}, got the shape {:?}", layout.shape());
        }
        let x = elements(storage, layout)?;
        let rows: usize = outer.iter().product();
        let mut y = vec![0f32; rows * outputs];
        for start in (0..rows).step_by(product.m().max(1)) {
            let end = rows.min(start + product.m());
            let block = |width: usize| start * width..end * width;
            let x = TensorView::new(&x[block(inputs)], end - start, inputs).map_err(Error::wrap)?;
            let y = TensorViewMut::new(&mut y[block(outputs)], end - start, outputs).map_err(Error::wrap)?;
            self.0.run(x, y).map_err(Error::wrap)?;
        }
        Ok((CpuStorage::F32(y), Shape::from([outer, &[outputs]].concat())))
    }
}

/// The elements of a tensor where candle keeps them.
///
/// # Errors
/// When they do not lie one after the other, or are not f32.
pub fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice()?[start..end]),
        None => bail!("expected contiguous elements: call Tensor::contiguous, which copies them"),
    }
}
