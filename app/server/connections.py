"""Connections that hold a server's resources for no longer than they use them.

A client has some seconds for the head of a request and a least rate for its body, and must read its response. A server
has a limit of connections; where it is reached, the one that has waited longest for a head makes room. Whoever is too
slow gets 408, whoever does not fit 503, and the log says so once, not once for each connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import time
from contextlib import suppress
from dataclasses import dataclass, field

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

BACKLOG = 128  # connections that are accepted at once
RESERVED_FILES = 512  # of the files that a process may open: databases of its threads, uploads, clips
MOST_FILES = 65_536
LOG_SECONDS = 60.0  # for which a line is not logged again
TOO_SLOW, TOO_MANY = 408, 503
MESSAGES = {
    TOO_SLOW: "a request must arrive in time; this one did not; send it again",
    TOO_MANY: "the server has all the connections that it can hold; try again later",
}


@dataclass
class ConnectionLimits:
    """Limits in connections, seconds and bytes a second.

    A body may stall for `body_seconds` in all, after which it must have come at `body_rate` on average; a response that
    nobody reads is given up after `write_seconds`. `waiting` are the connections without a whole head, the oldest
    first.
    """

    connections: int = 1000
    head_seconds: float = 15.0
    body_seconds: float = 30.0
    body_rate: float = 1000.0
    write_seconds: float = 60.0
    check_seconds: float = 5.0  # how often a body is looked at
    waiting: dict[BoundedProtocol, None] = field(default_factory=dict)


class BoundedConfig(uvicorn.Config):
    """Uvicorn's settings, with limits of connections."""

    connection_limits: ConnectionLimits


class BoundedProtocol(H11Protocol):
    """Uvicorn's HTTP protocol within the limits of its config, a BoundedConfig."""

    config: BoundedConfig  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.limits: ConnectionLimits = self.config.connection_limits
        self.head_timer = self.body_timer = self.write_timer = None
        self.received, self.body_began = 0, 0.0
        if len(self.connections) > self.limits.connections:
            oldest = next(iter(self.limits.waiting), self)
            oldest.close_with(TOO_MANY)
        if not self.transport.is_closing():
            self.limits.waiting[self] = None
            self.start_head_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.received += len(data)
        super().data_received(data)
        self.set_timers()

    def set_timers(self) -> None:
        """Set the timers by what the client still has to send."""
        state = self.conn.their_state
        if self.transport.is_closing():
            return self.stop()
        if state is h11.IDLE:
            self.limits.waiting[self] = None
            if self.conn.trailing_data[0]:
                self.start_head_timer()
            return
        self.limits.waiting.pop(self, None)
        self.head_timer = cancel(self.head_timer)
        if state is h11.SEND_BODY and self.body_timer is None:
            self.received, self.body_began = 0, time.monotonic()
            self.body_timer = self.loop.call_later(self.limits.check_seconds, self.check_body)
        elif state is not h11.SEND_BODY:
            self.body_timer = cancel(self.body_timer)

    def start_head_timer(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(self.limits.head_seconds, self.close_with, TOO_SLOW)

    def check_body(self) -> None:
        """Close the connection where its body comes too slowly."""
        self.body_timer = None
        if self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            return
        if self.flow.read_paused:  # the application is slow, not the client
            self.received, self.body_began = 0, time.monotonic()
        elapsed = time.monotonic() - self.body_began - self.limits.body_seconds
        if elapsed > 0 and self.received < elapsed * self.limits.body_rate:
            return self.close_with(TOO_SLOW)
        self.body_timer = self.loop.call_later(self.limits.check_seconds, self.check_body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.set_timers()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.write_timer is None:
            self.write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_timer = cancel(self.write_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop()
        super().connection_lost(exc)

    def stop(self) -> None:
        """Stop all timers, and wait for nothing more of the client."""
        self.limits.waiting.pop(self, None)
        self.head_timer, self.body_timer = cancel(self.head_timer), cancel(self.body_timer)
        self.write_timer = cancel(self.write_timer)

    def close_with(self, status: int) -> None:
        """Answer with an error where no response has begun, and close the connection."""
        self.stop()
        if self.transport.is_closing():
            return
        idle_again = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not idle_again:
            self.logger.warning(MESSAGES[status])
            code = "too_slow" if status == TOO_SLOW else "too_many_connections"
            error = {"message": MESSAGES[status], "type": "server_error", "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            with suppress(h11.LocalProtocolError):
                response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # in the middle of a response
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # there are no web sockets here


def cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer; returns None, to put in its place."""
    if timer is not None:
        timer.cancel()


class LogThrottle(logging.Filter):
    """Lets a line pass once in LOG_SECONDS: thousands of connections must not fill a disk."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = record.getMessage().partition("\n")[0], time.monotonic()
        if record.exc_info:
            text += repr(record.exc_info[1])
        if record.levelno < logging.WARNING or now - self.seen.get(text, -LOG_SECONDS) >= LOG_SECONDS:
            if len(self.seen) > 1000:
                self.seen.clear()
            self.seen[text] = now
            return True
        return False


def make_server(app, shutdown_seconds: int, limits: ConnectionLimits | None = None) -> uvicorn.Server:
    """Return a server of an ASGI app whose connections keep to the limits, by default those of `fitting_limits`."""
    config = BoundedConfig(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    config.connection_limits = limits or fitting_limits()
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, LogThrottle) for one in logger.filters):
            logger.addFilter(LogThrottle())
    return uvicorn.Server(config)


def fitting_limits() -> ConnectionLimits:
    """Let this process open as many files as it may, and return limits with as many connections as these allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    return ConnectionLimits(connections=max(32, min(ConnectionLimits.connections, files - RESERVED_FILES)))
