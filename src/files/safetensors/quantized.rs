//! Safetensors files of quantised weights: writing them from a file of floats, and reading them.
//!
//! A quantised tensor NAME of n x k (or k x n) elements is stored as two tensors, NAME and NAME.scales:
//! the integers, I8 in the shape of the original, 4-bit ones two to a byte as a U8 vector of half the
//! elements, rounded up (see [`Int4View`]); and the scales, F16 of ceil(k / group size) x n. The metadata entry
//! `ane_matmul.quantized.NAME` says what they mean, in seven words: `i4 64 128 group 128 low-first
//! out-in`, that is element type, rows and columns as stored, group size (of rows of op(B), k itself for a
//! scale per column), the order of 4-bit integers, and `out-in` for n x k or `in-out` for k x n. Zero
//! points are 0. Every other tensor is copied unchanged.

use safetensors::tensor::Dtype;

use super::{SafetensorsFile, typed};
use crate::description::element::ElementType;
use crate::description::layout::Layout;
use crate::description::quantization::{NibbleOrder, QuantB};
use crate::error::Result;
use crate::operands::int4::Int4View;
use crate::operands::weights::Weights;

/// Before the name of a tensor, in the metadata.
pub(super) const KEY: &str = "ane_matmul.quantized.";

/// After the name of a tensor, for its scales.
pub(super) const SCALES: &str = ".scales";

/// The words of a metadata entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub element: ElementType,
    pub rows: usize,
    pub cols: usize,
    pub group_size: u32,
    pub order: NibbleOrder,
    pub transpose_b: bool,
}

impl Entry {
    pub(super) fn text(&self) -> String {
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

    pub(super) fn shape_of_scales(&self) -> [usize; 2] {
        let (n, k) = if self.transpose_b { (self.rows, self.cols) } else { (self.cols, self.rows) };
        [k.div_ceil(self.group_size as usize), n]
    }

    /// Type and shape of the integers in a file.
    pub(super) fn stored(&self) -> (Dtype, Vec<usize>) {
        match self.element {
            ElementType::I8 => (Dtype::I8, vec![self.rows, self.cols]),
            _ => (Dtype::U8, vec![(self.rows * self.cols).div_ceil(2)]),
        }
    }
}

impl SafetensorsFile {
    /// The names of the quantised tensors, sorted.
    #[must_use]
    pub fn quantized_names(&self) -> Vec<String> {
        let metadata = self.metadata();
        metadata.keys().filter_map(|key| key.strip_prefix(KEY)).map(String::from).collect()
    }

    /// What the metadata say of a quantised tensor.
    pub(super) fn quantized_entry(&self, name: &str) -> Option<&str> {
        let key = format!("{KEY}{name}");
        let mut metadata = self.shards.iter().filter_map(|shard| shard.metadata.metadata().as_ref());
        metadata.find_map(|metadata| metadata.get(&key)).map(String::as_str)
    }

