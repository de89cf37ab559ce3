"""The doctor on a model that is not fresh: what is locked stays, the images are such as it knows, nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from miniclip.data.loader import Batch, TrainingPairs
from miniclip.data.recolour import recolour, shrink
from miniclip.data.sampler import TrainSampler
from miniclip.doctor.data import Stage
from miniclip.doctor.pairs import FEWEST_PAIRS
from miniclip.doctor.trial import TOO_SLOW, Setting, Trial
from miniclip.evaluation.result import Evaluation, difference, main_figure, words_of
from miniclip.evaluation.retrieval import PairEmbeddings, count_retrieval
from miniclip.evaluation.suite import Suite, evaluate
from miniclip.evaluation.tables import percent
from miniclip.inspection.contents import Verdict
from miniclip.models.cut import WHOLE
from miniclip.training.batches import phases
from miniclip.training.learning import KINDS, locked_cut

LOCKED_PAIRS, LOCKED_STEPS = 32, 3
MOVED, OTHERWISE = 1e-6, 1e-3  # of the features' length: what rounding does not explain, in one mode and between two
VIEWS = 64  # images
KNOWN, STRANGE = 0.8, 0.4  # shares of views by which the tower knows their images
FIRST_LOOK = 10  # steps
HELD_OUT = "held-out pairs"


def check_locked(setting: Setting, batch: Batch) -> Stage | None:
    """Whether what is locked gives the same features after some steps as before, and within a step; None without it."""
    trial = Trial(setting, setting.config.optim.lr)
    model, asked, batch = trial.learner.model, setting.config.model, batch.to(trial.device)
    cuts = {kind: k for kind, k in zip(KINDS, locked_cut(model, asked), strict=True) if k is not None}
    if not cuts:
        return None

    @torch.no_grad()
    def features(kind: str, training: bool) -> Tensor:
        model.train(training)
        if kind == "image":
            return model.image_tower.lower(trial.learner.inputs(batch.image), cuts[kind]).float()
        return model.text_tower.lower(batch.text, cuts[kind]).float()

    before = {kind: features(kind, training=False) for kind in cuts}
    model.train()
    for _ in range(LOCKED_STEPS):
        trial.step(batch)
    figures: dict[str, Any] = {}
    verdicts = []
    for kind, first in before.items():
        apart = [float((features(kind, mode) - first).norm() / first.norm()) for mode in (False, True)]
        figures |= {f"change_of_{kind}_features": apart[0], f"change_of_{kind}_features_in_training": apart[1]}
        evidence, advice = [], []
        if not apart[0] <= MOVED:
            evidence.append(f"after {LOCKED_STEPS} steps its features differ by {apart[0]:.1e} of their length")
            advice.append("Look for what moves weights or BatchNorm statistics that are locked.")
        if not apart[1] <= OTHERWISE:
            evidence.append(f"in a step they differ by {apart[1]:.1e} from those of evaluation")
            advice.append("It runs in training mode: look for a train() that puts BatchNorm or dropout to work again.")
        if evidence:
            locked = f"model.lock_{kind}={getattr(asked, f'lock_{kind}')}"
            verdicts.append(Verdict("locked", f"the {kind} tower does not stay locked ({locked})", evidence, advice))
    return Stage("locked", "what is locked stays as it is", figures, verdicts[:1], [])


def check_views(setting: Setting, pairs: TrainingPairs, plain: Batch, steps: int) -> Stage:
    """Whether the image tower knows each image again in the square that training makes of it.

    plain: the first readable pairs of the same rows, as evaluation sees them. steps: of the whole run.
    """
    trial, config, n = Trial(setting, setting.config.optim.lr), setting.config, len(plain.image)
    batch, learner = pairs.__getitems__([(0, row) for row in range(n)]).to(trial.device), trial.learner
    tower, size = learner.model.eval().image_tower, config.eval.batch_size

    @torch.no_grad()
    def features(image: Tensor) -> Tensor:
        parts = [tower.lower(learner.inputs(part), WHOLE) for part in image.split(size)]
        return torch.nn.functional.normalize(torch.cat(parts).float().flatten(1), dim=1)

    known, figures = features(plain.image.to(trial.device)), dict[str, Any]()
    pixels = recolour(batch.image, batch.look) if config.data.flip or config.data.colour_jitter else batch.image
    sides = phases(0, steps, config)
    for side, _ in sides:
        own = (features(shrink(pixels, side)) @ known.T).argmax(1).cpu() == torch.arange(n)
        figures[f"share_known_again_at_{side}_px"] = float(own.float().mean())
    title, verdicts, notes = "the tower knows the images that training shows it", [], []
    made = f"data.augment={config.data.augment}, colour_jitter={config.data.colour_jitter}"
    for (side, _), share in zip(sides, figures.values(), strict=True):
        told = f"of {n} training images at {side} pixels the tower knows {share:.0%} again among the same as evaluated"
        if share < STRANGE:
            smaller = ", or a higher train.low_image_size" if side != config.model.image_size else ""
            advice = f"Use a milder data.augment{smaller}: the tower was trained on such as its preprocessing makes."
            heading = "the images are not such as the tower knows"
            verdicts.append(Verdict("preprocessing", heading, [told, made], [advice]))
        elif share < KNOWN:
            notes.append(f"{told[0].upper()}{told[1:]} ({made}).")
    return Stage("views", title, figures, verdicts[:1], notes)


@dataclass
class Kept:
    """One training of a model that knew something. before, after: main figures by task. falls: of each task the
    difference with its interval, if it was counted on equal images."""

    lr: float
    steps: int = 0
    seconds: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    falls: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def train_and_look(
    setting: Setting, pairs: TrainingPairs, held_out: Batch, suite: Suite, lr: float, steps: int | None = None
) -> Kept:
    """Train as configured, at a constant rate, until something is surely lost or time is up. steps: if told, as many,
    and a look at the end alone."""
    trial, kept = Trial(setting, lr), Kept(lr)
    size = min(setting.config.data.batch_size, len(pairs))
    draws = TrainSampler(len(pairs), size, seed=setting.config.run.seed, steps=2**40)
    before, look = _figures(trial, held_out, suite), FIRST_LOOK

    def early() -> bool:
        return trial.steps < FIRST_LOOK

    title = f"what must not be lost at rate {lr:.2g}"
    for step, kept.seconds, bar in trial.train(title, map(pairs.__getitems__, draws), early, steps):
        bar.set_postfix_str(f"step {trial.steps}", refresh=False)
        if not step.finite:
            break
        if steps is None and trial.steps == look:
            look *= 2
            if _look(trial, held_out, suite, before, kept).lost:
                break
    if kept.steps != trial.steps:
        _look(trial, held_out, suite, before, kept)
    return kept


def _look(trial: Trial, held_out: Batch, suite: Suite, before: Mapping[str, Evaluation], kept: Kept) -> Kept:
    margin = trial.config.eval.guard_margin
    kept.steps = trial.steps
    for name, now in _figures(trial, held_out, suite).items():
        ((figure, value),) = now.figures.items()
        apart = difference(before[name], now)[figure]
        kept.before[name], kept.after[name] = before[name][figure], value.value
        kept.falls[name] = apart.value, apart.low, apart.high
    kept.lost = [name for name, (_, _, high) in kept.falls.items() if high < -margin]
    return kept


def _figures(trial: Trial, held_out: Batch, suite: Suite) -> dict[str, Evaluation]:
    learner = trial.learner
    found = evaluate(trial.config, suite, learner.model, learner.preprocess)
    learner.model.train()
    if len(held_out.image) >= FEWEST_PAIRS:
        own = trial.encode(held_out)
        n = len(own.image)
        texts = [str(text) for text in held_out.text_id.tolist()]
        pairs = PairEmbeddings(own.image.float().cpu(), own.text.float().cpu(), texts, torch.arange(n))
        found[HELD_OUT] = count_retrieval(pairs, HELD_OUT, resamples=0)
    mains = {name: main_figure(one) for name, one in found.items()}
    return {f"{name}, {words_of(figure)}": one for name, one in mains.items() for figure in one.figures}


def check_kept(setting: Setting, pairs: TrainingPairs, held_out: Batch, suite: Suite) -> Stage:
    """Whether the first steps at the configured rate destroy what the model knew: of the tasks of eval.guard, and of
    held-out pairs."""
    lr, title = setting.config.optim.lr, "the first steps lose nothing"
    main = train_and_look(setting, pairs, held_out, suite, lr)
    runs, verdicts, notes = [main], [], []
    if main.lost:
        runs.append(train_and_look(setting, pairs, held_out, suite, lr / 10, main.steps))
        verdicts.append(_forgets(main, runs[1], setting.config.eval.guard_margin))
    elif main.steps < FIRST_LOOK:
        notes.append(TOO_SLOW)
    else:
        margin = setting.config.eval.guard_margin
        few = [name for name, (fall, *_) in main.falls.items() if fall < -margin]
        notes += [f"{name} fell, by what may be chance on so few images: {_told(main, name)}." for name in few]
    figures: dict[str, Any] = {}
    for run in runs:
        figures[f"at_rate_{run.lr:.2g}"] = [_told(run, name) for name in run.falls]
    return Stage("kept", title, figures, verdicts, notes, [asdict(run) for run in runs], main.steps >= FIRST_LOOK)


def _told(run: Kept, name: str) -> str:
    fall, low, high = (f"{100 * value:+.1f}" for value in run.falls[name])
    ends = f"{percent(run.before[name])} -> {percent(run.after[name])} %"
    return f"{name}: {ends} ({fall} [{low}, {high}]) after {run.steps} steps in {run.seconds:.1f} s"


def _forgets(main: Kept, control: Kept, margin: float) -> Verdict:
    """main: at the configured rate; control: at a lower one."""
    lost = main.lost
    evidence = [f"at optim.lr={run.lr:.2g}, {_told(run, name)}" for name in lost for run in (main, control)]
    evidence.append(f"eval.guard_margin lets {100 * margin:.1f} points pass")
    less = "Or let less of the towers learn: optim.layer_decay=0.7, model.lock_image, model.lock_text, or LoRA."
    if any(name in control.lost for name in lost):
        even = f"At a tenth of the rate it is lost as well: try optim.lr={control.lr / 10:.2g} with a longer warm-up."
        return Verdict("forgets", "the training destroys what the model knew", evidence, [even, less])
    lower = f"Set optim.lr to {control.lr:.2g}, or optim.lr_image and lr_text alone; reach it by optim.warmup_steps."
    return Verdict("forgets", "the learning rate destroys what the model knew", evidence, [lower, less])
