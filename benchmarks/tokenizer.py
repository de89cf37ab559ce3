"""Speed of miniclip's tokenizer against open_clip's `SimpleTokenizer`, batch by batch, as a data loader calls it.

    python benchmarks/tokenizer.py                    # 40,000 made-up captions
    python benchmarks/tokenizer.py DIR                # Parquet files with a column of strings or of lists of them
    python benchmarks/tokenizer.py DIR --distinct 4800 --json out.json   # the first 4,800 captions, none twice

Cold: a new tokenizer, tables not yet loaded, first pass over all captions (module imports excluded on both sides).
Warm: further passes, caches full, the mean of as many as fill a second. Both tokenizers take turns; the table gives the
median and the range. The ids of both are compared first, so that no figure stands for a wrong result.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from miniclip.models import tokenizer


def made_up_captions(count: int = 40_000, words: int = 9_000, seed: int = 0) -> list[str]:
    """Captions of 6 to 16 words, drawn by Zipf's law from made-up words of one to four syllables; ASCII."""
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bcdfghlmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(words)]
    weights = [1 / rank for rank in range(1, words + 1)]
    lengths = [rng.randint(6, 16) for _ in range(count)]
    drawn = iter(rng.choices(lexicon, weights, k=sum(lengths)))
    return [" ".join(next(drawn) for _ in range(length)).capitalize() + " ." for length in lengths]


def parquet_captions(folder: Path, column: str) -> list[str]:
    import pyarrow.parquet as parquet

    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no *.parquet files in {folder}")
    rows = [row for file in files for row in parquet.read_table(file, columns=[column])[column].to_pylist()]
    return [caption for row in rows for caption in ([row] if isinstance(row, str) else row)]


def seconds(make: Callable[[], Callable[[list[str]], Any]], batches: list[list[str]]) -> tuple[float, float]:
    """(cold, warm) seconds for one pass over the batches."""
    start = time.perf_counter()
    tokenize = make()
    for batch in batches:
        tokenize(batch)
    cold = time.perf_counter() - start
    start = time.perf_counter()
    passes = 0
    while time.perf_counter() - start < 1:
        for batch in batches:
            tokenize(batch)
        passes += 1
    return cold, (time.perf_counter() - start) / passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="Parquet files; made-up captions if left out")
    parser.add_argument("--column", default="captions")
    parser.add_argument("--distinct", type=int, metavar="N", help="only the first N distinct captions")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()

    from open_clip.tokenizer import SimpleTokenizer

    torch.set_num_threads(1)
    captions = parquet_captions(args.folder, args.column) if args.folder else made_up_captions()
    if args.distinct:
        captions = list(dict.fromkeys(captions))[: args.distinct]
    batches = [captions[at : at + args.batch] for at in range(0, len(captions), args.batch)]
    theirs = SimpleTokenizer()
    if not all(torch.equal(tokenizer.tokenize(batch), theirs(batch)) for batch in batches):
        raise SystemExit("the ids differ from open_clip's")

    runs = []
    for _ in range(args.repeats):
        tokenizer._chunks.cache_clear()  # off the clock, as with open_clip's: a new process has no old tables to free
        runs.append((seconds(SimpleTokenizer, batches), seconds(tokenizer.Tokenizer, batches)))
    result: dict[str, Any] = {
        "captions": len(captions),
        "batch": args.batch,
        "repeats": args.repeats,
        "machine": f"{machine()}, Python {platform.python_version()}",
    }
    print(result["machine"])
    print(f"{len(captions)} captions, batches of {args.batch}, {args.repeats} interleaved runs; equal ids")
    print(f"{'':6}{'open_clip s':>24}{'miniclip s':>24}{'ratio':>22}")
    for index, state in enumerate(("cold", "warm")):
        peer, own = ([run[side][index] for run in runs] for side in (0, 1))
        columns = {
            "open_clip_s": peer,
            "miniclip_s": own,
            "ratio": [a / b for a, b in zip(peer, own, strict=True)],
        }
        result[state] = {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in columns.items()
        }
        cells = []
        for values in result[state].values():
            form = "{:.3f}" if values["median"] < 5 else "{:.1f}"
            cells.append(" ".join(form.format(values[key]) for key in ("median", "min", "max")))
        print(f"{state:6}{cells[0]:>24}{cells[1]:>24}{cells[2]:>22}   (median min max)")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
