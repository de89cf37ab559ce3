"""The configuration: what is refused, with what words, and what a saved file gives back."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from miniclip.config import (
    SECTIONS,
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    EvalTask,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    load_config,
    load_config_file,
    save_config,
)
from miniclip.config.loss import OPTIONS

ROOT = Path(__file__).parents[1]
GOOD = """
model: {preset: tiny-vit}
data: {source: shapes, batch_size: 64}
optim: {betas: [0.8, 0.9], lr: 1e-3}
train: {max_steps: 5}
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


def saved(config: Config, folder: Path) -> Config:
    """As it comes back from a file."""
    save_config(config, folder / "saved.yaml")
    return load_config_file(folder / "saved.yaml")


def test_file_then_command_line(good: str, tmp_path: Path) -> None:
    words = "--data.batch_size 128 --optim.lr 5e-4 --run.dir x --train.max_steps null --train.epochs 2.5 "
    words += "--data.caption_column [a,b] --model.image_layers [1,2,3,4] --data.source ünï:code"
    config = load_config(["--config", good, *words.split()])
    assert config == whole(
        model=ModelConfig("tiny-vit", image_layers=(1, 2, 3, 4)),
        data=DataConfig("ünï:code", batch_size=128, caption_column=["a", "b"]),
        optim=OptimConfig(lr=5e-4, betas=(0.8, 0.9)),
        train=TrainConfig(epochs=2.5),
        run=RunConfig(dir="x"),
    )
    assert saved(config, tmp_path) == config
    assert load_config(["--config", good, "--data.caption_column", "text"]).data.caption_column == "text"
    with pytest.raises(FrozenInstanceError):
        config.data.batch_size = 3  # type: ignore[misc]


