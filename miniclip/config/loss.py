"""The section `loss`: of every option the loss that it belongs to, its keyword there, default, meaning and range.

Nothing here imports torch; losses/losses.py has the functions, which take their defaults and ranges from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from miniclip.config.sections import require


class Range(NamedTuple):
    """What a value must do, as a test and in words; None is tested by its type alone."""

    holds: Callable[[Any], bool]
    words: str

    def check(self, name: str, value: Any) -> None:
        require(value is None or self.holds(value), f"{name}={value} must {self.words}")


SHARE = Range(lambda x: 0 <= x <= 1, "lie in [0, 1]")
SHARE_OR_NULL = Range(SHARE.holds, "lie in [0, 1], or be null")
BELOW_1 = Range(lambda x: 0 <= x < 1, "lie in [0, 1)")
ABOVE_0 = Range(lambda x: 0 < x < math.inf, "be above 0")
FROM_0 = Range(lambda x: 0 <= x < math.inf, "be 0 or more")
FORM = Range(lambda x: x in ("softmax", "sigmoid"), "be softmax or sigmoid")


class Option(NamedTuple):
    """loss: a name in miniclip.losses.LOSSES. keyword: its argument; "" for what training alone reads."""

    loss: str
    keyword: str
    default: Any
    range: Range
    meaning: str


def of(*option: Any) -> Any:
    entry = Option(*option)
    return field(default=entry.default, metadata={"option": entry})


@dataclass(frozen=True)
class LossConfig:
    """The loss over the N x N matrix; docs/losses.md shows what each does.

    Args:
        name: softmax (CLIP), sigmoid (SigLIP), focal, hinge, decoupled, soft or transport.
        positives: which pairs of a batch besides an image and its own captions are positives: none (diagonal), those
            whose captions have the same tokens (text), or also those of the same image (identity), by its file, or by
            its row where images are embedded in a table.
        text_to_text: weight of a second matrix, of the captions alone, in which those of an image are to find each
            other; 0 is none. Needs data.captions_per_image of 2 or more.
    """

    name: Literal["softmax", "sigmoid", "focal", "hinge", "decoupled", "soft", "transport"] = "softmax"
    positives: Literal["diagonal", "text", "identity"] = "identity"
    text_to_text: float = 0.0
    smoothing: float = of("softmax", "smoothing", 0.0, BELOW_1, "share of every target that all candidates get")
    image_to_text: float = of(
        "softmax", "image_to_text", 0.5, SHARE, "weight of the images' choice among texts; the rest, of the reverse"
    )
    focal_form: Literal["softmax", "sigmoid"] = of("focal", "form", "softmax", FORM, "which loss is weighted")
    focal_gamma: float = of("focal", "gamma", 2.0, FROM_0, "power of the weight (1 - p)^gamma")
    focal_alpha: float | None = of(
        "focal", "alpha", 0.25, SHARE_OR_NULL, "weight of the sigmoid form's positives, 1 - alpha that of its negatives"
    )
    margin: float = of("hinge", "margin", 0.2, FROM_0, "cosine below 2 by which a positive is to beat each negative")
    hardest: float = of("hinge", "hardest", 0.0, SHARE, "share of the hardest negative alone; the rest is the sum")
    hardest_warmup: int = of("hinge", "", 0, FROM_0, "steps over which that share rises from 0")
    soft_share: float = of("soft", "share", 0.2, SHARE, "share of the targets by how alike images and captions are")
    soft_scale: float = of("soft", "", 20.0, ABOVE_0, "inverse temperature of that likeness; high keeps the most alike")
    sinkhorn_iterations: int = of("transport", "iterations", 5, FROM_0, "Sinkhorn's iterations; 0 is softmax")

    def __post_init__(self) -> None:
        changed = [name for name, option in OPTIONS.items() if getattr(self, name) != option.default]
        for name in changed:
            require(OPTIONS[name].loss == self.name, f"loss.{name} has no meaning for loss.name={self.name}")
        require(
            "focal_alpha" not in changed or self.focal_form == "sigmoid",
            "loss.focal_alpha weighs the pairs of loss.focal_form=sigmoid alone",
        )
        require("hardest_warmup" not in changed or self.hardest > 0, "loss.hardest_warmup needs loss.hardest, e.g. 1")
        require("soft_scale" not in changed or self.soft_share > 0, "loss.soft_scale needs a loss.soft_share above 0")
        margin = self.margin  # of any matrix 0 or more; training's is one of cosines
        require(0 < margin < 2, f"loss.margin={margin} must lie in (0, 2), as a difference of cosines; use e.g. 0.2")
        FROM_0.check("loss.text_to_text", self.text_to_text)
        for name, option in OPTIONS.items():
            option.range.check(f"loss.{name}", getattr(self, name))

    @property
    def pairwise(self) -> bool:
        """Whether it asks every pair of the matrix a question of its own, which takes a bias."""
        return self.name == "sigmoid" or (self.name == "focal" and self.focal_form == "sigmoid")

    def settings(self, step: int = 0) -> dict[str, Any]:
        """Keywords of the loss in miniclip.losses.LOSSES, as of a step (0, 1, ...)."""
        own = {o.keyword: getattr(self, name) for name, o in OPTIONS.items() if o.loss == self.name and o.keyword}
        if own.get("image_to_text") == 0.5:  # both directions alike, as in every other loss
            del own["image_to_text"]
        if self.hardest_warmup:
            own["hardest"] *= min(1.0, step / self.hardest_warmup)
        return own


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in fields(LossConfig) if f.metadata}
# for --help
LossConfig.__doc__ = str(LossConfig.__doc__).rstrip() + "".join(
    f"\n        {name}: {o.loss}: {o.meaning}; must {o.range.words}." for name, o in OPTIONS.items()
)