    /// A tensor that [`SafetensorsFile::quantize`] quantised, with scheme and scales, transposed where the
    /// file says that it is stored so.
    ///
    /// # Errors
    /// [`crate::Error::Format`] when there is no such tensor, or it or its metadata are not as documented;
    /// [`crate::Error::Scale`]; [`crate::Error::OutOfMemory`].
    pub fn quantized(&self, name: &str) -> Result<Weights> {
        let text = self.quantized_entry(name).ok_or_else(|| {
            let names = self.quantized_names();
            let others = if names.is_empty() { "nothing is".into() } else { names.join(", ") };
            self.problem(format!("`{name}` is not quantised; quantised here: {others}"))
        })?;
        let bad = |what: &str| self.problem(format!("`{name}`: {what} (`{KEY}{name}` says `{text}`)"));
        let entry = Entry::parse(text).ok_or_else(|| bad("its metadata cannot be read"))?;
        let layout = Layout::packed(1, entry.rows, entry.cols)?;
        let stored = self.stored(name)?;
        let info = stored.info;
        let integers = match entry.element {
            ElementType::I8 if info.dtype == Dtype::I8 && info.shape == [entry.rows, entry.cols] => {
                typed::<i8>(stored, layout)?
            }
            ElementType::I4 if info.dtype == Dtype::U8 && info.shape == [layout.span().div_ceil(2)] => {
                Weights::new(Int4View::signed(stored.bytes(), layout, entry.order)?)?
            }
            _ => return Err(bad("the tensor has another type or shape")),
        };
        let scales = self.stored(&format!("{name}{SCALES}"))?.info;
        let shape = entry.shape_of_scales();
        if scales.shape != shape {
            return Err(bad("its scales have another shape"));
        }
        let scales = match scales.dtype {
            Dtype::F16 | Dtype::F32 | Dtype::BF16 => self.weights(&format!("{name}{SCALES}"))?,
            _ => return Err(bad("its scales are not floating-point")),
        };
        let weights = if entry.transpose_b { integers.transposed()? } else { integers };
        weights.with_scales(QuantB::PerGroup { group_size: entry.group_size, zero_point: 0 }, scales.view())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use approx::assert_abs_diff_eq;

    use super::super::QuantizeOptions;
    use super::super::quantizing::{Outcome, Output};
    use super::*;
    use crate::operands::tensor::Tensor;

    type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

    fn part(name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Part {
        (name, dtype, shape.into(), bytes)
    }

    fn write(path: &Path, parts: Vec<Part>, metadata: HashMap<String, String>) -> Result<()> {
        let places = parts.iter().map(|(name, dtype, shape, _)| ((*name).into(), *dtype, shape.clone()));
        let mut file = Output::create(path, places.collect(), metadata)?;
        for (name, _, _, bytes) in parts {
            file.put(name, &bytes)?;
        }
        file.commit()
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
    fn a_header_that_no_reader_takes_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long.safetensors");
        let parts =
            (0..26u8).map(|i| (char::from(b'a' + i).to_string().repeat(4_000_000), Dtype::F32, vec![0]));
        let error = Output::create(&path, parts.collect(), HashMap::new()).err().unwrap().to_string();
        assert!(
            error.contains("header") && error.contains("100000000") && !path.exists(),
            "{}",
            &error[..200]
        );
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
            let mut options = QuantizeOptions::new(element);
            options.transpose_b = transpose;
            file.quantize(&options, &to, |name, outcome| {
                outcomes.insert(name.to_owned(), outcome.clone());
            })
            .unwrap();
            let loaded = SafetensorsFile::read(&to).unwrap();
            assert_eq!(loaded.quantized_names(), ["odd", "w"]);
            for (name, original) in [("w", &w), ("odd", &odd)] {
                let quantized = loaded.quantized(name).unwrap();
                assert_eq!((quantized.element_type(), quantized.is_transposed()), (element, transpose));
                let back = quantized.dequantize().unwrap();
                let off =
                    original.data().iter().zip(back.data()).fold(0f32, |off, (x, y)| off.max((x - y).abs()));
                let Outcome::Quantized { error, bytes_after, .. } = &outcomes[name] else { panic!("{name}") };
                assert!((f64::from(off) - error.max_abs_error).abs() < 1e-6 && off > 0.0, "{name}: {off}");
                assert!(*bytes_after < original.data().len() * 4);
            }
            for (name, why) in [("bias", "1 dimensions"), ("ids", "I64"), ("nan", "NaN")] {
                let Outcome::Copied { reason } = &outcomes[name] else { panic!("{name}") };
                assert!(reason.contains(why), "{name}: {reason}");
                let [before, after] = [&file, &loaded].map(|file| file.stored(name).unwrap().bytes());
                assert_eq!(before, after, "{name}");
            }
            // Nothing is left between tensors or after them.
            let shard = &loaded.shards[0];
            let mut places: Vec<_> = shard.metadata.tensors().into_values().map(|t| t.data_offsets).collect();
            places.sort_unstable();
            assert!(places[0].0 == 0 && places.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert_eq!(shard.data_start + places[places.len() - 1].1, shard.bytes.get().len());
            assert_eq!(loaded.metadata()["format"], "pt");
            assert!(loaded.quantize(&options, &from, |_, _| ()).is_err(), "quantised twice");
            assert!(loaded.quantized("bias").unwrap_err().to_string().contains("odd, w"));
        }
    }

    #[test]
    fn excluded_tensors_are_copied_and_shards_become_one_file() {
        let place = tempfile::tempdir().unwrap();
        let names = ["lm_head.weight", "layer.weight", "layer.norm_embed"];
        let shards = names.map(|name| format!("{name}.safetensors"));
        let numbers = Tensor::random_normal_f32(4, 8, 1.0, 1).unwrap();
        let metadata =
            |name: &str| HashMap::from([("format".into(), "pt".into()), (name.into(), "said".into())]);
        for (name, shard) in names.iter().zip(&shards) {
            let shape: &[usize] = if name.contains("norm") { &[32] } else { &[4, 8] };
            let parts = vec![part(name, Dtype::F32, shape, f32s(&numbers))];
            write(&place.path().join(shard), parts, metadata(name)).unwrap();
        }
        let map = names.iter().zip(&shards).map(|(name, shard)| format!("{name:?}:{shard:?}"));
        let index = format!(r#"{{"weight_map":{{{}}}}}"#, map.collect::<Vec<_>>().join(","));
        std::fs::write(place.path().join("model.safetensors.index.json"), index).unwrap();
        let file = SafetensorsFile::read(place.path()).unwrap();
        let to = place.path().join("model.safetensors");
        let reasons = |options: &QuantizeOptions| {
            let mut reasons = Vec::new();
            file.quantize(options, &to, |name, outcome| {
                if let Outcome::Copied { reason } = outcome {
                    reasons.push(format!("{name}: {reason}"));
                }
            })
            .unwrap();
            let loaded = SafetensorsFile::read(place.path()).unwrap();
            assert_eq!(loaded.shards.len(), 1);
            assert_eq!(loaded.quantized_names().len() + reasons.len(), 3);
            assert!(
                loaded.metadata()["format"] == "pt"
                    && names.iter().all(|name| loaded.metadata()[name] == "said")
            );
            std::fs::remove_file(&to).unwrap();
            reasons
        };
        let mut options = QuantizeOptions::new(ElementType::I8);
        let [norm, head] =
            ["layer.norm_embed: 1 dimensions, not 2", "lm_head.weight: its name matches `*lm_head*`"];
        assert_eq!(reasons(&options), [norm, head]);
        options.exclude = vec!["layer.w*".into()];
        assert_eq!(reasons(&options), [norm, "layer.weight: its name matches `layer.w*`"]);
        options.exclude.clear();
        assert_eq!(reasons(&options), [norm]);
    }

    #[test]
    fn what_is_quantised_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let (from, other) = (place.path().join("in.safetensors"), place.path().join("other.safetensors"));
        sample(&from);
        let before = std::fs::read(&from).unwrap();
        std::fs::create_dir(place.path().join("sub")).unwrap();
        let file = SafetensorsFile::read(&from).unwrap();
        let options = QuantizeOptions::new(ElementType::I8);
        #[allow(unused_mut, reason = "links are made on Unix")]
        let mut outputs = vec![from.clone(), place.path().join("sub/../in.safetensors")];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&from, place.path().join("link")).unwrap();
            outputs.push(place.path().join("link"));
        }
        for output in outputs {
            let error = file.quantize(&options, &output, |_, _| ()).unwrap_err().to_string();
            assert!(error.contains("name another output"), "{error}");
        }
        assert_eq!(std::fs::read(&from).unwrap(), before);
        file.quantize(&options, &other, |_, _| ()).unwrap();
    }

