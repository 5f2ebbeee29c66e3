//! What is decided when a product is compiled.

use std::sync::Arc;

use super::blocking::{Blocking, K_MULTIPLE};
use super::isa::{Dot, Isa};
use super::macrokernel::even;
use super::microkernel::{MicroKernels, instances};
use super::pack::weight_only::{PackedIntegers, group_len};
use super::pack::{Format, PackedB, interleave_a, upcast};
use super::threads::Team;
use crate::alloc;
use crate::description::activation::Activation;
use crate::description::element::ElementType::{self, Bf16, F16, F32, F64, I4, I8, I32, U4, U8};
use crate::description::matmul::MatMul;
use crate::description::quantization::{QuantA, QuantB, Quantization};
use crate::description::scales::Scales;
use crate::error::Result;
use crate::operands::weights::Weights;

/// B is read as it lies up to so many bytes: it stays in the first-level cache.
const SMALL_BYTES: usize = 32 << 10;

/// A B of more bytes comes from memory rather than from a cache, so to speak: caches differ, and others use them.
#[cfg(feature = "half")]
const LARGE_BYTES: usize = 4 << 20;

/// The columns of C from which on packing A can pay: each packed number is used so often.
const PACK_A_COLS: usize = 192;

/// Rows of A that are a multiple of this apart meet in one set of a first-level cache of 64 sets.
pub(crate) const SETS_BYTES: usize = 64 * 64;

/// Fewer rows are not worth the interleaving of a dynamic B.
const MIN_INTERLEAVED_ROWS: usize = 3;

/// Groups shorter than this would lie mostly empty in whole words with their scales.
const SHORTEST_GROUP: usize = 16;

/// How a product is computed: which form A and B take on their way to the micro-kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// f32 by f32 or f64 by f64, as they lie or packed.
    Direct,
    /// Elements interleaved in words, by an instruction that sums their products.
    Dot(Dot),
    /// A float A by constant 8 or 4-bit weights, upcast in registers.
    WeightOnly,
    /// Any other types, upcast to f32 block by block: the reference for the others.
    Upcast,
}

impl Algorithm {
    /// For the instructions that this machine has, as far as the description decides.
    pub(crate) fn of(product: &MatMul, isa: Isa) -> Self {
        if product.is_f32() || product.is_f64() {
            return Self::Direct;
        }
        if is_weight_only(product) {
            return Self::WeightOnly;
        }
        match dot_of(product, isa) {
            Some(dot) if product.constant_b() || product.m() >= MIN_INTERLEAVED_ROWS => Self::Dot(dot),
            _ => Self::Upcast,
        }
    }

    /// The elements that a lane multiplies at a time.
    pub(crate) fn elements_per_lane(self) -> usize {
        match self {
            Self::Dot(dot) => Format::from(dot).k_per_word(),
            Self::Direct | Self::WeightOnly | Self::Upcast => 1,
        }
    }
}

/// Whether [`Algorithm::WeightOnly`] computes a product that the backend supports.
fn is_weight_only(product: &MatMul) -> bool {
    let (types, k) = (product.types(), product.k());
    let group = group_len(product.quantization().b, k);
    product.constant_b()
        && matches!(types.b, I8 | U8 | I4 | U4)
        && types.a.is_float()
        && types.accumulator == F32
        && product.quantization().b != QuantB::None
        && !product.b().is_empty()
        && (group >= SHORTEST_GROUP || group == k)
}

/// The dot products that compute a product on this machine.
fn dot_of(product: &MatMul, isa: Isa) -> Option<Dot> {
    let types = product.types();
    let quantization = product.quantization();
    match (types.a, types.b, types.accumulator) {
        (Bf16, Bf16, F32) if *quantization == Quantization::default() => {
            Some(Dot::Bf16).filter(|dot| isa.has(*dot))
        }
        (I8 | U8, I8, I32) => isa.int8(),
        (F32 | F16 | Bf16, I8, I32) if quantization.a == QuantA::DynamicPerRow => isa.int8(),
        _ => None,
    }
    .filter(|_| product.k() > 0 && !matches!(quantization.b, QuantB::PerGroup { .. }))
}

/// A constant B, as the kernels want it.
pub(crate) enum ConstantB {
    /// B is dynamic: it comes with every run.
    None,
    /// As given.
    Plain(Weights),
    /// In micro-panels.
    Packed(Arc<PackedB>),
    /// In micro-panels of integers with their scales.
    Integers(Arc<PackedIntegers>),
}

