"""`retrieve merge`: means against plain torch, folders as sentence-transformers opens them, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from support.adapters import save_adapter
from support.checkpoints import change_json, change_weights, save
from support.in_process import retrieve
from support.student_folders import TEXTS, assert_equal, dense, encoder_of, lay_out, peer

from data.config.settings import Student
from data.errors import UserError
from retrieval.merging import averaging
from retrieval.merging.averaging import Source, write_average
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student

Tensors = dict[str, torch.Tensor]


def other(folder: Path, source: Path, seed: int) -> Path:
    """A copy with other weights, those of its modules, too."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        drawn = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        save_file(drawn, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def students(models: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three students with a Dense behind the pooling and prompts."""
    folder = tmp_path_factory.mktemp("students")
    prompts = {"prompts": {"query": "ba ", "document": "be "}, "similarity_fn_name": "cosine"}
    first = lay_out(folder / "a", models.student, behind=[dense(32, 16, "activation.Tanh")], normalize=True, prompts=prompts)
    return [first, other(folder / "b", first, 1), other(folder / "c", first, 2)]


def expected(folders: list[Path], weights: list[float], place: str = "model.safetensors") -> Tensors:
    """Means by torch, in float64."""
    loaded = [load_file(folder / place) for folder in folders]
    return {
        name: sum((weight * one[name].double() for weight, one in zip(weights, loaded, strict=True)), torch.zeros((), dtype=torch.float64))
        for name in loaded[0]
    }


def assert_mean(out: Path, folders: list[Path], weights: list[float], *, places: tuple[str, ...] = ("model.safetensors",)) -> None:
    for place in places:
        found = load_file(out / place)
        for name, mean in expected(folders, weights, place).items():
            assert torch.allclose(found[name].double(), mean, rtol=1e-6, atol=1e-7), name


@pytest.mark.medium
def test_a_merged_student_opens_everywhere_and_is_the_mean(tmp_path: Path, students: list[Path]) -> None:
    """Prevents: a Dense left as the first model's, prompts or the length 1 lost, another model in our reading than in the peer's."""
    weights = [0.5, 0.3, 0.2]
    names = ",".join(map(str, students))
    assert retrieve("merge", f"models={names}", f"out={tmp_path / 'out'}", "weights=0.5,0.3,0.2") == 0
    assert_mean(tmp_path / "out", students, weights, places=("model.safetensors", "2_Dense/model.safetensors"))
    assert_equal(encoder_of(tmp_path / "out"), peer(tmp_path / "out"))
    ours, first = encoder_of(tmp_path / "out").queries(TEXTS), encoder_of(students[0]).queries(TEXTS)
    assert np.abs(ours - first).max() > 1e-3
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record == {"models": [str(path) for path in students], "weights": weights}
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert theirs.prompts["query"] == "ba "


@pytest.mark.medium
def test_weight_one_gives_the_first_exactly(tmp_path: Path, students: list[Path]) -> None:
    """Prevents: a rounding of its own in what should be a copy; a broken second model that comes through at weight 0."""
    broken = other(tmp_path / "broken", students[1], 3)
    change_weights(broken, lambda tensors: {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()})
    assert retrieve("merge", f"models={students[0]},{broken}", f"out={tmp_path / 'out'}", "weights=1,0") == 0
    for place in ("model.safetensors", "2_Dense/model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json"):
        assert (tmp_path / "out" / place).read_bytes() == (students[0] / place).read_bytes()
    np.testing.assert_array_equal(encoder_of(tmp_path / "out").passages(TEXTS), encoder_of(students[0]).passages(TEXTS))


