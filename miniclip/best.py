"""The weights with the best validation figure so far: the finished model, if eval.best asks for them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from miniclip.checkpoint import load, save_model
from miniclip.console import write_json
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.result import lower_is_better
from miniclip.models import DualEncoder
from miniclip.rundir import BEST

_RECORD = "best.json"


class Best:
    """Keeps one model in the run directory's best/, with best.json: figure, step, value. figure: eval.best, or None.

    A run that was cut off and goes on finds there what it kept, unless that was chosen by another figure.
    """

    def __init__(self, run_dir: Path, figure: str | None) -> None:
        self.folder, self.figure = run_dir / BEST, figure

    def record(self) -> dict[str, Any] | None:
        """What best.json says; None without one, or if it tells of another figure."""
        try:
            found = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found if self.figure is not None and found["figure"] == self.figure else None

    def offer(self, step: int, figures: dict[str, float], model: DualEncoder, preprocess: Preprocess) -> bool:
        """Keep the model if its figure is better than the one that is kept; of equals the earlier stays."""
        if self.figure is None:
            return False
        value, kept = figures[f"eval/{self.figure}"], self.record()
        sign = -1 if lower_is_better(self.figure) else 1
        if not math.isfinite(value) or (kept is not None and sign * value <= sign * kept["value"]):
            return False
        part = self.folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        save_model(part, model, preprocess)
        write_json(part / _RECORD, {"figure": self.figure, "step": step, "value": value})
        # the folder gets its name when it is whole; what is cut off between the two lines is found again by the next
        # evaluation, or the last step's weights are taken
        shutil.rmtree(self.folder, ignore_errors=True)
        part.replace(self.folder)
        return True

    def load(self, device: torch.device) -> DualEncoder | None:
        """The model that is kept, in evaluation mode; None if there is none."""
        return None if self.record() is None else load(self.folder, device)[0]