impl ConstantB {
    /// What it takes, and by what it is known, where products of the same weights share it.
    pub(crate) fn shared(&self) -> Option<(usize, usize)> {
        match self {
            Self::None | Self::Plain(_) => None,
            Self::Packed(packed) => Some((Arc::as_ptr(packed).addr(), packed.bytes())),
            Self::Integers(packed) => Some((Arc::as_ptr(packed).addr(), packed.bytes())),
        }
    }
}

/// The sizes of the outer blocks, of rows and columns of C and of k: A and B are brought into another form block by
/// block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub rows: usize,
    pub cols: usize,
    pub k: usize,
}

impl Blocks {
    /// [`Algorithm::Upcast`]: the columns that each number of A is used for when converted, where sums are in C.
    const UPCAST_COLS: usize = 1024;
    /// The same where they, or a B that is yet to be packed, take scratch memory.
    const UPCAST_COLS_APART: usize = 512;
    /// Sums of integers, which f32 holds for so many products only.
    const UPCAST_INTEGERS_K: usize = 256;
    /// Long runs of B as it lies, where few rows wait for its reading.
    const UPCAST_FLAT: (usize, usize) = (32, 1536);
    /// The most rows that wait.
    const UPCAST_FEW_ROWS: usize = 16;
    /// Rows whose sums lie in scratch memory, where C cannot hold them: four micro-panels of A.
    const DOT_ROWS_APART: usize = 56;
    /// In a second-level cache up to a k of some thousand.
    const WEIGHT_ONLY_ROWS: usize = 64;

    fn new(
        algorithm: Algorithm,
        product: &MatMul,
        kernels: &MicroKernels,
        blocking: &Blocking,
        b: &ConstantB,
    ) -> Self {
        let (m, n, k) = (product.m(), product.n(), product.k());
        match algorithm {
            // The macro-kernel blocks by itself.
            Algorithm::Direct => Self { rows: m, cols: n, k },
            Algorithm::WeightOnly => Self { rows: m.min(Self::WEIGHT_ONLY_ROWS), cols: n, k },
            Algorithm::Upcast if is_row_by_16_bits(product, b, m) => Self { rows: m, cols: n, k: 1 },
            Algorithm::Upcast => {
                let (mr, nr) = (kernels.mr(), kernels.nr());
                let as_it_lies = !matches!(b, ConstantB::Packed(_));
                if as_it_lies && !product.transpose_b() && m <= Self::UPCAST_FEW_ROWS {
                    let (depth, cols) = Self::UPCAST_FLAT;
                    return Self { rows: m, cols: n.min(cols), k: k.min(depth) };
                }
                let integers = product.types().accumulator == I32;
                let apart = !in_place(product) || integers || as_it_lies && is_loaded_first(product);
                let rows = blocking.mc_panels * mr;
                // One block of rows uses what is converted of B once: it stays in half of the second-level cache.
                let depth = if m <= rows { blocking.kc_l1 } else { blocking.kc };
                let depth = if integers { depth.min(Self::UPCAST_INTEGERS_K) } else { depth };
                let cols = if m <= rows {
                    (blocking.l2_bytes / 2 / size_of::<f32>() / depth / nr).max(1) * nr
                } else if apart {
                    Self::UPCAST_COLS_APART
                } else {
                    Self::UPCAST_COLS
                };
                Self { rows: even(m, rows, mr), cols: even(n, cols, nr), k: even(k, depth, K_MULTIPLE) }
            }
            Algorithm::Dot(_) => {
                let words = kernels.format.words(k);
                // Rows of A stay in half of the second-level cache, columns of B that are packed now in the other.
                let half = blocking.l2_bytes / 2 / size_of::<u32>();
                let (mr, nr) = (kernels.mr(), kernels.nr());
                let rows = (half / interleaved_a_stride(kernels, k)).max(mr) / mr * mr;
                let rows = if in_place(product) { rows } else { rows.min(Self::DOT_ROWS_APART) };
                let cols = if matches!(b, ConstantB::None) { (half / words / nr).max(1) * nr } else { n };
                Self { rows: rows.min(m), cols: cols.min(n), k }
            }
        }
    }
}

/// Integers less their zero points are at most 255 in magnitude: the sums of a block's products stay among the
/// integers that f32 has.
const _: () = {
    let (deep, flat) = (Blocks::UPCAST_INTEGERS_K, Blocks::UPCAST_FLAT.0);
    let longest = if deep > flat { deep } else { flat };
    assert!(longest * 255 * 255 <= 1 << f32::MANTISSA_DIGITS);
};

