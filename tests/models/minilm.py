"""all-MiniLM-L6-v2 as an ONNX model, in the operators that exporters of PyTorch write at opset 14: LayerNormalization and
GELU in their parts, the split into heads as Reshape and Transpose, positions by the Shape of the input.

    minilm.py DIRECTORY MODEL.onnx [--batch N --sequence N]

DIRECTORY holds config.json and model.safetensors. Without sizes the dimensions are named and free.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 14


def read_safetensors(path):
    """The tensors of a file by name; those of f32 and i64."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    types = {"F32": np.float32, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], types[entry["dtype"]]).reshape(entry["shape"])
    return tensors


class Builder:
    """Nodes and initializers, with names like an exporter's."""

    def __init__(self):
        self.nodes, self.initializers, self.named = [], [], set()

    def add(self, operator, *inputs, **attributes):
        name = f"/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name + "_output"], name=name, **attributes))
        return name + "_output"

    def initializer(self, name, array):
        if name not in self.named:
            self.named.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, value, dtype=np.float32):
        """A node of its own, as exporters write them."""
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def norm(self, x, scale, bias, epsilon):
        mean = self.add("ReduceMean", x, axes=[-1])
        centred = self.add("Sub", x, mean)
        squared = self.add("Pow", centred, self.constant(2.0))
        variance = self.add("ReduceMean", squared, axes=[-1])
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant(epsilon)))
        normal = self.add("Div", centred, deviation)
        return self.add("Add", self.add("Mul", normal, scale), bias)

    def gelu(self, x):
        erf = self.add("Erf", self.add("Div", x, self.constant(np.sqrt(2.0))))
        product = self.add("Mul", x, self.add("Add", erf, self.constant(1.0)))
        return self.add("Mul", product, self.constant(0.5))


def reference(directory, ids):
    """The embeddings of sequences without padding, computed in float64."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    weights = {name: x.astype(np.float64) for name, x in read_safetensors(directory / "model.safetensors").items()}
    heads = config["num_attention_heads"]
    erf = np.vectorize(math.erf)

    def dense(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    ids = np.asarray(ids)
    batch, length = ids.shape
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.position_embeddings.weight"][:length])
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            dense(f"{name}.attention.self.{part}", x).reshape(batch, length, heads, -1).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = scores / scores.sum(-1, keepdims=True) @ v
        attended = attended.swapaxes(1, 2).reshape(batch, length, -1)
        x = norm(f"{name}.attention.output.LayerNorm", dense(f"{name}.attention.output.dense", attended) + x)
        inner = dense(f"{name}.intermediate.dense", x)
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = norm(f"{name}.output.LayerNorm", dense(f"{name}.output.dense", inner) + x)
    mean = x.mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def build(directory, batch="batch", sequence="sequence", hidden=True):
    """The model: from input_ids, attention_mask and token_type_ids to sentence_embedding, and last_hidden_state unless
    `hidden` is false."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    weights = read_safetensors(directory / "model.safetensors")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    b = Builder()

    def weight(name):
        return b.initializer(name, weights[name])

    def dense(name, x):
        # Exporters fold the transpose of a linear layer and put the bias first.
        matrix = b.initializer(f"{name}.MatMul", weights[f"{name}.weight"].T)
        return b.add("Add", weight(f"{name}.bias"), b.add("MatMul", x, matrix))

    def norm(name, x):
        return b.norm(x, weight(f"{name}.weight"), weight(f"{name}.bias"), epsilon)

    length = b.add("Gather", b.add("Shape", "input_ids"), b.constant(1, np.int64), axis=0)
    ends = b.add("Unsqueeze", length, b.constant([0], np.int64))
    positions = b.initializer("embeddings.position_ids", np.arange(config["max_position_embeddings"])[None])
    positions = b.add("Slice", positions, b.constant([0], np.int64), ends, b.constant([1], np.int64))
    words = b.add("Gather", weight("embeddings.word_embeddings.weight"), "input_ids")
    types = b.add("Gather", weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    places = b.add("Gather", weight("embeddings.position_embeddings.weight"), positions)
    x = norm("embeddings.LayerNorm", b.add("Add", b.add("Add", words, types), places))

    mask = b.add("Unsqueeze", b.add("Unsqueeze", "attention_mask", b.constant([1], np.int64)), b.constant([2], np.int64))
    mask = b.add("Sub", b.constant(1.0), b.add("Cast", mask, to=TensorProto.FLOAT))
    mask = b.add("Mul", mask, b.constant(np.finfo(np.float32).min))
    split = [0, 0, heads, width // heads]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"

        def projected(part, order):
            y = dense(f"{name}.attention.self.{part}", x)
            return b.add("Transpose", b.add("Reshape", y, b.constant(split, np.int64)), perm=order)

        q, k, v = projected("query", [0, 2, 1, 3]), projected("key", [0, 2, 3, 1]), projected("value", [0, 2, 1, 3])
        scores = b.add("Div", b.add("MatMul", q, k), b.constant(np.sqrt(width // heads)))
        attention = b.add("Softmax", b.add("Add", scores, mask), axis=-1)
        attended = b.add("Transpose", b.add("MatMul", attention, v), perm=[0, 2, 1, 3])
        attended = b.add("Reshape", attended, b.constant([0, 0, width], np.int64))
        attended = b.add("Add", dense(f"{name}.attention.output.dense", attended), x)
        x = norm(f"{name}.attention.output.LayerNorm", attended)
        inner = b.gelu(dense(f"{name}.intermediate.dense", x))
        x = norm(f"{name}.output.LayerNorm", b.add("Add", dense(f"{name}.output.dense", inner), x))
    if hidden:
        b.add("Identity", x)
        b.nodes[-1].output[0] = "last_hidden_state"

    # As sentence-transformers pools and normalises.
    seen = b.add("Unsqueeze", "attention_mask", b.constant([-1], np.int64))
    seen = b.add("Cast", b.add("Expand", seen, b.add("Shape", x)), to=TensorProto.FLOAT)
    axes = b.constant([1], np.int64)
    total = b.add("ReduceSum", b.add("Mul", x, seen), axes, keepdims=0)
    count = b.add("ReduceSum", seen, axes, keepdims=0)
    count = b.add("Clip", count, b.constant(1e-9))
    mean = b.add("Div", total, count)
    norm_of = b.add("Clip", b.add("ReduceL2", mean, axes=[1], keepdims=1), b.constant(1e-12))
    b.add("Div", mean, b.add("Expand", norm_of, b.add("Shape", mean)))
    b.nodes[-1].output[0] = "sentence_embedding"

    def value(name, kind, *dims):
        return helper.make_tensor_value_info(name, kind, dims)

    inputs = [value(name, TensorProto.INT64, batch, sequence) for name in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [value("sentence_embedding", TensorProto.FLOAT, batch, width)]
    if hidden:
        outputs.insert(0, value("last_hidden_state", TensorProto.FLOAT, batch, sequence, width))
    graph = helper.make_graph(b.nodes, "main_graph", inputs, outputs, b.initializers)
    # The IR of this opset's time, so that older runtimes read it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--sequence", type=int)
    arguments = parser.parse_args()
    onnx.save(build(arguments.directory, arguments.batch or "batch", arguments.sequence or "sequence"), arguments.model)
