"""Attention over codewords, defined once more: float64 PyTorch, dense, gradients by autograd.

With codewords C of a kv head the code of key j is the nearest one, the lowest of equals, and k̂_j = C_code. Codes are
constants and gradients go straight through: k̂ = k + (C_code - k) with the bracket detached. vq attends with q, vq_qk with
codewords of queries, one codebook per query head. With exclude_recent keys at distances below `recent` are left out. The
loss is beta times the mean of |k - C_code|² over real keys, for vq_qk plus the same of queries and their codewords.

Writes `vq/NAME.safetensors`, one file per case, with

* inputs: q k v do, codebook [G,S,D], for vq_qk codebook_q [H,S,D], and, where the case has them, lengths lengths_q;
* results: expected_codes, for vq_qk expected_codes_q (-1 for padding), expected_o expected_lse expected_dq expected_dk expected_dv
  expected_loss;
* in the file's metadata, as strings: mechanism, causal, and its options.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/vq.py            # writes the files
    python golden/vq.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from exact import Case, Draw, compare, metadata, padding, positions, repeated, sizes, verify_against_sdpa
from safetensors.torch import save_file
from torch.nn.functional import pad

FOLDER = Path(__file__).parent / "vq"
BETA = 1e-4


# ---------------------------------------------------------------- definition


def codes_of(rows, codebook):
    """The nearest codeword of every row [B,heads,N,D] in [heads,S,D]: [B,heads,N]."""
    distance = (rows.detach()[:, :, :, None] - codebook[None, :, None]).square().sum(-1)
    return distance.argmin(-1)


def straight_through(rows, codebook, codes):
    """Codewords with the gradient of the rows they stand for."""
    batch, heads = codes.shape[:2]
    chosen = codebook[torch.arange(heads)[None, :, None].expand(batch, -1, codes.shape[2]), codes]
    return rows + (chosen - rows).detach()


def valid(tensors):
    """Which keys and which queries are no padding: [B,1,M] and [B,1,N]."""
    keys, queries = sizes(tensors)
    real = [torch.arange(tensors[name].shape[2]) < count[:, None] for name, count in (("k", keys), ("q", queries))]
    return [each[:, None] for each in real]


def attention(tensors, options):
    """o and lse of dense softmax, the codes, and the loss."""
    q, k, (p, j) = tensors["q"], tensors["k"], positions(tensors, {})
    real_k, real_q = valid(tensors)
    codes = codes_of(k, tensors["codebook"])
    results = {"codes": codes.masked_fill(~real_k, -1)}
    quantised = straight_through(k, tensors["codebook"], codes)
    if options["mechanism"] == "vq_qk":
        codes_q = codes_of(q, tensors["codebook_q"])
        results["codes_q"] = codes_q.masked_fill(~real_q, -1)
        q = straight_through(q, tensors["codebook_q"], codes_q)
        strayed = (tensors["q"] - q).square().sum(-1)[real_q.expand(q.shape[:3])].mean()
    sees = padding(tensors) & ((j <= p) if options["causal"] else torch.ones_like(j <= p))
    if options.get("exclude_recent"):
        sees = sees & ((p - j).abs() >= options["recent"])
    sees = sees.expand(q.shape[:3] + (k.shape[2],))
    scores = options.get("scale", 1 / math.sqrt(q.shape[-1])) * q @ repeated(quantised, q).transpose(-1, -2)
    scores = scores.masked_fill(~sees, -math.inf)
    top = pad(scores.detach(), (0, 1), value=-math.inf).amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    weights = torch.where(sees, (scores - top).exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    seen = sees.any(-1)
    results["o"] = weights / torch.where(seen[..., None], total, 1.0) @ repeated(tensors["v"], q)
    results["lse"] = (top + total.log()).squeeze(-1).masked_fill(~seen, -math.inf)
    square = (tensors["k"] - quantised).square().sum(-1)[real_k.expand(k.shape[:3])].mean()
    both = square + strayed if options["mechanism"] == "vq_qk" else square
    results["loss"] = options.get("beta", BETA) * both
    return results


def gradients(tensors, o):
    """Gradients of sum(o * do)."""
    return dict(zip(["dq", "dk", "dv"], torch.autograd.grad(o, [tensors[name] for name in "qkv"], tensors["do"])))


# --------------------------------------------------------------------- cases


def coded(draw, *shape, codes, codes_q=None, **more):
    """q, k, v and codebooks."""
    tensors = draw.qkv(*shape, **more)
    heads, kv_heads, width = tensors["q"].shape[1], tensors["k"].shape[1], tensors["q"].shape[3]
    tensors["codebook"] = draw.normal(kv_heads, codes, width)
    if codes_q:
        tensors["codebook_q"] = draw.normal(heads, codes_q, width)
    return tensors


def causal(draw):
    """As many queries as keys, in blocks of eight."""
    return coded(draw, 2, 2, 45, 45, codes=9, d=6), {"mechanism": "vq", "causal": True, "block": 8}


def default_block(draw):
    """Longer than a block."""
    return coded(draw, 1, 2, 140, 140, kv_heads=1, codes=12, d=5, dv=3), {"mechanism": "vq", "causal": True}


def bidirectional(draw):
    """Every query sees every key."""
    return coded(draw, 1, 4, 30, 30, kv_heads=2, codes=7, d=7, dv=5), {"mechanism": "vq", "causal": False, "scale": 0.3125}


def far(draw):
    """The far part alone: the first rows see nothing."""
    options = {"mechanism": "vq", "causal": True, "block": 4, "recent": 6, "exclude_recent": True, "beta": 0.5}
    return coded(draw, 1, 2, 40, 40, codes=8, d=6), options


def far_bidirectional(draw):
    """The far parts on both sides."""
    options = {"mechanism": "vq", "causal": False, "recent": 9, "exclude_recent": True}
    return coded(draw, 1, 2, 40, 40, kv_heads=1, codes=8, d=6), options


def lengths(draw):
    """Padded sequences, one of them empty."""
    tensors = coded(draw, 4, 2, 18, 18, codes=5, d=6)
    return tensors | {"lengths": torch.tensor([18, 0, 1, 13])}, {"mechanism": "vq", "causal": True, "block": 5}


def lengths_q(draw):
    """Queries and keys padded apart, once with more real queries than real keys."""
    counts = {"lengths": torch.tensor([25, 17, 4]), "lengths_q": torch.tensor([11, 0, 9])}
    tensors = coded(draw, 3, 2, 11, 25, kv_heads=1, codes=6, d=6) | counts
    return tensors, {"mechanism": "vq", "causal": True, "block": 3}


def ties(draw):
    """Codewords that are alike, and keys in the middle between two."""
    tensors = coded(draw, 1, 1, 20, 20, codes=6, d=4)
    tensors["codebook"] = tensors["codebook"].round()
    tensors["codebook"][:, 4] = tensors["codebook"][:, 1]
    pairs = draw.integers(0, 6, 1, 1, 20, 2)
    tensors["k"] = tensors["codebook"][0][pairs].mean(-2)
    return tensors, {"mechanism": "vq", "causal": True, "block": 6}


def every_key(draw):
    """The codebook holds every key: exact attention."""
    tensors = coded(draw, 1, 2, 24, 24, codes=1, d=6)
    return tensors | {"codebook": tensors["k"][0].clone()}, {"mechanism": "vq", "causal": True, "block": 7}


def both(draw):
    """Queries and keys quantised."""
    tensors = coded(draw, 2, 4, 45, 45, kv_heads=2, codes=9, codes_q=5, d=6, dv=4)
    return tensors, {"mechanism": "vq_qk", "causal": True, "block": 8}


def both_bidirectional(draw):
    """All queries of one code share one output."""
    tensors = coded(draw, 1, 2, 33, 21, codes=4, codes_q=6, d=6)
    return tensors | {"lengths": torch.tensor([19])}, {"mechanism": "vq_qk", "causal": False, "scale": 0.5}


def both_steep(draw):
    """Logits of 80, above and below, in rows that see the lowest first."""
    tensors = coded(draw, 1, 1, 36, 36, codes=4, codes_q=4, d=2, dv=5)
    line = torch.tensor([-1.0, -0.5, 0.5, 1.0]).double()
    tensors["codebook"] = torch.stack([8 * line, 0 * line], -1)[None]
    tensors["codebook_q"] = torch.stack([10 * line, 0 * line], -1)[None]
    codes = torch.cat([torch.zeros(12, dtype=torch.int64), draw.integers(0, 4, 24)])
    tensors["k"] = tensors["codebook"][:, codes][None] + 0.0625
    tensors["q"] = tensors["codebook_q"][:, draw.integers(0, 4, 36)][None] - 0.125
    return tensors, {"mechanism": "vq_qk", "causal": True, "block": 8, "scale": 1.0}


MAKERS = [
    causal, default_block, bidirectional, far, far_bidirectional, lengths, lengths_q, ties, every_key, both,
    both_bidirectional, both_steep,
]  # fmt: skip


def cases():
    """All cases, each from a seed of its own so that a new one changes none of the others."""
    return [Case(make.__name__, *make(Draw(seed))) for seed, make in enumerate(MAKERS, start=1)]


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    inputs = {name: x.clone() for name, x in case.tensors.items()}
    for name in "qkv":
        inputs[name].requires_grad_()
    results = attention(inputs, case.options)
    results |= gradients(inputs, results["o"])
    results["loss"] = results["loss"].reshape(1)
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def verify(case, stored):
    """What must hold for every case."""
    for name, x in stored.items():
        assert name == "expected_lse" or not x.is_floating_point() or x.isfinite().all(), (case.name, name)
        if x.is_floating_point() and not name.startswith("expected_"):
            assert (x.float().double() == x).all(), (case.name, name)
    if case.name == "every_key":
        assert (stored["expected_codes"] == torch.arange(24)).all()
        assert stored["expected_loss"] == 0
        verify_against_sdpa(Case(case.name, {name: case.tensors[name] for name in ("q", "k", "v", "do")}, {"causal": True}), stored)


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of attention over codewords.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for case in cases():
        stored, path = solved(case), FOLDER / f"{case.name}.safetensors"
        verify(case, stored)
        if check:
            compare(path, stored, metadata(case))
        else:
            save_file(stored, path, metadata(case))
        print(f"{case.name:20} {path.stat().st_size:8} bytes  {metadata(case)}")


if __name__ == "__main__":
    main()
