//! Quantising weights to 8 and 4-bit integers, and turning them back.
//!
//! ```
//! use ane_matmul::quantize::WeightScheme;
//! use ane_matmul::{BackendId, Linear, Tensor, Weights};
//!
//! # fn main() -> Result<(), ane_matmul::Error> {
//! let weights = Weights::from_tensor(Tensor::random_normal_f32(256, 64, 0.02, 1)?);
//! // A scale for each column and each 128 rows.
//! let (int4, error) = weights.quantize(&WeightScheme::INT4)?;
//! assert!(error.max_abs_error <= 0.5 * error.max_scale * 1.001);
//!
//! let y = Linear::new(&int4).compile(&BackendId::CPU)?.run_to_tensor(&Tensor::filled(1, 256, 1f32)?)?;
//! # let _ = (y, int4.dequantize()?);
//! # Ok(())
//! # }
//! ```

use crate::alloc;
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::matmul::check_scheme;
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::description::scales::{is_scale, shape_of_b};
use crate::error::{Error, Result};
use crate::operands::int4::{Int4View, pack};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, TensorView};
use crate::operands::weights::Weights;

#[cfg(test)]
mod tests;

/// How weights are quantised.
///
/// ```
/// use ane_matmul::quantize::WeightScheme;
/// use ane_matmul::{ElementType, QuantB, Tensor, Weights};
///
/// let by_column = WeightScheme::INT8.with_scheme(QuantB::PerColumn { zero_point: 0 });
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(256, 64, 0.02, 1)?);
/// let (int8, _) = weights.quantize(&by_column)?;
/// assert_eq!((int8.element_type(), int8.scheme()), (ElementType::I8, by_column.scheme));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightScheme {
    /// The integers: i8, u8, i4 or u4.
    pub element: ElementType,
    /// What shares a scale, and the zero point.
    pub scheme: QuantB,
    /// The type of the scales: f32, or with the feature `half` f16 or bf16.
    pub scales: ElementType,
    /// The order of 4-bit integers within a byte.
    pub nibble_order: NibbleOrder,
}

/// Groups of 128 rows, as is usual for weight-only products.
const GROUPS: QuantB = QuantB::PerGroup { group_size: 128, zero_point: 0 };

/// f16 where the feature `half` brings it.
const SCALES: ElementType = if cfg!(feature = "half") { ElementType::F16 } else { ElementType::F32 };

impl WeightScheme {
    /// 8-bit integers with a scale for each column and each 128 rows along k: f16, without the feature
    /// `half` f32.
    pub const INT8: Self = Self {
        element: ElementType::I8,
        scheme: GROUPS,
        scales: SCALES,
        nibble_order: NibbleOrder::LowFirst,
    };

    /// 4-bit integers, else as [`WeightScheme::INT8`].
    pub const INT4: Self = Self { element: ElementType::I4, ..Self::INT8 };

    /// Another division into scales.
    #[must_use]
    pub const fn with_scheme(mut self, scheme: QuantB) -> Self {
        self.scheme = scheme;
        self
    }

    /// Another type of scales.
    #[must_use]
    pub const fn with_scales(mut self, scales: ElementType) -> Self {
        self.scales = scales;
        self
    }

    /// The smallest and the largest integer.
    fn range(&self) -> Result<(f64, f64)> {
        match self.element {
            ElementType::I8 => Ok((-128.0, 127.0)),
            ElementType::U8 => Ok((0.0, 255.0)),
            ElementType::I4 => Ok((-8.0, 7.0)),
            ElementType::U4 => Ok((0.0, 15.0)),
            other => Err(Error::Description {
                problem: format!("weights cannot be quantised to {other}"),
                help: "quantise to i8, u8, i4 or u4",
            }),
        }
    }
}

/// What quantising changed, measured over all elements.
///
/// ```
/// use ane_matmul::quantize::WeightScheme;
/// use ane_matmul::{Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::random_normal_f32(256, 64, 0.02, 1)?);
/// let (_, int4) = weights.quantize(&WeightScheme::INT4)?;
/// let (_, int8) = weights.quantize(&WeightScheme::INT8)?;
/// assert!(int4.relative_rms_error() < 0.2 && int8.relative_rms_error() < 0.01);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct QuantizationError {
    /// The largest difference between an element and what stands for it.
    pub max_abs_error: f64,
    /// The root of the mean square of the differences.
    pub rms_error: f64,
    /// The root of the mean square of the elements, to compare with.
    pub rms: f64,
    /// The largest scale: no element is off by more than half of its scale, but for roundings of f32.
    pub max_scale: f64,
}

