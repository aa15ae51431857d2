"""`prep cache`: what the teacher-logit store holds, whether it is whole, and how it is kept small."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.config.fields import unknown_key
from data.errors import RunFailed, UserError
from data.logits.store import LogitStore, namespace_note, namespaces
from pipeline.stage import Say
from pipeline.tables.journal import read_journal


def stats(root: Path, namespace: str, yes: bool, say: Say) -> None:
    """For each teacher: distinct pairs, segments, bytes, and how many of the pairs that this store's runs requested were there already."""
    requested = _requested(root)
    for name in chosen_namespaces(root, namespace):
        pairs, segments, size = LogitStore(root, name, warn=say).size()
        asked, hits = requested[name, "pairs"], requested[name, "cached"]
        rate = f"{hits / asked:6.1%} of {asked:,} asked" if asked else "never asked"
        note = namespace_note(root, name)
        say(f"{name[:12]}  {pairs:>11,} pairs  {segments:>5} segments  {size / 1e6:8.1f} MB  hits {rate}  {note['name']} ({_kind(note)})")


def _kind(note: dict[str, Any]) -> str:
    """What tells teachers of one name apart."""
    key = note["key"]
    return f"revision {key['revision']}, {key['scores']}" if key.get("kind") == "imported" else str(key.get("precision", "?"))


def _requested(root: Path) -> Counter[tuple[str, str]]:
    """Pairs that finished shards requested, and found, by namespace: from the journals of all tables of teacher scores of the store."""
    total: Counter[tuple[str, str]] = Counter()
    for folder in [*(root / "teacher_scores").glob("*/"), *(root / "pool_scores").glob("*/")]:
        for line in read_journal(folder):
            for figure in ("pairs", "cached"):
                total[line.get("namespace", ""), figure] += line.get(figure, 0)
    return total


def verify(root: Path, namespace: str, yes: bool, say: Say) -> None:
    """Read every page. Damaged segments are named and set aside, so that the next run scores their pairs again. Fails if there are any."""
    damaged = 0
    for name in chosen_namespaces(root, namespace):
        store = LogitStore(root, name, warn=say)
        faults = store.verify()
        damaged += len(faults)
        say(f"{name[:12]}  {len(store.segment_paths())} segments whole, {len(faults)} damaged")
    if damaged:
        raise RunFailed(f"{damaged} segments are damaged and set aside; the next `prep run` scores their pairs again, and only those")


def compact(root: Path, namespace: str, yes: bool, say: Say) -> None:
    """Merge small segments, while other jobs read and write."""
    for name in chosen_namespaces(root, namespace):
        before, after = LogitStore(root, name, warn=say).compact()
        say(f"{name[:12]}  {before} segments -> {after}")


def gc(root: Path, namespace: str, yes: bool, say: Say) -> None:
    """Delete the logits of one teacher, after asking."""
    if not namespace:
        raise UserError("say whose logits to delete: namespace=START, as `prep cache stats` shows it")
    chosen = chosen_namespaces(root, namespace)
    if len(chosen) > 1:
        raise UserError(f"namespace={namespace} is the start of {len(chosen)} namespaces; give more of it: {', '.join(chosen)}")
    store = LogitStore(root, chosen[0], warn=say)
    pairs, _, size = store.size()
    question = f"delete {pairs:,} logits ({size / 1e6:.1f} MB) of {namespace_note(root, chosen[0])['name']}?"
    if not yes and not (sys.stdin.isatty() and input(f"{question} [yes/no] ").strip().lower() == "yes"):
        raise UserError(f"nothing deleted: {question} answer yes, or give yes=true")
    store.delete()
    say(f"{chosen[0][:12]}  deleted, {pairs:,} pairs")


def chosen_namespaces(root: Path, start: str) -> list[str]:
    """The namespaces that begin with `start`."""
    every = namespaces(root)
    chosen = [name for name in every if name.startswith(start)]
    if start and not chosen:
        raise unknown_key(f"namespace={start}", valid=[f"namespace={name[:12]}" for name in every])
    return chosen


ACTIONS: dict[str, Callable[[Path, str, bool, Say], None]] = {"stats": stats, "verify": verify, "compact": compact, "gc": gc}
