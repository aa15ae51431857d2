"""A student ready to encode: texts to vectors, in batches of like length under a token budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UserError
from data.tables.ragged import Ragged
from retrieval.batches.encoded import ragged
from retrieval.batches.in_turn import by_budget
from retrieval.batches.on_device import OnDevice
from retrieval.batches.padded import pad_rows
from retrieval.compute import cpu_attention, low_precision, unpadded
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.batching import DEFAULT_BATCH_TOKENS, token_budget_batches
from retrieval.compute.parallel_batches import side_by_side
from retrieval.compute.probe import pad_id_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.padding import check_padding
from retrieval.models.prompt_tokens import marked_lists, prompt_lengths
from retrieval.models.student import StudentSpec
from retrieval.models.tokenizer import tokenizer_of, tokenizing_threads

TokenLists = list[list[int]]


class TextEncoder:
    """The student's weights in the chosen precision on the chosen device, in eval mode.

    As for a teacher, low precision means the linear layers alone, and a CPU has its own attention (`retrieval.compute.low_precision`).
    `batch_tokens` count padding; None takes the device's default.
    """

    def __init__(self, spec: StudentSpec, *, precision: str, device: str, batch_tokens: int | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch sees no GPU here; use device=cpu")
        self.spec = spec
        on_cpu = device == "cpu"
        if on_cpu:
            tune_allocator()
        model = DualEncoder(spec, attention=cpu_attention.register_cpu_attention() if on_cpu else None).eval()
        self.model = model.to(device=device)
        self._device = device
        self.batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS[device]  # halved when a batch does not fit on a GPU
        self.one_thread_each = on_cpu  # batches are computed side by side
        self._pad_id = pad_id_of(model.backbone) or 0
        check_padding(model.backbone, check=self._forward, option=spec.option)
        low_precision.apply(model.backbone, precision=precision, check=self._forward, option="embed.precision")
        self.packs = not on_cpu and precision != "fp32" and unpadded.install(model.backbone)  # batches without padding in the layers
        self.tokenizer = tokenizer_of(spec, threads=tokenizing_threads(device=device, threads=torch.get_num_threads()))
        self._prompts = prompt_lengths(spec, self.tokenizer)

    @property
    def size(self) -> int:
        """D, dimensions of a vector."""
        return self.model.size

    def query_tokens(self, texts: list[str]) -> TokenLists:
        """Token ids of queries, prefix and special tokens included."""
        tokens = self.tokenizer.encode([self.spec.query_prefix + text for text in texts], max_tokens=self.spec.query_tokens)
        return marked_lists(tokens, self._prompts.query)

    def passage_tokens(self, texts: list[str]) -> TokenLists:
        """Token ids of passages, prefix and special tokens included."""
        tokens = self.tokenizer.encode([self.spec.passage_prefix + text for text in texts], max_tokens=self.spec.passage_tokens)
        return marked_lists(tokens, self._prompts.passage)

    def queries(self, texts: list[str]) -> NDArray[np.float32]:
        """[n, D] fp32 vectors of queries."""
        return self.vectors(self.query_tokens(texts))

    def passages(self, texts: list[str]) -> NDArray[np.float32]:
        """[n, D] fp32 vectors of passages."""
        return self.vectors(self.passage_tokens(texts))

    def vectors(self, tokens: TokenLists | Ragged, *, progress: Callable[[int], None] = lambda rows: None) -> NDArray[np.float32]:
        """[n, D] fp32 vectors of tokenised texts; `progress` gets how many more are done.

        Raises RunFailed where a single text does not fit on a GPU.
        """
        if self.one_thread_each:
            return encode_tokens(
                self._forward, tokens, size=self.size, batch_tokens=self.batch_tokens, pad_id=self._pad_id, device=self._device,
                each=side_by_side, progress=progress,
            )  # fmt: skip
        arrays = ragged(tokens)
        vectors = np.empty((len(arrays), self.size), dtype=np.float32)
        device = OnDevice(self._forward, arrays, pad_id=self._pad_id, device=self._device)
        with contextlib.closing(by_budget(arrays.lengths, budget=self, device=device, what="text")) as batches:
            for rows, found in batches:
                vectors[rows] = found
                progress(len(rows))
        return vectors

    @torch.inference_mode()
    def _forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.model(ids, mask))


def encode_tokens(
    forward: Callable[[Tensor, Tensor], Tensor],
    tokens: Ragged | Sequence[Any],  # lists or arrays of ids
    *,
    size: int,
    batch_tokens: int,
    pad_id: int,
    device: str,
    each: Callable[[Callable[[list[int]], int], list[list[int]]], Iterable[int]] = map,
    progress: Callable[[int], None] = lambda rows: None,
) -> NDArray[np.float32]:
    """[n, D] fp32 vectors of tokenised texts, in batches of like length of so many tokens, padding included.

    `forward` makes [b, D] vectors of [b, L] token ids and mask, without a graph; `each` calls a function for every batch.
    """
    arrays = ragged(tokens)
    vectors = np.empty((len(arrays), size), dtype=np.float32)

    def compute(rows: list[int]) -> int:
        ids, mask = map(torch.from_numpy, pad_rows(arrays, rows, value=pad_id))
        vectors[rows] = forward(ids.to(device), mask.to(device)).float().cpu().numpy()
        return len(rows)

    for done in each(compute, token_budget_batches(arrays.lengths.tolist(), budget=batch_tokens)):
        progress(done)
    return vectors
