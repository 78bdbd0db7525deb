"""Measures Regard and its peers in turns, on the same shapes and the same inputs.

    python bench/peers/torch_peer.py --output bench/records/peers.json
    python bench/peers/torch_peer.py --quick                              # everything once, on small shapes
    python bench/peers/torch_peer.py --rows forward,decode --peers torch,candle,burn --output …  # builds all three

Before a row is timed, every output is compared with PyTorch's attention in float64. See README.md beside this file.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

import options
import record as records
from peers import ChildPeer, TorchPeer, build, is_built, read, sdpa, write
from rows import FAMILIES, contenders, rows

PEERS = ("torch", "candle", "burn")
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}  # of the relative error in the 2-norm
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc asks for transparent huge pages, here and in the children
STRIDE = 5  # of the queries that are checked where a rule holds over more than 4096: coprime to any tile
SHORTEST = 0.15  # seconds that one turn lasts at least: below that, calls are repeated; waking a second processor takes milliseconds


def main():
    """Runs the families that were asked for and writes the record after each row."""
    arguments = parse()
    if arguments.huge_pages and HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.argv])  # the C library reads it once, when a program starts
    record = records.header(arguments, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        peers = start(arguments, Path(folder))
        try:
            measure_all(arguments, peers, record, Path(folder))
        finally:
            for peer in peers.values():
                if isinstance(peer, ChildPeer):
                    peer.close()
    print(records.table(record))
    print("\n" + "\n".join(records.sentences(record["summary"])))
    return 1 if any("failed" in row for row in record["rows"]) else 0


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=names(FAMILIES), default=list(FAMILIES), help="default: " + ",".join(FAMILIES))
    parser.add_argument(
        "--peers", type=names(PEERS), help=f"any of {','.join(PEERS)}; default: torch and what is built"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--runs", type=at_least(1), help="counted runs (5; quick: 2)")
    parser.add_argument("--warmups", type=at_least(0), default=1, help="uncounted runs before them (1)")
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of rest between turns (0.01)")
    parser.add_argument("--huge-pages", action="store_true", help="for everybody's memory (Linux with glibc)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the record (JSON); without it there is only the table")
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or (2 if arguments.quick else 5)
    arguments.peers = arguments.peers or [name for name in PEERS if name == "torch" or is_built(name)]
    return arguments


def names(allowed):
    """A parser of comma-separated words out of `allowed`."""

    def parse_names(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(allowed)}")
        return chosen

    return parse_names


def at_least(lowest):
    """A parser of whole numbers from `lowest`."""

    def parse_count(text):
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {lowest} up")
        return int(text)

    return parse_count


def start(arguments, folder):
    """Builds and starts everyone, by name."""
    peers = {"torch": TorchPeer()}
    ours = ["regard"] + ["materialised"] * ("math" in arguments.rows)
    for name in ours + [name for name in arguments.peers if name != "torch"]:
        say(f"building {name}")
        peers[name] = ChildPeer(build(name), arguments.threads, folder)
    return peers


def measure_all(arguments, peers, record, folder):
    """Every row in turn."""
    start = time.perf_counter()
    record["software"]["level"] = peers["regard"].ask(op="hello")["level"]
    for row in rows(arguments.rows, arguments.quick):
        say(str(row))
        record["rows"].append(described(row) | attempt(row, arguments, peers, folder))
        record["summary"] = records.conclusions(record["rows"])
        record["took_s"] = time.perf_counter() - start
        if arguments.output:
            records.save(record, arguments.output)


def described(row):
    """The row's own fields."""
    return {"name": str(row)} | asdict(row) | {"bytes": row.bytes}


def attempt(row, arguments, peers, folder):
    """The row's results, or why there are none."""
    try:
        return measured(row, arguments, peers, folder)
    except (RuntimeError, AssertionError, OSError) as error:
        say(f"  failed: {error}")
        return {"failed": str(error)}


