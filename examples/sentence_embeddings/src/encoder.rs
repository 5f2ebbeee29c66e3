//! An encoder of BERT's architecture, as graphs for sequences of one length.

use std::collections::BTreeSet;
use std::path::Path;

use ane_matmul::graph::{Array, Attention, Graph, GraphBuilder, Value};
use ane_matmul::safetensors::SafetensorsFile;
use ane_matmul::{ElementType, Weights};
use serde::Deserialize;

use crate::error::{Error, read};

/// The sizes of an encoder: what is used of `config.json`, under the names that the file has for them.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// `bert`; nothing else is built here.
    pub model_type: String,
    /// The elements of an embedding.
    pub hidden_size: usize,
    /// The layers.
    pub num_hidden_layers: usize,
    /// The heads of a layer's attention.
    pub num_attention_heads: usize,
    /// The elements between the two products of a layer's second half.
    pub intermediate_size: usize,
    /// The tokens.
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The kinds of sequences; those of single sentences are of the first.
    pub type_vocab_size: usize,
    /// Added to a variance before its square root is taken.
    pub layer_norm_eps: f32,
    /// `gelu`; nothing else is built here.
    pub hidden_act: String,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for another architecture, and sizes that fit no encoder.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let problem = |problem: String| Error::format(path, problem);
        let config: Self = serde_json::from_str(&read(path)?)
            .map_err(|error| problem(format!("no configuration: {error}")))?;
        if config.model_type != "bert" {
            return Err(problem(format!("model_type is `{}`; this program knows `bert`", config.model_type)));
        }
        if config.hidden_act != "gelu" {
            return Err(problem(format!("hidden_act is `{}`; this program knows `gelu`", config.hidden_act)));
        }
        let sizes = [
            ("hidden_size", config.hidden_size),
            ("num_attention_heads", config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
            ("vocab_size", config.vocab_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("type_vocab_size", config.type_vocab_size),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(problem(format!("{name} is 0")));
        }
        if config.hidden_size % config.num_attention_heads != 0 {
            return Err(problem(format!(
                "a hidden_size of {} has no {} equal heads",
                config.hidden_size, config.num_attention_heads
            )));
        }
        Ok(config)
    }
}

/// A layer: x W + bias, W inputs x outputs.
#[derive(Debug)]
struct Dense {
    weights: Weights,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Norm {
    scale: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    query: Dense,
    key: Dense,
    value: Dense,
    output: Dense,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    norm: Norm,
}

/// The weights of an encoder, which all of its graphs share.
#[derive(Debug)]
pub struct Encoder {
    config: Config,
    words: Weights,
    /// What is added to the word at each position: the embedding of the position and of the first type.
    places: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Reads `model.safetensors`, whose tensors have the names that `transformers` gives them; f16 and bf16 are
    /// widened.
    ///
    /// # Errors
    /// [`Error::Format`] that names all tensors that are missing and all of another shape or type;
    /// [`Error::Engine`] where the file cannot be read.
    pub fn read(path: &Path, config: Config) -> Result<Self, Error> {
        let file = SafetensorsFile::read(path)?;
        let mut reader =
            Reader { names: file.names().into_iter().collect(), file, missing: vec![], wrong: vec![] };
        let encoder = Self::of(&mut reader, config);
        let mut problems = reader.wrong;
        if !reader.missing.is_empty() {
            problems.insert(0, format!("it has no {}", reader.missing.join(", ")));
        }
        encoder.filter(|_| problems.is_empty()).ok_or_else(|| {
            Error::format(
                path,
                format!("not the weights that config.json describes: {}", problems.join("; ")),
            )
        })
    }

