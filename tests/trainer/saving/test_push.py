"""`train push`: what arrives at the hub, and what is told before anything is sent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.children import environment, loaded_by
from support.hub_server import TOKEN, HubServer, served

from data.errors import UserError
from trainer.saving.push import model_files, push

WEIGHTS = os.urandom(70_000)
CARD = """---
library_name: sentence-transformers
license: FILL_IN # the licence of this model; `train push` waits for it
tags: [a, b]
---

# Model

SentenceTransformer("this-model"), not this-model
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A finished run's folder."""
    run = tmp_path / "a run"
    for name, content in {
        "result.json": b"{}", "run.json": b"{}", "metrics.jsonl": b"", "checkpoints/step-00000002/optimizer.safetensors": b"moments",
        "student/config.json": b"{}", "student/modules.json": b"[]", "student/model.safetensors": WEIGHTS,
        "student/1_Pooling/config.json": b"{}", "student/README.md": CARD.encode(), "student/adapter/README.md": CARD.encode(),
        "student/adapter/adapter_model.safetensors": WEIGHTS[::-1], "student/.cache/secret": b"x", "student/optimizer.safetensors": b"m",
        "student/.README.md.x.tmp": b"", "student/checkpoints/state.json": b"{}", "student/ä ö.txt": b"words",
    }.items():  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    return run


def pushed(hub: HubServer, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the client reads the hub's address when it is imported."""
    own = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    program = [sys.executable, "-m", "trainer", "push", *words]
    return subprocess.run(program, env=environment(**{**own, **variables}), capture_output=True, text=True, timeout=120)


@pytest.mark.medium
def test_what_arrives_is_the_model_and_its_card(tmp_path: Path, output: Path) -> None:
    """Prevents: an upload without weights, with the optimizer's state or hidden files, public without being asked, or of a changed card."""
    with served() as hub:
        done = pushed(hub, tmp_path, "repo=ours/student-1", f"output={output}", "license=apache-2.0", "message=First words")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(f"to {hub.url}/ours/student-1") and TOKEN not in done.stdout + done.stderr
        repo = hub.repos["ours/student-1"]
        assert set(repo) == {
            "config.json", "modules.json", "model.safetensors", "1_Pooling/config.json", "README.md", "adapter/README.md",
            "adapter/adapter_model.safetensors", "ä ö.txt",
        }  # fmt: skip
        assert repo["model.safetensors"] == WEIGHTS and repo["adapter/adapter_model.safetensors"] == WEIGHTS[::-1]
        assert hub.visibility["ours/student-1"] == "private" and hub.messages == ["First words"]
        for name in ("README.md", "adapter/README.md"):
            _, front, text = repo[name].decode().split("---\n")
            assert yaml.safe_load(front) == {"library_name": "sentence-transformers", "license": "apache-2.0", "tags": ["a", "b"]}
            assert text == '\n# Model\n\nSentenceTransformer("ours/student-1"), not this-model\n'
        assert (output / "student" / "README.md").read_text() == CARD

        again = pushed(hub, tmp_path, "repo=ours/student-1", f"folder={output / 'student'}", "license=mit")
        assert again.returncode == 0 and b"license: mit" in repo["README.md"] and hub.visibility["ours/student-1"] == "private"
        asked = len(hub.calls)
        public = pushed(hub, tmp_path, "repo=ours/student-1", f"output={output}", "license=mit", "private=false")
        assert public.returncode == 2 and "is there already, and private" in public.stderr
        assert not [call for call in hub.calls[asked:] if "commit" in call or "preupload" in call]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("fail", "variables", "code", "expected"),
    [
        ({}, {"HF_TOKEN": ""}, 2, "no token of the hub: set HF_TOKEN"),
        ({}, {"HF_TOKEN": "hf_wrong"}, 2, r"refuses it \(401: .*may write to ours"),
        ({"/api/repos/create": 403}, {}, 2, r"refuses it \(403: a made-up failure"),
        ({"/api/models/ours/m/commit": 500}, {}, 1, "the hub failed .*nothing was published"),
        ({"/objects": 400}, {}, 1, "broke off .*nothing was published"),
        ({}, {"HF_HUB_OFFLINE": "1"}, 2, "HF_HUB_OFFLINE.*nothing was sent"),
        ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "127.0.0.1:9 cannot be reached.*nothing was published"),
    ],
    ids=["no-token", "wrong-token", "forbidden", "commit", "objects", "offline", "no-network"],
)
def test_a_hub_that_does_not_take_it(
    tmp_path: Path, output: Path, fail: dict[str, int], variables: dict[str, str], code: int, expected: str
) -> None:
    """Prevents: a traceback of the client's, a token in the output, or half a model on the hub."""
    with served() as hub:
        hub.fail = fail
        done = pushed(hub, tmp_path, "repo=ours/m", f"output={output}", "license=mit", **variables)
    said = " ".join(done.stderr.split())
    assert done.returncode == code and re.search(expected, said), said
    assert "Traceback" not in said and TOKEN not in said and not hub.repos.get("ours/m")


@pytest.mark.medium
def test_a_card_that_the_hub_refuses(tmp_path: Path, output: Path) -> None:
    """Prevents: the client's traceback for metadata that is YAML, and not what the hub knows."""
    (output / "student" / "README.md").write_text("---\nlicense: mit\ntags: {a: b}\n---\n")
    with served() as hub:
        done = pushed(hub, tmp_path, "repo=ours/m", f"output={output}")
    assert done.returncode == 2 and "the hub does not take the card" in done.stderr and '"tags" must be an array' in done.stderr


