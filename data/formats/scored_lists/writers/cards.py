"""The README.md of an export: what it holds, of which teacher, under which licence; in front what `datasets` and the hub read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data.formats.scored_lists.writers.lists import Written

NAME = "README.md"
NO_LICENCE = "not stated: texts have that of their collection, scores may have that of their teacher"


def card(format: str, written: Written, *, teacher: Mapping[str, Any], licence: str | None, said: list[str]) -> str:
    """The file's text; `said` are the command's own lines."""
    lines = [*_front_matter(written), f"# Scored lists for {format}", "", f"Licence: {licence or NO_LICENCE}", ""]
    if teacher:
        lines += [f"Scores: raw logits of {teacher['name']} (namespace {teacher['namespace']})", ""]
    else:
        lines += ["Scores: none", ""]
    lines += [f"- {name}: {count:,}" for name, count in written.counts.items()]
    return "\n".join([*lines, "", *(f"- {line}" for line in said), ""])


def _front_matter(written: Written) -> list[str]:
    if not written.configs:
        return []
    parts = [
        line
        for name, files in written.configs.items()
        for line in (f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {json.dumps(files)}")
    ]
    return ["---", "configs:", *parts, "---"]
