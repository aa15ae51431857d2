"""Stage `hard_negatives`: for each training query m negatives out of its pools, without what is taken for false negatives.

With `hard_negatives.select` for some of the queries only: see `pipeline.negatives.query_selection`.

What becomes of one query's windows is in `pipeline.negatives.drawing`; which of its positives have lists, in `.positives`.

The teacher's logits, where a rule or the sampler needs them, come from the table `pool_scores`, which has all passages of the windows. A
choice by what happens to be in the logit store could not be repeated.

A list has one p+ (ADAM, CE, MarginMSE, PROD), whatever the query's labels. With `select` it is the positive by whose ranks the query was
selected, else a seeded choice, which is written first among `positive_ids`; with `positives=rotate` or `each` the query has lists of
several. Rules, SimANS and PROD's ranks all mean the p+ of their list.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data.config.fields import keyed_values
from data.config.registry import is_import_path
from data.config.settings import Experiment, HardNegatives
from data.errors import NothingLeft, UserError
from data.tables import schemas
from data.tables.schemas import CandidateKind
from pipeline.negatives.drawing import Drawn, Logits, Windows
from pipeline.negatives.false_negatives import Dropped
from pipeline.negatives.pool_pairs import PoolRow, begins_of, read_pools, scored_pairs
from pipeline.negatives.positives import QueryLists, choose_positive, labelled_positive, lists_of_query
from pipeline.negatives.query_selection import KEPT_RANKS, NO_RANKS, RANKS, ranks_of, why_dropped
from pipeline.negatives.samplers import sampler_key
from pipeline.stage import StageContext, Stored, Table
from retrieval.models.resolved import ResolvedModels

UNDERFILLED = "queries with fewer than m negatives"
RULES = "false negatives"
BACKFILLED = "negatives of other sources for"
FILLED = "negatives from deeper ranks"
NO_NEGATIVES = "no negatives"
POSITIVES, IN_NO_LIST, PROMOTED = "positives", "in no list", "promoted"
_OF_THE_POOLS = ("ignore_identical_ids", "bm25_stopwords")  # settings that are keyed there


@dataclass(frozen=True)
class Chosen:
    """What became of one query's windows."""

    positive: str  # p+ of the query's list
    drawn: Drawn

    @property
    def draws(self) -> list[list[str]]:
        """[draws][m] ids, in the order of the pool."""
        return self.drawn.negatives

    @property
    def dropped(self) -> dict[str, Dropped]:
        """What no draw takes."""
        return self.drawn.dropped


def choose(row: PoolRow, settings: HardNegatives, *, seed: int, logits: Logits | None = None, selected_by: str | None = None) -> Chosen:
    """p+ and the negatives of one query. Fewer than m where its windows hold fewer that no rule drops.

    `logits` are the teacher's, where a rule or the sampler needs them; `selected_by` is the positive by which the query was selected.
    """
    positive = selected_by or choose_positive(row.positive_ids, seed=seed, query_id=row.query_id)
    p_plus = labelled_positive(row, row.positive_ids.index(positive), logits)
    return Chosen(positive, Windows.of(row, settings, seed=seed, logits=logits).draw(p_plus, range(settings.draws)))


def read_logits(pairs: Stored, scores: Stored, shard: int) -> Iterator[tuple[str, Logits]]:
    """(query_id, its logits) of a shard of `pools.pairs`, in its order; in memory is a row group."""
    columns = ["query_id", "position", "candidate_kind", "candidate_id"]
    for piece in scored_pairs(pairs, scores, shard, columns=columns):
        names, kinds, ids, values = (piece.column(name).to_pylist() for name in ("query_id", "candidate_kind", "candidate_id", "logit"))
        for start, stop in itertools.pairwise([*begins_of(piece), len(ids)]):
            rest = start + kinds[start:stop].count(CandidateKind.POSITIVE)  # positives stand first
            yield names[start], Logits(values[start:rest], dict(zip(ids[rest:stop], values[rest:stop], strict=True)))


class _Outcome(NamedTuple):
    """What is written and counted of one query."""

    row: tuple[Any, ...]  # in the order of the schema
    lists: list[list[str]]  # negatives of the lists that may be short
    drawn: list[Drawn]
    positives: Counter[str]


