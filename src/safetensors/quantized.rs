//! Safetensors files of quantised weights: writing them from a file of floats, and reading them.
//!
//! A quantised tensor NAME of n x k (or k x n) elements is stored as two tensors, NAME and NAME.scales:
//! the integers, I8 in the shape of the original, 4-bit ones two to a byte as a U8 vector of half the
//! elements, rounded up (see [`Int4View`]); and the scales, F16 of ceil(k / group size) x n. The metadata entry
//! `ane_matmul.quantized.NAME` says what they mean, in seven words: `i4 64 128 group 128 low-first
//! out-in`, that is element type, rows and columns as stored, group size (of rows of op(B), k itself for a
//! scale per column), the order of 4-bit integers, and `out-in` for n x k or `in-out` for k x n. Zero
//! points are 0. Every other tensor is copied unchanged.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::SafetensorsFile;
use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::int4::Int4View;
use crate::layout::Layout;
use crate::quantization::{NibbleOrder, QuantB, Quantization};
use crate::quantize::{QuantizationError, WeightScheme, quantize};
use crate::view::AnyView;
use crate::weights::Weights;
use crate::whole_file::WholeFile;

/// Before the name of a tensor, in the metadata.
const KEY: &str = "ane_matmul.quantized.";

/// After the name of a tensor, for its scales.
const SCALES: &str = ".scales";

/// A constant B from a file, and how to describe its product.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QuantizedWeights {
    /// The integers with their scales.
    pub weights: Weights,
    /// The type of the integers, for [`crate::ElementTypes::b`].
    pub element: ElementType,
    /// The type of the scales, for [`crate::ElementTypes::scales`].
    pub scales: ElementType,
    /// The scheme, for [`crate::MatMulBuilder::quantization`].
    pub quantization: Quantization,
    /// Whether B is stored n x k, for [`crate::MatMulBuilder::transpose_b`].
    pub transpose_b: bool,
}

/// What became of one tensor of a file.
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

/// The words of a metadata entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    element: ElementType,
    rows: usize,
    cols: usize,
    group_size: u32,
    order: NibbleOrder,
    transpose_b: bool,
}

impl Entry {
    fn text(&self) -> String {
        let order = if self.order == NibbleOrder::LowFirst { "low-first" } else { "high-first" };
        let side = if self.transpose_b { "out-in" } else { "in-out" };
        format!("{} {} {} group {} {order} {side}", self.element, self.rows, self.cols, self.group_size)
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [element, rows, cols, "group", group_size, order, side] = words[..] else { return None };
        Some(Self {
            element: match element {
                "i8" => ElementType::I8,
                "i4" => ElementType::I4,
                _ => return None,
            },
            rows: rows.parse().ok()?,
            cols: cols.parse().ok()?,
            group_size: group_size.parse().ok().filter(|&size| size > 0)?,
            order: match order {
                "low-first" => NibbleOrder::LowFirst,
                "high-first" => NibbleOrder::HighFirst,
                _ => return None,
            },
            transpose_b: match side {
                "out-in" => true,
                "in-out" => false,
                _ => return None,
            },
        })
    }

    fn shape_of_scales(&self) -> [usize; 2] {
        let (n, k) = if self.transpose_b { (self.rows, self.cols) } else { (self.cols, self.rows) };
        [k.div_ceil(self.group_size as usize), n]
    }
}

/// A tensor of the new file.
struct Part<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl SafetensorsFile {
    /// The names of the quantised tensors, sorted.
    #[must_use]
    pub fn quantized_names(&self) -> Vec<String> {
        let metadata = self.metadata.metadata().as_ref();
        let keys = metadata.into_iter().flatten().filter_map(|(key, _)| key.strip_prefix(KEY));
        let mut names: Vec<String> = keys.map(String::from).collect();
        names.sort_unstable();
        names
    }

