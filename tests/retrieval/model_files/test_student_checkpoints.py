"""Checkpoint folders as they come, old and new: vectors equal sentence-transformers', and what cannot be equalled is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, module, peer, spoil, write_json

from data.config import fields as config
from data.config.settings import Student, Teacher, load
from data.digests import DigestCache
from data.errors import UserError
from pipeline.plan import Planner, selected_tables
from retrieval.model_files.model_lengths import most_positions
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Files of a folder, as some version may have saved them."""
    words = st.sampled_from(["", "ba be: ", "Fo", "zu [SEP] "])
    prompts = draw(st.dictionaries(st.sampled_from(["query", "document", "all"]), words))
    sentence_bert = draw(
        st.none()
        | st.fixed_dictionaries(
            {"do_lower_case": st.booleans()},
            optional={"max_seq_length": st.integers(8, 128), "query_length": st.integers(4, 40), "document_length": st.integers(8, 60)},
        )
    )
    return {
        "pooling": draw(st.sampled_from(["cls", "mean"])), "normalize": draw(st.booleans()), "new": draw(st.booleans()),
        "prompts": draw(st.sampled_from([None, {"prompts": prompts}])), "sentence_bert": sentence_bert,
        "model_max_length": draw(st.none() | st.integers(8, 200)), "subfolder": draw(st.sampled_from(["", "0_Transformer"])),
    }  # fmt: skip


@pytest.mark.medium
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts())
def test_vectors_equal_those_of_sentence_transformers(
    cased: Path, tmp_path_factory: pytest.TempPathFactory, layout: dict[str, Any]
) -> None:
    """Prevents: a prompt, a length, a pooling flag or the lower-casing of some version read over, and other vectors without a word."""
    folder = lay_out(tmp_path_factory.mktemp("layout") / "m", cased, **layout)
    assert_equal(encoder_of(folder), peer(folder))


def test_lower_casing_and_case_differ(cased: Path, tmp_path: Path) -> None:
    """Prevents: the test above comparing texts that case does not change."""
    plain, lower = (lay_out(tmp_path / str(on), cased, sentence_bert={"do_lower_case": on}) for on in (False, True))
    assert np.abs(encoder_of(plain).passages(["BA be"]) - encoder_of(lower).passages(["BA be"])).max() > 1e-3
    assert resolve_student(Student(model=str(plain))).tokenizer_digest != resolve_student(Student(model=str(lower))).tokenizer_digest


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_passage_and_corpus_prompts_are_passages_prompts(cased: Path, tmp_path: Path, name: str) -> None:
    """Prevents: an E5-like checkpoint whose passages get no prompt. (sentence-transformers 6.2 says that its encode_document takes
    them, but always finds its own empty `document` first; named, the prompt is the one that is meant.)"""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {"query": "ba ", name: "zu zo "}})
    np.testing.assert_allclose(encoder_of(folder).passages(TEXTS), peer(folder).encode(TEXTS, prompt_name=name), atol=1e-5)
    np.testing.assert_allclose(encoder_of(folder).queries(TEXTS), peer(folder).encode_query(TEXTS), atol=1e-5)


def test_a_default_prompt_is_that_of_a_plain_encode(cased: Path, tmp_path: Path) -> None:
    """Prevents: a symmetric checkpoint, whose only prompt is its default, embedded without it."""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {"all": "zu zo "}, "default_prompt_name": "all"})
    theirs = peer(folder).encode(TEXTS)
    for ours in (encoder_of(folder).queries(TEXTS), encoder_of(folder).passages(TEXTS)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("given", "expected"), [("auto", "ba "), ("null", "ba "), ("~", "ba "), ("", ""), ("be ", "be ")])
def test_a_given_prefix_wins_an_empty_one_too(cased: Path, tmp_path: Path, given: str, expected: str) -> None:
    """Prevents: no way to leave a checkpoint's prompt out, or the word `null` put before every query."""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {"query": "ba ", "document": "zu "}})
    spec = resolve_student(config.build(Student, {"model": str(folder), "query_prefix": given}))
    assert (spec.query_prefix, spec.passage_prefix) == (expected, "zu ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_precision_compute_in_fp32(cased: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Prevents: a checkpoint saved in bf16 that trains and embeds in bf16, since newer transformers keep the stored type."""
    folder = lay_out(tmp_path / "m", cased)
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**json.loads((folder / "config.json").read_text()), "dtype": str(dtype).removeprefix("torch.")})
    ours = encoder_of(folder)
    assert {value.dtype for value in ours.model.parameters()} == {torch.float32}
    assert_equal(ours, peer(folder))


