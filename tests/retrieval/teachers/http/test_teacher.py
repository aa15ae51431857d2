"""The teacher of a server: what it is kept under, what it refuses, which logits it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rerank_server import RerankServer, logit_of, logits_of

from data.config.settings import Experiment, Teacher, with_absolute_paths
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings
from retrieval.teachers.http import teacher as http_teacher
from retrieval.teachers.http.shapes import SHAPES
from retrieval.teachers.http.teacher import HttpSpec, endpoint_of, parts_by_query


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("RERANK_API_KEY", raising=False)


def settings_of(server: RerankServer | None = None, *, http: dict[str, Any] | None = None, **words: Any) -> Teacher:
    own = {"url": server.url, "shape": server.shape} if server else {"url": "http://host:8000"}
    return Teacher(**{"model": "tiny-reranker", "backend": "http", "revision": "1", "http": {**own, **(http or {})}, **words})


def spec_of(*args: Any, **words: Any) -> HttpSpec:
    spec = resolve_teacher(settings_of(*args, **words), device="cpu")
    assert isinstance(spec, HttpSpec)
    return spec


def opened(*args: Any, **words: Any) -> Any:
    return spec_of(*args, **words).open(TeacherSettings.of(settings_of(), device="cpu", threads=1))


PAIRS = [(f"query {number % 5}", f"text {number} {SEPARATOR_MARK} {MASK_MARK}") for number in range(83)]
PLAIN = [(query, text.replace(SEPARATOR_MARK, "[SEP]").replace(MASK_MARK, "[MASK]")) for query, text in PAIRS]


def key_of(**words: Any) -> dict[str, Any]:
    return spec_of(**words).key(DigestCache(Path("/nowhere")))


def test_all_that_is_declared_is_in_the_name_of_the_logits_and_nothing_else() -> None:
    """Prevents: logits of another model, or of another kind, taken for this one's; all scored again at another address."""
    plain = key_of()
    assert plain == {"http": "rerank", "model": "tiny-reranker", "revision": "1", "scores": "probability"}
    assert key_of(http={"shape": "tei"}) == {"http": "tei", "model": "tiny-reranker", "revision": "1", "scores": "logit"}
    for other in ({"model": "b"}, {"revision": "2"}, {"http": {"scores": "logit"}}, {"http": {"shape": "infinity"}}):
        assert key_of(**other) != plain
    execution = {"url": "https://elsewhere/v2", "documents": 9, "concurrency": 1, "timeout": 1, "retries": 0, "patience": 0}
    assert key_of(http=execution, max_tokens=64, segment_pairs=3) == plain
    assert key_of(http={"scores": "probability"}) == plain and key_of(http={"key_variable": "MY_KEY"}) == plain


@pytest.mark.parametrize(
    ("url", "shape", "endpoint"),
    [
        ("http://host:8000", "rerank", "http://host:8000/rerank"),
        ("http://host:8000/", "score", "http://host:8000/score"),
        ("https://api.cohere.com/v2", "rerank", "https://api.cohere.com/v2/rerank"),
        ("https://api.jina.ai/v1/rerank/", "rerank", "https://api.jina.ai/v1/rerank"),
        ("http://[::1]:80/score", "score", "http://[::1]:80/score"),
    ],
)
def test_an_address_may_be_that_of_the_server_or_the_endpoint(url: str, shape: str, endpoint: str) -> None:
    """Prevents: /rerank/rerank, or a path of the server's own that is lost."""
    assert endpoint_of(url, SHAPES[shape]) == endpoint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"http": {"url": None}}, "needs the address of its server: teacher.http.url=http://HOST:PORT"),
        ({"http": {"url": "localhost:8000"}}, "expected http://HOST:PORT"),
        ({"http": {"url": "http://:80"}}, "expected http://HOST:PORT"),
        ({"http": {"url": "http://host:port"}}, "expected http://HOST:PORT"),
        ({"http": {"url": "http://me:s3cret@host"}}, "holds a user, a key or a query"),
        ({"http": {"url": "http://host/rerank?key=s3cret"}}, "holds a user, a key or a query"),
        ({"http": {"key_variable": "s3cret-9f"}}, "is the name of an environment variable, in capitals, that holds the key; not the key"),
        ({"revision": None}, "needs teacher.revision=NAME: the server's weights cannot be read"),
        ({"instruction": "find"}, "teacher.instruction is not sent with teacher.http.shape=rerank: use shape=score of vLLM"),
        ({"http": {"truncate": True, "shape": "tei"}}, "teacher.http.truncate is not sent with teacher.http.shape=tei: use shape=score"),
        ({"template": "t.jinja"}, "teacher.template=t.jinja means nothing to teacher.backend=http"),
        ({"precision": "fp32"}, "teacher.precision=fp32 means nothing to"),
        ({"label": 1}, "teacher.label=1 means"),
        ({"trust_remote_code": True}, "teacher.trust_remote_code=True means"),
    ],
)
def test_what_cannot_be_served_is_refused_from_the_settings_alone(words: dict[str, Any], message: str) -> None:
    """Prevents: a setting without effect; a key in a store; logits under a name that tells nothing of what gave them."""
    with pytest.raises(UserError, match=message) as raised:
        spec_of(**words)
    assert "s3cret" not in str(raised.value)


