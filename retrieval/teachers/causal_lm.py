"""Causal language models as teachers: the logit of their answer for a relevant passage, less that of the other answer, at the pair's end.

    Qwen3-Reranker         yes - no     a folder of sentence-transformers: Transformer (text-generation) and LogitScore
    mxbai-rerank-v2        1 - 0        a bare folder, with teacher.answers=[1,0]
    bge-reranker-v2-gemma  Yes          a bare folder, with teacher.answers=[Yes]

Of the output matrix the rows of these one or two tokens are kept, and nothing else of the model is replaced: what it does to its logits
(a cap, a scale) it does to these. That this is the same is tried out when it is opened, while the whole matrix is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data.config import settings
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.answer_tokens import token_of, tokenizer_of
from retrieval.model_files.checks import WAY_ROUND, architectures
from retrieval.model_files.files import module_list, read_json, text_settings, transformer_folder
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.weight_files import tensor_shapes, token_rows
from retrieval.teachers.heads import Head, PairModel

if TYPE_CHECKING:
    from torch import Tensor

_OPTION = "teacher.model"
_LOGITS = "causal_logits"  # as sentence-transformers calls what its Transformer hands on
# What is known of the rerankers of an architecture: whose answers, after whose text.
_FAMILIES = {
    "Qwen3ForCausalLM": "Qwen3-Reranker: teacher.template=qwen3-reranker teacher.answers=[yes,no]",
    "Qwen2ForCausalLM": "mxbai-rerank-v2: teacher.template=mxbai-rerank-v2 teacher.answers=[1,0]",
    "GemmaForCausalLM": "bge-reranker-v2-gemma: teacher.template=bge-reranker-v2-gemma teacher.answers=[Yes]",
}


@dataclass(frozen=True)
class AnswerHead(Head):
    """The logit of a token at the end of the pair, less that of another where there is one."""

    true_id: int
    false_id: int | None
    named: tuple[str, ...] = ()  # as teacher.answers has them; none where the folder names the tokens
    needs_template: ClassVar[bool] = True

    def key(self, digests: DigestCache) -> Any:
        """The two tokens. The tokenizer stands beside."""
        return {"answers": [self.true_id, self.false_id]}

    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The language model. Raises UserError where the tokenizer's class reads the answers otherwise than its files, and where the model
        makes a token's logit of more than its row."""
        if self.named:
            from retrieval.models.tokenizer import Tokenizer

            tokenizer = Tokenizer(folder, trusted=trusted)
            ids = [token_of(answer, tokenizer.backend, folder) for answer in self.named]
            if ids != self._ids:
                raise UserError(
                    f"teacher.answers={_shown(self.named)}: {folder} has {self._ids} in its tokenizer.json, its class reads {ids}"
                )
        return _CausalModel(folder, self._ids, trusted=trusted, ways=ways)

    def keeps_stored(self, folder: Path) -> bool:
        """Language models are large."""
        return True

    @property
    def _ids(self) -> list[int]:
        return [self.true_id] if self.false_id is None else [self.true_id, self.false_id]


def answer_head(folder: Path, teacher: settings.Teacher) -> AnswerHead | None:
    """The head of a folder with a causal language model; None where it holds another model, of which no answers were asked.

    Raises UserError: an answer that is no token, no answers at all, answers for another model, modules that are not known.
    """
    weights = transformer_folder(folder)
    home = settings_folder(folder)
    modules = [module["type"].rsplit(".", 1)[-1] for module in module_list(home)]
    name = causal_architecture(weights)
    if "LogitScore" in modules:
        head = _of_module(home, weights, modules)
        return _of_answers(weights, teacher) if teacher.answers else head
    if name is None or modules not in ([], ["Transformer"]):
        own = next(iter(architectures(read_json(weights / "config.json"))), "a model of another task")
        if own.endswith("ForConditionalGeneration"):
            raise UserError(
                f"{_OPTION}: {weights} reads more than text ({own}), which is not supported: save its language model alone, as a model for "
                f"causal language modelling, or {WAY_ROUND}"
            )
        if teacher.answers:
            kind = ", ".join(modules) if len(modules) > 1 else own
            raise UserError(
                f"teacher.answers={_shown(teacher.answers)}: {folder} is no causal language model ({kind}), so it answers nothing; "
                "leave the answers out"
            )
        return None
    if not teacher.answers:
        known = _FAMILIES.get(name)
        raise UserError(
            f"{_OPTION}: {weights} is a causal language model ({name}): say which answers its logit is made of, and what it reads, by "
            f"teacher.answers and teacher.template{f'. If it is {known}' if known else ', as teacher.answers=[yes,no]'}"
        )
    return _of_answers(weights, teacher)


def causal_architecture(weights: Path) -> str | None:
    """The class of a causal language model that config.json names; None where it names another one."""
    return next((name for name in architectures(read_json(weights / "config.json")) if name.endswith("ForCausalLM")), None)


