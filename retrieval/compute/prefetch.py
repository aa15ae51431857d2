"""Two threads beside the one that computes: one prepares what comes next, one writes what is done."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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
        self._made: queue.SimpleQueue[tuple[Item, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._closed = False
        self._thread = threading.Thread(target=self._fill, args=(make,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            started = time.perf_counter()
            item, error = self._made.get()
            self.waited += time.perf_counter() - started
            if error is not None:
                raise error
            if item is _END:
                return
            self._room.release()
            yield item

    def close(self) -> None:
        """End the thread, also before the last item."""
        self._closed = True
        self._room.release()
        self._thread.join()

    def _fill(self, make: Callable[[], Iterable[Item]]) -> None:
        try:
            items, item = iter(make()), None
            while item is not _END:
                self._room.acquire()
                if self._closed:
                    return
                item = next(items, _END)
                self._made.put((item, None))
        except BaseException as error:  # whatever it is, it is the user's of the items
            self._made.put((_END, error))


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made in a thread while the one before is used."""
    with contextlib.closing(Prefetched(lambda: items, ahead=1)) as made:
        yield from made


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
