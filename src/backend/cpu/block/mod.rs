//! One block of C by each algorithm: operands brought into form, the macro-kernel, the epilogue.

mod dot;
mod f32;
mod upcast;
mod weight_only;