def _build(context: StageContext) -> None:
    experiment, settings, inputs = context.experiment, context.experiment.hard_negatives, context.inputs
    logits = read_logits(inputs["pools.pairs"], inputs["pool_scores"], context.shard) if settings.uses_pool_scores else None
    queries = underfilled = filled = 0
    figures: dict[str, Counter[str]] = {name: Counter() for name in ("dropped", RULES, BACKFILLED, POSITIVES, RANKS, KEPT_RANKS)}
    labelled_negatives = _labelled_negatives(context) if settings.promote_margin is not None else {}
    with context.writer(context.shard, _schema(settings)) as writer:
        for row in read_pools(inputs["pools.ranked"], context.shard):
            queries += 1
            query_id, of_query = next(logits) if logits is not None else (row.query_id, None)
            if query_id != row.query_id:
                raise AssertionError(f"pool of {row.query_id}, logits of {query_id}: the tables do not belong together")
            ranks = None
            if settings.select != "none" and of_query is not None:
                ranks = ranks_of(row, logits=of_query.passages, positive_logits=of_query.positives, depth=settings.depth)
                figures[RANKS][ranks.bands] += 1
                if why := why_dropped(ranks, settings.select):
                    figures["dropped"][why] += 1
                    continue
            if settings.positives == "one":
                chosen = choose(row, settings, seed=experiment.seed, logits=of_query, selected_by=ranks.positive if ranks else None)
                outcome = _with_one(row, chosen)
            else:
                barred = labelled_negatives.get(query_id, frozenset[str]())
                lists = lists_of_query(row, settings, seed=experiment.seed, logits=of_query, labelled_negatives=barred)
                outcome = _with_several(row, lists)
            for drawn in outcome.drawn:
                figures[RULES].update(why.rule.name.lower() for why in drawn.dropped.values())
                figures[BACKFILLED].update(drawn.backfilled)
            figures[POSITIVES].update(outcome.positives)
            if not outcome.lists or not outcome.lists[0]:
                figures["dropped"][NO_NEGATIVES] += 1
                continue
            if ranks is not None:
                figures[KEPT_RANKS][ranks.bands] += 1
            underfilled += any(len(negatives) < settings.num_negatives for negatives in outcome.lists)
            filled += sum(drawn.filled for drawn in outcome.drawn)
            writer.add(outcome.row)
            context.report("queries", 1)
        counts = {"in": queries, "kept": queries - figures["dropped"].total(), UNDERFILLED: underfilled, "dropped": figures["dropped"]}
        counts |= {name: figures[name] for name in (RULES, BACKFILLED, POSITIVES) if figures[name]}
        counts |= {FILLED: filled} if settings.fill_to is not None else {}
        counts |= {name: figures[name] for name in (RANKS, KEPT_RANKS) if figures[RANKS]}
        writer.figures["counts"] = counts


def _schema(settings: HardNegatives) -> pa.Schema:
    return schemas.HARD_NEGATIVES if settings.positives == "one" else schemas.HARD_NEGATIVES_BY_POSITIVE


def _labelled_negatives(context: StageContext) -> dict[str, set[str]]:
    """query_id -> its passages with a label of 0 or less, in any split, of the queries of the shard."""
    asked = context.inputs["pools.ranked"].read(context.shard, columns=["query_id"]).column("query_id").combine_chunks()
    found: dict[str, set[str]] = {}
    for group in context.inputs["ingest.qrels"].row_groups(columns=["query_id", "doc_id", "relevance"]):
        wrong = group.filter(pc.and_(pc.less_equal(group.column("relevance"), 0), pc.is_in(group.column("query_id"), value_set=asked)))
        for query_id, doc_id in zip(wrong.column("query_id").to_pylist(), wrong.column("doc_id").to_pylist(), strict=True):
            found.setdefault(query_id, set()).add(doc_id)
    return found


def _with_one(row: PoolRow, chosen: Chosen) -> _Outcome:
    positives = [chosen.positive, *(doc_id for doc_id in row.positive_ids if doc_id != chosen.positive)]
    drops = _columns(list(chosen.drawn.dropped.items()))
    return _Outcome((row.query_id, positives, chosen.draws, *drops), chosen.draws[:1], [chosen.drawn], Counter())


def _with_several(row: PoolRow, found: QueryLists) -> _Outcome:
    negatives = [one.negatives for one in found.lists]
    of_lists = [one.draw for one in found.lists], [one.positive for one in found.lists]
    drops = [(positive, item) for positive, drawn in found.drawn.items() for item in drawn.dropped.items()]
    columns = *_columns([item for _, item in drops]), *of_lists, [positive for positive, _ in drops]
    promotions = [[one.positive.id for one in found.promoted], [one.positive.logit for one in found.promoted]]
    untrained = len({*row.positive_ids} - {one.positive for one in found.lists})
    positives = Counter({"labelled": len(row.positive_ids), IN_NO_LIST: untrained, PROMOTED: len(found.promoted)})
    values = (row.query_id, row.positive_ids, negatives, *columns, *promotions, [one.limit for one in found.promoted])
    return _Outcome(values, negatives, list(found.drawn.values()), positives)


