"""Modules behind a Pooling: read, opened, computed and saved as sentence-transformers has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.sentence_transformer.modules.layer_norm import LayerNorm
from support.student_folders import DROPOUT, NEW_NAMES, Behind, dense, layer_norm, spoil, write_json
from torch import Tensor

from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.module_files import ModuleSpec, listed_modules, read_module, size_after
from retrieval.models.modules import open_modules, save_module

KINDS = {
    "identity": dense(6, 9, bias=False), "tanh": dense(6, 4, "activation.Tanh"), "gelu": dense(6, 6, "activation.GELU"),
    "residual": dense(6, 6, "activation.SiLU", residual=True), "projected": dense(6, 4, residual=True), "norm": layer_norm(6),
}  # fmt: skip


def write(folder: Path, *modules: Behind) -> Path:
    """A folder of these modules alone."""
    listed = []
    for place, module in enumerate(modules):
        path = f"{place}_{module.kind}"
        write_json(folder / path / "config.json", module.config)
        if module.tensors:
            save_file(module.tensors, folder / path / "model.safetensors")
        listed.append({"idx": place, "name": str(place), "path": path, "type": NEW_NAMES[module.kind]})
    write_json(folder / "modules.json", listed)
    return folder


def specs_of(folder: Path) -> list[ModuleSpec]:
    return [read_module(listed) for listed in listed_modules(folder, option="student.model")]


def theirs(folder: Path, kind: str) -> Any:
    return (LayerNorm if kind == "LayerNorm" else Dense).load(str(folder)).eval()


VECTORS = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
def test_vectors_are_sentence_transformers(tmp_path: Path, name: str) -> None:
    """Prevents: another activation, a bias left out, a residual read over."""
    (spec,) = specs_of(write(tmp_path, KINDS[name]))
    ours = open_modules([spec], option="student.model").eval()
    wanted = theirs(spec.folder, spec.kind)({"sentence_embedding": VECTORS})["sentence_embedding"]
    torch.testing.assert_close(ours(VECTORS), wanted, rtol=1e-6, atol=1e-6)
    assert size_after([spec], 6, option="student.model") == wanted.shape[1]


@pytest.mark.parametrize("name", KINDS)
def test_saved_weights_are_the_trained_ones(tmp_path: Path, name: str) -> None:
    """Prevents: the file's weights copied in place of the trained ones; a folder that sentence-transformers does not open."""
    (spec,) = specs_of(write(tmp_path / "before", KINDS[name]))
    (module,) = open_modules([spec], option="student.model").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.requires_grad
            parameter.add_(0.3)
    save_module(module, tmp_path / "after")
    wanted: Tensor = module(VECTORS)
    torch.testing.assert_close(theirs(tmp_path / "after", spec.kind)({"sentence_embedding": VECTORS})["sentence_embedding"], wanted)
    assert load_file(tmp_path / "after" / "model.safetensors").keys() == KINDS[name].tensors.keys()


def test_weights_of_low_precision_become_fp32(tmp_path: Path) -> None:
    """Prevents: a layer in bf16 behind an encoder in fp32, which does not run, or rounds."""
    whole = KINDS["tanh"]
    low = whole._replace(tensors={name: tensor.bfloat16() for name, tensor in whole.tensors.items()})
    ours = open_modules(specs_of(write(tmp_path, low)), option="student.model")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    torch.testing.assert_close(ours[0].linear.weight, whole.tensors["linear.weight"].bfloat16().float())


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    """Prevents: vectors that differ from call to call, or a regularisation that is there no more."""
    module = open_modules(specs_of(write(tmp_path, DROPOUT)), option="student.model")
    assert torch.equal(module.eval()(VECTORS), VECTORS)
    torch.manual_seed(0)
    dropped = module.train()(torch.ones(1000, 6))
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.05


def test_keys_are_of_content(tmp_path: Path) -> None:
    """Prevents: vectors of other weights served under the key of the first; a folder that was moved embedded anew."""
    digests = DigestCache(tmp_path / "digests.json")
    one, moved = (specs_of(write(tmp_path / name, KINDS["tanh"]))[0] for name in ("a", "b"))
    assert one == moved and one.key(digests) == moved.key(digests) and one.key(digests)["kind"] == "Dense"
    other = write(tmp_path / "c", KINDS["tanh"]._replace(tensors={name: t + 1 for name, t in KINDS["tanh"].tensors.items()}))
    relu = write(tmp_path / "d", KINDS["tanh"]._replace(config={**KINDS["tanh"].config, "activation_function": "torch.nn.ReLU"}))
    assert len({str(specs_of(folder)[0].key(digests)) for folder in (tmp_path / "a", other, relu)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: spoil(m, "0_Dense/config.json", activation_function="mine.Swish"), 'activation_function="mine.Swish".*of torch.nn'),
        (lambda m: spoil(m, "0_Dense/config.json", activation_function="torch.nn.PReLU"), "of torch.nn Identity"),
        (lambda m: spoil(m, "0_Dense/config.json", later=1), "later=1, a key that is not known here"),
        (lambda m: spoil(m, "0_Dense/config.json", in_features="6"), 'in_features="6", but a number'),
        (
            lambda m: spoil(m, "0_Dense/config.json", bias=False),
            r"holds linear.bias \[4\], .*, and its config.json asks",
        ),
        (lambda m: spoil(m, "0_Dense/config.json", out_features=None), "names no in_features or no out_features"),
        (lambda m: (m / "0_Dense" / "model.safetensors").unlink(), "holds no model.safetensors.*save it again"),
        (lambda m: (m / "0_Dense" / "model.safetensors").write_bytes(b"x" * 99), "no whole safetensors file"),
        (lambda m: spoil(m, "1_LayerNorm/config.json", dimension=5), r"holds norm.bias \[4\].*asks for norm.bias \[5\]"),
        (lambda m: spoil(m, "1_LayerNorm/config.json", eps=1e-3), "eps=0.001, a key that is not known here"),
        (lambda m: spoil(m, "2_Dropout/config.json", dropout=1.5), "dropout=1.5, but a number from 0 to below 1"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_files(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    """Prevents: sentence-transformers' Tanh in place of an activation it does not know; weights drawn at random."""
    folder = write(tmp_path, KINDS["tanh"], layer_norm(4), DROPOUT)
    assert len(specs_of(folder)) == 3
    change(folder)
    with pytest.raises(UserError, match=message) as refusal:
        specs_of(folder)
    assert "student.model" in str(refusal.value) or ".safetensors" in str(refusal.value)


def test_modules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Prevents: a product of matrices that fails in the first batch."""
    specs = specs_of(write(tmp_path, KINDS["tanh"], layer_norm(6)))
    with pytest.raises(UserError, match=r"1_LayerNorm reads vectors of 6 dimensions, and what comes before it makes 4"):
        size_after(specs, 6, option="student.model")
