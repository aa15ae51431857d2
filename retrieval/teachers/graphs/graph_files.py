"""Where an ONNX teacher's files lie: the graph, its tokenizer, its config.json.

    model.onnx, config.json, tokenizer.json                          a folder of its own
    config.json, tokenizer.json, onnx/model_quantized.onnx, ...      as the hub has it, beside the weights for torch

Of a hub id only the files of the graph that is asked for are downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from data.config import settings
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.files import holds_tokenizer, resolve_folder, weights_digest
from retrieval.teachers.graphs.onnx import GRAPH_NAME, external_files, read_graph

_SUBFOLDER = "onnx"  # where exporters and the hub keep graphs
_PLACES = ("*.onnx", f"{_SUBFOLDER}/*.onnx")
_USUAL = (GRAPH_NAME, f"{_SUBFOLDER}/{GRAPH_NAME}")  # the first one there is taken
_AROUND_PAIRS = ("chat_template.jinja", "config_sentence_transformers.json")
_BESIDE_GRAPHS = ("*.json", "*.txt", "*.model", "*.jinja")  # of the hub: tokenizer, configuration and templates, in any folder


@dataclass(frozen=True)
class GraphFiles:
    """The files of one ONNX teacher. Frozen, and small: it travels to the workers."""

    source: Path  # the folder that the settings name
    graph: Path
    tokenizer: Path  # folder
    config: Path  # folder of config.json, if there is one

    @property
    def places(self) -> list[Path]:
        """The folders that may say something of the teacher's texts."""
        return list(dict.fromkeys((self.tokenizer, self.source)))

    @property
    def texts(self) -> Path:
        """The folder that says what stands around a pair; the tokenizer's where none says anything."""
        return next((place for place in self.places if any((place / name).is_file() for name in _AROUND_PAIRS)), self.tokenizer)

    def digest(self, digests: DigestCache, *, option: str) -> str:
        """Digest of the graph, its external weights and the configuration.

        A model.onnx with its tokenizer beside it has that of all weights in its folder, as the stores have it from the time when there was
        no other choice.
        """
        beside = [self.graph.parent / name for name in read_graph(self.graph).external]
        if self.graph == self.source / GRAPH_NAME and self.tokenizer == self.source:
            return weights_digest(self.source, digests, option=option, beside=beside)
        return weights_digest(self.config, digests, option=option, only=[self.graph, *beside])


def find_graph(teacher: settings.Teacher) -> GraphFiles:
    """The files of the settings' ONNX teacher, fetched where they lie on the hub.

    Raises UserError: no such folder or hub id, no graph, several graphs of which none is named.
    """
    named = teacher.file
    if named is not None and (PurePosixPath(named).is_absolute() or ".." in PurePosixPath(named).parts or not named.endswith(".onnx")):
        raise UserError(f"teacher.file={named}: give the name of a graph within teacher.model, such as onnx/model_quantized.onnx")
    resolve = partial(resolve_folder, teacher.model, option="teacher.model", revision=teacher.revision, with_code=teacher.trust_remote_code)
    if Path(teacher.model).expanduser().is_dir():
        source = resolve()
        name = _choice(source, named, graphs_in(source))
    else:
        source, name = _fetched(teacher, resolve)
    graph = source / name
    tokenizer = next((folder for folder in (graph.parent, source, graph.parent.parent) if holds_tokenizer(folder)), source)
    config = next((folder for folder in (tokenizer, graph.parent, source) if (folder / "config.json").is_file()), tokenizer)
    return GraphFiles(source, graph, tokenizer, config)


def graphs_in(folder: Path) -> list[str]:
    """The graphs of a folder and of its sub-folder onnx, by their names in the folder."""
    return [path.relative_to(folder).as_posix() for pattern in _PLACES for path in sorted(folder.glob(pattern))]


def _choice(source: Path, named: str | None, graphs: Sequence[str]) -> str:
    """The graph that the settings name, else model.onnx, else onnx/model.onnx, else the only one there is."""
    listed = ", ".join(graphs)
    if named is not None:
        if not os.path.lexists(source / named) and named not in graphs:
            raise UserError(f"teacher.file={named}: {source} holds no such file; its graphs are {listed or 'none'}")
        return named
    for name in [*_USUAL, *(graphs if len(graphs) == 1 else [])]:
        if name in graphs:
            return name
    if graphs:
        raise UserError(f"teacher.model: {source} holds no {GRAPH_NAME}, but {len(graphs)} graphs; set teacher.file to one of {listed}")
    remedy = ", which teacher.backend=onnx needs; try teacher.backend=torch?" if (source / "config.json").is_file() else ""
    raise UserError(f"teacher.model: {source} holds no {GRAPH_NAME}{remedy}")


def _fetched(teacher: settings.Teacher, resolve: Callable[..., Path]) -> tuple[Path, str]:
    """(folder, name) of a graph of the hub, with its external weights.

    Names are asked for one by one, so that a graph in the cache is found without the hub, whose list can be read only when it answers.
    """
    for name in [teacher.file] if teacher.file else _USUAL:
        source = resolve(files=(*_BESIDE_GRAPHS, name))
        if os.path.lexists(source / name):
            break
    else:
        name = _choice(source, teacher.file, _graphs_on_hub(teacher) or graphs_in(source))
        source = resolve(files=(*_BESIDE_GRAPHS, name))
    if name == GRAPH_NAME:  # downloaded with all weights beside it ever since, which its digest therefore covers
        return resolve(), name
    if external := external_files(source / name):
        beside = [(PurePosixPath(name).parent / other).as_posix() for other in external]
        source = resolve(files=(*_BESIDE_GRAPHS, name, *beside))
    return source, name


def _graphs_on_hub(teacher: settings.Teacher) -> list[str]:
    """As `graphs_in`; empty where the hub does not answer."""
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(teacher.model, revision=teacher.revision, allow_patterns=list(_PLACES), dry_run=True)
    except Exception:  # the hub client raises many kinds; what lies in its cache is looked at then
        return []
    names = [PurePosixPath(file.filename) for file in files]  # in the hub's patterns * stands for folders, too
    return sorted(name.as_posix() for name in names if name.parent.as_posix() in (".", _SUBFOLDER))
