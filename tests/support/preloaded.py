"""What the processes of support.group need, imported once."""

import accelerate  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo  # noqa: F401

import miniclip.cli.evaluate
import miniclip.cli.train
import miniclip.training.loop  # noqa: F401
