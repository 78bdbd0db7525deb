"""Exact attention, defined once more: plain float64 PyTorch with explicit masks, gradients by autograd.

Writes `exact/NAME.safetensors`, one file per case, with

* inputs: q k v do and, where the case has them, key_bias bias mask until lengths lengths_q offsets_q offsets_k;
* results: expected_o expected_lse expected_received expected_dq expected_dk expected_dv and, where the case has the
  input, expected_dkey_bias expected_dbias;
* options, as strings in the file's metadata: causal window_left window_right sinks softcap alibi alignment scale.

Every float is stored as float64; the inputs are exact in float32, so that a kernel in float32 reads the same numbers.
A query that sees no key has o = 0, lse = -inf and no gradient.

    pip install torch numpy safetensors
    python golden/exact.py            # writes the files
    python golden/exact.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import pad, scaled_dot_product_attention

FOLDER = Path(__file__).parent / "exact"


@dataclass
class Case:
    """One set of inputs with its options, under the names that Regard's files use."""

    name: str
    tensors: dict
    options: dict = field(default_factory=dict)


# ---------------------------------------------------------------- definition


def attention(tensors, options):
    """Outputs of exact attention as {o, lse, received}, differentiable in the float inputs."""
    if "offsets_q" in tensors:
        return packed_attention(tensors, options)
    scores = biased(scaled(tensors, options), tensors, options)
    return attend(scores, visible(scores, tensors, options), repeated(tensors["v"], scores))


def attend(scores, sees, values):
    """Row softmax over the visible keys, its product with the values, and its column sums."""
    hidden = ~sees
    seen = scores.detach().masked_fill(hidden, -math.inf)
    top = pad(seen, (0, 1), value=-math.inf).amax(-1, keepdim=True)  # one column more, so that there may be no keys
    top = torch.where(top.isfinite(), top, 0.0)
    weights = (scores - top).masked_fill(hidden, -math.inf).exp()
    total = weights.sum(-1, keepdim=True)
    a = weights / torch.where(total > 0, total, 1.0)
    lse = (top + total.log()).squeeze(-1)
    return {"o": a @ values, "lse": lse, "received": a.sum(-2)}


def scaled(tensors, options):
    """The products of queries and keys, scaled and then soft-capped: [B,H,N,M]."""
    q = tensors["q"]
    scale = options.get("scale", 1 / math.sqrt(q.shape[-1]))
    scores = scale * q @ repeated(tensors["k"], q).transpose(-1, -2)
    cap = options.get("softcap")
    return scores if cap is None else cap * torch.tanh(scores / cap)


def biased(scores, tensors, options):
    """Adds the bias per key, the dense bias and ALiBi to the capped scores."""
    if "key_bias" in tensors:
        scores = scores + repeated(tensors["key_bias"], scores)[:, :, None, :]
    if "bias" in tensors:
        scores = scores + tensors["bias"]
    if options.get("alibi"):
        p, j = positions(tensors, options)
        slopes = torch.tensor(alibi_slopes(scores.shape[1]), dtype=torch.float64)
        scores = scores - slopes[:, None, None] * (p - j).abs()
    return scores


def visible(scores, tensors, options):
    """Which query sees which key: [B,H,N,M] of bool. A bias of -inf hides as a mask does."""
    p, j = positions(tensors, options)
    sees = padding(tensors) & (scores.detach() > -math.inf)
    if options.get("causal"):
        sees = sees & (j <= p)
    if "window_left" in options:
        sees = sees & ((p - j <= options["window_left"]) | (j < options.get("sinks", 0)))
    if "window_right" in options:
        sees = sees & (j - p <= options["window_right"])
    if "until" in tensors:
        until = repeated(tensors["until"], scores)[:, :, None, :]
        sees = sees & ((until >= scores.shape[-1]) | (p < until))
    if "mask" in tensors:
        sees = sees & tensors["mask"]
    return sees


