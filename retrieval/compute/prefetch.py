"""Two threads beside the one that computes: one prepares what comes next, one writes what is done."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_END: Any = object()


class Prefetched(Generic[Item]):
    """Iterates over the items of `make()`, of which up to `ahead` are made before they are asked for.

    An error in the making is raised where the item would be. A thread, not a process: reading, decompressing, tokenising and tensor work
    all leave Python's lock to others.
    """

    def __init__(self, make: Callable[[], Iterable[Item]], *, ahead: int) -> None:
        self.waited = 0.0  # seconds that the one who uses the items waited for them, so far
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._items = self._thread.submit(lambda: iter(make()))
        self._made = deque(self._thread.submit(self._next) for _ in range(ahead))

    def __iter__(self) -> Iterator[Item]:
        while True:
            started = time.perf_counter()
            item = self._made.popleft().result()
            self.waited += time.perf_counter() - started
            if item is _END:
                return
            self._made.append(self._thread.submit(self._next))
            yield item

    def close(self) -> None:
        """End the thread, also before the last item."""
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> Item:
        return next(self._items.result(), _END)


def ahead(items: Iterable[Item]) -> Generator[Item]:
    """The same items, each made in a thread while the one before is used."""
    with contextlib.closing(Prefetched(lambda: items, ahead=1)) as made:
        yield from made


class Behind:
    """Runs writes in order in a thread. One waits at most, so that memory stays bounded."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._last: Future[Any] | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        """Have `function(*args)` run when the write before is done. Raises the error of that one."""
        self.wait()
        self._last = self._thread.submit(function, *args)

    def check(self) -> None:
        """Raise the error of a write that has failed. Waits for nothing."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until all writes are done. Raises the error of one that has failed."""
        if self._last is not None:
            self._last.result()


@contextlib.contextmanager
def behind() -> Iterator[Behind]:
    """`write(function, *args)`, which runs writes in order in a thread. All are done when the block ends, well or not.

    A write's error is raised at the next call, or at the end of a block that ends well.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="behind") as thread:
        write = Behind(thread)
        yield write
        write.wait()
