"""The matrix along the training: one fixed batch of validation pairs, looked at again and again.

matrix/batch.json                    captions and names of the n pairs
matrix/step_00000100.safetensors     cosine (n, n) float16, and the figures in the header; 10 kB for 64 pairs
"""

from __future__ import annotations

import json
import logging
from itertools import chain
from math import nan
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from miniclip.common.console import json_safe, write_json
from miniclip.common.durable import make_folder, whole_file
from miniclip.common.printing import first_few
from miniclip.common.runs import metric_lines
from miniclip.config import Config, ConfigError
from miniclip.data.stream.held_out import open_pairs
from miniclip.evaluation.encode import EncodeOptions
from miniclip.inspection.contents import History
from miniclip.inspection.sample import TooFewPairs, draw, scale_and_bias
from miniclip.inspection.views import loss_figures
from miniclip.metrics.batch import batch_figures
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.saved import step_of
from miniclip.training.precision import for_encoding
from miniclip.training.run_dir import MATRICES, kept_matrices

log = logging.getLogger(__name__)

BATCH = "batch.json"
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # what reading raises


class MatrixLog:
    """Writes the matrix of one fixed batch into a folder of the run whenever asked to.

    The batch is of log.matrix_size pairs of the validation split: one that the model learns by heart would tell less.
    config: with its model resolved. Raises what open_pairs does, and ConfigError if there are too few pairs, or if a
    run that is resumed has another fixed batch.
    """

    def __init__(self, config: Config, preprocess: Preprocess, tokenizer: TextTokenizer) -> None:
        size, seed = config.log.matrix_size, config.run.seed
        source = open_pairs(config.data, "validation", seed=seed, image_size=preprocess.image_size, eval_size=size)
        try:
            self.sample = draw(source, size, seed, preprocess, allowed=config.data.max_bad_fraction)
        except TooFewPairs as error:
            raise ConfigError(
                f"log.matrix_every={config.log.matrix_every}: {error} of the validation split; set it to 0"
            ) from error
        if bad := self.sample.bad:
            named = first_few(bad)
            log.warning("%d validation images cannot be read and are left out of the fixed batch: %s", len(bad), named)
        self.preprocess, self.loss, self.tokenizer = preprocess, config.loss, tokenizer
        self.options = EncodeOptions(config.eval.batch_size, for_encoding(config.train.precision))
        self.positives = self.sample.positives(config.loss.positives, self.tokenizer)
        self.folder = Path(config.run.dir) / MATRICES
        batch = self.folder / BATCH
        if config.run.resume and batch.exists():
            try:
                same = _captions(batch) == self.sample.captions
            except _DAMAGED as error:
                raise ConfigError(f"{batch} is damaged ({error}); delete {self.folder} to do without it") from error
            if not same:
                raise ConfigError(
                    f"the matrices in {self.folder} are of another batch, says {BATCH} there; set log.matrix_size "
                    "back, or delete that folder"
                )

    def write(self, step: int, model: DualEncoder) -> None:
        """Store the matrix as it is after `step` steps, and the figures of the batch, its loss among them."""
        make_folder(self.folder)
        if not (self.folder / BATCH).exists():
            write_json(self.folder / BATCH, {"captions": self.sample.captions, "names": self.sample.names})
        image, text = self.sample.encode(model, self.preprocess, self.tokenizer, self.options)
        scale, bias = scale_and_bias(model)
        figures = loss_figures(image, text, self.positives, scale, bias, self.loss, step) | {"logit_scale": scale}
        figures |= batch_figures(image, text, scale, bias, self.positives)
        with whole_file(self.folder / f"step_{step:08d}.safetensors") as part:
            save_file({"cosine": (image @ text.T).half()}, part, metadata={"figures": json.dumps(json_safe(figures))})


def read_history(run_dir: Path) -> History | None:
    """What MatrixLog and the log of the training left in run_dir; None without a matrix.

    Raises ValueError that names a file that cannot be read.
    """
    paths, batch = kept_matrices(run_dir), run_dir / MATRICES / BATCH
    if not paths:
        return None
    cosines, lines = [], []
    for path in paths:
        try:
            with safe_open(path, framework="pt") as stored:
                cosines.append(stored.get_tensor("cosine"))
                figures = json.loads(stored.metadata()["figures"])
                lines.append({k: nan if v is None else float(v) for k, v in figures.items()})
                lines[-1]["logit_scale"]  # which the page cannot do without
        except (SafetensorError, *_DAMAGED) as error:
            raise ValueError(f"{path} is not a matrix of a training ({error}); delete it to do without it") from error
    try:
        captions, stacked = _captions(batch), torch.stack(cosines)
        if stacked.shape[1:] != (len(captions), len(captions)):
            raise ValueError(f"{len(captions)} captions and matrices {tuple(stacked.shape[1:])}")
    except (OSError, RuntimeError, *_DAMAGED) as error:
        raise ValueError(f"{batch} does not go with the matrices beside it ({error}); delete {batch.parent}") from error
    series = {name: torch.tensor([line.get(name, nan) for line in lines], dtype=torch.float64) for name in lines[0]}
    steps = [step_of(path) for path in paths]
    return History(steps, captions, series, stacked, training_log(run_dir))


def _captions(batch: Path) -> list[str]:
    return [str(text) for text in json.loads(batch.read_text(encoding="utf-8"))["captions"]]


def training_log(run_dir: Path) -> dict[str, list[float]]:
    """The lines of metrics.jsonl that tell of training steps: name -> values, NaN where a line lacks one.

    Without the file, or such a line, it is empty. What is no line is passed over, and said.
    """
    path = run_dir / "metrics.jsonl"
    found, bad = metric_lines(path)
    if bad:
        log.warning("%s: damaged, passed over: %s", path, first_few(bad))
    lines = [values for _, values in found if "loss" in values]
    return {name: [_number(line.get(name)) for line in lines] for name in dict.fromkeys(chain(*lines))}


def _number(value: Any) -> float:
    """NaN for null, which stands for what was not finite, and for whatever else is no number."""
    try:
        return float(value) if isinstance(value, int | float) else nan
    except OverflowError:
        return nan
