"""The formats in which a model leaves, each a module of this package, and what they share.

    LIBRARIES                                     what it needs: the module to import -> what to install
    LOADED                                        how a folder is loaded there, for people
    ATOL                                          by how much embeddings may differ, read by the other library
    check(model, preprocess, tokenizer)           raises ValueError, with the reason alone, where it cannot hold a model
    write(model, preprocess, tokenizer, folder)   fills a folder that is there; options of its own may follow

verify.py reads each of them with the other library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from miniclip.common.durable import whole_folder
from miniclip.common.printing import first_few
from miniclip.export.compare import Difference, compared
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer

FORMATS = ("transformers", "open_clip", "onnx")


class Format(Protocol):
    LIBRARIES: dict[str, str]
    LOADED: str
    ATOL: float

    def check(self, model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer) -> None: ...

    def write(
        self, model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer, folder: Path, **options: Any
    ) -> None: ...


def format_of(to: str) -> Format:
    """Raises ValueError where what it needs is not installed."""
    module: Any = import_module(f"miniclip.export.{to}")
    for library, install in module.LIBRARIES.items():
        if find_spec(library) is None:
            raise ValueError(f"--to {to} needs {library}; pip install {install}")
    return module


def holders(model: DualEncoder, preprocess: Preprocess) -> list[str]:
    """The formats that can hold a model, installed or not."""
    return [name for name in FORMATS if why_not(name, model, preprocess) is None]


def why_not(to: str, model: DualEncoder, preprocess: Preprocess) -> str | None:
    """Why a format cannot hold a model."""
    module: Any = import_module(f"miniclip.export.{to}")
    try:
        module.check(model, preprocess, model.tokenizer)
    except ValueError as error:
        return str(error)
    return None


def check(to: str, model: DualEncoder, preprocess: Preprocess) -> None:
    """Raise ValueError with one line that says what to do where a format cannot hold a model."""
    reason = why_not(to, model, preprocess)
    if reason is not None:
        able = " or ".join(f"--to {name}" for name in holders(model, preprocess))
        raise ValueError(f"--to {to} cannot hold this model: {reason}; {f'use {able}' if able else 'none can'}")


def export(
    model: DualEncoder,
    preprocess: Preprocess,
    to: str,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    after: Callable[[Path], None] | None = None,
) -> list[Difference]:
    """Write a model, in evaluation mode and on the CPU, in that form -> how far the other library's answers are off.

    They are asked for in a fresh process, before the folder gets its name. options: of the format's own. after: what
    is done to the folder once it has been found right, before it gets its name.
    Raises ValueError with one line that says what to do, also where they differ by more than they may, and DiskFull.
    """
    form = format_of(to)
    check(to, model, preprocess)
    with whole_folder(folder) as part:
        form.write(model, preprocess, model.tokenizer, part, **(options or {}))
        found = compared(to, part, model, preprocess, form.ATOL)
        if wrong := [one for one in found if not one.holds]:
            said = first_few([f"{one.what} by {one.largest:.3g} (allowed: {one.allowed:.3g})" for one in wrong])
            known = "constraints.txt has the versions for which it was tested"
            raise ValueError(f"what {to} reads back is not this model: it differs in {said}; {known}")
        if after is not None:
            after(part)
        _readable(part)
    return found


def _readable(folder: Path) -> None:
    """Give the files in a folder the rights of any file; some libraries make theirs private."""
    new = folder / ".rights"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
