"""Times whole models beside other runtimes; `scripts/bench-models` prepares what it needs.

Every candidate is a process of its own, and they run in turns: what slows the machine down slows all of them. Its result
is compared with one in float64 before anything is timed.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

import minilm

# Sequences and tokens of each.
CASES = [(32, 128), (8, 128), (1, 128), (1, 512)]
THREADS = [1, 2]
PEERS = ["onnxruntime", "openvino"]
# Of the largest element. f32 gives some 1e-6.
BOUND = 1e-4


class Candidate:
    """A process that is told how often to run."""

    def __init__(self, name, command):
        self.name, self.times = name, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}")
        return line

    def run(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        times = [int(word) for word in self.line().split()]
        assert len(times) == count, f"{self.name}: {len(times)} of {count} times"
        return times


def measure(candidates, turns, seconds):
    """In turns: each runs for about so many seconds, and what came before has fallen silent."""
    for candidate in candidates:
        candidate.count = max(1, min(200, int(seconds * 1e9 / min(candidate.run(2)))))
    for turn in range(turns):
        for candidate in candidates[turn % len(candidates) :] + candidates[: turn % len(candidates)]:
            time.sleep(0.1)
            # Not counted: threads that wake may share a core until the system moves one of them.
            candidate.run(max(1, candidate.count // 5))
            candidate.times += candidate.run(candidate.count)


def machine(own):
    cpu = {}
    if Path("/proc/cpuinfo").exists():
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        cpu = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in first.splitlines())
    flags = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "asimd", "asimddp", "bf16"}
    return {
        "cpu": cpu.get("model name", platform.processor()),
        # Virtual machines hide names.
        "cpu_family_and_model": [cpu.get("cpu family"), cpu.get("model")],
        "instructions": sorted(flags & set(cpu.get("flags", cpu.get("Features", "")).split())),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "versions": {"ane-matmul": own} | {peer: importlib.metadata.version(peer) for peer in PEERS},
    }


def case(arguments, work, batch, sequence, threads):
    # A few sequences, repeated: the reference needs each of them once.
    random = np.random.default_rng(batch * sequence)
    distinct = random.integers(1000, 30000, (min(batch, 2), sequence))
    ids = np.resize(distinct, (batch, sequence))
    (work / "ids.json").write_text(json.dumps(ids.tolist()))
    model = work / f"{batch}x{sequence}.onnx"
    if not model.exists():
        onnx.save(minilm.build(arguments.model, batch, sequence, hidden=False), model)
    expected = np.resize(minilm.reference(arguments.model, distinct), (batch, 384))

    rest = [work / "ids.json", str(threads)]
    commands = {"ane-matmul": [arguments.own, arguments.model, *rest]}
    peer = Path(__file__).with_name("peer.py")
    commands |= {name: [sys.executable, "-B", peer, name, model, *rest] for name in PEERS}
    candidates, errors = [], {}
    try:
        for name, command in commands.items():
            output = work / f"{name}.npy"
            candidate = Candidate(name, [*command, output])
            candidates.append(candidate)
            assert candidate.line() == "ready\n", name
            errors[name] = float(np.abs(np.load(output) - expected).max() / np.abs(expected).max())
            if not errors[name] <= BOUND:
                sys.exit(f"{name}, {batch}x{sequence}: an error of {errors[name]:.2e} of the largest element")
        turns, seconds = (5, 0.5) if arguments.quick else (15, 1.0)
        measure(candidates, turns, seconds)
    finally:
        for candidate in candidates:
            candidate.close()
    return [
        {
            "candidate": candidate.name,
            "model": "minilm",
            "precision": "f32",
            "batch": batch,
            "seq": sequence,
            "threads": threads,
            "median_ns": int(statistics.median(candidate.times)),
            "min_ns": min(candidate.times),
            "max_rel_error": errors[candidate.name],
            "runs": len(candidate.times),
        }
        for candidate in candidates
    ]


def cases(text):
    """What `--cases` says: pairs of sequences and tokens."""
    pairs = [tuple(map(int, shape.split("x"))) for shape in text.split(",")]
    if not all(len(pair) == 2 and min(pair) > 0 for pair in pairs):
        raise ValueError(text)
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the directory of all-MiniLM-L6-v2")
    parser.add_argument("--own", type=Path, required=True, help="the program ane-matmul-bench-models")
    parser.add_argument("--own-version", required=True)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--json", type=Path, help="writes the figures")
    parser.add_argument("--cases", type=cases, help="such as 32x128,1x128", default=CASES)
    arguments = parser.parse_args()
    named = machine(arguments.own_version)
    print(json.dumps(named, indent=1))
    print(f"\n{'sequences':<10} {'threads':>7}  {'candidate':<14} {'median ms':>10} {'least ms':>10} {'error':>9}  runs")
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-models") as work:
        for batch, sequence in arguments.cases:
            for threads in [count for count in THREADS if count <= named["cpus"]]:
                for result in case(arguments, Path(work), batch, sequence, threads):
                    results.append(result)
                    print(
                        f"{f'{batch}x{sequence}':<10} {threads:>7}  {result['candidate']:<14} {result['median_ns'] / 1e6:>10.2f} "
                        f"{result['min_ns'] / 1e6:>10.2f} {result['max_rel_error']:>9.1e}  {result['runs']}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": named, "results": results}, indent=1) + "\n")


main()