/// From row to row of an interleaved A.
pub(crate) fn interleaved_a_stride(kernels: &MicroKernels, k: usize) -> usize {
    let words = kernels.format.words(k);
    if words.is_multiple_of(interleave_a::SET_WORDS) { words + 16 } else { words }
}

/// Whether the elements of B are the numbers that are summed.
fn is_b_as_stored(product: &MatMul) -> bool {
    match product.quantization().b {
        QuantB::None => true,
        scheme => product.types().accumulator == I32 && scheme.zero_point() == 0,
    }
}

/// Whether [`Algorithm::Upcast`] loads parts of a B as it lies before it packs them.
pub(crate) fn is_loaded_first(product: &MatMul) -> bool {
    product.transpose_b() || !is_b_as_stored(product)
}

/// Whether sums may be written to C and finished there: the epilogue's operands are f32, or all is f64.
fn in_place(product: &MatMul) -> bool {
    let types = product.types();
    match types.output {
        I32 | F64 => true,
        output => output == F32 && (!product.has_bias() || types.bias == F32),
    }
}

/// A product, and how it is to be computed.
pub(crate) struct Plan {
    pub product: MatMul,
    pub algorithm: Algorithm,
    pub kernels: &'static MicroKernels,
    pub blocking: Blocking,
    pub blocks: Blocks,
    pub b: ConstantB,
    pub scales: Scales,
    /// For sums of integers: alpha times the scale of each column of a constant B, item by item where items differ;
    /// for [`Algorithm::Dot`] times A's scale too, where rows have none of their own, and of all columns. Else
    /// empty, where all columns have one scale.
    pub column_scales: Vec<f32>,
    /// The zero-point compensation of each column of a constant B, item by item.
    pub compensation: Vec<i32>,
    pub team: Option<Team>,
    pub threads: usize,
    /// For operands that the instruction of [`Dot::Bf16`] would take for 0.
    pub for_subnormals: Option<Arc<Self>>,
}

/// How a run reads a B of f32 or f64 that was not packed when compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// C is a row: B is read once.
    RowTimesB,
    /// C is a column: A is read once.
    ATimesColumn,
    /// In microtiles, as it lies.
    Plain,
    /// In microtiles, packed first.
    Pack,
}

/// Whether a run with `m` rows that is upcast reads a B of 16-bit elements as it lies: the columns of one that is
/// constant, whose sums are those of the micro-kernels.
fn is_row_by_16_bits(product: &MatMul, b: &ConstantB, m: usize) -> bool {
    let as_it_lies = match b {
        ConstantB::None => true,
        ConstantB::Plain(_) => !product.transpose_b(),
        ConstantB::Packed(_) | ConstantB::Integers(_) => false,
    };
    as_it_lies && m == 1 && product.k() > 0 && matches!(product.types().b, F16 | Bf16)
}

/// What errors call the memory of scales and compensations.
const COLUMNS: &str = "terms of columns";

impl Plan {
    /// The team and the number of threads are those of [`super::Cpu::team`]; the instructions that `algorithm`
    /// needs are here.
    pub(crate) fn new(
        algorithm: Algorithm,
        isa: Isa,
        blocking: Blocking,
        (team, threads): (Option<Team>, usize),
        product: &MatMul,
        weights: Option<&Weights>,
    ) -> Result<Self> {
        let (algorithm, kernels) = match algorithm {
            Algorithm::Dot(dot) => match instances::dot(isa, dot) {
                Some(kernels) => (algorithm, kernels),
                None => (Algorithm::Upcast, &instances::of(isa).f32),
            },
            Algorithm::Direct if product.is_f64() => (algorithm, &instances::of(isa).f64),
            Algorithm::Direct | Algorithm::WeightOnly | Algorithm::Upcast => {
                (algorithm, &instances::of(isa).f32)
            }
        };
        let b = constant_b(algorithm, isa, kernels, product, weights)?;
        let scales = Scales::of(product);
        let column_scales = column_scales(product, weights)?;
        let mut plan = Self::of(algorithm, kernels, blocking, b, scales, (team, threads), product);
        plan.column_scales = column_scales;
        match algorithm {
            Algorithm::Dot(Dot::Int8 | Dot::Int8Pairs) => {
                plan.column_scales = scales_of_all_columns(product, weights, scales, plan.column_scales)?;
                if let ConstantB::Packed(b) = &plan.b {
                    plan.compensation = alloc::copied(&b.column_sums, COLUMNS)?;
                    interleave_a::compensate(kernels.format, product, &mut plan.compensation);
                }
            }
            Algorithm::Dot(Dot::Bf16) => plan.for_subnormals = Some(Arc::new(plan.upcast(isa, weights))),
            Algorithm::Direct | Algorithm::WeightOnly | Algorithm::Upcast => {}
        }
        Ok(plan)
    }

