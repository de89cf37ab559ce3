"""Write configuration.md from the sections' own docstrings and defaults: python docs/write_configuration.py"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse

from miniclip.config import SECTIONS

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

A run is one YAML file with these sections, or any of them as `--section.key VALUE` behind it. What is left out has the
default. `python train.py --help` says the same; a key that does not exist is refused with the nearest that does.
"""


def default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def configuration() -> str:
    """The page, as the code is."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        about = parse(section.__doc__ or "")
        meanings = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in about.params}
        parts.append(f"## {name}\n\n{about.short_description}\n\n| key | default | |\n|---|---|---|")
        for field in fields(section):
            parts[-1] += f"\n| `{name}.{field.name}` | `{default(field)}` | {meanings[field.name].replace('|', '/')} |"
    return "\n\n".join([parts[0].strip(), *parts[1:]]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(configuration(), encoding="utf-8")