# Saving


@pytest.mark.medium
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "words",
    [
        {"query_tokens": 6, "passage_tokens": 20},
        {"query_tokens": 20, "passage_tokens": 8, "query_prefix": "ba ", "passage_prefix": "zu zo ", "normalize": True},
        {"query_tokens": 16, "passage_tokens": 16, "query_prefix": "ba ", "passage_prefix": "ba "},
    ],
)
def test_a_saved_student_reads_as_it_was_trained(cased: Path, tmp_path: Path, pooling: str, words: dict[str, Any]) -> None:
    """Prevents: a student served with other prompts, lengths or case than it was trained with."""
    folder = lay_out(tmp_path / "m", cased, pooling=pooling, sentence_bert={"do_lower_case": True})
    ours = encoder_of(folder, **words)
    DualEncoder(ours.spec).save(tmp_path / "saved")
    assert_equal(ours, peer(tmp_path / "saved"))
    again = encoder_of(tmp_path / "saved")
    np.testing.assert_array_equal(again.queries(TEXTS), ours.queries(TEXTS))
    np.testing.assert_array_equal(again.passages(TEXTS), ours.passages(TEXTS))
    before, after = (spec.key(DigestCache(tmp_path / "digests.json")) for spec in (ours.spec, again.spec))
    assert {**before, "weights": ""} == {**after, "weights": ""}
    plain = peer(tmp_path / "saved").encode(TEXTS)
    if words["query_tokens"] <= words["passage_tokens"] and words.get("passage_prefix", "") == words.get("query_prefix", ""):
        np.testing.assert_allclose(plain, ours.passages(TEXTS), atol=1e-5)


# Keys


def test_a_value_read_from_the_files_keys_as_the_same_value_given(cased: Path, tmp_path: Path) -> None:
    """Prevents: a corpus embedded anew since a setting was written down that was in force all along."""
    digests = DigestCache(tmp_path / "digests.json")
    prompts = {"prompts": {"query": "ba ", "document": "zu "}}
    folder = lay_out(tmp_path / "m", cased, normalize=True, prompts=prompts, sentence_bert={"max_seq_length": 24})
    read = Student(model=str(folder), query_tokens=None, passage_tokens=None)
    written = Student(
        model=str(folder), pooling="mean", normalize=True, query_prefix="ba ", passage_prefix="zu ", query_tokens=24, passage_tokens=24
    )
    assert resolve_student(read).key(digests) == resolve_student(written).key(digests)
    bare = lay_out(tmp_path / "bare", cased)
    key = resolve_student(Student(model=str(bare))).key(digests)
    assert key == resolve_student(Student(model=str(bare), query_prefix="", passage_prefix="")).key(digests)
    names = {"layers", "pooling", "normalize", "query_prefix", "passage_prefix", "query_tokens", "passage_tokens", "weights", "tokenizer"}
    assert key.keys() == names  # of stores that exist
    assert (key["query_tokens"], key["passage_tokens"]) == (32, 128)


