//! What a product is computed from: tensors and views of them, weights, and memory that devices share.

#[allow(unsafe_code, reason = "memory of devices")]
pub(crate) mod device_tensor;
#[cfg(feature = "half")]
pub(crate) mod float16;
pub(crate) mod int4;
#[cfg(feature = "ndarray")]
mod interop_ndarray;
pub mod quantize;
#[allow(unsafe_code, reason = "memory of devices")]
pub(crate) mod shared_buffer;
pub(crate) mod tensor;
pub(crate) mod view;
pub(crate) mod weights;
