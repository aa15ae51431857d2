"""`train push`: a trained model's folder as a repository of the Hugging Face hub, in one commit.

All that can be known is checked before anything is sent. Nothing in the folder is changed: the licence and the repository's name are put
into the card that goes.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.config.fields import unknown_key
from data.errors import EXIT_COMPLETE, RunFailed, UserError, first_line
from data.files.paths import expanded
from data.files.what_lies import what_lies
from retrieval.merging.merge import RECORD
from trainer.saving.output_folder import CARD_NAME, OPEN_LICENSE, RESULT_NAME, RUN_NAME, THIS_MODEL

_KEYS = ("repo", "output", "folder", "private", "license", "message", "dry_run")
_MODELS = ("student", "dual_encoder", "cross_encoder")
_CONFIGS = ("config.json", "modules.json", "adapter_config.json")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(r"^license:.*\n(?:[ \t]*-.*\n|[ \t]+.*\n)*", re.MULTILINE)  # or a list of them, over several lines


@dataclass(frozen=True)
class Push:
    """What is asked for."""

    repo: str
    folder: Path
    private: bool | None  # None: of a new repository true, of an old one what it is
    license: str | None
    message: str
    dry_run: bool


def push(words: dict[str, str]) -> int:
    """Push what the words of the command line name. Returns the exit code.

    Raises UserError: a wrong word or name, no model there, no licence, no token, no permission. RunFailed where the hub fails.
    """
    asked = _asked(words)
    files = model_files(asked.folder)
    contents = _cards(asked, files)
    contents |= _adapter_configs(asked, files, contents)
    if asked.dry_run:
        _print_plan(asked, files, contents)
        return EXIT_COMPLETE
    _check_license(asked, contents)
    address = _send(asked, files, contents)
    print(f"pushed {len({*files, *contents})} files ({_megabytes(files)}) of {asked.folder} to {address}")
    return EXIT_COMPLETE


def _asked(words: dict[str, str]) -> Push:
    if wrong := [word for word in words if word not in _KEYS]:
        raise unknown_key(wrong[0], valid=list(_KEYS))
    repo = words.get("repo")
    if not repo:
        raise UserError("say where to push to: repo=ORGANISATION/NAME of the hub")
    _check_repo(repo)
    switches = {name: _switch(name, words[name]) for name in ("private", "dry_run") if name in words}
    folder = _folder(words)
    license_ = words.get("license")
    if license_ is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", license_):
        raise UserError(f"license={license_}: expected an identifier of the hub, as apache-2.0, mit, cc-by-nc-4.0 or other")
    message = words.get("message") or f"Upload {folder.name}"
    return Push(repo, folder, switches.get("private"), license_, message, switches.get("dry_run", False))


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo}: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"repo={repo}: expected ORGANISATION/NAME, or your own name before the slash")


def _switch(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UserError(f"{name}={value}: expected true or false")
    return value == "true"


def _folder(words: dict[str, str]) -> Path:
    """The model's folder: the one given, or the one in a finished run's."""
    if ("output" in words) == ("folder" in words):
        raise UserError("say what to push: output=FOLDER of a finished run (train.output), or folder=FOLDER of a model; one of them")
    if "folder" in words:
        return Path(expanded(words["folder"], key="folder"))
    output = Path(expanded(words["output"], key="output"))
    if not (output / RESULT_NAME).is_file():
        found = "the run in it is not finished" if (output / RUN_NAME).is_file() else f"it is {what_lies(output)}"
        raise UserError(f"output={output} has no {RESULT_NAME}: {found}; give the folder of a finished run, or folder=FOLDER of a model")
    models = [output / name for name in _MODELS if (output / name).is_dir()]
    if len(models) != 1:
        raise UserError(f"output={output} holds {len(models)} trained models; give the model's own folder as folder=FOLDER")
    return models[0]


def model_files(folder: Path) -> list[Path]:
    """The files that go, sorted; without hidden and temporary ones, and what a training needs to go on.

    Raises UserError where the folder is no model's.
    """
    if (folder / RUN_NAME).is_file():
        raise UserError(f"folder={folder} is a run's, not a model's; give it as output={folder}")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _stays(path.relative_to(folder)))
    names = {path.relative_to(folder).as_posix() for path in paths}
    if not names & set(_CONFIGS) or not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"folder={folder} is {what_lies(folder)}; expected a model's: a config.json (or modules.json) and .safetensors in it"
        )
    return paths


def _stays(path: Path) -> bool:
    hidden = any(part.startswith(".") or part in ("checkpoints", "__pycache__") for part in path.parts)
    return hidden or path.name.startswith("optimizer.") or path.name == RECORD or path.suffix in (".tmp", ".lock")


def _cards(asked: Push, files: list[Path]) -> dict[Path, bytes]:
    """The cards as they go: with the licence that was given, and the repository's name in the code that shows the use."""
    cards: dict[Path, bytes] = {}
    for path in {asked.folder / CARD_NAME, *(path for path in files if path.name == CARD_NAME)}:
        text = _text(path) if path.is_file() else ""
        front = _front(text, path)
        if asked.license and (path.parent == asked.folder or front.get("license") == OPEN_LICENSE):
            text = _with_license(text, asked.license)
        cards[path] = text.replace(f'("{THIS_MODEL}")', f'("{asked.repo}")').encode()
    return cards


