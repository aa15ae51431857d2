"""The modules that a sentence-transformers folder lists behind its Transformer, as their files describe them.

Read as sentence-transformers 6.2 reads them. Of weights only names and shapes are read; `retrieval.models.modules` opens them.

    modules.json             which modules, in which order and folders
    1_Pooling/config.json    how the vectors of tokens become one
    2_Dense/config.json      sizes and activation, and by which name a module finds what it reads
    2_Dense/model.safetensors
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.files import module_list
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.weight_files import Shapes, tensor_shapes

VECTOR = "sentence_embedding"  # what Pooling writes, and what each module reads and writes whose files name nothing else
_NAMES = ("module_input_name", "module_output_name")
_WEIGHTS = "model.safetensors"

# Of torch.nn, without weights of their own, as `activation_function` names them. Another class is code that comes with the checkpoint.
ACTIVATIONS = (
    "Identity", "Tanh", "ReLU", "ReLU6", "GELU", "SiLU", "Mish", "ELU", "SELU", "CELU", "LeakyReLU", "Sigmoid", "LogSigmoid", "Softplus",
    "Softsign", "Softshrink", "Tanhshrink", "Hardshrink", "Hardtanh", "Hardsigmoid", "Hardswish",
)  # fmt: skip


class Listed(NamedTuple):
    """A module of modules.json."""

    kind: str  # its class where that is one of sentence-transformers, else the whole dotted name
    type: str  # the dotted name
    file: FolderFile  # its config.json, empty where there is none

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.file.path.parent


def listed_modules(folder: Path, *, option: str) -> list[Listed]:
    """All modules of a folder, in order. A class's place within sentence-transformers is no matter: classes have moved."""
    found = []
    for module in module_list(folder):
        kind = module["type"]
        kind = kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind
        found.append(Listed(kind, module["type"], FolderFile.read(folder / module["path"] / "config.json", option=option)))
    return found


@dataclass(frozen=True)
class PoolingSpec:
    """What the files of a Pooling say."""

    modes: str  # those of `student.pooling`, joined by + where their vectors are joined; or one that is not known here
    include_prompt: bool  # False: the prompt's tokens are left out


