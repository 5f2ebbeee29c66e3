//! Weights from safetensors files (feature `safetensors`), mapped into memory where possible.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use safetensors::{SafeTensorError, SafeTensors};

use crate::alloc;
use crate::description::element::Element;
use crate::description::layout::Layout;
use crate::description::linear::Linear;
use crate::error::{Error, Result};
use crate::operands::float16;
use crate::operands::tensor::Tensor;
use crate::operands::view::TensorView;
use crate::operands::weights::{Data, Source, Weights};

mod index;
mod options;
mod quantized;
mod quantizing;

pub use options::{QuantizeOptions, name_matches};
pub use quantizing::Outcome;

/// The longest header that the format allows.
const MAXIMUM_HEADER_BYTES: u64 = 100_000_000;

/// An open safetensors file, or the shards of a checkpoint as if they were one.
///
/// Where a path ends in `.json`, as `model.safetensors.index.json` does, it names the index of a checkpoint of
/// several files, as Hugging Face's libraries write it; the directory of `model.safetensors` or of such an index
/// stands for it. All tensors of the shards are there, and the index must agree with them.
///
/// ```no_run
/// use ane_matmul::{Activation, BackendId, safetensors::SafetensorsFile};
///
/// let file = SafetensorsFile::read("model.safetensors")?;
/// let layer = file.linear("layers.0.mlp.up_proj")?.max_rows(32).activation(Activation::Silu);
/// let compiled = layer.compile(&BackendId::AUTO)?;
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsFile {
    /// Of the file, or of the index.
    path: PathBuf,
    shards: Vec<Shard>,
    /// Which of the shards holds a tensor.
    tensors: BTreeMap<String, usize>,
    /// What was opened, the index too, wherever the process goes: not to be overwritten.
    inputs: Vec<PathBuf>,
}

/// One of the files that are taken for one.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Arc<Bytes>,
    metadata: Metadata,
    data_start: usize,
}

/// A tensor where it is stored.
#[derive(Clone, Copy)]
struct Stored<'a> {
    shard: &'a Shard,
    info: &'a TensorInfo,
}

impl<'a> Stored<'a> {
    fn range(self) -> Range<usize> {
        let (start, end) = self.info.data_offsets;
        self.shard.data_start + start..self.shard.data_start + end
    }

    fn bytes(self) -> &'a [u8] {
        &self.shard.bytes.get()[self.range()]
    }
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

impl Shard {
    fn read(path: &Path) -> Result<Self> {
        let io = |source| Error::io(path, "read", source);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            // A pipe has no length.
            return Self::read_from(file, path);
        }
        let length =
            usize::try_from(metadata.len()).map_err(|_| Error::SizeOverflow { what: "the file's length" })?;
        let mut bytes = alloc::with_capacity(length, "a safetensors file")?;
        file.take(metadata.len()).read_to_end(&mut bytes).map_err(io)?;
        Self::new(path, Bytes::Read(bytes))
    }

    /// Reads what the header asks for: memory is taken as it arrives.
    fn read_from(mut reader: impl Read, path: &Path) -> Result<Self> {
        const LENGTH: usize = size_of::<u64>();
        let io = |source| Error::io(path, "read", source);
        let format = |problem: String| Error::format(path, problem);
        let mut bytes = Vec::new();
        let mut take = |bytes: &mut Vec<u8>, count: u64| {
            let read = reader.by_ref().take(count).read_to_end(bytes).map_err(io)?;
            if read as u64 == count {
                return Ok(());
            }
            Err(format(format!(
                "is truncated: it ended after {} bytes, and has {} more; send it again",
                bytes.len(),
                count - read as u64
            )))
        };
        take(&mut bytes, LENGTH as u64)?;
        let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if header > MAXIMUM_HEADER_BYTES {
            return Err(invalid(path, &SafeTensorError::HeaderTooLarge));
        }
        take(&mut bytes, header)?;
        let metadata: Metadata =
            serde_json::from_slice(&bytes[LENGTH..]).map_err(|error| invalid(path, &error))?;
        take(&mut bytes, metadata.data_len() as u64)?;
        match reader.read_exact(&mut [0]) {
            Ok(()) => Err(format("has more bytes than its header says; send one file".into())),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Self::new(path, Bytes::Read(bytes)),
            Err(error) => Err(io(error)),
        }
    }

    /// # Safety
    /// As [`SafetensorsFile::map`].
    #[allow(unsafe_code, reason = "mapping a file is unsafe, which this function passes on")]
    unsafe fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::io(path, "map", source);
        let file = File::open(path).map_err(io)?;
        // SAFETY: the caller promises that the file stays as it is while the map lives.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::new(path, Bytes::Mapped(map))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self> {
        if cfg!(target_endian = "big") {
            let problem = "safetensors files are little-endian, and this machine is not";
            return Err(Error::format(path, problem.into()));
        }
        let (header, metadata) =
            SafeTensors::read_metadata(bytes.get()).map_err(|error| invalid(path, &error))?;
        let data_start = header + size_of::<u64>();
        Ok(Self { path: path.into(), bytes: Arc::new(bytes), metadata, data_start })
    }
}

