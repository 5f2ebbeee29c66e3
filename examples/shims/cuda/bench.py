"""Times the CUDA shim beside torch, on the same GPU: `make bench`, or

    python3 bench.py ./bench [SECONDS]

Medians in microseconds: by the wall, of single products that are waited for, and by the device's own clock (of torch:
CUDA events). Host memory is plain: both copy operands to the device, and the result back.
SPDX-License-Identifier: MIT OR Apache-2.0
"""

import statistics
import subprocess
import sys
import time

import torch

SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 0.3
TYPES = {"f32": torch.float32, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def timed(run):
    """Medians by the wall and by events."""
    wall, own = [], []
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    until = time.perf_counter() + SECONDS
    while len(wall) < 5 or (time.perf_counter() < until and len(wall) < 2000):
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall.append((time.perf_counter() - begin) * 1e6)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        own.append(start.elapsed_time(end) * 1e3)
    return statistics.median(wall), statistics.median(own)


def torch_of(name):
    """What torch does for a name of bench.cpp's, or None."""
    parts = name.split(",")
    kind, (m, n, k) = parts[0], [int(x) for x in parts[1].split("x")]
    where = parts[2] if len(parts) > 2 else ""
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    if where.startswith("queue") or where == "pinned":
        return None
    if kind in ("i8", "i8-rows"):
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda")
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda").t()
        if kind == "i8-rows":
            b = b.contiguous()
        return lambda: torch._int_mm(a, b)
    if kind == "bf16-bias-gelu":
        layer = torch.nn.Linear(k, n, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
        x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
        return lambda: torch.nn.functional.gelu(layer(x))
    if kind.startswith("bf16-"):
        a = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
        w = torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        return lambda: torch.nn.functional.linear(a, w)
    if kind not in TYPES:
        return None
    a = torch.randn(m, k, dtype=TYPES[kind])
    b = torch.randn(k, n, dtype=TYPES[kind])
    c = torch.empty(m, n, dtype=TYPES[kind])
    if where == "host":
        return lambda: c.copy_(a.cuda() @ b.cuda())
    a, b, c = a.cuda(), b.cuda(), c.cuda()
    return lambda: torch.mm(a, b, out=c)


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
    shim = subprocess.run([sys.argv[1], str(SECONDS)], check=True, capture_output=True, text=True).stdout
    print(f"{'':<40}{'shim':>10}{'device':>10}{'torch':>10}{'device':>10}{'ratio':>8}{'device':>8}")
    for line in shim.splitlines():
        name, wall, own = line.split()
        wall, own = float(wall), float(own)
        run = torch_of(name) if "," in name else None
        if run is None:
            print(f"{name:<40}{wall:>10.1f}{own:>10.1f}", flush=True)
            continue
        torch_wall, torch_own = timed(run)
        ratios = f"{wall / torch_wall:>8.3f}{own / torch_own:>8.3f}"
        print(f"{name:<40}{wall:>10.1f}{own:>10.1f}{torch_wall:>10.1f}{torch_own:>10.1f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
