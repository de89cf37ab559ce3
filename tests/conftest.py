"""No test reaches for the network or leaves anything in the user's caches; each worker keeps to one core."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import yaml
from support.launching import PYTHONPATH

_home = tempfile.mkdtemp(prefix="miniclip-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ |= {"HF_HOME": _home, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "Agg"}
os.environ |= {"MINICLIP_CACHE": f"{_home}/prepared", "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
os.environ.pop("COLUMNS", None)  # xdist gives its workers 80
# a shell lets what it starts in the background ignore Ctrl-C, and that is inherited
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    """That of test_training's tiny run."""
    from test_training import TINY

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(autouse=True)
def _one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to the machine is float32 on all of them: no test hangs on the processor that it meets."""
    monkeypatch.setattr("miniclip.training.precision.speed_of_bf16", lambda encoder: 1.0)
