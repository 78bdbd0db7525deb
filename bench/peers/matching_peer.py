"""Measures Regard's token merging beside a plain PyTorch matching, in turns, on the same keys.

    python bench/peers/matching_peer.py [--tokens 4096] [--width 64] [--r 1024] [--threads 2] [--output bench/records/NAME.json]

Both give where every token went. PyTorch's is written from the paper's formulas (arXiv 2210.09461): normalise, the product of even and odd
rows, its row maxima, a sort, a scatter. The two may differ on pairs whose cosines are equal in f32.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from record import busy, git, machine, save

ROOT = Path(__file__).resolve().parents[2]


def matching(keys, r):
    """Where every token goes; the first token is protected."""
    units = keys / keys.norm(dim=-1, keepdim=True)
    scores = units[::2] @ units[1::2].T
    scores[0] = -torch.inf
    best, target = scores.max(-1)
    source = best.argsort(descending=True, stable=True)[:r]
    goes_to = torch.arange(len(keys))
    goes_to.scatter_(0, 2 * source, 2 * target[source] + 1)
    return goes_to


def seconds(call, repeat):
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def main():
    """Compares, then measures in turns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("tokens", 4096), ("width", 64), ("r", 1024), ("threads", 2), ("runs", 7), ("repeat", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--program", help="the built example; without it, it is built")
    parser.add_argument("--output", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    program = o.program
    if not program:
        subprocess.run(["cargo", "build", "--release", "-p", "regard-core", "--example", "tome"], cwd=ROOT, check=True)
        program = ROOT / "target/release/examples/tome"
    keys = torch.randn(o.tokens, o.width, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "keys", Path(folder) / "places"
        keys.numpy().tofile(file)
        command = [str(x) for x in (program, file, o.tokens, o.width, o.r, o.threads, o.repeat, output)]
        times = {"regard": [], "torch": []}
        for _ in range(o.runs):
            times["regard"].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            times["torch"].append(seconds(lambda: matching(keys, o.r), o.repeat))
        same = (torch.from_numpy(np.fromfile(output, dtype=np.uint32).astype(np.int64)) == matching(keys, o.r)).float().mean()
    ours, theirs = (statistics.median(times[name]) for name in ("regard", "torch"))
    if o.output:
        settings = {name: getattr(o, name) for name in ("tokens", "width", "r", "runs", "repeat")}
        record = {
            "schema": "regard/matching/1",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": git("rev-parse", "HEAD"),
            "machine": machine(o.threads) | {"torch": torch.__version__},
            "busy": busy(),
            "settings": settings,
            "rows": [{"library": name, "median_s": statistics.median(of), "min_s": min(of)} for name, of in times.items()],
            "alike": float(same),
        }
        save(record, o.output)
    print(f"{o.tokens} tokens, width {o.width}, r {o.r}, {o.threads} threads, median of {o.runs}: {same:.2%} of tokens go the same way")
    print(f"regard {ours * 1e3:.2f} ms, torch {theirs * 1e3:.2f} ms: {theirs / ours:.1f}x")


if __name__ == "__main__":
    main()
