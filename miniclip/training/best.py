"""The weights with the best validation figure so far: the finished model, if eval.best asks for them."""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from miniclip.common.checksums import CHECKSUMS, damage, write_checksums
from miniclip.common.console import write_json
from miniclip.common.durable import remove, whole_folder
from miniclip.models import DualEncoder
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import checkpoints, read_json, save_model
from miniclip.training.run_dir import BEST, checkpoint_folder

log = logging.getLogger(__name__)
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
        self.run_dir, self.folder, self.figure = run_dir, run_dir / BEST, figure

    def record(self) -> dict[str, Any] | None:
        """What best.json says; None without one, or if it tells of another figure. Raises ValueError."""
        if not (self.folder / _RECORD).exists():
            return None
        found = read_json(self.folder / _RECORD)
        return found if found["figure"] == self.figure else None

    def offer(self, step: int, choice: Choice, model: DualEncoder, preprocess: Preprocess) -> bool:
        """Keep the model if its figure is better than the one that is kept; of equals the earlier stays.

        What was counted on other images is no rival. Raises DiskFull.
        """
        value, seen, kept = choice.value, choice.fingerprint, self.record()
        sign = -1 if choice.falls else 1
        if kept is not None and kept["fingerprint"] != seen:
            kept = None
        if not math.isfinite(value) or (kept is not None and sign * value <= sign * kept["value"]):
            return False
        with whole_folder(self.folder) as part:
            save_model(part, model, preprocess)
            write_json(part / _RECORD, {"figure": self.figure, "step": step, "value": value, "fingerprint": seen})
            write_checksums(part)
        return True

    def load(self, device: torch.device) -> DualEncoder | None:
        """The model that is kept, in evaluation mode; None if there is none."""
        return None if self.record() is None else load(self.folder, device)[0]

    def restore(self, step: int) -> None:
        """Make best/ what it was after so many steps: if it is later or damaged, from the copy in a checkpoint.

        Without a copy it is removed. For the main process alone. Raises DiskFull.
        """
        former = self.folder.with_name(f"{BEST}.old")
        if former.exists() and not self.folder.exists():  # killed while one took the other's place
            former.replace(self.folder)
        lost, since = self._state()
        if since <= step and not lost:
            return
        kept = checkpoint_folder(self.run_dir, step) / BEST
        copies = [folder / BEST for folder in checkpoints(self.run_dir)]
        for copy in (kept, *(c for c in copies if _same(c, kept, CHECKSUMS) or _same(c, kept, _RECORD))):
            if not (wrong := damage(copy)) and copy.exists():
                with whole_folder(self.folder) as part:
                    shutil.copytree(copy, part, dirs_exist_ok=True)
                if lost:
                    log.warning("%s: %s is again as a checkpoint kept it", lost, self.folder)
                return
            lost = wrong or lost
        if lost:
            log.warning("%s: the best model so far is lost, and its choice begins anew", lost)
        remove(self.folder)

    def _state(self) -> tuple[str, float]:
        """What is damaged in best/, and the step that it is of; infinity where there is none."""
        if not self.folder.exists():
            return "", math.inf
        lost = damage(self.folder)
        try:
            found = read_json(self.folder / _RECORD)
            step, *_ = (found[key] for key in ("step", "figure", "value", "fingerprint"))
            return lost, float(step)
        except (OSError, ValueError, KeyError, TypeError):
            return lost or f"{self.folder / _RECORD} is damaged", math.inf


def keep_copy(best: Path, copy: Path, former: Path | None) -> None:
    """Copy a folder best, if there is one, with links to the files of a former copy if that is the same.

    Nothing is linked to best itself: what a disk does to the one leaves the other.
    """
    if former is not None and _same(best, former, CHECKSUMS):
        shutil.copytree(former, copy, copy_function=_link)
    elif best.exists():
        shutil.copytree(best, copy)


def _same(first: Path, second: Path, name: str) -> bool:
    """Whether two folders have the same file of a name."""
    files = [folder / name for folder in (first, second)]
    return all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)
