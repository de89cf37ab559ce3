"""What learns: locked parts stay as they are to the bit, and each group has its own rate, as worked out by hand."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from support.closeness import by_parameter
from support.group import together
from support.hf_models import bert_folder
from test_fsdp import sharded
from test_towers import timm_folder
from test_training import TINY
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import miniclip
from miniclip.cli.train import run as train
from miniclip.cli.train import train_main
from miniclip.config import ConfigError, ModelConfig, OptimConfig, load_config
from miniclip.models import DualEncoder, create_model, lora
from miniclip.models.cut import WHOLE
from miniclip.models.external.own_tower import OwnImage, OwnText
from miniclip.models.foreign import ForeignImage
from miniclip.models.joined import JoinedEncoder
from miniclip.models.saved import assemble, with_scalars
from miniclip.models.start import open_start
from miniclip.models.text import TextTower
from miniclip.training.learning import check_learning, lock_, parameter_groups, part_of, what_learns
from miniclip.training.optim import build_optimizer

DEEP = {**TINY, "model": {**TINY["model"], "image_layers": 3, "text_layers": 3}}
RESNET = {"image_encoder": "resnet", "patch_size": None, "image_width": 8, "image_layers": [1, 1, 1, 1]}
RESNET |= {"image_heads": 4}


def options_of(folder: Path, *options: str, resnet: bool = False) -> list[str]:
    values = {**DEEP, "model": {**DEEP["model"], **(RESNET if resnet else {})}}
    file = folder / f"deep-{resnet}.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", str(file), "--run.dir", str(folder / "run"), "--eval.tasks", "[]", *options]


def model_of(values: dict[str, Any] = DEEP, **options: Any) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(ModelConfig(**{**values["model"], "vocab_size": 60, **options}))


def joined(own: DualEncoder) -> JoinedEncoder:
    """Both towers of a model as if they came from elsewhere."""
    text = TextTower(own.config)
    kept = {name: getattr(own.config, name) for name in ("embed_dim", "image_size", "context_length")}
    config = ModelConfig(image="elsewhere", text="elsewhere", **kept)
    return JoinedEncoder(config, OwnImage(own.visual, own.config), OwnText(text, own.config))


# whether a ResNet; options; beginnings of the names of what stays, and of what among it does not
LOCKS = [
    (False, "--model.lock_image true", "visual.", ()),
    (True, "--model.lock_image true", "visual.", ()),
    (
        False,
        "--model.lock_image 1 --train.micro_batch_size 4",
        "visual.",
        ("visual.transformer.resblocks.2", "visual.ln_post", "visual.proj"),
    ),
    (True, "--model.lock_image 2", "visual.", ("visual.layer3", "visual.layer4", "visual.attnpool")),
    (False, "--model.lock_text true", "", ("visual.", "logit_scale")),
    (
        True,
        "--model.lock_text 1 --model.lock_image true --model.activation_checkpointing true",
        "",
        ("transformer.resblocks.2", "ln_final", "text_projection", "logit_scale"),
    ),
]


@pytest.mark.parametrize(("resnet", "options", "locked", "but"), LOCKS)
def test_locked_means_locked(resnet: bool, options: str, locked: str, but: tuple[str, ...], tmp_path: Path) -> None:
    """Bit for bit, statistics included, while all else moves."""
    arguments = options_of(tmp_path, *options.split(), "--optim.lr", "1e-2", resnet=resnet)
    config = load_config(arguments)
    torch.manual_seed(config.run.seed)
    before = open_start(config).make().state_dict()
    train(config)
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")

    def still(name: str) -> bool:
        return name.startswith(locked) and not name.startswith(but)

    for name, value in after.items():
        assert torch.equal(value, before[name]) == still(name), name
    state = torch.load(tmp_path / "run/checkpoints/step_00000006/optimizer.bin", weights_only=True)
    learning = [name for name, _ in open_start(config).make().named_parameters() if not still(name)]
    assert len(state["state"]) == len(learning)


FOREIGN = [
    (
        "test_efficientnet",
        "--model.lock_image true --model.lock_text 1 --data.augment none",
        r"textual\.model\.encoder\.layer\.2\.",
    ),
    (
        "test_efficientnet",
        "--model.lock_image 1 --model.lock_text true",
        r"visual\.model\.(blocks\.4\.|conv_head\.|bn2\.)",
    ),
    ("test_resnet", "--model.lock_image 1 --model.lock_text true", r"visual\.model\.layer4\."),
    (
        "test_vit",
        "--model.lora_image 2 --model.lora_text 2 --model.lora_targets [qkv,query]",
        r"(visual\.model\.blocks\.\d\.attn\.qkv|textual\..*\.query)\.weight",
    ),
]


@pytest.mark.parametrize(("arch", "options", "moving"), FOREIGN)
def test_towers_from_elsewhere(arch: str, options: str, moving: str, tmp_path: Path) -> None:
    """The same with towers of timm and transformers, statistics and dropout included; and a run that was stopped
    goes on to the bit where their folders are gone."""
    model = {"embed_dim": 8, "image": timm_folder(tmp_path / "image", arch), "text": bert_folder(tmp_path / "text")}
    file = tmp_path / "foreign.yaml"
    file.write_text(yaml.safe_dump({**TINY, "model": model}))
    arguments = ["--config", str(file), "--eval.tasks", "[]", "--optim.schedule", "constant", *options.split()]
    whole = load_config([*arguments, "--run.dir", str(tmp_path / "whole")])
    cut = [*arguments, "--run.dir", str(tmp_path / "cut")]
    torch.manual_seed(whole.run.seed)
    before = {name: value.clone() for name, value in open_start(whole).make().state_dict().items()}
    train(whole)
    train(load_config([*cut, "--train.max_steps", "3"]))
    for name in ("image", "text"):
        shutil.rmtree(tmp_path / name)
    train(load_config([*cut, "--run.resume", "true"]))
    after, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert before.keys() == after.keys() == resumed.keys()
    for name, value in after.items():
        learns = re.match(rf"{moving}|image_head\.|text_head\.|logit_scale", name) is not None
        assert torch.equal(value, before[name]) != learns, name
        assert torch.equal(value, resumed[name]), name


def test_what_is_locked_stays_in_evaluation_mode() -> None:
    """And what learns does not; a head on a locked tower learns."""
    model = joined(model_of({"model": {**DEEP["model"], **RESNET}}))
    lock_(model, replace(model.config, lock_image=1, lock_text=True))
    for _ in range(2):
        model.train()
        resnet: Any = model.visual.tower  # type: ignore[union-attr]
        assert not any(
            m.training for m in (resnet.bn1, resnet.conv3, resnet.layer1[0].bn1, resnet.layer3[0].downsample)
        )
        assert all(m.training for m in (model.visual, resnet.layer4[0].bn1, resnet.attnpool))
        assert not any(m.training for m in model.textual.modules())
        assert not any(m.training for m in model.eval().modules())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"image_head.linear.weight", "text_head.linear.weight", "logit_scale"} <= learning
    assert {part_of(name) for name in learning} == {"image", "heads", "scale"}


@pytest.mark.parametrize("lock", [{"lock_image": 1}, {"lock_image": True, "lock_text": 2}])
def test_gradients_are_those_of_the_whole_model(lock: dict[str, Any]) -> None:
    """And with the features that the cut asks for in place of images and captions."""
    image, text = torch.rand(4, 3, 32, 32), torch.tensor([[1, 59, 0], [2, 3, 59], [4, 59, 0], [5, 6, 59]])
    gradients: list[dict[str, Tensor]] = []
    for locked in (False, True):
        model = model_of()
        if locked:
            lock_(model, replace(model.config, **lock))
        images, texts, scale, _ = model.train()(image, text)
        torch.nn.functional.cross_entropy(scale * images @ texts.T, torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    whole, part = gradients
    assert part and part.keys() < whole.keys()
    for name, gradient in part.items():
        torch.testing.assert_close(gradient, whole[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model.lock_image 3", "model.lock_image=3: the image tower has 3 blocks; use at most 2"),
        ("--model.lock_text 7", "model.lock_text=7: the text tower has 3 blocks"),
        ("--model.lock_image true --model.lock_text true", "leave nothing to learn"),
        ("--model.lock_image 1 --train.patch_dropout 0.5", "train.patch_dropout=0.5 leaves out patches"),
        ("--model.lock_image 1 --model.lora_image 4", "exclude each other"),
        (
            "--model.lora_text 4 --model.lora_targets [query]",
            "are called c_fc, c_proj, in_proj_weight, out_proj",
        ),
        ("--model.lora_targets [c_fc]", "model.lora_targets is for model.lora_image and lora_text"),
    ],
)
def test_refused_before_the_data(options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(options_of(tmp_path, *options.split(), "--data.source", "/no/such/folder")) == 2
    said = capsys.readouterr().err
    assert words in said and "/no/such" not in said


def test_blocks_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(options_of(tmp_path, "--model.lock_image", "1"))
    start = open_start(config)
    monkeypatch.setattr(type(start.make().visual), "blocks", [])
    with pytest.raises(ConfigError, match=r"model.lock_image=1: the blocks of this image tower are not known"):
        check_learning(config, start)
    config = load_config(options_of(tmp_path, "--optim.layer_decay", "0.5"))
    with pytest.raises(ConfigError, match=r"optim.layer_decay=0.5: the blocks of the image tower are not known"):
        check_learning(config, start)


def factors(model: DualEncoder, optim: OptimConfig) -> dict[str, float]:
    names = {p: name for name, p in model.named_parameters()}
    groups = parameter_groups(model, optim)
    found = {names[p]: group["factor"] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    assert len({(group["factor"], group["weight_decay"]) for group in groups}) == len(groups)
    return found


def test_rates_by_hand() -> None:
    """Three blocks: the last has the decay once, the stem four times; towers, what joins them and the scale apart."""
    model = model_of()
    optim = OptimConfig(lr=1e-2, lr_image=1e-3, lr_text=5e-3, lr_scale=2e-2, layer_decay=0.5)
    found = factors(model, optim)
    assert found.keys() == dict(model.named_parameters()).keys()
    expected = {
        "visual.conv1.weight": 0.1 / 16,
        "visual.class_embedding": 0.1 / 16,
        "visual.positional_embedding": 0.1 / 16,
        "visual.ln_pre.bias": 0.1 / 16,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 0.1 / 8,
        "visual.transformer.resblocks.2.mlp.c_fc.bias": 0.1 / 2,
        "visual.ln_post.weight": 0.1 / 2,
        "visual.proj": 1,
        "token_embedding.weight": 0.5 / 16,
        "positional_embedding": 0.5 / 16,
        "transformer.resblocks.1.ln_2.weight": 0.5 / 4,
        "ln_final.bias": 0.5 / 2,
        "text_projection": 1,
        "logit_scale": 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    other = joined(model)
    assert factors(other, optim)["image_head.linear.weight"] == 1
    lock_(model, replace(model.config, lock_image=1, lock_text=True))
    assert {part_of(name) for name in factors(model, optim)} == {"image", "heads", "scale"}
    assert set(factors(model, optim).values()) == {0.05, 1, 2}


def test_the_table_by_hand() -> None:
    model, optim = model_of(), OptimConfig(lr=1e-2, lr_image=1e-3, layer_decay=0.5)
    lock_(model, replace(model.config, lock_image=1, lora_text=2, lora_targets=["c_fc"]))
    block = 12 * 16**2 + 13 * 16  # of width 16: matrices, biases and norms
    image = 3 * 16 * 16**2 + 16 + 5 * 16 + 32 + 3 * block + 32  # patches, class token, positions, norm, blocks, norm
    text = 60 * 16 + 77 * 16 + 3 * block + 32
    updates = 3 * 2 * (16 + 64)
    assert what_learns(model, parameter_groups(model, optim), optim.lr) == [
        ("image tower", f"{image:,}", f"{block + 32:,}", "0.0005", "1 of 3"),
        ("text tower", f"{text + updates:,}", f"{updates:,}", "0.0013 to 0.005", "3 of 3"),
        ("heads", "256", "128", "0.01", ""),
        ("scale", "1", "1", "0.01", ""),
    ]


def test_layer_decay_is_that_of_timm() -> None:
    theirs: Any = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=5)
    names = {p: name for name, p in theirs.named_parameters()}
    scales = {
        names[p]: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.7)
        for p in group["params"]
    }
    ours = factors(model_of(), OptimConfig(layer_decay=0.7))
    for i in range(3):
        assert ours[f"visual.transformer.resblocks.{i}.mlp.c_fc.weight"] == pytest.approx(
            scales[f"blocks.{i}.mlp.fc1.weight"]
        )
    for name, other in (
        ("positional_embedding", "pos_embed"),
        ("class_embedding", "cls_token"),
        ("conv1.weight", "patch_embed.proj.weight"),
        ("ln_post.weight", "norm.weight"),
        ("proj", "head.weight"),
    ):
        assert ours[f"visual.{name}"] == pytest.approx(scales[other])


def test_a_step_moves_by_the_rate_of_its_group(tmp_path: Path) -> None:
    """Adam's first step is the rate, whatever the gradient."""
    options = ("--optim.lr_image", "1e-5", "--optim.lr_scale", "1e-2", "--optim.lr", "1e-3", "--train.max_steps", "1")
    config = load_config(options_of(tmp_path, *options, "--optim.warmup_steps", "0", "--optim.weight_decay", "0"))
    torch.manual_seed(config.run.seed)
    before = open_start(config).make().state_dict()
    train(config)
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, rate in (("visual.ln_post.bias", 1e-5), ("text_projection", 1e-3), ("logit_scale", 1e-2)):
        moved = (after[name] - before[name]).abs().max()
        assert float(moved) == pytest.approx(rate, rel=0.02), name


