"""The model card: README.md of a model's folder, with front matter for the hub.

What the run knows is written; what only its author knows (the licence) is a marked line. The same run gives the same bytes: no times, no
paths. A card that a person has changed is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from data.config.settings import TEACHER_OF_LISTS, Experiment, Teacher
from data.digests import bytes_digest, json_digest
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.lora import has_lora
from trainer.evaluation.comparison import DevComparison
from trainer.run import TrainingRun
from trainer.saving.output_folder import CARD_NAME, OPEN_LICENSE, THIS_MODEL

_MARK = "<!-- made by `train run`; digest of the text above: {} -->\n"
_PACKAGES = ("adam-distillation", "torch", "transformers")


def write_cards(folder: Path, run: TrainingRun, *, before: Path, figures: dict[str, float], compared: Sequence[DevComparison]) -> None:
    """Write the card of a saved model, and of its adapter. `before` is the folder that it will replace: what was changed there is kept."""
    for name, adapter in (("", False), ("adapter", True)):
        if (folder / name).is_dir() and (not adapter or has_lora(run.model.backbone)):
            card = sealed(card_of(run, adapter=adapter, figures=figures, compared=compared))
            kept = own_card(before / name / CARD_NAME)
            (folder / name / CARD_NAME).write_bytes(card.encode() if kept is None else kept)


def sealed(text: str) -> str:
    """The text with a last line that tells whether it was changed."""
    return text + _MARK.format(bytes_digest(text.encode()))


def own_card(path: Path) -> bytes | None:
    """The content of a card that a person wrote or changed; None where there is none, or one as it was made here."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    text, _, last = content.rpartition(b"<!-- made by")
    return None if text and (b"<!-- made by" + last).decode(errors="replace") == _MARK.format(bytes_digest(text)) else content


def card_of(run: TrainingRun, *, adapter: bool, figures: dict[str, float], compared: Sequence[DevComparison]) -> str:
    """The text of a card. `figures` of the dev set are used where nothing is compared."""
    what = _title(run.experiment)
    if adapter:
        what = f"LoRA adapter: {what[0].lower()}{what[1:]}"
    front = yaml.safe_dump(
        _front_matter(run, title=what, adapter=adapter, figures=figures, compared=compared), sort_keys=False, allow_unicode=True
    )
    front = front.replace(f"license: {OPEN_LICENSE}\n", f"license: {OPEN_LICENSE} # the licence of this model; `train push` waits for it\n")
    parts = [f"---\n{front}---\n", f"# {what}\n", _about(run, adapter=adapter), _use(run, adapter=adapter)]
    return "\n".join([*parts, _figures(figures, compared), _training(run)]) + "\n"


def _title(experiment: Experiment) -> str:
    kinds = {"cross_encoder": "Cross-encoder", "dual_encoder": "Dual encoder"}
    return kinds.get(experiment.train.task) or f"Dual encoder distilled with {experiment.train.recipe}"


def _front_matter(
    run: TrainingRun, *, title: str, adapter: bool, figures: dict[str, float], compared: Sequence[DevComparison]
) -> dict[str, Any]:
    card, scorer = run.experiment.train.card, run.experiment.train.task == "cross_encoder"
    tags = ["cross-encoder", "reranker"] if scorer else ["sentence-similarity", "feature-extraction", "dense-retrieval"]
    distilled = ["knowledge-distillation"] * (run.experiment.train.task == "student")
    values = {one.name: {row.metric: row.after for row in one.metrics} for one in compared} or ({"": figures} if figures else {})
    base = _base_model(run.experiment)
    return {
        "library_name": "peft" if adapter else "sentence-transformers",
        "pipeline_tag": "text-ranking" if scorer else "sentence-similarity",
        "tags": [*(["lora"] if adapter else ["sentence-transformers"]), *tags, *distilled],
        "license": card.license or OPEN_LICENSE,
        **({"language": list(card.language)} if card.language else {}),
        **({"base_model": base} if base else {}),
        **({"datasets": list(card.datasets)} if card.datasets else {}),
        **({"model-index": [_index(title, values)]} if values else {}),
    }


