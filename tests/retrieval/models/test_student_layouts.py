"""Students in the layouts of public embedding models: vectors as sentence-transformers', before and after they are cut and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import change_json, randomised, save, save_t5
from support.student_folders import TEXTS, assert_equal, dense, encoder_of, lay_out, peer
from support.student_layouts import LAYOUTS, LENGTHS, make
from typer.testing import CliRunner

from data.config.settings import Student
from data.digests import DigestCache
from data.errors import UserError
from retrieval.cli import app
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student


@pytest.mark.medium
@pytest.mark.parametrize("name", LAYOUTS)
def test_vectors_are_sentence_transformers(tmp_path: Path, name: str) -> None:
    """Prevents: a Dense left out, the first token of a decoder, a prompt that is pooled: mining by vectors of another model."""
    folder = make(name, tmp_path)
    ours = encoder_of(folder)
    assert_equal(ours, peer(folder))
    assert len(np.unique(ours.passages(TEXTS).round(4), axis=0)) > 5


@pytest.mark.medium
@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor has no bf16")
@pytest.mark.parametrize("name", LAYOUTS)
def test_low_precision_is_near(tmp_path: Path, name: str) -> None:
    """Prevents: layers that do not run in bf16, or a Dense that does."""
    spec = resolve_student(Student(model=str(make(name, tmp_path)), **LENGTHS))
    low, exact = (TextEncoder(spec, precision=precision, device="cpu").passages(TEXTS) for precision in ("bf16", "fp32"))
    cosines = (low * exact).sum(1) / (np.linalg.norm(low, axis=1) * np.linalg.norm(exact, axis=1)).clip(1e-9)
    assert cosines[np.linalg.norm(exact, axis=1) > 0].min() > 0.99


@pytest.mark.medium
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_saved_students_are_what_they_were(tmp_path: Path, name: str, layers: int | None) -> None:
    """Prevents: a folder without its Dense, with another pooling, with prompts that are pooled, with half a block of T5."""
    ours = encoder_of(make(name, tmp_path), layers=layers, **LENGTHS)
    DualEncoder(ours.spec).save(tmp_path / "saved")
    again = encoder_of(tmp_path / "saved")
    np.testing.assert_array_equal(again.queries(TEXTS), ours.queries(TEXTS))
    np.testing.assert_array_equal(again.passages(TEXTS), ours.passages(TEXTS))
    assert_equal(again, peer(tmp_path / "saved"))
    before, after = (spec.key(DigestCache(tmp_path / "digests.json")) for spec in (ours.spec, again.spec))
    resaved = {"weights": "", "layers": None, "modules": ""}
    assert {**before, **resaved} == {**after, **resaved} and ours.spec.modules == again.spec.modules


def test_keys_gain_parts_where_they_are_used(tmp_path: Path) -> None:
    """Prevents: vectors of other weights of a Dense, or of pooled prompts, served for these; stores of plain students made anew."""
    digests = DigestCache(tmp_path / "digests.json")
    keys = {
        name: resolve_student(Student(model=str(make(name, tmp_path / name)), passage_tokens=90)).key(digests)
        for name in ("LaBSE", "icl", "bge-m3")
    }
    assert keys["LaBSE"].keys() - keys["bge-m3"].keys() == {"modules"}
    assert keys["icl"].keys() - keys["bge-m3"].keys() == {"pools_prompt"}
    path = tmp_path / "LaBSE" / "m" / "2_Dense" / "model.safetensors"
    change = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(change, path)
    assert resolve_student(Student(model=str(tmp_path / "LaBSE" / "m"))).key(digests)["modules"] != keys["LaBSE"]["modules"]
    bare = Student(model=str(tmp_path / "icl" / "m"), query_prefix="", passage_prefix="")
    assert "pools_prompt" not in resolve_student(bare).key(digests)  # nothing is left out where there is no prompt


def test_instructors_of_the_hub_pool_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a model whose files do not say what sentence-transformers knows by its name, pooled with its instruction."""
    folder = make("GTR", tmp_path)
    monkeypatch.setattr("retrieval.models.student.resolve_folder", lambda *unused, **words: folder)
    words: dict[str, Any] = {"model": "hkunlp/instructor-base", "passage_tokens": 90}
    assert not resolve_student(Student(**words, query_prefix="ba: ")).pools_prompt
    assert resolve_student(Student(**words)).pools_prompt and resolve_student(Student(**words | {"model": "a/gtr"})).pools_prompt


