"""Every model that a run will use is opened once before its first shard is built: a checkpoint that lacks weights, or whose results depend
on the batch, is refused before hours of work, not after them. Of a teacher of stored logits it is seen whether there are any.

STORE/opened_models.json    [digest of (model, precision, device, versions)] of those that opened well: each is opened so but once, a server
                                at every run that may score
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version

from data.digests import json_digest
from data.store import mirror
from data.store.paths import store_root
from data.tables.shards import atomic_write
from pipeline.executors.base import Executor
from pipeline.plan import TablePlan
from pipeline.scoring.agreement import refuse_nothing_to_complete
from pipeline.scoring.cost import any_to_score
from pipeline.scoring.missing_pairs import refuse_dark_examples
from pipeline.scoring.requested_pairs import open_teacher
from retrieval.compute import precision
from retrieval.models.resolved import ResolvedModels


def open_once(models: ResolvedModels, plans: Sequence[TablePlan], *, executor: Executor) -> None:
    """Open, in a worker, the models of these tables that this store has not seen opened.

    Raises UserError: see `TextEncoder`, `TorchCrossEncoder`, `refuse_dark_examples`, `refuse_nothing_to_complete`, and whatever a teacher
    finds at its first pair.
    """
    if any(plan.table.stage == "dark_examples" for plan in plans) and models.experiment.teacher.backend == "imported":
        refuse_dark_examples(models.experiment)
    roles = _roles(plans, models)
    if "teacher" in roles:
        refuse_nothing_to_complete(models)
    path = store_root(models.experiment.store) / "opened_models.json"
    try:
        known = set(json.loads(mirror.fresh(path, now=True).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        known = set()
    new = {role: key for role in roles if (key := _key(role, models)) not in known or _is_tried_again(role, models)}
    if new:
        executor.ask(_open, models, sorted(new))
        atomic_write(path, json.dumps(sorted(known | set(new.values()))).encode())


def _roles(plans: Sequence[TablePlan], models: ResolvedModels) -> set[str]:
    """`miner` embeds, `teacher` scores, `student` reads the training rows where something else embeds."""
    roles = {"teacher" for plan in plans if plan.table.scores_pairs_of and _opens_teacher(plan, models)}
    roles |= {"miner" for plan in plans if plan.table.stage == "embed"}
    return roles | {"student" for plan in plans if plan.table.stage == "shards" and models.experiment.embed.model}


def _opens_teacher(plan: TablePlan, models: ResolvedModels) -> bool:
    """Whether to try the teacher out before this table: once, or where it may score, each time. That of logits of another kind of device
    scores nothing here, which is no fault unless a pair is known to be new."""
    if models.teacher.device not in (None, models.experiment.runner.device):
        return not plan.waits_for and _may_score(plan, models)
    return not _is_tried_again("teacher", models) or _may_score(plan, models)


def _is_tried_again(role: str, models: ResolvedModels) -> bool:
    """Whether no key tells that it is still there and the same: of a server, and of logits in a store."""
    return role == "teacher" and (models.teacher.is_remote or not models.teacher.reads_texts)


def _may_score(plan: TablePlan, models: ResolvedModels) -> bool:
    """Whether a pair of the table may be new: one is, or the pairs are not known yet."""
    if plan.waits_for or plan.table.scores_pairs_of is None:
        return True
    candidates = plan.inputs[plan.table.scores_pairs_of]
    known = all(candidates.has(shard) for shard in plan.stale)
    return not known or any_to_score(models, candidates, list(plan.stale))


def _key(role: str, models: ResolvedModels) -> str:
    key = models.key(role) if role == "teacher" else {**models.key(role), "precision": models.precision_of("corpus")}
    return json_digest([key, models.experiment.runner.device, [version(library) for library in ("torch", "transformers")]])


def _open(models: ResolvedModels, roles: Sequence[str]) -> None:
    """Open the models one after the other, as the stages do. Runs in a worker."""
    from retrieval.encoding.text_encoder import TextEncoder

    runner = models.experiment.runner
    computed = precision.resolve(models.precision_of("corpus"), device=runner.device)
    for role in roles:
        if role == "teacher":
            open_teacher(models).load()
        else:
            spec = models.student if role == "student" else models.miner
            TextEncoder(spec, precision=computed, device=runner.device)
