"""Minutes of what soak.py does for an hour: every kind of run in random trouble, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soak
from support.launching import ROOT


@pytest.mark.slow
def test_no_run_is_lost_in_random_trouble(tmp_path: Path) -> None:
    """The whole folder stays, with the log of every start, if one is."""
    command = [sys.executable, str(ROOT / "tests/soak.py"), "--minutes", "1.5", "--seed", "0"]
    command += ["--dir", str(tmp_path / "soak"), "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["faults"] == [] and found["table"].keys() == {*soak.KINDS, "all"}
    for kind, row in found["table"].items():
        assert row["rounds"] and not row["lost"] and not row["different"], kind
    assert all(name in soak.TROUBLES for name in found["skipped"])
    if found["skipped"]:
        pytest.skip(f"no {' and '.join(found['skipped'])}: no file system can be mounted here")
