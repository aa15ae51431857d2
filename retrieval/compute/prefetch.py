"""Two threads beside the one that computes: one prepares what comes next, one writes what is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made in a thread while the one before is used. An error in the making is raised where the item would be."""
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]


class Behind:
    """Runs writes in order in a thread, one waiting at most, so that memory stays bounded. An error is raised at the next call."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._last: Future[Any] | None = None

    def do(self, write: Callable[..., Any], *args: Any) -> None:
        """Wait for the write before, then start this one."""
        self.wait()
        self._last = self._thread.submit(write, *args)

    def wait(self) -> None:
        """Until nothing is left to write."""
        if self._last is not None:
            self._last.result()
            self._last = None


@contextlib.contextmanager
def behind() -> Iterator[Behind]:
    """A `Behind` whose writes are all done when the block ends well."""
    with ThreadPoolExecutor(1, thread_name_prefix="behind") as thread:
        writes = Behind(thread)
        yield writes
        writes.wait()
