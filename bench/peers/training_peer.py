"""Measures training steps of a small language model in turns: Regard, Burn's own modules, PyTorch.

    python bench/peers/training_peer.py --output bench/records/training.json

The model is that of crates/regard/examples/training_step.rs, which this command builds. All three see the same tokens.
Losses have to fall, and Regard's and Burn's, which start from the same parameters, have to stay together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional

import record as records
from peers import HERE
from torch_peer import at_least, say

VOCABULARY, LAYERS, WIDTH, HEADS, BATCH, TOKENS = 256, 4, 128, 4, 12, 256
TOGETHER = 0.05  # that the losses of Regard and Burn may differ by


class Block(torch.nn.Module):
    """Attention and MLP, each after a norm and beside a residual."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp_norm = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        """`[B, N, E]` from `[B, N, E]`."""
        y = self.norm(x)
        q, k, v = (heads(projection(y)) for projection in (self.query, self.key, self.value))
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(o.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


def heads(x):
    """`[B, H, N, D]` from `[B, N, E]`."""
    return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)


class Model(torch.nn.Module):
    """Logits of the next token."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.positions = torch.nn.Embedding(TOKENS, WIDTH)
        self.blocks = torch.nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        """`[B, N, vocabulary]` from `[B, N]`."""
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions.weight)))


class Text:
    """The batches of the example, number by number."""

    def __init__(self):
        self.state = 1

    def draw(self, below):
        """A number below `below` (xorshift)."""
        mask = (1 << 64) - 1
        self.state ^= (self.state << 13) & mask
        self.state ^= self.state >> 7
        self.state ^= (self.state << 17) & mask
        return (self.state >> 32) % below

    def batch(self):
        """Tokens and what follows each, `[B, N]`."""
        rows = []
        for _ in range(BATCH):
            row = [self.draw(VOCABULARY)]
            for _ in range(TOKENS):
                row.append((5 * row[-1] + 3 + self.draw(4)) % VOCABULARY)
            rows.append(row)
        return torch.tensor(rows)


class TorchSteps:
    """The model in PyTorch, in this process."""

    def __init__(self, threads):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.model, self.text = Model(), Text()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.01)

    def step(self):
        """Seconds and loss of a step."""
        rows = self.text.batch()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        logits = self.model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        loss = loss.item()
        return time.perf_counter() - start, loss


class ChildSteps:
    """The example, which takes a step for every line that it reads."""

    def __init__(self, program, threads, *options):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [program, "--serve", *options], stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def step(self):
        """Seconds and loss of a step."""
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the example ended with status {self.process.wait()}")
        reply = json.loads(line)
        return reply["seconds"], reply["loss"]


def main():
    """Builds, steps in turns, and writes the record."""
    arguments = parse()
    program = arguments.program or build()
    record = header(arguments, "regard/training/1", {"steps": arguments.steps, "warmups": arguments.warmups})
    record["software"] |= {"burn": version("burn"), "allocator of regard and burn": f"mimalloc {version('mimalloc')}"}
    peers = {
        "regard": ChildSteps(program, arguments.threads),
        "torch": TorchSteps(arguments.threads),
        "burn": ChildSteps(program, arguments.threads, "--plain"),
    }
    busy = records.busy()
    seconds, losses = interleaved(peers, arguments)
    record["rows"].append({"name": "training step", "busy": busy} | row(seconds, losses))
    if arguments.output:
        records.save(record, arguments.output)
    print(table(record["rows"][0]))
    check(losses)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=at_least(2), default=30, help="counted steps of each (30)")
    parser.add_argument("--warmups", type=at_least(0), default=3, help="uncounted steps before them (3)")
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of rest between turns (0.01)")
    parser.add_argument("--program", help="the built example; without it, it is built")
    parser.add_argument("--output", type=Path, help="the record (JSON); without it there is only the table")
    return parser.parse_args()


def build():
    """Compiles the example as it is shipped and returns the path of its program."""
    command = ["cargo", "build", "--release", "--locked", "--message-format=json", "-p", "regard"]
    command += ["--example", "training_step"]
    say("building the example")
    built = subprocess.run(command, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable"))


def version(name):
    """The version that a crate is locked to."""
    packages = (HERE.parent.parent / "Cargo.lock").read_text().split("[[package]]")
    locked = next(package for package in packages if f'\nname = "{name}"\n' in package)
    return locked.partition('version = "')[2].partition('"')[0]


def header(arguments, schema, settings):
    """What is known before the first measurement."""
    return {
        "schema": schema,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": records.git("rev-parse", "HEAD"),
        "modified": bool(records.git("status", "--porcelain", "--", *records.MEASURED)),
        "machine": records.machine(arguments.threads),
        "software": records.software(["torch"], []),
        "settings": settings | {"pause_s": arguments.pause},
        "rows": [],
    }


def interleaved(peers, arguments):
    """Seconds and losses of every step, A B C A B C …; the losses of the warm-up belong to them."""
    seconds, losses = ({name: [] for name in peers} for _ in range(2))
    for turn in range(arguments.warmups + arguments.steps):
        for name, peer in peers.items():
            time.sleep(arguments.pause)
            taken, loss = peer.step()
            losses[name].append(loss)
            if turn >= arguments.warmups:
                seconds[name].append(taken)
    return seconds, losses


def row(seconds, losses):
    """Medians, minima, and how many times faster Regard is."""
    results = {
        name: {"median_s": statistics.median(s), "min_s": min(s), "seconds": s, "losses": losses[name]}
        for name, s in seconds.items()
    }
    mine = results["regard"]["median_s"]
    faster = {name: result["median_s"] / mine for name, result in results.items() if name != "regard"}
    return {"results": results, "times_faster": faster}


def check(losses):
    """Refuses losses that do not fall, and two that start together and part."""
    for name, values in losses.items():
        assert values[-1] < values[0], f"{name}: the loss went from {values[0]:.3f} to {values[-1]:.3f}"
    apart = max(abs(a - b) for a, b in zip(losses["regard"], losses["burn"]))
    assert apart <= TOGETHER, f"the losses of Regard and Burn are {apart:.3f} apart"


def table(row):
    """The row as Markdown."""
    lines = ["| training step | median | min | loss | Regard is |", "|---|---|---|---|---|"]
    for name, result in row["results"].items():
        times = row["times_faster"].get(name)
        faster = "" if times is None else f"{times:.2f}x"
        median, least = (f"{result[key] * 1e3:.0f} ms" for key in ("median_s", "min_s"))
        fall = f"{result['losses'][0]:.3f} → {result['losses'][-1]:.3f}"
        lines.append(f"| {name} | {median} | {least} | {fall} | {faster} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
