"""Causal language models as teachers: the logits that transformers' own class gives the tokens of the answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from support.checkpoints import LANGUAGE_MODELS, WORDS, change_json, save, write_json

from data.config.settings import Teacher, load
from data.digests import DigestCache
from data.errors import UserError
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.causal_lm import AnswerHead
from retrieval.teachers.cross_encoder import CrossEncoderSpec, TorchCrossEncoder
from retrieval.teachers.pair_tokens import PairEncoding
from retrieval.teachers.scoring import score_pairs

YES, NO = "ya", "no"  # of the made-up words
DECODERS = ["Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "GPTNeoX", "OPT", *LANGUAGE_MODELS]
CHANCE = random.Random(0)
TEXTS = [" ".join(CHANCE.choices(WORDS, k=CHANCE.choice((1, 2, 5, 9, 17, 30, 60)))) for _ in range(60)]
ST = "sentence_transformers.{}"
MODULES = {
    "Transformer": ST.format("base.modules.transformer.Transformer"),
    "LogitScore": ST.format("cross_encoder.modules.logit_score.LogitScore"),
    "Pooling": ST.format("models.Pooling"),
}


def language_model(folder: Path, name: str = "Qwen3", **changed: Any) -> Path:
    return save(folder, name, causal=True, **changed)


def logit_score(folder: Path, *kinds: str, score: dict[str, Any], **transformer: Any) -> Path:
    """What makes a folder of sentence-transformers of a language model's."""
    kinds = kinds or ("Transformer", "LogitScore")
    listed = [{"idx": n, "name": str(n), "path": f"{n}_{kind}" * (n > 0), "type": MODULES[kind]} for n, kind in enumerate(kinds)]
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_LogitScore" / "config.json", score)
    forward = {"method": "forward", "method_output_name": "logits"}
    own = {"transformer_task": "text-generation", "modality_config": {"text": forward}, "module_output_name": "causal_logits"}
    write_json(folder / "sentence_bert_config.json", {**own, **transformer})
    return folder


def spec_of(folder: Path, **settings: Any) -> CrossEncoderSpec:
    (template := folder.parent / "pair.jinja").write_text("{{ query }} di {{ document }} ge")
    given = {"model": str(folder), "max_tokens": 100, "precision": "fp32", "template": str(template), **settings}
    return resolve_teacher(Teacher(**given), device="cpu")


