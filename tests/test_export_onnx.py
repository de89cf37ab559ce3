"""Graphs of ONNX: onnxruntime alone, by the example that lies beside them, makes what the model makes, for any number
of images and texts of any length; in 8 bits they find what the command says they find; what cannot go says so."""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.hf_models import bert_folder
from support.models import save_tiny, tiny_model
from test_interop import stir
from test_towers import open_clip_folder, timm_folder

from miniclip.cli.single import single
from miniclip.config import ModelConfig
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.tasks import Retrieval
from miniclip.export import formats, int8
from miniclip.export import onnx as exporting
from miniclip.export.compare import ramps
from miniclip.models import DualEncoder, create_model
from miniclip.models.foreign import open_image, open_text
from miniclip.models.joined import JoinedEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.whole import opened

ROOT = Path(__file__).parents[1]
TEXTS = ["red dogs", "", "Two DOGS' tails, 12 cats: that's_it!", "  nai\u0308ve  fa\u00e7ade 北京 ", "dogs " * 40]
SMALL: dict[str, Any] = {"embed_dim": 16, "text_width": 32, "text_heads": 2, "text_layers": 2, "context_length": 20}
SQUASH = Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "squash", "bilinear", 0.9)

# By itself, with nothing of torch and of miniclip: one row, and then the others with all that stands behind them.
ALONE = """
import json, runpy, sys
from pathlib import Path
import numpy as np
from PIL import Image
for folder in map(Path, sys.argv[1:]):
    example = runpy.run_path(str(folder / "example.py"))
    given, run = np.load(folder / "given.npz"), example["embeddings"]
    ids = [example["ids"](texts) for texts in ([json.loads(str(given["texts"]))[0]], json.loads(str(given["texts"])))]
    image = np.concatenate([run("image.onnx", given["pixels"][:1]), run("image.onnx", given["pixels"][1:])])
    text = np.concatenate([run("text.onnx", ids[0]), run("text.onnx", ids[1][1:])])
    pixels = np.stack([example["pixels"](Image.fromarray(given[f"image_{k}"])) for k in range(3)])
    np.savez(folder / "found.npz", image=image, text=text, pixels=pixels, ids=ids[1])
assert not {"torch", "miniclip", "transformers"} & set(sys.modules)
"""


def model_of(kind: str, folder: Path) -> tuple[DualEncoder, Preprocess]:
    torch.manual_seed(0)
    if kind == "vit":
        model, preprocess = create_model("tiny-vit-quickgelu", image_size=64, image_layers=2, **SMALL), Preprocess(64)
    elif kind == "sigmoid":
        model = create_model("tiny-resnet", **SMALL, image_size=64, image_width=8, image_heads=4, logit_bias_init=-9.5)
        preprocess = SQUASH
    elif kind == "siglip":  # with a tokenizer of its own, which is told no capitals and no full stops
        return opened(open_clip_folder(folder / "source", "siglip")[0])
    else:
        tower, preprocess = open_image(timm_folder(folder / "image", "test_vit2"), ModelConfig())
        text = open_text(bert_folder(folder / "text", "mean"), ModelConfig())
        sizes: Any = {"image_size": preprocess.image_size, "context_length": text.context_length, "embed_dim": 16}
        model = JoinedEncoder(ModelConfig(image="i", text="t", projection="mlp", **sizes), tower, text)
    stir(model)
    return model.eval(), preprocess


class Written(NamedTuple):
    model: DualEncoder
    preprocess: Preprocess
    folder: Path


