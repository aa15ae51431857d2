"""The console script `train`, and `python -m trainer`. Signals are heard before the imports, which take half a second."""

from __future__ import annotations

import sys
from pathlib import Path

# `-m` puts the working directory first, where a data.py or rich.py may lie that is none of ours.
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]


def main() -> None:
    """Run the command."""
    try:
        from data.command import leave_on_signals

        leave_on_signals()
        from trainer.cli import app
    except ImportError as error:
        sys.exit(f"error: {error}: a module of that name lies in another folder of the import path (PYTHONPATH?), or a package is missing")
    app()


if __name__ == "__main__":
    main()
