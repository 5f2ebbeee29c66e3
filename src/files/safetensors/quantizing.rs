//! Writing a safetensors file with the weights of another quantised: tensor by tensor, into places that a
//! first look at all of them has fixed.

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::options::QuantizeOptions;
use super::quantized::{Entry, KEY, SCALES};
use super::{MAXIMUM_HEADER_BYTES, SafetensorsFile};
use crate::description::element::ElementType;
use crate::description::quantization::QuantB;
use crate::error::{Error, Result};
use crate::files::whole_file::WholeFile;
use crate::operands::quantize::{QuantizationError, WeightScheme, representable};
use crate::operands::view::AnyView;
use crate::operands::weights::Weights;

/// What became of one tensor of a file.
///
/// ```no_run
/// use ane_matmul::ElementType;
/// use ane_matmul::safetensors::{Outcome, QuantizeOptions, SafetensorsFile};
///
/// let file = SafetensorsFile::read("model.safetensors")?;
/// let options = QuantizeOptions::new(ElementType::I4);
/// file.quantize(&options, "model-int4.safetensors", |name, outcome| match outcome {
///     Outcome::Quantized { error, bytes_after, .. } => {
///         println!("{name}: {bytes_after} bytes, off by {:.2e}", error.relative_rms_error());
///     }
///     Outcome::Copied { reason } => println!("{name} is copied: {reason}"),
///     _ => {}
/// })?;
/// # Ok::<(), ane_matmul::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It was quantised.
    Quantized {
        /// What that changed.
        error: QuantizationError,
        /// Its bytes before.
        bytes_before: usize,
        /// Its bytes after, scales included.
        bytes_after: usize,
    },
    /// It was copied as it is.
    Copied {
        /// Why.
        reason: String,
    },
}

impl SafetensorsFile {
    /// Writes a file with every 2-D tensor of f32, f16 or bf16 quantised as `options` say, with an f16 scale for
    /// each group of elements along k; every other tensor is copied, and so is a tensor that they exclude, that
    /// cannot be quantised, or whose elements are so large or so small that f16 has no scales for them.
    ///
    /// Shards of a checkpoint become one file. `report` is told of each tensor, in the order of their names, when
    /// it is done; before the first, all elements are looked at once. The file is written whole or not at all. Besides this file (a map of
    /// which takes no memory of its own) one tensor at a time is kept in memory.
    ///
    /// # Errors
    /// [`Error::Description`] for another type or a group size of 0; [`Error::Io`];
    /// [`Error::OutOfMemory`]; [`Error::Format`] when the file has quantised tensors already, or `output` is one
    /// of those that are read.
    pub fn quantize(
        &self,
        options: &QuantizeOptions,
        output: impl AsRef<Path>,
        mut report: impl FnMut(&str, &Outcome),
    ) -> Result<()> {
        self.check_not_overwritten(output.as_ref())?;
        let &QuantizeOptions { element, group_size, .. } = options;
        if !matches!(element, ElementType::I8 | ElementType::I4) || group_size == 0 {
            return Err(Error::Description {
                problem: format!("tensors cannot be quantised to {element} in groups of {group_size}"),
                help: "use i8 or i4, and groups of at least one element, such as 128",
            });
        }
        if let Some(name) = self.quantized_names().first() {
            return Err(self.problem(format!("`{name}` is quantised already; start from the original file")));
        }
        let scheme = WeightScheme { element, ..WeightScheme::INT8 }
            .with_scheme(QuantB::PerGroup { group_size, zero_point: 0 });
        let said = self.metadata().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut metadata: HashMap<String, String> = said.collect();
        let (mut plans, mut parts) = (Vec::new(), Vec::new());
        for name in self.names() {
            let plan = self.plan(&name, &scheme, options)?;
            let info = self.stored(&name)?.info;
            match &plan {
                Plan::Quantize(entry) => {
                    metadata.insert(format!("{KEY}{name}"), entry.text());
                    let (dtype, shape) = entry.stored();
                    parts.push((name.clone(), dtype, shape));
                    parts.push((format!("{name}{SCALES}"), Dtype::F16, entry.shape_of_scales().to_vec()));
                }
                Plan::Copy(_) => parts.push((name.clone(), info.dtype, info.shape.clone())),
            }
            plans.push((name, plan));
        }
        let mut file = Output::create(output.as_ref(), parts, metadata)?;
        for (name, plan) in plans {
            let stored = self.stored(&name)?;
            let outcome = match plan {
                Plan::Copy(reason) => {
                    file.put(&name, stored.bytes())?;
                    Outcome::Copied { reason }
                }
                Plan::Quantize(entry) => {
                    let (weights, error) = self.floats(&name, entry.transpose_b)?.quantize(&scheme)?;
                    let scales = format!("{name}{SCALES}");
                    let bytes_after = file.put(&name, bytes(&weights.view()))?
                        + file.put(&scales, weights.scales().as_ref().map_or(&[], bytes))?;
                    Outcome::Quantized { error, bytes_before: stored.bytes().len(), bytes_after }
                }
            };
            report(&name, &outcome);
        }
        file.commit()
    }

