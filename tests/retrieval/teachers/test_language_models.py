"""Language models with the text around their pairs: ids and logits of sentence-transformers and of the models' own cards; a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rerankers import LONG, MORE, PAIRS, ROLES, save_logit_score, save_reranker, save_sentence_transformers

from data.config.settings import Teacher
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import CrossEncoderSpec, load_cross_encoder
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

pytestmark = pytest.mark.medium
SIXTY = [*PAIRS, *MORE]
PROMPT = "Given a question, find passages that answer it"
ZERANK_ROLES = (
    '{%- for message in messages -%}{%- set role = "system" if message.role == "query" else "user" -%}<|im_start|>{{ role }}\n'
    "{{ message.content }}<|im_end|>\n{% endfor -%}<|im_start|>assistant\n\n"
)
QWEN3_CARD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that '
    "answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
MXBAI_CARD = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "query: {query}\ndocument: {document}\nYou are a search relevance expert who evaluates how well documents match search queries. For "
    "each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)
GEMMA_CARD = (
    "<bos>A: {query}\nB: {document}\nGiven a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'."
)
LLAMA_FILE = "{{ bos_token }}Query: {{ query }}\nDocument: {{ document }}\nRelevant:"
LLAMA_CARD = "<s>Query: {query}\nDocument: {document}\nRelevant:"


def resolved(folder: Path, **given: Any) -> CrossEncoderSpec:
    settings = {"model": str(folder), "precision": "fp32", "max_tokens": 512, **given}
    spec = resolve_teacher(Teacher(**settings), device="cpu")
    assert isinstance(spec, CrossEncoderSpec)
    return spec


def read_and_scored(spec: CrossEncoderSpec, pairs: list[tuple[str, str]]) -> tuple[list[list[int]], Any]:
    tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens, text=spec.template)
    encoded = tokenizer.encode(pairs)
    logits = score_pairs(load_cross_encoder(spec, device="cpu", threads=1), encoded, pad_id=tokenizer.pad_id)
    return [pair.ids.tolist() for pair in encoded], logits


def tokens(folder: Path, *words: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(words))
    return ids


@pytest.fixture(scope="module")
def qwen3_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-Reranker as its repository has it since sentence-transformers 5.4."""
    folder = save_reranker(tmp_path_factory.mktemp("qwen3") / "model", "Qwen3", "qwen", causal=True, tie_word_embeddings=True)
    save_sentence_transformers(folder, ROLES, prompt=PROMPT, add_generation_prompt=True)
    return save_logit_score(folder, *tokens(folder, "yes", "no"))


@pytest.fixture(scope="module")
def zerank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """zerank-2, whose logit is that of one answer."""
    folder = save_reranker(tmp_path_factory.mktemp("zerank") / "model", "Qwen3", "qwen", causal=True, tie_word_embeddings=False)
    save_sentence_transformers(folder, ZERANK_ROLES)
    return save_logit_score(folder, *tokens(folder, "Yes"), None)


@pytest.mark.parametrize("layout", ["qwen3_reranker", "zerank"])
@pytest.mark.parametrize("max_tokens", [512, 200])
def test_ids_and_logits_are_those_of_sentence_transformers(layout: str, max_tokens: int, request: pytest.FixtureRequest) -> None:
    """Prevents: another text, other answers, or another token's state than the model's own library reads."""
    from sentence_transformers import CrossEncoder

    folder = request.getfixturevalue(layout)
    pairs = SIXTY if max_tokens == 512 else [pair for pair in [*SIXTY, *LONG] if len(pair[0]) < 100]
    assert len(SIXTY) == 60
    encoder = CrossEncoder(str(folder), device="cpu", max_length=max_tokens, model_kwargs={"dtype": torch.float32})
    read = encoder.preprocess(pairs, prompt=encoder._resolve_prompt(None, None))
    ids, logits = read_and_scored(resolved(folder, max_tokens=max_tokens), pairs)
    assert ids == [row[mask.bool()].tolist() for row, mask in zip(read["input_ids"], read["attention_mask"], strict=True)]
    theirs = encoder.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=8, show_progress_bar=False)
    assert np.abs(logits - theirs).max() < 1e-4 and theirs.std() > 0.1


@pytest.mark.parametrize(
    ("architecture", "style", "template", "answers", "card"),
    [
        ("Qwen3", "qwen", "qwen3-reranker", ("yes", "no"), QWEN3_CARD),
        ("Qwen2", "qwen", "mxbai-rerank-v2", ("1", "0"), MXBAI_CARD),
        ("Gemma", "gemma", "bge-reranker-v2-gemma", ("Yes",), GEMMA_CARD),
        ("Llama", "llama", LLAMA_FILE, ("yes", "no"), LLAMA_CARD),
    ],
    ids=["qwen3-reranker", "mxbai-rerank-v2", "bge-reranker-v2-gemma", "llama"],
)
def test_bare_folders_score_as_their_cards_do(
    tmp_path: Path, architecture: str, style: str, template: str, answers: tuple[str, ...], card: str
) -> None:
    """Prevents: a language model that is asked something else than its card says, or answers with other tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_reranker(tmp_path / "model", architecture, style, causal=True)
    if "{{" in template:
        (tmp_path / "pair.jinja").write_text(template)
        template = str(tmp_path / "pair.jinja")
    ids, logits = read_and_scored(resolved(folder, template=template, answers=answers), SIXTY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(card.format(query=q, document=d), add_special_tokens=False)["input_ids"] for q, d in SIXTY]
    assert ids == expected
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        last = [model(torch.tensor([row])).logits[0, -1] for row in expected]
    chosen = tokenizer.convert_tokens_to_ids(list(answers))
    theirs = np.array([float(row[chosen[0]] - (row[chosen[1]] if len(chosen) > 1 else 0)) for row in last])
    assert np.abs(logits - theirs).max() < 1e-4 and theirs.std() > 0.1


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")
@pytest.mark.parametrize("layout", ["qwen3_reranker", "zerank"])
def test_bf16_ranks_as_fp32_does(layout: str, request: pytest.FixtureRequest) -> None:
    """Prevents: a language model whose sums are in bf16, and whose logits tie."""
    from scipy.stats import spearmanr

    folder = request.getfixturevalue(layout)
    exact, low = (read_and_scored(resolved(folder, precision=precision), SIXTY)[1] for precision in ("fp32", "bf16"))
    assert spearmanr(exact, low).statistic >= 0.999


def test_a_folder_of_both_kinds_has_one_namespace(qwen3_reranker: Path, tmp_path: Path) -> None:
    """Prevents: the same model scored twice since its answers are named in another place."""
    from data.digests import DigestCache

    digests = DigestCache(tmp_path / "digests")
    own = resolved(qwen3_reranker)
    assert own.namespace(digests) == resolved(qwen3_reranker, answers=("yes", "no")).namespace(digests)
    assert own.namespace(digests) != resolved(qwen3_reranker, instruction="another").namespace(digests)


def test_a_language_model_teaches(
    qwen3_reranker: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> None:
    """Prevents: a teacher that resolves but cannot be planned, opened in a worker, keyed, or found in the store again."""
    from data.config.settings import load
    from pipeline.plan import Planner, selected_tables

    without = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
    config = tiny_experiment(tmp_path, **{"teacher.model": qwen3_reranker, "teacher.max_tokens": 400, **without})
    prep_run(config)
    experiment = load({"config": str(config)})
    assert all(plan.complete for plan in Planner(experiment).plan_all(selected_tables(experiment, "all")))
