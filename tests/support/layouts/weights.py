"""A checkpoint folder from a published config.json and a tokenizer, and the ways in which weights lie on a hub, whole or damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import change_json, change_weights, randomised, write_json
from support.layouts.tokenizers import TOKENIZERS, ids_of, size_of

Config = dict[str, Any]
Layout = Callable[[Path], Path]
HAS_PEFT = find_spec("peft") is not None


def made(
    model_class: str,
    config: Callable[..., Config],
    tokenizer: str,
    *,
    kind: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    pad_token: str | None = None,
    **more: Any,
) -> Layout:
    """A transformers folder. Its config.json stays as `config` writes it, which is how the hub has it.

    Args:
        model_class: whose weights are saved.
        config: of `configs`.
        tokenizer: of `TOKENIZERS`.
        kind: the class that config.json names; None: `model_class`.
        seed: of the weights.
        dtype: of the weights in the file.
        pad_token: whose id config.json names as padding; None: as `config` has it.
        more: further keys of config.json.
    """

    def build(folder: Path) -> Path:
        import transformers

        TOKENIZERS[tokenizer](folder)
        padding = {"pad_token_id": ids_of(tokenizer)[pad_token]} if pad_token else {}
        written = config(kind or model_class, **padding, **more)
        write_json(folder / "config.json", written)
        read = transformers.AutoConfig.from_pretrained(folder)
        model = randomised(getattr(transformers, model_class)(read), seed).to(dtype)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        write_json(folder / "config.json", written)
        return folder

    return build


def changed(layout: Layout, *changes: Callable[[Path], Any]) -> Layout:
    """A layout with its files changed, one change after the other."""

    def build(folder: Path) -> Path:
        layout(folder)
        for change in changes:
            change(folder)
        return folder

    return build


def with_json(name: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file, which is made where there is none; None takes a key away."""

    def change(folder: Path) -> None:
        if not (folder / name).is_file():
            write_json(folder / name, {})
        change_json(folder / name, **values)

    return change


def with_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Write model.safetensors anew."""
    return lambda folder: change_weights(folder, change) and None


def with_files(**content: str) -> Callable[[Path], None]:
    """Write text files; `__` in a name stands for the dot before its ending."""

    def change(folder: Path) -> None:
        for name, text in content.items():
            (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def in_shards(folder: Path) -> None:
    """model-00001-of-0000N.safetensors and their index."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    config = (folder / "config.json").read_text()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    (folder / "config.json").write_text(config)
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def stored_as(dtype: torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        change_weights(folder, lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})
        change_json(folder / "config.json", torch_dtype=str(dtype).removeprefix("torch."))

    return change


def pickled(folder: Path) -> None:
    """pytorch_model.bin alone."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_weights(shapes: dict[str, tuple[int, ...]], config: Callable[[], Config], tokenizer: str, *, table: str) -> Layout:
    """A folder of weights under any names, which no class of transformers has to know. `table` is that of tokens, of width 64."""

    def build(folder: Path) -> Path:
        TOKENIZERS[tokenizer](folder)
        generator = torch.Generator().manual_seed(0)
        every = {table: (size_of(tokenizer), 64), **shapes}
        weights = {name: torch.randn(shape, generator=generator) for name, shape in every.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", config())
        return folder

    return build


def adapter(base: Layout, tokenizer: str | None, *, head: bool, targets: Sequence[str], beside: bool = False) -> Layout:
    """A PEFT adapter, with its base in another folder beside it. Needs library peft.

    Args:
        base: layout of the base.
        tokenizer: the adapter's own, None where it has none.
        head: whether it is a sequence classifier with one label, whose head comes with the adapter.
        targets: names of the layers adapted.
        beside: whether config.json of the base lies in the adapter's folder, too.
    """

    def build(folder: Path) -> Path:
        import transformers
        from peft import LoraConfig, get_peft_model

        below = base(folder.parent / f"{folder.name}-base")
        labels = {"num_labels": 1} if head else {}
        auto = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
        torch.manual_seed(0)
        config = LoraConfig(task_type="SEQ_CLS" if head else "FEATURE_EXTRACTION", r=4, lora_alpha=16, target_modules=list(targets))
        model = get_peft_model(auto.from_pretrained(below, dtype=torch.float32, **labels), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
        if tokenizer:
            TOKENIZERS[tokenizer](folder)
        if beside:
            shutil.copyfile(below / "config.json", folder / "config.json")
        return folder

    return build


@cache
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="layouts-")  # removed when the process ends


def new_folder() -> Path:
    """An empty folder that lasts as long as the process."""
    return Path(mkdtemp(dir=_scratch().name))


@cache
def shared(layout: Layout) -> Path:
    """A folder with this layout that several rows read and none changes."""
    return layout(new_folder() / "model")