fn invalid(path: &Path, error: &dyn std::error::Error) -> Error {
    let problem = format!("not a valid safetensors file: {error}; was it downloaded completely?");
    Error::format(path, problem)
}

impl SafetensorsFile {
    /// Reads a whole file, or all shards of an index, into memory.
    ///
    /// What is no regular file, such as a pipe, is read as [`SafetensorsFile::read_from`] does.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::OutOfMemory`]; [`Error::Format`] when it is no valid safetensors file, or an index
    /// that is damaged, that names shards which are not there or lie elsewhere, or that its shards contradict.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::open(path.as_ref(), Shard::read)
    }

    /// Reads a file from anything that gives bytes, such as standard input; `name` stands for it in errors.
    ///
    /// It must end with the last tensor. No more than that and one byte is read, and memory grows with what
    /// arrives.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is no valid safetensors file.
    pub fn read_from(reader: impl Read, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        Self::new(name, vec![Shard::read_from(reader, name)?])
    }

    /// Maps a file, or all shards of an index, into memory: nothing is read before it is used, and weights that
    /// are aligned in the file are not copied.
    ///
    /// # Safety
    /// The file, or each of the shards, must not be changed or truncated by anyone as long as this handle, or any
    /// [`Weights`] taken from it, lives: that would change memory that Rust takes to be constant,
    /// or end the process with SIGBUS.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read`].
    #[allow(unsafe_code, reason = "mapping a file is unsafe, which this function passes on")]
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        // SAFETY: the caller promises that all files stay as they are while the maps live.
        Self::open(path.as_ref(), |path| unsafe { Shard::map(path) })
    }

    fn open(path: &Path, open: impl Fn(&Path) -> Result<Shard>) -> Result<Self> {
        let path = index::resolve(path)?;
        if index::is_index(&path) { index::open(&path, open) } else { Self::new(&path, vec![open(&path)?]) }
    }

    fn new(path: &Path, shards: Vec<Shard>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                let Some(first) = tensors.insert(name.clone(), index) else { continue };
                let file = |index: usize| shards[index].path.file_name().unwrap_or_default().display();
                let problem = format!(
                    "`{name}` is in both {} and {}; start from one download of all shards",
                    file(first),
                    file(index)
                );
                return Err(Error::format(path, problem));
            }
        }
        let opened = shards.iter().map(|shard| shard.path.as_path()).chain([path]);
        let inputs = opened.filter_map(|path| path.canonicalize().ok()).collect();
        Ok(Self { path: path.into(), shards, tensors, inputs })
    }

    /// The names of the tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let stored = self.tensors.get(name).and_then(|&index| {
            let shard = &self.shards[index];
            Some(Stored { shard, info: shard.metadata.info(name)? })
        });
        stored.ok_or_else(|| {
            let shown = self.tensors.keys().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
            let count = self.tensors.len();
            let more = if count > 8 { format!(" and {} more", count - 8) } else { String::new() };
            self.problem(format!("no tensor named `{name}`; it holds {shown}{more}"))
        })
    }

    /// What the files say of themselves, in the words of the first shard that says it.
    fn metadata(&self) -> BTreeMap<&str, &str> {
        let all = self.shards.iter().rev().filter_map(|shard| shard.metadata.metadata().as_ref());
        all.flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
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

    /// A 1-D, 2-D or batched 3-D tensor of f64, f32, f16 or bf16, with its own element type, as stored: where that
    /// is outputs x inputs, as PyTorch does, it is [`Weights::transposed`].
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor, or it has another type or shape;
    /// [`Error::OutOfMemory`] for a copy of elements that are not aligned in the file.
    pub fn weights(&self, name: &str) -> Result<Weights> {
        let stored = self.stored(name)?;
        let layout = self.layout(name, &stored.info.shape)?;
        match stored.info.dtype {
            Dtype::F64 => typed::<f64>(stored, layout),
            Dtype::F32 => typed::<f32>(stored, layout),
            Dtype::F16 => typed::<f16>(stored, layout),
            Dtype::BF16 => typed::<bf16>(stored, layout),
            dtype => {
                let help = if self.quantized_entry(name).is_some() {
                    ": it is quantised, read it with `quantized`"
                } else {
                    ""
                };
                Err(self
                    .problem(format!("`{name}` is of type {dtype:?}; expected F64, F32, F16 or BF16{help}")))
            }
        }
    }

    /// As [`SafetensorsFile::weights`], with f16 and bf16 widened to f32, which is exact. f32
    /// tensors are not copied.
    ///
    /// # Errors
    /// As [`SafetensorsFile::weights`]; [`Error::Format`] for f64, which f32 does not hold.
    pub fn weights_f32(&self, name: &str) -> Result<Weights> {
        let stored = self.stored(name)?;
        let layout = self.layout(name, &stored.info.shape)?;
        match stored.info.dtype {
            Dtype::F16 => widened(stored, layout, |bits| float16::to_f32(f16::from_bits(bits))),
            Dtype::BF16 => widened(stored, layout, |bits| bf16::from_bits(bits).to_f32()),
            Dtype::F64 => Err(self.problem(format!("`{name}` is of type F64; read it with `weights`"))),
            _ => self.weights(name),
        }
    }

    /// The linear layer `name` of PyTorch: the weights `name.weight`, stored outputs x inputs, quantised or
    /// not, and the bias `name.bias`, where there is one. A name that ends in `.weight` stands for the layer too.
    ///
    /// # Errors
    /// As [`SafetensorsFile::weights`], and as [`SafetensorsFile::quantized`] for quantised weights.
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let weights = if self.quantized_entry(&weight).is_some() {
            self.quantized(&weight)?
        } else {
            self.weights(&weight)?.transposed()?
        };
        let layer = Linear::new(&weights);
        Ok(if self.tensors.contains_key(&bias) { layer.bias(&self.vector_f32(&bias)?) } else { layer })
    }

    /// The elements of a vector, such as a bias, as f32.
    ///
    /// # Errors
    /// As [`SafetensorsFile::weights`].
    pub fn vector_f32(&self, name: &str) -> Result<Vec<f32>> {
        let weights = self.weights_f32(name)?;
        let shape = weights.layout();
        if (shape.batch(), shape.rows()) != (1, 1) {
            return Err(self.problem(format!("`{name}` has shape {shape}; expected a vector")));
        }
        match weights.view() {
            crate::AnyView::F32(view) => alloc::copied(view.data(), "a vector"),
            view => Err(self.problem(format!("`{name}` is of type {}, not f32", view.element_type()))),
        }
    }
}

