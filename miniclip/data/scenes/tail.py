"""Scenes in which some shapes are far rarer than others, for what a training does about classes that it hardly sees."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from miniclip.data.scenes.captions import SEEN, SHAPES, Draws

# Of each of SHAPES, in their order, its share of the objects, times any factor. 80-10-10: in per cent, one shape, two,
# and five; 40 circles for a crescent. power: k^-2 for the k-th, of which the last has 1 %; 64 circles for a crescent.
SHARES: dict[str, Sequence[float]] = {
    "80-10-10": (80, 5, 5, 2, 2, 2, 2, 2),
    "power": [k**-2 for k in range(1, len(SHAPES) + 1)],
}
_COLOURS = {shape: [colour for one, colour in SEEN if one == shape] for shape in SHAPES}


def draw_combos(draws: Draws, count: int, tail: str) -> list[tuple[str, str]]:
    """count different (shape, colour) that are seen: each shape by its share, whatever the others, in any colour."""
    edges = list(accumulate(SHARES[tail]))
    found: list[tuple[str, str]] = []
    for _ in range(count):
        shape = SHAPES[bisect(edges, draws.uniform(0, edges[-1]))]
        found.append((shape, draws.pick([colour for colour in _COLOURS[shape] if (shape, colour) not in found])))
    return found


def rarest(combos: Sequence[tuple[str, str]]) -> str:
    """The class of a scene: the shape among its objects that comes last in SHAPES."""
    return max((shape for shape, _ in combos), key=SHAPES.index)
