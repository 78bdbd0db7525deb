"""Measures Regard's row operations and PyTorch's in turns, on the same inputs, forward and backward.

    python bench/peers/rows_peer.py --output bench/records/rows.json
    python bench/peers/rows_peer.py --rows gelu,linear --dtypes f32 --runs 2       # a part of it

Before a row is timed, the results of both are compared with PyTorch's in float64. Backward is the backward pass alone.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import record as records
from peers import PACKAGES, RUSTFLAGS, ChildPeer, build
from torch_peer import SHORTEST, TOLERANCE, TYPES, at_least, error, names, say
from training_peer import header

PACKAGES["rows"], RUSTFLAGS["rows"] = "rows-runner", ""  # built as it is shipped
LARGE = 512 << 20  # bytes that a copy far larger than the caches moves
EPSILON = 1e-5
SPREAD = 1 / 16  # of the weights of linear maps, so that outputs are about as large as inputs


@dataclass(frozen=True)
class Row:
    """An operation on `[rows, width]`; `out` is outputs, tokens or vocabulary, see rows-runner/src/ops.rs."""

    op: str
    rows: int
    width: int
    out: int = 0

    def elements(self, step):
        """Values that a call has to read and write at least; None where arithmetic decides."""
        x, table = self.rows * self.width, self.out * self.width
        if self.op == "embedding":
            return x + (min(x, table) if step == "forward" else table)
        moved = {"swiglu": (3, 5), "cross_entropy": (1, 2), "rotary": (2, 2)}
        arrays = moved.get(self.op, (2, 3))[step == "backward"]
        return None if self.op in LINEAR else arrays * x

    def flops(self, step):
        """Operations of the products; None without any."""
        products = 1 if step == "forward" else 2
        return 2 * products * self.rows * self.width * self.out if self.op in LINEAR else None


LINEAR = ("linear", "linear_gelu")
ROWS = [
    *(Row(op, 3072, 512) for op in ("gelu", "gelu_tanh", "silu", "swiglu")),
    *(Row(op, 12 * 4 * 256, 256) for op in ("softmax", "log_softmax", "cross_entropy")),
    *(Row(op, 4096, 384) for op in ("layer_norm", "rms_norm")),
    Row("rotary", 12 * 4 * 256, 128, 256),
    Row("embedding", 12288, 128, 256),
    Row("embedding", 12288, 128, 32768),
    *(Row(op, *shape) for op in LINEAR for shape in ((3072, 128, 512), (4000, 384, 1536))),
]
OPERATIONS = tuple(dict.fromkeys(row.op for row in ROWS))


def hashed(seed, length):
    """The hashes of rows-runner/src/values.rs."""
    x = np.arange(length, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def normal(seed, dtype, *shape):
    """Nearly normal values, the same in every program."""
    total = hashed(seed, math.prod(shape)).view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int32)
    values = (total - 510).astype(np.float32) / np.float32(148)
    return torch.from_numpy(values).reshape(shape).to(dtype)


def ids(seed, length, bound):
    """Numbers below `bound`."""
    return torch.from_numpy(hashed(seed, length).astype(np.int64) % bound)


class TorchRow:
    """A row in PyTorch: inputs rounded to `storage`, computed in `dtype`."""

    def __init__(self, row, storage, dtype):
        self.row = row
        tensors = {name: x.to(dtype) for name, x in inputs(row, storage).items()}
        self.dy = tensors.pop("dy")
        self.leaves = [x.requires_grad_() for x in tensors.values()]
        self.call = operation(row, tensors, dtype)
        self.y = self.call()

    def forward(self):
        """The result, nothing kept for gradients."""
        with torch.no_grad():
            return [self.call()]

    def backward(self):
        """Gradients of all inputs; the graph stays."""
        dy = torch.ones_like(self.y) if self.y.dim() == 0 else self.dy
        return torch.autograd.grad(self.y, self.leaves, dy.view_as(self.y), retain_graph=True)

    def run(self, step, repeat):
        """Mean seconds of a call out of `repeat`."""
        call = getattr(self, step)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - start) / repeat

    def results(self, step):
        """Everything a pass returns, one behind the other."""
        return torch.cat([x.detach().flatten().double() for x in getattr(self, step)()])


def inputs(row, dtype):
    """The floating-point inputs by name, in the order in which the runner writes their gradients."""
    rows, width, out = row.rows, row.width, row.out
    shapes = {"x": (1, (rows, width)), "dy": (2, (rows, width))}
    if row.op in LINEAR:
        shapes |= {"dy": (2, (rows, out)), "weight": (3, (out, width)), "bias": (4, (out,))}
    if row.op == "embedding":
        shapes = {"dy": (2, (rows, width)), "weight": (3, (out, width))}
    if row.op == "swiglu":
        shapes["weight"] = (3, (rows, width))
    if row.op in ("layer_norm", "rms_norm"):
        shapes["weight"] = (3, (width,))
    if row.op == "layer_norm":
        shapes["bias"] = (4, (width,))
    tensors = {name: normal(seed, dtype, *shape) for name, (seed, shape) in shapes.items()}
    if row.op in LINEAR:
        tensors["weight"] *= SPREAD
    return tensors


def operation(row, t, dtype):
    """The call that is measured."""
    x, weight, bias = (t.get(name) for name in ("x", "weight", "bias"))
    if row.op == "rotary":
        cos, sin = turns(row, dtype)
        shaped = x.view(row.rows // row.out, row.out, row.width)
        return lambda: shaped * cos + swapped(shaped) * sin
    if row.op == "embedding":
        chosen = ids(6, row.rows, row.out)
        return lambda: functional.embedding(chosen, weight)
    labels = ids(6, row.rows, row.width) if row.op == "cross_entropy" else None
    return {
        "gelu": lambda: functional.gelu(x),
        "gelu_tanh": lambda: functional.gelu(x, approximate="tanh"),
        "silu": lambda: functional.silu(x),
        "swiglu": lambda: functional.silu(x) * weight,
        "softmax": lambda: functional.softmax(x, -1),
        "log_softmax": lambda: functional.log_softmax(x, -1),
        "cross_entropy": lambda: functional.cross_entropy(x, labels),
        "layer_norm": lambda: functional.layer_norm(x, (row.width,), weight, bias, EPSILON),
        "rms_norm": lambda: functional.rms_norm(x, (row.width,), weight, EPSILON),
        "linear": lambda: functional.linear(x, weight, bias),
        "linear_gelu": lambda: functional.gelu(functional.linear(x, weight, bias)),
    }[row.op]


def turns(row, dtype):
    """Cosines and sines of rotary embedding, `[tokens, width]`, both halves alike."""
    frequencies = 10_000.0 ** (-torch.arange(0, row.width, 2, dtype=torch.float64) / row.width)
    angles = torch.arange(row.out, dtype=torch.float64)[:, None] * frequencies
    return (f(torch.cat([angles, angles], -1)).to(dtype) for f in (torch.cos, torch.sin))


def swapped(x):
    """`(-second half, first half)`."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def main():
    """Builds, compares, measures, and writes the record after each row."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    say("building rows-runner")
    record = header(arguments, "regard/rows/1", {"runs": arguments.runs, "warmups": arguments.warmups})
    with tempfile.TemporaryDirectory() as folder:
        child = ChildPeer(arguments.program or build("rows"), arguments.threads, Path(folder))
        try:
            measure_all(arguments, child, record)
        finally:
            child.close()
    print(table(record["rows"]))
    return 1 if any("failed" in row for row in record["rows"]) else 0


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=names(OPERATIONS), default=OPERATIONS, help="default: " + ",".join(OPERATIONS))
    parser.add_argument("--dtypes", type=names(TYPES), default=tuple(TYPES), help="default: " + ",".join(TYPES))
    parser.add_argument("--runs", type=at_least(1), default=5, help="counted runs (5)")
    parser.add_argument("--warmups", type=at_least(0), default=1, help="uncounted runs before them (1)")
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of rest between turns (0.01)")
    parser.add_argument("--program", help="the built rows-runner; without it, it is built")
    parser.add_argument("--output", type=Path, help="the record (JSON); without it there is only the table")
    return parser.parse_args()


def measure_all(arguments, child, record):
    """Every operation, type and pass in turn."""
    for row in (row for row in ROWS if row.op in arguments.rows):
        for dtype in arguments.dtypes:
            theirs = TorchRow(row, TYPES[dtype], TYPES[dtype])
            exact = TorchRow(row, TYPES[dtype], torch.float64)
            for step in ("forward", "backward"):
                say(f"{row.op} {row.rows}x{row.width} {row.out or ''} {dtype} {step}")
                ours = Ours(child, asdict(row) | {"dtype": dtype, "pass": step, "threads": arguments.threads})
                described = asdict(row) | {"dtype": dtype, "pass": step}
                record["rows"].append(described | attempt(arguments, (row, dtype, step), (ours, theirs, exact)))
            if arguments.output:
                records.save(record, arguments.output)


class Ours:
    """One row and pass of the runner."""

    def __init__(self, child, request):
        self.child, self.request = child, request

    def run(self, _step, repeat):
        """Mean seconds of a call out of `repeat`."""
        return self.child.ask(repeat=repeat, **self.request)["seconds"]

    def results(self, _step):
        """What one call wrote, one array behind the other."""
        path = self.child.results.with_suffix(".f32")
        self.child.ask(repeat=1, write=str(path), **self.request)
        return torch.from_numpy(np.fromfile(path, dtype=np.float32)).double()

    def copy_gbps(self, size):
        """The speed of a copy that moves so many bytes: the best of five."""
        repeat = max(1, (64 << 20) // size)
        request = {"op": "copy", "bytes": size, "threads": self.request["threads"], "repeat": repeat}
        return size / min(self.child.ask(**request)["seconds"] for _ in range(5)) / 1e9


def attempt(arguments, what, peers):
    """The results of a row, or why there are none."""
    try:
        return measured(arguments, what, peers)
    except (RuntimeError, AssertionError, OSError) as problem:
        say(f"  failed: {problem}")
        return {"failed": str(problem)}


def measured(arguments, what, peers):
    """Compares, then times one pass of one row."""
    (row, dtype, step), (ours, theirs, exact) = what, peers
    contenders = {"regard": ours, "torch": theirs}
    expected = exact.results(step)
    errors = {name: error(peer.results(step), expected) for name, peer in contenders.items()}
    if not errors["regard"]["rel_l2"] <= TOLERANCE[dtype]:
        raise AssertionError(f"regard is off by {errors['regard']['rel_l2']:.1e}")
    busy = records.busy()
    seconds = interleaved(arguments, contenders, step)
    limits = ceilings(ours, row.elements(step), TYPES[dtype].itemsize)
    work = {"flops": row.flops(step), "bytes": limits.pop("bytes")}
    results = {name: rates(taken, work, limits) | {"error": errors[name]} for name, taken in seconds.items()}
    faster = results["torch"]["median_s"] / results["regard"]["median_s"]
    return work | {"busy": busy, **limits, "results": results, "times_faster": {"torch": faster}}


def interleaved(arguments, contenders, step):
    """Seconds per call, A B A B …; a turn is long enough for the faster one and no longer than half a second for the slower."""
    once = [min(peer.run(step, 3) for _ in range(2)) for peer in contenders.values()]
    repeat = max(1, min(math.ceil(SHORTEST / min(once)), math.floor(0.5 / max(once))))
    seconds = {name: [] for name in contenders}
    for turn in range(arguments.warmups + arguments.runs):
        for name, peer in contenders.items():
            time.sleep(arguments.pause)
            taken = peer.run(step, repeat)
            if turn >= arguments.warmups:
                seconds[name].append(taken)
    return seconds


def ceilings(ours, elements, size):
    """Bytes that a call moves, and the speed of copies: one of as many bytes, and one far larger than the caches."""
    if elements is None:
        return {"bytes": None}
    moved = elements * size
    return {"bytes": moved, "copy_gbps": ours.copy_gbps(LARGE), "same_size_gbps": ours.copy_gbps(moved)}


def rates(seconds, work, limits):
    """Median, minimum, rate, and its shares of the speeds of copies."""
    median = statistics.median(seconds)
    result = {"median_s": median, "min_s": min(seconds), "seconds": seconds}
    if work["flops"]:
        return result | {"gflops": work["flops"] / median / 1e9}
    rate = work["bytes"] / median / 1e9
    shares = {f"share_of_{name.removesuffix('_gbps')}": rate / limit for name, limit in limits.items()}
    return result | {"gbps": rate} | shares


def table(rows):
    """The rows as Markdown."""
    lines = [
        "| row | Regard | PyTorch | Regard is | rate | of a copy of the size | of a large copy |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [line(row) for row in rows])


def line(row):
    """One line of the table."""
    name = f"{row['op']} {row['rows']}x{row['width']} {row['out'] or ''} {row['dtype']} {row['pass']}"
    if "failed" in row:
        return f"| {name} | failed: {row['failed']} | | | | | |"
    mine, theirs = (row["results"][label] for label in ("regard", "torch"))
    rate = f"{mine['gflops']:.0f} GFLOP/s" if "gflops" in mine else f"{mine['gbps']:.1f} GB/s"
    shares = (mine.get(f"share_of_{size}") for size in ("same_size", "copy"))
    same, large = ("" if share is None else f"{share:.0%}" for share in shares)
    times = f"{mine['median_s'] * 1e3:.3f} ms | {theirs['median_s'] * 1e3:.3f} ms | {row['times_faster']['torch']:.2f}x"
    return f"| {name} | {times} | {rate} | {same} | {large} |"


if __name__ == "__main__":
    sys.exit(main())
