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
TARGETS = {
    "times_faster": {"materialised": 1.0, "torch_math": 1.0},
    "share_of_plain": {"key_bias": 0.85, "window": 0.70, "lifetimes": 0.70},
    "ceiling_fraction": {"decode": 0.90},
}
SIMD = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512", "avx_", "amx", "asimd", "sve")


def header(arguments, families):
    """Everything that is known before the first measurement."""
    return {
        "schema": "regard/peer/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--", *MEASURED)),
        "machine": machine(arguments.threads),
        "software": software(arguments.peers, families),
        "settings": {
            "quick": arguments.quick, "families": families, "runs": arguments.runs, "warmups": arguments.warmups,
            "pause_s": arguments.pause, "seed": arguments.seed, "huge_pages": arguments.huge_pages,
        },
        "rows": [],
        "summary": {},
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


def software(peers, families):
    """Versions and build flags of everyone who takes part."""
    locked = {p["name"]: p["version"] for p in tomllib.loads((HERE / "Cargo.lock").read_text())["package"]}
    versions = {"rustc": output("rustc", "--version"), "python": platform.python_version()}
    versions |= {"torch": torch.__version__} if "torch" in peers else {}
    versions |= {"candle": locked["candle-nn"]} if "candle" in peers else {}
    versions |= {"burn": locked["burn"]} if "burn" in peers else {}
    versions |= {"matrixmultiply": locked["matrixmultiply"]} if "math" in families else {}
    takes_part = {"regard", *peers} | ({"materialised"} if "math" in families else set())
    return versions | {"rustflags": {name: flags for name, flags in RUSTFLAGS.items() if name in takes_part}}


def git(*arguments):
    """Output of git about this repository, None before the first commit."""
    return output("git", "-C", str(HERE), *arguments)


def output(*command):
    """What a command prints, None if it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def between(before, after):
    """The moment of a row: its ceilings are the median of readings just before and just after it."""
    limits = {name: [before[name], after[name]] for name in ("fma_gflops", "bf16_gflops", "read_gbps")}
    known = {name: None if None in both else statistics.median(both) for name, both in limits.items()}
    return {"busy": before["busy"]} | known | {"readings": limits}


def huge_pages(pid):
    """The share of a process's own memory that lies on huge pages now, None where nobody knows."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    own = kilobytes.get("Anonymous")
    return kilobytes["AnonHugePages"] / own if own and "AnonHugePages" in kilobytes else None


def work(row, flops, moment):
    """Name of the rate, what a call has to do at least, and the ceiling: bytes where it decodes, else operations."""
    if row.kind == "decode":
        return "gbps", row.bytes, moment["read_gbps"]
    narrow = row.dtype == "bf16" and moment["bf16_gflops"]
    return "gflops", flops, moment["bf16_gflops" if narrow else "fma_gflops"]


def summary(work, seconds):
    """Median, minimum, rate, and the share of the ceiling of that minute."""
    rate, amount, ceiling = work
    median = statistics.median(seconds)
    reached = amount / median / 1e9
    return {
        "median_s": median,
        "min_s": min(seconds),
        "seconds": seconds,
        rate: reached,
        "ceiling_fraction": reached / ceiling if ceiling else None,
    }


def ratios(results):
    """Results with what they come to beside each other: how many times faster Regard is, its share of its plain rate."""
    mine = results["regard"]
    others = {label: result for label, result in results.items() if label not in ("regard", "regard_plain")}
    faster = {label: result["median_s"] / mine["median_s"] for label, result in others.items()}
    if "regard_plain" in results:
        mine["share_of_plain"] = mine["gflops"] / results["regard_plain"]["gflops"]
    return {"results": results, "times_faster": faster}


def conclusions(rows):
    """The worst of what has a target: the smallest ratio against paths that store the scores, shares of plain rates and
    of the ceiling of decoding, each with its row."""
    done = [row for row in rows if "failed" not in row]
    found = {}
    for row in done:
        mine = row["results"]["regard"]
        for label, times in row["times_faster"].items() if row["family"] == "math" else ():
            least(found, ("times_faster", label), times, row["name"])
        if "share_of_plain" in mine:
            least(found, ("share_of_plain", row["rule"]), mine["share_of_plain"], row["name"])
        if row["kind"] == "decode" and mine["ceiling_fraction"]:
            least(found, ("ceiling_fraction", "decode"), mine["ceiling_fraction"], row["name"])
    return found


def least(found, place, value, row):
    """Keeps the smaller value at its place, with the row it is of."""
    what, which = place
    kept = found.setdefault(what, {}).get(which)
    if kept is None or value < kept["smallest"]:
        found[what][which] = {"smallest": value, "row": row, "target": TARGETS[what].get(which)}


def sentences(conclusions):
    """The conclusions for people."""
    words = {
        "times_faster": "{:.2f}x as fast as {}",
        "share_of_plain": "{:.0%} of the plain rate with {}",
        "ceiling_fraction": "{:.0%} of the ceiling in {}",
    }
    return [
        f"smallest: {words[what].format(at['smallest'], which)} ({at['row']})"
        + (f", target {at['target']:g}" if at["target"] else "")
        for what, places in conclusions.items() for which, at in places.items()
    ]  # fmt: skip


def save(record, path):
    """Writes beside the file and renames, so that a reader never sees half a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.replace(path)


def table(record):
    """The rows as Markdown: the rate of each, and how many times faster Regard is."""
    lines = ["| row | contender | median | rate | of ceiling | of plain | Regard is |", "|---|---|---|---|---|---|---|"]
    for row in record["rows"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed']} | | | | | |")
            continue
        for label, result in row["results"].items():
            lines.append(f"| {row['name']} | {label} | {cells(result, row['times_faster'].get(label))} |")
    return "\n".join(lines)


def cells(result, times):
    """The last five cells of a line."""
    rate = f"{result['gflops']:.1f} GFLOP/s" if "gflops" in result else f"{result['gbps']:.1f} GB/s"
    shares = (result.get(name) for name in ("ceiling_fraction", "share_of_plain"))
    of_ceiling, of_plain = ("" if share is None else f"{share:.0%}" for share in shares)
    faster = "" if times is None else f"{times:.2f}x"
    return f"{result['median_s'] * 1e3:.4g} ms | {rate} | {of_ceiling} | {of_plain} | {faster}"
