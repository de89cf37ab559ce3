"""Names from data may not steer a terminal."""

from __future__ import annotations

import pytest

from miniclip.common.console import write_json
from miniclip.common.printing import printable
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.tables import print_evaluations
from miniclip.metrics.bootstrap import Figure


def test_printable() -> None:
    assert printable("a\x1b[2J\x9b31mb\nc\td\u202e\udcff é 猫") == "a [2J 31mb c d é 猫"


def test_tables_and_json_take_any_name(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = ("\x1b]0;title\x07[red]", "dark\udcff")
    rows = [{"class": name, "n": 1, "precision": 0.5, "recall": 1.0, "f1": 0.7} for name in names]
    details = {"chance": 0.5, "classes": list(names), "per_class": rows, "confusion": [[1, 0], [1, 0]]}
    figures = {"top1": Figure(0.5, 0.0, 1.0, 2)}
    result = Evaluation("zeroshot", "t", figures, details, ("\x1b[2J note",), "", lambda weights: {})
    print_evaluations({"\x1b[2J run": result})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]" in shown
    write_json(tmp_path / "r.json", {"names": names})
    assert "\\udcff" in (tmp_path / "r.json").read_text()
