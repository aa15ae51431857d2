"""Which environment variables of the driver the workers of a cluster get: credentials and end points of object stores, of the hub, of a
teacher's server.

They go from process to process with the first call of a worker, and stay in memory. In a `runtime_env` of Ray they would be in its logs.
What a host knows better stays its own: proxies, and folders that it names itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from data.config.settings import Experiment

_SENT = ("AWS_", "AZURE_", "GOOGLE_", "FSSPEC_", "HF_", "ADAM_")  # beginnings of names
# Of a host: its own disks. The driver's value is for those that name none.
_FOLDERS = ("ADAM_REMOTE_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_DATASETS_CACHE")
# One set of credentials: half of it from the driver and half from the host opens nothing.
_OF_ONE_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def environment_to_send(experiment: Experiment, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The driver's variables that a worker needs: name -> value."""
    named = {experiment.teacher.http.key_variable}
    return {name: value for name, value in ours.items() if name.startswith(_SENT) or name in named}


def take_environment(sent: Mapping[str, str], ours: MutableMapping[str, str] = os.environ) -> None:
    """Make the driver's variables this process's own."""
    if "AWS_ACCESS_KEY_ID" in sent or "AWS_PROFILE" in sent:
        for name in _OF_ONE_KEY:
            ours.pop(name, None)
    for name, value in sent.items():
        if name in _FOLDERS:
            ours.setdefault(name, value)
        else:
            ours[name] = value
