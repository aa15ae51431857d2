"""What the files of a sentence-transformers folder say, key by key: honoured as sentence-transformers does, or refused by file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, module, peer, spoil, write_json

from data.config.settings import Student
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.files import module_list
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import StudentSpec, resolve_student

BERT, OWN, POOLING = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"
LONG = [" ".join(["ba", "cedi", "FO", "gu"] * 30), "zu ba", *TEXTS]
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def spec_of(folder: Path, **words: Any) -> StudentSpec:
    return resolve_student(Student(model=str(folder), **words))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("said", "lengths"),
    [
        ({"tokenizer_args": {"model_max_length": 11}}, (11, 11)),
        ({"processor_kwargs": {"model_max_length": 11}, "max_seq_length": 40}, (11, 11)),
        ({"processor_kwargs": {"model_max_length": 11}, "query_length": 7}, (7, 11)),
        ({"processing_kwargs": {"text": {"max_length": 9}}, "query_length": 7, "max_seq_length": 40}, (9, 9)),
        ({"processing_kwargs": {"text": {"truncation": "longest_first", "padding": True}}, "max_seq_length": 12}, (12, 12)),
        ({"processor_kwargs": {"model_max_length": 1e30}, "max_seq_length": None}, (128, 128)),
    ],
)
def test_lengths_under_all_their_names(cased: Path, tmp_path: Path, said: dict[str, Any], lengths: tuple[int, int]) -> None:
    """Prevents: texts read further than the checkpoint reads them, 0.15 off on unit vectors without a word."""
    folder = lay_out(tmp_path / "m", cased, sentence_bert=said)
    ours = encoder_of(folder)
    assert (ours.spec.query_tokens, ours.spec.passage_tokens) == lengths
    if lengths != (128, 128):  # sentence-transformers would run out of positions there
        theirs = peer(folder)
        np.testing.assert_allclose(ours.queries(LONG), theirs.encode_query(LONG), atol=1e-5)
        np.testing.assert_allclose(ours.passages(LONG), theirs.encode_document(LONG), atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize(
    "said",
    [
        {"model_args": {"attn_implementation": "eager", "torch_dtype": "float32", "trust_remote_code": True}},
        {"model_kwargs": {"add_pooling_layer": False}, "config_kwargs": {"use_cache": False}, "processor_kwargs": {"use_fast": True}},
        {"tokenizer_args": {"do_lower_case": False}},  # what tokenizer_config.json says, too
        {"config_args": {"num_hidden_layers": 2}},  # as config.json
        {"transformer_task": "feature-extraction", "modality_config": TEXT_ONLY, "module_output_name": "token_embeddings"},
        {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}, "image": {"size": 3}}, "unpad_inputs": False},
        {"query_expansion": None, "tokenizer_name_or_path": None},
    ],
)
def test_what_changes_no_vector_is_let_through(cased: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    """Prevents: ordinary folders of other versions refused for keys that say how to fetch or where to compute."""
    folder = lay_out(tmp_path / "m", cased, sentence_bert={"max_seq_length": 40, **said})
    assert_equal(encoder_of(folder), peer(folder))


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        (BERT, {"tokenizer_args": {"truncation_side": "left"}}, r'tokenizer_args.truncation_side="left".*tokenizer_config.json of a copy'),
        (BERT, {"processor_kwargs": {"do_lower_case": True}}, "processor_kwargs.do_lower_case=true"),
        (BERT, {"config_args": {"num_hidden_layers": 1}}, "config_args.num_hidden_layers=1.*config.json of a copy"),
        (BERT, {"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs.hidden_act"),
        (BERT, {"model_kwargs": {"quantization_config": {"load_in_8bit": True}}}, "model_kwargs.quantization_config"),
        (BERT, {"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs.text.truncation=false"),
        (BERT, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs.text.add_special_tokens=false"),
        (BERT, {"processing_kwargs": {"common": {"max_length": 9}}}, "processing_kwargs.common.max_length=9"),
        (BERT, {"transformer_task": "fill-mask"}, 'transformer_task="fill-mask"'),
        (BERT, {"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}}}, "last_hidden_state"),
        (BERT, {"modality_config": {**TEXT_ONLY, "message": TEXT_ONLY["text"]}}, "chat template"),
        (BERT, {"modality_config": TEXT_ONLY, "module_output_name": "sentence_embedding"}, "only token_embeddings"),
        (BERT, {"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path.*not known here"),
        (BERT, {"from_a_later_version": 1}, "from_a_later_version=1.*not known here"),
        (BERT, {"max_seq_length": "40"}, 'max_seq_length="40", but a number'),
        (BERT, {"max_seq_length": 0}, "max_seq_length=0, but a whole number above 0"),
        (BERT, {"tokenizer_args": []}, "tokenizer_args=.*an object"),
        (POOLING, {"from_a_later_version": 1}, "from_a_later_version=1.*not known here"),
        (OWN, {"truncate_dim": "16"}, 'truncate_dim="16"'),
        (OWN, {"prompts": ["query"]}, "prompts=.*an object"),
        (OWN, {"prompts": {"query": 3}}, "prompts.query=3, but a text"),
        (OWN, {"default_prompt_name": 3}, "default_prompt_name=3"),
        (OWN, {"model_type": "SparseEncoder"}, 'model_type="SparseEncoder"'),
        (OWN, {"similarity_fn_name": "manhattan"}, "similarity_fn_name=manhattan.*student.normalize"),
        (OWN, {"similarity_fn_name": "euclidean"}, "similarity_fn_name=euclidean"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "tokenizer_config.json cuts long texts on the left"),
    ],
)
def test_what_is_not_honoured_is_refused_by_key(cased: Path, tmp_path: Path, name: str, said: dict[str, Any], message: str) -> None:
    """Prevents: other vectors than the checkpoint's without a word, and a traceback where a value has another type."""
    folder = lay_out(tmp_path / "m", cased)
    spoil(folder, name, **said)
    with pytest.raises(UserError, match=message) as refusal:
        spec_of(folder)
    assert Path(name).name in str(refusal.value) or "sentence_transformers" in str(refusal.value)


