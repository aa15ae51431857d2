"""What an import leaves beside its lists: import.json, by which it is known again, and a file of settings to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.formats.scored_lists.exported import LISTS_FOLDER, NOTE_NAME, ExportNote, ListsTraining
from data.store.paths import shown
from pipeline.interchange.lists_in.grouping import Grouped
from pipeline.interchange.lists_in.request import ImportRequest

IMPORT_NAME, EXPERIMENT_NAME, RUN_NAME = "import.json", "experiment.yaml", "lists.trec"
_LARGEST_DEPTH = 10_000  # of hard_negatives.depth
_USUAL_NEGATIVES = 10


def write_import(folder: Path, key: dict[str, Any], counts: dict[str, Any]) -> None:
    """What was imported, and how much of it was kept."""
    content = json.dumps({"import": key, "counts": counts}, indent=1, ensure_ascii=False)
    (folder / IMPORT_NAME).write_text(content + "\n", encoding="utf-8")


def read_import(folder: Path) -> tuple[dict[str, Any] | None, int]:
    """What a folder is an import of, and of how many logits; None where it is none."""
    try:
        content = json.loads((folder / IMPORT_NAME).read_bytes())
        return dict(content["import"]), int(content["counts"]["kept"].get("logits", 0))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, 0


def write_experiment(folder: Path, request: ImportRequest, grouped: Grouped, *, scored: bool) -> None:
    """Settings that train from the import; the student's model is left to be said.

    Of plain lists of our own layout they train, with that student and seed, the student that the store of the lists trains.
    """
    out = request.out
    split = request.options.split
    exported = _exported(request)
    lines = [
        f"# Written by `prep import`. Say which student{'' if scored else ' and teacher'}, then: prep run config=THIS-FILE",
        f"store: {_quoted(shown((request.store or out / 'store').absolute()))}",
        "ingest:",
        f"  path: {_quoted(request.collection or out)}",
        *([f"  train_split: {_quoted(split)}"] if split != "train" else []),
        *([f"  query_shards: {exported.shards}  # as in the store of the lists"] if exported else []),
        "student:",
        "  # model: sentence-transformers/all-MiniLM-L6-v2",
        *_teacher(request, scored),
        *_negatives(out, grouped, wanted=exported.negatives if exported else _USUAL_NEGATIVES),
        f"dark_examples:{'  # they need a teacher that can read them' if scored else ''}",
        "  reinforced: false",
        "  mask_ratios: []",
        "train:",
        f"  output: {_quoted(out / 'train')}",
        "  recipe: hard_kd  # score_scale: 20 for students whose vectors have length 1",
        *([f"  order: {_quoted(exported.order)}  # of batches, as in the store of the lists"] if exported and exported.order else []),
    ]
    (folder / EXPERIMENT_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _teacher(request: ImportRequest, scored: bool) -> list[str]:
    if request.teacher is None or not scored:
        return ["teacher:", "  # model: cross-encoder/ms-marco-MiniLM-L12-v2", "  # the lists have no scores: say who gives them"]
    teacher = request.teacher
    return [
        "teacher:",
        "  backend: imported",
        f"  model: {_quoted(teacher.name)}",
        f"  revision: {_quoted(teacher.revision)}",
        "  imported:",
        f"    scores: {teacher.scores}",
    ]


@dataclass(frozen=True)
class _Exported:
    """What lists of our own layout say of the training in their store."""

    shards: int  # of queries
    negatives: int
    order: str | None


def _exported(request: ImportRequest) -> _Exported | None:
    """None for lists of others. Raises UserError where the note of the export is changed."""
    if request.reader.name != "lists":
        return None
    training = ListsTraining.of(ExportNote.read(request.path).training, place=request.path / NOTE_NAME)
    shards = len(list((request.path / LISTS_FOLDER).glob("part-*.parquet")))
    return _Exported(shards, training.negatives or _USUAL_NEGATIVES, training.order)


def _negatives(out: Path, grouped: Grouped, *, wanted: int) -> list[str]:
    if not grouped.longest:
        return ["# The lists have positives alone: negatives are mined, see hard_negatives"]
    depth = min(grouped.longest, _LARGEST_DEPTH)
    return [
        "hard_negatives:",
        "  source: run",
        f"  run_file: {_quoted(out / RUN_NAME)}",
        f"  depth: {depth}  # candidates of the longest list; the shortest has {grouped.fewest}",
        f"  range_max: {depth}",
        f"  num_negatives: {min(grouped.longest, wanted)}",
    ]


def _quoted(value: object) -> str:
    """A text as YAML reads it back, whatever its characters."""
    return json.dumps(str(value), ensure_ascii=False)
