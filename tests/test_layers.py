"""The import rules between the rooms, held by reading every module's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.children import loaded_by

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "retrieval", "pipeline", "trainer")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

FORBIDDEN = {
    "data": {"torch", "ray", "faiss", "transformers", "onnxruntime", "retrieval", "pipeline", "trainer"},
    "retrieval": {"pipeline", "trainer", "ray"},
    "pipeline": {"trainer"},
    "trainer": {"pipeline", "ray", "faiss"},
}
HOMES = {
    "faiss": {"retrieval/search/faiss_index.py"},
    "ray": {"pipeline/executors/ray/cluster.py"},
    "typer": {f"{room}/cli.py" for room in ROOMS},
    "fsspec": {"data/remote/object_store.py"},
    "httpx2": {"retrieval/teachers/http/client.py"},
    "huggingface_hub": {  # models to and fro, their graphs, data sets
        "retrieval/model_files/files.py",
        "retrieval/models/loading.py",
        "retrieval/teachers/graphs/graph_files.py",
        "data/formats/scored_lists/hub.py",
        "trainer/saving/push.py",
    },
    "wandb": {"trainer/reporting/trackers/wandb.py", "trainer/reporting/trackers/wandb_files.py"},
    "mlflow": {"trainer/reporting/trackers/mlflow.py"},
    "trackio": {"trainer/reporting/trackers/trackio.py"},
}


def imported(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Each import of a module as (dotted name, statement), those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    """Prevents: a lean room that quietly grows a heavy dependency, or two rooms that need each other."""
    room = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name, _ in imported(path)}
    assert not tops & FORBIDDEN[room], f"{name_of(path)} imports {sorted(tops & FORBIDDEN[room])}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_dependencies_have_one_home(path: Path) -> None:
    """Prevents: a second place that starts Ray, calls FAISS or opens transformers, with settings of its own."""
    for name, _ in imported(path):
        top = name.split(".")[0]
        assert name_of(path) in HOMES.get(top, {name_of(path)}), f"{name_of(path)} imports {top}, whose home is {HOMES[top]}"
        assert top != "transformers" or name_of(path).startswith("retrieval/"), f"{name_of(path)} imports transformers"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[len(ROOT.parts)] == "trainer"], ids=name_of)
def test_one_place_knows_the_fast_path_of_cpus(path: Path) -> None:
    """Prevents: kernels of one machine woven into the loop, the steps and the loss, where the next machine finds no seam."""
    if not name_of(path).startswith("trainer/cpu/") and name_of(path) != "trainer/run.py":
        assert not [name for name, _ in imported(path) if name.startswith("trainer.cpu")], "ask `trainer.steps.backend` for it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_bare_or_relative_import_of_a_room(path: Path) -> None:
    """Prevents: `import data` that finds the PyPI package of that name, and works on one machine only."""
    for name, statement in imported(path):
        assert not name.startswith("."), f"{name_of(path)} imports {name} relatively"
        assert not (isinstance(statement, ast.Import) and name in ROOMS), f"{name_of(path)} imports {name} bare"


@pytest.mark.parametrize("room", ROOMS)
def test_init_files_hold_a_docstring_only(room: str) -> None:
    """Prevents: `from data.errors import ...` that drags in a whole room through its `__init__`."""
    for path in (ROOT / room).rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), name_of(path)


FOLDERS = sorted({path.parent for path in MODULES})


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_is_small_and_says_what_lives_there(folder: Path) -> None:
    """Prevents: a folder in which the next reader has to guess, and a folder that every new file goes to."""
    assert len(list(folder.glob("*.py"))) <= 14, f"{name_of(folder)}: put files together by what they are about"
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "Not here:" in said, f"{name_of(folder)}/__init__.py says what lives there, and what does not"


def loaded_after(*modules: str) -> set[str]:
    """The modules in memory when a fresh interpreter has imported some."""
    done, loaded = loaded_by("import", *modules)
    assert done.returncode == 0, done.stderr
    return loaded


@pytest.mark.medium
def test_the_trainer_is_lean() -> None:
    """Prevents: a third-party import chain that loads Ray or FAISS into every training process."""
    assert not loaded_after("trainer.loop", "trainer.cli", "trainer.evaluation.dev_set") & {"ray", "faiss", "pipeline"}


def test_planning_is_cheap() -> None:
    """Prevents: `prep plan` and `prep status` that take seconds because a stage module imports torch at its head."""
    assert not loaded_after("pipeline.plan", "pipeline.run", "pipeline.cli") & {
        "ray", "faiss", "torch", "transformers", "onnxruntime", "httpx2",
    }  # fmt: skip


def test_the_file_room_is_light() -> None:
    """Prevents: a reader of shards that needs a deep-learning stack installed."""
    names = [name_of(path).removesuffix(".py").replace("/", ".") for path in MODULES if name_of(path).startswith("data/")]
    assert not loaded_after(*names) & {"ray", "faiss", "torch", "transformers", "onnxruntime"}
