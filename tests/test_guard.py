"""Which requests the demo page answers."""

import asyncio
import socket

import pytest

from maskformer_jax.guard import Guard


def ask(guard: Guard, *headers: tuple[str, str], kind: str = "http") -> list[dict]:
    """The messages that a request with these headers gets."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}
    asyncio.run(guard(scope, None, send))
    return sent


def status(guard: Guard, *headers: tuple[str, str]) -> int:
    return ask(guard, *headers)[0]["status"]


@pytest.fixture
def guard(tmp_path):
    return make(tmp_path, "127.0.0.1")


def make(uploads, host: str) -> Guard:
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    return Guard(page, host, str(uploads))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "localhost.:1"])
def test_its_own_address_is_answered(guard, host):
    assert status(guard, ("host", host)) == 200
    assert status(guard, ("host", host), ("origin", f"http://{host}")) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:7860", "127.0.0.1.evil.example", "localhost@evil.example", "192.168.1.5:7860", "", "[", "a\x1b[31m"],
)
def test_another_address_is_refused(guard, host):
    assert status(guard, ("host", host)) == 421
    assert status(guard) == 421
    assert status(guard, ("host", "localhost"), ("host", host)) == 421


def test_the_reason_is_escaped(guard):
    answer = ask(guard, ("host", "evil\x1b[31m"))[1]["body"].decode()
    assert answer.startswith("This page answers its own address alone, and the request is to evil\\x1b[31m. If that is")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://localhost:7861", "http://localhost", "file://"]
)
def test_another_page_is_refused(guard, origin):
    assert status(guard, ("host", "localhost:7860"), ("origin", origin)) == 403
    (closed,) = ask(guard, ("host", "localhost:7860"), ("origin", origin), kind="websocket")
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


def test_a_page_for_other_machines_is_reached_by_every_address_and_by_its_names(tmp_path):
    guard = make(tmp_path, "0.0.0.0")
    for host in ("192.168.1.5:7860", "[fe80::1]:7860", "localhost", socket.gethostname()):
        assert status(guard, ("host", host)) == 200
    assert status(guard, ("host", "evil.example")) == 421
    named = make(tmp_path, "gpu1.lab.example")
    assert status(named, ("host", "GPU1.lab.example:7860")) == 200
    assert status(named, ("host", "192.168.1.5")) == 421


def test_the_start_and_end_of_the_server_pass(guard):
    assert ask(guard, kind="lifespan")[0]["status"] == 200


def test_requests_state_a_length_within_the_limit(guard, monkeypatch):
    monkeypatch.setenv("MASKFORMER_MAX_UPLOAD_BYTES", "1000")
    own = ("host", "localhost")
    assert status(guard, own, ("content-length", "1000")) == 200
    assert status(guard, own, ("content-length", "1001")) == 413
    assert status(guard, own, ("content-length", "9" * 5000)) == 413
    assert b"the limit is 1,000" in ask(guard, own, ("content-length", "1001"))[1]["body"]
    assert status(guard, own, ("transfer-encoding", "chunked")) == 411
    for damaged in ("-1", "1e3", "", "x", "\xb2"):
        assert status(guard, own, ("content-length", damaged)) == 400
    assert status(guard, own, ("content-length", "1"), ("content-length", "2")) == 400


def test_all_uploads_together_are_bounded(guard, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKFORMER_MAX_UPLOADS_BYTES", "1000")
    own = ("host", "localhost")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(bytes(1000))
    assert status(guard, own, ("content-length", "1")) == 200
    (tmp_path / "2.png").write_bytes(bytes(1))
    assert status(guard, own, ("content-length", "1")) == 507
    assert status(guard, own) == 200  # what is there can be looked at
