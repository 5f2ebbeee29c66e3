//! Operands inside guarded memory.

use ane_matmul::{
    AnyView, AnyViewMut, BackendId, Backends, DeviceMemory, Element, ElementType, Error, Int4View, Layout,
    NibbleOrder, SharedBuffer, TensorView, TensorViewMut,
};
use fastrand::Rng;
use half::{bf16, f16};

use crate::cases::Contents;

/// Elements before and after an operand that has guards.
pub(crate) const GUARD: usize = 37;

/// The bits of the NaN that guards hold; no arithmetic makes it.
const GUARD_F64: u64 = 0x7FFA_5A5A_5A5A_5A5A;
const GUARD_F32: u32 = 0x7FD5_A5A5;
const GUARD_16: u16 = 0x7FE5;

/// What guards of integers hold; an element may hold it too.
const GUARD_I32: i32 = 0x5A5A_5A5A;
const GUARD_8: u8 = 0x5A;

/// An operand with its guards: as many before its elements as after them, and between its rows.
#[derive(Debug, Clone)]
pub struct Guarded {
    elements: Elements,
    layout: Layout,
    guard: usize,
}

#[derive(Debug, Clone)]
enum Elements {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    /// Two to a byte, read only: signed or not. Guards are bytes.
    Int4(Vec<u8>, bool, NibbleOrder),
}

/// Calls `body` with the vector of any variant.
macro_rules! with {
    ($elements:expr, |$data:ident| $body:expr) => {
        match $elements {
            Elements::F64($data) => $body,
            Elements::F32($data) => $body,
            Elements::F16($data) => $body,
            Elements::Bf16($data) => $body,
            Elements::I32($data) => $body,
            Elements::I8($data) => $body,
            Elements::U8($data) => $body,
            Elements::Int4(..) => unreachable!("4-bit integers are read only"),
        }
    };
}

impl Elements {
    fn guards(element: ElementType, count: usize) -> Self {
        match element {
            ElementType::F64 => Self::F64(vec![f64::from_bits(GUARD_F64); count]),
            ElementType::F16 => Self::F16(vec![f16::from_bits(GUARD_16); count]),
            ElementType::Bf16 => Self::Bf16(vec![bf16::from_bits(GUARD_16); count]),
            ElementType::I32 => Self::I32(vec![GUARD_I32; count]),
            ElementType::I8 => Self::I8(vec![GUARD_8.cast_signed(); count]),
            ElementType::U8 => Self::U8(vec![GUARD_8; count]),
            _ => Self::F32(vec![f32::from_bits(GUARD_F32); count]),
        }
    }
}

