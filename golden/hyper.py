"""HyperAttention, defined once more: float64 PyTorch from its rules, dense, gradients by autograd.

A row's bin is the number whose bit t says whether x·R_t > 0, and its rank the place of that number in the reflected Gray code. A square
is some queries over keys that they all see: keys in order of (rank, row), blocks of `block`; a query looks at the block that the first
key of its own rank or a higher one stands in, the last one where there is none, and at keys drawn outside of it:

    A_ij ∝ c_ij e^{s_ij},   c = 1 in the block, eligible / drawn for a key drawn evenly, a sum of 1 / (drawn p_j) over the draws of a key by norm.

Bidirectional, a sequence is one square. Causal, positions are halved (the first half is the shorter one), the second half's queries
over the first half's keys are a square, and at most `min_len` positions are exact. A draw is a function of (seed, batch row, query head, square,
block, index): numbers of SplitMix64, without replacement by Floyd's sample, by norm from running sums of sorted keys. The seed is 0.

Writes `hyper/NAME.safetensors`, one file per case, with

* inputs: q k v do and, where the case has them, hyperplanes [Dk,bits] (else drawn from the seed), lengths lengths_q;
* results: expected_o expected_lse expected_dq expected_dk expected_dv, expected_order_q expected_order_k expected_buckets_q
  expected_buckets_k (-1: padding), expected_pairs (how many keys are looked at, draws of one key counted apart);
* options, as strings in the file's metadata: causal bits block samples min_len by_norm scale.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/hyper.py            # writes the files
    python golden/hyper.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from exact import Case, Draw, compare, gradients, metadata, repeated, sizes, verify_against_sdpa
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "hyper"
SEED = 0
DEFAULTS = {"bits": 7, "block": 256, "samples": 256, "min_len": 4096, "by_norm": False}
WORD = 2**64
STEP = 0x9E3779B97F4A7C15


# ------------------------------------------------------------------- numbers


def mixed(x):
    """The finalizer of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


class Stream:
    """Numbers that depend on some words and on their index."""

    def __init__(self, *words):
        self.key = STEP
        for word in words:
            self.key = mixed((mixed((self.key + word) % WORD) + STEP) % WORD)

    def bits(self, index):
        """64 of them."""
        return mixed((self.key + (index + 1) * STEP) % WORD)

    def below(self, index, end):
        """From 0 to end - 1."""
        return self.bits(index) * end >> 64

    def unit(self, index):
        """In [0, 1)."""
        return (self.bits(index) >> 11) / 2**53

    def normal(self, index):
        """Box and Muller."""
        return math.sqrt(-2 * math.log(1 - self.unit(2 * index))) * math.cos(math.tau * self.unit(2 * index + 1))


# ---------------------------------------------------------------- definition


def hyperplanes(tensors, options):
    """[Dk, bits]."""
    if "hyperplanes" in tensors:
        return tensors["hyperplanes"]
    stream, width, bits = Stream(SEED), tensors["q"].shape[-1], options["bits"]
    normal = [[stream.normal(d * bits + t) for t in range(bits)] for d in range(width)]
    return torch.tensor(normal).float().double()


def gray_codes(bits):
    """All numbers of so many bits, each one bit from the next: reflect and prefix."""
    codes = [0]
    for bit in range(bits):
        codes += [code | 1 << bit for code in reversed(codes)]
    return codes


def bins(rows, planes):
    """Bins [..., rows]; fails where a side is a matter of rounding."""
    products = rows.detach() @ planes
    doubtful = (products.abs() < 1e-5 * rows.norm(dim=-1)[..., None] * planes.norm(dim=0)) & (products != 0)
    assert not doubtful.any(), "a row lies on a hyperplane"
    return ((products > 0).long() << torch.arange(planes.shape[1])).sum(-1)


def parts(tensors, options, b):
    """Squares (queries, keys, number) and exact parts (queries, keys) of a batch row, as lists of rows."""
    keys, queries = (int(count[b]) for count in sizes(tensors))
    if not options["causal"]:
        return [(list(range(queries)), list(range(keys)), 0)] if keys else [], []
    row = lambda position: position - keys + queries
    standing = lambda low, high: [row(p) for p in range(low, high) if 0 <= row(p)]
    squares, exact, waiting = [], [], [(0, keys, 1)]
    while waiting:
        low, high, number = waiting.pop()
        if high - low <= max(options["min_len"], 1):
            exact += [([i], list(range(low, i + keys - queries + 1))) for i in standing(low, high)]
            continue
        middle = low + (high - low) // 2
        squares.append((standing(middle, high), list(range(low, middle)), number))
        waiting += [(low, middle, 2 * number), (middle, high, 2 * number + 1)]
    return squares, exact


def evenly(stream, samples, outside):
    """Places drawn without replacement, each with what it counts for."""
    drawn = min(samples, len(outside))
    if drawn == len(outside):
        return [(place, 1.0) for place in outside]
    taken = set()
    for index, last in enumerate(range(len(outside) - drawn, len(outside))):
        at = stream.below(index, last + 1)
        taken.add(last if at in taken else at)
    return [(outside[at], len(outside) / drawn) for at in taken]


