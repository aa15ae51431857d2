"""Scoring: the logits of the plain model, one pair at a time, whatever the batch, the attention or the packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from data.errors import RunFailed, UserError
from retrieval.compute import cpu_attention, low_precision, onednn, packed_linear, precision, unpadded
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.pair_tokens import PairEncoding, PairTokenizer
from retrieval.teachers.scoring import OutOfMemory, score_pairs

PAIRS = [("ha bo", "di " * n) for n in (1, 40, 7, 3, 22, 15, 2, 60)] + [("bace", f"fo {'ha bo ' * n}") for n in range(9)]


@pytest.fixture(scope="module")
def encoded(models: Any) -> list[PairEncoding]:
    return PairTokenizer(models.teacher, max_tokens=64).encode(PAIRS)


@pytest.fixture(scope="module")
def one_by_one(models: Any, encoded: list[PairEncoding]) -> Any:
    """The reference: transformers as it is, one unpadded pair after the other."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models.teacher).eval()
    with torch.inference_mode():
        return np.array(
            [
                model(input_ids=torch.from_numpy(pair.ids)[None].long(), token_type_ids=torch.from_numpy(pair.segments)[None].long()).logits
                for pair in encoded
            ]
        ).reshape(-1)


@pytest.mark.parametrize("batch_tokens", [64, 300, 100_000])
def test_fp32_is_the_plain_model(models: Any, encoded: list[PairEncoding], one_by_one: Any, batch_tokens: int) -> None:
    """Prevents: padding that is attended to, or rows that come back in another order."""
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", batch_tokens=batch_tokens)
    logits = score_pairs(teacher, encoded, pad_id=0)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)


@pytest.mark.skipif(not precision.cpu_computes_bf16(), reason="this processor would emulate bf16")
def test_bf16_is_the_plain_model_within_its_noise(models: Any, encoded: list[PairEncoding], one_by_one: Any) -> None:
    """Prevents: a fast path that is another model."""
    from scipy.stats import spearmanr

    teacher = TorchCrossEncoder(models.teacher, precision="bf16", device="cpu")
    logits = score_pairs(teacher, encoded, pad_id=0)
    np.testing.assert_allclose(logits, one_by_one, atol=0.06)
    assert spearmanr(logits, one_by_one).statistic > 0.99 and not np.array_equal(logits, one_by_one)


def test_packed_weights_compute_the_same() -> None:
    """Prevents: an operator of torch that is not public and changes its meaning."""
    linear = torch.nn.Linear(64, 48)
    low = low_precision.LowPrecisionLinear(linear, torch.bfloat16)
    if not packed_linear.packing_agrees(linear, torch.bfloat16):
        pytest.skip("this build of torch has no packed operator")
    values = torch.randn(5, 7, 64)
    packed = packed_linear.PackedLinear(linear, torch.bfloat16, packed_linear.LastCast())
    torch.testing.assert_close(packed(values), low(values), rtol=0.01, atol=0.01)


class Block(torch.nn.Module):
    """As the feed-forward part of BERT begins."""

    def __init__(self, activation: torch.nn.Module, *, scale: float = 1.0) -> None:
        super().__init__()
        self.dense, self.activation, self.scale = torch.nn.Linear(64, 48), activation, scale

    def forward(self, values: Any) -> Any:
        return self.scale * self.activation(self.dense(values))


class Hidden(Block):
    """GELU of a linear layer as well, but not by the module beside it."""

    def forward(self, values: Any) -> Any:
        return torch.nn.functional.gelu(self.activation(self.dense(values)))


def test_a_gelu_that_is_no_module_is_not_taken_twice() -> None:
    """Prevents: a dropout that is taken for the activation, which then comes twice."""
    block = Hidden(torch.nn.Dropout()).eval()
    with torch.inference_mode():
        exact = block(torch.ones(3, 64))
        low_precision.lower_precision(torch.nn.ModuleList([block]), torch.bfloat16, pack=True)
        torch.testing.assert_close(block(torch.ones(3, 64)).float(), exact, rtol=0.02, atol=0.02)
    assert isinstance(block.activation, torch.nn.Dropout)