impl QuantizationError {
    /// The RMS error over the RMS of the elements; 0 where all are 0.
    #[must_use]
    pub fn relative_rms_error(&self) -> f64 {
        if self.rms == 0.0 { 0.0 } else { self.rms_error / self.rms }
    }
}

impl Weights {
    /// Quantises floating-point weights: the integers with their scales, and what that changed.
    ///
    /// Each scale is the smallest of its type (rounded up, never down) by which all elements that share it
    /// fit the range of the integers, whose whole range is used; elements are rounded to nearest, ties to
    /// even. So every element comes back within half its scale: (1 + 2^-20) scale / 2 covers the roundings.
    /// Elements that are all 0 get the scale 1.
    ///
    /// # Errors
    /// [`Error::Description`] for elements that are NaN or infinite, or that the scheme cannot represent (of a
    /// sign that the zero point leaves no integers for; an integer type; a group size of 0); [`Error::Scale`]
    /// when a scale is beyond the largest number of its type; [`Error::OutOfMemory`].
    pub fn quantize(&self, scheme: &WeightScheme) -> Result<(Self, QuantizationError)> {
        let b = self.view();
        // Items that share one matrix share its integers and scales.
        let batch = b.layout().batch();
        let items = if b.layout().batch_stride() == 0 { batch.min(1) } else { batch };
        let layout = Layout::packed(items, b.layout().rows(), b.layout().cols())?;
        if !b.element_type().is_float() {
            return Err(Error::Description {
                problem: format!("weights of type {} cannot be quantised", b.element_type()),
                help: "quantise floating-point weights",
            });
        }
        let limits = scheme.range()?;
        check_scheme(scheme.element, scheme.scheme)?;
        let Some(groups) = Groups::new(self, scheme.scheme) else {
            return Err(Error::Description {
                problem: "the scheme has no scales".into(),
                help: "use QuantB::PerTensor, PerColumn or PerGroup",
            });
        };
        let zero = f64::from(scheme.scheme.zero_point());
        let scales = scales(&b, layout, &groups, limits, zero, scheme.scales)?;
        let mut integers = alloc::with_capacity(layout.span(), "quantised weights")?;
        let mut sums = (0f64, 0f64);
        let mut max_abs_error = 0f64;
        for (item, row, col) in layout.elements() {
            let x = b.get(item, row, col).unwrap_or(f64::NAN);
            let scale = f64::from(scales[groups.index(item, row, col)]);
            let integer = ((x / scale).round_ties_even() + zero).clamp(limits.0, limits.1);
            let error = (x - scale * (integer - zero)).abs();
            max_abs_error = max_abs_error.max(error);
            sums = (sums.0 + error * error, sums.1 + x * x);
            #[allow(clippy::cast_possible_truncation, reason = "within the range of the type")]
            integers.push(integer as i16);
        }
        #[allow(clippy::cast_precision_loss, reason = "a mean")]
        let root_mean =
            |sum: f64| if integers.is_empty() { 0.0 } else { (sum / integers.len() as f64).sqrt() };
        let error = QuantizationError {
            max_abs_error,
            rms_error: root_mean(sums.0),
            rms: root_mean(sums.1),
            max_scale: scales.iter().fold(0f64, |max, &scale| max.max(scale.into())),
        };
        let mut weights = integer_weights(&integers, layout.broadcast(batch), scheme)?;
        if self.is_transposed() {
            weights = weights.transposed()?;
        }
        Ok((with_scales(&weights, &scales, &groups, scheme)?, error))
    }

