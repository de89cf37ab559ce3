"""Commands that are one typed function each: its parameters are the options, its docstring the help."""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from math import inf
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from miniclip.common.arguments import add_options, as_parameters, at_home, data_words, exit_code, refusal, refused

# name, which is that of its module of cli and of the function in it, too -> what stands without an option's name
POSITIONAL = {
    "export": ("model", "out"),
    "push": ("model", "repo"),
    "index": ("images",),
    "search": ("index", "words"),
    "app": ("index",),
    "compare": (),
}
REST = "rest"  # parameter that takes the words of a training's configuration, of a command that has them


def single(name: str, argv: Sequence[str]) -> int:
    """Run one of them -> exit code: 0, or 2 with one line on stderr."""
    program, typed = f"miniclip {name}", getattr(import_module(f"miniclip.cli.{name}"), name)
    about = (typed.__doc__ or "").partition("\n\n    Args:")[0]
    settings: dict[str, Any] = {"exit_on_error": False, "default_env": False, "allow_abbrev": True}
    parser = ArgumentParser(prog=program, description=about, formatter_class=RawDescriptionHelpFormatter, **settings)
    add_options(parser, typed, skip=(REST,), positional=POSITIONAL[name])
    takes_rest = REST in (names := {*signature(typed).parameters})
    words, rest = _divided(argv, names, parser) if takes_rest else (argv, [])
    try:
        options = at_home(vars(parser.parse_args(_leading(parser, _words(words, typed)))))
    except (ArgumentError, ValueError) as error:
        # what is missing, the parser calls by its bare name, be it an option or not
        start, required, missing = refusal(error, typed).partition("are required: ")
        named = (one if one in POSITIONAL[name] else f"--{one}" for one in missing.split(", ") if one)
        return refused(program, f"{start}{required}{', '.join(named)}; see {program} --help")
    more = {REST: rest} if takes_rest else {}
    return exit_code(program, partial(typed, **as_parameters(options), **more), options=set(options))


def _divided(argv: Sequence[str], names: Collection[str], parser: ArgumentParser) -> tuple[list[str], list[str]]:
    """The words of the options of these names, and the rest. A list that is given several times has all its values."""
    own, rest = dict[str, list[str]](), list[str]()
    values = rest
    for word in argv:
        name, given, value = word.partition("=")
        if name[2:].replace("-", "_") in names or name in ("--help", "-h"):
            action = parser._option_string_actions.get(name)
            values = own[name] = own.get(name, []) if action is not None and action.nargs == "+" else []
            values += [value] * bool(given)
        else:
            values = rest if word.startswith("--") else values
            values.append(word)
    return [word for name, values in own.items() for word in (name, *values)], rest


def _words(argv: Sequence[str], typed: Any) -> list[str]:
    """As options are spelt here: --dry-run is --dry_run, and --private by itself --private=true."""
    words = [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in data_words(argv)]
    switches = {f"--{name}" for name, hint in get_type_hints(typed).items() if hint is bool}
    return [
        f"{word}=true" if word in switches and after not in ("true", "false") else word
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]


def _leading(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """What stands without an option's name first: `DIR --top 5 "a dog"`, where argparse wants such words together."""
    alone, rest, following = list[str](), list[str](), 0.0  # following: words that the option may still take
    for word in words:
        if word.startswith("-"):
            begun = [a for name, a in parser._option_string_actions.items() if name.startswith(word)]
            nargs = begun[0].nargs if begun else 0
            following = 1 if nargs is None else 0 if nargs == 0 else inf
            rest.append(word)
        elif following:
            following -= 1
            rest.append(word)
        else:
            alone.append(word)
    return alone + rest