def _adapter_configs(asked: Push, files: list[Path], cards: dict[Path, bytes]) -> dict[Path, bytes]:
    """The configurations of adapters whose base is a folder of this machine, as they go: with the base model that the card names.

    Raises UserError where it names none: nobody else could open the adapter.
    """
    contents: dict[Path, bytes] = {}
    for path in (path for path in files if path.name == "adapter_config.json"):
        config = json.loads(_text(path))
        base = str(config.get("base_model_name_or_path"))
        if not os.path.isabs(base) and not os.path.exists(path.parent / base):
            continue
        card = path.parent / CARD_NAME if path.parent / CARD_NAME in cards else asked.folder / CARD_NAME
        named = _front(cards[card].decode(), card).get("base_model")
        if not isinstance(named, str):
            raise UserError(
                f"{path}: its base is a folder of this machine, {base}, which nobody else has: write `base_model: ORG/NAME` into the front "
                f"matter of {card}, or delete {path.parent} to push without the adapter"
            )
        contents[path] = json.dumps({**config, "base_model_name_or_path": named}, indent=2).encode()
    return contents


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as such") from error


def _front(text: str, path: Path) -> dict[str, Any]:
    """A card's front matter. Raises UserError where it is no mapping in YAML."""
    found = _FRONT.match(text)
    try:
        values = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: its front matter is no YAML ({first_line(error)}); mend it") from error
    if not isinstance(values, dict | None):
        raise UserError(f"{path}: its front matter is {type(values).__name__}, expected `name: value` lines")
    return values or {}


def _with_license(text: str, license_: str) -> str:
    found = _FRONT.match(text)
    if not found:
        return f"---\nlicense: {license_}\n---\n\n{text}"
    start, end = found.span(1)
    lines = _LICENSE.sub("", text[start:end])
    return f"{text[:start]}{lines}license: {license_}\n{text[end:]}"


def _check_license(asked: Push, contents: dict[Path, bytes]) -> None:
    path = asked.folder / CARD_NAME
    if not _has_license(_front(contents[path].decode(), path)):
        raise UserError(
            f"{path} names no licence, without which nobody may use the model: write one into its line `license:`, or give "
            "license=apache-2.0, or another identifier of the hub; the licences of base model and data may bind you"
        )


def _has_license(front: dict[str, Any]) -> bool:
    return front.get("license") not in (None, "", OPEN_LICENSE)


def _send(asked: Push, files: list[Path], contents: dict[Path, bytes]) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not get_token():
        raise UserError("no token of the hub: set HF_TOKEN to one that may write, or log in with `hf auth login`")
    api = HfApi(library_name="adam-distillation")
    names = {path: path.relative_to(asked.folder).as_posix() for path in dict.fromkeys([*files, *contents])}
    try:
        address = str(api.create_repo(asked.repo, private=asked.private is not False, exist_ok=True))
        if asked.private is not None and bool(api.repo_info(asked.repo).private) != asked.private:
            now = "public" if asked.private else "private"
            raise UserError(f"repo={asked.repo} is there already, and {now}: change that in its settings on the hub, or leave private out")
        additions = [CommitOperationAdd(name, contents.get(path, path)) for path, name in names.items()]
        api.create_commit(asked.repo, additions, commit_message=asked.message)
    except OfflineModeIsEnabled as error:
        raise UserError(f"the hub is switched off here (HF_HUB_OFFLINE): unset it; nothing was sent. {first_line(error)}") from error
    except HfHubHTTPError as error:
        raise _refused(asked, error) from error
    except ValueError as error:  # of the card's metadata
        raise UserError(f"the hub does not take the card {asked.folder / CARD_NAME}: {' '.join(str(error).split())}") from error
    except UserError:
        raise
    except Exception as error:  # the client raises many kinds: no network, no name, a proxy
        raise RunFailed(
            f"{api.endpoint} cannot be reached, or broke off ({type(error).__name__}: {first_line(error)}); nothing was published: "
            "start the same command again"
        ) from error
    return address


def _refused(asked: Push, error: Any) -> UserError | RunFailed:
    status = getattr(error.response, "status_code", 0)
    said = error.server_message or first_line(error)
    if status in (401, 403, 404):
        whose = asked.repo.partition("/")[0]
        return UserError(f"repo={asked.repo}: the hub refuses it ({status}: {said}); the token must be one that may write to {whose}")
    if 400 <= status < 500 and status not in (408, 429):
        return UserError(f"repo={asked.repo}: the hub refuses it ({status}: {said})")
    return RunFailed(f"the hub failed ({status}: {said}); nothing was published: start the same command again")


def _print_plan(asked: Push, files: list[Path], contents: dict[Path, bytes]) -> None:
    for path in dict.fromkeys([*files, *sorted(contents)]):
        size = len(contents[path]) if path in contents else path.stat().st_size
        print(f"{size:>14,}  {path.relative_to(asked.folder).as_posix()}")
    visible = "public" if asked.private is False else "private, if it is new"
    print(f"would push {len({*files, *contents})} files ({_megabytes(files)}) to {asked.repo} ({visible}); nothing was sent")
    if not _has_license(_front(contents[asked.folder / CARD_NAME].decode(), asked.folder / CARD_NAME)):
        print("the card names no licence yet: give license=...")


def _megabytes(files: list[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
