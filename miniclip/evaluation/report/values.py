"""How a report writes figures, times and names: shares in per cent, ranks as they are, a dash for what is missing."""

from __future__ import annotations

from datetime import UTC, datetime

from miniclip.evaluation.report.files import number
from miniclip.evaluation.result import WORDS, is_rank, words_of
from miniclip.metrics.bootstrap import Figure

DASH = "–"
_WORDS = {**WORDS, "knn": "nearest neighbours"}


def name_of(figure: str) -> str:
    """ "image_to_text_r10" -> "image to text R@10 %"; a task before a slash stays as it is."""
    task, slash, figure = figure.rpartition("/")
    return task + slash + words_of(figure, _WORDS) + ("" if is_rank(figure) or "auroc" in figure else " %")


def value_of(figure: str, value: object, sign: bool = False) -> str:
    """A value of that figure; sign: with a + where it is above 0."""
    found = number(value)
    if found is None:
        return DASH
    plus = "+" if sign else ""
    if is_rank(figure):
        return f"{found:{plus},.1f}".removesuffix(".0")
    return f"{found:{plus}.3f}" if "auroc" in figure else f"{100 * found:{plus}.1f}"


def interval_of(name: str, figure: Figure, sign: bool = False) -> str:
    """ "[79.0, 83.1]", or a dash."""
    ends = [value_of(name, end, sign) for end in (figure.low, figure.high)]
    return DASH if DASH in ends else f"[{ends[0]}, {ends[1]}]"


def shown(name: str, figure: Figure | None) -> str:
    """Value and interval in one cell."""
    if figure is None:
        return DASH
    interval = interval_of(name, figure)
    return value_of(name, figure.value) + ("" if interval == DASH else f" {interval}")


def percent(value: object) -> str:
    """A share, in per cent without the sign."""
    return value_of("", value)


def count(value: object) -> str:
    """A whole number; a dash for what is none, and for 0, which a result without a count has."""
    found = number(value)
    return f"{found:,.0f}" if found else DASH


def amount(value: object) -> str:
    """Four digits of any number."""
    found = number(value)
    return DASH if found is None else f"{found:.4g}"


def duration(seconds: object) -> str:
    """ "1 h 05 min", "2 min 05 s", "12.3 s"."""
    found = number(seconds)
    if found is None or found < 0:
        return DASH
    if found < 60:
        return f"{found:.1f} s"
    if found < 3600:
        return f"{int(found // 60)} min {int(found % 60):02} s"
    return f"{int(found // 3600):,} h {int(found % 3600 // 60):02} min"


def moment(time: str | datetime | None) -> str:
    """ "2026-01-31 12:00 UTC"; a text that is no time stands as it is."""
    try:
        time = datetime.fromisoformat(time) if isinstance(time, str) else time
        if time is None:
            return DASH
        return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time.tzinfo else f"{time:%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return str(time) or DASH
