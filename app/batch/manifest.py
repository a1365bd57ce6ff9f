"""`manifest.jsonl`: a line for every row that a batch has finished, and for every clip in the folder exactly one.

Lines are only appended, by any number of runs. A line that a kill or a full disk cut short is removed by the next run.
A line of a finished clip has the digest of its request and the file's size and time of change, so that the next run
knows the file without reading it.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.queue.disk import is_disk_full, when_there_is_room

MANIFEST = "manifest.jsonl"
DONE = "done"


class Manifest:
    """The manifest of a batch's folder; `writable` where lines may be appended, which makes the file.

    `files` has the digest and the `stamp` of each finished clip by its output, None where its line has none.
    """

    def __init__(self, folder: Path, writable: bool = True):
        self.path = folder / MANIFEST
        self.files: dict[str, tuple[str, list[int]] | None] = {}
        self.noted: set[tuple[str, str]] = set()  # job and state of each line
        self.read_bytes = 0
        self.descriptor: int | None = None
        if writable:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            self.descriptor = when_there_is_room(lambda: os.open(self.path, flags, 0o666), folder)
            with self._locked():
                self._repair()
                self._read()
        elif self.path.is_file():
            with open(self.path, "rb") as file:
                self._take(file.read())

    def close(self) -> None:
        """Close the file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def is_known(self, output: str, digest: str, path: Path) -> bool:
        """Say whether a file is the very one that a line is about, made for a request of this digest."""
        return self.files.get(output) == (digest, stamp(path))

    def append(self, line: dict[str, Any]) -> bool:
        """Append a line; return False where another run has noted the same end of the same job already.

        A full disk is waited for. The line is on the disk, whole or not at all, when this returns.
        """
        assert self.descriptor is not None, "the manifest is open for writing"
        text = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._locked():
            self._read()
            if line.get("job") and (line["job"], line["state"]) in self.noted:
                return False
            when_there_is_room(lambda: self._write(text), self.path.parent)
            self._read()
        return True

    @contextmanager
    def _locked(self):
        assert self.descriptor is not None
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _write(self, text: bytes) -> None:
        assert self.descriptor is not None
        size = os.fstat(self.descriptor).st_size
        try:
            if os.write(self.descriptor, text) < len(text):
                raise OSError(28, os.strerror(28), str(self.path))
        except OSError as error:
            if is_disk_full(error):
                os.ftruncate(self.descriptor, size)
            raise

    def _repair(self) -> None:
        """Remove the beginning of a line that was not written to its end."""
        assert self.descriptor is not None
        content = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        if content and not content.endswith(b"\n"):
            os.ftruncate(self.descriptor, content.rfind(b"\n") + 1)

    def _read(self) -> None:
        """Take in the lines that were appended since the last call."""
        assert self.descriptor is not None
        size = os.fstat(self.descriptor).st_size
        content = os.pread(self.descriptor, max(0, size - self.read_bytes), self.read_bytes)
        self.read_bytes = size
        self._take(content)

    def _take(self, content: bytes) -> None:
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # of another hand, or not written to its end
            if not isinstance(found, dict):
                continue
            if found.get("job"):
                self.noted.add((str(found["job"]), str(found.get("state"))))
            if found.get("state") == DONE and found.get("output"):
                known = (found["digest"], found["file"]) if found.get("digest") and found.get("file") else None
                self.files[str(found["output"])] = known


def stamp(path: Path) -> list[int] | None:
    """Return a file's size in bytes and its time of change in nanoseconds; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
