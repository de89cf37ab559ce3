"""The built-in captioned scenes, which depend on (split or task, seed, index) alone: pairs and zero-shot tasks."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from miniclip.common.fingerprint import digest
from miniclip.data.scenes import captions as words
from miniclip.data.scenes.captions import Background, Draws, Scene, SceneObject, relation, with_article, write_captions
from miniclip.data.scenes.drawing import CELLS, RGB, TONE_RGB, render
from miniclip.data.scenes.tail import SHARES, draw_combos, rarest

SPLITS = ("train", "validation", "test")
TASKS = ("shape", "colour", "unseen", "unseen_all", "count", "relation")
# One random stream a use, so that no two splits or tasks share an image; unseen_all shows the images of unseen.
SCENE_STREAMS = {name: 2 * k for k, name in enumerate((*SPLITS, "shape", "colour", "unseen", "count", "relation"))}
SCENE_STREAMS["unseen_all"] = SCENE_STREAMS["unseen"]

RADII = {"small": (0.31, 0.36), "medium": (0.43, 0.50), "large": (0.58, 0.70)}
GAP = 0.04  # between the discs that hold two objects, in half sides
CROWDED = 1.25  # radii that add up to more hardly ever fit side by side, in half sides

CLASSES = {
    "shape": words.SHAPES,
    "colour": words.COLOURS,
    "unseen": tuple(f"{colour} {shape}" for shape, colour in words.HELD_OUT),
    "unseen_all": tuple(f"{colour} {shape}" for shape in words.SHAPES for colour in words.COLOURS),
    "count": words.COUNTS,
    "relation": ("first sentence", "second sentence"),
}
# All of them the grammar's own, so that they ask for nothing the text tower has not read.
NAMED = ("a {}", "one {}", "a picture of a {}", "a photo of a {}", "a drawing of a {}", "one object: a {}")
TEMPLATES = {
    "shape": (*NAMED, *(f"{with_article(colour)} {{}}" for colour in words.COLOURS)),
    "colour": ("a {} object", "a {} shape", "a picture of a {} object", "a drawing of a {} shape"),
    "unseen": NAMED,
    "unseen_all": NAMED,
    "count": tuple(f"{{}} on a {kind} {tone} background" for kind in words.BACKGROUNDS for tone in words.TONES),
    "relation": ("{}",),
}


def sample_scene(draws: Draws, combos: Sequence[tuple[str, str]]) -> Scene:
    """A scene with one object for each (shape, colour) in combos, one to three: inside the frame, none touching."""
    centres: list[tuple[float, float]] = []
    while len(centres) < len(combos):
        sizes = [draws.pick(words.SIZES) for _ in combos]
        radii = [draws.uniform(*RADII[size]) for size in sizes]
        centres = _arrange(draws, radii) if sum(radii) <= CROWDED else []
    objects = []
    for (shape, colour), size, (x, y), radius in zip(combos, sizes, centres, radii, strict=True):
        texture, tilt = draws.pick(words.TEXTURES), draws.uniform(-0.09, 0.09)
        red, green, blue = (min(max(value + draws.uniform(-0.03, 0.03), 0.0), 1.0) for value in RGB[colour])
        objects.append(SceneObject(shape, colour, size, texture, x, y, radius, tilt, (red, green, blue)))
    kind, tone, level = draws.pick(words.BACKGROUNDS), draws.pick(words.TONES), draws.uniform(-0.05, 0.05)
    red, green, blue = (value + level for value in TONE_RGB[tone])
    cells = tuple(draws.uniform(-1, 1) for _ in range(CELLS * CELLS)) if kind == "cloudy" else ()
    return Scene(tuple(objects), Background(kind, tone, (red, green, blue), draws.uniform(-1, 1), cells))


def _arrange(draws: Draws, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Centres for discs that do not touch; fewer than asked for if one found no room."""
    centres: list[tuple[float, float]] = []
    for radius in radii:
        room = 1 - radius
        gaps = [radius + other + GAP for other in radii[: len(centres)]]
        for _ in range(8):
            x, y = draws.uniform(-room, room), draws.uniform(-room, room)
            if all((x - a) * (x - a) + (y - b) * (y - b) >= d * d for (a, b), d in zip(centres, gaps, strict=True)):
                centres.append((x, y))
                break
        else:
            break
    return centres


class _Scenes:
    """What SceneSource and SceneTask share: a checked size and index, and images of what `scene` returns."""

    def __init__(self, name: str, size: int, seed: int, image_size: int) -> None:
        if not 0 <= size < 2**48:
            raise ValueError(f"size={size} scenes asked for; use 0 to 2**48 - 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed} is out of range; use 0 to 2**64 - 1")
        if image_size < 16:
            raise ValueError(f"image_size={image_size} is too small to tell the shapes apart; use 16 or more, e.g. 64")
        self.size, self.seed, self.image_size, self._name = size, seed, image_size, name

    def __len__(self) -> int:
        return self.size

    def _draws(self, index: int, use: int = 0) -> Draws:
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self._name} asked for; there are 0 to {self.size - 1}")
        return Draws(self.seed, SCENE_STREAMS[self._name] + use, index)

    def scene(self, index: int) -> Scene:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(render(self.scene(index), self.image_size))

    def name(self, index: int) -> str:
        return f"scene {index} of {self._name}, seed {self.seed}"


