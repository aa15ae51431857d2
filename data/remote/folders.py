"""Where what belongs to an address lies on this machine.

    CACHE/<kind>/s3/bucket/key...    the parts of the key, quoted where a file system or a shell would take them for something else

CACHE is the environment variable ADAM_REMOTE_CACHE, else adam-distillation/remote in the user's cache folder.
"""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

from data.files.paths import expanded

CACHE_VARIABLE = "ADAM_REMOTE_CACHE"


def cache_folder() -> Path:
    """Where copies and unfinished outputs lie."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(expanded(given, key=CACHE_VARIABLE)).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification has relative ones ignored
    return (base if base.is_absolute() else Path.home() / ".cache") / "adam-distillation" / "remote"


def folder_of(kind: str, address: str) -> Path:
    """The folder of an address among those of a kind."""
    scheme, _, key = address.rstrip("/").partition("://")
    return cache_folder().joinpath(kind, scheme, *(_quoted(part) for part in key.split("/") if part))


def address_in(parts: tuple[str, ...]) -> str:
    """The address whose folder has these parts below CACHE/<kind>."""
    return f"{parts[0]}://{'/'.join(map(urllib.parse.unquote, parts[1:]))}"


def _quoted(part: str) -> str:
    quoted = urllib.parse.quote(part, safe=" =+@,")
    return quoted.replace(".", "%2E") if part in (".", "..") else quoted
