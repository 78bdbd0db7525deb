"""Measures approximate mechanisms beside the programs of those who described them, in turns, on the same inputs.

    python bench/peers/originals_peer.py --hyper-attention CHECKOUT --output bench/records/NAME.json

HyperAttention is read from a checkout of its repository (github.com/insuhan/hyper-attn), whose PyTorch path runs on the CPU; its Triton file
is not needed there and stands empty. Local attention is the package `local-attention`. Both see q, k, v `[1, 8, N, 64]` in f32. The error of each
is its distance from exact attention in float64 on sampled rows; of local attention, from exact attention in the same window.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import types
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file

from peers import ChildPeer, build
from record import git, machine, output

SAMPLED = 64
NOT_NEEDED = "models.attention.flash_attn_triton_for_hyper"


def hyper_attention(checkout, causal):
    """The published module with its published sizes, which are Regard's defaults."""
    empty = types.ModuleType(NOT_NEEDED)
    empty.flash_attn_func = None
    sys.modules[NOT_NEEDED] = empty
    sys.path.insert(0, str(checkout))
    from models.attention.hyper_attn import HyperAttention  # noqa: PLC0415

    module = HyperAttention(input_dim=64, lsh_num_projs=7, block_size=256, sample_size=256, min_seq_len=4096)
    return lambda q, k, v: module(q, k, v, causal=causal)


def local_attention(window, causal):
    """Blocks of `window` that look one block back (and one ahead), with the exact window inside, without rotary embedding."""
    from local_attention import LocalAttention  # noqa: PLC0415

    ahead = 0 if causal else 1
    module = LocalAttention(
        window_size=window, causal=causal, look_backward=1, look_forward=ahead, exact_windowsize=True, autopad=True, use_rotary_pos_emb=False, dropout=0.0
    )

    def attend(q, k, v):
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        return module(*flat).view_as(q)

    return attend


def rows(inputs, causal, window, sampled):
    """Exact attention of sampled queries in float64, in a window where there is one."""
    q, k, v = (inputs[name].double() for name in "qkv")
    scores = q[:, :, sampled] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    distance = sampled[:, None] - torch.arange(k.shape[2])
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window:
        hidden |= distance.abs() > window
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def distance(o, truth, sampled):
    """Relative 2-norm of the difference."""
    return ((o[:, :, sampled].double() - truth).norm() / truth.norm()).item()


def measure(contenders, runs, pause):
    """Seconds of each contender, in turns, after one call that does not count."""
    seconds = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, call in contenders.items():
            time.sleep(pause)
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row(name, spec, original, setting, options):
    """One mechanism beside its original."""
    inputs, child, file = setting
    causal, window = options["causal"], options.get("window")
    sampled = torch.linspace(0, inputs["q"].shape[2] - 1, SAMPLED).long()
    truth = rows(inputs, causal, window, sampled)
    results = {}

    def theirs():
        with torch.no_grad():
            results["original"] = original(*(inputs[x] for x in "qkv"))

    call = {"causal": causal, "threads": torch.get_num_threads(), "repeat": 1, "rule": {"mechanism": spec}}
    child.load(file, None)
    seconds = measure({"regard": lambda: child.ask(op="forward", **call), "original": theirs}, options["runs"], options["pause"])
    results["regard"] = child.outputs()["o"]
    median = {who: statistics.median(times) for who, times in seconds.items()}
    entry = {
        "mechanism": name, "regard": spec, "causal": causal, "tokens": inputs["q"].shape[2], "seconds": seconds, "median_s": median,
        "rel_l2": {who: distance(results[who], truth, sampled) for who in results}, "times_faster": median["original"] / median["regard"],
    }  # fmt: skip
    errors = ", ".join(f"{who} {error:.2e}" for who, error in entry["rel_l2"].items())
    form = "causal" if causal else "bidirectional"
    print(f"{name} {form}: regard {median['regard'] * 1e3:.1f} ms, original {median['original'] * 1e3:.1f} ms, {entry['times_faster']:.2f}x; relative errors: {errors}")
    return entry


def main():
    """Measures everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hyper-attention", type=Path, help="a checkout of its repository")
    for name, default in (("tokens", 16384), ("window", 256), ("threads", 2), ("runs", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--program", help="the built runner; without it, it is built")
    parser.add_argument("--output", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    generator = torch.Generator().manual_seed(o.seed)
    torch.manual_seed(o.seed)
    inputs = {name: torch.randn(1, 8, o.tokens, 64, generator=generator) for name in "qkv"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.safetensors"
        save_file(inputs, file)
        child = ChildPeer(o.program or build("regard"), o.threads, Path(folder))
        setting, common = (inputs, child, file), {"runs": o.runs, "pause": o.pause}
        entries = []
        for causal in (True, False):
            if o.hyper_attention:
                original = hyper_attention(o.hyper_attention, causal)
                entries.append(row("hyper", "hyper", original, setting, common | {"causal": causal}))
            original = local_attention(o.window, causal)
            # Their window holds the query's own key and `window` more on each side that is seen.
            entries.append(row("local", f"local:window={o.window + 1}", original, setting, common | {"causal": causal, "window": o.window}))
        child.close()
    if o.output:
        record = {
            "schema": "regard/originals/1", "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": git("rev-parse", "HEAD"),
            "machine": machine(o.threads), "software": {"torch": torch.__version__, "rustc": output("rustc", "--version")},
            "settings": {"runs": o.runs, "pause_s": o.pause, "seed": o.seed, "window": o.window}, "rows": entries,
        }  # fmt: skip
        draft = o.output.with_suffix(".part")
        draft.write_text(json.dumps(record, indent=1) + "\n")
        draft.replace(o.output)


if __name__ == "__main__":
    main()
