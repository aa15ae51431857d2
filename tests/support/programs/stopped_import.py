"""`stopped_import.py ROOM MODULE`: the command of a room, which prints `here` and waits for a line where it imports a module."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder


class Stop(MetaPathFinder):
    """Finds nothing; it is asked first, and waits."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Wait if it is the module."""
        if name == self.module:
            print("here", flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    room, module = sys.argv[1:]
    sys.meta_path.insert(0, Stop(module))
    sys.argv = ["x", "run", "config=none"]
    importlib.import_module(f"{room}.__main__").main()