@pytest.mark.parametrize("size", [0.05, 20.0])
def test_large_biases_are_packed_too(size: float) -> None:
    """Prevents: layers that fall back to the slow and coarser product since the reference rounds the bias."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64)
    torch.nn.init.uniform_(linear.bias, -size, size)
    if not packed_linear.packing_agrees(torch.nn.Linear(8, 8), torch.bfloat16):
        pytest.skip("this build of torch has no packed operator")
    assert packed_linear.packing_agrees(linear, torch.bfloat16)


@pytest.mark.parametrize(
    ("activation", "scale", "fused"),
    [
        (torch.nn.GELU(), 1.0, True),
        (torch.nn.GELU(), 2.0, False),
        (torch.nn.GELU(approximate="tanh"), 1.0, False),
        (torch.nn.ReLU(), 1.0, False),
    ],
)
def test_only_a_plain_gelu_is_fused_and_rounds_less(activation: torch.nn.Module, scale: float, fused: bool) -> None:
    """Prevents: an activation that is left out, taken twice or taken for another; a fused one that loses more than the two steps."""
    torch.manual_seed(0)
    block, values = Block(activation, scale=scale).eval(), 3 * torch.randn(50, 64)
    if not packed_linear.packing_agrees(block.dense, torch.bfloat16, gelu=True):
        pytest.skip("this build of torch has no packed operator")
    with torch.inference_mode():
        exact = block(values)
        low_precision.lower_precision(torch.nn.ModuleList([block]), torch.bfloat16, pack=True)
        found = block(values).float()
    assert isinstance(block.activation, torch.nn.Identity) is fused
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.03 * scale)


def test_a_missing_packed_operator_is_done_without(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a newer torch under which nothing can be scored."""

    def gone(*unused: Any, **unused_too: Any) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed_linear.PackedLinear, "__init__", gone)
    assert not packed_linear.packing_agrees(torch.nn.Linear(8, 8), torch.bfloat16)


def test_fp32_layers_go_through_onednn_too_and_cannot_be_saved_by_mistake(models: Any, tmp_path: Path) -> None:
    """Prevents: half the speed on AMD processors; a checkpoint that lacks the packed weights."""
    if not onednn.works():
        pytest.skip("this build of torch has no packed operator")
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu")
    assert isinstance(teacher._model.backbone.bert.encoder.layer[0].attention.self.query, packed_linear.PackedLinear)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        teacher._model.backbone.save_pretrained(tmp_path)


