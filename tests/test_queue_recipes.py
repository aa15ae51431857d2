"""The recipes for batch queues: their scripts are run under a stand-in for Slurm, their manifests read as the API has them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.slurm import slurm_environment

from data.config.fields import parse_arguments
from data.config.settings import load
from data.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from pipeline.plan import STAGES
from pipeline.sharing.parts import Part

RECIPES = Path(__file__).parents[1] / "recipes"


def prep_that(folder: Path, body: str) -> str:
    """A folder with a `prep` that notes its arguments and does what the body says."""
    folder.mkdir()
    (folder / "prep").write_text(f'#!/usr/bin/env bash\necho "$@" >>"{folder}/args"\n{body}\n')
    (folder / "prep").chmod(0o755)
    return str(folder)


def submit(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sbatch", "--parsable", *args], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.medium
@pytest.mark.parametrize("requeue_exit", ["", "75"], ids=["the script asks for it", "RequeueExit=75"])
def test_a_task_that_is_told_to_stop_starts_again(tmp_path: Path, requeue_exit: str) -> None:
    """Prevents: a signal that ends the shell and not the work, a task that is not started again, or that is started twice."""
    marker = tmp_path / "told"
    body = (
        f'if [[ -e "{marker}" ]]; then exit 0; fi\n'
        f"trap 'touch \"{marker}\"; exit {EXIT_INTERRUPTED}' TERM\n"
        f'touch "{tmp_path}/ready"\nwhile :; do sleep 0.05; done'
    )
    first = prep_that(tmp_path / "bin", body)
    faults = {"prep/0": ("TERM", str(tmp_path / "ready"))}
    environment = slurm_environment(tmp_path / "slurm", requeue_exit=requeue_exit, faults=faults, first=first)
    done = submit(environment, "--array=0-0", str(RECIPES / "slurm" / "array.sh"), "config=x.yaml", "stage=embed")
    assert done.returncode == 0, done.stderr
    said = "config=x.yaml stage=embed part=0/1 runner=local runner.threads=1"
    assert (tmp_path / "bin" / "args").read_text().splitlines() == [f"run {said}"] * 2
    log = (tmp_path / "slurm" / "prep-0.log").read_text()
    assert re.findall(r"ended with (-?\d+)", log) == ["75", "0"], log
    assert (tmp_path / "slurm" / f"{done.stdout.strip()}.ok").exists()


@pytest.mark.medium
def test_a_task_whose_input_is_bad_does_not_start_again(tmp_path: Path) -> None:
    """Prevents: a misspelt setting that a queue tries for ever, and a chain that goes on after it."""
    environment = slurm_environment(tmp_path / "slurm", first=prep_that(tmp_path / "bin", f"exit {EXIT_BAD_INPUT}"))
    environment["PARTS"] = "16"
    done = submit(environment, "--array=3,7", str(RECIPES / "slurm" / "array.sh"), "stage=embed")
    assert sorted(re.findall(r"part=\S+", (tmp_path / "bin" / "args").read_text())) == ["part=3/16", "part=7/16"]
    job = done.stdout.strip()
    assert not (tmp_path / "slurm" / f"{job}.ok").exists()
    after = submit(environment, f"--dependency=afterok:{job}", str(RECIPES / "slurm" / "array.sh"))
    assert after.returncode == 1 and "never be satisfied" in after.stderr


@pytest.mark.medium
def test_the_chain_submits_each_stage_after_the_one_before(tmp_path: Path) -> None:
    """Prevents: a stage that is left out, or an array that starts before its input is there."""
    environment = slurm_environment(tmp_path / "slurm", first=prep_that(tmp_path / "bin", "exit 0")) | {"PARTS": "2", "GPU": "--gres=gpu:1"}
    script = RECIPES / "slurm" / "chain.sh"
    done = subprocess.run(["bash", script, "config=x.yaml"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    calls = [re.findall(r"(?:stage|part)=(\S+)", line) for line in (tmp_path / "bin" / "args").read_text().splitlines()]
    stages = [stage for stage, _ in calls]
    assert list(dict.fromkeys(stages)) == ["ingest", "embed", "pools", "hard_negatives", "dark_examples", "teacher_scores", "all"]
    assert all(stage in (*STAGES, "all") and Part.parse(part) for stage, part in calls)
    assert stages.count("embed") == 2 and stages.count("all") == stages.count("ingest") == 1


def manifest(name: str) -> Any:
    return yaml.safe_load((RECIPES / "kubernetes" / name).read_text())


def check_pod(template: Any) -> Any:
    """A pod whose mounts are of volumes that it has; returns its only container."""
    pod = template["spec"]
    assert set(pod) <= {"restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
    (container,) = pod["containers"]
    assert set(container) <= {"name", "image", "workingDir", "env", "command", "resources", "volumeMounts"}
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    return container


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`prep run` takes these arguments."""
    assert words[:2] == ["prep", "run"]
    given = parse_arguments(words[2:])
    assert given.pop("stage") in (*STAGES, "all")
    Part.parse(given.pop("part", "").replace("$(PART)", "3"))
    shutil.copyfile(RECIPES / "adam" / "msmarco.yaml", folder / "experiment.yaml")
    monkeypatch.chdir(folder)
    load({**given, "config": "experiment.yaml"})


