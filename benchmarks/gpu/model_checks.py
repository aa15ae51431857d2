"""Checks of the models' forward passes: attention without padding, batches, and the peers beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu.busy import watched
from gpu.made_up import PASSAGE_TOKENS, TEACHER_TOKENS, Bench

from data.config.settings import Student, Teacher
from pipeline.executors.resources import usable_cpus
from retrieval.compute import unpadded as unpadding
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings


def environment(bench: Bench) -> dict[str, Any]:
    """Versions, processors, memory, the GPU."""
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__, "cpus": usable_cpus(),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM"), "ok": not bench.is_gpu or torch.cuda.is_available(),
    }  # fmt: skip
    if bench.is_gpu:
        free, total = torch.cuda.mem_get_info()
        found |= {"gpus": torch.cuda.device_count(), "gpu": torch.cuda.get_device_name(), "bf16": torch.cuda.is_bf16_supported()}
        found |= {"capability": torch.cuda.get_device_capability(), "gpu_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1)}
    return found


def unpadded(bench: Bench) -> dict[str, Any]:
    """Is the kernel of variable lengths taken, how far are its logits from fp32, how fast is it beside padding; two sizes of batches."""
    pairs, found = bench.pairs(bench.size(30_000, 64)), dict[str, Any]()
    exact = _teacher(bench, precision="fp32").score(pairs[:256])
    for budget in (16_384, 65_536):
        for kind in ("unpadded", "padded"):
            with mock.patch.object(unpadding, "install", unpadding.install if kind == "unpadded" else lambda model: False):
                teacher = _teacher(bench, batch_tokens=budget)
                figures: dict[str, Any] = {"taken": bool(getattr(teacher, "packs", False))}
                figures["off_fp32"] = float(np.abs(teacher.score(pairs[:256]) - exact).max())
                figures |= _rate(lambda teacher=teacher: teacher.score(pairs), len(pairs), "pairs", bench)
            found[f"{kind}, {budget}"] = figures
    taken = all(figures["taken"] == name.startswith("unpadded") for name, figures in found.items())
    close = all(figures["off_fp32"] < 0.06 for figures in found.values())
    return {"ok": close and (taken or not bench.is_gpu), "spread_of_logits": float(exact.std()), **found}


def batch_invariance(bench: Bench) -> dict[str, Any]:
    """Is a logit the same again, and beside other pairs? The second need not be; how far apart they are is reported."""
    pairs, teacher = bench.pairs(bench.size(4096, 64)), _teacher(bench)
    all_of, again, some = teacher.score(pairs), teacher.score(pairs), teacher.score(pairs[::7])
    return {
        "same_again": bool(np.array_equal(all_of, again)),
        "same_beside_others": bool(np.array_equal(all_of[::7], some)),
        "largest_difference": float(np.abs(all_of[::7] - some).max()),
    }


def peers(bench: Bench) -> dict[str, Any]:
    """Pairs and texts a second beside sentence-transformers, on the same models, texts and number format."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    pairs = bench.pairs(bench.size(20_000, 64))
    passages = [passage for _, passage in pairs]
    options: dict[str, Any] = {"device": bench.device, "model_kwargs": {"dtype": torch.bfloat16 if bench.is_gpu else torch.float32}}
    scorer = CrossEncoder(str(bench.teacher), max_length=TEACHER_TOKENS, **options)
    embedder = SentenceTransformer(str(bench.student), **options)
    embedder.max_seq_length = PASSAGE_TOKENS
    teacher = _teacher(bench)
    student = Student(model=str(bench.student), pooling="mean", passage_tokens=PASSAGE_TOKENS)
    encoder = TextEncoder(resolve_student(student), precision=bench.precision, device=bench.device)
    found = {
        "score": _rate(lambda: teacher.score(pairs), len(pairs), "pairs", bench),
        "predict": _rate(lambda: scorer.predict(pairs, batch_size=256, show_progress_bar=False), len(pairs), "pairs", bench),
        "vectors": _rate(lambda: encoder.vectors(encoder.passage_tokens(passages)), len(passages), "texts", bench),
        "encode": _rate(lambda: embedder.encode(passages, batch_size=256, show_progress_bar=False), len(passages), "texts", bench),
    }
    return {
        **found,
        "scoring_ratio": round(found["score"]["pairs_per_second"] / found["predict"]["pairs_per_second"], 2),
        "embedding_ratio": round(found["vectors"]["texts_per_second"] / found["encode"]["texts_per_second"], 2),
    }


def _teacher(bench: Bench, **more: Any) -> Any:
    given = {"model": str(bench.teacher), "precision": bench.precision, "max_tokens": TEACHER_TOKENS, "compile": False, **more}
    settings = Teacher.model_validate(given)
    opened = resolve_teacher(settings, device=bench.device).open(TeacherSettings.of(settings, device=bench.device, threads=1))
    opened.load()
    return opened


def _rate(work: Callable[[], Any], count: int, unit: str, bench: Bench) -> dict[str, Any]:
    """Of the second run: the first one loads kernels."""
    work()
    figures: dict[str, Any] = {}
    started = time.perf_counter()
    with watched(figures, is_gpu=bench.is_gpu):
        work()
        if bench.is_gpu:
            torch.cuda.synchronize()
    return {f"{unit}_per_second": round(count / (time.perf_counter() - started), 1), **figures}
