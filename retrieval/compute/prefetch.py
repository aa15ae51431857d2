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
        self._slots = threading.Semaphore(ahead)
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
            self._slots.release()
            yield item

    def close(self) -> None:
        """End the thread, also before the last item."""
        self._closed = True
        self._slots.release()
        self._thread.join()

    def _fill(self, make: Callable[[], Iterable[Item]]) -> None:
        try:
            items, item = iter(make()), None
            while item is not _END:
                self._slots.acquire()
                if self._closed:
                    return
                item = next(items, _END)
                self._made.put((item, None))
        except BaseException as error:  # whatever it is, it is raised where the items are used
            self._made.put((_END, error))


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made in a thread while the one before is used."""
    with contextlib.closing(Prefetched(lambda: items, ahead=1)) as made:
        yield from made


@contextlib.contextmanager
def behind() -> Iterator[Callable[..., None]]:
    """`write(function, *args)`, which runs writes in order in a thread. All are done when the block ends well.

    One waits at most, so that memory stays bounded. A write's error is raised at the next call, or at the end.
    """
    last: Future[Any] | None = None

    def write(function: Callable[..., Any], *args: Any) -> None:
        nonlocal last
        if last is not None:
            last.result()
        last = thread.submit(function, *args)

    with ThreadPoolExecutor(1, thread_name_prefix="behind") as thread:
        yield write
        if last is not None:
            last.result()
