"""What a record says beside the measurements: machine, software, commit, ratios; and its table for people."""

import json
import os
import platform
import statistics
import subprocess
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import torch

from peers import HERE, RUSTFLAGS

MEASURED = (":/crates", ":/bench/peers", ":/Cargo.toml", ":/Cargo.lock")
SIMD = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512", "avx_", "amx", "asimd", "sve")


def header(arguments, families):
    """Everything that is known before the first measurement."""
    return {
        "schema": "regard/peer/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--", *MEASURED)),
        "machine": machine(arguments.threads),
        "software": software(arguments.peers),
        "settings": {
            "quick": arguments.quick, "families": families, "runs": arguments.runs, "warmups": arguments.warmups,
            "pause_s": arguments.pause, "seed": arguments.seed, "huge_pages": arguments.huge_pages,
        },
        "rows": [],
    }  # fmt: skip


def machine(threads):
    """CPU, features, threads, the kind of memory pages, and how busy the machine was."""
    info = cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name", platform.processor() or None),
        "features": [flag for flag in flags if flag.startswith(SIMD)],
        "cores": os.cpu_count(),
        "threads": threads,
        "huge_pages": chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": os.getloadavg()[0],
    }


def cpuinfo():
    """The first processor of /proc/cpuinfo as a dictionary, empty where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def busy(seconds=0.2):
    """The share of all processors that other programs use while we sleep, None where nobody knows."""
    try:
        before = ticks()
        time.sleep(seconds)
        idle, total = (after - b for after, b in zip(ticks(), before))
    except OSError:
        return None
    return 1 - idle / total if total else None


def ticks():
    """Idle time and all time of all processors, in ticks since the machine started."""
    counts = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return counts[3] + counts[4], sum(counts)


def chosen(path):
    """The bracketed word of a kernel setting, None where there is none."""
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0] or None
    except OSError:
        return None


def software(peers):
    """Versions and build flags of everyone who takes part."""
    locked = {p["name"]: p["version"] for p in tomllib.loads((HERE / "Cargo.lock").read_text())["package"]}
    versions = {"rustc": output("rustc", "--version"), "python": platform.python_version()}
    versions |= {"torch": torch.__version__} if "torch" in peers else {}
    versions |= {"candle": locked["candle-nn"]} if "candle" in peers else {}
    versions |= {"burn": locked["burn"]} if "burn" in peers else {}
    return versions | {"rustflags": {name: RUSTFLAGS[name] for name in ("regard", *peers) if name in RUSTFLAGS}}


def git(*arguments):
    """Output of git about this repository, None before the first commit."""
    return output("git", "-C", str(HERE), *arguments)


def output(*command):
    """What a command prints, None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def summary(row, seconds, ceilings):
    """Median, minimum, rate, and the share of the ceiling of that minute."""
    median = statistics.median(seconds)
    rate, limit = (row.bytes, "read_gbps") if row.kind == "decode" else (row.flops, "fma_gflops")
    if row.kind != "decode" and row.dtype == "bf16" and ceilings.get("bf16_gflops"):
        limit = "bf16_gflops"
    ceiling = ceilings.get(limit)
    return {
        "median_s": median,
        "min_s": min(seconds),
        "seconds": seconds,
        "gbps" if row.kind == "decode" else "gflops": rate / median / 1e9,
        "ceiling_fraction": rate / median / 1e9 / ceiling if ceiling else None,
    }


def save(record, path):
    """Writes beside the file and renames, so that a reader never sees half a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.replace(path)


def table(record):
    """The rows as Markdown: the rate of each, and how many times faster Regard is."""
    lines = ["| row | contender | median | rate | of ceiling | Regard is |", "|---|---|---|---|---|---|"]
    for row in record["rows"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed']} | | | | |")
            continue
        for label, result in row["results"].items():
            lines.append(f"| {row['name']} | {label} | {cells(result, row['times_faster'].get(label))} |")
    return "\n".join(lines)


def cells(result, times):
    """The last four cells of a line."""
    rate = f"{result['gflops']:.1f} GFLOP/s" if "gflops" in result else f"{result['gbps']:.1f} GB/s"
    share = "" if result["ceiling_fraction"] is None else f"{result['ceiling_fraction']:.0%}"
    return f"{result['median_s'] * 1e3:.4g} ms | {rate} | {share} | {'' if times is None else f'{times:.2f}x'}"
