"""docs/extending.md as its reader goes through it: a folder of one's own, the commands, under Ray, with nothing in this project edited."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.extending import FILES, SETTINGS

from data.errors import RunFailed

TEACHERS = importlib.util.find_spec("retrieval.teachers.base") is not None


def with_page(config: Path) -> None:
    """Put the page's settings over a file."""
    content = yaml.safe_load(config.read_text())
    for block in SETTINGS:
        for section, values in block.items():
            if section != "teacher" or TEACHERS:
                content[section] = {**content.get(section, {}), **values}
    config.write_text(yaml.safe_dump(content))


def test_the_examples_are_used_by_prep_and_train(
    tmp_path: Path, tiny_experiment: Callable[..., Path], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a page that cannot be followed: a command that does not find a module, or runs and does not use it."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    config = tiny_experiment(tmp_path, **{"runner.kind": "ray", "runner.workers": 2})
    with_page(config)

    def done(*words: object) -> str:
        result = command(*words, f"config={config}")
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
        return str(result.stdout).strip()

    refused = command("prep", "run", f"config={config}")
    assert refused.returncode == 2 and "has no module mylab" in refused.stderr and not list((tmp_path / "store").glob("*/*"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done("prep", "run")
    numbers = [number for path in (tmp_path / "store").glob("pools/ranked-*/*.parquet") for number in flat_column(path, "ranked_sources")]
    assert set(numbers) == {0, 64}
    done("train", "run", f"shards={done('prep', 'path', 'stage=shards')}")
    key = json.loads((tmp_path / "train" / "run.json").read_text())
    assert '"plugin": "mylab.losses:rank_net"' in json.dumps(key)
    steps = [line.split(",")[0] for line in (tmp_path / "train" / "loss.csv").read_text().splitlines()]
    assert steps == [str(json.loads(line)["step"]) for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert "would build" not in done("prep", "plan")
    (tmp_path / "mylab" / "samplers.py").write_text(FILES["mylab/samplers.py"].replace("version = 1", "version = 2"))
    planned = done("prep", "plan")
    assert re.search(r"pools.ranked +complete", planned) and re.search(r"hard_negatives +would build.*\n.*changed: version 1 -> 2", planned)


def flat_column(path: Path, name: str) -> list[int]:
    column = pq.read_table(path, columns=[name]).column(name)
    return [value for row in column.to_pylist() for value in row]


def test_workers_are_told_where_the_driver_found_a_plug_in(
    tmp_path: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., list[str]],
    plugin_folder: Callable[..., Path],
    parquet_files: Callable[[Path], dict[str, bytes]],
) -> None:
    """Prevents: workers that find a plug-in only where the driver's environment happens to name its folder, or draw otherwise."""
    plugin_folder(FILES)  # in this process's import path alone
    stores = {}
    for kind in ("ray", "local"):
        config = tiny_experiment(tmp_path / kind, **{"runner.kind": kind, "hard_negatives.source": "mylab.sources:rarest_word,student"})
        prep_run(config, stage="all")
        stores[kind] = parquet_files(tmp_path / kind / "store")
    assert stores["ray"] == stores["local"]


def test_a_worker_without_the_module_is_told_before_work(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], plugin_folder: Callable[..., Path]
) -> None:
    """Prevents: a host without the plug-in that is found out in the stage that needs it, after hours of embedding."""
    folder = plugin_folder(FILES)
    importlib.import_module("mylab.samplers")
    shutil.rmtree(folder / "mylab")  # this process has it in memory, as a driver has it that another host does not see
    config = tiny_experiment(tmp_path, **{"runner.kind": "ray", "hard_negatives.sampler": "mylab.samplers:just_below"})
    with pytest.raises(RunFailed, match=r"no node is left .*has no module mylab, which the driver has in .*plugins"):
        prep_run(config)
    assert not list((tmp_path / "store").rglob("*.parquet"))
