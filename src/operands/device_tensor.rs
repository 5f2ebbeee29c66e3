//! Operands in the memory of a backend's device.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::alloc;
use crate::backend::{Backend, BackendId, RunArgs};
use crate::description::element::{Element, ElementType};
use crate::description::layout::Layout;
use crate::error::{Error, Operand, Result};
use crate::executor::Inputs;
use crate::operands::shared_buffer::{BufferMemory, HostMemory, SharedBuffer};
use crate::operands::tensor::Tensor;
use crate::operands::view::{AnyView, AnyViewMut, IntoView, IntoViewMut, TensorView, TensorViewMut};

/// The bytes that are cleared at once.
const CLEARED_BYTES: usize = 1 << 20;

/// Memory of a device's, of which the host has no address.
pub(crate) trait DeviceBuffer: Send + Sync {
    fn bytes(&self) -> usize;
    fn read(&self, offset_bytes: usize, to: &mut [u8]) -> Result<()>;
    fn write(&self, offset_bytes: usize, from: &[u8]) -> Result<()>;
    /// The device, as an address that no other has, and the buffer in the engine's own words.
    fn native(&self) -> (usize, NonNull<c_void>);
    fn backend(&self) -> &BackendId;
}

/// Where the operands of a device lie.
pub(crate) enum Storage {
    /// The host sees them too.
    Host(Box<dyn BufferMemory>),
    Device(Box<dyn DeviceBuffer>),
}

impl Storage {
    fn bytes(&self) -> usize {
        match self {
            Self::Host(memory) => memory.bytes(),
            Self::Device(buffer) => buffer.bytes(),
        }
    }
}

/// The memory of a backend's device: where operands stay between runs.
///
/// On a device with memory of its own, operands of the host are copied there and back by every run. What is uploaded
/// once stays: a run reads it where it lies, and leaves its result there for the next one. Where host and device have
/// one memory, as on Apple's chips and for `cpu`, a [`DeviceTensor`] is memory that both see.
///
/// ```
/// use ane_matmul::{BackendId, ElementType, Inputs, MatMul, Tensor};
///
/// let compiled = MatMul::new(2, 4, 3)?.compile(&BackendId::CPU)?;
/// let memory = compiled.memory();
/// let a = memory.upload(&Tensor::filled(2, 3, 1f32)?)?;
/// let b = memory.upload(&Tensor::filled(3, 4, 2f32)?)?;
/// let mut c = memory.zeros(ElementType::F32, 2, 4)?;
/// compiled.run(Inputs::new(&a).b(&b), &mut c)?;
/// assert_eq!(c.download::<f32>()?.data(), [6.0; 8]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
///
/// Cloning shares.
#[derive(Clone)]
pub struct DeviceMemory {
    backend: Arc<dyn Backend>,
    id: BackendId,
}

impl DeviceMemory {
    pub(crate) fn new(backend: &Arc<dyn Backend>, id: BackendId) -> Self {
        Self { backend: Arc::clone(backend), id }
    }

    /// The backend.
    #[must_use]
    pub const fn backend(&self) -> &BackendId {
        &self.id
    }

    pub(crate) fn max_queue_depth(&self) -> usize {
        self.backend.max_queue_depth()
    }

    /// Checks that what lies on a device lies on this one.
    #[inline]
    pub(crate) fn check_operands(&self, inputs: &Inputs<'_>, c: &AnyViewMut<'_>) -> Result<()> {
        for (operand, view) in inputs.views() {
            if let AnyView::Device(view) = view {
                self.check_device(operand, *view)?;
            }
        }
        if let AnyViewMut::Device(view) = c { self.check_device(Operand::C, view.as_view()) } else { Ok(()) }
    }

