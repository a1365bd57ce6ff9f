"""Full disks: which disk an error is about, whether there is room again, and waiting until there is."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXT = re.compile(r"disk (is )?full|no space left|os error 28\b|disk quota exceeded", re.IGNORECASE)
MIN_FREE_BYTES = 256 * 2**20  # free space that ends a pause for a full disk
MIN_FREE_SHARE = 0.25  # of a disk too small for that
MIN_FREE_FILES = 16  # names, likewise
TRIAL_BYTES = 2**20  # written to find out whether there is room: quotas and inodes run out as well
MAX_FREE_SHARE = 0.9  # of a disk that can be waited for
RETRY_SECONDS = 1.0


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether an error is, or was raised because of, a lack of disk space."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_of(path: Path) -> str:
    """Name the disk that a path is on by its mount point."""
    place = Path(os.path.realpath(path))
    while not os.path.ismount(place):
        place = place.parent
    return str(place)


def min_free_bytes(folder: Path) -> int:
    """Return how much space at least ends a pause for a full disk: 256 MiB, or a quarter of a smaller disk."""
    return max(1, min(MIN_FREE_BYTES, int(shutil.disk_usage(existing_folder(folder)).total * MIN_FREE_SHARE)))


def existing_folder(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def has_room(folder: Path, free_bytes: int) -> bool:
    """Say whether so much space, and names for some files, are free on the disk of a folder that can be written to."""
    folder = existing_folder(folder)
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < free_bytes or (status.f_files and status.f_favail < MIN_FREE_FILES):
        return False
    return _can_write(folder, min(free_bytes, TRIAL_BYTES))


def _can_write(folder: Path, trial_bytes: int) -> bool:
    """Say whether a file of this size can be written; what is wrong but for space the next clip will tell."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(trial_bytes))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not is_disk_full(error)
    return True


def when_there_is_room(
    action: Callable[[], T], folder: Path, stop: threading.Event | None = None, kind: type[OSError] = OSError
) -> T:
    """Call a function; where the disk of `folder` is full, say so once, wait, and call it again.

    Only errors of `kind` are taken for a full disk. Raises what the function raises otherwise, and the error of the
    full disk once `stop` is set.
    """
    told, stop = False, stop or threading.Event()
    while True:
        try:
            return action()
        except kind as error:
            if not is_disk_full(error) or stop.is_set():
                raise
            if not told:
                print(f"longtake: paused: {full_disk_sentence(folder)}", file=sys.stderr, flush=True)
                told = True
        stop.wait(RETRY_SECONDS)


def full_disk_sentence(folder: Path) -> str:
    """Say that the disk of a folder is full, and what to do."""
    return f"the disk at {disk_of(folder)}, of {folder}, is full, so make room; it goes on by itself"


def full_folder(error: BaseException, folder: Path) -> Path | None:
    """Return the folder whose disk an error found full: that of the file it names, or else `folder`; or None."""
    if not is_disk_full(error):
        return None if _can_write(existing_folder(folder), 1) else folder
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(name := getattr(cause, "filename", None), str) and os.path.isabs(name):
            named = existing_folder(Path(name).parent)
            return named if disk_of(named) != disk_of(folder) else folder
        cause = cause.__cause__ or cause.__context__
    return folder


def bytes_to_go_on(folder: Path, before: int | None = None) -> int | None:
    """Return how much free space ends a pause: twice what was too little `before`; None where no disk has that much."""
    if before is None:
        return min_free_bytes(folder)
    total = shutil.disk_usage(existing_folder(folder)).total
    return 2 * before if 2 * before <= MAX_FREE_SHARE * total else None
