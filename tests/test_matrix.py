"""Embeddings to the matrix of similarities."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from miniclip.matrix import similarity_logits


def test_matrix_is_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(16, 64, generator=generator), dim=-1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = similarity_logits(image, text, torch.tensor(100.0))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * image @ text.T, rtol=0, atol=1e-4)
