"""python -m miniclip.export.verify FORMAT FOLDER GIVEN ANSWERS: what another library makes of a folder.

Nothing of miniclip's models is imported here. GIVEN and ANSWERS are .npz files; see Given, and the functions for what
they answer: image (B, E) and text (T, E) of unit length, logits (B, T), and pixels and ids where the folder makes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Answers = dict[str, np.ndarray]


class Given(NamedTuple):
    """images: (H, W, 3) uint8 each, of any size. texts: as many. pixels: (B, 3, S, S) float32, normalised, which are
    not those of images. ids: (T, L) int64, those of texts."""

    images: list[np.ndarray]
    texts: list[str]
    pixels: np.ndarray
    ids: np.ndarray


def transformers(folder: Path, given: Given) -> Answers:
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

    loaded: Any = CLIPModel.from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    if any(told.values()):
        raise ValueError(f"weights do not fit: {told}")
    processor = CLIPProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = model.eval()(input_ids=torch.from_numpy(given.ids), pixel_values=torch.from_numpy(given.pixels))
    images = [Image.fromarray(image) for image in given.images]
    pixels = processor(images=images, return_tensors="np")["pixel_values"]
    rows: Any = AutoTokenizer.from_pretrained(folder)(
        given.texts, padding="max_length", truncation=True, return_tensors="np"
    )
    ids = rows["input_ids"] * rows["attention_mask"]  # ours has zeros behind a text
    found = {"image": out.image_embeds, "text": out.text_embeds, "logits": out.logits_per_image}
    return {**{name: x.numpy() for name, x in found.items()}, "pixels": pixels, "ids": ids}


def open_clip(folder: Path, given: Given) -> Answers:
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(given.texts).long()
    with torch.inference_mode():
        image, text = torch.from_numpy(given.pixels), ids
        logits, _ = model.eval().get_logits(image, text)
        found = {"image": model.encode_image(image, normalize=True), "text": model.encode_text(text, normalize=True)}
    pixels = torch.stack([transform(Image.fromarray(image)) for image in given.images])
    # what stands behind a text is -1 in ours, and shows in what the tower makes of it
    own = np.where(given.ids < 0, given.ids, ids.numpy())
    return {**{k: x.numpy() for k, x in {**found, "logits": logits, "pixels": pixels}.items()}, "ids": own}


def onnx(folder: Path, given: Given) -> Answers:
    """By the example beside the graphs: the first by itself, of a text no more than its own tokens, then the others."""
    import runpy

    from PIL import Image

    example = runpy.run_path(str(folder / "example.py"))
    about, run = example["ABOUT"], example["embeddings"]
    rows = given.ids.astype(about["ids"])
    image = np.concatenate([run("image.onnx", given.pixels[:1]), run("image.onnx", given.pixels[1:])])
    text = np.concatenate([run("text.onnx", example["ids"](given.texts[:1])), run("text.onnx", rows[1:])])
    logits = about["scale"] * image @ text.T + about["bias"]
    pixels = np.stack([example["pixels"](Image.fromarray(image)) for image in given.images])
    ids = np.full_like(rows, about["padding"])
    found = example["ids"](given.texts)  # no longer than the longest of them
    ids[:, : found.shape[1]] = found
    return {"image": image, "text": text, "logits": logits, "pixels": pixels, "ids": ids}


READERS = {"transformers": transformers, "open_clip": open_clip, "onnx": onnx}


def main(to: str, folder: str, asked: str, answers: str) -> None:
    with np.load(asked) as file:
        images = [file[f"image_{k}"] for k in range(sum(name.startswith("image_") for name in file.files))]
        given = Given(images, json.loads(str(file["texts"])), file["pixels"], file["ids"])
    np.savez(answers, **READERS[to](Path(folder), given))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
