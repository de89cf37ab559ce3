"""What an index costs beside the encoder's own forward alone, and that nothing is encoded twice or lost.

    python benchmarks/index.py --model MODEL --images IMAGES --work FOLDER [--count 8000]

So many images of a source are copied into FOLDER as files. In BLOCKS parts of them, the model first sees batches that
lie in memory, then the part is indexed: medians of images a second, and of processor time, which is the one to quote
from a machine that others use. Then, as a user does it, in processes of their own: all are indexed, killed in the
middle, and gone on with; 10 change, 5 go and 5 come. The result is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import machine
from PIL import Image

BLOCKS, BATCH = 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "images", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--count", type=int, default=8000)
    asked = parser.parse_args()
    work = Path(asked.work)
    photos, out = work / "photos", work / "photos.index"
    print(machine("cpu"), flush=True)
    copy(asked.images, photos, asked.count)
    found = {"images": asked.count} | beside_the_forward(asked.model, photos)
    print(json.dumps(found), flush=True)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "miniclip", "index", str(photos), "--model", asked.model, "--out", str(out)]
    found |= killed(command, out, asked.count)
    files = sorted(photos.iterdir())
    for file in files[:10]:
        with Image.open(file) as image:
            image.rotate(180).save(file)
    for k, file in enumerate(files[10:15]):
        file.rename(work / "gone")
        with Image.open(work / "gone") as image:
            image.rotate(90, expand=True).save(photos / f"new{k}.jpg")
    found["changes"] = table(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(found))


def copy(source: str, photos: Path, count: int) -> None:
    """The first images of a source as files."""
    from miniclip.search.pictures import open_pictures

    shutil.rmtree(photos, ignore_errors=True)
    photos.mkdir(parents=True)
    pictures = open_pictures(source)
    for i in range(count):
        (photos / f"{i:05d}.jpg").write_bytes(pictures.read(i))


def beside_the_forward(name: str, photos: Path) -> dict[str, object]:
    """Medians over the blocks: images a second, and processor time an image, of both."""
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.models.load import load
    from miniclip.search.build import build_index
    from miniclip.search.pictures import Pictures, open_pictures
    from miniclip.search.store import about_of
    from miniclip.training.precision import choose, for_encoding

    model, preprocess, _ = load(name)
    precision = for_encoding(choose("auto", torch.device("cpu")).name)
    options, pictures = EncodeOptions(BATCH, precision), open_pictures(str(photos))
    about = about_of(name, model, str(photos), None, pictures)
    pixels = torch.stack([preprocess.to_uint8(pictures.image(i)) for i in range(min(BATCH, len(pictures)))])
    size, times = len(pictures) // BLOCKS, dict[str, list[float]]()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def forward(_: Pictures) -> int:
        with torch.no_grad(), autocast:
            for _ in range(max(1, size // BATCH)):
                model.encode_image(preprocess.normalize(pixels))
        return max(1, size // BATCH) * len(pixels)

    def index(part: Pictures) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return build_index(model, preprocess, part, about, Path(folder), options).encoded

    forward(pictures)
    for start in range(0, size * BLOCKS, size):
        mine = slice(start, start + size)
        rows = [replace(part, rows=part.rows[mine]) for part in pictures.parts]
        part = Pictures(rows, pictures.root, pictures.paths[mine], pictures.captions[mine])
        for action in (forward, index):
            began, busy = time.perf_counter(), time.process_time()
            count = action(part)
            wall, busy = time.perf_counter() - began, time.process_time() - busy
            times.setdefault(f"{action.__name__}_per_s", []).append(count / wall)
            times.setdefault(f"{action.__name__}_cpu_ms", []).append(1e3 * busy / count)
    found: dict[str, object] = {key: round(statistics.median(values), 2) for key, values in times.items()}
    shares = {"share": ("index_per_s", "forward_per_s"), "cpu_share": ("forward_cpu_ms", "index_cpu_ms")}
    for name, (ours, theirs) in shares.items():
        found[name] = round(float(np.median(np.divide(times[ours], times[theirs]))), 3)
    return {"precision": precision} | found


def killed(command: list[str], out: Path, count: int) -> dict[str, object]:
    """Start, kill -9 once about half is written, go on -> seconds of both starts, and whether every image is there."""
    from miniclip.search.store import PARTS, open_index, read_images

    def done() -> list[str]:
        return [path for file in (out / PARTS).glob("*.parquet") for path in read_images(file)["path"].to_pylist()]

    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(done()) < count / 2:
            time.sleep(1)
        process.kill()
    first, before = time.perf_counter() - began, done()
    began = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    second, paths = time.perf_counter() - began, open_index(out).paths
    encoded = re.search(r"([\d,]+) images were encoded", said)
    assert encoded is not None, said
    return {
        "killed_after": len(before),
        "seconds": [round(first, 1), round(second, 1)],
        "encoded_after": int(encoded[1].replace(",", "")),
        "once_each": len(set(before)) == len(before) and len(set(paths)) == len(paths) == count,
    }


def table(said: str) -> dict[str, str]:
    """The rows that the command prints, and its last line."""
    rows = re.findall(r"^(new|changed|gone|kept|bad) +([\d,]+)$", said, re.MULTILINE)
    return dict(rows) | {"said": said.splitlines()[-1]}


if __name__ == "__main__":
    main()
