"""`prep export`: a store's lists in the layouts of other trainers, or in our own, which holds all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.config.arguments import Args
from data.config.fields import unknown_key
from data.config.settings import Experiment
from data.errors import UserError
from data.files.paths import expanded
from data.formats.scored_lists.writers.cards import NAME as CARD_NAME
from data.formats.scored_lists.writers.cards import card
from data.formats.scored_lists.writers.formats import FORMATS, Format
from data.formats.scored_lists.writers.lists import WriteOptions, Written
from data.logits.store import namespaces
from data.remote.cache import new_output_folder
from data.store.paths import store_root
from pipeline.interchange import own_export
from pipeline.interchange.lists_training import training_of
from pipeline.interchange.stored_lists import DARK, UNLABELLED, SelectedLists, StoredLists
from pipeline.plan import Planner
from pipeline.stage import Say
from pipeline.stages.lists import export_of
from retrieval.models.marks import Marks

OWN, PAIRS = "lists", "pairs"
OPTIONS = {"format": "", "out": "", "missing": "", "licence": "", "draw": "", "dark": "", "negatives": "", "layout": ""}


def run_export(experiment: Experiment, own: Args, *, say: Say) -> None:
    """Export as `format=` asks. `own` has the keys of `OPTIONS`."""
    names = [OWN, PAIRS, *FORMATS]
    if own["format"] not in names:
        raise unknown_key(f"format={own['format']}", valid=[f"format={name}" for name in names])
    if not own["out"]:
        raise UserError("out=PATH is missing: where the export is to be written")
    _refuse_options(own)
    if own["format"] == PAIRS:
        from pipeline.interchange.pairs import export_pairs

        export_pairs(experiment, own, say=say)
        return
    planner = Planner(experiment)
    export = _Export(planner, StoredLists.of(planner), own, say)
    with new_output_folder(expanded(own["out"], key="out")) as folder:
        (export.write_own if own["format"] == OWN else export.write_for_others)(folder)
    say(f"wrote {own['out']}")


def _refuse_options(own: Args) -> None:
    """Raises UserError for options that the format has no use for: silently passed over they would look obeyed."""
    format = FORMATS.get(own["format"])
    uses = {
        "missing": own["format"] == PAIRS,
        "draw": format is not None,
        "dark": format is not None and format.holds_texts,
        "negatives": format is not None and format.rectangular,
        "layout": own["format"] == "sentence-transformers",
        "licence": own["format"] != PAIRS,
    }
    for name, used in uses.items():
        is_off = own[name] == "false" and (name == "missing" or (name == "dark" and own["format"] != OWN))
        if own[name] and not used and not is_off:
            why = "it writes all draws and all candidates" if own["format"] == OWN else "it has no use for it"
            raise UserError(f"{name}={own[name]} does not go with format={own['format']}: {why}; leave it out")


def teacher_of(planner: Planner) -> dict[str, Any]:
    """Whose the lists' logits are, as an export notes it; empty where they have none."""
    experiment, models = planner.experiment, planner.models
    if experiment.lists.path is not None:
        return export_of(experiment).note.teacher
    if experiment.teacher.backend == "none":
        return {}
    return {"name": own_export.public_name(models.teacher.name), "namespace": models.namespace, "key": models.key("teacher")}