def ids_of(folder: Path) -> list[NDArray[np.int32]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [np.array(tokenizer.encode(text)[:100], np.int32) for text in TEXTS]


def scored(spec: CrossEncoderSpec, precision: str = "fp32", *, batch_tokens: int = 400) -> NDArray[np.float32]:
    model = TorchCrossEncoder(spec.folder, precision=precision, device="cpu", batch_tokens=batch_tokens, head=spec.head)
    return score_pairs(model, [PairEncoding(ids, np.zeros_like(ids), False) for ids in ids_of(spec.folder)], pad_id=0)


def reference(folder: Path, true: str = YES, false: str | None = NO) -> NDArray[np.float32]:
    """transformers as it is: all logits of one text after the other, of which two are taken."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(torch.tensor(ids[None].astype(np.int64))).logits[0, -1] for ids in ids_of(folder)]
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (true, *([] if false is None else [false]))]
    return np.array([float(row[ids[0]] - row[ids[1]] if false else row[ids[0]]) for row in logits], np.float32)


@pytest.mark.medium
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("answers", [(YES, NO), (YES,)], ids=len)
def test_logits_are_those_of_the_whole_model(tmp_path: Path, name: str, answers: tuple[str, ...]) -> None:
    """Prevents: a cap, a scale or a bias of the logits that is lost with the matrix; a state of padding that is read as the last one."""
    folder = language_model(tmp_path / "model", name)
    spec = spec_of(folder, answers=answers)
    expected = reference(folder, *answers, *([None] * (len(answers) == 1)))
    found = scored(spec)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=3e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_rows_of_the_answers_are_kept(tmp_path: Path, tied: bool) -> None:
    """Prevents: 150,000 logits computed for each token of a batch, and a matrix of gigabytes held for two of its rows."""
    folder = language_model(tmp_path / "model", tie_word_embeddings=tied)
    spec = spec_of(folder, answers=(YES, NO))
    model = spec.head.open(folder, trusted=False, ways=[{}]).backbone
    assert model.get_output_embeddings().weight.shape == (2, 32)
    large = [name for name, weight in model.named_parameters() if len(weight) == 480]
    assert large == ["model.embed_tokens.weight"]
    np.testing.assert_allclose(scored(spec), reference(folder), atol=1e-4)


def test_padding_on_the_left_gives_the_same_logits(tmp_path: Path) -> None:
    """Prevents: other logits than sentence-transformers', which pads language models on the left."""
    folder = language_model(tmp_path / "model")
    texts, longest = ids_of(folder), max(map(len, ids_of(folder)))
    ids = torch.tensor(np.stack([np.pad(text, (longest - len(text), 0)) for text in texts]).astype(np.int64))
    mask = torch.tensor(np.stack([np.arange(longest) >= longest - len(text) for text in texts]).astype(np.int64))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids([YES, NO])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    np.testing.assert_allclose(scored(spec_of(folder, answers=(YES, NO))), (logits[:, yes] - logits[:, no]).numpy(), atol=1e-4)


def test_a_logit_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """Prevents: the state of another text's length, or of padding."""
    spec = spec_of(language_model(tmp_path / "model", "Llama", pad_token_id=None), answers=(YES, NO))
    alone, beside = (scored(spec, batch_tokens=tokens) for tokens in (64, 100_000))
    np.testing.assert_allclose(alone, beside, atol=1e-5 * float(np.abs(alone).max()))


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")
@pytest.mark.medium
@pytest.mark.parametrize("name", ["Qwen3", "Gemma2", "Mistral"])
def test_bf16_ranks_as_fp32_does(tmp_path: Path, name: str) -> None:
    """Prevents: a language model whose sums are in bf16 and whose logits tie."""
    from scipy.stats import spearmanr

    spec = spec_of(language_model(tmp_path / "model", name), answers=(YES, NO))
    exact, low = scored(spec), scored(spec, "bf16")
    assert spearmanr(exact, low).statistic >= 0.999 and not np.array_equal(exact, low)


def test_a_model_that_makes_a_logit_of_more_than_its_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the logits of two tokens that are not what the model says of them among all tokens."""
    plain = transformers.Qwen3ForCausalLM.forward

    def normalised(self: Any, *args: Any, **options: Any) -> Any:
        output = plain(self, *args, **options)
        output.logits = output.logits.log_softmax(-1)
        return output

    spec = spec_of(language_model(tmp_path / "model"), answers=(YES, NO))
    monkeypatch.setattr(transformers.Qwen3ForCausalLM, "forward", normalised)
    with pytest.raises(UserError, match="whose logit of a token is made of more than the token's row of its output matrix: serve it"):
        spec.head.open(spec.folder, trusted=False, ways=[{}])


def test_a_folder_names_its_tokens_itself(tmp_path: Path) -> None:
    """Prevents: the tokens of a LogitScore passed over, or the two changed about."""
    folder = logit_score(language_model(tmp_path / "model"), score={"true_token_id": 300, "false_token_id": 200})
    assert spec_of(folder).head == AnswerHead(300, 200)
    write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": 300, "false_token_id": None})
    assert spec_of(folder).head == AnswerHead(300, None)
    given = spec_of(folder, answers=("#17",))
    assert given.head.key(DigestCache(tmp_path / "digests")) == {"answers": [17, None]}  # a setting wins over the files


@pytest.mark.parametrize(
    ("kinds", "score", "transformer", "words"),
    [
        (("Transformer", "LogitScore", "Pooling"), {}, {}, "lists Transformer, LogitScore, Pooling; a LogitScore stands behind one"),
        ((), {}, {"transformer_task": "feature-extraction"}, "transformer_task=.*but a LogitScore reads the logits of text-generation"),
        ((), {"module_input_name": "scores"}, {}, 'module_input_name="scores", but its Transformer gives causal_logits'),
        ((), {"true_token_id": 480}, {}, "true_token_id=480, but the model has tokens 0 to 479"),
        ((), {"true_token_id": None}, {}, "true_token_id=null, but the token of a relevant passage"),
        ((), {"false_token_id": -1}, {}, "false_token_id=-1, but the model has tokens 0 to 479"),
        ((), {"scale": 2}, {}, "scale=2, a key that is not known here"),
        ((), {}, {"modality_config": {"text": {"method_output_name": "hidden_states"}}}, "but a LogitScore reads logits"),
    ],
)
def test_what_a_logit_score_says_is_honoured_or_refused(
    tmp_path: Path, kinds: tuple[str, ...], score: dict[str, Any], transformer: dict[str, Any], words: str
) -> None:
    """Prevents: another function than sentence-transformers computes for the same folder."""
    folder = logit_score(
        language_model(tmp_path / "model"), *kinds, score={"true_token_id": 3, "false_token_id": 4, **score}, **transformer
    )
    with pytest.raises(UserError, match=words):
        spec_of(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"is a causal language model \(Qwen3ForCausalLM\).*teacher\.answers and teacher\.template\. If it is Qwen3-Reranker: "),
        ({"answers": ("ya", "no", "ne")}, "give one answer, for a relevant passage, or two"),
        ({"answers": ("ya", "ya")}, "both are the token"),
        ({"answers": ("yano", "no")}, r'"yano" is 2 tokens of .* \("ya", "no"\), and a logit is of one'),
        ({"answers": ("#999",)}, '"#999" is no token'),
        ({"answers": ("ya",), "label": 1}, r"teacher\.label=1: .* is a causal language model"),
        ({"answers": ("ya",), "backend": "onnx"}, r"teacher\.answers is given, which teacher\.backend=onnx does not read"),
    ],
)
def test_what_does_not_name_a_logit_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    """Prevents: a logit of half an answer, of none, or a refusal after mining that names no setting."""
    with pytest.raises(UserError, match=words):
        spec_of(language_model(tmp_path / "model"), **settings)


def test_a_language_model_without_a_template_is_refused(tmp_path: Path) -> None:
    """Prevents: an answer to no question, from a query and a passage glued together."""
    with pytest.raises(UserError, match=r"nothing says which text it reads a pair in: give teacher\.template \(qwen3-reranker, "):
        spec_of(language_model(tmp_path / "model"), answers=(YES, NO), template=None)


def test_a_family_is_told_the_line_to_write(tmp_path: Path) -> None:
    """Prevents: a search through model cards for what is known here."""
    folder = language_model(tmp_path / "model", "Gemma")
    with pytest.raises(UserError, match=r"bge-reranker-v2-gemma: .*teacher\.answers=\[Yes\]"):
        spec_of(folder)
    change_json(folder / "config.json", architectures=["UnheardForCausalLM"])
    with pytest.raises(UserError, match=r"teacher\.template, as teacher\.answers=\[yes,no\]"):
        spec_of(folder)


def test_answers_of_another_model_are_refused(tmp_path: Path, models: Any) -> None:
    """Prevents: a setting without effect; a classifier's head taken for answers."""
    with pytest.raises(UserError, match=r"is no causal language model \(BertForSequenceClassification\), so it answers nothing"):
        spec_of(models.teacher, answers=(YES,))
    folder = language_model(tmp_path / "model")
    change_json(folder / "config.json", architectures=["Gemma3ForConditionalGeneration"])
    with pytest.raises(UserError, match=r"reads more than text .*save its language model alone"):
        spec_of(folder)


def with_word_beginnings(folder: Path) -> Path:
    """A tokenizer that writes the space before a word, and puts one before every text."""
    tables = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tables["model"]["vocab"]
    for word in ("ya", "no"):
        vocabulary[f"▁{word}"] = vocabulary.pop("bu" if word == "ya" else "bo")
    tables["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tables["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (folder / "tokenizer.json").write_text(json.dumps(tables))
    return folder


def test_an_answer_that_may_be_two_tokens_is_refused_with_both(tmp_path: Path) -> None:
    """Prevents: the logit of a part of words in place of the word's, which a vocabulary has beside it."""
    folder = with_word_beginnings(language_model(tmp_path / "model", "Llama"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    read, part = vocabulary["▁ya"], vocabulary["ya"]
    with pytest.raises(UserError, match=rf'"ya" may be two tokens of .*: read as a text it is "▁ya".*give its number, #{read} or #{part}'):
        spec_of(folder, answers=("ya",))
    assert spec_of(folder, answers=("▁ya",)).head.true_id == read  # type: ignore[attr-defined]
    assert spec_of(folder, answers=(f"#{part}",)).head.true_id == part  # type: ignore[attr-defined]


def test_an_answer_may_begin_with_a_space(tmp_path: Path) -> None:
    """Prevents: the token within a word where the template ends before the space."""
    folder = language_model(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [spec_of(folder, answers=(answer,)).head.true_id for answer in (" ya", "ya")]  # type: ignore[attr-defined]
    assert ids == tokenizer.convert_tokens_to_ids(["Ġya", "ya"])
    with pytest.raises(UserError, match=r"give Ġya|give ya or Ġya"):
        spec_of(folder, answers=("YA",))


def test_answers_that_the_tokenizers_class_reads_otherwise_are_refused(tmp_path: Path) -> None:
    """Prevents: a token looked up in tokenizer.json which the class that reads the pairs does not use."""
    folder = language_model(tmp_path / "model")
    head = spec_of(folder, answers=(YES, NO)).head
    other = AnswerHead(head.true_id + 1, head.false_id, head.named)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"has \[\d+, \d+\] in its tokenizer\.json, its class reads"):
        other.open(folder, trusted=False, ways=[{}])


def test_other_answers_are_another_teacher(tmp_path: Path) -> None:
    """Prevents: logits of other tokens found in the store under the same namespace; those of the same tokens not found."""
    folder = language_model(tmp_path / "model")
    digests = DigestCache(tmp_path / "digests")
    named = [spec_of(folder, answers=answers).namespace(digests) for answers in ((YES, NO), (NO, YES), (YES,), ("ne", NO))]
    assert len({*named}) == len(named)
    ids = [spec_of(folder, answers=(answer,)).head.true_id for answer in (YES, NO)]  # type: ignore[attr-defined]
    assert spec_of(folder, answers=[f"#{number}" for number in ids]).namespace(digests) == named[0]


def test_answers_of_a_file_stay_words(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: YAML's yes and no read as true and false."""
    config = tiny_experiment(tmp_path)
    config.write_text(config.read_text().replace("teacher:", "teacher:\n  answers: [yes, no]", 1))
    assert load({"config": str(config)}).teacher.answers == ("yes", "no")
    assert load({"config": str(config), "teacher.answers": "1,0"}).teacher.answers == ("1", "0")
