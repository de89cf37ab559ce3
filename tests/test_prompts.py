"""Templates, and the prompts that names and templates make together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data.classes import known_sets
from miniclip.data.labelled import open_labelled
from miniclip.data.scenes.source import SceneTask
from miniclip.data.subset import Subset
from miniclip.evaluation.prompts import (
    SIMPLE_TEMPLATES,
    PromptedSource,
    check_classes,
    fill_templates,
    names_of,
    resolve_templates,
    templates_of,
)


class Fake:
    """A LabelledSource with no more than the protocol asks for."""

    def __init__(self) -> None:
        self.classes = ["a dog", "a cat"]

    def __len__(self) -> int:
        return 1

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (2, 2))

    def label(self, index: int) -> int:
        return 0

    def name(self, index: int) -> str:
        return "fake"


def test_names_and_templates_of_a_source(tmp_path: Path) -> None:
    assert names_of(Fake()) == names_of(Subset(Fake(), [0])) == [["a dog"], ["a cat"]]
    assert templates_of(Fake()) == templates_of(Subset(Fake(), [0])) == SIMPLE_TEMPLATES
    for name in ("cat", "hound"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "pets" / name / "x.png")
    (tmp_path / "names.txt").write_text("dog | hound\ncat\n")
    source = open_labelled(tmp_path / "pets", classnames_file=tmp_path / "names.txt")
    for one in (source, Subset(source, [1])):
        assert names_of(one) == [["cat"], ["dog", "hound"]]
        assert templates_of(one) == ("a photo of a {}, a type of pet.",)
    mine = (tmp_path / "pets").rename(tmp_path / "mine")
    assert templates_of(open_labelled(mine)) == SIMPLE_TEMPLATES  # templates is None there


def test_prompts_in_order() -> None:
    names, templates = [["crane bird", "crane"], ["ox"]], ("a {}.", "the {}.", "{}")
    prompts = fill_templates(names, templates)
    assert prompts == [
        ["a crane bird.", "the crane bird.", "crane bird", "a crane.", "the crane.", "crane"],
        ["a ox.", "the ox.", "ox"],
    ]
    assert [texts[1::3] for texts in prompts] == [["the crane bird.", "the crane."], ["the ox."]]
    assert [texts[t::3] for texts in prompts for t in range(3)] == [
        [template.replace("{}", name) for name in many] for many in names for template in templates
    ]
    assert fill_templates([["a{0}"], ["b"]], ["{} {x}"]) == [["a{0} {x}"], ["b {x}"]]  # braces of other kinds stay
    assert fill_templates([["ox"]], ["{} and {}"]) == [["ox and ox"]]


def test_templates_by_name() -> None:
    import open_clip

    assert resolve_templates("simple") == SIMPLE_TEMPLATES == ("a photo of a {}.",)
    eighty, seven = resolve_templates("openai80"), resolve_templates("simple7")
    assert len(set(eighty)) == 80 and eighty[0] == "a bad photo of a {}." and eighty[-1] == "a tattoo of the {}."
    assert seven == tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES) and len(set(seven)) == 7
    assert set(seven) < set(eighty)
    for name, known in known_sets().items():
        assert resolve_templates(name) == known.templates
    assert resolve_templates("imagenet") == eighty


def test_templates_inline_and_from_a_file(tmp_path: Path) -> None:
    assert resolve_templates("one {} here") == ("one {} here",)
    assert resolve_templates(["a {}", "the {}"]) == ("a {}", "the {}")
    file = tmp_path / "templates.txt"
    file.write_text("\ufeffa {}.\n\n  the {} of {name} \n", encoding="utf-8")
    assert resolve_templates(str(file)) == ("a {}.", "the {} of {name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}.\n\nthe dog.\n", "FILE, line 3: 'the dog.' lacks {} for the class name; write e.g."),
        ("a { }.\n", "FILE, line 1: 'a { }.' lacks {}"),
        ("", "FILE holds no template; write one a line"),
        ("\n  \n", "FILE holds no template"),
        ("a {}.\n\nthe {}.\n a {}. \n", "FILE, line 4: 'a {}.' stands in line 1 already"),
    ],
)
def test_files_of_templates_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "templates.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message.replace("FILE", str(file)))) as caught:
        resolve_templates(str(file))
    assert "\n" not in str(caught.value)


def test_templates_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt'.*no such file, and not a template.*cifar10"):
        resolve_templates(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve_templates(str(tmp_path))
    with pytest.raises(ValueError, match="template 2: 'b' lacks"):
        resolve_templates(["a {}", "b"])
    with pytest.raises(ValueError, match=r"template 3: 'a \{\}' stands in template 1 already"):
        resolve_templates(["a {}", "b {}", "a {}"])
    with pytest.raises(ValueError, match="empty"):
        resolve_templates([])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {}\n")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text"):
        resolve_templates(str(tmp_path / "latin.txt"))


def test_classes_that_cannot_be_told_apart() -> None:
    check_classes("t", ["a", "b"])
    with pytest.raises(ValueError, match=r"t: .* at least two classes, got \['a'\]"):
        check_classes("t", ["a"])
    with pytest.raises(ValueError, match=r"t: 1 class names .* 'b'"):
        check_classes("t", ["b", "a", "b"])


def test_the_built_in_tasks_bring_their_own_prompts() -> None:
    assert isinstance(SceneTask("colour", 2, 0, 16), PromptedSource)
    assert not isinstance(Fake(), PromptedSource)
