"""Row operations, defined once more: float64 PyTorch, gradients by autograd, rotary tables from the papers' formulas.

Writes `rows/NAME.safetensors`:

* activations: x dy, and for each activation NAME expected_NAME expected_dNAME;
* swiglu: gate up dy, expected_y expected_dgate expected_dup;
* softmax: x dy, expected_y expected_dx expected_log expected_dlog;
* loss: x labels, expected_loss expected_lse expected_dx, and the same with smoothing 0.1 under smooth_;
* norms: x residual weight bias dy dsum, expected_sum and expected_{layer,rms}_{y,dx,dweight}, expected_layer_dbias;
* rotary_NAME: x positions dy, expected_frequencies expected_y expected_dx; options in the file's metadata;
* embedding: table ids dy, expected_y expected_dtable;
* linear: x weight bias dy, and for each activation expected_NAME expected_NAME_{z,dx,dweight,dbias}.

Every float is stored as float64; the inputs are exact in float32.

    pip install torch numpy safetensors
    python golden/rows.py            # writes the files
    python golden/rows.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

FOLDER = Path(__file__).parent / "rows"
ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


def normal(generator, *shape, spikes=False):
    """Normal values that float32 holds exactly; with spikes, a few are eight times as large."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spikes:
        x = torch.where(torch.rand(shape, generator=generator) < 0.02, 8 * x, x)
    return x.float().double()


def gradients(output, inputs, upstream):
    """The gradient of each input."""
    return torch.autograd.grad(output, inputs, upstream, retain_graph=True)


def tracked(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def activations(g):
    x, dy = normal(g, 5, 37, spikes=True), normal(g, 5, 37)
    file = {"x": x, "dy": dy}
    for name, f in ACTIVATIONS.items():
        (t,) = tracked(x)
        y = f(t)
        file["expected_" + name] = y
        (file["expected_d" + name],) = gradients(y, [t], dy)
    return file


def swiglu(g):
    gate, up, dy = normal(g, 4, 19, spikes=True), normal(g, 4, 19), normal(g, 4, 19)
    inputs = tracked(gate, up)
    y = F.silu(inputs[0]) * inputs[1]
    dgate, dup = gradients(y, inputs, dy)
    return {"gate": gate, "up": up, "dy": dy, "expected_y": y, "expected_dgate": dgate, "expected_dup": dup}


def softmax(g):
    x, dy = normal(g, 6, 35, spikes=True), normal(g, 6, 35)
    x[2, 5:9] = -math.inf
    file = {"x": x, "dy": dy}
    for f, y_name, dx_name in ((torch.softmax, "y", "dx"), (torch.log_softmax, "log", "dlog")):
        (t,) = tracked(x)
        y = f(t, -1)
        file["expected_" + y_name] = y
        (file["expected_" + dx_name],) = gradients(y, [t], dy)
    return file


def loss(g):
    x = normal(g, 9, 29, spikes=True)
    labels = torch.tensor([3, 28, -100, 0, 7, 7, -100, 12, 1])
    file = {"x": x, "labels": labels, "expected_lse": x.logsumexp(-1)}
    for prefix, smoothing in (("", 0.0), ("smooth_", 0.1)):
        (t,) = tracked(x)
        value = F.cross_entropy(t, labels, ignore_index=-100, label_smoothing=smoothing)
        file[f"{prefix}expected_loss"] = value.reshape(1)
        (file[f"{prefix}expected_dx"],) = gradients(value, [t], None)
    return file


def norms(g):
    x, residual, dy, dsum = (normal(g, 7, 45) for _ in range(4))
    weight, bias = normal(g, 45), normal(g, 45)
    file = {"x": x, "residual": residual, "weight": weight, "bias": bias, "dy": dy, "dsum": dsum, "expected_sum": x + residual}
    for name in ("layer", "rms"):
        tx, tr, tw, tb = tracked(x, residual, weight, bias)
        total = tx + tr
        y = F.layer_norm(total, (45,), tw, tb, 1e-5) if name == "layer" else F.rms_norm(total, (45,), tw, 1e-5)
        objective = (y * dy).sum() + (total * dsum).sum()
        file[f"expected_{name}_y"] = y
        file[f"expected_{name}_dx"], file[f"expected_{name}_dweight"] = gradients(objective, [tr, tw], None)
        if name == "layer":
            (file["expected_layer_dbias"],) = gradients(objective, [tb], None)
    return file


def embedding(g):
    table, dy = normal(g, 11, 21), normal(g, 8, 21)
    ids = torch.tensor([3, 0, 10, 3, 3, 7, 0, 9])
    (t,) = tracked(table)
    y = F.embedding(ids, t)
    return {"table": table, "ids": ids, "dy": dy, "expected_y": y, "expected_dtable": gradients(y, [t], dy)[0]}


def linear(g):
    x, weight, bias, dy = normal(g, 9, 43), normal(g, 26, 43), normal(g, 26), normal(g, 9, 26)
    file = {"x": x, "weight": weight, "bias": bias, "dy": dy}
    for name, f in ACTIVATIONS.items():
        inputs = tracked(x, weight, bias)
        z = F.linear(*inputs)
        y = f(z)
        file[f"expected_{name}"], file[f"expected_{name}_z"] = y, z
        names = [f"expected_{name}_{what}" for what in ("dx", "dweight", "dbias")]
        file.update(zip(names, gradients(y, inputs, dy)))
    return file


# ---------------------------------------------------------------- rotary


def plain_frequencies(dims, base):
    """theta_i = base^(-2i/d)."""
    return base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)


