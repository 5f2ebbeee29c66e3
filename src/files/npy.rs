//! NumPy files (feature `npy`): matrices and batches of f32 and f64, in C or Fortran order.
//!
//! Big-endian floats are converted, which is exact. Everything else (integers, complex numbers,
//! half precision, structures, pickled objects) is refused: convert it in NumPy, where you decide
//! how it is rounded.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, WriterBuilder};

use crate::alloc;
use crate::description::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::files::whole_file::WholeFile;
use crate::operands::tensor::Tensor;
use crate::operands::view::AnyView;

/// The longest header read: NumPy's own limit (`max_header_size` of `numpy.load`).
const MAX_HEADER_BYTES: usize = 10_000;

/// The deepest nesting of brackets in a header: fields of a structure in one are as deep (`{[([(`). The parser takes
/// several times as long for each level.
const MAX_NESTING: usize = 5;

/// What a file holds.
///
/// ```no_run
/// use ane_matmul::{Linear, Weights, npy};
///
/// let weights = Weights::from_tensor(npy::read("w.npy")?.into_f32()?);
/// let x = npy::read("x.npy")?.into_f32()?;
/// let bias = npy::read_vector("b.npy")?.into_f32()?;
/// let layer = Linear::new(&weights).max_rows(x.rows()).bias(&bias).compile_default()?;
/// npy::write("y.npy", &layer.run_to_tensor(&x)?)?;
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NpyTensor {
    /// Elements of type f32.
    F32(Tensor<f32>),
    /// Elements of type f64.
    F64(Tensor<f64>),
}

impl NpyTensor {
    /// The type of the elements.
    #[must_use]
    pub const fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F64(_) => ElementType::F64,
        }
    }

    /// The elements.
    #[must_use]
    pub fn view(&self) -> AnyView<'_> {
        match self {
            Self::F32(tensor) => tensor.into(),
            Self::F64(tensor) => tensor.into(),
        }
    }

    /// Whether the file held a 3-D array.
    #[must_use]
    pub const fn is_batched(&self) -> bool {
        match self {
            Self::F32(tensor) => tensor.is_batched(),
            Self::F64(tensor) => tensor.is_batched(),
        }
    }

    /// The elements as f32: those of f64, NumPy's default, are rounded to nearest.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn into_f32(self) -> Result<Tensor<f32>> {
        match self {
            Self::F32(tensor) => Ok(tensor),
            Self::F64(tensor) => tensor.to_f32(),
        }
    }

    /// The elements as f64, which is exact.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn into_f64(self) -> Result<Tensor<f64>> {
        match self {
            Self::F32(tensor) => tensor.to_f64(),
            Self::F64(tensor) => Ok(tensor),
        }
    }
}

/// Reads a 2-D array, or a 3-D array as a batch.
///
/// What is no regular file, such as a pipe, is read as [`read_from`] does.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] when it is no NumPy file, is truncated or too long, or has
/// another type or shape; [`Error::OutOfMemory`]. The header is never trusted: sizes are checked
/// against the file's length before anything is allocated.
pub fn read(path: impl AsRef<Path>) -> Result<NpyTensor> {
    read_path(path.as_ref(), matrices)
}

/// Reads a 1-D array of n elements, or a 2-D array of 1 x n, as a single row.
///
/// # Errors
/// As [`read`].
pub fn read_vector(path: impl AsRef<Path>) -> Result<NpyTensor> {
    read_path(path.as_ref(), vector)
}

/// As [`read`], from anything that gives bytes, such as standard input; `name` stands for it in errors.
///
/// It must end with the array. No more than that and one byte is read, and memory grows with what arrives,
/// to that of the array (twice that, in Fortran order).
///
/// # Errors
/// As [`read`].
pub fn read_from(reader: impl Read, name: impl AsRef<Path>) -> Result<NpyTensor> {
    read_array(reader, name.as_ref(), None, matrices)
}

/// As [`read_vector`], from anything that gives bytes; see [`read_from`].
///
/// # Errors
/// As [`read`].
pub fn read_vector_from(reader: impl Read, name: impl AsRef<Path>) -> Result<NpyTensor> {
    read_array(reader, name.as_ref(), None, vector)
}