def test_packing_is_undone_where_a_model_reads_its_weights(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: models of other kinds that do not run, or give other logits, in plain fp32."""
    from transformers import AutoModelForSequenceClassification
    from transformers.models.bert import modeling_bert

    model = AutoModelForSequenceClassification.from_pretrained(models.teacher).eval()
    forward = modeling_bert.BertSelfOutput.forward
    reads = lambda self, states, rest: forward(self, states, rest) * (self.dense.weight.shape[0] > 0)  # noqa: E731
    monkeypatch.setattr(modeling_bert.BertSelfOutput, "forward", reads)
    before = {name: id(module) for name, module in model.named_modules()}

    def logits(ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits[:, 0]

    low_precision.pack_linear(model, check=logits)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_grouped_keys_in_low_precision_take_torchs_attention(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a model that our attention does not serve being refused as one that cannot be lowered."""

    def refuses(*unused: Any) -> None:
        raise NotImplementedError("grouped keys")

    if not (onednn.works() and precision.cpu_computes_bf16()):
        pytest.skip("needs bf16 and the packed operator")
    monkeypatch.setattr(cpu_attention, "_attention", refuses)
    teacher = TorchCrossEncoder(models.teacher, precision="bf16", device="cpu")
    assert teacher._model.backbone.config._attn_implementation == "sdpa" and precisions_of_keys(teacher) == [torch.bfloat16] * 2


def precisions_of_keys(teacher: TorchCrossEncoder) -> list[torch.dtype]:
    return [layer.attention.self.key._dtype for layer in teacher._model.backbone.bert.encoder.layer]


def test_keys_of_the_last_layers_stay_in_fp32(models: Any, encoded: list[PairEncoding], one_by_one: Any) -> None:
    """Prevents: the most sensitive layers rounded as the others; fp32 keys rounded before the first token's is taken from them."""
    if not (onednn.works() and precision.cpu_computes_bf16()):
        pytest.skip("needs bf16 and the packed operator")
    teacher = TorchCrossEncoder(models.teacher, precision="bf16", device="cpu")
    assert precisions_of_keys(teacher) == [torch.bfloat16, torch.float32]
    np.testing.assert_allclose(score_pairs(teacher, encoded, pad_id=0), one_by_one, atol=0.05)


class ReadsItsOwnWeights(torch.nn.Module):
    """A layer stack of one block that multiplies with the weights of its linear layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(vocab_size=50, attn_implementation="eager")
        self.embedding = torch.nn.Embedding(50, 8)
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"linear": torch.nn.Linear(8, 8)})])


@pytest.mark.parametrize("pack", [False, True])
def test_a_model_that_cannot_be_lowered_says_so(pack: bool) -> None:
    """Prevents: a traceback out of torch for a model that multiplies with a layer's weights itself, as Mamba does."""
    model = ReadsItsOwnWeights()

    def check(ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        states = model.embedding(ids) @ model.layers[0]["linear"].weight
        return states.sum((1, 2))

    low_precision.lower_precision(model, torch.bfloat16, pack=pack)
    with pytest.raises(
        UserError, match=r"ReadsItsOwnWeights cannot compute with linear layers in low precision .*: set teacher\.precision=fp32"
    ):
        low_precision.make_it_run(model, check=check, option="teacher.precision")


def test_head_and_embeddings_stay_in_fp32(models: Any) -> None:
    """Prevents: logits that tie because the head rounds them to 8 bits."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models.teacher)
    low_precision.lower_precision(model, torch.bfloat16, pack=False)
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    low = [name for name, kind in kinds.items() if kind == torch.bfloat16]
    assert kinds["classifier.weight"] == torch.float32 and all(".layer." in name for name in low) and len(low) == 2 * 6 * 2


LOWEST = torch.finfo(torch.float32).min


def masks() -> dict[str, torch.Tensor | None]:
    """[2, 1, 1 or 9, 9]: of padding on either side, of a window in which a query may see nothing, of a bias."""
    padded = torch.zeros(2, 1, 1, 9)
    padded[1, :, :, 6:] = LOWEST
    window = torch.where((torch.arange(9)[:, None] - torch.arange(9)).abs() <= 2, 0.0, LOWEST)
    bias = torch.linspace(-3, 3, 9).expand(2, 1, 1, 9)
    return {
        "none": None,
        "right": padded,
        "left": padded.flip(3),
        "window": torch.maximum(window + padded, torch.tensor(LOWEST)),
        "bias": bias,
    }


@pytest.mark.parametrize("spread", [1, 40])  # 40: scores in the thousands, whose exponentials have no place in fp32
@pytest.mark.parametrize("kind", masks())
def test_attention_is_the_plain_formula(kind: str, spread: int) -> None:
    """Prevents: a trick (keys relative to the first, exponentials without a maximum, a mask within the product) that changes the result,
    against float64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    q, mask = q * spread, masks()[kind]
    found, _ = cpu_attention._transformers_attention(torch.nn.Identity(), q, k, v, mask, 0.3)
    weights = torch.softmax(q.double() @ k.double().transpose(2, 3) * 0.3 + (0 if mask is None else mask.double()), dim=-1)
    # A score of s in fp32 is off by s / 2^24, and so is, relatively, its exponential.
    torch.testing.assert_close(found.double(), (weights @ v.double()).transpose(1, 2), rtol=1e-5 * spread, atol=1e-6 * spread)


@pytest.mark.parametrize("shift", [-500.0, 79.0, 500.0])
def test_attention_far_from_the_first_token_is_finite(shift: float) -> None:
    """Prevents: infinite or vanished exponentials where all other tokens' scores are far above or below the first's."""
    q, v = torch.ones(1, 1, 4, 8), torch.arange(32.0).view(1, 1, 4, 8)
    k = torch.full((1, 1, 4, 8), shift / 8)
    k[:, :, 0] = 0
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        found, _ = cpu_attention._transformers_attention(torch.nn.Identity(), *(part.to(dtype) for part in (q, k, v)), None, 1.0)
        expected = v[:, :, :1] if shift < 0 else v[:, :, 1:].mean(2, keepdim=True)
        torch.testing.assert_close(found.transpose(1, 2).float(), expected.expand(1, 1, 4, 8), rtol=tolerance, atol=tolerance)


def test_only_scores_without_a_place_take_the_slower_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the fast attention that is never taken, unnoticed."""
    calls: list[str] = []
    slow = cpu_attention._by_softmax
    monkeypatch.setattr(cpu_attention, "_by_softmax", lambda *args: calls.append("slow") or slow(*args))
    q, k, v = (torch.randn(2, 3, 9, 8) for _ in range(3))
    for kind, mask in masks().items():
        cpu_attention._transformers_attention(torch.nn.Identity(), q, k, v, mask, 0.3)
        assert calls == (["slow"] if kind == "window" else [])
        calls.clear()


@pytest.mark.parametrize("windowed", [False, True])
def test_the_mask_has_one_row_where_all_queries_see_the_same(windowed: bool) -> None:
    """Prevents: a window of attention that is lost, or a mask of [L, L] where [1, L] says the same."""
    from transformers import BertConfig
    from transformers.masking_utils import create_bidirectional_mask

    config = BertConfig(attn_implementation=cpu_attention.register_cpu_attention())
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    window = {"and_mask_function": lambda batch, head, query, key: (query - key).abs() <= 1} if windowed else {}
    mask = create_bidirectional_mask(config, inputs_embeds=torch.zeros(2, 4, 8), attention_mask=seen, **window)
    expected = seen.bool()[:, None, None, :]
    if windowed:
        expected = expected & ((torch.arange(4)[:, None] - torch.arange(4)).abs() <= 1)
    assert torch.equal(mask == 0, expected) and bool((mask[mask != 0] == LOWEST).all())


@pytest.mark.parametrize("fault", ["refuses", "differs"])
def test_attention_that_does_not_serve_a_model_is_not_used(
    models: Any, encoded: list[PairEncoding], one_by_one: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Prevents: grouped keys or capped scores that end in a traceback, or in wrong logits."""

    def other(query: Any, key: Any, value: Any, mask: Any, scaling: float) -> Any:
        if fault == "refuses":
            raise NotImplementedError
        return value.transpose(1, 2).contiguous()

    monkeypatch.setattr(cpu_attention, "_attention", other)
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu")
    np.testing.assert_allclose(score_pairs(teacher, encoded, pad_id=0), one_by_one, atol=1e-5)
    with pytest.raises(NotImplementedError):
        part = torch.zeros(1, 4, 3, 8)
        cpu_attention._transformers_attention(torch.nn.Identity(), part, part[:, :2], part[:, :2], None)


@pytest.mark.medium
def test_compiled_is_the_plain_model(models: Any, encoded: list[PairEncoding], one_by_one: Any) -> None:
    """Prevents: torch.compile that gives other logits, for a single pair too."""
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", compiled=True, batch_tokens=200)
    np.testing.assert_allclose(score_pairs(teacher, encoded, pad_id=0), one_by_one, atol=1e-4)
    np.testing.assert_allclose(score_pairs(teacher, encoded[:1], pad_id=0), one_by_one[:1], atol=1e-4)


class SmallDevice:
    """A device with room for so many tokens, and the sum of the ids as logit."""

    length_multiple = 1
    one_thread_each = False

    def __init__(self, room: int, batch_tokens: int) -> None:
        self.room, self.batch_tokens, self.refused = room, batch_tokens, 0

    def logits(self, ids: Any, mask: Any, segments: Any) -> Any:
        if ids.size > self.room:
            self.refused += 1
            raise OutOfMemory("full")
        return (ids * mask).sum(1).astype(np.float32)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


@settings(deadline=None)
@given(lengths=LENGTHS, room=st.integers(30, 200), batch_tokens=st.integers(1, 2000))
def test_a_batch_that_does_not_fit_is_halved_for_good(lengths: list[int], room: int, batch_tokens: int) -> None:
    """Prevents: a run lost to one large batch; pairs scored twice or left out after it; the same refusal again and again."""
    pairs = [PairEncoding(np.full(n, n, np.int32), np.zeros(n, np.int32), False) for n in lengths]
    device, counted = SmallDevice(room, batch_tokens), [0, 0, 0]

    def count(*figures: int) -> None:
        counted[:] = [before + more for before, more in zip(counted, figures, strict=True)]

    logits = score_pairs(device, pairs, pad_id=9, on_batch=count)
    np.testing.assert_array_equal(logits, np.array([n * n for n in lengths], dtype=np.float32))
    assert counted[:2] == [len(lengths), sum(lengths)] and counted[2] >= counted[1]
    assert device.refused <= 12


@settings(deadline=None)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200))
def test_batches_side_by_side_are_the_batches_in_turn(lengths: list[int], batch_tokens: int) -> None:
    """Prevents: logits in other rows, pairs left out or counted twice where several threads score."""
    pairs = [PairEncoding(np.full(n, n, np.int32), np.zeros(n, np.int32), False) for n in lengths]
    found = []
    for side_by_side in (False, True):
        device, counted = SmallDevice(10_000, batch_tokens), np.zeros(3, int)
        device.one_thread_each = side_by_side
        logits = score_pairs(device, pairs, pad_id=9, on_batch=lambda *figures, counted=counted: np.add(counted, figures, out=counted))
        found.append((logits.tolist(), counted.tolist()))
    assert found[0] == found[1] and found[0][1][:2] == [len(lengths), sum(lengths)]


