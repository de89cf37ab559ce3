"""The captioned scenes in words: what a scene holds, what may truly be said of it, and the grammar that says it.

Lengths are in half sides of the image: the frame is [-1, 1] x [-1, 1], x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "checked")
TONES = ("grey", "brown", "beige", "teal", "pink")
BACKGROUNDS = ("plain", "shaded", "cloudy", "striped")

# Never drawn and never named in a split. Each shape and each colour stands here twice: neither alone gives the answer.
HELD_OUT = tuple(
    (shape, colour)
    for line in (
        "circle green white, square yellow purple, triangle red black, star orange blue",
        "heart yellow black, cross green blue, ring red white, crescent orange purple",
    )
    for shape, *colours in map(str.split, line.split(","))
    for colour in colours
)
SEEN = tuple((shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in HELD_OUT)

SYNONYMS = {"circle": "disc", "square": "box", "cross": "plus", "ring": "hoop", "crescent": "moon"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium",), "large": ("large", "big", "huge")}
TEXTURE_AFTER = {"striped": "with stripes", "dotted": "with dots", "checked": "with checks"}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
COUNTS = ("one object", "two objects", "three objects")
OPENINGS = ("a picture of", "a photo of", "a drawing of", "an image of", "a scene with")
LONGEST = 20  # words a caption


class Draws:
    """Random numbers that depend on the key alone; the same on every machine, since NumPy fixes the raw Philox stream.
    seed: 0 <= seed < 2**64. stream: which use of the seed, 0 <= stream < 2**15. index: 0 <= index < 2**48."""

    def __init__(self, seed: int, stream: int, index: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, stream << 48 | index], dtype=np.uint64))
        self._pool: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._pool:
            # the usual way to a double in [0, 1): the upper 53 bits
            self._pool = ((self._bits.random_raw(48) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._pool.pop()

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.uniform() * len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """count different entries of options, in random order."""
        rest = list(options)
        return [rest.pop(int(self.uniform() * len(rest))) for _ in range(count)]


class SceneObject(NamedTuple):
    """One thing in a scene. rgb: in [0, 1]. tilt: the tangent of half the angle by which it is turned."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    tilt: float
    rgb: tuple[float, float, float]


class Background(NamedTuple):
    """What lies behind. rgb and tilt: as in SceneObject. cells: a square grid of values in [-1, 1] if cloudy."""

    kind: str
    tone: str
    rgb: tuple[float, float, float]
    tilt: float
    cells: tuple[float, ...] = ()


class Scene(NamedTuple):
    objects: tuple[SceneObject, ...]
    background: Background


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def relation(a: SceneObject, b: SceneObject) -> str | None:
    """Where a lies as seen from b: "left", "right", "above", "below", or None if it lies too near a diagonal."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= max(0.3, 1.5 * abs(dy)):
        return "left" if dx < 0 else "right"
    if abs(dy) >= max(0.3, 1.5 * abs(dx)):
        return "above" if dy < 0 else "below"
    return None


def places(thing: SceneObject) -> list[str]:
    """Every phrase that says truly where in the frame the object's centre lies; empty between the regions."""
    side = "left" if thing.x < -0.25 else "right" if thing.x > 0.25 else ""
    half, edge = ("upper", "top") if thing.y < -0.25 else ("lower", "bottom") if thing.y > 0.25 else ("", "")
    if side and half:
        return [f"in the {half} {side}", f"in the {edge} {side}"]
    if side:
        return [f"on the {side}", f"on the {side} side"]
    if half:
        return [f"at the {edge}", f"in the {half} half"]
    return ["in the middle", "in the centre"] if abs(thing.x) < 0.15 and abs(thing.y) < 0.15 else []


