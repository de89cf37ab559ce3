"""Indexes of images without a model that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from miniclip.search.store import COLUMNS, IMAGES, About, Index, open_index, to_table, write_about, write_images


def write_index(
    folder: Path,
    root: Path,
    paths: Sequence[str],
    embeddings: np.ndarray,
    captions: Sequence[str | None] = (),
    model: str = "a model",
    fingerprint: str = "0" * 32,
    rows: Sequence[int] = (),
    **told: Any,
) -> Index:
    """One of files below root, which need not be there. embeddings: (N, E) of any length. told: of About."""
    unit = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    n, none = len(paths), [None] * len(paths)
    columns: dict[str, Any] = {
        name: ["x"] * n if kind == "string" else list(range(n)) for name, kind in COLUMNS.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    about = About(model, fingerprint, unit.shape[1], 100.0, None, str(root), None, str(root), files=True)
    write_about(folder, replace(about, **told))
    columns |= {"path": paths, "caption": captions or none, "row": rows or range(n)}
    write_images(folder / IMAGES, to_table(columns, unit))
    return open_index(folder)
