"""Half-sent requests hold no connection for long, and whoever is served goes on being served."""

import logging
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from app.server.connections import ConnectionLimits, LogThrottle, make_server
from tests.serving import wait_for

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
QUICK = {"head_seconds": 0.4, "body_seconds": 0.4, "body_rate": 1e5, "check_seconds": 0.1, "write_seconds": 0.4}


async def answer(scope, receive, send):
    """Answer with the size of the body; /large with 20 MB."""
    if scope["type"] == "lifespan":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = bytes(20_000_000) if scope["path"] == "/large" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(**limits):
    """Run a server of `answer` in a thread; yield its port and its limits."""
    bounds = ConnectionLimits(**(QUICK | limits))
    server = make_server(answer, 1, bounds)
    server.config.lifespan = "off"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield listening.getsockname()[1], bounds
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def read_all(connection):
    """Read until the server closes the connection."""
    connection.settimeout(5)
    content = b""
    while more := connection.recv(2**16):
        content += more
    return content


def status_of(port):
    return httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", HEAD + b"x" * 10],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_request_that_does_not_arrive_is_answered_with_408(sent):
    with served() as (port, limits), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        found = read_all(connection)
        assert found.startswith(b"HTTP/1.1 408 ") and b"must arrive in time" in found
        assert not limits.waiting and status_of(port) == 200


def test_a_head_that_comes_byte_by_byte_has_no_more_time():
    with served() as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(60):
                connection.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - started < 2


def test_a_body_at_the_least_rate_and_a_second_request_on_the_connection_are_served():
    with served(body_rate=1000.0) as (port, limits), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def body():
            for _ in range(12):
                yield b"x" * 1000
                time.sleep(0.08)

        assert client.post("/", content=body()).text == "12000"
        time.sleep(0.6)  # longer than a head may take: an idle connection is not one
        assert client.get("/").text == "0"
        wait_for(lambda: len(limits.waiting) == 1)


def test_where_all_connections_are_taken_the_oldest_half_sent_one_makes_room():
    with served(connections=8, head_seconds=30.0) as (port, _), ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(8)]
        for connection in stalled:
            connection.sendall(b"GET / HT")
        for _ in range(3):
            assert status_of(port) == 200
        assert read_all(stalled[0]).startswith(b"HTTP/1.1 503 ")
        stalled[-1].sendall(b"TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_all(stalled[-1]).startswith(b"HTTP/1.1 200 ")


def test_a_response_that_nobody_reads_is_given_up():
    with served() as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1.0)
        with pytest.raises(OSError):  # reset, before all was read
            assert len(read_all(connection)) < 20_000_000
            raise ConnectionResetError
        assert status_of(port) == 200


def test_rubbish_is_answered_with_400_and_logged_once(caplog):
    with served() as (port, _):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
                assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in caplog.text


def test_the_same_line_is_not_logged_again_within_a_minute():
    throttle = LogThrottle()
    lines = [
        logging.LogRecord("x", level, "", 0, text, None, None) for level, text in ((30, "a"), (30, "b"), (20, "c"))
    ]
    assert [throttle.filter(line) for line in (*lines, *lines)] == [True, True, True, False, False, True]
