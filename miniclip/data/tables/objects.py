"""JSON files: rows as a list of objects, and the sets of captions that are handed out as one object."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from miniclip.data.formats import looks_like_image

Rows = tuple[list[dict[str, Any]], list[str]]  # and what messages call each


def parse(text: str) -> Any:
    """JSON; a key that stands in an object twice is refused. Raises JSONDecodeError, or another ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("not JSON that can be read, lists in lists without end") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands in an object twice")
    return found


def read_objects(value: Any, file: Path, root: Path) -> Rows:
    """Of a list of objects; an object that holds one, or columns, or captions by image; COCO's, or Karpathy's splits of
    COCO and Flickr. root: folder of the images. Raises ValueError."""
    images = value.get("images") if isinstance(value, dict) else None
    if isinstance(images, list) and isinstance(value.get("annotations"), list):
        return _coco(images, value["annotations"], file, root)
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _karpathy(images, file)
    rows = value if isinstance(value, list) else _rows(value) if isinstance(value, dict) else None
    if rows is None:
        raise ValueError(
            f'{file}: expected a list of objects, [{{"file_name": …, "text": …}}, …], an object that holds one, '
            'captions by image, {"a.jpg": […]}, or the images and annotations of COCO'
        )
    odd = next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if odd is not None:
        raise ValueError(f'{file} entry {odd}: expected an object, {{"file_name": …, "text": …}}')
    return rows, [f"{file.name} entry {number}" for number in range(1, len(rows) + 1)]


def _rows(value: Mapping[str, Any]) -> list[Any] | None:
    cells = list(value.values())
    if value and all(map(looks_like_image, value)):
        return [{"file_name": name, **(v if isinstance(v, dict) else {"captions": v})} for name, v in value.items()]
    lists = [cell for cell in cells if isinstance(cell, list) and any(isinstance(row, dict) for row in cell)]
    if lists:
        return lists[0] if len(lists) == 1 else None
    if cells and all(isinstance(cell, dict) and cell.keys() == cells[0].keys() for cell in cells):  # pandas' own form
        cells = [list(cell.values()) for cell in cells]
    if cells and all(isinstance(cell, list) and len(cell) == len(cells[0]) for cell in cells):
        return [dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True)]
    return [dict(value)] if any(isinstance(cell, str) and looks_like_image(cell) for cell in cells) else None


def _coco(images: Iterable[Any], annotations: Iterable[Any], file: Path, root: Path) -> Rows:
    said: dict[Any, list[Any]] = {}
    try:
        for note in annotations:
            if "caption" in note:
                said.setdefault(note["image_id"], []).append(note["caption"])
        if not said:
            raise ValueError(f"{file}: its annotations hold no caption; of COCO's files, captions_….json do")
        files: dict[Any, Any] = {}
        for image in images:
            if files.setdefault(image["id"], image["file_name"]) != image["file_name"]:
                raise ValueError(
                    f"{file}: two images have the id {image['id']!r}, {files[image['id']]} and {image['file_name']}"
                )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: an image of COCO's has an id and a file_name, an annotation an image_id") from error
    # captions_train2017.json goes with the folder train2017
    word = file.stem.rpartition("_")[2]
    first = next(iter(files.values()), "")
    places = [folder for folder in (word, f"images/{word}") if os.path.isfile(f"{root}/{folder}/{first}")]  # noqa: PTH113
    inside = f"{places[0]}/" if places else ""
    paths = {key: f"{inside}{name}" for key, name in files.items()}
    every = dict.fromkeys((*paths, *said))  # an image that annotations name and the list of images lacks, is bad
    records = [{"file_name": paths.get(key), "captions": said.get(key, [])} for key in every]
    return records, [f"{file.name} image {key}" for key in every]


def _karpathy(images: Iterable[Any], file: Path) -> Rows:
    """Their split "restval" is trained on, as in the papers."""
    records: list[dict[str, Any]] = []
    try:
        for image in images:
            path = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            split = {"restval": "train"}.get(image["split"], image["split"])
            captions = [sentence["raw"] for sentence in image["sentences"]]
            records.append({"file_name": path, "split": split, "captions": captions})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} entry {len(records) + 1}: expected filename, split, and sentences with raw, as in Karpathy's files"
        ) from error
    return records, [f"{file.name} entry {number}" for number in range(1, len(records) + 1)]
