"""Templates, and the prompts that names and templates make together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.files import write_classes, write_csv, write_image
from support.sources import FakeLabelled

from miniclip.data.classes import known_sets
from miniclip.data.labelled import open_labelled
from miniclip.data.scenes.source import SceneTask
from miniclip.data.subset import Subset
from miniclip.evaluation.prompts import (
    SIMPLE_TEMPLATES,
    PromptedSource,
    check_classes,
    check_prompts,
    fill_templates,
    names_of,
    resolve_templates,
    templates_of,
)
from miniclip.models.tokenizer import Tokenizer


def test_names_and_templates_of_a_source(tmp_path: Path) -> None:
    plain = FakeLabelled(1)
    assert names_of(plain) == names_of(Subset(plain, [0])) == [["a dog"], ["a cat"]]
    assert templates_of(plain) == templates_of(Subset(plain, [0])) == SIMPLE_TEMPLATES
    pets, names = write_classes(tmp_path / "pets", cat=[1], hound=[2]), tmp_path / "names.txt"
    names.write_text("dog | hound\ncat\n")
    source = open_labelled(pets, classnames_file=names)
    for one in (source, Subset(source, [1])):
        assert names_of(one) == [["cat"], ["dog", "hound"]]
        assert templates_of(one) == ("a photo of a {}, a type of pet.",)
    assert templates_of(open_labelled(pets.rename(tmp_path / "mine"))) == SIMPLE_TEMPLATES  # templates is None there
    assert isinstance(SceneTask("colour", 2, 0, 16), PromptedSource) and not isinstance(plain, PromptedSource)


def test_prompts_in_order() -> None:
    assert fill_templates([["crane bird", "crane"], ["ox"]], ("a {}.", "the {}.", "{}")) == [
        ["a crane bird.", "the crane bird.", "crane bird", "a crane.", "the crane.", "crane"],
        ["a ox.", "the ox.", "ox"],
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
    for encoding in ("cp1252", "utf-16"):  # as Windows' editors write it
        file.write_text("das Foto einer schönen {}.\nein altes Bild für {}", encoding=encoding)
        assert resolve_templates(str(file)) == ("das Foto einer schönen {}.", "ein altes Bild für {}")


def test_templates_that_cannot_be(tmp_path: Path) -> None:
    file, latin = tmp_path / "templates.txt", tmp_path / "latin.txt"
    for text, message in (
        ("a {}.\n\nthe dog.\n", "FILE, line 3: 'the dog.' lacks {} for the class name; write e.g."),
        ("a { }.\n", "FILE, line 1: 'a { }.' lacks {}"),
        ("", "FILE holds no template; write one a line"),
        ("\n  \n", "FILE holds no template"),
        ("a {}.\n\nthe {}.\n a {}. \n", "FILE, line 4: 'a {}.' stands in line 1 already"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message.replace("FILE", str(file)))) as caught:
            resolve_templates(str(file))
        assert "\n" not in str(caught.value)
    latin.write_bytes(b"\x00\xff\x81 {}\n")
    given: list[tuple[str | list[str], str]] = [
        (str(tmp_path / "none.txt"), r"none\.txt'.*no such file, and not a template.*cifar10"),
        (str(tmp_path), "no such file"),
        (["a {}", "b"], "template 2: 'b' lacks"),
        (["a {}", "b {}", "a {}"], r"template 3: 'a \{\}' stands in template 1 already"),
        ([], "empty"),
        (str(latin), r"latin\.txt is not text in an encoding that can be told"),
    ]
    for templates, message in given:
        with pytest.raises(FileNotFoundError if "no such" in message else ValueError, match=message):
            resolve_templates(templates)


def test_classes_that_cannot_be_told_apart() -> None:
    def both(*classes: str, cut: int = 77, templates: list[str] | None = None) -> None:
        source = FakeLabelled(1, classes)
        check_classes("t", source)
        check_prompts("t", source, templates, Tokenizer(cut))

    both("a", "b")
    both("big cat", "big-cat", "bigcat", "big cats")
    long = "a very long name of something that goes on and on "
    both(long + "one", long + "two")
    for classes, message in (
        (["a"], r"t: .* at least two classes, got \['a'\]"),
        (["b", "a", "b"], "t: the classes 'b' and 'b' are both called 'b', and prompts cannot tell those apart"),
        (["cat", "dog", "Cat"], "'cat' and 'Cat' are both called 'Cat'"),
        (["big  cat", "big cat"], "'big  cat' and 'big cat' are both called"),
        (["cat", "cat "], "'cat' and 'cat ' are both called"),
        (["cat\u00a0", "\tcat"], "are both called"),
        (["cats &amp; dogs", "cats & dogs"], "have prompts of the same tokens .'a photo of a cats &amp; dogs.'"),
        (["caf\u00e9", "cafe\u0301"], "have prompts of the same tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            both(*classes)
    with pytest.raises(ValueError, match="have prompts of the same tokens"):
        both(long + "one", long + "two", cut=12)
    with pytest.raises(ValueError, match="have prompts of the same tokens"):
        both("cats &amp; dogs", "cats & dogs", templates=["a {}", "the {}"])
    for task in ("shape", "colour", "unseen_all", "count", "relation"):
        scenes = SceneTask(task, 2, 0, 16)
        check_classes(task, scenes)
        check_prompts(task, scenes, None, Tokenizer())


def test_further_names_are_no_other_classes_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\tcrane | big  Bird\nb\tstork | Big bird\n")
    folders = write_classes(tmp_path / "set", a=[1], b=[2])
    with pytest.raises(ValueError, match="line 2: the name 'Big bird' stands in line 1 already"):
        open_labelled(folders, classnames_file=names)
    names.write_text("a\tcrane | x-ray\nb\tstork | heron\n")
    source = open_labelled(folders, classnames_file=names)
    source.names[1].append("X-Ray")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the classes 'a' and 'b' are both called 'X-Ray'"):
        check_classes("t", source)


def test_labels_that_differ_in_case_alone_are_said_for_the_probe_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        ("file_name", "label"),
        *((f"{n}.png", label) for n, label in enumerate(("cat", "Cat", "dog", "big  cat", "big cat"))),
    ]
    for n in range(5):
        write_image(tmp_path / f"{n}.png", n)
    source = open_labelled(write_csv(tmp_path / "labels.csv", rows))
    alike = "differ in case or white space alone, is it one? 'big  cat' and 'big cat'; 'Cat' and 'cat'"
    assert alike in caplog.text
    with pytest.raises(ValueError, match="'big  cat' and 'big cat' are both called"):
        check_classes("t", source)