def test_a_tokenizer_s_tables_may_say_the_side(cased: Path, tmp_path: Path) -> None:
    """Prevents: a side read from tokenizer_config.json alone, where transformers takes that of tokenizer.json, too."""
    folder = lay_out(tmp_path / "m", cased)
    spoil(folder, "tokenizer.json", truncation={"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0})
    with pytest.raises(UserError, match=r"tokenizer.json cuts long texts on the left"):
        spec_of(folder)
    spoil(folder, "tokenizer_config.json", truncation_side="right")
    assert_equal(encoder_of(folder), peer(folder))


# Modules


def reordered(folder: Path, *places: int) -> None:
    listed = module_list(folder)
    write_json(folder / "modules.json", [listed[place] for place in places])


def normalizes(folder: Path, output: str) -> None:
    module(folder, "sentence_transformers.models.Normalize", "3_More")
    write_json(folder / "3_More" / "config.json", {"module_input_name": "sentence_embedding", "module_output_name": output})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: reordered(m, 0, 2, 1), "lists Transformer, Normalize, Pooling"),  # would normalise what is not there yet
        (lambda m: reordered(m, 0, 1, 1), "lists Transformer, Pooling, Pooling"),
        (lambda m: reordered(m, 1, 0), "lists Pooling, Transformer"),
        (lambda m: normalizes(m, "other"), "a module sentence_transformers.models.Normalize"),
        (lambda m: (m / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json is missing"),
        (lambda m: (m / "modules.json").unlink(), "no modules.json.*student.pooling"),
        (lambda m: write_json(m / "modules.json", {}), "a list of modules was expected"),
        (lambda m: write_json(m / "modules.json", [{"type": "Transformer"}]), "a type and a path"),
        (lambda m: write_json(m / "modules.json", [{"type": "Transformer", "path": "../x"}]), "lies in the folder"),
        (lambda m: write_json(m / POOLING, []), "a JSON object was expected"),
        (lambda m: (m / "modules.json").write_bytes(b"\xff\xfe"), "not readable JSON"),
    ],
)
def test_modules_in_another_order_or_shape_are_refused(cased: Path, tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    """Prevents: a Normalize that does nothing there and something here, and a traceback for a file of another shape."""
    folder = lay_out(tmp_path / "m", cased, normalize=True)
    change(folder)
    with pytest.raises(UserError, match=message):
        spec_of(folder)


def test_another_pooling_can_be_asked_for(cased: Path, tmp_path: Path) -> None:
    """Prevents: a checkpoint refused for a pooling that the settings replace."""
    folder = lay_out(tmp_path / "m", cased)
    spoil(folder, POOLING, pooling_mode="attention")
    with pytest.raises(UserError, match=r"pools by attention; .*student.pooling=mean"):
        spec_of(folder)
    assert spec_of(folder, pooling="mean").pooling == "mean"


# Prompts


@pytest.mark.medium
@pytest.mark.parametrize("default", ["query", "document"])
def test_a_default_prompt_of_one_side_is_not_the_other_s(cased: Path, tmp_path: Path, default: str) -> None:
    """Prevents: passages with the prompt of queries, since that is the default: `encode_document` gives them none."""
    folder = lay_out(tmp_path / "m", cased, prompts={"prompts": {default: "zu zo "}, "default_prompt_name": default})
    assert_equal(encoder_of(folder), peer(folder))


# Similarity and size


@pytest.mark.medium
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_cosine_without_a_normalize_is_the_inner_product_of_unit_vectors(cased: Path, tmp_path: Path, pooling: str) -> None:
    """Prevents: a checkpoint that compares by cosine mined and trained by the inner product of vectors of any length."""
    folder = lay_out(tmp_path / "m", cased, pooling=pooling, prompts={"similarity_fn_name": "cosine"})
    ours, theirs = encoder_of(folder), peer(folder)
    queries, passages = ours.queries(TEXTS), ours.passages(TEXTS)
    wanted = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)).numpy()
    np.testing.assert_allclose(queries @ passages.T, wanted, atol=1e-5)
    np.testing.assert_allclose(passages, theirs.encode_document(TEXTS, normalize_embeddings=True), atol=1e-5)
    assert not spec_of(folder, normalize=False).normalize  # given, it wins
    DualEncoder(ours.spec).save(tmp_path / "saved")
    assert_equal(ours, peer(tmp_path / "saved"))


