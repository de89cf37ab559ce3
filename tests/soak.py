"""Runs in random trouble, each started again by the very same command until it is done: is any lost, or any bit?

    python tests/soak.py --minutes 60 --seed 0 [--dir DIR] [--json FILE]

Each kind of run is trained once in peace. Then, round by round, one is troubled: killed, stopped, its disk filled, its
newest checkpoint damaged, ... until a start ends with 0. Weights, log and results have to be those of peace, with
nothing left behind. The exit status is 1 if anything is not; DIR then keeps the log of every start, and the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from support.files import encoded, samples, write_tar
from support.launching import PYTHONPATH, ROOT, command_of
from support.sources import noise
from support.trouble import Start, flip_bit, full, mount, until
from test_signals import exact
from test_training import TINY

from miniclip.models.saved import checkpoints

STEPS, KEEP, MOST_STARTS = 200, 2, 40
PATIENCE = 300  # seconds, after which a start hangs
COMMON: dict[str, Any] = {
    "data.source": "folder", "data.augment": "resized_crop", "data.flip": 0.5, "data.colour_jitter": 0.3,
    "train.max_steps": STEPS, "train.patch_dropout": 0.25, "eval.tasks": ["retrieval"], "log.every": 2,
    "run.resume": "auto", "run.keep": KEEP, "run.checkpoint_every": 8,
}  # fmt: skip
TARS = {"data.source": "tars/{train,validation,test}-*.tar", "data.workers": 1}
STREAM = {"data.streaming": True, "data.shuffle_buffer": 32}
CHOICE = {"eval.every": 20, "eval.best": "retrieval/text_to_image_r5", "data.cache": False}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {  # number of processes, options
    "plain": (1, {"data.workers": 2, "log.matrix_every": 100, "log.matrix_size": 8, "run.checkpoint_minutes": 0.005}),
    "stream": (1, {**TARS, **STREAM}),
    "two": (2, {"data.workers": 1, "train.timeout": 0.5, "run.checkpoint_minutes": 0.005}),
    "best": (1, {**TARS, **CHOICE, "train.micro_batch_size": 4, "log.trackers": ["tensorboard"]}),
}
TIMED = re.compile(rb'"(time|train_seconds|samples_per_s)": [^,\n]*')  # of results.json
# a clock that is set back while a process runs
CLOCK = """import time
now, begun = time.time, time.monotonic()
time.time = lambda: now() - 3600 * (time.monotonic() > begun + 4)
"""
ENDS: dict[str, set[int]] = {  # besides 0; before Python listens, a signal ends a process as ever
    "peace": set(), "kill": {-9}, "term": {143, -15}, "usr1": {75, -10}, "pause": {75}, "disk": {75}, "memory": {75},
    "worker": {75}, "flip": {-9}, "clock": {-9}, "second": set(),
}  # fmt: skip
TROUBLES = [name for name in ENDS if name != "peace"]
COLUMNS = ["rounds", "requeues", "lost", "different", "shared", "seconds", *TROUBLES]


class Fault(Exception):
    """What must not be; the run is given up."""


def write_data(folder: Path) -> None:
    """The same images as a folder with texts beside them, and as tars."""
    pairs = samples(0, 160, png=lambda i: encoded(noise(i, (36, 30))))
    (folder / "folder").mkdir(parents=True)
    for key, fields in pairs:
        for field, content in fields.items():
            (folder / f"folder/{key}.{field}").write_bytes(content)
    for k, name in enumerate([*(f"train-{k}" for k in range(6)), "validation-0", "test-0"]):
        write_tar(folder / f"tars/{name}.tar", pairs[20 * k : 20 * k + 20])


class Run:
    """A round: one kind of run, from its first start to its end."""

    def __init__(self, soak: Soak, kind: str, name: str) -> None:
        self.soak, self.kind, self.rng, self.name = soak, kind, soak.rng, name
        self.folder = soak.disk / kind
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.dir, config = self.folder / "run", self.folder / "config.yaml"
        self.processes, own = KINDS[kind]
        places = {"run.dir": f"{self.dir}", "data.cache_dir": f"{self.folder}/cache"}
        sections = {key: dict(value) for key, value in TINY.items()}
        for key, value in {**COMMON, **own, **places}.items():
            section, _, option = key.partition(".")
            sections.setdefault(section, {})[option] = f"{soak.root}/data/{value}" if option == "source" else value
        config.write_text(yaml.safe_dump(sections))
        self.command = [sys.executable, str(ROOT / "train.py"), "--config", str(config)]
        if self.processes > 1:
            self.command = command_of(self.processes, ROOT / "train.py", self.command[2:])
        self.environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.starts, self.requeues, self.damaged = 0, 0, -1

    def start(self) -> Start:
        self.starts += 1
        return Start(self.command, self.soak.root / f"logs/{self.name}-{self.starts}.txt", self.environment)

    def step(self) -> int:
        """The last one that the log tells of."""
        with suppress(OSError, ValueError, LookupError):
            return int(json.loads((self.dir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def until_done(self, troubles: Iterator[str]) -> None:
        """Start, trouble, and start again. Raises Fault."""
        while self.starts < MOST_STARTS:
            trouble, start, damaged = next(troubles, "peace"), self.start(), self.damaged
            try:
                if trouble != "peace" and self._moment(start, trouble):
                    getattr(self, trouble)(start)
                    self.soak.table[self.kind][trouble] += 1
                elif trouble != "peace":
                    self.soak.deck.insert(0, trouble)  # another time
                self._check_end(start, trouble, damaged)
            finally:
                start.kill()
            if start.process.returncode == 0:
                return
            self.requeues += 1
        raise Fault(f"not done after {MOST_STARTS} starts")

    def _moment(self, start: Start, trouble: str) -> bool:
        """Wait for when trouble comes: a time, a step, the middle of a write, the end. False if nothing runs then."""
        kinds = ["step"] if trouble in ("worker", "memory", "second") else ["time", "step", "step", "write", "end"]
        kind, begun = self.rng.choice(kinds), time.monotonic()
        after, step = self.rng.uniform(0, self.soak.seconds[self.kind]), self.rng.randint(first := self.step(), STEPS)
        step = max(first, min(step, STEPS - 40))  # not when a loader has no more to load
        sightings = iter(range(self.rng.randint(1, 20)))
        moments: dict[str, Callable[[], bool]] = {
            "time": lambda: time.monotonic() > begun + after,
            "step": lambda: self.step() > step,
            "write": lambda: any(self.folder.rglob("*.part")) and next(sightings, None) is None,
            "end": lambda: any(self.dir.glob("model*")),
        }
        until(lambda: start.ended() or moments[kind](), PATIENCE)
        return not start.ended()

    def _check_end(self, start: Start, trouble: str, damaged: int) -> None:
        """damaged: step of the checkpoint that was, when it started."""
        after = f"after {trouble}, see {start.log}"
        if not start.ended(PATIENCE):
            raise Fault(f"hangs {after}")
        code, output = start.process.returncode, start.log.read_text(errors="replace")
        ranks = {int(code) for code in re.findall(r"exitcode +: (-?\d+)", output)}  # a launcher's own says nothing
        self.soak.codes[trouble].update([code, *(f"rank {rank}" for rank in ranks)])
        if not until(lambda: not start.alive(), 30):
            raise Fault(f"orphans {after}: {start.alive()}")
        if self.soak.private and (shared := [*Path("/dev/shm").iterdir()]):
            # torch names a tensor's for microseconds, and takes no name away when it is killed then, or finds no room
            if -9 not in ENDS[trouble] and trouble not in ("worker", "memory"):
                raise Fault(f"shared memory is left {after}: {shared}")
            for path in shared:
                path.unlink()
            self.soak.table[self.kind]["shared"] += len(shared)
        if re.search(rf'^ *File "{re.escape(str(ROOT))}/(?!\.venv)', output, re.MULTILINE):
            raise Fault(f"a traceback {after}")
        if code not in {0, *ENDS[trouble]} if self.processes == 1 or trouble == "peace" else ranks & {1, 2}:
            raise Fault(f"ended with {code} {after}")
        if found := re.search(r"resuming .* at step (\d+)", output):
            if int(found[1]) == damaged:
                raise Fault(f"went on from a damaged checkpoint {after}")
            self.damaged = -1 if self.damaged == damaged else self.damaged

    def kill(self, start: Start) -> None:
        """Of the whole, as a scheduler does it, or of one process that trains."""
        ranks = start.ranks()
        if ranks and self.rng.random() < 0.5:
            self.rng.choice(ranks).kill()
        else:
            start.kill()

    def term(self, start: Start) -> None:
        start.process.terminate()

    def usr1(self, start: Start) -> None:
        for rank in start.ranks()[: self.rng.choice([1, None])]:
            rank.send_signal(signal.SIGUSR1)

    def pause(self, start: Start) -> None:
        stopped = self.rng.choice([*start.ranks(), *start.workers()] or [start.process])
        stopped.suspend()
        start.ended(60 if self.soak.long and self.rng.random() < 0.1 else self.rng.uniform(0.1, 3))
        stopped.resume()

    def disk(self, start: Start) -> None:
        with full(self.soak.disk, self.rng.randrange(1 << 20)):
            start.ended(self.rng.uniform(0.5, 10))

    def memory(self, start: Start) -> None:
        with full(Path("/dev/shm"), self.rng.randrange(1 << 12)):
            start.ended(self.rng.uniform(0.5, 10))

    def worker(self, start: Start) -> None:
        if workers := start.workers():
            self.rng.choice(workers).kill()

    def flip(self, start: Start) -> None:
        """A bit of the newest checkpoint, if there is another to go back to."""
        start.kill()
        *former, newest = checkpoints(self.dir) or [Path()]
        if former:
            file = self.rng.choice([path for path in newest.rglob("*") if path.is_file() and path.stat().st_size])
            flip_bit(file, self.rng.randrange(8 * file.stat().st_size))
            with start.log.open("a") as log:
                print(f"flipped a bit of {file}", file=log)
            # of the best there are copies, and no step needs random states
            if "best" not in file.parts and not file.name.startswith("random_states"):
                self.damaged = int(newest.name[5:])

    def clock(self, start: Start) -> None:
        """Set back a day between two starts, and an hour within each."""
        start.kill()
        for path in self.folder.rglob("*"):
            os.utime(path, (time.time() + 86400,) * 2)
        self.environment["PYTHONPATH"] = f"{self.soak.root}/clock{os.pathsep}{PYTHONPATH}"

    def second(self, start: Start) -> None:
        """Another start of the same command, which must stop and say why; the first goes on."""
        other = self.start()
        hangs = not other.ended(PATIENCE)
        other.kill()
        told = any(str(rank.pid) in other.log.read_text() for rank in start.ranks())
        done = start.process.poll() == 0  # before the other looked
        if hangs or (not done and (other.process.returncode == 0 or not told)):
            raise Fault(f"a second start {'hangs' if hangs else 'is not told who holds the run'}, see {other.log}")

    def files(self) -> set[str]:
        names = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        return {name for name in names if not re.match(r"run/(checkpoints/step_\d+/|miniclip/|\.lock)", name)}

    def result(self) -> dict[str, Any]:
        """What has to be equal to the bit: the log, weights, matrices, what results.json and best.json say."""
        found: dict[str, Any] = {"metrics.jsonl": exact(self.dir)}
        patterns = ["model/*", "matrix/*", "best/*", "results.json", "*.png"]
        for path in (path for pattern in patterns for path in self.dir.glob(pattern)):
            found[str(path.relative_to(self.dir))] = TIMED.sub(b"", path.read_bytes())
        return found

    def check(self, files: set[str], result: dict[str, Any]) -> list[str]:
        """What is not as in a run in peace, which has these."""
        ours, theirs = self.files(), self.result()
        wrong = [f"left behind: {name}" for name in sorted(ours - files)]
        wrong += [f"missing: {name}" for name in sorted(files - ours)]
        wrong += [f"different: {name}" for name in sorted(result) if result[name] != theirs.get(name)]
        return wrong + ["too many checkpoints"] * (len(checkpoints(self.dir)) > KEEP)


class Soak:
    """All rounds. private: whether file systems can be mounted for it alone."""

    def __init__(self, root: Path, seed: int, minutes: float, private: bool) -> None:
        self.root, self.disk, self.rng, self.private = root, root / "disk", random.Random(seed), private
        self.end, self.long = time.monotonic() + 60 * minutes, minutes >= 20
        self.skipped = [] if private else ["disk", "memory"]
        self.table, self.codes = defaultdict[str, Counter[Any]](Counter), defaultdict[str, Counter[Any]](Counter)
        self.seconds, self.faults, self.deck = defaultdict[str, float](float), list[str](), list[str]()
        for name in ("disk", "logs", "clock"):
            (root / name).mkdir(parents=True)
        (root / "clock/sitecustomize.py").write_text(CLOCK)
        write_data(root / "data")
        if private:
            mount(self.disk, 128)
            mount(Path("/dev/shm"), 32)

    def troubles(self, count: int) -> Iterator[str]:
        """Each as often as the others, until the time is over."""
        names = sorted({*TROUBLES} - {*self.skipped})
        for _ in takewhile(lambda _: time.monotonic() < self.end, range(count)):
            self.deck = self.deck or self.rng.sample(names, len(names))
            yield self.deck.pop()

    def run(self) -> None:
        peace, order = {}, list[str]()
        for kind in KINDS:
            begun, run = time.monotonic(), Run(self, kind, f"{kind}-0")
            run.until_done(iter(()))
            self.seconds[kind], peace[kind] = time.monotonic() - begun, (run.files(), run.result())
        while time.monotonic() < self.end or not all(self.table[kind]["rounds"] for kind in KINDS):
            order = order or self.rng.sample(list(KINDS), len(KINDS))
            self._round(kind := order.pop(), *peace[kind])

    def _round(self, kind: str, files: set[str], result: dict[str, Any]) -> None:
        row = self.table[kind]
        begun, run, wrong = time.monotonic(), Run(self, kind, f"{kind}-{row['rounds'] + 1}"), list[str]()
        try:
            run.until_done(self.troubles(self.rng.randint(2, 6)))
            wrong += run.check(files, result)
        except Fault as fault:
            wrong += [str(fault)]
            row["lost"] += 1
        row.update({"rounds": 1, "requeues": run.requeues, "seconds": round(time.monotonic() - begun)})
        row["different"] += any(words.startswith("different") for words in wrong)
        if wrong:
            self.faults.append(f"{run.name}: {'; '.join(wrong)}")
            print(self.faults[-1], flush=True)
            shutil.copytree(run.folder, self.root / "faults" / run.name)

    def report(self) -> dict[str, Any]:
        """Also prints it."""
        self.table["all"] = sum(self.table.values(), Counter())
        table = {kind: {name: row[name] for name in COLUMNS} for kind, row in self.table.items()}
        for kind, cells in {"": {name: name for name in COLUMNS}, **table}.items():
            print(f"{kind:6}", *(f"{cells[name]:>9}" for name in COLUMNS))
        print(*(f"{name} is left out: no file system can be mounted here\n" for name in self.skipped), sep="", end="")
        return {"table": table, "faults": self.faults, "skipped": self.skipped, "codes": self.codes}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="after which no trouble is made any more")
    parser.add_argument("--seed", type=int, default=0, help="of the troubles; their moments depend on the machine, too")
    parser.add_argument("--dir", type=Path, help="a new folder for all files; without it they go if nothing is wrong")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    unshare, attempt = ["unshare", "--mount"], ["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    private = shutil.which("unshare") and not subprocess.run([*unshare, *attempt], capture_output=True).returncode
    if private and "SOAK" not in os.environ:  # what is mounted goes with this process
        os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], {**os.environ, "SOAK": "private"})
    root = (options.dir or Path(tempfile.mkdtemp(prefix="soak-"))).absolute()
    soak = Soak(root, options.seed, options.minutes, bool(private))
    soak.run()
    found = {"seed": options.seed, "minutes": options.minutes, **soak.report()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    print(f"see {root}/logs" if soak.faults else "nothing is lost, different or left behind")
    if private:  # else it could not be deleted
        subprocess.run(["umount", str(soak.disk)], check=True)
    if not (soak.faults or options.dir):
        shutil.rmtree(root)
    return bool(soak.faults)


if __name__ == "__main__":
    raise SystemExit(main())
