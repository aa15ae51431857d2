"""What lies at a path, in words: for errors about a table, file or folder that was given in place of another."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DamagedShard, UserError
from data.tables.manifest import MANIFEST_NAME, Manifest

_FOLDERS = (  # any of these names, what the folder then is
    (("modules.json", "config.json", "model.onnx", "adapter_config.json"), "a model's folder"),
    (("corpus.jsonl", "corpus.jsonl.gz", "collection.tsv", "collection.tsv.gz", "corpus.parquet"), "a collection's folder"),
    (("metrics.jsonl", "result.json", "run.json"), "the output of a training"),
    (("digests.json", "ingest", "teacher_logits"), "a whole store, whose tables lie in folders below it (`prep path` names them)"),
)
_COLUMNS = {6: "a TREC run", 4: "TREC qrels", 3: "qrels"}
_HEAD = 1 << 14


def what_lies(path: Path) -> str:
    """`the stored table embed.corpus`, `a model's folder`, `a TREC run`, ...: by names and first bytes, so as a guess for people."""
    if path.is_dir():
        return _folder(path)
    return _file(path) if path.exists() else "not there"


def table_name(manifest: Manifest) -> str:
    """`the stored table embed.corpus`."""
    return f"the stored table {manifest.stage}.{manifest.table}" if manifest.table else f"the stored table {manifest.stage}"


def output_of(stage: str, folder: Path, *, metadata: bytes, what: str) -> Manifest:
    """The manifest of a stage's output, known by the metadata of its schema: before every shard is read for its digest.

    Raises UserError where the folder holds no table, or another one. `what` names the rows of the stage in words.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        found = f"it is {what_lies(folder)}, without {MANIFEST_NAME}"
        raise UserError(f"{stage}={folder}: {found}; give the output folder of `prep run stage={stage}` (see `prep path`)")
    with contextlib.suppress(OSError, pa.ArrowException):  # whoever reads it says what is damaged
        if manifest.shards and metadata not in (pq.read_schema(folder / manifest.shards[0].name).metadata or {}):
            raise UserError(f"{stage}={folder} is {table_name(manifest)}; expected {what}, the output of stage={stage}")
    return manifest


def stored_table(folder: Path) -> Manifest | None:
    """The manifest of a stored table; None where there is none, or a file of that name that is none of ours."""
    try:
        return Manifest.read(folder)
    except (DamagedShard, OSError):
        return None


def _folder(path: Path) -> str:
    if (manifest := stored_table(path)) is not None:
        return table_name(manifest)
    for names, what in _FOLDERS:
        if any((path / name).exists() for name in names):
            return what
    if (path / MANIFEST_NAME).exists():
        return "a stored table with a damaged manifest"
    return "a folder of another kind" if any(path.iterdir()) else "an empty folder"


def _file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return "a file that cannot be read"
    if not head.strip():
        return "an empty file" if len(head) < _HEAD else "a file of another kind"
    if head.startswith(b"PAR1"):
        return "a Parquet file"
    if head.lstrip().startswith((b"{", b"[")):
        return "a JSON file"
    lines = [line for line in head.splitlines() if line.strip()]
    widths = {len(line.split()) for line in lines[1:-1] or lines}  # a header, and a line that is cut, apart
    return _COLUMNS.get(widths.pop() if len(widths) == 1 else 0, "a file of another kind")
