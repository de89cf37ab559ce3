"""Text towers of transformers and sentence-transformers against those libraries' own code."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.hf_models import bert_folder
from support.launching import ROOT, torchrun
from test_interop import save_clip, save_siglip
from test_training import TINY
from torch import Tensor

from miniclip.cli.eval import main as eval_main
from miniclip.cli.train import run
from miniclip.config import ConfigError, ModelConfig, load_config
from miniclip.models import resolve
from miniclip.models.cut import WHOLE
from miniclip.models.external import hf_tower
from miniclip.models.external.hf_tower import HfText
from miniclip.models.foreign import load_tower, open_text, save_towers
from miniclip.models.load import load
from miniclip.models.vocabulary import use_small_vocabulary_
from miniclip.training.accelerator import check_possible

transformers = pytest.importorskip("transformers")

TEXTS = ["a red circle", "Two dogs run , and three runs in the large green square and a small star .", "star", ""]
KINDS = ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "MPNet", "DistilBert", "ModernBert"]
NO_BLOCKS = ["ModernBert"]


def opened(name: str, **config: Any) -> HfText:
    tower = open_text(name, ModelConfig(**config))
    assert isinstance(tower, HfText) and not tower.training
    return tower


@torch.no_grad()
def sentence_embeddings(folder: Path, pooling: str, longest: int = 20) -> Tensor:
    """As sentence-transformers computes them before they are brought to unit length."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(TEXTS, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "max":
        return tokens.masked_fill(mask[..., None] == 0, -1e9).max(dim=1).values
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@torch.no_grad()
def check_tower(tower: HfText, expected: Tensor) -> None:
    """Its output; alone and beside longer texts, trimmed and not; cut before each block; and made again without weights
    of what is saved."""
    rows = tower.tokenizer(TEXTS)
    assert rows.shape == (len(TEXTS), tower.context_length) and tower.width == expected.shape[1]
    longest = int((rows >= 0).sum(1).max())
    found = tower(rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tower(rows[:, :longest]), expected, rtol=1e-5, atol=1e-6)
    for row, one in zip(rows, expected, strict=True):
        alone = row[None, : int((row >= 0).sum())]
        torch.testing.assert_close(tower(alone)[0], one, rtol=1e-5, atol=1e-6)
    for k in (*range(len(tower.blocks)), WHOLE):
        torch.testing.assert_close(tower.upper(tower.lower(rows, k), k), found, rtol=0, atol=1e-6)
    if tower.blocks:
        features = tower.lower(rows, 1)
        assert torch.equal(features[..., -1].sum(1).long(), (rows >= 0).sum(1)) or tower.pooling == "siglip"


@pytest.mark.parametrize("kind, pooling", [*((kind, "mean") for kind in KINDS), ("Bert", "cls"), ("Bert", "max")])
def test_equals_the_library(tmp_path: Path, kind: str, pooling: str) -> None:
    more = {"embedding_size": 16} if kind == "Electra" else {}  # with a projection behind the embeddings
    tower = opened(bert_folder(tmp_path, pooling, kind, **more))
    assert len(tower.blocks) == (0 if kind in NO_BLOCKS else 3)
    check_tower(tower, sentence_embeddings(tmp_path, pooling))


def test_sizes_and_pooling_come_from_the_folder_or_the_config(tmp_path: Path) -> None:
    name = bert_folder(tmp_path / "sentences", longest=9)
    tower = opened(name)
    assert (tower.width, tower.context_length, tower.pooling) == (32, 9, "mean")
    check_tower(tower, sentence_embeddings(tmp_path / "sentences", "mean", 9))
    assert opened(name, context_length=5, text_pooling="mean").context_length == 5
    plain = bert_folder(tmp_path / "plain", None)
    assert opened(plain, text_pooling="cls").context_length == 40
    check_tower(opened(plain, text_pooling="cls"), sentence_embeddings(tmp_path / "plain", "cls"))
    roberta = bert_folder(tmp_path / "roberta", None, "Roberta")
    assert opened(roberta, text_pooling="mean").context_length == 39  # the first position is the padding's


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("eos", [2, 49407])
def test_clip_equals_the_library(tmp_path: Path, projection: bool, eos: int) -> None:
    save_clip(tmp_path, eos)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    rows = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    if projection:
        with torch.no_grad():
            expected = model.get_text_features(**rows).pooler_output
    else:
        text = transformers.CLIPTextModel.from_pretrained(tmp_path).eval()
        text.save_pretrained(tmp_path)
        with torch.no_grad():
            expected = text(**rows).pooler_output
    check_tower(opened(f"hf:{tmp_path}"), expected)


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"]])
def test_siglip_equals_the_library(tmp_path: Path, names: list[str]) -> None:
    name = save_siglip(tmp_path, names)
    model = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**rows).pooler_output
    tower = opened(name)
    assert len(tower.blocks) == (2 if names == ["input_ids"] else 0)
    check_tower(tower, expected)


