//! Operands inside guarded memory.

use ane_matmul::{
    AnyView, AnyViewMut, ElementType, Int4View, Layout, NibbleOrder, TensorView, TensorViewMut,
};
use fastrand::Rng;
use half::{bf16, f16};

use crate::cases::Contents;

/// Elements before and after an operand that has guards.
pub const GUARD: usize = 37;

/// The bits of the NaN that guards hold; no arithmetic makes it.
const GUARD_F32: u32 = 0x7FD5_A5A5;
const GUARD_16: u16 = 0x7FE5;

/// What guards of integers hold; an element may hold it too.
const GUARD_I32: i32 = 0x5A5A_5A5A;
const GUARD_8: u8 = 0x5A;

/// An operand, with its guards.
#[derive(Debug, Clone)]
pub enum Guarded {
    F32(Vec<f32>, Layout),
    F16(Vec<f16>, Layout),
    Bf16(Vec<bf16>, Layout),
    I32(Vec<i32>, Layout),
    I8(Vec<i8>, Layout),
    U8(Vec<u8>, Layout),
    /// Read only: signed or not, and the guards' bytes before and after.
    Int4(Vec<u8>, Layout, bool, NibbleOrder),
}

/// Calls `body` with the vector and the layout of any variant.
macro_rules! with {
    ($guarded:expr, |$data:ident, $layout:ident| $body:expr) => {
        match $guarded {
            Guarded::F32($data, $layout) => $body,
            Guarded::F16($data, $layout) => $body,
            Guarded::Bf16($data, $layout) => $body,
            Guarded::I32($data, $layout) => $body,
            Guarded::I8($data, $layout) => $body,
            Guarded::U8($data, $layout) => $body,
            Guarded::Int4(..) => unreachable!("4-bit integers are read only"),
        }
    };
}

impl Guarded {
    /// Nothing but guards, for an output, `guard` of them before and after it.
    pub fn output(element: ElementType, layout: Layout, guard: usize) -> Self {
        let count = layout.span() + 2 * guard;
        match element {
            ElementType::F16 => Self::F16(vec![f16::from_bits(GUARD_16); count], layout),
            ElementType::Bf16 => Self::Bf16(vec![bf16::from_bits(GUARD_16); count], layout),
            ElementType::I32 => Self::I32(vec![GUARD_I32; count], layout),
            ElementType::I8 => Self::I8(vec![GUARD_8.cast_signed(); count], layout),
            ElementType::U8 => Self::U8(vec![GUARD_8; count], layout),
            _ => Self::F32(vec![f32::from_bits(GUARD_F32); count], layout),
        }
    }

    /// An input of `f(item, row, col)`, rounded to the element type.
    pub fn input(
        element: ElementType,
        layout: Layout,
        order: NibbleOrder,
        guard: usize,
        mut f: impl FnMut(usize, usize, usize) -> f64,
    ) -> Self {
        let mut guarded = match element {
            ElementType::I4 | ElementType::U4 => {
                let bytes = vec![GUARD_8; layout.span().div_ceil(2) + 2 * guard];
                Self::Int4(bytes, layout, element == ElementType::I4, order)
            }
            _ => Self::output(element, layout, guard),
        };
        for_each_element(&layout, |index, item, row, col| guarded.set(index, f(item, row, col)));
        guarded
    }

    /// Elements before the operand, and after it.
    fn guard(&self) -> usize {
        if let Self::Int4(data, layout, ..) = self {
            return (data.len() - layout.span().div_ceil(2)) / 2;
        }
        with!(self, |data, layout| (data.len() - layout.span()) / 2)
    }

    /// Rounds `value` into the element at `index` of the layout.
    #[allow(clippy::cast_possible_truncation)]
    pub fn set(&mut self, index: usize, value: f64) {
        let guard = self.guard();
        match self {
            Self::F32(data, _) => data[guard + index] = value as f32,
            Self::F16(data, _) => data[guard + index] = f16::from_f64(value),
            Self::Bf16(data, _) => data[guard + index] = bf16::from_f64(value),
            Self::I32(data, _) => data[guard + index] = value as i32,
            Self::I8(data, _) => data[guard + index] = value as i8,
            Self::U8(data, _) => data[guard + index] = value as u8,
            Self::Int4(data, _, _, order) => {
                let byte = &mut data[guard + index / 2];
                let nibble = (value as i8).cast_unsigned() & 0xF;
                let low = index.is_multiple_of(2) == (*order == NibbleOrder::LowFirst);
                *byte = if low { *byte & 0xF0 | nibble } else { *byte & 0x0F | nibble << 4 };
            }
        }
    }

