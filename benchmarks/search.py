"""Search in an index: how long a question takes, exactly and by the graph, and what the graph misses.

    python benchmarks/search.py                                  # random unit vectors
    python benchmarks/search.py --index photos.index             # and vectors as its images have them; and its words

Random vectors have no structure that a graph could follow: they are the worst case, and no photos are like that. The
others are drawn from a normal distribution with the mean and the covariance of the index's embeddings, and the queries
are its captions. A query is one vector; exact and graph take turns. Recall: share of the ten nearest. Words: a new
caption each time, from the text to the rows, in the index as it is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from miniclip.search.query import Searcher, open_searcher
from miniclip.search.vectors import Graph, build, exact


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def as_in(embeddings: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    mean = embeddings.mean(0)
    _, spread, directions = np.linalg.svd(embeddings - mean, full_matrices=False)
    drawn = draws.standard_normal((count, len(spread)), dtype=np.float32) * (spread / len(embeddings) ** 0.5)
    return unit(mean + drawn @ directions)


def timed(search: Callable[[], Any]) -> tuple[Any, float]:
    """And milliseconds."""
    start = time.perf_counter()
    return search(), 1000 * (time.perf_counter() - start)


def told(milliseconds: Sequence[float]) -> str:
    return f"p50 {np.median(milliseconds):6.2f} ms, p95 {np.quantile(milliseconds, 0.95):6.2f} ms"


def compare(name: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.usearch"
        start = time.perf_counter()
        breadth = build(vectors, file)
        seconds, size = time.perf_counter() - start, file.stat().st_size / 1e6
        graph = Graph(file, vectors)
        exactly, by_graph, recall = [], [], []
        for query in queries:
            (wanted, _), taken = timed(partial(exact, vectors, query, 10))
            exactly.append(taken)
            (found, _), taken = timed(partial(graph.nearest, query, 10))
            by_graph.append(taken)
            recall.append(np.isin(wanted, found).mean())
    print(f"{name}, {len(vectors):,} of {vectors.shape[1]} numbers, {len(queries)} queries")
    print(f"  exact    {told(exactly)}\n  graph    {told(by_graph)}, recall {np.mean(recall):.4f}, breadth {breadth}")
    print(f"  built in {seconds:.0f} s, {size:.0f} MB")


def words(searcher: Searcher, captions: Sequence[str]) -> None:
    def find(caption: str) -> object:
        return searcher.nearest(searcher.query(caption))

    times = [timed(partial(find, caption))[1] for caption in dict.fromkeys(captions)]
    print(f"words in {len(searcher.index):,} images, {len(times)} captions\n  {told(times[3:])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="folder that miniclip index wrote, of images with captions")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=512, help="numbers of a random vector")
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    print(machine())
    draws = np.random.default_rng(0)
    for count in options.counts:
        vectors = unit(draws.standard_normal((count, options.width), dtype=np.float32))
        compare("random", vectors, unit(draws.standard_normal((options.queries, options.width))))
    if options.index:
        searcher = open_searcher(options.index)
        captions = [caption for caption in searcher.index.captions if caption][: options.queries]
        words(searcher, captions)
        queries = searcher.words(captions)
        for count in options.counts:
            compare("as in the index", as_in(searcher.index.embeddings, count, draws), queries)


if __name__ == "__main__":
    main()
