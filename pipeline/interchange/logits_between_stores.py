"""`prep cache export|import`: the logits of teachers from one store to another, bit by bit, and from files that others wrote.

A file is of one teacher (`data.logits.files`). An import is checked whole before anything of it is stored; what is there already is not
stored a second time, so a command that was killed is given again. In memory is one piece of about 260,000 pairs.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.command import stop_if_asked
from data.config.arguments import Args
from data.config.settings import Experiment
from data.digests import json_digest
from data.errors import UserError
from data.files.leftovers import remove_leftovers, temporary_name
from data.files.paths import expanded
from data.logits.declared import DeclaredTeacher, ScoreKind
from data.logits.files import LogitFileNote, LogitRows, file_schema, is_logit_file, read_logits, read_note
from data.logits.segment import Keys, Part, as_table, parts_of
from data.logits.store import LogitStore, clean_store, namespace_note
from data.remote.cache import RemoteFolder, is_remote, local_file, output_file
from data.store import mirror
from data.tables.shards import open_shard
from pipeline.interchange.incoming_logits import PART_ROWS, Checked, Conflict, IncomingLogits
from pipeline.interchange.lists_in.scores import as_logits, expected
from pipeline.interchange.pair_texts import PairTexts
from pipeline.logit_cache import chosen_namespaces
from pipeline.stage import Say
from retrieval.models.marks import usual_marks

_END = ".parquet"
_SHOWN = 12  # of a namespace


@dataclass(frozen=True)
class Command:
    """One of the two: its own arguments with their defaults, and what it does."""

    arguments: Mapping[str, str]
    run: Callable[[Path, Args, Experiment | None, Say], None]


def export_logits(root: Path, own: Args, experiment: Experiment | None, say: Say) -> None:
    """Write one file, or a folder with a file for each namespace. Raises UserError before the first is written."""
    texts = own.one_of("texts", "true", "false") == "true"
    out, licence = expanded(own["out"], key="out").rstrip("/"), own["licence"].strip() or None
    notes = [_note(root, name, licence) for name in chosen_namespaces(root, own["namespace"])]
    if not notes:
        raise UserError(f"{root} has no teacher's logits to export; `prep cache stats` lists what is there")
    is_file = out.endswith(_END)
    if is_file and len(notes) > 1:
        named = ", ".join(f"namespace={note.namespace[:_SHOWN]} ({note.name})" for note in notes)
        raise UserError(f"out={out} is one file, and there are {len(notes)} teachers: choose {named}; or give a folder, for all of them")
    places = {note.namespace: out if is_file else f"{out}/{note.namespace}{_END}" for note in notes}
    for place in places.values():
        _refuse_other(place)
    with _scratch(_beside(out, is_file=is_file)) if texts else contextlib.nullcontext() as folder:
        marks = usual_marks(experiment.dark_examples if experiment else None)
        pair_texts = PairTexts(root, folder, marks) if folder else None
        for note in notes:
            place = places[note.namespace]
            with output_file(place, kind="parquet") as local:
                rows, with_texts = _write(LogitStore(root, note.namespace, warn=say), note, local, pair_texts)
            told = f", {with_texts:,} with texts, {rows - with_texts:,} of which no table of this store has the texts" if texts else ""
            say(f"{note.namespace[:_SHOWN]}  {note.name}: {rows:,} pairs{told} -> {place}")
    if licence is None:
        say('no licence is stated: licence="..." writes a line of yours into each file')


def _note(root: Path, namespace: str, licence: str | None) -> LogitFileNote:
    found = namespace_note(root, namespace)
    if json_digest(found["key"]) != namespace:
        place = root / "teacher_logits" / namespace / "namespace.json"
        raise UserError(
            f"namespace={namespace[:_SHOWN]}: {place} is lost or was changed, so nobody can tell whose logits these are; delete that file "
            "and run a stage that asks this teacher, which writes it again, or choose another namespace="
        )
    return LogitFileNote(found["name"], found["key"], namespace, licence)


def _refuse_other(place: str) -> None:
    path = Path(place)
    if not is_remote(place) and path.is_file() and path.stat().st_size and not is_logit_file(path):
        raise UserError(f"out={place} is a file of another kind, which is left as it is; choose another name")


def _write(store: LogitStore, note: LogitFileNote, out: Path, texts: PairTexts | None) -> tuple[int, int]:
    """Write a namespace; returns its pairs, and how many of them have texts."""
    schema = file_schema(note, texts=texts is not None)
    with_texts = 0
    with open_shard(out, schema, {}) as writer:
        for keys, scores in store.pieces(Part.bits_for(store.rows(), most=PART_ROWS)):
            for rows in _cut(keys, texts):
                stop_if_asked()
                table = as_table(keys[rows], scores.take(rows))
                if texts:
                    query, text = texts.of(keys[rows])
                    table = table.append_column("query", query).append_column("text", text)
                    with_texts += len(query) - query.null_count
                writer.write(table.replace_schema_metadata(schema.metadata))
        return writer.rows, with_texts


def _cut(keys: Keys, texts: PairTexts | None) -> list[NDArray[np.int64]]:
    """The rows of a piece in key order, so many at a time as have their texts in one part."""
    numbers = parts_of(keys, texts.bits if texts else 0)
    return np.split(np.arange(len(keys)), np.flatnonzero(np.diff(numbers)) + 1)


def _beside(out: str, *, is_file: bool) -> Path:
    """Where a large folder of a while may lie: not in the store, which may be somebody else's."""
    if is_remote(out):
        return Path(tempfile.gettempdir())
    return Path(out).absolute().parent if is_file else Path(out).absolute()


