"""API keys: who may use the server, for what, and how much."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from running import CHAT, Running, running, until

from truthgpt_plugin_serve.command import serve
from truthgpt_plugin_serve.errors import ApiError, ServeError
from truthgpt_plugin_serve.keys import Bucket, add_key, read_keys, revoke_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for keys."""
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def secret(keys: Path) -> str:
    """A key without limits."""
    return add_key(keys, "alice")


@pytest.fixture(scope="module")
def locked(tiny: Path, keys: Path, secret: str) -> Iterator[Running]:
    """A server that asks for keys."""
    with running(tiny, keys=keys) as found:
        yield found


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"Authorization": f"Bearer {key}".encode()}


ROUTES = ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing")


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_needs_a_key(locked: Running, path: str) -> None:
    """Those that are not there too; only whether the server lives and is ready is told."""
    for headers in ({}, bearer("tgpt-wrong"), {b"Authorization": b"Basic YTpi"}, bearer("é")):
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert locked.get("/livez").text == locked.get("/readyz").text == "ok"


def test_a_key_opens_what_it_is_for(locked: Running, keys: Path, secret: str) -> None:
    """A key for metrics opens no model, and that for models no metrics."""
    metrics = add_key(keys, "prometheus", scope="metrics")
    until(lambda: locked.get("/metrics", headers=bearer(metrics)).status_code == 200)
    assert locked.get("/v1/models", headers=bearer(metrics)).status_code == 403
    assert locked.get("/metrics", headers=bearer(secret)).status_code == 403
    assert locked.get("/v1/models", headers=bearer(secret)).status_code == 200


def test_a_revoked_key_opens_nothing(locked: Running, keys: Path) -> None:
    """Without starting the server again."""
    gone = add_key(keys, "mallory")
    until(lambda: locked.get("/v1/models", headers=bearer(gone)).status_code == 200)
    revoke_key(keys, "mallory")
    until(lambda: locked.get("/v1/models", headers=bearer(gone)).status_code == 401)


def test_limits_hold_for_each_key(locked: Running, keys: Path, secret: str) -> None:
    """Requests and tokens a minute; what is over gets 429 and when to come back."""
    few = add_key(keys, "few", requests_per_minute=2)
    little = add_key(keys, "little", tokens_per_minute=40)
    until(lambda: locked.get("/v1/models", headers=bearer(little)).status_code == 200)
    body = CHAT | {"max_tokens": 1}
    statuses = [
        locked.post("/v1/chat/completions", body, headers=bearer(few)).status_code for _ in "abc"
    ]
    assert statuses == [200, 200, 429]
    answers = [
        locked.post("/v1/chat/completions", CHAT | {"max_tokens": 20}, headers=bearer(little))
        for _ in "abc"
    ]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert locked.post("/v1/chat/completions", body, headers=bearer(secret)).status_code == 200


def test_a_request_that_no_wait_would_let_in_is_refused_for_good(
    locked: Running, keys: Path
) -> None:
    """With both numbers, and as a mistake: clients ask again after 429."""
    little = add_key(keys, "less", tokens_per_minute=40)
    until(lambda: locked.get("/v1/models", headers=bearer(little)).status_code == 200)
    prompt = locked.model.tokenizer("Hello").input_ids
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 100}
    answer = locked.post("/v1/completions", body, headers=bearer(little))
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert f"{len(prompt) + 100} tokens" in error["message"]
    assert "has 40 a minute" in error["message"]