@pytest.mark.medium
def test_cross_encoders_merge_too(tmp_path: Path, models: Any) -> None:
    """Prevents: a head of the first model on the mean of the encoders."""
    second = other(tmp_path / "b", models.teacher, 1)
    assert retrieve("merge", f"models={models.teacher},{second}", f"out={tmp_path / 'out'}") == 0
    assert_mean(tmp_path / "out", [models.teacher, second], [0.5, 0.5])
    scores = [CrossEncoder(str(path), device="cpu").predict([("ba be", "bi bo")]).item() for path in (models.teacher, second)]
    merged = CrossEncoder(str(tmp_path / "out"), device="cpu").predict([("ba be", "bi bo")]).item()
    assert merged not in scores


def shard(folder: Path, *, shards: int) -> Path:
    """The weights of a folder in several files with an index, as transformers saves large models."""
    tensors = load_file(folder / "model.safetensors")
    names, where = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number::shards]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    (folder / "model.safetensors").unlink()
    content = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


@pytest.mark.medium
@pytest.mark.parametrize("sharded", [(3, 0), (0, 3), (3, 2)])
def test_shards_of_any_cut(tmp_path: Path, students: list[Path], sharded: tuple[int, int]) -> None:
    """Prevents: tensors of another file of the same name; an index that lies beside a whole file."""
    folders = [shutil.copytree(path, tmp_path / path.name) for path in students[:2]]
    for folder, shards in zip(folders, sharded, strict=True):
        if shards:
            shard(folder, shards=shards)
    assert retrieve("merge", f"models={folders[0]},{folders[1]}", f"out={tmp_path / 'out'}") == 0
    found = [name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)]
    assert len(found) == len(set(found)) and len(list((tmp_path / "out").glob("*.safetensors"))) == (sharded[0] or 1)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == bool(sharded[0])
    plain = tmp_path / "plain"
    assert retrieve("merge", f"models={students[0]},{students[1]}", f"out={plain}") == 0
    np.testing.assert_array_equal(encoder_of(tmp_path / "out").passages(TEXTS), encoder_of(plain).passages(TEXTS))


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]), min_size=3, max_size=3),
    weights=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda given: sum(given) > 0.1),
    part=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_any_tensors_of_any_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, ...]], kinds: list[torch.dtype], weights: list[float],
    part: int, seed: int,
) -> None:  # fmt: skip
    """Prevents: rows lost or swapped where a tensor is read in parts, numbers and empty tensors, a sum in a type that rounds it."""
    monkeypatch.setattr(averaging, "_PART_ELEMENTS", part)
    generator = torch.Generator().manual_seed(seed)
    total = sum(weights)
    sources, loaded = [], []
    for number, (kind, weight) in enumerate(zip(kinds, weights, strict=True)):
        tensors = {f"t{n}": torch.randn(shape, generator=generator).to(kind) for n, shape in enumerate(shapes)}
        tensors["places"] = torch.arange(5)
        save_file(tensors, tmp_path / f"{number}.safetensors")
        loaded.append(tensors)
        sources.append(Source(str(number), dict.fromkeys(tensors, tmp_path / f"{number}.safetensors"), weight / total))
    write_average(tmp_path / "out.safetensors", tmp_path / "0.safetensors", sources)
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == loaded[0].keys() and torch.equal(found.pop("places"), torch.arange(5))
    for name, tensor in found.items():
        mean = np.sum([weight / total * one[name].double().numpy() for weight, one in zip(weights, loaded, strict=True)], axis=0)
        exact = torch.from_numpy(np.asarray(mean)).to(kinds[0])
        assert tensor.dtype == kinds[0] and tensor.shape == exact.shape
        assert torch.allclose(tensor.double(), exact.double(), rtol=torch.finfo(kinds[0]).eps, atol=1e-12)