def test_pairs_of_a_query_are_asked_together_and_come_back_in_their_order(rerank_server: Any) -> None:
    """Prevents: the logit of another pair, and dark examples with marks that no server knows."""
    server = rerank_server(shape="score")
    teacher, batches = opened(server, http={"documents": 7}), list[tuple[int, ...]]()
    prepared = teacher.prepare(PAIRS)
    logits = teacher.score_prepared(prepared, on_batch=lambda *figures: batches.append(figures))
    np.testing.assert_array_equal(logits, logits_of(PLAIN))
    assert logits.dtype == np.float32 and sum(pairs for pairs, _, _ in batches) == len(PAIRS)
    assert not prepared.token_counts.any() and max(len(body["text_2"]) for body in server.bodies) == 7
    assert parts_by_query([("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")], most=2) == [[0, 2], [3], [1]]


@pytest.mark.medium
@pytest.mark.parametrize("shape", ["rerank", "infinity", "tei", "score"])
def test_probabilities_and_logits_come_to_the_same(rerank_server: Any, shape: str) -> None:
    """Prevents: probabilities among the logits, or the sigmoid of a sigmoid undone."""
    server = rerank_server(shape=shape)
    for scores in ("auto", "probability"):
        np.testing.assert_allclose(opened(server, http={"scores": scores}).score(PAIRS), logits_of(PLAIN), atol=1e-3)
    server.sigmoid = False
    np.testing.assert_array_equal(opened(server, http={"scores": "logit"}).score(PAIRS), logits_of(PLAIN))


def test_logits_that_are_called_probabilities_are_refused(rerank_server: Any) -> None:
    """Prevents: the sigmoid undone of what has none."""
    server = rerank_server()
    server.sigmoid = False
    with pytest.raises(UserError, match=r"gives the score .*, which is no probability: set teacher.http.scores=logit"):
        opened(server).load()


@pytest.mark.parametrize("shape", ["infinity", "tei", "score"])
def test_a_server_that_does_not_heed_the_wish_for_logits_is_found_out(rerank_server: Any, shape: str) -> None:
    """Prevents: probabilities among the logits, from an older server or a proxy that drops what it does not know."""
    server = rerank_server(shape=shape)
    server.obeys = False
    with pytest.raises(UserError, match=r"gives the same scores with (raw_scores=true|use_activation=false) and without, all between 0"):
        opened(server).load()
    opened(server, http={"scores": "probability"}).load()
    opened(server, http={"scores": "logit"}).load()  # whoever says so knows


def test_an_instruction_is_sent_keyed_and_heeded(rerank_server: Any) -> None:
    """Prevents: logits under an instruction that the server never read."""
    server = rerank_server(shape="score")
    words = {"instruction": "find"}
    np.testing.assert_array_equal(opened(server, **words).score(PAIRS), logits_of([(f"find|{query}", text) for query, text in PLAIN]))
    assert spec_of(server, **words).key(DigestCache(Path("/nowhere")))["instruction"] == "find"
    server.heeds_instructions = False
    with pytest.raises(UserError, match=r"gives the same scores with teacher.instruction and without: leave it out, or serve a newer"):
        opened(server, **words).load()


