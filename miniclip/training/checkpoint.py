"""The state to go on from: weights, optimiser, random states and step, in RUN/checkpoints/step_00000500/.

checksums.json there tells whether they are as they were written. best/ is what the run's best/ held at that step.

Optimiser and random states (and with FSDP the weights) are read through Accelerate with `weights_only=True`: nothing
that is read here can run code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from miniclip.common.arguments import out_of_memory
from miniclip.common.checksums import damage, write_checksums
from miniclip.common.durable import DiskFull, free_space, make_folder, put_in_place, remove, removed_on_failure, sync
from miniclip.common.peers import meet
from miniclip.common.processes import from_main, gathered, place
from miniclip.common.stopping import Stopped, Stopping
from miniclip.models import DualEncoder
from miniclip.models.saved import assemble, checkpoints, read_json, with_scalars
from miniclip.training.best import keep_copy
from miniclip.training.ema import Average
from miniclip.training.replaced import drop_replaced
from miniclip.training.run_dir import BEST, PROGRESS, checkpoint_folder
from miniclip.training.step import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)
_RANDOM = "random_states_"
_SHARDED = "pytorch_model_fsdp.bin"  # what Accelerate calls the weights with FSDP


def whole_model(learner: Learner, wanted: bool) -> DualEncoder | None:
    """The model as it stands; every process calls it. With FSDP it is put together where it is wanted, else None."""
    if learner.accelerator.distributed_type != "FSDP":
        return learner.model
    state = learner.accelerator.get_state_dict(learner.prepared)
    return assemble(learner.model.blank, with_scalars(state), learner.accelerator.device) if wanted else None


def handed_out(model: DualEncoder | None, blank: Callable[[], DualEncoder], device: torch.device) -> DualEncoder:
    """The main process's model on every process, running statistics included; the others may bring None.

    blank: makes one of its kind. Every process calls it; where there is one, the model itself comes back.
    """
    if place()[1] == 1:
        assert model is not None
        return model
    if model is None:
        with torch.device("meta"):  # which draws no random numbers
            model = blank()
        model = model.to_empty(device=device).eval()
    meet()
    for _, value in sorted(model.state_dict(keep_vars=True).items()):
        dist.broadcast(value.data, 0)
    return model


class Progress(NamedTuple):
    """How far a run has come. seconds, samples: of all its steps so far, those before a resume included. feed: where a
    stream of data stands, by plain values. clamped: whether the logit scale was, in each step since the last line of
    the log. left: whether the step's evaluation is still to be done."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    feed: Mapping[str, Any] = MappingProxyType({})
    clamped: Sequence[bool] = ()
    left: bool = False


def check_space(accelerator: Accelerator, run_dir: Path, average: bool = False) -> None:
    """Raise DiskFull if the disk has no room for one more checkpoint."""
    parameters = [p for model in accelerator._models for p in model.parameters()]
    # of those that are trained the optimiser keeps two more, and train.ema one
    copies = 4 if average else 3
    needed = sum(p.numel() * p.element_size() * (copies if p.requires_grad else 1) for p in parameters)
    free = free_space(run_dir / "checkpoints")
    if free < needed:
        raise DiskFull(
            f"a checkpoint takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free in {run_dir / 'checkpoints'}; "
            "make room"
        )


