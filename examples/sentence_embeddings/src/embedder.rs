//! From sentences to vectors: tokens, batches of about the same length, and a compiled encoder for each length.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ane_matmul::graph::{Array, GraphExecutor};
use ane_matmul::{BackendId, CompileOptions, Tensor};
use serde::Deserialize;
use tokenizers::{PostProcessor, Tokenizer};

use crate::encoder::{Config, Encoder};
use crate::error::{Error, read};

/// Encoders are compiled for multiples of this many tokens.
const STEP: usize = 32;

/// How sentences are embedded.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most sentences of a run.
    pub batch: usize,
    /// The most tokens of a sentence, in place of what the model's files say.
    pub max_length: Option<usize>,
    /// With how many threads, among others.
    pub compile: CompileOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch: 32, max_length: None, compile: CompileOptions::default() }
    }
}

/// A sentence as the encoder takes it.
#[derive(Debug)]
struct Tokens {
    ids: Vec<i64>,
    truncated: bool,
}

/// A model that makes vectors of sentences.
#[derive(Debug)]
pub struct Embedder {
    tokenizer: Tokenizer,
    encoder: Encoder,
    options: Options,
    max_length: usize,
    /// By the length they are compiled for.
    executors: BTreeMap<usize, GraphExecutor>,
    compile_time: Duration,
    truncated: usize,
}

impl Embedder {
    /// Reads the model of a directory: `config.json`, `model.safetensors` and `tokenizer.json`. Where
    /// `sentence-transformers` left them, `sentence_bert_config.json` says how long a sentence may be, and
    /// `1_Pooling/config.json` must ask for the mean, which is what is computed.
    ///
    /// # Errors
    /// [`Error::NoModel`] that names the files that are not there; [`Error::Io`] and [`Error::Format`] for those that
    /// are of no use; [`Error::Sentences`] for options that cannot be met.
    pub fn open(directory: &Path, options: Options) -> Result<Self, Error> {
        if options.batch == 0 {
            return Err(Error::Sentences("a batch has at least one sentence".into()));
        }
        let files = ["config.json", "model.safetensors", "tokenizer.json"];
        let missing: Vec<_> = files.into_iter().filter(|file| !directory.join(file).is_file()).collect();
        if !missing.is_empty() {
            let missing = missing.into_iter().map(String::from).collect();
            return Err(Error::NoModel { directory: directory.into(), missing });
        }
        let [config, weights, tokenizer] = files.map(|file| directory.join(file));
        check_pooling(&directory.join("1_Pooling").join("config.json"))?;
        let config = Config::read(&config)?;
        let max_length = max_length(directory, &config, options.max_length)?;
        let tokenizer = read_tokenizer(&tokenizer, &config, max_length)?;
        Ok(Self {
            encoder: Encoder::read(&weights, config)?,
            tokenizer,
            options,
            max_length,
            executors: BTreeMap::new(),
            compile_time: Duration::ZERO,
            truncated: 0,
        })
    }

    /// The most tokens of a sentence; what is longer is truncated as `tokenizer.json` says.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// How many of the sentences so far were longer.
    #[must_use]
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// The lengths for which the encoder was compiled so far, and how long that took.
    #[must_use]
    pub fn compiled(&self) -> (Vec<usize>, Duration) {
        (self.executors.keys().copied().collect(), self.compile_time)
    }

