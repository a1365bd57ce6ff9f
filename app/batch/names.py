"""Names from content: the same clip has the same name in any order, on any machine, in any run, and no other has it.

The hash in a name covers the whole request, with the contents of the files that it names in the place of their paths.
So what is there need not be made again, and machines can part work without a word to each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch.rows import FILES
from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from dit.modes import MODES
from dit.request import Request, RequestError
from vae.video.credentials import hash_of_contents

if TYPE_CHECKING:
    from app.batch.sweeps import Shot

LATENTS = ".latents"  # added to a clip's name, as dit.inputs does, which imports torch
FILMS = ("clip", "other")  # fields whose files may have latents beside them
LETTERS, DIGITS = 40, 12  # of a name: of the prompt, and hexadecimal ones of the hash
LONGEST = 200  # bytes of one part of a name; file systems end at 255, and drafts have longer names
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ .]*(\..*)?", re.IGNORECASE)  # on Windows


def name_of(request: Request, hashes: Mapping[str, str], suffix: str = VIDEO_SUFFIXES[0]) -> str:
    """Name the file of a clip: words of its prompt, and 12 digits of a hash of all that it is made of.

    `hashes` are the SHA-256 of the contents of its files, by path. `suffix` is that of a clip; a picture ends in .png.
    Raises KeyError for a file without its hash.
    """
    suffix = IMAGE_SUFFIXES[0] if MODES[request.mode].still else suffix
    prompt = request.prompt if request.prompt.strip() or not request.moments else request.moments[0].prompt
    return f"{slug_of(prompt)}-{digest_of(request, hashes)[:DIGITS]}{suffix}"


def slug_of(prompt: str) -> str:
    """Return words of a prompt that a file's name can hold: letters, digits and hyphens, at most 40, never none.

    Accents are dropped. Letters of other scripts stay where the file system can hold them.
    """
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", prompt) if not unicodedata.combining(mark))
    plain = unicodedata.normalize("NFC", plain).lower()
    words = "".join(letter if letter.isalnum() else "-" for letter in plain)
    try:
        os.fsencode(words)
    except UnicodeEncodeError:
        words = re.sub(r"[^a-z0-9]", "-", words)
    words = re.sub(r"-+", "-", words).strip("-")
    if len(words) > LETTERS:
        whole = words[: LETTERS + 1].rpartition("-")[0]  # ends with a whole word, where that leaves enough
        words = whole if len(whole) > LETTERS // 2 else words[:LETTERS]
    return words.strip("-") or "clip"


def digest_of(request: Request, hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 of a request with the hashes of its files in the place of their paths.

    Raises KeyError for a file without its hash.
    """
    found = {name: value for name, value in vars(request).items() if value is not None}  # asdict is slow

    def contents(path: str | None) -> str:
        return hashes[path] + hashes.get(path + LATENTS, "") if path else ""

    for name in FILES:
        if name in found:
            found[name] = contents(found[name])
    if "pictures" in found:
        found["pictures"] = [(at, contents(path)) for at, path in found["pictures"]]
    if "moments" in found:
        found["moments"] = [
            {
                name: contents(value) if name in FILES else value
                for name, value in vars(one).items()
                if value is not None
            }
            for one in found["moments"]
        ]
    if "hashes" in found:
        found["hashes"] = sorted(digest for _, digest in found["hashes"])
    return hashlib.sha256(json.dumps(found, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hashes_of(request: Request, hash_of: Callable[[str], str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file that a request names, and of the latents beside its clips, by path.

    `hash_of` is `hash_file`, or one that remembers what it has read. Raises RequestError for a file that is not there.
    """
    hash_of = hash_of or hash_file
    found = {}
    for name, path in _files(request):
        try:
            found[path] = hash_of(path)
            if name in FILMS and os.path.isfile(path + LATENTS):
                found[path + LATENTS] = hash_of(path + LATENTS)
        except RequestError as error:
            raise RequestError(f"{name} must be a file that can be read; {error}") from error
    return found


def _files(request: Request) -> Iterator[tuple[str, str]]:
    for name in FILES:
        if path := getattr(request, name):
            yield name, path
    for _, path in request.pictures or ():
        if path:
            yield "a picture", path
    for moment in request.moments or ():
        for name in ("image", "clip"):
            if path := getattr(moment, name):
                yield name, path


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's contents, which who signed it is no part of; raises RequestError for what is not
    there or is no file.
    """
    try:
        if not Path(path).is_file():  # a pipe or a device might never end
            raise RequestError(f"{path!r} {'is none' if Path(path).exists() else 'is not there'}")
        return hash_of_contents(path)
    except OSError as error:
        raise RequestError(f"{path!r} cannot be read: {error.strerror or error}") from error


def check_output(output: Any, still: bool) -> str:
    """Return the file name that a row gives its clip; raises RequestError for one that leaves the folder, that some
    file system cannot hold, or that is no picture's or no clip's.
    """
    if not isinstance(output, str):
        raise RequestError(f"output must be a file's name; got {output!r}")
    parts = output.split("/")
    if any(
        part[:1] in ("", ".", " ")
        or part[-1] in ". "
        or len(part.encode(errors="replace")) > LONGEST
        or re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', part)
        or RESERVED.fullmatch(part)
        for part in parts
    ):
        raise RequestError(
            f"output must be a plain file name within the folder, such as one.mp4 or first/one.mp4; got {output!r}"
        )
    allowed = IMAGE_SUFFIXES if still else VIDEO_SUFFIXES
    if Path(output).suffix.lower() not in allowed:
        raise RequestError(f"output must end in {' or '.join(allowed)} in this mode; got {output!r}")
    return output


def alike(name: str) -> str:
    """Return what two names share that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def parse_shard(text: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Read which part of the work is this machine's, and of how many: "2/8", or "slurm" as Slurm's variables say.

    Parts count from 1. Slurm's are the tasks of its array, or else its processes. Raises RequestError for anything
    else.
    """
    if text.strip().lower() == "slurm":
        return _slurm_shard(environ)
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    index, total = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= total:
        raise RequestError(f"a shard must be one of some, such as 2/8, from 1/8 to 8/8, or slurm; got {text!r}")
    return index, total


def _slurm_shard(environ: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: str = "") -> int:
        value = environ.get(name, default)
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise RequestError(f"a shard of Slurm needs a number in {name}; got {value!r}, so say it as 2/8")
        return int(value)

    if "SLURM_ARRAY_TASK_ID" in environ:
        task, first, total = (number(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT"))
        step = number("SLURM_ARRAY_TASK_STEP", "1")
        last = number("SLURM_ARRAY_TASK_MAX", str(first + step * (total - 1)))
        # A list such as 1,3,7 has no even step, and one of its tasks alone cannot tell which it is.
        if step < 1 or last != first + step * (total - 1) or (task - first) % step or not first <= task <= last:
            raise RequestError(
                f"an array of Slurm must be numbered evenly, such as 1-8; got task {task} of {total} from {first} to "
                f"{last}, so say the shard as 2/8"
            )
        return (task - first) // step + 1, total
    if "SLURM_PROCID" in environ:
        process, total = number("SLURM_PROCID"), number("SLURM_NTASKS")
        if process >= total:
            raise RequestError(f"a process of Slurm must be one of its tasks; got {process}, from 0, of {total}")
        return process + 1, total
    raise RequestError("a shard of Slurm needs SLURM_ARRAY_TASK_ID or SLURM_PROCID; got neither, so say it as 2/8")


def shard_of(shots: list[Shot], index: int, total: int) -> list[Shot]:
    """Return the shots that are machine `index`'s, from 1, of `total`, in order.

    A shot's hash says whose it is, so that it stays so when others come and go, and is made beside those of the same
    content. What is wrong is the first machine's, so that it is told once. Raises RequestError for no such machine.
    """
    if not 1 <= index <= total:
        raise RequestError(f"a shard must be one of some, from 1 on; got {index} of {total}")
    return [shot for shot in shots if (int(shot.digest[:DIGITS], 16) % total if shot.digest else 0) == index - 1]
