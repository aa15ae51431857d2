"""Tiny models with random weights, a small collection, and one finished run that tests copy from."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from data.command import STOP_SIGNALS

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("untimed")

SYLLABLES = [f"{consonant}{vowel}" for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES)]

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "ingest": {"corpus_shards": 3, "query_shards": 2},
    "student": {"query_tokens": 16, "passage_tokens": 48},
    "teacher": {"precision": "fp32", "max_tokens": 64},
    "embed": {"precision": "fp32"},
    "hard_negatives": {"depth": 20, "range_max": 20, "num_negatives": 3},
    "runner": {"kind": "local"},
    "train": {"precision": "fp32", "epochs": 2, "batch_queries": 4, "warmup_steps": 2, "learning_rate": "1e-3"},
}


@dataclass(frozen=True)
class Models:
    """Folders of a student and a teacher."""

    student: Path
    teacher: Path


@dataclass(frozen=True)
class Finished:
    """A config file and the store of its complete run: to be read or copied, never changed."""

    config: Path
    store: Path


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much where the machine is busy."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard() -> Iterator[None]:
    """Whoever starts the tests in the background or under nohup has them ignore signals, which the commands respect."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        if before[number] is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _save_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A student (sentence-transformers folder, mean pooling) and a teacher (one output)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    folder = tmp_path_factory.mktemp("models")
    sizes = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(folder / "student")
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(folder / "teacher")
    for name in ("student", "teacher"):
        _save_tokenizer(folder / name)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"} for n, (p, k) in enumerate(modules)]
    (folder / "student" / "modules.json").write_text(json.dumps(listed))
    (folder / "student" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "student" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return Models(folder / "student", folder / "teacher")


def _text(chance: random.Random, words: int) -> str:
    """Words of one to three syllables: as many WordPieces each."""
    return " ".join("".join(chance.choices(SYLLABLES, k=chance.choice((1, 1, 2, 3)))) for _ in range(words))


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder: 60 passages; 24 queries, 14 of them train, 4 dev, 6 test. `twin` has the text of `d0`, the positive of `train0`;
    `train1` has two positives."""
    folder, chance = tmp_path_factory.mktemp("collection"), random.Random(0)
    passages = {f"d{number}": _text(chance, chance.randint(8, 24)) for number in range(59)}
    passages["twin"] = passages["d0"]
    split_of = [("train", 14), ("dev", 4), ("test", 6)]
    labels = [(split, f"{split}{number}") for split, count in split_of for number in range(count)]
    queries: dict[str, str] = {}
    qrels: dict[str, list[str]] = {split: ["query-id\tcorpus-id\tscore"] for split, _ in split_of}
    for place, (split, query_id) in enumerate(labels):
        words = passages[f"d{place}"].split()
        queries[query_id] = " ".join([*chance.sample(words, 3), chance.choice(SYLLABLES)])
        qrels[split].append(f"{query_id}\td{place}\t1")
    qrels["train"].append("train1\td40\t1")
    (folder / "qrels").mkdir()
    for name, texts in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()))
    for split, lines in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_experiment(models: Models, collection: Path) -> Callable[..., Path]:
    """`tiny_experiment(folder, **{"section.key": value})` writes folder/tiny.yaml, with the store and all outputs in the folder."""

    def write(folder: Path, **overrides: Any) -> Path:
        import yaml

        content = {name: dict(value) if isinstance(value, dict) else value for name, value in SETTINGS.items()}
        content["store"] = str(folder / "store")
        paths = {"ingest.path": collection, "student.model": models.student, "teacher.model": models.teacher}
        for key, value in {**paths, "train.output": folder / "train", **overrides}.items():
            section, _, name = key.rpartition(".")
            (content.setdefault(section, {}) if section else content)[name] = str(value) if isinstance(value, Path) else value
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        return folder / "tiny.yaml"

    return write


@pytest.fixture(scope="session")
def prep_run() -> Callable[..., list[str]]:
    """`prep_run(config, stage=..., **overrides)` runs stages in this process; returns the lines that a user would see."""

    def run(config: Path, *, stage: str = "all", **overrides: Any) -> list[str]:
        from data.config.settings import load
        from pipeline.run import run as run_stages

        lines: list[str] = []
        run_stages(load({"config": str(config), **{key: str(value) for key, value in overrides.items()}}), stage=stage, say=lines.append)
        return lines

    return run


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> Finished:
    """All stages of the tiny experiment, run in this process."""
    config = tiny_experiment(tmp_path_factory.mktemp("finished"))
    prep_run(config)
    return Finished(config, config.parent / "store")


@dataclass(frozen=True)
class RayRun:
    """A run under Ray, and its tables as they were when it ended."""

    config: Path
    files: dict[str, bytes]


@pytest.fixture(scope="session")
def ray_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_experiment: Callable[..., Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
    parquet_files: Callable[[Path], dict[str, bytes]],
) -> RayRun:
    """All stages by the console script under Ray with two workers."""
    config = tiny_experiment(tmp_path_factory.mktemp("ray"), **{"runner.kind": "ray", "runner.workers": 2})
    done = command("prep", "run", f"config={config}")
    assert done.returncode == 0, done.stdout + done.stderr
    return RayRun(config, parquet_files(config.parent / "store"))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Finished:
    """A copy of the finished run that a test may spoil."""
    config = tiny_experiment(tmp_path / "copy")
    shutil.copytree(finished.store, config.parent / "store")
    return Finished(config, config.parent / "store")


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("prep", "run", f"config={file}")` runs an installed console script."""

    def run(*words: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / str(words[0])
        return subprocess.run([script, *map(str, words[1:])], capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def parquet_files() -> Callable[[Path], dict[str, bytes]]:
    """A store's stage tables as relative path -> bytes. Not the logit store: its segments have random names."""

    def files(store: Path) -> dict[str, bytes]:
        found = (path.relative_to(store) for path in sorted(store.rglob("*.parquet")))
        return {str(path): (store / path).read_bytes() for path in found if path.parts[0] != "teacher_logits"}

    return files


@pytest.fixture
def count_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each forward pass of a torch teacher in this process."""
    from retrieval.teachers.cross_encoder import TorchCrossEncoder

    batches: list[int] = []
    forward = TorchCrossEncoder.logits

    def counted(self: TorchCrossEncoder, ids: Any, mask: Any, segments: Any) -> Any:
        batches.append(len(ids))
        return forward(self, ids, mask, segments)

    monkeypatch.setattr(TorchCrossEncoder, "logits", counted)
    return batches


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 256 KiB; the test is skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    except OSError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "--lazy", folder], capture_output=True)  # a process that is ending may have it open


# Forks a child for each line of its input: a fresh interpreter a kill would take seconds.
_FORK_A_RUN_A_LINE = """
import os, sys, traceback
for line in sys.stdin:
    path, *words = line.split()
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the other one talks there
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    code = 1
    try:
        work(words)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)
"""


class Zygote:
    """A process that has run `code`, which imports, patches and defines `work(words)`; it forks a child for each run of that.

    A child may note what it does in the file open as `log`. Before the fork nothing may be computed on several threads: a child would
    have only one of them.
    """

    def __init__(self, code: str) -> None:
        words = [sys.executable, "-c", code + _FORK_A_RUN_A_LINE]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def begin(self, log: Path, *words: object) -> int:
        """Returns the child's process id."""
        print(log, *words, file=self._in, flush=True)
        return int(self._out.readline())

    def end(self) -> int:
        """The child's exit code, negative for a signal."""
        return int(self._out.readline())

    def close(self) -> None:
        self._in.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def start_zygote() -> Iterator[Callable[[str], Zygote]]:
    """`start_zygote(code)`: a `Zygote`, closed with the module's last test."""
    started: list[Zygote] = []

    def start(code: str) -> Zygote:
        started.append(Zygote(code))
        return started[-1]

    yield start
    for zygote in started:
        zygote.close()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server of the S3 protocol on a free port of this machine."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, filled and looked at by s3fs alone, not by the code under test. `str(bucket)` is its address."""

    name: str

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> str:
        """Make an object; returns its address."""
        from s3fs import S3FileSystem

        S3FileSystem().pipe_file(f"{self}/{key}", content)
        return f"{self}/{key}"

    def upload(self, folder: Path, key: str) -> str:
        """Make an object of every file in a folder; returns the address of them all."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self}/{key}"

    def objects(self, below: str = "") -> dict[str, bytes]:
        """All objects by their keys, relative to the start `below`."""
        from s3fs import S3FileSystem

        start, store = f"{self.name}/{below}".rstrip("/"), S3FileSystem()
        store.invalidate_cache()
        return {key.removeprefix(f"{start}/"): store.cat_file(key) for key in store.find(start)}


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket for this process and those that it starts; the cache of copies is tmp_path/cache."""
    import uuid

    from s3fs import S3FileSystem

    nowhere = "/no/such/file"
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "ADAM_REMOTE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    made = Bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    S3FileSystem().mkdir(made.name)
    return made


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The files of a folder by their names relative to it."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
