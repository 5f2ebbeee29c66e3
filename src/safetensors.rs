//! Weights from safetensors files (feature `safetensors`), mapped into memory where possible.

use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::alloc;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::float16;
use crate::layout::Layout;
use crate::tensor::Tensor;
use crate::view::TensorView;
use crate::weights::{Data, Source, Weights};

mod quantized;
mod quantizing;

pub use quantized::QuantizedWeights;
pub use quantizing::Outcome;

/// An open safetensors file.
///
/// ```no_run
/// use ane_matmul::{MatMul, safetensors::SafetensorsFile};
///
/// let file = SafetensorsFile::read("model.safetensors")?;
/// // PyTorch stores a linear layer's weights as out x in: op(B) is the transpose.
/// let weights = file.weights_f32("layers.0.mlp.up_proj.weight")?;
/// let (n, k) = (weights.layout().rows(), weights.layout().cols());
/// let layer = MatMul::builder(1, n, k).transpose_b(true).constant_b(true).build()?;
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Arc<Bytes>,
    metadata: Metadata,
    data_start: usize,
}

#[derive(Debug)]
enum Bytes {
    Read(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// Elements inside a file's bytes; alignment and length were checked when it was made.
struct Elements<T> {
    bytes: Arc<Bytes>,
    range: Range<usize>,
    element: PhantomData<fn() -> T>,
}

impl<T: bytemuck::Pod + Send + Sync> Source<T> for Elements<T> {
    fn elements(&self) -> &[T] {
        bytemuck::try_cast_slice(&self.bytes.get()[self.range.clone()]).unwrap_or_default()
    }
}

impl SafetensorsFile {
    /// Reads a whole file into memory.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::OutOfMemory`]; [`Error::Format`] when it is no valid safetensors file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        use std::io::Read as _;
        let path = path.as_ref();
        let io = |source| Error::io(path, "read", source);
        let mut file = File::open(path).map_err(io)?;
        let length = usize::try_from(file.metadata().map_err(io)?.len())
            .map_err(|_| Error::SizeOverflow { what: "the file's length" })?;
        let mut bytes = alloc::with_capacity(length, "a safetensors file")?;
        file.read_to_end(&mut bytes).map_err(io)?;
        Self::new(path, Bytes::Read(bytes))
    }

    /// Maps a file into memory: nothing is read before it is used, and weights that are aligned in
    /// the file are not copied.
    ///
    /// # Safety
    /// The file must not be changed or truncated by anyone as long as this handle, or any
    /// [`Weights`] taken from it, lives: that would change memory that Rust takes to be constant,
    /// or end the process with SIGBUS.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is no valid safetensors file.
    #[allow(unsafe_code, reason = "mapping a file is unsafe, which this function passes on")]
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::io(path, "map", source);
        let file = File::open(path).map_err(io)?;
        // SAFETY: the caller promises that the file stays as it is while the map lives.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::new(path, Bytes::Mapped(map))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self> {
        let format = |problem: String| Error::format(path, problem);
        if cfg!(target_endian = "big") {
            return Err(format("safetensors files are little-endian, and this machine is not".into()));
        }
        let (header, metadata) = SafeTensors::read_metadata(bytes.get()).map_err(|error| {
            format(format!("not a valid safetensors file: {error}; was it downloaded completely?"))
        })?;
        let data_start = header + size_of::<u64>();
        Ok(Self { path: path.into(), bytes: Arc::new(bytes), metadata, data_start })
    }

