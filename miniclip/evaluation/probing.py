"""A probe of a model: labelled data in three parts -> embeddings -> `probe`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.common.processes import place
from miniclip.data.captioned import LabelledSource
from miniclip.data.splits import ALIASES
from miniclip.data.subset import Subset
from miniclip.evaluation.encode import DEFAULT, Encoded, EncodeOptions, encode_some, left_out
from miniclip.evaluation.probe import Labelled, divide, probe
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.zeroshot import labels_of
from miniclip.metrics.bootstrap import RESAMPLES
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TwoTowers

log = logging.getLogger(__name__)

ROLES = ("train", "validation", "test")


def open_parts(
    open_split: Callable[[str], LabelledSource], splits: Sequence[str], data: str, seed: int = 0
) -> list[LabelledSource]:
    """Pictures to fit on, to choose on and to count on: train, validation, test.

    open_split: one split of the data by name. splits: those it has. What is missing is divided off, each class in
    proportion, with a logged note: validation is a fifth of train, and takes the place of a test split that is not
    there; one split alone is cut into three, 60:20:20. Raises ValueError if there are several splits and they are
    others, or a class has too few pictures.
    """
    if len(splits) == 1:
        log.warning("%s has the one split %r: 60 %% is fitted on, 20 %% chosen on, 20 %% tested on", data, splits[0])
        return _divided(open_split(splits[0]), data, (0.6, 0.2, 0.2), seed)
    train, validation, test = (
        next((name for name in (role, *ALIASES[role]) if name in splits), None) for role in ROLES
    )
    if train is not None and test is None and validation is not None:
        log.warning("%s has no test split: a fifth of train chooses the penalty, %r is tested on", data, validation)
        return [*_divided(open_split(train), data, (0.8, 0.2), seed), open_split(validation)]
    if train is None or test is None:
        raise ValueError(
            f"{data}: a probe needs the splits train and test, and it has {', '.join(splits)}; rename them, or give "
            "data with one split, which is then divided"
        )
    if validation is not None:
        return [open_split(name) for name in (train, validation, test)]
    log.warning("%s has no validation split: a fifth of train chooses the penalty", data)
    return [*_divided(open_split(train), data, (0.8, 0.2), seed), open_split(test)]


def _divided(source: LabelledSource, data: str, shares: Sequence[float], seed: int) -> list[LabelledSource]:
    parts = divide(labels_of(source, data), shares, seed, classes=source.classes)
    return [Subset(source, part.tolist()) for part in parts]


def probe_model(
    model: TwoTowers,
    preprocess: Preprocess,
    parts: Sequence[LabelledSource],
    task: str,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws: int = 5,
    seed: int = 0,
    options: EncodeOptions = DEFAULT,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Embed parts (train, validation, test; the last two may be one, which flatters) and probe; see `probe`.

    With options.shared only the main process has the figures of few shots.
    Raises ValueError unless the parts have the same classes, and if none of a part's pictures can be read.
    """
    classes = parts[0].classes
    for role, part in zip(ROLES, parts, strict=True):
        if list(part.classes) != list(classes):
            raise ValueError(f"{task}: {role} has the classes {first_few(part.classes)}, train {first_few(classes)}")
    encoded: dict[int, tuple[Encoded, Tensor]] = {}
    for part in parts:
        if id(part) not in encoded:
            images = encode_some(model, part, preprocess, options, task)
            encoded[id(part)] = images, labels_of(part, task)[images.rows]
    if options.shared and place()[0]:
        shots = ()  # the processes have shared the pictures; the same fits in each would only hold each other up
    found = [encoded[id(part)] for part in parts]
    train, validation, test = (Labelled(images.values, labels) for images, labels in found)
    bad = list(dict.fromkeys(name for images, _ in found for name in images.bad))
    return probe(
        train,
        validation,
        test,
        classes,
        task,
        shots=shots,
        draws=draws,
        seed=seed,
        fingerprint=digest(*(part for images, labels in found for part in (images.fingerprint, labels.tolist()))),
        progress=options.progress,
        notes=left_out(bad),
        resamples=resamples,
    )
