"""Votes: which of two clips is better in visual quality, motion and prompt adherence, for preference tuning.

`votes.jsonl` in the queue's folder has one JSON line per vote: the time, the owner, both clips with their requests and
the SHA-256 of their contents, and left, right or tie for each criterion. The file is append-only.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from app.home import private_opener
from app.server.parsing import short_repr
from app.studio.gallery import Gallery, GalleryItem
from dit.request import RequestError

VOTES_FILE = "votes.jsonl"
CRITERIA, CHOICES = ("looks", "motion", "prompt"), ("left", "right", "tie")  # the keys and values in the file
LATEST = 20  # votes that a client gets


class Votes:
    """The votes of one studio."""

    def __init__(self, gallery: Gallery):
        self.gallery, self.path = gallery, gallery.folder / VOTES_FILE

    def add(self, fields: dict[str, Any], owner: str) -> dict[str, Any]:
        """Store a vote on two clips of an owner and return its summary; raises RequestError and NotFound."""
        names = ("left", "right", *CRITERIA)
        if unknown := [name for name in fields if name not in names]:
            raise RequestError(f"a vote has {', '.join(names)}; got {short_repr(unknown[0])}")
        for criterion in CRITERIA:
            if fields.get(criterion) not in CHOICES:
                raise RequestError(f"{criterion} must be {', '.join(CHOICES)}; got {short_repr(fields.get(criterion))}")
        ids = [fields.get(side) for side in ("left", "right")]
        if not all(isinstance(id, str) for id in ids) or ids[0] == ids[1]:
            raise RequestError(f"a vote must be on two clips, left and right; got {short_repr(ids)}")
        sides = [self._describe_side(self.gallery.item(str(id), owner)) for id in ids]
        vote = {"time": round(time.time(), 3), "owner": owner, "left": sides[0], "right": sides[1]}
        vote |= {criterion: fields[criterion] for criterion in CRITERIA}
        append_line(self.path, json.dumps(vote, ensure_ascii=False))
        return summarize(vote)

    def of_owner(self, owner: str) -> dict[str, Any]:
        """Return the number of an owner's votes, and the latest ones."""
        votes = [vote for vote in read_votes(self.path) if vote.get("owner") == owner]
        return {"count": len(votes), "latest": [summarize(vote) for vote in votes[: -LATEST - 1 : -1]]}

    def _describe_side(self, item: GalleryItem) -> dict[str, Any]:
        item = self.gallery.probe(item)
        assert item.info, "probe sets it"
        if item.info.request is None:
            raise RequestError(f"a clip to vote on must carry its request; {item.source.id} carries none")
        request = json.loads(item.info.request.to_json())
        return {"id": item.source.id, "sha256": self.gallery.content_hash(item), "request": request}


def summarize(vote: dict[str, Any]) -> dict[str, Any]:
    """Return a vote without the requests."""
    sides = {side: vote[side]["id"] for side in ("left", "right")}
    return {"time": vote["time"]} | sides | {criterion: vote[criterion] for criterion in CRITERIA}


def append_line(path: Path, line: str) -> None:
    """Append a whole line to a file and sync it; an incomplete last line of a killed process is ended first."""
    with open(path, "ab+", opener=private_opener) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        os.write(file.fileno(), f"{line}\n".encode())
        os.fsync(file.fileno())


def read_votes(path: Path) -> list[dict[str, Any]]:
    """Read all votes in order; incomplete lines are skipped."""
    votes = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            vote = json.loads(line)
        except ValueError:
            continue
        if isinstance(vote, dict) and {"left", "right", *CRITERIA} <= vote.keys():
            votes.append(vote)
    return votes
