"""Trains one language model to the end with Regard and with PyTorch, one after the other, on the same text.

    python bench/peers/language_peer.py --data FOLDER --output bench/records/NAME.json

The configuration is configs/shakespeare.yaml: 4 layers, 4 heads, width 128, 64 characters, batches of 12, 2000 steps, no biases, tied
embeddings, AdamW with warm-up and a cosine (the sizes of nanoGPT's example for a CPU). Both see random windows of the first nine tenths of
the text and are judged on all windows of the last tenth. Seconds are those of training alone, without reading, evaluating and saving.
Positions are a table that is learned, as there, or rotary ones (--positions), which the model learns faster with.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional

import record as records
from peers import HERE

ROOT = HERE.parent.parent
LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
RATE, FLOOR, WARM_UP, DECAY, CLIP = 1e-3, 0.1, 100, 0.1, 1.0


class Norm(torch.nn.Module):
    """Layer norm without a shift."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        """The shape of x."""
        return functional.layer_norm(x, (WIDTH,), self.weight)


class Block(torch.nn.Module):
    """Attention and MLP, each after a norm and beside a residual; q, k and v are one product."""

    def __init__(self, rotary):
        super().__init__()
        linear = lambda wide, narrow: torch.nn.Linear(wide, narrow, bias=False)  # noqa: E731
        self.norm, self.mlp_norm = Norm(), Norm()
        self.qkv, self.output = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)
        pairs = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(pairs) / pairs)) if rotary else None
        self.turns = (angles.cos(), angles.sin()) if rotary else None

    def forward(self, x):
        """`[B, N, E]` from `[B, N, E]`."""
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).split(WIDTH, -1))
        if self.turns:
            q, k = turned(q, *self.turns), turned(k, *self.turns)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(o.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


def turned(x, cos, sin):
    """Rotary positions: the two halves of a head are the two coordinates."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(torch.nn.Module):
    """Logits of the next character."""

    def __init__(self, vocabulary, rotary):
        super().__init__()
        self.tokens = torch.nn.Embedding(vocabulary, WIDTH)
        self.positions = None if rotary else torch.nn.Embedding(CONTEXT, WIDTH)
        self.blocks = torch.nn.Sequential(*(Block(rotary) for _ in range(LAYERS)))
        self.norm = Norm()
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                ends_branch = name.endswith(("output.weight", "down.weight"))
                torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if ends_branch else 0.02)

    def forward(self, ids):
        """`[B, N, vocabulary]` from `[B, N]`."""
        x = self.tokens(ids)
        if self.positions:
            x = x + self.positions.weight[: ids.shape[1]]
        return functional.linear(self.norm(self.blocks(x)), self.tokens.weight)


def rate(step, highest):
    """The learning rate of a step."""
    if step < WARM_UP:
        return highest * (step + 1) / WARM_UP
    share, floor = (step - WARM_UP) / (STEPS - WARM_UP), FLOOR * highest
    return floor + 0.5 * (highest - floor) * (1 + math.cos(math.pi * share))


def torch_run(text, seed, arguments):
    """Seconds of training, and the loss on the last tenth."""
    torch.manual_seed(seed)
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text])
    train, held_out = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    model = Model(len(letters), arguments.positions == "rotary")
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.99), fused=True)
    start = time.perf_counter()
    for step in range(STEPS):
        starts = torch.randint(len(train) - CONTEXT, (BATCH,))
        windows = torch.stack([train[at : at + CONTEXT + 1] for at in starts])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, arguments.rate)
        logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "validation_loss": judged(model, held_out)}


@torch.no_grad()
def judged(model, held_out):
    """The mean loss over windows one after the other."""
    count = (len(held_out) - 1) // CONTEXT
    inputs = held_out[: count * CONTEXT].view(count, CONTEXT)
    labels = held_out[1 : count * CONTEXT + 1].view(count, CONTEXT)
    losses = [
        functional.cross_entropy(model(ids).flatten(0, 1), wanted.flatten(), reduction="sum").item()
        for ids, wanted in zip(inputs.split(64), labels.split(64), strict=True)
    ]
    return sum(losses) / (count * CONTEXT)


def regard_run(arguments, seed):
    """The same for Regard."""
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.program, "train", ROOT / "configs/shakespeare.yaml", "--data", arguments.data, "--output", folder]
        command += ["--set", f"model.positions={arguments.positions}", "--set", f"train.rate={arguments.rate}", "--seed", seed, "--threads", arguments.threads, "--json"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    run = json.loads(done.stdout)["configuration"]["runs"][0]
    assert run["steps"] == STEPS, run["steps"]
    return {"seconds": run["seconds"], "validation_loss": run["quality"]}


def main():
    """Runs in turns and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds tinyshakespeare/")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/regard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--positions", choices=["learned", "rotary"], default="learned")
    parser.add_argument("--rate", type=float, default=RATE, help=f"the highest learning rate ({RATE}, nanoGPT's)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = (arguments.data / "tinyshakespeare/input.txt").read_text()
    runs = []
    for seed in arguments.seeds:
        runs.append({"seed": seed, "who": "pytorch", **torch_run(text, seed, arguments)})
        print(runs[-1], flush=True)
        runs.append({"seed": seed, "who": "regard", **regard_run(arguments, seed)})
        print(runs[-1], flush=True)
    total = {who: sum(run["seconds"] for run in runs if run["who"] == who) for who in ("pytorch", "regard")}
    result = {
        "schema": "regard/peer/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": records.git("rev-parse", "HEAD"),
        "machine": records.machine(arguments.threads),
        "software": {"torch": torch.__version__},
        "settings": {"config": "configs/shakespeare.yaml", "positions": arguments.positions, "rate": arguments.rate, "seeds": arguments.seeds},
        "rows": runs,
        "summary": {"times_faster_than_pytorch": total["pytorch"] / total["regard"]},
    }
    print(result["summary"])
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