class SceneSource(_Scenes):
    """Scenes of one to three objects with captions, a PairSource. Held-out combinations never occur, drawn or named.

    split: train, validation or test. tail: none, or of tail.SHARES, how common each shape is. Raises ValueError for a
    value out of range; the accessors raise IndexError.
    """

    def __init__(
        self,
        split: str,
        size: int,
        seed: int = 0,
        image_size: int = 64,
        captions_per_image: int = 5,
        tail: str = "none",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r} of the scenes; use one of {', '.join(SPLITS)}")
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image={captions_per_image}; use 1 or more")
        if tail not in ("none", *SHARES):
            raise ValueError(f"unknown tail {tail!r}; use none, {' or '.join(SHARES)}")
        super().__init__(split, size, seed, image_size)
        self.captions_per_image, self.tail = captions_per_image, tail

    def scene(self, index: int) -> Scene:
        draws = self._draws(index)
        return sample_scene(draws, self._combos(draws))

    def _combos(self, draws: Draws) -> list[tuple[str, str]]:
        share = draws.uniform()
        count = 1 if share < 0.5 else 2 if share < 0.82 else 3
        return draws.sample(words.SEEN, count) if self.tail == "none" else draw_combos(draws, count, self.tail)

    def column(self, name: str) -> list[object]:
        """shape, if some are rarer than others: of each scene its rarest, the class of the scene."""
        if name != "shape" or self.tail == "none":
            known = "with data.tail they have shape, the rarest of each scene; else use a source of your own"
            raise ValueError(f"the built-in scenes have no column {name} (data.weight_column); {known}")
        return [rarest(self._combos(self._draws(index))) for index in range(self.size)]

    def captions(self, index: int) -> list[str]:
        # a stream of their own: a change of the grammar leaves the images as they are
        return write_captions(self._draws(index, 1), self.scene(index), self.captions_per_image)

    def fingerprint(self) -> str:
        drawn = self._name, self.size, self.seed, self.image_size, self.captions_per_image
        return digest(*drawn, *([] if self.tail == "none" else [self.tail]))


class SceneTask(_Scenes):
    """A zero-shot task over scenes, a LabelledSource; the labels run 0, 1, ... over the classes in turn.

    name: "shape" and "colour": one object, a seen combination. "unseen": a held-out one, among the 16 of those;
    "unseen_all": the same images, among all 64. "count": one to three objects. "relation": two objects, and two
    sentences to choose from. Raises ValueError for any other name.
    """

    def __init__(self, name: str, size: int, seed: int = 0, image_size: int = 64) -> None:
        if name not in TASKS:
            raise ValueError(f"unknown scene task {name!r}; use one of {', '.join(TASKS)}")
        super().__init__(name, size, seed, image_size)
        self.classes = list(CLASSES[name])
        self.templates = TEMPLATES[name]

    def label(self, index: int) -> int:
        """The class of the image; for "relation" the place of the true sentence in prompts(index)."""
        self._draws(index)  # an index of none is refused
        classes = CLASSES["unseen"] if self._name == "unseen_all" else self.classes
        return self.classes.index(classes[index % len(classes)])

    def scene(self, index: int) -> Scene:
        draws, label = self._draws(index), self.label(index)
        if self._name.startswith("unseen"):
            return sample_scene(draws, [words.HELD_OUT[index % len(words.HELD_OUT)]])
        if self._name == "count":
            return sample_scene(draws, draws.sample(words.SEEN, label + 1))
        if self._name != "relation":
            return sample_scene(draws, [draws.pick([combo for combo in words.SEEN if self.classes[label] in combo])])
        # every second pair of images is "left": neither the order nor the word gives the answer away
        wanted, mirrored = ("left", "right") if index // 2 % 2 == 0 else ("right", "left")
        combos = draws.sample(words.SEEN, 2)
        while (where := relation(*(scene := sample_scene(draws, combos)).objects)) not in (wanted, mirrored):
            pass
        return scene if where == wanted else Scene(scene.objects[::-1], scene.background)

    def class_prompts(self) -> list[list[str]]:
        """One list of prompts a class, the templates filled in with the right article ("an orange ring")."""
        fill = [(name, with_article(name)) for name in self.classes]
        return [[t.replace("a {}", phrase).replace("{}", name) for t in self.templates] for name, phrase in fill]

    def prompts(self, index: int) -> list[str] | None:
        """The two sentences to choose from if this is "relation", else None: the prompts are those of the classes."""
        label = self.label(index)
        if self._name != "relation":
            return None
        a, b = (with_article(f"{thing.colour} {thing.shape}") for thing in self.scene(index).objects)
        sentences = [f"{a} to the left of {b}", f"{a} to the right of {b}"]
        return sentences if (index // 2 % 2 == 0) == (label == 0) else sentences[::-1]