REFUSED = """
--train.max_stepz 3 -> train.max_stepz; did you mean train.max_steps
--optim.learning_rate 1 -> optim.learning_rate; did you mean optim.lr?
--nonsense.key 1 -> nonsense.key | sections: run, model, data
--train.max_steps five -> train.max_steps=five is not a whole number
--train.precision fp8 -> train.precision | bf16
--train.epochs 3 -> train.max_steps | train.epochs | null
--train.max_steps 0 -> train.max_steps=0 | at least 1
--train.epochs .inf --train.max_steps null -> train.epochs=inf
--data.batch_size 1 -> data.batch_size=1 | at least 2 pairs
--data.flip 1.5 -> data.flip=1.5 | [0, 1]
--data.crop_scale [0.9,0.5] -> data.crop_scale | smallest
--data.captions_per_image 0 -> data.captions_per_image=0 | at least 1
--data.weights rare -> data.weights | inverse
--data.weights inverse -> data.weights=inverse | data.weight_column=None | set both or neither
--data.weight_column kind -> data.weights=none | data.weight_column=kind | set both or neither
--data.weights_for sampler -> data.weights_for=sampler needs weights
--data.streaming true -> data.streaming has no use for the built-in scenes
--optim.lr 0 -> optim.lr=0 | above 0
--optim.betas [0.9,1.0] -> optim.betas | [0, 1)
--optim.schedule exponential --optim.final_lr 0 -> optim.final_lr=0 | exponential
--loss.name sigmoid --loss.smoothing 0.1 -> loss.smoothing | sigmoid
--loss.name triplet -> loss.name | triplet | hinge
--loss.positives image -> loss.positives | identity
--loss.text_to_text 0.5 -> loss.text_to_text=0.5 pairs an image's captions; set data.captions_per_image
--loss.text_to_text -1 --data.captions_per_image 2 -> loss.text_to_text=-1.0 must be 0 or more
--loss.soft_scale 10 -> loss.soft_scale | loss.name=softmax
--loss.name soft --data.captions_per_image 2 -> use data.captions_per_image=1, or loss.soft_share=0
--run.resume true --run.overwrite true -> run.resume | run.overwrite
--run.seed -1 -> run.seed=-1
--model.logit_bias_init balance -> model.logit_bias_init | balance | balanced
--model.logit_scale_init 5 -> model.logit_scale_init=5 | 4.605
--model.context_length 2 -> model.context_length=2
--log.project ../elsewhere -> log.project='../elsewhere'
--log.project= -> log.project=''
--eval.every -1 -> eval.every=-1 | 0 or more
--eval.best shape/top1 -> eval.best=shape/top1 | eval.every | 100
--config /no/such/file.yaml -> /no/such/file.yaml
--loss.name focal --loss.focal_alpha 0.5 -> focal_form=sigmoid alone
--loss.name hinge --loss.hardest_warmup 5 -> needs loss.hardest
--loss.name soft --loss.soft_share 0 --loss.soft_scale 5 -> needs a loss.soft_share above 0
--loss.name softmax --model.logit_bias_init -3 -> logit_bias_init=-3.0 has no meaning for loss.name=softmax
--loss.name focal --model.logit_bias_init -3 -> logit_bias_init=-3.0 has no meaning for loss.name=focal
--model.logit_bias_init .nan -> model.logit_bias_init=nan must be finite
--model.logit_bias_init .inf -> model.logit_bias_init=inf must be finite
--config shape -> --config shape: neither a file nor one of | flickr8k, | ; did you mean shapes?
--config /no/such/shapes.yaml -> /no/such/shapes.yaml does not exist
--config -> --config lacks its value
--data.batch_size -> --data.batch_size lacks its value
--batch_size 9 -> unknown key batch_size; did you mean data.batch_size or
--data.batch-size 9 -> did you mean data.batch_size?
--lr 9 -> did you mean optim.lr?
--data.epochs 9 -> did you mean train.epochs?
--checkpoint_evry=9 -> did you mean run.checkpoint_every?
--confg x -> unknown key confg; did you mean config?
--zzzz 9 -> unknown key zzzz (sections: run, model
-data.batch_size 9 -> write --data.batch_size
data.batch_size=9 -> write --data.batch_size=9
shapes -> shapes stands alone; write --config shapes
--data photos/ -> --data.source photos/
--model=tiny-vit -> --model.preset tiny-vit
--data.batch_size abc -> data.batch_size=abc is not a whole number
--data.batch_size=2.5 -> data.batch_size=2.5 is not a whole number
--data.batch_size null -> data.batch_size=null is not a whole number
--optim.lr high -> optim.lr=high is not a number
--data.cache maybe -> data.cache=maybe is not true or false
--loss.name sigmod -> not one of softmax, sigmoid, focal, | ; did you mean sigmoid?
--model.image_layers x -> model.image_layers=x is not a whole number or a list of whole numbers such as [1, 2] or null
--optim.betas [a,0.9] -> optim.betas=[a,0.9] is not 2 numbers such as [0.5, 0.5]
--data.mixing 0.5 -> data.mixing=0.5 is not a list of numbers
--eval.tasks [{kind:probe,data:x},{kind:a,data:x,kind:b}] -> --eval.tasks | 1.kind stands in line 1 already"""


def test_refused(good: str) -> None:
    for case in REFUSED.strip().splitlines():
        arguments, words = case.split(" -> ")
        # a space within a mapping, or it is none
        with pytest.raises(ConfigError) as error:
            load_config(["--config", good, *(word.replace(":", ": ") for word in arguments.split())])
        said = str(error.value)
        assert all(word in said for word in words.split(" | ")), (case, said)
        assert not re.search(r"Literal|Expected|Optional|Union|Parser key|<class|\n", said), said


