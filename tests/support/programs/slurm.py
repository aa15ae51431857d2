"""`slurm.py sbatch|scontrol ARGUMENT ...`: as much of Slurm as job arrays need, on this machine. sbatch returns when the job has ended.

Array tasks are processes, all at once. One that exits with 75 starts again where RequeueExit says so, or where it asked for it by
`scontrol requeue`; one that is killed, as by a dead node, where the job has --requeue. Variables: SLURM_STANDIN is a folder for what
is to be remembered, SLURM_REQUEUE_EXIT what `scontrol show config` says, and SLURM_FAULTS {"<job name>/<task>": ["TERM"|"KILL", pattern]}
what hits a task's first attempt as soon as a file of the pattern is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from glob import glob
from pathlib import Path

STATE = Path(os.environ["SLURM_STANDIN"])


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sbatch", allow_abbrev=False)
    for name in ("parsable", "requeue"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("job-name", "array", "cpus-per-task", "mem", "time", "signal", "open-mode", "output", "dependency", "gres"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--kill-on-invalid-dep", choices=["yes", "no"])
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    return parser


def settings(given: list[str]) -> argparse.Namespace:
    """Those of the script's #SBATCH lines, which end at its first command, under those of the command line."""
    script = options().parse_args(given).script
    head: list[str] = []
    for line in Path(script).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            head += shlex.split(line.removeprefix("#SBATCH "))
    return options().parse_args([*head, *given])


def requeues_by_itself() -> bool:
    return os.environ.get("SLURM_REQUEUE_EXIT") == "75"


class Task:
    """One task of an array, over all its attempts."""

    def __init__(self, job: int, number: int, numbers: list[int], chosen: argparse.Namespace, script: Path) -> None:
        self.id = job + 1 + number
        self.code: int | None = None
        self._chosen, self._script = chosen, script
        self._name = f"{chosen.job_name}/{number}"
        self._log = STATE / f"{chosen.job_name}-{number}.log"
        self._environment = {
            **os.environ, "SLURM_JOB_ID": str(self.id), "SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_MAX": str(max(numbers)), "SLURM_ARRAY_TASK_COUNT": str(len(numbers)), "SLURM_CPUS_PER_TASK": "1",
        }  # fmt: skip

    def run(self) -> None:
        fault = json.loads(os.environ.get("SLURM_FAULTS", "{}")).get(self._name)
        for attempt in range(50):
            with self._log.open("a" if self._chosen.open_mode == "append" else "w") as log:
                print(f"attempt {attempt}", file=log, flush=True)
                process = subprocess.Popen(
                    ["bash", self._script, *self._chosen.args], env=self._environment, stdout=log, stderr=log, start_new_session=True
                )
                if fault and attempt == 0:
                    self._hit(process, *fault)
                self.code = process.wait()
                print(f"ended with {self.code}", file=log, flush=True)
            if not self._goes_on(self.code):
                return

    def _hit(self, process: subprocess.Popen[bytes], name: str, pattern: str) -> None:
        until = time.monotonic() + 300
        while not glob(pattern) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if name == "KILL":
            os.killpg(process.pid, signal.SIGKILL)
        elif (self._chosen.signal or "").startswith("B:TERM"):
            process.terminate()  # the batch shell alone

    def _goes_on(self, code: int) -> bool:
        asked = STATE / f"requeue-{self.id}"
        if asked.exists():
            asked.unlink()
            return True
        return (code == 75 and requeues_by_itself()) or (code == -signal.SIGKILL and self._chosen.requeue)


def sbatch(given: list[str]) -> int:
    chosen = settings(given)
    after = re.fullmatch(r"afterok:([0-9]+)", chosen.dependency or "afterok:0")
    if not after or (after[1] != "0" and not (STATE / f"{after[1]}.ok").exists()):
        print(f"sbatch: error: dependency {chosen.dependency} will never be satisfied", file=sys.stderr)
        return 1
    job = 1000 * (1 + len(list(STATE.glob("*.sh"))))
    spooled = STATE / f"{job}.sh"
    shutil.copyfile(chosen.script, spooled)  # as Slurm does: a script cannot find its neighbours
    numbers: list[int] = []
    for one in (chosen.array or "0").split(","):
        first, _, last = one.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    tasks = [Task(job, number, numbers, chosen, spooled) for number in numbers]
    threads = [threading.Thread(target=task.run) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if all(task.code == 0 for task in tasks):
        (STATE / f"{job}.ok").touch()
    print(job if chosen.parsable else f"Submitted batch job {job}")
    return 0


def scontrol(given: list[str]) -> int:
    if given == ["show", "config"]:
        print(f"RequeueExit             = {os.environ.get('SLURM_REQUEUE_EXIT') or '(null)'}\nRequeueExitHold         = (null)")
        return 0
    command, job = given
    assert command == "requeue"
    (STATE / f"requeue-{job}").touch()
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
