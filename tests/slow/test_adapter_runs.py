"""The whole job with adapters: a teacher and a miner that are some, a student that gets one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from support.adapters import save_adapter
from support.checkpoints import change_weights

from data.config.settings import load
from data.errors import EXIT_COMPLETE
from retrieval.models.resolved import ResolvedModels
from trainer import recipes
from trainer.loop import train


def test_a_run_with_adapters(tmp_path: Path, models: Any, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> None:
    """Prevents: adapters that resolve and cannot be opened by a worker, a base whose exchange keeps its logits and vectors, shards that
    are made again since their student is trained with LoRA."""
    bases = {role: shutil.copytree(getattr(models, role), tmp_path / f"base of {role}") for role in ("teacher", "student")}
    teacher = save_adapter(tmp_path / "teacher", bases["teacher"], head=True)
    miner = save_adapter(tmp_path / "miner", bases["student"])
    words = {"teacher.model": teacher, "embed.model": miner, "student.lora": {"rank": 4}, "train.steps": 4}
    config = tiny_experiment(tmp_path / "run", **words)
    prep_run(config)
    (shards,) = (tmp_path / "run" / "store" / "shards").iterdir()
    prep_run(config, **{"student.lora.rank": 8})
    assert list(shards.parent.iterdir()) == [shards]
    assert train(recipes.load({"config": str(config)}), shards_folder=shards) == EXIT_COMPLETE
    student = tmp_path / "run" / "train" / "student"
    assert load_file(student / "adapter" / "adapter_model.safetensors")
    assert json.loads((student / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(models.student)
    before = ResolvedModels(load({"config": str(config)}))
    keys = [before.namespace, before.key("miner")]
    for base in bases.values():
        change_weights(base, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    after = ResolvedModels(load({"config": str(config)}))
    assert after.namespace != keys[0] and after.key("miner") != keys[1]
