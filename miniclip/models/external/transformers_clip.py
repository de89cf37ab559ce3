"""Models of transformers (https://github.com/huggingface/transformers), in the form that evaluation takes.

    hf:FOLDER      what save_pretrained wrote of a model and its processor
    hf:ORG/NAME    the same from the Hub; with HF_HUB_OFFLINE=1 from its cache alone

CLIPModel and SiglipModel are known. Weights are read as safetensors, and Python files beside them are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.common.pixels import to_rgb
from miniclip.models.external.adapted import AdaptedConfig, AdaptedModel, square_side
from miniclip.models.external.hf_folder import from_pretrained, place_of, quiet
from miniclip.models.preprocess import Preprocess

_FAMILIES = {"clip": "CLIP", "siglip": "Siglip"}  # model_type in config.json -> how their classes' names begin
# What a folder must hold; of each line, one file is enough.
_FILES = (
    ("config.json",),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"),
    ("model.safetensors", "model.safetensors.index.json"),
)
LEGACY_EOS = 2  # what old configs of CLIP say; transformers then pools at the highest id


class TransformersModel(AdaptedModel):
    def encode_image(self, image: Tensor) -> Tensor:
        return _features(self.model.get_image_features(pixel_values=image))

    def encode_text(self, text: Tensor) -> Tensor:
        hidden = text < 0  # as TransformersTokenizer marks them
        if not bool(hidden.any()):
            return _features(self.model.get_text_features(input_ids=text))
        ids, mask = torch.where(hidden, ~text, text), (~hidden).to(text.dtype)
        return _features(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def _features(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output  # the tensor itself before transformers 5


@dataclass(frozen=True)
class TransformersPreprocess(Preprocess):
    """The squares are made by the model's own image processor; mean and std say what it does to them then."""

    processor: Any = None

    def to_square(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.to_uint8(image).permute(1, 2, 0).contiguous().numpy())  # c h w -> h w c

    def to_uint8(self, image: Image.Image) -> Tensor:
        # a call keeps no state in the processor, so threads may share it
        rgb = to_rgb(image, 2 * self.image_size)
        made = self.processor(images=rgb, do_rescale=False, do_normalize=False, return_tensors="pt")
        return made["pixel_values"][0]

    def to_dict(self) -> dict[str, Any]:
        values = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "resize": self.resize}
        return {**values, "processor": self.processor.to_dict()}


