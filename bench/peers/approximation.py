"""An encoder without training under other mechanisms and reducers: how near its vectors stay, and how fast it gets. Into a record.

    cargo build --release -p regard-models --example approximation
    python bench/peers/approximation.py --model DIR --reviews reviews.tsv --book book.txt --output bench/records/NAME.json

Texts are 256 reviews, and 64 pieces of a book that fill the model's 512 positions. Cosines are to the same model with exact attention.
`tokens_left` is the share that leaves each layer; `sum_of_lengths` the work that the lengths leave to do: the projections of attention (4 widths
squared a token) see the tokens that enter a layer, its MLP (8) those that leave it. `time_share` is the time beside that of exact attention.
Settings take turns inside one process; nothing else should run.
"""

import argparse
import json
import os
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from record import busy, git, machine, save

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROGRAM = TARGET / "release" / "examples" / "approximation"


def settings():
    """Exact attention, clusters by threshold, reducers by the share of tokens that one layer keeps, in every third layer."""
    yield {"name": "exact", "set": {}}
    for threshold in ["0.7", "0.8", "0.9", "0.95"]:
        yield {"name": f"clustered {threshold}", "mechanism": "clustered", "set": {"threshold": threshold}}
    for reducer in ["prune", "tome", "pitome"]:
        for keep in ["0.9", "0.7", "0.5"] + (["0.3"] if reducer == "prune" else []):
            yield {"name": f"{reducer} {keep}", "reducer": reducer, "set": {"keep": f"1,1,{keep},1,1,{keep}"}}


def pieces(book, count, characters):
    """Pieces of a text that are surely longer than 512 tokens; the encoder cuts them."""
    text = " ".join(book.read_text(encoding="utf-8").split())
    return [text[i * characters : (i + 1) * characters] for i in range(count)]


def sum_of_lengths(left):
    """Of all layers, as a share of what they were without a reducer."""
    entering = [1.0, *left[:-1]]
    return sum((4 * before + 8 * behind) / 12 for before, behind in zip(entering, left, strict=True)) / len(left)


def measured(arguments, texts):
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("texts.json", "settings.json")]
        for file, values in zip(files, [texts, list(settings())]):
            file.write_text(json.dumps(values))
        command = [PROGRAM, arguments.model, *files, str(arguments.runs), str(arguments.tokens)]
        lines = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
        return [json.loads(line) for line in lines.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True, help="a line per text, the text behind a tab")
    parser.add_argument("--book", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    reviews = [line.split("\t", 1)[-1] for line in arguments.reviews.read_text(encoding="utf-8").splitlines()[:256]]
    record = {
        "schema": "regard/approximation/2",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "machine": machine(os.cpu_count()),
        "busy": busy(),
        "settings": {"runs": arguments.runs, "tokens": arguments.tokens, "book": arguments.book.name},
    }
    rows = []
    for name, texts in [("256 reviews", reviews), ("64 pieces of a book", pieces(arguments.book, 64, 3500))]:
        found = measured(arguments, texts)
        for row in found:
            row |= {"sum_of_lengths": sum_of_lengths(row["tokens_left"]), "time_share": row["median_s"] / found[0]["median_s"]}
            rows.append({**row, "texts": name})
            setting = row["setting"]["name"]
            print(f"{name:20} {setting:16} cosine {row['cosine_mean']:.4f} (lowest {row['cosine_lowest']:.4f})  "
                  f"{row['tokens_per_s']:8.0f} tokens/s  {100 * row['tokens_left'][-1]:3.0f}% left, "
                  f"{row['time_share']:.3f} of the time, {row['sum_of_lengths']:.3f} of the lengths", flush=True)
    if arguments.output:
        save(record | {"rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