    /// A tensor that [`SafetensorsFile::quantize`] quantised.
    ///
    /// # Errors
    /// [`Error::Format`] when there is no such tensor, or it or its metadata are not as documented;
    /// [`Error::Scale`]; [`Error::OutOfMemory`].
    pub fn quantized(&self, name: &str) -> Result<QuantizedWeights> {
        let metadata = self.metadata.metadata().as_ref();
        let text = metadata.and_then(|metadata| metadata.get(&format!("{KEY}{name}"))).ok_or_else(|| {
            self.problem(format!(
                "`{name}` is not quantised; quantised are: {}",
                self.quantized_names().join(", ")
            ))
        })?;
        let bad = |what: &str| self.problem(format!("`{name}`: {what} (`{KEY}{name}` says `{text}`)"));
        let entry = Entry::parse(text).ok_or_else(|| bad("its metadata cannot be read"))?;
        let layout = Layout::packed(1, entry.rows, entry.cols)?;
        let info = self.info(name)?;
        let integers = match entry.element {
            ElementType::I8 if info.dtype == Dtype::I8 && info.shape == [entry.rows, entry.cols] => {
                self.typed::<i8>(info, layout)?
            }
            ElementType::I4 if info.dtype == Dtype::U8 && info.shape == [layout.span().div_ceil(2)] => {
                let bytes = &self.bytes.get()[self.range(info)];
                Weights::new(Int4View::signed(bytes, layout, entry.order)?)?
            }
            _ => return Err(bad("the tensor has another type or shape")),
        };
        let scales = self.info(&format!("{name}{SCALES}"))?;
        let shape = entry.shape_of_scales();
        if scales.shape != shape {
            return Err(bad("its scales have another shape"));
        }
        let scales = match scales.dtype {
            Dtype::F16 | Dtype::F32 | Dtype::BF16 => self.weights(&format!("{name}{SCALES}"))?,
            _ => return Err(bad("its scales are not floating-point")),
        };
        Ok(QuantizedWeights {
            weights: integers.with_scales(scales.view())?,
            element: entry.element,
            scales: scales.element_type(),
            quantization: Quantization {
                b: QuantB::PerGroup { group_size: entry.group_size, zero_point: 0 },
                nibble_order: entry.order,
                ..Quantization::default()
            },
            transpose_b: entry.transpose_b,
        })
    }

    /// Writes a file with every 2-D tensor of f32, f16 or bf16 quantised to `element`, i8 or i4, with an
    /// f16 scale for each `group_size` elements along k; every other tensor is copied, and so is a tensor
    /// that cannot be quantised.
    ///
    /// `transpose_b` says that tensors are stored n x k, as PyTorch stores a linear layer's weights.
    /// `report` is told of each tensor, in the order of their names, when it is done. The file is written
    /// whole or not at all; until then the quantised tensors are kept in memory.
    ///
    /// # Errors
    /// [`Error::Description`] for another type or a group size of 0; [`Error::Io`];
    /// [`Error::OutOfMemory`]; [`Error::Format`] when the file has quantised tensors already.
    pub fn quantize(
        &self,
        element: ElementType,
        group_size: u32,
        transpose_b: bool,
        output: impl AsRef<Path>,
        mut report: impl FnMut(&str, &Outcome),
    ) -> Result<()> {
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
        let mut metadata = self.metadata.metadata().clone().unwrap_or_default();
        let mut parts = Vec::new();
        for name in self.names() {
            let outcome = match self.quantize_tensor(&name, &scheme, group_size, transpose_b, &mut metadata) {
                Ok((error, [integers, scales])) => {
                    let bytes_after = integers.bytes.len() + scales.bytes.len();
                    let bytes_before = self.range(self.info(&name)?).len();
                    parts.extend([integers, scales]);
                    Outcome::Quantized { error, bytes_before, bytes_after }
                }
                Err(Unquantized::Because(reason)) => {
                    let info = self.info(&name)?;
                    let bytes = Cow::Borrowed(&self.bytes.get()[self.range(info)]);
                    parts.push(Part {
                        name: name.clone(),
                        dtype: info.dtype,
                        shape: info.shape.clone(),
                        bytes,
                    });
                    Outcome::Copied { reason }
                }
                Err(Unquantized::Failed(error)) => return Err(error),
            };
            report(&name, &outcome);
        }
        write(output.as_ref(), parts, metadata)
    }

