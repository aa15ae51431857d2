"""What all trainings of this room have in common."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _the_machine_is_measured_briefly() -> None:
    """Each training begins with 0.3 s of matrix products, of which only a figure of the reports comes."""
    from trainer.reporting import mfu

    mfu._SECONDS = 0.0
