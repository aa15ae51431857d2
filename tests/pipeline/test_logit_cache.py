"""`prep cache`: looking after the store of teacher logits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.stores import forget_scores
from typer.testing import CliRunner

from data.errors import EXIT_BAD_INPUT
from pipeline.cli import app


def cache(action: str, config: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", action, f"config={config}", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_stats_tell_how_often_a_pair_was_there_already(copied: Any, prep_run: Any) -> None:
    """Prevents: a store of which nobody knows whether it pays."""
    code, output = cache("stats", copied.config)
    assert code == 0 and re.search(r"\d+ pairs +2 segments +0\.0 MB  hits +0\.0% of \d+ asked  .*teacher \(torch/fp32\)", output), output
    prep_run(copied.config, **{"hard_negatives.num_negatives": 4})
    code, output = cache("stats", copied.config)
    found = re.search(r"hits +([\d.]+)% of", output)
    assert found and 40 < float(found[1]) < 48  # of twice 12 or 14 pairs a query, 12


def test_compact_keeps_every_logit(copied: Any, prep_run: Any, parquet_files: Any, count_scored: list[int]) -> None:
    """Prevents: a smaller store that has lost something."""
    forget_scores(copied.store)
    prep_run(copied.config, **{"teacher.segment_pairs": 20})
    count_scored.clear()
    before = parquet_files(copied.store)
    code, output = cache("compact", copied.config)
    assert code == 0 and "10 segments -> 2" in output, "one a shard of queries"
    shutil.rmtree(copied.store / "teacher_scores")
    prep_run(copied.config)
    assert count_scored == [] and parquet_files(copied.store) == before


@pytest.mark.medium
def test_a_template_has_logits_of_its_own(copied: Any, prep_run: Any, tmp_path: Path, count_scored: list[int]) -> None:
    """Prevents: logits of plain pairs taken for those of a template, which is another text, and a template's for another's."""
    (plain,) = (copied.store / "teacher_logits").iterdir()
    template = tmp_path / "own.jinja"
    for text in ("ba {{ query }} be {{ document }} bi", "ba {{ query }} bo {{ document }} bi"):
        template.write_text(text)
        count_scored.clear()
        prep_run(copied.config, **{"teacher.template": template})
        assert sum(count_scored)
    assert len([*(copied.store / "teacher_logits").iterdir()]) == 3 and plain.exists()
    count_scored.clear()
    prep_run(copied.config, **{"teacher.template": template})
    prep_run(copied.config)
    assert not sum(count_scored)


def test_gc_asks_first(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: GPU-days deleted by a slip, or in a script that nobody watches."""
    (folder,) = (copied.store / "teacher_logits").iterdir()
    start = f"namespace={folder.name[:8]}"
    for words in ([], ["namespace=zzzz"], [start], [start, "yes=no"]):
        code, output = cache("gc", copied.config, *words)
        assert code == EXIT_BAD_INPUT and folder.exists(), output
    assert "nothing deleted: delete 16" in cache("gc", copied.config, start)[1]
    code, output = cache("gc", copied.config, start, "yes=true")
    assert code == 0 and "deleted" in output and not folder.exists()
    assert cache("stats", copied.config) == (0, "")


@pytest.mark.parametrize(("answer", "gone"), [("yes", True), ("y", False), ("", False)])
def test_gc_deletes_on_a_yes(copied: Any, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool) -> None:
    """Prevents: anything but a yes that deletes."""
    from pipeline import logit_cache as cache_care

    (folder,) = (copied.store / "teacher_logits").iterdir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    monkeypatch.setattr(cache_care.sys, "stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)})())
    try:
        cache_care.gc(copied.store, folder.name, False, lambda line: None)
    except cache_care.UserError:
        assert not gone
    assert folder.exists() != gone


def test_unknown_actions_are_told(finished: Any) -> None:
    """Prevents: `prep cache clean` that does nothing, or everything."""
    code, output = cache("verfy", finished.config)
    assert code == EXIT_BAD_INPUT and "cache verify" in output