/// Writes a tensor as a 2-D array, or as a 3-D array where it is a batch, in C order, whole or not
/// at all.
///
/// # Errors
/// [`Error::Io`]; an existing file is left as it was then.
pub fn write<T: Element + npyz::AutoSerialize>(path: impl AsRef<Path>, tensor: &Tensor<T>) -> Result<()> {
    WholeFile::write_all(path, |file| write_array(file, tensor))
}

/// As [`write`](fn@write), to anything that takes bytes, such as standard output; `name` stands for it in errors.
///
/// # Errors
/// [`Error::Io`], also when it cannot be flushed; a part may have been written then.
pub fn write_to<T: Element + npyz::AutoSerialize>(
    writer: impl Write,
    name: impl AsRef<Path>,
    tensor: &Tensor<T>,
) -> Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 16, writer);
    let written = write_array(&mut writer, tensor).and_then(|()| writer.flush());
    // What is left is not tried again.
    drop(writer.into_parts());
    written.map_err(|source| Error::io(name.as_ref(), "write", source))
}

fn write_array<T: Element + npyz::AutoSerialize>(
    writer: &mut dyn Write,
    tensor: &Tensor<T>,
) -> std::io::Result<()> {
    let (batch, rows, cols) = (tensor.batch() as u64, tensor.rows() as u64, tensor.cols() as u64);
    let shape = if tensor.is_batched() { vec![batch, rows, cols] } else { vec![rows, cols] };
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(writer).begin_nd()?;
    writer.extend(tensor.data().iter().copied())?;
    writer.finish()
}

type Shape = (usize, usize, usize, bool);

fn matrices(shape: &[usize]) -> Result<Shape, &'static str> {
    match *shape {
        [rows, cols] => Ok((1, rows, cols, false)),
        [batch, rows, cols] => Ok((batch, rows, cols, true)),
        _ => Err(
            "expected 2 dimensions, or 3 for a batch; a vector is read by npy::read_vector, and other shapes are changed by array.reshape in NumPy",
        ),
    }
}

fn vector(shape: &[usize]) -> Result<Shape, &'static str> {
    match *shape {
        [cols] | [1, cols] => Ok((1, 1, cols, false)),
        _ => Err("expected a vector: 1 dimension, or 1 x n; use array.reshape(-1) in NumPy"),
    }
}

fn read_path(path: &Path, accept: impl Fn(&[usize]) -> Result<Shape, &'static str>) -> Result<NpyTensor> {
    let io = |source| Error::io(path, "read", source);
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.is_dir() {
        return Err(Error::format(path, "is a directory; expected a .npy file".into()));
    }
    // A pipe has no length.
    let file_bytes = metadata.is_file().then_some(metadata.len());
    read_array(file, path, file_bytes, accept)
}

/// The largest dimension of an array without elements: a file of 128 bytes must not keep anyone busy.
const MOST_WITHOUT_ELEMENTS: usize = 1 << 24;