@pytest.mark.medium
@pytest.mark.parametrize("similarity", [{}, {"similarity_fn_name": None}, {"similarity_fn_name": "dot"}])
def test_a_folder_without_a_similarity_stays_as_it_is_and_says_so(cased: Path, tmp_path: Path, similarity: dict[str, Any]) -> None:
    """Prevents: stores of dot-product models (TAS-B) embedded anew by cosine; a choice that nobody hears of."""
    folder = lay_out(tmp_path / "m", cased, prompts=similarity)
    assert_equal(encoder_of(folder), peer(folder))
    said = "similarity_fn_name" in similarity and similarity["similarity_fn_name"]
    assert len(spec_of(folder).notes) == (0 if said else 1)
    assert not spec_of(folder, normalize=False).notes


def test_keys_that_nobody_knows_are_told(cased: Path, tmp_path: Path) -> None:
    """Prevents: a key of a later version read over in silence, or an ordinary folder refused for a remark."""
    folder = lay_out(tmp_path / "m", cased, prompts={"similarity_fn_name": "dot", "author": "x", "__version__": {}})
    assert_equal(encoder_of(folder), peer(folder))
    assert ["author" in note for note in spec_of(folder).notes] == [True]


@pytest.mark.medium
@pytest.mark.parametrize("normalize", [False, True])
def test_truncate_dim_keeps_the_first_dimensions(cased: Path, tmp_path: Path, normalize: bool) -> None:
    """Prevents: a Matryoshka checkpoint embedded, trained and saved with all of its dimensions."""
    said = {"truncate_dim": 12, "similarity_fn_name": "cosine" if normalize else "dot", "prompts": {"query": "ba "}}
    folder = lay_out(tmp_path / "m", cased, normalize=normalize, prompts=said)
    ours = encoder_of(folder)
    assert ours.size == 12 == ours.passages(TEXTS).shape[1]
    DualEncoder(ours.spec).save(tmp_path / "saved")
    again = encoder_of(tmp_path / "saved")
    np.testing.assert_array_equal(again.passages(TEXTS), ours.passages(TEXTS))
    for theirs in (peer(folder), peer(tmp_path / "saved")):
        if not normalize:
            assert_equal(ours, theirs)
        # It cuts unit vectors, and compares what is left by cosine.
        wanted = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)).numpy()
        np.testing.assert_allclose(ours.queries(TEXTS) @ ours.passages(TEXTS).T, wanted, atol=1e-5 if normalize else 1e-4)
        unit = theirs.encode_query(TEXTS, normalize_embeddings=normalize)
        np.testing.assert_allclose(ours.queries(TEXTS), unit, atol=1e-5)