def _of_module(folder: Path, weights: Path, modules: Sequence[str]) -> AnswerHead:
    """What sentence-transformers reads of a Transformer with a LogitScore behind it."""
    if list(modules) != ["Transformer", "LogitScore"]:
        raise UserError(
            f"{_OPTION}: {folder / 'modules.json'} lists {', '.join(modules)}; a LogitScore stands behind one Transformer, and nothing else"
        )
    transformer = FolderFile.read(transformer_folder(folder) / "sentence_bert_config.json", option=_OPTION)
    if (transformer.text("transformer_task") or "feature-extraction") != "text-generation":
        raise transformer.refusal("transformer_task", "but a LogitScore reads the logits of text-generation")
    path = next(module["path"] for module in module_list(folder) if module["type"].rsplit(".", 1)[-1] == "LogitScore")
    score = FolderFile.read(folder / path / "config.json", option=_OPTION)
    score.refuse_others(["true_token_id", "false_token_id", "module_input_name"])
    given = transformer.text("module_output_name") or _LOGITS
    if (score.text("module_input_name") or _LOGITS) != given:
        raise score.refusal("module_input_name", f"but its Transformer gives {given}")
    for name in ("text", "message"):
        modality = transformer.part("modality_config").part(name)
        if modality.content.get("method_output_name", "logits") not in ("logits", ["logits"]):
            raise modality.refusal("method_output_name", "but a LogitScore reads logits")
    rows = _rows(weights)
    ids = [_row(score, key, rows) for key in ("true_token_id", "false_token_id")]
    if ids[0] is None:
        raise score.refusal("true_token_id", "but the token of a relevant passage's answer is expected there")
    return AnswerHead(ids[0], ids[1])


def _row(score: FolderFile, key: str, rows: int | None) -> int | None:
    number = score.of_type(key, int, "the number of a token")
    if number is not None and (isinstance(number, bool) or number < 0 or (rows is not None and number >= rows)):
        raise score.refusal(key, f"but the model has tokens 0 to {rows - 1:,}" if rows else "but the number of a token is expected there")
    return number if number is None else int(number)


def _rows(weights: Path) -> int | None:
    """Tokens that the model has logits for."""
    count = text_settings(read_json(weights / "config.json")).get("vocab_size")
    return token_rows(tensor_shapes(weights, option=_OPTION)) or (count if isinstance(count, int) else None)


def _of_answers(weights: Path, teacher: settings.Teacher) -> AnswerHead:
    answers = teacher.answers
    if len(answers) > 2:
        raise UserError(
            f"teacher.answers={_shown(answers)}: give one answer, for a relevant passage, or two, the second one for another passage"
        )
    tokenizer = tokenizer_of(weights, trusted=teacher.trust_remote_code)
    ids = [token_of(answer, tokenizer, weights) for answer in answers]
    if len({*ids}) < len(ids):
        raise UserError(f"teacher.answers={_shown(answers)}: both are the token {ids[0]}, whose logit less itself is 0 for every pair")
    rows = _rows(weights)
    if rows is not None and max(ids) >= rows:
        raise UserError(f"teacher.answers={_shown(answers)}: the token {max(ids):,} is beyond the model's {rows:,} tokens")
    return AnswerHead(ids[0], ids[1] if len(ids) > 1 else None, answers)


def _shown(answers: Sequence[str]) -> str:
    return f"[{','.join(answers)}]"


class _CausalModel(PairModel):
    """A causal language model with one or two rows of its output matrix."""

    def __init__(self, folder: Path, ids: list[int], *, trusted: bool, ways: Sequence[dict[str, Any]]) -> None:
        from retrieval.compute.probe import text_config
        from retrieval.models.loading import open_model

        self.backbone = open_model("AutoModelForCausalLM", folder, option=_OPTION, trusted=trusted, ways=ways)
        text_config(self.backbone).use_cache = False  # of states that generation would go on from
        _keep_rows(self.backbone, ids, folder)

    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        import torch

        answers = self.backbone(input_ids=ids, attention_mask=mask).logits  # [n, L, 1 or 2]
        last = mask.sum(1) - 1
        at_end = answers[torch.arange(len(ids), device=ids.device), last].float()
        return at_end[:, 0] if at_end.shape[1] == 1 else at_end[:, 0] - at_end[:, 1]


def _keep_rows(model: Any, ids: list[int], folder: Path) -> None:
    """Leave the rows `ids` of the output matrix. Raises UserError where the model then gives other logits for these tokens."""
    import torch
    from torch import nn

    from retrieval.compute.cpu_attention import own_attention
    from retrieval.compute.probe import FP32_NOISE, largest_difference, probe_batch

    refusal = f"{_OPTION}: {folder} opens as a {type(model).__name__}, whose logit of a token"
    whole = model.get_output_embeddings()
    if not isinstance(whole, nn.Linear):
        raise UserError(f"{refusal} is no row of a matrix ({type(whole).__name__}): {WAY_ROUND}")
    if whole.out_features <= max(ids):
        raise UserError(f"{refusal} is one of {whole.out_features:,}, and {max(ids):,} is asked for")
    rows = nn.Linear(whole.in_features, len(ids), bias=whole.bias is not None)
    rows.weight = nn.Parameter(whole.weight[ids].detach().float(), requires_grad=False)
    if whole.bias is not None:
        rows.bias = nn.Parameter(whole.bias[ids].detach().float(), requires_grad=False)
    probe = probe_batch(model)[0][:1, :16]
    with torch.inference_mode(), own_attention(model):
        expected = model(input_ids=probe).logits[..., ids]
        try:
            model.set_output_embeddings(rows)
            found = model(input_ids=probe).logits
            same = found.shape == expected.shape and largest_difference(found.flatten(), expected.flatten()) <= FP32_NOISE
        except MemoryError:
            raise
        except Exception:  # code of any model
            same = False
    if not same:
        raise UserError(f"{refusal} is made of more than the token's row of its output matrix: {WAY_ROUND}")
