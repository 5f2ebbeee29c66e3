//! Constant operands: a handle that products of different m share.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::alloc;
use crate::description::element::{Element, ElementType};
use crate::description::layout::Layout;
use crate::description::matmul::{MatMul, check_scheme};
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::description::scales::{is_scale, shape_of_b};
use crate::error::{Error, Operand, Result};
use crate::operands::device_tensor::not_on_the_host;
use crate::operands::int4::{self, Int4View};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, IntoView, TensorView};

/// Memory that a [`Weights`] handle can keep alive and read, such as a file map.
pub(crate) trait Source<T>: Send + Sync {
    fn elements(&self) -> &[T];
}

impl<T: Send + Sync> Source<T> for Vec<T> {
    fn elements(&self) -> &[T] {
        self
    }
}

pub(crate) enum Data {
    F64(Box<dyn Source<f64>>),
    F32(Box<dyn Source<f32>>),
    #[cfg(feature = "half")]
    F16(Box<dyn Source<half::f16>>),
    #[cfg(feature = "half")]
    Bf16(Box<dyn Source<half::bf16>>),
    I32(Box<dyn Source<i32>>),
    I8(Box<dyn Source<i8>>),
    U8(Box<dyn Source<u8>>),
    Int4 {
        bytes: Box<dyn Source<u8>>,
        signed: bool,
        order: NibbleOrder,
    },
}

