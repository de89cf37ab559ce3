"""What leaves for transformers: read there, it is the same model, to the bit where it came from there; what cannot go
says so and what can hold it; nothing stands under the name of a folder that was not found right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import save_tiny, tiny_model
from support.photos import PHOTOS
from support.sources import noise
from test_init import save_transformers
from test_interop import TEXTS, stir

from miniclip.cli.eval import main as eval_main
from miniclip.cli.single import single
from miniclip.export.compare import Difference, compared, ramps
from miniclip.export.formats import FORMATS, export, holders, why_not
from miniclip.export.tokens import clip_tokenizer
from miniclip.export.transformers import check, write
from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model
from miniclip.models.tokenizer import Tokenizer
from miniclip.models.whole import opened

transformers = pytest.importorskip("transformers")

SMALL = {"image_layers": 1, "text_layers": 1}
# all layers, or one; heads that are not 64 wide, and a context of another length
MODELS: dict[str, Callable[[], DualEncoder]] = {
    "tiny-vit": lambda: create_model("tiny-vit"),
    "ViT-B-32-quickgelu": lambda: create_model("ViT-B-32-quickgelu", **SMALL, image_size=64),
    "odd": lambda: create_model(
        "tiny-vit", **SMALL, embed_dim=24, image_width=40, image_heads=5, text_width=36, text_heads=3, context_length=9
    ),
}
PREPARED = {
    "crop": Preprocess(64),
    "squash": Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resize="squash", interpolation="bilinear"),
    "share": Preprocess(64, crop_pct=0.875, interpolation="bilinear", whole=True),
    "squash-share": Preprocess(64, resize="squash", crop_pct=0.875, whole=True),
}
# what is lower-cased, cut into pieces, composed; and long
HARD = [*TEXTS[:2], *TEXTS[3:], "DON'T! It's 12½ cats_and-dogs...", "nai\u0308ve\tfa\u00e7ade\n\u5317\u4eac \U0001f408"]
HARD += [" a\u00a0b \u2028 c\u200bd ", "I'VE WE'LL \u0130stanbul stra\u00dfe \u2167 \u0661\u0662", "a" * 300]

# By itself, with nothing of miniclip. Tensors go both ways as a file.
THEIRS = """
import sys, torch
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor
given, found = torch.load(sys.argv[1], weights_only=True), {}
options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
for folder, (pixels, ids, texts) in given.items():
    model, told = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    rows = CLIPProcessor.from_pretrained(folder)(text=texts, **options)
    assert torch.equal(rows.input_ids, AutoTokenizer.from_pretrained(folder)(texts, **options).input_ids)
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        again = model(**rows, pixel_values=pixels).logits_per_image
    found[folder] = logits, again, rows.input_ids