FILES = """
data: {size: 8}|train: {max_steps: 5}|data: {batch_size: 9} -> line 3: data stands in line 1 already
train:|  max_steps: 5|  max_steps: 6 -> line 3: train.max_steps stands in line 2 already
{"train": {"max_steps": 5, "max_steps": 6}} -> line 1: train.max_steps stands in line 1 already
train.max_steps: 5|train: {max_steps: 6} -> line 2: train.max_steps stands in line 1 already
eval:|  tasks:|  - {kind: probe,|     data: x, kind: zeroshot} -> line 4: eval.tasks.0.kind stands in line 3 already
train: {max_steps: 5}|data: -> line 2: the section data is empty; indent its options
train: {max_steps: 5}|data: photos/ -> line 2: data is a section of options; write data: {source: photos/}
train: {max_steps: 5}|data:|  batch_size: -> data.batch_size has no value
train: {max_steps: 5}|data: {batch_size: many} -> data.batch_size=many is not a whole number
train: {max_steps: 5}|run: {dir: 2024} -> run.dir=2024 is not text; put numbers in quotes
train: {max_steps: 5}|data: {source: [a, 1]} -> data.source=['a', 1] is not text or a list of texts
train: {max_steps: 5}|Data: {size: 8} -> unknown key Data; did you mean data?
train: {max_steps: 5}|data: {batch-size: 8} -> unknown key data.batch-size; did you mean data.batch_size?
train: {max_steps: 5}|batch_size: 8 -> unknown key batch_size; did you mean data.batch_size
train: {max_steps: 5}|data:|\tsize: 8 -> line 3: a tab indents it
train: {max_steps: 5}|---|data: {size: 8} -> line 2: a second document begins here
train: {max_steps: 5 -> line 2: did not find expected
train: &t {max_steps: *t} -> train.max_steps
train: {1: 5} -> unknown key train.1
- train -> is no mapping of sections
# nothing -> holds no option
foo: -> unknown key foo
{foo, bar} -> unknown key foo
foo:|data: -> line 2: the section data is empty
train:|  max_steps:5 -> line 1: train is a section of options; write max_steps: 5
train: {max_steps: 5}|data: {source: shards/{000..031}.tar} -> line 2: did not find | wants quotes
train: {max_steps: 5}|data:|  source: *.tar -> line 3: did not find | wants quotes
train: {max_steps: 0100} -> line 1: train.max_steps: 0100 is an octal number
train: {max_steps: 1:30} -> line 1: train.max_steps: 1:30 is"""


def test_a_file_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    for case in FILES.strip().splitlines():
        text, words = case.split(" -> ")
        path.write_text(text.replace("|", "\n") + "\n")
        with pytest.raises(ConfigError) as error:
            load_config(["--config", str(path)])
        said = str(error.value)
        assert all(word in said for word in words.split(" | ")) and (str(path) in said or "has no value" in said), (
            case,
            said,
        )
        assert not re.search(r"Literal|Expected|Parser key|<class|\n", said), said