class _Export:
    """One export of the lists of one store."""

    def __init__(self, planner: Planner, stored: StoredLists, own: Args, say: Say) -> None:
        self._planner, self._stored, self._own, self._say = planner, stored, own, say
        self._teacher = teacher_of(planner)
        self._training = training_of(planner)
        self._draws = int(self._training["draws"])
        self._licence = " ".join(own["licence"].split()) or None

    def write_own(self, folder: Path) -> None:
        """Everything, in our own layout."""
        root = store_root(self._planner.experiment.store)
        note = own_export.write(
            folder, self._stored, root=root, teacher=self._teacher, training=self._training, licence=self._licence, warn=self._say
        )
        if not self._teacher:
            self._say("these lists have no logits (teacher.backend=none)")
        for other in note.other_teachers:
            self._say(f"column {other['column']}: logits of {other['name']} where the store has them")
        self._say(", ".join(f"{count:,} {name}" for name, count in note.counts.items()))

    def write_for_others(self, folder: Path) -> None:
        """In another trainer's layout, with a README.md beside the files."""
        name = self._own["format"]
        format = FORMATS[name]
        scored = bool(self._teacher)
        if format.needs_scores and not scored:
            raise UserError(
                f"format={name} holds scores, and these lists have none (teacher.backend=none): choose flagembedding, tevatron or beir"
            )
        dark = self._flag("dark")
        marks = self._planner.models.teacher_marks if dark else Marks()
        source = SelectedLists(self._stored, self._chosen_draws(), dark, marks)
        options = WriteOptions(scored, self._negatives(), margins=self._margins(scored))
        written = format.write(folder, source, options)
        said = [*self._notes(format, source, written), *self._left_out(format, source, written)]
        text = card(name, written, teacher=self._teacher, licence=self._licence, said=said)
        (folder / CARD_NAME).write_text(text, encoding="utf-8")
        for line in said:
            self._say(line)
        self._say(", ".join(f"{count:,} {what}" for what, count in written.counts.items()))

    def _chosen_draws(self) -> list[int]:
        if self._own["draw"] == "all":
            return list(range(self._draws))
        draw = int(self._own["draw"]) if self._own["draw"].isascii() and self._own["draw"].isdecimal() else -1
        if self._own["draw"] and not 0 <= draw < self._draws:
            raise UserError(f"draw={self._own['draw']}: the lists have draws 0 to {self._draws - 1}; give one of them, or all")
        return [max(0, draw)]

    def _flag(self, name: str) -> bool:
        return Args({name: self._own[name] or "false"}).one_of(name, "true", "false") == "true"

    def _negatives(self) -> int | None:
        return self._own.number("negatives", least=1) if self._own["negatives"] else None

    def _margins(self, scored: bool) -> bool:
        margins = Args({"layout": self._own["layout"] or "scores"}).one_of("layout", "scores", "margin_mse") == "margin_mse"
        if margins and not scored:
            raise UserError("layout=margin_mse is of scores, and these lists have none (teacher.backend=none)")
        return margins

    def _notes(self, format: Format, source: SelectedLists, written: Written) -> list[str]:
        notes = list(written.notes)
        if not self._teacher:
            notes.append("these lists have no logits (teacher.backend=none): no scores are written")
        if source.dark and (dark := source.counted[DARK]):
            notes.append(f"{dark:,} {DARK} stand among the negatives, masked positives too: for losses of scores, not of labels")
        unlabelled = source.counted[UNLABELLED]
        if unlabelled and "kinds" not in format.no_place:
            notes.append(
                f"{unlabelled:,} passages of group 1 carry no label, but are among the teacher's best: they stand among the negatives, for "
                "losses of scores, not of labels"
            )
        return notes

    def _left_out(self, format: Format, source: SelectedLists, written: Written) -> list[str]:
        """One line: what the lists have and the files have not."""
        parts = list(format.no_place)
        if others := [str(draw) for draw in range(self._draws) if draw not in source.draws]:
            parts.append(f"draw {', '.join(others)} (draw=all writes all)")
        if not source.dark and (dark := source.counted[DARK]):
            parts.append(f"{dark:,} {DARK}" + (" (dark=true writes them)" if format.holds_texts else ""))
        if set(namespaces(store_root(self._planner.experiment.store))) - {self._teacher.get("namespace", "")}:
            parts.append("logits of other teachers")
        parts += [f"{count:,} {what}" for what, count in written.left_out.items() if count]
        return [f"left out in {self._own['format']}: {'; '.join(parts)}"] if parts else []