    /// A row for each sentence, of length 1: the dot product of two of them is the cosine of their angle.
    ///
    /// Sentences of about the same length run together. `progress` is told how many more are done.
    ///
    /// # Errors
    /// [`Error::Sentences`] for one of which the tokenizer makes nothing; [`Error::Engine`].
    pub fn embed(
        &mut self,
        sentences: &[String],
        mut progress: impl FnMut(usize),
    ) -> Result<Tensor<f32>, Error> {
        let tokens = sentences.iter().map(|sentence| self.tokens(sentence)).collect::<Result<Vec<_>, _>>()?;
        self.truncated += tokens.iter().filter(|tokens| tokens.truncated).count();
        // The longest first: what takes the most memory does so before others took their time.
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(tokens[index].ids.len()));
        let width = self.encoder.config().hidden_size;
        let mut embeddings = Tensor::zeros(sentences.len(), width)?;
        let padded: Vec<_> = tokens.iter().map(|tokens| self.padded(tokens.ids.len())).collect();
        // A short sentence in a batch of long ones would take as long as they.
        let alike = order.chunk_by(|&one, &other| padded[one] == padded[other]);
        let most = self.options.batch;
        for batch in alike.flat_map(|alike| alike.chunks(most)) {
            let rows: Vec<_> = batch.iter().map(|&index| tokens[index].ids.as_slice()).collect();
            let embedded = self.run(&rows, padded[batch[0]])?;
            let embedded = embedded.data::<f32>().unwrap_or_default().chunks_exact(width);
            for (index, row) in batch.iter().zip(embedded) {
                embeddings.data_mut()[index * width..][..width].copy_from_slice(row);
            }
            progress(batch.len());
        }
        Ok(embeddings)
    }

    fn tokens(&self, sentence: &str) -> Result<Tokens, Error> {
        let problem = |problem: String| Error::Sentences(format!("`{sentence}`: {problem}"));
        let encoding =
            self.tokenizer.encode_fast(sentence, true).map_err(|error| problem(error.to_string()))?;
        if encoding.get_ids().is_empty() {
            return Err(problem("the tokenizer makes no tokens of it".into()));
        }
        Ok(Tokens {
            ids: encoding.get_ids().iter().copied().map(i64::from).collect(),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }

    /// The length for which a sentence of so many tokens is run.
    fn padded(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(STEP).min(self.max_length)
    }

    /// batch x width, of up to a batch of sentences, padded to a length.
    fn run(&mut self, rows: &[&[i64]], length: usize) -> Result<Array, Error> {
        let mut ids = vec![0; rows.len() * length];
        let mut mask = ids.clone();
        for ((row, ids), mask) in
            rows.iter().zip(ids.chunks_exact_mut(length)).zip(mask.chunks_exact_mut(length))
        {
            ids[..row.len()].copy_from_slice(row);
            mask[..row.len()].fill(1);
        }
        let (dims, width) = ([rows.len(), length], self.encoder.config().hidden_size);
        let (ids, mask) = (Array::new(&dims, ids)?, Array::new(&dims, mask)?);
        let mut embeddings = Array::new(&[rows.len(), width], vec![0f32; rows.len() * width])?;
        self.executor(length)?.run(&[&ids, &mask], &mut [&mut embeddings])?;
        Ok(embeddings)
    }

    /// The encoder for a length, compiled when it is first needed.
    fn executor(&mut self, length: usize) -> Result<&mut GraphExecutor, Error> {
        use std::collections::btree_map::Entry;
        match self.executors.entry(length) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let start = Instant::now();
                let graph = self.encoder.graph(self.options.batch, length)?;
                let compiled = graph.compile_with(&BackendId::CPU, &self.options.compile)?;
                self.compile_time += start.elapsed();
                Ok(entry.insert(compiled.executor()?))
            }
        }
    }
}

/// The most tokens: as asked for, as `sentence_bert_config.json` says if there is one, or as many as have a position.
fn max_length(directory: &Path, config: &Config, asked: Option<usize>) -> Result<usize, Error> {
    #[derive(Deserialize)]
    struct Sentences {
        max_seq_length: Option<usize>,
    }
    let positions = config.max_position_embeddings;
    if let Some(asked) = asked {
        if asked > positions {
            return Err(Error::Sentences(format!("the model has {positions} positions, not {asked}")));
        }
        return Ok(asked);
    }
    let path = directory.join("sentence_bert_config.json");
    if !path.exists() {
        return Ok(positions);
    }
    let sentences: Sentences =
        serde_json::from_str(&read(&path)?).map_err(|error| Error::format(&path, error.to_string()))?;
    Ok(sentences.max_seq_length.unwrap_or(positions).min(positions))
}

/// Without padding, which batches add, and with the direction and strategy of its own truncation.
fn read_tokenizer(path: &Path, config: &Config, max_length: usize) -> Result<Tokenizer, Error> {
    let problem = |problem: String| Error::format(path, problem);
    let mut tokenizer =
        Tokenizer::from_file(path).map_err(|error| problem(format!("no tokenizer: {error}")))?;
    let size = tokenizer.get_vocab_size(true);
    if size > config.vocab_size {
        let rows = config.vocab_size;
        return Err(problem(format!(
            "it has {size} tokens, and the model, by config.json, {rows}: they do not belong together"
        )));
    }
    let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if max_length <= added {
        let problem =
            format!("sentences of at most {max_length} tokens: {added} of them go to the tokenizer's own");
        return Err(Error::Sentences(problem));
    }
    let mut truncation = tokenizer.get_truncation().cloned().unwrap_or_default();
    truncation.max_length = max_length;
    truncation.stride = 0;
    tokenizer.with_truncation(Some(truncation)).map_err(|error| problem(error.to_string()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// An error where the model wants something other than the mean.
fn check_pooling(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    let modes: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&read(path)?).map_err(|error| Error::format(path, error.to_string()))?;
    let wanted =
        |(name, value): &(&String, &serde_json::Value)| name.starts_with("pooling_mode_") && **value == true;
    let wanted: Vec<_> = modes.iter().filter(wanted).map(|(name, _)| name.as_str()).collect();
    if wanted == ["pooling_mode_mean_tokens"] {
        return Ok(());
    }
    Err(Error::format(path, format!("it asks for {}; this program knows the mean", wanted.join(" and "))))
}
