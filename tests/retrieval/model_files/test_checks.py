"""Configurations and tokenizers that fit no cross-encoder with one output, or not the model beside them: told from the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.model_files import SEQUENCE_CLASSIFIER, change_json, checkpoint, vocabulary_size

from data.config.settings import Student, Teacher
from data.errors import UserError
from retrieval.model_files.checks import check_training_start
from retrieval.models.student import StudentSpec, resolve_student
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec


def teacher_of(folder: Path, **settings: Any) -> CrossEncoderSpec:
    return resolve_teacher(Teacher(**{"model": str(folder), "max_tokens": 64, "precision": "fp32", **settings}), device="cpu")


def student_of(folder: Path) -> StudentSpec:
    return resolve_student(Student(model=str(folder), query_tokens=16, passage_tokens=48, pooling="mean"))


def config_of(architecture: str | None, **values: Any) -> dict[str, Any]:
    named = {"architectures": [architecture]} if architecture else {}
    config = {name: value for name, value in SEQUENCE_CLASSIFIER.items() if name != "architectures"}
    return {**config, **named, **values}


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ({}, 2),
        ({"id2label": {"0": "a", "1": "b"}}, 2),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}, 3),
        ({"num_labels": 2}, 2),
        ({"num_labels": 5, "id2label": {"0": "a"}}, 5),
        ({"label2id": {"a": 0}}, 2),
    ],
)
def test_labels_are_counted_as_transformers_counts_them(models: Any, tmp_path: Path, labels: dict[str, Any], count: int) -> None:
    """Prevents: monoBERT's two outputs told at the teacher's first pair, after corpus, mining and dark examples."""
    from transformers import AutoConfig

    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **labels}
    folder = checkpoint(tmp_path / "model", models.teacher, config=config)
    assert AutoConfig.from_pretrained(folder).num_labels == count
    with pytest.raises(UserError, match=rf"has {count} outputs; a cross-encoder with one output"):
        teacher_of(folder)
    with pytest.raises(UserError, match=rf"has {count} outputs; start from one with a single output"):
        check_training_start(folder, option="teacher.model")


@pytest.mark.parametrize("labels", [{"num_labels": 1}, {"id2label": {"0": "a"}}])
def test_one_label_is_taken(models: Any, tmp_path: Path, labels: dict[str, Any]) -> None:
    """Prevents: a cross-encoder refused for the way in which its one label is written."""
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **labels}
    assert teacher_of(checkpoint(tmp_path / "model", models.teacher, config=config)).max_tokens == 64


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("Qwen3ForCausalLM", r"is a causal language model \(Qwen3ForCausalLM\): say which answers its logit is made of"),
        ("GPT2LMHeadModel", r"is a model of another task \(GPT2LMHeadModel\)"),
        ("BertForMaskedLM", r"is a model of another task \(BertForMaskedLM\).*train.task=cross_encoder makes one"),
        ("ElectraForPreTraining", r"\(ElectraForPreTraining\)"),
        ("BertForTokenClassification", r"\(BertForTokenClassification\)"),
        ("BertModel", r"is an encoder without a head \(BertModel\)"),
        (None, "is an encoder without a head "),
    ],
)
def test_what_is_no_sequence_classifier_is_told_by_what_it_is(models: Any, tmp_path: Path, architecture: str | None, words: str) -> None:
    """Prevents: "2 outputs" said of a language model, and one label of a headless one, which would score at random."""
    with pytest.raises(UserError, match=words):
        teacher_of(checkpoint(tmp_path / "model", models.teacher, config=config_of(architecture)))


@pytest.mark.parametrize("architecture", ["BertModel", None])
def test_a_head_is_known_without_the_name_of_its_class(models: Any, tmp_path: Path, architecture: str | None) -> None:
    """Prevents: a cross-encoder refused that was saved without its class, or under that of its encoder, and always scored rightly."""
    teacher_of(checkpoint(tmp_path / "model", models.teacher, config=config_of(architecture), tensors=("classifier.weight",)))


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_encoders_with_decoders_are_refused(models: Any, tmp_path: Path, model_type: str) -> None:
    """Prevents: "all examples must have the same number of <eos> tokens" from inside a forward pass."""
    config = config_of("T5ForSequenceClassification", model_type=model_type, is_encoder_decoder=True)
    folder = checkpoint(tmp_path / "model", models.teacher, config=config)
    with pytest.raises(
        UserError, match=r"is an encoder with a decoder \(T5ForSequenceClassification\).*; serve it and use teacher.backend=http"
    ):
        teacher_of(folder)
    with pytest.raises(UserError, match="is an encoder with a decoder"):
        check_training_start(folder, option="teacher.model")


def test_an_encoder_is_a_start_for_training_whatever_its_files_say_of_texts(models: Any, tmp_path: Path) -> None:
    """Prevents: a dual encoder's prompts held against the cross-encoder that is made of it."""
    folder = checkpoint(tmp_path / "model", models.teacher, config=config_of("BertModel"))
    change_json(folder / "config_sentence_transformers.json", prompts={"query": "query: "}, default_prompt_name="query")
    check_training_start(folder, option="teacher.model")
    change_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(UserError, match="has a prompt 'query' for its pairs"):
        check_training_start(folder, option="teacher.model")