#[cfg(feature = "safetensors")]
macro_rules! data_from {
    ($($(#[$meta:meta])* $variant:ident: $rust:ty,)*) => {$(
        $(#[$meta])*
        impl From<Box<dyn Source<$rust>>> for Data {
            fn from(source: Box<dyn Source<$rust>>) -> Self {
                Self::$variant(source)
            }
        }
    )*};
}

#[cfg(feature = "safetensors")]
data_from! {
    F64: f64,
    F32: f32,
    F16: half::f16,
    Bf16: half::bf16,
    I8: i8,
    U8: u8,
}

/// What a backend made of some weights: which kernels, whether they are stored transposed, and what
/// their integers mean.
type DerivedKey = (&'static str, bool, QuantB);

struct Inner {
    id: u64,
    data: Arc<Data>,
    layout: Layout,
    /// Stored n x k.
    transposed: bool,
    /// What the integers mean, and their scales: packed, positive and finite, of the scheme's shape.
    scales: Option<(QuantB, Weights)>,
    hash: OnceLock<[u8; 32]>,
    derived: Mutex<Vec<(DerivedKey, Weak<dyn Any + Send + Sync>)>>,
    /// Handles outside of products hold it.
    named: Weak<()>,
}

impl Inner {
    fn new(
        data: Arc<Data>,
        layout: Layout,
        transposed: bool,
        scales: Option<(QuantB, Weights)>,
        named: Weak<()>,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (hash, derived) = (OnceLock::new(), Mutex::default());
        Self { id, data, layout, transposed, scales, hash, derived, named }
    }
}

/// A constant B: its elements, how they are stored, and for a quantised B its scheme, scales and zero point.
/// Shared by as many products as fit it.
///
/// ```
/// use ane_matmul::{Tensor, Weights};
///
/// // 3 outputs, 2 inputs, as PyTorch stores them: B is the transpose.
/// let stored = Tensor::from_fn(3, 2, |output, input| (output * 10 + input) as f32)?;
/// let weights = Weights::from_tensor(stored).transposed()?;
/// assert_eq!((weights.k(), weights.n()), (2, 3));
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Cloning shares. Two handles are equal when they are the same handle ([`Weights::id`]); equal
/// contents have equal [`Weights::content_hash`]es.
#[derive(Clone)]
pub struct Weights(
    Arc<Inner>,
    #[expect(dead_code, reason = "held to be counted: `Inner::named`")] Option<Arc<()>>,
);

impl Weights {
    /// Copies a matrix of k x n, or a batch of them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Description`] for an array that is no view.
    pub fn new<'a>(b: impl IntoView<'a>) -> Result<Self> {
        Self::copied(&b.into_view()?)
    }

    fn copied(b: &AnyView<'_>) -> Result<Self> {
        const WHAT: &str = "a copy of the weights";
        let layout = *b.layout();
        let data = match b {
            AnyView::F64(view) => Data::F64(Box::new(alloc::copied(view.data(), WHAT)?)),
            AnyView::F32(view) => Data::F32(Box::new(alloc::copied(view.data(), WHAT)?)),
            #[cfg(feature = "half")]
            AnyView::F16(view) => Data::F16(Box::new(alloc::copied(view.data(), WHAT)?)),
            #[cfg(feature = "half")]
            AnyView::Bf16(view) => Data::Bf16(Box::new(alloc::copied(view.data(), WHAT)?)),
            AnyView::I32(view) => Data::I32(Box::new(alloc::copied(view.data(), WHAT)?)),
            AnyView::I8(view) => Data::I8(Box::new(alloc::copied(view.data(), WHAT)?)),
            AnyView::U8(view) => Data::U8(Box::new(alloc::copied(view.data(), WHAT)?)),
            AnyView::Int4(view) => Data::Int4 {
                bytes: Box::new(alloc::copied(view.bytes(), WHAT)?),
                signed: view.element_type() == ElementType::I4,
                order: view.nibble_order(),
            },
            AnyView::Device(_) => return Err(not_on_the_host("weights")),
        };
        Ok(Self::from_data(data, layout))
    }

    /// Takes over an f32 tensor without a copy.
    #[must_use]
    pub fn from_tensor(b: Tensor<f32>) -> Self {
        let layout = *b.view().layout();
        Self::from_data(Data::F32(Box::new(b.into_vec())), layout)
    }

    /// Keeps memory that something else owns, such as a file map.
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_source<T: Element>(source: impl Source<T> + 'static, layout: Layout) -> Self
    where
        Box<dyn Source<T>>: Into<Data>,
    {
        let source: Box<dyn Source<T>> = Box::new(source);
        Self::from_data(source.into(), layout)
    }

    fn from_data(data: Data, layout: Layout) -> Self {
        Self::from_shared(Arc::new(data), layout, false, None)
    }

    fn from_shared(
        data: Arc<Data>,
        layout: Layout,
        transposed: bool,
        scales: Option<(QuantB, Weights)>,
    ) -> Self {
        let name = Arc::new(());
        let named = Arc::downgrade(&name);
        Self(Arc::new(Inner::new(data, layout, transposed, scales, named)), Some(name))
    }

    /// The same elements packed in the order of the logical k x n matrix, or of the batch of them, without scales: a
    /// copy where they are stored otherwise, made once for all that use it at the same time.
    pub(crate) fn in_order(&self) -> Result<Self> {
        if self.layout().is_packed() && !self.is_transposed() {
            return Ok(self.for_product());
        }
        let copy = || {
            let layout = Layout::packed(self.layout().batch(), self.k(), self.n())?;
            Ok(Inner::new(Arc::new(self.data_in_order()?), layout, false, None, Weak::new()))
        };
        self.derived(("in order", self.is_transposed(), QuantB::None), copy).map(|inner| Self(inner, None))
    }

    fn data_in_order(&self) -> Result<Data> {
        const WHAT: &str = "weights in another order";
        let (batch, k, n) = (self.layout().batch(), self.k(), self.n());
        let places = || (0..batch * k).flat_map(move |row| (0..n).map(move |col| (row / k, row % k, col)));
        let transposed = self.is_transposed();
        let stored = |(item, row, col): (usize, usize, usize)| {
            if transposed { (item, col, row) } else { (item, row, col) }
        };
        macro_rules! all {
            ($view:ident) => {{
                let mut all = alloc::with_capacity(batch * k * n, WHAT)?;
                all.extend(places().filter_map(|place| {
                    let (item, row, col) = stored(place);
                    $view.get(item, row, col)
                }));
                Box::new(all)
            }};
        }
        Ok(match self.view() {
            AnyView::F64(view) => Data::F64(all!(view)),
            AnyView::F32(view) => Data::F32(all!(view)),
            #[cfg(feature = "half")]
            AnyView::F16(view) => Data::F16(all!(view)),
            #[cfg(feature = "half")]
            AnyView::Bf16(view) => Data::Bf16(all!(view)),
            AnyView::I32(view) => Data::I32(all!(view)),
            AnyView::I8(view) => Data::I8(all!(view)),
            AnyView::U8(view) => Data::U8(all!(view)),
            AnyView::Int4(view) => {
                let mut bytes = alloc::with_capacity((batch * k * n).div_ceil(2), WHAT)?;
                let all: Box<Vec<i8>> = all!(view);
                int4::pack(*all, view.nibble_order(), &mut bytes);
                let signed = view.element_type() == ElementType::I4;
                Data::Int4 { bytes: Box::new(bytes), signed, order: view.nibble_order() }
            }
            // Weights copy what they are made of.
            AnyView::Device(_) => return Err(Error::Memory { problem: "weights lie on the host".into() }),
        })
    }

    /// The handle that a product keeps.
    pub(crate) fn for_product(&self) -> Self {
        Self(Arc::clone(&self.0), None)
    }

    /// Whether a handle is left that is neither a product's nor a clone of one.
    pub(crate) fn can_be_named(&self) -> bool {
        self.0.named.strong_count() > 0
    }

    /// The transpose of these weights, whose elements are shared: a new handle. What was k x n is n x k then,
    /// which is how PyTorch stores a linear layer.
    ///
    /// # Errors
    /// [`Error::Description`] where scales were added for each column or group: transpose first.
    pub fn transposed(&self) -> Result<Self> {
        let Inner { data, layout, transposed, scales, .. } = &*self.0;
        if !matches!(self.scheme(), QuantB::None | QuantB::PerTensor { .. }) {
            return Err(Error::Description {
                problem: format!("weights with {:?} have no transpose of that scheme", self.scheme()),
                help: "transpose before scales are added or weights are quantised",
            });
        }
        Ok(Self::from_shared(Arc::clone(data), *layout, !transposed, scales.clone()))
    }

    /// The same elements, which are shared, as integers of this scheme: a new handle.
    ///
    /// `scales` are f32, or f16 and bf16 with the feature `half`, of the shape that the scheme asks for: one
    /// number, n of them, or a matrix of ceil(k / group size) x n, whether or not B is stored transposed.
    /// Items of a batch share one such matrix, or have one each.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Scale`] for a scale that is not positive and finite;
    /// [`Error::Description`] for scales of another type, a scheme that is not of weights, integers that are
    /// none, and a zero point out of their range; [`Error::OutOfMemory`].
    pub fn with_scales<'a>(&self, scheme: QuantB, scales: impl IntoView<'a>) -> Result<Self> {
        let scales = scales.into_view()?;
        scales.check_on_host("scales")?;
        let element = scales.element_type();
        if !matches!(element, ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
            return Err(Error::Description {
                problem: format!("scales of type {element}"),
                help: "use f32, f16 or bf16",
            });
        }
        check_scheme(self.element_type(), scheme)?;
        let got = scales.layout();
        let Some((rows, cols)) = shape_of_b(scheme, self.n(), self.k()) else {
            return Err(Error::Description {
                problem: format!("{scheme:?} is no scheme of weights"),
                help: "use QuantB::PerTensor, PerColumn or PerGroup",
            });
        };
        let items = self.0.layout.batch();
        if (got.rows(), got.cols()) != (rows, cols) || ![1, items].contains(&got.batch()) {
            return Err(Error::Shape {
                operand: Operand::Scales,
                expected: format!("{rows} x {cols} for {scheme:?} of {} x {}", self.k(), self.n()),
                got: got.to_string(),
                help: "pass one scale, n of them, or ceil(k / group size) x n, as the scheme asks for",
            });
        }
        let layout = Layout::packed(got.batch(), rows, cols)?;
        for (index, (item, row, col)) in layout.elements().enumerate() {
            let value = narrowed(scales.get(item, row, col));
            if !is_scale(value) {
                return Err(Error::Scale { index, value, element });
            }
        }
        let scales = match scales {
            AnyView::F32(view) => Self::new(&Tensor::from_view(view)?)?,
            #[cfg(feature = "half")]
            AnyView::F16(view) => Self::new(&Tensor::from_view(view)?)?,
            #[cfg(feature = "half")]
            AnyView::Bf16(view) => Self::new(&Tensor::from_view(view)?)?,
            other => Self::new(other)?,
        };
        let Inner { data, layout, transposed, .. } = &*self.0;
        Ok(Self::from_shared(Arc::clone(data), *layout, *transposed, Some((scheme, scales))))
    }

    /// What the integers of a quantised B mean.
    #[must_use]
    pub fn scheme(&self) -> QuantB {
        self.0.scales.as_ref().map_or(QuantB::None, |(scheme, _)| *scheme)
    }

    /// The scales of a quantised B.
    #[must_use]
    pub fn scales(&self) -> Option<AnyView<'_>> {
        self.0.scales.as_ref().map(|(_, scales)| scales.view())
    }

    /// Whether all items have the same scales, or none.
    pub(crate) fn shares_scales(&self) -> bool {
        self.scales().is_none_or(|scales| scales.layout().batch() == 1)
    }

    /// The scales of a quantised B, as a constant of their own.
    pub(crate) fn scale_weights(&self) -> Option<&Self> {
        self.0.scales.as_ref().map(|(_, scales)| scales)
    }

    /// The rows of B: the inputs of a layer.
    #[must_use]
    pub fn k(&self) -> usize {
        if self.0.transposed { self.0.layout.cols() } else { self.0.layout.rows() }
    }

    /// The columns of B: the outputs of a layer.
    #[must_use]
    pub fn n(&self) -> usize {
        if self.0.transposed { self.0.layout.rows() } else { self.0.layout.cols() }
    }

    /// Whether B is stored transposed, n x k.
    #[must_use]
    pub fn is_transposed(&self) -> bool {
        self.0.transposed
    }

    /// A number that no other handle of this process has, its clones excepted.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Shape and strides as stored: with [`Weights::is_transposed`] it is n x k.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.view().element_type()
    }

    /// The elements as stored.
    #[must_use]
    pub fn view(&self) -> AnyView<'_> {
        fn view<T: Element>(source: &dyn Source<T>, layout: Layout) -> AnyView<'_> {
            TensorView::from_parts(source.elements(), layout).erased()
        }
        let layout = self.0.layout;
        match &*self.0.data {
            Data::F64(source) => view(source.as_ref(), layout),
            Data::F32(source) => view(source.as_ref(), layout),
            #[cfg(feature = "half")]
            Data::F16(source) => view(source.as_ref(), layout),
            #[cfg(feature = "half")]
            Data::Bf16(source) => view(source.as_ref(), layout),
            Data::I32(source) => view(source.as_ref(), layout),
            Data::I8(source) => view(source.as_ref(), layout),
            Data::U8(source) => view(source.as_ref(), layout),
            Data::Int4 { bytes, signed, order } => {
                Int4View::from_parts(bytes.elements(), layout, *signed, *order).into()
            }
        }
    }

    /// The elements as the B of `product`, whose batch may share one matrix.
    pub(crate) fn view_for(&self, product: &MatMul) -> AnyView<'_> {
        self.view().broadcast(product.batch())
    }

    /// BLAKE3 over element type, shape and elements (gaps between rows left out), and over those of the
    /// scales where there are any: the same for the same contents, in every process. Computed once, when first asked for.
    #[must_use]
    pub fn content_hash(&self) -> &[u8; 32] {
        self.0.hash.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            let view = self.view();
            let layout = view.layout();
            hasher.update(
                format!("{}:{}x{}x{}:", view.element_type(), layout.batch(), layout.rows(), layout.cols())
                    .as_bytes(),
            );
            match view {
                AnyView::F64(view) => hash_rows(&mut hasher, view, f64::to_le_bytes),
                AnyView::F32(view) => hash_rows(&mut hasher, view, f32::to_le_bytes),
                #[cfg(feature = "half")]
                AnyView::F16(view) => hash_rows(&mut hasher, view, half::f16::to_le_bytes),
                #[cfg(feature = "half")]
                AnyView::Bf16(view) => hash_rows(&mut hasher, view, half::bf16::to_le_bytes),
                AnyView::I32(view) => hash_rows(&mut hasher, view, i32::to_le_bytes),
                AnyView::I8(view) => hash_rows(&mut hasher, view, i8::to_le_bytes),
                AnyView::U8(view) => hash_rows(&mut hasher, view, u8::to_le_bytes),
                // Weights copy what they are made of.
                AnyView::Device(_) => debug_assert!(false, "weights lie on the host"),
                AnyView::Int4(view) => {
                    // One element to a byte: the order within a byte does not count.
                    for (item, row, col) in view.layout().elements() {
                        hasher.update(&view.get(item, row, col).unwrap_or_default().to_le_bytes());
                    }
                }
            }
            if let Some((_, scales)) = &self.0.scales {
                hasher.update(b"scales:");
                hasher.update(scales.content_hash());
            }
            *hasher.finalize().as_bytes()
        })
    }

    /// What `make` makes of these weights, once for all products that use it at the same time.
    pub(crate) fn derived<T: Send + Sync + 'static>(
        &self,
        key: DerivedKey,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        // Held while it is made, so that it is made once.
        let mut derived = self.0.derived.lock().unwrap_or_else(PoisonError::into_inner);
        derived.retain(|(_, value)| value.strong_count() > 0);
        let found = derived.iter().filter(|(of, _)| *of == key).find_map(|(_, value)| value.upgrade());
        if let Some(value) = found.and_then(|value| value.downcast().ok()) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        let erased: Arc<dyn Any + Send + Sync> = Arc::clone(&value) as _;
        derived.push((key, Arc::downgrade(&erased)));
        Ok(value)
    }
}

