"""Dreams of the scenes' model against the colours that the captions name, judged by pixels alone; and the docs' sheet.

    python benchmarks/dream.py --model runs/shapes                          # the table
    python benchmarks/dream.py --model runs/shapes --sheet docs/dream.jpg   # and the sheet

Eight captions, one of each colour, and as many chains of each as there are seeds. The object of an image is what
stands out from its median colour: both are blurred by a pixel, and the distances cut by Otsu's threshold (1979). Its
mean colour is called by the nearest of the scenes' eight. As each colour is named once, answers that do not depend on
the caption are right in 1/8. The same for rendered scenes of one object is the most that an answer can reach.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import machine
from PIL import Image
from torch import Tensor

import miniclip
from miniclip.data.scenes.captions import COLOURS, with_article
from miniclip.data.scenes.drawing import RGB
from miniclip.data.scenes.source import SceneTask
from miniclip.evaluation.dream import Dreaming, Dreamt, dream
from miniclip.evaluation.dream_sheet import dream_png
from miniclip.evaluation.langevin import kernel
from miniclip.metrics.bootstrap import score_interval
from miniclip.models.preprocess import image_to_tensor

CAPTIONS = (
    *("a red star", "an orange circle", "a yellow ring", "a green heart"),
    *("a blue square", "a purple triangle", "a white cross", "a black circle"),
)


def object_colour(image: Tensor) -> str:
    """(3, S, S) in [0, 1] -> the colour of what stands out from the ground."""
    blur = kernel(image.shape[-1], 1.0)
    blur /= blur.sum(1, keepdim=True)
    pixels = (blur @ image @ blur.T).flatten(1)
    distance = (pixels - pixels.median(1, keepdim=True).values).norm(dim=0)
    mean = pixels[:, distance > otsu(distance)].mean(1)
    return min(RGB, key=lambda name: float((mean - torch.tensor(RGB[name])).norm()))


def otsu(values: Tensor) -> float:
    """The threshold with the most variance between the two sides."""
    ordered = values.sort().values.double()
    n = torch.arange(1, len(values))
    sums = ordered.cumsum(0)
    low, high = sums[:-1] / n, (sums[-1] - sums[:-1]) / (len(values) - n)
    return float(ordered[int((n * (len(values) - n) * (high - low) ** 2).argmax())])


def hits(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    right = [found == named for named, found in pairs]
    share, n = sum(right) / len(right), len(right)
    low, high = (100 * end for end in score_interval(share, share * (1 - share) / n, n))
    return f"| {name} | {sum(right)} of {n} | {100 * share:.1f} [{low:.1f}, {high:.1f}] |"


def of_scenes(task: SceneTask) -> list[tuple[str, str]]:
    """Rendered scenes of one object: its colour, and what the pixels say."""
    images = (image_to_tensor(task.image(k)) / 255 for k in range(len(task)))
    return [(task.classes[task.label(k)], object_colour(image)) for k, image in enumerate(images)]


def cosine_of_scenes(task: SceneTask, loaded: Any) -> float:
    """Mean of rendered scenes with such a caption as is dreamt of, which says what they hold."""
    things = [task.scene(k).objects[0] for k in range(len(task))]
    captions = [with_article(f"{thing.colour} {thing.shape}") for thing in things]
    images = loaded.encode([task.image(k) for k in range(len(task))])
    return float((images * loaded.encode(captions)).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run on the built-in scenes")
    parser.add_argument("--seeds", type=int, default=8, help="chains a caption")
    parser.add_argument(
        "--captions", nargs=len(COLOURS), default=CAPTIONS, help="one of each colour, in the order here"
    )
    parser.add_argument("--sheet", help="draw them")
    options = parser.parse_args()
    print(machine())
    loaded = miniclip.load(options.model)
    start = time.perf_counter()
    dreamt = dream(*loaded, options.captions, Dreaming(samples=options.seeds))
    seconds = time.perf_counter() - start
    print(f"{len(COLOURS)} captions x {options.seeds} chains of {dreamt.moments[-1]} steps, {seconds:.0f} s\n")
    print("| images | colour as named | % |\n|---|---|---|")
    ends = [[object_colour(one) for one in row] for row in dreamt.images[:, :, -1]]
    print(hits("dreamt", named(ends[: len(COLOURS)])))
    for name, row in zip(("neutral captions", "no caption"), ends[len(COLOURS) :], strict=True):
        print(hits(name, named([row] * len(COLOURS))))
    scenes = SceneTask("colour", 960, 0, loaded.preprocess.image_size)
    print(hits("rendered scenes", of_scenes(scenes)))
    told(dreamt, ends)
    print(f"\nmean cosine of the rendered scenes with such captions {cosine_of_scenes(scenes, loaded):.2f}")
    if options.sheet:
        title = "What a model of the built-in scenes takes a caption to be"
        with TemporaryDirectory() as folder:
            dream_png(dreamt, f"{folder}/sheet.png", title, "miniclip dream")
            with Image.open(f"{folder}/sheet.png") as sheet:  # noise makes a large PNG
                sheet.convert("RGB").save(options.sheet)


def named(rows: list[list[str]]) -> list[tuple[str, str]]:
    return [(colour, found) for colour, row in zip(COLOURS, rows, strict=True) for found in row]


def told(dreamt: Dreamt, ends: list[list[str]]) -> None:
    print(
        "\n| caption | cosine at the start | at the end | neutral | none | colours found |\n|---|---|---|---|---|---|"
    )
    cosines, count = -dreamt.energies.mean(2) / dreamt.scale, len(COLOURS)
    for k, caption in enumerate(dreamt.captions):
        assert COLOURS[k] in caption
        figures = [cosines[at, row, k] for at, row in ((0, k), (-1, k), (-1, count), (-1, count + 1))]
        print(f"| {caption} | {' | '.join(f'{float(one):.2f}' for one in figures)} | {', '.join(ends[k])} |")


if __name__ == "__main__":
    main()
