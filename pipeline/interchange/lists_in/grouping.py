"""From candidates as they were read to the lists of queries: equal queries joined, each candidate once, each pair with one score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.logits.segment import key_halves
from pipeline.interchange.lists_in.counting import ImportReport
from pipeline.interchange.lists_in.identities import Hashes, combined
from pipeline.interchange.lists_in.spill import Spill

# A query's rows have the number of its first list, by which they come back into the order of reading.
ROWS = pa.schema(
    [
        ("first_list", pa.int64()),
        ("number", pa.int64()),
        ("query_id", pa.string()),
        ("doc_id", pa.string()),
        ("relevance", pa.int32()),  # above 0: a positive
        ("in_run", pa.bool_()),
    ]
)
LOGITS = pa.schema([("key", pa.binary(16)), ("logit", pa.float32()), ("list", pa.int64())])  # by key


@dataclass(frozen=True)
class Rules:
    """What decides about a candidate beside its own row."""

    drop_unscored: bool
    wrong_queries: Hashes  # ids with another text than their first
    wrong_passages: Hashes


@dataclass
class Grouped:
    """What was found, over all queries."""

    longest: int = 0  # candidates of a query's list in the run
    fewest: int = 0  # of one that has any
    unscored: int = 0  # positives, and candidates of the run, without a logit


def group(pairs: Iterable[pa.Table], logits: Spill, *, rules: Rules, report: ImportReport, grouped: Grouped) -> Iterator[pa.Table]:
    """The lists of `pairs`, schema ROWS; their logits go to `logits`.

    A table has all rows of its queries in the order of reading.
    """
    for table in pairs:
        table = _right(table, rules, report)
        if table.num_rows:
            table, scored = _one_score_a_text(_once(table, report), report)
            logits.add(scored, key_halves(scored.column("key"))[:, 0])
            yield _lists(table, rules, report, grouped)
    logits.flush()


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    return table.column(name).to_numpy()


def _right(table: pa.Table, rules: Rules, report: ImportReport) -> pa.Table:
    """Without what belongs to a second text of an id."""
    lists = _numbers(table, "list")
    wrong = np.isin(_numbers(table, "query"), rules.wrong_queries)
    if wrong.any():
        broken, first = np.unique(lists[wrong], return_index=True)
        ids = table.filter(pa.array(wrong)).column("query_id").take(pa.array(first)).to_pylist()
        report.lists("query id with two texts", broken, detail="a list before has the id with another text", records=ids)
        report.dropped["candidates of broken lists"] += int(wrong.sum())
    of_passage = np.isin(_numbers(table, "doc"), rules.wrong_passages) & ~wrong
    if of_passage.any():
        ids = table.filter(pa.array(of_passage)).column("doc_id").to_pylist()
        report.candidates("id with two texts", lists[of_passage], detail="the id was met before with another text", records=ids)
    stays = ~(wrong | of_passage)
    return table if stays.all() else table.filter(pa.array(stays))


def _once(table: pa.Table, report: ImportReport) -> pa.Table:
    """Each candidate of a query once, where it first stood: its best label, and its first score."""
    relevance, logits = _numbers(table, "relevance").copy(), _numbers(table, "logit").copy()
    pairs = combined(_numbers(table, "query"), _numbers(table, "doc"))
    order, begins, of = _groups(pairs)
    if len(begins) < len(order):
        best = np.maximum.reduceat(relevance[order], begins)
        both = int(((best > 0) & np.maximum.reduceat(relevance[order] == 0, begins)).sum())
        report.told.update({"candidates that are positive and negative, taken for positives": both} if both else {})
        scored = _first_scored(logits, order, begins)
        other = _other_scores(table, logits, scored[of], report)
        report.dropped.update({"repeated candidates": repeats} if (repeats := len(order) - len(begins) - other) else {})
        first = order[begins]
        known = scored >= 0
        logits[first[known]] = logits[scored[known]]
        keys = np.arange(len(table))
        keys[first[known]] = scored[known]
        table = table.set_column(table.schema.get_field_index("key"), "key", table.column("key").take(pa.array(keys)))
        relevance[first] = best
        rows = np.sort(first)
        table = _with(table, relevance, logits).take(pa.array(rows))
    return table


def _groups(values: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(rows sorted by value, where each value begins among these, the value's number of each row)."""
    order = np.argsort(values, kind="stable")
    starts = np.concatenate([[True], values[order[1:]] != values[order[:-1]]])
    of = np.empty(len(order), np.int64)
    of[order] = np.cumsum(starts) - 1
    return order, np.flatnonzero(starts), of