/// An element of a floating-point type no wider than f32.
#[allow(clippy::cast_possible_truncation, reason = "it was an f32 or narrower")]
fn narrowed(element: Option<f64>) -> f32 {
    element.unwrap_or(f64::NAN) as f32
}

fn hash_rows<T: Element, const N: usize>(
    hasher: &mut blake3::Hasher,
    view: TensorView<'_, T>,
    to_bytes: impl Fn(T) -> [u8; N],
) {
    let mut buffer = [0u8; 4096];
    for (item, row, _) in view.layout().row_spans() {
        for chunk in view.row(item, row).unwrap_or_default().chunks(buffer.len() / N) {
            for (bytes, &x) in buffer.chunks_exact_mut(N).zip(chunk) {
                bytes.copy_from_slice(&to_bytes(x));
            }
            hasher.update(&buffer[..chunk.len() * N]);
        }
    }
}

impl PartialEq for Weights {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Weights {}

impl std::hash::Hash for Weights {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id().hash(state);
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("id", &self.id())
            .field("layout", &self.0.layout)
            .field("element_type", &self.element_type())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_and_contents_are_different_things() {
        let tensor = Tensor::from_fn(3, 5, |r, c| (r * 5 + c) as f32).unwrap();
        let one = Weights::new(&tensor).unwrap();
        let two = Weights::from_tensor(tensor);
        assert_ne!(one, two);
        assert_eq!(one, one.clone());
        assert_eq!(one.content_hash(), two.content_hash());
    }

