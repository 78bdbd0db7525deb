"""Neural attention search, defined once more: float64 PyTorch from its formulas, gradients by autograd.

For types (g, l, w) of keys, one-hot, query i at position p and keys j ≤ p

    M_ij = g_j + l_j Π_{m=j}^{p-1} (1 - g_m) + w_j [p - j ≤ window],    A_ij = M_ij e^{s_ij} / Σ_j M_ij e^{s_ij},

all of it dense. Types chosen by logits are straight through to their softmax; a sequence's first token is then global as a
constant. The slope by M of a pair with M = 0 counts e^s up to 1e4 times the row's sum. With query_typed the types are those
of queries: a row looks at everything before it (global), at itself (local) or `window` keys back (window).

Writes `nats/NAME.safetensors`, one file per case, with

* inputs: q k v do, types or type_logits and, where the case has them, lengths lengths_q;
* results: expected_types expected_visible expected_o expected_lse expected_received expected_dq expected_dk expected_dv, for
  types of keys expected_until (the first position that does not see each; M: none), where these have logits
  expected_dtype_logits;
* options, as strings in the file's metadata: window query_typed scale.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/nats.py            # writes the files
    python golden/nats.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from exact import Case, Draw, compare, metadata, padding, positions, repeated, sizes, verify_against_sdpa
from safetensors.torch import save_file
from torch.nn.functional import one_hot, pad

FOLDER = Path(__file__).parent / "nats"
GLOBAL, LOCAL = 0, 1
HIGHEST = 1e4


# ---------------------------------------------------------------- definition


def window_of(options):
    """How far a window reaches."""
    return options.get("window", 3 if options.get("query_typed") else 16)


def forced(tensors, options):
    """Which tokens are global whatever their logits: those at position 0."""
    p, j = positions(tensors, {})
    keys, queries = sizes(tensors)
    at, real = (p[:, :, :, 0], queries) if options.get("query_typed") else (j[:, :, 0].expand(len(keys), 1, -1), keys)
    return ((at == 0) & (torch.arange(at.shape[-1]) < real[:, None, None])).expand(tensors["type_logits"].shape[:3])


def chosen(tensors, options):
    """Types as numbers; the first of equal logits wins."""
    if "types" in tensors:
        return tensors["types"]
    logits = tensors["type_logits"].detach()
    return logits.argmax(-1).masked_fill(forced(tensors, options), GLOBAL)


def straight_through(tensors, options):
    """One-hot types [B,G,M,3] whose gradient is that of the softmax of the logits."""
    hard = one_hot(chosen(tensors, options), 3).double()
    if "type_logits" not in tensors:
        return hard
    soft = tensors["type_logits"].softmax(-1)
    return torch.where(forced(tensors, options)[..., None], hard, hard + (soft - soft.detach()))


def multiplicity(types, p, window):
    """M of types [B,G,M,3] for queries at positions p [B,1,N,1]: [B,G,N,M]."""
    g, l, w = (kind[:, :, None] for kind in types.unbind(-1))
    j = torch.arange(types.shape[2])
    between = (j[:, None] <= j) & (j < p[..., None])  # [B,1,N,M,M]: whether the last is in j..p-1
    survives = torch.where(between, 1 - g[:, :, :, None], 1.0).prod(-1)
    return (g + l * survives + w * (p - j <= window)) * (j <= p)


def attention(tensors, options):
    """o, lse and received attention, and which pairs are visible; differentiable in the float inputs."""
    q, (p, j) = tensors["q"], positions(tensors, {})
    window = window_of(options)
    if options.get("query_typed"):
        reach = torch.tensor([2**40, 0, window])[chosen(tensors, options)]
        m = ((p - j >= 0) & (p - j <= reach[..., None])).double()
    else:
        m = repeated(multiplicity(straight_through(tensors, options), p, window), q)
    m = m * padding(tensors)
    visible = m.detach() > 0.5
    scores = options.get("scale", 1 / math.sqrt(q.shape[-1])) * q @ repeated(tensors["k"], q).transpose(-1, -2)
    top = pad(scores.detach().masked_fill(~visible, -math.inf), (0, 1), value=-math.inf).amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    e = (scores - top).exp()
    highest = HIGHEST * (e.detach() * visible).sum(-1, keepdim=True)
    weights = m * torch.where(visible, e, torch.minimum(e.detach(), highest))
    total = weights.sum(-1, keepdim=True)
    a = weights / torch.where(visible.any(-1, keepdim=True), total, 1.0)
    lse = (top + total.log()).squeeze(-1)
    lse = lse.masked_fill(~visible.any(-1), -math.inf)
    clamped = (padding(tensors) & (j <= p) & ~visible & (e.detach() > highest)).any()
    return {"o": a @ repeated(tensors["v"], q), "lse": lse, "received": a.sum(-2), "visible": visible}, bool(clamped)


def lifetimes(tensors, options):
    """The first position that does not see each key, M where there is none or the key is padding."""
    types = one_hot(chosen(tensors, options), 3).double()
    m = types.shape[2]
    real = torch.arange(m) < sizes(tensors)[0][:, None, None]
    every = multiplicity(types * real[..., None], torch.arange(m)[None, None, :, None], window_of(options)) > 0.5
    return torch.where(real, torch.arange(m) + every.sum(-2), m)


def gradients(tensors, options, o):
    """Gradients of sum(o * do), as {dq, dk, …}; types of queries pass none."""
    names = ["q", "k", "v"] + ["type_logits"] * ("type_logits" in tensors and not options.get("query_typed"))
    return dict(zip(["d" + n for n in names], torch.autograd.grad(o, [tensors[n] for n in names], tensors["do"])))


# --------------------------------------------------------------------- cases


def typed(draw, batch, heads, n):
    """Types: a few globals, the others local or window."""
    return {"types": torch.tensor([0, 1, 1, 1, 2, 2])[draw.integers(0, 6, batch, heads, n)]}


def small(draw, *shape, **options):
    """Inputs whose scores stay so small that no hidden key outweighs the visible ones 1e4 times."""
    tensors = draw.qkv(*shape, **options)
    return tensors | {"q": tensors["q"] / 4}


def logits(draw, batch, heads, n):
    """Logits of types, some of them equal; the first token would be a window key."""
    values = draw.normal(batch, heads, n, 3) - torch.tensor([0.5, 0.0, 0.0]).double()
    values[:, :, 2 % n :: 7, 1:] = 1.25
    values[:, :, 5 % n :: 9] = -0.5
    values[:, :, 0] = torch.tensor([-1.0, 0.5, 1.0]).double()
    return {"type_logits": values.float().double()}


def all_global(draw):
    """Exact attention."""
    return draw.qkv(1, 2, 12, 12) | {"types": torch.zeros(1, 2, 12, dtype=torch.int64)}, {"window": 2}


def types(draw):
    """Types are taken as they are: token 0 is a local."""
    tensors = draw.qkv(2, 2, 33, 33, d=7) | typed(draw, 2, 2, 33)
    tensors["types"][..., 0] = LOCAL
    return tensors, {"window": 3}


def choices(draw):
    """Types by logits."""
    return small(draw, 1, 2, 30, 30, d=6) | logits(draw, 1, 2, 30), {"window": 4}


def gqa(draw):
    """Four query heads on two kv heads, each with types of its own."""
    return small(draw, 2, 4, 21, 21, kv_heads=2, d=8, dv=5) | logits(draw, 2, 2, 21), {"window": 3, "scale": 0.3125}


def window_0(draw):
    """A window key is seen by its own query alone."""
    return small(draw, 1, 2, 19, 19, kv_heads=1, d=6) | logits(draw, 1, 1, 19), {"window": 0}


def window_wide(draw):
    """A window longer than the sequence."""
    return small(draw, 1, 2, 19, 19, d=6) | logits(draw, 1, 2, 19), {"window": 1000}


def window_default(draw):
    """Sixteen, past the first block of 16."""
    return draw.qkv(1, 2, 37, 37, kv_heads=1, d=6) | typed(draw, 1, 1, 37), {"query_typed": False}


def lengths(draw):
    """Padded sequences, one of them empty."""
    tensors = small(draw, 4, 2, 17, 17, d=6) | logits(draw, 4, 2, 17)
    return tensors | {"lengths": torch.tensor([17, 0, 1, 12])}, {"window": 2}


def lengths_q(draw):
    """Queries and keys padded apart, once with more real queries than real keys."""
    tensors = small(draw, 3, 2, 9, 22, kv_heads=1, d=6) | logits(draw, 3, 1, 22)
    return tensors | {"lengths": torch.tensor([22, 15, 4]), "lengths_q": torch.tensor([7, 0, 9])}, {"window": 5}


def more_keys(draw):
    """Six queries at the end of 29 keys."""
    return small(draw, 1, 4, 6, 29, kv_heads=2, d=6) | logits(draw, 1, 2, 29), {"window": 6}


def more_queries(draw):
    """The first queries stand before the first key and see nothing."""
    return small(draw, 1, 2, 15, 9, d=6) | logits(draw, 1, 2, 9), {"window": 2}


def sharp(draw):
    """Scores so large that hidden keys would outweigh the visible ones more than 1e4 times."""
    tensors = draw.qkv(1, 2, 20, 20, kv_heads=1, d=6) | logits(draw, 1, 1, 20)
    return tensors | {"q": 4 * tensors["q"]}, {"window": 1}


def rows(draw):
    """Types of queries."""
    return draw.qkv(2, 4, 18, 18, kv_heads=2, d=6, dv=5) | typed(draw, 2, 4, 18), {"query_typed": True}


def rows_choices(draw):
    """Types of queries by logits, with lengths."""
    tensors = draw.qkv(2, 2, 14, 14, kv_heads=1, d=6) | logits(draw, 2, 2, 14)
    return tensors | {"lengths": torch.tensor([14, 9])}, {"query_typed": True, "window": 1}


def rows_more_keys(draw):
    """Types of six queries at the end of 23 keys."""
    return draw.qkv(1, 2, 6, 23, d=6) | {"types": torch.tensor([[[1, 2, 0, 2, 1, 0], [2] * 6]])}, {"query_typed": True, "window": 5}


MAKERS = [
    all_global, types, choices, gqa, window_0, window_wide, window_default, lengths, lengths_q, more_keys, more_queries, sharp,
    rows, rows_choices, rows_more_keys,
]  # fmt: skip


def cases():
    """All cases, each from a seed of its own so that a new one changes none of the others."""
    return [Case(make.__name__, *make(Draw(seed))) for seed, make in enumerate(MAKERS, start=1)]


# --------------------------------------------------------------------- files


def solved(case):
    """Inputs and results of a case, as they are stored."""
    inputs = {name: x.clone() for name, x in case.tensors.items()}
    for name in ("q", "k", "v", "type_logits"):
        if name in inputs:
            inputs[name].requires_grad_()
    results, clamped = attention(inputs, case.options)
    learns = "type_logits" in inputs and not case.options.get("query_typed")
    assert not learns or clamped == (case.name == "sharp"), f"{case.name}: hidden keys clamped: {clamped}"
    results |= gradients(inputs, case.options, results["o"]) | {"types": chosen(inputs, case.options)}
    if not case.options.get("query_typed"):
        results["until"] = lifetimes(inputs, case.options)
    stored = case.tensors | {"expected_" + name: x.detach() for name, x in results.items()}
    return {name: x.contiguous() for name, x in stored.items()}


def options_of(case):
    """Options as strings, without the one that every case has."""
    return {name: value for name, value in metadata(case).items() if name != "causal"}


def verify(case, stored):
    """What must hold for every case."""
    for name, x in stored.items():
        assert name == "expected_lse" or not x.is_floating_point() or x.isfinite().all(), (case.name, name)
        if x.is_floating_point() and not name.startswith("expected_"):
            assert (x.float().double() == x).all(), (case.name, name)
    seen = stored["expected_visible"].any(-1)
    assert ((stored["expected_lse"] > -math.inf) == seen).all(), case.name
    torch.testing.assert_close(stored["expected_received"].sum(-1), seen.sum(-1).double())
    if "expected_until" in stored:
        p, j = positions(stored, {})
        until = repeated(stored["expected_until"], stored["q"])[:, :, None]
        lives = (j <= p) & (p < until) & padding(stored)
        assert (lives == stored["expected_visible"]).all(), f"{case.name}: lifetimes are not what M says"
    if case.name == "all_global":
        verify_against_sdpa(Case(case.name, case.tensors, {"causal": True}), stored)


def main():
    """Writes or checks every case."""
    parser = argparse.ArgumentParser(description="Golden files of neural attention search.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for case in cases():
        stored, path = solved(case), FOLDER / f"{case.name}.safetensors"
        verify(case, stored)
        if check:
            compare(path, stored, options_of(case))
        else:
            save_file(stored, path, options_of(case))
        print(f"{case.name:20} {path.stat().st_size:8} bytes  {options_of(case)}")


if __name__ == "__main__":
    main()
