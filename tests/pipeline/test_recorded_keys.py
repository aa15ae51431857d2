"""Fingerprints and logit namespaces as they were recorded: what is stored under them is found by every later version.

The models are written byte by byte, so that no version of a library has a say in their digests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import load
from data.digests import json_digest
from pipeline.plan import tables
from retrieval.models.resolved import ResolvedModels

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
CONFIG = {"model_type": "bert", "hidden_size": 2, "num_hidden_layers": 1, "vocab_size": 7, "max_position_embeddings": 128}
ENCODER = {"embeddings.word_embeddings.weight": [7, 2], "embeddings.token_type_embeddings.weight": [2, 2]}


def write_model(folder: Path, *, tensors: dict[str, list[int]], tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    """A checkpoint of zeros, which nothing can compute with, but which has all that a key is made of."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    special = [{"id": number, "content": word, "special": True} for number, word in enumerate(WORDS[:5])]
    table = {"model": {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(WORDS)}}, "added_tokens": special}
    for name, content in {
        "config.json": {**CONFIG, **config, "transformers_version": "5.0"},
        "tokenizer.json": {**table, "truncation": None, "padding": None, "post_processor": {"type": "BertProcessing"}},
        "tokenizer_config.json": {**ROLES, **(tokenizer or {})},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def write_modules(folder: Path, **transformer: Any) -> Path:
    """What makes a sentence-transformers folder of a checkpoint."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": f"{place}_{kind}" * (place > 0), "type": f"sentence_transformers.models.{kind}"} for place, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, **transformer}))
    own = {"prompts": {"query": "query: ", "document": "passage: "}, "similarity_fn_name": "cosine", "truncate_dim": 1}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    return folder


def teacher(folder: Path, *, head: str = "classifier.weight", **words: Any) -> Path:
    named = "BertForSequenceClassification"
    return write_model(folder, tensors={**ENCODER, head: [1, 2]}, architectures=[named], num_labels=1, **words)


def experiment_of(case: str, folder: Path, write: Any) -> Any:
    """The settings of a case."""
    student, settings = write_model(folder / "student", tensors=ENCODER), dict[str, Any]()
    judge = teacher(folder / "teacher")
    if case == "sentence-transformers":
        student = write_modules(write_model(folder / "st", tensors=ENCODER), do_lower_case=True)
        settings = {"student.query_tokens": "null", "student.passage_tokens": "null", "dev.queries": 3}
    elif case == "embed.model":
        settings = {"embed.model": write_modules(write_model(folder / "miner", tensors=ENCODER))}
    elif case == "decoder":
        judge = teacher(folder / "decoder", head="score.weight", pad_token_id=4)
    elif case == "without segments":
        judge = teacher(folder / "bare", tokenizer={"model_input_names": ["input_ids", "attention_mask"]})
    elif case == "own code":
        for name in ("student", "teacher"):
            (folder / name / "modeling.py").write_text("class Model: ...\n")
            path = folder / name / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "modeling.Model"}}))
        settings = {"student.trust_remote_code": True, "teacher.trust_remote_code": True}
    elif case == "curriculum":
        settings = {"curriculum.enabled": True, "hard_negatives.depth": 200, "hard_negatives.range_max": 200}
    elif case == "no teacher":
        settings = {"teacher.backend": "none", "dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
    elif case == "pools":
        settings = {"hard_negatives.score_pools": True, "search.index": "ivf", "hard_negatives.source": "student,bm25"}
    return load({"config": str(write(folder / "run", **{"student.model": student, "teacher.model": judge, **settings}))})


RECORDED: dict[str, dict[str, str]] = {  # of other cases than the first: what differs from it
    "plain": {
        "ingest.corpus": "83b43a4f718fd9d4727fe46a5457959a",
        "ingest.queries": "b411798a1367998f6381c26e290292dd",
        "ingest.qrels": "8e3ae53c5e6069bbb5bc5b9d7c326f64",
        "embed.corpus": "72d178ab3be0b02d9a8c34ecff4ffc6d",
        "embed.queries": "700cc61e6bfa51be3cc1f85a5fad7cd7",
        "pools.ranked": "da858af1570bce6e275a58805f74cde3",
        "hard_negatives": "3f16c0e1242c01c2a553645a462df9c9",
        "dark_examples": "dca98d5233c12b87e48cb7a434a644dc",
        "teacher_scores": "a4cb90cf26afd7d59bd8b5fbccfe5584",
        "confidence": "bebd5ae6046105b7013e991cf579a698",
        "shards": "492aa4fb60b804c639a04b4ac402da57",
        "namespace": "b4b20dc97ea1168171b3743141532bce",
    },
    "sentence-transformers": {
        "embed.corpus": "d08a7a974003eb4d9368571431f874e5",
        "embed.queries": "4885091807d63f5026310b67ddacbf9f",
        "dark_examples": "22928f141a646be24215c03c6c50d910",
        "shards": "ece365853ba62ce7dac8b76b9c957e5c",
        "dev": "0fb422fc68c4017d2e7f2c3f8c0b1b6a",
    },
    "embed.model": {
        "embed.corpus": "b7720a3f72dd601279f69422ddae40df",
        "embed.queries": "aebee64e33fbe65540f40e230ff8f688",
    },
    "decoder": {
        "teacher_scores": "58080a3ddf7bf9c914229bba9235bc14",
        "shards": "c1c285c42fbc5d2df07ed018134c9e57",
        "namespace": "f31219f705d66c72cf1811cf5ff6719b",
    },
    "without segments": {
        "teacher_scores": "a4454426b08507638d48cfa6192edac8",
        "shards": "464e8a8c40c1012c632a6af308af16bd",
        "namespace": "be418a70b46016e0a5077808a412252a",
    },
    "own code": {
        "embed.corpus": "689ca5f033b243dfddb5912a83cc889a",
        "embed.queries": "637ee1549f3a8c9de9e6715fac91a71b",
        "teacher_scores": "8d69c25a99b8c312e4cbfa9e9f67e9be",
        "shards": "5e8f569b5a261df04637bc4c9390de7b",
        "namespace": "4c8aff92dcfed77d895e4386ac27288c",
    },
    "curriculum": {
        "pools.ranked": "f90d0c5f4a1dbf26c7182f75a06aceff",
        "pools.pairs": "a223681c70862de4dbeade9aacce32af",
        "pool_scores": "8af7da3bd65b49353aa2cfabc929fca5",
        "curriculum": "6e14afabcd0c5e9967fb7e409502bbaa",
    },
    "no teacher": {
        "dark_examples": "a06a0bdcebb46a988fb7aaa0c3fe6689",
        "shards": "994272d7cae4a536aee3e5529e738b1b",
    },
    "pools": {
        "index": "318a5d6bc6ade35bd75cc10ee7971567",
        "pools.ranked": "0d1d397b9964582e65a7de44ec35ba37",
        "pools.pairs": "a223681c70862de4dbeade9aacce32af",
        "pool_scores": "8af7da3bd65b49353aa2cfabc929fca5",
        "hard_negatives": "fb692e626502a68ea1e58d78caefb2e6",
        "shards": "6929ffce1177fdc54d5828b5e6ac59b8",
    },
}


@pytest.mark.parametrize("case", RECORDED)
def test_fingerprints_are_the_recorded_ones(case: str, tmp_path: Path, tiny_experiment: Any) -> None:
    """Prevents: a store of an earlier version whose logits are all scored again, and whose passages are all embedded again."""
    experiment = experiment_of(case, tmp_path, tiny_experiment)
    models = ResolvedModels(experiment)
    found = {table.label: json_digest(table.full_key(models, {})) for table in tables(experiment)}
    if experiment.teacher.backend != "none":
        found["namespace"] = models.namespace
    expected = {**RECORDED["plain"], **RECORDED[case]}
    if case == "curriculum":  # whose shards have a version of their own
        del found["shards"]
    assert found.keys() >= RECORDED[case].keys()
    assert found == {label: expected[label] for label in found}