def _describe(draws: Draws, thing: SceneObject, detail: float, names: str = "both") -> str:
    """A noun phrase. detail: the probability of a size word, and of a texture. names: "both", "shape" or "colour"."""
    synonym = SYNONYMS.get(thing.shape, thing.shape)
    noun = draws.pick(("object", "shape") if names == "colour" else (*[thing.shape] * 3, synonym))
    before, after = [], []
    if draws.chance(detail):
        before.append(draws.pick(SIZE_WORDS[thing.size]))
    if names != "shape":
        if draws.chance(0.15):
            after.append(draws.pick(("that is", "coloured")) + " " + thing.colour)
        else:
            before.append(thing.colour)
    if draws.chance(detail):
        if thing.texture in TEXTURE_AFTER and draws.chance(0.4):
            after.append(TEXTURE_AFTER[thing.texture])
        else:
            # next to the colour: "a small dotted red disc", "a small red dotted disc"
            pair = [thing.texture, *([before.pop()] if thing.colour in before else [])]
            before += pair[::-1] if thing.texture != "plain" and draws.chance(0.3) else pair
    phrase = " ".join([*before, noun, *after])
    return f"one {phrase}" if draws.chance(0.1) else with_article(phrase)


def _related(draws: Draws, things: Sequence[SceneObject], phrases: Sequence[str]) -> str | None:
    """A sentence on the first two objects and a mention of the third; None if the two stand in no clear relation."""
    if (where := relation(things[0], things[1])) is None:
        return None
    words, (a, b, *third) = draws.pick(RELATIONS[where]), phrases
    sentence = f"{words} {b} is {a}" if draws.chance(0.25) else f"{a} {words} {b}"
    return f"{third[0]}, and {sentence}" if third else sentence


def _count(draws: Draws, count: int) -> str:
    return COUNTS[count - 1].replace("object", "shape") if draws.chance(0.25) else COUNTS[count - 1]


def _body(draws: Draws, scene: Scene) -> str:
    count = len(scene.objects)
    things = draws.sample(scene.objects, count)
    detail = (0.3, 0.15, 0.08)[count - 1]  # more objects, fewer adjectives: captions stay short
    # enough captions without a colour to make the shape count by itself: the colour alone explains much of a batch
    share = draws.uniform() if count == 1 else 1.0
    names = "shape" if share < 0.2 else "colour" if share < 0.3 else "both"
    phrases = [_describe(draws, thing, detail, names) for thing in things]
    style = draws.uniform()
    if count > 1 and style < 0.4 and (sentence := _related(draws, things, phrases)) is not None:
        return sentence
    if draws.chance((0.35, 0.25, 0.1)[count - 1]):
        for k, thing in enumerate(things):
            if options := places(thing):
                phrases[k] += f" {draws.pick(options)}"
    before = f"{_count(draws, count)}{draws.pick((':', ','))} " if style > 0.85 else ""
    return before + (phrases[0] if count == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1])


def _caption(draws: Draws, scene: Scene) -> str:
    first = scene.objects[0]
    if len(scene.objects) == 1 and draws.chance(0.06):
        return with_article(f"{first.colour} {first.shape}")  # the bare form of the zero-shot prompts
    named = not draws.chance(0.05)
    body = _body(draws, scene) if named else _count(draws, len(scene.objects))
    behind = ""
    # a caption that gives only the count names the background as well: a bare count would be a frequent duplicate
    if not named or draws.chance(0.2):
        kind, tone = scene.background.kind, scene.background.tone
        looks = draws.pick((f"{kind} {tone}", tone, kind)) if named else f"{kind} {tone}"
        behind = f"on {with_article(f'{looks} background')}"
        if draws.chance(0.25):
            return f"{behind}, {body}"
    inverted = body.startswith(("to the", "left of", "right of", "above", "below", "under")) or ", and " in body
    if not inverted and draws.chance(0.35):
        body = f"{draws.pick(OPENINGS)} {body}"
    return f"{body} {behind}".strip()


def write_captions(draws: Draws, scene: Scene, count: int) -> list[str]:
    """count true captions of at most LONGEST words, all different unless the grammar yields no new one in 20 tries."""
    captions: list[str] = []
    while len(captions) < count:
        for _ in range(20):
            while len((caption := _caption(draws, scene)).split()) > LONGEST:
                pass
            if caption not in captions:
                break
        captions.append(caption)
    return captions
