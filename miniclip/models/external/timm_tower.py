"""Image towers of timm (https://github.com/huggingface/pytorch-image-models), built and run by timm itself.

    timm:ARCH or timm:ARCH.TAG    published weights, fetched once; with HF_HUB_OFFLINE=1 from the cache alone
    timm:FOLDER                   config.json and model.safetensors, as timm's save_for_hf writes them
    timm:ARCH:FILE                a file of weights: safetensors, or a state dict of tensors alone (.pt, .pth, .bin)

The features are the pooled ones before the classifier, which is left out.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.cut import WHOLE
from miniclip.models.external.adapted import reading, square_side
from miniclip.models.external.hf_folder import keep_buffers, refuse_code
from miniclip.models.external.weights import completed, keep_unused, misfits
from miniclip.models.foreign import ForeignImage, OpenedImage
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import read_json

PREFIX = "timm:"
_WEIGHTS = "model.safetensors"


class _Family(NamedTuple):
    """What forward_features does in turn: the names of what comes before the blocks, of what holds them, and of what
    follows."""

    stem: tuple[str, ...]
    holders: tuple[str, ...]
    tail: tuple[str, ...]
    memory_format: torch.memory_format = torch.preserve_format


_LAST = torch.channels_last
# the class whose forward_features it is -> its parts; of RegNet, ConvNeXt and Swin the blocks are whole stages
_FAMILIES = {
    "EfficientNet": _Family(("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2"), _LAST),
    "MobileNetV3": _Family(("conv_stem", "bn1"), ("blocks",), (), _LAST),
    "ResNet": _Family(("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4"), (), _LAST),
    "RegNet": _Family(("stem",), ("s1", "s2", "s3", "s4"), ("final_conv",), _LAST),
    "ConvNeXt": _Family(("stem",), ("stages",), ("norm_pre",), _LAST),
    "VisionTransformer": _Family(("patch_embed", "_pos_embed", "patch_drop", "norm_pre"), ("blocks",), ("norm",)),
    "Eva": _Family(("patch_embed", "_pos_embed", "norm_pre"), ("blocks",), ("norm",)),
    "SwinTransformer": _Family(("patch_embed",), ("layers",), ("norm",)),
}
# what of timm's pretrained_cfg decides how a model is built
_BUILDS = ("input_size", "fixed_input_size", "global_pool", "num_classes")
# arguments of create_model that would read files, or make another thing than a model of images
_REFUSED = ("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "features_only")

log = logging.getLogger(__name__)


class TimmImage(ForeignImage):
    """model: of timm, without its classifier."""

    def __init__(self, model: nn.Module, described: Mapping[str, Any]) -> None:
        super().__init__()
        keep_unused(model, described["unused"])
        keep_buffers(model)  # of rotary positions, and of Swin's masks
        self.model: Any = model
        self.described = {"module": "timm_tower", **described}
        self.width = int(described["width"])
        owner = next((c.__name__ for c in type(model).__mro__ if "forward_features" in vars(c)), "")
        self.family = _FAMILIES.get(owner)
        if self.family is not None:
            self.memory_format = self.family.memory_format

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, width)."""
        features: Tensor = self.model(x)
        return features

    @property
    def blocks(self) -> Sequence[nn.Module]:
        holders = [getattr(self.model, name) for name in (self.family.holders if self.family else ())]
        return [block for holder in holders for block in _flat(holder)]

    def lower(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return self.forward(x)
        assert self.family is not None
        for name in self.family.stem:
            made: Any = getattr(self.model, name)(x)
            x = made[0] if isinstance(made, tuple) else made  # Eva's goes with its rotary positions
        return self._through(x, 0, k)

    def upper(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return x
        assert self.family is not None
        x = self._through(x, k, len(self.blocks))
        for name in self.family.tail:
            x = getattr(self.model, name)(x)
        features: Tensor = self.model.forward_head(x)
        return features

    def _through(self, x: Tensor, first: int, end: int) -> Tensor:
        rope = self._rope() if getattr(self.model, "rope", None) is not None else None
        for number, block in enumerate(self.blocks[first:end], first):
            more = {} if rope is None else {"rope": rope[number] if self.model.rope_mixed else rope}
            x = block(x, **more)
        return x

    def _rope(self) -> Tensor:
        """As Eva's _pos_embed makes it."""
        rope, patches, side = self.model.rope, self.model.patch_embed, self.described["side"]
        if self.model.dynamic_img_size:
            found: Tensor = rope.get_embed(shape=patches.dynamic_feat_size((side, side)))
        else:
            found = rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=patches.grid_size)
        return found


def _flat(part: nn.Module) -> Iterator[nn.Module]:
    """What is called in turn, of lists within lists."""
    if type(part) in (nn.Sequential, nn.ModuleList):
        for child in part.children():
            yield from _flat(child)
    else:
        yield part


class _Source(NamedTuple):
    """Where a tower comes from. place: what timm calls it. args: of the model, from a folder. file: of its weights, or
    None where timm fetches them. cfg: timm's pretrained_cfg."""

    name: str
    place: str
    args: dict[str, Any]
    file: Path | None
    cfg: dict[str, Any]


def open_image(name: str, config: ModelConfig) -> OpenedImage:
    """Raises ValueError or FileNotFoundError with one line that says what to do."""
    source = _find(name)
    side, sized = _side(source, config.image_size)
    preprocess = _preprocess(source, side)
    model = _without_classifier(_loaded(source, sized))
    cfg, args = model.pretrained_cfg, {**source.args, **sized}
    built = {key: cfg[key] for key in _BUILDS if key in cfg}
    described = completed(name, {"arch": cfg["architecture"], "args": args, "cfg": built}, side, build_image)
    return OpenedImage(TimmImage(model, described).eval(), preprocess)


def build_image(described: Mapping[str, Any]) -> TimmImage:
    import timm

    cfg = {k: tuple(v) if isinstance(v, list) else v for k, v in described["cfg"].items()}
    model = timm.create_model(described["arch"], pretrained=False, pretrained_cfg=cfg, **_safe(described["args"]))
    return TimmImage(_without_classifier(model), described)


def _without_classifier(model: Any) -> Any:
    if model.num_classes:
        model.reset_classifier(0)
    return model


def _safe(args: Any) -> dict[str, Any]:
    """Arguments of timm's create_model that a file gives. Raises ValueError for one that would do more than build."""
    if refused := [key for key in _REFUSED if key in args]:
        raise ValueError(f"config.json asks timm for {', '.join(refused)}, which would load something else; remove it")
    return dict(args)


def _find(name: str) -> _Source:
    """Raises ValueError or FileNotFoundError if there is no such tower, or none that may be loaded."""
    import timm

    body = name.removeprefix(PREFIX)
    folder, args, file = Path(body).expanduser(), dict[str, Any](), None
    if folder.is_dir():
        refuse_code(name, folder)
        file, place = folder / _WEIGHTS, f"local-dir:{folder}"
        for needed in (folder / "config.json", file):
            if not needed.is_file():
                whole = "timm.models.save_for_hf(model, folder, safe_serialization=True) writes both"
                raise FileNotFoundError(f"{name}: the folder lacks {needed.name}; {whole}")
        values = read_json(folder / "config.json")
        arch, args = str(values.get("architecture")), _safe(values.get("model_args") or {})
    else:
        arch, colon, path = body.partition(":")
        place = arch
        if colon and not (file := Path(path).expanduser()).is_file():
            raise FileNotFoundError(f"{name}: there is no file {path}; name one of weights, {PREFIX}{arch}:FILE")
    if not timm.is_model(arch):
        known = timm.list_models()
        near = difflib.get_close_matches(arch.partition(".")[0], known, n=4, cutoff=0.5)
        did = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has all of them"
        raise ValueError(f"{name}: timm has no architecture {arch!r}, and there is no such folder; {did}")
    base, _, tag = arch.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{name}: timm knows no weights {tag!r} of {base}; known: {', '.join(tags) or 'none'}")
    if not tags and file is None:
        raise ValueError(f"{name}: timm knows no weights of {base}; name a file of them, {PREFIX}{base}:FILE")
    trouble = "check its name, or config.json in its folder"
    with reading(lambda why: f"{name}: timm cannot build it ({why}); {trouble}"), torch.device("meta"):
        model: Any = timm.create_model(place, pretrained=False)
    return _Source(name, place, args, file, model.pretrained_cfg)


def _side(source: _Source, asked: int | None) -> tuple[int, dict[str, Any]]:
    """S, and what timm has to be told of it."""
    own = source.args.get("img_size") or source.cfg["input_size"][-2:]
    own = square_side(source.name, own)
    if asked in (None, own):
        return own, {}
    log.warning("%s was trained with images of %d pixels, and gets those of %d", source.name, own, asked)
    fixed = source.cfg.get("fixed_input_size") or "img_size" in source.args
    return int(asked or own), {"img_size": asked} if fixed else {}


def _loaded(source: _Source, sized: Mapping[str, Any]) -> Any:
    """timm's model with its classifier, if the weights have one: only then timm insists that there are all of them."""
    import timm

    overlay: dict[str, Any] = {}
    if source.file is not None:
        with reading(lambda why: f"{source.name}: {source.file} cannot be read as weights ({why})"):
            state = timm.models.load_state_dict(str(source.file), weights_only=True)
        name = source.cfg.get("classifier")
        name = name[0] if isinstance(name, list | tuple) else name
        rows = len(state[f"{name}.weight"]) if f"{name}.weight" in state else 0
        overlay = {"source": "", "file": None, "state_dict": state, "custom_load": False, "num_classes": rows}
    with reading(lambda why: _trouble(source, why)), misfits():
        return timm.create_model(source.place, pretrained=True, pretrained_cfg_overlay=overlay, **sized)


def _trouble(source: _Source, reason: str) -> str:
    if source.file is not None:
        return f"{source.name}: {source.file} does not hold its weights ({reason})"
    advice = f"check the internet connection, or fetch them elsewhere and name what was fetched: {PREFIX}FOLDER"
    return f"{source.name}: its weights cannot be fetched or loaded ({reason}); {advice}, or {PREFIX}ARCH:FILE"


def _preprocess(source: _Source, side: int) -> Preprocess:
    """timm's own transform of evaluation. Raises ValueError for one that miniclip does not have."""
    from timm.data.config import resolve_data_config

    values = resolve_data_config({"img_size": side}, pretrained_cfg=source.cfg)
    resize = {"center": "crop", "squash": "squash"}.get(values["crop_mode"])
    interpolation, share = values["interpolation"], values["crop_pct"]
    mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    if resize is None or interpolation not in ("bicubic", "bilinear") or not 0 < share <= 1 or len(mean) != 3:
        raise ValueError(
            f"{source.name} wants images prepared by crop_mode={values['crop_mode']!r}, interpolation={interpolation!r}"
            f", crop_pct={share} and mean {mean}; miniclip can do center and squash, bicubic and bilinear, a share of "
            "at most 1 and three channels"
        )
    return Preprocess(side, cast(Any, mean), cast(Any, std), cast(Any, resize), cast(Any, interpolation), share, True)
