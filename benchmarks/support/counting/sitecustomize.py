"""Counts what each task of a pipeline reads, in every process that has this folder on its import path. Python imports it at the start.

A line of JSON goes to the file READ_LOG for each task, and for the command itself. Bytes are those of read() and pread() as the system
counts them for the process (`rchar`), without the modules that Python imports meanwhile; files that are mapped are counted by their size.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from types import ModuleType
from typing import Any

_COUNTED = "pipeline.executors.worker"
_BEFOREHAND = (
    "torch", "transformers.models.auto.tokenization_auto", "polars", "retrieval.search.searcher", "retrieval.encoding.text_encoder",
)  # fmt: skip


class _Totals:
    imported = 0
    mapped = 0


def _of_status(path: str, name: str) -> int:
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def _read() -> int:
    return _of_status("/proc/self/io", "rchar:") - _Totals.imported


def _note(**line: Any) -> None:
    line |= {"anonymous": _of_status("/proc/self/status", "RssAnon:") * 1024, "resident": _of_status("/proc/self/status", "VmRSS:") * 1024}
    descriptor = os.open(os.environ["READ_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def _count_imports() -> None:
    loader = importlib.machinery.SourceFileLoader
    get_data = loader.get_data

    def counted(self: Any, path: str) -> bytes:
        data = get_data(self, path)
        _Totals.imported += len(data)
        return data

    loader.get_data = counted  # type: ignore[method-assign]


def _count_tasks(module: ModuleType) -> None:
    import pyarrow as pa

    memory_map, build = pa.memory_map, module.Worker.build
    for name in _BEFOREHAND:  # what they read of themselves when they are first imported is none of the task's
        importlib.import_module(name)

    def mapped(path: str, *args: Any, **kwargs: Any) -> Any:
        _Totals.mapped += os.path.getsize(path)
        return memory_map(path, *args, **kwargs)

    def counted(self: Any, order: Any, **kwargs: Any) -> Any:
        read, mapped_before = _read(), _Totals.mapped
        done = build(self, order, **kwargs)
        digested = sum(record.bytes for record in getattr(done, "records", ()))  # of what the task wrote, read again to digest it
        read = _read() - read - digested
        mapped = _Totals.mapped - mapped_before
        _note(label=order.label, name=order.name, read=read, digested=digested, mapped=mapped, process=os.getpid())
        return done

    pa.memory_map, module.Worker.build = mapped, counted


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the counted module as all others are found, and changes it when it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """None for all other modules."""
        if name != _COUNTED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            _count_tasks(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if "READ_LOG" in os.environ:
    _count_imports()
    sys.meta_path.insert(0, _Finder())
    if "pipeline" in sys.orig_argv:
        atexit.register(lambda: _note(label="", name="the command", read=_read(), mapped=_Totals.mapped, process=os.getpid()))
