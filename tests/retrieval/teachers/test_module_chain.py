"""Cross-encoders that are chains of sentence-transformers modules: the logits of `CrossEncoder.predict`, or a refusal by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from support.chains import CLASSES, ETTIN, Module, dense, pooling, save_chain, scores
from support.checkpoints import WORDS, change_json, change_weights, write_json
from support.hub import Hub
from support.stores import candidates

from data.config.settings import Teacher, load
from data.digests import DigestCache
from data.errors import UserError
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import PreparingTeacher, TeacherSettings
from retrieval.teachers.cross_encoder import CrossEncoderSpec
from trainer.task import task_of

CHANCE = np.random.default_rng(0)
PAIRS = [
    (" ".join(CHANCE.choice(WORDS, 1 + number % 7)), " ".join(CHANCE.choice(WORDS, 1 + number * 5 % 37))) for number in range(60)
]  # fmt: skip


def teacher_of(folder: Path, **words: Any) -> Teacher:
    return Teacher(**{"model": str(folder), "max_tokens": 64, "precision": "fp32", **words})


def resolved(folder: Path, **words: Any) -> CrossEncoderSpec:
    spec: Any = resolve_teacher(teacher_of(folder, **words), device="cpu")
    return spec


def opened(folder: Path, **words: Any) -> PreparingTeacher:
    return resolved(folder, **words).open(TeacherSettings.of(teacher_of(folder, **words), device="cpu", threads=1))


def logits_of(folder: Path, pairs: list[tuple[str, str]] = PAIRS, **words: Any) -> NDArray[np.float32]:
    return opened(folder, **words).score(pairs)


def expected(folder: Path) -> NDArray[np.float32]:
    model = CrossEncoder(str(folder), device="cpu", max_length=64, model_kwargs={"dtype": torch.float32})
    scores: NDArray[np.float32] = model.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=16)
    return scores


CHAINS: dict[str, tuple[list[Module], dict[str, Any]]] = {
    "Ettin": (ETTIN, {}),
    "in a sub-folder": (ETTIN, {"path": "0_Transformer"}),
    "labels in config.json": (ETTIN, {"num_labels": 1}),
    "two segments": (ETTIN, {"architecture": "Bert", "segments": True}),
    "mean, dropout, length 1": (
        [pooling("mean"), ("Dropout", {"dropout": 0.5}), dense(32, 24, "activation.Tanh"), ("Normalize", {}), scores(24)], {},
    ),
    "last token of a decoder": ([pooling("lasttoken"), scores(bias=False)], {"architecture": "Qwen3"}),
    "two poolings": ([pooling(["cls", "mean"]), dense(64, 16, "activation.SiLU"), scores(16)], {}),
    "old flags": (
        [("Pooling", {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}), scores()],
        {"architecture": "XLMRoberta"},
    ),
    "names of its own": (
        [pooling("cls"), dense(32, 16, module_output_name="hidden"), dense(32, 32),
         dense(16, 1, "activation.Tanh", module_input_name="hidden", module_output_name="scores")], {},
    ),
    "residual": ([pooling("weightedmean"), dense(32, 32, use_residual=True), dense(32, 16, use_residual=True), scores(16)], {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each of CHAINS once; to be copied where it is changed."""
    folder, made = tmp_path_factory.mktemp("chains"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            modules, words = CHAINS[name]
            made[name] = save_chain(folder / str(len(made)), *modules, **words)
        return made[name]

    return get


@pytest.fixture
def ettin(chain: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(chain("Ettin"), tmp_path / "model")


@pytest.mark.medium
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_the_scores_of_sentence_transformers(chain: Callable[[str], Path], name: str) -> None:
    """Prevents: a module left out, in another order, or fed with what another one wrote; an activation on the logits."""
    ours, theirs = logits_of(chain(name)), expected(chain(name))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("name", ["Ettin", "last token of a decoder"])
def test_a_pair_alone_scores_as_in_any_batch(chain: Callable[[str], Path], name: str) -> None:
    """Prevents: padding that is pooled."""
    teacher = opened(chain(name))
    np.testing.assert_allclose(teacher.score(PAIRS)[::4], [teacher.score([pair])[0] for pair in PAIRS[::4]], rtol=0, atol=1e-4)


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")
def test_modules_stay_exact_where_the_layers_are_lowered(chain: Callable[[str], Path]) -> None:
    """Prevents: a head in bf16, in which neighbouring passages tie."""
    from scipy.stats import spearmanr

    ours = logits_of(chain("Ettin"), precision="bf16")
    assert spearmanr(ours, expected(chain("Ettin"))).statistic > 0.99
    assert len(set(ours.tolist())) == len(PAIRS)


def test_a_folder_saved_by_sentence_transformers_is_read(ettin: Path, tmp_path: Path) -> None:
    """Prevents: a refusal for a key that version 6 writes into every folder."""
    model = CrossEncoder(str(ettin), device="cpu", max_length=48)
    model.set_keep_in_fp32_modules(["4.linear"])
    model.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_allclose(logits_of(tmp_path / "saved"), expected(ettin), rtol=0, atol=1e-4)


def test_a_chain_on_the_hub_comes_with_its_modules(ettin: Path, hub: Callable[[Path], Hub], tmp_path: Path) -> None:
    """Prevents: a chain of which the weights for its modules stay on the hub."""
    (ettin / "onnx").mkdir()
    (ettin / "onnx" / "model.onnx").write_bytes(b"heavy")
    before = resolved(ettin).namespace(DigestCache(tmp_path / "digests.json"))
    there = hub(ettin)
    assert resolved(Path("some/model")).namespace(DigestCache(tmp_path / "digests.json")) == before
    assert there.fetched == {f"{name}model.safetensors" for name in ("", "2_Dense/", "3_LayerNorm/", "4_Dense/")}


def test_what_decides_a_logit_is_in_the_key(ettin: Path, tmp_path: Path) -> None:
    """Prevents: the logits of one head served for another that stands behind the same encoder; scored anew because a folder was moved."""

    def key() -> str:
        return resolved(ettin).namespace(DigestCache(tmp_path / "digests.json"))

    before, seen = key(), set[str]()
    shutil.move(ettin / "2_Dense", ettin / "head")
    write_json(ettin / "modules.json", json.loads((ettin / "modules.json").read_text().replace("2_Dense", "head")))
    assert key() == before
    for file, changed in [
        ("1_Pooling", {"pooling_mode": "mean"}), ("head", {"activation_function": "torch.nn.modules.activation.ReLU"}),
        ("4_Dense", {"activation_function": "torch.nn.modules.activation.Tanh"}),
    ]:  # fmt: skip
        whole = (ettin / file / "config.json").read_text()
        change_json(ettin / file / "config.json", **changed)
        seen.add(key())
        (ettin / file / "config.json").write_text(whole)
    change_weights(ettin / "3_LayerNorm", lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    seen.add(key())
    assert before not in seen and len(seen) == 4


def test_a_transformer_alone_has_the_key_of_a_plain_folder(models: Any, tmp_path: Path) -> None:
    """Prevents: the logits of every folder that sentence-transformers saved scored anew."""
    folder = shutil.copytree(models.teacher, tmp_path / "model")
    plain = resolved(folder).key(DigestCache(tmp_path / "digests.json"))
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": CLASSES["Transformer"]}])
    assert resolved(folder).key(DigestCache(tmp_path / "digests.json")) == plain and plain["head"] == "logit"


def setting(folder: Path, file: str, **changed: Any) -> None:
    change_json(folder / file, **changed)


DENSE, LAST, POOLING = "2_Dense/config.json", "4_Dense/config.json", "1_Pooling/config.json"
REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code of its own": (
        lambda folder: setting(folder, DENSE, activation_function="own.module.Swish"),
        r'2_Dense/config\.json says activation_function="own\.module\.Swish", and of torch\.nn',
    ),
    "a key": (lambda folder: setting(folder, DENSE, dropout=0.1), r"2_Dense/config\.json says dropout=0\.1, a key that is not known"),
    "a pickle": (
        lambda folder: (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin"),
        r"2_Dense holds no model\.safetensors.*save it again",
    ),
    "weights of another size": (
        lambda folder: shutil.copy(folder / "4_Dense/model.safetensors", folder / "2_Dense/model.safetensors"),
        r"2_Dense/model\.safetensors holds linear\.bias \[1\].*config\.json asks for linear\.weight \[32, 32\]",
    ),
    "no scores": (
        lambda folder: setting(folder, LAST, module_output_name="sentence_embedding"),
        r"no module of .* writes scores, so it gives vectors of texts; a cross-encoder with one output",
    ),
    "a name that nothing writes": (
        lambda folder: setting(folder, LAST, module_input_name="hidden"), r"4_Dense reads hidden, which no module before it writes",
    ),
    "a pooling": (lambda folder: setting(folder, POOLING, pooling_mode="median"), r"1_Pooling/config\.json pools by median"),
    "a prompt left out": (
        lambda folder: setting(folder, POOLING, include_prompt=False), r"1_Pooling/config\.json says include_prompt=false, but all tokens",
    ),
    "vectors of another size": (
        lambda folder: setting(folder, POOLING, pooling_mode=["cls", "mean"]),
        r"2_Dense reads vectors of 32 dimensions, and sentence_embedding has 64",
    ),
    "another task": (
        lambda folder: setting(folder, "sentence_bert_config.json", transformer_task="fill-mask"),
        r'sentence_bert_config\.json says transformer_task="fill-mask"',
    ),
    "a pooler's output": (
        lambda folder: setting(
            folder, "sentence_bert_config.json", modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}}
        ),
        r"says modality_config=.*only the last_hidden_state",
    ),
    "another kind of model": (
        lambda folder: setting(folder, "config_sentence_transformers.json", model_type="SentenceTransformer"),
        r'says model_type="SentenceTransformer", and only a "CrossEncoder" scores pairs',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_honoured_is_refused_by_name(ettin: Path, name: str) -> None:
    """Prevents: scores of another chain than the folder's, and a refusal that comes once everything before the teacher is paid for."""
    spoil, words = REFUSALS[name]
    spoil(ettin)
    with pytest.raises(UserError, match=words):
        resolved(ettin)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([pooling("cls"), scores(outputs=2)], r"the modules of .* give 2 scores; a cross-encoder with one output"),
        ([dense(32, 32), pooling("cls"), scores()], r"chain of sentence-transformers modules \(Transformer, Dense, Pooling, Dense"),
        ([pooling("cls"), ("WordWeights", {}), scores()], r"\(Transformer, Pooling, WordWeights, Dense in its modules\.json\)"),
        ([pooling("cls")], r"no module of .* writes scores"),
    ],
    ids=["two scores", "another order", "another module", "vectors"],
)  # fmt: skip
def test_another_chain_is_refused(tmp_path: Path, modules: list[Module], words: str) -> None:
    """Prevents: a chain scored without the module that nobody here knows."""
    with pytest.raises(UserError, match=words):
        resolved(save_chain(tmp_path / "model", *modules))


