"""What the commands share: options from typed functions, how they refuse, what they check before the long work."""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from miniclip.common.durable import DiskFull
from miniclip.common.notes import say_once
from miniclip.common.output import unfailing_output
from miniclip.common.printing import did_you_mean, near_name, one_line, printable
from miniclip.common.stopping import INTERRUPTED, REQUEUE, Passing, Stopped, Stopping, passes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# how torch on a CPU and the system, CUDA and MPS say it
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")


def as_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """--from is no name in Python: its parameter is called from_."""
    return {f"{name}_" if iskeyword(name) else name: value for name, value in options.items()}


def add_options(
    parser: ArgumentParser, typed: Callable[..., Any], skip: Sequence[str] = (), positional: Sequence[str] = ()
) -> None:
    """Every parameter of a typed function or dataclass as an option; its docstring's "Args:" is the help.

    A list or tuple takes several words, `--shots 1 2 4`, where jsonargparse by itself would want `--shots [1,2,4]`.
    """
    from docstring_parser import parse

    hints = get_type_hints(typed)
    documented = reversed(inspect.getmro(typed)) if isinstance(typed, type) else (typed,)
    help_of = {p.arg_name: p.description for each in documented for p in parse(each.__doc__ or "").params}
    for name, parameter in inspect.signature(typed).parameters.items():
        if name in skip:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        word, several = _of_a_word(hints[name])
        settings: dict[str, Any] = {"type": word, "help": help_of[name]}
        name = name.rstrip("_")  # of from_, which is --from
        if several:
            settings["nargs"] = "*" if default and default is not parameter.empty else "+"
        if name in positional:
            optional = {} if default is parameter.empty else {"nargs": "*" if several else "?", "default": default}
            parser.add_argument(name, **settings | optional)
        elif default is parameter.empty:
            parser.add_argument(f"--{name}", required=True, **settings)
        else:
            if default is not None and "default" not in settings["help"]:
                settings["help"] += f" (default: {default})"
            parser.add_argument(f"--{name}", default=default, **settings)


def _of_a_word(hint: Any) -> tuple[Any, bool]:
    """The type of one word of an option, and whether it takes several."""
    lists = (get_args(kind)[0] for kind in (hint, *get_args(hint)) if get_origin(kind) in (list, tuple))
    first = next(lists, None)
    return (hint, False) if first is None else (first, True)


# of one value, and of several
_KINDS = {
    int: ("a whole number", "whole numbers such as [1, 2]"),
    float: ("a number", "numbers such as [0.5, 0.5]"),
    str: ("text", "texts such as [a, b]"),
    bool: ("true or false", ""),
    NoneType: ("null", ""),
}


def kind_words(hint: Any) -> str:
    """What a value of that type is, in plain words."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _KINDS:
        return _KINDS[hint][0]
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else str(parts[0])
    if origin in (list, tuple):
        count = f"{len(parts)} " if origin is tuple and ... not in parts else "a list of "
        return count + _KINDS.get(parts[0], ("", "texts and mappings"))[1]
    return " or ".join(kind_words(part) for part in parts)


def wrong_kind(message: str, hints: Mapping[str, Any], given: Mapping[str, Any], shown: str = "{}={}") -> str:
    """The parser's message of a value of the wrong type, in plain words; any other message nearly as it is.

    hints: the type of each option. given: values as they were written, where they are known. shown: both together.
    """
    found = re.search(r'Parser key "([\w.]+)".*?(?:(?:Got|Given) value: (.*))?$', message, re.DOTALL)
    if found is None or found[1] not in hints:
        message = re.sub(r"argument (\S+): expected .*argument", r"\1 lacks its value", message)
        return re.sub(r"argument (\S+): invalid \w+ value: '(.*)'", r"\1 \2 is not a number", message)
    hint, value = hints[found[1]], given.get(found[1], found[2])
    words = kind_words(hint)
    quotes = "; put numbers in quotes" if "text" in words and not isinstance(value, str) else ""
    names = [name for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for name in get_args(kind)]
    return f"{shown.format(found[1], value)} is not {words}{quotes}{did_you_mean(str(value), names)}"


def refusal(error: Exception, *typed: Callable[..., Any]) -> str:
    """What a parser refuses, in plain words. typed: what its options were made of by add_options."""
    hints = {name.rstrip("_"): _of_a_word(hint)[0] for each in typed for name, hint in get_type_hints(each).items()}
    message = wrong_kind(printable(str(error)), hints, {}, "--{} {}")
    stray = re.search(r"unrecognized arguments: (\S+)", message)
    if stray is None:
        return message
    if not stray[1].startswith("-"):
        return f"{stray[1]} stands alone; write the option that it belongs to before it"
    word = stray[1].partition("=")[0]
    near = near_name(word.strip("-"), hints)
    meant = f"; did you mean --{near}?" if near else ""
    return f"{word} is no option here" + ("; leave the word out" if word == f"--{near}" else meant)


def at_home(value: Any) -> Any:
    """Paths spelt out that begin with ~, as a shell does it, but also in `--run.dir=~/x`, in lists and after hf:."""
    if isinstance(value, str):
        return ":".join(map(os.path.expanduser, value.split(":"))) if "~" in value else value
    if isinstance(value, Mapping):
        return {key: at_home(one) for key, one in value.items()}
    return [at_home(one) for one in value] if isinstance(value, list) else value


def data_words(arguments: Sequence[str] | None) -> list[str]:
    """The words of a command line, the process's own for None; --dataset is --data by another name."""
    words = sys.argv[1:] if arguments is None else arguments
    return [word.replace("--dataset", "--data", 1) if word.split("=")[0] == "--dataset" else word for word in words]


