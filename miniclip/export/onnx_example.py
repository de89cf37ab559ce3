"""Which words fit a picture best: python example.py PICTURE WORDS... (onnxruntime, numpy, pillow and tokenizers)."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "onnx.json").read_text())


def pixels(image: Image.Image) -> np.ndarray:
    image, how = ImageOps.exif_transpose(image).convert("RGB"), ABOUT["preprocess"]
    sides = np.array(image.size)
    kept = (sides if how["resize"] == "squash" else sides.min()) * how["crop_pct"]
    box, method = (*(sides - kept) / 2, *(sides + kept) / 2), Image.Resampling[how["interpolation"].upper()]
    square = np.asarray(image.resize([how["image_size"]] * 2, method, box)) / 255
    return ((square - how["mean"]) / how["std"]).transpose(2, 0, 1).astype("float32")


def ids(texts: Sequence[str]) -> np.ndarray:
    rows = Tokenizer.from_file(str(HERE / "tokenizer.json")).encode_batch(texts)
    return np.array([np.where(row.attention_mask, row.ids, ABOUT["padding"]) for row in rows], ABOUT["ids"])


def embeddings(graph: str, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(HERE / graph)
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


if __name__ == "__main__":
    image, texts = embeddings("image.onnx", pixels(Image.open(sys.argv[1]))[None]), sys.argv[2:]
    logits = ABOUT["scale"] * embeddings("text.onnx", ids(texts)) @ image[0]
    shares = np.exp(logits - logits.max())
    for text, share in zip(texts, shares / shares.sum(), strict=True):
        print(f"{share:.1%}  {text}")