def sizes(tensors):
    """Real keys and real queries of every batch row, [B] each."""
    batch, n, m = tensors["q"].shape[0], tensors["q"].shape[2], tensors["k"].shape[2]
    keys = tensors.get("lengths", torch.full((batch,), m))
    queries = tensors.get("lengths_q", keys if n == m else torch.full((batch,), n))
    return keys, queries


def positions(tensors, options):
    """Positions of the queries [B,1,N,1] and of the keys [1,1,1,M]."""
    keys, queries = sizes(tensors)
    shift = torch.zeros_like(keys) if options.get("alignment") == "top_left" else keys - queries
    i = torch.arange(tensors["q"].shape[2])
    j = torch.arange(tensors["k"].shape[2])
    return (i + shift[:, None])[:, None, :, None], j[None, None, None, :]


def padding(tensors):
    """True where neither the query nor the key is padding: [B,1,N,M]."""
    keys, queries = sizes(tensors)
    real_q = torch.arange(tensors["q"].shape[2]) < queries[:, None]
    real_k = torch.arange(tensors["k"].shape[2]) < keys[:, None]
    return (real_q[:, :, None] & real_k[:, None, :])[:, None]


def repeated(per_kv_head, like):
    """Repeats a tensor with G heads so that query head h finds head h // (H / G)."""
    return per_kv_head.repeat_interleave(like.shape[1] // per_kv_head.shape[1], dim=1)


def alibi_slopes(heads):
    """2^(-8h/n) for h = 1..n; above a power of two n, then every other slope of 2n."""
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * h / n) for h in range(1, n + 1)]
    between = [2 ** (-8 * h / (2 * n)) for h in range(1, 2 * n + 1, 2)]
    return (slopes + between)[:heads]


def packed_attention(tensors, options):
    """Sequence after sequence along N and M; positions, `until` and M count inside each."""
    parts = []
    q_bounds, k_bounds = tensors["offsets_q"].tolist(), tensors["offsets_k"].tolist()
    for s in range(len(q_bounds) - 1):
        rows, keys = slice(*q_bounds[s : s + 2]), slice(*k_bounds[s : s + 2])
        part = {"q": tensors["q"][:, :, rows]}
        for name in ("k", "v", "key_bias", "until"):
            if name in tensors:
                part[name] = tensors[name][:, :, keys]
        parts.append(attention(part, options))
    return {name: torch.cat([part[name] for part in parts], dim=2) for name in parts[0]}


def gradients(tensors, o):
    """Gradients of sum(o * do) for every float input, as {dq, dk, …}."""
    names = [name for name in ("q", "k", "v", "key_bias", "bias") if name in tensors]
    return dict(zip(["d" + n for n in names], torch.autograd.grad(o, [tensors[n] for n in names], tensors["do"])))


# --------------------------------------------------------------------- cases