    /// The names of the tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
        names.sort_unstable();
        names
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata.info(name).ok_or_else(|| {
            let names = self.names();
            let shown = names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
            self.problem(format!("no tensor named `{name}`; it holds {shown}{more}"))
        })
    }

    fn problem(&self, problem: String) -> Error {
        Error::format(&self.path, problem)
    }

    fn layout(&self, name: &str, shape: &[usize]) -> Result<Layout> {
        match *shape {
            [cols] => Layout::packed(1, 1, cols),
            [rows, cols] => Layout::packed(1, rows, cols),
            [batch, rows, cols] => Layout::packed(batch, rows, cols),
            _ => Err(self.problem(format!("`{name}` has shape {shape:?}; expected 1, 2 or 3 dimensions"))),
        }
    }

    /// A 1-D, 2-D or batched 3-D tensor of f32, f16 or bf16, with its own element type.
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor, or it has another type or shape;
    /// [`Error::OutOfMemory`] for a copy of elements that are not aligned in the file.
    pub fn weights(&self, name: &str) -> Result<Weights> {
        let info = self.info(name)?;
        let layout = self.layout(name, &info.shape)?;
        match info.dtype {
            Dtype::F32 => self.typed::<f32>(info, layout),
            Dtype::F16 => self.typed::<f16>(info, layout),
            Dtype::BF16 => self.typed::<bf16>(info, layout),
            dtype => Err(self.problem(format!("`{name}` is of type {dtype:?}; expected F32, F16 or BF16"))),
        }
    }

    /// As [`SafetensorsFile::weights`], with f16 and bf16 widened to f32, which is exact. f32
    /// tensors are not copied.
    ///
    /// # Errors
    /// As [`SafetensorsFile::weights`].
    pub fn weights_f32(&self, name: &str) -> Result<Weights> {
        let info = self.info(name)?;
        let layout = self.layout(name, &info.shape)?;
        match info.dtype {
            Dtype::F16 => self.widened(info, layout, |bits| float16::to_f32(f16::from_bits(bits))),
            Dtype::BF16 => self.widened(info, layout, |bits| bf16::from_bits(bits).to_f32()),
            _ => self.weights(name),
        }
    }

    /// The elements of a vector, such as a bias, as f32.
    ///
    /// # Errors
    /// As [`SafetensorsFile::weights`].
    pub fn vector_f32(&self, name: &str) -> Result<Vec<f32>> {
        let weights = self.weights_f32(name)?;
        match weights.view() {
            crate::AnyView::F32(view) => alloc::copied(view.data(), "a vector"),
            view => Err(self.problem(format!("`{name}` is of type {}, not f32", view.element_type()))),
        }
    }

    fn range(&self, info: &TensorInfo) -> Range<usize> {
        self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1
    }

    fn typed<T: Element + bytemuck::Pod>(&self, info: &TensorInfo, layout: Layout) -> Result<Weights>
    where
        Box<dyn Source<T>>: Into<Data>,
    {
        let range = self.range(info);
        let bytes = &self.bytes.get()[range.clone()];
        if bytemuck::try_cast_slice::<u8, T>(bytes).is_ok() {
            let elements = Elements::<T> { bytes: Arc::clone(&self.bytes), range, element: PhantomData };
            return Ok(Weights::from_source(elements, layout));
        }
        let mut copy = alloc::with_capacity(bytes.len() / size_of::<T>(), "a copy of unaligned weights")?;
        copy.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
        Weights::new(TensorView::with_layout(&copy, layout)?)
    }

    fn widened(&self, info: &TensorInfo, layout: Layout, widen: impl Fn(u16) -> f32) -> Result<Weights> {
        let bytes = &self.bytes.get()[self.range(info)];
        let mut data = alloc::with_capacity(bytes.len() / 2, "weights widened to f32")?;
        data.extend(bytes.chunks_exact(2).map(|pair| widen(u16::from_le_bytes([pair[0], pair[1]]))));
        let tensor = if layout.batch() == 1 {
            Tensor::from_vec(data, layout.rows(), layout.cols())
        } else {
            Tensor::from_vec_batched(data, layout.batch(), layout.rows(), layout.cols())
        };
        tensor.map(Weights::from_tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A file whose header has `padding` extra blanks, which shift the data.
    fn file(entries: &[(&str, &str, &[usize], Vec<u8>)], padding: usize) -> tempfile::NamedTempFile {
        let mut header = String::from("{");
        let mut data = Vec::new();
        for (name, dtype, shape, bytes) in entries {
            let start = data.len();
            data.extend_from_slice(bytes);
            let end = data.len();
            if header.len() > 1 {
                header.push(',');
            }
            let offsets = format!("[{start},{end}]");
            header.extend([
                r#"""#,
                name,
                r#"":{"dtype":""#,
                dtype,
                r#"","shape":"#,
                &format!("{shape:?}"),
                r#","data_offsets":"#,
                &offsets,
                "}",
            ]);
        }
        header.push('}');
        while header.len() % 8 != padding {
            header.push(' ');
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(&data).unwrap();
        file
    }

    fn sample(padding: usize) -> tempfile::NamedTempFile {
        let f32s: Vec<u8> =
            [1.5f32, -2.0, 3.25, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let halves: Vec<u8> =
            [1.5f32, -0.25].iter().flat_map(|&x| f16::from_f32_const(x).to_le_bytes()).collect();
        let bfs: Vec<u8> = [3.0f32, 0.5].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        file(
            &[
                ("w", "F32", &[2, 3], f32s),
                ("h", "F16", &[2], halves),
                ("b", "BF16", &[1, 2], bfs),
                ("i", "I64", &[1], vec![0; 8]),
            ],
            padding,
        )
    }

    #[allow(unsafe_code)]
    fn both(path: &Path) -> [SafetensorsFile; 2] {
        // SAFETY: nobody else knows of the test's file.
        [SafetensorsFile::read(path).unwrap(), unsafe { SafetensorsFile::map(path) }.unwrap()]
    }

    #[test]
    fn every_type_reads_the_same_aligned_or_not_mapped_or_not() {
        for padding in [0, 1, 4] {
            let sample = sample(padding);
            for file in both(sample.path()) {
                assert_eq!(file.names(), ["b", "h", "i", "w"]);
                let weights = file.weights("w").unwrap();
                assert_eq!((weights.layout().rows(), weights.layout().cols()), (2, 3));
                assert_eq!(weights.view().get(0, 0, 2), Some(3.25));
                assert_eq!(file.vector_f32("h").unwrap(), [1.5, -0.25]);
                assert_eq!(file.weights("b").unwrap().element_type(), crate::ElementType::Bf16);
                let widened = file.weights_f32("b").unwrap();
                assert_eq!(widened.element_type(), crate::ElementType::F32);
                assert_eq!(widened.view().get(0, 0, 1), Some(0.5));
            }
        }
    }

    #[test]
    fn aligned_weights_of_a_map_are_not_copied() {
        let sample = sample(0);
        let [_, file] = both(sample.path());
        let weights = file.weights("w").unwrap();
        let crate::AnyView::F32(view) = weights.view() else { panic!("not f32") };
        let range = file.bytes.get().as_ptr_range();
        assert!(range.contains(&view.data().as_ptr().cast()));
        drop(file);
        assert_eq!(weights.view().get(0, 1, 2), Some(6.0));
    }

    #[test]
    fn a_tensor_of_three_dimensions_is_a_batch() {
        let halves: Vec<u8> =
            (0..12u8).flat_map(|x| f16::from_f32_const(f32::from(x)).to_le_bytes()).collect();
        let sample = file(&[("w", "F16", &[2, 2, 3], halves)], 0);
        let file = SafetensorsFile::read(sample.path()).unwrap();
        for weights in [file.weights("w").unwrap(), file.weights_f32("w").unwrap()] {
            assert_eq!(*weights.layout(), Layout::packed(2, 2, 3).unwrap());
            assert_eq!(
                [(0, 1, 2), (1, 0, 1)].map(|(i, r, c)| weights.view().get(i, r, c)),
                [Some(5.0), Some(7.0)]
            );
        }
    }

    #[test]
    fn some_of_many_names_are_told() {
        let told = |count: usize| {
            let names: Vec<String> = (0..count).map(|i| format!("t{i}")).collect();
            let parts: Vec<_> =
                names.iter().map(|name| (name.as_str(), "F32", &[1][..], vec![0; 4])).collect();
            let file = SafetensorsFile::read(file(&parts, 0).path()).unwrap();
            file.weights("x").unwrap_err().to_string()
        };
        assert!(told(8).ends_with("it holds t0, t1, t2, t3, t4, t5, t6, t7"), "{}", told(8));
        assert!(told(10).ends_with("t1, t2, t3, t4, t5, t6, t7 and 2 more"), "{}", told(10));
    }

    #[test]
    fn bad_files_and_names_are_errors() {
        let sample = sample(0);
        let file = SafetensorsFile::read(sample.path()).unwrap();
        assert!(file.weights("x").unwrap_err().to_string().contains("it holds b, h, i, w"));
        assert!(file.weights("i").unwrap_err().to_string().contains("I64"));
        let whole = std::fs::read(sample.path()).unwrap();
        for length in [0, 4, 8, 50, whole.len() - 1] {
            let mut cut = tempfile::NamedTempFile::new().unwrap();
            cut.write_all(&whole[..length]).unwrap();
            assert!(SafetensorsFile::read(cut.path()).is_err(), "{length}");
        }
        assert!(matches!(SafetensorsFile::read("/nonexistent"), Err(Error::Io { .. })));
    }
}
