"""Records for tests: made up, but of the shape and the size of real ones. Nothing in them was measured.

    python3 crates/report/tests/records/make.py            # writes sweep.json, compare.json, run-*.json and hostile.json beside itself
    python3 crates/report/tests/records/make.py --check    # compares and writes nothing
"""

import json
import math
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
MACHINE = {
    "cpu": "Made up, nothing was measured", "features": ["avx2", "fma"], "threads": 2, "level": "avx2", "compiler": "rustc 1.95.0",
    "commit": "0123456789abcdef0123456789abcdef01234567", "fma_gflops": 230.0, "bf16_gflops": None, "read_gbps": 28.0,
}  # fmt: skip
LENGTHS = [1024 << power for power in range(9)]
# Time in seconds is a·n² + b·n, memory m·n, distance d.
MECHANISMS = {
    "exact": (1.02e-8, 4e-7, 90, None),
    "local": (0, 3.4e-6, 90, 0.55),
    "nats": (9e-10, 4.1e-6, 120, 0.21),
    "clustered": (4e-10, 4.2e-6, 260, 0.34),
    "linear": (0, 6.2e-6, 40, 0.82),
    "gated_linear": (0, 1.4e-5, 48, 0.88),
    "vq": (0, 9e-6, 700, 0.47),
    "vq_qk": (0, 2.6e-6, 330, 0.71),
    "hyper": (0, 1.5e-5, 1100, 0.4),
}


def sweep(chance):
    """Every mechanism, forward and backward, causal and not; the times of exact attention beyond 64k are reckoned."""
    results = []
    for length in LENGTHS:
        for causal in (True, False):
            for name, coefficients in MECHANISMS.items():
                results += [measured(chance, (name, length, causal, which), coefficients) for which in ("forward", "backward")]
    return {
        "schema": "regard/bench/1", "title": "All mechanisms from 1k to 256k tokens (made up)", "seed": 0,
        "command": "regard bench --sweep --json sweep.json", "machine": MACHINE, "results": results,
    }  # fmt: skip


def measured(chance, case, coefficients):
    """One measurement."""
    name, length, causal, which = case
    square, line, memory, distance = coefficients
    share = (0.5 if causal else 1.0) * (3.2 if which == "backward" else 1.0)
    seconds = (square * length**2 * share + line * length * (3.2 if which == "backward" else 1.0)) * math.exp(chance.gauss(0, 0.03))
    work = (3.2 if which == "backward" else 1.0) * 4 * 8 * 64 * length * (length if name == "exact" else min(length, 300))
    gflops = work * (0.5 if causal else 1.0) / seconds / 1e9
    reckoned = name == "exact" and length > 65536
    deviation = lambda size: {"max_abs": size * 9, "rel_l2": size}
    random_distance = None if distance is None or which == "backward" else deviation(distance * math.exp(chance.gauss(0, 0.02)))
    return {
        "mechanism": name, "pass": which, "dtype": "f32", "batch": 1, "heads": 8, "kv_heads": 8, "head_dim": 64, "length": length,
        "causal": causal, "options": {"window": 256} if name in ("local", "nats") else {}, "median_s": seconds, "min_s": seconds * 0.98,
        "runs": 0 if reckoned else 5, "gflops": gflops, "gbps": None, "ceiling_fraction": gflops / MACHINE["fma_gflops"],
        "extra_bytes": None if reckoned else 200_000 + memory * length,
        "error": None if reckoned else deviation(3e-7 * (length / 1024) ** 0.1 * math.exp(chance.gauss(0, 0.2))),
        "approximation": None if random_distance is None else {"random": random_distance, "captured": deviation(random_distance["rel_l2"] * 0.4)},
        **({"extrapolated_from": 65536} if reckoned else {}),
    }  # fmt: skip


TASK = {"name": "long documents", "metric": "accuracy", "higher_is_better": True, "split": "test"}
CONFIGURATIONS = {
    # quality, tokens kept of each layer, speed against exact attention at 1k
    "exact": (0.912, [1.0] * 6, 1.0),
    "local window=256": (0.884, [1.0] * 6, 1.5),
    "clustered 0.9": (0.909, [1.0] * 6, 1.25),
    "clustered 0.7": (0.897, [1.0] * 6, 1.7),
    "prune 0.7": (0.905, [0.94, 0.88, 0.71, 0.6, 0.52, 0.45], 1.6),
    "tome 0.8": (0.901, [0.9, 0.81, 0.73, 0.66, 0.59, 0.53], 1.45),
    "delete_gate": (0.88, [0.97, 0.7, 0.52, 0.4, 0.33, 0.3], 1.9),
}