    /// The real numbers that these weights stand for, as stored: `scale * (integer - zero point)`, rounded
    /// to f32. Weights that are not quantised are converted.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn dequantize(&self) -> Result<Tensor<f32>> {
        let (layout, b, scales) = (*self.layout(), self.view(), self.scales());
        let groups = Groups::new(self, self.scheme());
        let zero = f64::from(self.scheme().zero_point());
        let value = |item: usize, row: usize, col: usize| {
            let scale = match (&groups, &scales) {
                (Some(groups), Some(scales)) => {
                    let (group, column) = groups.place(row, col);
                    let item = if scales.layout().batch() == 1 { 0 } else { item };
                    scales.get(item, group, column).unwrap_or(f64::NAN)
                }
                _ => 1.0,
            };
            #[allow(clippy::cast_possible_truncation, reason = "rounded to f32")]
            let x = (scale * (b.get(item, row, col).unwrap_or(f64::NAN) - zero)) as f32;
            x
        };
        if layout.batch() == 1 {
            return Tensor::from_fn(layout.rows(), layout.cols(), |row, col| value(0, row, col));
        }
        Tensor::from_fn_batched(layout.batch(), layout.rows(), layout.cols(), value)
    }
}

/// Which elements of B as stored share a scale.
struct Groups {
    transpose: bool,
    /// Rows of op(B) to a scale, and whether columns have their own.
    len: usize,
    per_column: bool,
    /// The shape of the scales.
    rows: usize,
    cols: usize,
}

impl Groups {
    /// `None` for a scheme that is not of weights.
    fn new(weights: &Weights, scheme: QuantB) -> Option<Self> {
        let len = match scheme {
            QuantB::PerGroup { group_size, .. } => group_size as usize,
            _ => weights.k().max(1),
        };
        let (transpose, per_column) = (weights.is_transposed(), !matches!(scheme, QuantB::PerTensor { .. }));
        let (rows, cols) = shape_of_b(scheme, weights.n(), weights.k())?;
        Some(Self { transpose, len, per_column, rows, cols })
    }

    /// Row and column of the scale of an element.
    fn place(&self, row: usize, col: usize) -> (usize, usize) {
        let (p, column) = if self.transpose { (col, row) } else { (row, col) };
        (p / self.len, if self.per_column { column } else { 0 })
    }

    fn index(&self, item: usize, row: usize, col: usize) -> usize {
        let (group, column) = self.place(row, col);
        (item * self.rows + group) * self.cols + column
    }
}

fn scales(
    b: &AnyView<'_>,
    layout: Layout,
    groups: &Groups,
    (low, high): (f64, f64),
    zero: f64,
    element: ElementType,
) -> Result<Vec<f32>> {
    let count = layout.batch() * groups.rows * groups.cols;
    let mut needed = alloc::filled(count, 0f64, "the scales of weights")?;
    for (item, row, col) in layout.elements() {
        let x = b.get(item, row, col).unwrap_or(f64::NAN);
        if !x.is_finite() {
            return Err(Error::Description {
                problem: format!("the weight in row {row}, column {col} is {x}"),
                help: "quantise finite weights",
            });
        }
        let room = if x < 0.0 { zero - low } else { high - zero };
        if x != 0.0 && room <= 0.0 {
            return Err(Error::Description {
                problem: format!(
                    "the weight in row {row}, column {col} is {x}, for whose sign zero point {zero} leaves no integer"
                ),
                help: "use a zero point inside the range of the type",
            });
        }
        if x != 0.0 {
            let needed = &mut needed[groups.index(item, row, col)];
            *needed = needed.max(x.abs() / room);
        }
    }
    let mut scales = alloc::with_capacity(count, "the scales of weights")?;
    for (index, needed) in needed.into_iter().enumerate() {
        let scale = if needed == 0.0 { 1.0 } else { round_up(needed, element)? };
        if !is_scale(scale) {
            #[allow(clippy::cast_possible_truncation, reason = "for a message")]
            return Err(Error::Scale { index, value: needed as f32, element });
        }
        scales.push(scale);
    }
    Ok(scales)
}

/// By how much a scale may be rounded up, and with it the largest error of its elements.
#[cfg(feature = "safetensors")]
const MOST_ROUNDED_UP: f64 = 1.25;

