"""What the processes of support.group need, imported once."""

# ruff: noqa: F401

import accelerate
import jsonargparse
import matplotlib.backends.backend_agg
import matplotlib.figure
import pytest
import sklearn.linear_model
import torch._dynamo

import miniclip.cli.evaluate
import miniclip.cli.train
import miniclip.evaluation.suite
import miniclip.inspection.history
import miniclip.training.run