def test_the_indexed_job_is_one_of_the_api_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents: a Job that the server refuses, that gives up after a few evictions, or that repeats bad input for ever."""
    job = manifest("array.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert set(spec) == {"completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy", "template"}
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"  # the policy asks for it
    container = check_pod(spec["template"])
    actions: dict[int, str] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("Ignore", "Count", "FailJob", "FailIndex")
        assert len(rule.keys() & {"onExitCodes", "onPodConditions"}) == 1
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"] and codes["operator"] == "In"
            actions |= dict.fromkeys(codes["values"], rule["action"])
    assert actions == {EXIT_INTERRUPTED: "Ignore", EXIT_BAD_INPUT: "FailJob"}
    assert f"part=$(PART)/{spec['completions']}" in container["command"]
    check_command(container["command"], monkeypatch, tmp_path)


def test_the_ray_job_is_one_of_kuberay_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents: a RayJob that the operator refuses, an open cluster, or a head that is given work."""
    job = manifest("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["authOptions"] == {"mode": "token"} and cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    constraints = (RECIPES.parent / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}" in constraints
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    head, worker = check_pod(cluster["headGroupSpec"]["template"]), check_pod(workers["template"])
    assert head["image"] == worker["image"] and head["volumeMounts"] == worker["volumeMounts"]
    check_command(spec["entrypoint"].replace("/mnt/", "").split(), monkeypatch, tmp_path)


def refused_by_kuberay(job: Any) -> list[str]:
    """What the schema of KubeRay 1.5.1, the oldest that the recipe names, has against a RayJob: a field that it does not know, too. Of pods
    it says nothing: tests/slow/test_kubernetes_recipes.py."""
    from jsonschema import Draft7Validator

    schema = json.loads((Path(__file__).parent / "support" / "kuberay_rayjob.json").read_text())
    return [error.message for error in Draft7Validator(schema).iter_errors(job)]


def test_the_ray_job_fits_the_operator_s_schema() -> None:
    """Prevents: a field of the RayJob that is misspelt or lies at the wrong level, so that the cluster is open, or never scales."""
    assert refused_by_kuberay(manifest("rayjob.yaml")) == []
    for spoil, said in (
        (lambda cluster: cluster.update(authOption={"mode": "token"}), "'authOption' was unexpected"),
        (lambda cluster: cluster.update(authOptions={"mode": "tokens"}), "'tokens' is not one of"),
        (lambda cluster: cluster["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not of type 'string'"),
        (lambda cluster: cluster["workerGroupSpecs"][0].pop("groupName"), "'groupName' is a required property"),
    ):
        job = manifest("rayjob.yaml")
        spoil(job["spec"]["rayClusterSpec"])
        (refusal,) = refused_by_kuberay(job)
        assert said in refusal