impl Guarded {
    /// Nothing but guards, for an output, `guard` of them before and after it.
    #[must_use]
    pub fn output(element: ElementType, layout: Layout, guard: usize) -> Self {
        let elements = Elements::guards(element, layout.span() + 2 * guard);
        Self { elements, layout, guard }
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
                let elements = Elements::Int4(bytes, element == ElementType::I4, order);
                Self { elements, layout, guard }
            }
            _ => Self::output(element, layout, guard),
        };
        for_each_element(&layout, |index, item, row, col| guarded.set(index, f(item, row, col)));
        guarded
    }

    /// Rounds `value` into the element at `index` of the layout.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn set(&mut self, index: usize, value: f64) {
        let guard = self.guard;
        match &mut self.elements {
            Elements::F64(data) => data[guard + index] = value,
            Elements::F32(data) => data[guard + index] = value as f32,
            Elements::F16(data) => data[guard + index] = f16::from_f64(value),
            Elements::Bf16(data) => data[guard + index] = bf16::from_f64(value),
            Elements::I32(data) => data[guard + index] = value as i32,
            Elements::I8(data) => data[guard + index] = value as i8,
            Elements::U8(data) => data[guard + index] = value as u8,
            Elements::Int4(data, _, order) => {
                let byte = &mut data[guard + index / 2];
                let nibble = (value as i8).cast_unsigned() & 0xF;
                let low = index.is_multiple_of(2) == (*order == NibbleOrder::LowFirst);
                *byte = if low { *byte & 0xF0 | nibble } else { *byte & 0x0F | nibble << 4 };
            }
        }
    }

    /// The operand without its guards.
    #[must_use]
    pub fn view(&self) -> AnyView<'_> {
        let (start, layout) = (self.guard, self.layout);
        if let Elements::Int4(data, signed, order) = &self.elements {
            let bytes = &data[start..start + layout.span().div_ceil(2)];
            let view = if *signed { Int4View::signed } else { Int4View::unsigned };
            return view(bytes, layout, *order).expect("the data fit").into();
        }
        with!(&self.elements, |data| {
            TensorView::with_layout(&data[start..start + layout.span()], layout).expect("the data fit").into()
        })
    }

    /// The operand without its guards, to write to.
    ///
    /// # Panics
    /// Of 4-bit integers.
    pub fn view_mut(&mut self) -> AnyViewMut<'_> {
        let (start, layout) = (self.guard, self.layout);
        with!(&mut self.elements, |data| {
            let data = &mut data[start..start + layout.span()];
            TensorViewMut::with_layout(data, layout).expect("the data fit").into()
        })
    }

    /// The bits of everything, guards included.
    #[must_use]
    pub fn bits(&self) -> Vec<u64> {
        match &self.elements {
            Elements::F64(data) => data.iter().map(|x| x.to_bits()).collect(),
            Elements::F32(data) => data.iter().map(|x| x.to_bits().into()).collect(),
            Elements::F16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
            Elements::Bf16(data) => data.iter().map(|x| x.to_bits().into()).collect(),
            Elements::I32(data) => data.iter().map(|x| x.cast_unsigned().into()).collect(),
            Elements::I8(data) => data.iter().map(|x| x.cast_unsigned().into()).collect(),
            Elements::U8(data) | Elements::Int4(data, ..) => data.iter().copied().map(u64::from).collect(),
        }
    }

    /// [`Guarded::bits`], with the same for every NaN: whose sign and payload results have is open, in Rust
    /// as in IEEE 754.
    #[must_use]
    pub fn bits_but_of_nan(&self) -> Vec<u64> {
        let nan = |is_nan: bool, bits: u64| if is_nan { u64::from(GUARD_16) } else { bits };
        match &self.elements {
            Elements::F64(data) => data.iter().map(|x| nan(x.is_nan(), x.to_bits())).collect(),
            Elements::F32(data) => data.iter().map(|x| nan(x.is_nan(), x.to_bits().into())).collect(),
            Elements::F16(data) => data.iter().map(|x| nan(x.is_nan(), x.to_bits().into())).collect(),
            Elements::Bf16(data) => data.iter().map(|x| nan(x.is_nan(), x.to_bits().into())).collect(),
            _ => self.bits(),
        }
    }

    /// The index of the first guard, before, between or after the elements, that was written to.
    #[must_use]
    pub fn damaged_guard(&self) -> Option<isize> {
        let own = self.guard;
        let guard = match self.elements {
            Elements::F64(_) => GUARD_F64,
            Elements::F32(_) => GUARD_F32.into(),
            Elements::F16(_) | Elements::Bf16(_) => u64::from(GUARD_16),
            Elements::I32(_) => GUARD_I32.cast_unsigned().into(),
            Elements::I8(_) | Elements::U8(_) | Elements::Int4(..) => u64::from(GUARD_8),
        };
        let mut bits = self.bits();
        for_each_element(&self.layout, |index, _, _, _| bits[own + index] = guard);
        bits.iter().position(|&bits| bits != guard).map(|index| index.cast_signed() - own.cast_signed())
    }

    /// Fills the elements with the guards' NaN again.
    ///
    /// # Panics
    /// Of 4-bit integers.
    pub fn clear(&mut self) {
        let count = with!(&self.elements, |data| data.len());
        self.elements = Elements::guards(self.view().element_type(), count);
    }

    /// The first `rows` rows of each item: the others are guards then.
    pub(crate) fn first_rows(self, rows: usize) -> Self {
        Self { layout: with_rows(&self.layout, rows), ..self }
    }

    /// A copy in memory that a device shares with the host, guards included.
    pub(crate) fn in_buffer(&self, memory: &DeviceMemory) -> Result<SharedBuffer, Error> {
        with!(&self.elements, |data| {
            let mut buffer = memory.shared_buffer(size_of_val(&data[..]))?;
            place(&mut buffer, data).copy_from_slice(data);
            Ok(buffer)
        })
    }

    /// [`Guarded::in_buffer`], in memory of the host's that the backend wraps.
    #[allow(unsafe_code, reason = "whoever wraps memory vouches for it")]
    pub(crate) fn in_wrapped(
        &self,
        backends: &Backends,
        id: &BackendId,
        alignment: usize,
    ) -> Result<Wrapped, Error> {
        with!(&self.elements, |data| {
            let bytes = size_of_val(&data[..]).max(1).next_multiple_of(alignment);
            let mut memory = vec![0u8; bytes + alignment];
            let start = memory.as_mut_ptr();
            let start = start.wrapping_add(start.addr().next_multiple_of(alignment) - start.addr());
            // SAFETY: these bytes lie in `memory`, which stays until the buffer is dropped, and nobody touches them
            // but through the buffer.
            let mut buffer = unsafe { backends.wrap_memory(id, start, bytes) }?;
            place(&mut buffer, data).copy_from_slice(data);
            Ok(Wrapped { buffer, _memory: memory })
        })
    }

    /// [`Guarded::view`], where [`Guarded::in_buffer`] has put it.
    pub(crate) fn view_in<'b>(&self, buffer: &'b SharedBuffer) -> AnyView<'b> {
        let (start, layout) = (self.guard, self.layout);
        with!(&self.elements, |data| {
            let placed = &buffer.elements()[start..start + layout.span()];
            like(data, TensorView::with_layout(placed, layout).expect("the data fit")).into()
        })
    }

    /// [`Guarded::view_mut`], where [`Guarded::in_buffer`] has put it.
    pub(crate) fn view_in_mut<'b>(&self, buffer: &'b mut SharedBuffer) -> AnyViewMut<'b> {
        let (start, layout) = (self.guard, self.layout);
        with!(&self.elements, |data| {
            let placed = &mut place(buffer, data)[start..start + layout.span()];
            TensorViewMut::with_layout(placed, layout).expect("the data fit").into()
        })
    }

    /// Takes over what [`Guarded::in_buffer`] has put there, guards included.
    pub(crate) fn read_from(&mut self, buffer: &SharedBuffer) {
        with!(&mut self.elements, |data| {
            let count = data.len();
            data.copy_from_slice(&buffer.elements()[..count]);
        });
    }
}

/// A buffer in memory of the host's, in the order in which they are dropped.
pub(crate) struct Wrapped {
    pub(crate) buffer: SharedBuffer,
    _memory: Vec<u8>,
}

/// The memory of a buffer for as many elements as a vector of them has.
fn place<'b, T: Element>(buffer: &'b mut SharedBuffer, like: &[T]) -> &'b mut [T] {
    &mut buffer.elements_mut()[..like.len()]
}

/// Elements of one type, as the compiler is told.
fn like<'b, T: Element>(_: &[T], view: TensorView<'b, T>) -> TensorView<'b, T> {
    view
}

/// The layout of fewer rows.
pub(crate) fn with_rows(layout: &Layout, rows: usize) -> Layout {
    Layout::strided(layout.batch(), rows, layout.cols(), layout.leading_dimension(), layout.batch_stride())
        .expect("fewer rows than a valid layout")
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
pub(crate) fn number(
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
        Contents::Tiny if element == ElementType::F64 => 1e-160 * normal(random),
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
