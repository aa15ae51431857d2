"""Plug-ins under workers: the driver names the folder where it finds each, and a worker looks there, too."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from data.config.registry import is_import_path
from data.config.settings import Experiment
from data.errors import UserError


def plugin_folders(experiment: Experiment) -> dict[str, str]:
    """Top-level module -> the folder where this process finds it, for the plug-ins of the stages. What it does not find is left out."""
    negatives = experiment.hard_negatives
    of_negatives = [*(one.name for one in negatives.samplers), *(one.name for one in negatives.sources)]
    names = [*of_negatives, experiment.teacher.backend]
    modules = {name.split(":")[0].split(".")[0] for name in names if is_import_path(name)}
    return {module: folder for module in sorted(modules) if (folder := _folder_of(module))}


def _folder_of(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else []))
    return str(Path(places[0]).absolute().parent) if places else None


def find_plugins(folders: Mapping[str, str]) -> None:
    """Put the driver's folders at the end of this process's import path, where they stand in front of nothing.

    Raises UserError, with the host, for a module that is not here.
    """
    sys.path += [folder for folder in dict.fromkeys(folders.values()) if folder not in sys.path]
    for module, folder in folders.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{platform.node()} has no module {module}, which the driver has in {folder}: install it on every host")