def configuration(chance, name, seeds=(0, 1, 2, 3, 4)):
    """One configuration with a run for every seed."""
    quality, kept, speed = CONFIGURATIONS[name]
    return {"name": name, "config": {"mechanism": name.split()[0], "layers": 6, "width": 256, "steps": 400}, "parameters": 5_300_000,
            "runs": [run(chance, seed, (quality, kept, speed)) for seed in seeds]}  # fmt: skip


def run(chance, seed, figures):
    """What one seed came to."""
    quality, kept, speed = figures
    final = 1.6 - quality
    loss = lambda step: final + 1.9 * math.exp(-step / 90) + chance.gauss(0, 0.02)
    speeds = lambda base: [
        {"length": length, "tokens_per_s": base * speed ** (1 + power / 3) / (1 + length / 6000), "peak_bytes": int(3e8 + 9e4 * length / speed)}
        for power, length in enumerate([1024, 2048, 4096, 8192])
    ]
    return {
        "seed": seed, "quality": quality + chance.gauss(0, 0.006), "tokens_kept": [min(1.0, share + abs(chance.gauss(0, 0.004))) if share < 1 else 1.0 for share in kept],
        "training": speeds(2600), "inference": speeds(9400),
        "curve": [{"step": step, "training_loss": loss(step), "validation_loss": loss(step) + 0.05 if step % 20 == 0 else None} for step in range(0, 401, 10)],
    }  # fmt: skip


def comparison(chance):
    """All configurations."""
    return {
        "schema": "regard/compare/1", "title": "Long documents: what attention costs (made up)", "date": "2026-11-25T12:00:00+00:00",
        "commit": MACHINE["commit"], "modified": False, "command": "regard compare configs/compare.yaml --json compare.json",
        "machine": MACHINE, "task": TASK, "configurations": [configuration(chance, name) for name in CONFIGURATIONS],
    }  # fmt: skip


def training_run(chance, name):
    """One configuration by itself."""
    return {
        "schema": "regard/training-run/1", "commit": MACHINE["commit"], "command": f"regard train configs/{name}.yaml", "machine": MACHINE,
        "task": TASK, "configuration": configuration(chance, name, seeds=(0, 1)),
    }  # fmt: skip


def compression(chance):
    """What is left of texts, by method and share."""
    def left(method, keep):
        value = keep ** (0.3 if method == "attention" else 1.1) + chance.uniform(-0.01, 0.01)
        return {"method": method, "keep": keep, "ratio": keep - 0.001, "value": value, "error": 0.01}

    def measure(name, about, count):
        return {"name": name, "about": about, "count": count, "whole": 1.0,
                "results": [left(method, keep) for method in ("attention", "random") for keep in (0.75, 0.5, 0.2)]}  # fmt: skip

    return {
        "schema": "regard/compression/1", "title": "Compressed texts (made up)", "command": "regard eval --task compression",
        "machine": MACHINE, "measures": [measure("cosine", "Cosine of vectors.", 500), measure("facts kept", "Share of facts.", 90)],
    }  # fmt: skip


def hostile(chance):
    """Text that means harm, wherever text may stand."""
    harm = "<img src=x onerror=\"window.harmed=true\">"
    close = "</script><script>window.harmed=true</script><!--"
    record = sweep(chance)
    record["results"] = [each for each in record["results"] if each["length"] < 8192 and each["mechanism"] in ("exact", "local")]
    for each in record["results"]:
        if each["mechanism"] == "local":
            each["mechanism"] = harm
            each["options"] = {close: "' onmouseover='window.harmed=true", "javascript:": each["length"] < 0}
    record.update(title=close, command=harm + close, machine=dict(MACHINE, cpu=harm, compiler=close, commit=harm))
    return record


def main():
    """Writes the records, or compares them."""
    chance = random.Random(0)
    records = {
        "sweep.json": sweep(chance),
        "compare.json": comparison(chance),
        "run-exact.json": training_run(chance, "exact"),
        "run-prune.json": training_run(chance, "prune 0.7"),
        "hostile.json": hostile(chance),
        "compression.json": compression(chance),
    }
    differing = 0
    for name, record in records.items():
        text = json.dumps(rounded(record), separators=(",", ":")) + "\n"
        if "--check" not in sys.argv:
            (HERE / name).write_text(text)
        elif (HERE / name).read_text() != text:
            print(f"{name} differs")
            differing += 1
    return 1 if differing else 0


def rounded(value):
    """Floats with so many digits as every C library agrees on."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
