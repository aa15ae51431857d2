"""`loaded.py prep|train|retrieve ARGUMENT ...` or `loaded.py import MODULE ...`: do it; at the end say which modules are in memory."""

from __future__ import annotations

import atexit
import importlib
import sys

COMMANDS = {"prep": "pipeline.__main__", "train": "trainer.__main__", "retrieve": "retrieval.__main__"}


def say_what_is_loaded() -> None:
    """The last line of the output."""
    print("loaded:", *sys.modules, flush=True)


if __name__ == "__main__":
    atexit.register(say_what_is_loaded)
    name, *args = sys.argv[1:]
    if name == "import":
        for module in args:
            importlib.import_module(module)
    else:
        sys.argv = [name, *args]
        importlib.import_module(COMMANDS[name]).main()