def _columns(drops: list[tuple[str, Dropped]]) -> tuple[list[str], list[int], list[float], list[float]]:
    """Ids, rules, scores and limits of what was dropped."""
    why = [dropped for _, dropped in drops]
    return [doc_id for doc_id, _ in drops], [int(one.rule) for one in why], [one.score for one in why], [one.limit for one in why]


def _summary(counts: dict[str, Any]) -> str:
    underfilled, none = counts.get(UNDERFILLED, 0), counts.get("dropped", {}).get(NO_NEGATIVES, 0)
    parts = []
    if RANKS in counts:
        why = ", ".join(f"{reason} {count:,}" for reason, count in counts["dropped"].items())
        parts.append(f"hard_negatives.select keeps {counts['kept']:,} of {counts['in']:,} queries ({why})")
    if underfilled or none:
        left_out = f", {none:,} have none and are left out" if none else ""
        fewer = f"of {counts['in']:,} queries {underfilled:,} have fewer negatives than asked for"
        parts.append(f"hard_negatives: {fewer}{left_out}; `prep report` names some")
    if positives := counts.get(POSITIVES):
        parts.append(_said_of(positives))
    if filled := counts.get(FILLED):
        parts.append(f"{filled:,} negatives are from ranks beyond the windows, in lists that the rules left short (hard_negatives.fill_to)")
    if backfilled := counts.get(BACKFILLED):
        listed = ", ".join(f"{name} {count:,}" for name, count in backfilled.items())
        parts.append(f"negatives that a source had not, taken from the others: {listed}")
    return "; ".join(parts)


def _said_of(positives: dict[str, int]) -> str:
    more = f", {promoted:,} passages were promoted to positives" if (promoted := positives.get(PROMOTED)) else ""
    untrained = positives.get(IN_NO_LIST, 0)
    return f"hard_negatives.positives: of {positives['labelled']:,} labelled positives {untrained:,} are p+ of no list{more}"


def _refuse(stored: Stored) -> None:
    """Where no query is left it is said what took them. NothingLeft: there is nothing to learn any more, which is no failure."""
    counts = stored.manifest.counts
    if stored.manifest.rows:
        return
    if any(bands != NO_RANKS for bands in counts.get(RANKS, {})):
        why = json.dumps(counts["dropped"])
        raise NothingLeft(f"hard_negatives.select keeps none of {counts['in']:,} queries, nothing is left to learn: {why}")
    if rules := counts.get(RULES):
        listed = ", ".join(f"{rule} {count:,} passages" for rule, count in rules.items())
        why = f"negative left; the rules of hard_negatives.false_negatives dropped {listed}: loosen them"
    elif counts["dropped"].get(NO_NEGATIVES):
        why = "passage in the rank windows of its sources; lower hard_negatives.range_min, or the ranks in hard_negatives.source"
    else:
        return
    raise UserError(f"hard_negatives: none of {counts['in']:,} queries has a {why}")


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    settings = experiment.hard_negatives
    reads_simans = any(sampler.name == "simans" or is_import_path(sampler.name) for sampler in settings.samplers)
    unused = () if reads_simans else ("simans_a", "simans_b")
    own = ("source", "depth", "range_min", "range_max", "queries", "score_pools", "select", "positive_grades", *_OF_THE_POOLS)
    selection = {"select": settings.select, "depth": settings.depth} if settings.select != "none" else {}
    return {
        **keyed_values(settings, leave_out=(*own, *unused)),
        **selection,
        **sampler_key(settings),
        "sources": [[source.name, source.weight, source.first_rank, source.last_rank] for source in settings.sources],
        "false_negatives": keyed_values(settings.false_negatives),
        "seed": experiment.seed,
    }


def table(experiment: Experiment) -> Table:
    """The stage's table: it reads the teacher's logits only where the settings go by them."""
    scores = ("pools.pairs", "pool_scores") if experiment.hard_negatives.uses_pool_scores else ()
    labels = ("ingest.qrels",) if experiment.hard_negatives.promote_margin is not None else ()
    reads = ("pools.ranked", *scores, *labels)
    return Table(stage="hard_negatives", version=3, reads=reads, key=_key, build=_build, summary=_summary, refuse=_refuse)
