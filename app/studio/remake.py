"""Make again: the request that a file carries, with the ids of an owner's clips and uploads where it names files.

A path in a file says where something lay when the clip was made, perhaps on another machine. It is opened by nobody:
what it meant is found by the SHA-256 that the file carries beside it, or by the name that this server gave.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.batch.rows import FILE_FIELDS
from app.queue.jobs import UPLOADS
from app.server.parsing import SERVER_FIELDS, UPSAMPLERS
from app.server.service import UPLOAD_ID, NotFound
from app.studio.gallery import Shelf
from dit.request import Request, RequestError

JOB = re.compile(r"[0-9a-f]{24}")


def again(request: Request, shelf: Shelf, owner: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields by which a client asks for a request again, and a sentence for each thing that is not there."""
    found: dict[str, Any] = json.loads(request.to_json())
    digests, missing = dict(request.hashes or ()), []

    def id_of(path: str | None) -> str | None:
        if not path:
            return None
        id = _sought(path, digests.get(path), shelf, owner)
        if id is None:
            missing.append(f"{Path(path).name} is not among your clips and files; send it, or choose another")
        return id

    fields = {name: value for name, value in found.items() if name not in SERVER_FIELDS}
    for name in FILE_FIELDS:
        if name in fields:
            fields[name] = id_of(fields[name])
    if "keyframes" in fields:
        fields["keyframes"] = [[at, id] for at, path in fields["keyframes"] if (id := id_of(path))]
    if "moments" in fields:
        for one in fields["moments"]:
            one |= {name: id_of(one[name]) for name in ("image", "clip") if name in one}
        fields["moments"] = [
            {name: value for name, value in one.items() if value is not None} for one in fields["moments"]
        ]
    if "size" in fields:
        fields["size"] = "{}x{}".format(*fields["size"])
    if fields.get("upsample") not in (None, *UPSAMPLERS):
        del fields["upsample"]  # another machine's; what it wrote stays
    offers = shelf.service.models
    name = Path(fields.pop("model", "")).name or next(iter(offers))
    if name in offers:
        fields["model"] = name
    else:
        missing.append(f"the model {name} is not on offer here; another will make another clip")
    return {name: value for name, value in fields.items() if value is not None}, missing


def parents_of(request: Request) -> list[str]:
    """Return the ids of what a job of this server is made from."""
    return list(dict.fromkeys(id for path in _files(request) if (id := _named(path))))


def _files(request: Request) -> Iterator[str]:
    yield from (path for name in FILE_FIELDS if (path := getattr(request, name)))
    yield from (path for _, path in request.keyframes or ())
    yield from (path for one in request.moments or () for path in (one.image, one.clip) if path)


def _named(path: str) -> str | None:
    """Return the id that this server gives to what lies at a path of its own, or is named by its id."""
    if UPLOAD_ID.fullmatch(path) or JOB.fullmatch(path):
        return path
    parts = Path(path).parts
    stem = parts[-1].partition(".")[0] if parts else ""
    if len(parts) == 2 and parts[0] == "clips" and JOB.fullmatch(stem):
        return stem
    if len(parts) == 3 and parts[0] == UPLOADS and UPLOAD_ID.fullmatch(f"file-{stem}"):
        return f"file-{stem}"
    return None


def _sought(path: str, digest: str | None, shelf: Shelf, owner: str) -> str | None:
    """Return the id of what a request names by a path, if the owner has it; its contents are compared where their hash
    is known.
    """
    if id := _named(path):
        try:
            item = shelf.item(id, owner)
            if shelf.file_of(item) and digest in (None, shelf.contents_of(item)):
                return id
        except (NotFound, RequestError, OSError):
            pass
    return shelf.named(digest, owner) if digest else None
