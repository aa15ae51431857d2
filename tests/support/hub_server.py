"""The hub's HTTP calls for an upload, on this machine: what its client sends lies in memory afterwards."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_a_test"


class HubServer:
    """Repositories as {path: content}, with their visibility; `fail` maps the start of a path to a status with which it answers."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        for start, status in self.fail.items():
            if path.startswith(start):
                return status, {"error": f"a made-up failure of {start}"}
        if path.startswith("/objects/"):
            oid = path.removeprefix("/objects/")
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "another sha256"}
            self.objects[oid] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            wrong = not isinstance(yaml.safe_load(front).get("tags", []), list)
            return (400 if wrong else 200), {"errors": [{"message": '"tags" must be an array'}] * wrong, "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [{**one, "actions": {"upload": {"href": f"{self.url}/objects/{one['oid']}"}}} for one in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        kind, _, rest = path.removeprefix("/api/models/").partition("/")
        name, _, call = rest.partition("/")
        return self._repository(f"{kind}/{name}", call, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo], self.visibility[repo] = {}, asked.get("visibility", "public")
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def _repository(self, repo: str, call: str, body: bytes) -> tuple[int, Any]:
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if call == "":
            return 200, {"id": repo, "sha": "0" * 40, "private": self.visibility[repo] == "private"}
        if call.startswith("preupload/"):
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
            return 200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
        assert call.startswith("commit/"), call
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            else:
                self.repos[repo][value["path"]] = self.objects[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextlib.contextmanager
def served() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = hub.answer(self.command, self.path.partition("?")[0], body, self.headers.get("Authorization", ""))
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = _reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