def test_a_chain_is_not_trained(ettin: Path, tiny_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents: the trained modules of a cross-encoder thrown away, and a new head trained in their place."""
    config = tiny_experiment(tmp_path / "run", **{"teacher.model": ettin, "train.task": "cross_encoder"})
    with pytest.raises(UserError, match=r"is a cross-encoder of several modules \(Transformer, Pooling, Dense, LayerNorm, Dense\)"):
        task_of(load({"config": str(config)}), DigestCache(tmp_path / "digests.json"))


@pytest.mark.medium
def test_a_chain_scores_a_collection(
    chain: Callable[[str], Path], tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Prevents: a head that does not travel to the workers, or one that is opened as another."""
    config = tiny_experiment(tmp_path / "run", **{"teacher.model": chain("in a sub-folder")})
    prep_run(config)
    store = config.parent / "store"
    parts = sorted((store / "teacher_scores").rglob("*.parquet"))
    stored = {(row["query_id"], row["draw"], row["position"]): row["logit"] for part in parts for row in pq.read_table(part).to_pylist()}
    rows = candidates(store)[::7]
    ours = logits_of(chain("in a sub-folder"), [(row["query"], row["text"]) for row in rows])
    assert len(stored) > len(rows) > 10
    np.testing.assert_allclose(ours, [stored[row["query_id"], row["draw"], row["position"]] for row in rows], rtol=0, atol=1e-4)
