"""The libraries under measurement: PyTorch in this process, all others as child processes that speak JSON lines."""

import json
import os
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import options
from rows import storable

HERE = Path(__file__).parent
PACKAGES = {
    "regard": "regard-runner",
    "materialised": "materialised-peer",
    "candle": "candle-peer",
    "burn": "burn-peer",
}
# Regard is built as it is shipped: for any x86-64, levels chosen while running. The others get all this CPU has.
NATIVE = "-C target-cpu=native"
RUSTFLAGS = {"regard": "", "materialised": NATIVE, "candle": NATIVE, "burn": NATIVE}


class TorchPeer:
    """PyTorch's scaled_dot_product_attention on the CPU."""

    def __init__(self):
        self.pid = os.getpid()

    def load(self, path, row):
        """Takes the inputs from a file into memory of its own, on 64-byte lines, and stores the row's mask."""
        self.inputs = {name: aligned(x) for name, x in read(path, row.tokens_first).items()}
        self.mask = options.mask(row, self.inputs) if storable(row) else None
        self.results = {}

    def run(self, row, contender, repeat):
        """Mean seconds of a call out of `repeat`."""
        torch.set_num_threads(contender.threads)
        step = self.forward_backward if row.kind == "backward" else self.forward
        kernel = sdpa_kernel(SDPBackend.MATH) if contender.math else nullcontext()
        with kernel:
            start = time.perf_counter()
            for _ in range(repeat):
                step(row)
            return (time.perf_counter() - start) / repeat

    def forward(self, row):
        """The output alone; nothing is kept for gradients."""
        with torch.no_grad():
            self.results = {"o": sdpa(self.inputs, row, self.mask)}

    def forward_backward(self, row):
        """The output and the gradients of q, k and v."""
        leaves = {name: self.inputs[name].detach().requires_grad_() for name in "qkv"}
        o = sdpa(leaves, row, self.mask)
        gradients = torch.autograd.grad(o, list(leaves.values()), self.inputs["do"])
        self.results = {"o": o.detach()} | dict(zip(("dq", "dk", "dv"), gradients))

    def outputs(self):
        """Tensors of the last call by name."""
        return self.results


class ChildPeer:
    """A program that answers one JSON line for each that it reads. The protocol is described in protocol/src/lib.rs."""

    def __init__(self, binary, threads, folder):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([binary], stdin=pipe, stdout=pipe, text=True, env=environment)
        self.pid = self.process.pid
        self.results = folder / f"{Path(binary).name}-results.safetensors"

    def ask(self, **request):
        """Sends a request and waits for its reply; a refusal becomes an exception."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{Path(self.process.args[0]).name} ended with status {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{Path(self.process.args[0]).name}: {reply['error']}")
        return reply

    def load(self, path, row):
        """Takes the inputs from a file."""
        self.tokens_first = row is not None and row.tokens_first
        self.ask(op="load", file=str(path))

    def run(self, row, contender, repeat):
        """Mean seconds of a call out of `repeat`, timed by the child."""
        rule = options.call(contender.measures(row))
        call = {"causal": row.causal, "threads": contender.threads, "repeat": repeat, "rule": rule}
        return self.ask(op=row.kind, tokens_first=row.tokens_first, **call)["seconds"]

    def outputs(self):
        """Tensors of the last call by name."""
        self.ask(op="write", file=str(self.results))
        return read(self.results, self.tokens_first)

    def close(self):
        """Ends the child by ending its input."""
        self.process.stdin.close()
        self.process.wait()


def read(path, tokens_first):
    """The tensors of a file, those with heads as [batch, heads, tokens, head_dim] however they lie."""
    tensors = load_file(path)
    return {name: x.transpose(1, 2) if tokens_first and x.dim() == 4 else x for name, x in tensors.items()}


def write(x, tokens_first, path):
    """Saves such tensors, those with heads as [batch, tokens, heads, head_dim] if tokens come first."""
    turned = {name: t.transpose(1, 2).contiguous() if tokens_first and t.dim() == 4 else t for name, t in x.items()}
    save_file(turned, path)


def sdpa(x, row, mask=None):
    """The call that is measured; a mask holds the causal rule too."""
    gqa, causal = row.heads != row.kv_heads, row.causal and mask is None
    return scaled_dot_product_attention(x["q"], x["k"], x["v"], attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def aligned(x):
    """A copy in memory that PyTorch allocated."""
    copy = torch.empty_like(x).copy_(x)
    assert copy.data_ptr() % 64 == 0, "PyTorch no longer allocates on 64-byte lines"
    return copy


def is_built(name):
    """Whether a program of this child lies where cargo puts it, of whatever age."""
    command = ["cargo", "metadata", "--no-deps", "--format-version=1"]
    described = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    return (Path(json.loads(described.stdout)["target_directory"]) / "release" / PACKAGES[name]).exists()


def build(name):
    """Compiles a child and returns the path of its program."""
    command = ["cargo", "build", "--release", "--locked", "--message-format=json", "--package", PACKAGES[name]]
    environment = os.environ | {"RUSTFLAGS": RUSTFLAGS[name]}
    built = subprocess.run(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == PACKAGES[name])
