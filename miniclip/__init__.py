"""miniclip: train, evaluate and understand a CLIP-style model on your own captioned images.

    model = miniclip.create_model("ViT-B-32")
    model, preprocess, tokenizer = miniclip.load("runs/shapes")
    embeddings = miniclip.load("runs/shapes").encode(["a red circle", "a blue star"])
    tokens = miniclip.tokenize(["a red circle", "a blue star"])

Names are imported when they are first used, so that `import miniclip` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniclip.evaluation.loaded import load as load
    from miniclip.losses import LOSSES as LOSSES
    from miniclip.models import PRESETS as PRESETS
    from miniclip.models import DualEncoder as DualEncoder
    from miniclip.models import create_model as create_model
    from miniclip.models.saved import save_model as save_model
    from miniclip.models.tokenizer import tokenize as tokenize

__version__ = "0.1.0"

_HOME = {
    "DualEncoder": "miniclip.models",
    "LOSSES": "miniclip.losses",
    "PRESETS": "miniclip.models",
    "create_model": "miniclip.models",
    "load": "miniclip.evaluation.loaded",
    "save_model": "miniclip.models.saved",
    "tokenize": "miniclip.models.tokenizer",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'miniclip' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
