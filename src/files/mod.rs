//! Files: operands from others' formats, and compiled products that are kept between starts.

#[cfg(feature = "npy")]
pub mod npy;
pub(crate) mod package;
pub(crate) mod private_dir;
#[cfg(feature = "safetensors")]
pub mod safetensors;
#[cfg(any(feature = "npy", feature = "profile", feature = "safetensors"))]
pub(crate) mod whole_file;
