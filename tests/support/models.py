"""Tiny models."""

from __future__ import annotations

from pathlib import Path

import torch

from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model


def tiny_model(seed: int = 0, image_size: int = 32, width: int = 32) -> DualEncoder:
    torch.manual_seed(seed)
    small = {"embed_dim": 16, "image_width": width, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "vocab_size": 49408, "context_length": 32}
    return create_model("tiny-vit", image_size=image_size, **small, **text)


def save_tiny(directory: Path, seed: int = 0, image_size: int = 32, width: int = 32) -> str:
    save_model(directory, tiny_model(seed, image_size, width), Preprocess(image_size))
    return str(directory)
