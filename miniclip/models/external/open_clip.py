"""Models of open_clip (https://github.com/mlfoundations/open_clip), in the form that evaluation takes.

    open_clip:ARCH:TAG                    published weights, fetched once
    open_clip:ARCH:FILE                   a file: safetensors, a state dict, or open_clip_train's checkpoint
    open_clip:ARCH:random                 fresh weights, drawn from torch's own generator
    open_clip:hf-hub:ORG/NAME             config, preprocessing, tokenizer and weights from the Hub
    open_clip:local-dir:FOLDER            the same from a folder

A slash may stand for the colon behind ARCH, and for a dash in it: open_clip:ViT-B/32/openai. A TAG whose weights were
trained with QuickGELU gets it, whatever ARCH says. Weights are read as safetensors or with `weights_only=True`, and a
tokenizer that brings Python files is refused.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.common.printing import first_few
from miniclip.models.external.adapted import AdaptedConfig, AdaptedModel, reading, square_side
from miniclip.models.external.weights import misfits
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import Tokenizer

RANDOM = "random"
_FOLDERS = ("hf-hub:", "local-dir:")  # what brings its own config
_QUICK = "-quickgelu"  # open_clip's name of an architecture with QuickGELU

log = logging.getLogger(__name__)


class OpenClipModel(AdaptedModel):
    def encode_image(self, image: Tensor) -> Tensor:
        return self.model.encode_image(image, normalize=False)  # CoCa's own default is True

    def encode_text(self, text: Tensor) -> Tensor:
        """The towers want every row at its full length: zeros cut off behind CLIP's end token are put back.

        Raises ValueError for another L where the padding is not zeros."""
        missing = self.config.context_length - text.shape[1]
        if missing < 0 or (missing and not self.config.zero_padded):
            due = f"rows of {self.config.context_length} ids, as its tokenizer returns them"
            raise ValueError(f"text has shape {tuple(text.shape)}; {self.config.name} takes {due}")
        return self.model.encode_text(F.pad(text, (0, missing)), normalize=False)


def load(name: str, device: str | torch.device = "cpu") -> tuple[OpenClipModel, Preprocess, TextTokenizer]:
    """A name of the form above -> the model in evaluation mode, in float32, its preprocessing and its tokenizer.

    A file says nothing of the preprocessing (nor of QuickGELU, which the ARCH decides): it gets open_clip's default. A
    folder has its own. Position embeddings of another image size or context length are interpolated.
    Raises ValueError with one line that says what to do.
    """
    source = _find(name)
    if source.arch.endswith(_QUICK) and _QUICK[1:] not in name:
        log.warning("%s: its weights were trained with QuickGELU, so they are used as %s", name, source.arch)
    side = _side(source)
    tokenizer, length = _tokenizer(source)  # may refuse, so before the weights are fetched
    open_clip, random = _open_clip(), source.pretrained == RANDOM
    with reading(lambda reason: _trouble(source, reason)), misfits(), _positions_named(source):
        model = open_clip.create_model(
            source.arch,
            None if random else source.pretrained,
            device=device,
            require_pretrained=not random,
            pretrained_text=False,
            weights_only=True,
        )
    preprocess = _preprocess(name, side, open_clip.get_model_preprocess_cfg(model))
    zeros = isinstance(tokenizer, Tokenizer)
    config = AdaptedConfig(name, side, source.config["embed_dim"], length, zeros, source.config)
    return OpenClipModel(model, config).eval(), preprocess, tokenizer


def image_size(name: str) -> int:
    """S of the model that `name` means, without its weights; of the Hub's models the config is fetched.

    Raises ValueError as `load` does, for all that can be known before there are weights.
    """
    return _side(_find(name))


class _Source(NamedTuple):
    """Where a model comes from. arch, pretrained: open_clip's own arguments, or RANDOM. config: its model config."""

    name: str
    arch: str
    pretrained: str | None
    config: dict[str, Any]


def _find(name: str) -> _Source:
    """Raises ValueError if open_clip knows no such model, or if it would be another than is meant."""
    open_clip, body = _open_clip(), name.removeprefix("open_clip:")
    if body.startswith(_FOLDERS):
        return _Source(name, body, None, _folder_config(name, body))
    known = open_clip.list_models()
    arch, pretrained = _split(body, known)
    if arch not in known:
        near = difflib.get_close_matches(arch, known, n=4, cutoff=0.5)
        did = f"did you mean {', '.join(near)}?" if near else "open_clip.list_models() has all of them"
        raise ValueError(f"{name}: open_clip has no architecture {arch!r}; {did}")
    config = open_clip.get_model_config(arch)
    if pretrained == RANDOM:
        return _Source(name, arch, pretrained, config)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    choices = f"the tags {', '.join(tags)}, or a file" if tags else "a file (open_clip knows no tag for it)"
    if not pretrained:
        raise ValueError(
            f"{name} names no weights; write open_clip:{arch}:PRETRAINED with one of {choices}; fresh weights, which "
            f"know nothing, are open_clip:{arch}:{RANDOM}"
        )
    if open_clip.is_pretrained_cfg(arch, pretrained):
        # open_clip only warns, and evaluates the weights with the other activation
        quick = open_clip.get_pretrained_cfg(arch, pretrained).get("quick_gelu", False)
        if quick and not config.get("quick_gelu", False):
            return _Source(name, arch + _QUICK, pretrained, open_clip.get_model_config(arch + _QUICK))
    elif not Path(pretrained).is_file():
        raise ValueError(f"{name}: {pretrained!r} is neither a known tag nor a file; {arch} takes {choices}")
    return _Source(name, arch, pretrained, config)


