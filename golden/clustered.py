"""Clustered attention, defined once more: float64 PyTorch from its formulas, gradients by autograd.

Leaders: in order, a token joins the most similar leader with a cosine of `threshold` or more (the earliest of equals), else it leads;
a vector of zeros is similar to nothing. With P [n,m] the members of clusters as a matrix of zeros and ones and n_a its column sums

    bidirectional  O = softmax(scale (P'Q/n)(P'K/n)' + ln n) (P'V/n), token i takes the row of its cluster,
                   or Σ_a softmax_a(cos(x_i, x_leader(a)) / temperature) O_a over its `soft` most similar clusters,
                   in training with thresholds g·that + (1 - g)·(its own query's attention), g = sigmoid((cos - threshold) / temperature)
                   to its leader, 1 for leaders;
    causal         a query of block c (of `block` tokens) reads the block's keys up to itself and the clusters of the tokens before the
                   block, with their counts and means as of there.

representative=leader takes q and k of the leader instead of means; without log_size there is no ln n. Clusters are constants.

Writes `clustered/NAME.safetensors`, one file per case, with

* inputs: q k v do and, where the case has them, x threshold lengths;
* results: expected_o expected_lse (of the row of a token's own cluster) expected_dq expected_dk expected_dv and, where outputs depend
  on cosines, expected_dx expected_dthreshold; expected_assignment expected_sizes expected_representatives as traces;
* options, as strings in the file's metadata, with causal and training beside those of the mechanism.

Every float is stored as float64; inputs and options that are computed with are exact in float32, and no choice is so close that float32 would decide otherwise.

    pip install torch numpy safetensors
    python golden/clustered.py            # writes the files
    python golden/clustered.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from exact import Case, Draw, compare, metadata
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "clustered"
DEFAULTS = {"threshold": 0.9, "representative": "mean", "log_size": True, "soft": 0, "temperature": 0.1, "metric": "hidden", "block": 256}
MARGIN = 1e-4


# ---------------------------------------------------------------- definition


def cosine(a, b):
    """Of two vectors; 0 where one is zero."""
    length = a.norm() * b.norm()
    return a @ b / length if length > 0 else torch.zeros((), dtype=torch.float64)


def leader_scan(rows, threshold):
    """The cluster of every row, and the row that leads each cluster."""
    assignment, leaders = [], []
    for i, row in enumerate(rows):
        found = [(cosine(row, rows[leader]).item() if row.any() and rows[leader].any() else -2.0) for leader in leaders]
        best = max(found, default=-2.0)
        assert all(abs(c - threshold) > MARGIN for c in found), "a cosine is close to the threshold"
        assert best < threshold or all(c == best or best - c > MARGIN or (best - c) < 1e-14 for c in found), "two leaders are close"
        if best >= threshold:
            first = next(a for a, c in enumerate(found) if best - c < 1e-14)
            assignment.append(first)
        else:
            assignment.append(len(leaders))
            leaders.append(i)
    return torch.tensor(assignment), torch.tensor(leaders)


class Set:
    """One sequence and the query heads that share its clusters."""

    def __init__(self, tensors, options, b, h, rows):
        heads, kv_heads = tensors["q"].shape[1], tensors["k"].shape[1]
        g = h * kv_heads // heads
        self.options = options
        self.q, self.k, self.v = tensors["q"][b, h, rows], tensors["k"][b, g, rows], tensors["v"][b, g, rows]
        self.compared = self.k if options["metric"] == "keys" else tensors["x"][b, rows]
        self.threshold = tensors["threshold"][h] if "threshold" in tensors else None
        limit = options["threshold"] if self.threshold is None else self.threshold.item()
        self.assignment, self.leaders = leader_scan(self.compared.detach(), limit)
        self.scale = options.get("scale", 1 / math.sqrt(self.q.shape[-1]))

    def members(self, tokens):
        """P of the first tokens, and the number of members of each cluster."""
        clusters = int(self.assignment[:tokens].max()) + 1 if tokens else 0
        p = (self.assignment[:tokens, None] == torch.arange(clusters)).double()
        return p, p.sum(0)

    def represent(self, x, tokens):
        """Rows of the clusters of the first tokens."""
        p, counts = self.members(tokens)
        if self.options["representative"] == "leader":
            return x[self.leaders[: len(counts)]]
        return p.T @ x[:tokens] / counts[:, None]

    def keys(self, tokens):
        """Merged keys and values, and what their logits get."""
        p, counts = self.members(tokens)
        bias = counts.log() if self.options["log_size"] else torch.zeros_like(counts)
        return self.represent(self.k, tokens), p.T @ self.v[:tokens] / counts[:, None], bias

    def attend(self, q, keys):
        """Attention of some queries, and its log-sum-exp."""
        k, v, bias = keys
        scores = self.scale * q @ k.T + bias
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    def bidirectional(self):
        """o and lse of every token."""
        n = len(self.q)
        keys = self.keys(n)
        of_clusters, lse = self.attend(self.represent(self.q, n), keys)
        o = torch.stack([self.blend(i, of_clusters) for i in range(n)])
        if self.threshold is not None and self.options.get("training"):
            own, _ = self.attend(self.q, keys)
            gates = torch.stack([self.gate(i) for i in range(n)])[:, None]
            o = gates * o + (1 - gates) * own
        return o, lse[self.assignment]

    def blend(self, i, of_clusters):
        """What token i takes of the results of clusters."""
        if not self.options["soft"]:
            return of_clusters[self.assignment[i]]
        cosines = torch.stack([cosine(self.compared[i], self.compared[leader]) for leader in self.leaders])
        order = cosines.detach().argsort(descending=True, stable=True)
        most = min(self.options["soft"], len(order))
        if most < len(order):
            assert cosines[order[most - 1]] - cosines[order[most]] > MARGIN, "two clusters are close"
        weights = (cosines[order[:most]] / self.options["temperature"]).softmax(0)
        return weights @ of_clusters[order[:most]]

    def gate(self, i):
        """How far token i is open to its cluster."""
        leader = self.leaders[self.assignment[i]]
        if leader == i:
            return torch.ones((), dtype=torch.float64)
        return ((cosine(self.compared[i], self.compared[leader]) - self.threshold) / self.options["temperature"]).sigmoid()

    def causal(self):
        """o and lse of every token."""
        o, lse = [], []
        for i in range(len(self.q)):
            start = i // self.options["block"] * self.options["block"]
            k, v, bias = self.k[start : i + 1], self.v[start : i + 1], torch.zeros(i + 1 - start, dtype=torch.float64)
            if start:
                merged = self.keys(start)
                k, v, bias = (torch.cat(pair) for pair in zip(merged, (k, v, bias)))
            row, log_sum = self.attend(self.q[i], (k, v, bias))
            o.append(row)
            lse.append(log_sum)
        return torch.stack(o), torch.stack(lse)


def attention(tensors, options):
    """o, lse, and the traces; differentiable in the float inputs."""
    batch, heads, n, _ = tensors["q"].shape
    lengths = tensors.get("lengths", torch.full((batch,), n))
    o = torch.zeros(batch, heads, n, tensors["v"].shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, n), -math.inf, dtype=torch.float64)
    sets = {}
    for b in range(batch):
        rows = slice(0, int(lengths[b]))
        for h in range(heads):
            part = Set(tensors, options, b, h, rows)
            found = part.causal() if options.get("causal") else part.bidirectional()
            o[b, h, rows], lse[b, h, rows] = found
            sets[b, h] = part
    return {"o": o, "lse": lse} | traces(tensors, options, sets)


def traces(tensors, options, sets):
    """Clusters as they are reported: one set for all heads, one for each kv head, or one for each head."""
    (batch, heads, n, _), kv_heads = tensors["q"].shape, tensors["k"].shape[1]
    count = heads if "threshold" in tensors else kv_heads if options["metric"] == "keys" else 1
    chosen = [[sets[b, c * heads // count] for c in range(count)] for b in range(batch)]
    most = max(len(part.leaders) for row in chosen for part in row)
    assignment = torch.full((batch, count, n), -1)
    sizes, representatives = torch.zeros(batch, count, most, dtype=torch.int64), torch.full((batch, count, most), -1)
    for b, row in enumerate(chosen):
        for c, part in enumerate(row):
            m = len(part.leaders)
            assignment[b, c, : len(part.assignment)] = part.assignment
            sizes[b, c, :m] = part.assignment.bincount(minlength=m)
            representatives[b, c, :m] = part.leaders
    found = {"assignment": assignment, "sizes": sizes, "representatives": representatives}
    return {name: x.squeeze(1) for name, x in found.items()} if count == 1 and options["metric"] == "hidden" else found


# --------------------------------------------------------------------- cases


def kinds(draw, *shape, of=5, noise=0.2):
    """Rows of a few kinds, exact in float32."""
    centres = draw.normal(*shape[:-2], of, shape[-1])
    which = draw.integers(0, of, *shape[:-1])
    rows = torch.take_along_dim(centres, which[..., None], -2) + noise * draw.normal(*shape)
    return rows.float().double()


def inputs(draw, batch, heads, n, **options):
    """q, k, v, do and x."""
    return draw.qkv(batch, heads, n, n, **options) | {"x": kinds(draw, batch, n, 6)}


def mean(draw):
    """Means with log_size; two heads on one, padded sequences, equal rows, a row of zeros."""
    tensors = inputs(draw, 2, 4, 29, kv_heads=2, d=6, dv=5)
    tensors["x"][:, 7] = tensors["x"][:, 2]
    tensors["x"][:, 11] = 0
    return tensors | {"lengths": torch.tensor([29, 18])}, {"threshold": 0.8}


def mean_without_log_size(draw):
    """Every cluster counts once."""
    return inputs(draw, 1, 2, 24, d=6), {"threshold": 0.7, "log_size": False, "scale": 0.3125}


def leader(draw):
    """Leaders' queries and keys, members' values."""
    return inputs(draw, 1, 4, 26, kv_heads=2, d=7), {"threshold": 0.8, "representative": "leader"}


def soft(draw):
    """Blends of three clusters."""
    return inputs(draw, 1, 2, 25, d=6), {"threshold": 0.8, "soft": 3, "temperature": 0.5}


def keys(draw):
    """Each kv head clusters its own keys; blends of two."""
    tensors = draw.qkv(1, 4, 22, 22, kv_heads=2, d=6)
    return tensors | {"k": kinds(draw, 1, 2, 22, 6)}, {"threshold": 0.8, "metric": "keys", "soft": 2, "temperature": 0.3125}


def gates(draw):
    """Thresholds of heads in training."""
    tensors = inputs(draw, 1, 4, 23, kv_heads=2, d=6)
    return tensors | {"threshold": torch.tensor([0.5, 0.625, 0.75, 0.9375]).double()}, {"training": True, "temperature": 0.25}


def causal(draw):
    """Blocks of 16, the last one short."""
    return inputs(draw, 1, 4, 54, kv_heads=2, d=6, dv=5), {"causal": True, "block": 16, "threshold": 0.8}


def causal_leader(draw):
    """Leaders' keys without log_size, blocks of 16, padded."""
    options = {"causal": True, "block": 16, "threshold": 0.7, "representative": "leader", "log_size": False}
    return inputs(draw, 2, 2, 40, d=6) | {"lengths": torch.tensor([33, 40])}, options


