"""Sentence vectors of reviews: Regard against Transformers on PyTorch and against ONNX Runtime, in turns, into a record.

    pip install torch transformers onnx onnxruntime safetensors
    cargo build --release -p regard-models --example embed_peer
    python bench/peers/embed_peer.py --model DIR --texts reviews.tsv --output bench/records/NAME.json

Everybody starts with the same texts in memory and ends with one normalised vector per text; tokenizing is part of the turn. The peers
pad batches of texts sorted by length, as sentence-transformers does, and put vectors back in order. Vectors are compared with those of
PyTorch before anything is timed. The Rust program answers one JSON line per turn with its seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, PreTrainedTokenizerFast

from record import busy, git, machine, output, save

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
LARGEST_DIFFERENCE = 1e-3


class Padded:
    """What both peers have in common: sorted batches, a mean over the tokens that are no padding."""

    def __init__(self, arguments):
        self.batch, self.limit = arguments.batch, arguments.limit
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(arguments.model / "tokenizer.json"), pad_token="[PAD]")

    def embed(self, texts):
        """Vectors of texts, `[n, E]`."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = [None] * len(texts)
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            for i, vector in zip(some, self.batch_of([texts[i] for i in some])):
                vectors[i] = vector
        return np.stack(vectors)

    def tokens(self, texts, kind):
        """Ids and mask of a padded batch."""
        return self.tokenizer(texts, padding=True, truncation=True, max_length=self.limit, return_tensors=kind)


class Torch(Padded):
    """Transformers' class on PyTorch, with its fused attention."""

    def __init__(self, arguments):
        super().__init__(arguments)
        torch.set_num_threads(arguments.threads)
        self.model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def batch_of(self, texts):
        """Vectors of one batch."""
        tokens = self.tokens(texts, "pt")
        mask = tokens["attention_mask"]
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean).numpy()


class Onnx(Padded):
    """The same model exported, on ONNX Runtime with all of its graph optimisations."""

    def __init__(self, arguments, folder):
        super().__init__(arguments)
        import onnxruntime

        path = folder / "model.onnx"
        export(AutoModel.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager").eval(), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.version = onnxruntime.__version__

    def batch_of(self, texts):
        """Vectors of one batch."""
        tokens = self.tokens(texts, "np")
        mask = tokens["attention_mask"].astype(np.int64)
        (hidden,) = self.session.run(None, {"input_ids": tokens["input_ids"].astype(np.int64), "attention_mask": mask})
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class Regard:
    """The library behind `regard embed`, in a process of its own."""

    def __init__(self, arguments, texts, folder):
        file = folder / "texts.json"
        file.write_text(json.dumps(texts))
        self.vectors = folder / "vectors.safetensors"
        command = [TARGET / "release/examples/embed_peer", arguments.model, file, self.vectors, str(arguments.tokens)]
        environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def turn(self):
        """Seconds of one turn."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program of Regard ended with status {self.process.wait()}")
        return json.loads(line)["seconds"]

    def embed(self):
        """The vectors of the last turn."""
        return load_file(self.vectors)["embeddings"]


def export(model, path):
    """Writes the encoder as an ONNX graph whose batch and length are free. A mask without a zero would be left out of the graph."""

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids, mask = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    axes = {0: "batch", 1: "length"}
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden"]}
    free = {"dynamic_axes": {"input_ids": axes, "attention_mask": axes, "hidden": axes}, "dynamo": False}
    torch.onnx.export(Hidden(), (ids, mask), str(path), opset_version=17, **names, **free)


def reviews(path, count):
    """The last column of the first lines."""
    with path.open(encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t")[-1] for line, _ in zip(file, range(count))]


def timed(work):
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(contenders, arguments):
    """All in turns, the first ones uncounted."""
    seconds = {name: [] for name in contenders}
    for turn in range(arguments.warmups + arguments.runs):
        for name, contender in contenders.items():
            time.sleep(arguments.pause)
            spent = contender()
            if turn >= arguments.warmups:
                seconds[name].append(spent)
            print(f"{name}: {spent:.3f} s", file=sys.stderr)
    return seconds


def differences(vectors):
    """How far everybody is from PyTorch; too far ends the run."""
    off = {name: float(np.abs(found - vectors["torch"]).max()) for name, found in vectors.items()}
    far = {name: value for name, value in off.items() if value > LARGEST_DIFFERENCE}
    if far:
        raise SystemExit(f"vectors differ from PyTorch's: {far}")
    return off


def parsed():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--texts", type=Path, required=True, help="one text per line, in the last column")
    parser.add_argument("--count", type=int, default=256, help="texts (256)")
    parser.add_argument("--threads", type=int, default=2, help="of everybody (2)")
    parser.add_argument("--batch", type=int, default=32, help="texts in a batch of the peers (32)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a batch of Regard (2048)")
    parser.add_argument("--limit", type=int, default=512, help="tokens of the longest text (512)")
    parser.add_argument("--runs", type=int, default=5, help="counted turns (5)")
    parser.add_argument("--warmups", type=int, default=1, help="uncounted turns (1)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between turns (0.2)")
    parser.add_argument("--output", type=Path, help="the record")
    return parser.parse_args()


def main():
    """Compares, measures, writes."""
    arguments = parsed()
    texts = reviews(arguments.texts, arguments.count)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        peers = {"torch": Torch(arguments), "onnxruntime": Onnx(arguments, folder)}
        regard = Regard(arguments, texts, folder)
        regard.turn()
        off = differences({"regard": regard.embed()} | {name: peer.embed(texts) for name, peer in peers.items()})
        others_busy = busy()
        contenders = {"regard": regard.turn} | {name: lambda peer=peer: timed(lambda: peer.embed(texts)) for name, peer in peers.items()}
        seconds = measure(contenders, arguments)
    record = described(arguments, peers["onnxruntime"].version) | {"busy": others_busy, "results": summary(seconds, off)}
    print(json.dumps(record["results"], indent=1))
    if arguments.output:
        save(record, arguments.output)


def summary(seconds, off):
    """Medians, minima, and how many times faster Regard is."""
    own = statistics.median(seconds["regard"])
    return {
        name: {
            "median_s": statistics.median(all_of_it), "min_s": min(all_of_it), "seconds": all_of_it, "max_abs_difference": off[name],
            "times_faster": statistics.median(all_of_it) / own,
        }
        for name, all_of_it in seconds.items()
    }  # fmt: skip


def described(arguments, onnxruntime):
    """What was measured, on what."""
    import transformers

    settings = ("count", "threads", "batch", "tokens", "limit", "runs", "warmups", "pause")
    return {
        "schema": "regard/embed-peer/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--", ":/crates", ":/bench/peers", ":/Cargo.toml", ":/Cargo.lock")),
        "machine": machine(arguments.threads),
        "software": {
            "rustc": output("rustc", "--version"), "torch": torch.__version__, "transformers": transformers.__version__,
            "onnxruntime": onnxruntime,
        },
        "settings": {name: getattr(arguments, name) for name in settings} | {"model": arguments.model.name, "texts": arguments.texts.name},
    }  # fmt: skip


if __name__ == "__main__":
    main()
