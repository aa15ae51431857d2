"""Certificates as somebody makes them for a private cluster: an authority, and one certificate a host that serves both sides."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HAVE_OPENSSL = shutil.which("openssl") is not None
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")


def _request(*words: object) -> None:
    subprocess.run(["openssl", "req", "-x509", *_KEY, *map(str, words)], check=True, capture_output=True, text=True)


class Authority:
    """What signs certificates; its own lies in `folder`/ca.crt."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._own = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key")
        _request("-keyout", folder / "ca.key", "-out", folder / "ca.crt", "-subj", f"/CN={folder.name}")

    def variables(self, name: str, names: Sequence[str]) -> dict[str, str]:
        """What Ray's TLS wants of a host: a new certificate for `names`, as IP:10.0.0.1 or DNS:head."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={','.join(names)}", "-addext", "basicConstraints=critical,CA:FALSE")
        _request(*self._own, "-keyout", key, "-out", certificate, *subject)
        files = {"CA_CERT": self._folder / "ca.crt", "SERVER_CERT": certificate, "SERVER_KEY": key}
        return {"RAY_USE_TLS": "1"} | {f"RAY_TLS_{what}": str(path) for what, path in files.items()}