    /// Checks that what lies on the host lies where the device works on it while the host goes on.
    pub(crate) fn check_held(&self, inputs: &Inputs<'_>, c: &AnyViewMut<'_>) -> Result<()> {
        let held = |operand: Operand, view: &AnyView<'_>| {
            if let AnyView::Device(_) = view {
                return Ok(());
            }
            let (start, bytes) = view.memory();
            if self.backend.holds(start, bytes) {
                return Ok(());
            }
            Err(Error::Memory {
                problem: format!(
                    "{operand} of a submission lies in the host's memory; upload it (DeviceMemory::upload), or use a shared buffer"
                ),
            })
        };
        inputs.views().try_for_each(|(operand, view)| held(operand, view))?;
        held(Operand::C, &c.as_view())
    }

    fn check_device(&self, operand: Operand, view: DeviceView<'_>) -> Result<()> {
        if view.buffer.native().0 == self.backend.device_key() {
            return Ok(());
        }
        let (there, here) = (view.buffer.backend(), &self.id);
        Err(Error::Memory {
            problem: if there == here {
                format!(
                    "{operand} lies in memory of another `Backends` with a backend `{here}`; use a clone of the one that compiled the product"
                )
            } else {
                format!(
                    "{operand} lies on the device of `{there}`, and `{here}` has another; download it (DeviceTensor::download), or upload it there"
                )
            },
        })
    }

    /// Copies a matrix, or a batch of them, to the device, with its strides.
    ///
    /// # Errors
    /// [`Error::Memory`] for 4-bit elements, which are weights ([`crate::Weights`]), and what lies on a device already;
    /// [`Error::OutOfMemory`], [`Error::Native`].
    pub fn upload<'a>(&self, matrix: impl IntoView<'a>) -> Result<DeviceTensor> {
        let view = matrix.into_view()?;
        if let AnyView::Device(_) = view {
            return Err(on_device("upload"));
        }
        let mut tensor = self.uncleared(view.element_type(), *view.layout())?;
        tensor.fill(&view)?;
        Ok(tensor)
    }

    /// A packed `rows` x `cols` matrix of zeros.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`]; as [`DeviceMemory::with_layout`].
    pub fn zeros(&self, element: ElementType, rows: usize, cols: usize) -> Result<DeviceTensor> {
        self.with_layout(element, Layout::packed(1, rows, cols)?)
    }

    /// A matrix, or a batch of them, of zeros, with any strides: [`crate::MatMul::c`] describes the C of a product.
    ///
    /// # Errors
    /// [`Error::Memory`] for 4-bit elements, and those of 16 bits without the feature `half`; [`Error::OutOfMemory`],
    /// [`Error::Native`].
    pub fn with_layout(&self, element: ElementType, layout: Layout) -> Result<DeviceTensor> {
        let tensor = self.uncleared(element, layout)?;
        if let Storage::Device(buffer) = &tensor.storage {
            let zeros = alloc::filled(buffer.bytes().min(CLEARED_BYTES), 0, "zeros for a device")?;
            for start in (0..buffer.bytes()).step_by(CLEARED_BYTES) {
                buffer.write(start, &zeros[..zeros.len().min(buffer.bytes() - start)])?;
            }
        }
        Ok(tensor)
    }

    /// Of undefined contents where the host does not see them, else zeros.
    fn uncleared(&self, element: ElementType, layout: Layout) -> Result<DeviceTensor> {
        if element.bits() < 8 {
            return Err(Error::Memory {
                problem: format!("elements of type {element} are weights: bind them (MatMul::with_weights)"),
            });
        }
        if cfg!(not(feature = "half")) && matches!(element, ElementType::F16 | ElementType::Bf16) {
            return Err(Error::Memory {
                problem: format!("elements of type {element} have no views without the feature `half`"),
            });
        }
        let storage = self.backend.allocate(bytes_of(element, &layout))?;
        Ok(DeviceTensor { storage, element, layout })
    }

    /// Memory that the host and the device both see, all zero; see [`SharedBuffer`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Native`].
    pub fn shared_buffer(&self, bytes: usize) -> Result<SharedBuffer> {
        self.backend.buffer(bytes).map(SharedBuffer::new)
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory").field("backend", &self.id).finish_non_exhaustive()
    }
}