    fn quantize_tensor(
        &self,
        name: &str,
        scheme: &WeightScheme,
        group_size: u32,
        transpose_b: bool,
        metadata: &mut HashMap<String, String>,
    ) -> Result<(QuantizationError, [Part<'static>; 2]), Unquantized> {
        let info = self.info(name)?;
        let because = |reason: String| Err(Unquantized::Because(reason));
        let [rows, cols] = info.shape[..] else {
            return because(format!("{} dimensions, not 2", info.shape.len()));
        };
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return because(format!("elements of type {:?}", info.dtype));
        }
        let scales = format!("{name}{SCALES}");
        if self.metadata.info(&scales).is_some() {
            return because(format!("there is a tensor named `{scales}`"));
        }
        let (weights, error) = match quantize(self.weights(name)?.view(), transpose_b, scheme) {
            Ok(quantized) => quantized,
            Err(error @ (Error::Description { .. } | Error::Scale { .. })) => {
                return because(error.to_string());
            }
            Err(error) => return Err(error.into()),
        };
        let entry = Entry {
            element: scheme.element,
            rows,
            cols,
            group_size,
            order: scheme.nibble_order,
            transpose_b,
        };
        metadata.insert(format!("{KEY}{name}"), entry.text());
        let (dtype, shape, bytes) = match weights.view() {
            AnyView::I8(view) => (Dtype::I8, vec![rows, cols], bytemuck::cast_slice(view.data()).to_vec()),
            AnyView::Int4(view) => (Dtype::U8, vec![view.bytes().len()], view.bytes().to_vec()),
            _ => return because("it has no integers".into()),
        };
        let integers = Part { name: name.into(), dtype, shape, bytes: bytes.into() };
        let Some(AnyView::F16(view)) = weights.scales() else {
            return because("it has no scales".into());
        };
        let bytes = bytemuck::cast_slice::<half::f16, u8>(view.data()).to_vec();
        let shape = entry.shape_of_scales().to_vec();
        Ok((error, [integers, Part { name: scales, dtype: Dtype::F16, shape, bytes: bytes.into() }]))
    }
}

/// Why a tensor was not quantised.
enum Unquantized {
    /// It is copied instead.
    Because(String),
    Failed(Error),
}