/// Reads an array from a file of `file_bytes`, or from what has no known length.
fn read_array(
    reader: impl Read,
    path: &Path,
    file_bytes: Option<u64>,
    accept: impl Fn(&[usize]) -> Result<Shape, &'static str>,
) -> Result<NpyTensor> {
    let io = |source| Error::io(path, "read", source);
    let format = |problem: String| Error::format(path, problem);
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let (header, header_bytes) = read_header(&mut reader).map_err(&format)?;
    let (element, endianness) = element_type(&header).map_err(&format)?;

    let mut shape = Vec::with_capacity(header.shape().len());
    for &length in header.shape() {
        let length =
            usize::try_from(length).map_err(|_| Error::SizeOverflow { what: "the array's shape" })?;
        shape.push(length);
    }
    let (batch, rows, cols, batched) = accept(&shape).map_err(|help| {
        let text = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format(format!("has shape ({text}): {help}"))
    })?;
    let count = shape
        .iter()
        .try_fold(1usize, |count, &length| count.checked_mul(length))
        .and_then(|count| element.bytes(count).map(|bytes| (count, bytes)));
    let Some((count, bytes)) = count else {
        return Err(Error::SizeOverflow { what: "the array's shape" });
    };
    if count == 0 && shape.iter().any(|&length| length > MOST_WITHOUT_ELEMENTS) {
        return Err(format(format!(
            "has no elements, and a dimension above {MOST_WITHOUT_ELEMENTS}, which takes time and gives nothing"
        )));
    }
    let expected = header_bytes as u64 + bytes as u64;
    let too_long = |more: &str| {
        format(format!("has {more} after its array; expected a file with one array, as numpy.save writes it"))
    };
    match file_bytes {
        Some(file_bytes) if file_bytes < expected => {
            return Err(format(format!(
                "is truncated: its header promises {expected} bytes, it has {file_bytes}; copy or save it again"
            )));
        }
        Some(file_bytes) if file_bytes > expected => {
            return Err(too_long(&format!("{} bytes", file_bytes - expected)));
        }
        _ => {}
    }

    let fortran = header.order() == Order::Fortran;
    let big = endianness == Endianness::Big;
    let shape = (batch, rows, cols, batched);
    // Only a file's length was held against the header.
    let sure = if file_bytes.is_some() { count } else { 0 };
    let unread = |error| match error {
        ReadError::Io(source) if source.kind() == ErrorKind::UnexpectedEof => format(format!(
            "is truncated: its header promises {expected} bytes, it ended before; save it again, or see what its writer said"
        )),
        ReadError::Io(source) => io(source),
        ReadError::Memory(error) => error,
    };
    let end = |reader: &mut BufReader<_>| match reader.read_exact(&mut [0]) {
        Ok(()) => Err(too_long("more bytes")),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(io(error)),
    };
    if element == ElementType::F32 {
        let parse = if big { f32::from_be_bytes } else { f32::from_le_bytes };
        let data = read_elements(&mut reader, count, sure, parse).map_err(unread)?;
        end(&mut reader)?;
        tensor(data, shape, fortran).map(NpyTensor::F32)
    } else {
        let parse = if big { f64::from_be_bytes } else { f64::from_le_bytes };
        let data = read_elements(&mut reader, count, sure, parse).map_err(unread)?;
        end(&mut reader)?;
        tensor(data, shape, fortran).map(NpyTensor::F64)
    }
}

/// The header, and its length in bytes.
fn read_header(reader: &mut impl Read) -> Result<(NpyHeader, usize), String> {
    const NO_HEADER: &str = "is not a NumPy file (.npy); expected what numpy.save writes";
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes).map_err(|_| NO_HEADER.to_owned())?;
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err(NO_HEADER.into());
    }
    let truncated = |_| "is truncated within its header; copy or save it again".to_owned();
    let mut length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    if bytes[6] >= 2 {
        let mut high = [0; 2];
        reader.read_exact(&mut high).map_err(truncated)?;
        bytes.extend_from_slice(&high);
        length |= usize::from(u16::from_le_bytes(high)) << 16;
    }
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "has a header of {length} bytes; arrays of numbers need no more than {MAX_HEADER_BYTES}: it is corrupt or holds structures"
        ));
    }
    let header_bytes = bytes.len() + length;
    let mut text = vec![0; length];
    reader.read_exact(&mut text).map_err(truncated)?;
    let text = in_one_dialect(&text);
    check_header_text(&text).map_err(|problem| format!("has a corrupt header: {problem}"))?;
    // The version whose header may be of any length.
    let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
    bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(text);
    let header =
        NpyHeader::from_reader(bytes.as_slice()).map_err(|error| format!("has a corrupt header: {error}"))?;
    Ok((header, header_bytes))
}

/// A header as `numpy.save` writes it today, from any that `numpy.load` reads: the types of numbers in their other
/// spellings (NumPy, Data type objects, "Specifying and constructing data types"), lengths with the `L` of Python 2,
/// other blanks. What is not known stays as it is.
fn in_one_dialect(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len() + 2);
    let mut quoted: Option<(u8, usize)> = None;
    // Whether the string before was `descr`, and what follows is its value.
    let mut describes = false;
    for &byte in text {
        match (quoted, byte) {
            (Some((quote, start)), _) if byte == quote => {
                if std::mem::take(&mut describes) {
                    let spelling = plain.split_off(start);
                    plain.extend(type_as_saved(&spelling).unwrap_or(spelling));
                }
                describes = &plain[start..] == b"descr";
                quoted = None;
                plain.push(byte);
            }
            (Some(_), _) => plain.push(byte),
            (None, b'\'' | b'"') => {
                plain.push(byte);
                quoted = Some((byte, plain.len()));
            }
            (None, b'L' | b'l') if plain.last().is_some_and(u8::is_ascii_digit) => plain.push(b' '),
            (None, b'\t' | b'\n' | b'\r' | b'\x0c') => plain.push(b' '),
            (None, _) => {
                describes &= matches!(byte, b':' | b' ');
                plain.push(byte);
            }
        }
    }
    plain.push(b'\n');
    plain
}

