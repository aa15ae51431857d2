"""Tiny students and hand-made training shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import LABELLED_VERSION, TRAINING_SCHEMAS, TRAINING_VERSION, CandidateKind
from data.tables.shards import describe, shard_name
from retrieval.model_files.files import tokenizer_digest

WORDS = [f"w{number}" for number in range(60)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def save_student(folder: Path, *, pooling: str = "mean", normalize: bool = False, dropout: float = 0.1) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    listed = [{"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"} for n, (p, k) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, f"pooling_mode_{pooling}{'_token' if pooling == 'cls' else '_tokens'}": True})
    )
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("models") / "student")


def save_cross_encoder(folder: Path, *, student: Path, outputs: int = 1) -> Path:
    """A cross-encoder that reads the student's tokens."""
    import shutil

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    config = BertConfig.from_pretrained(student, num_labels=outputs)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (student / name).is_file():
            shutil.copyfile(student / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory, student: Path) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "cross-encoder", student=student)


@pytest.fixture
def make_cross_encoder() -> Callable[..., Path]:
    return save_cross_encoder


@pytest.fixture
def make_student() -> Callable[..., Path]:
    return save_student


def tokens(generator: np.random.Generator, longest: int) -> list[int]:
    return [2, *generator.integers(5, len(VOCABULARY), size=generator.integers(2, longest)).tolist(), 3]


def make_row(generator: np.random.Generator, query_id: str, *, negatives: int = 3, dark: bool = True, draw: int = 0) -> dict[str, Any]:
    kinds = [CandidateKind.POSITIVE] + [CandidateKind.NEGATIVE] * negatives
    if dark:
        kinds += [CandidateKind.REINFORCED_NEGATIVE] * negatives + [CandidateKind.NOISY_POSITIVE] * 2
    return {
        "query_id": query_id,
        "draw": draw,
        "query_tokens": tokens(generator, 6),
        "candidate_tokens": [tokens(generator, 14) for _ in kinds],
        "candidate_kind": [int(kind) for kind in kinds],
        "candidate_id": [f"{query_id}-{draw}-{place}" for place in range(len(kinds))],
        "teacher_logits": generator.normal(size=len(kinds)).astype(np.float32).tolist(),
        "confidence": float(np.float32(-generator.random())),
        "never_ids": [f"{query_id}-{draw}-0"],
    }


def write_shards(
    folder: Path, rows: list[list[dict[str, Any]]], *, student: Path | None = None, group_rows: int = 5, **metadata: Any
) -> Path:
    """A folder with one shard for each list of rows, in small row groups; with labels where the rows have some."""
    import pyarrow.parquet as pq

    content = {
        "schema_version": LABELLED_VERSION if "labels" in rows[0][0] else TRAINING_VERSION,
        "tokenizer": tokenizer_digest(student) if student else "none", "teachers": ["teacher"],
        "draws": 1, "negatives_source": "student", "mask_ratios": [0.15, 0.25], "negatives": 3, **metadata,
    }  # fmt: skip
    schema = TRAINING_SCHEMAS.get(content["schema_version"], TRAINING_SCHEMAS[2]).with_metadata({b"training": json.dumps(content).encode()})
    folder.mkdir(parents=True)
    records = []
    for index, shard in enumerate(rows):
        path = folder / shard_name(index, len(rows))
        # write_shard's row groups hold 4096 rows; tests want many small ones
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer:
            writer.write_table(
                pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in shard], schema=schema),
                row_group_size=group_rows,
            )
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest("shards", "shards", "fingerprint", {}, records, {}).write(folder)
    return folder


@pytest.fixture
def row_maker() -> Callable[..., dict[str, Any]]:
    return make_row


@pytest.fixture
def shard_writer() -> Callable[..., Path]:
    return write_shards


@pytest.fixture
def shards(tmp_path: Path, student: Path) -> Path:
    """Two shards, 22 queries."""
    generator = np.random.default_rng(1)
    rows = [make_row(generator, f"q{number:02d}") for number in range(22)]
    return write_shards(tmp_path / "shards", [rows[:13], rows[13:]], student=student)


@pytest.fixture
def experiment_file(tmp_path: Path, student: Path) -> Path:
    """An experiment of 3 epochs and 6 steps each, in fp32."""
    path = tmp_path / "experiment.yaml"
    path.write_text(
        f"store: {tmp_path}/store\ningest: {{path: nowhere}}\nteacher: {{model: none}}\nstudent: {{model: {student}}}\n"
        f"train: {{output: {tmp_path}/run, batch_queries: 4, warmup_steps: 2, learning_rate: 0.01, precision: fp32, "
        "micro_batch_tokens: 128, checkpoint_every: 4, threads: 1}\n"
    )
    return path
