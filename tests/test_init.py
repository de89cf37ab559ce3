"""model.init: the logits before a step and the weights after it equal those of the code that a model comes from; what
comes along, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from support.closeness import by_parameter
from test_global_batch import COMMAND_LINE, assert_alike, trained
from test_interop import SIZES, change, save_clip, save_siglip, stir
from test_signals import assert_same_weights, before, exact
from test_step import N, batch
from test_training import TINY
from torch import Tensor, nn

from miniclip.cli.train import train_main
from miniclip.common.stopping import CODES
from miniclip.config import Config, ConfigError, load_config
from miniclip.models import DualEncoder
from miniclip.models.external.convert import _under_our_names
from miniclip.models.joined import JoinedEncoder
from miniclip.models.load import load
from miniclip.models.start import Start, open_start
from miniclip.training.step import Learner

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

WORDS = ["red", "big", "old", "new", "odd", "hot", "raw", "dry"]
CAPTIONS = [f"a {word} thing" for word in WORDS]
VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PLAIN: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
RESNET: dict[str, Any] = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 16}
PREPARED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
# what a DualEncoder is
SAME: dict[str, dict[str, Any]] = {
    "vit": PLAIN,
    "quick": {**PLAIN, "quick_gelu": True},
    "resnet": {**PLAIN, "vision_cfg": RESNET},
    "sigmoid": {**PLAIN, "init_logit_bias": -10, "init_logit_scale": math.log(10), "nonscalar_logit_scale": True},
    "custom": {**PLAIN, "custom_text": True},
}
# what it is not, and stays the library's own
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
OTHER: dict[str, dict[str, Any]] = {
    "two-way": {**SAME["custom"], "text_cfg": {**TEXT, "no_causal_mask": True}, "init_logit_bias": -9.5},
    "timm": {**PLAIN, "vision_cfg": TIMM},
}


def save_open_clip(folder: Path, config: dict[str, Any]) -> str:
    """A model with random weights as on the Hub -> its name."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    stir(model := kind(**{k: v for k, v in config.items() if k != "custom_text"}))
    described = {"model_cfg": config, "preprocess_cfg": PREPARED}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def save_transformers(folder: Path, act: str = "quick_gelu", eos: int = 49407) -> str:
    """A CLIPModel as CLIP has it: its layers four times as wide inside -> its name."""
    own = {"hidden_act": act, "intermediate_size": 4 * SIZES["hidden_size"]}
    return save_clip(folder, eos=eos, text=own, vision=own)


def config_of(folder: Path, name: str, *options: str) -> Config:
    values = {**TINY, "model": {"init": name}, "run": {"dir": str(folder / "run")}}
    (folder / "init.yaml").write_text(yaml.safe_dump(values))
    return load_config(["--config", str(folder / "init.yaml"), *options])


def started(folder: Path, name: str, *options: str) -> tuple[Config, Start]:
    config = config_of(folder, name, *options)
    start = open_start(config)
    return replace(config, model=start.config), start


def theirs_of(name: str) -> nn.Module:
    """Read by the library itself."""
    if name.startswith("hf:"):
        model: nn.Module = transformers.AutoModel.from_pretrained(name.removeprefix("hf:"))
    else:
        model = open_clip.create_model(name.removeprefix("open_clip:"))
    return model


