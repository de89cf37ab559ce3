"""A model -> its card, README.md with the metadata of the Hub, from what its run wrote down.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from miniclip.common.console import is_words
from miniclip.common.page import render
from miniclip.common.printing import printable
from miniclip.config import Config, ModelConfig
from miniclip.data.record import Record
from miniclip.evaluation import plots
from miniclip.evaluation.encode import fingerprint
from miniclip.evaluation.report.markdown import inline, line
from miniclip.evaluation.report.read import Result, Run
from miniclip.evaluation.report.write import Section, sections, training_data
from miniclip.evaluation.result import is_number, words_of
from miniclip.evaluation.tables import Table
from miniclip.export.ancestors import is_on_hub, names_on_hub
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess

CURVES = "curves.png"
_SHOWN = ("What must not be lost", "Training", "Where it comes from")  # of the report, after the results
_WAYS = ("image_to_text", "text_to_image")
# kind of an evaluation -> the task, and the figures that others publish, too
_PUBLISHED = {
    "zeroshot": ("zero-shot-image-classification", ("top1", "top5")),
    "probe": ("image-classification", ("linear",)),
    "retrieval": ("image-text-retrieval", tuple(f"{way}_r{k}" for way in _WAYS for k in (1, 5, 10))),
}
_USES = {
    "transformers": """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{repo}")
classify("photo.jpg", candidate_labels=["a dog", "a cat"], hypothesis_template="a photo of {{}}")""",
    "open_clip": """\
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{repo}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")""",
    "miniclip": """\
hf download {repo} --include "miniclip/*" --local-dir {name}
miniclip index photos/ --model {name}/miniclip --out photos.index
miniclip search photos.index "a dog in the snow\"""",
}


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    repo: OWNER/NAME. named: what the model was loaded by. run: the one that it is of. formats: library -> why there is
    no folder for it, None where there is one. licence: as the Hub abbreviates it. examples: whether pictures and
    captions of the data may be shown.
    """

    repo: str
    named: str
    model: DualEncoder
    preprocess: Preprocess
    run: Run | None
    formats: Mapping[str, str | None]
    licence: str
    examples: bool


def write_card(about: Subject, folder: Path) -> None:
    """Write README.md and its pictures into a folder; what of the run cannot be read is in run.left_out."""
    run, config = about.run, about.run.config if about.run else None
    own = fingerprint(about.model)
    if run:  # figures of other models, or of other weights of the run, are not this one's
        run.results = [result for result in run.results if result.model[1] == own]
    held = [name for name, reason in about.formats.items() if reason is None]
    shown = _sections(run, folder, about.repo) if run else []
    licences, ancestors = _rights(about, config), names_on_hub(about.named, about.model.config, config)
    licences += [f"It began from {name} of the Hub, whose licence and limits hold for it, too." for name in ancestors]
    text = render(
        Path(__file__).with_name("card.md"),
        lambda text: inline(public(text)),
        front=Markup(_metadata(about, held, ancestors).to_yaml()),
        title=about.repo.rpartition("/")[2],
        summary=_summary(about.model),
        uses=[(name, Markup(_uses(name, about.repo))) for name in (*held, "miniclip")],
        without=[(name, reason) for name, reason in about.formats.items() if reason is not None],
        architecture=_architecture(about.model, about.preprocess),
        data=_data(run, config),
        rights=licences,
        sections=shown,
        examples=_examples(run, folder) if run and (about.examples or _drawn(config)) else [],
        version=sys.modules["miniclip"].__version__,
        is_words=is_words,
        line=lambda text: line(public(text)),
        **_configuration(run, config),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def public(text: str) -> str:
    """Without what a command or a path tells of its user: the home folder; passwords and signatures in addresses."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=[/\\:\s'\"]|$)", "~", text)
    return re.sub(r"(\w+://)(?:[^/\s@'\"]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", r"\1\2", text)


def _metadata(about: Subject, held: list[str], ancestors: list[str]) -> ModelCardData:
    config = about.run.config if about.run else None
    sources = [source for source in config.data.sources if is_on_hub(source)] if config else []
    results = about.run.results if about.run else []
    found = [entry for result in results if not training_data(config, result) for entry in _published(result)]
    return ModelCardData(
        license=about.licence,
        library_name=next(iter(held), "miniclip"),
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "contrastive", "miniclip", *held],
        base_model=ancestors or None,
        datasets=sources or None,
        model_name=about.repo.rpartition("/")[2] if found else None,
        eval_results=found or None,
    )


def _published(result: Result) -> list[EvalResult]:
    """The main figures, with their intervals."""
    one, (source, split, _) = result.evaluation, result.data
    kind, names = _PUBLISHED[one.kind]
    source = public(source)
    place = source if is_on_hub(source) else Path(source).name
    part = None if one.task == one.kind or place.endswith(one.task) else one.task
    entries = []
    for name in names:
        if (figure := one.figures.get(name)) is None or not is_number(figure.value):
            continue
        interval = {"low": figure.low, "high": figure.high, "confidence": 0.95}
        known = {key: round(value, 4) for key, value in interval.items() if math.isfinite(value)}
        entries.append(
            EvalResult(
                task_type=kind,
                dataset_type=place,
                dataset_name=f"{place}, {part}" if part else place,
                dataset_config=part,
                dataset_split=split,
                metric_type="accuracy" if name in ("top1", "linear") else name,
                metric_name=words_of(name),
                metric_value=round(figure.value, 4),
                metric_args={**known, "n": figure.n},
            )
        )
    return entries