    #[test]
    fn other_orders_are_copied_once_and_the_logical_one_is_not() {
        let packed = Weights::from_tensor(Tensor::filled(2, 3, 1f32).unwrap());
        assert_eq!(packed.in_order().unwrap().view().memory(), packed.view().memory());
        // Two items of 2 x 3, with gaps between rows and items.
        let layout = Layout::strided(2, 2, 3, 4, 9).unwrap();
        let data: Vec<f32> = (0u8..16).map(f32::from).collect();
        let gaps = Weights::new(TensorView::with_layout(&data, layout).unwrap()).unwrap();
        let elements = |weights: &Weights| match weights.view() {
            AnyView::F32(view) => view.data().to_vec(),
            other => panic!("{other:?}"),
        };
        let copy = gaps.in_order().unwrap();
        assert_eq!(elements(&copy), [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 9.0, 10.0, 11.0, 13.0, 14.0, 15.0]);
        assert_eq!(gaps.in_order().unwrap().view().memory(), copy.view().memory());
        let turned = gaps.transposed().unwrap().in_order().unwrap();
        assert_eq!((turned.layout().shape(), turned.is_transposed()), ([2, 3, 2], false));
        assert_eq!(elements(&turned), [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 9.0, 13.0, 10.0, 14.0, 11.0, 15.0]);
        // 1 2 -3 / 4 5 6, two to a byte.
        for order in [NibbleOrder::LowFirst, NibbleOrder::HighFirst] {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            int4::pack([1, 2, -3, 4, 5, 6], order, &mut bytes);
            int4::pack([1, 4, 2, 5, -3, 6], order, &mut expected);
            let view = Int4View::signed(&bytes, Layout::packed(1, 2, 3).unwrap(), order).unwrap();
            let turned = Weights::new(view).unwrap().transposed().unwrap().in_order().unwrap();
            let AnyView::Int4(view) = turned.view() else { panic!("{:?}", turned.view()) };
            assert_eq!((view.bytes(), view.nibble_order()), (&expected[..], order));
            assert_eq!(turned.element_type(), ElementType::I4);
        }
    }

