"""A Plan on the disk."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from support.fuzz import Photo, Plan

LEVELS = (32, 96, 160, 224)  # of each channel: far enough apart for any codec
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".tif": "TIFF"}
HOMES = {"kaggle": "Images", "flickr8k": "Flicker8k_Dataset", "flickr30k": "flickr30k_images"}


@cache
def picture(number: int, suffix: str) -> bytes:
    """One colour that tells the number (below 64), in the format that a suffix stands for."""
    image, buffer = Image.new("RGB", (16, 12), tuple(LEVELS[number // 4**i % 4] for i in range(3))), io.BytesIO()
    if suffix == ".heic":
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer)  # without telling Pillow of it, which the product has to do
    else:
        mode = (
            {0: "CMYK", 1: "RGB"}[number % 2] if suffix in (".jpg", ".tif") else "RGBA" if suffix == ".png" else "RGB"
        )
        image.convert(mode).save(buffer, FORMATS.get(suffix, suffix[1:].upper()))
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    pixel: Any = image.getpixel((image.width // 2, image.height // 2))
    nearest = [min(range(4), key=lambda i: abs(LEVELS[i] - value)) for value in pixel]
    return sum(level * 4**i for i, level in enumerate(nearest))


def content(photo: Photo) -> bytes:
    if photo.state in ("empty", "text", "foreign"):
        return b"" if photo.state == "empty" else b"this is not an image\n" * 9
    data = picture(photo.number, Path(photo.file).suffix.lower())
    return data[: len(data) * 2 // 3] if photo.state == "truncated" else data


def write(plan: Plan, base: Path) -> str:
    """Returns what the owner gives as data.source."""
    outer = base / "hub" / "datasets--me--set" / "snapshots" / "0a1b2c" if plan.link == "snapshot" else base / plan.root
    root = outer / outer.name if plan.wrapped else outer
    root.mkdir(parents=True)
    given = {"tar": _tars, "parquet": _parquet, "parquet_paths": _parquet}.get(plan.layout, _files)(plan, root)
    if plan.seed % 3 == 0:
        for clutter in (".DS_Store", "README.md", "__MACOSX/._1.jpg", ".ipynb_checkpoints/1-checkpoint.jpg"):
            save(root / clutter, b"\0clutter")
        if plan.form == "both":  # of img2dataset
            save(given.with_name(f"{given.stem}_stats.json"), b'{"count": 5}')
        if given.is_file():
            save(given.with_name(f"._{given.name}"), b"\0clutter")
    for number in (60, 61) if plan.extra else ():
        save(root / plan.extra / f"{number}.jpg", picture(number, ".jpg"))
    _link(plan, base, root)
    if plan.asked == "pattern":
        return f"{root}/{'**/' if plan.told == 'folders' else ''}*{given.suffix}"
    if plan.link == "root" and plan.asked == "folder":
        outer, target = base / "link", outer
        outer.symlink_to(target)
    return str(outer if plan.asked == "folder" else given)


def save(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def text(plan: Plan, words: str) -> bytes:
    if plan.encoding == "utf-16-be":
        return b"\xfe\xff" + words.encode("utf-16-be")
    return words.encode(plan.encoding)


def home(plan: Plan, photo: Photo) -> str:
    """Folder of an image below the root."""
    word = plan.word(photo.split)
    if plan.layout == "coco":
        return word if plan.told == "files" else "images"
    inside = HOMES.get(plan.layout, plan.inside)
    parts = {"folders": (word, word * plan.deeper, inside), "paths": (inside, word)}.get(plan.told, (inside,))
    return "/".join(part for part in (*parts, photo.label if plan.layout == "classes" else "") if part)


def _groups(plan: Plan) -> dict[tuple[str, int], list[Photo]]:
    """Word of the split, where files of their own tell it, and number of the shard -> photos."""
    groups: dict[tuple[str, int], list[Photo]] = {}
    for photo in plan.photos:
        word = plan.word(photo.split) if plan.told in ("folders", "files") else ""
        groups.setdefault((word, photo.shard), []).append(photo)
    return groups


def _folder(plan: Plan, word: str) -> str:
    """Of a table, Parquet files or tars."""
    return f"{word}/{word * plan.deeper}" if plan.told == "folders" else ""


def _captions(plan: Plan, photo: Photo) -> Any:
    if photo.state != "uncaptioned":
        return photo.captions
    return [] if plan.form in ("list", "list_text", "lines") else [" " if photo.number % 2 else ""]


def _records(plan: Plan, photo: Photo, cell: Any) -> list[dict[str, Any]]:
    """Rows of a photo in a table. cell: its image."""
    image = ("file_name", "image", "filepath", "Image")[plan.seed % 4]
    name = ("caption", "text", "Caption", "title")[plan.seed // 4 % 4]
    captions, row = _captions(plan, photo), {image: cell}
    if plan.told == "column":
        row["split"] = plan.word(photo.split)
    if plan.labelled:
        return [row | {"label": photo.label}]
    if plan.form == "family":
        most = max(len(other.captions) for other in plan.photos)
        return [row | {f"caption_{i}": (*captions, *[""] * most)[i] for i in range(most)}]
    if plan.form == "list_text":
        return [row | {name: json.dumps(captions, ensure_ascii=False) if plan.seed % 2 else repr(captions)}]
    if plan.form in ("list", "mixed"):
        return [row | {name: captions[0] if plan.form == "mixed" and len(captions) == 1 else captions}]
    return [row | {name: caption} for caption in captions]


def _path(plan: Plan, photo: Photo, root: Path, folder: Path) -> str:
    """Of an image, as the table in a folder has it; the image is written there."""
    if plan.style == "url":
        return f"https://example.org/{photo.number}.jpg"
    file = root / home(plan, photo) / photo.file
    if photo.state == "dotdot":
        file = (root.parent.parent if plan.wrapped else root.parent) / "outside" / photo.file
    if photo.state != "missing":
        save(file, content(photo))
    if plan.style == "absolute" and plan.encoding != "cp1252" and photo.state != "dotdot":
        return str(file)
    return f"{'./' if plan.style == 'dot' else ''}{os.path.relpath(file, folder)}"


def _files(plan: Plan, root: Path) -> Path:
    """Tables that name images, text beside images, folders of classes, and the formats of known sets."""
    if plan.layout in ("jsonl", "csv", "tsv", "json"):
        tables = [_table(plan, root, word, photos) for (word, _), photos in _groups(plan).items()]
        return tables[0]
    special = {"kaggle": _kaggle, "flickr8k": _flickr8k, "flickr30k": _flickr30k, "coco": _coco}
    for photo in plan.photos:
        file = root / home(plan, photo) / photo.file
        if photo.state != "missing":
            save(file, content(photo))
        if plan.layout == "beside" and (photo.state != "uncaptioned" or photo.number % 2):
            save(
                file.with_suffix(".TXT" if plan.upper else ".txt"), text(plan, "\n".join(_captions(plan, photo)) + "\n")
            )
    return special[plan.layout](plan, root) if plan.layout in special else root


def _table(plan: Plan, root: Path, word: str, photos: Sequence[Photo]) -> Path:
    folder = root / _folder(plan, word)
    stem = word if plan.told == "files" else ("metadata", "captions", "Metadata")[plan.seed % 3]
    rows: list[dict[str, Any]] = []
    for photo in photos:
        own = _records(plan, photo, _path(plan, photo, root, folder))
        number = len(rows) + (1 if plan.layout in ("jsonl", "json") else 2)
        photo.places += [f"{kind} {number}" for kind in ("line", "row", "entry", "item", "object", "record")]
        rows += own
    if plan.layout == "jsonl":
        words = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif plan.layout == "json":
        words = json.dumps(rows, ensure_ascii=False, indent=plan.seed % 2)
    else:
        words = _delimited(rows, "\t" if plan.layout == "tsv" else ",;|"[plan.seed % 3])
    ending = "ndjson" if plan.layout == "jsonl" and plan.seed % 5 == 0 else plan.layout
    return save(folder / f"{stem}.{ending.upper() if plan.upper else ending}", text(plan, words))


def _delimited(rows: Sequence[Mapping[str, Any]], delimiter: str) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _lines(plan: Plan, start: int) -> list[tuple[str, int, str]]:
    """File, number of the caption and caption of each line; start: lines before them."""
    lines: list[tuple[str, int, str]] = []
    for photo in plan.photos:
        photo.places.append(f"line {len(lines) + start + 1}")
        lines += [(photo.file, i, caption) for i, caption in enumerate(_captions(plan, photo))]
    return lines


def _kaggle(plan: Plan, root: Path) -> Path:
    words = _delimited([{"image": file, "caption": caption} for file, _, caption in _lines(plan, 1)], ",")
    return save(root / "captions.txt", text(plan, words))


def _flickr8k(plan: Plan, root: Path) -> Path:
    words = "".join(f"{file}#{i}\t{caption}\n" for file, i, caption in _lines(plan, 0))
    for word in plan.splits if plan.told == "files" else ():
        names = "".join(f"{photo.file}\n" for photo in plan.photos if photo.split == word)
        called = {"train": "train", "validation": "dev", "test": "test"}[word]
        save(root / f"Flickr_8k.{called}Images.txt", text(plan, names))
    return save(root / "Flickr8k.token.txt", text(plan, words))


def _flickr30k(plan: Plan, root: Path) -> Path:
    words = "".join(f"{file}| {i}| {caption}\n" for file, i, caption in _lines(plan, 1) if "|" not in caption)
    return save(root / "results.csv", text(plan, "image_name| comment_number| comment\n" + words))


def _coco(plan: Plan, root: Path) -> Path:
    for word in plan.splits if plan.told == "files" else [""]:
        photos = [photo for photo in plan.photos if not word or photo.split == word]
        for photo in photos:
            photo.places.append(f"image {100 + photo.number}")
        images = [{"id": 100 + p.number, "file_name": p.file, "height": 12, "width": 16} for p in photos]
        said = [(p, caption) for p in photos for caption in _captions(plan, p)]
        notes = [{"id": i, "image_id": 100 + p.number, "caption": caption} for i, (p, caption) in enumerate(said)]
        name = f"captions_{plan.word(word)}.json" if word else "captions.json"
        save(root / "annotations" / name, json.dumps({"info": {}, "images": images, "annotations": notes}).encode())
    return root


def _parquet(plan: Plan, root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, rows = _groups(plan), dict[str, int]()
    shards, files = 1 + max(shard for _, shard in groups), list[Path]()
    for (word, shard), photos in sorted(groups.items()):
        name = f"{word if plan.told == 'files' else 'part'}-{shard:05d}-of-{shards:05d}.parquet"
        files.append(root / _folder(plan, word) / name)
        records: list[dict[str, Any]] = []
        for photo in photos:
            bare = photo.state == "missing"
            cell: Any = None if bare else {"bytes": content(photo), "path": photo.file if plan.seed % 2 else None}
            if plan.layout == "parquet_paths":
                cell = _path(plan, photo, root, files[-1].parent)
            photo.places += [f"row {rows.get(word, 0) + len(records)}", f"row {len(records)}"]
            records += _records(plan, photo, cell)
        rows[word] = rows.get(word, 0) + len(records)
        kind = pa.string() if plan.form != "list" else pa.list_(pa.string())
        columns = {c: [record[c] for record in records] for c in records[0]}
        bytes_and_path = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        image = pa.string() if plan.layout == "parquet_paths" else bytes_and_path
        kinds = {next(iter(columns)): image, "split": pa.string()}
        table = {c: pa.array(values, kinds.get(c, kind)) for c, values in columns.items()}
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), files[-1])
    return files[0]


def _tars(plan: Plan, root: Path) -> Path:
    files: list[Path] = []
    for (word, shard), photos in sorted(_groups(plan).items()):
        name = f"{word + '-' if plan.told == 'files' else ''}{shard:05d}.tar"
        files.append(root / _folder(plan, word) / name)
        images, texts = list[tuple[str, bytes]](), list[tuple[str, bytes]]()
        for photo in photos:
            key = ("./set/" if plan.order == "folder" else "") + photo.file.rpartition(".")[0]
            photo.places.append(f"sample {key.removeprefix('./')}")
            captions = _captions(plan, photo)
            images += [(f"{key}.{photo.file.rpartition('.')[2]}", content(photo))] * (photo.state != "missing")
            if plan.form in ("one", "both"):
                texts.append((f"{key}.txt", text(plan, captions[0])))
            if plan.form != "one":
                said = {"captions": captions} if plan.form == "list" else {"caption": captions, "id": photo.number}
                said |= {"caption": captions[0], "url": "https://example.org/"} if plan.form == "both" else {}
                texts.append((f"{key}.json", text(plan, json.dumps(said, ensure_ascii=False))))
        members = [*images, *texts]
        if plan.order != "apart":
            stems = {m[0].rpartition(".")[0]: i for i, m in enumerate(texts)}
            members.sort(
                key=lambda m: (stems[m[0].rpartition(".")[0]], m[0][-4:] in (".txt", "json") and plan.order != "text")
            )
        _write_tar(files[-1], members, plan.order == "folder")
    return files[0]


def _write_tar(file: Path, members: Iterable[tuple[str, bytes]], clutter: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        if clutter:
            folder = tarfile.TarInfo("./set")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            members = [("./set/._1.jpg", b"\0clutter"), *members]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _link(plan: Plan, base: Path, root: Path) -> None:
    """Put links in the place of files, and the files elsewhere."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.is_symlink()]
    if plan.link == "snapshot":
        for i, file in enumerate(files):
            _swap(file, root.parents[2 if plan.wrapped else 1] / "blobs" / f"{i:040x}")
    by_name = {photo.file: photo for photo in plan.photos}
    for i, file in enumerate(files):
        photo = by_name.get(file.name)
        if plan.link == "inside" and photo is not None:
            _swap(file, root / ".store" / f"{i:08x}")
        elif photo is not None and photo.state == "linked_out":
            _swap(file, base / "elsewhere" / file.name)
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    if plan.link == "folder" and folders:
        _swap(folders[0], root / ".store" / folders[0].name)


def _swap(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(str(file), str(target))
    file.symlink_to(os.path.relpath(target, file.parent), target_is_directory=target.is_dir())
