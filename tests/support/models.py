"""Tiny models, saved."""

from __future__ import annotations

from pathlib import Path

import torch

from miniclip.models import create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model


def save_tiny(directory: Path, seed: int = 0, image_size: int = 32, width: int = 32) -> str:
    torch.manual_seed(seed)
    small = {"embed_dim": 16, "image_width": width, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "vocab_size": 49408, "context_length": 32}
    save_model(directory, create_model("tiny-vit", image_size=image_size, **small, **text), Preprocess(image_size))
    return str(directory)