/// The type of 32 or 64-bit floats with its order of bytes, as `numpy.save` names it.
fn type_as_saved(spelling: &[u8]) -> Option<Vec<u8>> {
    let native = if cfg!(target_endian = "big") { b'>' } else { b'<' };
    let (order, name) = match spelling {
        [order @ (b'<' | b'>'), name @ ..] => (*order, name),
        [b'=' | b'|', name @ ..] => (native, name),
        name => (native, name),
    };
    let bits: &[u8] = match name {
        b"f4" | b"f" => b"f4",
        b"f8" | b"d" => b"f8",
        b"float32" | b"single" if name == spelling => b"f4",
        b"float64" | b"double" | b"float" if name == spelling => b"f8",
        _ => return None,
    };
    Some([&[order], bits].concat())
}

/// Lets through only what `NpyHeader`'s parser survives: it recurses at every bracket, and its
/// product of the shape may overflow.
fn check_header_text(text: &[u8]) -> Result<(), &'static str> {
    let mut depth = 0usize;
    let mut product = 1u64;
    let mut quote = None;
    let mut number: Option<u64> = None;
    let mut entries = 0;
    for &byte in text {
        if let Some(end) = quote {
            match byte {
                b'\\' => return Err("it holds an escaped character"),
                _ if byte == end => quote = None,
                _ => {}
            }
            continue;
        }
        if byte.is_ascii_digit() {
            if number == Some(0) {
                return Err("a length begins with 0");
            }
            let next =
                number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
            number = Some(next.ok_or("the array's shape overflows")?);
            continue;
        }
        // A length of 0 may stand beside others that overflow.
        let factor = number.take().unwrap_or(1).max(1);
        product = product.checked_mul(factor).ok_or("the array's shape overflows")?;
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\'' | b'"' => quote = Some(byte),
            b':' => entries += 1,
            // What True and False are made of, and what stands between.
            b'T' | b'r' | b'u' | b'e' | b'F' | b'a' | b'l' | b's' | b',' | b' ' | b'\n' => {}
            _ => return Err("it holds more than strings, booleans and lengths"),
        }
        if depth > MAX_NESTING {
            return Err("its brackets are nested too deeply");
        }
    }
    // Those that `numpy.load` insists on; a missing one is the parser's to name.
    if entries > 3 { Err("it has more entries than `descr`, `fortran_order` and `shape`") } else { Ok(()) }
}

fn element_type(header: &NpyHeader) -> Result<(ElementType, Endianness), String> {
    let dtype = header.dtype();
    let refuse = || {
        let hint = "expected float32 or float64: convert it in NumPy with array.astype(numpy.float32)";
        Err(format!("has elements of type {}; {hint}", dtype.descr().trim_matches('\'')))
    };
    let DType::Plain(plain) = &dtype else { return refuse() };
    match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 4) => Ok((ElementType::F32, plain.endianness())),
        (TypeChar::Float, 8) => Ok((ElementType::F64, plain.endianness())),
        _ => refuse(),
    }
}

/// What memory is taken for.
const WHAT: &str = "the array";

enum ReadError {
    Io(std::io::Error),
    Memory(Error),
}

