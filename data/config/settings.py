"""Every setting of an experiment, in one place: one YAML file serves `prep`, `train` and `retrieve`.

A field is *keyed* (it changes the bytes, so it enters fingerprints) or *execution* (how fast or where, never what). The whole
file is checked by every command, so that a misspelt key in any section is found before work begins.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, field_validator, model_validator

from data.config import experiment_file, mixtures
from data.config.fields import NULLS, PathKind, Renamed, Section, build, execution, expanded_paths, keyed, map_paths, warn_once
from data.config.mixtures import Share, parse_mixture
from data.config.negative_sources import Source, canonical, parse_sources
from data.config.registry import check_name
from data.config.traits import LOSSES, SAMPLERS, LossTraits, SamplerTraits, traits_of
from data.errors import UserError
from data.files.paths import expanded
from data.formats.ir_datasets_copy import is_ir_datasets
from data.remote.object_store import is_remote
from data.tables.cl_drd_groups import PAPER_ITERATIONS, GroupSizes, parse_sizes

StopWords = Literal[
    "english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish", "norwegian", "danish", "turkish",
    "chinese", "korean", "none",
]  # fmt: skip
SamplerName = Annotated[str, AfterValidator(lambda text: mixtures.canonical(_samplers(text)))]
LossName = Annotated[str, AfterValidator(lambda name: check_name(name, LOSSES, kind="loss"))]
TEACHER_BACKENDS = ("torch", "onnx", "http", "imported", "none")  # what each is: retrieval/teachers/backends.py
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "none")  # what each is: trainer/reporting/trackers
TrackerName = Annotated[str, AfterValidator(lambda name: check_name(name, TRACKERS, kind="tracker"))]
BackendName = Annotated[str, AfterValidator(lambda name: check_name(name, TEACHER_BACKENDS, kind="teacher"))]
Prefix = Annotated[str, BeforeValidator(lambda value: "auto" if value in (None, "null", "~") else value)]  # never one that reads `null`
# A text or None. An empty text is one, so its type must not be seen to have None in it.
Instruction = Annotated[Any, PlainValidator(lambda value: None if value in (None, "null", "~") else str(value))]
Length = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")  # as sentence-transformers names them


def _pooling(modes: str) -> str:
    if modes != "auto" and not set(modes.split("+")) <= set(POOLINGS):
        raise ValueError(f"expected auto, {', '.join(POOLINGS)}, or several of these joined by +")
    return modes


Pooling = Annotated[str, AfterValidator(_pooling)]
Switch = Annotated[Literal["auto", "true", "false"], BeforeValidator(lambda value: str(value).lower())]  # YAML has True, too
PAPER_MASK_RATIOS = (0.15, 0.25, 0.35, 0.45, 0.55)  # ADAM, section 4.3


def _store(address: str) -> str:
    if is_remote(address) and not address.partition("://")[2].strip("/"):
        raise ValueError("expected a bucket and a folder in it, as s3://bucket/folder")
    return address.rstrip("/") if is_remote(address) else address


def store_given(store: str) -> str:
    """The store of a command that needs no other setting. Raises UserError as the setting does."""
    try:
        return _store(expanded(store, key="store"))
    except ValueError as error:
        raise UserError(f"store={store}: {error}") from error


Store = Annotated[str, AfterValidator(_store)]


class Ingest(Section):
    """Where the collection lies and how it is cut into shards."""

    path: str | None = execution(
        None, "folder of the collection, here or at s3://bucket/folder; or irds:ID[+ID], of ir_datasets", path="path"
    )
    format: Literal["auto", "beir", "msmarco", "parquet"] = keyed("auto", "layout of the folder; auto looks for its corpus")
    train_split: str = keyed("train", "the qrels split whose queries become training queries")
    corpus_shards: int = keyed(8, "shards of the corpus, fixed here for all stages", ge=1, le=99_999)
    query_shards: int = keyed(4, "shards of the queries and of all that is made per query", ge=1, le=99_999)
    max_bad_fraction: float = execution(0.001, "share of broken records above which ingest stops", ge=0, le=1)

    @property
    def collection(self) -> str:
        """The path. Raises UserError where none is given: exported lists, and a training, need none."""
        if self.path is None:
            raise UserError(
                "ingest.path is missing: set it to the folder of a collection (lists.path, of exported lists, does without one)"
            )
        return self.path


class Lora(Section):
    """Low-rank adapters on the student's linear layers, trained in place of its weights (Hu et al., 2021). Needs the extra `lora`."""

    rank: int | None = keyed(None, "r, rank of a layer's update; null or 0: all weights are trained", later=True, ge=0)
    alpha: float | None = keyed(None, "updates are scaled by alpha / rank; null: twice the rank", later=True, gt=0)
    targets: tuple[str, ...] = keyed(
        (), "names of linear layers, as query,value, or all-linear: all of the stack; none: peft's choice for the architecture", later=True
    )
    dropout: float = keyed(0.0, "of what an adapter reads", later=True, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_rank(self) -> Lora:
        if not self.rank and self != Lora.model_construct(rank=self.rank):
            raise ValueError("alpha, targets and dropout are of adapters, and there are none: set rank, or leave them out")
        return self


class Student(Section):
    """The dual encoder."""

    model: str = execution(..., "hub id, transformers folder or sentence-transformers folder (keyed by its content)", path="model")
    revision: str | None = execution(None, "of a hub id: branch, tag or commit; null: its main branch")
    trust_remote_code: bool = execution(False, "run the checkpoint's own Python code (keyed by its content); a hub id needs a commit")
    layers: int | None = keyed(None, "keep the first k layers; null keeps all", ge=1)
    pooling: Pooling = keyed(
        "auto", "cls, mean, max, lasttoken, ... (retrieval/models/pooling.py); auto: as the model's files say, else of encoders cls"
    )
    normalize: bool | None = keyed(None, "vectors of length 1; null: if a sentence-transformers folder normalises or compares by cosine")
    query_prefix: Prefix = keyed("auto", "text put before every query; auto reads a sentence-transformers folder's prompts, else none")
    passage_prefix: Prefix = keyed("auto", "text put before every passage; auto as above")
    query_tokens: Length = keyed(32, "longest query in tokens, special ones too (ADAM 4.3); null: as the model's files say", ge=4)
    passage_tokens: Length = keyed(128, "longest passage in tokens, special ones too (ADAM 4.3); null: as above", ge=8)
    lora: Lora = Lora()


class HttpServer(Section):
    """The server of `teacher.backend=http`, which scores documents for a query.

    A key is never written here: it comes from the environment variable that `key_variable` names.
    """

    url: str | None = execution(None, "http://HOST:PORT, with or without the endpoint; neither user nor key")
    shape: Literal["rerank", "infinity", "tei", "score"] = keyed(
        "rerank", "rerank of Cohere, Jina and vLLM; the same of Infinity or TEI, which give logits; vLLM's score", later=True
    )
    scores: Literal["auto", "logit", "probability"] = keyed(
        "auto",
        "what it gives; the sigmoid of a probability is undone; auto: probability of shape=rerank, else a logit, tried out",
        later=True,
    )
    truncate: bool = keyed(False, "of shape=score: cut plain pairs to teacher.max_tokens; false: the server's own length", later=True)
    documents: int = execution(32, "documents of a request, at most", ge=1)
    concurrency: int = execution(8, "requests of a worker at a time", ge=1, le=1024)
    timeout: float = execution(120.0, "seconds that a request may take", gt=0)
    retries: int = execution(4, "how often a request is sent again whose answer was wrong, or an error of the server", ge=0)
    patience: float = execution(300.0, "seconds for which a server that is away or busy is tried again", ge=0)
    key_variable: str = execution("RERANK_API_KEY", "environment variable that holds the key; where it is not set, none is sent")


class ImportedScores(Section):
    """The declared teacher of `teacher.backend=imported`, whose logits `prep import` has put into the store."""

    scores: Literal["logit", "probability", "cosine"] = keyed("logit", "what kind its scores are of, as `prep import` was told", later=True)


# Rows of a window, see `Teacher.segment_pairs`. On a GPU each is some ten batches; with a quarter of them the host is half as fast.
WINDOW_PAIRS = {"cpu": 2048, "cuda": 8192}


class Teacher(Section):
    """Who gives the logits: a cross-encoder, a server, a file that was imported, or your own class."""

    model: str = execution(
        ..., "hub id or folder of a cross-encoder, a language model or an ONNX graph (keyed by its content)", path="model"
    )
    revision: str | None = execution(None, "of a hub id: branch, tag or commit; null: its main branch")
    trust_remote_code: bool = execution(False, "run the checkpoint's own Python code (keyed by its content); a hub id needs a commit")
    backend: BackendName = keyed("torch", "torch, onnx (ONNX Runtime), http, imported, your own as package:object, or none: no logits")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = keyed("auto", "auto: bf16 where the device computes it, else fp32")
    max_tokens: int = keyed(160, "longest pair in tokens; the longer part is cut first, with a template the passage", ge=16)
    template: str | None = execution(
        None,
        "how a pair becomes one text: a Jinja file, or a name of retrieval/teachers/pair_template.py; null: as the model's files say",
        path="model",
    )
    instruction: Instruction = execution(None, "for the template's instruction; null: as the model's files say; an empty one: none")
    answers: tuple[str, ...] = execution(
        (), "of a causal language model: the token of its answer for a relevant passage, and of that for another, as yes,no"
    )
    label: Literal["difference"] | int | None = execution(
        None, "of a model with several outputs: which one is the logit, from 0, or the difference of the second and the first"
    )
    file: str | None = execution(None, "under onnx: the graph in the model's folder; null: model.onnx, onnx/model.onnx or the only one")
    http: HttpServer = HttpServer()
    imported: ImportedScores = ImportedScores()
    completes: str | None = execution(
        None, "NAME or NAME@REVISION of a declared teacher: its imported logits stand for this teacher's own, which scores what they lack"
    )
    compile: bool = execution(False, "torch.compile, under torch; its start takes half a minute a worker")
    segment_pairs: int | None = execution(
        None, "rows of a window, whose new pairs are one segment; a kill loses at most two; null: 2,048 on a CPU, 8,192 on a GPU", ge=1
    )
    batch_tokens: int | None = execution(None, "tokens of a batch, padding included; null: 2,048 on a CPU, 65,536 on a GPU", ge=64)

    @field_validator("compile", mode="before")
    @classmethod
    def _old_choices(cls, value: Any) -> Any:
        """`auto` chose by a calibration, whose answer is no on today's machines."""
        if value not in ("auto", "on", "off"):
            return value
        warn_once(f"teacher.compile={value} is now teacher.compile={str(value == 'on').lower()}")
        return value == "on"

    def window_pairs(self, device: str) -> int:
        """Rows of a window on a device."""
        return self.segment_pairs or WINDOW_PAIRS[device]

    @model_validator(mode="after")
    def _graph(self) -> Teacher:
        if self.file is not None and self.backend != "onnx":
            raise ValueError(f"file={self.file} names an ONNX graph, which is read under backend=onnx alone: set that, or leave file out")
        return self


class Embed(Section):
    """Vectors of corpus and queries, made with the student, or with another dual encoder."""

    model: str | None = execution(
        None, "what embeds and mines, e.g. a trained student (keyed by its content); null: student.model", path="model"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = keyed("auto", "of passages; auto: bf16 where the device computes it, else fp32")
    query_precision: Literal["fp32", "bf16", "fp16"] = keyed("fp32", "queries have few tokens, and their rounding is in all their scores")
    batch_tokens: int | None = execution(None, "tokens of a batch, padding included; null: 2,048 on a CPU, 65,536 on a GPU", ge=64)


class FalseNegatives(Section):
    """Which passages of a query's rank windows are never drawn: those taken for unlabelled positives, and with `min_score` those too
    easy to learn from. Null leaves a rule out.

    p+ is the positive that the query's list is trained with, where it has several. A rule of the teacher has all passages of the windows
    scored first, once, whatever the logit store holds already.

    Names are those of sentence-transformers' `mine_hard_negatives`, whose scores are similarities. These are raw logits: a relative
    margin shrinks to nothing where the logit of p+ is near 0, and is as wide for -5 as for 5.
    """

    max_score: float | None = keyed(None, "drop passages with a teacher logit above this", renamed=Renamed("teacher_above"))
    absolute_margin: float | None = keyed(None, "drop those above the logit of p+ minus this", renamed=Renamed("teacher_margin"))
    relative_margin: float | None = keyed(
        None, "drop those above the logit of p+ minus this share, 0 to 1, of its magnitude", later=True, ge=0, le=1
    )
    teacher_percentile: float | None = keyed(None, "drop those above this percentile of the logits in the query's windows", gt=0, lt=100)
    student_margin: float | None = keyed(None, "drop those whose student score is above that of p+ minus this")
    student_relative_margin: float | None = keyed(
        None, "drop those whose student score is above that of p+ minus this share, 0 to 1, of its magnitude", later=True, ge=0, le=1
    )
    min_score: float | None = keyed(None, "drop passages with a teacher logit below this, as too easy", later=True)

    @property
    def uses_teacher(self) -> bool:
        """Whether a rule needs the teacher's logits of the windows."""
        rules = (self.max_score, self.absolute_margin, self.relative_margin, self.teacher_percentile, self.min_score)
        return any(rule is not None for rule in rules)

    @property
    def uses_student(self) -> bool:
        """Whether a rule goes by the student's scores."""
        return self.student_margin is not None or self.student_relative_margin is not None

    @model_validator(mode="after")
    def _leave_something(self) -> FalseNegatives:
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score={self.min_score:g} is above max_score={self.max_score:g}, so every passage is dropped: lower it")
        return self


class Search(Section):
    """Nearest passages of the queries by the student's vectors. With `runner.device=cuda` GPUs search exactly, where they are faster."""

    index: Literal["exact", "ivf", "hnsw"] = keyed("exact", "exact, or an approximate index whose recall is then measured")
    memory_gb: float = execution(4.0, "memory of a search beside the process's own; what does not fit is searched in several passes", gt=0)
    lists: int | None = keyed(None, "ivf: lists of each shard of the corpus; null takes 4 sqrt(passages of the shard)", ge=1)
    probes: int = keyed(32, "ivf: lists looked into for a query", ge=1)
    links: int = keyed(32, "hnsw: edges of a passage in the graph", ge=4, le=128)
    build_width: int = keyed(200, "hnsw: passages looked at when one is put in (efConstruction)", ge=8)
    width: int = keyed(256, "hnsw: passages kept in view for a query (efSearch), at least the depth", ge=8)
    recall_queries: int = keyed(50, "queries of a shard that are searched exactly, too, to measure the recall of ivf and hnsw", ge=1)


@functools.cache
def _samplers(text: str) -> tuple[Share, ...]:
    """They are asked for with each query."""
    return parse_mixture(text, SAMPLERS, kind="sampler")


def traits_of_sampler(name: str) -> SamplerTraits:
    """What one sampler goes by. Imports a plug-in."""
    return traits_of(name, SAMPLERS, setting="hard_negatives.sampler")


class HardNegatives(Section):
    """Which passages a query's negatives are drawn from, and how."""

    source: str = keyed("student", "student, bm25, run, random or your own; or several with weights (and ranks): student:3,bm25:1@1-50")
    run_file: str | None = execution(None, "the TREC run of source=run, local or s3:// (keyed by its content)", path="path")
    depth: int = keyed(100, "passages kept of each source's list, positives removed", ge=1, le=10_000)
    range_min: int = keyed(
        0, "closest passages skipped in the list of each source: negatives are drawn from the next rank on", ge=0,
        renamed=Renamed("first_rank", new_value=lambda rank: rank - 1, old_value=lambda skipped: skipped + 1),
    )  # fmt: skip
    range_max: int = keyed(100, "and up to this rank, counted from 1", ge=1, renamed=Renamed("last_rank"))
    fill_to: int | None = keyed(
        None, "a list that the rules leave short is filled from deeper ranks, up to this one; null: it stays short", later=True, ge=1
    )
    num_negatives: int = keyed(
        10, "m, negatives drawn per query (ADAM 4.3; 15 were best without dark examples)", ge=1, renamed=Renamed("negatives")
    )
    draws: int = keyed(1, "independent draws of m negatives; epoch e trains on draw e modulo their number", ge=1, le=100)
    queries: int | None = keyed(None, "training queries used, a seeded subset; null takes all", ge=1)
    sampler: SamplerName = keyed(
        "uniform", "uniform, top, stratified, score_strata, simans (see pipeline/negatives/samplers.py), or your own; or several in "
        "shares: top:4,uniform:6",
    )  # fmt: skip
    simans_a: float = keyed(0.5, "a of SimANS, sharpness around p+ (the default of its authors' code)", ge=0)
    simans_b: float = keyed(0.0, "b of SimANS, added to the score of p+ (the default of its authors' code)")
    score_pools: bool = keyed(False, "have the teacher score whole pools, also where nothing here asks for it (table pool_scores)")
    ignore_identical_ids: Switch = keyed(
        "auto", "a query that is a passage is no negative of itself; auto: where id and text agree, true: where the id does, false: it is"
    )
    bm25_stopwords: StopWords = keyed("english", "words that BM25 leaves out, of a language, or none (see retrieval/search/bm25.py)")
    positives: Literal["one", "rotate", "each"] = keyed(
        "one", "of a query with several: one, a seeded choice; rotate: the next in each draw; each: a list for each", later=True
    )
    promote_margin: float | None = keyed(
        None,
        "passages that the teacher puts more than this above the best labelled positive become positives; null: none",
        later=True,
        ge=0,
    )
    positive_grades: bool = keyed(
        False, "training rows carry the label of their p+, for train.objective.positive_weights; 0 stands for a promoted one", later=True
    )
    select: Literal["none", "prod", "prod_nq"] = keyed("none", "queries that the teacher gets right and the student does not (PROD)")
    false_negatives: FalseNegatives = FalseNegatives()

    @property
    def samplers(self) -> tuple[Share, ...]:
        """The samplers in the order of the setting."""
        return _samplers(self.sampler)

    @property
    def sampler_traits(self) -> SamplerTraits:
        """What the samplers together go by. Imports plug-ins."""
        all_traits = [traits_of_sampler(sampler.name) for sampler in self.samplers]
        needs = frozenset[Any]().union(*(traits.needs for traits in all_traits))
        return SamplerTraits(needs=needs, draws_differ=any(traits.draws_differ for traits in all_traits))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources in the order of the setting."""
        return parse_sources(self.source, first_rank=self.range_min + 1, last_rank=self.range_max)

    @property
    def scored_sources(self) -> tuple[Source, ...]:
        """The sources with the ranks of which rules and samplers need the teacher's logits."""
        if self.fill_to is None or not self.false_negatives.uses_teacher:
            return self.sources
        return tuple(replace(source, last_rank=max(source.last_rank, self.fill_to)) for source in self.sources)

    @property
    def filling_sources(self) -> tuple[Source, ...]:
        """The sources with the ranks beyond their windows that short lists are filled from; no sources without `fill_to`."""
        if self.fill_to is None:
            return ()
        ends = [max(source.last_rank, self.fill_to) for source in self.sources]
        return tuple(replace(one, first_rank=one.last_rank + 1, last_rank=end) for one, end in zip(self.sources, ends, strict=True))

    @property
    def canonical_source(self) -> str:
        """Names and weights as training shards carry them."""
        return canonical(self.sources)

    @property
    def uses_pool_scores(self) -> bool:
        """Whether queries or negatives are chosen by the teacher's logits."""
        chosen_by_teacher = self.false_negatives.uses_teacher or self.select != "none" or self.promote_margin is not None
        return chosen_by_teacher or "teacher_logits" in self.sampler_traits.needs

    def check_sampler(self) -> None:
        """Raises ValueError where the sampler does not get what it needs. Imports a plug-in: for commands that draw."""
        if "student_scores" in self.sampler_traits.needs and [source.name for source in self.sources] != ["student"]:
            raise ValueError(f"sampler={self.sampler} goes by the student's scores: it needs source=student alone")
        if self.draws > 1 and self.positives != "rotate" and not self.sampler_traits.draws_differ:
            raise ValueError(f"sampler={self.sampler} chooses the same negatives in every draw: set draws=1, or sampler=uniform or simans")

    @model_validator(mode="after")
    def _consistent(self) -> HardNegatives:
        names = [source.name for source in self.sources]
        for source in self.sources:
            if not 1 <= source.first_rank <= source.last_rank <= self.depth:
                window = f"ranks {source.first_rank} to {source.last_rank} of {self.depth}"
                raise ValueError(f"need range_min < range_max <= depth, got {window} for source {source.name}")
        if "run" in names and not self.run_file:
            raise ValueError("source=run needs run_file=FILE, a TREC run")
        if all(sampler.name in SAMPLERS for sampler in self.samplers):
            self.check_sampler()
        if self.false_negatives.uses_student and "student" not in names:
            rule = "student_margin" if self.false_negatives.student_margin is not None else "student_relative_margin"
            raise ValueError(f"false_negatives.{rule} needs student among the sources")
        if self.fill_to is not None and self.fill_to > self.depth:
            raise ValueError(f"fill_to={self.fill_to} is beyond the {self.depth} passages that pools keep: lower it, or raise depth")
        if self.fill_to is not None and all(self.fill_to <= source.last_rank for source in self.sources):
            raise ValueError(f"fill_to={self.fill_to} is not beyond the last rank of any source: raise it above range_max, or leave it out")
        if self.select != "none" and "student" not in names:
            raise ValueError(f"select={self.select} goes by the student's ranks: it needs student among the sources")
        self._check_positives()
        return self

    def _check_positives(self) -> None:
        """Raises ValueError where the other settings leave the choice of positives without effect."""
        if self.positives == "rotate" and self.draws == 1:
            raise ValueError("positives=rotate takes the next positive in each draw, and there is one: set draws, as many as train.epochs")
        if self.positives != "one" and self.select != "none":
            raise ValueError(f"select={self.select} trains the positive by which a query qualifies: leave positives={self.positives} out")
        if self.positives == "one" and self.promote_margin is not None:
            raise ValueError(
                "promote_margin adds positives, of which positives=one trains one labelled alone: set positives=rotate or each"
            )


class DarkExamples(Section):
    """Reinforced negatives and noisy positives (ADAM 3.2)."""

    reinforced: bool = keyed(True, "make p+ [SEP] p- of every negative (Eq. 5)")
    mixed_tokens: int | None = keyed(None, "longest mixed passage in tokens; null takes student.passage_tokens", ge=8)
    mixed_truncation: Literal["longest_first", "right"] = keyed("longest_first", "longest_first keeps both parts; right cuts the end")
    mask_ratios: tuple[float, ...] = keyed(PAPER_MASK_RATIOS, "one noisy positive for each ratio (Eq. 6)")
    mask_unit: Literal["piece", "piece_exact", "word"] = keyed("piece", "each WordPiece by chance, an exact count of them, or whole words")
    mask_seed: int | None = keyed(None, "of the masks alone; null takes `seed`")
    mask_draws: int = keyed(1, "independent draws of the masks; epoch e trains on draw e modulo their number", ge=1, le=100)
    separator: str | None = keyed(
        None, "text in place of [SEP]; null: each tokenizer's own token, and where it has none a line break, or --- where it reads none",
        later=True,
    )  # fmt: skip
    mask_text: str | None = keyed(None, "text in place of [MASK]; null: each tokenizer's own token, and where it has none ...", later=True)

    @field_validator("separator", "mask_text")
    @classmethod
    def _line_break(cls, text: str | None) -> str | None:
        r"""A shell has no short way to write a line break: \n is one."""
        return text and text.replace("\\n", "\n")

    @field_validator("mask_ratios")
    @classmethod
    def _ratios(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(ratios)) != len(ratios) or not all(0 < ratio <= 1 for ratio in ratios):
            raise ValueError("expected different numbers above 0 and up to 1")
        return ratios


class Curriculum(Section):
    """Lists in three groups by the teacher's ranking, in place of negatives and dark examples (CL-DRD; Zeng et al., SIGIR 2022).

    The teacher ranks what the student retrieves, labelled positives among it; ranks count from 1. Iteration i is draw i of the shards.
    """

    enabled: bool = keyed(False, "make these lists the training rows")
    iterations: tuple[str, ...] = keyed(PAPER_ITERATIONS, "of each the groups' sizes K/N_h/N_s; a draw of the shards each")
    near_rank: int = keyed(50, "group 2 is drawn from teacher ranks K+1 up to this one", ge=1)
    retrieved: int = keyed(200, "passages that the student retrieves and the teacher ranks; group 3 is drawn up to this rank", ge=1)

    @property
    def sizes(self) -> tuple[GroupSizes, ...]:
        """The sizes of the groups in each iteration."""
        return tuple(parse_sizes(text) for text in self.iterations)

    @model_validator(mode="after")
    def _windows_hold_them(self) -> Curriculum:
        if not 1 <= len(self.iterations) <= 100:
            raise ValueError("need 1 to 100 iterations")
        for text, size in zip(self.iterations, self.sizes, strict=True):
            near, far = max(0, self.near_rank - size.top), self.retrieved - max(self.near_rank, size.top)
            if self.near_rank >= self.retrieved or size.top > self.retrieved or size.near > near or size.far > far:
                raise ValueError(
                    f"iteration {text} does not fit near_rank={self.near_rank} and retrieved={self.retrieved}: "
                    f"ranks K+1..near_rank hold {near} passages, those up to `retrieved` {far} more"
                )
        return self


class Dev(Section):
    """What a trainer measures the student on, by search as it goes: queries of the collection with some of its passages, and whole small
    collections. None unless asked for."""

    queries: int | None = keyed(None, "dev queries, a seeded subset of those with a label above 0; null or 0 makes no such dev set", ge=0)
    split: str = keyed("dev", "the qrels split that they come from, which must not be the training split")
    depth: int = keyed(100, "passages of each query's list in the student's exact search, all of which are in the dev set", ge=1, le=10_000)
    random: int = keyed(0, "further passages, by chance; deeper lists show more for the same time (docs/performance.md)", ge=0)
    collections: tuple[str, ...] = execution(
        (), "folders of small collections, or patterns as nano/*: a dev set of each, named after it, whole (keyed by content)", path="path"
    )
    collections_split: str | None = execution(None, "their split; null: `split` where a collection has it, else its only one")
    max_passages: int = execution(100_000, "most passages of one of `collections`: all are encoded in every evaluation", ge=1)

    @property
    def asked_for(self) -> bool:
        """Whether any dev set is."""
        return bool(self.queries or self.collections)


class Runner(Section):
    """Who does the work. None of it changes a byte of the output, but `threads` may, at the level of rounding noise."""

    kind: Literal["ray", "local"] = execution("ray", "Ray actors, or this process")
    address: str | None = execution(
        None, "Ray cluster: HOST:PORT, ray://HOST:PORT from outside, auto, local; null: that of RAY_ADDRESS, or a Ray of the run's own"
    )
    working_dir: str | None = execution(
        None, "folder of this package's code, sent to a cluster's hosts; null: the package is installed on each", path="path"
    )
    workers: int | None = execution(None, "worker actors; null takes as many as fit", ge=1)
    threads: int = execution(1, "CPU threads of a worker", ge=1, le=1024)
    gpus: float = execution(1.0, "GPUs of a worker where device=cuda, fractions allowed", gt=0)
    device: Literal["cpu", "cuda"] = execution("cpu", "where the models run")
    retries: int = execution(2, "how often a shard is tried again after its worker died", ge=0)
    claim_seconds: int = execution(600, "silence after which a job is dead, and what it was building is free for others", ge=2)


class Objective(Section):
    """The loss. The defaults are ADAM's letter; recipes are presets of this section."""

    supervised_weight: float = keyed(0.01, "lambda, weight of the supervised loss (ADAM 4.3)", ge=0)
    distillation_weight: float = keyed(1.0, "weight of the distillation loss (PROD: 0.9)", gt=0)
    reference_kl_weight: float = keyed(
        0.0, "weight of KL(reference || student) on the same list, the reference being the frozen start (PROD: 1)", ge=0,
        renamed=Renamed("keep_weight"),
    )  # fmt: skip
    without: tuple[Literal["reinforced", "noisy", "adaptive", "supervised", "distillation"], ...] = keyed(
        (), "parts left out, as in ADAM's Table 3"
    )
    include_positive: bool = keyed(False, "put p+ into P~ (Eq. 9 leaves it out; a list without dark examples always has it, Eq. 3)")
    reduction: Literal["batch", "selected"] = keyed("batch", "the KD sum is divided by b, or by the number of selected queries")
    count_epochs_from: int = keyed(0, "t of the first epoch, 0 or 1, in the selected share 1 - t/(2T) (Eq. 8)", ge=0, le=1)
    share_over: Literal["run", "epochs"] | None = keyed(
        None,
        "T of the shares: the epochs that the run reaches where `steps` ends it, or train.epochs; null: run, of runs begun before epochs",
        later=True,
    )
    confidence: Literal["sum", "mean"] = keyed(
        "sum", "C(q) of the selection: over the sum over P- (Eq. 7), or over their mean, which does not favour short lists", later=True
    )
    positive_weights: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)]] = keyed(
        {}, "weight of a row's supervised loss by the grade of its p+, as {1: 0.5, 2: 1.0}; 0 stands for a promoted p+; none: 1", later=True
    )
    distillation: LossName = keyed(
        "kl", "the KD loss: kl (of softmaxes, Eq. 4), listwise (with two temperatures), margin_mse, curriculum (CL-DRD's), or your own"
    )
    temperature: float = keyed(1.0, "T of both softmaxes of a KL", gt=0)
    teacher_temperature: float | None = keyed(
        None, "of listwise: T of the teacher's softmax, `temperature` being the student's; null: the same", later=True, gt=0
    )
    temperature_squared: bool = keyed(False, "multiply each KL by T^2 (PROD), so that its gradient does not shrink with T")
    score_transform: Literal["none", "zscore", "minmax"] = keyed(
        "none",
        "of the teacher's and the student's scores, within each list, before the KD loss (trainer/objective/transforms.py)",
        later=True,
    )
    teacher_model: str | None = execution(
        None, "a dual encoder as teacher, frozen, instead of the shards' logits (keyed by its content)", path="model"
    )
    in_batch: Literal["none", "supervised", "distillation", "both"] = keyed("none", "whose negatives the batch's other passages join")
    dimensions: tuple[int, ...] = keyed(
        (), "Matryoshka: the objective is summed over vectors cut to their first so many dimensions, as 768,256,64; none: whole vectors",
        later=True,
    )  # fmt: skip
    dimension_weights: tuple[float, ...] = keyed((), "of these sums, one for each of `dimensions`; none: 1 each", later=True)

    @property
    def weighted_dimensions(self) -> tuple[tuple[int, float], ...]:
        """(dimensions kept of a vector, weight of the objective on these); empty where vectors are not cut."""
        return tuple(zip(self.dimensions, self.dimension_weights or [1.0] * len(self.dimensions), strict=True))

    @property
    def loss_traits(self) -> LossTraits:
        """What the distillation loss goes by. Imports a plug-in."""
        return traits_of(self.distillation, LOSSES, setting="train.objective.distillation")

    @model_validator(mode="after")
    def _consistent(self) -> Objective:
        if self.distillation in LOSSES:
            self.check_loss()
        if len(set(self.dimensions)) != len(self.dimensions) or any(size < 1 for size in self.dimensions):
            raise ValueError("dimensions are different numbers from 1 on, as dimensions=768,256,64")
        if self.dimension_weights and len(self.dimension_weights) != len(self.dimensions):
            raise ValueError("dimension_weights has a number for each of dimensions: give as many, or leave it out for 1 each")
        if any(weight <= 0 for weight in self.dimension_weights):
            raise ValueError("dimension_weights are above 0: leave a dimension out that is not to be trained")
        if "distillation" in self.without and (self.reference_kl_weight or self.teacher_model):
            raise ValueError(
                "reference_kl_weight and teacher_model are of the distillation's list, which is left out: set one or the other"
            )
        if "adaptive" in self.without and (self.confidence != "sum" or self.share_over):
            raise ValueError("confidence and share_over are of the selection, which is left out (without=adaptive): leave them out")
        if self.positive_weights and not self.uses_positive:
            raise ValueError("positive_weights are of the supervised loss, which is left out: leave them out, or set supervised_weight")
        if self.positive_weights and not any(self.positive_weights.values()):
            raise ValueError("positive_weights are all 0: set without=supervised instead")
        if "distillation" in self.without and ("supervised" in self.without or not self.supervised_weight):
            raise ValueError("nothing is left to train: distillation and the supervised loss are both left out")
        return self

    def check_loss(self) -> None:
        """Raises ValueError where the other settings do not give the loss what it needs. Imports a plug-in: for commands that train."""
        name = self.distillation
        loss = self.loss_traits
        by_labels = loss.learns_from == "labels"
        if not by_labels and not loss.takes_unscored and self.in_batch in ("distillation", "both"):
            raise ValueError(f"{name} needs teacher logits, which in-batch passages have not: set in_batch=none or supervised")
        if not loss.uses_temperature and self.temperature_squared:
            raise ValueError(f"{name} has no temperature: set temperature_squared=false")
        if self.temperature != 1 and not self.uses_temperature:
            without = "without=distillation" if "distillation" in self.without else f"distillation={name}"
            raise ValueError(
                f"temperature={self.temperature:g} has no effect with {without}, which has no softmax of its own: leave it out"
            )
        if by_labels and self.teacher_model:
            raise ValueError(f"distillation={name} learns from the shards' labels, not from a teacher_model: leave it out")
        if by_labels and (self.in_batch != "none" or self.uses_positive):
            raise ValueError(
                f"distillation={name} is over a list of labels, which has no one p+ and no in-batch negatives: set "
                "without=supervised and in_batch=none (recipe=cl_drd sets the first; beside it leave distillation out)"
            )

    def check_positive(self) -> None:
        """Raises ValueError where the distillation loss goes by p+, and P~ is without. Imports a plug-in."""
        if "distillation" not in self.without and not self.has_positive and self.loss_traits.needs_positive:
            raise ValueError(
                f"distillation={self.distillation} compares p+ with the others, and P~ has no p+ beside dark examples: set "
                "include_positive=true, or leave distillation out and use recipe=margin_mse, which sets both"
            )

    def check_two_sides(self) -> None:
        """Raises ValueError where what is done to the scores of teacher and student has no effect, or cannot be done.

        Of settings with their recipe's preset, which may name the loss. Imports a plug-in.
        """
        loss, name, distils = self.loss_traits, self.distillation, "distillation" not in self.without
        if self.teacher_temperature is not None and not (distils and loss.two_temperatures):
            raise ValueError(
                f"teacher_temperature={self.teacher_temperature:g} has no effect with "
                f"{f'distillation={name}' if distils else 'without=distillation'}: set distillation=listwise, or leave it out"
            )
        if self.score_transform == "none":
            return
        if not distils or loss.learns_from == "labels":
            raise ValueError(
                f"score_transform={self.score_transform} is of a list's logits, from which nothing is learned here: leave it out"
            )
        if self.in_batch in ("distillation", "both") and not self.teacher_model:
            raise ValueError(
                f"score_transform={self.score_transform} needs a logit of each passage, which in-batch ones have not: set in_batch=none "
                "or supervised"
            )

    @property
    def uses_temperature(self) -> bool:
        """Whether a loss with a temperature is asked for: the distillation's, or the KL that keeps the student near its start."""
        return "distillation" not in self.without and (self.loss_traits.uses_temperature or self.reference_kl_weight > 0)

    @property
    def has_positive(self) -> bool:
        """Whether P~ holds p+ whatever the lists hold: by the setting, or since no dark example is in it (Eq. 3)."""
        return self.include_positive or {"reinforced", "noisy"} <= set(self.without)

    @property
    def uses_positive(self) -> bool:
        """Whether the supervised loss, which is of one p+ and its negatives, is asked for."""
        return "supervised" not in self.without and self.supervised_weight > 0