def _sections(run: Run, folder: Path, title: str) -> list[Section]:
    """Of the report those that are of use to others; the curves are drawn into folder."""
    of = {section.title: section for section in sections(run, None)}
    if not run.results:
        told = "No figures of these very weights were written down; miniclip eval, with the run's name, gives some."
        of["Results"] = Section("Results", told)
    images: list[Any] = []
    try:
        plots.curves_png(run.lines, folder / CURVES, title)
        images.append(CURVES)
    except ValueError:  # no line holds a figure
        pass
    of["Training"] = of.get("Training", Section("Training"))._replace(text="", images=images)
    return [of[name] for name in ("Results", *_SHOWN) if name in of]


def _uses(name: str, repo: str) -> str:
    return _USES[name].format(repo=repo, name=repo.rpartition("/")[2])


def _summary(model: DualEncoder) -> str:
    return (
        "A CLIP-style model: an image tower and a text tower that map images and captions to unit vectors of "
        f"{model.config.embed_dim} numbers, where an image and a caption of it lie close together."
    )


def _architecture(model: DualEncoder, preprocess: Preprocess) -> Table:
    config = model.config
    image, text = model.image_tower, model.text_tower
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, image, text)]
    if text is model:  # of which the image tower and what scales the logits are no part
        counts[2] = counts[0] - counts[1] - 1 - (model.logit_bias is not None)
    side, how = (
        preprocess.image_size,
        {"crop": "its central square", "squash": "the whole, squashed"}[preprocess.resize],
    )
    bias = "" if model.logit_bias is None else f", bias {model.logit_bias.item():.4g}"
    rows = [
        ("image tower", f"{_tower(image, config, 'image')}, {counts[1]:,} parameters"),
        ("text tower", f"{_tower(text, config, 'text')}, {counts[2]:,} parameters"),
        ("parameters", f"{counts[0]:,}"),
        ("images", f"{side} x {side} pixels, {how} ({preprocess.interpolation})"),
        ("texts", f"up to {model.context_length} tokens"),
        ("logits", f"cosine times {model.logit_scale.exp().item():.4g}{bias}"),
    ]
    return Table("", ("", "what it is"), rows)


def _tower(tower: Any, config: ModelConfig, kind: str) -> str:
    described = getattr(tower, "described", None)
    if described is None:
        if kind == "text":
            return f"Transformer of {config.text_layers} layers, width {config.text_width}, {config.text_heads} heads"
        if config.image_encoder == "resnet":
            return f"CLIP's ResNet with blocks {config.image_layers}, width {config.image_width}"
        size = f"{config.image_layers} layers, width {config.image_width}, {config.image_heads} heads"
        return f"ViT of {size}, patches of {config.patch_size} pixels"
    library = str(described["module"]).removesuffix("_tower").removesuffix("_image")
    known = described.get("arch") or described.get("config", {}).get("model_type") or "a tower"
    return f"{known} of {_LIBRARIES.get(library, library)}, width {tower.width}"


_LIBRARIES = {"hf": "transformers", "own": "miniclip"}


def _data(run: Run | None, config: Config | None) -> Table:
    if run is None or config is None:
        return Table("", (), [])
    data, record = config.data, Record.load(run.directory)
    source = data.label + "".join(f", {key} {value}" for key in ("name", "revision") if (value := getattr(data, key)))
    tail = f", shapes by data.tail {data.tail}" * (data.tail != "none")
    count = f"{data.size:,} scenes, drawn{tail}" if _drawn(config) else ""
    if record is not None:
        count = f"{len(record.names):,} {'shards' if data.streaming else 'images'}"
    rows = [("source", source), ("trained on", count), ("splits", _splits(config))]
    return Table("", ("", "what it is"), [row for row in rows if row[1]])


def _splits(config: Config) -> str:
    if _drawn(config):
        return ""
    data = config.data
    return f"{data.train_split} for training, {data.validation_split} on the way, {data.test_split} for the figures"


def _rights(about: Subject, config: Config | None) -> list[str]:
    unknown = "No licence was named for these weights: ask who published them before you use them."
    said = [unknown if about.licence == "unknown" else f"Licence of the weights: {about.licence}."]
    if _drawn(config):
        return [*said, "The scenes and their captions are drawn by miniclip; there is no photograph among them."]
    return [*said, "The licence of the data is not recorded here; it may limit what the weights may be used for."]


def _drawn(config: Config | None) -> bool:
    return config is not None and config.data.sources == ["shapes"]


def _configuration(run: Run | None, config: Config | None) -> dict[str, Any]:
    """The file in a fence that nothing in it can close."""
    lines = (run.directory / "config.yaml").read_text("utf-8").splitlines() if run and config else []
    text = "\n".join(re.match(r" *", each)[0] + printable(public(each)) for each in lines)  # type: ignore[index]
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    return {"config": Markup(text), "fence": Markup("`" * max(3, longest + 1))}


def _examples(run: Run, folder: Path) -> list[tuple[str, str, Table]]:
    """File, place of its own caption, and the nearest captions of each."""
    folders = {"" if result.folder == "training" else f"{result.folder}/" for result in run.results}
    pages: Iterable[Any] = (run.pages.get(f"{name}examples.html") for name in sorted(folders))
    shown = []
    for k, example in enumerate(next(filter(None, pages), []), 1):
        name = f"example-{k}.jpg"
        (folder / name).write_bytes(example.jpeg)
        rows = [(one.text, "✓" if one.own else "", one.cosine) for one in example.captions]
        shown.append((name, example.rank, Table("", ("caption", "its own", "cosine"), rows)))
    return shown
