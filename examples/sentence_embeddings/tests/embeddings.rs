//! The program on a small model of random weights: what is padded, batched, truncated and refused.
//! `scripts/test-models` compares the real model with ONNX Runtime.
#![warn(clippy::pedantic)]

use std::path::Path;
use std::process::{Command, Output};

use ane_matmul::graph::Array;
use ane_matmul::{Tensor, npy};
use ane_matmul_example_embeddings::{Config, Embedder, Encoder, Options};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORDS: [&str; 10] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "eats", "bread", "##s", "."];
const WIDTH: usize = 12;
const INNER: usize = 20;
const POSITIONS: usize = 40;

const SENTENCES: [&str; 6] = [
    "A man eats breads.",
    "",
    "bread",
    "a man. a man. a man. a man eats",
    "man man man man man man",
    "eats . . a",
];

type Weights = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn config() -> Value {
    json!({
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": INNER, "vocab_size": WORDS.len(),
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    })
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).into(), id.into())).collect();
    json!({
        "version": "1.0",
        // Neither is to be heeded: the model's length is another, and batches are padded by themselves.
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 24}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    })
}

fn weights() -> Weights {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), WIDTH]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, WIDTH]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, WIDTH]),
    ];
    let mut pair = |name: String, weight: Vec<usize>| {
        shapes.push((format!("{name}.bias"), vec![weight[0]]));
        shapes.push((format!("{name}.weight"), weight));
    };
    pair("embeddings.LayerNorm".to_owned(), vec![WIDTH]);
    for layer in 0..2 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            pair(name(&format!("attention.{part}")), vec![WIDTH, WIDTH]);
        }
        pair(name("attention.output.LayerNorm"), vec![WIDTH]);
        pair(name("intermediate.dense"), vec![INNER, WIDTH]);
        pair(name("output.dense"), vec![WIDTH, INNER]);
        pair(name("output.LayerNorm"), vec![WIDTH]);
    }
    let mut seed = 0;
    let filled = shapes.into_iter().map(|(name, shape)| {
        seed += 1;
        let random = Tensor::random_normal_f32(1, shape.iter().product(), 0.5, seed).expect("a small tensor");
        let bytes = random.data().iter().flat_map(|x| x.to_le_bytes()).collect();
        (name, Dtype::F32, shape, bytes)
    });
    filled.collect()
}

fn model(config: &Value, weights: &Weights) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, value: &Value| {
        std::fs::write(directory.path().join(name), value.to_string()).expect("written");
    };
    write("config.json", config);
    write("tokenizer.json", &tokenizer());
    write("sentence_bert_config.json", &json!({"max_seq_length": 36}));
    let views = weights.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes of this shape"))
    });
    serialize_to_file(views, None, &directory.path().join("model.safetensors")).expect("written");
    directory
}

fn sentences() -> Vec<String> {
    SENTENCES.map(String::from).to_vec()
}

fn embed(directory: &Path, options: Options) -> Tensor<f32> {
    Embedder::open(directory, options).expect("a model").embed(&sentences(), |_| ()).expect("embeddings")
}

fn refused(directory: &Path, options: Options) -> String {
    Embedder::open(directory, options).expect_err("no model").to_string()
}

fn assert_close(one: &[f32], other: &[f32]) {
    assert_eq!(one.len(), other.len());
    let largest = one.iter().zip(other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-5 && !one.iter().any(|x| x.is_nan()), "{largest}: {one:?} and {other:?}");
}