/// A matrix, or a batch of them, in the memory of a backend's device ([`DeviceMemory`]).
///
/// It is an operand like any other, in [`crate::Inputs`] and as C, of products compiled for that backend; operands on
/// the host and on the device may be mixed. Where the host sees the memory, so does [`DeviceTensor::view`].
///
/// ```
/// use ane_matmul::{BackendId, Linear, Tensor, Weights};
///
/// let weights = Weights::from_tensor(Tensor::filled(2, 2, 3f32)?);
/// let layer = Linear::new(&weights).compile(&BackendId::CPU)?;
/// let x = layer.memory().upload(&[1f32, 2.0])?;
/// let mut h = layer.memory().with_layout(x.element_type(), *layer.product().c())?;
/// let mut y = layer.memory().with_layout(x.element_type(), *layer.product().c())?;
/// layer.run(&x, &mut h)?;
/// layer.run(&h, &mut y)?; // what one run wrote, the next one reads where it lies
/// assert_eq!(y.download::<f32>()?.data(), [54.0, 54.0]);
/// # Ok::<(), ane_matmul::Error>(())
/// ```
pub struct DeviceTensor {
    storage: Storage,
    element: ElementType,
    layout: Layout,
}

impl DeviceTensor {
    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The type of the elements.
    #[must_use]
    pub const fn element_type(&self) -> ElementType {
        self.element
    }

    /// The memory that it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.storage.bytes()
    }

    /// Copies the matrix, or the batch of them, to the host, packed.
    ///
    /// # Errors
    /// [`Error::Memory`] where `T` is not its type; [`Error::OutOfMemory`], [`Error::Native`].
    pub fn download<T: Element>(&self) -> Result<Tensor<T>> {
        let mut tensor = Tensor::<T>::zeros_of(&self.layout)?;
        self.download_into(&mut tensor)?;
        Ok(tensor)
    }

    /// Copies the matrix, or the batch of them, into one of the same shape; gaps between its rows are not written.
    ///
    /// # Errors
    /// [`Error::Memory`] for another shape or type, and for what lies on a device too; [`Error::OutOfMemory`],
    /// [`Error::Native`].
    pub fn download_into<'a>(&self, to: impl IntoViewMut<'a>) -> Result<()> {
        let mut to = to.into_view_mut()?;
        if let AnyViewMut::Device(_) = to {
            return Err(on_device("download into"));
        }
        self.check_fits("download into", to.element_type(), to.layout())?;
        let copy;
        let from = match AnyView::from(self) {
            AnyView::Device(view) => {
                copy = view.to_host()?;
                AnyView::from(&copy)
            }
            view => view,
        };
        to.copy_from(&from)
    }

    /// Overwrites it with a matrix, or a batch of them, of the same shape; gaps between its rows are not written.
    ///
    /// # Errors
    /// As [`DeviceTensor::download_into`].
    pub fn upload<'a>(&mut self, from: impl IntoView<'a>) -> Result<()> {
        let from = from.into_view()?;
        self.check_fits("upload", from.element_type(), from.layout())?;
        if let AnyView::Device(_) = from {
            return Err(on_device("upload"));
        }
        let Storage::Device(buffer) = &self.storage else {
            return AnyViewMut::from(self).copy_from(&from);
        };
        let [batch, rows, cols] = self.layout.shape();
        let packed = Layout::packed(batch, rows, cols)?;
        if self.layout.addresses_same(&packed) && self.layout.addresses_same(from.layout()) {
            return self.fill(&from);
        }
        // Gaps keep what they hold.
        let mut copy = self.device_view(buffer.as_ref()).to_host()?;
        AnyViewMut::from(&mut copy).copy_from(&from)?;
        self.fill(&AnyView::from(&copy))
    }

    fn check_fits(&self, step: &str, element: ElementType, layout: &Layout) -> Result<()> {
        if element == self.element && layout.shape() == self.layout.shape() {
            return Ok(());
        }
        Err(Error::Memory {
            problem: format!(
                "{step}: a matrix of {element}, {layout}, where the one on the device is of {}, {}; pass one of that type and shape",
                self.element, self.layout
            ),
        })
    }

    /// The elements where they lie, where the host sees them.
    #[must_use]
    pub fn view(&self) -> Option<AnyView<'_>> {
        match AnyView::from(self) {
            AnyView::Device(_) => None,
            view => Some(view),
        }
    }

    /// The elements where they lie, to write to, where the host sees them.
    #[must_use]
    pub fn view_mut(&mut self) -> Option<AnyViewMut<'_>> {
        match AnyViewMut::from(self) {
            AnyViewMut::Device(_) => None,
            view => Some(view),
        }
    }

    /// The first `rows` rows of each item, for a run of fewer rows; all, where there are not so many.
    #[must_use]
    pub fn first_rows(&self, rows: usize) -> AnyView<'_> {
        AnyView::from(self).part(rows, usize::MAX)
    }

    /// As [`DeviceTensor::first_rows`], to write to.
    #[must_use]
    pub fn first_rows_mut(&mut self, rows: usize) -> AnyViewMut<'_> {
        AnyViewMut::from(self).part(rows, usize::MAX)
    }

    /// Copies elements of the same type and strides from the host, gaps included.
    fn fill(&mut self, from: &AnyView<'_>) -> Result<()> {
        let (start, bytes) = from.memory();
        match &mut self.storage {
            Storage::Host(memory) => {
                debug_assert!(bytes <= memory.bytes());
                // SAFETY: the view has so many bytes, and the memory at least as many, which nobody else uses while
                // it is borrowed mutably: the two do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(start, memory.start().as_ptr(), bytes) };
                Ok(())
            }
            // SAFETY: the view's elements are initialised, and borrowed for the call.
            Storage::Device(buffer) => buffer.write(0, unsafe { std::slice::from_raw_parts(start, bytes) }),
        }
    }

    /// Memory of the host's for elements that lie on a device.
    fn on_host(element: ElementType, layout: Layout) -> Result<Self> {
        let memory = HostMemory::zeroed(bytes_of(element, &layout), "a copy of an operand on a device")?;
        Ok(Self { storage: Storage::Host(Box::new(memory)), element, layout })
    }

    /// `buffer` is its storage.
    fn device_view<'a>(&self, buffer: &'a dyn DeviceBuffer) -> DeviceView<'a> {
        DeviceView { buffer, element: self.element, layout: self.layout }
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTensor")
            .field("element_type", &self.element)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// The bytes from the first element to the last, of which a layout has few enough to count.