@given(
    limit=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1000)), max_size=30),
)
def test_no_more_than_two_minutes_worth_is_used_in_any_minute(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    """One that has added up, and one that comes meanwhile."""
    now = 0.0
    bucket = Bucket(limit, clock=lambda: now)
    used: list[tuple[float, int]] = []
    for seconds, amount in steps:
        now += seconds
        with suppress(ApiError):
            bucket.take(amount, "tokens")
            used.append((now, amount))
        assert sum(each for when, each in used if when > now - 60) <= 2 * limit + 1e-6


@given(limit=st.integers(1, 100), amount=st.integers(1, 100), used=st.integers(1, 100))
def test_who_comes_back_when_told_to_is_let_in(limit: int, amount: int, used: int) -> None:
    """Not a moment before there is enough again."""
    now = 0.0
    bucket = Bucket(limit, clock=lambda: now)
    bucket.take(min(used, limit), "tokens")
    try:
        bucket.take(min(amount, limit), "tokens")
    except ApiError as error:
        now += int(error.headers["Retry-After"])
        bucket.take(min(amount, limit), "tokens")


def test_only_hashes_are_stored_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    """The key itself is shown once, by the command that makes it."""
    file = tmp_path / "deep" / "keys.json"
    done = CliRunner().invoke(serve, ["keys", "add", "alice", "--file", str(file)])
    secret = done.stdout.strip()
    assert secret.startswith("tgpt-")
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    CliRunner().invoke(
        serve, ["keys", "add", "bob", "--tokens-per-minute", "9", "--file", str(file)]
    )
    listed = CliRunner().invoke(serve, ["keys", "list", "--file", str(file)]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["alice", "bob"]
    assert "9 tokens a minute" in listed[1]
    CliRunner().invoke(serve, ["keys", "revoke", "alice", "--file", str(file)])
    assert [each.name for each in read_keys(file)] == ["bob"]


def test_changes_at_once_lose_none(tmp_path: Path) -> None:
    """A key that is revoked while another is made stays revoked."""
    file = tmp_path / "keys.json"
    for number in range(8):
        add_key(file, f"old-{number}")
    with ThreadPoolExecutor(16) as threads:
        made = [threads.submit(add_key, file, f"new-{number}") for number in range(8)]
        gone = [threads.submit(revoke_key, file, f"old-{number}") for number in range(8)]
        for each in (*made, *gone):
            each.result()
    assert {each.name for each in read_keys(file)} == {f"new-{number}" for number in range(8)}


def test_mistakes_with_keys_are_one_clear_error(tmp_path: Path) -> None:
    """A name that is taken or unknown, and one that cannot be."""
    file = tmp_path / "keys.json"
    add_key(file, "alice")
    with pytest.raises(ServeError, match='There is a key "alice" already'):
        add_key(file, "alice")
    with pytest.raises(ServeError, match=r'no key "alise".*Did you mean "alice"'):
        revoke_key(file, "alise")
    with pytest.raises(ServeError, match="cannot name a key"):
        add_key(file, "a b\n")


HOSTILE = {
    "no JSON": b"{",
    "another form": b'{"keys": {"alice": "secret"}}',
    "no hash": json.dumps({"keys": [{"name": "a", "hash": "x", "created": ""}]}).encode(),
    "unknown field": b'{"keys": [], "admin": true}',
    "deep": b"[" * 100_000,
    "half a character": b'{"keys": "\xff"}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_holds_no_keys_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    """It names the file, and the server does not start without keys instead."""
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(ServeError, match="does not hold keys") as refused:
        read_keys(file)
    assert str(file) in str(refused.value)


def test_another_user_writes_no_file_that_its_server_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a key that root revokes would go on opening the server of the user `truthgpt`."""
    file = tmp_path / "keys.json"
    add_key(file, "alice")
    owner = file.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    for change in (add_key, revoke_key):
        with pytest.raises(ServeError, match=f"sudo -u '#{owner}' truthgpt serve keys"):
            change(file, "bob" if change is add_key else "alice")
    assert [each.name for each in read_keys(file)] == ["alice"]


def test_a_file_that_breaks_while_the_server_runs_changes_nothing(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is let in by it, and nobody locked out; the log says so once."""
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice")
    with running(tiny, keys=file) as server:
        file.write_bytes(b"{")
        for _ in range(2):
            server.application.guard._keys._looked = 0.0  # type: ignore[union-attr]
            assert server.get("/v1/models", headers=bearer(secret)).status_code == 200
        assert server.get("/v1/models").status_code == 401
    (said,) = (each.message for each in caplog.records if "still count" in each.message)
    assert f"{file} does not hold keys" in said
