"""The commands of `prep phases` in this process, for tests that count or look at what they do."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import pipeline.cli
import retrieval.cli
import trainer.cli
from pipeline import phases

_APPS = {"prep": pipeline.cli.app, "train": trainer.cli.app, "retrieve": retrieval.cli.app}


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no child process be started: a start takes seconds, and a child counts nothing here."""

    def call(command: str, *args: str) -> int:
        result = CliRunner().invoke(_APPS[command], list(args))
        print(result.output)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code

    def path(phase: phases.Phase, stage: str, table: str = "", *more: str) -> str:
        result = CliRunner().invoke(_APPS["prep"], ["path", *phase.args, f"stage={stage}", f"table={table}", *more])
        assert result.exit_code == 0, result.output
        return result.stdout.removesuffix("\n")

    monkeypatch.setattr(phases, "call", call)
    monkeypatch.setattr(phases, "_path", path)
