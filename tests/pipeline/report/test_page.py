"""The HTML report: self-contained, escaped, repeatable, and shown by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import UserError
from pipeline.cli import app
from pipeline.report.page import write_report

ATTACK = """<script>document.title="taken"</script> <img src=x onerror='document.title="taken"'> "quoted" & so on"""
CONTROL = "\x1b[2J\u202e"

CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


class _Tags(HTMLParser):
    """Counts tags, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
    collection: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., list[str]],
) -> tuple[Path, Path]:
    """(config, report) of a collection in which a positive and its query attack the page, and one record is broken."""
    folder = tmp_path_factory.mktemp("report")
    attacked = folder / "collection"
    shutil.copytree(collection, attacked)
    for name, identifier in (("corpus", "d0"), ("queries", "train0")):
        records = [json.loads(line) for line in (attacked / f"{name}.jsonl").read_text().splitlines()]
        for record in records:
            record["text"] += f" {ATTACK} {CONTROL}" if record["_id"] == identifier else ""
        lines = [json.dumps(record) for record in records] + (['{"_id": "<b>broken</b>", "text": ""}'] if name == "corpus" else [])
        (attacked / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = tiny_experiment(folder / "run", **{"ingest.path": attacked, "ingest.max_bad_fraction": 0.1})
    prep_run(config)
    write_report(load({"config": str(config)}), folder / "report.html")
    return config, folder / "report.html"


def _tags(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    return tags


def test_text_of_the_collection_is_escaped(report: tuple[Path, Path]) -> None:
    """A passage that holds markup would run as a script in the reader's browser."""
    page = report[1].read_text()
    tags = _tags(page)
    assert "script" not in tags.counts and "img" not in tags.counts
    assert "&lt;script&gt;" in page and "&#34;quoted&#34; &amp; so on" in page
    assert "&lt;b&gt;broken&lt;/b&gt;" in page and "empty text" in page


def test_control_characters_are_shown_not_obeyed(report: tuple[Path, Path]) -> None:
    """Prevents: a passage that clears the reader's screen, or turns the order of the page's text round."""
    page = report[1].read_text()
    shown = CliRunner().invoke(app, ["inspect", f"config={report[0]}", "query=train0"]).output
    for text in (page, shown):
        assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2J\\u202e" in text


def test_needs_no_network(report: tuple[Path, Path]) -> None:
    """A page that loads a font or a script shows nothing on a machine without network."""
    page = report[1].read_text()
    assert [load for load in _tags(page).loads if not load.startswith("#")] == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)


def test_shows_scores_stages_and_queries(report: tuple[Path, Path]) -> None:
    """A report without its figures or queries would still be written."""
    page = report[1].read_text()
    tags = _tags(page)
    assert tags.counts["figure"] == 4 and tags.counts["svg"] == 4
    assert tags.counts["details"] == 14  # all training queries, as there are fewer than 20
    for label in ("ingest.corpus", "embed.queries", "hard_negatives", "teacher_scores", "shards"):
        assert f"<td>{label}</td>" in page
    assert "<mark>[MASK]</mark>" in page and '<mark class="sep">[SEP]</mark>' in page


def test_same_store_same_page(report: tuple[Path, Path], tmp_path: Path) -> None:
    """A page that differs each time cannot be compared with a colleague's."""
    write_report(load({"config": str(report[0])}), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == report[1].read_bytes()


def test_says_which_stage_is_missing(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., Any]) -> None:
    """A report of half a run would be read as one of the whole."""
    config = tiny_experiment(tmp_path)
    prep_run(config, stage="ingest")
    with pytest.raises(UserError, match="is not complete: prep run stage="):
        write_report(load({"config": str(config)}), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.medium
def test_opens_in_a_browser(report: tuple[Path, Path], tmp_path: Path) -> None:
    """A page may parse and yet show nothing, or run what a passage told it to."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    command = [chromium, *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2400"]
    address = report[1].as_uri()
    dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>Distillation data report</title>" in dom
    assert _tags(dom).counts["svg"] == 4 and _tags(dom).counts["details"] == 14
    picture = tmp_path / "report.png"
    subprocess.run([*command, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 20_000  # a blank page of this size compresses to far less


@pytest.mark.medium
def test_several_draws_are_still_the_same_queries(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., Any]
) -> None:
    """A query counted once a draw would make the collection look larger, and show each query twice."""
    config = tiny_experiment(tmp_path, **{"hard_negatives.draws": 2})
    prep_run(config)
    write_report(load({"config": str(config)}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>training queries</td><td>14</td>" in page and _tags(page).counts["details"] == 14