def test_what_nothing_reads_may_be_missing(tmp_path: Path, students: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a trained student that cannot be averaged with its start, which still has a pooler and a table of positions."""
    start = shutil.copytree(students[0], tmp_path / "start")
    unread = {"pooler.dense.weight": torch.ones(32, 32), "embeddings.position_ids": torch.arange(128)[None]}
    change_weights(start, lambda tensors: {**tensors, **unread})
    for first, second in ((start, students[1]), (students[1], start)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert retrieve("merge", f"models={first},{second}", f"out={tmp_path / 'out'}") == 0
        assert "2 weights are in one model alone, and nothing reads them" in capsys.readouterr().err
        found = load_file(tmp_path / "out" / "model.safetensors")
        assert ("pooler.dense.weight" in found) == (first == start)
        name = "encoder.layer.0.output.dense.weight"
        assert torch.allclose(found[name].double(), expected([students[0], students[1]], [0.5, 0.5])[name], atol=1e-7)


def test_defaults_that_one_configuration_leaves_out(tmp_path: Path, students: list[Path]) -> None:
    """Prevents: checkpoints of two versions of transformers refused, of which one writes every default."""
    older = shutil.copytree(students[1], tmp_path / "older")
    change_json(older / "config.json", layer_norm_eps=None, transformers_version="4.6.0", hidden_dropout_prob=None)
    assert retrieve("merge", f"models={students[0]},{older}", f"out={tmp_path / 'out'}") == 0


@pytest.mark.medium
def test_a_student_with_what_it_started_from(tmp_path: Path, models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a trained student refused beside its start, whose files name no similarity and other lengths."""
    trained = DualEncoder(resolve_student(Student(model=str(models.student), query_tokens=16, passage_tokens=48)))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    trained.save(tmp_path / "trained")
    assert retrieve("merge", f"models={models.student},{tmp_path / 'trained'}", f"out={tmp_path / 'out'}", "weights=0.6,0.4") == 0
    assert "lengths differ" in capsys.readouterr().err
    assert_mean(tmp_path / "out", [models.student, tmp_path / "trained"], [0.6, 0.4])
    assert_equal(encoder_of(tmp_path / "out"), peer(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True), "their modules differ: pooling is"),
        (lambda folder: change_json(folder / "config_sentence_transformers.json", prompts={"query": "bo "}), "query_prompt is 'bo '"),
        (
            lambda folder: change_json(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.ReLU"),
            "2_Dense.activation_function is 'torch.nn.modules.activation.ReLU', that of the other 'torch.nn.modules.activation.Tanh'",
        ),
        (lambda folder: change_json(folder / "config.json", layer_norm_eps=1e-5), "config.json differ: layer_norm_eps is '1e-05'"),
        (lambda folder: change_json(folder / "config.json", num_attention_heads=4), "num_attention_heads is '4'"),
        (lambda folder: change_json(folder / "tokenizer_config.json", do_lower_case=False), "their tokenizers differ"),
        (
            lambda folder: change_weights(folder, lambda own: {**own, "extra.weight": torch.ones(2)}),
            "alone has extra.weight (1 such weights)",
        ),
        (
            lambda folder: change_weights(folder, lambda own: {**own, "embeddings.word_embeddings.weight": torch.ones(300, 32)}),
            "their shapes differ: embeddings.word_embeddings.weight is '[300, 32]'",
        ),
        (
            lambda folder: change_weights(folder, lambda own: {**own, "embeddings.LayerNorm.bias": torch.full((32,), float("inf"))}),
            "embeddings.LayerNorm.bias has values that are not finite",
        ),
        (lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "gptq"}), "is quantised"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]), "is cut short"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, students: list[Path], capsys: pytest.CaptureFixture[str], change: Any, message: str) -> None:
    """Prevents: a mean of models that have nothing to do with each other; a traceback; half a folder."""
    second = shutil.copytree(students[1], tmp_path / "second")
    change(second)
    assert retrieve("merge", f"models={students[0]},{second}", f"out={tmp_path / 'out'}") == 2
    assert message in (told := capsys.readouterr().err), told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["second"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models={0}", "out={1}/o"], "expected two models or more"),
        (["models={0},{1}/none", "out={1}/o"], "no such folder"),
        (["models={0},{0}", "out={1}/o", "weights=1"], "expected 2 numbers"),
        (["models={0},{0}", "out={1}/o", "weights=1,x"], "expected 2 numbers"),
        (["models={0},{0}", "out={1}/o", "weights=2,-1"], "expected 2 numbers"),
        (["models={0},{0}", "out={1}/o", "weights=0,0"], "expected 2 numbers"),
        (["models={0},{0}", "out={1}/o", "weights=nan,1"], "expected 2 numbers"),
        (["models={0},{2}", "out={1}/o"], "it is a cross-encoder, the other a dual encoder"),
        (["models={0},{0}", "out={1}/full"], "is there already and holds file; give a new folder"),
        (["models={0},{0}", "out={1}/full/file"], "is a file; give the name of a new folder"),
        (["models={0},{1}/full", "out={1}/o"], "holds no config.json"),
        (["models={0},{1}/trained", "out={1}/o"], "is the output of a training; give the model in it"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, students: list[Path], models: Any, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Prevents: a folder overwritten, weights guessed."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    shutil.copytree(students[0], tmp_path / "trained" / "student")
    before = sorted(tmp_path.rglob("*"))
    assert retrieve("merge", *(word.format(students[0], tmp_path, models.teacher) for word in words)) == 2
    assert message in (told := capsys.readouterr().err), told
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_of_another_sum_are_told(tmp_path: Path, students: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a model of twice the size, which scores like one that was trained so."""
    (tmp_path / "out").mkdir()  # an empty folder is taken
    assert retrieve("merge", f"models={students[0]},{students[1]}", f"out={tmp_path / 'out'}", "weights=3,1") == 0
    assert "the weights sum to 4; they are taken as 0.75, 0.25" in capsys.readouterr().err
    assert_mean(tmp_path / "out", students[:2], [0.75, 0.25])


def test_adapters_are_refused(tmp_path: Path, models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: the mean of two low-rank factors, which is not the mean of the models."""
    adapter = save_adapter(tmp_path / "adapter", models.student, auto="AutoModel")
    assert retrieve("merge", f"models={models.student},{adapter}", f"out={tmp_path / 'out'}") == 2
    assert "is an adapter, whose base lies elsewhere" in capsys.readouterr().err


@pytest.mark.medium
def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """Prevents: an output matrix of the first model over the mean's token table."""
    from transformers import AutoModelForCausalLM

    folders = [save(tmp_path / name, "Qwen3", causal=True, seed=seed, tie_word_embeddings=True) for seed, name in enumerate("ab")]
    change_weights(folders[0], lambda own: {**own, "lm_head.weight": own["model.embed_tokens.weight"].clone()})  # saved twice
    assert retrieve("merge", f"models={folders[1]},{folders[0]}", f"out={tmp_path / 'out'}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table or torch.equal(model.get_output_embeddings().weight, table)
    name = "model.embed_tokens.weight"
    assert torch.allclose(table.double(), expected([folders[1], folders[0]], [0.5, 0.5])[name], atol=1e-6)


def test_integers_that_differ_are_refused(tmp_path: Path) -> None:
    """Prevents: positions averaged to halves, and cut."""
    for number in range(2):
        save_file({"places": torch.arange(3) + number}, tmp_path / f"{number}")
    sources = [Source(str(number), {"places": tmp_path / str(number)}, 0.5) for number in range(2)]
    with pytest.raises(UserError, match=r"places is no floating-point tensor.*differs in 1"):
        write_average(tmp_path / "out", tmp_path / "0", sources)


def test_a_mean_beyond_its_type_is_refused(tmp_path: Path) -> None:
    """Prevents: infinities in fp16 of a first model whose partner is in fp32."""
    save_file({"w": torch.ones(3, dtype=torch.float16)}, tmp_path / "0")
    save_file({"w": torch.full((3,), 1e6)}, tmp_path / "1")
    sources = [Source(str(number), {"w": tmp_path / str(number)}, 0.5) for number in range(2)]
    with pytest.raises(UserError, match="the mean of w is too large for float16"):
        write_average(tmp_path / "out", tmp_path / "0", sources)
