"""FlagEmbedding's JSONL: {"query", "pos": [...], "neg": [...], "pos_scores": [...], "neg_scores": [...], "prompt", "type"}.

Source: FlagEmbedding 1.4, `FlagEmbedding/abc/finetune/embedder/AbsDataset.py`; with ids as `pos_id`, `neg_id` where a mining script adds
them. `prompt` and `type` say how its trainer batches, and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.records.assembling import Part
from data.formats.scored_lists.readers.records.fields import Kind, Problem
from data.formats.scored_lists.readers.records.places import part_of, place_problems, unequal_lists
from data.formats.scored_lists.readers.records.rows import Rows
from data.formats.scored_lists.readers.table_layout import Columns, Fields, Plan, TableLayout

NAMES = {
    "query": ("query",),
    "query_id": ("query_id", "qid", "id"),
    "pos": ("pos",),
    "neg": ("neg",),
    "pos_scores": ("pos_scores",),
    "neg_scores": ("neg_scores",),
    "pos_id": ("pos_id", "pos_ids"),
    "neg_id": ("neg_id", "neg_ids"),
}
_KINDS: dict[str, Kind] = {
    "query": "text", "query_id": "id", "pos": "texts", "neg": "texts", "pos_scores": "numbers", "neg_scores": "numbers",
    "pos_id": "ids", "neg_id": "ids",
}  # fmt: skip


class FlagEmbedding(TableLayout):
    """Reads it."""

    name = "flagembedding"

    def knows(self, names: Sequence[str]) -> bool:
        """See `TableLayout`."""
        return {"query", "pos"} <= set(names)

    def plan(self, rows: Rows, options: ReadOptions) -> Plan:
        """See `TableLayout`."""
        fields = Fields(rows, NAMES, options, layout=self.name)
        for name in ("query", "pos"):
            if name not in fields:
                raise fields.refuse(f"no {name}")
        chosen = {name: (fields[name], kind) for name, kind in _KINDS.items() if name in fields}
        sides = [(side, f"{side}_id" if f"{side}_id" in fields else None, f"{side}_scores") for side in ("pos", "neg") if side in fields]

        def parts(columns: Columns) -> list[Part]:
            return [
                part_of(columns, text, doc_id, relevance=int(text == "pos"), score=columns.get(scores)) for text, doc_id, scores in sides
            ]

        def problems(columns: Columns) -> Mapping[int, Problem]:
            scored = [(scores, text) for text, _, scores in sides if scores in chosen]
            places = [(text, doc_id) for text, doc_id, _ in sides]
            return unequal_lists(columns, scored) or place_problems(columns, parts, places, None)

        return Plan(chosen, parts, problems, None, "query_id" if "query_id" in chosen else None, "query")
