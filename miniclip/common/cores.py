"""How many cores this process may use."""

from __future__ import annotations

import os


def allowed_cores() -> int:
    """That the system lets it run on, the second threads of cores among them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole_cores() -> int:
    """Without second threads, which do not help arithmetic."""
    import psutil

    return min(allowed_cores(), psutil.cpu_count(logical=False) or allowed_cores())