def nothing_merges(draw):
    """Exact attention."""
    return inputs(draw, 1, 2, 20, d=6), {"threshold": 2.0}


MAKERS = [mean, mean_without_log_size, leader, soft, keys, gates, causal, causal_leader, nothing_merges]


def cases():
    """All cases, each from the first seed of its own that leaves no choice close."""
    for number, make in enumerate(MAKERS, start=1):
        for seed in range(100 * number, 100 * number + 100):
            case = Case(make.__name__, *make(Draw(seed)))
            try:
                attention(case.tensors, DEFAULTS | case.options)
            except AssertionError:
                continue
            yield case
            break
        else:
            raise AssertionError(f"{make.__name__}: every seed has a close choice")


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    options = DEFAULTS | case.options
    names = ["q", "k", "v"]
    if options["metric"] == "hidden" and (options["soft"] or options.get("training")):
        names.append("x")
    if options.get("training"):
        names.append("threshold")
    tensors = {name: x.clone().requires_grad_(name in names) for name, x in case.tensors.items()}
    results = attention(tensors, options)
    slopes = torch.autograd.grad(results["o"], [tensors[name] for name in names], case.tensors["do"])
    results |= {"d" + name: x for name, x in zip(names, slopes)}
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def verify(case, stored):
    """What must hold for every case."""
    for name, x in stored.items():
        assert name == "expected_lse" or not x.is_floating_point() or x.isfinite().all(), (case.name, name)
        if x.is_floating_point() and not name.startswith("expected_"):
            assert (x.float().double() == x).all(), (case.name, name)
    sizes = stored["expected_sizes"]
    merged = int((sizes > 1).sum())
    assert (merged == 0) == (case.name == "nothing_merges"), f"{case.name}: {merged} clusters of more than one"
    if case.name == "nothing_merges":
        o = torch.nn.functional.scaled_dot_product_attention(*(stored[name] for name in "qkv"))
        torch.testing.assert_close(o, stored["expected_o"])


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of clustered attention.")
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
        print(f"{case.name:22} {path.stat().st_size:8} bytes  {metadata(case)}")


if __name__ == "__main__":
    main()