#[test]
fn embeddings_are_those_of_each_sentence_by_itself_without_padding() {
    let directory = model(&config(), &weights());
    let config = Config::read(&directory.path().join("config.json")).expect("a configuration");
    let encoder = Encoder::read(&directory.path().join("model.safetensors"), config).expect("weights");
    let tokens: [&[i64]; 6] = [
        &[2, 4, 5, 6, 7, 8, 9, 3],
        &[2, 3],
        &[2, 7, 3],
        &[2, 4, 5, 9, 4, 5, 9, 4, 5, 9, 4, 5, 6, 3],
        &[2, 5, 5, 5, 5, 5, 5, 3],
        &[2, 6, 9, 9, 4, 3],
    ];
    for batch in [1, 4, 32] {
        let embeddings = embed(directory.path(), Options { batch, ..Options::default() });
        assert_eq!((embeddings.rows(), embeddings.cols()), (6, WIDTH));
        for (tokens, embedding) in tokens.iter().zip(embeddings.data().chunks_exact(WIDTH)) {
            let dims = [1, tokens.len()];
            let ids = Array::new(&dims, tokens.to_vec()).expect("ids");
            let mask = Array::new(&dims, vec![1i64; tokens.len()]).expect("a mask");
            let graph = encoder.graph(1, tokens.len()).expect("a graph");
            let expected = graph.interpret_f64(&[&ids, &mask]).expect("an embedding");
            #[allow(clippy::cast_possible_truncation, reason = "to compare")]
            let expected: Vec<_> =
                expected[0].data::<f64>().expect("f64").iter().map(|x| *x as f32).collect();
            assert_close(embedding, &expected);
            let length: f32 = embedding.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
}

#[test]
fn a_long_sentence_is_cut_before_its_last_token() {
    let directory = model(&config(), &weights());
    let mut embedder =
        Embedder::open(directory.path(), Options { max_length: Some(5), ..Options::default() })
            .expect("a model");
    let pair = ["a man eats bread.", "a man eats"].map(String::from);
    let embeddings = embedder.embed(&pair, |_| ()).expect("embeddings");
    assert_eq!((embedder.max_length(), embedder.truncated()), (5, 1));
    assert_close(&embeddings.data()[..WIDTH], &embeddings.data()[WIDTH..]);
    let lengths = |max_length| {
        let options = Options { max_length, ..Options::default() };
        Embedder::open(directory.path(), options).map(|embedder| embedder.max_length())
    };
    assert_eq!(lengths(None).expect("the model's"), 36);
    assert_eq!(lengths(Some(POSITIONS)).expect("all"), POSITIONS);
    assert!(lengths(Some(POSITIONS + 1)).expect_err("too many").to_string().contains("40 positions, not 41"));
    assert!(lengths(Some(2)).expect_err("too few").to_string().contains("at most 2 tokens"));
    let long = vec!["man ".repeat(60)];
    let mut embedder = Embedder::open(directory.path(), Options::default()).expect("a model");
    embedder.embed(&long, |_| ()).expect("an embedding");
    assert_eq!(embedder.compiled().0, [36]);
}

#[test]
fn everything_that_is_wrong_with_the_weights_is_named() {
    let mut weights = weights();
    weights.retain(|(name, ..)| {
        !name.contains("0.attention.self.key") && name != "encoder.layer.1.output.dense.bias"
    });
    for (name, dtype, shape, bytes) in &mut weights {
        match name.as_str() {
            "encoder.layer.1.intermediate.dense.weight" => *shape = vec![WIDTH, INNER],
            "embeddings.LayerNorm.bias" => {
                *shape = vec![WIDTH - 1];
                bytes.truncate(4 * (WIDTH - 1));
            }
            "encoder.layer.0.output.LayerNorm.weight" => *dtype = Dtype::I32,
            _ => {}
        }
    }
    let problem = refused(model(&config(), &weights).path(), Options::default());
    for part in [
        "model.safetensors: not the weights that config.json describes",
        "it has no encoder.layer.0.attention.self.key.weight, encoder.layer.0.attention.self.key.bias, \
         encoder.layer.1.output.dense.bias",
        "encoder.layer.1.intermediate.dense.weight is 12x20 instead of 20x12",
        "embeddings.LayerNorm.bias is 1x11 instead of 1x12",
        "`encoder.layer.0.output.LayerNorm.weight` is of type I32",
    ] {
        assert!(problem.contains(part), "{part}: {problem}");
    }
}

#[test]
fn models_of_other_kinds_are_refused() {
    for (key, value, expected) in [
        ("model_type", json!("roberta"), "model_type is `roberta`"),
        ("hidden_act", json!("relu"), "hidden_act is `relu`"),
        ("num_attention_heads", json!(5), "no 5 equal heads"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("vocab_size", json!(3), "it has 10 tokens"),
        ("hidden_size", json!("wide"), "no configuration"),
    ] {
        let mut config = config();
        config[key] = value;
        let problem = refused(model(&config, &weights()).path(), Options::default());
        assert!(problem.contains(expected), "{problem}");
    }
    let directory = model(&config(), &weights());
    let pooling = directory.path().join("1_Pooling");
    std::fs::create_dir(&pooling).expect("a directory");
    let cls = json!({"word_embedding_dimension": 12, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false});
    std::fs::write(pooling.join("config.json"), cls.to_string()).expect("written");
    let problem = refused(directory.path(), Options::default());
    assert!(problem.contains("it asks for pooling_mode_cls_token"), "{problem}");
    assert!(refused(directory.path(), Options { batch: 0, ..Options::default() }).contains("at least one"));
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ane-matmul-example-embeddings"))
        .args(arguments)
        .output()
        .expect("it runs")
}

#[test]
fn the_program_prints_similarities_and_writes_embeddings() {
    let directory = model(&config(), &weights());
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (model, lines, written) = (path(""), path("lines.txt"), path("embeddings.npy"));
    std::fs::write(&lines, SENTENCES.join("\n") + "\n").expect("written");
    let arguments =
        ["--model", &model, "--file", &lines, "--output", &written, "--batch", "4", "--threads", "1"];
    let output = program(&arguments);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("sentences/s"));
    let written = npy::read(&written).and_then(npy::NpyTensor::into_f32).expect("embeddings");
    let expected = embed(directory.path(), Options { batch: 4, ..Options::default() });
    assert_close(written.data(), expected.data());

    let output = program(&["--model", &model, "bread", "eats . . a", "a man eats"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.lines().count(), 3, "{output:?}");
    let rows = expected.data().chunks_exact(WIDTH).collect::<Vec<_>>();
    let cosine: f32 = rows[2].iter().zip(rows[5]).map(|(x, y)| x * y).sum();
    let printed = text.split_whitespace().next().and_then(|number| number.parse().ok());
    assert_close(&[printed.expect("a number")], &[cosine]);
}

#[test]
fn the_program_says_what_a_directory_lacks() {
    let directory = tempfile::tempdir().expect("a directory");
    let model = directory.path().to_string_lossy();
    let output = program(&["--model", &model, "one", "two"]);
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(problem.contains("no config.json, no model.safetensors, no tokenizer.json"), "{problem}");
    assert!(problem.contains("scripts/models minilm"), "{problem}");
    std::fs::write(directory.path().join("empty"), "").expect("written");
    for arguments in [&["--model", &model][..], &["--model", &model, "--file", "lines", "one"]] {
        assert_eq!(program(arguments).status.code(), Some(2));
    }
}
