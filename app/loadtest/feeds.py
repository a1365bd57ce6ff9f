"""What each kind of hostile input is fed to, and what must not come of it."""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from app.batch.rows import read_rows
from app.batch.sweeps import expand
from app.loadtest.mutation import BOARDS, REQUESTS, altered, as_csv, as_yaml, torn
from app.policy.errors import PolicyError
from app.policy.policy import STRICT, check_prompt
from app.server.uploads import CHILD_BYTES, HEAD_BYTES, Caps, UploadError, keep_upload, look_through, sniffed
from dit.request import Request, RequestError, check_values
from dit.storyboard import read_storyboard
from vae.video.pixels import MediaError
from vae.video.sandbox import limit_memory

CAPS = Caps(bytes=2**20, pixels=2**16, frames=64, seconds=16.0)
BYTES = 2**30  # of memory that a process may grow by
LONGEST_SENTENCE = 3000  # letters
MOST_CLIPS = 200  # of the rows of one input
EXAMPLES, DATA = "examples", "data"  # in the sandbox: made by us, and what may be written
TAKEN, REFUSED = "taken", "refused"


class Broken(AssertionError):
    """What must not happen to an input."""


def goes_on(request: Request) -> None:
    """Do with a request what is done before it is queued; raises Broken where it does not survive that."""
    check_values(request)
    said = request.to_json()
    json.loads(said, parse_constant=_no_number)
    if Request.from_json(said.encode().decode()) != request:
        raise Broken("a request must survive being written and read")
    try:
        check_prompt(request, STRICT)
    except PolicyError as error:
        check_sentence(str(error))


def _no_number(name: str) -> None:
    raise Broken(f"a request that is taken must be JSON; it holds {name}")


def check_sentence(sentence: str, secret: str | None = None) -> None:
    """Raise Broken for what is no sentence of one line, or tells where something lies."""
    if not sentence or len(sentence) > LONGEST_SENTENCE or len(sentence.splitlines()) != 1:
        raise Broken(f"a refusal must be one line; got {len(sentence)} letters, {sentence[:200]!r}")
    if "Traceback" in sentence or (secret and secret in sentence):
        raise Broken(f"a refusal must not tell of this machine; got {sentence[:200]!r}")
    sentence.encode()


def feed_request(chance: Random, sandbox: Path) -> None:
    """Feed one request, as text, as named values, or as changes to another."""
    tree, way = altered(chance.choice(REQUESTS), chance), chance.randrange(4)
    if way == 0 and isinstance(tree, dict):
        goes_on(Request.from_dict(tree))
    elif way == 1 and isinstance(tree, dict):
        goes_on(Request(prompt="a red ball").altered(**{str(name): value for name, value in tree.items()}))
    else:
        text = json.dumps(tree, default=str).encode()
        goes_on(Request.from_json((torn(text, chance) if way == 3 else text).decode("utf-8", "replace")))