def refused(program: str, message: str, advice: str = "") -> int:
    """Say in one line on stderr what cannot be done as asked; the exit code of that."""
    print(f"{program}: error: {printable(message)}{advice}", file=sys.stderr)
    return 2


def exit_code(
    program: str,
    action: Callable[[], int | None],
    less_memory: str = "use a smaller set, or more memory",
    options: Collection[str] = (),
) -> int:
    """Run a command: what it returns, or 0; 2 after one line on stderr for what cannot be done as asked, 75 for what
    passes by itself, such as a full disk; 130, 143 or 75 after a signal. A traceback instead of the line with
    MINICLIP_DEBUG=1 in the environment. options: of the command, which that line names as they are typed."""
    say_once()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a caption that the terminal cannot show costs no results
    with unfailing_output() as printed:
        try:
            with Stopping(), advised(less_memory):
                code = action() or 0
            printed.flush()
            if printed.full:
                raise DiskFull("no space left for what is printed; make room")
        except (Passing, ValueError, OSError, MemoryError) as error:
            if os.environ.get("MINICLIP_DEBUG"):
                raise
            code = refused(program, as_typed(str(error), options))
            return REQUEUE if passes(error) else code
        except KeyboardInterrupt as stop:
            if int(os.environ.get("RANK", 0)) == 0:
                print(f"{program}: stopped before it was done", file=sys.stderr)
            return stop.code if isinstance(stop, Stopped) else INTERRUPTED
    return code


# what reads data names the keys of a configuration; commands with options of their own call some of them otherwise
_READING = (
    *("source", "name", "revision", "image_column", "caption_column", "max_bad_fraction"),
    *("train_split", "validation_split", "test_split"),
)
_CALLED = {"source": "data", "test_split": "split"}


def as_typed(message: str, options: Collection[str]) -> str:
    """data.caption_column is --caption_column where a command has that option."""

    def typed(found: re.Match[str]) -> str:
        name = found[1] if found[1] in options else _CALLED.get(found[1], "")
        return f"--{name}" if name in options else found[0]

    return re.sub(rf"\bdata\.({'|'.join(_READING)})\b", typed, message)


def out_of_memory(error: Exception) -> bool:
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return said or isinstance(error, MemoryError)


@contextmanager
def advised(less_memory: str) -> Iterator[None]:
    """Where memory runs out, of the machine or of its device, raise MemoryError with one line of advice."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(f"out of memory ({one_line(str(error), 150)}); {less_memory}") from error


def check_range(option: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raise ValueError for a value below low or above high; None is left out, and always right."""
    if value is not None and not low <= value:
        raise ValueError(f"{option} {value} must be at least {low}")
    if value is not None and high is not None and not value <= high:
        raise ValueError(f"{option} {value} must be at most {high}")


def check_output(option: str, target: str, mark: str) -> None:
    """Raise ValueError or OSError if a file cannot be written there, or if another one would be lost.

    mark: what stands in the files of that option, in the first 4 kB.
    """
    path = Path(target)
    if path.is_dir():
        raise ValueError(f"{option} {target} is a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {target}: the folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{option} {target}: no permission to write there")
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(4096)
        if begin and mark.encode() not in begin:
            raise ValueError(f"{option} {target} holds something else; name another file, or remove that one")


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueError or OSError if files cannot be written into that folder, or it cannot be made there."""
    standing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not standing.exists():
        raise ValueError(f"{option} {folder}: {standing} is a link to what is not there; make that, or remove the link")
    if not standing.is_dir():
        raise ValueError(f"{option} {folder}: {standing} is a file; name a folder")
    if not os.access(standing, os.W_OK):
        raise PermissionError(f"{option} {folder}: no permission to write in {standing}")


def check_new_folder(option: str, folder: Path) -> None:
    """Raise ValueError or OSError where that folder cannot be made, or holds something, or is the one one stands in."""
    check_folder(option, folder)
    if folder.resolve() == Path.cwd():  # which another would take the place of
        raise ValueError(f"{option} {folder} is the folder that you are in; name one in it")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{option} {folder} holds something already; name a new folder, or remove that one")