    #[test]
    fn a_layer_of_pytorch_is_read_with_its_bias_or_without() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("layers.safetensors");
        let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let parts = vec![
            part("up.weight", Dtype::F32, &[2, 3], floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            part("up.bias", Dtype::F32, &[2], floats(&[10.0, 20.0])),
            part("down.weight", Dtype::F32, &[1, 2], floats(&[1.0, -1.0])),
            part("odd.weight", Dtype::F32, &[2, 1], floats(&[1.0, 1.0])),
            part("odd.bias", Dtype::F32, &[2, 1], floats(&[1.0, 1.0])),
        ];
        write(&path, parts, HashMap::new()).unwrap();
        let file = SafetensorsFile::read(&path).unwrap();
        let run = |name: &str, x: &[f32]| {
            let layer = file.linear(name).unwrap().compile(&crate::BackendId::CPU).unwrap();
            layer.run_to_tensor(x).unwrap().into_vec()
        };
        assert_eq!(run("up", &[1.0, 0.0, -1.0]), [8.0, 18.0]);
        assert_eq!(run("up.weight", &[1.0, 0.0, -1.0]), [8.0, 18.0]);
        assert_eq!(run("down", &[3.0, 1.0]), [2.0]);
        assert!(file.linear("odd").unwrap_err().to_string().contains("expected a vector"));
        assert!(file.linear("none").unwrap_err().to_string().contains("none.weight"));
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
    }

