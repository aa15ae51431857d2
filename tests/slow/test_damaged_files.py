"""Seeded cases of damaged files under the three commands: each ends in time, with an exit code of ours and a sentence.

`DAMAGED_FILES_FIRST` and `DAMAGED_FILES_CASES` choose others, or more of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.forked import Ended, fork_server, run_forked

FIRST, CASES = (int(os.environ.get(f"DAMAGED_FILES_{name}", default)) for name, default in (("FIRST", "0"), ("CASES", "200")))
SECONDS = 120  # a busy machine takes long to begin
CODES = (0, 1, 2, 3, 75)


@dataclass(frozen=True)
class Workspace:
    """A folder with everything that the commands read, and tables of its store, relative to it."""

    folder: Path
    corpus: str  # vectors
    queries: str
    texts: str  # of passages
    query_texts: str
    qrels: str
    shards: str
    dev: str


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    models: Any,
    collection: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., Any],
) -> Workspace:
    """A finished tiny experiment with two steps of training, a run and an index, in one folder and by relative paths."""
    from data.config.settings import load
    from pipeline.plan import Planner, tables

    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(models.student, folder / "student")
    shutil.copytree(models.teacher, folder / "teacher")
    shutil.copytree(collection, folder / "collection")
    before = Path.cwd()
    os.chdir(folder)
    try:
        config = tiny_experiment(
            Path("."),
            **{
                "store": "store", "ingest.path": "collection", "student.model": "student", "teacher.model": "teacher",
                "train.output": "train",
                "ingest.corpus_shards": 2, "dev.queries": 3, "dev.depth": 5, "train.steps": 2, "train.checkpoint_every": 1,
                "hard_negatives.score_pools": True,
            },
        )  # fmt: skip
        prep_run(config)
        experiment = load({"config": str(config)})
        planner = Planner(experiment)
        place = {table.label: os.path.relpath(planner.plan(table).folder) for table in tables(experiment)}
    finally:
        os.chdir(before)
    return Workspace(
        folder, place["embed.corpus"], place["embed.queries"], place["ingest.corpus"], place["ingest.queries"], place["ingest.qrels"],
        place["shards"], place["dev"],
    )  # fmt: skip


def _commands(at: Workspace) -> dict[str, tuple[list[str], list[str]]]:
    """By name: the words of a command, and the patterns of the files that it reads."""
    config, models, store = "config=tiny.yaml", ["student/**/*", "teacher/**/*"], ["store/**/*"]
    everything = ["tiny.yaml", "collection/**/*", *models, *store]
    vectors = [f"corpus={at.corpus}", f"queries={at.queries}"]
    tables = [f"{at.corpus}/*", f"{at.queries}/*"]
    return {
        "prep run": (["prep", "run", config], everything),
        "prep run anew": (["prep", "run", config, "store=other"], ["tiny.yaml", "collection/**/*", *models]),
        "prep plan": (["prep", "plan", config, "stage=teacher_scores"], everything),
        "prep status": (["prep", "status", config], everything),
        "prep path": (["prep", "path", config], everything),
        "prep inspect": (["prep", "inspect", config], ["tiny.yaml", *store]),
        "prep report": (["prep", "report", config, "out=report.html"], ["tiny.yaml", *store]),
        "prep cache stats": (["prep", "cache", "stats", config], ["store/logits/**/*", "store/teacher_logits/**/*"]),
        "prep cache verify": (["prep", "cache", "verify", config], ["store/logits/**/*", "store/teacher_logits/**/*"]),
        "prep cache compact": (["prep", "cache", "compact", config], ["store/logits/**/*", "store/teacher_logits/**/*"]),
        "train run": (["train", "run", config, f"shards={at.shards}"], ["tiny.yaml", "student/**/*", f"{at.shards}/*", "train/**/*"]),
        "train run with dev": (
            ["train", "run", config, f"shards={at.shards}", f"dev={at.dev}", "train.output=other"],
            ["tiny.yaml", "student/**/*", f"{at.dev}/*", f"{at.shards}/*"],
        ),
        "train dry run": (["train", "run", config, f"shards={at.shards}", "dry_run=true"], ["student/**/*", f"{at.shards}/*"]),
        "retrieve encode": (
            ["retrieve", "encode", "model=student", f"texts={at.texts}", "kind=corpus", "out=encoded"], ["student/**/*", f"{at.texts}/*"],
        ),
        "retrieve index": (["retrieve", "index", f"corpus={at.corpus}", "out=index", "kind=ivf"], [f"{at.corpus}/*"]),
        "retrieve search": (["retrieve", "search", *vectors, "out=found.trec", "depth=5"], tables),
        "retrieve evaluate": (["retrieve", "evaluate", "qrels=qrels.tsv", "run=run.trec"], ["qrels.tsv", "run.trec"]),
        "retrieve evaluate a table": (["retrieve", "evaluate", f"qrels={at.qrels}", "run=run.trec"], [f"{at.qrels}/*", "run.trec"]),
        "retrieve compare": (
            ["retrieve", "compare", "before=run.trec", "after=run2.trec", "qrels=qrels.tsv", "permutations=100"],
            ["qrels.tsv", "run*.trec"],
        ),
        "retrieve rerank": (
            ["retrieve", "rerank", "model=teacher", "run=run.trec", f"queries={at.query_texts}", f"corpus={at.texts}", "out=ranked.trec",
             "max_tokens=64"],
            ["teacher/**/*", "run.trec", f"{at.query_texts}/*", f"{at.texts}/*"],
        ),
        "retrieve query": (
            ["retrieve", "query", "bado", "model=student", f"corpus={at.corpus}", f"texts={at.texts}"],
            ["student/**/*", f"{at.corpus}/*", f"{at.texts}/*"],
        ),
    }  # fmt: skip


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))] if content else content


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed, within = bytearray(content), chance.choice((len(content), min(len(content), 2048)))  # headers are a small part of a file
    for _ in range(chance.choice((1, 1, 3, 20)) if content else 0):
        changed[chance.randrange(within)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _other_encoding(content: bytes, chance: random.Random) -> bytes:
    text = content.decode("latin-1")
    return text.encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7"))) + chance.choice((b"", b"\xff\xfe\xfa"))


def _pointer(content: bytes, chance: random.Random) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


_VALUES: list[Any] = [None, True, 0, -1, 3.5, "", "a", [], {}, ["x"], {"a": 1}, 10**30, "\x00", [None], [[0]], -(10**6)]


def _other_types(content: bytes, chance: random.Random) -> bytes:
    """One value of a JSON document, or of a line of one, by a value of another type; of what is no JSON the whole content."""
    lines = content.decode("utf-8", "replace").splitlines() if content.count(b"\n{") else [content.decode("utf-8", "replace")]
    place = chance.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[place])
    except (ValueError, IndexError):
        return json.dumps(chance.choice(_VALUES)).encode()
    lines[place] = json.dumps(_changed(value, chance))
    return "\n".join(lines).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or chance.random() < 0.15:
        return chance.choice(_VALUES)
    key = chance.choice(keys)
    value[key] = _changed(value[key], chance)
    return value


CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut, "flipped": _flipped, "empty": lambda content, chance: b"", "other encoding": _other_encoding, "pointer": _pointer,
    "other types": _other_types,
}  # fmt: skip
KINDS = [*CONTENTS, "folder", "unreadable", "gone"]


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """Damage a file in one of `KINDS`."""
    content = path.read_bytes()
    path.unlink()
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind](content, chance))
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":  # a link to itself: root may read a file of mode 000
        path.symlink_to(path.name)


def _case(number: int, workspace: Workspace, place: Path, context: Any) -> tuple[str, Ended]:
    chance = random.Random(number)
    name, (words, patterns) = chance.choice(list(_commands(workspace).items()))
    copy = place / f"case{number}"
    shutil.copytree(workspace.folder, copy, symlinks=True)
    targets = [files for pattern in patterns if (files := sorted(file for file in copy.glob(pattern) if file.is_file()))]
    target, kind = chance.choice(chance.choice(targets)), chance.choice(KINDS)
    damage(target, kind, chance)
    what = f"case {number}: {name}, {target.relative_to(copy)} {kind}"
    ended = run_forked(context, words, folder=copy, log=place / f"case{number}.log", timeout=SECONDS)
    shutil.rmtree(copy)
    return what, ended


def _fault(ended: Ended) -> str | None:
    if ended.code is None:
        return f"did not end within {SECONDS} s"
    if ended.code not in CODES:
        return f"exit {ended.code}"
    if "Traceback" in ended.output:
        return "a traceback"
    if ended.code and not any("error: " in line or "interrupted" in line or len(line.split()) > 3 for line in ended.output.splitlines()):
        return f"exit {ended.code} without a sentence"
    return None


def test_a_damaged_file_ends_in_a_sentence(workspace: Workspace, tmp_path: Path) -> None:
    """Prevents: a traceback for a file that a user has, an exit code that a batch queue does not know, a command that waits for ever."""
    at = workspace.folder
    context = fork_server()
    log = tmp_path / "made.log"
    for words in (
        ["retrieve", "search", f"corpus={workspace.corpus}", f"queries={workspace.queries}", "out=run.trec", "depth=20"],
        ["train", "run", "config=tiny.yaml", f"shards={workspace.shards}"],
    ):
        ended = run_forked(context, words, folder=at, log=log, timeout=600)
        assert ended.code == 0, ended.output
    (at / "train" / "result.json").unlink()  # so that the run has something to go on with
    shutil.rmtree(at / "train" / "student")
    shutil.copyfile(at / "run.trec", at / "run2.trec")
    (at / "qrels.tsv").write_bytes((at / "collection" / "qrels" / "test.tsv").read_bytes())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        cases = list(threads.map(lambda number: _case(number, workspace, tmp_path, context), range(FIRST, FIRST + CASES)))
    faults = [f"{what}: {fault}\n{ended.output[-3000:]}" for what, ended in cases if (fault := _fault(ended))]
    if faults:
        pytest.fail(f"{len(faults)} of {CASES} cases:\n" + "\n".join(faults), pytrace=False)
