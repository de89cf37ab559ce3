"""The pages against the code: no loss undescribed, no picture missing, left over or out of date, no option unknown."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from miniclip.config import SECTIONS as SECTIONS_OF_A_RUN
from miniclip.config import DataConfig
from miniclip.config.loss import OPTIONS
from miniclip.losses import LOSSES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}


def pictures(text: str) -> list[str]:
    return re.findall(r'<img src="losses/([\w-]+)\.png"', text)


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, DOCS / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    return load("draw_losses")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_section_with_its_pictures(name: str) -> None:
    found = pictures(SECTIONS[name])
    assert found, f"the section {name} of docs/losses.md shows no picture"
    assert all(picture.split("-")[0] == name for picture in found)


def test_the_table_of_the_losses() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(#\1\) \| .* \| (yes|no) \| .* \| (.*) \|$", PAGE, re.MULTILINE)
    expected = []
    for name, loss in LOSSES.items():
        settings = [f"`{key}: {option.default}`" for key, option in OPTIONS.items() if option.loss == name]
        shown = ", ".join(settings).replace(".0`", "`") or "none"
        expected.append((name, "yes" if loss.whole_matrix else "no", shown))
    assert [(name, whole, s if "model." not in s else "none") for name, whole, s in rows] == expected


def test_pictures_drawn_kept_and_shown_are_the_same(drawing: ModuleType) -> None:
    kept = sorted(path.stem for path in (DOCS / "losses").glob("*"))
    assert sorted(pictures(PAGE)) == kept == sorted(["matrix", *drawing.PICTURES])


def test_pictures_show_the_gradients_of_today(drawing: ModuleType) -> None:
    for name in drawing.PICTURES:
        with Image.open(DOCS / "losses" / f"{name}.png") as picture:
            shown = [number for line in json.loads(picture.info["Description"]) for number in line]
        # within the rounding to thousandths, whichever way the last bit fell
        for value, number in zip(drawing.gradient(name).flatten().tolist(), shown, strict=True):
            assert abs(1000 * value - number) <= 0.5 + 1e-6, f"{name}.png is out of date: python docs/draw_losses.py"


@pytest.mark.parametrize("name", ["matrix", "softmax"])
def test_draws_a_picture(drawing: ModuleType, name: str, tmp_path: Path) -> None:
    path = drawing.draw(name, tmp_path)
    with Image.open(path) as drawn, Image.open(DOCS / "losses" / f"{name}.png") as kept:
        assert drawn.format == "PNG" and drawn.size == kept.size
        one, other = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (drawn, kept))
    # another release of matplotlib may set its letters a little differently
    assert abs(one - other).mean() < 2
    assert path.stat().st_size < 40_000


def test_every_option_that_the_pages_name_exists() -> None:
    fields = {name: {f.name for f in dataclasses.fields(section)} for name, section in SECTIONS_OF_A_RUN.items()}
    del fields["model"]  # a model is also an object with attributes
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found = re.findall(rf"(?<![\w/.])({'|'.join(fields)})\.([a-z][a-z_]+)(?![a-z_(])", text)
        wrong = {f"{section}.{name}" for section, name in found if name not in fields[section] | {"py", "json"}}
        assert not wrong, f"{page.name} names options that there are not: {sorted(wrong)}"
        assert found or page.name != "train.md"


def test_every_file_that_the_pages_link_exists() -> None:
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


EXAMPLES = re.findall(r"^data: \{.*?\}$", (DOCS / "train.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_has_two_lines_for_each_kind_of_source() -> None:
    assert len(EXAMPLES) == 7 and all(len(example.splitlines()) == 2 for example in EXAMPLES)
    for example in EXAMPLES:
        assert DataConfig(**yaml.safe_load(example)["data"]).sources


def test_the_reference_says_what_the_code_does() -> None:
    written = load("write_configuration").configuration()
    assert (DOCS / "configuration.md").read_text("utf-8") == written, "python docs/write_configuration.py"