class Draw:
    """Seeded inputs, exact in float32."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def normal(self, *shape):
        """Normal values in which every eighth row, on average, is four times as large."""
        values = self.random.standard_normal(shape).astype(np.float32)
        values *= np.where(self.random.random(shape[:-1] + (1,)) < 1 / 8, np.float32(4), np.float32(1))
        return torch.from_numpy(values).double()

    def flags(self, *shape, keep):
        """True with probability `keep`."""
        return torch.from_numpy(self.random.random(shape) < keep)

    def integers(self, low, high, *shape):
        """Whole numbers from `low` up to but not including `high`."""
        return torch.from_numpy(self.random.integers(low, high, shape))

    def qkv(self, batch, heads, n, m, *, kv_heads=None, d=8, dv=None):
        """q, k, v and the gradient of the output."""
        kv_heads, dv = kv_heads or heads, dv or d
        return {
            "q": self.normal(batch, heads, n, d),
            "k": self.normal(batch, kv_heads, m, d),
            "v": self.normal(batch, kv_heads, m, dv),
            "do": self.normal(batch, heads, n, dv),
        }


def cases():
    """All cases, each from a seed of its own so that a new one changes none of the others."""
    makers = [
        full, causal, causal_more_keys, causal_more_queries, causal_top_left, gqa, mqa, window_sinks, window_both,
        lengths, lengths_q, until, key_bias, mask, bias, alibi, softcap, packed, everything,
    ]  # fmt: skip
    return [Case(make.__name__, *make(Draw(seed))) for seed, make in enumerate(makers, start=1)]


def full(draw):
    """Every query sees every key; one key more than a block of 64."""
    return draw.qkv(1, 2, 65, 65), {}


def causal(draw):
    """As many queries as keys."""
    return draw.qkv(2, 2, 33, 33, d=7), {"causal": True}


def causal_more_keys(draw):
    """Six queries at the end of 270 keys, as in decoding: longer than one key block of 256."""
    return draw.qkv(1, 2, 6, 270, kv_heads=1), {"causal": True}


def causal_more_queries(draw):
    """The first 37 queries stand before the first key and see nothing."""
    return draw.qkv(1, 2, 70, 33), {"causal": True}


def causal_top_left(draw):
    """Query i stands at position i whatever the number of keys."""
    return draw.qkv(1, 2, 20, 31), {"causal": True, "alignment": "top_left"}


def gqa(draw):
    """Eight query heads on two key/value heads."""
    return draw.qkv(1, 8, 17, 17, kv_heads=2, d=8, dv=5), {"causal": True}


def mqa(draw):
    """Four query heads on one, values wider than keys."""
    return draw.qkv(2, 4, 9, 21, kv_heads=1, d=7, dv=12), {}


def window_sinks(draw):
    """The nine most recent keys and the first three."""
    return draw.qkv(1, 2, 66, 66), {"causal": True, "window_left": 8, "sinks": 3}


def window_both(draw):
    """Five keys back, two ahead, more queries than keys."""
    return draw.qkv(1, 2, 40, 35), {"window_left": 5, "window_right": 2}


def lengths(draw):
    """Padded sequences, one of them empty; queries have the lengths of the keys."""
    return draw.qkv(4, 2, 18, 18) | {"lengths": torch.tensor([18, 0, 1, 13])}, {"causal": True}


def lengths_q(draw):
    """Queries and keys padded apart, once with more real queries than real keys."""
    counts = {"lengths": torch.tensor([25, 17, 4]), "lengths_q": torch.tensor([11, 0, 9])}
    return draw.qkv(3, 2, 11, 25) | counts, {"causal": True}


def until(draw):
    """Keys that live for ever, for a while, for one query and never."""
    tensors = draw.qkv(1, 4, 50, 50, kv_heads=2)
    lives = torch.arange(50) + draw.integers(1, 20, 1, 2, 50)
    lives[..., :6] = torch.tensor([50, 99, 2**40, 0, -3, 6])
    return tensors | {"until": lives}, {"causal": True}


def key_bias(draw):
    """A weight per key; -inf takes a key out."""
    tensors = draw.qkv(2, 4, 12, 23, kv_heads=2)
    values = draw.normal(2, 2, 23)
    values[..., 5] = values[1, 0, :4] = -math.inf
    return tensors | {"key_bias": values}, {}


def mask(draw):
    """A dense mask shared by the heads; two queries see nothing."""
    sees = draw.flags(2, 1, 19, 22, keep=0.6)
    sees[0, 0, 3] = sees[1, 0, 18] = False
    return draw.qkv(2, 3, 19, 22) | {"mask": sees}, {}


def bias(draw):
    """A dense bias shared by the batch; one query is hidden by -inf."""
    values = draw.normal(1, 2, 18, 25)
    values[0, 1, 7] = -math.inf
    values[0, 0, :, 11] = -math.inf
    return draw.qkv(2, 2, 18, 25) | {"bias": values}, {}


def alibi(draw):
    """Six heads: four slopes of a power of two, then two from between them."""
    return draw.qkv(1, 6, 15, 24), {"causal": True, "alibi": True}


def softcap(draw):
    """A cap low enough to bend most scores."""
    return draw.qkv(1, 2, 31, 31), {"causal": True, "softcap": 2.0}


def packed(draw):
    """Four sequences in one row, one without queries, one without keys."""
    tensors = draw.qkv(1, 4, 29, 43, kv_heads=2)
    tensors["offsets_q"] = torch.tensor([0, 9, 9, 12, 29])
    tensors["offsets_k"] = torch.tensor([0, 9, 16, 16, 43])
    tensors["key_bias"] = draw.normal(1, 2, 43)
    tensors["until"] = draw.integers(2, 40, 1, 2, 43)
    return tensors, {"causal": True, "window_left": 14}


def everything(draw):
    """All options at once that may stand together."""
    tensors = draw.qkv(2, 6, 19, 30, kv_heads=2, d=7, dv=5)
    tensors["lengths"] = torch.tensor([30, 26])
    tensors["lengths_q"] = torch.tensor([17, 19])
    tensors["key_bias"] = draw.normal(2, 2, 30)
    tensors["key_bias"][1, 1, 20] = -math.inf
    tensors["bias"] = draw.normal(1, 6, 19, 30)
    tensors["mask"] = draw.flags(2, 1, 19, 30, keep=0.85)
    tensors["until"] = torch.arange(30) + draw.integers(3, 25, 2, 2, 30)
    options = {"causal": True, "window_left": 11, "window_right": 4, "sinks": 2}
    return tensors, options | {"softcap": 5.0, "alibi": True, "scale": 0.3125}


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    inputs = {name: x.clone() for name, x in case.tensors.items()}
    for name in ("q", "k", "v", "key_bias", "bias"):
        if name in inputs:
            inputs[name].requires_grad_()
    results = attention(inputs, case.options)
    results |= gradients(inputs, results["o"])
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def metadata(case):
    """Options as strings; `causal` is always there."""
    options = {"causal": False} | case.options
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}


def verify(case, stored):
    """What must hold for every case, and PyTorch's own attention where it can say something."""
    for name, x in stored.items():
        if name in ("key_bias", "bias", "expected_lse"):
            assert not x.isnan().any() and not (x == math.inf).any(), (case.name, name)
        elif x.is_floating_point():
            assert x.isfinite().all(), (case.name, name)
    seen = stored["expected_lse"] > -math.inf
    total = stored["expected_received"].sum(-1)
    torch.testing.assert_close(total, seen.sum(-1).double(), msg=f"{case.name}: rows of A do not sum to 1")
    assert not stored["expected_o"][~seen].any() and not stored["expected_dq"][~seen].any(), case.name
    plain = set(case.options) <= {"causal"} and len(case.tensors) == 4
    if plain and (not case.options or stored["q"].shape[2] == stored["k"].shape[2]):
        verify_against_sdpa(case, stored)


