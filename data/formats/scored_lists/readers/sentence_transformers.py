"""Data sets of sentence-transformers, and what the hub has in their form.

record                                                            source (sentence-transformers 6)
query, positive, negative | negative_1 ... negative_n, scores     `mine_hard_negatives(output_format="n-tuple" | "triplet")`: one score for
                                                                  the positive, then one a negative
query, positive, negative ..., label (a list)                     `DistillKLDivLoss`: the label is the list of the teacher's scores
query, docs, labels | scores                                      `output_format="labeled-list"`; losses of lists of `CrossEncoder`
query, passage, label | score                                     `output_format="labeled-pair"`
query_id, passage_id, score and query_id, doc_ids, labels         configurations of sentence-transformers/msmarco
query, docs, scores                                               opensearch-project/msmarco-hard-negatives, whose query and docs are ids
query, document, label (fractions)                                cross-encoder/ettin-reranker-v1-data: the label is the teacher's logit

A column may also be called anchor or question, answer, document, and so on: see `NAMES`; any other name is told by `columns=`. The label
of a triplet, or of `MarginMSELoss`, is a difference of two scores, of which no score can be made: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.pylate import PyLate
from data.formats.scored_lists.readers.records.assembling import Part
from data.formats.scored_lists.readers.records.fields import Kind, Problem, is_list_type
from data.formats.scored_lists.readers.records.places import Place, part_of, place_problems, unequal_lists
from data.formats.scored_lists.readers.records.rows import Rows
from data.formats.scored_lists.readers.table_layout import Columns, Fields, Plan, TableLayout

NAMES = {
    "query": ("query", "anchor", "question", "query_text"),
    "query_id": ("query_id", "qid", "query-id", "anchor_id"),
    "positive": ("positive", "positives"),
    "positive_id": ("positive_id", "positive_ids"),
    "negative": ("negative", "negatives"),
    "negative_id": ("negative_id", "negative_ids"),
    "passage": ("passage", "document", "doc", "answer", "text"),
    "passage_id": ("passage_id", "document_id", "doc_id", "docid", "pid", "corpus-id"),
    "docs": ("docs", "documents", "passages"),
    "doc_ids": ("doc_ids", "document_ids", "docids", "passage_ids"),
    "score": ("scores", "score"),
    "label": ("labels", "label"),
}
_NUMBERED = re.compile(r"negative_?(\d+)")
_NUMBERED_ID = re.compile(r"negative_?(\d+)_id|negative_id_?(\d+)")


class SentenceTransformers(TableLayout):
    """Reads them."""

    name = "sentence-transformers"

    def knows(self, names: Sequence[str]) -> bool:
        """See `TableLayout`."""
        there = {name for name, others in NAMES.items() if any(other in names for other in others)}
        has_query = bool(there & {"query", "query_id"})
        is_pair = bool(there & {"passage", "passage_id", "docs", "doc_ids"}) and bool(there & {"score", "label"})
        is_tuple = bool(there & {"positive", "positive_id"})
        is_of_others = "positive_passages" in names or PyLate().knows(names)
        return has_query and (is_pair or is_tuple) and not is_of_others

    def plan(self, rows: Rows, options: ReadOptions) -> Plan:
        """See `TableLayout`."""
        fields = Fields(rows, NAMES, options, layout=self.name)
        if "query" not in fields and "query_id" not in fields:
            raise fields.refuse("no query")
        return _Shape(fields).plan()


class _Shape:
    """One file's columns, and which of the forms they have."""

    def __init__(self, fields: Fields) -> None:
        self._fields, self._rows = fields, fields.rows
        self._chosen: dict[str, tuple[str, Kind]] = {}
        self._query = self._take("query", "text") if "query" in fields else None
        self._query_id = self._take("query_id", "id") if "query_id" in fields else None

    def plan(self) -> Plan:
        fields = self._fields
        has_positive = "positive" in fields or "positive_id" in fields
        negatives = self._negatives()
        if has_positive and negatives:
            return self._tuples(negatives)
        if "docs" in fields or "doc_ids" in fields:
            return self._lists("docs", "doc_ids")
        if "passage" in fields or "passage_id" in fields:
            is_list = self._is_list("passage" if "passage" in fields else "passage_id")
            return self._lists("passage", "passage_id") if is_list else self._pairs("passage", "passage_id")
        if not has_positive:
            raise fields.refuse("no positive, docs or passage")
        if "score" not in fields and "label" not in fields:
            return self._tuples([])
        if self._is_list("positive" if "positive" in fields else "positive_id"):
            return self._lists("positive", "positive_id")
        if "label" not in fields and "positive" not in fields.asked:
            name = fields["positive"] if "positive" in fields else fields["positive_id"]
            raise fields.refuse(
                "its candidates are all positives, with a score: sentence-transformers writes mined negatives into this column, too",
                remedy=f"columns=positive:{name} says that all are positives, columns=passage:{name} that nobody says",
            )
        return self._pairs("positive", "positive_id")

    def _take(self, name: str, kind: Kind, column: str | None = None) -> str:
        """Ask for a field; the name that the plan knows it by."""
        self._chosen[name] = (column or self._fields[name], kind)
        return name

    def _is_list(self, name: str) -> bool:
        return is_list_type(self._rows.column(self._fields[name])) is True

    def _negatives(self) -> list[Place]:
        """(text, id) columns of the negatives, in the order of their numbers."""
        fields, names = self._fields, self._rows.names
        texts = _numbered(names, _NUMBERED) if "negative" not in fields.asked else {}
        ids = _numbered(names, _NUMBERED_ID) if "negative_id" not in fields.asked else {}
        first = (fields.get("negative"), fields.get("negative_id"))
        return [first] * (first != (None, None)) + [(texts.get(number), ids.get(number)) for number in sorted({*texts, *ids})]

    def _tuples(self, negatives: list[Place]) -> Plan:
        places = [(self._fields.get("positive"), self._fields.get("positive_id")), *negatives]
        taken: list[Place] = []
        for number, (text, doc_id) in enumerate(places):
            taken.append((self._take_place(f"text {number}", text, "text"), self._take_place(f"id {number}", doc_id, "id")))
        scores = self._tuple_scores(taken)

        def parts(columns: Columns) -> list[Part]:
            return [part_of(columns, text, doc_id, relevance=int(not number)) for number, (text, doc_id) in enumerate(taken)]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            return place_problems(columns, parts, taken, scores)

        return Plan(self._chosen, parts, problems, scores, self._query_id, self._query)

    def _take_place(self, name: str, column: str | None, kind: Kind) -> str | None:
        if column is None:
            return None
        is_list = is_list_type(self._rows.column(column)) is True
        return self._take(name, ("texts" if kind == "text" else "ids") if is_list else kind, column)

    def _tuple_scores(self, places: Sequence[Place]) -> str | None:
        fields = self._fields
        name = "score" if "score" in fields else "label" if "label" in fields else None
        if name is None:
            return None
        self._refuse_struct(name)
        is_list = is_list_type(self._rows.column(fields[name]))
        if is_list is False:
            found = f"{fields[name]} is one number for several candidates, so a margin"
            raise fields.refuse(f"{found}, which gives no score", remedy=f"columns={name}:- leaves it out")
        if is_list and name == "label" and "label" not in fields.asked and self._are_margins(places):
            found = f"{len(places) - 1} numbers for {len(places)} candidates"
            raise fields.refuse(f"{fields[name]} has {found}, so margins, which give no score", remedy=f"columns={name}:- leaves it out")
        return self._take(name, "numbers")

    def _are_margins(self, places: Sequence[Place]) -> bool:
        """Whether the label's lists all have a number less than there are candidates."""
        has_lists = any(name is not None and self._chosen[name][1] in ("texts", "ids") for place in places for name in place)
        lists = {len(value) for value in self._rows.sample(self._fields["label"]) if isinstance(value, list)}
        return not has_lists and len(places) > 1 and lists == {len(places) - 1}

    def _lists(self, text: str, doc_id: str) -> Plan:
        """One list of candidates a record, with a list of scores, of labels, or of both."""
        fields = self._fields
        texts = self._take(text, "texts") if text in fields else None
        ids = self._take(doc_id, "ids") if doc_id in fields else None
        if ids is None and texts is not None and self._query is not None and self._are_ids(texts):
            # opensearch-project/msmarco-hard-negatives has ids of MS MARCO in the places of texts
            ids, texts = self._take(doc_id, "ids", fields[text]), None
            self._query_id, self._query = self._take("query_id", "id", fields["query"]), None
            self._chosen.pop(text, None)
            self._chosen.pop("query", None)
        scores, labels = self._scores_and_labels("numbers", "labels")

        def parts(columns: Columns) -> list[Part]:
            return [part_of(columns, texts, ids, relevance=None if labels is None else columns[labels])]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            lists = [(labels, texts or ids)] if labels is not None else []
            return unequal_lists(columns, lists) or place_problems(columns, parts, [(texts, ids)], scores)

        return Plan(self._chosen, parts, problems, scores, self._query_id, self._query)

    def _pairs(self, text: str, doc_id: str) -> Plan:
        """One candidate a record."""
        fields = self._fields
        texts = self._take(text, "text") if text in fields else None
        ids = self._take(doc_id, "id") if doc_id in fields else None
        score, label = self._scores_and_labels("number", "label")
        all_positive = text == "positive" and label is None

        def parts(columns: Columns) -> list[Part]:
            relevance: pa.Array | int | None = 1 if all_positive else None if label is None else columns[label]
            return [part_of(columns, texts, ids, relevance=relevance, score=None if score is None else columns[score])]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            return place_problems(columns, parts, [(texts, ids)], None)

        return Plan(self._chosen, parts, problems, None, self._query_id, self._query, joins_neighbours=True)

    def _scores_and_labels(self, scores: Kind, labels: Kind) -> Place:
        """(scores, labels). A label of fractions, where there is no score, is the score; one of whole numbers is a judgement."""
        fields = self._fields
        for name in ("score", "label"):
            self._refuse_struct(name)
        if "score" in fields:
            return self._take("score", scores), self._take("label", labels) if "label" in fields else None
        if "label" not in fields:
            return None, None
        seen = {value for value in _flat(self._rows.sample(fields["label"])) if isinstance(value, int | float)}
        if "label" in fields.asked or not any(isinstance(value, float) for value in seen):
            return None, self._take("label", labels)
        if seen <= {0.0, 1.0}:
            name = fields["label"]
            says = f"columns=label:{name} says that they are labels, columns=score:{name} that they are scores"
            raise fields.refuse(f"{name} holds 0 and 1 as fractions, so labels or scores", remedy=says)
        return self._take("score", scores, fields["label"]), None

    def _refuse_struct(self, name: str) -> None:
        fields = self._fields
        sample = self._rows.sample(fields[name], 1) if name in fields else []
        if sample and isinstance(sample[0], dict):
            keys = ", ".join(sample[0])
            raise fields.refuse(f"{fields[name]} has several scores ({keys})", remedy=f"choose one, columns={name}:{fields[name]}.NAME")

    def _are_ids(self, texts: str) -> bool:
        """Whether queries and candidates are numbers alone: a text of which nothing can be learnt, so ids."""
        seen = [*self._rows.sample(self._fields["query"]), *_flat(self._rows.sample(self._chosen[texts][0], 20))]
        return bool(seen) and all(isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) for value in seen)


def _numbered(names: Sequence[str], pattern: re.Pattern[str]) -> dict[int, str]:
    found = ((pattern.fullmatch(name), name) for name in names)
    return {int(next(group for group in match.groups() if group)): name for match, name in found if match}


def _flat(sample: Iterable[Any]) -> list[Any]:
    return [item for value in sample for item in (value if isinstance(value, list) else [value]) if item is not None]