def by_norm(stream, samples, outside, norms):
    """Places drawn with replacement by the norms of values."""
    drawn, total = min(samples, len(outside)), sum(norms[place] for place in outside)
    all_drawn = []
    for index in range(drawn):
        if total == 0:
            all_drawn.append((outside[stream.below(index, len(outside))], len(outside) / drawn))
            continue
        rest = stream.unit(index) * total
        for place in outside:
            rest -= norms[place]
            if rest < 0:
                break
        all_drawn.append((place, total / (drawn * norms[place])))
    return all_drawn


def look(c, options, rank, norm, square, stream_of):
    """Adds what the queries of a square look at to c [N,M]; gives how many pairs these are."""
    queries, keys, number = square
    rank_q, rank_k = rank
    order = sorted(keys, key=lambda j: (rank_k[j], j))
    pairs = 0
    for i in queries:
        block = min(sum(rank_k[j] < rank_q[i] for j in keys), len(keys) - 1) // options["block"]
        own = [place for place in range(len(keys)) if place // options["block"] == block]
        outside = [place for place in range(len(keys)) if place // options["block"] != block]
        stream = stream_of(number, block)
        norms = [norm[j] for j in order]
        draw = by_norm(stream, options["samples"], outside, norms) if options["by_norm"] else evenly(stream, options["samples"], outside)
        for place, count in [(place, 1.0) for place in own] + draw:
            c[i, order[place]] += count
            pairs += 1
    return pairs


def counts(tensors, options):
    """c [B,H,N,M], and how many pairs meet."""
    (batch, heads, n, _), (_, kv_heads, m, _) = tensors["q"].shape, tensors["k"].shape
    planes = hyperplanes(tensors, options)
    place = {code: rank for rank, code in enumerate(gray_codes(planes.shape[1]))}
    c, pairs = torch.zeros(batch, heads, n, m, dtype=torch.float64), 0
    bins_q, bins_k = bins(tensors["q"], planes), bins(tensors["k"], planes)
    norms = tensors["v"].detach().norm(dim=-1).float().double()
    for b in range(batch):
        squares, exact = parts(tensors, options, b)
        for h in range(heads):
            g = h // (heads // kv_heads)
            rank = [[place[code] for code in rows.tolist()] for rows in (bins_q[b, h], bins_k[b, g])]
            for square in squares:
                pairs += look(c[b, h], options, rank, norms[b, g].tolist(), square, lambda *at: Stream(SEED, b, h, *at))
            for queries, keys in exact:
                c[b, h, queries, keys] = 1.0
                pairs += len(keys)
    return c, pairs


def attention(tensors, options):
    """o and lse; differentiable in the float inputs."""
    q = tensors["q"]
    c, pairs = counts(tensors, options)
    scores = options.get("scale", 1 / math.sqrt(q.shape[-1])) * q @ repeated(tensors["k"], q).transpose(-1, -2)
    seen = c > 0
    top = scores.detach().masked_fill(~seen, -math.inf).amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    weights = c * (scores - top).masked_fill(~seen, 0.0).exp()
    total, any_seen = weights.sum(-1, keepdim=True), seen.any(-1)
    o = weights / torch.where(any_seen[..., None], total, 1.0) @ repeated(tensors["v"], q)
    lse = (top + total.log()).squeeze(-1).masked_fill(~any_seen, -math.inf)
    return {"o": o, "lse": lse, "pairs": torch.tensor([pairs])}


def orders(tensors, options):
    """Orders and buckets of queries and keys, sequence by sequence."""
    planes, found = hyperplanes(tensors, options), {}
    place = {code: rank for rank, code in enumerate(gray_codes(planes.shape[1]))}
    real_keys, real_queries = sizes(tensors)
    for name, real in (("q", real_queries), ("k", real_keys)):
        codes = bins(tensors[name], planes)
        order = torch.full_like(codes, -1)
        for b, count in enumerate(real.tolist()):
            for h, own in enumerate(codes[b]):
                own[count:] = -1
                order[b, h, :count] = torch.tensor(sorted(range(count), key=lambda row: (place[int(own[row])], row)), dtype=torch.int64)
        found |= {"order_" + name: order, "buckets_" + name: codes}
    return found


# --------------------------------------------------------------------- cases


def planes(draw, width, bits):
    """Hyperplanes from normal numbers."""
    return {"hyperplanes": torch.from_numpy(draw.random.standard_normal((width, bits)).astype("float32")).double()}


def one_block(draw):
    """Exact attention."""
    return draw.qkv(1, 2, 20, 20) | planes(draw, 8, 7), {"causal": False}


def short(draw):
    """Exact causal attention."""
    return draw.qkv(1, 2, 20, 20) | planes(draw, 8, 7), {"causal": True}


def blocks(draw):
    """Blocks and draws; the last block is one key long."""
    return draw.qkv(1, 2, 65, 65) | planes(draw, 8, 7), {"block": 16, "samples": 9}


def causal(draw):
    """An odd length halved."""
    return draw.qkv(1, 2, 67, 67) | planes(draw, 8, 5), {"causal": True, "block": 6, "samples": 5, "min_len": 9}


def gqa(draw):
    """Four query heads draw for themselves from two kv heads."""
    tensors = draw.qkv(2, 4, 37, 37, kv_heads=2, d=7, dv=5) | planes(draw, 7, 4)
    return tensors, {"causal": True, "block": 5, "samples": 3, "min_len": 6, "scale": 0.3125}


def all_drawn(draw):
    """As many draws as there are other keys, in one square more than there are in another."""
    return draw.qkv(1, 2, 48, 48) | planes(draw, 8, 3), {"causal": True, "block": 4, "samples": 12, "min_len": 5}


def none_drawn(draw):
    """Blocks alone."""
    return draw.qkv(1, 2, 41, 41) | planes(draw, 8, 6), {"block": 7, "samples": 0}


def single_keys(draw):
    """Blocks of one key; halves of one token."""
    return draw.qkv(1, 2, 23, 23) | planes(draw, 8, 6), {"causal": True, "block": 1, "samples": 1, "min_len": 0}


def norms(draw):
    """Drawn by norms, some of them zero."""
    tensors = draw.qkv(1, 2, 50, 50, kv_heads=1, dv=5) | planes(draw, 8, 5)
    tensors["v"][:, :, 4::9] = 0.0
    return tensors, {"block": 8, "samples": 11, "by_norm": True}


def norms_causal(draw):
    """The same, halved; all values of the first square's keys are zero."""
    tensors = draw.qkv(1, 2, 50, 50, d=6) | planes(draw, 6, 5)
    tensors["v"][:, :, :12] = 0.0
    return tensors, {"causal": True, "block": 4, "samples": 3, "min_len": 7, "by_norm": True}


def lengths(draw):
    """Padded sequences, one of them empty."""
    tensors = draw.qkv(4, 2, 31, 31, d=6) | planes(draw, 6, 4)
    return tensors | {"lengths": torch.tensor([31, 0, 1, 22])}, {"block": 4, "samples": 4}


def lengths_q(draw):
    """Queries and keys padded apart, once with more real queries than real keys."""
    tensors = draw.qkv(3, 2, 14, 40, kv_heads=1, d=6) | planes(draw, 6, 4)
    lengths = {"lengths": torch.tensor([40, 29, 6]), "lengths_q": torch.tensor([11, 0, 14])}
    return tensors | lengths, {"causal": True, "block": 4, "samples": 4, "min_len": 3}


def more_keys(draw):
    """Some queries at the end of the keys."""
    return draw.qkv(1, 4, 13, 45, kv_heads=2, d=6) | planes(draw, 6, 4), {"causal": True, "block": 5, "samples": 4, "min_len": 6}


def more_queries(draw):
    """Bidirectional, three queries for a key."""
    return draw.qkv(1, 2, 60, 19, d=6) | planes(draw, 6, 4), {"block": 5, "samples": 4}


def alike(draw):
    """Rows of zeros and rows alike: ranks are equal, order is that of rows."""
    tensors = draw.qkv(1, 2, 40, 40, d=6) | planes(draw, 6, 2)
    for name in ("q", "k"):
        tensors[name][:, :, 3::7] = 0.0
        tensors[name][:, :, 5::7] = tensors[name][:, :, 5:6]
    return tensors, {"block": 6, "samples": 5}


def from_seed(draw):
    """Hyperplanes drawn."""
    return draw.qkv(1, 2, 60, 60, d=9), {"causal": True, "bits": 11, "block": 6, "samples": 6, "min_len": 8}


MAKERS = [
    one_block, short, blocks, causal, gqa, all_drawn, none_drawn, single_keys, norms, norms_causal, lengths, lengths_q, more_keys,
    more_queries, alike, from_seed,
]  # fmt: skip


def cases():
    """All cases, each from a seed of its own so that a new one changes none of the others."""
    return [Case(make.__name__, *make(Draw(seed))) for seed, make in enumerate(MAKERS, start=1)]


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    options = {"causal": False} | DEFAULTS | case.options
    inputs = {name: x.clone() for name, x in case.tensors.items()}
    for name in ("q", "k", "v"):
        inputs[name].requires_grad_()
    results = attention(inputs, options)
    results |= gradients(inputs, results["o"]) | orders(case.tensors, options)
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def verify(case, stored):
    """What must hold for every case."""
    for name, x in stored.items():
        assert name == "expected_lse" or not x.is_floating_point() or x.isfinite().all(), (case.name, name)
        if x.is_floating_point() and not name.startswith("expected_"):
            assert (x.float().double() == x).all(), (case.name, name)
    codes = gray_codes(7)
    assert all((a ^ b).bit_count() == 1 for a, b in zip(codes, codes[1:])) and len(set(codes)) == 128
    if case.name in ("one_block", "short"):
        verify_against_sdpa(case, stored)


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of HyperAttention.")
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
