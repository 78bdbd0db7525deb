"""Linear and gated linear attention, defined once more: float64 PyTorch from their formulas, gradients by autograd.

Every weight is written down. For linear attention, over the keys j that query i sees,

    w_ij = φ(q_i)·φ(k_j),    o_i = Σ_j w_ij v_j / (Σ_j w_ij + ε),

or without the division; for gated linear attention

    w_ij = scale Σ_d q_id k_jd exp(Σ_{j < m <= i} g_md),    o_i = Σ_{j <= i} w_ij v_j,

the sum of gates being one of a slice, not a difference of two.

Writes `linear/NAME.safetensors`, one file per case, with

* inputs: q k v do and, where the case has them, gates lengths lengths_q offsets_q offsets_k;
* results: expected_o expected_dq expected_dk expected_dv and, with gates, expected_dgates;
* options, as strings in the file's metadata: causal, and of the mechanism feature_map eps normalize window scale.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/linear.py            # writes the files
    python golden/linear.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from exact import Case, Draw, compare, metadata, padding, positions, repeated
from safetensors.torch import save_file
from torch.nn.functional import elu, relu

FOLDER = Path(__file__).parent / "linear"

MAPS = {
    "elu1": lambda x: elu(x) + 1,
    "relu": relu,
    "identity": lambda x: x,
    "squared_relu": lambda x: relu(x).square(),
    "softmax": lambda x: x.softmax(-1),
}


# ---------------------------------------------------------------- definition


def visible(tensors, options):
    """Which query sees which key: [B,1,N,M]."""
    p, j = positions(tensors, {})
    sees = padding(tensors)
    if "offsets_k" in tensors:
        segment = torch.bucketize(j[0, 0, 0], tensors["offsets_k"], right=True)
        sees = sees & (segment[:, None] == segment)
    if options.get("causal"):
        sees = sees & (j <= p)
    if "window" in options:
        sees = sees & ((p - j).abs() < options["window"])
    return sees


def decays(gates):
    """exp of the sum of gates from after j up to i, for j <= i; else 0: [B,H,N,N,D]."""
    n = gates.shape[2]
    i, j, m = torch.arange(n)[:, None, None], torch.arange(n)[:, None], torch.arange(n)
    between = ((j < m) & (m <= i)).double()
    return torch.einsum("ijm,bhmd->bhijd", between, gates).exp() * (j <= i).double()


def attention(tensors, options):
    """o, differentiable in the float inputs."""
    q, k, v = tensors["q"], repeated(tensors["k"], tensors["q"]), repeated(tensors["v"], tensors["q"])
    sees = visible(tensors, options).double()
    if "gates" in tensors:
        scale = options.get("scale", 1 / math.sqrt(q.shape[-1]))
        return sees * scale * torch.einsum("bhid,bhjd,bhijd->bhij", q, k, decays(tensors["gates"])) @ v
    phi = MAPS[options.get("feature_map", "elu1")]
    weights = sees * (phi(q) @ phi(k).transpose(-1, -2))
    if not options.get("normalize", True):
        return weights @ v
    total = weights.sum(-1, keepdim=True) + options.get("eps", 1e-6)
    return torch.where(total == 0, 0.0, weights @ v / torch.where(total == 0, 1.0, total))


def gradients(tensors, o):
    """Gradients of sum(o * do), as {dq, dk, …}."""
    names = ["q", "k", "v"] + ["gates"] * ("gates" in tensors)
    return dict(zip(["d" + n for n in names], torch.autograd.grad(o, [tensors[n] for n in names], tensors["do"])))


# --------------------------------------------------------------------- cases


def gated(draw, batch, heads, n, **options):
    """Inputs whose gates are weak, strong, or up to 20 a step."""
    tensors = draw.qkv(batch, heads, n, n, **options)
    d = tensors["q"].shape[-1]
    kinds = torch.tensor([0.01, 0.1, 1.0, 20.0]).double()[draw.integers(0, 4, batch, heads, n, d)]
    return tensors | {"gates": -(kinds * draw.normal(batch, heads, n, d).abs() / 4).float().double()}


def offsets(*bounds):
    """Of as many queries as keys."""
    return {"offsets_q": torch.tensor(bounds), "offsets_k": torch.tensor(bounds)}


def causal(draw):
    """Defaults; one token more than a chunk of 64."""
    return draw.qkv(1, 2, 65, 65), {"causal": True}


def full(draw):
    """One sum for all queries."""
    return draw.qkv(1, 2, 65, 65), {}


def gqa(draw):
    """Four query heads on two kv heads, values of another width."""
    return draw.qkv(2, 4, 30, 30, kv_heads=2, d=7, dv=5), {"causal": True, "feature_map": "softmax"}


def relu_map(draw):
    """Queries with no positive channel among them."""
    return draw.qkv(1, 2, 40, 40, d=4), {"causal": True, "feature_map": "relu", "eps": 0.125}


def squared(draw):
    """Squares, over all keys."""
    return draw.qkv(1, 2, 21, 21, d=6), {"feature_map": "squared_relu"}


def identity(draw):
    """Nothing divided."""
    return draw.qkv(1, 2, 70, 70, d=6), {"causal": True, "feature_map": "identity", "normalize": False}


def more_keys(draw):
    """Six queries at the end of 75 keys."""
    return draw.qkv(1, 4, 6, 75, kv_heads=2, d=6), {"causal": True}


def more_queries(draw):
    """The first queries stand before the first key."""
    return draw.qkv(1, 2, 80, 9, d=6), {"causal": True}


def lengths(draw):
    """Padded sequences, one of them empty."""
    return draw.qkv(4, 2, 17, 17, d=6) | {"lengths": torch.tensor([17, 0, 1, 12])}, {"causal": True}


def lengths_q(draw):
    """Queries and keys padded apart, once with more real queries than real keys."""
    tensors = draw.qkv(3, 2, 9, 22, kv_heads=1, d=6)
    return tensors | {"lengths": torch.tensor([22, 15, 4]), "lengths_q": torch.tensor([7, 0, 9])}, {"causal": True}


def lengths_full(draw):
    """Padding without causality."""
    tensors = draw.qkv(3, 2, 9, 22, kv_heads=1, d=6)
    return tensors | {"lengths": torch.tensor([22, 15, 0]), "lengths_q": torch.tensor([7, 0, 9])}, {}


def window(draw):
    """The five most recent keys, across chunks."""
    return draw.qkv(1, 2, 70, 70, d=6), {"causal": True, "window": 5}


def window_full(draw):
    """Keys at a distance below 20, with queries at the end of more keys."""
    return draw.qkv(1, 2, 30, 75, kv_heads=1, d=6), {"window": 20}


def packed(draw):
    """Sequences end to end."""
    return draw.qkv(1, 2, 40, 40, d=6) | offsets(0, 7, 7, 8, 40), {"causal": True}


def gated_default(draw):
    """Two and a half blocks of 16."""
    return gated(draw, 1, 2, 40), {"causal": True}


def gated_gqa(draw):
    """A state for every query head; a scale."""
    return gated(draw, 2, 4, 21, kv_heads=2, d=7, dv=5), {"causal": True, "scale": 0.3125}


def gated_still(draw):
    """Gates of 0: linear attention."""
    tensors = gated(draw, 1, 2, 35, d=6)
    return tensors | {"gates": torch.zeros_like(tensors["gates"])}, {"causal": True, "scale": 1.0}


def gated_fast(draw):
    """Twenty a step in every channel."""
    tensors = gated(draw, 1, 2, 35, d=6)
    return tensors | {"gates": torch.full_like(tensors["gates"], -20.0)}, {"causal": True}


def gated_lengths(draw):
    """Padded sequences, one of them empty."""
    return gated(draw, 3, 2, 19, d=6) | {"lengths": torch.tensor([19, 0, 17])}, {"causal": True}


def gated_packed(draw):
    """Sequences end to end: the state begins anew."""
    return gated(draw, 1, 2, 40, d=6) | offsets(0, 7, 7, 8, 40), {"causal": True}


MAKERS = [
    causal, full, gqa, relu_map, squared, identity, more_keys, more_queries, lengths, lengths_q, lengths_full, window, window_full,
    packed, gated_default, gated_gqa, gated_still, gated_fast, gated_lengths, gated_packed,
]  # fmt: skip


def cases():
    """All cases, each from a seed of its own so that a new one changes none of the others."""
    return [Case(make.__name__, *make(Draw(seed))) for seed, make in enumerate(MAKERS, start=1)]


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    inputs = {name: x.clone() for name, x in case.tensors.items()}
    for name in ("q", "k", "v", "gates"):
        if name in inputs:
            inputs[name].requires_grad_()
    results = {"o": attention(inputs, case.options)}
    results |= gradients(inputs, results["o"])
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def step_by_step(tensors, options):
    """Gated linear attention of unpadded, unpacked inputs as a recurrence, which must give the same."""
    q, k, v, gates = tensors["q"], repeated(tensors["k"], tensors["q"]), repeated(tensors["v"], tensors["q"]), tensors["gates"]
    state, rows = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1]).double(), []
    for t in range(q.shape[2]):
        state = gates[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        rows.append(options.get("scale", 1 / math.sqrt(q.shape[-1])) * (q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(rows, 2)


def verify(case, stored):
    """What must hold for every case."""
    for name, x in stored.items():
        assert not x.is_floating_point() or x.isfinite().all(), (case.name, name)
        if x.is_floating_point() and not name.startswith("expected_"):
            assert (x.float().double() == x).all(), (case.name, name)
    if "gates" in stored and not {"lengths", "offsets_k"} & set(stored):
        torch.testing.assert_close(step_by_step(stored, case.options), stored["expected_o"], rtol=1e-12, atol=1e-12)


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of linear and gated linear attention.")
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
