"""`killed_encode.py ARGUMENT ...`: `retrieve ARGUMENT ...`, which dies when it begins the second shard."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from retrieval import cli
from retrieval.encoding import encode

if __name__ == "__main__":
    embedded_groups = encode.embedded_groups
    shards = 0

    def dying(*args: Any, **options: Any) -> Any:
        """Count shards."""
        global shards
        shards += 1
        if shards == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return embedded_groups(*args, **options)

    encode.embedded_groups = dying
    sys.argv = ["retrieve", *sys.argv[1:]]
    cli.main()
