"""docs/tour.ipynb, from a folder of images to a search: executed as it stands, but on fewer images and steps."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
FEWER = {"COUNT, STEPS = 4000, 250": "COUNT, STEPS = 60, 2", '"eval.size": 200': '"eval.size": 6, "data.batch_size": 8'}


def test_it_is_short_and_says_nothing_of_where_it_ran() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 10 and TOUR.stat().st_size < 200_000
    assert not re.search(r"/(home|root|tmp|work|Users)/|WARNING|Traceback", TOUR.read_text("utf-8"))


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, in an empty folder."""
    notebook = nbformat.read(TOUR, as_version=4)
    for long, short in FEWER.items():
        (cell,) = (cell for cell in notebook.cells if long in cell.source)
        cell.source = cell.source.replace(long, short)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # a notebook's own
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises what a cell raises
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert (tmp_path / "tour" / "index" / "images.parquet").is_file()