def test_a_resume_takes_other_rates(tmp_path: Path) -> None:
    """Its means are those of the same parameters, though the groups are others."""
    arguments = options_of(tmp_path, "--optim.schedule", "constant")
    rates = ("--optim.lr_image", "1e-4", "--optim.layer_decay", "0.5")
    train(load_config([*arguments, "--train.max_steps", "4"]))
    train(load_config([*arguments, *rates, "--run.resume", "true"]))
    state = torch.load(tmp_path / "run/checkpoints/step_00000006/optimizer.bin", weights_only=True)
    assert {float(each["step"]) for each in state["state"].values()} == {6}
    assert {group["factor"] for group in state["param_groups"]} == {
        *(0.1 * 0.5**d for d in range(1, 5)),
        *(0.5**d for d in range(5)),
    }


def test_state_of_other_groups() -> None:
    optims = OptimConfig(), OptimConfig(lr_text=1e-5, layer_decay=0.5)
    model = model_of()
    first, second = (build_optimizer(model, optim) for optim in optims)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    second.load_state_dict(first.state_dict())
    assert len(second.param_groups) > len(first.param_groups)
    for parameter in model.parameters():
        assert torch.equal(second.state[parameter]["exp_avg"], first.state[parameter]["exp_avg"])
    options = {(group["factor"], group["weight_decay"]) for group in second.param_groups}
    assert options == {(g["factor"], g["weight_decay"]) for g in parameter_groups(model, optims[1])}


