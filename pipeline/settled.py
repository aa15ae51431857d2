"""`precision=auto` before a run's first table is built: settled for the store, and refused where this machine must compute what it cannot.

Not here: the notes in the store (`retrieval.compute.settled`).
"""

from __future__ import annotations

from collections.abc import Iterable

from data.errors import UserError
from pipeline.stage import Table
from retrieval.compute import precision
from retrieval.models.resolved import ResolvedModels


def settle_precisions(models: ResolvedModels, tables: Iterable[Table]) -> bool:
    """Note what `auto` means for the models of these tables. Returns whether another command was first, and meant something else.

    What was planned is to be planned again then.
    """
    roles = {_role_of(table) for table in tables} - {None}
    return any([models.settle(role) for role in sorted(filter(None, roles))])


def _role_of(table: Table) -> str | None:
    if table.scores_pairs_of:
        return "teacher"
    return "embed.corpus" if table.label == "embed.corpus" else None


def formats_of(models: ResolvedModels, tables: Iterable[Table]) -> list[str]:
    """The number formats in which the tables' models compute: fp32, bf16, fp16."""
    found: set[str] = set()
    for table in tables:
        if table.stage == "embed":
            found.add(models.precision_of(table.name))
        elif table.scores_pairs_of and (of_teacher := models.teacher_precision):
            found.add(of_teacher)
    return sorted(found)


def refuse_emulated(models: ResolvedModels, tables: Iterable[Table]) -> None:
    """Raises UserError where a table is computed in what this machine's processor only emulates."""
    device = models.experiment.runner.device
    for table in tables:
        for computed in formats_of(models, [table]):
            try:
                precision.resolve(computed, device=device)
            except UserError as error:
                section = "teacher" if table.scores_pairs_of else "embed"
                option = f"{section}.{'query_' if table.label == 'embed.queries' else ''}precision"
                raise UserError(
                    f"{table.label} is computed in {computed}, by {option} or by what `auto` was settled to in this store: {error} "
                    f"({option}=fp32 computes it anew), or a host that has it"
                ) from error
