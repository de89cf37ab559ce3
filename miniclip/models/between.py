"""Weights between those of two models of one kind: robust fine-tuning (WiSE-FT, arXiv:2109.01903)."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from miniclip.models.clip import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import architecture
from miniclip.models.protocols import key_of
from miniclip.models.saved import assemble

Opened = tuple[DualEncoder, Preprocess]
# where its weights came from, and where the learnt scale began, make a model no other
_NO_MATTER = ("preset", "image", "text", "logit_scale_init", "logit_bias_init", "activation_checkpointing")


def check_alike(first: Opened, second: Opened, names: tuple[str, str]) -> None:
    """Raise ValueError that names what differs, if the two models are not of one kind, from the images on.

    A bias that one of them alone has goes: added to every logit, it changes no figure.
    """
    if (first[0].logit_bias is None) != (second[0].logit_bias is None):
        for model, _ in (first, second):
            model.logit_bias, model.config = None, replace(model.config, logit_bias_init=None)
    told: list[dict[str, object]] = []
    for model, preprocess in (first, second):
        kind = {name: value for name, value in asdict(architecture(model.config)).items() if name not in _NO_MATTER}
        towers = {"image tower": model.image_tower, "text tower": model.text_tower}
        kind |= {name: getattr(tower, "described", None) for name, tower in towers.items()}
        kind |= {f"preprocessing: {name}": value for name, value in preprocess.to_dict().items()}
        kind |= {"tokenizer": key_of(model.tokenizer)}
        told.append(kind | {name: f"shape {tuple(value.shape)}" for name, value in model.state_dict().items()})
    one, other = told
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            values = " and ".join(_short(each.get(name)) for each in told)
            raise ValueError(
                f"{names[0]} and {names[1]} differ in {name} ({values}); weights between two models are of one kind: "
                "name a model and what it was fine-tuned to"
            )


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def between(first: DualEncoder, second: DualEncoder, share: float) -> DualEncoder:
    """(1 - share) * first + share * second, statistics and scale included; both ends are the models to the bit.

    What check_alike has let pass. On the device of first, in evaluation mode.
    """
    state, other = first.state_dict(), second.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.lerp(value.float(), other[name].float(), share).to(value.dtype)
        elif share:  # counters
            state[name] = other[name]
    return assemble(first.blank, state, next(first.parameters()).device)