def test_a_pipeline_may_take_the_lengths_of_the_checkpoint(
    cased: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> None:
    """Prevents: a stage that reads the unresolved setting, and shards that are stale once the length is written down."""
    folder = lay_out(tmp_path / "m", cased, sentence_bert={"max_seq_length": 40})
    file = tiny_experiment(
        tmp_path,
        **{"student.model": folder, "student.query_tokens": "null", "student.passage_tokens": "null", "hard_negatives.source": "bm25"},
    )
    prep_run(file)
    written = load({"config": str(file), "student.query_tokens": "40", "student.passage_tokens": "40", "student.query_prefix": ""})
    planned = list(Planner(written).plan_all(selected_tables(written, "all")))
    assert planned and all(table.complete for table in planned)


# Refusals


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda m: module(m, "sentence_transformers.models.Dense"), {}, "names no in_features"),
        (lambda m: module(m, "sentence_transformers.models.CNN"), {}, "models.CNN; Transformer, Pooling, Dense, LayerNorm"),
        (lambda m: module(m, "sentence_transformers.base.modules.router.Router"), {}, "Router; Transformer"),
        (lambda m: module(m, "custom_st.Transformer"), {}, "custom_st.Transformer; Transformer"),
        (lambda m: write_json(m / "modules.json", json.loads((m / "modules.json").read_text())[:1]), {}, "no Pooling module"),
        (lambda m: spoil(m, "1_Pooling/config.json", pooling_mode=["cls", "attention"]), {}, r"pools by cls\+attention; cls, mean, max"),
        (lambda m: spoil(m, "1_Pooling/config.json", pooling_mode_new_tokens=True), {}, r"pools by mean\+pooling_mode_new_tokens"),
        (lambda m: spoil(m, "sentence_bert_config.json", query_expansion={"strategy": "fixed", "length": 32}), {}, "query_expansion"),
        (lambda m: spoil(m, "config_sentence_transformers.json", default_prompt_name="none"), {}, "has no prompt 'none'"),
        (lambda m: None, {"passage_tokens": 129}, "student.passage_tokens=129: .* can read 128 tokens at most"),
        (lambda m: None, {"query_tokens": 1000}, "student.query_tokens=1000: .* set student.query_tokens=128"),
    ],
)
def test_what_cannot_be_equalled_is_refused(
    cased: Path, tmp_path: Path, change: Callable[[Path], None], words: dict[str, Any], message: str
) -> None:
    """Prevents: vectors of a layer left out, of code that was never run, or an index error after hours, at the first long text."""
    folder = lay_out(tmp_path / "m", cased)
    change(folder)
    with pytest.raises(UserError, match=message):
        resolve_student(Student(model=str(folder), **words))


def test_an_instruction_model_is_taken_with_and_without_its_prompts(cased: Path, tmp_path: Path) -> None:
    """Prevents: the prompt's tokens pooled; a text whose first tokens are left out where there is no prompt."""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {"query": "ba be "}}, include_prompt=False)
    assert_equal(encoder_of(folder), peer(folder))
    ours = encoder_of(folder, query_prefix="", passage_prefix="")
    np.testing.assert_allclose(ours.queries(TEXTS), peer(folder).encode(TEXTS), atol=1e-5)


def test_positions_of_roberta_start_behind_the_padding(tmp_path: Path) -> None:
    """Prevents: 514 positions taken for 514 tokens: the model fails at the first text that is so long."""
    from transformers import RobertaConfig, RobertaModel

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = RobertaModel(RobertaConfig(**sizes, max_position_embeddings=22), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    most = most_positions(tmp_path)
    assert most == 20
    assert model(torch.full((1, most), 5)).last_hidden_state.shape == (1, most, 8)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, most + 1), 5))


def test_no_length_is_set_where_no_file_says_one(tmp_path: Path) -> None:
    """Prevents: a limit made up for models with relative positions, and a crash where a checkpoint names no length at all."""
    write_json(tmp_path / "config.json", {"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False})
    assert most_positions(tmp_path) is None
    write_json(tmp_path / "config.json", {"model_type": "t5", "n_positions": 512})
    assert most_positions(tmp_path) is None
    write_json(tmp_path / "config.json", {"model_type": "gpt2", "n_positions": 1024})
    assert most_positions(tmp_path) == 1024
    write_json(tmp_path / "config.json", {"model_type": "other"})
    with pytest.raises(UserError, match=r"student.query_tokens=null: .* name no length"):
        resolve_student(Student(model=str(tmp_path), query_tokens=None))


def test_a_teacher_s_pairs_must_fit_its_positions(models: Any) -> None:
    """Prevents: hours of scoring up to the first pair that is longer than the cross-encoder can read."""
    with pytest.raises(UserError, match=r"teacher.max_tokens=160: .* can read 128 tokens at most"):
        resolve_teacher(Teacher(model=str(models.teacher)), device="cpu")
    assert resolve_teacher(Teacher(model=str(models.teacher), max_tokens=128), device="cpu").max_tokens == 128
