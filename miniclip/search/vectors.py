"""Nearest neighbours among unit vectors: exact, and by a graph in a file beside them where there are very many.

The graph is usearch's (HNSW, arXiv:1603.09320): one file, and wheels for Linux, macOS and Windows; hnswlib comes as
source alone, and faiss is much more than this. It holds the vectors in 8 bits, a quarter of their size and several
times as fast; what it finds is put in order by the vectors themselves. How many of its nodes a search has to look at
depends on the data, a few hundred for images and ten thousand for noise, and is tried when it is built. Measured by
benchmarks/search.py. Axes: N images, E embedding.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from miniclip.common.console import write_json
from miniclip.common.durable import whole_file

if TYPE_CHECKING:
    from usearch.index import Index

APPROXIMATE_FROM = 100_000  # images; a product with all of fewer takes some milliseconds
MOST = 64  # neighbours that the graph is asked for; more are found exactly

_CONNECTIVITY, _BREADTH_OF_BUILD = 16, 128  # usearch's own
_SURE, _TRIALS = 0.99, 200  # share of the nearest MOST that is to be found, by so many queries
_AGAIN = "remove it, and run miniclip index again"
_TILE = 2048  # images that are compared with as many others at a time
_PAIRS = 4_000_000  # in memory, before they become groups


def has_graphs() -> bool:
    """Whether usearch, which is optional, is there; without it every search is exact."""
    return find_spec("usearch") is not None


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # which looks at every library that is loaded


def exact(embeddings: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, E) and (E,) float32 -> rows (min(k, N),) int64 and their cosines, nearest first, ties by row."""
    # by one thread: several would wait for those of torch, which embedded the query, a tenth of a second at times
    with _blas().limit(limits=1, user_api="blas"):
        cosines = embeddings @ query
    k = min(k, len(cosines))
    # with all that tie with the last of them
    rows = np.arange(k) if k == len(cosines) else np.flatnonzero(cosines >= np.partition(cosines, -k)[-k])
    rows = rows[np.argsort(-cosines[rows], kind="stable")][:k]
    return rows, cosines[rows]


class Graph:
    """What `build` wrote. embeddings: that it is of. Raises ValueError with one line if the file is damaged, or of
    others."""

    def __init__(self, path: Path, embeddings: np.ndarray) -> None:
        from usearch.index import Index

        try:
            told, content = json.loads(_beside(path).read_bytes()), path.read_bytes()
            if zlib.crc32(content) != told["crc32"]:  # usearch would crash
                raise ValueError("its checksum is another")
            graph = Index.restore(content, expansion_search=int(told["breadth"]))
            if graph is None or (len(graph), graph.ndim) != embeddings.shape:
                raise ValueError(f"it is not of {len(embeddings):,} images with {embeddings.shape[1]} numbers each")
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from error
        self._graph, self._embeddings, self._lock = graph, embeddings, Lock()

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `exact`, of which about one in a hundred may be missed. k: at most MOST. Any thread may call it."""
        with self._lock:  # searches of usearch share what they write to
            return _nearest(self._graph, self._embeddings, query, k)


def build(embeddings: np.ndarray, path: Path) -> int:
    """(N, E) float32 of unit length -> a file, and beside it the breadth of a search in it, which is returned: nodes
    that are kept in sight. Raises DiskFull."""
    from usearch.index import Index

    sizes = {"ndim": embeddings.shape[1], "connectivity": _CONNECTIVITY, "expansion_add": _BREADTH_OF_BUILD}
    made = Index(**sizes, metric="cos", dtype="i8")
    for start in range(0, len(embeddings), _TILE):
        tile = embeddings[start : start + _TILE]
        # by one thread: several leave some vectors without a way to them, which no search would ever find
        made.add(np.arange(start, start + len(tile)), _in_8_bits(tile), threads=1)
    # Between two images: at the same breadth no more is found of these than of what captions of photos ask for.
    first, second = np.random.default_rng(0).integers(len(embeddings), size=(2, _TRIALS))
    queries, breadth, recall = embeddings[first] + embeddings[second], MOST, 0.0
    wanted = [exact(embeddings, query, MOST)[0] for query in queries]
    while recall < _SURE and breadth < len(embeddings):
        breadth *= 2
        made.expansion_search = breadth  # type: ignore[misc]  # it can be set
        found = [_nearest(made, embeddings, query, MOST)[0] for query in queries]
        recall = np.mean([np.isin(rows, own).mean() for rows, own in zip(wanted, found, strict=True)])
    content = made.save()
    assert content is not None  # no path is named
    write_json(_beside(path), {"breadth": breadth, "crc32": zlib.crc32(content)})
    with whole_file(path) as part:
        part.write_bytes(content)
    return breadth


def _nearest(graph: Index, embeddings: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.sort(graph.search(_in_8_bits(query), 2 * k).keys.astype(np.int64))  # twice as many, for it has 8 bits
    best, cosines = exact(embeddings[rows], query, k)
    return rows[best], cosines


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _in_8_bits(vectors: np.ndarray) -> np.ndarray:
    """(..., E) float32 -> int8, each vector by its own largest number; cosines ask for no length."""
    return np.rint(vectors * (127 / np.abs(vectors).max(axis=-1, keepdims=True))).astype(np.int8)


def near_groups(embeddings: np.ndarray, threshold: float, progress: bool = False) -> list[np.ndarray]:
    """Rows of images that chains of cosines of at least threshold connect, the largest groups first, each ascending.

    All pairs are compared, in tiles: memory grows with N alone. A group may hold two that are less alike than that.
    progress: a bar on stderr.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from tqdm import tqdm

    n, labels, count = len(embeddings), np.arange(len(embeddings)), 0
    pairs: list[np.ndarray] = []

    def merged() -> np.ndarray:
        # each row with the least row of its group so far
        first, second = np.concatenate([np.stack([np.arange(n), labels]), *pairs], axis=1)
        graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
        _, found = connected_components(graph, directed=False)
        _, least = np.unique(found, return_index=True)
        return least[found]

    for top in tqdm(range(0, n, _TILE), desc="pairs", leave=False, disable=not progress):
        for left in range(top, n, _TILE):
            i, j = (embeddings[top : top + _TILE] @ embeddings[left : left + _TILE].T >= threshold).nonzero()
            pairs.append(np.stack([i + top, j + left])[:, i + top < j + left])
            count += pairs[-1].shape[1]
            if count > _PAIRS:
                labels, pairs, count = merged(), [], 0
    labels = merged()
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
