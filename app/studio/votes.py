"""Ballots: which of two clips is better, in looks, in motion and in how it follows the prompt, for preference tuning.

One JSON line a vote in `votes.jsonl`, in the queue's folder: when, whose, both clips with their requests and the
SHA-256 of their contents, and for each quality left, right or tie. Lines are only ever added, whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from app.server.parsing import short_repr
from app.studio.gallery import Item, Shelf
from dit.request import RequestError

VOTES = "votes.jsonl"
QUALITIES, CHOICES = ("looks", "motion", "prompt"), ("left", "right", "tie")
LATEST = 20  # votes that are told


class Ballots:
    """The votes of one studio."""

    def __init__(self, shelf: Shelf):
        self.shelf, self.path = shelf, shelf.folder / VOTES

    def vote(self, found: dict[str, Any], owner: str) -> dict[str, Any]:
        """Note a vote on two clips of an owner's; return it as it is told. Raises RequestError and NotFound."""
        names = ("left", "right", *QUALITIES)
        if unknown := [name for name in found if name not in names]:
            raise RequestError(f"a vote has {', '.join(names)}; got {short_repr(unknown[0])}")
        for quality in QUALITIES:
            if found.get(quality) not in CHOICES:
                raise RequestError(f"{quality} must be {', '.join(CHOICES)}; got {short_repr(found.get(quality))}")
        ids = [found.get(side) for side in ("left", "right")]
        if not all(isinstance(id, str) for id in ids) or ids[0] == ids[1]:
            raise RequestError(f"a vote must be on two clips, left and right; got {short_repr(ids)}")
        sides = [self._side(self.shelf.item(str(id), owner)) for id in ids]
        vote = {"time": round(time.time(), 3), "owner": owner, "left": sides[0], "right": sides[1]}
        vote |= {quality: found[quality] for quality in QUALITIES}
        add_line(self.path, json.dumps(vote, ensure_ascii=False))
        return told(vote)

    def of(self, owner: str) -> dict[str, Any]:
        """Return how many votes an owner cast, and the latest."""
        votes = [vote for vote in read_votes(self.path) if vote.get("owner") == owner]
        return {"count": len(votes), "latest": [told(vote) for vote in votes[: -LATEST - 1 : -1]]}

    def _side(self, item: Item) -> dict[str, Any]:
        item = self.shelf.learn(item)
        assert item.known, "it was learned"
        if item.known.request is None:
            raise RequestError(f"a clip to vote on must carry its request; {item.made.id} carries none")
        request = json.loads(item.known.request.to_json())
        return {"id": item.made.id, "sha256": self.shelf.contents_of(item), "request": request}


def told(vote: dict[str, Any]) -> dict[str, Any]:
    """Return a vote as its owner is told of it: without the requests."""
    sides = {side: vote[side]["id"] for side in ("left", "right")}
    return {"time": vote["time"]} | sides | {quality: vote[quality] for quality in QUALITIES}


def add_line(path: Path, line: str) -> None:
    """Add a line to a file, whole and on the disk; half a line of a process that died is ended first."""
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        os.write(file.fileno(), f"{line}\n".encode())
        os.fsync(file.fileno())


def read_votes(path: Path) -> list[dict[str, Any]]:
    """Read all votes, in order; what is no whole line is left out."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            vote = json.loads(line)
        except ValueError:
            continue
        if isinstance(vote, dict) and {"left", "right", *QUALITIES} <= vote.keys():
            found.append(vote)
    return found