def yarn_frequencies(dims, base, o):
    """NTK by parts: a pair with r turns in the trained length is kept for r > fast, interpolated for r < slow.

    The published code puts the ramp over the pair's number between the (rounded) numbers of the pairs with `fast` and `slow`
    turns: r(i) = trained / (2 pi base^(2i/d)) solved for i.
    """
    plain = plain_frequencies(dims, base)
    number = lambda turns: dims / 2 * math.log(o["trained"] / (2 * math.pi * turns)) / math.log(base)
    first, last = max(math.floor(number(o["fast"])), 0), min(math.ceil(number(o["slow"])), dims - 1)
    ramp = ((torch.arange(dims // 2, dtype=torch.float64) - first) / max(last - first, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / o["factor"] * ramp


def llama3_frequencies(dims, base, o):
    """Long wavelengths are divided, short ones kept, those between blended by how many fit the trained length."""
    out = []
    for f in plain_frequencies(dims, base).tolist():
        wavelength = 2 * math.pi / f
        if wavelength > o["trained"] / o["low"]:
            f = f / o["factor"]
        elif wavelength >= o["trained"] / o["high"]:
            blend = (o["trained"] / wavelength - o["low"]) / (o["high"] - o["low"])
            f = (1 - blend) * f / o["factor"] + blend * f
        out.append(f)
    return torch.tensor(out, dtype=torch.float64)


def frequencies(dims, base, o, length):
    """Frequencies and what multiplies cos and sin."""
    kind = o["scaling"]
    plain = plain_frequencies(dims, base)
    if kind == "linear":
        return plain / o["factor"], 1.0
    if kind == "ntk":
        return plain_frequencies(dims, base * o["alpha"] ** (dims / (dims - 2))), 1.0
    if kind == "dynamic_ntk":
        alpha = max(o["factor"] * length / o["trained"] - (o["factor"] - 1), 1)
        return plain_frequencies(dims, base * alpha ** (dims / (dims - 2))), 1.0
    if kind == "yarn":
        return yarn_frequencies(dims, base, o), o.get("attention_factor", 0.1 * math.log(o["factor"]) + 1)
    if kind == "llama3":
        return llama3_frequencies(dims, base, o), 1.0
    return plain, 1.0


def rotate(x, positions, f, factor, dims, interleaved):
    """Pairs as complex numbers times factor e^(i position f)."""
    turning, still = x[..., :dims], x[..., dims:]
    if interleaved:
        pairs = turning.unflatten(-1, (-1, 2))
    else:
        pairs = turning.unflatten(-1, (2, -1)).transpose(-1, -2)
    turns = torch.polar(torch.full_like(positions, factor, dtype=torch.float64)[:, None] * torch.ones_like(f), positions[:, None] * f)
    out = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns[:, None])
    out = out.flatten(-2) if interleaved else out.transpose(-1, -2).flatten(-2)
    return torch.cat((out, still), -1)


ROTARY = {
    "plain": {"scaling": "none"},
    "interleaved": {"scaling": "none", "interleaved": True},
    "partial": {"scaling": "none", "dims": 20, "base": 160000.0},
    "partial_interleaved": {"scaling": "none", "dims": 20, "interleaved": True},
    "linear": {"scaling": "linear", "factor": 4.0},
    "ntk": {"scaling": "ntk", "alpha": 8.0},
    "dynamic_ntk": {"scaling": "dynamic_ntk", "factor": 2.0, "trained": 512},
    "dynamic_ntk_short": {"scaling": "dynamic_ntk", "factor": 2.0, "trained": 2000000},
    "yarn": {"scaling": "yarn", "factor": 8.0, "trained": 4096, "fast": 32.0, "slow": 1.0, "base": 10000.0},
    "yarn_factor": {"scaling": "yarn", "factor": 4.0, "trained": 32768, "fast": 32.0, "slow": 1.0, "base": 1e6, "attention_factor": 1.25},
    "llama3": {"scaling": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "trained": 8192, "base": 500000.0},
}


def rotary(g, options):
    x, dy = normal(g, 6, 3, 32), normal(g, 6, 3, 32)
    positions = torch.tensor([0, 1, 2, 0, 4095, 999999])
    dims = options.get("dims", 32)
    f, factor = frequencies(dims, options.get("base", 10000.0), options, int(positions.max()) + 1)
    (t,) = tracked(x)
    y = rotate(t, positions.double(), f, factor, dims, options.get("interleaved", False))
    return {"x": x, "positions": positions, "dy": dy, "expected_frequencies": f, "expected_y": y, "expected_dx": gradients(y, [t], dy)[0]}


# ---------------------------------------------------------------- files


def files():
    """Every file's tensors and options by its name."""
    out = {}
    for seed, make in enumerate((activations, swiglu, softmax, loss, norms, embedding, linear)):
        out[make.__name__] = make(torch.Generator().manual_seed(seed)), {}
    for seed, (name, options) in enumerate(ROTARY.items()):
        out["rotary_" + name] = rotary(torch.Generator().manual_seed(100 + seed), options), options
    return out


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
        tensors = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
        path = FOLDER / f"{name}.safetensors"
        if arguments.check:
            check(path, tensors)
        else:
            save_file(tensors, path, metadata={key: str(value).lower() for key, value in options.items()})
    print(f"{len(files())} files {'agree' if arguments.check else 'written'}")


if __name__ == "__main__":
    main()
