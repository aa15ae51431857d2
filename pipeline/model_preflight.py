"""What shows only when a model is opened, found out on the driver before the first stage works: seconds, once for each model.

Files alone are looked at by every plan (`retrieval.checkpoint_checks`, `retrieval.graph_checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data.digests import DigestCache, json_digest
from data.errors import UserError
from data.settings import Experiment
from pipeline.stage import Table
from pipeline.wanted_pairs import spec_of
from retrieval.checkpoint_checks import bare_decoder
from retrieval.cross_encoder import TeacherSpec, check_opens
from retrieval.student_spec import StudentSpec, miner_of, resolve_student

_BY_STUDENT = ("embed", "shards", "dev")
_BY_TEACHER = ("dark_examples", "teacher_scores", "pool_scores")
_MOST_BYTES = 3_000_000_000  # of weights that the driver opens for trial; a larger model is found out by its worker
_opened = set[str]()


def check_models(experiment: Experiment, selected: Sequence[Table], digests: DigestCache) -> None:
    """Raises UserError for models that cannot be opened: weights that are missing, batches that cannot be padded, a tokenizer without a
    fast form, a damaged graph, no ONNX Runtime, a GPU that would only emulate bf16."""
    stages = {table.stage for table in selected}
    if stages & set(_BY_STUDENT):
        option = "embed.model" if experiment.embed.model else "student.model"
        for student in (resolve_student(experiment.student), resolve_student(miner_of(experiment), option=option)):
            _once(json_digest(student.key(digests)), lambda: _open_student(student))  # noqa: B023 (called at once)
    if experiment.teacher.backend != "none" and stages & set(_BY_TEACHER):
        teacher = spec_of(experiment)
        _once(teacher.namespace(digests), lambda: _open_teacher(teacher, experiment))


def _once(key: str, check: Callable[[], None]) -> None:
    if key not in _opened:
        check()
        _opened.add(key)


def _open_student(spec: StudentSpec) -> None:
    from retrieval.dual_encoder import DualEncoder
    from retrieval.tokenizer import Tokenizer

    Tokenizer(spec.weights_folder, lower_case=spec.lower_case, trusted=spec.trust_remote_code)
    if _is_small(spec.weights_folder):
        DualEncoder(spec)


def _open_teacher(spec: TeacherSpec, experiment: Experiment) -> None:
    from retrieval.cross_encoder import TorchCrossEncoder
    from retrieval.tokenizer import Tokenizer

    Tokenizer(spec.folder, trusted=spec.trust_remote_code)
    runner = experiment.runner
    if spec.backend == "onnx":
        if runner.address is None:  # the workers of a cluster may have packages that the driver lacks
            check_opens(spec, device=runner.device)
        return
    if _is_small(spec.folder):
        TorchCrossEncoder(spec.folder, precision="fp32", device="cpu", trusted=spec.trust_remote_code)
    if runner.device == "cuda" and runner.address is None and spec.precision == "bf16":
        _check_bf16(experiment.teacher.precision)


def _is_small(folder: Path) -> bool:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= _MOST_BYTES


def _check_bf16(asked: str) -> None:
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"teacher.precision={asked}: this GPU would only emulate bf16; use teacher.precision=fp16")


def model_notes(experiment: Experiment, selected: Sequence[Table]) -> Iterator[str]:
    """What a person should know of the models before they are paid for, of which nothing is an error."""
    if experiment.teacher.backend != "torch" or not any(table.pairs for table in selected):
        return
    if bare_decoder(folder := spec_of(experiment).folder):
        yield (
            f"teacher.model: {folder} is a decoder with a scoring head and names no template of query and document, so it reads pairs as "
            "its tokenizer joins them; where its model card tells of a template or instruction, its logits will mean little"
        )
