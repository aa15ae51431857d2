"""What is looked at before the first shard is built: the store, the address, the GPU."""

from __future__ import annotations

import tempfile

from data.config.settings import Experiment
from data.errors import UserError
from data.files.what_lies import stored_table, table_name
from data.remote.object_store import is_remote
from data.store.place import open_place
from pipeline.executors.addresses import check_answers, cluster_address
from pipeline.executors.resources import device_is_here

_TRIAL = "written-as-a-trial"


def preflight(experiment: Experiment, *, uses_device: bool) -> None:
    """Raises UserError, with the remedy: a store that cannot be written, a GPU that is not there, an address that does not answer.

    Without `uses_device` no model runs, so a machine without the GPU of the settings may do the work.
    """
    place = open_place(experiment.store)
    store = place.root
    if (there := stored_table(store)) is not None:
        raise UserError(f"store={experiment.store} is {table_name(there)}: give the folder that all tables lie in, or a new one")
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise UserError(f"store={store} cannot be written: {error.strerror}; choose another store=FOLDER") from error
    if is_remote(experiment.store):
        place.put(_TRIAL, b"")
        place.delete(_TRIAL)
    address = cluster_address(experiment.runner)
    if address is not None:
        check_answers(address)
    elif uses_device and not device_is_here(experiment.runner.device):
        raise UserError(
            "runner.device=cuda, but this machine has no usable GPU; use runner.device=cpu, or runner.address=HOST:PORT of a cluster"
        )