def test_anchors_and_merged_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("train: {max_steps: &n 5}\ndata: &d {batch_size: *n, size: 9}\neval: {<<: *d, size: 7}\nrun: {}\n")
    config = load_config_file(path)
    assert (config.data.batch_size, config.eval.batch_size, config.eval.size) == (5, 5, 7)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path, text = tmp_path / "f.yaml", "train: {max_steps: 5}\ndata: {source: schön}\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert load_config_file(path).data.source == "schön"
    path.write_bytes(text.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"f\.yaml, line 2: byte 40 is not UTF-8; save the file as UTF-8$"):
        load_config_file(path)
    for data in (text.encode("utf-16-le"), b"train: {max_steps: 5}\n\0\n"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"f\.yaml, line \d: (byte 80 is not UTF-8|control characters)"):
            load_config_file(path)
    path.write_text("train: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(ConfigError, match=r"f\.yaml, line 1: maximum recursion depth"):
        load_config_file(path)
    tens = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12))
    path.write_text(f"x0: &x0 [{'1, ' * 9}1]\n{tens}\n")
    with pytest.raises(ConfigError, match=r"f\.yaml, line 5: more than 100,000 values, by its aliases"):
        load_config_file(path)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); name a YAML file$"):
        load_config_file(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean .*/config\.yaml\?$"):  # of a run
        load_config_file(tmp_path)
    with pytest.raises(ConfigError, match=r"g\.yaml does not exist; did you mean f\.yaml\?"):
        load_config_file(tmp_path / "g.yaml")


def test_the_command_line_wins_wherever_the_file_stands(good: str, tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("data: {batch_size: 32}\ntrain: {max_steps: 7}\n")
    for words, size, steps in (
        (["--data.batch_size", "128", "--config", good], 128, 5),
        (["--data.batch_size=128", f"--config={good}"], 128, 5),
        (["--config", good, "--config", str(more)], 32, 7),  # of two files the later one
        (["--config", str(more), "--data.batch_size=128", "--config", good], 128, 5),
        (["--data.batch_size", "128", "--data.batch_size", "16", "--config", good], 16, 5),
    ):
        config = load_config(words)
        assert (config.data.batch_size, config.train.max_steps) == (size, steps)
        assert config.model.preset == (None if words[-1] == str(more) and words[0] != "--config" else "tiny-vit")


def test_the_home_of_the_user_is_spelt_out(good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "f.yaml").write_text(
        "train: {max_steps: 5}\nrun: {dir: ~/runs/a}\n"
        "data: {source: [~/photos, 'x/~/y'], mixing: [0.5, 0.5], cache_dir: ~/c}\n"
        "eval: {tasks: [~/folder, {kind: zeroshot, data: ~/z, classnames: ~/n.txt, templates: ['a ~ {}.']}]}\n"
    )
    config = load_config(["--config=~/f.yaml"])
    assert config.run.dir == f"{tmp_path}/runs/a"
    assert config.data.source == [f"{tmp_path}/photos", "x/~/y"] and config.data.cache_dir == f"{tmp_path}/c"
    assert config.eval.tasks is not None and config.eval.tasks[0] == f"{tmp_path}/folder"
    expected = {"data": f"{tmp_path}/z", "classnames": f"{tmp_path}/n.txt", "templates": ["a ~ {}."]}
    assert config.eval.tasks[1] == {"kind": "zeroshot", **expected}
    assert load_config(["--config", good, "--run.dir=~/b"]).run.dir == f"{tmp_path}/b"


# ---- losses and weights

LOSS_NAMES = get_args(get_type_hints(LossConfig)["name"])
NAN, INF = math.nan, math.inf
# every option that belongs to one loss: a value besides the default, what is allowed at the edges, what is refused
OWN: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "smoothing": (0.1, [0.0, 0.999], [-0.1, 1.0, NAN]),
    "image_to_text": (0.7, [0.0, 1.0], [-0.1, 1.1, NAN]),
    "focal_form": ("sigmoid", [], []),
    "focal_gamma": (1.5, [0.0, 50.0], [-0.1, INF, NAN]),
    "focal_alpha": (None, [0.0, 1.0], [-0.1, 1.1, NAN]),
    "margin": (0.3, [0.001, 1.99], [0.0, -0.2, 2.0, NAN]),
    "hardest": (0.5, [0.0, 1.0], [-0.1, 1.1, NAN]),
    "hardest_warmup": (100, [0, 1000], [-1]),
    "soft_share": (0.5, [0.0, 1.0], [-0.1, 1.1, NAN]),
    "soft_scale": (10.0, [0.001, 1e6], [0.0, -1.0, INF, NAN]),
    "sinkhorn_iterations": (3, [0, 100], [-1]),
}
# options that do nothing without another one, and that one
NEEDS: dict[str, dict[str, Any]] = {"focal_alpha": {"focal_form": "sigmoid"}, "hardest_warmup": {"hardest": 0.5}}


def test_every_loss_is_chosen_by_name_and_takes_its_options(good: str, tmp_path: Path) -> None:
    import torch

    from miniclip.losses import LOSSES

    assert tuple(LOSSES) == LOSS_NAMES
    allowed = load_config(["--config", good, "--data.captions_per_image", "2", "--loss.text_to_text", "0.5"])
    assert allowed.loss.text_to_text == 0.5
    general = ["name", "positives", "text_to_text"]
    assert [*general, *OWN] == [*general, *OPTIONS] == [f.name for f in fields(LossConfig)]
    for name in LOSS_NAMES:
        for own in ({}, {key: values[0] for key, values in OWN.items() if OPTIONS[key].loss == name}):
            words = [w for key, v in own.items() for w in (f"--loss.{key}", "null" if v is None else str(v))]
            config = load_config(["--config", good, "--loss.name", name, *words])
            assert config.loss == LossConfig(name=name, **own)
            assert saved(config, tmp_path) == config
            assert LOSSES[name](torch.tensor([[2.0, -1.0], [0.5, 1.0]]), **config.loss.settings()).isfinite()


def test_an_option_belongs_to_one_loss_and_has_a_range() -> None:
    for option, (other, allowed, refused) in OWN.items():
        given: dict[str, Any] = {"name": OPTIONS[option].loss, **NEEDS.get(option, {})}
        for value in (other, *allowed):
            assert getattr(LossConfig(**given, **{option: value}), option) == value
        for value in refused:
            with pytest.raises(ConfigError, match=re.escape(f"loss.{option}={value}") + " must"):
                LossConfig(**given, **{option: value})
        for name in set(LOSS_NAMES) - {OPTIONS[option].loss}:
            with pytest.raises(ConfigError, match=rf"^loss\.{option} has no meaning for loss\.name={name}$"):
                LossConfig(name=name, **{option: other})


def test_the_share_of_the_hardest_rises() -> None:
    shares = [LossConfig("hinge", hardest=0.8, hardest_warmup=4).settings(step)["hardest"] for step in range(6)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert LossConfig("hinge", hardest=0.8).settings(0) == {"margin": 0.2, "hardest": 0.8}


def whole(**sections: Any) -> Config:
    rest = {name: section() for name, section in SECTIONS.items() if name != "train"}
    return Config(**rest | {"train": TrainConfig(max_steps=5)} | sections)


def test_soft_targets_take_one_caption_an_image() -> None:
    for name in LOSS_NAMES:
        for loss, captions in ((LossConfig(name), 1 if name == "soft" else 2), (LossConfig("soft", soft_share=0.0), 2)):
            assert whole(loss=loss, data=DataConfig(captions_per_image=captions)).loss == loss


def test_weights(good: str, tmp_path: Path) -> None:
    """A sampler, which draws an image several times, asks for identities."""
    for kind in ("column", "inverse", "log"):
        words = f"--data.weights {kind} --data.weight_column kind --data.weights_for sampler"
        config = load_config(["--config", good, *words.split()])
        sampler = DataConfig(weights=kind, weight_column="kind", weights_for="sampler")  # type: ignore[arg-type]
        assert config.data == replace(sampler, batch_size=64)
        assert saved(config, tmp_path) == config
        for positives in ("diagonal", "text"):
            loss = LossConfig(positives=positives)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=rf"loss\.positives={positives} .*use loss\.positives=identity$"):
                whole(data=sampler, loss=loss)
            assert whole(data=replace(sampler, weights_for="loss"), loss=loss).loss.positives == positives


def test_start_of_scale_and_bias(tmp_path: Path) -> None:
    sigmoid, ten = LossConfig("sigmoid"), math.log(10)
    for loss, scale, bias, expected in (
        (LossConfig("softmax"), None, None, (None, None)),  # the model's own, ln(1/0.07), and no bias
        (LossConfig("focal"), None, None, (None, None)),
        (LossConfig("softmax"), 1.0, None, (1.0, None)),
        (sigmoid, None, None, (ten, -10.0)),
        (LossConfig("focal", focal_form="sigmoid"), None, None, (ten, -10.0)),
        (sigmoid, 0.0, 0.0, (0.0, 0.0)),  # what is given is kept, 0 as well
        # 64 x 64 entries, each as likely a positive as chance has it: 64 are expected
        (sigmoid, None, "balanced", (ten, pytest.approx(-math.log(63)))),
        (sigmoid, 2.0, "balanced", (2.0, pytest.approx(-math.log(63)))),
    ):
        model = ModelConfig("tiny-vit", logit_scale_init=scale, logit_bias_init=bias)  # type: ignore[arg-type]
        config = whole(loss=loss, model=model, data=DataConfig(batch_size=64))
        started = config.with_start()
        assert (started.model.logit_scale_init, started.model.logit_bias_init) == expected
        assert replace(started, model=model) == config and started.with_start() == started
        unset = {"logit_scale_init": None, "logit_bias_init": None}
        assert replace(started.model, **unset) == replace(model, **unset)
        assert saved(config, tmp_path) == config and saved(started, tmp_path) == started


def test_balanced_is_no_start_of_a_model_by_itself() -> None:
    from miniclip.models import resolve

    with pytest.raises(ConfigError, match=r"^model\.logit_bias_init=balanced depends on the batch .* write the number"):
        resolve(ModelConfig("tiny-vit", logit_bias_init="balanced"))


# ---- tasks on other data

FULL = {
    "zeroshot": {"task": "z", "split": "val", "name": "n", "classnames": "c.txt", "templates": ["a {}.", "the {}."]}
    | {"label_column": "l", "image_column": "i", "classnames_by": "order"},
    "retrieval": {"task": "r", "split": "val", "name": "n", "image_column": "i", "caption_column": ["a", "b"]},
    "probe": {"task": "p", "name": "n", "classnames": "c.txt", "label_column": "l", "image_column": "i"}
    | {"classnames_by": "name"},
}


def test_every_option_of_a_task_round_trips(good: str, tmp_path: Path) -> None:
    """From YAML, and from the file that a run saves; the values stay what they were, among plain names of tasks."""
    for kind, given in FULL.items():
        tasks = ["shape", {"kind": kind, "data": "ünï: folder", **given}, "some/folder"]
        path = tmp_path / "tasks.yaml"
        path.write_text(yaml.safe_dump({"train": {"max_steps": 5}, "eval": {"tasks": tasks, "every": 2}}))
        config = load_config(["--config", str(path)])
        assert config.eval.tasks == tasks
        assert config.eval.own_tasks == ["shape", EvalTask(kind, "ünï: folder", **given), "some/folder"]
        assert saved(config, tmp_path) == config
        assert load_config(["--config", good, "--eval.tasks", yaml.safe_dump(tasks)]).eval.tasks == tasks
    assert load_config(["--config", good, "--eval.tasks", "null"]).eval.own_tasks is None


def test_every_option_of_a_task_is_tried_here() -> None:
    """An option that one of the kinds does not take is refused there; together they take all."""
    assert {f.name for f in fields(EvalTask)} == {"kind", "data"}.union(*FULL.values())
    for kind, given in FULL.items():
        for option in set().union(*FULL.values()) - set(given):
            with pytest.raises(ConfigError, match=f"^eval.tasks: {option} has no meaning for {kind} on here$"):
                EvalConfig(tasks=[{"kind": kind, "data": "here", option: "x"}])


BAD_TASKS = """
{kind: zeroshot, data: x, template: a} -> unknown key template of a task; did you mean templates?
{kind: zeroshot, data: x, class_names: y} -> did you mean classnames?
{kind: zeroshot, data: x, qqq: y} -> unknown key qqq of a task; use kind, data, task, split
{kind: probe} -> lacks data
{kind: probe, data: ""} -> lacks data
{data: x} -> lacks kind
{} -> lacks kind and data
{kind: zero-shot, data: x} -> kind='zero-shot' must be one of zeroshot, retrieval, probe
{kind: [probe], data: x} -> kind=['probe'] must be one of
{kind: retrieval, data: x, templates: simple} -> templates has no meaning for retrieval on x
{kind: probe, data: x, templates: simple, split: test} -> split, templates has no meaning
{kind: zeroshot, data: x, caption_column: c} -> caption_column has no meaning for zeroshot
{kind: probe, data: 5} -> data=5 of a task must be text
{kind: probe, data: [x, y]} -> of a task must be text
{kind: zeroshot, data: x, split: 2024} -> split=2024 of a task must be text
{kind: zeroshot, data: x, templates: 3} -> templates=3 of a task must be text or a list
{kind: zeroshot, data: x, classnames_by: number} -> classnames_by='number' must be name or order
{kind: zeroshot, data: x, task: a/b} -> task='a/b' may not hold a slash"""


def test_a_file_is_checked(tmp_path: Path) -> None:
    cases = [case.split(" -> ") for case in BAD_TASKS.strip().splitlines()]
    cases = [[f"train: {{max_steps: 5}}\neval: {{tasks: [{task}]}}\n", words] for task, words in cases]
    cases += [["train: {max_steps: 5}\ndata: {batchsize: 8}\n", "data.batchsize; did you mean data.batch_size?"]]
    cases += [["trian: {max_steps: 5}\n", "did you mean train?"]]
    for text, words in cases:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=re.escape(words)):
            load_config(["--config", str(tmp_path / "bad.yaml")])


