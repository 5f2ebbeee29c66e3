"""Compares embeddings with those of ONNX Runtime, each sentence by itself and without padding.

    compare_embeddings.py DIRECTORY SENTENCES.txt EMBEDDINGS.npy [--max-length N]

Fails where an element differs by more than 1e-5. Embeddings have length 1.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import minilm

BOUND = 1e-5

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("directory", type=Path)
parser.add_argument("sentences", type=Path)
parser.add_argument("embeddings", type=Path)
parser.add_argument("--max-length", type=int)
arguments = parser.parse_args()

sentences = arguments.sentences.read_text(encoding="utf-8").split("\n")[:-1]
embeddings = np.load(arguments.embeddings)
limit = arguments.max_length or json.loads((arguments.directory / "sentence_bert_config.json").read_text())["max_seq_length"]
tokenizer = Tokenizer.from_file(str(arguments.directory / "tokenizer.json"))
tokenizer.enable_truncation(limit)
tokenizer.no_padding()
session = onnxruntime.InferenceSession(
    minilm.build(arguments.directory).SerializeToString(), providers=["CPUExecutionProvider"]
)
expected, lengths = [], []
for sentence in sentences:
    ids = np.array([tokenizer.encode(sentence).ids])
    lengths.append(ids.shape[1])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    expected.append(session.run(["sentence_embedding"], feed)[0][0])
expected = np.array(expected)
assert embeddings.shape == expected.shape, f"{embeddings.shape} instead of {expected.shape}"
assert embeddings.dtype == np.float32, embeddings.dtype
difference = np.abs(embeddings - expected)
worst = int(difference.max(axis=1).argmax())
print(
    f"{len(sentences)} sentences of {min(lengths)} to {max(lengths)} tokens: the largest difference from ONNX Runtime "
    f"{onnxruntime.__version__} is {difference.max():.2e} (line {worst + 1}), of elements up to {np.abs(expected).max():.2f}"
)
# NaN is not within it either.
assert difference.max() <= BOUND, f"more than {BOUND}"
