//! What is to be computed: the product, its element types, layouts and quantisation, and how it is compiled.

pub(crate) mod activation;
pub(crate) mod element;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod options;
pub(crate) mod quantization;
pub(crate) mod scales;
pub(crate) mod with_weights;
