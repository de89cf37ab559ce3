"""The texts of zero-shot classification: names of classes, templates, and the prompts that they make together.

A template holds {} where the name of the class goes. Axes: C classes, A names of a class, T templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from miniclip.common.printing import one_line
from miniclip.data.captioned import LabelledSource
from miniclip.data.classes import known_sets
from miniclip.data.tables.texts import read_text
from miniclip.models.protocols import TextTokenizer

Templates = str | Sequence[str]
SIMPLE_TEMPLATES = ("a photo of a {}.",)


@runtime_checkable
class PromptedSource(Protocol):
    """A LabelledSource that brings its own prompts, as the built-in tasks do."""

    def class_prompts(self) -> list[list[str]]: ...

    def prompts(self, index: int, /) -> list[str] | None:
        """The texts that image `index` is to be told apart by, its label being a place in the list; or None."""


def brings_sentences(source: object) -> bool:
    """Whether every image of a source brings its own sentences to choose from."""
    return isinstance(source, PromptedSource) and source.prompts(0) is not None


def names_of(source: LabelledSource) -> list[list[str]]:
    """All names of each class, the one in `classes` first. A source without `names` has the one name a class."""
    names: list[list[str]] | None = getattr(source, "names", None)
    return [[name] for name in source.classes] if names is None else names


def templates_of(source: LabelledSource) -> tuple[str, ...]:
    """The templates that a source brings, being one of the usual sets (see data.classes), else SIMPLE_TEMPLATES."""
    templates: tuple[str, ...] | None = getattr(source, "templates", None)
    return SIMPLE_TEMPLATES if templates is None else templates


def resolve_templates(templates: Templates) -> tuple[str, ...]:
    """What a user writes -> templates, each with {} where the class name goes.

    "simple": "a photo of a {}."; "openai80": the 80 of CLIP for ImageNet, and "simple7": seven of them that do nearly
    as well, both from open_clip; a usual set, e.g. "cifar10"; any other string is a template if it holds {}, else a
    file with one template a line. Raises FileNotFoundError or ValueError.
    """
    if not isinstance(templates, str):
        if not templates:
            raise ValueError('the list of templates is empty; give at least one, e.g. "a photo of a {}."')
        return _checked("", [(f"template {k}", template) for k, template in enumerate(templates, 1)])
    if templates == "simple":
        return SIMPLE_TEMPLATES
    if templates in ("openai80", "simple7"):
        from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

        chosen = OPENAI_IMAGENET_TEMPLATES if templates == "openai80" else SIMPLE_IMAGENET_TEMPLATES
        return tuple(template("{}") for template in chosen)
    if templates in known_sets():
        return known_sets()[templates].templates
    if "{}" in templates:
        return (templates,)
    path = Path(templates).expanduser()
    if not path.is_file():
        known = f"simple, simple7, openai80, a usual set ({', '.join(known_sets())}), a file"
        lacks = "no such file, and not a template, since it lacks {} for the class name"
        raise FileNotFoundError(f'templates {templates!r}: {lacks}; use {known}, or e.g. "a photo of a {{}}."')
    lines = enumerate(read_text(path).splitlines(), 1)
    found = [(f"line {number}", line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no template; write one a line, e.g. a photo of a {{}}.")
    return _checked(f"{path}, ", found)


def _checked(file: str, templates: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    for where, template in templates:
        if "{}" not in template:
            advice = "write e.g. 'a photo of a {}.'"
            raise ValueError(f"{file}{where}: {template!r} lacks {{}} for the class name; {advice}")
        first = seen.setdefault(template.strip(), where)
        if first != where:
            raise ValueError(f"{file}{where}: {template!r} stands in {first} already; keep one of the two")
    return tuple(seen)


def fill_templates(names: Sequence[Sequence[str]], templates: Sequence[str]) -> list[list[str]]:
    """Names of C classes, a list of A each, and T templates -> C lists of A * T prompts; `[t::T]` are of template t."""
    # Not str.format, which would stumble over other braces in either.
    return [[template.replace("{}", name) for name in many for template in templates] for many in names]


def prompts_of(source: LabelledSource, templates: Templates | None) -> tuple[list[list[str]], tuple[str, ...]]:
    """C lists of prompts, and the templates that they come of; None takes a source's own prompts or `templates_of`."""
    if templates is None and isinstance(source, PromptedSource):
        return source.class_prompts(), ()
    chosen = templates_of(source) if templates is None else resolve_templates(templates)
    return fill_templates(names_of(source), chosen), chosen


def check_classes(task: str, source: LabelledSource) -> None:
    """Raise ValueError if there are fewer than two classes, or two share a name but for case and white space."""
    names, keys = names_of(source), getattr(source, "keys", source.classes)
    if len(names) < 2:
        raise ValueError(f"{task}: zero-shot classification needs at least two classes, got {list(source.classes)}")
    first: dict[str, int] = {}
    for number, own in enumerate(names):
        for name in own:
            other = first.setdefault(" ".join(name.lower().split()), number)
            if other != number:
                raise ValueError(_alike(task, keys[other], keys[number], f"are both called {name!r}"))


def check_prompts(task: str, source: LabelledSource, templates: Templates | None, tokenizer: TextTokenizer) -> None:
    """Raise ValueError if names of two classes are the same tokens in the first template, as where they are cut."""
    if brings_sentences(source):
        return
    prompts, chosen = prompts_of(source, templates)
    keys, first = getattr(source, "keys", source.classes), dict[bytes, tuple[int, str]]()
    for number, own in enumerate(prompts):
        texts = own[:: len(chosen) or 1]
        # what brings its own prompts is told apart by all of them
        ids = tokenizer(texts).numpy().reshape(len(texts) if chosen else 1, -1)
        for text, row in zip(texts, ids, strict=False):
            other, same = first.setdefault(row.tobytes(), (number, text))
            if other != number:
                why = f"have prompts of the same tokens ({one_line(same, 100)!r}, {one_line(text, 100)!r})"
                raise ValueError(_alike(task, keys[other], keys[number], why))


def _alike(task: str, one: str, other: str, why: str) -> str:
    advice = "name the classes differently, or merge them"
    return f"{task}: the classes {one!r} and {other!r} {why}, and prompts cannot tell those apart; {advice}"