def test_a_length_is_sent_and_keyed_where_it_is_asked_for(rerank_server: Any) -> None:
    """Prevents: logits of two lengths under one name, or a length that only the settings know."""
    server = rerank_server(shape="score")
    opened(server, http={"truncate": True}, max_tokens=64).score(PAIRS)
    assert {body["truncate_prompt_tokens"] for body in server.bodies} == {64}
    keys = [key_of(http={"shape": "score", "truncate": True}, max_tokens=length) for length in (64, 128)]
    assert keys[0] != keys[1] and keys[0] == {**key_of(http={"shape": "score"}, max_tokens=64), "truncate_prompt_tokens": 64}
    assert "cuts prompts to 64 tokens" in spec_of(http={"shape": "score", "truncate": True}, max_tokens=64).notes()[0]


def test_probabilities_that_tell_no_logit_are_refused(rerank_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a third of the positives at one same logit, because a server rounds."""
    server = rerank_server()
    monkeypatch.setattr(http_teacher, "_SATURATED_FROM", 100)
    server.round_to = lambda probability: round(probability, 1)
    with pytest.raises(UserError, match=r"of \d+ probabilities of .* are exactly 0 or 1, which tells no logit"):
        opened(server).score(PAIRS)
    logits = opened(server, http={"scores": "probability"}).score(PAIRS)
    assert np.abs(logits).max() == pytest.approx(17.3287, abs=1e-4)


def test_another_model_than_declared_is_refused_with_those_served(rerank_server: Any) -> None:
    """Prevents: logits of whatever a server happens to hold under the name of what was meant."""
    for shape in ("tei", "score"):
        server = rerank_server(shape=shape, model="other/model")
        with pytest.raises(UserError, match=r"serves other/model, not teacher.model=tiny-reranker: set teacher.model to what it serves"):
            opened(server).load()
        assert not server.bodies
        server.lists_models = False
        opened(server).load()


def test_a_server_that_is_not_there_is_told_of_soon(rerank_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: minutes of patience with a misspelt address; a traceback."""
    server = rerank_server()
    server.stop()
    monkeypatch.setattr(http_teacher, "OPENING_SECONDS", 0.1)
    with pytest.raises(RunFailed, match="cannot be reached"):
        opened(server).load()
    server.start()


def test_the_key_comes_from_the_environment(rerank_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: requests without the key of a variable that was named, or a message that is not of the host that lacks it."""
    server = rerank_server()
    server.key = "s3cret"
    with pytest.raises(UserError, match=r"MY_KEY: .* has no such environment variable"):
        opened(server, http={"key_variable": "MY_KEY"}).load()
    for variable in ("MY_KEY", "RERANK_API_KEY"):
        monkeypatch.setenv(variable, " s3cret\n")
        opened(server, http={"key_variable": variable}).load()
    monkeypatch.setenv("MY_KEY", "clé")
    with pytest.raises(UserError, match=r"MY_KEY .* has characters that no header can have"):
        opened(server, http={"key_variable": "MY_KEY"}).load()


def test_notes_say_what_the_server_decides() -> None:
    """Prevents: a length that someone believes is heeded; a loss of digits nobody was told of."""
    told = " ".join(spec_of().notes())
    assert "teacher.max_tokens is not sent to http://host:8000/rerank" in told and "none above 17.3" in told and "shape=score" in told
    assert len(spec_of(http={"shape": "tei"}).notes()) == 1


def test_a_model_s_name_is_sent_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a folder of that name in the working directory, whose path a worker would ask the server for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-reranker").mkdir()
    sections = {"ingest": {"path": "c"}, "student": {"model": "s"}, "store": "st"}
    for backend, absolute in (("http", False), ("torch", True)):
        experiment = Experiment.model_validate({**sections, "teacher": settings_of(backend=backend).model_dump()})
        assert Path(with_absolute_paths(experiment).teacher.model).is_absolute() is absolute


def test_scores_are_the_server_s_own() -> None:
    """Prevents: a stub whose logits are all alike, with which nothing above would show."""
    assert len({logit_of(*pair) for pair in PLAIN}) > 80
