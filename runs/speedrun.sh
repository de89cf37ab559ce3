#!/bin/sh
# From a bare machine to the figure, in a clone: sets itself up, trains three seeds, prints a row of LEADERBOARD.md.
#
#   runs/speedrun.sh scenes
#   runs/speedrun.sh flickr8k                  (from the Hub)
#   runs/speedrun.sh flickr8k --data DIR       (a local copy)
set -e
cd "$(dirname "$0")/.."
make setup
exec .venv/bin/python benchmarks/speedrun.py "$@"
