"""miniclip export: a model of any name -> a folder for another library, which has read it back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from miniclip.common.arguments import check_new_folder


def export(model: str, out: str, *, to: Literal["transformers", "open_clip", "onnx"]) -> None:
    """Write a model for another library. That library loads it and is compared with it before the folder has its name.

    Args:
        model: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        out: folder that is made
        to: whose format it is; what cannot hold a model says so, and names what can
    """
    folder = Path(out)
    check_new_folder("OUT", folder)

    from miniclip.common.console import open_console, plain, show_table
    from miniclip.export.formats import export as exported
    from miniclip.export.formats import format_of
    from miniclip.models.whole import opened

    loaded = format_of(to).LOADED
    found = exported(*opened(model), to, folder)
    console = open_console()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [(str(path.relative_to(folder)), f"{path.stat().st_size / 1e6:,.2f}") for path in files]
    show_table(console, f"{folder}: {model} for {to}", ("file", "MB"), sizes)
    rows = [(one.what, f"{one.largest:.2g}", f"{one.allowed:.2g}") for one in found]
    show_table(console, f"As {to} reads it back", ("", "largest difference", "allowed"), rows)
    console.print(plain(f"it is loaded by {loaded.format(folder=folder)}"))
