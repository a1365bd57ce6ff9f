"""Read the requests that many files carry. This module is imported by the child process that reads, so it is light."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from dit.request import METADATA_KEY

READ_TOGETHER = 256  # files that one child process reads


def read_requests(paths: Iterable[Path]) -> list[str | None]:
    """Read the request, as JSON, that each file carries, in child processes; None for a file without."""
    from vae.video.pixels import MediaError
    from vae.video.sandbox import run_sandboxed

    rest, found = iter(paths), list[str | None]()
    while together := [str(path) for path in islice(rest, READ_TOGETHER)]:
        try:
            found += run_sandboxed(_read_each, together[0], together[1:])
        except MediaError:  # one of them crashed the reader
            for path in together:
                try:
                    found += run_sandboxed(_read_each, path, [])
                except MediaError:
                    found.append(None)
    return found


def _read_each(path: str, others: Sequence[str]) -> list[str | None]:
    from vae.video.pixels import MediaError
    from vae.video.read import read_metadata

    found: list[str | None] = []
    for one in (path, *others):
        try:
            found.append(read_metadata(one).get(METADATA_KEY))
        except (MediaError, OSError):
            found.append(None)
    return found