def test_a_dry_run_lists_what_would_go(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a dry run that sends, wants a token, or lists other files than those that go."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", None)
    assert push({"repo": "ours/m", "output": str(output), "dry_run": "true"}) == 0
    printed = capsys.readouterr().out
    listed = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+)  (.+)$", printed, flags=re.MULTILINE)}
    assert listed["model.safetensors"] == 70_000 and len(listed) == 8 and "optimizer.safetensors" not in listed
    assert "would push 8 files (0.1 MB) to ours/m (private, if it is new)" in printed and "names no licence yet" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, "say where to push to: repo="),
        ({"repo": "m"}, "expected ORGANISATION/NAME"),
        ({"repo": "a/b/c"}, "repo=a/b/c: Repo id must"),
        ({"repo": "ours/a b"}, "Repo id must use alphanumeric"),
        ({"repo": "ours/m", "private": "yes"}, "private=yes: expected true or false"),
        ({"repo": "ours/m", "licence": "mit"}, "unknown key licence; nearest: license"),
        ({"repo": "ours/m", "license": "My own: words"}, "license=My own: words: expected an identifier"),
        ({"repo": "ours/m", "folder": "x"}, "one of them"),
        ({"repo": "ours/m", "output": ""}, "no licence"),
        ({"repo": "ours/m", "output": "elsewhere"}, "output=.*elsewhere has no result.json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_words_are_told(output: Path, words: dict[str, str], expected: str) -> None:
    """Prevents: an upload to another place, or a guess, where a word is wrong or missing."""
    given = {"output": str(output), **words}
    if not given["output"]:
        given["output"] = str(output)
    with pytest.raises(UserError, match=expected):
        push(given)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "names no licence"), (b"# only words\nlicense: mit\n", "names no licence"), (b"---\n---\n", "names no licence"),
        (b"---\nlicense:\n---\n", "names no licence"), (b"---\n- a\n---\n", "front matter is list"), (b"---\na: [\n---\n", "is no YAML"),
        (b"\xff\xfe", "no text in UTF-8"), (None, "names no licence"),
    ],
)  # fmt: skip
def test_a_card_without_a_licence_is_not_pushed(output: Path, content: bytes | None, expected: str) -> None:
    """Prevents: a model in public that nobody may use, since a line was forgotten."""
    path = output / "student" / "README.md"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        push({"repo": "ours/m", "output": str(output)})


@pytest.mark.parametrize("content", [None, "# words\n", "---\n---\nwords\n", "---\r\nlicense: gpl\r\ntags: [a]\r\n---\r\nwords\r\n",
                                     "---\nlicense:\n- mit\n- gpl\ntags: [a]\n---\n", "---\nlicense_name: x\n---\n"])  # fmt: skip
def test_a_licence_that_is_given_goes_into_any_card(output: Path, content: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a card that is no YAML any more, or has two licences, or none, after the one that was given was put in."""
    path = output / "student" / "README.md"
    path.unlink() if content is None else path.write_bytes(content.encode())
    sent: dict[str, Any] = {}
    monkeypatch.setattr("trainer.saving.push._send", lambda asked, files, contents: sent.update(contents) or "there")
    assert push({"repo": "ours/m", "output": str(output), "license": "apache-2.0"}) == 0
    front = sent[path].decode().replace("\r", "").split("---\n")[1]
    assert yaml.safe_load(front)["license"] == "apache-2.0" and front.count("license:") == 1


def test_no_folder_of_this_machine_is_published(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: somebody's home in public, and an adapter that nobody else can open."""
    student = output / "student"
    (student / "merge.json").write_text(json.dumps({"models": ["/home/me/a"]}))
    config, card = student / "adapter" / "adapter_config.json", student / "adapter" / "README.md"
    config.write_text(json.dumps({"base_model_name_or_path": "/home/me/base", "r": 4}))
    sent: dict[str, Any] = {}
    monkeypatch.setattr("trainer.saving.push._send", lambda asked, files, contents: sent.update(dict.fromkeys(files) | contents) or "there")
    words = {"repo": "ours/m", "output": str(output), "license": "mit"}
    with pytest.raises(UserError, match=r"adapter_config.json: its base is a folder of this machine, /home/me/base"):
        push(words)
    card.write_text(CARD.replace("tags:", "base_model: ours/base\ntags:"))
    assert push(words) == 0
    assert json.loads(sent[config]) == {"base_model_name_or_path": "ours/base", "r": 4}
    assert student / "merge.json" not in sent and "home" in config.read_text()
    config.write_text(json.dumps({"base_model_name_or_path": "ours/base"}))
    sent.clear()
    assert push(words) == 0 and sent[config] is None  # goes as it is


def test_what_is_no_model_is_told(output: Path, tmp_path: Path) -> None:
    """Prevents: a whole run with its checkpoints in public, or an empty repository."""
    with pytest.raises(UserError, match=r"is a run's, not a model's; give it as output="):
        push({"repo": "ours/m", "folder": str(output)})
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="expected a model's"):
            model_files(folder)
    (output / "result.json").unlink()
    with pytest.raises(UserError, match="the run in it is not finished"):
        push({"repo": "ours/m", "output": str(output)})


@pytest.mark.medium
def test_a_push_imports_no_torch() -> None:
    """Prevents: seconds of imports for a misspelt word."""
    done, loaded = loaded_by("train", "push", "repo=ours")
    assert done.returncode == 2 and "ORGANISATION/NAME" in done.stderr and "torch" not in loaded
