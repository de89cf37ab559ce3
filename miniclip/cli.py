"""The command line of train.py: errors become one line that says what to do."""

from __future__ import annotations

import os
import sys

from miniclip.config import ConfigError, load_config
from miniclip.printing import printable


def train_main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after a line on standard error about what cannot be run as asked.

    MINICLIP_DEBUG=1 in the environment shows the whole traceback instead.
    """
    try:
        config = load_config(arguments)
        # torch takes seconds to import: --help and a wrong key do not wait for it
        from miniclip.data.images import BadImage
        from miniclip.training import NonFiniteLoss, train
    except ConfigError as error:
        return _fail(error)
    try:
        train(config)
    except (ConfigError, BadImage, NonFiniteLoss, OSError, ValueError) as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    print(f"train.py: error: {printable(str(error))}", file=sys.stderr)
    return 2
