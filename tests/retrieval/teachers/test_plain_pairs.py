"""Folders that ask for more than texts as they are: cuts, cases, chains of modules; and where their files lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.model_files import change_json, checkpoint, write_json

from data.config.settings import Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs


def resolved(folder: Path) -> CrossEncoderSpec:
    return resolve_teacher(Teacher(model=str(folder), max_tokens=64, precision="fp32"), device="cpu")


@pytest.fixture
def folder(models: Any, tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", models.teacher)


def test_a_cut_at_the_beginning_is_refused(folder: Path) -> None:
    """Prevents: long pairs that keep other tokens here than where the model was trained."""
    change_json(folder / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(UserError, match=r"cuts long texts on the left.*truncation_side=\"right\""):
        resolved(folder)
    change_json(folder / "tokenizer_config.json", truncation_side="right")
    resolved(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config_args": {"hidden_act": "relu"}}, r"config_args\.hidden_act"),
        ({"tokenizer_args": {"truncation_side": "left"}}, r"tokenizer_args\.truncation_side"),
        ({"do_lower_case": True}, "do_lower_case"),
        ({"max_seq_length": 64, "do_lower_case": False, "model_args": {"attn_implementation": "sdpa"}}, None),
    ],
)
def test_arguments_of_sentence_transformers_are_held_or_refused(folder: Path, settings: dict[str, Any], words: str | None) -> None:
    """Prevents: another activation, or texts in another case, than the folder says that its cross-encoder was trained with."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false').replace('"lowercase":true', '"lowercase":false'))
    write_json(folder / "sentence_bert_config.json", settings)
    if words is None:
        resolved(folder)
        return
    with pytest.raises(UserError, match=words):
        resolved(folder)


def test_lower_case_that_the_tokenizer_makes_itself_is_held(folder: Path) -> None:
    """Prevents: an uncased cross-encoder refused for saying so twice."""
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    resolved(folder)


def modules(folder: Path, *kinds: str, path: str = "") -> None:
    listed = [
        {
            "idx": place,
            "name": str(place),
            "path": path if kind == "Transformer" else f"{place}_{kind}",
            "type": f"sentence_transformers.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", listed)


@pytest.mark.parametrize(
    "kinds",
    [("Transformer", "Pooling", "WordWeights", "Dense"), ("Transformer", "Dense"), ("Router",)],
)
def test_a_chain_of_modules_is_refused_by_their_names(folder: Path, kinds: tuple[str, ...]) -> None:
    """Prevents: the head that transformers makes up, in place of the modules that give such a folder's score."""
    modules(folder, *kinds)
    with pytest.raises(UserError, match=rf"chain of sentence-transformers modules \({', '.join(kinds)} in its modules.json\)"):
        resolved(folder)


def test_a_transformer_in_a_folder_of_its_own_is_the_teacher(models: Any, tmp_path: Path) -> None:
    """Prevents: a cross-encoder of sentence-transformers refused for its layout, scored anew for it, or read from the wrong folder."""
    shutil.copytree(models.teacher, tmp_path / "model" / "0_Transformer")
    modules(tmp_path / "model", "Transformer", path="0_Transformer")
    digests = DigestCache(tmp_path / "digests.json")
    plain, nested = resolved(models.teacher), resolved(tmp_path / "model")
    assert nested.folder == (tmp_path / "model" / "0_Transformer").resolve()
    assert nested.key(digests) == plain.key(digests)
    logits = []
    for spec in (plain, nested):
        tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens)
        model = load_cross_encoder(spec, device="cpu", threads=1)
        logits.append(score_pairs(model, tokenizer.encode([("ba be", "bi bo bu"), ("ca", "ce ci")]), pad_id=tokenizer.pad_id).tolist())
    assert logits[0] == logits[1]


def test_modules_that_are_no_list_are_told(folder: Path) -> None:
    """Prevents: a traceback out of a damaged modules.json."""
    for content in ("{", "{}", '["Transformer"]', json.dumps([{"type": "sentence_transformers.Transformer"}])):
        (folder / "modules.json").write_text(content)
        with pytest.raises(UserError, match=r"modules\.json"):
            resolved(folder)