def test_a_cut_vector_is_keyed_and_a_whole_one_as_before(cased: Path, tmp_path: Path) -> None:
    """Prevents: embeddings of 12 dimensions served for those of 32; a store made anew since a setting exists that it does not use."""
    digests = DigestCache(tmp_path / "digests.json")
    keys = {}
    for size in (None, 12, 32, 500):
        folder = lay_out(tmp_path / str(size), cased, prompts={"truncate_dim": size})
        keys[size] = spec_of(folder).key(digests)
    assert keys[None] == keys[32] == keys[500] and "truncate_dim" not in keys[None]
    assert keys[12] == {**keys[None], "truncate_dim": 12}


def test_unit_vectors_that_are_cut_have_no_inner_product_of_their_own(cased: Path, tmp_path: Path) -> None:
    """Prevents: vectors of length 1 where the folder's are shorter, and compared by their inner product."""
    folder = lay_out(tmp_path / "m", cased, normalize=True, prompts={"truncate_dim": 12, "similarity_fn_name": "dot"})
    with pytest.raises(UserError, match="with truncate_dim and Normalize"):
        spec_of(folder)
    assert spec_of(folder, normalize=True).normalize


def test_a_run_says_how_a_folder_without_a_similarity_was_read(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> None:
    """Prevents: a note that no command prints."""
    file = tiny_experiment(tmp_path)  # its student names none
    prep_run(file, stage="ingest")
    notes = [line for line in prep_run(file, stage="embed") if line.startswith("note: ")]
    assert len(notes) == 1 and "names no similarity" in notes[0]
    assert not [line for line in prep_run(file, stage="embed") if line.startswith("note: ")]  # nothing is embedded


@pytest.mark.parametrize("value", ['{"model_type": [1]}', '{"model_type": "bert", "x": NaN}', "[]", "{", '"x"'])
def test_a_damaged_configuration_is_told(cased: Path, tmp_path: Path, value: str) -> None:
    """Prevents: a traceback for a config.json of another shape."""
    folder = lay_out(tmp_path / "m", cased)
    (folder / "config.json").write_text(value)
    with pytest.raises(UserError, match=r"config.json"):
        spec_of(folder).key(DigestCache(tmp_path / "digests.json"))


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", '"\\ud800"'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_python_takes_for_json_and_is_none_is_told(cased: Path, tmp_path: Path, name: str, value: str) -> None:
    """Prevents: a traceback from the digest of a damaged file."""
    folder = lay_out(tmp_path / "m", cased)
    content = {**json.loads((folder / name).read_text()), "mask_token": "@"}
    (folder / name).write_text(json.dumps(content).replace('"@"', value))
    with pytest.raises(UserError, match=rf"{name} holds what is no JSON"):
        spec_of(folder).key(DigestCache(tmp_path / "digests.json"))