def test_a_pair_that_never_fits_and_a_broken_logit_are_told() -> None:
    """Prevents: a loop without end, and NaN in the store."""
    pair = PairEncoding(np.ones(50, np.int32), np.zeros(50, np.int32), False)
    with pytest.raises(RunFailed, match="50 tokens does not fit"):
        score_pairs(SmallDevice(10, 100), [pair], pad_id=0)

    class Broken(SmallDevice):
        def logits(self, ids: Any, mask: Any, segments: Any) -> Any:
            return np.full(len(ids), np.nan, dtype=np.float32)

    with pytest.raises(RunFailed, match=r"teacher\.precision=fp32"):
        score_pairs(Broken(100, 100), [pair], pad_id=0)


def test_unpadded_attention_gives_the_padded_logits(models: Any, encoded: list[PairEncoding], one_by_one: Any) -> None:
    """Prevents: sequences that see each other. (The GPU's kernel is replaced by its definition here.)"""
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", batch_tokens=400, unpad=True)
    assert isinstance(teacher._model.backbone.bert.encoder, unpadded.UnpaddedStack)
    np.testing.assert_allclose(score_pairs(teacher, encoded, pad_id=0), one_by_one, atol=1e-5)


def test_unpadded_attention_that_differs_is_not_used(
    models: Any, encoded: list[PairEncoding], one_by_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a kernel of another version, or a model of another kind, that gives wrong logits fast."""
    for wrong in (lambda q, k, v, pack, scaling: v, lambda q, k, v, pack, scaling: q.nothing):
        monkeypatch.setattr(unpadded, "_sequence_by_sequence", wrong)
        teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", unpad=True)
        assert not isinstance(teacher._model.backbone.bert.encoder, unpadded.UnpaddedStack)
        np.testing.assert_allclose(score_pairs(teacher, encoded, pad_id=0), one_by_one, atol=1e-5)


def test_emulated_bf16_is_refused_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a run that takes a hundred times as long and does not say why."""
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    with pytest.raises(UserError, match="emulate"):
        precision.resolve("bf16", device="cpu")
    assert precision.resolve("auto", device="cpu") == "fp32" and precision.resolve("auto", device="cuda") == "bf16"


def test_a_model_with_two_outputs_is_refused(models: Any, tmp_path: Path) -> None:
    """Prevents: the first of two class scores taken for a relevance logit."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(models.teacher, num_labels=2, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="2 outputs"):
        TorchCrossEncoder(tmp_path, precision="fp32", device="cpu")
