"""A configuration file: its text, and its values by key.

YAML by itself passes over in silence what a key that comes twice held before: here that is refused, with both lines.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from miniclip.common.printing import did_you_mean
from miniclip.config.sections import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST = 100_000  # values of a file
# what YAML 1.1 reads as another number than it looks: 0100 is 64, 1:30 is 90
_ODD_NUMBER = re.compile(r"tag:yaml.org,2002:(int|float) [-+]?(0[0-7_]+|[0-9_]+(:.+)+)")


def read_values(path: Path, sections: Mapping[str, str]) -> dict[str, Any]:
    """Dotted key -> value. sections: with an example of a key in each. Raises ConfigError with file and line."""
    from jsonargparse import get_loader

    text = _text(path)
    lines: dict[str, int] = {}
    try:
        root = yaml.compose(text, _Loader)
        if not isinstance(root, yaml.MappingNode):
            found = "holds no option" if root is None else "is no mapping of sections"
            raise ConfigError(f"{path} {found}; write e.g. train: {{max_steps: 1000}}")
        _find_lines(str(path), root, "", lines, {})
        values = get_loader("yaml")(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}, {_said(error, text)}") from None
    for key in (str(key.value) for key, node in root.value if node.value == ""):
        if key in sections:
            fill = f"indent its options below it, e.g. {sections[key]}:, or take the line out"
            raise ConfigError(f"{path}, line {lines[key]}: the section {key} is empty; {fill}")
    if not isinstance(values, dict):  # jsonargparse hands back as text what holds nothing but keys
        values = {str(key.value): None for key, _ in root.value}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections and not isinstance(value, dict):
            glued = re.fullmatch(r"(\w+)[:=](.*)", str(value))
            advice = f"write {glued[1]}: {glued[2]}" if glued else f"write {key}: {{{sections[key]}: {value}}}"
            raise ConfigError(f"{path}, line {lines.get(key, 1)}: {key} is a section of options; {advice}")
        flat |= {f"{key}.{k}": v for k, v in value.items()} if key in sections else {str(key): value}
    return flat


def refuse_twice(option: str, text: str) -> None:
    """Raise ConfigError if a mapping in a value of the command line has a key twice."""
    try:
        _find_lines(option, yaml.compose(text, _Loader), "", {}, {})
    except yaml.YAMLError:
        return  # whatever it is, it is no mapping


def _find_lines(where: str, node: yaml.Node | None, prefix: str, lines: dict[str, int], seen: dict[int, int]) -> int:
    """Fill lines with that of every key, by its dotted path; return how many values it has, aliases spelt out.

    seen: that number of each node, for an alias may be a circle, and aliases of aliases a billion values.
    """
    if node is None or id(node) in seen or not isinstance(node.value, list):
        return 1 if node is None else seen.get(id(node), 1)
    size = seen[id(node)] = 1
    pairs = node.value if isinstance(node, yaml.MappingNode) else enumerate(node.value)
    for key, value in pairs:
        path = f"{prefix}{key.value if isinstance(key, yaml.Node) else key}"
        if isinstance(key, yaml.Node):
            line = key.start_mark.line + 1
            if path in lines:
                twice = f"{path} stands in line {lines[path]} already, which would be lost; keep one of the two"
                raise ConfigError(f"{where}, line {line}: {twice}")
            lines[path] = line
            if isinstance(value, yaml.ScalarNode) and _ODD_NUMBER.fullmatch(f"{value.tag} {value.value}"):
                meant = "an octal number, or one of the clock; write it in quotes, or without 0 and :"
                raise ConfigError(f"{where}, line {line}: {path}: {value.value} is {meant}")
        size += _find_lines(where, value, f"{path}.", lines, seen)
    if size > _MOST:
        raise ConfigError(f"{where}, line {node.start_mark.line + 1}: more than {_MOST:,} values, by its aliases")
    seen[id(node)] = size
    return size


def _text(path: Path) -> str:
    """Raises ConfigError for what is no text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        near = did_you_mean(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise ConfigError(f"--config {path} does not exist{near}") from None
    except OSError as error:
        near = f"; did you mean {path / 'config.yaml'}?" if (path / "config.yaml").is_file() else "; name a YAML file"
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}){near}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _said(error: Exception, text: str) -> str:
    """Line and fault."""
    mark = getattr(error, "problem_mark", None)
    number = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
    line = [*text.splitlines(), "", ""][number]
    if line[: len(line) - len(line.lstrip())].count("\t"):
        said = "a tab indents it; use spaces"
    elif line.startswith("---"):
        said = "a second document begins here; keep one"
    else:
        said = str(getattr(error, "problem", None) or getattr(error, "reason", error))
        if mark is not None:
            said += "; text with { [ * : or # in it wants quotes"
    return f"line {number + 1}: {said}"
