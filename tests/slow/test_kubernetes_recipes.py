"""The manifests of the recipes against the API's own schemas, strictly: what `kubectl apply --validate=strict` would refuse."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.children import ROOT
from support.environments import installed

RECIPES = ROOT / "recipes" / "kubernetes"
VERSIONS = ("1.31", "1.37")  # with podFailurePolicy for good, and the newest that is known
PACKAGE = "kubernetes-validate==1.37.0"


def refusal(file: Path, version: str) -> str:
    """What a server of Kubernetes of this version has against a file; "" where it takes it."""
    program = installed(".venv-kubernetes", [PACKAGE]) / "kubernetes-validate"
    done = subprocess.run([program, "--strict", "--quiet", "-k", version, file], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 or "did not validate" in done.stdout + done.stderr, done.stderr
    return done.stdout + done.stderr if done.returncode else ""


def pods(job: Any) -> dict[str, Any]:
    """The pods of a RayJob as manifests of their own: the operator's schema is of all but them, see tests/test_queue_recipes.py."""
    cluster = job["spec"]["rayClusterSpec"]
    templates = {"head": cluster["headGroupSpec"]["template"]} | {one["groupName"]: one["template"] for one in cluster["workerGroupSpecs"]}
    return {name: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **template} for name, template in templates.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_manifests(version: str, tmp_path: Path) -> None:
    """Prevents: a field that is misspelt, or lies one level too deep, which a server refuses, or drops without a word."""
    assert refusal(RECIPES / "array.yaml", version) == ""
    spoilt = tmp_path / "array.yaml"
    spoilt.write_text((RECIPES / "array.yaml").read_text().replace("terminationGracePeriodSeconds", "terminationGraceSeconds"))
    assert "terminationGraceSeconds" in refusal(spoilt, version)
    for name, pod in pods(yaml.safe_load((RECIPES / "rayjob.yaml").read_text())).items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(pod))
        assert refusal(tmp_path / f"{name}.yaml", version) == "", name
