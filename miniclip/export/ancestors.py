"""Names of the Hub among what a model began from, for `base_model` on its card."""

from __future__ import annotations

import re
from pathlib import Path

from miniclip.config import Config, ModelConfig

_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_on_hub(name: str) -> bool:
    """Whether a name is one of the Hub, as far as it tells, rather than of something here."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def names_on_hub(named: str, *began: ModelConfig | Config | None) -> list[str]:
    """Those among the name of a model and what its sections say that it began from, each once."""
    given = [named]
    for one in began:
        section = one.model if isinstance(one, Config) else one
        given += [name for name in (section.init, section.image, section.text) if name] if section else []
    return list(dict.fromkeys(found for name in given if (found := _of(name)) and is_on_hub(found)))


def _of(name: str) -> str:
    """What the Hub calls it; empty for what is not there."""
    library, _, rest = name.partition(":")
    if library == "hf":
        return rest
    if library == "timm":
        import timm

        known = timm.models.get_pretrained_cfg(rest) if timm.is_model(rest) else None
        return str(known.hf_hub_id or "").rstrip("/") if known else ""
    if library == "open_clip":
        import open_clip

        if rest.startswith("hf-hub:"):
            return rest.removeprefix("hf-hub:").partition("@")[0]
        arch, _, tag = rest.partition(":")
        return str(open_clip.get_pretrained_cfg(arch, tag).get("hf_hub") or "").rstrip("/")
    return ""
