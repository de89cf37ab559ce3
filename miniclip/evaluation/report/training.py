"""What a report says of the training: how far it came, of what model, on what data, how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from miniclip.config import Config, LossConfig, ModelConfig
from miniclip.evaluation.report.files import PNG, mapping, number, text
from miniclip.evaluation.report.read import Run
from miniclip.evaluation.report.render import Block, Command, Heading, Table, Text
from miniclip.evaluation.report.values import DASH, amount, count, duration, moment, name_of, value_of

_KNOWN = ("steps", "train_seconds", "samples_per_s", "bad", "best")
_LAST = {
    "loss": "loss, nats",
    "loss_over_chance": "loss over that of chance",
    "logit_scale": "logit scale",
    "grad_norm": "norm of the gradient",
}


def status(run: Run) -> str:
    """One sentence: whether it finished, and how long it took."""
    source, config = run.sources[0], run.config
    ended, last = number(source.training.get("steps")), run.lines[-1]["step"] if run.lines else None
    total = number(config.train.max_steps) if config else None
    # a resume may set out for more steps than the results beside it know of
    if ended is not None and (last or 0) <= ended >= (total or 0):
        seconds, pace = (source.training.get(key) for key in ("train_seconds", "samples_per_s"))
        when = f"; {moment(source.time)}" if source.time else ""
        return f"Finished: {count(ended)} steps in {duration(seconds)}, {count(pace)} pairs a second{when}."
    if run.has_model and ended is None:
        return "Finished: there is a model; how it was trained cannot be read."
    known = ended is not None
    before = f" It had finished {count(ended)} steps before, which is what its own results tell of." if known else ""
    if last is None:
        return "Not finished: no step has been logged yet." + before
    epoch = run.lines[-1].get("epoch")
    length = f" of {count(total)}" if total else ""
    if not total and config and config.train.epochs and epoch is not None:
        length = f", epoch {amount(epoch)} of {amount(config.train.epochs)}"
    return (
        f"Not finished: step {count(last)}{length}, logged {moment(run.written)}. It is still training, or was cut off."
        + before
    )


def training_section(run: Run, curves: PNG | None) -> list[Block]:
    """Facts, the last figures, the curves, the command."""
    rows = [row for row in _facts(run) if row[1] not in ("", DASH)]
    blocks: list[Block] = [Heading(2, "Training")]
    if rows:
        blocks.append(Table("", ("", ""), rows, words=2, facts=True))
    if run.sources[0].command:
        blocks.append(Command(run.sources[0].command))
    blocks.append(curves or Text("There are no curves: metrics.jsonl holds no step.", "muted"))
    last = next((line for line in reversed(run.lines) if "loss" in line), None)
    if last:
        figures = [(label, amount(last[key])) for key, label in _LAST.items() if key in last]
        blocks.append(Table(f"at step {count(last['step'])}", ("of the last logged batch", "value"), figures))
    return blocks


def validation_table(run: Run) -> list[Block]:
    """The last figures of each task on the validation pictures."""
    latest: dict[str, tuple[float, float]] = {}
    for line in run.lines:
        latest |= {key: (line["step"], value) for key, value in line.items() if key.startswith("eval/")}
    rows = []
    for key, (step, value) in latest.items():
        task, _, figure = key.removeprefix("eval/").rpartition("/")
        rows.append((task or DASH, name_of(figure), value_of(figure, value), count(step)))
    if not rows:
        return []
    return [Table("on the validation pictures, during the training", ("task", "figure", "value", "step"), rows, 2)]


def _facts(run: Run) -> list[tuple[str, str]]:
    training, config, line = run.sources[0].training, run.config, run.lines[-1] if run.lines else {}
    rows: list[tuple[str, str]] = []
    if config:
        rows += [*_model(config.model), *_data(config), *_optimisation(config)]
    bad, best = training.get("bad"), mapping(training.get("best"))
    if best:
        figure = text(best.get("figure"))
        value = value_of(figure, best.get("value"))
        rows.append(
            ("weights", f"of step {count(best.get('step'))}, the best {name_of(figure)} on validation: {value}")
        )
    steps, seconds = count(training.get("steps")), training.get("train_seconds")
    rows += [
        ("steps done", count(line.get("step")) if steps == DASH else steps),
        ("time", duration(seconds)),
        ("pairs a second", count(training.get("samples_per_s", line.get("samples_per_s")))),
        ("unreadable pictures", count(len(bad)) if isinstance(bad, list) else DASH),
    ]
    rows += [(text(key).replace("_", " "), text(value)) for key, value in training.items() if key not in _KNOWN]
    return rows


def _model(model: ModelConfig) -> list[tuple[str, str]]:
    parameters = _parameters(model)
    layers = model.image_layers
    if model.image_encoder == "vit":
        image = f"ViT, {count(layers)} layers of width {count(model.image_width)}, {count(model.image_heads)} heads"
        image += f", patches of {count(model.patch_size)} px"
    else:
        blocks = "-".join(map(str, layers)) if isinstance(layers, Sequence) else DASH
        image = f"ResNet, blocks {blocks}, width {count(model.image_width)}, {count(model.image_heads)} heads"
    words = (
        f"{count(model.text_layers)} layers of width {count(model.text_width)}, {count(model.text_heads)} heads, up to "
        f"{count(model.context_length)} of {count(model.vocab_size)} tokens"
    )
    size = f"{parameters / 1e6:,.1f} M parameters ({parameters:,})" if parameters else ""
    return [
        ("model", ", ".join(filter(None, (model.preset or "spelt out", size)))),
        ("image encoder", f"{image}, pictures of {count(model.image_size)} px"),
        ("text encoder", words),
        ("shared space", f"{count(model.embed_dim)} dimensions"),
    ]


def _parameters(model: ModelConfig) -> int | None:
    """Counted on a model without memory; None if there is no such model."""
    import torch

    from miniclip.models import create_model

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in create_model(model).parameters())
    except (ValueError, TypeError, RuntimeError):
        return None


def _data(config: Config) -> list[tuple[str, str]]:
    data = config.data
    splits = f"{data.train_split} / {data.validation_split} / {data.test_split}"
    named = ", ".join(filter(None, (data.label, data.name, data.revision)))
    own = "" if data.source == "shapes" else f"; training, validation, test: {splits}"
    return [("data", named + own), ("augmentation", "" if data.augment == "none" else str(data.augment))]


def _optimisation(config: Config) -> list[tuple[str, str]]:
    loss, optim, train, data = config.loss, config.optim, config.train, config.data
    changed = [
        f"{f.name.replace('_', ' ')} {getattr(loss, f.name)}"
        for f in fields(LossConfig)
        if f.name not in ("name", "positives") and getattr(loss, f.name) != f.default
    ]
    end = "" if optim.schedule == "constant" else f" to {optim.final_lr:g} of it"
    micro = f", {count(train.micro_batch_size)} at a time" if train.micro_batch_size else ""
    length = f"{count(train.max_steps)} steps" if train.max_steps else f"{amount(train.epochs)} epochs"
    warm = f"{count(optim.warmup_steps)} steps of warm-up" if optim.warmup_steps else "no warm-up"
    clip = f"gradient clipped at {optim.grad_clip:g}" if optim.grad_clip else "gradient not clipped"
    return [
        ("loss", ", ".join((loss.name, f"positives by {loss.positives}", *changed))),
        (
            "optimiser",
            f"AdamW, learning rate {optim.lr:g}, {warm}, {optim.schedule}{end}, "
            f"weight decay {optim.weight_decay:g}, {clip}",
        ),
        ("batch", f"{count(data.batch_size)} pairs{micro}"),
        ("planned", length),
        ("precision, seed", f"{train.precision}, {config.run.seed}"),
    ]