@pytest.mark.parametrize(
    ("key", "settings", "method"),
    [
        ("quantization_config", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_quantised_weights_are_refused_by_name(models: Any, tmp_path: Path, key: str, settings: dict[str, Any], method: str) -> None:
    """Prevents: an ImportError of a package that was never asked for, hours into a run."""
    folder = checkpoint(tmp_path / "model", models.teacher, config=config_of("BertForSequenceClassification", **{key: settings}))
    with pytest.raises(
        UserError, match=rf"is quantised \({key} in its config.json: {method}\).*, or serve it and use teacher.backend=http, or import"
    ):
        teacher_of(folder)
    with pytest.raises(UserError, match=rf"is quantised \({key} in its config.json: {method}\).*, in fp32, bf16 or fp16$"):
        student_of(folder)


def add_token(folder: Path, content: str, *, special: bool, number: int | None = None) -> int:
    """Add a token to tokenizer.json, beyond its vocabulary unless a number is given. Returns its id."""
    path = folder / "tokenizer.json"
    tables = json.loads(path.read_text())
    number = len(tables["model"]["vocab"]) if number is None else number
    entry = {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tables["added_tokens"].append({**entry, "special": special})
    path.write_text(json.dumps(tables))
    return number


def test_a_tokenizer_larger_than_the_table_is_refused(models: Any, tmp_path: Path) -> None:
    """Prevents: an index out of range at the first text with a late token; on a GPU, an assertion of the device."""
    folder = checkpoint(tmp_path / "model", models.teacher)
    number = add_token(folder, "<late>", special=False)
    for read in (teacher_of, student_of):
        with pytest.raises(UserError, match=rf"has ids up to {number}, the model has embeddings for {number} tokens"):
            read(folder)


def test_special_tokens_beyond_the_table_count_where_the_tokenizer_puts_them_in(models: Any, tmp_path: Path) -> None:
    """Prevents: Gemma's text models refused for a token of images; a padding token added without a row, read at the first batch."""
    folder = checkpoint(tmp_path / "model", models.teacher)
    add_token(folder, "<image>", special=True)
    teacher_of(folder)
    change_json(folder / "tokenizer_config.json", pad_token="<image>")
    with pytest.raises(UserError, match="has ids up to"):
        teacher_of(folder)


def test_a_token_that_the_tables_lack_is_counted_where_transformers_puts_it(models: Any, tmp_path: Path) -> None:
    """Prevents: a mask token that is named in the settings alone, which gets the first id that has no row."""
    from transformers import AutoTokenizer

    folder = checkpoint(tmp_path / "model", models.teacher)
    change_json(folder / "tokenizer_config.json", mask_token="<hidden>")
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == vocabulary_size(folder)
    with pytest.raises(UserError, match=rf"has ids up to {vocabulary_size(folder)},"):
        student_of(folder)


@pytest.mark.parametrize("content", ["[]", '{"version": "1.0"}', '{"model": {"vocab": 3}}', "[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_named(models: Any, tmp_path: Path, content: str) -> None:
    """Prevents: a KeyError, or an error out of another library, in place of the file's name."""
    folder = checkpoint(tmp_path / "model", models.teacher)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        teacher_of(folder)


def test_a_folder_without_a_model_type_is_no_checkpoint(models: Any, tmp_path: Path) -> None:
    """Prevents: a table of static vectors (model2vec) opened as a transformer, with a traceback."""
    folder = checkpoint(tmp_path / "model", models.teacher, config={"tokenizer_name": "base", "hidden_dim": 256})
    with pytest.raises(UserError, match="names no model_type"):
        teacher_of(folder)
    with pytest.raises(UserError, match="names no model_type"):
        student_of(folder)
