//! How accurate a result must be, and whether it is.
//!
//! The reference is the float64 product of the inputs as already rounded to their element types.
//! With u the unit roundoff and gamma_k(u) = k u / (1 - k u) (Higham, *Accuracy and Stability of
//! Numerical Algorithms*, 2nd ed., section 3.1), every element of a correct result lies within
//!
//! ```text
//! L * ( gamma_k(u_acc) |alpha| |A||B| + gamma_e(u_acc) (|alpha| |A||B| + |bias| + |residual|) )
//!   + E(x) + u_out |C| + underflow
//! ```
//!
//! of the reference. e counts the roundings of alpha, bias and residual; L is the largest slope of
//! the activation ([`crate::Activation::lipschitz`]) and E its own error on any backend
//! ([`crate::Activation::error_f32`], and 4 units in the last place of the argument, at most 16 for GELU and
//! SiLU and 1 for sigmoid and tanh); underflow is one smallest normal number for each of the k + e + 1 operations, so that flushing subnormals to zero is allowed. The first term holds for
//! any order of summation (section 3.5 there), with or without fused multiply-add. Where k u is more than
//! 1/33 (f16 from 63 terms on), 33/32 k u takes the place of gamma_k: it is smaller, and holds for any k
//! (Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34, 2013).
//!
//! A quantised product is held to the same ([`Reference::of`]), by the arithmetic of
//! `docs/quantization.md`: integers are summed exactly, so that the first term is 0 and the magnitudes of
//! the second are those of the scaled sum, with 4 roundings for the scales; weights that are dequantised
//! on the way count k + 3 roundings instead of k.
//!
//! With [`crate::CompileOptions::reduced_precision`] operands of floating-point sums may be truncated to 11
//! significant bits, as tf32 does, each losing less than d = 2^-10 of its size: gamma_k grows by
//! (2 d + d^2)(1 + gamma_k) ([`Reference::of`], [`Reference::with_options`]).

//!
//! For sums of f64, float64 is the precision that is judged: the reference's sums are computed in twice of it (Ogita,
//! Rump and Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26, 2005) and rounded once; e counts that
//! rounding and those of the reference's own alpha, bias and residual, and E is twice
//! [`crate::Activation::error_f64`]. Where magnitudes add up to more than float64's range, the reference itself may
//! have overflowed, and any result passes.

mod real;
mod reference;

pub(crate) use real::{IntegerOutput, quantize_row, scale_of_b, sums_integers, terms_to_a_scale};
pub(crate) use reference::{Bounds, add_product, gamma, is_twofold, magnitude, ratio, term_size, total};
pub use reference::{Deviation, Reference};