def feed_rows(chance: Random, sandbox: Path) -> None:
    """Feed one file of rows, and name the clips that it asks for."""
    trees = [altered(chance.choice(REQUESTS), chance) for _ in range(chance.randint(1, 4))]
    suffix = chance.choice((".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".json"))
    if suffix in (".csv", ".tsv"):
        text = as_csv(trees, "," if suffix == ".csv" else "\t")
    elif suffix == ".yaml":
        text = as_yaml(trees, chance)
    elif suffix == ".json":
        text = json.dumps(trees, default=str)
    else:
        text = "\n".join(json.dumps(tree, default=str) for tree in trees)
    path, content = sandbox / DATA / f"rows{suffix}", text.encode("utf-8", "surrogatepass")
    path.write_bytes(torn(content, chance) if chance.random() < 0.5 else content)
    rows = read_rows(path)
    for shot in expand(rows, most=MOST_CLIPS):
        if shot.wrong:
            check_sentence(shot.wrong)
        elif Path(shot.name).is_absolute() or ".." in Path(shot.name).parts or "\0" in shot.name:
            raise Broken(f"a clip must lie in its folder; got {shot.name!r}")
        elif shot.request:
            shot.request.to_json().encode()


def feed_board(chance: Random, sandbox: Path) -> None:
    """Feed one storyboard."""
    tree, suffix = altered(chance.choice(BOARDS), chance), chance.choice((".yaml", ".json"))
    text = json.dumps(tree, default=str) if suffix == ".json" else as_yaml(tree, chance)
    path, content = sandbox / DATA / f"board{suffix}", text.encode("utf-8", "surrogatepass")
    path.write_bytes(torn(content, chance) if chance.random() < 0.5 else content)
    goes_on(Request(mode="storyboard").altered(**read_storyboard(str(path))))


def _content(chance: Random, sandbox: Path) -> bytes:
    """Return an example of a file, whole or torn, the end of another behind it, or noise."""
    paths = sorted((sandbox / EXAMPLES).iterdir())
    content = chance.choice(paths).read_bytes()
    if chance.random() < 0.05:
        return content
    if chance.random() < 0.15:
        other = chance.choice(paths).read_bytes()
        return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]
    if chance.random() < 0.05:
        return content[: chance.choice((4, 12, 40))] + chance.randbytes(chance.randrange(2000))
    return torn(content, chance)


def feed_file(chance: Random, sandbox: Path) -> None:
    """Feed one picture or film to what reads uploads, in this process."""
    path, content = sandbox / DATA / "half", _content(chance, sandbox)
    suffix = sniffed(content[:HEAD_BYTES])
    path.write_bytes(content)
    try:
        look_through(path, suffix, CAPS)
    except MediaError as error:
        check_sentence(str(error))
        raise UploadError(str(error)) from None
    except (MemoryError, RuntimeError):  # of which the guard makes a sentence
        raise UploadError("too much memory") from None


def feed_upload(chance: Random, sandbox: Path) -> None:
    """Feed one picture or film to `keep_upload`."""
    content, folder = _content(chance, sandbox), sandbox / DATA / "kept"
    try:
        kept = keep_upload(io.BytesIO(content), folder, CAPS)
        if kept.parent != folder or kept.read_bytes() != content:
            raise Broken(f"an upload must be kept as it is; got {kept}")
        kept.unlink()
    except UploadError as error:
        check_sentence(str(error), str(sandbox))
        raise
    finally:
        if left := [path.name for path in folder.iterdir()]:
            raise Broken(f"an upload that is refused must leave nothing behind; got {left}")


FEEDS: dict[str, tuple[Callable[[Random, Path], None], type[ValueError]]] = {
    "request": (feed_request, RequestError),
    "rows": (feed_rows, RequestError),
    "board": (feed_board, RequestError),
    "file": (feed_file, UploadError),
    "upload": (feed_upload, UploadError),
}


def feed(kind: str, seed: int, numbers: range, sandbox: Path, answer: Connection) -> None:
    """Feed inputs one after another and send how each went: its number, "taken", "refused" or what broke, the
    processor's seconds it took and the bytes that this process has grown by.
    """
    if kind != "upload":  # its children have limits of their own
        limit_memory(CHILD_BYTES if kind == "file" else 2 * BYTES)
    one, refusal = FEEDS[kind]
    (sandbox / DATA / "kept").mkdir(exist_ok=True)
    at_first = _peak()
    for number in numbers:
        chance, begun = Random(f"{seed} {kind} {number}"), time.process_time()
        try:
            one(chance, sandbox)
            went = TAKEN
        except refusal as error:
            went = REFUSED
            try:
                check_sentence(str(error))
            except (Broken, ValueError) as wrong:
                went = f"{type(wrong).__name__}: {wrong}"[:300]
        except BaseException as error:
            went = f"{type(error).__name__}: {error}"[:300]
        answer.send((number, went, time.process_time() - begun, _peak() - at_first))


def _peak() -> int:
    """Return the most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
