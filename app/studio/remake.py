"""Turn the request in a file's metadata into fields that the form and the API take.

A path in the metadata says where an input lay when the clip was generated, perhaps on another machine. It is never
opened: the input is found by the SHA-256 in the metadata, or by the id in the path where this server wrote it.
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
from app.studio.gallery import Gallery
from dit.request import Request, RequestError

JOB_ID = re.compile(r"[0-9a-f]{24}")


def fields_to_remake(request: Request, gallery: Gallery, owner: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields with which an owner makes a clip again, and a sentence for each input or model not found.

    Input files are ids of the owner's clips and uploads.
    """
    found: dict[str, Any] = json.loads(request.to_json())
    hashes, missing = dict(request.hashes or ()), []

    def id_of(path: str | None) -> str | None:
        if not path:
            return None
        id = _find_id(path, hashes.get(path), gallery, owner)
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
        for moment in fields["moments"]:
            moment |= {name: id_of(moment[name]) for name in ("image", "clip") if name in moment}
        fields["moments"] = [
            {name: value for name, value in moment.items() if value is not None} for moment in fields["moments"]
        ]
    if "size" in fields:
        fields["size"] = "{}x{}".format(*fields["size"])
    if fields.get("upsample") not in (None, *UPSAMPLERS):
        del fields["upsample"]  # a folder of another machine; the upsampled prompt stays
    models = gallery.service.models
    model = Path(fields.pop("model", "")).name or next(iter(models))
    if model in models:
        fields["model"] = model
    else:
        missing.append(f"the model {model} is not served here; another one makes another clip")
    return {name: value for name, value in fields.items() if value is not None}, missing


def parent_ids(request: Request) -> list[str]:
    """Return the ids of the input files of a job on this server."""
    return list(dict.fromkeys(id for path in _input_paths(request) if (id := _id_in_path(path))))


def _input_paths(request: Request) -> Iterator[str]:
    yield from (path for name in FILE_FIELDS if (path := getattr(request, name)))
    yield from (path for _, path in request.keyframes or ())
    yield from (path for moment in request.moments or () for path in (moment.image, moment.clip) if path)


def _id_in_path(path: str) -> str | None:
    """Return the id in a path that this server wrote, or a path that is an id."""
    if UPLOAD_ID.fullmatch(path) or JOB_ID.fullmatch(path):
        return path
    parts = Path(path).parts
    stem = parts[-1].partition(".")[0] if parts else ""
    if len(parts) == 2 and parts[0] == "clips" and JOB_ID.fullmatch(stem):
        return stem
    if len(parts) == 3 and parts[0] == UPLOADS and UPLOAD_ID.fullmatch(f"file-{stem}"):
        return f"file-{stem}"
    return None


def _find_id(path: str, content_hash: str | None, gallery: Gallery, owner: str) -> str | None:
    """Return the id of an owner's clip or upload that a path names, or whose contents have that hash."""
    if id := _id_in_path(path):
        try:
            item = gallery.item(id, owner)
            if gallery.file_path(item) and content_hash in (None, gallery.content_hash(item)):
                return id
        except (NotFound, RequestError, OSError):
            pass
    return gallery.find_by_hash(content_hash, owner) if content_hash else None