def _first_scored(logits: NDArray[np.float32], order: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each group the first row with a score, -1 for none."""
    none = len(logits)
    rows = np.minimum.reduceat(np.where(np.isnan(logits), none, np.arange(none))[order], begins)
    return np.where(rows == none, -1, rows)


def _other_scores(table: pa.Table, logits: NDArray[np.float32], right: NDArray[np.int64], report: ImportReport) -> int:
    """Count rows whose score is not that of the row that is right for them, as broken."""
    rows = np.flatnonzero(~np.isnan(logits) & (right >= 0) & (logits != logits[right]))
    records = [f"{logits[row]:.9g}; {logits[right[row]]:.9g} before" for row in rows.tolist()]
    report.candidates("another score of the same pair", _numbers(table, "list")[rows], detail="the first one stays", records=records)
    return len(rows)


def _with(table: pa.Table, relevance: NDArray[np.int32], logits: NDArray[np.float32]) -> pa.Table:
    for name, values in {"relevance": relevance, "logit": logits}.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def _one_score_a_text(table: pa.Table, report: ImportReport) -> tuple[pa.Table, pa.Table]:
    """A logit is stored by the texts of a pair: passages of one text under two ids have one. (The rows that stay, their logits once.)"""
    logits = _numbers(table, "logit")
    places = np.flatnonzero(~np.isnan(logits))
    scored = table.select(LOGITS.names)
    scored = scored if len(places) == len(logits) else scored.take(pa.array(places))
    if not len(places):
        return table, scored
    order, begins, of = _groups(key_halves(scored.column("key"))[:, 0])
    if len(begins) == len(order):
        return table, scored
    right = np.full(len(logits), -1)
    right[places] = places[order[begins]][of]
    scored = scored.take(pa.array(np.sort(order[begins])))
    if not _other_scores(table, logits, right, report):
        return table, scored
    return table.filter(pa.array((right < 0) | (logits == logits[right]))), scored


def _lists(table: pa.Table, rules: Rules, report: ImportReport, grouped: Grouped) -> pa.Table:
    """The rows with their query's first list, and whether they stand in the run."""
    relevance, logits = _numbers(table, "relevance"), _numbers(table, "logit")
    _, first, of = np.unique(_numbers(table, "query"), return_index=True, return_inverse=True)
    positive, scored = relevance > 0, ~np.isnan(logits)
    in_run = ~positive & (scored | (not rules.drop_unscored))

    def number(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(of[mask], minlength=len(first))

    sizes, positives = number(in_run), number(positive)
    if len(of_some := sizes[sizes > 0]):
        grouped.longest = max(grouped.longest, int(of_some.max()))
        grouped.fewest = min(grouped.fewest or int(of_some.min()), int(of_some.min()))
    report.kept.update(
        {"queries": len(first), "positives": int(positive.sum()), "candidates in the run": int(in_run.sum()), "logits": int(scored.sum())}
    )
    grouped.unscored += int(((positive | in_run) & ~scored).sum())
    unscored = int((~positive & ~scored).sum()) if rules.drop_unscored else 0
    report.dropped.update({"candidates without a score": unscored} if unscored else {})
    odd = {
        "queries without a positive": positives == 0,
        "queries without a candidate beside their positives": sizes == 0,
        "queries none of whose positives has a score, though others have": (positives > 0)
        & (number(positive & scored) == 0)
        & (number(~positive & scored) > 0),
    }
    report.told.update({what: int(mask.sum()) for what, mask in odd.items() if mask.any()})
    columns = [_numbers(table, "list")[first][of], table["number"], table["query_id"], table["doc_id"], table["relevance"], in_run]
    return pa.table(columns, schema=ROWS)