IDS: dict[str, Any] = {"vit": "int32", "sigmoid": "int64", "siglip": "int64", "joined": "int32"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    @functools.cache
    def made(kind: str) -> Written:
        folder = tmp_path_factory.mktemp(kind)
        model, preprocess = model_of(kind, folder)
        (out := folder / "out").mkdir()
        exporting.check(model, preprocess, model.tokenizer)
        exporting.write(model, preprocess, model.tokenizer, out, IDS[kind])
        return Written(model, preprocess, out)

    return made


@pytest.mark.slow
def test_onnxruntime_alone_makes_the_same(written: Callable[[str], Written]) -> None:
    ours, folders = {}, []
    for kind in IDS:
        model, preprocess, folder = written(kind)
        side = preprocess.image_size
        pixels, tokens, images = torch.randn(4, 3, side, side), model.tokenizer(TEXTS), ramps(side)
        named = {f"image_{k}": image for k, image in enumerate(images)}
        np.savez(folder / "given.npz", pixels=pixels.numpy(), texts=json.dumps(TEXTS), **named)
        with torch.no_grad():
            out = model(pixels, tokens)
        assert torch.pdist(out.image).min() > 1e-3 and torch.pdist(out.text[:4]).min() > 1e-2
        ours[kind] = {"image": out.image, "text": out.text, "ids": tokens}
        ours[kind]["pixels"] = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        folders.append(str(folder))
        about, bias = json.loads((folder / "onnx.json").read_text()), 0.0 if out.bias is None else out.bias.item()
        assert about["scale"] == pytest.approx(out.scale.item()) and about["bias"] == pytest.approx(bias)
        for graph in ("image.onnx", "text.onnx"):  # whole, and without a word of where it was made
            onnx.checker.check_model(folder / graph, full_check=True)
            assert str(ROOT).encode() not in (folder / graph).read_bytes()
    done = subprocess.run([sys.executable, "-c", ALONE, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, kind in zip(folders, ours, strict=True):
        with np.load(Path(folder, "found.npz")) as found:
            assert found["ids"].dtype == IDS[kind]
            assert np.array_equal(found["ids"], ours[kind]["ids"]), kind
            levels = 255 * (found["pixels"] - ours[kind]["pixels"].numpy()) * 0.2
            assert np.abs(levels).max() < (3 if kind == "joined" else 0.01)  # timm's crop begins at a whole pixel
            for what in ("image", "text"):
                assert np.abs(found[what] - ours[kind][what].numpy()).max() < 1e-5, (kind, what)


def printed_shares(lines: str) -> dict[str, float]:
    return {words: float(share) for share, words in (line.split("%  ") for line in lines.splitlines())}


@pytest.mark.slow
def test_the_command_and_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shares that the example prints are those of the model, from a photo that lies on its side."""
    name, out, photo = save_tiny(tmp_path / "model"), tmp_path / "out", tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[274] = 6
    upright = Image.fromarray(ramps(40)[0])
    upright.transpose(Image.Transpose.ROTATE_90).save(photo, quality=100, subsampling=0, exif=exif)
    assert single("export", [name, str(out), "--to", "onnx", "--ids", "int32"]) == 0
    assert f'python {out}/example.py PICTURE "a dog" "a cat"' in capsys.readouterr().out
    assert onnx.load(out / "text.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32

    words = ["a red circle", "two dogs", "the sea"]
    done = subprocess.run(
        [sys.executable, out / "example.py", photo, *words], capture_output=True, text=True, check=True, cwd="/"
    )
    model, preprocess = opened(name)
    with Image.open(photo) as image, torch.no_grad():
        found = model(preprocess(image)[None], model.tokenizer(words))
    shares = 100 * (found.scale * found.image @ found.text.T).softmax(1)[0]
    assert printed_shares(done.stdout) == pytest.approx(dict(zip(words, shares.tolist(), strict=True)), abs=0.06)


def test_the_page_shows_the_example() -> None:
    shown = (ROOT / "miniclip/export/onnx_example.py").read_text("utf-8")
    page = (ROOT / "docs/use.md").read_text("utf-8")
    assert shown.partition("\n\n")[2].strip() in page


def test_eight_bits_and_what_they_cost(written: Callable[[str], Written], tmp_path: Path) -> None:
    """Both figures are counted again of what the example makes; matrices take a quarter of the room."""
    model, preprocess, folder = written("vit")
    for path in folder.glob("*[yxn]"):  # all but the arrays
        shutil.copy(path, tmp_path)
    whole = {graph: (tmp_path / graph).stat().st_size for graph in ("image.onnx", "text.onnx")}
    task = Retrieval(data="shapes", size=60)
    pairs = task.open(64)
    found = int8.cost(model, preprocess, tmp_path, task, pairs)

    assert {name: before for name, (before, _) in found.sizes.items()} == whole
    assert all(after == (tmp_path / name).stat().st_size for name, (_, after) in found.sizes.items())
    assert found.sizes["text.onnx"][1] < 0.3 * whole["text.onnx"]
    assert json.loads((tmp_path / "onnx.json").read_text())["weights"] == "int8"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".onnx", ".onnx", ".py"]

    want = retrieval(model, preprocess, model.tokenizer, pairs[0], resamples=0)
    assert found.before.figures == want.figures
    example = runpy.run_path(str(tmp_path / "example.py"))
    rows = range(len(pairs[0]))
    image = example["embeddings"]("image.onnx", np.stack([example["pixels"](pairs[0].image(row)) for row in rows]))
    texts = [text for row in rows for text in pairs[0].captions(row)]
    owner = np.array([row for row in rows for _ in pairs[0].captions(row)])
    scores = image @ example["embeddings"]("text.onnx", example["ids"](texts)).T
    ranks = (scores >= scores[owner, np.arange(len(texts))]).sum(0)
    assert found.after["text_to_image_r10"] == pytest.approx((ranks <= 10).mean(), abs=0.02)
    assert found.after.figures != found.before.figures


def test_what_onnx_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(exporting, "_MOST", 10**6)
    with pytest.raises(ValueError, match=r"less than 2 GiB, and its text tower has 0\.0; use --to transformers or"):
        formats.check("onnx", model, Preprocess(32))
    monkeypatch.undo()
    monkeypatch.setattr(DualEncoder, "tokenizer", property(lambda _: type("T", (), {"separator": 2})()))
    with pytest.raises(ValueError, match="its tokenizer replaces what ends a text"):
        formats.check("onnx", model, Preprocess(32))


def test_a_tower_that_cannot_be_traced_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: Any, x: torch.Tensor, k: int) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x

    name = save_tiny(tmp_path / "model")
    monkeypatch.setattr(type(tiny_model().visual), "upper", forward)
    assert single("export", [name, str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "image.onnx: torch cannot export this tower" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "open_clip", "--quantize", "int8"], "--quantize belongs to --to onnx; leave it out"),
        (["--to", "transformers", "--ids", "int32", "--data", "shapes"], "--ids and --data belongs to --to onnx"),
        (["--to", "onnx", "--quantize", "int8"], "--quantize int8 costs recall: name captioned images"),
        (["--to", "onnx", "--data", "shapes"], "--data belongs to --quantize int8; leave it out"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert single("export", ["no-model", "no-folder", *options]) == 2
    assert words in capsys.readouterr().err
