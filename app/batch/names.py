"""File names from content: the same clip gets the same name in any order, on any machine, in any run; no other does.

The hash in a name covers the whole request, with the contents of its input files in place of their paths. So a clip
that exists need not be made again, and machines can divide the work without communication.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.batch.rows import FILE_FIELDS
from app.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from app.registry import MODELS
from dit.modes import MODES
from dit.request import LATENTS_SUFFIX, RENAMED, Request, RequestError
from vae.video.credentials import hash_of_contents

CLIP_FIELDS = ("clip", "other")  # fields whose files may have latents next to them
SLUG_LENGTH, DIGEST_DIGITS = 40, 12  # characters of the prompt, and hexadecimal digits of the hash
MAX_NAME_BYTES = 200  # of one part of a name; file systems allow 255, and temporary files have longer names
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ .]*(\..*)?", re.IGNORECASE)  # on Windows
# Digests use the field names of version 0.1, so that a clip which that version made still counts as existing.
FORMER_NAMES = {new: old for old, new in RENAMED.items()}


def file_name(request: Request, hashes: Mapping[str, str], suffix: str = VIDEO_SUFFIXES[0]) -> str:
    """Name the file of a clip: words of its prompt, and 12 digits of the hash of all that it is made of.

    `hashes` maps each input path to the SHA-256 of its content. `suffix` is that of a video; an image ends in .png.
    Raises KeyError for a path without a hash.
    """
    suffix = IMAGE_SUFFIXES[0] if MODES[request.mode].still else suffix
    prompt = request.prompt if request.prompt.strip() or not request.moments else request.moments[0].prompt
    return f"{slugify(prompt)}-{request_digest(request, hashes)[:DIGEST_DIGITS]}{suffix}"


def slugify(prompt: str) -> str:
    """Return words of a prompt as a file name can hold them: letters, digits and hyphens, at most 40, never none.

    Accents are dropped. Letters of other scripts stay where the file system can store them.
    """
    text = "".join(mark for mark in unicodedata.normalize("NFKD", prompt) if not unicodedata.combining(mark))
    text = unicodedata.normalize("NFC", text).lower()
    slug = "".join(letter if letter.isalnum() else "-" for letter in text)
    try:
        os.fsencode(slug)
    except UnicodeEncodeError:
        slug = re.sub(r"[^a-z0-9]", "-", slug)
    slug = re.sub(r"-+", "-", slug).strip("-")
    if len(slug) > SLUG_LENGTH:
        whole = slug[: SLUG_LENGTH + 1].rpartition("-")[0]  # ends with a whole word, where enough is left
        slug = whole if len(whole) > SLUG_LENGTH // 2 else slug[:SLUG_LENGTH]
    return slug.strip("-") or "clip"


def request_digest(request: Request, hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 of a request with the hashes of its input files in place of their paths.

    Raises KeyError for a path without a hash.
    """
    found = {name: value for name, value in vars(request).items() if value is not None}  # asdict is slow

    def content_hash(path: str | None) -> str:
        return hashes[path] + hashes.get(path + LATENTS_SUFFIX, "") if path else ""

    for name in FILE_FIELDS:
        if name in found:
            found[name] = content_hash(found[name])
    if "keyframes" in found:
        found["keyframes"] = [(at, content_hash(path)) for at, path in found["keyframes"]]
    if "moments" in found:
        found["moments"] = [
            {
                name: content_hash(value) if name in FILE_FIELDS else value
                for name, value in vars(moment).items()
                if value is not None
            }
            for moment in found["moments"]
        ]
    if "hashes" in found:
        found["hashes"] = sorted(digest for _, digest in found["hashes"])
    found = {FORMER_NAMES.get(name, name): value for name, value in found.items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_inputs(request: Request, hash_of: Callable[[str], str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file that a request names, and of the latents next to its clips, by path.

    `hash_of` is `hash_file`, or a cached version of it. Raises RequestError for a file that does not exist.
    """
    hash_of = hash_of or hash_file
    found = {}
    for name, path in _input_files(request):
        try:
            found[path] = hash_of(path)
            if name in CLIP_FIELDS and os.path.isfile(path + LATENTS_SUFFIX):
                found[path + LATENTS_SUFFIX] = hash_of(path + LATENTS_SUFFIX)
        except RequestError as error:
            raise RequestError(f"{name} must be a file that can be read; {error}") from error
    return found


def with_absolute_paths(request: Request) -> Request:
    """Return a request whose files, and model where that is a folder, are named by absolute paths.

    So it means the same in a worker with another working directory.
    """
    absolute = lambda path: path and os.path.abspath(path)
    changed: dict[str, Any] = {name: absolute(getattr(request, name)) for name in FILE_FIELDS}
    if request.keyframes:
        changed["keyframes"] = tuple((at, absolute(path)) for at, path in request.keyframes)
    if request.moments:
        changed["moments"] = tuple(
            replace(one, image=absolute(one.image), clip=absolute(one.clip)) for one in request.moments
        )
    if request.hashes:
        changed["hashes"] = tuple((absolute(path), digest) for path, digest in request.hashes)
    if request.model and os.path.isdir(request.model) and not (MODELS / request.model).is_dir():
        changed["model"] = absolute(request.model)
    return replace(request, **changed)


def _input_files(request: Request) -> Iterator[tuple[str, str]]:
    for name in FILE_FIELDS:
        if path := getattr(request, name):
            yield name, path
    for _, path in request.keyframes or ():
        if path:
            yield "a keyframe", path
    for moment in request.moments or ():
        for name in ("image", "clip"):
            if path := getattr(moment, name):
                yield name, path


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's content without its Content Credentials.

    Raises RequestError for a path that does not exist or is no regular file.
    """
    try:
        if not Path(path).is_file():  # a pipe or a device might never end
            raise RequestError(f"{path!r} {'is none' if Path(path).exists() else 'does not exist'}")
        return hash_of_contents(path)
    except OSError as error:
        raise RequestError(f"{path!r} cannot be read: {error.strerror or error}") from error


def check_output_name(output: Any, still: bool) -> str:
    """Return the file name that a row gives its clip.

    Raises RequestError for one that leaves the folder, that some file system cannot store, or whose suffix does not fit
    the mode.
    """
    if not isinstance(output, str):
        raise RequestError(f"output must be a file's name; got {output!r}")
    parts = output.split("/")
    if any(
        part[:1] in ("", ".", " ")
        or part[-1] in ". "
        or len(part.encode(errors="replace")) > MAX_NAME_BYTES
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


def collision_key(name: str) -> str:
    """Return a key that is equal for names which some file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()
