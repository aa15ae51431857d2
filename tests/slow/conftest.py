"""Everything in this folder is slow: many processes, kills, whole runs. `make test-slow` runs it, a plain `pytest` does not.

`SLOW_TESTS_END`, in seconds since 1970, is when the last test may begin: CI has a limit, and a loaded machine takes twice as long as an
idle one. Tests that come later are skipped, each by name with the reason.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (end := os.environ.get("SLOW_TESTS_END")) and time.time() > float(end):
        pytest.skip(f"{item.name} is not begun: SLOW_TESTS_END is over")