def import_logits(root: Path, own: Args, experiment: Experiment | None, say: Say) -> None:
    """Put the logits of a file, or of all files of a folder, into the store. Raises UserError before anything of them is stored."""
    keep = own.one_of("conflicts", "refuse", "keep") == "keep"
    declared = _declared(own)
    given = expanded(own["path"], key="path")
    files = _files(given)
    notes = [_teacher_of(file, declared) for file in files]
    chosen = [(file, note, rows) for file, (note, rows) in zip(files, notes, strict=True) if note.namespace.startswith(own["namespace"])]
    if not chosen:
        there = ", ".join(sorted({f"namespace={note.namespace[:_SHOWN]} ({note.name})" for note, _ in notes}))
        raise UserError(f"namespace={own['namespace']}: {given} has none of it; it has {there}")
    lowest = highest = np.float32(0)
    clean_store(root)
    with _scratch(root / "teacher_logits") as folder:
        checked: dict[str, tuple[LogitFileNote, IncomingLogits, Checked]] = {}
        for namespace in dict.fromkeys(note.namespace for _, note, _ in chosen):
            mine = [(file, note, rows) for file, note, rows in chosen if note.namespace == namespace]
            incoming = IncomingLogits(folder / namespace, rows=sum(rows for _, _, rows in mine))
            for number, (file, _, _) in enumerate(mine):
                for rows in read_logits(file):
                    stop_if_asked()
                    _refuse_other_kind(rows, file, declared)
                    incoming.add(number, rows)
                    highest, lowest = max(highest, rows.scores.logits.max(initial=0)), min(lowest, rows.scores.logits.min(initial=0))
            found = incoming.check(LogitStore(root, namespace, warn=say))
            _refuse_conflicts(found, [file for file, _, _ in mine], mine[0][1], keep=keep)
            checked[namespace] = (mine[0][1], incoming, found)
        for namespace, (note, incoming, found) in checked.items():
            store = LogitStore(root, namespace, warn=say)
            if namespace_note(root, namespace)["key"] != note.key:  # lost or damaged: this one is whole
                mirror.remove(store.folder / "namespace.json")
            store.describe(key=note.key, name=note.name)
            incoming.store_into(store)
            say(f"{namespace[:_SHOWN]}  {note.name}: {_told(found)}")
        if declared is not None and declared.scores != "cosine" and lowest >= 0 and 0 < highest <= 1:
            say("note: all logits lie between 0 and 1: these look like probabilities, whose sigmoid this command does not undo")
        for licence in dict.fromkeys(note.licence for _, note, _ in chosen if note.licence):
            say(f"licence: {licence}")


