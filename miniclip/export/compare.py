"""What the other library makes of an exported folder, in a process of its own, beside what the model itself says.

Axes: `B` images, `T` texts, `E` embedding, `L` tokens, `S` side of the image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from miniclip.common.printing import one_line
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess

# Plain ones, a long one, and such as cut words in pieces. Libraries that mend no text differ on "&amp;" and on “these”.
TEXTS = ["a photo of a dog", "", "Two DOGS' tails, 12 cats: that's it!", "naïve façade 北京 🐈‍⬛ ...", "long " * 100]
_ROWS = 4  # images for the tower


class Difference(NamedTuple):
    """The largest absolute difference of a thing between the two, and what is allowed."""

    what: str
    largest: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.largest <= self.allowed  # not for NaN


def compared(to: str, folder: Path, model: DualEncoder, preprocess: Preprocess, atol: float) -> list[Difference]:
    """How far the other library's answers are off: tokens, pixels where the folder has them, embeddings, logits.

    atol: of unit embeddings; logits may differ by as much times their scale. Raises ValueError if it cannot load it.
    """
    side = preprocess.image_size
    pixels = torch.randn(_ROWS, 3, side, side, generator=torch.Generator().manual_seed(0))
    images, ids = ramps(side), model.tokenizer(TEXTS)
    with torch.inference_mode():
        out = model(pixels, ids)
    bias = 0.0 if out.bias is None else out.bias
    wanted = {"image": out.image, "text": out.text, "logits": out.scale * out.image @ out.text.T + bias}
    wanted |= {"ids": ids, "pixels": torch.stack([preprocess(Image.fromarray(image)) for image in images])}
    given = {f"image_{k}": image for k, image in enumerate(images)}
    found = _asked(to, folder, {**given, "pixels": pixels.numpy(), "ids": ids.numpy(), "texts": json.dumps(TEXTS)})
    # as far as a crop that begins half a pixel elsewhere may change a ramp, and rounding
    levels = 2 + 2 * 255 / side
    rows = {
        "ids": ("tokens", 1.0, 0.0),
        "pixels": ("pixels, 0 to 255", 255 * min(preprocess.std), levels),
        "image": ("image embeddings", 1.0, atol),
        "text": ("text embeddings", 1.0, atol),
        "logits": ("logits", 1.0, atol * max(1.0, out.scale.item())),
    }
    differences = []
    for key, (what, unit, allowed) in rows.items():
        if key in found or key in ("image", "text", "logits"):
            ours, theirs = wanted[key].double().numpy(), found[key].astype(float)
            if ours.shape != theirs.shape:
                raise ValueError(f"{to} makes {what} of shape {theirs.shape}, this model {ours.shape}")
            differences.append(Difference(what, float(np.abs(ours - theirs).max() * unit), allowed))
    return differences


def ramps(side: int) -> list[np.ndarray]:
    """Smooth images, wide, high and small, of odd sides: (H, W, 3) uint8."""
    made = []
    for height, width in ((2 * side + 1, 3 * side), (3 * side + 1, 2 * side - 1), (side // 2 + 1, side // 2 + 4)):
        rows, columns = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)
        made.append(np.stack(np.broadcast_arrays(rows, columns, 255 - columns), axis=-1).astype(np.uint8))
    return made


def _asked(to: str, folder: Path, given: dict[str, object]) -> dict[str, np.ndarray]:
    """What verify.py answers. It has the folder alone: no network, no accelerator, no file of where one stands."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    alone = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    with TemporaryDirectory() as place:
        asked, answers = Path(place, "given.npz"), Path(place, "answers.npz")
        np.savez(asked, **given)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "miniclip.export.verify", to, *map(str, (folder.absolute(), asked, answers))]
        done = subprocess.run(
            command, env={**os.environ, **alone}, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode or not answers.is_file():
            said = one_line((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1], 300)
            raise ValueError(f"{to} cannot load what was written for it ({said}); see constraints.txt for versions")
        with np.load(answers) as file:
            return dict(file)