/// Whether [`Weights::quantize`] can represent packed weights: known from their extremes alone, which one look at
/// each finds. Weights so small that their largest scale is rounded up by more than a quarter, to the smallest
/// numbers of its type, it can not: most of them become 0.
#[cfg(feature = "safetensors")]
pub(crate) fn representable(b: &AnyView<'_>, scheme: &WeightScheme) -> Result<bool> {
    fn extremes(elements: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
        let (mut low, mut high, mut finite) = (0f32, 0f32, true);
        for x in elements {
            (low, high, finite) = (low.min(x), high.max(x), finite & x.is_finite());
        }
        finite.then_some((low, high))
    }
    let extremes = match b {
        AnyView::F32(view) => extremes(view.data().iter().copied()),
        AnyView::F16(view) => extremes(view.data().iter().map(|&x| crate::operands::float16::to_f32(x))),
        AnyView::Bf16(view) => extremes(view.data().iter().map(|x| x.to_f32())),
        _ => None,
    };
    let Some((low, high)) = extremes else { return Ok(false) };
    let (first, last) = scheme.range()?;
    let zero = f64::from(scheme.scheme.zero_point());
    // Where there is no room for a sign, the quotient is no positive number, or 0 is divided by 0.
    let needed = (-f64::from(low) / (zero - first)).max(f64::from(high) / (last - zero));
    let scale = round_up(needed, scheme.scales)?;
    Ok(needed == 0.0 || is_scale(scale) && f64::from(scale) <= MOST_ROUNDED_UP * needed)
}

/// The smallest number of a type that is no smaller than `x`, which is positive; infinite where there is
/// none.
fn round_up(x: f64, element: ElementType) -> Result<f32> {
    /// The next number above a positive one has the next bits.
    #[cfg(feature = "half")]
    macro_rules! up {
        ($type:ty) => {{
            let nearest = <$type>::from_f64_const(x);
            let next = || <$type>::from_bits(nearest.to_bits() + 1);
            Ok(if nearest.to_f64_const() < x { next() } else { nearest }.to_f32_const())
        }};
    }
    match element {
        ElementType::F32 => {
            #[allow(clippy::cast_possible_truncation, reason = "made no smaller")]
            let nearest = (x as f32).max(f32::MIN_POSITIVE);
            Ok(if f64::from(nearest) < x { nearest.next_up() } else { nearest })
        }
        #[cfg(feature = "half")]
        ElementType::F16 => up!(half::f16),
        #[cfg(feature = "half")]
        ElementType::Bf16 => up!(half::bf16),
        other => Err(Error::Description {
            problem: format!("scales of type {other}"),
            help: "use f32, or f16 and bf16 with the feature `half`",
        }),
    }
}

fn integer_weights(integers: &[i16], layout: Layout, scheme: &WeightScheme) -> Result<Weights> {
    const WHAT: &str = "quantised weights";
    #[allow(clippy::cast_possible_truncation, reason = "within the range of the type")]
    let signed = integers.iter().map(|&x| x as i8);
    match scheme.element {
        ElementType::I8 => {
            let mut data = alloc::with_capacity(integers.len(), WHAT)?;
            data.extend(signed);
            Weights::new(TensorView::with_layout(&data, layout)?)
        }
        ElementType::U8 => {
            let mut data = alloc::with_capacity(integers.len(), WHAT)?;
            data.extend(signed.map(i8::cast_unsigned));
            Weights::new(TensorView::with_layout(&data, layout)?)
        }
        element => {
            let mut bytes = alloc::with_capacity(integers.len().div_ceil(2), WHAT)?;
            pack(signed, scheme.nibble_order, &mut bytes);
            let view = if element == ElementType::I4 { Int4View::signed } else { Int4View::unsigned };
            Weights::new(view(&bytes, layout, scheme.nibble_order)?)
        }
    }
}

fn with_scales(weights: &Weights, scales: &[f32], groups: &Groups, scheme: &WeightScheme) -> Result<Weights> {
    let items = scales.len().checked_div(groups.rows * groups.cols).unwrap_or(1);
    let layout = Layout::packed(items, groups.rows, groups.cols)?;
    match scheme.scales {
        #[cfg(feature = "half")]
        ElementType::F16 => {
            let scales: Vec<_> =
                scales.iter().map(|&scale| crate::operands::float16::from_f32(scale)).collect();
            weights.with_scales(scheme.scheme, TensorView::with_layout(&scales, layout)?)
        }
        #[cfg(feature = "half")]
        ElementType::Bf16 => {
            let scales: Vec<_> = scales.iter().map(|&scale| half::bf16::from_f32(scale)).collect();
            weights.with_scales(scheme.scheme, TensorView::with_layout(&scales, layout)?)
        }
        _ => weights.with_scales(scheme.scheme, TensorView::with_layout(scales, layout)?),
    }
}
