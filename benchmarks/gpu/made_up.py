"""Models of real sizes with random weights, a collection of random words, and experiments on them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from scale import WORDS, texts, write_collection

TEACHER_TOKENS, PASSAGE_TOKENS = 160, 128


class Bench:
    """What all checks share."""

    def __init__(self, folder: Path, *, device: str, small: bool) -> None:
        self.folder, self.device, self.small = folder, device, small
        self.is_gpu = device == "cuda"
        self.precision = "bf16" if self.is_gpu else "fp32"

    def size(self, of_gpu: int, small: int) -> int:
        """How many, of a real check or a small one."""
        return small if self.small else of_gpu

    def empty_cache(self) -> None:
        """Give back what a check took of the GPU."""
        if self.is_gpu:
            import torch

            torch.cuda.empty_cache()

    @cached_property
    def teacher(self) -> Path:
        """A cross-encoder of the size of MiniLM-L12."""
        return self._model("teacher", hidden=384, head=True)

    @cached_property
    def student(self) -> Path:
        """An encoder of the size of BERT-base."""
        return self._model("student", hidden=768, head=False)

    def _model(self, name: str, *, hidden: int, head: bool) -> Path:
        import torch
        from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

        folder = self.folder / name
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
        width, layers = self.size(hidden, 32), self.size(12, 1)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(2, width // 64),
            intermediate_size=4 * width, num_labels=1, initializer_range=0.2 if self.small else 0.05,  # logits that differ
        )  # fmt: skip
        torch.manual_seed(0)
        model = BertForSequenceClassification(config) if head else BertModel(config, add_pooling_layer=False)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
        return folder

    def pairs(self, count: int) -> list[tuple[str, str]]:
        """Pairs of texts for the teacher, 60 to 130 tokens long."""
        queries = [text for part in texts(count, 12, seed=1) for text in part]
        passages = [text for part in texts(count, 110, seed=2) for text in part]
        return list(zip(queries, passages, strict=True))

    @cached_property
    def collection(self) -> Path:
        """In BEIR form."""
        write_collection(self.folder / "collection", self.size(40_000, 300), self.size(3000, 12), words=100)
        return self.folder / "collection"

    def settings(self, name: str, **more: Any) -> dict[str, str]:
        """Arguments of an experiment on the collection, its store named after `name`."""
        (self.folder / "experiment.yaml").write_text("seed: 0\n")
        given: dict[str, Any] = {
            "config": self.folder / "experiment.yaml",
            "store": self.folder / f"store-{name}", "ingest.path": self.collection, "ingest.corpus_shards": 2, "ingest.query_shards": 2,
            "student.model": self.student, "student.query_tokens": 24, "student.passage_tokens": PASSAGE_TOKENS, "student.pooling": "mean",
            "teacher.model": self.teacher, "teacher.precision": self.precision, "teacher.max_tokens": TEACHER_TOKENS,
            "teacher.compile": "false", "embed.precision": self.precision, "hard_negatives.depth": 30, "hard_negatives.range_max": 30,
            "hard_negatives.num_negatives": 10 if not self.small else 3, "runner.kind": "local", "runner.device": self.device, **more,
        }  # fmt: skip
        return {key: str(value) for key, value in given.items()}
