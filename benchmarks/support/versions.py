"""Two versions of the code for one benchmark."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def versions(before: str | None, folder: Path) -> Iterator[dict[str, Path]]:
    """The code by side: `after` is this tree, `before` a commit checked out at folder/before as long as the block lasts.

    Without a commit there is one side.
    """
    if before is None:
        yield {"after": ROOT}
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder / "before"), before], check=True)
    try:
        yield {"before": folder / "before", "after": ROOT}
    finally:
        subprocess.run([*git, "remove", "--force", str(folder / "before")], check=False)
