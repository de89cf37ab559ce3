"""The doctor's word on time: how long the training will take on this machine."""

from __future__ import annotations

import time
from statistics import median

from miniclip.data.augment import shrink
from miniclip.data.loader import TrainingPairs
from miniclip.data.sampler import TrainSampler
from miniclip.doctor.data import Stage
from miniclip.doctor.trial import Setting, Trial
from miniclip.training.batches import phases
from miniclip.training.precision import Precision
from miniclip.training.throughput import expected_time

TIMED = 3  # steps of each image side, after one to warm up


def check_speed(setting: Setting, pairs: TrainingPairs, steps: int, precision: Precision) -> Stage:
    """Some steps as in training, at each of its image sides. steps: of the whole run."""
    config, size = setting.config, min(setting.config.data.batch_size, len(pairs))
    trial = Trial(setting, config.optim.lr, pairs.vocabulary() if config.train.small_vocabulary else None)
    draws = iter(TrainSampler(len(pairs), size, seed=config.run.seed, steps=2**40))
    found = []
    for side, count in phases(0, steps, config):
        times = []
        for _ in range(1 + TIMED):
            start = time.perf_counter()
            batch = pairs.__getitems__(next(draws))
            trial.step(batch._replace(image=shrink(batch.image, side)))
            times.append(time.perf_counter() - start)
        found.append((count, median(times[1:]) * config.data.batch_size / size))
    figures = {"training": expected_time(found), "precision": f"{precision.name}: {precision.why}"}
    note = "Preparing the images and evaluating come on top."
    return Stage("speed", "how long the training will take here", figures, [], [note])
