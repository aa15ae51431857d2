"""The commands `train run config=FILE shards=DIR [recipe=NAME] [key=value ...]` and `train push repo=ORG/NAME output=FOLDER`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from data.command import exit_codes
from data.config.fields import parse_arguments
from data.errors import UserError
from data.files.paths import expanded
from data.remote.cache import local_table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _train() -> None:
    """Train a dual encoder on the training shards of `prep`."""


@app.command()
def run(
    args: Annotated[
        list[str],
        typer.Argument(metavar="config=FILE shards=DIR [dev=DIR,DIR] [recipe=NAME] [dry_run=true] [key=value ...]", show_default=False),
    ],
) -> None:
    """Train, or go on where the run in train.output stopped.

    dry_run=true says what the run will do, need and cost, and does nothing.

    Exit codes: 0 finished, 1 failed, 2 bad configuration or input, 75 interrupted (the same command goes on).
    """
    with exit_codes():
        raise typer.Exit(_run(args))


@app.command()
def push(
    args: Annotated[
        list[str],
        typer.Argument(
            metavar="repo=ORG/NAME output=FOLDER|folder=FOLDER [private=false] [license=NAME] [message=TEXT] [dry_run=true]",
            show_default=False,
        ),
    ],
) -> None:
    """Push a trained model to the Hugging Face hub, in one commit.

    output=FOLDER is a finished run's (train.output), folder=FOLDER a model's own. A new repository is private unless private=false.
    The card must name a licence, or license= does. The token is HF_TOKEN or that of `hf auth login`. dry_run=true lists what would go.

    Exit codes: 0 pushed, 1 the hub failed, 2 bad input, no licence, no token or no permission, 75 interrupted.
    """
    from trainer.saving.push import push as push_model

    with exit_codes():
        raise typer.Exit(push_model(parse_arguments(args)))


def _run(args: list[str]) -> int:
    from trainer import recipes

    parsed = parse_arguments(args)
    shards = parsed.pop("shards", None)
    if shards is None:
        raise UserError("say what to train on: shards=DIR (the output of `prep run stage=shards`, see `prep path`; s3:// is fine)")
    shards = expanded(shards, key="shards")
    only_describe = parsed.pop("dry_run", "false")
    if only_describe not in ("true", "false"):
        raise UserError(f"dry_run={only_describe}: expected true or false")
    experiment = recipes.load(parsed)

    # Threads that spin at every barrier make a step many times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if only_describe == "true":
        from trainer.reporting.dry_run import describe

        return describe(experiment, shards_folder=local_table(shards))
    from trainer.loop import train  # imports torch, which takes seconds: not for --help, nor for a misspelt key

    return train(experiment, shards_folder=local_table(shards))


def main() -> None:
    """The command `train`; its console script is `trainer.__main__`."""
    app()
