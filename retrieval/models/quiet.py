"""transformers prints bars and reports for each model it opens; a batch log has no use for them."""

from __future__ import annotations


def quiet_transformers() -> None:
    """Leave only transformers' errors."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