const fn bytes_of(element: ElementType, layout: &Layout) -> usize {
    layout.span() * (element.bits() / 8)
}

/// What only a device sees, where elements are read.
pub(crate) fn not_on_the_host(what: impl fmt::Display) -> Error {
    Error::Memory {
        problem: format!("{what}: the elements lie on a device; download them (DeviceTensor::download)"),
    }
}

fn on_device(step: &str) -> Error {
    Error::Memory { problem: format!("{step}: both matrices lie on a device; copy by way of the host") }
}

/// A matrix in memory of which the host has no address.
///
/// Only runs use it, by way of [`DeviceTensor`], which has an example.
#[derive(Clone, Copy)]
pub struct DeviceView<'a> {
    buffer: &'a dyn DeviceBuffer,
    element: ElementType,
    layout: Layout,
}

impl<'a> DeviceView<'a> {
    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The type of the elements.
    #[must_use]
    pub const fn element_type(&self) -> ElementType {
        self.element
    }

    pub(crate) fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    pub(crate) fn buffer(&self) -> &'a dyn DeviceBuffer {
        self.buffer
    }

    /// The bytes from the first element to the last.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(self.element, &self.layout)
    }

    /// A copy on the host, gaps included.
    fn to_host(self) -> Result<DeviceTensor> {
        let tensor = DeviceTensor::on_host(self.element, self.layout)?;
        if let Storage::Host(memory) = &tensor.storage {
            // SAFETY: initialised, and known to nobody else.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.start().as_ptr(), self.bytes()) };
            self.buffer.read(0, bytes)?;
        }
        Ok(tensor)
    }
}

impl fmt::Debug for DeviceView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceView")
            .field("backend", self.buffer.backend())
            .field("element_type", &self.element)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// A matrix in memory of which the host has no address, to write to.
///
/// Only runs use it, by way of [`DeviceTensor`], which has an example.
#[derive(Debug)]
pub struct DeviceViewMut<'a>(DeviceView<'a>, PhantomData<&'a mut ()>);

impl DeviceViewMut<'_> {
    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        self.0.layout()
    }

    /// The type of the elements.
    #[must_use]
    pub const fn element_type(&self) -> ElementType {
        self.0.element_type()
    }

    pub(crate) fn with_layout(self, layout: Layout) -> Self {
        Self(self.0.with_layout(layout), PhantomData)
    }

    pub(crate) fn reborrow(&mut self) -> DeviceViewMut<'_> {
        DeviceViewMut(self.0, PhantomData)
    }

    pub(crate) fn as_view(&self) -> DeviceView<'_> {
        self.0
    }
}

