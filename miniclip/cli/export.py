"""miniclip export: a model of any name -> a folder for another library, which has read it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from miniclip.common.arguments import check_new_folder

if TYPE_CHECKING:
    from miniclip.export.int8 import Cost


def export(
    model: str,
    out: str,
    *,
    to: Literal["transformers", "open_clip", "onnx"],
    ids: Literal["int64", "int32"] = "int64",
    quantize: Literal["none", "int8"] = "none",
    data: str | None = None,
) -> None:
    """Write a model for another library. That library loads it and is compared with it before the folder has its name.

    Args:
        model: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        out: folder that is made
        to: whose format it is; what cannot hold a model says so, and names what can
        ids: of onnx, the whole numbers that its text graph takes
        quantize: of onnx, the weights in 8 bits: smaller files, which find a little less
        data: captioned images whose split test says how much less, a source as data.source takes it, or shapes
    """
    folder = Path(out)
    check_new_folder("OUT", folder)
    _check_options(to, {"--ids": ids != "int64", "--quantize": quantize != "none", "--data": data is not None})

    from miniclip.common.console import open_console, plain, show_files, show_table
    from miniclip.evaluation.result import difference
    from miniclip.evaluation.tables import print_differences, print_evaluations
    from miniclip.evaluation.tasks import Retrieval
    from miniclip.export.formats import export as exported
    from miniclip.export.formats import format_of
    from miniclip.models.whole import opened

    loaded = format_of(to).LOADED
    towers, preprocess = opened(model)
    costs: list[Cost] = []
    after = None
    if data is not None:
        from miniclip.export.int8 import cost

        task = Retrieval(data=data)
        pairs = task.open(preprocess.image_size)

        def after(part: Path) -> None:
            costs.append(cost(towers, preprocess, part, task, pairs))

    found = exported(towers, preprocess, to, folder, {"ids": ids} if to == "onnx" else {}, after)
    console = open_console()
    show_files(console, f"{folder}: {model} for {to}", folder)
    rows = [(one.what, f"{one.largest:.2g}", f"{one.allowed:.2g}") for one in found]
    show_table(console, f"As {to} reads it back", ("", "largest difference", "allowed"), rows)
    for before, now, were in costs:
        shrunk = [(name, *(f"{size / 1e6:,.2f}" for size in of)) for name, of in were.items()]
        show_table(console, "Then with weights in 8 bits", ("file", "MB before", "MB"), shrunk)
        print_evaluations({"float32": before, "int8": now}, f"retrieval: {data}, test")
        lost = difference(before, now)
        print_differences({"int8": {name: lost[name] for name in Retrieval.headline}}, "float32")
    console.print(plain(f"it is loaded by {loaded.format(folder=folder)}"))


def _check_options(to: str, given: dict[str, bool]) -> None:
    """Raise ValueError with one line that says what to do for options that do not go together. given: by the user."""
    if to != "onnx" and any(given.values()):
        words = " and ".join(name for name, here in given.items() if here)
        raise ValueError(f"{words} belongs to --to onnx; leave it out")
    if given["--quantize"] and not given["--data"]:
        example = "the data.source of its run, or shapes"
        raise ValueError(f"--quantize int8 costs recall: name captioned images to count it on, --data with {example}")
    if given["--data"] and not given["--quantize"]:
        raise ValueError("--data belongs to --quantize int8; leave it out")
