"""What the pages say exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.config.fields import all_keys
from data.config.settings import Experiment

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
IN_USE = [page for page in PAGES if "log" not in page.parts and page.name != "CHANGELOG.md"]
NO_SETTINGS = {
    "py",
    "yaml",
    "md",
    "sh",
    "tsv",
    "trec",
    "parquet",
    "corpus",
    "queries",
    "qrels",
}  # the last part of names of files and tables
SECTIONS = "|".join(name for name in Experiment.model_fields if name not in ("store", "seed"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Prevents: a page that was moved, and a heading that was renamed, behind links that still name them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{name_of(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", IN_USE, ids=name_of)
def test_settings_named_in_pages_exist(page: Path) -> None:
    """Prevents: a page that tells to set what has another name by now."""
    keys = all_keys(Experiment)
    for named in re.findall(rf"(?<![\w./-])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/*]|\()", page.read_text(encoding="utf-8")):
        if named.rsplit(".", 1)[-1] not in NO_SETTINGS:
            assert any(key == named or key.startswith(f"{named}.") for key in keys), f"{name_of(page)} names {named}"


@pytest.mark.parametrize("page", IN_USE, ids=name_of)
def test_files_named_in_pages_exist(page: Path) -> None:
    """Prevents: a page that points at a module under the place it had before."""
    for named in re.findall(
        r"(?<![\w/])((?:data|retrieval|pipeline|trainer|benchmarks|tests|recipes)/[\w/]+\.(?:py|sh|yaml))", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / named).exists(), f"{name_of(page)} names {named}"
