"""The captioned scenes: the captions are read back word by word and held against the scene they describe."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from support.group import together

from miniclip.data.scenes.captions import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SEEN,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    Background,
    Draws,
    Scene,
    SceneObject,
    relation,
)
from miniclip.data.scenes.drawing import RGB, TONE_RGB, render
from miniclip.data.scenes.source import SPLITS, TASKS, SceneSource, SceneTask


def words(**groups: str) -> dict[str, str]:
    return {word: name for name, group in groups.items() for word in group.split()}


# Written out again on purpose: a synonym in the wrong row of the grammar's own table must show.
SHAPE_OF = dict(zip(SHAPES, SHAPES, strict=True))
SHAPE_OF |= words(circle="disc", square="box", cross="plus", ring="hoop", crescent="moon")
SIZE_OF = words(small="small little tiny", medium="medium", large="large big huge")
TEXTURE_OF = words(plain="plain", striped="striped stripes", dotted="dotted dots", checked="checked checks")
TABLES = {"shape": SHAPE_OF, "size": SIZE_OF, "texture": TEXTURE_OF, "colour": {colour: colour for colour in COLOURS}}
MEANING = {word: (kind, name) for kind, table in TABLES.items() for word, name in table.items()}
HALF_PLANES: dict[str, Callable[[SceneObject], bool]] = {
    **dict.fromkeys(("left",), lambda o: o.x < -0.2),
    **dict.fromkeys(("right",), lambda o: o.x > 0.2),
    **dict.fromkeys(("upper", "top"), lambda o: o.y < -0.2),
    **dict.fromkeys(("lower", "bottom"), lambda o: o.y > 0.2),
    **dict.fromkeys(("middle", "centre"), lambda o: abs(o.x) < 0.2 and abs(o.y) < 0.2),
}
HALF_PLANES |= {"top": HALF_PLANES["upper"], "bottom": HALF_PLANES["lower"], "centre": HALF_PLANES["middle"]}
NUMBERS = {"one": 1, "two": 2, "three": 3}
FILLERS = "a an and at coloured drawing half image in is of on photo picture scene side that the there to with"
NOUN = "|".join([*SHAPE_OF, "object", "shape"])
PHRASE = (
    rf"\b(?:an?|one)(?P<before>(?: (?:{'|'.join([*SIZE_OF, *TEXTURES, *COLOURS])}))*) (?P<noun>{NOUN})\b"
    rf"(?: (?:that is|coloured) (?P<colour>{'|'.join(COLOURS)}))?(?: with (?P<texture>stripes|dots|checks))?"
    r"(?P<place> (?:in the (?:upper|lower|top|bottom) (?:left|right|half)|on the (?:left|right)(?: side)?(?! of)"
    r"|at the (?:top|bottom)|in the (?:middle|centre)))?"
)
DIRECTION = "(?:to the )?(left|right|above|below|under)(?: of)?"
GROUND = rf"\bon a(?: (?P<kind>{'|'.join(BACKGROUNDS)}))?(?: (?P<tone>{'|'.join(TONES)}))? background\b"


def read_object(match: re.Match[str], scene: Scene) -> list[SceneObject]:
    """The objects of the scene of which everything that a noun phrase says is true."""
    said = " ".join(filter(None, (match["before"], match["noun"], match["colour"], match["texture"])))
    facts = [MEANING[word] for word in said.split() if word in MEANING]
    places = [HALF_PLANES[word] for word in (match["place"] or "").split() if word in HALF_PLANES]
    found = [o for o in scene.objects if all(getattr(o, kind) == name for kind, name in facts)]
    return [o for o in found if all(lies(o) for lies in places)]


def check(caption: str, scene: Scene) -> Counter[str]:
    """Assert that the caption is true of the scene and that every word was understood; count what it speaks of."""
    seen: Counter[str] = Counter()
    told = (caption, scene)
    assert 2 <= len(caption.split()) <= 20 and not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
    if ground := re.search(GROUND, caption):
        assert ground["kind"] or ground["tone"], caption
        assert ground["kind"] in (None, scene.background.kind) and ground["tone"] in (None, scene.background.tone), told
        seen["background"] += 1
    rest = re.sub(GROUND, "", caption)
    count = re.search(r"\b(one|two|three) (?:object|shape)s?\b(?! (?:that|coloured|with|in|on|at)\b)", rest)
    if count and (count[1] != "one" or rest[count.end() : count.end() + 1] in (":", ",", "")):
        assert NUMBERS[count[1]] == len(scene.objects), told
        seen["count"] += 1
        rest = rest[: count.start()] + rest[count.end() :]
    phrases = [*re.finditer(PHRASE, rest)]
    candidates = [read_object(match, scene) for match in phrases]
    assert all(len(found) == 1 for found in candidates), told
    objects = [found[0] for found in candidates]
    assert len(set(objects)) == len(objects), told
    assert seen["count"] or len(objects) == len(scene.objects), told
    assert seen["background"] or objects, caption
    for match, thing in zip(phrases, objects, strict=True):
        said = {thing.colour} & {*match["before"].split(), match["colour"]}
        seen["both" if said and match["noun"] in SHAPE_OF else "one name"] += 1
        seen["place"] += match["place"] is not None
    words = re.sub(PHRASE, "#", rest)
    for order, pattern in ((1, rf"# {DIRECTION} #"), (-1, rf"{DIRECTION} # is #")):
        for match in re.finditer(pattern, words):
            at = words[: match.start()].count("#")
            a, b = objects[at : at + 2][::order]
            dx, dy = b.x - a.x, b.y - a.y
            margin = {"left": dx, "right": -dx, "above": dy, "below": -dy, "under": -dy}[match[1]]
            assert margin >= 0.3 and margin > 1.4 * min(abs(dx), abs(dy)), told
            seen["relation"] += 1
        words = re.sub(pattern, "", words)
    assert set(re.findall(r"\w+", words)) <= set(FILLERS.split()), (caption, words)
    return seen


def thing(shape: str, colour: str, size: str = "small", texture: str = "plain", *at: float, turn: float = 0.0):
    """at: x, y and radius."""
    x, y, radius = at or (0.0, 0.0, 0.6)
    return SceneObject(shape, colour, size, texture, x, y, radius, turn, RGB[colour])


def test_captions_are_true_and_nothing_is_held_out():
    spoken: Counter[str] = Counter()
    for source, index in product([SceneSource(split, 400, seed=3) for split in SPLITS], range(400)):
        scene, captions = source.scene(index), source.captions(index)
        assert not {(o.shape, o.colour) for o in scene.objects} & set(HELD_OUT)
        assert len(set(captions)) == 5
        for caption in captions:
            spoken += check(caption, scene)
            # Binding is checked above; here that the held-out pair is not even adjacent by chance.
            for shape, colour in HELD_OUT:
                nouns = [word for word, canonical in SHAPE_OF.items() if canonical == shape]
                assert not re.search(rf"\b{colour} ({'|'.join(nouns)})\b", caption), caption
    # The grammar uses all that it has, and shape with colour nearly always.
    assert min(spoken[key] for key in ("background", "count", "place", "relation")) > 320, spoken
    assert spoken["both"] > 0.9 * (spoken["both"] + spoken["one name"]), spoken


def test_the_reader_notices_untrue_captions():
    left = thing("star", "red", "small", "plain", -0.5, 0.1, 0.3)
    right = thing("ring", "blue", "large", "dotted", 0.35, 0.0, 0.6)
    scene = Scene((left, right), Background("cloudy", "teal", TONE_RGB["teal"], 0.0, (0.0,) * 25))
    check("a red star to the left of a huge hoop that is blue with dots", scene)
    check("two objects on a cloudy teal background", scene)
    check("left of a blue ring is a red star", scene)
    for wrong in (
        "a red star to the right of a blue ring",
        "left of a red star is a blue ring",
        "a blue star and a red ring",
        "a red star and a small blue ring",
        "a red star and a blue ring with stripes",
        "a red star on the right and a blue ring",
        "a red star",
        "three objects on a cloudy teal background",
        "a red star and a blue ring on a plain background",
        "a red star above a blue ring",
        "a red star near a blue ring",
    ):
        with pytest.raises(AssertionError):
            check(wrong, scene)


def test_training_covers_every_seen_combination():
    assert len(set(HELD_OUT)) == 16 and len(SEEN) == 48 and not set(SEEN) & set(HELD_OUT)
    for choices, held in zip((SHAPES, COLOURS), zip(*HELD_OUT, strict=True), strict=True):
        assert Counter(held) == dict.fromkeys(choices, 2)
    source = SceneSource("train", 1000)
    scenes = [source.scene(i) for i in range(len(source))]
    assert {(o.shape, o.colour) for scene in scenes for o in scene.objects} == set(SEEN)
    share = Counter(len(scene.objects) for scene in scenes)
    assert 0.40 < share[1] / 1000 < 0.50 and share[3] > 150
    for choices, picked in (
        (SIZES, Counter(scene.objects[0].size for scene in scenes)),
        (TEXTURES, Counter(scene.objects[0].texture for scene in scenes)),
        (BACKGROUNDS, Counter(scene.background.kind for scene in scenes)),
        (TONES, Counter(scene.background.tone for scene in scenes)),
    ):
        assert set(picked) == set(choices) and min(picked.values()) > 100
    for scene in scenes:
        assert all(max(abs(o.x), abs(o.y)) + o.radius <= 1 + 1e-12 for o in scene.objects)
        for a, b in combinations(scene.objects, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
            assert (a.shape, a.colour) != (b.shape, b.colour)


def test_equal_captions_are_rare_in_a_batch():
    source, rng = SceneSource("train", 10**6), random.Random(0)
    batches = [[rng.choice(source.captions(rng.randrange(len(source)))) for _ in range(256)] for _ in range(4)]
    assert np.mean([len(set(batch)) for batch in batches]) / 256 > 0.97


def digest() -> str:
    found = hashlib.sha256()
    for data in (SceneSource("train", 40, seed=7), SceneTask("unseen", 20), SceneSource("test", 4, image_size=97)):
        for index in range(len(data)):
            found.update(data.image(index).tobytes())
            found.update("|".join(data.captions(index) if isinstance(data, SceneSource) else ()).encode())
    return found.hexdigest()


def test_same_bits_in_every_process_and_release():
    # The data set is part of the published results: change this line only together with them.
    expected = "56bf4c848ace947c50d32c3686568e4816e17541a615a884af8044921f270ddd"
    assert [digest(), *(other.value for other in together(1, digest))] == [expected] * 2


def test_seed_split_and_index_matter_and_length_does_not():
    sources = [SceneSource(split, 50) for split in SPLITS]
    tasks = [SceneTask(name, 50) for name in TASKS if name != "unseen_all"]
    data = [SceneSource("train", 50, seed=1), *sources, *tasks]
    assert len({one.image(i).tobytes() for one in data for i in range(50)}) == 50 * len(data)
    two = SceneSource("train", 99, captions_per_image=2)
    assert two.image(3) == SceneSource("train", 50).image(3)
    assert two.captions(3) == SceneSource("train", 50).captions(3)[:2]


def test_draws_are_uniform():
    draws = Draws(0, 0, 0)
    values = np.array([draws.uniform() for _ in range(20000)])
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(np.histogram(values, bins=10, range=(0, 1))[0] / 2000 - 1).max() < 0.1
    assert Counter(draws.pick("abc") for _ in range(3000)).keys() == set("abc")


# Offsets from the centre, in radii, that lie inside (True) or outside (False) the unturned outline.
# Offsets from the centre, in radii, that lie inside the unturned outline, and outside of it.
PROBES = {
    "circle": ([(0, 0), (0, 0.8), (0.6, 0.6)], [(0.75, 0.75)]),
    "square": ([(0, 0), (0.62, 0.62)], [(0, 0.85)]),
    "triangle": ([(0, 0), (0, -0.75), (0.6, 0.4)], [(0.6, -0.4), (0, 0.65)]),
    "star": ([(0, 0), (0, -0.8), (0.76, -0.25), (0.47, 0.65)], [(0, 0.7), (0.5, -0.7)]),
    "heart": ([(0, 0), (0, 0.6), (0.6, -0.4)], [(0, -0.75), (0.6, 0.6)]),
    "cross": ([(0, 0), (0, 0.8), (-0.8, 0)], [(0.5, 0.5)]),
    "ring": ([(0.7, 0), (0, -0.7)], [(0, 0), (0.7, 0.7)]),
    "crescent": ([(-0.6, 0), (0.05, 0.83), (0.05, -0.83)], [(0.4, 0), (0, 0)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_have_the_colour_of_what_lies_there(shape):
    ground = np.array(TONE_RGB["grey"]) * 255
    for colour, image_size in product(COLOURS, (64, 160)):
        drawn = thing(shape, colour, "large", "plain", 0.1, -0.2, 0.6)
        pixels = render(Scene((drawn,), Background("plain", "grey", TONE_RGB["grey"], 0.0)), image_size)
        assert pixels.shape == (image_size, image_size, 3) and pixels.dtype == np.uint8
        for probes, wanted in zip(PROBES[shape], (np.array(RGB[colour]) * 255, ground), strict=True):
            columns, rows = ((np.array(probes) * 0.6 + (0.1, -0.2) + 1) / 2 * image_size).astype(int).T
            assert np.abs(pixels[rows, columns] - wanted).max() <= 1.01, (colour, probes)
        assert np.abs(pixels[-1, -1] - ground).max() <= 1


def test_area_follows_the_size_of_the_image_and_edges_are_smooth():
    disc = SceneObject("circle", "white", "large", "plain", 0.0, 0.0, 0.6, 0.0, (1.0, 1.0, 1.0))
    for image_size in (48, 64, 224):
        pixels = render(Scene((disc,), Background("plain", "grey", (0.0, 0.0, 0.0), 0.0)), image_size)
        # The disc has 0.9 of the radius that holds it; smooth edges make the sum exact to a fraction of a per cent.
        assert pixels[..., 0].sum() / 255 / image_size**2 == pytest.approx(np.pi * 0.54**2 / 4, rel=3e-3)
        assert ((pixels > 20) & (pixels < 235)).any()


def test_textures_and_backgrounds_change_the_image_but_not_the_colour():
    teal, waves, distinct = TONE_RGB["teal"], tuple(np.linspace(-1, 1, 25)), set()
    for texture, kind in product(TEXTURES, BACKGROUNDS):
        square = thing("square", "red", "large", texture, turn=0.1)
        pixels = render(Scene((square,), Background(kind, "teal", teal, 0.3, waves)))
        red, green, blue = pixels[26:38, 26:38].reshape(-1, 3).mean(0)
        assert red > 4 * max(green, blue)
        assert np.abs(pixels[:6].reshape(-1, 3).mean(0) - np.array(teal) * 255).max() < 40, kind
        distinct.add(pixels.tobytes())
    assert len(distinct) == 16


def test_colours_stand_out_from_each_other_and_from_the_backgrounds():
    colours = np.array([RGB[c] for c in COLOURS])
    apart = np.abs(colours[:, None] - np.array([*RGB.values(), *TONE_RGB.values()])[None]).max(-1)
    assert (apart + 9 * np.eye(8, 13)).min() > 0.25


def test_tasks_are_balanced_and_their_labels_true():
    tasks = {name: SceneTask(name, 192) for name in TASKS}
    for name, task in tasks.items():
        labels = Counter(map(task.label, range(len(task))))
        assert len(set(labels.values())) == 1 and len(labels) == (16 if name == "unseen_all" else len(task.classes))
        assert all(0 <= label < len(task.classes) for label in labels)
        for index in range(len(task)):
            scene, wanted = task.scene(index), task.classes[task.label(index)]
            combos = [(o.shape, o.colour) for o in scene.objects]
            assert all((combo in HELD_OUT) == name.startswith("unseen") for combo in combos)
            if name == "count":
                assert NUMBERS[wanted.split()[0]] == len(combos)
            elif name != "relation":
                ((shape, colour),) = combos
                assert wanted == {"shape": shape, "colour": colour}.get(name, f"{colour} {shape}")
            assert (task.prompts(index) is None) == (name != "relation")
    few, many = tasks["unseen"], tasks["unseen_all"]
    assert list(map(few.scene, range(192))) == list(map(many.scene, range(192)))
    assert len(many.classes) == len(set(many.classes)) == 64


def test_relation_has_one_true_sentence_of_two_and_no_shortcut():
    task = SceneTask("relation", 200)
    true_words: Counter[tuple[int, bool]] = Counter()
    for index in range(len(task)):
        scene, label, (one, other) = task.scene(index), task.label(index), task.prompts(index)
        right, wrong = (other, one) if label else (one, other)
        check(right, scene)
        with pytest.raises(AssertionError):
            check(wrong, scene)
        true_words[label, " left " in right] += 1
    assert sorted(true_words.values()) == [50] * 4


def test_relation_is_none_near_the_diagonals():
    wanted = {(-0.5, 0.1): "left", (0.5, -0.1): "right", (0.1, -0.5): "above", (0, 0.5): "below", (0.5, 0.5): None}
    wanted |= {(0.5, 0.4): None, (-0.2, 0): None}
    star, centre = ((lambda x, y: thing("star", "red", "small", "plain", x, y, 0.3)), thing("star", "red"))
    assert {xy: relation(star(*xy), centre) for xy in wanted} == wanted


def test_class_prompts_take_the_right_article():
    prompts = dict(zip(COLOURS, SceneTask("colour", 8).class_prompts(), strict=True))
    assert prompts["orange"][:3] == ["an orange object", "an orange shape", "a picture of an orange object"]
    task = SceneTask("unseen", 16)
    for name, texts in zip(task.classes, task.class_prompts(), strict=True):
        assert texts[0] == ("an " if name.startswith("orange") else "a ") + name
        assert len(texts) == len(task.templates) and not any("{" in text for text in texts)


def test_errors_say_what_to_do():
    for bad in ({"size": -1}, {"seed": -1}, {"image_size": 8}, {"captions_per_image": 0}):
        with pytest.raises(ValueError, match=r"=-?\d"):
            SceneSource("train", **{"size": 10, **bad})
    with pytest.raises(ValueError, match="train, validation, test"):
        SceneSource("dev", 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unseen"):
        SceneTask("colors", 10)
    source, task = SceneSource("train", 10), SceneTask("shape", 10)
    for call in (source.scene, source.image, source.captions, task.image, task.label, task.prompts):
        for index in (-1, 10):
            with pytest.raises(IndexError, match="0 to 9"):
                call(index)


def test_protocol_of_a_source():
    source = SceneSource("validation", 12, seed=4, image_size=48, captions_per_image=3)
    assert (len(source), len(source.captions(11))) == (12, 3)
    assert (source.image(0).size, source.image(0).mode) == ((48, 48), "RGB")
    assert {"validation", "5", "4"} <= set(re.findall(r"\w+", source.name(5)))
