//! One block of C by each algorithm: operands brought into form, the macro-kernel, the epilogue.

mod direct;
mod dot;
mod upcast;
mod weight_only;
