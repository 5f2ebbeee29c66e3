//! Operands inside guarded memory.

use ane_matmul::{AnyView, AnyViewMut, ElementType, Layout, Random, TensorView, TensorViewMut};
use half::{bf16, f16};

use crate::cases::Contents;

/// Elements before and after an operand.
const GUARD: usize = 37;

/// The bits of the NaN that guards hold; no arithmetic makes it.
const GUARD_F32: u32 = 0x7FD5_A5A5;
const GUARD_16: u16 = 0x7FE5;

/// An operand of any floating-point type, with its guards.
#[derive(Debug, Clone)]
pub enum Guarded {
    F32(Vec<f32>, Layout),
    F16(Vec<f16>, Layout),
    Bf16(Vec<bf16>, Layout),
}

/// Calls `body` with the vector and the layout of any variant.
macro_rules! with {
    ($guarded:expr, |$data:ident, $layout:ident| $body:expr) => {
        match $guarded {
            Guarded::F32($data, $layout) => $body,
            Guarded::F16($data, $layout) => $body,
            Guarded::Bf16($data, $layout) => $body,
        }
    };
}

impl Guarded {
    /// Nothing but guards, for an output.
    pub fn output(element: ElementType, layout: Layout) -> Self {
        let count = layout.span() + 2 * GUARD;
        match element {
            ElementType::F16 => Self::F16(vec![f16::from_bits(GUARD_16); count], layout),
            ElementType::Bf16 => Self::Bf16(vec![bf16::from_bits(GUARD_16); count], layout),
            _ => Self::F32(vec![f32::from_bits(GUARD_F32); count], layout),
        }
    }

    /// An input of `f(item, row, col)`, rounded to the element type.
    pub fn input(
        element: ElementType,
        layout: Layout,
        mut f: impl FnMut(usize, usize, usize) -> f64,
    ) -> Self {
        let mut guarded = Self::output(element, layout);
        for_each_element(&layout, |index, item, row, col| guarded.set(index, f(item, row, col)));
        guarded
    }

    #[allow(clippy::cast_possible_truncation)]
    fn set(&mut self, index: usize, value: f64) {
        match self {
            Self::F32(data, _) => data[GUARD + index] = value as f32,
            Self::F16(data, _) => data[GUARD + index] = f16::from_f64(value),
            Self::Bf16(data, _) => data[GUARD + index] = bf16::from_f64(value),
        }
    }

    pub fn view(&self) -> AnyView<'_> {
        with!(self, |data, layout| {
            TensorView::with_layout(&data[GUARD..data.len() - GUARD], *layout).expect("the data fit").into()
        })
    }

    pub fn view_mut(&mut self) -> AnyViewMut<'_> {
        with!(self, |data, layout| {
            let end = data.len() - GUARD;
            TensorViewMut::with_layout(&mut data[GUARD..end], *layout).expect("the data fit").into()
        })
    }

    /// The bits of everything, guards included.
    pub fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(data, _) => data.iter().map(|x| x.to_bits()).collect(),
            Self::F16(data, _) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
            Self::Bf16(data, _) => data.iter().map(|x| u32::from(x.to_bits())).collect(),
        }
    }

    /// The index of the first guard, before, between or after the elements, that was written to.
    pub fn damaged_guard(&self) -> Option<isize> {
        let guard = if matches!(self, Self::F32(..)) { GUARD_F32 } else { u32::from(GUARD_16) };
        let mut bits = self.bits();
        with!(self, |_data, layout| for_each_element(layout, |index, _, _, _| bits[GUARD + index] = guard));
        bits.iter().position(|&bits| bits != guard).map(|index| index.cast_signed() - GUARD.cast_signed())
    }

    /// Fills the elements with the guards' NaN again.
    pub fn clear(&mut self) {
        let layout = with!(self, |_data, layout| *layout);
        let element = self.view().element_type();
        *self = Self::output(element, layout);
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

/// A number for an operand: `left` is true for A.
#[allow(clippy::cast_precision_loss)]
pub fn number(contents: Contents, random: &mut Random, left: bool, row: usize, col: usize) -> f64 {
    match contents {
        Contents::Normal => random.normal(),
        Contents::Origin => 0.02 * random.normal(),
        Contents::SmallIntegers => random.below(9) as f64 - 4.0,
        Contents::Tiny => 1e-21 * random.normal(),
        Contents::IdentityTimesOnes => f64::from(!left || row == col),
        Contents::Special => match random.below(60) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3..10 => 0.0,
            10..14 => -0.0,
            _ => random.normal(),
        },
    }
}