def _side(source: _Source) -> int:
    return square_side(source.name, source.config["vision_cfg"].get("image_size", 224))  # open_clip's default


def _split(body: str, known: Collection[str]) -> tuple[str, str]:
    """ARCH:REST or ARCH/REST -> the name by which open_clip knows ARCH, and REST, which may hold either sign."""
    arch, _, rest = body.partition(":")
    arch = arch.replace("/", "-")
    if arch in known:
        return arch, rest
    for place in reversed([place for place, sign in enumerate(body) if sign == "/"]):  # the longest name first
        if (longer := body[:place].replace("/", "-")) in known:
            return longer, body[place + 1 :]
    return arch, rest


def _folder_config(name: str, body: str) -> dict[str, Any]:
    what = "the internet connection and the name" if body.startswith("hf-hub:") else "the folder's name"
    with reading(lambda reason: f"{name}: no open_clip_config.json can be read there ({reason}); check {what}"):
        config = _open_clip().get_model_config(body)
    whole = isinstance(config, dict) and "embed_dim" in config
    if not whole or not all(isinstance(config.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise ValueError(f"{name}: its open_clip_config.json lacks embed_dim, vision_cfg or text_cfg; it is not a CLIP")
    text, timm, here = config["text_cfg"], config["vision_cfg"].get("timm_model_name"), Path(body.partition(":")[2])
    tokenizer = any((here / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    asked = (text.get("hf_model_name"), ":" in str(timm) and timm, not tokenizer and text.get("hf_tokenizer_name"))
    if named := list(filter(None, asked)):  # whoever wrote the config may have named anything
        log.warning("%s: its config names %s, which open_clip looks for on the Hub", name, first_few(named))
    return config


def _tokenizer(source: _Source) -> tuple[TextTokenizer, int]:
    """-> the tokenizer and its context length. CLIP's own byte pairs come from miniclip: equal ids, and faster."""
    arch, text = source.arch, source.config["text_cfg"]
    foreign = text.get("hf_tokenizer_name")
    # open_clip goes by the name, too, if the config names no tokenizer
    by_name = not arch.startswith(_FOLDERS) and "siglip" in arch.lower()
    if not foreign and not by_name and not text.get("tokenizer_kwargs"):
        length = int(text.get("context_length", 77))
        return Tokenizer(length), length
    advice = "it is fetched when first used and may not bring code of its own"
    with reading(lambda why: f"{source.name}: its tokenizer {foreign or arch} cannot be loaded ({why}); {advice}"):
        # a config may ask for the Python files of a tokenizer; this overrules it
        theirs = _open_clip().get_tokenizer(arch, **({"trust_remote_code": False} if foreign else {}))
    return lambda texts: theirs(list(texts)).long(), int(theirs.context_length)


def _trouble(source: _Source, reason: str) -> str:
    name, arch, pretrained, _ = source
    if pretrained == RANDOM:
        return f"{name}: open_clip cannot build it ({reason})"
    if arch.startswith("local-dir:"):
        return f"{name}: the folder's weights cannot be loaded ({reason})"
    if pretrained and Path(pretrained).is_file():
        return f"{name}: the file cannot be loaded as weights of {arch} ({reason})"
    form = "local-dir:FOLDER" if pretrained is None else f"{arch}:FILE"
    return (
        f"{name}: its weights cannot be fetched or loaded ({reason}); check the internet connection, or fetch them "
        f"elsewhere and name what was fetched: open_clip:{form}"
    )


@contextmanager
def _positions_named(source: _Source) -> Iterator[None]:
    """open_clip looks at the text's positions before it compares any weights, and does not say what they are."""
    try:
        yield
    except AssertionError as error:
        text, file = source.config["text_cfg"], Path(str(source.pretrained))
        state = _open_clip().factory.load_state_dict(str(file)) if file.is_file() else {}
        for key, value in state.items():
            if key.removeprefix("text.") == "positional_embedding":
                due = [text.get("context_length", 77), text.get("width", 512)]
                raise ValueError(f"{key} is {list(value.shape)} and should be {due}") from error
        raise


def _preprocess(name: str, side: int, values: Mapping[str, Any]) -> Preprocess:
    resize = {"shortest": "crop", "squash": "squash"}.get(values["resize_mode"])
    interpolation = {"random": "bicubic"}.get(values["interpolation"], values["interpolation"])  # random: in training
    mean, std = (tuple(v) if isinstance(v, Sequence) else (v,) for v in (values["mean"], values["std"]))
    if resize is None or interpolation not in ("bicubic", "bilinear") or len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"{name} wants images prepared by resize_mode={values['resize_mode']!r}, interpolation="
            f"{values['interpolation']!r}, mean {mean} and std {std}; miniclip can do shortest and squash, bicubic and "
            "bilinear, with three channels"
        )
    return Preprocess(side, mean, std, cast(Any, resize), cast(Any, interpolation), whole=True)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError("models of open_clip need it; pip install open_clip_torch") from error
    if not {"weights_only", "pretrained_text"} <= inspect.signature(open_clip.create_model).parameters.keys():
        unsafe = f"open_clip {open_clip.__version__} cannot load weights safely by itself"
        raise ValueError(f"{unsafe}; pip install -U open_clip_torch")
    return open_clip
