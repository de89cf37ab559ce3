"""In place of a training, without its seconds: python fake_training.py -m miniclip train --key=value ...

Writes what a comparison reads of a run, a step every FAKE_STEP seconds, goes on from where it was, and ends as a
training does that was asked to stop (143) or has no finite loss (2, at a rate of 1 or more). Its validation figure is
best at a rate of FAKE_BEST.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from miniclip.common.lock import alone_in


def main() -> int:
    words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[4:] if "=" in word)
    folder, steps, rate = Path(words["run.dir"]), int(words["train.max_steps"]), float(words.get("optim.lr", 1e-3))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    with alone_in(folder):
        file = folder / "metrics.jsonl"
        first = len(file.read_text().splitlines()) if file.exists() else 0
        print(f"devices {os.environ.get('CUDA_VISIBLE_DEVICES')}, from step {first}", flush=True)
        for step in range(first + 1, steps + 1):
            time.sleep(float(os.environ.get("FAKE_STEP", 0)))
            if rate >= 1:
                print(f"miniclip train: error: loss nan, gradient norm nan at step {step}", file=sys.stderr)
                return 2
            line: dict[str, Any] = {
                "step": step,
                "samples_per_s": 8 / (0.5 if words.get("loss.name") == "soft" else 0.1),
            }
            if step == steps:
                distance = abs(math.log(rate / float(os.environ.get("FAKE_BEST", 1e-3))))
                line |= {"eval/shape/top1": 1 / (1 + distance), "eval/shape/ece": distance}
            with file.open("a") as log:
                log.write(json.dumps(line) + "\n")
            if stopped:
                time.sleep(0.5)  # as it saves
                return 143
        told = {"training": {"steps": steps, "train_seconds": 0.0}, "results": [], "seed": words.get("run.seed")}
        (folder / "results.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