    /// `None` where the reader knows a problem; it has been asked for everything then too.
    fn of(reader: &mut Reader, config: Config) -> Option<Self> {
        let width = config.hidden_size;
        let words = reader.matrix("embeddings.word_embeddings.weight", config.vocab_size, width);
        let positions =
            reader.matrix("embeddings.position_embeddings.weight", config.max_position_embeddings, width);
        let types = reader.matrix("embeddings.token_type_embeddings.weight", config.type_vocab_size, width);
        let norm = reader.norm("embeddings.LayerNorm", width);
        // All are asked for before one that is missing ends it.
        let layers: Vec<_> =
            (0..config.num_hidden_layers).map(|layer| reader.layer(layer, &config)).collect();
        let (positions, types) = (elements(&positions?)?, elements(&types?)?);
        let places =
            positions.iter().zip(types[..width].iter().cycle()).map(|(place, of)| place + of).collect();
        Some(Self {
            words: words?,
            places,
            norm: norm?,
            layers: layers.into_iter().collect::<Option<_>>()?,
            config,
        })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The encoder for up to `batch` sequences of `length` tokens: from `ids` and `mask`, which is 1 at tokens and 0
    /// behind them, both i64 of batch x length, to `embedding`, batch x width.
    ///
    /// An embedding is the mean of what the last layer gives at the tokens, of length 1.
    ///
    /// # Errors
    /// [`ane_matmul::Error`] for more tokens than there are positions, and for sizes that overflow.
    pub fn graph(&self, batch: usize, length: usize) -> Result<Graph, ane_matmul::Error> {
        let (width, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let epsilon = self.config.layer_norm_eps;
        let mut g = GraphBuilder::new();
        let ids = g.input("ids", ElementType::I64, &[batch, length])?;
        let mask = g.input("mask", ElementType::I64, &[batch, length])?;

        let words = g.weights("words", &self.words)?;
        let words = g.named("embedded").gather(words, ids, 0)?;
        let places = self.places.iter().copied().take(length * width).collect();
        let places = g.constant("places", Array::new(&[length, width], places)?)?;
        let sum = g.add(words, places)?;
        let mut x = self.norm.add_to(&mut g, "embeddings.norm", sum, epsilon)?;

        let seen = g.cast(mask, ElementType::Bool)?;
        let seen = g.unsqueeze(seen, &[1, 2])?; // for every head and every token that looks
        for (index, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| format!("layer.{index}.{part}");
            let q = layer.query.add_to(&mut g, &name("query"), x)?;
            let k = layer.key.add_to(&mut g, &name("key"), x)?;
            let v = layer.value.add_to(&mut g, &name("value"), x)?;
            let attention = Attention::new().heads(heads, heads);
            let attended = g.named(name("attention")).attention(q, k, v, Some(seen), attention)?;
            let attended = layer.output.add_to(&mut g, &name("output"), attended)?;
            let sum = g.add(attended, x)?;
            x = layer.attention_norm.add_to(&mut g, &name("attention.norm"), sum, epsilon)?;
            let up = layer.up.add_to(&mut g, &name("up"), x)?;
            let up = g.named(name("gelu")).gelu(up)?;
            let down = layer.down.add_to(&mut g, &name("down"), up)?;
            let sum = g.add(down, x)?;
            x = layer.norm.add_to(&mut g, &name("norm"), sum, epsilon)?;
        }

        let weight = g.cast(mask, ElementType::F32)?;
        let weight = g.unsqueeze(weight, &[-1])?;
        let masked = g.mul(x, weight)?;
        let (sum, count) = (g.reduce_sum(masked, &[1], false)?, g.reduce_sum(weight, &[1], false)?);
        let mean = g.named("mean").div(sum, count)?;
        let length = g.reduce_l2(mean, &[-1], true)?;
        let embedding = g.named("normalised").div(mean, length)?;
        g.finish(&[("embedding", embedding)])?.variable_leading(&["ids", "mask"])
    }
}

impl Dense {
    fn add_to(&self, g: &mut GraphBuilder, name: &str, x: Value) -> Result<Value, ane_matmul::Error> {
        let bias = vector(g, format!("{name}.bias"), &self.bias)?;
        g.linear(name, x, &self.weights, Some(bias))
    }
}

impl Norm {
    fn add_to(
        &self,
        g: &mut GraphBuilder,
        name: &str,
        x: Value,
        epsilon: f32,
    ) -> Result<Value, ane_matmul::Error> {
        let scale = vector(g, format!("{name}.scale"), &self.scale)?;
        let bias = vector(g, format!("{name}.bias"), &self.bias)?;
        g.named(name).layer_normalization(x, scale, bias, epsilon)
    }
}

fn vector(g: &mut GraphBuilder, name: String, data: &[f32]) -> Result<Value, ane_matmul::Error> {
    g.constant(name, Array::new(&[data.len()], data.to_vec())?)
}

fn elements(weights: &Weights) -> Option<Vec<f32>> {
    match weights.view() {
        ane_matmul::AnyView::F32(view) => Some(view.data().to_vec()),
        _ => None,
    }
}

/// Takes weights from a file and remembers what is wrong with it, so that all of that is told at once.
struct Reader {
    file: SafetensorsFile,
    names: BTreeSet<String>,
    missing: Vec<String>,
    wrong: Vec<String>,
}

impl Reader {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Option<Weights> {
        if !self.names.contains(name) {
            self.missing.push(name.into());
            return None;
        }
        let weights = match self.file.weights_f32(name) {
            Ok(weights) => weights,
            Err(error) => {
                self.wrong.push(error.to_string());
                return None;
            }
        };
        let layout = weights.layout();
        if (layout.batch(), layout.rows(), layout.cols()) != (1, rows, cols) {
            self.wrong.push(format!("{name} is {layout} instead of {rows}x{cols}"));
            return None;
        }
        Some(weights)
    }

    fn vector(&mut self, name: &str, length: usize) -> Option<Vec<f32>> {
        elements(&self.matrix(name, 1, length)?)
    }

    /// As PyTorch stores it: outputs x inputs.
    fn dense(&mut self, name: &str, inputs: usize, outputs: usize) -> Option<Dense> {
        let weights = self.matrix(&format!("{name}.weight"), outputs, inputs);
        let bias = self.vector(&format!("{name}.bias"), outputs);
        Some(Dense { weights: weights?.transposed().ok()?, bias: bias? })
    }

    fn norm(&mut self, name: &str, width: usize) -> Option<Norm> {
        let scale = self.vector(&format!("{name}.weight"), width);
        let bias = self.vector(&format!("{name}.bias"), width);
        Some(Norm { scale: scale?, bias: bias? })
    }

    fn layer(&mut self, layer: usize, config: &Config) -> Option<Layer> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let [query, key, value, output] = ["self.query", "self.key", "self.value", "output.dense"]
            .map(|part| self.dense(&name(&format!("attention.{part}")), width, width));
        let attention_norm = self.norm(&name("attention.output.LayerNorm"), width);
        let up = self.dense(&name("intermediate.dense"), width, inner);
        let down = self.dense(&name("output.dense"), inner, width);
        let norm = self.norm(&name("output.LayerNorm"), width);
        Some(Layer {
            query: query?,
            key: key?,
            value: value?,
            output: output?,
            attention_norm: attention_norm?,
            up: up?,
            down: down?,
            norm: norm?,
        })
    }
}