impl From<Error> for Unquantized {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Writes a safetensors file: the length of the header, the header, the tensors.
fn write(path: &Path, mut parts: Vec<Part<'_>>, metadata: HashMap<String, String>) -> Result<()> {
    let format = |problem: String| Error::Format { path: path.into(), problem };
    // Larger elements first, so that all are aligned.
    parts.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut end = 0;
    let infos = parts
        .iter()
        .map(|part| {
            let start = end;
            end += part.bytes.len();
            let info =
                TensorInfo { dtype: part.dtype, shape: part.shape.clone(), data_offsets: (start, end) };
            (part.name.clone(), info)
        })
        .collect();
    let header = Metadata::new(Some(metadata).filter(|metadata| !metadata.is_empty()), infos)
        .map_err(|error| format(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| format(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = WholeFile::create(path)?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|source| Error::io(path, "write", source));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for part in &parts {
        put(&part.bytes)?;
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::dequantize;
    use crate::tensor::Tensor;

    fn part<'a>(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Part<'a> {
        Part { name: name.into(), dtype, shape: shape.into(), bytes: bytes.into() }
    }

    fn f32s(tensor: &Tensor<f32>) -> Vec<u8> {
        tensor.data().iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn sample(path: &Path) -> (Tensor<f32>, Tensor<f32>) {
        let w = Tensor::random_normal_f32(6, 300, 0.02, 1).unwrap();
        let odd = Tensor::random_normal_f32(3, 5, 1.0, 2).unwrap();
        let parts = vec![
            part("w", Dtype::F32, &[6, 300], f32s(&w)),
            part("odd", Dtype::F32, &[3, 5], f32s(&odd)),
            part("bias", Dtype::F32, &[3], vec![1; 12]),
            part("ids", Dtype::I64, &[1, 2], vec![7; 16]),
            part("nan", Dtype::F32, &[1, 1], f32::NAN.to_le_bytes().to_vec()),
        ];
        write(path, parts, HashMap::from([("format".into(), "pt".into())])).unwrap();
        (w, odd)
    }

    #[test]
    fn a_file_is_quantised_and_loads_back() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("in.safetensors"), place.path().join("out.safetensors"));
        let (w, odd) = sample(&from);
        let file = SafetensorsFile::read(&from).unwrap();
        for (element, transpose) in
            [(ElementType::I8, true), (ElementType::I4, true), (ElementType::I4, false)]
        {
            let mut outcomes = HashMap::new();
            file.quantize(element, 128, transpose, &to, |name, outcome| {
                outcomes.insert(name.to_owned(), outcome.clone());
            })
            .unwrap();
            let loaded = SafetensorsFile::read(&to).unwrap();
            assert_eq!(loaded.quantized_names(), ["odd", "w"]);
            for (name, original) in [("w", &w), ("odd", &odd)] {
                let quantized = loaded.quantized(name).unwrap();
                assert_eq!((quantized.element, quantized.transpose_b), (element, transpose));
                let scheme = quantized.quantization.b;
                let back = dequantize(&quantized.weights, transpose, scheme).unwrap();
                let off =
                    original.data().iter().zip(back.data()).fold(0f32, |off, (x, y)| off.max((x - y).abs()));
                let Outcome::Quantized { error, bytes_after, .. } = &outcomes[name] else { panic!("{name}") };
                assert!((f64::from(off) - error.max_abs_error).abs() < 1e-6 && off > 0.0, "{name}: {off}");
                assert!(*bytes_after < original.data().len() * 4);
            }
            for (name, why) in [("bias", "1 dimensions"), ("ids", "I64"), ("nan", "NaN")] {
                let Outcome::Copied { reason } = &outcomes[name] else { panic!("{name}") };
                assert!(reason.contains(why), "{name}: {reason}");
                let bytes =
                    |file: &SafetensorsFile| file.bytes.get()[file.range(file.info(name).unwrap())].to_vec();
                assert_eq!(bytes(&file), bytes(&loaded), "{name}");
            }
            assert_eq!(loaded.metadata.metadata().as_ref().unwrap()["format"], "pt");
            assert!(loaded.quantize(element, 128, true, &from, |_, _| ()).is_err(), "quantised twice");
            assert!(loaded.quantized("bias").unwrap_err().to_string().contains("odd, w"));
        }
    }

    #[test]
    fn metadata_that_lie_are_errors() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("bad.safetensors");
        for text in [
            "",
            "i4 2 2 group 0 low-first out-in",
            "i4 2 9 group 2 low-first out-in",
            "i8 2 2 group 2 low-first out-in",
            "i4 2 2 group 1 low-first out-in",
            "i4 18446744073709551615 9 group 2 low-first out-in",
        ] {
            let parts = vec![
                part("w", Dtype::U8, &[2], vec![0x21, 0x43]),
                part("w.scales", Dtype::F16, &[1, 2], vec![0, 0x3C, 0, 0x3C]),
            ];
            write(&path, parts, HashMap::from([(format!("{KEY}w"), text.into())])).unwrap();
            assert!(SafetensorsFile::read(&path).unwrap().quantized("w").is_err(), "{text}");
        }
        let parts = vec![
            part("w", Dtype::U8, &[2], vec![0x21, 0x43]),
            part("w.scales", Dtype::F16, &[1, 2], vec![0, 0x3C, 0, 0x3C]),
        ];
        let text = "i4 2 2 group 2 low-first out-in";
        write(&path, parts, HashMap::from([(format!("{KEY}w"), text.into())])).unwrap();
        let quantized = SafetensorsFile::read(&path).unwrap().quantized("w").unwrap();
        assert_eq!([0, 1].map(|col| quantized.weights.view().get(0, 1, col)), [Some(3.0), Some(4.0)]);
    }
}
