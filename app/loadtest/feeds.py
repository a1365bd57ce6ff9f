"""The function under test for each kind of hostile input, and the invariants it must keep."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from app.batch.rows import read_rows
from app.batch.sweeps import expand_rows
from app.loadtest.mutation import HEADS, REQUESTS, STORYBOARDS, as_csv, as_yaml, corrupt, mutate
from app.policy.errors import PolicyError
from app.policy.policy import STRICT, check_prompt
from app.server.uploads import (
    HEAD_BYTES,
    SANDBOX_BYTES,
    UploadError,
    UploadLimits,
    inspect_file,
    sniff_suffix,
    store_upload,
)
from dit.request import Request, RequestError, check_values
from dit.storyboard import read_storyboard
from vae.video.pixels import MediaError
from vae.video.sandbox import limit_memory

LIMITS = UploadLimits(bytes=2**20, pixels=2**16, frames=64, seconds=16.0)
MAX_GROWTH_BYTES = 2**30  # of a process
MAX_MESSAGE_LENGTH = 3000
MAX_CLIPS = 200  # of the rows of one input
EXAMPLES, DATA = "examples", "data"  # subfolders of the sandbox: valid files, and where writing is allowed
ACCEPTED, REFUSED = "accepted", "refused"


class HeadRefused(ValueError):
    """A request that a server answered with an error, or waited for in vain."""


class InvariantError(AssertionError):
    """An input led to what must not happen."""


def check_request(request: Request) -> None:
    """Process a request as is done before it is queued; raises InvariantError where it does not survive that."""
    check_values(request)
    text = request.to_json()
    json.loads(text, parse_constant=_refuse_constant)
    if Request.from_json(text.encode().decode()) != request:
        raise InvariantError("a request must survive being written and read")
    try:
        check_prompt(request, STRICT)
    except PolicyError as error:
        check_message(str(error))


def _refuse_constant(name: str) -> None:
    raise InvariantError(f"an accepted request must be JSON; it has {name}")


def check_message(message: str, secret: str | None = None) -> None:
    """Raise InvariantError for an error message that is not one line, or contains `secret`, a path."""
    if not message or len(message) > MAX_MESSAGE_LENGTH or len(message.splitlines()) != 1:
        raise InvariantError(f"a refusal must be one line; got {len(message)} characters, {message[:200]!r}")
    if "Traceback" in message or (secret and secret in message):
        raise InvariantError(f"a refusal must not reveal this machine; got {message[:200]!r}")
    message.encode()


def feed_request(rng: Random, sandbox: Path) -> None:
    """Feed one request: as JSON, as a dict, or as changes to another."""
    tree, variant = mutate(rng.choice(REQUESTS), rng), rng.randrange(4)
    if variant == 0 and isinstance(tree, dict):
        check_request(Request.from_dict(tree))
    elif variant == 1 and isinstance(tree, dict):
        check_request(Request(prompt="a red ball").altered(**{str(name): value for name, value in tree.items()}))
    else:
        text = json.dumps(tree, default=str).encode()
        check_request(Request.from_json((corrupt(text, rng) if variant == 3 else text).decode("utf-8", "replace")))


def feed_rows(rng: Random, sandbox: Path) -> None:
    """Feed one file of rows, and name its clips."""
    trees = [mutate(rng.choice(REQUESTS), rng) for _ in range(rng.randint(1, 4))]
    suffix = rng.choice((".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".json"))
    if suffix in (".csv", ".tsv"):
        text = as_csv(trees, "," if suffix == ".csv" else "\t")
    elif suffix == ".yaml":
        text = as_yaml(trees, rng)
    elif suffix == ".json":
        text = json.dumps(trees, default=str)
    else:
        text = "\n".join(json.dumps(tree, default=str) for tree in trees)
    path, content = sandbox / DATA / f"rows{suffix}", text.encode("utf-8", "surrogatepass")
    path.write_bytes(corrupt(content, rng) if rng.random() < 0.5 else content)
    rows = read_rows(path)
    for item in expand_rows(rows, max_clips=MAX_CLIPS):
        if item.error:
            check_message(item.error)
        elif Path(item.name).is_absolute() or ".." in Path(item.name).parts or "\0" in item.name:
            raise InvariantError(f"a clip must stay in its folder; got {item.name!r}")
        elif item.request:
            item.request.to_json().encode()


def feed_storyboard(rng: Random, sandbox: Path) -> None:
    """Feed one storyboard."""
    tree, suffix = mutate(rng.choice(STORYBOARDS), rng), rng.choice((".yaml", ".json"))
    text = json.dumps(tree, default=str) if suffix == ".json" else as_yaml(tree, rng)
    path, content = sandbox / DATA / f"storyboard{suffix}", text.encode("utf-8", "surrogatepass")
    path.write_bytes(corrupt(content, rng) if rng.random() < 0.5 else content)
    check_request(Request(mode="storyboard").altered(**read_storyboard(str(path))))


def _content(rng: Random, sandbox: Path) -> bytes:
    """Return a file: valid, corrupted, joined with the end of another, or noise."""
    paths = sorted((sandbox / EXAMPLES).iterdir())
    content = rng.choice(paths).read_bytes()
    if rng.random() < 0.05:
        return content
    if rng.random() < 0.15:
        other = rng.choice(paths).read_bytes()
        return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]
    if rng.random() < 0.05:
        return content[: rng.choice((4, 12, 40))] + rng.randbytes(rng.randrange(2000))
    return corrupt(content, rng)


def feed_file(rng: Random, sandbox: Path) -> None:
    """Feed one image or video to the upload reader, in this process."""
    path, content = sandbox / DATA / "half", _content(rng, sandbox)
    suffix = sniff_suffix(content[:HEAD_BYTES])
    path.write_bytes(content)
    try:
        inspect_file(path, suffix, LIMITS)
    except MediaError as error:
        check_message(str(error))
        raise UploadError(str(error)) from None
    except (MemoryError, RuntimeError):  # the sandbox turns them into a message
        raise UploadError("too much memory") from None


def feed_upload(rng: Random, sandbox: Path) -> None:
    """Feed one image or video to `store_upload`, which reads it in a child process."""
    content, folder = _content(rng, sandbox), sandbox / DATA / "kept"
    try:
        kept = store_upload(io.BytesIO(content), folder, LIMITS)
        if kept.parent != folder or kept.read_bytes() != content:
            raise InvariantError(f"an upload must be stored unchanged; got {kept}")
        kept.unlink()
    except UploadError as error:
        check_message(str(error), str(sandbox))
        raise
    finally:
        if remaining := [path.name for path in folder.iterdir()]:
            raise InvariantError(f"a refused upload must leave no file; got {remaining}")


def feed_head(rng: Random, sandbox: Path) -> None:
    """Feed the bytes of a connection, in pieces of any size, to a server's protocol, and then nothing."""
    content = b"".join(rng.choice(HEADS) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.8:
        content = corrupt(content, rng)
    size = rng.choice((1, 7, 100, 10**6))
    answer = asyncio.run(converse([content[at : at + size] for at in range(0, len(content), size)]))
    if not answer.startswith(b"HTTP/1.1 ") or b"Traceback" in answer or b" 500 " in answer[:20]:
        raise InvariantError(f"a connection must be answered with a response; got {answer[:200]!r}")
    if not b"100" <= answer[9:12] < b"300":
        raise HeadRefused(answer.partition(b"\r\n")[0].decode("latin-1"))


async def converse(pieces: list[bytes]) -> bytes:
    """Send pieces to a protocol whose app answers with the size of each body; return all that it writes.

    The connection must be closed in the end, by the limits at the latest.
    """
    from app.server.connections import ConnectionLimits, make_server

    async def app(scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    limits = ConnectionLimits(head_seconds=0.02, body_seconds=0.02, body_rate=1e9, check_seconds=0.01)
    server = make_server(app, 1, limits)
    server.config.timeout_keep_alive = 0
    if not server.config.loaded:
        server.config.load()
    transport = RecordingTransport()
    make_protocol: Any = server.config.http_protocol_class
    protocol = make_protocol(config=server.config, server_state=server.server_state, app_state={})
    transport.protocol = protocol
    protocol.connection_made(transport)
    for piece in pieces:
        if not transport.is_closing():
            protocol.data_received(piece)
        await asyncio.sleep(0)
    until = time.monotonic() + 5
    while not transport.is_closing() and time.monotonic() < until:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0)
    await asyncio.gather(*server.server_state.tasks)
    if not transport.is_closing() or limits.waiting:
        raise InvariantError("a connection must be closed in the end; this one is not")
    return bytes(transport.written)


class RecordingTransport(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self):
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written, self.closed = bytearray(), False
        self.protocol: Any = None

    def write(self, data) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


FEEDS: dict[str, tuple[Callable[[Random, Path], None], type[ValueError]]] = {
    "request": (feed_request, RequestError),
    "head": (feed_head, HeadRefused),
    "rows": (feed_rows, RequestError),
    "storyboard": (feed_storyboard, RequestError),
    "file": (feed_file, UploadError),
    "upload": (feed_upload, UploadError),
}


def feed(kind: str, seed: int, numbers: range, sandbox: Path, answer: Connection) -> None:
    """Feed inputs one after another and send the outcome of each through `answer`.

    An outcome is the input's number; "accepted", "refused" or what broke; CPU seconds; bytes this process has grown by.
    """
    if kind != "upload":  # its child processes have limits of their own
        limit_memory(SANDBOX_BYTES if kind == "file" else 2 * MAX_GROWTH_BYTES)
    feed_one, refusal = FEEDS[kind]
    (sandbox / DATA / "kept").mkdir(exist_ok=True)
    initial_peak = _peak_bytes()
    for number in numbers:
        rng, started = Random(f"{seed} {kind} {number}"), time.process_time()
        try:
            feed_one(rng, sandbox)
            outcome = ACCEPTED
        except refusal as error:
            outcome = REFUSED
            try:
                check_message(str(error))
            except (InvariantError, ValueError) as bad_message:
                outcome = f"{type(bad_message).__name__}: {bad_message}"[:300]
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"[:300]
        answer.send((number, outcome, time.process_time() - started, _peak_bytes() - initial_peak))


def _peak_bytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