def _refuse_other_kind(rows: LogitRows, file: Path, declared: DeclaredTeacher | None) -> None:
    """Raises UserError for a number that is no cosine where they are declared to be. Any number may be a logit."""
    if declared is None or declared.scores != "cosine":
        return
    broken = np.flatnonzero(as_logits(rows.scores.logits.astype(np.float64), "cosine")[1])
    for row in broken[:1].tolist():
        found = f"{rows.scores.logits[row]:.9g} is no cosine: expected {expected('cosine')}"
        raise UserError(f"{file}: row {rows.first + row}: {found}; nothing is stored")


def _told(found: Checked) -> str:
    lines = [f"{found.rows:,} rows, {found.new:,} new pairs stored, {found.there:,} there already"]
    if found.repeated:
        lines.append(f"{found.repeated:,} rows repeat an earlier one")
    if found.conflicts:
        lines.append(f"{found.conflicts:,} have another logit in this store, which is kept (largest difference {found.largest:.3g})")
    return ", ".join(lines)


def _declared(own: Args) -> DeclaredTeacher | None:
    if not own["teacher"]:
        return None
    kind: ScoreKind = "logit"
    for possible in ("logit", "probability", "cosine"):
        if own.one_of("scores", "logit", "probability", "cosine") == possible:
            kind = possible
    return DeclaredTeacher(own["teacher"], own["revision"], kind)


def _files(given: str) -> list[Path]:
    """The files that a path names, each on this machine."""
    if is_remote(given):
        if given.endswith(_END):
            return [local_file(given)]
        folder = RemoteFolder(given)
        names = [name for name in folder.names() or () if name.endswith(_END)]
        files = [folder.local(names) / name for name in names] if names else []
    else:
        path = Path(given)
        if not path.exists():
            raise UserError(f"{given}: no such file or folder")
        if not path.is_dir():
            return [path]
        files = sorted(one for one in path.glob(f"*{_END}") if not one.name.startswith("."))
    if not files:
        raise UserError(f"{given} has no file *{_END}; give what `prep cache export` wrote")
    return files


def _teacher_of(file: Path, declared: DeclaredTeacher | None) -> tuple[LogitFileNote, int]:
    """Whose logits a file holds, as it says or as the user declares, and how many rows."""
    note, rows = read_note(file)
    if note is None and declared is None:
        raise UserError(f"{file} does not say whose logits it holds: declare it, teacher=NAME [revision=1] [scores=logit]")
    if note is not None and declared is not None:
        raise UserError(f"teacher={declared.name}: {file} says itself that its logits are {note.name}'s; leave teacher= out")
    if note is None:
        assert declared is not None
        note = LogitFileNote(declared.name, declared.key, declared.namespace)
    return note, rows


def _refuse_conflicts(found: Checked, files: list[Path], note: LogitFileNote, *, keep: bool) -> None:
    for one in found.of_files:
        here, there = f"{files[one.file]}: row {one.row}", f"row {one.other_row} of {files[one.other_file]}"
        raise UserError(f"{here}: the pair has logit {one.logit:.9g}, in {there} {one.other:.9g}: leave one out; nothing is stored")
    if found.conflicts and not keep:
        raise UserError(f"{_first_conflict(found.of_store[0], files, note, found)}; nothing is stored")


def _first_conflict(one: Conflict, files: list[Path], note: LogitFileNote, found: Checked) -> str:
    whose = f"this store's namespace {note.namespace[:_SHOWN]} ({note.name})"
    return (
        f"{found.conflicts:,} of {found.rows:,} pairs have another logit in {whose}, by up to {found.largest:.3g}; the first is "
        f"{files[one.file]}: row {one.row}, {one.logit:.9g} here and {one.other:.9g} there. Differences of rounding (another device, "
        "another batch) are harmless: conflicts=keep keeps the store's logits and takes the rest"
    )


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder for what is on its way, gone afterwards; what killed commands left goes too."""
    remove_leftovers(parent)
    folder = temporary_name(parent / "between")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


COMMANDS = {
    "export": Command({"out": "", "namespace": "", "texts": "false", "licence": ""}, export_logits),
    "import": Command(
        {"path": "", "namespace": "", "conflicts": "refuse", "teacher": "", "revision": "1", "scores": "logit"}, import_logits
    ),
}