/// Reads `count` elements, of which `sure` are there; for the others memory is taken as they arrive.
fn read_elements<T: Element, const N: usize>(
    reader: &mut impl Read,
    count: usize,
    sure: usize,
    parse: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, ReadError> {
    let mut data = alloc::with_capacity(sure, WHAT).map_err(ReadError::Memory)?;
    let mut buffer = [0u8; 1 << 14];
    while data.len() < count {
        let take = (count - data.len()).min(buffer.len() / N) * N;
        reader.read_exact(&mut buffer[..take]).map_err(ReadError::Io)?;
        let (elements, _) = buffer[..take].as_chunks::<N>();
        if data.capacity() - data.len() < elements.len() {
            // Twice as much, but never more than the array.
            let more = data.len().max(elements.len()).min(count - data.len());
            alloc::reserve(&mut data, more, WHAT).map_err(ReadError::Memory)?;
        }
        data.extend(elements.iter().map(|&bytes| parse(bytes)));
    }
    Ok(data)
}

fn tensor<T: Element>(data: Vec<T>, (batch, rows, cols, batched): Shape, fortran: bool) -> Result<Tensor<T>> {
    let data = if fortran && !data.is_empty() {
        // The first index runs fastest: item, then row, then column.
        let mut ordered = alloc::with_capacity(data.len(), "the array in C order")?;
        for item in 0..batch {
            for row in 0..rows {
                ordered.extend((0..cols).map(|col| data[item + batch * (row + rows * col)]));
            }
        }
        ordered
    } else {
        data
    };
    if batched {
        Tensor::from_vec_batched(data, batch, rows, cols)
    } else {
        Tensor::from_vec(data, rows, cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        raw(&bytes)
    }

    fn raw(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn header(descr: &str, fortran: &str, shape: &str) -> String {
        format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    }

    fn problem(file: &tempfile::NamedTempFile) -> String {
        read(file.path()).unwrap_err().to_string()
    }

    #[test]
    fn arrays_of_many_buffers_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.npy");
        let tensor = Tensor::from_fn(2, 5001, |r, c| (r * 10_000 + c) as f32).unwrap();
        write(&path, &tensor).unwrap();
        assert_eq!(read(&path).unwrap(), NpyTensor::F32(tensor));
    }

    #[test]
    fn a_header_is_taken_up_to_its_limits() {
        let padded = |length: usize| {
            let text = header("'<f4'", "False", "(1, 1)");
            let text = format!("{}{}\n", text.trim_end(), " ".repeat(length - text.trim_end().len() - 1));
            read(file(&text, &1f32.to_le_bytes()).path())
        };
        assert!(padded(MAX_HEADER_BYTES).is_ok());
        assert!(padded(MAX_HEADER_BYTES + 1).unwrap_err().to_string().contains("has a header of"));
        let nested = |depth: usize| check_header_text("(".repeat(depth).as_bytes());
        assert_eq!(nested(MAX_NESTING), Ok(()));
        assert!(nested(MAX_NESTING + 1).unwrap_err().contains("nested"));
        // The product is 2^64 - 1, and 2^64.
        assert_eq!(check_header_text(b"(4294967295, 4294967297)"), Ok(()));
        assert!(check_header_text(b"(4294967296, 4294967296)").unwrap_err().contains("overflows"));
        assert!(check_header_text(br"'a\'b'").unwrap_err().contains("escaped"));
    }

    #[test]
    fn round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.npy");
        for batched in [false, true] {
            let tensor = if batched {
                Tensor::from_fn_batched(2, 3, 4, |i, r, c| (i * 100 + r * 10 + c) as f32).unwrap()
            } else {
                Tensor::from_fn(3, 4, |r, c| (r * 10 + c) as f32).unwrap()
            };
            write(&path, &tensor).unwrap();
            assert_eq!(read(&path).unwrap(), NpyTensor::F32(tensor.clone()));
            let wide = tensor.to_f64().unwrap();
            write(&path, &wide).unwrap();
            assert_eq!(read(&path).unwrap(), NpyTensor::F64(wide));
        }
        for (rows, cols) in [(0, 5), (5, 0), (1, 1)] {
            let tensor = Tensor::<f64>::zeros(rows, cols).unwrap();
            write(&path, &tensor).unwrap();
            assert_eq!(read(&path).unwrap(), NpyTensor::F64(tensor));
        }
    }

    /// What a pipe gives: little at a time, and counted.
    struct Pipe<R>(R, usize);

    impl<R: Read> Read for Pipe<R> {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            let end = bytes.len().min(4000);
            let read = self.0.read(&mut bytes[..end])?;
            self.1 += read;
            Ok(read)
        }
    }

    #[test]
    fn a_stream_is_read_to_the_end_of_its_array_and_no_further() {
        let stored = |tensor: &Tensor<f32>| {
            let mut bytes = Vec::new();
            write_to(&mut bytes, "a stream", tensor).unwrap();
            bytes
        };
        for tensor in [Tensor::from_fn(3, 5001, |r, c| (r * 10_000 + c) as f32), Tensor::zeros(0, 5)] {
            let tensor = tensor.unwrap();
            let bytes = stored(&tensor);
            let path = tempfile::NamedTempFile::new().unwrap();
            write(path.path(), &tensor).unwrap();
            assert_eq!(std::fs::read(path.path()).unwrap(), bytes);
            assert_eq!(read_from(Pipe(&bytes[..], 0), "a").unwrap(), NpyTensor::F32(tensor));
            let told = |reader: &mut dyn Read| read_from(reader, "standard input").unwrap_err().to_string();
            for length in (0..bytes.len()).step_by(bytes.len() / 50) {
                assert!(told(&mut &bytes[..length]).starts_with("standard input: is "), "{length}");
            }
            assert!(told(&mut &[&bytes[..], &[0]].concat()[..]).contains("has more bytes after its array"));
            let mut endless = Pipe(bytes.chain(std::io::repeat(0)), 0);
            assert!(told(&mut endless).contains("has more bytes after its array"));
            assert!(endless.1 <= bytes.len() + (1 << 16), "{} bytes were read", endless.1);
        }
        let row = Tensor::filled(1, 3, 2f32).unwrap();
        assert_eq!(read_vector_from(&stored(&row)[..], "bias").unwrap(), NpyTensor::F32(row));
    }

    #[test]
    fn a_promise_of_a_stream_takes_no_memory() {
        let bytes = std::fs::read(file(&header("'<f8'", "False", "(1000000, 1000000)"), &[0; 160]).path());
        let text = read_from(&bytes.unwrap()[..], "a stream").unwrap_err().to_string();
        assert!(text.contains("promises 80000000") && text.contains("it ended before"), "{text}");
        // Memory is taken as elements arrive, and no more than there are.
        for count in [1, 1 << 12, 50_000] {
            let bytes = vec![0; count * 4];
            let data = read_elements(&mut &bytes[..], count, 0, f32::from_le_bytes);
            assert!(data.is_ok_and(|data| data.capacity() == count), "{count}");
        }
    }

    #[test]
    fn a_stream_that_cannot_be_written_is_an_error() {
        let tensor = Tensor::filled(100, 200, 1f32).unwrap();
        let mut short = [0; 1000];
        let error = write_to(&mut short[..], "standard output", &tensor).unwrap_err();
        assert!(error.to_string().starts_with("standard output: write: "), "{error}");
    }

    #[test]
    fn fortran_order_and_big_endian_are_converted() {
        let values: Vec<u8> = (0u8..6).flat_map(|x| f32::from(x).to_be_bytes()).collect();
        let f = file(&header("'>f4'", "True", "(2, 3)"), &values);
        let NpyTensor::F32(tensor) = read(f.path()).unwrap() else { panic!() };
        assert_eq!(tensor.data(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let values: Vec<u8> = (0u8..12).flat_map(|x| f64::from(x).to_le_bytes()).collect();
        let f = file(&header("'<f8'", "True", "(2, 3, 2)"), &values);
        let NpyTensor::F64(tensor) = read(f.path()).unwrap() else { panic!() };
        // numpy.arange(12.0).reshape((2, 3, 2), order='F')[1].tolist()
        assert_eq!(&tensor.data()[6..], [1.0, 7.0, 3.0, 9.0, 5.0, 11.0]);
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for (descr, named) in [
            ("'<i8'", "i8"),
            ("'<c16'", "c16"),
            ("'<f2'", "f2"),
            ("'|b1'", "b1"),
            ("'|O'", "O"),
            ("[('x', '<f4')]", "x"),
            ("'<f16'", "f16"),
        ] {
            let text = problem(&file(&header(descr, "False", "(1, 1)"), &[0; 16]));
            assert!(text.contains(named) && text.contains("float32"), "{descr}: {text}");
        }
    }

    #[test]
    fn every_dialect_that_numpy_loads_is_read() {
        let numbers = [1.5f32, -2.0, 3.0, 4.0];
        let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let f64s: Vec<u8> = numbers.iter().flat_map(|&x| f64::from(x).to_ne_bytes()).collect();
        let read = |text: &str, data: &[u8]| read(file(text, data).path());
        for (descr, data) in [
            ("'=f4'", &f32s),
            ("'f4'", &f32s),
            ("'|f4'", &f32s),
            ("\"f\"", &f32s),
            ("'=f'", &f32s),
            ("'float32'", &f32s),
            ("'single'", &f32s),
            ("'=f8'", &f64s),
            ("'d'", &f64s),
            ("'float64'", &f64s),
            ("'double'", &f64s),
            ("'float'", &f64s),
        ] {
            let tensor = read(&header(descr, "False", "(2, 2)"), data).unwrap();
            assert_eq!(tensor.view().get(0, 0, 0), Some(1.5), "{descr}");
            assert_eq!(tensor.view().get(0, 1, 1), Some(4.0), "{descr}");
        }
        for text in [
            "{'descr': '=f4', 'fortran_order': False, 'shape': (2L, 2L), }\n",
            "{ \"shape\":\t(2,2) ,\r\n\"fortran_order\":False,\"descr\":\"=f4\"}",
        ] {
            assert_eq!(read(text, &f32s).unwrap().view().get(0, 0, 1), Some(-2.0), "{text}");
        }
        for text in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1L2, 1), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (02, 2), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'more': False, }\n",
        ] {
            assert!(read(text, &f32s).is_err(), "{text}");
        }
        // NumPy takes these for nothing either.
        for descr in ["'=float32'", "'<single'", "'f5'", "'descr'", "''"] {
            assert!(read(&header(descr, "False", "(2, 2)"), &f32s).is_err(), "{descr}");
        }
    }

    #[test]
    fn arrays_without_elements_take_no_time_in_any_order() {
        for fortran in ["False", "True"] {
            let shape = "(16777216, 16777216, 0)";
            assert_eq!(
                read(file(&header("'<f4'", fortran, shape), &[]).path()).unwrap().view().layout().batch(),
                1 << 24
            );
        }
    }

    #[test]
    fn shapes_are_checked_before_memory_is_taken() {
        let text = |shape: &str| problem(&file(&header("'<f4'", "False", shape), &[0; 16]));
        assert!(text("(4,)").contains("has shape (4): expected 2 dimensions"));
        assert!(text("()").contains("expected 2 dimensions"));
        assert!(text("(1, 1, 2, 2)").contains("expected 2 dimensions"));
        assert!(text("(4000000000, 4000000000)").contains("overflow"));
        assert!(text("(0, 9000000000000000000, 9000000000000000000)").contains("overflow"));
        assert!(text("(16777217, 0)").contains("has no elements, and a dimension above 16777216"));
        assert!(text("(0xffffffffffffffff, 2)").contains("corrupt header"));
        assert!(text("(-1, 2)").contains("corrupt header"));
        assert!(text("(18446744073709551615, 2)").contains("overflow"));
        assert!(text("(1000000, 1000000)").contains("is truncated"));
        assert!(text("(2, 3)").contains("is truncated"));
        assert!(text("(1, 3)").contains("4 bytes after its array"));
    }

    #[test]
    fn corrupt_headers_are_errors() {
        let good = std::fs::read(file(&header("'<f4'", "False", "(2, 2)"), &[0; 16]).path()).unwrap();
        assert!(read(raw(&good).path()).is_ok());
        for length in 0..good.len() {
            assert!(read(raw(&good[..length]).path()).is_err(), "{length}");
        }
        for index in 0..good.len() - 16 {
            let mut bad = good.clone();
            bad[index] ^= 0x55;
            // Some bytes do not matter, such as blanks; no byte may cause a panic.
            let _ = read(raw(&bad).path());
        }
        let nested = format!("{{'descr': {}", "(".repeat(9000));
        assert!(problem(&file(&nested, &[])).contains("nested too deeply"));
        let mut long = b"\x93NUMPY\x02\x00".to_vec();
        long.extend(u32::MAX.to_le_bytes());
        assert!(problem(&raw(&long)).contains("4294967295 bytes"));
        assert!(problem(&raw(b"hello")).contains("is not a NumPy file"));
    }

    #[test]
    fn vectors() {
        let values: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for shape in ["(2,)", "(1, 2)"] {
            let f = file(&header("'<f4'", "False", shape), &values);
            let NpyTensor::F32(row) = read_vector(f.path()).unwrap() else { panic!() };
            assert_eq!((row.rows(), row.data()), (1, [1.0, 2.0].as_slice()));
        }
        let f = file(&header("'<f4'", "False", "(2, 1)"), &values);
        assert!(read_vector(f.path()).is_err());
    }

    #[test]
    fn a_batch_is_told_from_a_matrix() {
        let matrix = Tensor::filled(2, 3, 1f32).unwrap();
        assert!(!NpyTensor::F32(matrix).is_batched());
        assert!(NpyTensor::F64(Tensor::zeros_batched(1, 2, 3).unwrap()).is_batched());
    }
}