    #[test]
    fn nibbles_lie_in_the_order_that_the_metadata_say() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("w.safetensors");
        for (text, order, elements) in [
            ("low-first", NibbleOrder::LowFirst, [1.0, 2.0, 3.0, 4.0]),
            ("high-first", NibbleOrder::HighFirst, [2.0, 1.0, 4.0, 3.0]),
        ] {
            let parts = vec![
                part("w", Dtype::U8, &[2], vec![0x21, 0x43]),
                part("w.scales", Dtype::F16, &[1, 2], vec![0, 0x3C, 0, 0x3C]),
            ];
            let text = format!("i4 2 2 group 2 {text} out-in");
            write(&path, parts, HashMap::from([(format!("{KEY}w"), text)])).unwrap();
            let quantized = SafetensorsFile::read(&path).unwrap().quantized("w").unwrap();
            let crate::AnyView::Int4(view) = quantized.view() else { panic!("{order:?}") };
            assert_eq!(view.nibble_order(), order);
            let got = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(row, col)| quantized.view().get(0, row, col));
            assert_eq!(got, elements.map(Some));
        }
    }

    #[test]
    fn integers_have_the_type_and_the_shape_that_their_metadata_ask_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("w.safetensors");
        for (element, dtype, shape, right) in [
            ("i8", Dtype::I8, &[2, 2][..], true),
            ("i8", Dtype::U8, &[2, 2], false),
            ("i8", Dtype::I8, &[4], false),
            ("i4", Dtype::U8, &[2], true),
            ("i4", Dtype::I8, &[2], false),
            ("i4", Dtype::U8, &[3], false),
        ] {
            let parts = vec![
                part("w", dtype, shape, vec![0x21; shape.iter().product()]),
                part("w.scales", Dtype::F16, &[1, 2], vec![0, 0x3C, 0, 0x3C]),
            ];
            let text = format!("{element} 2 2 group 2 low-first out-in");
            write(&path, parts, HashMap::from([(format!("{KEY}w"), text)])).unwrap();
            let quantized = SafetensorsFile::read(&path).unwrap().quantized("w");
            assert_eq!(quantized.is_ok(), right, "{element} in {dtype:?} {shape:?}");
        }
    }

    #[test]
    fn tensors_of_every_float_are_quantised_and_what_no_scheme_holds_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("in.safetensors"), place.path().join("out.safetensors"));
        let numbers = [0.5f32, -1.0, 0.25, 0.125];
        let narrow = |bits: fn(f32) -> u16, last: f32| {
            let numbers = numbers[..3].iter().copied().chain([last]);
            numbers.flat_map(|x| bits(x).to_le_bytes()).collect::<Vec<u8>>()
        };
        let (f16, bf16) = (|x| half::f16::from_f32_const(x).to_bits(), |x| half::bf16::from_f32(x).to_bits());
        let parts = vec![
            part("b", Dtype::BF16, &[2, 2], narrow(bf16, 0.125)),
            part("b infinite", Dtype::BF16, &[2, 2], narrow(bf16, f32::INFINITY)),
            part("h", Dtype::F16, &[2, 2], narrow(f16, 0.125)),
            part("h infinite", Dtype::F16, &[2, 2], narrow(f16, f32::INFINITY)),
            // As many rows as nobody can count to.
            part("rows of nothing", Dtype::F32, &[1 << 40, 0], Vec::new()),
        ];
        write(&from, parts, HashMap::new()).unwrap();
        let file = SafetensorsFile::read(&from).unwrap();
        let mut quantized = Vec::new();
        let mut options = QuantizeOptions::new(ElementType::I8);
        options.group_size = 2;
        file.quantize(&options, &to, |name, outcome| match outcome {
            Outcome::Quantized { .. } => quantized.push(name.to_owned()),
            Outcome::Copied { reason } if name.ends_with("nothing") => {
                assert_eq!(reason, "it has no elements");
            }
            Outcome::Copied { reason } => assert!(reason.contains("inf"), "{name}: {reason}"),
        })
        .unwrap();
        assert_eq!(quantized, ["b", "h"]);
        let loaded = SafetensorsFile::read(&to).unwrap();
        for name in ["b", "h"] {
            let weights = loaded.quantized(name).unwrap();
            let back = weights.dequantize().unwrap();
            assert_abs_diff_eq!(*back.data(), numbers[..], epsilon = 0.005);
        }
        for (element, group_size) in [(ElementType::F32, 2), (ElementType::U8, 2), (ElementType::I8, 0)] {
            let mut options = QuantizeOptions::new(element);
            options.group_size = group_size;
            let result = file.quantize(&options, &to, |_, _| ());
            assert!(matches!(result, Err(crate::Error::Description { .. })), "{element}, {group_size}");
        }
    }
}