@pytest.mark.parametrize("kind", ["Bert", "ModernBert"])
def test_made_again_from_what_is_saved(tmp_path: Path, kind: str) -> None:
    tower = opened(bert_folder(tmp_path / "there", kind=kind))
    save_towers(tmp_path, {"text": tower})
    with torch.device("meta"):
        again = load_tower("text", tmp_path)
    again.load_state_dict(tower.state_dict(), strict=True, assign=True)
    again.to("cpu").eval()  # nothing is left on the meta device
    rows = again.tokenizer(TEXTS)
    assert torch.equal(rows, tower.tokenizer(TEXTS))
    assert again.tokenizer.key == tower.tokenizer.key and again.described == tower.described
    with torch.no_grad():
        assert torch.equal(again(rows), tower(rows))
    assert str(tmp_path) not in (tmp_path / "towers" / "text.json").read_text()


def test_tokenizer(tmp_path: Path) -> None:
    """Ids of the library's own, with -1 in place of padding; processes may be sent it."""
    ours = opened(bert_folder(tmp_path, longest=6)).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=6, return_tensors="pt")
    assert torch.equal(ours(TEXTS), expected["input_ids"].masked_fill(expected["attention_mask"] == 0, -1))
    assert torch.equal(ours(f"  {TEXTS[0]} "), ours(TEXTS[:1]))
    sent = pickle.loads(pickle.dumps(ours))
    assert sent == ours and torch.equal(sent(TEXTS), ours(TEXTS)) and len(repr(ours)) < 200


def test_dropout_only_in_training(tmp_path: Path) -> None:
    tower = opened(bert_folder(tmp_path))
    rows = tower.tokenizer(TEXTS)
    assert torch.equal(tower(rows), tower(rows))
    tower.train()
    assert not torch.equal(tower(rows), tower(rows))
    assert all(p.grad is not None for p in _learnt(tower, rows)), "what never gets a gradient stops DDP"


def _learnt(tower: HfText, rows: Tensor) -> list[torch.nn.Parameter]:
    tower(rows).sum().backward()
    return list(tower.parameters())


