"""Reducers between layers, defined once more: float64 PyTorch, from the papers' formulas.

Writes `reduce/NAME.safetensors`:

* scores_NAME: q k and mask (true: may attend), expected_score: received attention over what uniform attention gives, one number per token;
* tome_NAME, pitome_NAME: keys sizes x, expected_map (output row of every token), expected_kept, expected_sizes, expected_y; options and
  the number of protected leading tokens in the file's metadata.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/reduce.py            # writes the files
    python golden/reduce.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "reduce"


def normal(generator, *shape):
    """Normal values that float32 holds exactly."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).float().double()


# ---------------------------------------------------------------- scores


def scores(generator, rule):
    """Attention of 4 query heads over 2 key heads, 11 tokens; the mask says who may attend to whom."""
    n, heads, kv_heads, width = 11, 4, 2, 6
    q, k = normal(generator, 1, heads, n, width), normal(generator, 1, kv_heads, n, width)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    mask = {"full": i >= 0 * j, "causal": j <= i, "window": (j <= i) & (i - j < 3), "scattered": (i * 5 + j * 3) % 4 != 1}[rule]
    logits = q @ k.repeat_interleave(heads // kv_heads, 1).transpose(-1, -2) / math.sqrt(width)
    attention = logits.masked_fill(~mask, -math.inf).softmax(-1)
    uniform = mask.double() / mask.sum(-1, keepdim=True)
    score = attention.mean(1)[0].sum(0) / uniform.sum(0)
    return {"q": q, "k": k, "mask": mask.expand(n, n).clone()[None, None], "expected_score": score}, {}


# ---------------------------------------------------------------- merging


def cosines(keys):
    """Cosine of every pair, 0 with a zero vector; and which vectors are not zero."""
    norms = keys.norm(dim=-1)
    alive = norms > 0
    units = torch.where(alive[:, None], keys / norms.clamp_min(1e-300)[:, None], 0.0)
    return units @ units.T, alive


def match(similar, alive, sources, targets):
    """The best target of every source that has one, the first of equals: (cosine, source, target)."""
    found = []
    for source in sources:
        if alive[source] and any(alive[target] for target in targets):
            best = max((target for target in targets if alive[target]), key=lambda target: (float(similar[source, target]), -target))
            found.append((float(similar[source, best]), source, best))
    return found


def outcome(goes_to, sizes, x):
    """Kept positions, the output row of every token, summed sizes, and means weighted by size."""
    kept = [i for i, place in enumerate(goes_to) if place == i]
    rows = torch.tensor([kept.index(place) for place in goes_to])
    total = torch.zeros(len(kept), dtype=torch.float64).index_add(0, rows, sizes)
    y = torch.zeros(len(kept), x.shape[1], dtype=torch.float64).index_add(0, rows, x * sizes[:, None]) / total[:, None]
    return {"expected_map": rows, "expected_kept": torch.tensor(kept), "expected_sizes": total, "expected_y": y}


def tokens(generator, n):
    """Keys with a zero vector and two equal ones, sizes, and vectors to merge."""
    keys, x = normal(generator, n, 8), normal(generator, n, 5)
    keys[4], keys[9] = 0, keys[6]
    sizes = torch.randint(1, 4, (n,), generator=generator).double()
    return keys, sizes, x


def tome(generator, options):
    keys, sizes, x = tokens(generator, 21)
    similar, alive = cosines(keys)
    free = range(options["protect"], len(keys))
    found = match(similar, alive, [i for i in free if i % 2 == 0], [i for i in free if i % 2 == 1])
    goes_to = list(range(len(keys)))
    for _, source, target in sorted(found, key=lambda m: (-m[0], m[1]))[: options["r"]]:
        goes_to[source] = target
    return {"keys": keys, "sizes": sizes, "x": x} | outcome(goes_to, sizes, x), options


def pitome(generator, options):
    keys, sizes, x = tokens(generator, 22)
    similar, alive = cosines(keys)
    if options["form"] == "vision":
        share = torch.nn.functional.elu(similar - options["margin"])
    else:
        share = torch.exp(-((1 - similar) ** 2) / (2 * options["sigma"] ** 2))
    energy = share.mean(1).tolist()
    free = sorted(range(options["protect"], len(keys)), key=lambda i: (-energy[i], i))
    r = min(len(keys) - max(1, math.ceil(options["keep"] * len(keys) - 1e-9)), len(free) // 2)
    mergeable = free[: 2 * r]
    goes_to = list(range(len(keys)))
    for _, source, target in match(similar, alive, mergeable[::2], mergeable[1::2]):
        goes_to[source] = target
    return {"keys": keys, "sizes": sizes, "x": x} | outcome(goes_to, sizes, x), options


# ---------------------------------------------------------------- files

FILES = {
    "scores_full": (scores, "full"),
    "scores_causal": (scores, "causal"),
    "scores_window": (scores, "window"),
    "scores_scattered": (scores, "scattered"),
    "tome_few": (tome, {"r": 4, "protect": 1}),
    "tome_many": (tome, {"r": 100, "protect": 2}),
    "pitome_vision": (pitome, {"form": "vision", "keep": 0.75, "margin": 0.5, "protect": 1}),
    "pitome_text": (pitome, {"form": "text", "keep": 0.6, "sigma": 0.5, "protect": 0}),
    "pitome_guard": (pitome, {"form": "vision", "keep": 0.1, "margin": 0.25, "protect": 1}),
}


def files():
    """Every file's tensors and options by its name."""
    return {name: make(torch.Generator().manual_seed(seed), options) for seed, (name, (make, options)) in enumerate(FILES.items())}


def check(path, tensors):
    """Fails where a stored tensor differs by more than the last digits."""
    with safe_open(path, "pt") as stored:
        assert set(stored.keys()) == set(tensors), path
        for name, tensor in tensors.items():
            torch.testing.assert_close(stored.get_tensor(name), tensor, rtol=1e-12, atol=1e-12, msg=lambda m: f"{path}: {name}: {m}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files on disk")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, (tensors, options) in files().items():
        tensors = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        path = FOLDER / f"{name}.safetensors"
        if arguments.check:
            check(path, tensors)
        else:
            save_file(tensors, path, metadata={key: str(value) for key, value in options.items()})
    print(f"{len(FILES)} files {'agree' if arguments.check else 'written'}")


if __name__ == "__main__":
    main()
