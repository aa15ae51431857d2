"""The `key=value` arguments of a `retrieve` command, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from data.config.arguments import Args
from data.config.experiment_file import nested
from data.config.fields import Section, all_keys, build, expanded_paths
from data.errors import UserError
from data.files.outputs import Kind
from data.files.paths import expanded
from data.remote.cache import local_file, local_table, local_table_or_file, new_output_folder, output_file, output_folder, output_table
from retrieval.table_kinds import TableKind, checked_table, is_of_kind

SectionType = TypeVar("SectionType", bound=Section)

NOT_GIVEN = "\0"  # an empty value is one that a user may mean: student.query_prefix=


class FileArgs(Args):
    """Arguments of which some are paths, also on an object store (see `data.remote.cache`)."""

    def _path(self, key: str) -> str:
        return expanded(self[key], key=key)

    def file(self, key: str) -> Path:
        """The value as a local file."""
        return local_file(self._path(key))

    def table(self, key: str, kind: TableKind) -> Path:
        """The value as the local folder of a stored table of this kind."""
        return checked_table(local_table(self._path(key)), kind, key=key)

    def either_table(self, key: str, kind: TableKind, other: TableKind) -> tuple[Path, TableKind]:
        """The value as the local folder of a stored table, and which of two kinds that is. Raises UserError where it is neither."""
        folder = local_table(self._path(key))
        return (folder, other) if is_of_kind(folder, other) else (checked_table(folder, kind, key=key), kind)

    def table_or_file(self, key: str) -> Path:
        """The value as the local folder of a stored table, or a single file."""
        return local_table_or_file(self._path(key))

    def output_file(self, key: str, kind: Kind) -> AbstractContextManager[Path]:
        """A local path to write; it is put where the value says when the block ends well. A file of another kind is not overwritten."""
        return output_file(self._path(key), option=key, kind=kind)

    def output_table(self, key: str) -> AbstractContextManager[Path]:
        """A local folder to write; it is put where the value says when the block ends well."""
        return output_table(self._path(key), option=key)

    def output_folder(self, key: str, *, own: Sequence[str], kept: Sequence[str] = ()) -> AbstractContextManager[Path]:
        """A local folder to write files to, which may hold some of the names `own`; put where the value says, without the names `kept`."""
        return output_folder(self._path(key), option=key, own=own, kept=kept)

    def new_folder(self, key: str) -> AbstractContextManager[Path]:
        """A local folder to fill, which gets its name when the block ends well. Nothing may lie there before."""
        return new_output_folder(self._path(key), option=key)

    def section(self, model: type[SectionType], **known: str) -> SectionType:
        """A section of settings from the arguments that bear its keys and are given. `known` values give way to them."""
        named = {key: self[key] for key in all_keys(model) if self.get(key, NOT_GIVEN) != NOT_GIVEN}
        return build(model, expanded_paths(model, nested({**known, **named})))


def settings_of(model: type[Section], *names: str) -> dict[str, str]:
    """Optional arguments for some keys of a section (all but `model` where no names are given), none of them given."""
    return dict.fromkeys(names or [key for key in all_keys(model) if key != "model"], NOT_GIVEN)


def text_among(given: list[str] | None) -> list[str]:
    """The arguments with those that are no `key=value` put together as one `text=...`: a query can stand as it is, in quotes or not."""
    settings = [arg for arg in given or [] if arg.partition("=")[1] and arg.partition("=")[0].isidentifier()]
    text = [arg for arg in given or [] if arg not in settings]
    if text and any(arg.startswith("text=") for arg in settings):
        raise UserError(f"two queries: {' '.join(text)!r} and text=; leave out one")
    return [*settings, *([f"text={' '.join(text)}"] if text else [])]