    #[test]
    fn the_hash_depends_on_shape_and_every_element_but_not_on_gaps() {
        let data: Vec<f32> = (0u8..12).map(f32::from).collect();
        let strided = |ld| {
            let compact: Vec<f32> = (0..2)
                .flat_map(|r| (0..ld).map(move |c| if c < 3 { (r * 3 + c) as f32 } else { -1.0 }))
                .collect();
            let layout = Layout::strided(1, 2, 3, ld, 0).unwrap();
            *Weights::new(TensorView::with_layout(&compact, layout).unwrap()).unwrap().content_hash()
        };
        assert_eq!(strided(3), strided(5));
        let hash = |rows, cols, data: &[f32]| {
            *Weights::new(TensorView::new(data, rows, cols).unwrap()).unwrap().content_hash()
        };
        assert_ne!(hash(3, 4, &data), hash(4, 3, &data));
        let mut changed = data.clone();
        changed[11] += 1.0;
        assert_ne!(hash(3, 4, &data), hash(3, 4, &changed));
    }

    #[test]
    fn the_hash_is_blake3_of_the_type_the_shape_and_all_of_a_long_row() {
        let data: Vec<f32> = (0..1030u16).map(f32::from).collect();
        let bytes = data.iter().flat_map(|x| x.to_le_bytes());
        let hashed: Vec<u8> = b"f32:1x1x1030:".iter().copied().chain(bytes).collect();
        let weights = Weights::new(TensorView::new(&data, 1, 1030).unwrap()).unwrap();
        assert_eq!(weights.content_hash(), blake3::hash(&hashed).as_bytes());
    }

