"""What a person sees of a run: a bar on a terminal, a line every 30 seconds elsewhere, both on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.terminal import printable

_LINE_SECONDS = 30.0


class RunProgress:
    """Shows steps until it is closed."""

    def __init__(self, *, steps: int, done: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._steps, self._first = steps, done
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("train", total=steps, completed=done, figures="")
        self._bar.start()

    def close(self) -> None:
        """Leave the terminal to others."""
        self._bar.stop()

    def note(self, message: str) -> None:
        """A line that stays."""
        self._console.print(printable(message), markup=False)

    def step(self, figures: dict[str, Any]) -> None:
        """Report a finished step."""
        step, now = figures["step"], time.monotonic()
        text = (
            f"epoch {figures['epoch']} loss {figures['loss']:.4f} (sup {figures['supervised']:.3f}, kd {figures['distillation']:.3f}) "
            f"selected {figures['share']:.0%} {figures['queries_per_second']:.1f} queries/s"
        )
        self._bar.update(self._task, completed=step, figures=text)
        if self._bar.disable and (now - self._last_line >= _LINE_SECONDS or step == self._steps):
            remaining = (now - self._started) / (step - self._first) * (self._steps - step)
            self.note(f"step {step}/{self._steps} {text}, {remaining / 60:.1f} min left")
            self._last_line = now