@pytest.mark.medium
def test_a_plain_causal_language_model_is_pooled_by_its_last_token(tmp_path: Path) -> None:
    """Prevents: the first token's state, which is the same for all texts; another choice than sentence-transformers makes."""
    folder = save(tmp_path / "m", "Qwen3")
    config = transformers.Qwen3Config.from_pretrained(folder)
    randomised(transformers.Qwen3ForCausalLM(config), 0).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", model_max_length=100)
    ours = encoder_of(folder)
    assert ours.spec.pooling == "lasttoken" and not ours.spec.normalize
    assert_equal(ours, peer(folder))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "is_causal": False}, "cls"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"], "text_config": {"use_bidirectional_attention": True}}, "cls"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "cls"),
        ({"model_type": "camembert", "architectures": ["CamembertForCausalLM"]}, "cls"),
        ({"model_type": "camembert", "architectures": ["CamembertForCausalLM"], "is_decoder": True}, "lasttoken"),
    ],
)
def test_the_pooling_of_a_plain_folder_goes_by_its_files(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    """Prevents: an encoder that was saved for generation pooled as a decoder, a decoder made bidirectional by its last token."""
    folder = save(tmp_path / "m", "Bert")
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **config}))
    assert resolve_student(Student(model=str(folder), passage_tokens=90)).pooling == pooling


@pytest.mark.medium
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("family", ["T5", "MT5", "UMT5"])
def test_the_encoder_of_t5_is_a_student(tmp_path: Path, family: str, whole: bool) -> None:
    """Prevents: T5 opened with its decoder, which wants a text to begin with; weights of the decoder taken for a fault."""
    folder = lay_out(tmp_path / "m", save_t5(tmp_path / "weights", family=family, whole=whole), model_max_length=100)
    ours, theirs = encoder_of(folder), peer(folder)
    assert type(ours.model.backbone).__name__ == type(theirs[0].model).__name__ == f"{family}EncoderModel"
    assert_equal(ours, theirs)


@pytest.mark.medium
def test_layers_of_t5_are_blocks(tmp_path: Path) -> None:
    """Prevents: attention kept without the feed-forward network behind it, for both are named `layer`."""
    folder = lay_out(tmp_path / "m", save_t5(tmp_path / "weights"), model_max_length=100)
    cut = encoder_of(folder, layers=2)
    theirs = peer(folder)
    theirs[0].model.encoder.block = theirs[0].model.encoder.block[:2]
    assert_equal(cut, theirs)
    with pytest.raises(UserError, match=r"student.layers=9, but the model has 3 layers"):
        resolve_student(Student(model=str(folder), layers=9))


@pytest.mark.medium
@pytest.mark.parametrize("name", ["Qwen3-Embedding", "EmbeddingGemma", "instructor"])
def test_queries_find_what_sentence_transformers_finds(tmp_path: Path, finished: Any, name: str) -> None:
    """Prevents: a corpus encoded in one way and queries in another, by one command each."""
    folder = make(name, tmp_path)
    (texts,) = (finished.store / "ingest").glob("corpus-*")
    lengths = ["query_tokens=60", "passage_tokens=90", "threads=1"]
    encode = ["encode", f"model={folder}", f"texts={texts}", "kind=corpus", f"out={tmp_path / 'vectors'}", "precision=fp32", *lengths]
    done = CliRunner().invoke(app, encode)
    assert done.exit_code == 0, done.output
    where = [f"model={folder}", f"corpus={tmp_path / 'vectors'}", f"texts={texts}", "threads=1", "k=4", "width=200"]
    done = CliRunner().invoke(app, ["query", "ba cedi fogu zaxe", *where])
    assert done.exit_code == 0, done.output
    theirs = peer(folder)
    theirs[0].max_seq_length = 90
    for line in done.stdout.splitlines():
        _, score, _, text = line.split(maxsplit=3)
        wanted = theirs.encode_query("ba cedi fogu zaxe") @ theirs.encode_document(text)
        assert float(score) == pytest.approx(float(wanted), abs=2e-3)  # stored in fp16, printed with some digits


@pytest.mark.medium
def test_a_vector_is_cut_behind_its_modules(tmp_path: Path) -> None:
    """Prevents: the first dimensions of what a Dense reads kept, in place of those of what it makes."""
    inner = save(tmp_path / "weights", "Bert")

    def cut_to(size: int) -> Path:
        said = {"truncate_dim": size, "similarity_fn_name": "dot"}
        return lay_out(tmp_path / str(size), inner, behind=[dense(32, 24)], prompts=said, model_max_length=100)

    ours = encoder_of(cut_to(12))
    assert ours.size == 12
    assert_equal(ours, peer(cut_to(12)))
    assert encoder_of(cut_to(24)).spec.truncate_dim is None and encoder_of(cut_to(24)).size == 24


@pytest.mark.medium
def test_several_poolings_may_be_asked_for(tmp_path: Path) -> None:
    """Prevents: a setting that takes what the files may say, and another order or size of the vectors."""
    inner = save(tmp_path / "weights", "Bert")
    wanted = lay_out(tmp_path / "wanted", inner, pooling="max+mean", new=True, model_max_length=100)
    ours = encoder_of(lay_out(tmp_path / "m", inner, model_max_length=100), pooling="max+mean")
    assert ours.size == 64
    assert_equal(ours, peer(wanted))
    with pytest.raises(UserError, match=r"2_Dense reads vectors of 64 dimensions, and what comes before it makes 32"):
        DualEncoder(resolve_student(Student(model=str(lay_out(tmp_path / "d", inner, behind=[dense(64, 8)])))))