    /// The original cannot be had back from what would replace it.
    fn check_not_overwritten(&self, output: &Path) -> Result<()> {
        let Ok(output) = output.canonicalize() else { return Ok(()) };
        if self.inputs.contains(&output) {
            return Err(Error::format(output, "is what is quantised; name another output".into()));
        }
        Ok(())
    }

    fn floats(&self, name: &str, transpose: bool) -> Result<Weights> {
        let weights = self.weights(name)?;
        if transpose { weights.transposed() } else { Ok(weights) }
    }

    /// Decides what becomes of a tensor.
    fn plan(&self, name: &str, scheme: &WeightScheme, options: &QuantizeOptions) -> Result<Plan> {
        let info = self.stored(name)?.info;
        let copy = |reason: String| Ok(Plan::Copy(reason));
        let [rows, cols] = info.shape[..] else {
            return copy(format!("{} dimensions, not 2", info.shape.len()));
        };
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return copy(format!("elements of type {:?}", info.dtype));
        }
        if rows == 0 || cols == 0 {
            return copy("it has no elements".into());
        }
        if let Some(pattern) = options.excluded_by(name) {
            return copy(format!("its name matches `{pattern}`"));
        }
        let scales = format!("{name}{SCALES}");
        if self.tensors.contains_key(&scales) {
            return copy(format!("there is a tensor named `{scales}`"));
        }
        let weights = self.floats(name, options.transpose_b)?;
        if !representable(&weights.view(), scheme)? {
            match weights.quantize(scheme) {
                Err(error @ (Error::Description { .. } | Error::Scale { .. })) => {
                    return copy(error.to_string());
                }
                other => {
                    let (_, error) = other?;
                    return copy(format!(
                        "too small for scales of {}: the RMS error would be {:.1e}, and the RMS is {:.1e}",
                        scheme.scales, error.rms_error, error.rms
                    ));
                }
            }
        }
        let &QuantizeOptions { element, group_size, transpose_b, .. } = options;
        let order = scheme.nibble_order;
        Ok(Plan::Quantize(Entry { element, rows, cols, group_size, order, transpose_b }))
    }
}

/// What is to become of a tensor.
enum Plan {
    Quantize(Entry),
    /// For this reason.
    Copy(String),
}

/// The bytes of a packed matrix.
fn bytes<'a>(view: &AnyView<'a>) -> &'a [u8] {
    match view {
        AnyView::F16(view) => bytemuck::cast_slice(view.data()),
        AnyView::I8(view) => bytemuck::cast_slice(view.data()),
        AnyView::Int4(view) => view.bytes(),
        // Nothing else is written.
        _ => &[],
    }
}

/// A safetensors file that is being written: the length of the header, the header, the tensors.
pub(super) struct Output<'a> {
    path: &'a Path,
    file: WholeFile,
    data_start: u64,
    /// Where tensors begin and end.
    places: HashMap<String, (usize, usize)>,
}

impl<'a> Output<'a> {
    /// Fixes the places of tensors of these names, types and shapes, and writes the header.
    pub(super) fn create(
        path: &'a Path,
        mut parts: Vec<(String, Dtype, Vec<usize>)>,
        metadata: HashMap<String, String>,
    ) -> Result<Self> {
        let format = |problem: String| Error::format(path, problem);
        // Larger elements first, so that all are aligned.
        parts.sort_by(|a, b| b.1.bitsize().cmp(&a.1.bitsize()).then_with(|| a.0.cmp(&b.0)));
        let (mut end, mut places) = (0, HashMap::new());
        let mut infos = Vec::new();
        for (name, dtype, shape) in parts {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            places.insert(name.clone(), (start, end));
            infos.push((name, TensorInfo { dtype, shape, data_offsets: (start, end) }));
        }
        let header = Metadata::new(Some(metadata).filter(|metadata| !metadata.is_empty()), infos)
            .map_err(|error| format(error.to_string()))?;
        let mut header = serde_json::to_vec(&header).map_err(|error| format(error.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() as u64 > MAXIMUM_HEADER_BYTES {
            return Err(format(format!(
                "cannot be written: its header would take {} bytes, and readers take {MAXIMUM_HEADER_BYTES}; quantise fewer \
                 tensors, or give them shorter names",
                header.len()
            )));
        }
        let mut file = WholeFile::create(path)?;
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|source| Error::io(path, "write", source));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        Ok(Self { path, data_start: (size_of::<u64>() + header.len()) as u64, file, places })
    }

    /// Writes a tensor to its place; returns its bytes.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<usize> {
        let place = self.places.get(name).filter(|(start, end)| end - start == bytes.len());
        let Some(&(start, _)) = place else {
            let problem = format!("`{name}` has other bytes than expected; please report this");
            return Err(Error::format(self.path, problem));
        };
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|source| Error::io(self.path, "write", source))?;
        Ok(bytes.len())
    }

    /// Puts the file at its path, every tensor having been written.
    pub(super) fn commit(self) -> Result<()> {
        self.file.commit()
    }
}
