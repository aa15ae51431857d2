"""A local stand-in for the hub's HTTP calls: data sets as folders, answered as `huggingface_hub` asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"
_ERRORS = {"gated": (403, "GatedRepo"), "none": (404, "RepoNotFound")}


class DatasetHub:
    """Folders below `folder` are data sets `organisation/name` of revisions main and v1. `organisation/gated` asks for consent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []  # names of the files that were sent
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        """Answer `/api/datasets/ORG/NAME[/revision/REV][/tree/REV]` and `/datasets/ORG/NAME/resolve/REV/FILE`."""
        path = urllib.parse.unquote(request.path.partition("?")[0]).removeprefix("/api").removeprefix("/datasets/")
        organisation, name, *rest = path.split("/")
        if name in _ERRORS or not (self.folder / organisation / name).is_dir():
            status, code = _ERRORS.get(name, _ERRORS["none"])
            self._send(request, status, b"{}", {"X-Error-Code": code}, body=body)
        elif rest and rest[0] == "resolve":
            self._file(request, self.folder / organisation / name / "/".join(rest[2:]), body=body)
        elif rest and rest[1] not in ("main", "v1", SHA):
            self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        else:
            self._describe(request, self.folder / organisation / name, is_tree=bool(rest) and rest[0] == "tree", body=body)

    def _describe(self, request: BaseHTTPRequestHandler, folder: Path, *, is_tree: bool, body: bool) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        tree = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": SHA} for name, file in zip(names, files, strict=True)]
        info = {"id": folder.name, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
        self._send(request, 200, json.dumps(tree if is_tree else info).encode(), {"Content-Type": "application/json"}, body=body)

    def _file(self, request: BaseHTTPRequestHandler, file: Path, *, body: bool) -> None:
        content = file.read_bytes()
        if body:
            self.fetched.append(file.name)
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA}
        self._send(request, 200, content, headers, body=body)

    def _send(self, request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)


@pytest.fixture
def dataset_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    """A hub in place of the real one, and a cache of its own."""
    hub = DatasetHub(tmp_path / "hub")
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
