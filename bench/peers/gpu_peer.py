"""Attention on a GPU: the example `devices` (Regard and Burn's own) beside PyTorch on the same card, causal, 8 heads of 64.

    python bench/peers/gpu_peer.py --program target/release/examples/devices --device wgpu --output bench/records/NAME.json

The program compares every output with the kernels of the CPU. PyTorch's f32 is measured without TF32 and with it: GPUs of NVIDIA
multiply f32 on tensor cores only in that format of 10 bits.
"""

import argparse
import json
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional

import record as records

LENGTHS, HEADS, WIDTH, RUNS = (1024, 4096, 16384), 8, 64, 7
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def median_ms(call):
    """Milliseconds of a call that ends when the device has done its work."""
    seconds = []
    for _ in range(RUNS + 2):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def peer(dtype, tf32):
    """PyTorch's rows of one type."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    for tokens in LENGTHS:
        qkv = [torch.randn(1, HEADS, tokens, WIDTH, device="cuda").to(DTYPES[dtype]).requires_grad_() for _ in range(3)]
        attend = lambda: functional.scaled_dot_product_attention(*qkv, is_causal=True)  # noqa: B023, E731
        with torch.no_grad():
            forward = median_ms(attend)
        both = median_ms(lambda: attend().sum().backward())  # noqa: B023
        what = "torch exact, TF32" if tf32 else "torch exact"
        yield {"device": "cuda", "dtype": dtype, "tokens": tokens, "what": what, "forward_ms": forward, "forward_backward_ms": both}


def ours(program, device, dtype):
    """The program's rows of one type."""
    done = subprocess.run([program, device, dtype], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main():
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--device", default="wgpu")
    parser.add_argument("--dtypes", default="f32", help="with commas between")
    parser.add_argument("--commit", default=records.git("rev-parse", "HEAD"), help="that the program was made of")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    rows = []
    for dtype in arguments.dtypes.split(","):
        for tf32 in (False, True) if dtype == "f32" else (False,):
            rows += peer(dtype, tf32)
        rows += ours(arguments.program, arguments.device, dtype)
    properties = torch.cuda.get_device_properties(0)
    record = {
        "schema": "regard/gpu/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": arguments.commit,
        "machine": records.machine(None) | {"gpu": properties.name, "gpu_gib": properties.total_memory / 2**30},
        "software": {"torch": torch.__version__},
        "settings": {"heads": HEADS, "width": WIDTH, "causal": True, "runs": RUNS},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['device']:8}{row['dtype']:6}{row['tokens']:7} {row['what']:22}"
              f"{row['forward_ms']:10.3f} ms{row['forward_backward_ms']:10.3f} ms  {row.get('apart', '')}")  # fmt: skip


if __name__ == "__main__":
    main()
