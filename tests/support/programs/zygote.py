"""What a zygote does (support.kills): it forks a child for each line of its input, since a fresh interpreter a kill would take seconds."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork_a_run_a_line(work: Callable[[int, list[str]], None]) -> None:
    """For each line `LOG ARGUMENT...` fork a child, which does `work(log, arguments)`; print its process id, then its exit code.

    Args:
        work: is given the log, opened for appending, in which it may note what it does, and the arguments.
    """
    for line in sys.stdin:
        path, *args = line.split()
        child = os.fork()
        if child:
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the other one talks there
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        code = 1
        try:
            work(log, args)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        os._exit(code)