_FLAGS = {  # of files before 5.x, in the order in which several are joined
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_POOLING_KEYS = ("pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension")


def read_pooling(file: FolderFile) -> PoolingSpec:
    """Modes and use of the prompt. Raises UserError for a missing file, and for a key that is not known."""
    if not file.path.is_file():
        raise UserError(f"{file.option}: {file.path} is missing, which says how token vectors become one; fetch the whole folder again")
    flags = sorted((key for key in file.content if key.startswith("pooling_mode_")), key=lambda flag: [*_FLAGS, flag].index(flag))
    file.refuse_others([*_POOLING_KEYS, *flags])
    given = file.of_type("pooling_mode", (str, list), "a mode, or a list of them")
    modes = [given] if isinstance(given, str) else given or [_FLAGS.get(flag, flag) for flag in flags if file.content[flag]] or ["mean"]
    return PoolingSpec("+".join(map(str, modes)), file.content.get("include_prompt", True) is not False)


def pooling_file(pooling: PoolingSpec, size: int) -> dict[str, Any]:
    """The content of a Pooling's config.json for token vectors of `size`, as sentence-transformers of any version reads it.

    Modes in another order than that of the old flags can only be said as files since 5.x say them.
    """
    modes = pooling.modes.split("+")
    prompt = {} if pooling.include_prompt else {"include_prompt": False}
    if modes != [mode for mode in _FLAGS.values() if mode in modes]:
        return {"embedding_dimension": size, "pooling_mode": modes, **prompt}
    first = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
    flags = [*first, *(flag for flag, mode in _FLAGS.items() if flag not in first and mode in modes)]
    return {"word_embedding_dimension": size, **{flag: _FLAGS[flag] in modes for flag in flags}, **prompt}


@dataclass(frozen=True, kw_only=True)
class ModuleSpec(ABC):
    """A module that makes a vector of a vector. It finds what it reads, and leaves what it makes, under a name."""

    kind: ClassVar[str]
    folder: Path = field(compare=False)
    reads: str = VECTOR
    writes: str = VECTOR

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Dimensions of the vectors that it reads and of those that it makes; None for any, and as many as it reads."""
        return None, None

    @property
    def shapes(self) -> Shapes:
        """Its weights, by the names that the file has for them."""
        return {}

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """What a fingerprint holds of it: settings and the digest of its weights, never a path."""
        settings = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"kind": self.kind, **settings, **({"weights": digests.file(self.folder / _WEIGHTS)} if self.shapes else {})}

    def config(self) -> dict[str, Any]:
        """The content of its config.json. Names are said only where they are not the usual: older versions do not know the keys."""
        names = {} if (self.reads, self.writes) == (VECTOR, VECTOR) else dict(zip(_NAMES, (self.reads, self.writes), strict=True))
        return {**self._config(), **names}

    @abstractmethod
    def _config(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class DenseSpec(ModuleSpec):
    """activation(W x + b), plus x, or a projection of it, where it is residual."""

    kind = "Dense"
    inputs: int
    outputs: int
    bias: bool
    activation: str  # one of ACTIVATIONS
    residual: bool = False

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """See `ModuleSpec`."""
        return self.inputs, self.outputs

    @property
    def shapes(self) -> Shapes:
        """See `ModuleSpec`."""
        matrix = (self.outputs, self.inputs)
        projects = self.residual and self.inputs != self.outputs
        bias = {"linear.bias": (self.outputs,)} if self.bias else {}
        return {"linear.weight": matrix, **bias, **({"residual.weight": matrix} if projects else {})}

    def _config(self) -> dict[str, Any]:
        place = "linear" if self.activation == "Identity" else "activation"
        sizes = {"in_features": self.inputs, "out_features": self.outputs, "bias": self.bias}
        activation = {"activation_function": f"torch.nn.modules.{place}.{self.activation}"}
        return {**sizes, **activation, **({"use_residual": True} if self.residual else {})}


@dataclass(frozen=True, kw_only=True)
class LayerNormSpec(ModuleSpec):
    """Mean 0 and variance 1 over the dimensions of a vector, then a weight and a bias for each."""

    kind = "LayerNorm"
    dimension: int

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """See `ModuleSpec`."""
        return self.dimension, self.dimension

    @property
    def shapes(self) -> Shapes:
        """See `ModuleSpec`."""
        return {"norm.weight": (self.dimension,), "norm.bias": (self.dimension,)}

    def _config(self) -> dict[str, Any]:
        return {"dimension": self.dimension}


@dataclass(frozen=True, kw_only=True)
class NormalizeSpec(ModuleSpec):
    """Length 1."""

    kind = "Normalize"

    def _config(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class DropoutSpec(ModuleSpec):
    """Dropout while it is trained; nothing else."""

    kind = "Dropout"
    probability: float

    def _config(self) -> dict[str, Any]:
        return {"dropout": self.probability}


def _dense(file: FolderFile, names: dict[str, str]) -> DenseSpec:
    file.refuse_others(["in_features", "out_features", "bias", "activation_function", "use_residual", *_NAMES])
    inputs, outputs = (file.count(key) for key in ("in_features", "out_features"))
    if inputs is None or outputs is None:
        raise UserError(f"{file.option}: {file.path} names no in_features or no out_features; fetch the whole folder again")
    path = file.text("activation_function") or "torch.nn.modules.activation.Tanh"
    activation = path.rsplit(".", 1)[-1]
    if not path.startswith("torch.nn.") or activation not in ACTIVATIONS:
        raise file.refusal("activation_function", f"and of torch.nn {', '.join(ACTIVATIONS)} are supported")
    bias, residual = (file.of_type(key, bool, "true or false") for key in ("bias", "use_residual"))
    return DenseSpec(
        folder=file.path.parent, inputs=inputs, outputs=outputs, bias=bias is not False, activation=activation, residual=bool(residual),
        **names,
    )  # fmt: skip


def _layer_norm(file: FolderFile, names: dict[str, str]) -> LayerNormSpec:
    file.refuse_others(["dimension"])
    dimension = file.count("dimension")
    if dimension is None:
        raise UserError(f"{file.option}: {file.path} names no dimension; fetch the whole folder again")
    return LayerNormSpec(folder=file.path.parent, dimension=dimension)


def _dropout(file: FolderFile, names: dict[str, str]) -> DropoutSpec:
    file.refuse_others(["dropout"])
    share = file.of_type("dropout", (int, float), "a number")
    if not 0 <= (share := 0.2 if share is None else share) < 1:
        raise file.refusal("dropout", "but a number from 0 to below 1 is expected there")
    return DropoutSpec(folder=file.path.parent, probability=float(share))


def _normalize(file: FolderFile, names: dict[str, str]) -> NormalizeSpec:
    return NormalizeSpec(folder=file.path.parent, **names)


_READERS: dict[str, Callable[[FolderFile, dict[str, str]], ModuleSpec]] = {
    "Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize, "Dropout": _dropout,
}  # fmt: skip
VECTOR_MODULES = tuple(_READERS)  # kinds of modules that `read_module` takes


def read_module(listed: Listed) -> ModuleSpec:
    """A module of one of the kinds `VECTOR_MODULES`.

    Raises UserError: a key or a value that is not honoured, weights that are missing or of other shapes than its configuration says.
    """
    file = listed.file
    read = file.text(_NAMES[0]) or VECTOR
    spec = _READERS[listed.kind](file, {"reads": read, "writes": file.text(_NAMES[1]) or read})
    if spec.shapes:
        _check_weights(spec, option=file.option)
    return spec


def _check_weights(spec: ModuleSpec, *, option: str) -> None:
    if not (spec.folder / _WEIGHTS).is_file():
        raise UserError(f"{option}: {spec.folder} holds no {_WEIGHTS}: open the whole model with sentence-transformers and save it again")
    there = tensor_shapes(spec.folder, option=option)
    if there != spec.shapes:
        raise UserError(
            f"{option}: {spec.folder / _WEIGHTS} holds {_shown(there)}, and its config.json asks for {_shown(spec.shapes)}; fetch the "
            "whole folder again"
        )


def _shown(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"


def size_after(modules: Sequence[ModuleSpec], size: int | None, *, option: str) -> int | None:
    """Dimensions of a vector behind the modules, of one that has `size` before them; None where nothing says.

    Raises UserError where a module reads vectors of another size.
    """
    for module in modules:
        expected, made = module.sizes
        if expected is not None and size is not None and expected != size:
            raise UserError(f"{option}: {module.folder} reads vectors of {expected} dimensions, and what comes before it makes {size}")
        size = size if made is None else made
    return size