    /// Without terms of columns, and without a second plan.
    fn of(
        algorithm: Algorithm,
        kernels: &'static MicroKernels,
        blocking: Blocking,
        b: ConstantB,
        scales: Scales,
        (team, threads): (Option<Team>, usize),
        product: &MatMul,
    ) -> Self {
        Self {
            product: product.clone(),
            algorithm,
            kernels,
            blocking,
            blocks: Blocks::new(algorithm, product, kernels, &blocking, &b),
            b,
            scales,
            column_scales: Vec::new(),
            compensation: Vec::new(),
            team,
            threads,
            for_subnormals: None,
        }
    }

    /// The plan for the same product that upcasts operands, and a constant B from where it lies.
    fn upcast(&self, isa: Isa, weights: Option<&Weights>) -> Self {
        let kernels = &instances::of(isa).f32;
        let b = weights.map_or(ConstantB::None, |weights| ConstantB::Plain(weights.for_product()));
        let team = (self.team.clone(), self.threads);
        Self::of(Algorithm::Upcast, kernels, self.blocking, b, self.scales, team, &self.product)
    }

    /// The bytes of so many numbers. The leading dimension of a single row may be any, and so may the
    /// dimensions of an empty product.
    fn bytes_of(&self, numbers: usize) -> usize {
        numbers.saturating_mul(self.kernels.number_words() * size_of::<f32>())
    }

    /// For a run with `m` rows, where B was not packed when compiled.
    pub(crate) fn method(&self, m: usize) -> Method {
        let product = &self.product;
        let small = self.bytes_of(product.n().saturating_mul(product.k())) <= SMALL_BYTES;
        if product.n() == 1 {
            Method::ATimesColumn
        } else if m == 1 {
            Method::RowTimesB
        } else if !product.transpose_b() && (m <= self.kernels.mr() || small || self.is_b_one_panel()) {
            Method::Plain
        } else {
            Method::Pack
        }
    }

    /// Whether a B that is not transposed lies as if packed: its rows are no longer than those of a micro-panel.
    fn is_b_one_panel(&self) -> bool {
        self.product.b().leading_dimension() <= self.kernels.nr()
    }

    /// Whether a share of `rows` and `cols` is faster with A packed: where its columns are read often,
    /// and its rows are spread over memory, push each other out of the cache, or are more than the second
    /// level holds (on a Zen 5 core packing costs 3 % of 512x512x512, 2026-11-24).
    pub(crate) fn packs_a(&self, rows: usize, cols: usize) -> bool {
        let Self { product, blocking, .. } = self;
        cols >= PACK_A_COLS
            && (product.transpose_a()
                || self.bytes_of(product.a().leading_dimension()).is_multiple_of(SETS_BYTES)
                || self.bytes_of(rows.saturating_mul(product.k())) > blocking.l2_bytes)
    }

    /// The factor of the sums; `None` for 1, and where the scales of integers have it.
    pub(crate) fn alpha(&self) -> Option<f32> {
        let integers = self.product.types().accumulator == I32;
        Some(self.product.alpha()).filter(|alpha| !integers && alpha.to_bits() != 1f32.to_bits())
    }

    /// Whether anything follows the sums.
    pub(crate) fn has_epilogue(&self) -> bool {
        let product = &self.product;
        self.alpha().is_some()
            || product.activation() != Activation::None
            || product.has_bias()
            || product.residual().is_some()
    }

    /// Whether a run with `m` rows that is upcast reads a B of 16-bit elements as it lies.
    pub(crate) fn is_row_by_16_bits(&self, m: usize) -> bool {
        is_row_by_16_bits(&self.product, &self.b, m)
    }

    /// Whether sums may be written to C and finished there.
    pub(crate) fn in_place(&self) -> bool {
        in_place(&self.product)
    }

    /// The terms of an item's columns from `col` on, of all items or of one that the others share; `None` where there
    /// are none.
    pub(crate) fn of_columns<'t, T>(&self, terms: &'t [T], item: usize, col: usize) -> Option<&'t [T]> {
        let n = self.product.n();
        let item = if terms.len() == n { 0 } else { item };
        terms.get(item * n + col..(item + 1) * n)
    }

    /// Whether [`Algorithm::Upcast`] sums floats in C itself.
    pub(crate) fn upcasts_in_place(&self) -> bool {
        self.algorithm == Algorithm::Upcast
            && self.product.types().accumulator == F32
            && self.product.k() > 0
            && self.in_place()
    }

    /// What the plan takes, with what it shares.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.b.shared().map_or(0, |(_, bytes)| bytes)
            + size_of_val(self.column_scales.as_slice())
            + size_of_val(self.compensation.as_slice())
    }
}

