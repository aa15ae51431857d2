"""`~` and environment variables in paths that a person writes: in every setting and argument alike, once, before anything uses them."""

from __future__ import annotations

import os
import re

from data.errors import UserError
from data.remote.object_store import is_remote

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expanded(path: str, *, key: str) -> str:
    """The path with `$NAME` and `${NAME}` replaced, then a leading `~`; of an address on an object store the variables alone.

    Raises UserError, naming the setting `key`, where the path is empty, a variable is not set or empty, or there is no such home folder.
    """
    if not path:
        raise UserError(f"{key} is empty: give a path")

    def value(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        if not os.environ.get(name):
            raise UserError(f"{key}={path}: the environment variable {name} is not set, or empty")
        return os.environ[name]

    text = _VARIABLE.sub(value, path)
    if is_remote(text) or not text.startswith("~"):
        return text
    whole = os.path.expanduser(text)
    if whole.startswith("~"):
        raise UserError(f"{key}={path}: there is no home folder {text.split('/')[0]} (a folder of that name is ./{text})")
    return whole
