"""What can be run as configured, and is hardly meant so: a line each, before the first step."""

from __future__ import annotations

from statistics import mean
from typing import Any

from miniclip.config import Config
from miniclip.metrics.retrieval import chance_recall_at_k
from miniclip.training.optim import learning_rate

FEW = 100  # images below which the share of right answers of one model has an interval of more than ten points each way


def of_length(config: Config, steps: int) -> list[str]:
    """What the number of steps makes odd."""
    optim, loss, said = config.optim, config.loss, []
    whole = f"the {steps} steps of this run"
    if optim.warmup_steps >= max(2, steps):
        reached = f"{learning_rate(steps - 1, steps, optim):.2g} of {optim.lr:.2g}"
        said.append(
            f"optim.warmup_steps={optim.warmup_steps} is not below {whole}: the learning rate only rises, up to "
            f"{reached}; use e.g. {steps // 10}"
        )
    if loss.hardest_warmup > steps:
        reached = f"{loss.hardest * (steps - 1) / loss.hardest_warmup:.2g} of {loss.hardest:.2g}"
        said.append(f"loss.hardest_warmup={loss.hardest_warmup} is above {whole}: loss.hardest only reaches {reached}")
    if config.eval.every > steps:
        none = "eval.best has only the last to choose" if config.eval.best else "nothing is evaluated on the way"
        said.append(f"eval.every={config.eval.every} is above {whole}: {none}; use e.g. {max(1, steps // 10)}")
    return said


def of_choice(best: str | None, images: Any) -> list[str]:
    """What few images make of eval.best. images: the source that it is counted on, of a retrieval with captions."""
    if best is None or len(images) >= FEW:
        return []
    n, figure = len(images), best.rpartition("/")[2]
    way, _, k = figure.rpartition("_r")
    by_chance = ""
    if k.isdecimal():
        own = [len(images.captions(i)) if way == "image_to_text" else 1 for i in range(n)]
        chance = mean(chance_recall_at_k(sum(own), count, int(k)) for count in own)
        by_chance = f", where chance alone gives {100 * chance:.0f} %"
    if "rank" not in figure:
        by_chance += f"; other images could change it by {98 / n**0.5:.0f} points"  # 1.96 sqrt(p (1 - p) / n), p = 1/2
    luck = "so that luck chooses the step; use more validation images, or leave eval.best out"
    return [f"eval.best={best} is counted on {n} images{by_chance}, {luck}"]
