"""The command `miniclip`: train.py, eval.py and all that has no script by one name, wherever it is installed."""

from __future__ import annotations

import sys

from miniclip.cli.single import POSITIONAL, single
from miniclip.common.printing import did_you_mean, printable

_USAGE = """usage: miniclip COMMAND ...

  train   train a model: miniclip train --config shapes
  eval    evaluate models: miniclip eval zeroshot --checkpoint runs/shapes --task unseen
  compare train variants side by side: miniclip compare --config shapes --vary optim.lr=1e-3,2e-3 --out runs/rates
  doctor  look for what would spoil a long run: miniclip doctor --config shapes
  audit   look at a data set before training: miniclip audit --data captioned/
  export  write a model for another library: miniclip export runs/shapes clip --to open_clip
  push    publish a model, with its card: miniclip push runs/shapes NAME/REPO
  index   make images searchable: miniclip index photos/ --model runs/flickr8k --out photos.index
  search  find images by words: miniclip search photos.index "a dog in the snow"
  app     the same in the browser: miniclip app photos.index

`miniclip COMMAND --help` tells the rest."""


def main() -> int:
    """Run the process's own command line -> exit code."""
    command, words = sys.argv[1:2], sys.argv[2:]
    if command == ["train"]:
        from miniclip.cli.train import train_main

        sys.argv[:2] = [f"{sys.argv[0]} train"]  # what a run says of how it was started, and goes on by
        return train_main(program="miniclip train")
    if command in (["eval"], ["audit"]):
        from miniclip.cli.eval import main as eval_main

        return eval_main(words, "miniclip eval") if command == ["eval"] else eval_main(["audit", *words], "miniclip")
    if command == ["doctor"]:
        from miniclip.doctor.main import doctor_main

        return doctor_main(words)
    if command and command[0] in POSITIONAL:
        return single(command[0], words)
    asked = command in (["--help"], ["-h"])
    if command and not asked:
        near = did_you_mean(command[0], ("train", "eval", "doctor", "audit", *POSITIONAL))
        print(f"miniclip: error: {printable(command[0])} is no command{near}", file=sys.stderr)
    print(_USAGE, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2
