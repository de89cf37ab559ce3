"""The weights with the best validation figure so far: the finished model, if eval.best asks for them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniclip.common.console import write_json
from miniclip.models import DualEncoder
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model
from miniclip.training.run_dir import BEST

_RECORD = "best.json"


class Choice(NamedTuple):
    """The value of eval.best. fingerprint: of the images that it was counted on. falls: whether lower is better."""

    value: float
    fingerprint: str
    falls: bool


class Best:
    """Keeps one model in the run directory's best/, with best.json: figure, step, value, fingerprint of the images.

    figure: eval.best, or None. A run that was cut off and goes on finds there what it kept, unless that was chosen by
    another figure.
    """

    def __init__(self, run_dir: Path, figure: str | None) -> None:
        self.folder, self.figure = run_dir / BEST, figure
        self._part = self.folder.with_suffix(".part")

    def record(self) -> dict[str, Any] | None:
        """What best.json says; None without one, or if it tells of another figure."""
        folder = self._whole()
        if folder is None:
            return None
        found: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return found if found["figure"] == self.figure else None

    def offer(self, step: int, choice: Choice, model: DualEncoder, preprocess: Preprocess) -> bool:
        """Keep the model if its figure is better than the one that is kept; of equals the earlier stays.

        What was counted on other images is no rival.
        """
        value, seen, kept = choice.value, choice.fingerprint, self.record()
        sign = -1 if choice.falls else 1
        if kept is not None and kept["fingerprint"] != seen:
            kept = None
        if not math.isfinite(value) or (kept is not None and sign * value <= sign * kept["value"]):
            return False
        # The record comes last, so a folder that has it is whole; and the former one goes only when this one is.
        shutil.rmtree(self._part, ignore_errors=True)
        save_model(self._part, model, preprocess)
        write_json(self._part / _RECORD, {"figure": self.figure, "step": step, "value": value, "fingerprint": seen})
        old = self.folder.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.replace(old)
        self._part.replace(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def load(self, device: torch.device) -> DualEncoder | None:
        """The model that is kept, in evaluation mode; None if there is none."""
        folder = self._whole()
        return None if folder is None or self.record() is None else load(folder, device)[0]

    def _whole(self) -> Path | None:
        """Where the model lies: a process may have been killed before its folder got its name."""
        return next((f for f in (self.folder, self._part) if (f / _RECORD).is_file()), None)
