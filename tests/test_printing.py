"""Names from data may not steer a terminal."""

from __future__ import annotations

import pytest

from miniclip.console import write_json
from miniclip.evaluation.tables import print_zero_shot
from miniclip.evaluation.zeroshot import ZeroShotResult
from miniclip.printing import printable


def test_printable() -> None:
    assert printable("a\x1b[2J\x9b31mb\nc\td\u202e\udcff é 猫") == "a [2J 31mb c d é 猫"


def test_tables_and_json_take_any_name(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = ("\x1b]0;title\x07[red]", "dark\udcff")
    result = ZeroShotResult("t", 2, names, 0.5, None, 0.5, 0.5, (1.0, 0.0), ((1, 0), (1, 0)), ())
    print_zero_shot({"\x1b[2J run": result})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[red]" in shown
    write_json(tmp_path / "r.json", {"names": names})
    assert "\\udcff" in (tmp_path / "r.json").read_text()
