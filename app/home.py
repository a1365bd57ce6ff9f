"""LONGTAKE_HOME: the private folder of this user, with the signing certificate and the render history.

Private means that no other user of the machine reads it: folders have mode 0700, files 0600.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

HOME = "LONGTAKE_HOME"


def home() -> Path:
    """Return the private folder of this user: $LONGTAKE_HOME, or longtake in the XDG data directory."""
    if named := os.environ.get(HOME):
        return Path(os.path.abspath(named))
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path(os.path.expanduser("~/.local/share"))) / "longtake"


def make_private_folder(folder: Path) -> bool:
    """Make a folder private, and new if there is none; return whether other users could read it before.

    The folder of another user keeps its mode.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _tighten(folder)


def make_private_file(path: Path) -> None:
    """Make a file private, and new if there is none. An existing one is not opened: that would end SQLite's locks."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        _tighten(path)


def private_opener(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=private_opener)`, which creates it private."""
    return os.open(path, flags, 0o600)


def tighten(paths: Iterable[Path]) -> None:
    """Make existing files and folders private, with all that the folders hold; links are not followed."""
    for path in paths:
        _tighten(path)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                _tighten(Path(folder, name))


def _tighten(path: Path) -> bool:
    """Take the permissions of other users away; return whether there were any."""
    with suppress(FileNotFoundError, PermissionError):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & 0o077:
            path.chmod(stat.S_IMODE(mode) & 0o700)
            return True
    return False
