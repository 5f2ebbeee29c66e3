//! Operands of every element type, with gaps that nobody may touch.

use ane_matmul::{
    AnyView, AnyViewMut, ElementType, Int4View, Layout, NibbleOrder, Random, TensorView, TensorViewMut,
};
use arbitrary::Arbitrary;
use half::{bf16, f16};

/// What an operand holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Contents {
    /// N(0, 1); integers of the whole range.
    Normal,
    /// N(0, 1) with NaN, infinities, signed zeros, subnormals and the ends of the range strewn in.
    Special,
    /// Any bits.
    Bits,
    /// Subnormal numbers, and the smallest normal ones.
    Subnormal,
    /// The largest magnitudes.
    Huge,
    /// Integers from -4 to 4.
    SmallIntegers,
}

/// One matrix, or a batch of them.
#[derive(Debug, Clone)]
pub enum Operand {
    F32(Vec<f32>, Layout),
    F16(Vec<f16>, Layout),
    Bf16(Vec<bf16>, Layout),
    I32(Vec<i32>, Layout),
    I8(Vec<i8>, Layout),
    U8(Vec<u8>, Layout),
    Int4(Vec<u8>, Layout, bool, NibbleOrder),
}

macro_rules! with {
    ($operand:expr, |$data:ident, $layout:ident| $body:expr) => {
        match $operand {
            Operand::F32($data, $layout) => $body,
            Operand::F16($data, $layout) => $body,
            Operand::Bf16($data, $layout) => $body,
            Operand::I32($data, $layout) => $body,
            Operand::I8($data, $layout) => $body,
            Operand::U8($data, $layout) => $body,
            Operand::Int4(..) => unreachable!("4-bit integers are inputs of constants alone"),
        }
    };
}

impl Operand {
    /// NaN, or a number that stands for it, everywhere; exactly as long as the layout: a sanitizer sees
    /// what lies beyond.
    ///
    /// # Panics
    /// For f64, which no engine runs.
    #[must_use]
    pub fn untouched(element: ElementType, layout: Layout, order: NibbleOrder) -> Self {
        let count = layout.span();
        match element {
            ElementType::F32 => Self::F32(vec![f32::from_bits(0x7FD5_A5A5); count], layout),
            ElementType::F16 => Self::F16(vec![f16::from_bits(0x7FE5); count], layout),
            ElementType::Bf16 => Self::Bf16(vec![bf16::from_bits(0x7FE5); count], layout),
            ElementType::I32 => Self::I32(vec![0x5A5A_5A5A; count], layout),
            ElementType::I8 => Self::I8(vec![0x5A; count], layout),
            ElementType::U8 => Self::U8(vec![0x5A; count], layout),
            ElementType::I4 | ElementType::U4 => {
                Self::Int4(vec![0x5A; count.div_ceil(2)], layout, element == ElementType::I4, order)
            }
            other => panic!("operands of type {other}"),
        }
    }

    /// Random numbers where elements lie.
    #[must_use]
    pub fn random(
        element: ElementType,
        layout: Layout,
        order: NibbleOrder,
        contents: Contents,
        random: &mut Random,
    ) -> Self {
        let mut operand = Self::untouched(element, layout, order);
        for index in elements(&layout) {
            operand.set(index, contents, random);
        }
        operand
    }

    #[allow(clippy::cast_possible_truncation)]
    fn set(&mut self, index: usize, contents: Contents, random: &mut Random) {
        let bits = random.bits();
        match self {
            Self::F32(data, _) => data[index] = float(contents, random, ElementType::F32, f64::from(f32::from_bits(bits as u32))) as f32,
            Self::F16(data, _) => {
                data[index] = f16::from_f64(float(contents, random, ElementType::F16, f16::from_bits(bits as u16).to_f64()));
            }
            Self::Bf16(data, _) => {
                data[index] = bf16::from_f64(float(contents, random, ElementType::Bf16, bf16::from_bits(bits as u16).to_f64()));
            }
            Self::I32(data, _) => data[index] = bits as i32,
            Self::I8(data, _) => data[index] = integer(contents, bits) as i8,
            Self::U8(data, _) => data[index] = integer(contents, bits) as u8,
            Self::Int4(data, _, _, order) => {
                let low = index.is_multiple_of(2) == (*order == NibbleOrder::LowFirst);
                let (keep, shift) = if low { (0xF0, 0) } else { (0x0F, 4) };
                data[index / 2] = data[index / 2] & keep | (integer(contents, bits) as u8 & 0xF) << shift;
            }
        }
    }

    /// To read from.
    ///
    /// # Panics
    /// Never: data and layout fit.
    #[must_use]
    pub fn view(&self) -> AnyView<'_> {
        if let Self::Int4(data, layout, signed, order) = self {
            let view = if *signed { Int4View::signed } else { Int4View::unsigned };
            return view(data, *layout, *order).expect("the data fit").into();
        }
        with!(self, |data, layout| TensorView::with_layout(data, *layout).expect("the data fit").into())
    }

    /// To write to.
    ///
    /// # Panics
    /// For 4-bit integers, which are read only.
    pub fn view_mut(&mut self) -> AnyViewMut<'_> {
        with!(self, |data, layout| TensorViewMut::with_layout(data, *layout).expect("the data fit").into())
    }

    /// The bits of every element, gaps included.
    #[must_use]
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

    /// Whether the gaps between elements still hold what [`Operand::untouched`] put there.
    #[must_use]
    pub fn gaps_are_untouched(&self) -> bool {
        let (layout, element) = with!(self, |_data, layout| (*layout, self.view().element_type()));
        let (mut now, before) = (self.bits(), Self::untouched(element, layout, NibbleOrder::LowFirst).bits());
        for index in elements(&layout) {
            now[index] = before[index];
        }
        now == before
    }
}

/// The indices of a layout's elements.
fn elements(layout: &Layout) -> impl Iterator<Item = usize> {
    let layout = *layout;
    (0..layout.batch()).flat_map(move |item| {
        (0..layout.rows()).flat_map(move |row| {
            let start = item * layout.batch_stride() + row * layout.leading_dimension();
            start..start + layout.cols()
        })
    })
}

fn integer(contents: Contents, bits: u64) -> u64 {
    match contents {
        Contents::SmallIntegers => bits % 5,
        Contents::Huge => [0x7F, 0x80, 0xFF, 0][(bits % 4) as usize],
        _ => bits,
    }
}

fn float(contents: Contents, random: &mut Random, element: ElementType, any: f64) -> f64 {
    let tiny = element.min_positive();
    match contents {
        Contents::Normal => random.normal(),
        Contents::Bits => any,
        Contents::Subnormal => tiny * (random.normal() * 0.5),
        Contents::Huge => element.max_finite() * (0.5 + 0.5 * (random.below(100) as f64 / 99.0)) * sign(random),
        Contents::SmallIntegers => random.below(9) as f64 - 4.0,
        Contents::Special => match random.below(40) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => 0.0,
            4 => -0.0,
            5 => tiny * random.normal(),
            6 => element.max_finite() * sign(random),
            7 => tiny,
            _ => random.normal(),
        },
    }
}

fn sign(random: &mut Random) -> f64 {
    if random.below(2) == 0 { 1.0 } else { -1.0 }
}