assert not [name for name in sys.modules if name.startswith("miniclip")]
torch.save(found, sys.argv[2])
"""


def ready(model: DualEncoder) -> DualEncoder:
    """Weights as after a training, of which no two agree."""
    torch.manual_seed(0)
    stir(model)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(20))
    return model.eval()


@pytest.mark.slow
def test_logits_are_equal_in_a_fresh_process(tmp_path: Path) -> None:
    given, ours = {}, {}
    for name, make in MODELS.items():
        model, folder = ready(make()), tmp_path / name
        folder.mkdir()
        write(model, Preprocess(model.config.image_size), model.tokenizer, folder)
        pixels, ids = torch.randn(3, 3, *2 * [model.config.image_size]), model.tokenizer(HARD)
        with torch.inference_mode():
            out = model(pixels, ids)
        given[str(folder)] = pixels, ids, HARD
        ours[str(folder)] = out.scale * out.image @ out.text.T, ids
        assert torch.pdist(out.image).min() > 1e-2 and torch.pdist(out.text[:4]).min() > 1e-2
    torch.save(given, tmp_path / "given.pt")
    files = [str(tmp_path / "given.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run([sys.executable, "-c", THEIRS, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, (*both, ids) in torch.load(files[1], weights_only=True).items():
        for logits in both:  # by our tokens and by theirs
            torch.testing.assert_close(logits, ours[folder][0], rtol=0, atol=1e-5)
        ends = ours[folder][1].argmax(dim=1, keepdim=True)
        assert torch.equal(ids.where(torch.arange(ids.shape[1]) <= ends, 0), ours[folder][1])


def test_tokens_of_the_library_tokenizers() -> None:
    theirs, mended = clip_tokenizer(), "a “dog” &amp; ‘cat’"
    theirs.enable_truncation(20)
    theirs.enable_padding(length=20)
    assert torch.equal(torch.tensor([row.ids for row in theirs.encode_batch(HARD)]), Tokenizer(20)(HARD))
    assert theirs.encode(mended).ids != Tokenizer(20)(mended)[0].tolist()  # as tokens.py says


@pytest.mark.parametrize("name", PREPARED)
def test_pixels_and_the_way_back(name: str, tmp_path: Path) -> None:
    """On squares of noise to rounding, and on others as far as a crop that begins a pixel elsewhere may change them."""
    preprocess = PREPARED[name]
    write(tiny_model(image_size=64), preprocess, Tokenizer(), tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    squares = [noise(k, (side, side)) for k, side in enumerate((64, 73, 99, 201, 20))]
    others = [Image.fromarray(image) for image in ramps(64)]
    if preprocess.resize == "squash":
        squares, others = squares + [PHOTOS.image(k) for k in range(len(PHOTOS))], []
    again = opened(f"hf:{tmp_path}")[1]
    for images, levels in ((squares, 2.5), (others, 2 + 2 * 255 / 64)):
        for image in images:
            pixels = theirs(images=image, return_tensors="pt")["pixel_values"][0]
            for ours in (preprocess, again):
                assert (ours(image) - pixels).abs().max() < levels / 255 / min(preprocess.std)
    assert (again.resize, again.interpolation) == (preprocess.resize, preprocess.interpolation)


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_model_from_there_goes_back_to_the_bit(act: str, tmp_path: Path) -> None:
    name = save_transformers(tmp_path / "theirs", act, eos=2)
    model, preprocess = opened(name)
    (tmp_path / "back").mkdir()
    write(model, preprocess, model.tokenizer, tmp_path / "back")
    before, after = (transformers.CLIPModel.from_pretrained(tmp_path / one) for one in ("theirs", "back"))
    state = after.state_dict()
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in before.state_dict().items())
    assert after.config.text_config.eos_token_id == 49407 and before.config.text_config.eos_token_id == 2
    for config in (after.config, after.config.text_config, after.config.vision_config):
        assert config.projection_dim == 16
    assert {after.config.text_config.hidden_act, after.config.vision_config.hidden_act} == {act}


@pytest.mark.slow
def test_the_command_and_evaluation_of_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", ready(create_model("tiny-vit", **SMALL, embed_dim=16)), Preprocess(64))
    (tmp_path / "clip").mkdir()  # an empty folder is as good as none
    assert single("export", [str(tmp_path / "model"), str(tmp_path / "clip"), "--to", "transformers"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "CLIPModel.from_pretrained" in said and "logits" in said
    assert not (tmp_path / "clip.part").exists() and not (tmp_path / "clip.old").exists()
    assert len({path.stat().st_mode for path in (tmp_path / "clip").iterdir()}) == 1
    found = []
    for name in (str(tmp_path / "model"), f"hf:{tmp_path / 'clip'}"):
        out = tmp_path / f"results{len(found)}"
        words = ["--checkpoint", name, "--data", "shapes", "--size", "24", "--out", str(out)]
        assert eval_main(["retrieval", *words]) == 0
        found.append(json.loads((out / "results.json").read_text())["results"][0]["figures"])
    assert found[0] == found[1] and found[0]


CANNOT = {
    "a resnet": (lambda: create_model("tiny-resnet", text_layers=1), "has a ViT, and this model a resnet"),
    "a bias": (lambda: create_model("tiny-vit", **SMALL, logit_bias_init=-10.0), "no logit bias"),
    "few tokens": (lambda: create_model("tiny-vit", **SMALL, vocab_size=500), "49408 tokens, .* token table 500 rows"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_it_cannot_hold(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = CANNOT[what]
    model = make().eval()
    with pytest.raises(ValueError, match=reason):
        check(model, Preprocess(64), model.tokenizer)
    assert "transformers" not in holders(model, Preprocess(64))
    save_model(tmp_path / "model", model, Preprocess(64))
    assert single("export", [str(tmp_path / "model"), str(tmp_path / "out"), "--to", "transformers"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("miniclip export: error: --to transformers cannot hold this model")
    able = [name for name in FORMATS if why_not(name, model, Preprocess(64)) is None]
    assert line.endswith(" or ".join(f"--to {name}" for name in able) if able else "none can")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_tower_from_elsewhere_is_refused(tmp_path: Path) -> None:
    from test_init import OTHER, save_open_clip

    model, preprocess = opened(save_open_clip(tmp_path / "timm", OTHER["timm"]))
    assert "comes from elsewhere" in str(why_not("transformers", model, preprocess))


def test_where_it_may_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    cannot = {model: "holds something already; name a new folder", tmp_path / "file": "is a file", ".": "you are in"}
    for out, message in cannot.items():
        assert single("export", [model, str(out), "--to", "transformers"]) == 2
        assert message in capsys.readouterr().err
    assert single("export", [str(tmp_path / "none"), str(tmp_path / "out"), "--to", "transformers"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert single("export", [model, str(tmp_path / "out"), "--to", "transformer"]) == 2
    assert "did you mean transformers?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_is_another_model_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one with the other activation, which has reached published models."""
    from miniclip.export import transformers as module

    told = module._config
    monkeypatch.setattr(module, "_config", lambda model: json.loads(json.dumps(told(model)).replace("gelu", "relu")))
    with pytest.raises(ValueError, match=r"reads back is not this model: it differs in image embeddings by .*logits"):
        export(ready(tiny_model()), Preprocess(32), "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_and_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nonsense cannot load what was written for it \(KeyError"):
        compared("nonsense", tmp_path, ready(tiny_model()), Preprocess(32), 1e-5)
    assert Difference("logits", 1e-5, 1e-5).holds and not Difference("logits", np.nan, 1e-5).holds
