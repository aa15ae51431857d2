"""Items made in a thread, some of them ahead, so that the one who uses them does not wait. How long it waited all the same is counted."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetched(Generic[Item]):
    """Iterates over the items of `make()`. An error in the making is raised where the item would be.

    A thread, not a process: reading, decompressing and tensor work all leave Python's lock to others.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], *, ahead: int) -> None:
        self.waited = 0.0  # seconds, so far
        self._items: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(make,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            started = time.perf_counter()
            item, error = self._items.get()
            self.waited += time.perf_counter() - started
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        """End the thread, also before the last item."""
        self._closed.set()
        self._thread.join()

    def _fill(self, make: Callable[[], Iterator[Item]]) -> None:
        try:
            for item in make():
                if not self._put(item, None):
                    return
            self._put(None, None)
        except BaseException as error:  # whatever it is, it is the user's of the items
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