/// Views of elements of a type that is known when it runs.
macro_rules! of_type {
    ($element:expr, $typed:ident) => {
        match $element {
            ElementType::F64 => $typed!(f64),
            ElementType::F32 => $typed!(f32),
            #[cfg(feature = "half")]
            ElementType::F16 => $typed!(half::f16),
            #[cfg(feature = "half")]
            ElementType::Bf16 => $typed!(half::bf16),
            ElementType::I32 => $typed!(i32),
            ElementType::I8 => $typed!(i8),
            // `uncleared` lets no other type in, nor a view of such a type.
            _ => $typed!(u8),
        }
    };
}

impl<'a> From<&'a DeviceTensor> for AnyView<'a> {
    fn from(tensor: &'a DeviceTensor) -> Self {
        let memory = match &tensor.storage {
            Storage::Host(memory) => memory,
            Storage::Device(buffer) => return AnyView::Device(tensor.device_view(buffer.as_ref())),
        };
        macro_rules! view {
            ($rust:ty) => {{
                // SAFETY: the memory has room for the layout's elements of this type, is initialised and aligned,
                // every bit pattern is an element, and `&` keeps writers away.
                let data: &'a [$rust] = unsafe {
                    std::slice::from_raw_parts(memory.start().as_ptr().cast(), tensor.layout.span())
                };
                TensorView::from_parts(data, tensor.layout).erased()
            }};
        }
        of_type!(tensor.element, view)
    }
}

impl<'a> From<&'a mut DeviceTensor> for AnyViewMut<'a> {
    fn from(tensor: &'a mut DeviceTensor) -> Self {
        let memory = match &tensor.storage {
            Storage::Host(memory) => memory,
            Storage::Device(buffer) => {
                let view = tensor.device_view(buffer.as_ref());
                return AnyViewMut::Device(DeviceViewMut(view, PhantomData));
            }
        };
        macro_rules! view {
            ($rust:ty) => {{
                // SAFETY: as for a view to read from; `&mut` makes this the only access.
                let data: &'a mut [$rust] = unsafe {
                    std::slice::from_raw_parts_mut(memory.start().as_ptr().cast(), tensor.layout.span())
                };
                TensorViewMut::from_parts(data, tensor.layout).erased()
            }};
        }
        of_type!(tensor.element, view)
    }
}

/// Runs on copies on the host of what lies on a device, and copies C back where `changed` says that what was returned
/// changed it; on the operands themselves where nothing does.
pub(crate) fn with_host_copies<R>(
    args: RunArgs<'_>,
    run: impl FnOnce(RunArgs<'_>) -> Result<R>,
    changed: impl FnOnce(&R) -> bool,
) -> Result<R> {
    fn copied(view: Option<AnyView<'_>>) -> Result<Option<DeviceTensor>> {
        match view {
            Some(AnyView::Device(view)) => view.to_host().map(Some),
            _ => Ok(None),
        }
    }
    fn of<'a>(copy: Option<&'a DeviceTensor>, view: AnyView<'a>) -> AnyView<'a> {
        copy.map_or(view, AnyView::from)
    }
    let RunArgs { m, a, b, bias, residual, c } = args;
    let (a_copy, b_copy) = (copied(Some(a))?, copied(b)?);
    let (bias_copy, residual_copy) = (copied(bias)?, copied(residual)?);
    let inputs = |c| RunArgs {
        m,
        a: of(a_copy.as_ref(), a),
        b: b.map(|view| of(b_copy.as_ref(), view)),
        bias: bias.map(|view| of(bias_copy.as_ref(), view)),
        residual: residual.map(|view| of(residual_copy.as_ref(), view)),
        c,
    };
    match c {
        AnyViewMut::Device(view) => {
            let mut copy = view.0.to_host()?;
            let output = run(inputs(AnyViewMut::from(&mut copy)))?;
            if changed(&output) {
                let (start, bytes) = AnyView::from(&copy).memory();
                // SAFETY: the copy's elements are initialised, and borrowed for the call.
                view.0.buffer.write(0, unsafe { std::slice::from_raw_parts(start, bytes) })?;
            }
            Ok(output)
        }
        c => run(inputs(c)),
    }
}