def _index(title: str, values: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The hub's `model-index` of the figures of each dev set, by its name."""
    results = []
    for name, figures in values.items():
        metrics = [{"type": metric.lower(), "value": round(value, 4), "name": metric} for metric, value in figures.items()]
        dataset = {"type": "dev-set", "name": f"dev set {name}".strip() + " of the training" * (not name)}
        task = {"type": "information-retrieval", "name": "Information Retrieval"}
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    return {"name": title, "results": results}


def _base_model(experiment: Experiment) -> str | None:
    """A hub id: the one given, or what was trained where that is one."""
    trained = _trained(experiment)
    return experiment.train.card.base_model or (trained if _is_hub_id(trained) else None)


def _trained(experiment: Experiment) -> str:
    return experiment.teacher.model if experiment.train.task == "cross_encoder" else experiment.student.model


def _is_hub_id(model: str) -> bool:
    """A path that is not here, as a teacher's may be on the machine that trains, has a root or several slashes."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is not None and not Path(model).exists()


def _named(model: str) -> str:
    """A model for people: a hub id as it is, of a folder its name alone."""
    return f"`{model}`" if _is_hub_id(model) else f"a local model, `{Path(model).absolute().name}`"


def _teacher(teacher: Teacher) -> str:
    """The teacher of a student. A declared one is a name, which may be any text; of a path, its last part."""
    if teacher.model == TEACHER_OF_LISTS:
        return "that of the lists, which were given"
    if teacher.backend != "imported":
        return _named(teacher.model)
    name = teacher.model if _is_hub_id(teacher.model) else teacher.model.rstrip("/").rpartition("/")[2]
    return f"{_code(name)}, of which imported scores were used"


def _about(run: TrainingRun, *, adapter: bool) -> str:
    experiment = run.experiment
    task, objective = experiment.train.task, experiment.train.objective
    lines = [f"Trained from {_named(_trained(experiment))}."]
    if task == "student" and objective.teacher_model:
        lines.append(f"The teacher is a dual encoder, {_named(objective.teacher_model)}.")
    elif task == "student" and "distillation" not in objective.without and run.shards.metadata.teachers:
        names = ", ".join(f"`{namespace}`" for namespace in run.shards.metadata.teachers)
        lines.append(f"The teacher is {_teacher(experiment.teacher)}; its logits are those of the namespace {names}.")
    else:
        lines.append("It learned from labels, without a teacher.")
    model = run.model
    if isinstance(model, DualEncoder):
        spec = model.spec
        lines += [
            "", "| | |", "|---|---|",
            f"| dimensions | {model.size} |",
            f"| similarity | {'cosine' if spec.normalize else 'dot product'} |",
            f"| pooling | {spec.pooling} |",
            f"| longest query, passage | {spec.query_tokens}, {spec.passage_tokens} tokens |",
            f"| prompt of queries | {_code(spec.query_prefix)} |",
            f"| prompt of passages | {_code(spec.passage_prefix)} |",
        ]  # fmt: skip
        if adapter and spec.layers is not None:
            lines.append(f"| layers of the base | the first {spec.layers} |")
    else:
        lines += ["", f"It reads pairs of at most {experiment.teacher.max_tokens} tokens and gives a logit: higher is more relevant."]
    return "\n".join(lines) + "\n"


def _code(prompt: str) -> str:
    """A text as it can stand in a table, too: quoted, without what ends a cell."""
    return "none" if not prompt else f"<code>{re.sub('[|<>&`]', lambda found: f'&#{ord(found.group())};', repr(prompt))}</code>"


_STUDENT_USE = f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{THIS_MODEL}")
queries = model.encode_query(["how long does a claim take"])
passages = model.encode_document(["Most claims are settled in ten days."])
model.similarity(queries, passages)"""
_SCORER_USE = f"""from sentence_transformers import CrossEncoder

model = CrossEncoder("{THIS_MODEL}")
model.predict([("how long does a claim take", "Most claims are settled in ten days.")])"""
_ADAPTER_USE = """from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), "adapter")"""


def _use(run: TrainingRun, *, adapter: bool) -> str:
    if adapter:
        code = _ADAPTER_USE.format(base=_base_model(run.experiment) or "the-base-model")
        said = "The whole model, adapter included, is the folder above this one. Of the adapter alone the table says how tokens are pooled:"
        return f"## Use\n\n{said}\n\n```python\n{code}\n```\n"
    return f"## Use\n\n```python\n{_SCORER_USE if run.experiment.train.task == 'cross_encoder' else _STUDENT_USE}\n```\n"


def _figures(figures: dict[str, float], compared: Sequence[DevComparison]) -> str:
    if compared:
        said = (
            "p-values of a two-sided paired randomisation test over queries, each metric by itself. A dev set is no test set: settings may "
        )
        said += "have been chosen on it, and where it is a part of the collection, figures are higher."
        return "\n".join(["## Figures", "", *(line for one in compared for line in _table(one)), said, ""])
    if not figures:
        return "## Figures\n\nNothing was measured.\n"
    rows = [f"| {name} | {value:.4f} |" for name, value in figures.items()]
    return "\n".join(["## Figures", "", "On the dev set of the training:", "", "| metric | |", "|---|---|", *rows]) + "\n"


def _table(compared: DevComparison) -> list[str]:
    """One dev set before and after, with what is needed to judge it."""
    name = f"dev set {compared.name}" if compared.name else "dev set of the training"
    lines = [
        f"On the {name}: {compared.queries:,} judged queries, exact search among {compared.passages:,} passages.", "",
        "| metric | before | after | difference | p-value | better / worse / same |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in compared.metrics:
        means = f"{row.before:.4f} | {row.after:.4f} | {row.after - row.before:+.4f}"
        lines.append(f"| {row.metric} | {means} | {row.p_said} | {row.wins} / {row.losses} / {row.ties} |")
    return [*lines, ""]


def _training(run: TrainingRun) -> str:
    settings = yaml.safe_dump(json.loads(json.dumps(run.key)), sort_keys=True, allow_unicode=True, width=120)
    early = ", where the dev set saw nothing better any more" if run.stopped_early else ""
    what = f"recipe `{run.experiment.train.recipe}`" if run.experiment.train.task == "student" else f"task `{run.experiment.train.task}`"
    versions = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    return (
        f"## Training\n\n{run.state.step:,} of {run.steps:,} steps{early}, {what}, by {versions}. Digest of the settings: "
        f"`{json_digest(run.key)}`.\n\n<details><summary>Settings, and digests of models and data</summary>\n\n```yaml\n{settings}```\n\n"
        "</details>\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source
        return "without a version"
