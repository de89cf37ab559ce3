"""A folder of transformers or sentence-transformers, here or from the Hub, and what is asked of it before it is read.

    hf:FOLDER      what save_pretrained wrote
    hf:ORG/NAME    the same from the Hub; with HF_HUB_OFFLINE=1 from its cache alone

What is loaded may come from anybody: weights are read as safetensors, and a folder that has code in it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniclip.common.arguments import at_home
from miniclip.models.external.adapted import reading

PREFIX = "hf:"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# what is fetched of a name; other formats of the weights lie in folders of their own
_FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model"]
_LEFT = ["onnx/*", "openvino/*", "*.bin", "*.msgpack", "*.h5"]


def place_of(name: str, on_the_hub: str) -> str:
    """The folder, or the name on the Hub, that hf:... means. on_the_hub: pattern of such names.

    Raises ValueError with one line that says what to do.
    """
    place = at_home(name.removeprefix(PREFIX))
    folder = Path(place)
    if folder.is_file():
        raise ValueError(f"{name} is a file; name its folder, which holds config.json, too: {PREFIX}{folder.parent}")
    if (not place or not folder.is_dir()) and re.fullmatch(on_the_hub, place) is None:
        raise ValueError(f"{name}: no such folder; name one that holds config.json, or {PREFIX}ORG/NAME of the Hub")
    return place


def find_folder(name: str) -> Path:
    """The folder that hf:... means, fetched if it is of the Hub. Raises ValueError with one line that says what to do.

    It holds config.json and weights as safetensors, and no code.
    """
    place = place_of(name, r"\w[\w.-]*(/\w[\w.-]*)?")
    folder = Path(place)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        advice = f"check the name and the internet connection, or name a folder that holds it: {PREFIX}FOLDER"
        with reading(lambda reason: f"{name}: it cannot be fetched ({reason}); {advice}"):
            folder = Path(snapshot_download(place, allow_patterns=_FETCHED, ignore_patterns=_LEFT))
    return folder


def check_folder(name: str, folder: Path) -> dict[str, Any]:
    """config.json of a folder of transformers. Raises ValueError for one that lacks files, or that has code in it."""
    for files in (("config.json",), _WEIGHTS):
        if not any((folder / file).is_file() for file in files):
            raise ValueError(
                f"{name}: {folder} lacks {' or '.join(files)}; call save_pretrained of the model and of its tokenizer "
                "(only safetensors are read)"
            )
    refuse_code(name, folder)
    return json_of(name, folder / "config.json")


def refuse_code(name: str, folder: Path) -> None:
    """Raise ValueError for a folder that brings Python files, or names a class of its own."""
    code = [str(path.relative_to(folder)) for where in ("*.py", "*/*.py") for path in sorted(folder.glob(where))]
    named = [path.name for path in sorted(folder.glob("*config.json")) if "auto_map" in json_of(name, path)]
    if code or named:
        what = code[0] if code else f"auto_map in {named[0]}"
        raise ValueError(
            f"{name}: {folder} brings code of its own ({what}), and nothing that is loaded may run code; use a model "
            "whose classes transformers has itself, or take the file away if it is not needed"
        )


def json_of(name: str, path: Path, default: Any = None) -> Any:
    """What a JSON file holds; default, if given, where there is none. Raises ValueError for a damaged one."""
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {path} is not valid JSON: {error}; put the file of this model there") from error


def from_pretrained(
    name: str,
    place: str | Path,
    kind: Any,
    config: Any,
    *,
    spare: tuple[str, ...] = (),
    needed: tuple[str, ...] = (),
    what: str = "weights",
) -> Any:
    """Their model in evaluation mode and float32, with nothing in it that was not in the file.

    place: a folder, or a name on the Hub. kind: a class of transformers. spare: beginnings of names that may be missing
    in the file; needed: of those that must have a place in the model. Raises ValueError that names a tensor for which
    that does not hold, or of another shape.
    """
    with quiet(name, what, str(place)):
        model, told = kind.from_pretrained(
            place,
            config=config,
            torch_dtype=torch.float32,  # also if the config says half; transformers 5 knows the word, too
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # else the reason is only logged
            output_loading_info=True,
        )
    troubles = [f"{key} is {list(found)} and should be {list(due)}" for key, found, due in told["mismatched_keys"]]
    troubles += [f"{key} is missing" for key in told["missing_keys"] if not key.startswith(spare)]
    left = [key for key in told["unexpected_keys"] if key.startswith(needed) and not key.endswith("position_ids")]
    troubles += [f"{key} has no place in the model" for key in left]
    if troubles:
        raise ValueError(
            f"{name}: its weights are not those of its config.json: {sorted(troubles)[0]} ({len(troubles)} such); put "
            "the two together that belong together"
        )
    return model.eval()


def config_from(values: Mapping[str, Any]) -> Any:
    """Their config of plain values, as plain_config gives them. Raises ValueError for an unknown model_type."""
    from transformers import AutoConfig

    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def plain_config(config: Any) -> dict[str, Any]:
    """Plain values of a config, without where it came from and what its weights were stored as."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    left = ("_name_or_path", "name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version")
    return {key: value for key, value in values.items() if key not in left}


def keep_buffers(model: nn.Module) -> None:
    """Put every buffer into the state, so that a model without weights needs nothing but its state to be whole."""
    for module in model.modules():
        for key, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(key, None if buffer is None else buffer.contiguous(), persistent=True)


@contextmanager
def quiet(name: str, what: str, place: str | None = None) -> Iterator[None]:
    """Whatever transformers raises becomes a ValueError of one line; its warnings are not shown, nor its bars.

    place: where what is read comes from, if it may be a name on the Hub: fetching has a bar.
    """
    from transformers.utils import logging as theirs

    verb, advice = "loaded", "write the folder again with save_pretrained"
    if not (local := place is None or Path(place).is_dir()):
        verb = "fetched"
        advice = f"check the name and the internet connection, or name a folder that holds it: {PREFIX}FOLDER"
    bars = local and theirs.is_progress_bar_enabled()
    if bars:
        theirs.disable_progress_bar()
    try:
        with reading(lambda reason: f"{name}: its {what} cannot be {verb} ({reason}); {advice}"):
            yield
    finally:
        if bars:
            theirs.enable_progress_bar()