def verify_against_sdpa(case, stored):
    """Compares output and gradients with PyTorch's own."""
    q, k, v = (stored[name].clone().requires_grad_() for name in "qkv")
    causal = case.options.get("causal", False)
    o = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(o, stored["expected_o"])
    for name, gradient in zip(("dq", "dk", "dv"), torch.autograd.grad(o, (q, k, v), stored["do"])):
        torch.testing.assert_close(gradient, stored["expected_" + name], msg=f"{case.name}: {name}")


def compare(path, stored, options):
    """Fails unless the file holds these tensors (results to 1e-12) and these options."""
    with safe_open(path, "pt") as file:
        assert file.metadata() == options, f"{path.name}: options differ"
        assert set(file.keys()) == set(stored), f"{path.name}: tensors differ"
        for name, x in stored.items():
            torch.testing.assert_close(file.get_tensor(name), x, rtol=1e-12, atol=1e-12, msg=f"{path.name}: {name}")


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of exact attention.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    total = 0
    for case in cases():
        stored, path = solved(case), FOLDER / f"{case.name}.safetensors"
        verify(case, stored)
        if check:
            compare(path, stored, metadata(case))
        else:
            save_file(stored, path, metadata(case))
        total += path.stat().st_size
        print(f"{case.name:20} {path.stat().st_size:8} bytes  {metadata(case)}")
    print(f"{'total':20} {total:8} bytes")


if __name__ == "__main__":
    main()