def measured(row, arguments, peers, folder):
    """Loads, compares, then times a row."""
    running = contenders(row, arguments.peers, arguments.threads)
    path = folder / "inputs.safetensors"
    x = inputs(row, arguments.seed)
    write(x, row.tokens_first, path)
    for name in dict.fromkeys(c.peer for c in running):
        peers[name].load(path, row)
    errors = compared(row, running, peers, path, arguments.threads)
    repeat = repeats(row, running, peers)
    before = now(peers["regard"], arguments.threads)
    seconds = interleaved(row, running, peers, repeat, arguments)
    moment = records.between(before, peers["regard"].ask(op="ceilings", threads=arguments.threads))
    results = {}
    for c in running:
        work = records.work(row, options.flops(c.measures(row), x), moment)
        pages = records.huge_pages(peers[c.peer].pid)
        results[c.label] = records.summary(work, seconds[c.label]) | {"error": errors.get(c.label), "huge_pages": pages}
    return {"flops": options.flops(row, x), "repeat": repeat, "moment": moment} | records.ratios(results)


def now(regard, threads):
    """The machine at this moment: what others use of it, and its ceilings."""
    busy = records.busy()
    if busy is not None and busy > 0.05:
        say(f"  warning: other programs use {busy:.0%} of the processors")
    return {"busy": busy} | regard.ask(op="ceilings", threads=threads)


def inputs(row, seed):
    """Normal q, k, v and do; about one query and one key in sixteen is three times as long, for a few large logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(heads, length, peaked):
        x = torch.randn(row.batch, heads, length, row.head_dim, generator=generator)
        long = torch.rand(row.batch, heads, length, 1, generator=generator) < 1 / 16
        return (torch.where(long, 3 * x, x) if peaked else x).to(TYPES[row.dtype])

    tensors = {"q": normal(row.heads, row.queries, True), "k": normal(row.kv_heads, row.keys, True)}
    tensors["v"] = normal(row.kv_heads, row.keys, False)
    if row.kind == "backward":
        tensors["do"] = normal(row.heads, row.queries, False)
    return tensors | options.side(row, seed)


def compared(row, running, peers, path, threads):
    """Runs everyone who follows the row's rule once and returns their errors; a large one is an exception."""
    checked = torch.arange(0, row.queries, 1 if row.queries <= 4096 or row.rule == "plain" else STRIDE)
    expected = reference(row, path, threads, checked)
    errors = {}
    for contender in (c for c in running if not c.plain):
        peers[contender.peer].run(row, contender, 1)
        outputs = dict(peers[contender.peer].outputs())
        outputs["o"] = outputs["o"][:, :, checked]
        errors[contender.label] = {name: error(outputs[name], x) for name, x in expected.items()}
        for name, e in errors[contender.label].items():
            if not e["rel_l2"] <= TOLERANCE[row.dtype]:
                raise AssertionError(f"{contender.label}: {name} is off by {e['rel_l2']:.1e}")
    return errors


def reference(row, path, threads, checked):
    """PyTorch's results in float64 on the same, already rounded inputs, for the queries that are checked."""
    torch.set_num_threads(threads)
    x = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in read(path, row.tokens_first).items()}
    mask = options.mask(row, x, checked)
    mask = None if mask is None else mask.double()
    if row.kind != "backward":
        with torch.no_grad():
            return {"o": sdpa(x | {"q": x["q"][:, :, checked]}, row, mask)}
    leaves = [x[name].requires_grad_() for name in "qkv"]
    o = sdpa(x, row, mask)
    return {"o": o.detach()} | dict(zip(("dq", "dk", "dv"), torch.autograd.grad(o, leaves, x["do"])))


def error(x, expected):
    """Largest absolute and relative 2-norm error."""
    difference = x.double() - expected
    relative = difference.norm() / expected.norm()
    return {"max_abs": difference.abs().max().item(), "rel_l2": relative.item()}


def repeats(row, running, peers):
    """Calls in one turn: enough for the fastest to be timed well, not so many that the slowest takes half a second."""
    once = [peers[c.peer].run(row, c, 1) for c in running]
    return max(1, min(math.ceil(SHORTEST / min(once)), math.floor(0.5 / max(once))))


def interleaved(row, running, peers, repeat, arguments):
    """Seconds per call, A B A B …; the rest between turns lets the threads of the last one fall asleep."""
    seconds = {c.label: [] for c in running}
    for turn in range(arguments.warmups + arguments.runs):
        for c in running:
            time.sleep(arguments.pause)
            taken = peers[c.peer].run(row, c, repeat)
            if turn >= arguments.warmups:
                seconds[c.label].append(taken)
    return seconds


def say(text):
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
