"""What `retrieve rerank` takes a run's order from: a cross-encoder, a student, or stored embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from data.config.fields import all_keys
from data.config.settings import Student, Teacher
from data.errors import UserError
from data.formats.trec import Run
from retrieval.cli_args import NOT_GIVEN, FileArgs, settings_of

RERANKING = {
    "model": "", "scorer": "auto", **settings_of(Teacher), **settings_of(Student), "dimensions": "", "depth": "50", "limit": "",
    "device": "cpu", "threads": "0",
}  # fmt: skip
_BOTH = {"model", "revision", "trust_remote_code", "precision", "batch_tokens"}
_OF_TEACHER = [key for key in all_keys(Teacher) if key not in _BOTH]
_OF_STUDENT = [*(key for key in all_keys(Student) if key not in _BOTH), "dimensions"]

Ranker = Callable[[Run, Callable[[str], None]], Run]
Scorer = Literal["cross_encoder", "student"]


def ranker_of(args: FileArgs, *, depth: int, device: str, threads: int, note: Callable[[str], None]) -> Ranker:
    """What ranks a run again, its arguments checked.

    Raises UserError: tables of which one holds texts and one vectors, settings of another scorer than that which ranks.
    """
    queries, of_queries = args.either_table("queries", "query texts", "query vectors")
    corpus, of_corpus = args.either_table("corpus", "corpus texts", "corpus vectors")
    if of_queries.split()[-1] != of_corpus.split()[-1]:
        raise UserError(f"queries= are {of_queries}, corpus= are {of_corpus}: give texts of both with model=, or embeddings of both")
    if of_corpus == "corpus vectors":
        return _by_vectors(args, queries, corpus, depth=depth, note=note)
    if not args["model"]:
        raise UserError("missing model=...: queries= and corpus= are texts, which a model scores (or give stored embeddings of both)")
    if _scorer(args, note=note) == "student":
        return _by_student(args, queries, corpus, depth=depth, device=device)
    return _by_teacher(args, queries, corpus, depth=depth, device=device, threads=threads)


def _given(args: FileArgs, keys: list[str]) -> list[str]:
    return [key for key in keys if args[key] not in (NOT_GIVEN, "")]


def _refuse(args: FileArgs, keys: list[str], why: str) -> None:
    if given := _given(args, keys):
        raise UserError(f"{', '.join(f'{key}=' for key in given)} {why}")


def _scorer(args: FileArgs, *, note: Callable[[str], None]) -> Scorer:
    """By the argument, by the settings that one of the two alone has, or by the model's files."""
    asked = args.one_of("scorer", "auto", "cross_encoder", "student")
    of_teacher, of_student = _given(args, _OF_TEACHER), _given(args, _OF_STUDENT)
    if asked == "auto" and of_teacher and of_student:
        raise UserError(f"{of_teacher[0]}= is of a cross-encoder, {of_student[0]}= of a student: say scorer= and leave the others out")
    if asked == "student" or (asked == "auto" and of_student):
        _refuse(args, _OF_TEACHER, "is of a cross-encoder, and scorer=student: leave it out")
        return "student"
    if asked == "auto" and not of_teacher and _pools(args):
        note(f"note: model={args['model']} is a dual encoder by its files, and its inner products rank (scorer=cross_encoder reads pairs)")
        return "student"
    _refuse(args, _OF_STUDENT, "is of a student, and scorer=cross_encoder: leave it out")
    return "cross_encoder"


def _pools(args: FileArgs) -> bool:
    """Whether the model's folder says that one vector is made of a text."""
    from retrieval.model_files.adapter_files import settings_folder
    from retrieval.model_files.files import module_list, read_json, resolve_folder

    section = args.section(Student)
    folder = resolve_folder(section.model, option="model", revision=section.revision, with_code=section.trust_remote_code)
    own = settings_folder(folder)
    pools = any(module["type"].rsplit(".", 1)[-1] == "Pooling" for module in module_list(own))
    return pools and read_json(own / "config_sentence_transformers.json").get("model_type") != "CrossEncoder"


def _by_vectors(args: FileArgs, queries: Path, corpus: Path, *, depth: int, note: Callable[[str], None]) -> Ranker:
    of_models = [*_BOTH, *_OF_TEACHER, *(key for key in _OF_STUDENT if key != "dimensions")]
    _refuse(args, sorted(of_models), "is of a model, and queries= and corpus= are stored embeddings, which need none: leave it out")
    if args.one_of("scorer", "auto", "cross_encoder", "student") == "cross_encoder":
        raise UserError("scorer=cross_encoder reads texts, and queries= and corpus= are stored embeddings")
    from retrieval.evaluation.student_rerank import rerank_vectors
    from retrieval.search.embedding_table import EmbeddingTable, differences

    dimensions = args.number("dimensions", least=1) if args["dimensions"] else None
    of_queries, of_corpus = EmbeddingTable(queries, "query_id", dimensions), EmbeddingTable(corpus, "doc_id", dimensions)
    if set(differences(of_queries.student_key, of_corpus.student_key)) - ({"truncate_dim"} if dimensions else set()):
        note("note: queries and corpus were embedded by different models or poolings; meant only for paired encoders")
    return lambda run, report: rerank_vectors(run, queries=of_queries, corpus=of_corpus, depth=depth)


def _by_student(args: FileArgs, queries: Path, corpus: Path, *, depth: int, device: str) -> Ranker:
    student = args.section(Student)
    precision = "auto" if args["precision"] == NOT_GIVEN else args.one_of("precision", "auto", "fp32", "bf16", "fp16")
    batch_tokens = None if args["batch_tokens"] in (NOT_GIVEN, "null") else args.number("batch_tokens", least=64)
    dimensions = args.number("dimensions", least=1) if args["dimensions"] else None
    from retrieval.evaluation.student_rerank import rerank_texts

    return lambda run, report: rerank_texts(
        run, student, queries=queries, corpus=corpus, depth=depth, precision=precision, device=device, dimensions=dimensions,
        batch_tokens=batch_tokens, report=report,
    )  # fmt: skip


def _by_teacher(args: FileArgs, queries: Path, corpus: Path, *, depth: int, device: str, threads: int) -> Ranker:
    teacher = args.section(Teacher)
    from retrieval.teachers.rerank import rerank

    return lambda run, report: rerank(
        run, teacher, queries=queries, corpus=corpus, depth=depth, device=device, threads=threads, report=report
    )  # fmt: skip
