"""Our evaluation against the code that the models come from: the same files, the same logits and the same ranks."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.photos import Photos
from test_interop import save_clip, stir
from torch import Tensor

from miniclip.config import DataConfig
from miniclip.data.captioned import open_source
from miniclip.data.labelled import open_labelled
from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.evaluation.zeroshot import classifier_of, embed_prompts
from miniclip.metrics.retrieval import RetrievalRanks, cosine_matrix, retrieval_ranks_from_embeddings
from miniclip.models.external.open_clip import load as load_open_clip
from miniclip.models.external.transformers_clip import load as load_transformers

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

OPTIONS = EncodeOptions(batch_size=7)  # divides nothing here
CLASSES = [f"{colour} {shape}" for colour in ("blue", "green", "red", "white") for shape in ("disc", "square", "star")]
NOISE = Photos([(24 + 37 * k % 87, 24 + 53 * k % 87) for k in range(200)])
TEMPLATES = ["a photo of a {}.", "there is one {} on the table", "{}"]
TOLERANCE = 1e-4  # on logits


class Files(NamedTuple):
    """What was drawn: a folder a class, and a table of captions with two lines a picture."""

    labelled: Path
    captioned: Path
    pictures: list[Path]  # of labelled, class by class
    captions: list[tuple[Path, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root, rng = tmp_path_factory.mktemp("pictures"), random.Random(0)
    labelled, captioned = root / "labelled", root / "captioned"
    captioned.mkdir()
    pictures, captions = [], []
    for number, label in enumerate(CLASSES):
        folder = labelled / label.replace(" ", "_")
        folder.mkdir(parents=True)
        for k in range(3):
            pictures.append(folder / f"{k}.{rng.choice(['png', 'jpg'])}")
            NOISE.image(len(pictures)).save(pictures[-1])
        for k in range(2):
            path = captioned / f"{number}-{k}.{rng.choice(['png', 'jpg'])}"
            NOISE.image(100 + len(captions)).save(path)
            place, size = rng.choice(["left", "right", "middle"]), rng.randint(10, 99)
            captions += [
                (path, f"A {label}, {size} pixels wide &amp; at the {place}"),
                (path, f"{size} × {label} … {k}"),
            ]
    for split, rows in (("train", captions[:1]), ("test", captions)):
        with (captioned / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "caption"), *((path.name, text) for path, text in rows)])
    return Files(labelled, captioned, pictures, captions)


# Their side: how open_clip and transformers score pictures and texts


def pixels_of(transform: Callable[[Image.Image], Tensor], paths: list[Path]) -> Tensor:
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def of_captions(files: Files) -> tuple[list[Path], list[str], Tensor]:
    """-> each picture once, the captions, and which picture each belongs to."""
    paths = list(dict.fromkeys(path for path, _ in files.captions))
    return paths, [text for _, text in files.captions], torch.tensor([paths.index(path) for path, _ in files.captions])


# Our side


def our_zero_shot(loaded: tuple[Any, Any, Any], files: Files, templates: list[str]) -> Tensor:
    model, preprocess, tokenizer = loaded
    source = open_labelled(files.labelled, image_size=preprocess.image_size)
    assert source.classes == CLASSES and len(source) == len(files.pictures)
    assert [Path(source.name(k)).name for k in range(3)] == [path.name for path in files.pictures[:3]]
    prompts = [[template.format(name) for template in templates] for name in source.classes]
    classifier = classifier_of(embed_prompts(model, tokenizer, prompts, OPTIONS))
    return logits(model, cosine_matrix(encode_images(model, source, preprocess, OPTIONS), classifier))


def our_retrieval(loaded: tuple[Any, Any, Any], files: Files) -> tuple[Tensor, RetrievalRanks]:
    """-> (N, M) logits and the ranks, of pictures and captions as the source has them."""
    model, preprocess, tokenizer = loaded
    source = open_source(DataConfig(source=str(files.captioned)), "test", image_size=preprocess.image_size)
    texts = [source.captions(k) for k in range(len(source))]
    owner = torch.tensor([k for k, own in enumerate(texts) for _ in own])
    image = encode_images(model, source, preprocess, OPTIONS)
    text = encode_texts(model, tokenizer, [one for own in texts for one in own], OPTIONS)
    return logits(model, cosine_matrix(image, text)), retrieval_ranks_from_embeddings(image, text, owner)


@torch.no_grad()
def logits(model: Any, cosines: Tensor) -> Tensor:
    return model.logit_scale.exp() * cosines + (0 if model.logit_bias is None else model.logit_bias)


def assert_same_ranks(ranks: RetrievalRanks, ours: Tensor, theirs: Tensor, owner: Tensor) -> None:
    """theirs: (N, M) logits, of which the ranks are counted here. ours: what our ranks were counted from, rescaled.

    Where two scores are nearer to each other than rounding moves them, either order is right. So a rank may lie between
    that with every such pair in its favour and that with every one against; nearly always, the two are the same.
    """
    rounding = 2 * float((ours - theirs).abs().max())
    own = owner == torch.arange(len(theirs))[:, None]
    for rank, score, mine in ((ranks.image_to_text, theirs, own), (ranks.text_to_image, theirs.T, own.T)):
        best = score.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
        foreign = score.masked_fill(mine, -torch.inf)
        least, most = 1 + (foreign > best + rounding).sum(1), 1 + (foreign >= best - rounding).sum(1)
        assert bool(((least <= rank) & (rank <= most)).all())
        assert (least == most).double().mean() > 0.9
        assert len(rank.unique()) > 5  # no model whose ranks would be easy to meet


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    # The scores differ by much more than that from picture to picture and from text to text.
    assert min(theirs.std(0).min(), theirs.std(1).min()) > 100 * TOLERANCE


TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
ARCHS: dict[str, dict[str, Any]] = {
    "ref-vit": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "ref-sigmoid": {
        "embed_dim": 16,
        "vision_cfg": {**VISION, "image_size": 48, "pool_type": "avg"},
        "text_cfg": {**TEXT, "no_causal_mask": True},
        "custom_text": True,
        "init_logit_bias": -10,
    },
}


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_open_clip(arch: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / f"{arch}.json").write_text(json.dumps(ARCHS[arch]))
    open_clip.add_model_config(tmp_path / f"{arch}.json")
    torch.manual_seed(0)
    stir(model := open_clip.create_model(arch))
    weights = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), weights)

    theirs, _, transform = open_clip.create_model_and_transforms(arch, str(weights))
    theirs.eval()
    tokenizer = open_clip.get_tokenizer(arch)
    bias = 0 if theirs.logit_bias is None else theirs.logit_bias
    loaded = load_open_clip(f"open_clip:{arch}/{weights}")

    classifier = open_clip.build_zero_shot_classifier(theirs, tokenizer, CLASSES, [t.format for t in TEMPLATES])
    image = theirs.encode_image(pixels_of(transform, files.pictures), normalize=True)
    expected = theirs.logit_scale.exp() * image @ classifier + bias
    assert_same_logits(our_zero_shot(loaded, files, TEMPLATES), expected)

    paths, texts, owner = of_captions(files)
    expected, _ = theirs.get_logits(pixels_of(transform, paths), tokenizer(texts))
    ours, ranks = our_retrieval(loaded, files)
    assert_same_logits(ours, expected)
    assert_same_ranks(ranks, ours, expected, owner)


@pytest.mark.parametrize("eos", [49407, 2])
@torch.no_grad()
def test_transformers(eos: int, files: Files, tmp_path: Path) -> None:
    name = save_clip(tmp_path, eos=eos, processor={"resample": 2} if eos == 2 else None)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path)
    loaded = load_transformers(name)

    def score(paths: list[Path], texts: list[str]) -> Tensor:
        pictures = [Image.open(path) for path in paths]
        return theirs(**processor(text=texts, images=pictures, padding=True, return_tensors="pt")).logits_per_image

    for template in TEMPLATES:  # its forward has one text a class
        expected = score(files.pictures, [template.format(name) for name in CLASSES])
        assert_same_logits(our_zero_shot(loaded, files, [template]), expected)

    paths, texts, owner = of_captions(files)
    expected = score(paths, texts)
    ours, ranks = our_retrieval(loaded, files)
    assert_same_logits(ours, expected)
    assert_same_ranks(ranks, ours, expected, owner)