def outputs(model: Any, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
    """Of their model: unit features, the scale, and the bias if there is one."""
    if not hasattr(model, "get_image_features"):
        found: tuple[Tensor, ...] = model(image, text)
        return found
    made = model(pixel_values=image, input_ids=text)
    bias = (model.logit_bias,) if hasattr(model, "logit_bias") else ()
    return made.image_embeds, made.text_embeds, model.logit_scale.exp(), *bias


def logits(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return scale * image @ text.T + (0 if bias is None else bias)


SOURCES = [*SAME, "hf", "hf-gelu", "hf-legacy"]


def source(folder: Path, kind: str) -> str:
    hf = {"hf": ("quick_gelu", 49407), "hf-gelu": ("gelu", 49407), "hf-legacy": ("quick_gelu", 2)}
    if kind in hf:
        return save_transformers(folder, *hf[kind])
    if kind == "siglip":
        return save_siglip(folder, ["input_ids"])
    if kind == "hf-narrow":  # its layers are not four times as wide inside
        return save_clip(folder)
    return save_open_clip(folder, (SAME | OTHER)[kind])


@pytest.mark.parametrize("kind", SOURCES)
def test_logits_and_a_step_equal_theirs(kind: str, tmp_path: Path) -> None:
    name, given = source(tmp_path / "source", kind), batch()
    if kind == "resnet":
        given = given._replace(image=given.image.repeat(1, 1, 2, 2))
    loss = ("--loss.name", "sigmoid") if kind == "sigmoid" else ()
    config, start = started(tmp_path, name, *loss, "--optim.grad_clip", "0")
    theirs = theirs_of(name).eval()
    pixels, text = start.preprocess.normalize(given.image), start.tokenizer(CAPTIONS)
    ours = start.make().eval()
    assert type(ours) is DualEncoder
    with torch.no_grad():
        expected = logits(*outputs(theirs, pixels, text))
        found = logits(*ours(pixels, text))
        exact = logits(*outputs(theirs.double(), pixels.double(), text))
        torch.testing.assert_close(logits(*ours.double()(pixels.double(), text)), exact, rtol=0, atol=1e-10)
    assert expected.std(0).min() > 0.01 and expected.std(1).min() > 0.01
    # of theirs: of a ResNet with random weights more than 1e-5; ours, of other kernels, is about as large
    rounding = float((expected - exact).abs().max())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=max(1e-5, 3 * rounding))

    # in float32 a convolution's rounding decides on which side of 0 some of what a ReLU sees lies
    dtype = torch.float64 if kind == "resnet" else torch.float32
    pixels, theirs = pixels.to(dtype), theirs.to(dtype).train()
    learner = Learner(config, Accelerator(cpu=True), start._replace(make=lambda: start.make().to(dtype)))
    learner.inputs = lambda _: pixels  # type: ignore[method-assign]
    taken = learner.step(given._replace(text=text), 0, 1e-3, [N])
    loss_of = open_clip.loss.SigLipLoss() if kind == "sigmoid" else open_clip.loss.ClipLoss()
    theirs_loss = loss_of(*outputs(theirs, pixels, text))
    theirs_loss.backward()
    decay = [p for n, p in theirs.named_parameters() if p.ndim > 1 and "position" not in n]
    plain = [p for n, p in theirs.named_parameters() if p.ndim <= 1 or "position" in n]
    groups = [{"params": decay, "weight_decay": config.optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3, betas=config.optim.betas, eps=config.optim.eps).step()
    assert taken.loss == pytest.approx(float(theirs_loss.detach()), rel=1e-5)
    state = {key.removeprefix("text."): value for key, value in theirs.state_dict().items()}
    state = _under_our_names(state, ours.config) if name.startswith("hf:") else state
    moved = {key: value.reshape(state[key].shape) for key, value in learner.model.state_dict().items()}
    errors = by_parameter(moved, state)
    errors.pop("visual.attnpool.k_proj.bias", None)  # as of every key: its gradient is rounding
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("kind", [*OTHER, "siglip", "hf-narrow"])
def test_what_is_no_dual_encoder_keeps_its_own_towers(kind: str, tmp_path: Path) -> None:
    name = source(tmp_path / "source", kind)
    loss = ("--loss.name", "sigmoid") if kind in ("two-way", "siglip") else ()
    config, start = started(tmp_path, name, *loss)
    theirs, ours = theirs_of(name).eval(), start.make().eval()
    assert type(ours) is JoinedEncoder and isinstance(ours.image_head, nn.Identity)
    image, texts = start.preprocess.normalize(batch().image), ["a red circle", "two dogs", "a", "long " * 30]
    if name.startswith("hf:"):
        own = transformers.AutoTokenizer.from_pretrained(name.removeprefix("hf:"))
        text = own(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    else:
        text = open_clip.get_tokenizer(name.removeprefix("open_clip:"))(texts)
    with torch.no_grad():
        expected, found = logits(*outputs(theirs, image, text)), ours(image, start.tokenizer(texts))
    torch.testing.assert_close(logits(*found), expected, rtol=0, atol=1e-5)
    assert config.model.logit_bias_init == (-9.5 if loss else None)


@pytest.mark.parametrize("length", [28, 12])
def test_other_sizes_are_interpolated_as_open_clip_does(
    length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, side = save_open_clip(tmp_path / "source", PLAIN), 48
    _, start = started(tmp_path, name, "--model.image_size", str(side), "--model.context_length", str(length))
    assert start.preprocess.image_size == start.config.image_size == side
    assert start.tokenizer.context_length == start.config.context_length == length  # type: ignore[attr-defined]
    sizes = {"vision_cfg": {**VIT, "image_size": side}, "text_cfg": {**TEXT, "context_length": length}}
    theirs, weights = open_clip.CLIP(**{**PLAIN, **sizes}), dict(theirs_of(name).state_dict())
    open_clip.model.resize_pos_embed(weights, theirs)
    open_clip.model.resize_text_pos_embed(weights, theirs)
    theirs.load_state_dict(weights)
    image, text = torch.randn(3, 3, side, side), start.tokenizer(CAPTIONS[:3])
    with torch.no_grad():
        found, expected = start.make().eval()(image, text), outputs(theirs.eval(), image, text)
    torch.testing.assert_close(found.image, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, expected[1], rtol=0, atol=1e-5)
    told = [record.getMessage() for record in caplog.records if "interpolated" in record.getMessage()]
    assert told == [
        f"{name}: its positions of 32 are interpolated to 48 pixels (bicubic)",
        f"{name}: its positions of 20 are interpolated to {length} tokens (linear)",
    ]


@torch.no_grad()
def test_a_resnet_of_another_size(tmp_path: Path) -> None:
    """open_clip has none; as it stands the model interpolates at each image."""
    name, image = save_open_clip(tmp_path / "source", SAME["resnet"]), torch.randn(3, 3, 96, 96)
    expected, found = (started(tmp_path, name, *options)[1] for options in ((), ("--model.image_size", "96")))
    own = found.make().eval()
    assert own.visual.attnpool.positional_embedding.shape == (10, 256)  # type: ignore[union-attr]
    torch.testing.assert_close(own.encode_image(image), expected.make().eval().encode_image(image), rtol=0, atol=1e-6)


CONTRADICTIONS = [
    ("--model.embed_dim 8", "model.embed_dim=8 contradicts model.init: {} has 16; leave it out"),
    ("--model.image_encoder resnet", "model.image_encoder=resnet contradicts model.init: {} has vit; leave it out"),
    ("--model.activation quick_gelu", "model.activation=quick_gelu contradicts model.init: {} has gelu; leave it out"),
    ("--model.vocab_size 500", "model.vocab_size=500 contradicts model.init: {} has 49408; leave it out"),
    ("--model.logit_scale_init 1", "model.logit_scale_init=1.0 contradicts model.init: {} has 2.65"),
    (
        "--model.preset tiny-vit",
        "model.preset=tiny-vit contradicts model.init: its embed_dim is 256, and that of {} 16",
    ),
    (
        "--model.projection mlp",
        "model.projection=mlp joins towers by themselves, and {} is a whole model; leave it out",
    ),
    ("--model.text_pooling cls", "model.text_pooling=cls contradicts model.init: {} has None; leave it out"),
    ("--model.image_size 40", "model.image_size=40 is not divisible by patch_size=16; the nearest that is: 32"),
    ("--data.resize crop", "data.resize=crop contradicts {}, which was trained with squash; set it to null"),
]


def test_what_contradicts_the_source_is_refused(tmp_path: Path) -> None:
    name = save_open_clip(tmp_path / "source", PLAIN)
    for options, message in CONTRADICTIONS:
        with pytest.raises(ConfigError) as caught:
            started(tmp_path, name, *options.split())
        assert str(caught.value).startswith(message.format(name)), caught.value
    same = "--model.embed_dim 16 --model.image_layers 2 --model.logit_scale_init 2.6592 --data.resize squash"
    config, start = started(tmp_path, name, *same.split())
    assert config.model.logit_bias_init is None and start.preprocess.mean == tuple(PREPARED["mean"])


def test_names_that_are_no_clip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plain, hf = save_open_clip(tmp_path / "plain", PLAIN), save_transformers(tmp_path / "hf")
    small = save_open_clip(tmp_path / "small", {**PLAIN, "text_cfg": {**TEXT, "vocab_size": 500}})
    save_file(theirs_of(plain).state_dict(), weights := tmp_path / "w.safetensors")
    cases = [
        ("open_clip:ViT-B32:openai", "no architecture 'ViT-B32'; did you mean ViT-B-32"),
        (f"open_clip:RN50:{weights}", r"positional_embedding is \[20, 32\] and should be \[77, 512\]"),
        ("open_clip:ViT-B-32:openai", "cannot be fetched or loaded .*; check the internet connection"),
        ("hf:openai/clip-vit-base-patch32", "config.json cannot be fetched .*; check the name and the internet"),
        (str(weights), "weights alone do not say of what; did you mean open_clip:ARCH:"),
        (str(tmp_path / "hf"), "did you mean hf:"),
        ("hf:", "no such folder"),
        (small, "its tokenizer has ids up to 49407, and its token table 500 rows"),
    ]
    change(tmp_path / "plain" / "open_clip_config.json", model_cfg={"embed_dim": 24})
    cases += [(plain, r"text_projection is \[32, 16\] and should be \[32, 24\]; 2 such")]
    (tmp_path / "hf" / "evil.py").write_text("raise SystemExit")
    for name, message in [*cases, (hf, r"code of its own \(evil.py\)")]:
        with pytest.raises(ConfigError, match=f"^model.init: .*{message}") as caught:
            started(tmp_path, name)
        assert "\n" not in str(caught.value)


def test_scale_and_bias_come_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sigmoid loss gives a model without a bias a fresh one; another leaves a bias out, as it would not learn."""
    plain, own = save_open_clip(tmp_path / "plain", PLAIN), save_open_clip(tmp_path / "own", SAME["sigmoid"])
    sigmoid = ("--loss.name", "sigmoid")

    def numbers(name: str, *options: str) -> tuple[float, float | None]:
        config, start = started(tmp_path, name, *options)
        model = start.make()
        bias = None if model.logit_bias is None else model.logit_bias.item()
        assert config.model.logit_bias_init == model.config.logit_bias_init == (bias and pytest.approx(bias))
        return model.logit_scale.item(), bias

    assert numbers(plain) == (pytest.approx(math.log(1 / 0.07)), None)
    assert numbers(plain, *sigmoid) == (pytest.approx(math.log(1 / 0.07)), -10)
    balanced = numbers(plain, *sigmoid, "--model.logit_bias_init", "balanced")
    assert balanced[1] == pytest.approx(-math.log(7))
    assert numbers(own, *sigmoid) == (pytest.approx(math.log(10)), -10)
    assert numbers(own)[1] is None
    with pytest.raises(ConfigError, match=r"model.logit_bias_init=-3.0 contradicts model.init: .* has -10.0"):
        numbers(own, *sigmoid, "--model.logit_bias_init", "-3")
    # SigLIP's are above 100; its logits stay until the first step
    steep = save_open_clip(tmp_path / "steep", {**SAME["sigmoid"], "init_logit_scale": math.log(117)})
    assert numbers(steep, *sigmoid)[0] == pytest.approx(math.log(117))
    assert f"{steep}: its scale is 117; the first step brings it down to 100, the most" in caplog.text


def test_every_call_makes_another_model_and_draws_nothing(tmp_path: Path) -> None:
    _, start = started(tmp_path, save_open_clip(tmp_path / "source", PLAIN))
    state = torch.get_rng_state()
    first, second = start.make(), start.make()
    assert torch.equal(torch.get_rng_state(), state) and first.training
    first.visual.proj.data.zero_()  # type: ignore[union-attr, operator]
    assert second.visual.proj.abs().max() > 0  # type: ignore[union-attr, operator]


# Runs from the command line


def options_for(folder: Path, name: str, *options: str) -> list[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump({**COMMAND_LINE, "model": {"init": name}}))
    return ["--config", str(folder / "run.yaml"), *options]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "two-way"])
def test_processes_and_micro_batches_train_alike(kind: str, tmp_path: Path) -> None:
    options = options_for(tmp_path, source(tmp_path / "source", kind))
    expected, figures = trained(tmp_path / "plain", 1, options)
    for processes, micro in ((1, "16"), (2, "null"), (2, "8")):
        name = f"{processes} processes, micro {micro}"
        found, logged = trained(tmp_path / name, processes, [*options, "--train.micro_batch_size", micro])
        assert logged == pytest.approx(figures, rel=5e-6), name
        assert_alike(found, expected, 1e-6, 10, name)


@pytest.mark.parametrize("kind", ["resnet", "hf", "siglip", "timm"])
def test_a_run_goes_on_and_is_read_without_its_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = source(tmp_path / "source", kind)
    options = options_for(tmp_path, name, "--eval.tasks", "[retrieval]", "--eval.every", "3")
    options += ["--eval.best", "retrieval/image_to_text_r10"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_main([*options, "--run.dir", str(whole)]) == 0
    with monkeypatch.context() as patch:
        before(patch, "_step", 4, signal.SIGTERM)
        assert train_main([*options, "--run.dir", str(broken)]) == CODES[signal.SIGTERM]
    shutil.rmtree(tmp_path / "source")
    half, preprocess, _ = load(broken)
    assert isinstance(half, DualEncoder) and preprocess == load(whole)[1]
    assert train_main([*options, "--run.dir", str(broken), "--run.resume", "true"]) == 0
    assert exact(broken) == exact(whole)
    assert_same_weights(broken / "model/model.safetensors", whole / "model/model.safetensors")
    # a run, its checkpoint and its best model are names, too
    for part in ("", "best", "checkpoints"):
        _, start = started(tmp_path, str(whole / part))
        assert start.config.init == str(whole / part) and start.preprocess == preprocess
    own, made = load(whole / "model")[0].state_dict(), started(tmp_path, str(whole))[1].make().state_dict()
    assert own.keys() == made.keys() and all(torch.equal(own[key], made[key]) for key in own)
    other = "crop" if preprocess.resize == "squash" else "squash"
    assert train_main([*options, "--run.dir", str(broken), "--run.resume", "true", "--data.resize", other]) == 2