    #[test]
    fn a_transpose_shares_its_elements_and_keeps_one_scale() {
        let weights = Weights::new(TensorView::new(&[1i8, 2, 3, 4, 5, 6], 2, 3).unwrap()).unwrap();
        let scaled = weights.with_scales(QuantB::PerTensor { zero_point: 0 }, &[2f32]).unwrap();
        let transposed = scaled.transposed().unwrap();
        assert_eq!((transposed.k(), transposed.n(), transposed.is_transposed()), (3, 2, true));
        assert_eq!(transposed.view().memory(), scaled.view().memory());
        assert_eq!(transposed.dequantize().unwrap().data(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        assert_ne!(transposed.id(), scaled.id());
        let by_column = weights.with_scales(QuantB::PerColumn { zero_point: 0 }, &[1f32; 3]).unwrap();
        assert!(matches!(by_column.transposed(), Err(Error::Description { .. })));
        let shape = weights.transposed().unwrap().with_scales(by_column.scheme(), &[1f32; 3]);
        assert!(matches!(shape, Err(Error::Shape { operand: Operand::Scales, .. })), "{shape:?}");
    }

    #[test]
    fn integers_and_scales_that_make_no_sense_are_errors() {
        let floats = Weights::new(&[1f32]).unwrap();
        let bytes = Weights::new(&[1u8]).unwrap();
        let with = |weights: &Weights, scheme| weights.with_scales(scheme, &[1f32]).map(drop);
        let one = |zero_point| QuantB::PerTensor { zero_point };
        assert!(with(&bytes, one(255)).is_ok());
        for wrong in [
            with(&floats, one(0)),
            with(&bytes, one(256)),
            with(&bytes, QuantB::None),
            with(&bytes, QuantB::Static { scale: 1.0, zero_point: 0 }),
            with(&bytes, QuantB::PerGroup { group_size: 0, zero_point: 0 }),
            bytes.with_scales(one(0), &[1i32]).map(drop),
        ] {
            assert!(matches!(wrong, Err(Error::Description { .. })), "{wrong:?}");
        }
        for scale in [0f32, -1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(bytes.with_scales(one(0), &[scale]), Err(Error::Scale { index: 0, .. })));
        }
    }
}
