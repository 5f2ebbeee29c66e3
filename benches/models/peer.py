"""A runtime as a candidate of `scripts/bench-models`.

    peer.py onnxruntime|openvino MODEL.onnx IDS.json THREADS OUTPUT.npy

Loads the model, runs it once, writes the result, and prints `ready`. Then for each line on standard input, a number, it
runs as many times and prints how many nanoseconds each took.
"""

import json
import sys
import time

import numpy as np


def onnxruntime_run(model, feed, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["sentence_embedding"], feed)[0]


def openvino_run(model, feed, threads):
    import openvino

    # f32 by name: where the processor has bf16, OpenVINO would take that. One request uses all threads.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    for name, array in feed.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run():
        request.infer()
        return request.get_output_tensor(0).data

    return run


runtime, model, ids, threads, output = sys.argv[1:]
with open(ids, encoding="utf-8") as file:
    ids = np.array(json.load(file), np.int64)
feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
run = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}[runtime](model, feed, int(threads))
np.save(output, run())
print("ready", flush=True)
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    print(*times, flush=True)
