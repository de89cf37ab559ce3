"""Images of an index by words, by an image, or by both. Axes: N images, E embedding."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from miniclip.evaluation.loaded import Loaded
from miniclip.evaluation.prompts import fill_templates
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers
from miniclip.search.store import VECTORS, Index, check_model, open_index
from miniclip.search.vectors import MOST, Graph, exact, has_graphs

AS_IT_IS = ("{}",)  # of templates: what is sought is a sentence already
# What is taken off a query for what is not wanted. Of 1,000 photos of Flickr8k and 134 pairs of words ("dog", not
# "snow"), judged by five captions each, the first ten were right in 49 % without it, in 53 % with 0.4, 54 % with 0.7,
# 53 % with 1, and in 51 % where the part of the query along the unwanted direction is taken off instead.
_AGAINST = 0.7


class Hits(NamedTuple):
    """rows: (k,) int64, of the index, nearest first. cosines: (k,) float32, with the query."""

    rows: np.ndarray
    cosines: np.ndarray


class Searcher:
    """An index and its model in memory. Any thread may call it. templates: that words are put into."""

    def __init__(
        self,
        index: Index,
        model: TwoTowers,
        preprocess: Preprocess,
        tokenizer: TextTokenizer,
        templates: Sequence[str] = AS_IT_IS,
    ) -> None:
        self.index, self.scale = index, index.about.scale
        self._loaded = Loaded(model, preprocess, tokenizer)
        self._templates, self._lock = tuple(templates), Lock()
        self._embedded = lru_cache(4096)(self._embed)
        graph = index.folder / VECTORS
        self._graph = Graph(graph, index.embeddings) if graph.exists() and has_graphs() else None

    def words(self, texts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """(n, E) float32, unit length: of each text the mean over the templates, the searcher's own for None."""
        chosen = self._templates if templates is None else tuple(templates)
        found = [self._embedded(text, chosen) for text in texts]
        return np.stack(found) if found else np.zeros((0, self.index.about.embed_dim), dtype=np.float32)

    def _embed(self, text: str, templates: tuple[str, ...]) -> np.ndarray:
        prompts = fill_templates([[text]], templates)[0]
        with self._lock:
            return _unit(self._loaded.encode(prompts).mean(0))

    def picture(self, image: Image.Image) -> np.ndarray:
        """Any image -> (E,) float32, unit length."""
        with self._lock:
            return self._loaded.encode(image)[0]

    def query(self, words: str = "", not_: str = "", images: Sequence[np.ndarray] = ()) -> np.ndarray:
        """(E,) float32, unit length: the mean of what is given, words and (E,) images, less 0.7 times not_.

        Raises ValueError if neither is given.
        """
        given = [*images, *(self.words([words]) if words.strip() else ())]
        if not given:
            raise ValueError("there is nothing to look for; give words, an image, or both")
        wanted = _unit(np.mean(given, axis=0))
        if not_.strip():
            wanted = wanted - _AGAINST * self.words([not_])[0]
        return _unit(wanted)

    def nearest(
        self, query: np.ndarray, top: int = 20, threshold: float | None = None, leave_out: Collection[int] = ()
    ) -> Hits:
        """The images nearest to a query of unit length. threshold: least cosine. leave_out: rows that are not found."""
        k = min(top + len(leave_out), len(self.index))
        if self._graph is not None and k <= MOST:
            rows, cosines = self._graph.nearest(query, k)
        else:
            rows, cosines = exact(self.index.embeddings, query, k)
        kept = ~np.isin(rows, list(leave_out))
        if threshold is not None:
            kept &= cosines >= threshold
        return Hits(rows[kept][:top], cosines[kept][:top])


def open_searcher(
    folder: str | Path, device: str | torch.device = "cpu", templates: Sequence[str] = AS_IT_IS
) -> Searcher:
    """A folder that miniclip index wrote, with the model that it was written with.

    Raises FileNotFoundError or ValueError with one line that says what to do.
    """
    index = open_index(folder)
    try:
        model, preprocess, tokenizer = load(index.about.model, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{index.folder} was made with a model that is gone: {error}") from error
    check_model(index, model)
    return Searcher(index, model, preprocess, tokenizer, templates)


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