fn typed<T: Element + bytemuck::Pod>(stored: Stored<'_>, layout: Layout) -> Result<Weights>
where
    Box<dyn Source<T>>: Into<Data>,
{
    let bytes = stored.bytes();
    if bytemuck::try_cast_slice::<u8, T>(bytes).is_ok() {
        let bytes = Arc::clone(&stored.shard.bytes);
        let elements = Elements::<T> { bytes, range: stored.range(), element: PhantomData };
        return Ok(Weights::from_source(elements, layout));
    }
    let mut copy = alloc::with_capacity(bytes.len() / size_of::<T>(), "a copy of unaligned weights")?;
    copy.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
    Weights::new(TensorView::with_layout(&copy, layout)?)
}

fn widened(stored: Stored<'_>, layout: Layout, widen: impl Fn(u16) -> f32) -> Result<Weights> {
    let bytes = stored.bytes();
    let mut data = alloc::with_capacity(bytes.len() / 2, "weights widened to f32")?;
    data.extend(bytes.chunks_exact(2).map(|pair| widen(u16::from_le_bytes([pair[0], pair[1]]))));
    let tensor = if layout.batch() == 1 {
        Tensor::from_vec(data, layout.rows(), layout.cols())
    } else {
        Tensor::from_vec_batched(data, layout.batch(), layout.rows(), layout.cols())
    };
    tensor.map(Weights::from_tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(entries: &[(&str, &str, &[usize], Vec<u8>)], padding: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&write_file(entries, padding)).unwrap();
        file
    }

    /// A file whose header has `padding` extra blanks, which shift the data.
    pub(super) fn write_file(entries: &[(&str, &str, &[usize], Vec<u8>)], padding: usize) -> Vec<u8> {
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
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
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
    pub(super) fn both(path: &Path) -> [SafetensorsFile; 2] {
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
        let range = file.shards[0].bytes.get().as_ptr_range();
        assert!(range.contains(&view.data().as_ptr().cast()));
        drop(file);
        assert_eq!(weights.view().get(0, 1, 2), Some(6.0));
    }

    #[test]
    fn a_stream_is_read_to_the_end_of_its_tensors_and_no_further() {
        let whole = std::fs::read(sample(1).path()).unwrap();
        let file = SafetensorsFile::read_from(&whole[..], "standard input").unwrap();
        assert_eq!(file.vector_f32("h").unwrap(), [1.5, -0.25]);
        let told = |reader: &mut dyn Read| {
            let error = SafetensorsFile::read_from(reader, "standard input").unwrap_err();
            error.to_string().strip_prefix("standard input: ").expect("its name").to_owned()
        };
        for length in 0..whole.len() {
            assert!(told(&mut &whole[..length]).starts_with("is truncated"), "{length}");
        }
        let mut endless = whole.chain(std::io::repeat(7));
        assert!(told(&mut endless).contains("has more bytes than its header says"));
        assert_eq!(endless.into_inner().0.len(), 0);
        // What takes memory is what arrives.
        let promise = r#"{"w":{"dtype":"U8","shape":[4000000000000],"data_offsets":[0,4000000000000]}}"#;
        let promise = [&(promise.len() as u64).to_le_bytes()[..], promise.as_bytes(), &[0; 9]].concat();
        assert!(told(&mut &promise[..]).contains("is truncated: it ended after 94 bytes"));
        for bytes in [[0xff; 16], [0; 16], *b"y\ny\ny\ny\ny\ny\ny\ny\n"] {
            assert!(told(&mut bytes.chain(std::io::repeat(0))).starts_with("not a valid safetensors file"));
        }
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
