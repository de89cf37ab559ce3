"""Work that threads do ahead of who asks for it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many of them; what ends the context, such as a signal, need not wait for work that was not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: ThreadPoolExecutor, work: Callable[[S], T], items: Iterable[S], depth: int) -> Iterator[T]:
    """Not pool.map, which would work on while nobody takes what is done, and keep it all in memory."""
    waiting = deque[Future[T]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def ahead(items: Iterator[T], depth: int = 3) -> Iterator[T]:
    """The same items, so many of them taken ahead in a thread; what they raise is raised here, in its place."""
    end: Any = object()
    with threads(1) as thread:
        for item in in_order(thread, lambda _: next(items, end), count(), depth):
            if item is end:
                return
            yield item
