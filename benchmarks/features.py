"""A step on features against the same step on images, for a configuration with a locked tower.

    python benchmarks/features.py --config FILE [--section.key VALUE ...]

Both steps learn the same from the same pairs; the wait for the batch counts. The features are worked out first, once,
in data.cache_dir, and stay there. Medians of STEPS steps after two to warm up, of wall and of processor time: the
latter is the one to quote from a machine that others use. The result is one JSON line.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from machine import machine

STEPS, WARM = 5, 2


def main(arguments: Sequence[str] | None = None) -> None:
    from miniclip.config import load_config
    from miniclip.models.cut import Cut
    from miniclip.models.start import open_start
    from miniclip.training.accelerator import build_accelerator, form_group
    from miniclip.training.batches import open_batches
    from miniclip.training.features import use_features
    from miniclip.training.step import Learner

    config = load_config(arguments)
    start = open_start(config)
    config = replace(config, model=start.config, data=replace(config.data, resize=start.preprocess.resize))
    with form_group(config):
        accelerator, precision = build_accelerator(config)
        print(machine(accelerator.device.type), flush=True)
        config = config.with_precision(precision.name)
        feed = open_batches(config, accelerator, start)
        learner = Learner(config, accelerator, start)
        pairs = feed.pairs  # type: ignore[union-attr]
        for line in use_features(learner, feed):
            print(line, flush=True)
        found: dict[str, Any] = {"precision": precision.name, "batch_size": config.data.batch_size}
        features, on_features = learner.cut, feed.pairs  # type: ignore[union-attr]
        for name, cut, given in (("images", Cut(), pairs), ("features", features, on_features)):
            learner.cut, feed.pairs = cut, given  # type: ignore[union-attr]
            batches, wall, busy = feed.start(0, {}), list[float](), list[float]()
            for number in range(WARM + STEPS):
                began, before = time.perf_counter(), time.process_time()
                learner.step(next(batches), number, config.optim.lr, feed.shares(number))
                wall.append(time.perf_counter() - began)
                busy.append(time.process_time() - before)
            batches.close()
            found[f"{name}_s"] = statistics.median(wall[WARM:])
            found[f"{name}_cpu_s"] = statistics.median(busy[WARM:])
    found["times"] = found["images_s"] / found["features_s"]
    found["cpu_times"] = found["images_cpu_s"] / found["features_cpu_s"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
