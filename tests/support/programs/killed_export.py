"""`killed_export.py ARGUMENT ...`: `prep export ARGUMENT ...`, which dies when it has written the first shard."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from pipeline import cli
from pipeline.interchange.stored_lists import StoredLists

if __name__ == "__main__":
    tables = StoredLists.tables

    def dying(self: StoredLists, shard: int, **options: Any) -> Any:
        """Die at the second shard."""
        if shard == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return tables(self, shard, **options)

    StoredLists.tables = dying
    sys.argv = ["prep", "export", *sys.argv[1:]]
    cli.app()
