"""One process of several that read a stream: python streaming_worker.py SOURCE STEPS WORKERS FOLDER.

Writes the picture ids of each of its steps, and its cursors after them, to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.stream.stream import open_stream
from miniclip.models.tokenizer import Tokenizer


def main() -> None:
    source, steps, workers, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = DataConfig(source=source, streaming=True, batch_size=50, workers=workers, shuffle_buffer=200)
    stream = open_stream(config, Augment(4), Tokenizer(), seed=5, rank=rank, world=world)
    ids, cursors = [], {}
    for one in stream.batches(0, steps):
        ids.append(one.batch.image_id.tolist())
        cursors = one.cursors
    (folder / f"{rank}.json").write_text(json.dumps({"ids": ids, "cursors": cursors}))


if __name__ == "__main__":
    main()