def adapted(model: DualEncoder, **options: Any) -> DualEncoder:
    """With updates that are not zero any more."""
    lock_(model, replace(model.config, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("make", [model_of, lambda: joined(model_of())])
@pytest.mark.parametrize("targets", [None, ["c_fc"], ["in_proj_weight", "mlp.c_proj"]])
def test_updates_are_merged_as_peft_does_it(make: Any, targets: list[str] | None) -> None:
    model = make()
    image, text = torch.rand(3, 3, 32, 32), torch.tensor([[1, 59, 0], [2, 3, 59], [4, 59, 0]])
    first = model.eval()(image, text)
    adapted(model, lora_image=4, lora_text=2, lora_targets=targets)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    blocks = 3 * (4 if targets is None else len(targets))
    assert sum(".lora_" in name for name in learning) == 2 * 2 * blocks
    assert {part_of(name) for name in learning if ".lora_" not in name} <= {"heads", "scale"}
    assert {p.shape[0] for name, p in model.named_parameters() if name.startswith("visual") and ".lora_A" in name} == {
        4
    }
    then = model(image, text)
    alone = assemble(model.blank, with_scalars(model.state_dict()), "cpu")
    for ours, theirs, before in zip(alone(image, text)[:2], then[:2], first[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert (theirs - before).abs().max() > 1e-2
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[operator]
    kept = {name.replace(".base_layer", ""): p for name, p in model.state_dict().items() if ".lora_" not in name}
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=1e-6)


def test_layers_that_are_not_called_get_no_update() -> None:
    """As those inside of torch's own attention, whose weights it reads; and BatchNorm's statistics stay."""
    block: Any = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    class Foreign(ForeignImage):
        width = 16

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.block = nn.Conv2d(3, 16, 16, 16), nn.BatchNorm2d(16), block

        @property
        def blocks(self) -> list[nn.Module]:
            return [self.block]

        def lower(self, x: Tensor, k: int) -> Tensor:
            x = self.norm(self.stem(x)).flatten(2).mT
            return x if k == 0 else self.upper(x, 0)

        def upper(self, x: Tensor, k: int) -> Tensor:
            return x if k == WHOLE else self.block.linear2(self.block.linear1(self.block.self_attn(x, x, x)[0])).mean(1)

    own = model_of()
    fields = ("image_encoder", "image_width", "image_layers", "image_heads", "patch_size")
    config = replace(own.config, image="elsewhere", **dict.fromkeys(fields))
    model = JoinedEncoder(config, Foreign(), None)
    lock_(model, replace(model.config, lora_image=2))
    learning = [name for name, p in model.visual.named_parameters() if p.requires_grad]
    assert learning == [f"block.linear{i}.lora_{m}.default.weight" for i in (1, 2) for m in "AB"]
    model.train()
    assert model.visual.training and not model.visual.norm.training  # type: ignore[union-attr]


def test_a_run_with_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in the middle and gone on with it ends to the bit where one that went through does; what it leaves is
    merged, and so is what is read of it on its way."""
    options = [
        "--model.lora_image",
        "2",
        "--model.lora_text",
        "2",
        "--optim.lr",
        "1e-2",
        "--optim.schedule",
        "constant",
    ]
    options += ["--eval.tasks", "[retrieval]", "--eval.every", "2", "--eval.best", "retrieval/text_to_image_r10"]
    arguments = options_of(tmp_path, *options)
    train(load_config(arguments))
    cut = [*arguments, "--run.dir", str(tmp_path / "cut")]
    train(load_config([*cut, "--train.max_steps", "4"]))
    shutil.rmtree(tmp_path / "cut" / "model")
    (tmp_path / "cut" / "results.json").unlink()
    on_the_way = miniclip.load(tmp_path / "cut")[0]
    state = load_file(tmp_path / "cut/checkpoints/step_00000004/model.safetensors")
    config = load_config(arguments)
    torch.manual_seed(config.run.seed)
    model = open_start(config).make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lock_(model, config.model)
    model.load_state_dict(state)
    image, text = torch.rand(2, 3, 32, 32), torch.tensor([[1, 5, 49407], [2, 49407, 0]])
    for ours, theirs in zip(on_the_way(image, text)[:2], model.eval()(image, text)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    train(load_config([*cut, "--run.resume", "true"]))
    for name in ("model", "best"):
        whole, other = (load_file(tmp_path / run / name / "model.safetensors") for run in ("run", "cut"))
        assert all(torch.equal(value, other[key]) for key, value in whole.items())
        moved = {key for key, value in whole.items() if not torch.equal(value, before[key])}
        assert moved == {key for key in whole if re.search(r"logit|in_proj_weight|(out_proj|c_fc|c_proj)\.weight", key)}


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda _: None)
    config = load_config(options_of(tmp_path, "--model.lora_image", "1"))
    with pytest.raises(ConfigError, match=r"need peft: pip install 'miniclip\[lora\]'"):
        check_learning(config, open_start(config))


TOGETHER = [
    ["--model.lock_image", "1", "--model.lock_text", "true", "--optim.lr_image", "1e-4"],
    ["--model.lora_image", "2", "--model.lock_text", "2", "--train.micro_batch_size", "2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("options", TOGETHER)
def test_two_processes_lock_what_one_does(options: list[str], tmp_path: Path) -> None:
    """Also with the parameters shared out."""
    arguments = options_of(tmp_path, *options)
    train(load_config(arguments))
    for outcome in together(2, train_main, [*arguments, "--run.dir", str(tmp_path / "two")]):
        assert outcome.value == 0, outcome.complaints
    sharded(arguments[1], tmp_path / "shared", "--eval.tasks", "[]", *options)
    one, two, shared = (load_file(tmp_path / d / "model/model.safetensors") for d in ("run", "two", "shared"))
    for other in (two, shared):
        off = by_parameter(other, one)
        # biases began at 0 a few steps ago: where a gradient is small, AdamW makes steps of its rounding
        bound = {name: 2e-4 if name.endswith("bias") else 1e-5 for name in off}
        assert all(off[name] <= bound[name] for name in off), max(off.items(), key=lambda item: item[1])
        assert math.isclose(float(other["logit_scale"]), float(one["logit_scale"]), rel_tol=1e-6)