DAMAGED: list[dict[str, bytes]] = [{}, {"tokenizer.json": b"{}"}, {"tokenizer.json": b"\xff"}]


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BAD: list[tuple[str, dict[str, Any], Any, str]] = [
    (
        "no pooling",
        {"text_pooling": None},
        lambda f: (f / "modules.json").unlink(),
        "without a pooling.*mean, cls or max",
    ),
    ("another pooling", {"text_pooling": "cls"}, None, "model.text_pooling=cls: .* was trained with mean"),
    ("too long", {"context_length": 41}, None, "model.context_length=41: .* positions for 40"),
    ("no weights", {}, lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    ("no config", {}, lambda f: (f / "config.json").unlink(), "lacks config.json"),
    ("a damaged config", {}, lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    ("no tokenizer", {}, lambda f: (f / "tokenizer.json").unlink(), "its tokenizer"),
    ("a file of code", {}, lambda f: (f / "modeling.py").write_text(""), "modeling.py.* code"),
    ("code by name", {}, lambda f: edit(f / "config.json", auto_map={"AutoModel": "m.M"}), "auto_map.* code"),
    ("other sizes", {}, lambda f: edit(f / "config.json", intermediate_size=63), r"is \[64\] and should be \[63\]"),
    ("a small table", {}, lambda f: edit(f / "config.json", vocab_size=20), "ids up to 42.*vocab_size=20"),
    ("an unknown kind", {}, lambda f: edit(f / "config.json", model_type="berd"), "model_type|berd"),
    (
        "two poolings",
        {},
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        "pools by .*cls_token",
    ),
]


@pytest.mark.parametrize("config, break_it, message", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_refusals(tmp_path: Path, config: dict[str, Any], break_it: Any, message: str) -> None:
    name = bert_folder(tmp_path, None if config.get("text_pooling", 1) is None else "mean")
    (tmp_path / "modules.json").touch()
    if break_it is not None:
        break_it(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        open_text(name, ModelConfig(**config))
    assert "\n" not in str(refusal.value)


def test_refused_modules_and_poolings(tmp_path: Path) -> None:
    name = bert_folder(tmp_path, "weightedmean_tokens")
    with pytest.raises(ValueError, match="pools by weightedmean_tokens; known are mean_tokens, cls_token, max_tokens"):
        open_text(name, ModelConfig())
    dense = [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "2_Dense", "type": "x.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(ValueError, match=r"has a Dense, .*model.text=hf:"):
        open_text(name, ModelConfig())
    for wrong in (f"hf:{tmp_path}/nowhere/at/all", f"hf:{tmp_path}/config.json"):
        with pytest.raises(ValueError, match=r"no such folder|name its folder"):
            open_text(wrong, ModelConfig())


def test_a_name_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hf:somebody/no-such-model: it cannot be fetched .*internet connection"):
        open_text("hf:somebody/no-such-model", ModelConfig())


def test_options_of_the_own_text_tower_are_refused(tmp_path: Path) -> None:
    joined = ModelConfig(preset="tiny-vit", text=bert_folder(tmp_path))
    resolved = resolve(joined)
    assert resolved.text_width is resolved.vocab_size is None and resolved.image_width == 192
    with pytest.raises(ConfigError, match=r"model.text_width=64: model.text brings its own sizes"):
        resolve(replace(joined, text_width=64))
    config = load_config(["--model.preset", "tiny-vit", "--train.max_steps", "1", "--train.small_vocabulary", "true"])
    with pytest.raises(ConfigError, match=r"train.small_vocabulary is .* own text encoder, and that of hf:.* is not"):
        check_possible(replace(config, model=resolved))
    with pytest.raises(ValueError, match=r"train.small_vocabulary"):
        use_small_vocabulary_(opened(f"hf:{tmp_path}"), torch.arange(3))


def train(root: Path, name: str, *options: str) -> Path:
    """A run of six steps beside the folder root/text, on the built-in scenes."""
    config = {**TINY, "model": {k: v for k, v in TINY["model"].items() if not k.startswith("text")}}
    config["model"]["text"] = f"hf:{root / 'text'}"
    config["optim"] = {**TINY["optim"], "schedule": "constant"}
    (root / "tiny.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(root / "tiny.yaml"), "--run.dir", str(root / name), *options]
    if options[:2] == ("two", "processes"):
        done = torchrun(2, ROOT / "train.py", [*arguments[:4], *options[2:]])
        assert done.returncode == 0, done.stderr
    else:
        run(load_config(arguments))
    return root / name


def test_resumed_without_the_folder(tmp_path: Path) -> None:
    """To the bit, dropout included; and what came of it is evaluated, reported and examined with the run alone."""
    bert_folder(tmp_path / "text")
    whole = train(tmp_path, "whole", "--eval.tasks", "[]")
    train(tmp_path, "parts", "--eval.tasks", "[]", "--train.max_steps", "3")
    shutil.rmtree(tmp_path / "text")
    parts = train(tmp_path, "parts", "--eval.tasks", "[retrieval]", "--run.resume", "true")
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert eval_main(["report", str(parts)]) == 0
    count = sum(value.numel() for name, value in one.items() if not name.endswith("_ids"))
    assert f"| parameters | {count:,} |" in (parts / "report" / "report.md").read_text()
    rows = load(parts)[2](TEXTS)
    with torch.no_grad():
        finished, newest = (load(place)[0].encode_text(rows) for place in (parts, parts / "checkpoints"))
    assert torch.equal(finished, newest)


@pytest.mark.slow
def test_in_parts_and_in_two_processes(tmp_path: Path) -> None:
    bert_folder(tmp_path / "text", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    whole = train(tmp_path, "whole", "--eval.tasks", "[]")
    for name, *options in (("cached", "--train.micro_batch_size", "3"), ("shared", "two", "processes")):
        other = load_file(train(tmp_path, name, *options, "--eval.tasks", "[]") / "model" / "model.safetensors")
        for key, value in load_file(whole / "model" / "model.safetensors").items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_plain_values_of_a_described_tower(tmp_path: Path) -> None:
    """Nothing of a saved description is a name that would be looked up elsewhere."""
    tower = opened(bert_folder(tmp_path))
    described = tower.described
    assert json.loads(json.dumps(described)) == described
    unknown = {**described, "config": {**described["config"], "model_type": "berd"}}
    for values, files, message in (
        (unknown, tower.files, "berd"),
        *((described, f, "tokenizer.json") for f in DAMAGED),
    ):
        with pytest.raises(ValueError, match=message):
            hf_tower.build_text(values, files)