    pub fn view(&self) -> AnyView<'_> {
        let guard = self.guard();
        if let Self::Int4(data, layout, signed, order) = self {
            let bytes = &data[guard..data.len() - guard];
            let view = if *signed { Int4View::signed } else { Int4View::unsigned };
            return view(bytes, *layout, *order).expect("the data fit").into();
        }
        with!(self, |data, layout| {
            TensorView::with_layout(&data[guard..data.len() - guard], *layout).expect("the data fit").into()
        })
    }

    pub fn view_mut(&mut self) -> AnyViewMut<'_> {
        let guard = self.guard();
        with!(self, |data, layout| {
            let end = data.len() - guard;
            TensorViewMut::with_layout(&mut data[guard..end], *layout).expect("the data fit").into()
        })
    }

    /// The bits of everything, guards included.
    pub fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(data, _) => data.iter().map(|x| x.to_bits()).collect(),
            Self::F16(data, _) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
            Self::Bf16(data, _) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
            Self::I32(data, _) => data.iter().map(|x| x.cast_unsigned()).collect(),
            Self::I8(data, _) => data.iter().map(|x| u32::from(x.cast_unsigned())).collect(),
            Self::U8(data, _) | Self::Int4(data, ..) => data.iter().copied().map(u32::from).collect(),
        }
    }

    /// [`Guarded::bits`], with the same for every NaN: whose sign and payload results have is open, in Rust
    /// as in IEEE 754.
    #[must_use]
    pub fn bits_but_of_nan(&self) -> Vec<u32> {
        let nan = |is_nan: bool, bits: u32| if is_nan { u32::from(GUARD_16) } else { bits };
        match self {
            Self::F32(data, _) => data.iter().map(|x| nan(x.is_nan(), x.to_bits())).collect(),
            Self::F16(data, _) => data.iter().map(|x| nan(x.is_nan(), x.to_bits().into())).collect(),
            Self::Bf16(data, _) => data.iter().map(|x| nan(x.is_nan(), x.to_bits().into())).collect(),
            _ => self.bits(),
        }
    }

    /// The index of the first guard, before, between or after the elements, that was written to.
    pub fn damaged_guard(&self) -> Option<isize> {
        let own = self.guard();
        let guard = match self {
            Self::F32(..) => GUARD_F32,
            Self::F16(..) | Self::Bf16(..) => u32::from(GUARD_16),
            Self::I32(..) => GUARD_I32.cast_unsigned(),
            Self::I8(..) | Self::U8(..) | Self::Int4(..) => u32::from(GUARD_8),
        };
        let mut bits = self.bits();
        with!(self, |_data, layout| for_each_element(layout, |index, _, _, _| bits[own + index] = guard));
        bits.iter().position(|&bits| bits != guard).map(|index| index.cast_signed() - own.cast_signed())
    }

    /// Fills the elements with the guards' NaN again.
    pub fn clear(&mut self) {
        let layout = with!(self, |_data, layout| *layout);
        let element = self.view().element_type();
        *self = Self::output(element, layout, self.guard());
    }
}

fn for_each_element(layout: &Layout, mut f: impl FnMut(usize, usize, usize, usize)) {
    for item in 0..layout.batch() {
        for row in 0..layout.rows() {
            for col in 0..layout.cols() {
                f(layout.item_offset(item) + row * layout.leading_dimension() + col, item, row, col);
            }
        }
    }
}

/// The smallest and the largest number of an integer type.
fn range(element: ElementType) -> Option<(i32, i32)> {
    match element {
        ElementType::I8 => Some((-128, 127)),
        ElementType::U8 => Some((0, 255)),
        ElementType::I4 => Some((-8, 7)),
        ElementType::U4 => Some((0, 15)),
        _ => None,
    }
}

/// A number from the standard normal distribution (Box and Muller, 1958).
pub fn normal(random: &mut Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
}

/// An integer of a type: any, often one at an end.
fn integer(contents: Contents, random: &mut Rng, left: bool, (low, high): (i32, i32)) -> i32 {
    match contents {
        Contents::Extremes => {
            if left {
                high
            } else {
                low
            }
        }
        Contents::Lowest => low,
        Contents::SmallIntegers => random.i32(..9) + low.max(-4),
        _ => match random.u8(..8) {
            0 => low,
            1 => high,
            _ => random.i32(low..=high),
        },
    }
}

/// A number for an operand of some type: `left` is true for A.
#[allow(clippy::cast_precision_loss)]
pub fn number(
    element: ElementType,
    contents: Contents,
    random: &mut Rng,
    left: bool,
    row: usize,
    col: usize,
) -> f64 {
    if let Some(range) = range(element) {
        return f64::from(integer(contents, random, left, range));
    }
    match contents {
        Contents::Extremes => {
            if left {
                4.0
            } else {
                -4.0
            }
        }
        Contents::Lowest => -4.0,
        Contents::Normal => normal(random),
        Contents::Origin => 0.02 * normal(random),
        Contents::SmallIntegers => f64::from(random.i8(-4..=4)),
        Contents::Tiny => 1e-21 * normal(random),
        Contents::IdentityTimesOnes => f64::from(!left || row == col),
        Contents::Special => match random.u8(..60) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3..10 => 0.0,
            10..14 => -0.0,
            _ => normal(random),
        },
    }
}
