"""What can be run and is hardly meant so is said before the first step, with the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_training import TINY, run

from miniclip.config import Config, load_config
from miniclip.training.doubts import of_choice, of_length


class Captioned:
    """n images with so many captions each."""

    def __init__(self, n: int, captions: int) -> None:
        self.n, self.each = n, captions

    def __len__(self) -> int:
        return self.n

    def captions(self, index: int) -> list[str]:
        return [f"{index} {k}" for k in range(self.each)]


def config(*words: str) -> Config:
    return load_config(["--train.max_steps", "50", "--eval.every", "10", *words])


def test_a_length_that_something_else_exceeds() -> None:
    assert of_length(config("--optim.warmup_steps", "49"), 50) == []
    (said,) = of_length(config("--optim.warmup_steps", "500"), 50)
    # the last step has 50 of 500 parts of the rate
    assert "optim.warmup_steps=500 is not below the 50 steps" in said and "0.0001 of 0.001; use e.g. 5" in said
    (said,) = of_length(config("--optim.warmup_steps", "50"), 50)
    assert "0.001 of 0.001" in said
    (said,) = of_length(config("--loss.name", "hinge", "--loss.hardest", "0.8", "--loss.hardest_warmup", "98"), 50)
    assert said.endswith("loss.hardest only reaches 0.4 of 0.8")  # as the hinge loss has it at the last step
    for best, words in (
        ([], "nothing is evaluated on the way"),
        (["--eval.best", "a/b"], "eval.best has only the last"),
    ):
        (said,) = of_length(config("--eval.every", "100", *best), 50)
        assert "eval.every=100 is above the 50 steps of this run" in said and words in said


def test_a_choice_among_few_images() -> None:
    def said(best: str | None, images: Any) -> str:
        return "".join(of_choice(best, images))

    # ten of 25 images; of 125 captions ten without one of the five: 1 - (120 … 111) / (125 … 116) = 0.346
    assert "on 25 images, where chance alone gives 40 %" in said("retrieval/text_to_image_r10", Captioned(25, 5))
    assert "on 25 images, where chance alone gives 35 %" in said("retrieval/image_to_text_r10", Captioned(25, 5))
    assert "could change it by 20 points" in said("retrieval/image_to_text_r1", Captioned(25, 1))
    assert "on 99 images; other images could change it by 10 points" in said("shape/top1", Captioned(99, 0))
    assert "on 25 images, so that luck" in said("retrieval/image_to_text_median_rank", Captioned(25, 1))
    assert not said("shape/top1", Captioned(100, 0)) and not said(None, Captioned(2, 1))


def test_a_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "train": {"max_steps": 2, "precision": "fp32"}}))
    options = ["--eval.best", "retrieval/text_to_image_r10", "--eval.every", "1", "--eval.size", "25"]
    run(str(path), tmp_path / "run", *options, "--optim.warmup_steps", "9", "--eval.tasks", "[retrieval]")
    said = [record.getMessage() for record in caplog.records]
    assert sum("optim.warmup_steps=9 is not below the 2 steps" in line for line in said) == 1
    assert sum("on 25 images, where chance alone gives 40 %" in line for line in said) == 1
