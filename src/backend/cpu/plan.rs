//! What is decided when a product is compiled.

use std::sync::Arc;

use super::ConstantB;
use super::blocking::Blocking;
use super::kernel::Kernels;
use crate::description::activation::Activation;
use crate::description::matmul::MatMul;
use crate::description::options::ThreadPool;

/// B is read as it lies up to so many bytes: it stays in the first-level cache.
const SMALL_BYTES: usize = 32 << 10;

/// The columns of C from which on packing A can pay: each packed number is used so often.
const PACK_A_COLS: usize = 192;

/// Rows of A that are a multiple of this apart meet in one set of a first-level cache of 64 sets.
const SETS_BYTES: usize = 64 * 64;

/// A product, and how it is to be computed.
pub(super) struct Plan {
    pub product: MatMul,
    pub kernels: &'static Kernels,
    pub blocking: Blocking,
    pub b: ConstantB,
    pub pool: Option<Arc<dyn ThreadPool>>,
    pub threads: usize,
}

/// How a run reads a B that is not packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// C is a row: B is read once.
    RowTimesB,
    /// C is a column: A is read once.
    ATimesColumn,
    /// In tiles, as it lies.
    Plain,
    /// In tiles, packed first.
    Pack,
}

/// The bytes of so many numbers. The leading dimension of a single row may be any, and so may the
/// dimensions of an empty product.
fn bytes(numbers: usize) -> usize {
    numbers.saturating_mul(size_of::<f32>())
}

impl Plan {
    /// For a run with `m` rows, where B is not packed.
    pub(super) fn method(&self, m: usize) -> Method {
        let Self { product, kernels, .. } = self;
        let small = bytes(product.n().saturating_mul(product.k())) <= SMALL_BYTES;
        if product.n() == 1 {
            Method::ATimesColumn
        } else if m == 1 {
            Method::RowTimesB
        } else if !product.transpose_b() && (m <= kernels.max_rows() || small) {
            Method::Plain
        } else {
            Method::Pack
        }
    }

    /// Whether a share of `rows` and `cols` is faster with A packed: where its columns are read often,
    /// and its rows are spread over memory, push each other out of the cache, or are more than the second
    /// level holds (on a Zen 5 core packing costs 3 % of 512x512x512, 2026-11-24).
    pub(super) fn packs_a(&self, rows: usize, cols: usize) -> bool {
        let Self { product, blocking, .. } = self;
        cols >= PACK_A_COLS
            && (product.transpose_a()
                || bytes(product.a().leading_dimension()).is_multiple_of(SETS_BYTES)
                || bytes(rows.saturating_mul(product.k())) > blocking.plain_a_bytes)
    }

    /// The factor of the product; `None` for 1.
    pub(super) fn alpha(&self) -> Option<f32> {
        Some(self.product.alpha()).filter(|alpha| alpha.to_bits() != 1f32.to_bits())
    }

    /// Whether anything follows the sums.
    pub(super) fn has_epilogue(&self) -> bool {
        let product = &self.product;
        self.alpha().is_some()
            || product.activation() != Activation::None
            || product.has_bias()
            || product.residual().is_some()
    }
}