#[cfg_attr(not(feature = "half"), expect(unused_variables, reason = "kernels of 16-bit elements"))]
fn constant_b(
    algorithm: Algorithm,
    isa: Isa,
    kernels: &'static MicroKernels,
    product: &MatMul,
    weights: Option<&Weights>,
) -> Result<ConstantB> {
    let Some(weights) = weights else {
        return Ok(ConstantB::None);
    };
    Ok(match (algorithm, product.types().b) {
        // Its other dimension may be of any size.
        _ if product.b().is_empty() => ConstantB::Plain(weights.for_product()),
        // A product with a vector is bound by the reading of A.
        (Algorithm::Direct, _) if product.n() == 1 => ConstantB::Plain(weights.for_product()),
        (Algorithm::Direct | Algorithm::Dot(_), _) => {
            ConstantB::Packed(PackedB::of(kernels, product, weights)?)
        }
        (Algorithm::WeightOnly, _) => {
            let key = (kernels.name, product.transpose_b(), product.quantization().b);
            let pack = || PackedIntegers::new(kernels, product, weights);
            ConstantB::Integers(weights.derived(key, pack)?)
        }
        #[cfg(feature = "half")]
        (Algorithm::Upcast, F16 | Bf16) if reads_row_as_it_lies(isa, product) => {
            ConstantB::Plain(weights.for_product())
        }
        #[cfg(feature = "half")]
        (Algorithm::Upcast, F16) => {
            ConstantB::Packed(PackedB::of(&instances::of(isa).from_f16, product, weights)?)
        }
        #[cfg(feature = "half")]
        (Algorithm::Upcast, Bf16) => {
            ConstantB::Packed(PackedB::of(&instances::of(isa).from_bf16, product, weights)?)
        }
        (Algorithm::Upcast, _) => ConstantB::Plain(weights.for_product()),
    })
}

/// Whether one row by constant weights of 16 bits reads them as they lie: with AVX2, where they come from memory, since
/// four micro-panels are as many short streams. In a cache the packed ones are faster, by up to a seventh.
#[cfg(feature = "half")]
fn reads_row_as_it_lies(isa: Isa, product: &MatMul) -> bool {
    let from_memory = product.n().saturating_mul(product.k()) > LARGE_BYTES / size_of::<u16>();
    isa.name() == "avx2" && product.m() == 1 && !product.transpose_b() && from_memory
}

/// alpha times the scale of each column; empty where all have one scale.
fn column_scales(product: &MatMul, weights: Option<&Weights>) -> Result<Vec<f32>> {
    let scales = weights.and_then(Weights::scales);
    let (QuantB::PerColumn { .. }, I32, Some(scales)) =
        (product.quantization().b, product.types().accumulator, scales)
    else {
        return Ok(Vec::new());
    };
    let layout = scales.layout();
    let mut columns = alloc::with_capacity(layout.span(), COLUMNS)?;
    for item in 0..layout.batch() {
        columns.extend((0..layout.cols()).map(|col| product.alpha() * upcast::scale(&scales, item, 0, col)));
    }
    Ok(columns)
}

/// What the sums of each column are multiplied with; nothing where results are the sums.
fn scales_of_all_columns(
    product: &MatMul,
    weights: Option<&Weights>,
    scales: Scales,
    columns: Vec<f32>,
) -> Result<Vec<f32>> {
    if product.types().output == ElementType::I32 {
        return Ok(Vec::new());
    }
    // Where rows have scales of their own, they come first in the product of both.
    let row = if interleave_a::has_row_terms(product) { 1.0 } else { scales.a };
    if !columns.is_empty() {
        let mut columns = columns;
        for column in &mut columns {
            *column *= row;
        }
        return Ok(columns);
    }
    let b = weights.and_then(Weights::scales);
    let items = b.as_ref().map_or(1, |scales| scales.layout().batch());
    let mut all = alloc::with_capacity(items.saturating_mul(product.n()), COLUMNS)?;
    for item in 0..items {
        let b = b.as_ref().map_or(scales.b, |b| upcast::scale(b, item, 0, 0));
        all.extend(std::iter::repeat_n(row * (product.alpha() * b), product.n()));
    }
    Ok(all)
}