class Card(Section):
    """What the model card says beside what a run knows (OUTPUT/student/README.md)."""

    license: str | None = execution(
        None, "identifier of the hub, as apache-2.0; null: left open, and `train push` asks for it", min_length=1
    )
    language: tuple[str, ...] = execution((), "codes of languages, as en,de")
    datasets: tuple[str, ...] = execution((), "ids of datasets on the hub that the model was trained on")
    base_model: str | None = execution(None, "hub id of the model that was trained; null: student.model where it is one", min_length=1)


MOST_PROFILED = 100  # steps of one trace, whose events all lie in memory until it is written


class Train(Section):
    """The trainer."""

    task: Literal["student", "cross_encoder", "dual_encoder"] = keyed(
        "student",
        "student: distil; cross_encoder: train teacher.model, by the labels or by logits; dual_encoder: student.model by the labels alone",
    )
    recipe: Literal["adam", "hard_kd", "rand_kd", "margin_mse", "listwise", "cl_drd", "prod_dual", "prod"] = keyed(
        "adam", "of task=student: a preset of `objective`"
    )
    output: str = execution("runs/train", "folder of checkpoints, metrics and the student, here or at s3://bucket/folder", path="path")
    objective: Objective = Objective()
    seed: int | None = execution(None, "of order and dropout alone, not of the data; null takes `seed`. Keyed as the run's seed")
    draw: int | None = keyed(None, "train all epochs on this draw; null: epoch e on draw e modulo the shards' draws", ge=0, le=99)
    order: str | None = keyed(
        None, "digest that the rows' order is drawn from, as an export notes it; null: the shards' own, or that of their export", later=True
    )
    epochs: int = keyed(3, "T, passes over the queries", ge=1)
    steps: int | None = keyed(None, "stop after this many steps, in whatever epoch; null: after the last epoch", ge=1)
    batch_queries: int = keyed(128, "b, queries of a batch (ADAM 4.3)", ge=1)
    learning_rate: float = keyed(5e-5, "peak (ADAM 4.3)", gt=0)
    warmup_steps: int = keyed(100, "linear warm-up (ADAM 4.3); the rate then falls linearly to 0 (ours)", ge=0)
    weight_decay: float = keyed(0.01, "of AdamW; biases and normalisation weights have none", ge=0)
    clip_norm: float = keyed(1.0, "largest norm of the gradient", gt=0)
    score_scale: float = keyed(1.0, "factor on the inner product; normalised students need about 20", gt=0)
    precision: Literal["auto", "fp32", "bf16"] = keyed("auto", "auto: bf16 autocast where the device computes it, else fp32")
    device: Literal["cpu", "cuda"] = execution("cpu", "where to train; under torchrun each process has its own GPU")
    tf32: bool = keyed(False, "on a GPU, with precision=fp32: matrix products of 10-bit mantissas, several times faster", later=True)
    deterministic: bool = keyed(
        False, "on a GPU: only operations that repeat to the bit; slower, and refused where one has no such kernel", later=True
    )
    timeout: float = execution(
        30, "minutes that processes of torchrun wait for one that lives and does not come: it opens, saves or evaluates", gt=0, le=10_080
    )
    threads: int | None = execution(None, "CPU threads; null takes all; 1 is faster where others use the cores", ge=1, le=1024)
    workers: int | None = execution(
        None, "micro-batches at the same time on a CPU, each on its share of the threads; null: up to 4", ge=1, le=1024
    )
    cpu_fast_path: bool = execution(True, "on a CPU the passes of trainer/cpu, with dropout masks of their own; false: plain PyTorch")
    micro_batch_tokens: int | None = keyed(
        None,
        "tokens of a forward and backward pass, for each of which dropout masks are drawn; null: 4,096 on a CPU, 65,536 on a GPU",
        ge=64,
    )
    pieces: int | None = keyed(
        None, "a step's micro-batches come in a multiple of it; null: 8, fewer for few tokens; on more GPUs their number", ge=1, later=True
    )
    kept_tokens: int | None = execution(
        None,
        "of a process's shared passages (in-batch negatives), up to which their graph is kept and they are not encoded twice (GradCache); "
        "null: micro_batch_tokens. The same numbers to the bit",
        ge=0,
    )
    compile: bool = execution(False, "torch.compile for the model; changes numbers within rounding; does not pay on a CPU")
    activation_checkpointing: bool = execution(False, "keep a layer's input alone and compute it again on the way back: less memory")
    checkpoint_every: int = execution(200, "steps between checkpoints; the end of an epoch always has one", ge=1)
    keep_checkpoints: int = execution(2, "newest checkpoints kept", ge=1)
    dev: tuple[str, ...] = execution(
        (), "folders of dev sets (`prep path stage=dev`), of several the mean counts; none: nothing is evaluated", path="path"
    )
    evaluate_every: int | None = execution(None, "steps between evaluations on the dev set; null: at the end of each epoch", ge=1)
    dev_metric: Literal["MRR@10", "nDCG@10", "Recall@100"] = execution("MRR@10", "which of two checkpoints is the better")
    patience: int | None = keyed(None, "stop after this many evaluations without a better one; null never stops early", ge=1)
    card: Card = Card()
    tracker: TrackerName = execution("tensorboard", "where curves go: tensorboard, wandb, mlflow, trackio, none, or package.module:object")
    tracker_project: str = execution("adam-distillation", "the tracker's project; MLflow's experiment", min_length=1)
    tracker_name: str | None = execution(None, "the run's name in the tracker; null: that of the output folder", min_length=1)
    profile: str | None = execution(
        None,
        f"FIRST-LAST, as 10-20: write a Chrome trace of these steps, at most {MOST_PROFILED}; null: none",
        pattern=r"^\d{1,9}-\d{1,9}$",
    )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step of the trace, counted from 1."""
        if self.profile is None:
            return None
        first, last = map(int, self.profile.split("-"))
        return first, last

    @model_validator(mode="after")
    def _profile(self) -> Train:
        first, last = self.profiled or (1, 1)
        if not 1 <= first <= last:
            raise ValueError(f"profile={self.profile} is no range of steps, which count from 1: give FIRST-LAST, as 10-20")
        if last - first >= MOST_PROFILED:
            raise ValueError(f"profile={self.profile} is more than {MOST_PROFILED} steps, whose trace would fill the memory: give fewer")
        return self

    @model_validator(mode="after")
    def _positive_of_the_loss(self) -> Train:
        if self.task != "cross_encoder" and self.objective.distillation in LOSSES:  # whose lists have no dark examples
            self.objective.check_positive()
        return self

    @model_validator(mode="after")
    def _dev_set(self) -> Train:
        if self.patience is not None and not self.dev:
            raise ValueError("patience needs a dev set: dev=FOLDER (`prep path stage=dev`)")
        return self


class Evaluation(Section):
    """What `prep phases` measures when a phase is finished. Of one that trains nothing: what embeds."""

    splits: tuple[str, ...] = execution((), "qrels splits whose queries are searched in the whole corpus; none: nothing is measured")
    depth: int = execution(1000, "passages of a query's list", ge=1)
    out: str = execution("runs/evaluation", "start of the files OUT.SPLIT.trec, and OUT.SPLIT.json of each query's metrics", path="path")
    rerank: str | None = execution(
        None, "of task=cross_encoder: the run whose first `depth` passages it puts in its order, of the first split", path="path"
    )
    rerank_queries: int = execution(100, "first queries of that run which are ranked again", ge=1)


TEACHER_OF_LISTS = "the lists' own"  # teacher.model beside lists.path, where none is given


class Lists(Section):
    """Lists that are trained as they are, in place of mining, drawing and scoring."""

    path: str | None = execution(None, "folder that `prep export format=lists` wrote (keyed by its content)", path="path")

    @property
    def folder(self) -> str:
        """The path, of an experiment that has one."""
        assert self.path is not None
        return self.path


class Experiment(Section):
    """An experiment file."""

    store: Store = execution(
        ..., "folder, or s3://bucket/folder, of all stage outputs and of the teacher-logit store, shared by experiments", path="path"
    )
    seed: int = keyed(0, "of every random choice")
    ingest: Ingest = Ingest()
    student: Student
    teacher: Teacher
    embed: Embed = Embed()
    search: Search = Search()
    hard_negatives: HardNegatives = HardNegatives()
    lists: Lists = Lists()
    dark_examples: DarkExamples = DarkExamples()
    curriculum: Curriculum = Curriculum()
    dev: Dev = Dev()
    runner: Runner = Runner()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _lists_name_their_teacher(cls, values: Any) -> Any:
        """Lists carry the logits and the name of their teacher, so none need be given."""
        if isinstance(values, dict) and isinstance(lists := values.get("lists"), dict) and lists.get("path") not in (None, *NULLS):
            return {"teacher": {"model": TEACHER_OF_LISTS, "backend": "none"}, **values}
        return values

    @model_validator(mode="after")
    def _has_a_collection(self) -> Experiment:
        if self.lists.path is None:
            return self  # a training reads finished shards: who needs a collection says so
        if self.hard_negatives.positive_grades:
            raise ValueError("lists.path has lists without the grades of their p+: leave hard_negatives.positive_grades out")
        if self.curriculum.enabled:
            raise ValueError("lists.path has lists that are trained as they are, curriculum.enabled makes others: leave one of them out")
        if self.dev.queries and self.ingest.path is None:
            raise ValueError("dev.queries are of a collection: set ingest.path=FOLDER beside lists.path, or leave dev.queries out")
        return self

    @model_validator(mode="after")
    def _teacher(self) -> Experiment:
        if self.lists.path is not None:
            return self
        dark = not self.curriculum.enabled and bool(self.dark_examples.reinforced or self.dark_examples.mask_ratios)
        if dark and self.teacher.backend == "imported" and not self.teacher.model.startswith("namespace:"):
            raise ValueError(
                "teacher.backend=imported has logits of the passages that were scored, and cannot read dark examples: set "
                "dark_examples.reinforced=false dark_examples.mask_ratios=[], or give a teacher that reads texts (torch, onnx, http)"
            )
        if self.teacher.backend == "none":
            if self.dark_examples.reinforced or self.dark_examples.mask_ratios:
                raise ValueError(
                    "teacher.backend=none makes no dark examples: set dark_examples.reinforced=false dark_examples.mask_ratios=[]"
                )
            if self.hard_negatives.score_pools or self.hard_negatives.uses_pool_scores:
                raise ValueError(
                    "teacher.backend=none scores no pools: leave out score_pools, select, rules of the teacher, promote_margin, a sampler "
                    "by its logits"
                )
        return self

    @property
    def window_pairs(self) -> int:
        """Rows that the teacher scores and stores together."""
        return self.teacher.window_pairs(self.runner.device)

    @property
    def uses_index(self) -> bool:
        """Whether the student's search goes through an approximate index."""
        return self.search.index != "exact" and any(source.name == "student" for source in self.hard_negatives.sources)

    @property
    def scores_whole_pools(self) -> bool:
        """Whether the teacher ranks whole pools, and not the rank windows alone."""
        return self.hard_negatives.score_pools or self.hard_negatives.select != "none" or self.curriculum.enabled

    @model_validator(mode="after")
    def _pools_serve_the_curriculum(self) -> Experiment:
        pools = self.hard_negatives
        retrieved = self.curriculum.retrieved
        if not self.curriculum.enabled:
            return self
        if self.teacher.backend == "none":
            raise UserError("curriculum.enabled ranks by the teacher: set teacher.backend=torch, onnx, http or imported")
        if pools.select != "none":
            raise UserError(f"curriculum.enabled takes all queries: leave hard_negatives.select={pools.select} out")
        if pools.canonical_source != "student":
            raise UserError(f"curriculum.enabled ranks what the student retrieves: set hard_negatives.source=student, not {pools.source}")
        if pools.depth < retrieved:
            raise UserError(
                f"curriculum.enabled ranks the student's {retrieved} best passages, the pools have {pools.depth}: set "
                f"hard_negatives.depth={retrieved} (or a smaller curriculum.retrieved)"
            )
        if any(value is not None for value in pools.false_negatives.model_dump().values()):
            raise UserError("curriculum.enabled draws by ranks alone: leave the rules of hard_negatives.false_negatives unset")
        if pools.positives != "one":
            raise UserError(f"curriculum.enabled has all positives in its lists: leave hard_negatives.positives={pools.positives} out")
        if pools.positive_grades:
            raise UserError("curriculum.enabled makes lists without one p+: leave hard_negatives.positive_grades out")
        if pools.fill_to is not None:
            raise UserError(f"curriculum.enabled draws by ranks alone, and fills nothing: leave hard_negatives.fill_to={pools.fill_to} out")
        if self.train.draw is not None and self.train.draw >= self.draws:
            raise UserError(f"train.draw={self.train.draw}: curriculum.iterations are draws 0 to {self.draws - 1}")
        return self

    @property
    def draws(self) -> int:
        """Rows of a query in the training shards: epoch e trains on row e modulo draws."""
        if self.curriculum.enabled:
            return len(self.curriculum.iterations)
        return max(self.hard_negatives.draws, self.dark_examples.mask_draws)


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment for a process that may work in another folder. A hub id, a template's name, and what a server calls its model,
    stay."""

    def absolute(path: str, key: str, kind: PathKind) -> str:
        served = key == "teacher.model" and experiment.teacher.backend in ("http", "imported")
        there = Path(path).is_file() if key == "teacher.template" else Path(path).exists()  # a folder may have the name of a template
        is_named = served or is_remote(path) or is_ir_datasets(path)
        return path if is_named or (kind == "model" and not there) else str(Path(path).absolute())

    return Experiment.model_validate(map_paths(Experiment, experiment.model_dump(), absolute))


def load(args: dict[str, str]) -> Experiment:
    """The experiment of `config=FILE`, the phase that `phase=NAME` names, and overrides; relative paths start from the working directory.

    Raises UserError: no `config`, no such file, an unknown key (with the nearest names), a value of the wrong type.
    """
    return merged(*experiment_file.layers(Experiment, args))


def merged(values: dict[str, Any], overrides: dict[str, Any]) -> Experiment:
    """The experiment of raw values and the overrides that win over them."""
    return build(Experiment, expanded_paths(Experiment, experiment_file.deep_merge(values, overrides)))
