//! Weights from safetensors files (feature `safetensors`).