class Checkpoints:
    """A run's checkpoints, which a thread of the main process brings to the disk beside the next steps.

    A context, which ends when the last one is there. keep: how many stay. stopping: hears of each that is on the disk.
    first: the step that the run goes on from, or 0; what lies there of later steps goes with the first new one.
    average: is kept with the weights. Every process makes one and calls its methods.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_dir: Path,
        keep: int,
        stopping: Stopping,
        first: int = 0,
        average: Average | None = None,
    ) -> None:
        self.accelerator, self.run_dir, self.keep, self.stopping = accelerator, run_dir, keep, stopping
        self.average = average
        self._start = checkpoint_folder(run_dir, first)
        self._discarded = [folder for folder in checkpoints(run_dir) if folder > self._start]
        self._written: Path | None = None
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        if first:
            stopping.checkpoint = self._start

    def __enter__(self) -> Checkpoints:
        if self.accelerator.is_main_process:
            self._drop_old(self._start)  # which a process that was killed had not come to
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self._join()
        except Exception as failure:  # the error that comes through here tells why the run ends
            log.warning("%s", failure)
        if isinstance(error, Stopped):
            error.checkpoint = self.stopping.checkpoint

    def save(self, progress: Progress) -> None:
        """Begin to write the state after progress.step steps. Raises DiskFull, and what wait does."""
        self.wait()
        folder = checkpoint_folder(self.run_dir, progress.step)
        part, main = folder.with_suffix(".part"), self.accelerator.is_main_process
        with removed_on_failure(part, folder) if main else nullcontext():
            from_main(lambda: self._begin(part, progress))
            self.accelerator.save_state(str(part))
            if self.average is not None:
                self.average.save(part, main)
            meet()
        self._written = folder
        if main:
            self._thread = Thread(target=self._finish, args=(part, folder))
            self._thread.start()

    def wait(self) -> None:
        """Until the last one is on the disk. Raises, in every process, what kept it from there, such as DiskFull."""
        from_main(self._join)
        if self._written:
            self.stopping.checkpoint = self._written

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure

    def _begin(self, part: Path, progress: Progress) -> None:
        clear_unfinished(self.run_dir)
        check_space(self.accelerator, self.run_dir, self.average is not None)
        make_folder(part.parent)
        part.mkdir()
        values = progress._replace(feed=dict(progress.feed))._asdict()
        (part / PROGRESS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        # links to the last but one, so that of two neighbours each has files of its own
        among = min(self.keep, 2)
        former = checkpoints(self.run_dir)[-among:]
        keep_copy(self.run_dir / BEST, part / BEST, former[0] / BEST if len(former) == among else None)

    def _finish(self, part: Path, folder: Path) -> None:
        try:
            with removed_on_failure(part, folder):
                mode = (part / PROGRESS).stat().st_mode
                for file in part.glob("*.safetensors"):  # which the library makes private
                    file.chmod(mode)
                write_checksums(part)
                metrics = self.run_dir / "metrics.jsonl"
                if metrics.exists():  # a checkpoint goes on after the lines of its steps
                    sync(metrics)
                put_in_place(part, folder)
            self.stopping.checkpoint = folder
            drop_replaced(self.run_dir)
            for later in (other for other in self._discarded if other != folder):
                _remove_whole(later)
            self._discarded = []
            self._drop_old(folder)
        except BaseException as error:
            self._failure = error

    def _drop_old(self, newest: Path) -> None:
        for old in [folder for folder in checkpoints(self.run_dir) if folder <= newest][: -self.keep]:
            _remove_whole(old)


def clear_unfinished(run_dir: Path) -> None:
    """Remove what processes that were killed left half-written or half-removed among the checkpoints."""
    for left_over in (run_dir / "checkpoints").glob("step_*.*"):
        if left_over.suffix in (".part", ".old"):
            remove(left_over)


def _remove_whole(folder: Path) -> None:
    """Remove a checkpoint, and at no time leave a part of it under its name."""
    with suppress(FileNotFoundError):
        remove(folder.replace(folder.with_suffix(".old")))


def load_checkpoint(accelerator: Accelerator, run_dir: Path, average: Average | None = None) -> Progress:
    """Put the newest whole checkpoint's state into what the accelerator has prepared, and into the average.

    Without a checkpoint, nothing.

    Every process calls it. A damaged one is passed over, with a line that says so. Raises ValueError that names the
    checkpoint if it is another model's, or if all are damaged.
    """
    folder = from_main(lambda: _newest_whole(run_dir))
    if folder is None:
        return Progress()
    sharded, shards = (folder / _SHARDED).exists(), accelerator.distributed_type == "FSDP"
    if sharded != shards:
        how = "with" if sharded else "without"
        raise ValueError(f"{folder} was written {how} FSDP, and is read {how} FSDP alone: start it as the run began")
    try:
        accelerator.load_state(str(folder))
        _check_optimizer(accelerator)
        if average is not None:
            average.restore(folder)
        progress = Progress(**read_json(folder / PROGRESS))
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{folder} cannot be loaded into this model ({str(error).splitlines()[0]}); "
            "keep the run's model config, or delete that directory to go on from the one before"
        ) from error
    lost = [str(rank) for rank, had in enumerate(gathered([_had_random_states(folder)])) if not had]
    if lost and accelerator.is_main_process:
        log.warning("%s has no whole random states of process %s; no step needs them", folder, ", ".join(lost))
    return progress


def _newest_whole(run_dir: Path) -> Path | None:
    clear_unfinished(run_dir)
    found, wrong = checkpoints(run_dir), ""
    for folder in reversed(found):
        if wrong:
            log.warning("%s: going on from %s", wrong, folder)
        wrong = damage(folder, lambda name: not name.startswith(_RANDOM))  # for no step needs them
        if not wrong:
            return folder
    if found:
        raise ValueError(f"{wrong}, and no whole checkpoint is in {found[0].parent}; delete them to begin at step 0")
    return None


def _had_random_states(folder: Path) -> bool:
    """Whether this process goes on with its own; Accelerate passes over those that it cannot read."""
    from accelerate.utils import load

    name = f"{_RANDOM}{place()[0]}.pkl"
    try:
        restored = torch.equal(load(folder / name)["torch_manual_seed"], torch.get_rng_state())
    except Exception:
        return False
    return restored and not damage(folder, name.__eq__)


def _check_optimizer(accelerator: Accelerator) -> None:
    # torch would say so only in the first step, without the cause
    for optimizer in accelerator._optimizers:
        for parameter, state in optimizer.state.items():
            if state["exp_avg"].shape != parameter.shape:
                raise ValueError(
                    f"its optimiser has a parameter of shape {tuple(state['exp_avg'].shape)} where this run has "
                    f"{tuple(parameter.shape)}: train.small_vocabulary or the captions of the data are others"
                )