@dataclass(frozen=True)
class TransformersTokenizer:
    """Texts -> (B, L) int64: ids of the model's own tokenizer, cut or padded to L.

    sees_padding: the text tower looks at the padding, so that it needs the attention mask if the tokenizer gives one.
    A row then holds ~id, which is negative, where the mask is 0.
    """

    tokenizer: Any
    context_length: int
    sees_padding: bool

    def __call__(self, texts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        rows = self.tokenizer(list(texts), return_tensors="pt", **options)
        ids, mask = rows["input_ids"].long(), rows.get("attention_mask")
        return torch.where(mask.bool(), ids, ~ids) if self.sees_padding and mask is not None else ids


def own_preprocess(name: str, theirs: TransformersPreprocess) -> Preprocess:
    """The same as a plain Preprocess, which training may augment and save; where they round, a pixel may be another.

    Raises ValueError for a processor that does something else.
    """
    processor, side = theirs.processor, theirs.image_size
    shortest, method = processor.size.get("shortest_edge"), {2: "bilinear", 3: "bicubic"}.get(processor.resample)
    resize, share = ("crop", side / shortest) if shortest else ("squash", side / processor.size["height"])
    size = f"size={dict(processor.size)}, resample={processor.resample}"
    cannot = f"{name}: its image processor, {type(processor).__name__} with {size}, makes other squares than"
    cannot += " data.resize=crop and squash do, bicubic or bilinear; change its preprocessor_config.json"
    if method is None or share > 1:
        raise ValueError(cannot)
    ours = Preprocess(side, theirs.mean, theirs.std, cast(Any, resize), cast(Any, method), share, whole=True)
    for shape in ((2 * side, 3 * side), (3 * side, 2 * side)):
        rows, columns = (np.linspace(0, 255, n) for n in shape)
        ramp = np.stack(np.broadcast_arrays(rows[:, None], columns, 255 - columns), axis=-1).astype(np.uint8)
        image = Image.fromarray(ramp)
        # a crop may begin a pixel elsewhere
        if (ours.to_uint8(image).int() - theirs.to_uint8(image).int()).abs().max() > 2 + 2 * 255 / side:
            raise ValueError(cannot)
    return ours


def load(
    name: str, device: str | torch.device = "cpu"
) -> tuple[TransformersModel, TransformersPreprocess, TransformersTokenizer]:
    """A name of the form above -> the model in evaluation mode, in float32, its preprocessing and its tokenizer.

    Raises ValueError with one line that says what to do, also if some weights are missing or of another shape.
    """
    source = _find(name)
    preprocess, tokenizer = _preprocess(source), _tokenizer(source)  # may refuse, so before the weights are fetched
    model = _model(source).to(device)
    width = source.config.projection_dim if source.family == "CLIP" else source.config.vision_config.hidden_size
    config = AdaptedConfig(name, preprocess.image_size, int(width), tokenizer.context_length, source=source.config)
    return TransformersModel(model, config).eval(), preprocess, tokenizer


def image_size(name: str) -> int:
    """S of the model that `name` means, without its weights; of the Hub's models two small files are fetched.

    Raises ValueError as `load` does, for all that can be known before there are weights and a tokenizer.
    """
    return _preprocess(_find(name)).image_size


class _Source(NamedTuple):
    """Where a model comes from. place: a folder or a name on the Hub. config: a CLIPConfig or SiglipConfig."""

    name: str
    place: str
    family: str
    config: Any


def _find(name: str) -> _Source:
    """Raises ValueError if there is no such model, or none that miniclip can evaluate."""
    place = place_of(name, r"\w[\w.-]*/\w[\w.-]*")
    folder = Path(place)
    lacking = [files for files in _FILES if not any((folder / file).is_file() for file in files)]
    if lacking and folder.is_dir():
        raise ValueError(
            f"{name}: the folder lacks {' or '.join(lacking[0])}; call save_pretrained({place!r}) of the model and of "
            "its processor (only safetensors are read)"
        )
    import transformers

    with quiet(name, "config.json", place):
        values, _ = transformers.PretrainedConfig.get_config_dict(place)
    family = _FAMILIES.get(values.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"{name}: its config.json says model_type {values.get('model_type')!r}; the models of transformers that "
            f"can be evaluated are {' and '.join(_FAMILIES)}"
        )
    with quiet(name, "config.json", place):
        return _Source(name, place, family, getattr(transformers, f"{family}Config").from_pretrained(place))


def _preprocess(source: _Source) -> TransformersPreprocess:
    return read_preprocess(source.name, source.place, source.config.vision_config.image_size)


def read_preprocess(name: str, place: str, size: int | Sequence[int] | None = None) -> TransformersPreprocess:
    """The image processor of a folder, or of a name on the Hub. size: of the model's images, if its config says it.

    Raises ValueError if it does not make the squares that the model takes.
    """
    from transformers import AutoImageProcessor

    side = None if size is None else square_side(name, size)
    shape = (227, 231) if side is None else (side + 3, side + 7)
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    with quiet(name, "image processor", place):
        processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
        theirs = processor(images=image, return_tensors="pt")["pixel_values"]
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        values = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        mean, std = (tuple(np.broadcast_to(np.float64(x) / (255 * factor), 3).tolist()) for x in values)
        side = int(theirs.shape[-1]) if side is None else side
        ours = TransformersPreprocess(side, mean, std, processor=processor)
        square = ours.to_uint8(image)
    if theirs.shape != (1, 3, side, side) or square.shape != (3, side, side) or square.dtype != torch.uint8:
        raise ValueError(
            f"{name}: its image processor makes {tuple(theirs.shape[1:])} of an image, but its config.json asks for "
            f"(3, {side}, {side}); correct size and crop_size in {_FILES[1][0]}"
        )
    if not torch.allclose(ours.normalize(square), theirs[0].float(), rtol=1e-5, atol=1e-4):
        raise ValueError(
            f"{name}: its image processor, {type(processor).__name__}, does more to the pixels than to rescale and to "
            "normalise them; use CLIPImageProcessor"
        )
    return ours


def _tokenizer(source: _Source) -> TransformersTokenizer:
    """Raises ValueError if the tokenizer is not one for this model."""
    from transformers import AutoTokenizer

    text, clip = source.config.text_config, source.family == "CLIP"
    with quiet(source.name, "tokenizer", source.place):
        theirs = AutoTokenizer.from_pretrained(source.place, trust_remote_code=False)
        ours = TransformersTokenizer(theirs, int(text.max_position_embeddings), not clip)
        rows, highest = ours(["a", "two dogs"]), max(theirs.get_vocab().values())
    trouble = None
    if torch.equal(rows[0], rows[1]):  # without its files, transformers makes an empty one
        trouble = "tells no texts apart; its vocabulary is missing"
    elif highest >= text.vocab_size:
        trouble = f"has ids up to {highest}, and config.json says vocab_size={text.vocab_size}"
    elif clip and text.eos_token_id not in (LEGACY_EOS, *rows[0].tolist()):
        trouble = f"does not end a text with the eos_token_id={text.eos_token_id} of config.json"
    elif clip and theirs.padding_side != "right":
        trouble = "pads on the left, and CLIP counts positions from there"
    if trouble:
        raise ValueError(f"{source.name}: its tokenizer {trouble}; put the tokenizer of this model there")
    return ours


def _model(source: _Source) -> Any:
    """Their model, with nothing in it that was not in the file, and the towers' weights all used."""
    import transformers

    made, towers = getattr(transformers, f"{source.family}Model"), ("text_model.", "vision_model.")
    return from_pretrained(source.name, source.place, made, source.config, needed=towers, what="model.safetensors")
