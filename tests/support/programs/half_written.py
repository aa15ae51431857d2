"""`half_written.py FILE`: write half of a file, print the temporary's name, and go on when a line comes in."""

from __future__ import annotations

import sys
from pathlib import Path

from data.tables.shards import atomic_path

if __name__ == "__main__":
    with atomic_path(Path(sys.argv[1])) as temporary:
        temporary.write_bytes(b"half")
        print(temporary, flush=True)
        sys.stdin.readline()
        temporary.write_bytes(b"whole")