def test_two_tasks_of_one_name() -> None:
    for one, other in (
        ("shape", {"kind": "probe", "data": "x", "task": "shape"}),
        ({"kind": "probe", "data": "a/flowers"}, {"kind": "zeroshot", "data": "b/flowers"}),
        ("retrieval", {"kind": "retrieval", "data": "retrieval"}),
    ):
        with pytest.raises(ConfigError, match=r"two tasks are called .*; give one of them another name by task"):
            EvalConfig(tasks=[one, other])
        assert EvalConfig(tasks=[one, {**other, "task": "other"}]).own_tasks  # type: ignore[dict-item]
    assert EvalTask("probe", "x", task="mine").label == "mine"
    for data in ("flowers", "/data/flowers/", "nelorth/flowers"):  # else it is called after its data
        assert EvalTask("probe", data).label == "flowers"


def test_every_field_is_documented() -> None:
    for section in SECTIONS.values():
        for f in fields(section):
            assert f"\n        {f.name}: " in (section.__doc__ or ""), f"{section.__name__}.{f.name}"


def test_shipped_configs_load_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miniclip.models import resolve

    paths = sorted(ROOT.glob("configs/*.yaml"))
    monkeypatch.chdir(tmp_path)  # away from the clone
    for path in paths:
        config = load_config_file(path)
        assert config == load_config(["--config", path.stem]) == load_config([f"--config={path.stem}"])
        if not config.model.image:  # which says more of the model when it is there
            assert resolve(config.with_start().model).embed_dim
        header = path.read_text().split("\n\n")[0].splitlines()
        assert all(line.startswith("#") for line in header), "a config starts with its command and its result"
        assert any("train.py --config" in line for line in header)
    assert len(paths) >= 4
    (tmp_path / "shapes").write_text(GOOD)  # a file wins over a name
    assert load_config(["--config", "shapes"]).data.batch_size == 64


def test_help_and_import_do_not_load_torch() -> None:
    """What makes `import miniclip` and `train.py --help` quick, without a stopwatch."""
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'open_clip', 'matplotlib', 'sklearn'}"
    code = f"import sys, miniclip, miniclip.config; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from miniclip.cli.train import train_main\n"
        "try: train_main()\n"
        f"except SystemExit as e: assert e.code == 0\nfound = {heavy} & set(sys.modules); assert not found, found"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "--data.batch_size" in shown
    assert "pairs a step over all processes" in shown
