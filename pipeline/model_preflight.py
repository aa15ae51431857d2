"""What can go wrong with the models only once they are opened, tried out on the driver before the first stage works: seconds, once a run.

Files alone are looked at by every plan (`retrieval.checkpoint_checks`, `retrieval.graph_checks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.errors import UserError
from data.settings import Experiment
from pipeline.stage import Table
from pipeline.wanted_pairs import spec_of
from retrieval.checkpoint_checks import bare_decoder
from retrieval.cross_encoder import check_opens
from retrieval.student_spec import miner_of, resolve_student

_BY_STUDENT = ("embed", "shards", "dev")
_BY_TEACHER = ("dark_examples", "teacher_scores", "pool_scores")


def check_models(experiment: Experiment, selected: Sequence[Table]) -> None:
    """Raises UserError: a tokenizer that does not open or has no fast form, a graph that does not open, no ONNX Runtime, a GPU that would
    only emulate bf16. The workers of a cluster may have other packages and GPUs than the driver, so only tokenizers are opened then."""
    from retrieval.tokenizer import Tokenizer

    stages, settings = {table.stage for table in selected}, experiment.teacher
    if stages & set(_BY_STUDENT):
        for student in {id(one): one for one in (experiment.student, miner_of(experiment))}.values():
            spec = resolve_student(student)
            Tokenizer(spec.weights_folder, lower_case=spec.lower_case, trusted=spec.trust_remote_code)
    if settings.backend == "none" or not stages & set(_BY_TEACHER):
        return
    teacher = spec_of(experiment)
    Tokenizer(teacher.folder, trusted=teacher.trust_remote_code)
    if experiment.runner.address or not any(table.pairs for table in selected):
        return
    check_opens(teacher, device=experiment.runner.device)
    if experiment.runner.device == "cuda" and teacher.precision == "bf16":
        _check_bf16(settings.precision)


def model_notes(experiment: Experiment, selected: Sequence[Table]) -> Iterator[str]:
    """What a person should know of the models before they are paid for, of which nothing is an error."""
    if experiment.teacher.backend != "torch" or not any(table.pairs for table in selected):
        return
    if bare_decoder(folder := spec_of(experiment).folder):
        yield (
            f"teacher.model: {folder} is a decoder with a scoring head and names no template of query and document, so it reads pairs as "
            "its tokenizer joins them; where its model card tells of a template or instruction, its logits will mean little"
        )


def _check_bf16(asked: str) -> None:
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"teacher.precision={asked}: this GPU would only emulate bf16; use teacher.precision=fp16")
