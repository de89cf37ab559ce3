"""A run directory -> RUN/report/report.md and RUN/report/report.html, whether the run has finished or not."""

from __future__ import annotations

import os
from pathlib import Path

from miniclip.evaluation.report.content import content
from miniclip.evaluation.report.files import PNG, Files
from miniclip.evaluation.report.read import Run, read_run
from miniclip.evaluation.report.render import FOLDER, to_html, to_markdown

MARKDOWN, PAGE, CURVES = "report.md", "report.html", "curves.png"


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write both (and curves.png beside them) from what the run holds; returns report.md and report.html.

    What is damaged, missing or outside the run is left out, and the report says so. Raises ValueError if run_dir is no
    run, or if its folder for the report leads out of it.
    """
    run = read_run(Path(run_dir))
    folder = Path(run_dir) / FOLDER
    folder.mkdir(exist_ok=True)
    if not Path(os.path.realpath(folder)).is_relative_to(run.directory):
        raise ValueError(f"{folder} is a link that leads out of the run; remove it")
    for name in (MARKDOWN, PAGE, CURVES):
        (folder / name).unlink(missing_ok=True)  # a link would be followed
    blocks = content(run, _curves(run, folder))
    (folder / MARKDOWN).write_text(to_markdown(blocks), encoding="utf-8")
    (folder / PAGE).write_text(to_html(blocks), encoding="utf-8")
    return folder / MARKDOWN, folder / PAGE


def _curves(run: Run, folder: Path) -> PNG | None:
    from miniclip.evaluation.plots import curves_png

    try:
        curves_png(run.lines, folder / CURVES, run.directory.name)
    except ValueError:  # no line holds a figure
        return None
    return Files(run.directory).picture(f"{FOLDER}/{CURVES}", "the training, step by step")
