"""What the page of the app asks, answered: plain values in, what JSON can hold out. Nothing here knows of HTTP.

A picture to search by is named by its row in the index, "12", or by what `take` answered for one that was uploaded.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.common.printing import printable
from miniclip.data.images import BadImage, decode_image
from miniclip.evaluation.prompts import SIMPLE_TEMPLATES
from miniclip.search.query import Searcher

MAX_BYTES = 50_000_000  # of an uploaded picture
AT_ONCE = 60  # images an answer
_SIDE = 320  # the shorter one of a thumbnail, in pixels
_THUMBNAILS = 4096  # that are kept, of some 30 kB each
_PICTURES = 32  # uploaded ones that are remembered
_LABELS = 200


class Lacking(LookupError):
    """There is no such row, or its image cannot be read any more."""


class Answers:
    """Of one index and the model that it was made with; several threads may ask at once."""

    def __init__(self, searcher: Searcher) -> None:
        self.index, self.searcher = searcher.index, searcher
        self.thumbnail = lru_cache(_THUMBNAILS)(self._thumbnail)
        searcher.words(["a first sentence, so that nobody waits for what happens once"])
        self._taken = OrderedDict[str, np.ndarray]()
        self._taking = threading.Lock()  # one at a time: a picture of 64 Mpx takes 192 MB while it is decoded

    def about(self) -> dict[str, Any]:
        about = self.index.about
        return {
            "title": printable(self.index.folder.name),
            "count": len(self.index.paths),
            "model": _as_typed(about.model),
            "source": _as_typed(about.source),
            "max_bytes": MAX_BYTES,
            "template": SIMPLE_TEMPLATES[0],
        }

    def search(self, words: str, not_: str, picture: str, start: str) -> dict[str, Any]:
        """The images from place `start` on, best first; if nothing is asked for, in the index's own order."""
        first = int(start) if start.isdecimal() else 0
        words, not_ = words.strip(), not_.strip()
        if not (words or not_ or picture):
            rows = list(range(first, min(first + AT_ONCE, len(self.index.paths))))
            return {"found": [self._shown(row, None) for row in rows], "all": len(self.index.paths)}
        own = [int(picture)] if picture.isdecimal() else []
        query = self.searcher.query(words, not_=not_, images=[self._vector(picture)] if picture else [])
        found, cosines = self.searcher.nearest(query, first + AT_ONCE, leave_out=own)
        best = list(zip(found.tolist(), cosines.tolist(), strict=True))[first:]
        return {"found": [self._shown(*one) for one in best], "all": len(self.index.paths) - len(own)}

    def classify(self, picture: str, labels: Sequence[str], template: str) -> dict[str, Any]:
        """What the model takes a picture for: a softmax over the labels of scale * cosine. Highest first."""
        tidy = (" ".join(label.split()) for label in labels)
        named = list({label.casefold(): label for label in tidy if label}.values())
        if len(named) < 2:
            raise ValueError("type two labels or more: a probability is shared among them")
        if len(named) > _LABELS:
            raise ValueError(f"{len(named)} labels are more than the {_LABELS} of this page; take eval.py classify")
        if "{}" not in template:
            raise ValueError("the template lacks {} for the label")
        cosines = self.searcher.words(named, (template,)) @ self._vector(picture)
        logits = self.searcher.scale * cosines.astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        rows = [
            {"label": printable(named[k]), "probability": float(shares[k]), "cosine": float(cosines[k])}
            for k in np.argsort(-shares, kind="stable")
        ]
        return {"labels": rows, "scale": self.searcher.scale}

    def take(self, content: bytes) -> dict[str, Any]:
        """An uploaded picture -> the name that it goes by from now on."""
        name = f"p{hashlib.blake2b(content, digest_size=16).hexdigest()}"
        with self._taking:
            if name not in self._taken:
                image = decode_image(content, "the picture", at_least=_SIDE)
                self._taken[name] = self.searcher.picture(image)
            self._taken.move_to_end(name)
            while len(self._taken) > _PICTURES:
                self._taken.popitem(last=False)
        return {"picture": name}

    def _vector(self, picture: str) -> np.ndarray:
        if picture.isdecimal():
            return np.asarray(self.index.embeddings[self._row(picture)], dtype=np.float32)
        if (vector := self._taken.get(picture)) is None:
            raise ValueError("the app no longer has that picture; give it again")
        return vector

    def _row(self, name: str) -> int:
        if not (name.isascii() and name.isdecimal() and len(name) < 12 and int(name) < len(self.index.paths)):
            raise Lacking("the index has no such row")
        return int(name)

    def _shown(self, row: int, cosine: float | None) -> dict[str, Any]:
        name, caption = self.index.paths[row], self.index.captions[row]
        return {"row": row, "cosine": cosine, "name": printable(name), "caption": printable(caption or "")}

    def _thumbnail(self, name: str) -> bytes:
        """JPEG of the image in a row of the index."""
        row = self._row(name)
        try:
            image = self.index.image(row, at_least=_SIDE)
        except (BadImage, OSError) as error:
            raise Lacking(str(error)) from error
        factor = min(_SIDE / min(image.size), 4 * _SIDE / max(image.size))
        if factor < 1:
            image = image.resize([max(1, round(factor * n)) for n in image.size], Image.Resampling.BICUBIC)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=85)
        return content.getvalue()


def _as_typed(name: str) -> str:
    """A path from where the app was started, if it leads down from there; else as it is."""
    path, here = Path(name), Path.cwd()
    return printable(str(path.relative_to(here)) if path.is_relative_to(here) and path != here else name)
