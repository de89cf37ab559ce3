"""What each process is fed with, as torchrun starts it: writes the (epoch, id) of every pair of every step to a file.

feed_worker.py CONFIG FOLDER FIRST_STEP STEPS [STATE]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from miniclip.config import load_config_file
from miniclip.models import resolve
from miniclip.training.accelerator import build_accelerator
from miniclip.training.batches import open_batches


def main(config_file: str, folder: str, first_step: int, steps: int, state_file: str | None = None) -> None:
    config = load_config_file(config_file)
    config = replace(config, model=resolve(config.model), train=replace(config.train, max_steps=steps))
    accelerator, _ = build_accelerator(config)
    feed = open_batches(config, accelerator)
    state = json.loads(Path(state_file).read_text()) if state_file else {}
    shown = []
    for step, batch in zip(range(first_step, steps), feed.start(first_step, state), strict=True):
        assert len(batch.image_id) == feed.shares(step)[accelerator.process_index]
        shown.append(batch.image_id.tolist())
    Path(folder, f"rank{accelerator.process_index}.json").write_text(json.dumps(shown))
    left = json.dumps(feed.state())
    if accelerator.is_main_process:
        Path(folder, "state.json").write_text(left)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
